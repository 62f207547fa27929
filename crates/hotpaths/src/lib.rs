//! What every message costs, as fixed pieces of work.
//!
//! **For** guarding the speed of the hot paths. Each [`Path`] does the same work again and again, without a socket,
//! a disk or a clock. The bench times it (`cargo bench -p hotpaths`); the program runs a given number of steps, so
//! that callgrind can count the instructions of one (`cargo xtask bench --instructions`), which neither the
//! machine's load nor its speed changes.
//!
//! **Promises.** A path does its work with the code that the relay ships and with the relay's allocator. What a
//! step does depends on nothing but the steps before it.
//!
//! **Never** holds code that the relay needs, nor a figure: those are in `instructions.toml` beside this crate.
//!
//! ```
//! use hotpaths::{Path, Scheduler};
//!
//! let mut path = Scheduler::ready();
//! path.step();
//! ```

mod recovery;
mod scheduler;
mod session;
mod spool;
mod transaction;

pub use recovery::Recovery;
pub use scheduler::Scheduler;
pub use session::{LARGE, SMALL, Session, VERY_LARGE};
pub use spool::Spool;
pub use transaction::Transaction;

/// The allocator of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A piece of work that can be done again and again.
pub trait Path {
    /// Its name in `instructions.toml`.
    const NAME: &'static str;
    /// Messages or records of a step; what is recorded is the cost of one.
    const ITEMS: u32;

    /// The work of the recorded figure, with all that is done once behind it.
    fn ready() -> Self;

    /// Does it once.
    fn step(&mut self);
}

/// A path, for those who choose one by name.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// [`Path::NAME`].
    pub name: &'static str,
    /// [`Path::ITEMS`].
    pub items: u32,
    /// Gets ready and does so many steps.
    pub run: fn(steps: u32),
}

impl Named {
    const fn of<P: Path>() -> Named {
        Named { name: P::NAME, items: P::ITEMS, run: run::<P> }
    }
}

/// Every path that has a recorded figure.
pub const ALL: &[Named] = &[
    Named::of::<Session<SMALL>>(),
    Named::of::<Spool>(),
    Named::of::<Scheduler>(),
    Named::of::<Transaction>(),
    Named::of::<Recovery>(),
];

fn run<P: Path>(steps: u32) {
    let mut path = P::ready();
    for _ in 0..steps {
        path.step();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_can_be_gone_twice() {
        for path in ALL {
            (path.run)(2);
            assert!(path.items > 0, "{}", path.name);
        }
    }
}

//! Black-box tests of the shipped `postrider` binary, and what they share.
//!
//! **For** showing that the binary as a whole does what it promises with things that we did not write: clients,
//! mail servers, name servers, full and failing disks, kill -9. A test starts the binary as an operator would, on
//! a configuration file, and talks to it as its users do.
//!
//! **Promises.** Everything listens on loopback addresses that belong to one test alone ([`Site`]), on free ports.
//! Scratch folders are on the disk of the target directory. Whatever is started ends with the test, also when it
//! panics or is killed. Waiting has a condition and a bound. What a test needs and lacks it installs or unpacks
//! itself; where it cannot, it says so and skips.
//!
//! **Never** is any of this part of the product.
//!
//! ```no_run
//! use blackbox::{Relay, Site};
//!
//! let site = Site::new();
//! let address = site.free(1);
//! let relay = Relay::start(&site, &format!(
//!     "[[listener]]\naddress = \"{address}\"\nsandbox = true\n[[route]]\nto = [\"sandbox\"]\n"
//! ));
//! relay.wait_for_banner(address);
//! ```

#![allow(clippy::unwrap_used, reason = "a harness of tests ends a test by panicking")]

mod backlog;
mod command;
mod forgetful;
mod mail;
pub mod names;
mod relay;
pub mod servers;
mod site;
mod tap;

pub use backlog::Backlog;
pub use command::{Answer, install, program, run, run_with_input};
pub use enclosure::{Room, Running, User, once};
pub use forgetful::ForgetfulDisk;
pub use mail::{LETTER, ends_with_letter, letter, without_added_fields};
pub use relay::{PASSWORD, Relay, USER, binary, verifier};
pub use site::{Site, packages, shared_folder, until};
pub use tap::{Call, Content, Tap};

/// True for full counts (`cargo xtask test --long`) instead of a seeded part.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("POSTRIDER_TEST_LONG").is_some()
}

/// Ends a test that cannot run here; says why.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        eprintln!("SKIPPED: {}", format!($($why)*));
        return;
    }};
}

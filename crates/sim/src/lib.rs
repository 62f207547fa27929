//! Deterministic simulation of the real rooms.
//!
//! **For:** running the real log, queue, engine, sessions and connections on a simulated disk, network,
//! clock and DNS from one seed, through crashes, and watching that the promises hold.
//! **Promises:** the same seed is the same world, to the last octet; a failure names its seed.
//! **Never:** real time, threads, files or sockets.
//!
//! ```
//! let tally = postrider_sim::live(7, &postrider_sim::Length { crashes: 1, messages: 20 });
//! assert_eq!(tally.crashes, 1);
//! ```

mod client;
mod ledger;
mod site;
mod world;

pub use world::{Length, Tally, live};

//! The `postrider` program: configuration, wiring, command line.
//!
//! **For:** turning a configuration file into the [`Snapshot`](postrider_model::Snapshot) that the data plane
//! reads ([`config`]), starting and stopping the relay (`serve`), and being a person's hands at a running one
//! ([`cli`]), as a client of its admin socket.
//! **Promises:** everything wrong with a file is said at once, with its place and what to do; a change that
//! is wrong changes nothing; no secret is printed.
//! **Never:** a decision about mail.
//!
//! ```
//! use postrider::config::{Surroundings, check};
//! let surroundings = Surroundings { hostname: "box".into(), directory: "/etc".into(), data_dir: None };
//! let problems = check("a.toml".as_ref(), "hostnam = \"a.example\"\n", &surroundings).unwrap_err();
//! assert!(problems.to_string().starts_with("a.toml:1:1: error: unknown key `hostnam`"));
//! ```

pub mod cli;
pub mod config;
mod send;
mod serve;

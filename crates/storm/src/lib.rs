//! Load and exact accounting for SMTP relays: a public benchmark kit.
//!
//! **For** measuring a relay and proving that it loses nothing. [`source`] sends numbered messages and journals
//! what the relay said of each; [`sink`] takes what the relay delivers, spoils it by script, and logs each
//! recipient; [`check`] joins the two and counts lost, duplicate, damaged and misrouted recipients. [`run`] does
//! all three in one process.
//!
//! **Promises.** The source counts a message as acknowledged only after the whole final reply was read. Source
//! and sink need one thread each and about four system calls per message, so that on a small machine the relay
//! is what is measured. Every load is bounded in count or time and stops by itself.
//!
//! **Never** shares code with a relay that it checks: it has its own reading of SMTP, so that one mistake cannot
//! hide in both.
//!
//! ```
//! use storm::{check, sink, source};
//!
//! let sink = sink::Sink::start(sink::Options::on_loopback()).unwrap();
//! let plan = source::Plan::to(sink.address()).messages(100).sessions(4);
//! let journal = source::run(&plan).unwrap().journal;
//! let verdict = check::check(&journal, &sink.stop().log, &check::Known::default()).unwrap();
//! assert!(verdict.holds() && verdict.delivered == 100);
//! ```

pub mod check;
pub mod cli;
pub mod content;
pub mod id;
pub mod latency;
pub mod record;
pub mod run;
pub mod script;
pub mod sink;
pub mod source;
pub mod tls;
mod wire;

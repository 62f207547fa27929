//! The shell of the log: runs the spool's operations on files.
//!
//! **For:** the committer thread, which is the only one that writes the log; reading records back; recovery.
//! **Promises:** one write and one sync per batch; a shard is woken once per batch.
//! **Never:** a look into a record.

mod committer;
mod files;

pub use committer::{Committer, CommitterHandle};
pub use files::{OpenError, Opened, ReadError, Reader, Recovered, ReplayedRecord, open};

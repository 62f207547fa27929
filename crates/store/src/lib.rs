//! The control plane's rows, and the one place where they change.
//!
//! **For:** keeping tenants, applications, credentials, keys, the instance's mode and the audit log, and giving
//! the data plane an immutable [`Control`](postrider_model::control::Control) of them: rebuilt on change,
//! swapped when it is durable.
//! **Promises:** a change is made whole or refused whole, with its audit entry in the same transaction; what a
//! reader of [`Registry::current`] sees fits together; a store that cannot be opened or stops answering
//! changes nothing for mail: the last answer stays, and a copy on disk serves a start (design P5).
//! **Never:** a password, a key or their making (rows hold verifiers and hashes); a decision about what may
//! change, which is its caller's; a wait on the way of a message.
//!
//! Statements are written once, with `?N`, in `rows.rs` and `audit.rs`; what only one engine understands
//! (table definitions, opening) stands in that engine's folder.
//!
//! ```
//! use postrider_model::Timestamp;
//! use postrider_model::control::{Change, InstanceMode};
//! use postrider_store::{Act, Entry, Registry};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let now = || Timestamp::from_secs(1_795_526_426);
//! let registry = Registry::start(dir.path(), now, |_control| {}).unwrap();
//! let live = registry.act(|_, _| {
//!     let entry = Entry::new("operator", "instance.live", "instance");
//!     Ok(Act { changes: vec![Change::Mode(InstanceMode::Live)], entries: vec![entry], answer: () })
//! });
//! live.wait().unwrap();
//! assert_eq!(registry.current().mode(), InstanceMode::Live);
//! ```

mod anchor;
mod audit;
mod error;
mod keeper;
mod migrate;
mod registry;
mod rows;
mod session;
mod sqlite;
mod worker;

pub use audit::{AuditPage, AuditReport, Entry, Recorded};
pub use error::StoreError;
pub use registry::{Act, Answer, Registry};

/// The database's name in the data directory.
pub const FILE_NAME: &str = "control.db";

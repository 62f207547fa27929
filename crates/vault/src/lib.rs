//! Content at rest beyond the queue: the sandbox, which keeps mail that must not leave.
//!
//! **For:** keeping captured messages as files that any mail program opens (`ID.eml`) with what the envelope
//! said beside them (`ID.json`), and listing, reading and removing them.
//! **Promises:** when [`Sandbox::capture`] returns, the message is on disk; capturing an id twice changes
//! nothing; the oldest messages go when the bounds are reached; no id leads out of the directory.
//! **Never:** the network, clocks, or a decision about what is captured.
//!
//! ```
//! use bytes::Bytes;
//! use postrider_model::{Encoding, Timestamp};
//! use postrider_vault::{Bounds, CapturedMessage, Filter, Sandbox};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let sandbox = Sandbox::open(dir.path().join("sandbox"), Bounds::default()).unwrap();
//! let recipient = "bob@example.net".parse().unwrap();
//! sandbox
//!     .capture(&CapturedMessage {
//!         id: "msg_1",
//!         accepted_at: Timestamp::from_secs(1),
//!         account: "app1",
//!         reverse_path: None,
//!         recipients: &[&recipient],
//!         content: &[Bytes::from_static(b"Subject: Hello\r\n\r\n..\r\n")],
//!         encoding: Encoding::Stuffed,
//!     })
//!     .unwrap();
//! assert_eq!(sandbox.list(&Filter::default(), 10)[0].subject, "Hello");
//! assert_eq!(sandbox.show("msg_1").unwrap().unwrap().1, b"Subject: Hello\r\n\r\n.\r\n");
//! ```

mod files;
mod sandbox;

pub use sandbox::{Bounds, Captured, CapturedMessage, Filter, Sandbox};

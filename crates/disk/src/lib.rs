//! The shell of the log: runs the spool's operations on files.
//!
//! **For:** the committer thread, which alone writes the log; reading records back; opening a data
//! directory; checkpoints; inspecting a log from outside ([`inspect`]).
//! **Promises:** one vectored write and one sync per batch, on one thread; each shard is woken at most once
//! per batch; no error of the operating system ever looks like success; one process per directory.
//! **Never:** a look into a record, or a decision: those are `spool`'s.
//!
//! ```
//! use postrider_disk::{Committer, open};
//! use postrider_spool::{Append, Completion, Ticket};
//!
//! let dir = tempfile::tempdir()?;
//! let recovered = open(dir.path(), 1 << 20, 0x5eed)?.replay(|record| println!("{record:?}"))?;
//! let (sender, woken) = std::sync::mpsc::channel();
//! let committer = Committer::start(recovered, vec![Box::new(move || sender.send(()).unwrap_or(()))])?;
//! let message = Append { ticket: Ticket(1), head: b"envelope".to_vec(), urgent: true, ..Append::default() };
//! committer.handle().submit(&mut vec![message]);
//! let mut news = Completion::default();
//! while news.durable.is_none() {
//!     woken.recv()?;
//!     committer.handle().take_news(0, &mut news);
//! }
//! assert_eq!(news.durable.map(|durable| durable.up_to()), Some(Ticket(1)));
//! committer.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checkpoint;
mod committer;
mod desk;
mod files;
mod inspect;
pub mod journal;
mod open;
mod reader;

pub use checkpoint::{Checkpoints, Manifest, Part, PartError};
pub use committer::Committer;
pub use desk::CommitterHandle;
pub use files::{Room, make_directory};
pub use inspect::{Inspection, inspect};
pub use open::{OpenError, Opened, Recovered, Upkeep, open, open_with};
pub use postrider_spool::{Record, RecordError as ReadError, Replayed as ReplayedRecord};
pub use reader::Reader;

//! The durable log as a state machine.
//!
//! **For:** keeping records (messages, outcomes, an operator's acts) so that what was called durable is
//! there after any crash, in order, at the price of one write and one sync per batch.
//! **Promises:** a [`Durable`] exists only after the sync; each shard's records are durable in the order of
//! their appending; a record of an earlier filling of a segment never comes back; a segment whose sync
//! failed is never synced or written again; what cannot be taken is [`Lost`] and said so, and never lost
//! later; outcomes find room when messages no longer do.
//! **Never:** files, threads, clocks, randomness; nor a look into a record. The shell (`disk`) does what
//! [`Log::poll`] asks and answers.
//!
//! ```
//! use postrider_spool::{Append, Log, Op, Settings, Ticket};
//!
//! let mut log = Log::new(Settings::default(), 0x5eed);
//! log.append(Append { ticket: Ticket(1), head: b"envelope".to_vec(), urgent: true, ..Append::default() });
//! let mut written = 0;
//! let durable = loop {
//!     match log.poll() {
//!         Some(Op::Prepare(prepare)) => log.prepared(prepare.segment, Ok(())),
//!         Some(Op::Write(write)) => {
//!             written += write.slices().map(<[u8]>::len).sum::<usize>();
//!             log.written(Ok(()));
//!         }
//!         Some(Op::Sync { .. }) => log.synced(Ok(())),
//!         Some(Op::Read { .. } | Op::Remove { .. }) => unreachable!("nothing to copy yet"),
//!         None => break log.poll_completion().and_then(|news| news.durable),
//!     }
//! };
//! assert_eq!(written, 512);
//! assert_eq!(durable.map(|durable| durable.up_to()), Some(Ticket(1)));
//! ```

mod append;
mod batch;
mod copy;
mod follow;
mod format;
mod log;
mod op;
mod position;
mod record;
mod recovery;
mod scan;
mod segments;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use append::{Append, Body, Completion, Durable, Fault, Health, Lost, Moved, Stats};
pub use follow::{Extent, Follower};
pub use format::{BATCH_BYTES_MAX, FIRST_BATCH, SECTOR_BYTES, SEGMENT_HEADER_BYTES, Seal, SegmentHeader};
pub use log::{Log, RESERVED_SEGMENTS, SEGMENT_SIZE_MIN_BYTES, Settings};
pub use op::{Op, Outcome, Prepare, Write};
pub use position::{GENERATION_MAX, Generation, Lsn, Position, SEGMENT_SIZE_MAX_BYTES, Ticket};
pub use record::{Record, RecordError, read_body_range, read_record};
pub use recovery::{DAMAGES_MAX, Damage, Recovered, Recovery, Report, SegmentFile};
pub use scan::{Medium, Replayed};

//! What goes into the log and what comes back.

use crate::position::{Lsn, Position, Ticket};
use bytes::Bytes;
use smallvec::SmallVec;

/// A body in pieces, in order. They are written as they are and not copied.
pub type Body = SmallVec<[Bytes; 2]>;

/// A record to be appended.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// Whose it is; its appends stay in order.
    pub shard: u16,
    /// The shard's number for it, higher than any before.
    pub ticket: Ticket,
    /// The caller's kind of record; opaque here.
    pub kind: u8,
    /// What a replay reads.
    pub head: Vec<u8>,
    /// What a replay skips.
    pub body: Body,
    /// A fresh message: the committer starts at once. Others ride along.
    pub urgent: bool,
    /// The head is copied to the event journal.
    pub event: bool,
    /// A piece of a large body: written, but not synced until something else is. Without effect together
    /// with `reserve`.
    pub chunk: bool,
    /// May use the reserved segments and is written again from memory after a failed sync. Set it for what
    /// must not be refused (outcomes, controls, reports); a record without it is [`Lost`] instead.
    pub reserve: bool,
    /// The first of the chunks that this record commits. If any record of the shard from that one on was
    /// lost, so is this.
    pub needs: Option<Ticket>,
}

impl Append {
    /// Octets of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    /// Whether the record stays until it is released: it has a body or is a message.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.reserve || !self.body.is_empty()
    }

    pub(crate) fn is_lazy(&self) -> bool {
        self.chunk && !self.reserve
    }
}

/// Proof that what it covers has been synced. Only the log makes one, and only after the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    shard: u16,
    up_to: Ticket,
}

impl Durable {
    pub(crate) fn new(shard: u16, up_to: Ticket) -> Self {
        Self { shard, up_to }
    }

    /// Whose.
    #[must_use]
    pub fn shard(self) -> u16 {
        self.shard
    }

    /// Every ticket of the shard up to this one is durable, but for those reported lost.
    #[must_use]
    pub fn up_to(self) -> Ticket {
        self.up_to
    }
}

/// Why a record was not made durable. It never will be by itself; after a crash that follows at once it
/// may be found all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No room: `452 4.3.1`.
    #[error("the spool is full")]
    Full,
    /// A write or sync failed: `451 4.3.0`.
    #[error("the spool's disk failed")]
    Failed,
    /// Larger than a batch: the caller should have made chunks.
    #[error("the record is larger than the spool takes")]
    TooLarge,
}

/// A record was copied forward; from now on read it at the new place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The caller's kind of record.
    pub kind: u8,
    /// Its head, by which its owner knows it.
    pub head: Vec<u8>,
    /// Where it was.
    pub from: Position,
    /// Where it is. If its owner has gone meanwhile: release this.
    pub to: Position,
}

/// What became of a shard's appends since the last one. Handle `lost` first.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// Whose.
    pub shard: u16,
    /// These were not made durable, in order.
    pub lost: Vec<(Ticket, Lost)>,
    /// Where the kept records are. A chunk comes here when it is written, everything else with `durable`.
    pub placed: Vec<(Ticket, Position)>,
    /// Records copied forward.
    pub moved: Vec<Moved>,
    /// How far the shard's records are durable now.
    pub durable: Option<Durable>,
}

impl Completion {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.placed.is_empty() && self.moved.is_empty() && self.durable.is_none()
    }

    /// Adds what came later, leaving `later` empty with its room.
    pub fn merge(&mut self, later: &mut Completion) {
        self.shard = later.shard;
        self.lost.append(&mut later.lost);
        self.placed.append(&mut later.placed);
        self.moved.append(&mut later.moved);
        if let Some(durable) = later.durable.take() {
            self.durable = Some(durable);
        }
    }
}

/// Whether the log takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Good,
    /// No room for messages; outcomes still go to the reserve.
    Full,
    /// As full, and the reserve is nearly used up: no transaction may be started either, until a checkpoint has
    /// freed room for outcomes.
    Exhausted,
    /// No segment can be synced: no message is taken, and no transaction may be started.
    Failing,
}

/// How an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No space left, or a quota is used up.
    #[error("no space left")]
    Full,
    /// Anything else.
    #[error("input/output error")]
    Io,
}

/// Figures for an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments in all.
    pub segments: u32,
    /// Of these, prepared or preparable at once.
    pub free_segments: u32,
    /// Given up after a failed write or sync and not yet made anew.
    pub suspect_segments: u32,
    /// Kept records.
    pub live_records: u64,
    /// Their octets, about.
    pub live_bytes: u64,
    /// Batches written.
    pub batches: u64,
    /// Syncs done.
    pub syncs: u64,
    /// Records written.
    pub records: u64,
    /// Octets written, padding included.
    pub bytes: u64,
    /// Records copied forward.
    pub copied: u64,
    /// Records that should have been copied but could not be read.
    pub unreadable: u64,
    /// Records reported lost.
    pub lost: u64,
    /// Everything up to this one is durable.
    pub durable: Lsn,
}

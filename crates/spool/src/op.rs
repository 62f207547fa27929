//! What the log asks of its shell.

use crate::append::{Append, Fault};
use crate::format::{SECTOR_BYTES, SegmentHeader};
use crate::position::Position;

/// One thing to do. A write and a sync come one at a time and never together; a preparation runs beside
/// them, best on another thread, as does at most one read.
#[derive(Debug)]
pub enum Op<'a> {
    /// Write a batch; answer with `Log::written`.
    Write(Write<'a>),
    /// Make all writes to this segment durable; answer with `Log::synced`.
    Sync {
        /// Which.
        segment: u32,
    },
    /// Make a segment ready; answer with `Log::prepared`.
    Prepare(Prepare),
    /// Remove a segment's file, which nobody needs; answer with `Log::removed`. It need not be durable.
    Remove {
        /// Which.
        segment: u32,
    },
    /// Read, for copying forward; answer with `Log::read`.
    Read {
        /// Which.
        segment: u32,
        /// From here.
        offset: u32,
        /// So much; less only at the segment's end.
        length: u32,
    },
}

/// A batch to write.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Which.
    pub segment: u32,
    /// From here.
    pub offset: u32,
    pub(crate) heads: &'a [u8],
    pub(crate) records: &'a [Flying],
    pub(crate) padding: usize,
}

static ZEROS: [u8; SECTOR_BYTES as usize] = [0; SECTOR_BYTES as usize];

impl<'a> Write<'a> {
    /// The octets to write, in order.
    pub fn slices(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bodies = self.records.iter().flat_map(|r| r.append.body.iter().map(|piece| &piece[..]));
        std::iter::once(self.heads)
            .chain(bodies)
            .chain(std::iter::once(&ZEROS[..self.padding]))
            .filter(|slice| !slice.is_empty())
    }
}

/// A segment to make ready: allocated in full, its header written and synced, and the directory synced if
/// the file is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// Which.
    pub segment: u32,
    /// Make a new file, in place of one that may be there. Otherwise only the header is written.
    pub create: bool,
    /// Octets of the whole segment.
    pub size: u32,
    /// A batch waits for this one.
    pub awaited: bool,
    /// The reserve is not complete: this one may use room that messages must leave free.
    pub reserve: bool,
    /// What the header says; [`SegmentHeader::encode`] goes to the segment's start.
    pub header: SegmentHeader,
}

/// An append on its way to the disk.
#[derive(Debug)]
pub(crate) struct Flying {
    pub(crate) append: Append,
    /// The record it copies.
    pub(crate) copy_of: Option<Position>,
    pub(crate) position: Option<Position>,
}

impl Flying {
    pub(crate) fn is_kept(&self) -> bool {
        self.copy_of.is_some() || self.append.is_kept()
    }
}

/// How an operation ended.
pub type Outcome = Result<(), Fault>;

//! Reading a segment: batches, then records, each verified.

use crate::append::Fault;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH, FLAG_COPIED, FLAG_EVENT, FLAG_KEPT, RECORD_HEADER_BYTES,
    RecordHeader, SECTOR_BYTES, Seed, crc, sectors,
};
use crate::position::{Generation, Lsn, Position};

/// What segments are read from.
pub trait Medium {
    /// Fills `buffer` from the segment at `offset`; what lies behind the file's end reads as zeros.
    ///
    /// # Errors
    /// The device's.
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault>;
}

impl<M: Medium + ?Sized> Medium for &mut M {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        (**self).read_at(segment, offset, buffer)
    }
}

/// A record as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed<'a> {
    /// Its number.
    pub lsn: Lsn,
    /// Whose.
    pub shard: u16,
    /// The caller's kind.
    pub kind: u8,
    /// The head as it was appended.
    pub head: &'a [u8],
    /// Where it is, if it is kept.
    pub position: Option<Position>,
    /// Octets of its body.
    pub body_len: u32,
    /// The head belongs into the event journal.
    pub event: bool,
    /// A copy of an earlier record: it only moves what is known, and brings nothing back to life.
    pub copied: bool,
}

const WINDOW_MIN_BYTES: u32 = 8 << 10;
const WINDOW_MAX_BYTES: u32 = 1 << 20;

/// One segment's bytes through a window that grows while it is read without gaps.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    pub(crate) segment: u32,
    pub(crate) size: u32,
    pub(crate) generation: Generation,
    pub(crate) seed: Seed,
    window: Vec<u8>,
    at: u32,
    hint: u32,
}

impl Scanner {
    pub(crate) fn new(segment: u32, size: u32, generation: Generation, seed: Seed) -> Self {
        Self { segment, size, generation, seed, window: Vec::new(), at: 0, hint: WINDOW_MIN_BYTES }
    }

    /// Reads anew what may have been written since.
    pub(crate) fn forget(&mut self) {
        self.window.clear();
    }

    /// The batch header at `offset`, if a valid one is there.
    pub(crate) fn batch(&mut self, medium: &mut impl Medium, offset: u32) -> Option<BatchHeader> {
        if offset.checked_add(SECTOR_BYTES)? > self.size {
            return None;
        }
        let (seed, generation, size) = (self.seed, self.generation, self.size);
        let bytes = self.bytes(medium, offset, BATCH_HEADER_BYTES);
        let header = BatchHeader::decode(bytes, seed, generation, offset)?;
        (sectors(header.length) <= size - offset).then_some(header)
    }

    /// Header and heads of a batch.
    pub(crate) fn heads(&mut self, medium: &mut impl Medium, offset: u32, batch: &BatchHeader) -> &[u8] {
        self.bytes(medium, offset, BATCH_HEADER_BYTES + batch.heads)
    }

    /// `length` octets at `offset`; what cannot be read is zero.
    pub(crate) fn bytes(&mut self, medium: &mut impl Medium, offset: u32, length: u32) -> &[u8] {
        let end = self.at + u32::try_from(self.window.len()).unwrap_or(0);
        if offset < self.at || offset + length > end {
            let adjoins = offset >= self.at && offset <= end && !self.window.is_empty();
            self.hint = if adjoins { (self.hint * 2).min(WINDOW_MAX_BYTES) } else { WINDOW_MIN_BYTES };
            let wanted = length.max(self.hint).min(self.size.saturating_sub(offset)).max(length);
            self.window.resize(wanted as usize, 0);
            self.at = offset;
            if medium.read_at(self.segment, offset, &mut self.window).is_err() {
                read_what_can_be_read(medium, self.segment, offset, &mut self.window);
            }
        }
        let start = (offset - self.at) as usize;
        &self.window[start..start + length as usize]
    }

    /// The next valid batch at or behind `offset` and before `end`.
    pub(crate) fn next_batch(
        &mut self,
        medium: &mut impl Medium,
        offset: u32,
        end: u32,
    ) -> Option<(u32, BatchHeader)> {
        let mut at = offset.max(FIRST_BATCH).next_multiple_of(SECTOR_BYTES);
        while at < end {
            if let Some(batch) = self.batch(medium, at) {
                return Some((at, batch));
            }
            at = at.checked_add(SECTOR_BYTES)?;
        }
        None
    }

    /// Whether every record of the batch is whole, bodies included.
    pub(crate) fn verifies(&mut self, medium: &mut impl Medium, offset: u32, batch: &BatchHeader) -> bool {
        let seed = self.seed;
        let generation = self.generation;
        let bytes = self.bytes(medium, offset, batch.length);
        let mut records = Records::new(batch, offset);
        while let Some(found) = records.next(bytes, seed, generation) {
            let Found::Record { header, .. } = found else { return false };
            let body = header.body_at.checked_sub(offset).and_then(|start| {
                bytes.get(start as usize..(start as usize).checked_add(header.body as usize)?)
            });
            if body.is_none_or(|body| crc(seed.at(header.body_at), body) != header.body_crc) {
                return false;
            }
        }
        true
    }
}

/// Sector by sector, so that one bad sector does not hide the rest.
fn read_what_can_be_read(medium: &mut impl Medium, segment: u32, offset: u32, window: &mut [u8]) {
    let mut at = offset;
    for sector in window.chunks_mut(SECTOR_BYTES as usize) {
        if medium.read_at(segment, at, sector).is_err() {
            sector.fill(0);
        }
        at += SECTOR_BYTES;
    }
}

/// Goes through the heads of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Records {
    /// The batch's offset in its segment.
    base: u32,
    /// Octets from there to the next record.
    at: u32,
    end: u32,
    left: u32,
    lsn: Lsn,
}

/// One record's header, or what is left of a batch whose framing is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Record {
        header: RecordHeader,
        lsn: Lsn,
        offset: u32,
        position: Option<Position>,
    },
    /// One record is damaged, those behind it may be whole.
    Damaged {
        lsn: Lsn,
        offset: u32,
    },
}

impl Records {
    pub(crate) fn new(batch: &BatchHeader, offset: u32) -> Self {
        Self {
            base: offset,
            at: BATCH_HEADER_BYTES,
            end: BATCH_HEADER_BYTES + batch.heads,
            left: batch.records,
            lsn: batch.first_lsn,
        }
    }

    /// The next one in `bytes`, which start with the batch's header.
    pub(crate) fn next(&mut self, bytes: &[u8], seed: Seed, generation: Generation) -> Option<Found> {
        if self.left == 0 {
            return None;
        }
        let (lsn, offset) = (self.lsn, self.base + self.at);
        let header = bytes.get(self.at as usize..self.end as usize).and_then(RecordHeader::peek);
        let fits = header.filter(|h| self.at.checked_add(h.span()).is_some_and(|end| end <= self.end));
        let Some(header) = fits else {
            self.left -= 1;
            self.lsn = lsn.next();
            return Some(Found::Damaged { lsn, offset });
        };
        let whole = header.verifies(&bytes[self.at as usize..self.end as usize], seed, offset);
        self.left -= 1;
        self.lsn = lsn.next();
        self.at += header.span();
        if !whole {
            return Some(Found::Damaged { lsn, offset });
        }
        let kept = header.flags & FLAG_KEPT != 0;
        let position =
            kept.then(|| Position::new(generation, offset, header.span().saturating_add(header.body)));
        Some(Found::Record { header, lsn, offset, position })
    }
}

/// The record with `header` at `offset` in a batch at `base`, whose heads are `bytes`.
pub(crate) fn replayed<'a>(
    bytes: &'a [u8],
    base: u32,
    header: &RecordHeader,
    lsn: Lsn,
    offset: u32,
    position: Option<Position>,
) -> Replayed<'a> {
    let start = (offset - base + RECORD_HEADER_BYTES) as usize;
    Replayed {
        lsn,
        shard: header.shard,
        kind: header.kind,
        head: &bytes[start..start + header.head as usize],
        position,
        body_len: header.body,
        event: header.flags & FLAG_EVENT != 0,
        copied: header.flags & FLAG_COPIED != 0,
    }
}

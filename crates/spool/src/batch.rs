//! Building a batch: which records go, and their bytes.

use crate::append::Append;
use crate::format::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BatchHeader, FLAG_COPIED, FLAG_EVENT, FLAG_KEPT, RecordHeader, Seed,
    crc, record_span, sectors,
};
use crate::op::Flying;
use crate::position::{Generation, Lsn, Position};
use std::collections::VecDeque;

/// The batch being written.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Flying>,
    pub(crate) heads: Vec<u8>,
    pub(crate) offset: u32,
    /// Octets with padding.
    pub(crate) size: u32,
    pub(crate) padding: usize,
    pub(crate) last_lsn: Lsn,
    /// Something in it waits for the sync.
    pub(crate) wants_sync: bool,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) generation: Generation,
    pub(crate) seed: Seed,
    pub(crate) offset: u32,
    pub(crate) first_lsn: Lsn,
    pub(crate) synced_through: Lsn,
}

/// Octets a record takes in a batch; `None` if no batch could hold it.
pub(crate) fn footprint(append: &Append) -> Option<u32> {
    let head = u32::try_from(append.head.len()).ok()?;
    let body = u32::try_from(append.body_len()).ok()?;
    let size = record_span(head).checked_add(body)?;
    (size.checked_add(BATCH_HEADER_BYTES)? <= BATCH_BYTES_MAX).then_some(size)
}

impl Batch {
    /// Takes from the front of `pending` what fits into `room` octets; something fits.
    pub(crate) fn fill(&mut self, pending: &mut VecDeque<Flying>, room: u32, place: Place) {
        let room = room.min(BATCH_BYTES_MAX);
        let (mut count, mut heads, mut size) = (0, 0, BATCH_HEADER_BYTES);
        for flying in pending.iter() {
            let Some(more) = footprint(&flying.append) else { break };
            if sectors(size + more) > room {
                break;
            }
            size += more;
            heads += record_span(u32::try_from(flying.append.head.len()).unwrap_or(u32::MAX));
            count += 1;
        }
        self.records.clear();
        self.records.extend(pending.drain(..count));
        self.offset = place.offset;
        self.size = sectors(size);
        self.padding = (self.size - size) as usize;
        self.encode(heads, size, place);
    }

    fn encode(&mut self, heads: u32, length: u32, place: Place) {
        let mut body_at = place.offset + BATCH_HEADER_BYTES + heads;
        self.wants_sync = false;
        self.heads.clear();
        self.heads.resize(BATCH_HEADER_BYTES as usize, 0);
        for flying in &mut self.records {
            let kept = flying.is_kept();
            let append = &flying.append;
            let at = place.offset + len32(self.heads.len());
            let mut flags = 0;
            if kept {
                flags |= FLAG_KEPT;
            }
            if append.event {
                flags |= FLAG_EVENT;
            }
            if flying.copy_of.is_some() {
                flags |= FLAG_COPIED;
            }
            let body = len32(append.body_len());
            let start = place.seed.at(body_at);
            let header = RecordHeader {
                kind: append.kind,
                flags,
                shard: append.shard,
                head: len32(append.head.len()),
                body,
                body_at,
                body_crc: append.body.iter().fold(start, |sum, piece| crc(sum, piece)),
            };
            header.encode(&append.head, place.seed, at, &mut self.heads);
            body_at += body;
            self.wants_sync |= !append.is_lazy();
            flying.position =
                kept.then(|| Position::new(place.generation, at, header.span().saturating_add(body)));
        }
        let records = len32(self.records.len());
        let header = BatchHeader {
            generation: place.generation,
            first_lsn: place.first_lsn,
            synced_through: place.synced_through,
            records,
            heads,
            length,
        };
        header.encode(place.seed, place.offset, &mut self.heads[..BATCH_HEADER_BYTES as usize]);
        self.last_lsn = header.last_lsn();
    }

    /// Octets of heads: what a replay will have to read.
    pub(crate) fn head_bytes(&self) -> u64 {
        self.heads.len() as u64
    }
}

/// Lengths in a batch fit 32 bits by [`footprint`].
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

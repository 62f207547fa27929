//! The bytes on disk: segment header, batch header, record header, and their checksums.
//!
//! ```text
//! segment   header | header again | … 4096: batch | batch | …
//! batch     header (48) | record headers and heads, each padded to 8 | bodies | zeros up to 512
//! ```
//!
//! Heads come first in a batch, so that a scan reads them together and skips all bodies at once. Numbers
//! are little-endian. Every checksum starts from the segment's salt and generation and the place itself:
//! a record of an earlier filling, or one that a mail's content imitates, never verifies.

use crate::position::{Generation, Lsn, UNIT_BYTES};

/// What a device writes whole.
pub const SECTOR_BYTES: u32 = 512;
/// Where the first batch of a segment starts.
pub const FIRST_BATCH: u32 = 4096;
/// Octets of a batch header.
pub(crate) const BATCH_HEADER_BYTES: u32 = 48;
/// Octets of a record header.
pub(crate) const RECORD_HEADER_BYTES: u32 = 24;
/// No batch is longer than this, header and padding included.
pub const BATCH_BYTES_MAX: u32 = 4 << 20;
/// Octets a segment header takes, one copy.
pub const SEGMENT_HEADER_BYTES: usize = 512;

const SEGMENT_MAGIC: [u8; 8] = *b"PRIDELOG";
const BATCH_MAGIC: u32 = 0x4c42_5250;
const VERSION: u16 = 1;
const SEAL_BYTES: usize = 16;
const SEALS_AT: usize = 32;
/// How many seals one header can name: as many failed segments in a row the log survives.
pub(crate) const SEALS_MAX: usize = (SEGMENT_HEADER_BYTES - SEALS_AT - 4) / SEAL_BYTES;

/// Where checksums of one segment's filling start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(salt: u64, generation: Generation) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &generation.to_le_bytes()))
    }

    /// A checksum in progress for something at `offset`.
    pub(crate) fn at(self, offset: u32) -> u32 {
        self.0 ^ offset.rotate_left(7)
    }
}

pub(crate) fn crc(start: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(start, bytes)
}

/// Rounds up to a sector.
pub(crate) fn sectors(bytes: u32) -> u32 {
    bytes.next_multiple_of(SECTOR_BYTES)
}

/// The known end of a segment that was left before it was full: after a failed sync, or by a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The filling it speaks of.
    pub generation: Generation,
    /// What lies at or behind this offset never was.
    pub end: u32,
    /// The sequence goes on with this number elsewhere.
    pub next_lsn: Lsn,
}

/// A segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its filling.
    pub generation: Generation,
    /// Drawn once for the whole log.
    pub salt: u64,
    /// The number of its file.
    pub index: u32,
    /// Octets of the whole segment.
    pub size: u32,
    /// Ends of earlier segments.
    pub seals: Vec<Seal>,
}

impl SegmentHeader {
    /// Two equal copies, a sector each.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        let seals = &self.seals[..self.seals.len().min(SEALS_MAX)];
        bytes[10] = u8::try_from(seals.len()).unwrap_or(0);
        put_u32(&mut bytes, 12, self.generation);
        put_u64(&mut bytes, 16, self.salt);
        put_u32(&mut bytes, 24, self.index);
        put_u32(&mut bytes, 28, self.size);
        for (i, seal) in seals.iter().enumerate() {
            let at = SEALS_AT + i * SEAL_BYTES;
            put_u32(&mut bytes, at, seal.generation);
            put_u32(&mut bytes, at + 4, seal.end);
            put_u64(&mut bytes, at + 8, seal.next_lsn.0);
        }
        let sum = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        put_u32(&mut bytes, SEGMENT_HEADER_BYTES - 4, sum);
        bytes.extend_from_within(..);
        bytes
    }

    /// The better of the two copies at the start of `bytes`.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut copies = bytes.chunks_exact(SEGMENT_HEADER_BYTES).take(2).filter_map(Self::decode_copy);
        let first = copies.next()?;
        match copies.next() {
            Some(second) if second.generation > first.generation => Some(second),
            _ => Some(first),
        }
    }

    fn decode_copy(bytes: &[u8]) -> Option<Self> {
        let sum = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let count = usize::from(bytes[10]);
        if bytes[0..8] != SEGMENT_MAGIC
            || u32_at(bytes, SEGMENT_HEADER_BYTES - 4) != sum
            || version != VERSION
            || count > SEALS_MAX
        {
            return None;
        }
        let seals = (0..count).map(|i| {
            let at = SEALS_AT + i * SEAL_BYTES;
            Seal {
                generation: u32_at(bytes, at),
                end: u32_at(bytes, at + 4),
                next_lsn: Lsn(u64_at(bytes, at + 8)),
            }
        });
        Some(Self {
            generation: u32_at(bytes, 12),
            salt: u64_at(bytes, 16),
            index: u32_at(bytes, 24),
            size: u32_at(bytes, 28),
            seals: seals.collect(),
        })
    }
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) generation: Generation,
    pub(crate) first_lsn: Lsn,
    /// Every record up to this one was synced before this batch was written.
    pub(crate) synced_through: Lsn,
    pub(crate) records: u32,
    /// Octets of record headers and heads.
    pub(crate) heads: u32,
    /// Octets of header, heads and bodies, without the padding.
    pub(crate) length: u32,
}

impl BatchHeader {
    pub(crate) fn encode(&self, seed: Seed, offset: u32, out: &mut [u8]) {
        put_u32(out, 0, BATCH_MAGIC);
        put_u32(out, 4, self.generation);
        put_u64(out, 8, self.first_lsn.0);
        put_u64(out, 16, self.synced_through.0);
        put_u32(out, 24, self.records);
        put_u32(out, 28, self.heads);
        put_u32(out, 32, self.length);
        put_u64(out, 36, 0);
        let sum = crc(seed.at(offset), &out[..44]);
        put_u32(out, 44, sum);
    }

    /// `None` unless it is whole, of this filling and of this place.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, generation: Generation, offset: u32) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER_BYTES as usize)?;
        if u32_at(bytes, 0) != BATCH_MAGIC || u32_at(bytes, 4) != generation {
            return None;
        }
        if u32_at(bytes, 44) != crc(seed.at(offset), &bytes[..44]) {
            return None;
        }
        let header = Self {
            generation,
            first_lsn: Lsn(u64_at(bytes, 8)),
            synced_through: Lsn(u64_at(bytes, 16)),
            records: u32_at(bytes, 24),
            heads: u32_at(bytes, 28),
            length: u32_at(bytes, 32),
        };
        let sane = header.records > 0
            && header.length <= BATCH_BYTES_MAX
            && header.heads.checked_add(BATCH_HEADER_BYTES).is_some_and(|end| end <= header.length)
            && header.records.saturating_mul(RECORD_HEADER_BYTES) <= header.heads
            && header.first_lsn.0 > 0
            && header.first_lsn.0 < u64::MAX - u64::from(u32::MAX);
        sane.then_some(header)
    }

    /// The generation that the bytes claim, for a segment whose own header is unreadable.
    pub(crate) fn claimed_generation(bytes: &[u8]) -> Option<Generation> {
        (bytes.len() >= 8 && u32_at(bytes, 0) == BATCH_MAGIC).then(|| u32_at(bytes, 4))
    }

    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0 + u64::from(self.records) - 1)
    }
}

/// Stays until it is released, and is copied forward while it does.
pub(crate) const FLAG_KEPT: u8 = 1;
/// Its head goes to the event journal.
pub(crate) const FLAG_EVENT: u8 = 1 << 1;
/// A copy of an earlier record.
pub(crate) const FLAG_COPIED: u8 = 1 << 2;

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) shard: u16,
    pub(crate) head: u32,
    pub(crate) body: u32,
    /// Octets from the segment's start.
    pub(crate) body_at: u32,
    pub(crate) body_crc: u32,
}

impl RecordHeader {
    /// Appends header and head, padded.
    pub(crate) fn encode(&self, head: &[u8], seed: Seed, offset: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.kind);
        out.push(self.flags);
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.extend_from_slice(&self.head.to_le_bytes());
        out.extend_from_slice(&self.body.to_le_bytes());
        out.extend_from_slice(&self.body_at.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        let sum = crc(crc(seed.at(offset), &out[start..]), head);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(head);
        out.resize(out.len().next_multiple_of(UNIT_BYTES as usize), 0);
    }

    /// The lengths as they stand, before anything is verified.
    pub(crate) fn peek(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES as usize)?;
        Some(Self {
            kind: bytes[0],
            flags: bytes[1],
            shard: u16::from_le_bytes([bytes[2], bytes[3]]),
            head: u32_at(bytes, 4),
            body: u32_at(bytes, 8),
            body_at: u32_at(bytes, 12),
            body_crc: u32_at(bytes, 16),
        })
    }

    /// Whether header and head at the start of `bytes` are whole and of this place.
    pub(crate) fn verifies(&self, bytes: &[u8], seed: Seed, offset: u32) -> bool {
        let start = RECORD_HEADER_BYTES as usize;
        let Some(head) = bytes.get(start..start.saturating_add(self.head as usize)) else { return false };
        u32_at(bytes, 20) == crc(crc(seed.at(offset), &bytes[..20]), head)
    }

    /// Octets of header and head with padding.
    pub(crate) fn span(&self) -> u32 {
        record_span(self.head)
    }
}

/// Octets a record with a head of `head` octets takes among the heads.
pub(crate) fn record_span(head: u32) -> u32 {
    RECORD_HEADER_BYTES.saturating_add(head).checked_next_multiple_of(UNIT_BYTES).unwrap_or(u32::MAX)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        let seals = vec![Seal { generation: 6, end: 8192, next_lsn: Lsn(99) }];
        SegmentHeader { generation: 7, salt: 0x1234, index: 3, size: 1 << 20, seals }
    }

    #[test]
    fn a_segment_header_survives_the_loss_of_either_copy() {
        let bytes = header().encode();
        for copy in 0..2 {
            let mut damaged = bytes.clone();
            damaged[copy * 512 + 100] ^= 1;
            assert_eq!(SegmentHeader::decode(&damaged), Some(header()));
        }
    }

    #[test]
    fn a_half_written_header_gives_the_newer_filling() {
        let old = header().encode();
        let new = SegmentHeader { generation: 9, ..header() }.encode();
        let first = [&new[..512], &old[512..]].concat();
        let second = [&old[..512], &new[512..]].concat();
        assert_eq!(SegmentHeader::decode(&first).unwrap().generation, 9);
        assert_eq!(SegmentHeader::decode(&second).unwrap().generation, 9);
    }

    proptest! {
        #[test]
        fn a_batch_header_verifies_only_in_its_own_place(flip in 0usize..48 * 8, generation in 1u32..9) {
            let seed = Seed::new(5, 3);
            let batch = BatchHeader {
                generation: 3, first_lsn: Lsn(17), synced_through: Lsn(16), records: 2, heads: 64, length: 500,
            };
            let mut bytes = [0; 48];
            batch.encode(seed, 8192, &mut bytes);
            prop_assert_eq!(BatchHeader::decode(&bytes, seed, 3, 8192), Some(batch));
            prop_assert_eq!(BatchHeader::decode(&bytes, seed, 3, 8704), None);
            if generation != 3 {
                prop_assert_eq!(BatchHeader::decode(&bytes, Seed::new(5, generation), generation, 8192), None);
            }
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(BatchHeader::decode(&bytes, seed, 3, 8192), None);
        }

        #[test]
        fn garbage_is_no_header(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert_eq!(SegmentHeader::decode(&bytes), None);
            prop_assert_eq!(BatchHeader::decode(&bytes, Seed::new(1, 1), 1, 4096), None);
        }
    }
}

//! Reading one record by its position.

use crate::append::Fault;
use crate::format::{BATCH_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, Seed, crc};
use crate::position::Position;
use crate::scan::Medium;
use bytes::Bytes;
use std::ops::Range;

/// Octets read at first: most headers and heads fit.
const FIRST_READ_BYTES: u32 = 2048;

/// A kept record, read back and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The caller's kind.
    pub kind: u8,
    /// Whose.
    pub shard: u16,
    /// As it was appended.
    pub head: Bytes,
    /// As it was appended; empty if only the head was asked for.
    pub body: Bytes,
    /// Octets of the body.
    pub body_len: u32,
}

/// Why a record could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The position is of a filling that is no more: the record was moved, or released.
    #[error("the record has moved or was released")]
    Gone,
    /// What is there does not verify.
    #[error("the record is damaged on disk")]
    Damaged,
    /// The device says no.
    #[error("the record cannot be read")]
    Unreadable,
}

impl From<Fault> for RecordError {
    fn from(_: Fault) -> Self {
        RecordError::Unreadable
    }
}

/// Reads the record at `position` in `segment`, its body only if `with_body`.
///
/// # Errors
/// See [`RecordError`]; never `Gone`, which only who knows the fillings can tell.
pub fn read_record(
    medium: &mut impl Medium,
    segment: u32,
    salt: u64,
    position: Position,
    with_body: bool,
) -> Result<Record, RecordError> {
    let (bytes, header) = read_head(medium, segment, salt, position)?;
    let seed = Seed::new(salt, position.generation());
    let start = RECORD_HEADER_BYTES as usize;
    let mut record = Record {
        kind: header.kind,
        shard: header.shard,
        head: Bytes::copy_from_slice(&bytes[start..start + header.head as usize]),
        body: Bytes::new(),
        body_len: header.body,
    };
    if with_body && header.body > 0 {
        let mut body = vec![0; header.body as usize];
        medium.read_at(segment, header.body_at, &mut body)?;
        if crc(seed.at(header.body_at), &body) != header.body_crc {
            return Err(RecordError::Damaged);
        }
        record.body = body.into();
    }
    Ok(record)
}

/// Reads a part of the body of the record at `position`. The checksum covers the whole body, so a part is not
/// verified; the record's header is.
///
/// # Errors
/// As [`read_record`]; `Damaged` also when the range lies outside.
pub fn read_body_range(
    medium: &mut impl Medium,
    segment: u32,
    salt: u64,
    position: Position,
    range: Range<u32>,
) -> Result<Bytes, RecordError> {
    let (_, header) = read_head(medium, segment, salt, position)?;
    if range.start > range.end || range.end > header.body {
        return Err(RecordError::Damaged);
    }
    let mut part = vec![0; (range.end - range.start) as usize];
    medium.read_at(segment, header.body_at + range.start, &mut part)?;
    Ok(part.into())
}

fn read_head(
    medium: &mut impl Medium,
    segment: u32,
    salt: u64,
    position: Position,
) -> Result<(Vec<u8>, RecordHeader), RecordError> {
    let seed = Seed::new(salt, position.generation());
    let offset = position.offset();
    let mut bytes = vec![0; FIRST_READ_BYTES as usize];
    medium.read_at(segment, offset, &mut bytes)?;
    let header = RecordHeader::peek(&bytes).ok_or(RecordError::Damaged)?;
    let span = header.span();
    if span > BATCH_BYTES_MAX || header.body > BATCH_BYTES_MAX {
        return Err(RecordError::Damaged);
    }
    if span as usize > bytes.len() {
        bytes.resize(span as usize, 0);
        medium.read_at(segment, offset, &mut bytes)?;
    }
    if !header.verifies(&bytes, seed, offset) {
        return Err(RecordError::Damaged);
    }
    Ok((bytes, header))
}

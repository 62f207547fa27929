//! Copying forward: the last live records of an old segment are appended again, byte for byte.

use crate::append::{Append, Body, Fault, Health};
use crate::format::{BATCH_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, Seed, crc};
use crate::log::Log;
use crate::op::Flying;
use crate::position::Position;
use bytes::Bytes;
use smallvec::smallvec;

/// Copies under way, in octets, before the copier waits for the disk.
const COPY_AHEAD_BYTES: u64 = 1 << 20;
/// What is read to find a record's header and head.
const FIRST_READ_BYTES: u32 = 4096;

/// What is read next, or is being read.
#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// Header and head.
    Head { length: u32 },
    /// The body.
    Body { header: RecordHeader, head: Vec<u8> },
}

/// How far copying has come.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    victim: Option<u32>,
    cursor: Option<Position>,
    step: Step,
    /// A read was asked for and not answered.
    reading: bool,
    /// Copies appended and not yet durable.
    under_way: u64,
    under_way_bytes: u64,
}

impl Copying {
    pub(crate) fn finished(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.under_way_bytes = 0;
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.victim.is_some() || self.under_way > 0
    }
}

impl Log {
    /// The next read: segment, offset, length.
    pub(crate) fn copy_step(&mut self) -> Option<(u32, u32, u32)> {
        if self.copying.reading || self.copying.under_way_bytes >= COPY_AHEAD_BYTES {
            return None;
        }
        let index = match self.copying.victim {
            Some(index) => index,
            None => self.choose_victim()?,
        };
        if matches!(self.copying.step, Step::Idle) {
            let after = self.copying.cursor;
            let Some(position) = self.segments.get_mut(index).live.next(after) else {
                self.copying.victim = None;
                return None;
            };
            self.copying.cursor = Some(position);
            self.copying.step = Step::Head { length: FIRST_READ_BYTES };
        }
        let position = self.copying.cursor?;
        let (offset, length) = match &self.copying.step {
            Step::Idle => return None,
            Step::Head { length } => (position.offset(), *length),
            Step::Body { header, .. } => (header.body_at, header.body),
        };
        self.copying.reading = true;
        Some((index, offset, length.min(self.segments.get(index).size.saturating_sub(offset))))
    }

    fn choose_victim(&mut self) -> Option<u32> {
        if self.copying.under_way > 0 || self.health() == Health::Failing {
            return None;
        }
        let index = self.segments.victim(self.passed, self.settings.segment_size_bytes)?;
        if !self.is_short() && !self.starved() && !self.segments.get(index).suspect {
            return None;
        }
        self.copying.victim = Some(index);
        self.copying.cursor = None;
        Some(index)
    }

    /// The read's answer.
    pub(crate) fn copy_read(&mut self, outcome: Result<Bytes, Fault>) {
        self.copying.reading = false;
        let (Some(position), Some(index)) = (self.copying.cursor, self.copying.victim) else { return };
        if self.segments.get(index).generation != position.generation() {
            // All of it was released meanwhile, and the segment is in use again.
            self.copying.step = Step::Idle;
            return;
        }
        let done = match (std::mem::take(&mut self.copying.step), outcome) {
            (Step::Head { .. }, Ok(bytes)) => self.copy_head(position, &bytes),
            (Step::Body { header, head }, Ok(body)) => self.copy_body(position, header, head, body),
            (_, Err(_)) | (Step::Idle, _) => None,
        };
        if done.is_none() {
            // It stays where it is; a reader may still have luck with it.
            self.copying.step = Step::Idle;
            self.segments.get_mut(index).stuck = true;
            self.stats.unreadable += 1;
        }
    }

    fn copy_head(&mut self, position: Position, bytes: &[u8]) -> Option<()> {
        let header = RecordHeader::peek(bytes)?;
        let span = header.span();
        if span as usize > bytes.len() {
            let first_look = bytes.len() <= FIRST_READ_BYTES as usize && span <= BATCH_BYTES_MAX;
            self.copying.step = Step::Head { length: span };
            return first_look.then_some(());
        }
        let seed = Seed::new(self.salt(), position.generation());
        if !header.verifies(bytes, seed, position.offset()) {
            return None;
        }
        let start = RECORD_HEADER_BYTES as usize;
        let head = bytes[start..start + header.head as usize].to_vec();
        if header.body == 0 {
            return self.copy_body(position, header, head, Bytes::new());
        }
        self.copying.step = Step::Body { header, head };
        Some(())
    }

    fn copy_body(
        &mut self,
        position: Position,
        header: RecordHeader,
        head: Vec<u8>,
        body: Bytes,
    ) -> Option<()> {
        let seed = Seed::new(self.salt(), position.generation());
        if body.len() != header.body as usize || crc(seed.at(header.body_at), &body) != header.body_crc {
            return None;
        }
        self.copying.under_way += 1;
        self.copying.under_way_bytes += u64::from(header.span()) + u64::from(header.body);
        let body = if body.is_empty() { Body::new() } else { smallvec![body] };
        let append =
            Append { shard: header.shard, kind: header.kind, head, body, reserve: true, ..Append::default() };
        self.pending.push_back(Flying { append, copy_of: Some(position), position: None });
        Some(())
    }
}

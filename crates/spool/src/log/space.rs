//! Segments ahead of need: what to prepare, and when to make room instead.

use super::{Log, RESERVED_SEGMENTS};
use crate::append::Fault;
use crate::format::{FIRST_BATCH, SegmentHeader};
use crate::op::Prepare;
use crate::position::{GENERATION_MAX, Lsn};
use crate::segments::{Live, Segment, State};

impl Log {
    /// Fewer segments are ready than should be.
    pub(crate) fn is_short(&self) -> bool {
        self.spares.len() < RESERVED_SEGMENTS + self.settings.ahead
    }

    /// Whether the disk has less room than should be left free on it. Segments that nobody needs are then given
    /// back, one for each call; while there are none, no message is taken. Call it about once a second.
    pub fn set_scarce(&mut self, scarce: bool) {
        self.scarce = scarce;
        self.starved = scarce && self.removing.is_none() && self.surplus().is_none();
    }

    /// A segment that may go: the reserve is complete, and nobody needs what this one holds.
    fn surplus(&self) -> Option<u32> {
        if self.is_short() { None } else { self.segments.reusable(self.passed, false) }
    }

    pub(crate) fn starved(&self) -> bool {
        self.starved
    }

    /// What to remove next.
    pub(super) fn give_back(&mut self) -> Option<u32> {
        if !self.scarce || self.removing.is_some() {
            return None;
        }
        let index = self.surplus()?;
        self.scarce = false;
        self.give_up(index);
        self.segments.get_mut(index).state = State::Preparing;
        self.removing = Some(index);
        Some(index)
    }

    /// The segment's file is removed, or not.
    pub fn removed(&mut self, index: u32) {
        if self.removing.take_if(|removing| *removing == index).is_some() {
            let segment = self.segments.get_mut(index);
            segment.state = State::Free;
            // What could not be removed is replaced when the segment is made again.
            segment.absent = true;
        }
    }

    /// What to prepare next.
    pub(super) fn plan(&mut self) -> Option<Prepare> {
        let resting = self.failing && self.attempts_left == 0;
        if self.preparing.is_some() || !self.is_short() || resting {
            return None;
        }
        if let Some(index) = self.pick() {
            let named = self.seals.clone();
            let prepare = self.prepare(index, true);
            self.preparing = Some((index, named));
            return Some(prepare);
        }
        if self.blocked.is_none() && !self.can_empty() {
            self.blocked = Some(self.create_failed.unwrap_or(Fault::Full));
        }
        None
    }

    /// A segment can be had by copying forward, and there is time to do so.
    fn can_empty(&self) -> bool {
        self.spares.len() >= RESERVED_SEGMENTS
            && (self.copying.is_busy()
                || self.segments.victim(self.passed, self.settings.segment_size_bytes).is_some())
    }

    fn pick(&mut self) -> Option<u32> {
        if let Some(index) = self.segments.reusable(self.passed, false) {
            return Some(index);
        }
        if self.create_failed.is_some() || self.next_generation > GENERATION_MAX || self.can_empty() {
            return None;
        }
        if let Some(index) = self.segments.reusable(self.passed, true) {
            return Some(index);
        }
        let index = self.segments.len();
        (index < self.settings.segments_max).then(|| {
            let mut segment = Segment::new(index, 0, State::Free);
            segment.absent = true;
            self.segments.push(segment);
            index
        })
    }

    pub(super) fn prepare(&mut self, index: u32, fresh: bool) -> Prepare {
        let size = self.settings.segment_size_bytes;
        if fresh {
            let segment = self.segments.get_mut(index);
            if segment.prior == 0 {
                segment.prior = segment.generation;
            }
            self.segments.set_generation(index, self.next_generation);
            self.next_generation += 1;
        }
        let segment = self.segments.get_mut(index);
        let create = fresh && (segment.absent || segment.suspect || segment.size != size);
        if fresh {
            segment.state = State::Preparing;
            segment.end = FIRST_BATCH;
            segment.last_lsn = Lsn(0);
            segment.live = Live::default();
            segment.size = size;
            segment.stuck = false;
        }
        let header = SegmentHeader {
            generation: segment.generation,
            salt: self.salt,
            index,
            size: segment.size,
            seals: self.seals.clone(),
        };
        let reserve = self.spares.len() < RESERVED_SEGMENTS;
        Prepare { segment: index, create, size: header.size, awaited: self.active.is_none(), reserve, header }
    }
}

//! The table of segments: what each holds, which may be used again.

use crate::format::{FIRST_BATCH, Seal};
use crate::position::{Generation, Lsn, Position};
use rustc_hash::{FxHashMap, FxHashSet};

/// What a segment is for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Holds nothing that counts; its header is to be written.
    Free,
    /// Being allocated and headed.
    Preparing,
    /// Headed and synced, waiting for its turn.
    Spare,
    /// The log is writing into it.
    Active,
    /// Left behind, with content.
    Sealed,
}

/// One file of the log.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) index: u32,
    pub(crate) generation: Generation,
    pub(crate) state: State,
    /// Octets of the whole; 0 while unknown.
    pub(crate) size: u32,
    /// Where its content ends.
    pub(crate) end: u32,
    pub(crate) last_lsn: Lsn,
    /// A write or sync failed here: never trusted again in place, made anew when empty.
    pub(crate) suspect: bool,
    /// The file must be made, not only headed.
    pub(crate) absent: bool,
    /// A live record could not be read: emptying it is not tried again.
    pub(crate) stuck: bool,
    /// What the file still holds while it is being prepared for `generation`.
    pub(crate) prior: Generation,
    /// The ends its header names.
    pub(crate) named: Vec<Seal>,
    pub(crate) live: Live,
}

impl Segment {
    pub(crate) fn new(index: u32, size: u32, state: State) -> Self {
        Self {
            index,
            generation: 0,
            state,
            size,
            end: FIRST_BATCH,
            last_lsn: Lsn(0),
            suspect: false,
            absent: false,
            stuck: false,
            prior: 0,
            named: Vec::new(),
            live: Live::default(),
        }
    }
}

/// The records of one segment that are kept, in order of their place: eight bytes each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    entries: Vec<Position>,
    /// One bit each: released.
    dead: Vec<u64>,
    dead_count: usize,
    bytes: u64,
    unsorted: bool,
}

impl Live {
    /// Positions come in order but for those retained at a start.
    pub(crate) fn add(&mut self, position: Position) {
        self.unsorted |= self.entries.last().is_some_and(|last| *last > position);
        if self.entries.len() / 64 >= self.dead.len() {
            self.dead.push(0);
        }
        self.entries.push(position);
        self.bytes += u64::from(position.size());
    }

    /// Whether it was live until now.
    pub(crate) fn remove(&mut self, position: Position) -> bool {
        let Some(at) = self.find(position) else { return false };
        self.dead[at / 64] |= 1 << (at % 64);
        self.dead_count += 1;
        self.bytes -= u64::from(self.entries[at].size());
        if self.dead_count > 64 && self.dead_count * 2 > self.entries.len() {
            self.compact();
        }
        true
    }

    fn find(&mut self, position: Position) -> Option<usize> {
        self.sort();
        let at = self.entries.binary_search(&position).ok()?;
        (!self.is_dead(at)).then_some(at)
    }

    fn is_dead(&self, at: usize) -> bool {
        self.dead[at / 64] >> (at % 64) & 1 == 1
    }

    fn sort(&mut self) {
        if self.unsorted {
            self.compact();
            self.entries.sort_unstable();
            self.unsorted = false;
        }
    }

    fn compact(&mut self) {
        let dead = std::mem::take(&mut self.dead);
        let mut at = 0;
        self.entries.retain(|_| {
            let alive = dead[at / 64] >> (at % 64) & 1 == 0;
            at += 1;
            alive
        });
        self.entries.shrink_to(self.entries.len() * 5 / 4 + 8);
        self.dead = vec![0; self.entries.len().div_ceil(64)];
        self.dead_count = 0;
    }

    /// Forgets what lies at or behind `offset`.
    pub(crate) fn truncate(&mut self, offset: u32) {
        self.sort();
        self.compact();
        self.entries.retain(|p| p.offset() < offset);
        self.dead = vec![0; self.entries.len().div_ceil(64)];
        self.bytes = self.entries.iter().map(|p| u64::from(p.size())).sum();
    }

    /// The first live one behind `after`.
    pub(crate) fn next(&mut self, after: Option<Position>) -> Option<Position> {
        self.sort();
        let start = after.map_or(0, |p| self.entries.partition_point(|e| *e <= p));
        (start..self.entries.len()).find(|at| !self.is_dead(*at)).map(|at| self.entries[at])
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len() - self.dead_count
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// How far the rest of the world has come: what lies behind these may be written over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// Replay starts here at the earliest, by the older of the two kept checkpoints.
    pub(crate) checkpoint: Lsn,
    /// The event journal holds every event up to this one.
    pub(crate) journal: Lsn,
}

impl Passed {
    /// Records up to `last` are needed by nobody but who holds a position.
    pub(crate) fn covers(self, last: Lsn) -> bool {
        last < self.checkpoint && last <= self.journal
    }
}

/// All segments.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    all: Vec<Segment>,
    by_generation: FxHashMap<Generation, usize>,
    /// Released before they were retained, at a start.
    early: FxHashSet<Position>,
    /// The engine has said what is live in the segments found at the start.
    pub(crate) settled: bool,
}

impl Segments {
    pub(crate) fn get(&self, index: u32) -> &Segment {
        &self.all[index as usize]
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> &mut Segment {
        &mut self.all[index as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.all.iter()
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// Adds the segment with the next free index.
    pub(crate) fn push(&mut self, segment: Segment) {
        if segment.generation != 0 {
            self.by_generation.insert(segment.generation, self.all.len());
        }
        self.all.push(segment);
    }

    pub(crate) fn set_generation(&mut self, index: u32, generation: Generation) {
        let old = self.all[index as usize].generation;
        self.by_generation.remove(&old);
        self.by_generation.insert(generation, index as usize);
        self.all[index as usize].generation = generation;
    }

    pub(crate) fn of(&mut self, position: Position) -> Option<&mut Segment> {
        let at = *self.by_generation.get(&position.generation())?;
        Some(&mut self.all[at])
    }

    pub(crate) fn generations(&self) -> Vec<Generation> {
        self.by_generation.keys().copied().collect()
    }

    pub(crate) fn index_of(&self, generation: Generation) -> Option<u32> {
        self.by_generation.get(&generation).map(|at| self.all[*at].index)
    }

    /// Whether some file may still hold this filling.
    pub(crate) fn may_hold(&self, generation: Generation) -> bool {
        self.all.iter().any(|s| s.generation == generation || s.prior == generation)
    }

    pub(crate) fn add_live(&mut self, position: Position) {
        if let Some(segment) = self.of(position) {
            segment.live.add(position);
        }
    }

    /// The engine's word at a start: this one is live.
    pub(crate) fn retain(&mut self, position: Position) {
        if self.early.remove(&position) {
            return;
        }
        if let Some(segment) = self.of(position) {
            segment.live.add(position);
        }
    }

    pub(crate) fn release(&mut self, position: Position) {
        let settled = self.settled;
        let Some(segment) = self.of(position) else { return };
        if !segment.live.remove(position) && !settled {
            self.early.insert(position);
        }
    }

    pub(crate) fn settle(&mut self) {
        self.settled = true;
        self.early = FxHashSet::default();
    }

    /// A segment that may be prepared again; one that takes no new room on the disk unless `anew`.
    pub(crate) fn reusable(&self, passed: Passed, anew: bool) -> Option<u32> {
        let free = |s: &&Segment| match s.state {
            State::Free => (s.absent || s.suspect) == anew,
            State::Sealed => s.suspect == anew && self.is_reusable(s, passed),
            _ => false,
        };
        self.all.iter().filter(free).min_by_key(|s| (s.state != State::Free, s.generation)).map(|s| s.index)
    }

    fn is_reusable(&self, s: &Segment, passed: Passed) -> bool {
        s.state == State::Sealed && self.settled && s.live.count() == 0 && passed.covers(s.last_lsn)
    }

    /// A segment that is worth emptying: little is live, or it must not be trusted.
    pub(crate) fn victim(&self, passed: Passed, size: u32) -> Option<u32> {
        let worth = |s: &&Segment| {
            s.state == State::Sealed
                && self.settled
                && s.live.count() > 0
                && !s.stuck
                && (s.suspect || (passed.covers(s.last_lsn) && s.live.bytes() * 4 <= u64::from(size)))
        };
        self.all.iter().filter(worth).min_by_key(|s| (!s.suspect, s.live.bytes())).map(|s| s.index)
    }

    /// Whether some segment waits for nothing but a checkpoint.
    pub(crate) fn waits_for_checkpoint(&self, passed: Passed, size: u32) -> bool {
        self.all.iter().any(|s| {
            s.state == State::Sealed
                && self.settled
                && s.last_lsn >= passed.checkpoint
                && s.live.bytes() * 4 <= u64::from(size)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_records_are_counted_whatever_the_order_they_come_and_go() {
        let mut live = Live::default();
        let at = |i: u32| Position::new(1, 4096 + i * 64, 64);
        for i in (0..1000).rev() {
            live.add(at(i));
        }
        for i in (0..1000).step_by(3) {
            assert!(live.remove(at(i)));
            assert!(!live.remove(at(i)), "a second release is ignored");
        }
        assert_eq!(live.count(), 666);
        assert_eq!(live.bytes(), 666 * 64);
        let mut seen = 0;
        let mut cursor = None;
        while let Some(p) = live.next(cursor) {
            assert_ne!((p.offset() - 4096) / 64 % 3, 0);
            cursor = Some(p);
            seen += 1;
        }
        assert_eq!(seen, 666);
        live.truncate(4096 + 500 * 64);
        assert_eq!(live.count(), (0..500).filter(|i| i % 3 != 0).count());
    }

    #[test]
    fn a_release_that_overtakes_its_retain_wins() {
        let mut segments = Segments::default();
        let mut segment = Segment::new(0, 1 << 20, State::Sealed);
        segment.generation = 4;
        segments.push(segment);
        let position = Position::new(4, 4096, 100);
        segments.release(position);
        segments.retain(position);
        segments.settle();
        assert_eq!(segments.get(0).live.count(), 0);
        assert!(segments.reusable(Passed { checkpoint: Lsn(1), journal: Lsn(0) }, false).is_some());
    }
}

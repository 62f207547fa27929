//! The machine: appends in, operations out, completions back.

mod failure;
mod space;

use crate::append::{Append, Completion, Durable, Fault, Health, Lost, Moved, Stats};
use crate::batch::{Batch, Place, footprint};
use crate::copy::Copying;
use crate::follow::Extent;
use crate::format::{BATCH_HEADER_BYTES, FIRST_BATCH, SEALS_MAX, Seal, Seed, sectors};
use crate::op::{Flying, Op, Outcome, Write};
use crate::position::{Generation, Lsn, Position, SEGMENT_SIZE_MAX_BYTES, Ticket};
use crate::recovery::Recovered;
use crate::segments::{Passed, Segments, State};
use bytes::Bytes;
use std::collections::VecDeque;

/// Segments that only outcomes, controls and copies may use, so that a full disk still drains.
pub const RESERVED_SEGMENTS: usize = 2;
/// Failed writes or syncs in a row after which the log stops trying until the next tick.
const ATTEMPTS: u32 = 3;
/// The smallest segment.
pub const SEGMENT_SIZE_MIN_BYTES: u32 = 64 << 10;

/// What an operator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Octets of a segment that is made now; a multiple of 4096.
    pub segment_size_bytes: u32,
    /// No more segments than this, however much room the disk has.
    pub segments_max: u32,
    /// Segments kept ready beyond the reserved ones.
    pub ahead: usize,
    /// A checkpoint is due when this many octets of heads were appended since the last.
    pub checkpoint_after_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_size_bytes: 64 << 20,
            segments_max: 1 << 20,
            ahead: 1,
            checkpoint_after_bytes: 64 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// The batch is built.
    ToWrite,
    Writing,
    ToSync,
    Syncing,
    /// The next segment's header must name seals before it is used.
    ToHead(u32),
    Heading(u32),
}

#[derive(Clone, Copy, Debug)]
struct Active {
    index: u32,
    generation: Generation,
    seed: Seed,
    /// Where the next batch goes.
    end: u32,
    last_lsn: Lsn,
    /// Something was written behind the segment's durable end.
    unsynced: bool,
}

#[derive(Debug, Default)]
struct Shard {
    completion: Completion,
    dirty: bool,
    /// The highest ticket that was lost.
    lost: Option<Ticket>,
}

/// The log. See the crate's page.
#[derive(Debug)]
pub struct Log {
    pub(crate) settings: Settings,
    salt: u64,
    pub(crate) segments: Segments,
    spares: VecDeque<u32>,
    active: Option<Active>,
    stage: Stage,
    batch: Batch,
    pub(crate) pending: VecDeque<Flying>,
    /// Chunks written and not yet synced.
    lazy: Vec<(u16, Ticket)>,
    next_lsn: Lsn,
    durable: Lsn,
    next_generation: Generation,
    /// Ends that no durable header names yet.
    seals: Vec<Seal>,
    /// The segment being prepared beside the batches, and the seals its header names.
    preparing: Option<(u32, Vec<Seal>)>,
    /// Why no further segment can be had.
    blocked: Option<Fault>,
    /// A file could not be made; not tried again before the next tick.
    create_failed: Option<Fault>,
    /// The disk has less room than should be left free.
    scarce: bool,
    /// It has, and there is nothing to give back.
    starved: bool,
    /// The segment being removed.
    removing: Option<u32>,
    attempts_left: u32,
    failing: bool,
    /// The reserve has been complete once.
    primed: bool,
    pub(crate) passed: Passed,
    newest_checkpoint: Lsn,
    heads_written: u64,
    heads_at_checkpoint: u64,
    checkpoint_running: Option<(Lsn, u64)>,
    shards: Vec<Shard>,
    dirty: VecDeque<u16>,
    pub(crate) copying: Copying,
    pub(crate) stats: Stats,
}

impl Log {
    /// An empty log. `salt` is drawn once, at random, by the shell.
    #[must_use]
    pub fn new(settings: Settings, salt: u64) -> Self {
        Self::recovered(settings, Recovered::empty(salt))
    }

    /// The log as recovery found it. Until [`Self::settled`], [`Self::retain`] what is live.
    #[must_use]
    pub fn recovered(mut settings: Settings, found: Recovered) -> Self {
        let size = settings.segment_size_bytes.clamp(SEGMENT_SIZE_MIN_BYTES, SEGMENT_SIZE_MAX_BYTES);
        settings.segment_size_bytes = size & !4095;
        settings.ahead = settings.ahead.max(1);
        let mut segments = Segments::default();
        for segment in found.segments {
            segments.push(segment);
        }
        let nothing_found = segments.iter().all(|s| s.state == State::Free);
        segments.settled = nothing_found;
        Self {
            settings,
            salt: found.salt,
            segments,
            spares: VecDeque::new(),
            active: None,
            stage: Stage::Idle,
            batch: Batch::default(),
            pending: VecDeque::new(),
            lazy: Vec::new(),
            next_lsn: found.next_lsn,
            durable: Lsn(found.next_lsn.0 - 1),
            next_generation: found.next_generation,
            seals: found.seals,
            preparing: None,
            blocked: None,
            create_failed: None,
            scarce: false,
            starved: false,
            removing: None,
            attempts_left: ATTEMPTS,
            failing: false,
            primed: false,
            passed: Passed::default(),
            newest_checkpoint: Lsn(0),
            heads_written: 0,
            heads_at_checkpoint: 0,
            checkpoint_running: None,
            shards: Vec::new(),
            dirty: VecDeque::new(),
            copying: Copying::default(),
            stats: Stats::default(),
        }
    }

    // ---- what the caller wants -------------------------------------------------------------------

    /// Takes a record. Whatever becomes of it is told by a completion.
    pub fn append(&mut self, append: Append) {
        let room = self.settings.segment_size_bytes - FIRST_BATCH;
        let fits = footprint(&append).is_some_and(|size| sectors(size + BATCH_HEADER_BYTES) <= room);
        if !fits {
            self.lose(append.shard, append.ticket, Lost::TooLarge);
        } else if self.lacks_what_it_needs(&append) {
            self.lose(append.shard, append.ticket, Lost::Failed);
        } else {
            self.pending.push_back(Flying { append, copy_of: None, position: None });
        }
    }

    /// Nobody needs the record any more.
    pub fn release(&mut self, position: Position) {
        self.segments.release(position);
    }

    /// After a recovery: this record is live.
    pub fn retain(&mut self, position: Position) {
        self.segments.retain(position);
    }

    /// After a recovery: all that is live has been retained. Until then nothing is written over.
    pub fn settled(&mut self) {
        self.segments.settle();
    }

    /// The event journal holds every event up to this one.
    pub fn journaled(&mut self, lsn: Lsn) {
        self.passed.journal = self.passed.journal.max(lsn);
    }

    /// Whether the engine should make a checkpoint: many heads since the last, or segments run short.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        let written = self.heads_written - self.heads_at_checkpoint;
        let size = self.settings.segment_size_bytes;
        self.checkpoint_running.is_none()
            && (written >= self.settings.checkpoint_after_bytes
                || ((self.is_short() || self.starved)
                    && self.segments.waits_for_checkpoint(self.passed, size)))
    }

    /// A checkpoint begins: its replay may start here, if its state holds all that was completed by now.
    pub fn begin_checkpoint(&mut self) -> Lsn {
        self.checkpoint_running = Some((self.durable.next(), self.heads_written));
        self.durable.next()
    }

    /// A checkpoint whose replay starts at `replay_from` is durable, and the one before it is still kept.
    pub fn checkpointed(&mut self, replay_from: Lsn) {
        if let Some((_, heads)) = self.checkpoint_running.take() {
            self.heads_at_checkpoint = heads;
        }
        self.passed.checkpoint = self.newest_checkpoint;
        self.newest_checkpoint = replay_from.max(self.newest_checkpoint);
    }

    /// The checkpoint that was begun came to nothing.
    pub fn checkpoint_failed(&mut self) {
        self.checkpoint_running = None;
    }

    /// About once a second: what failed may be tried again.
    pub fn tick(&mut self) {
        self.create_failed = None;
        if self.failing {
            self.attempts_left = self.attempts_left.max(1);
            self.failing = self.spares.is_empty();
        }
    }

    // ---- what the caller may ask -----------------------------------------------------------------

    /// Whether messages are taken.
    #[must_use]
    pub fn health(&self) -> Health {
        if self.failing {
            return Health::Failing;
        }
        if self.is_exhausted() {
            return Health::Exhausted;
        }
        if self.starved {
            return Health::Full;
        }
        match self.blocked {
            Some(fault) if self.room_for_messages() < BATCH_HEADER_BYTES + 4096 => match fault {
                Fault::Full => Health::Full,
                Fault::Io => Health::Failing,
            },
            _ => Health::Good,
        }
    }

    /// No segment is left, and the last one is half used: what is left of it is for what goes on already, and for
    /// the checkpoint that frees others.
    fn is_exhausted(&self) -> bool {
        let left = self.active.map_or(0, |active| self.size_of(active.index) - active.end);
        self.blocked.is_some() && self.spares.is_empty() && left < self.settings.segment_size_bytes / 2
    }

    /// Records taken and not yet durable.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.pending.len() + self.batch.records.len()
    }

    /// Everything up to this one is durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// All fillings that hold records.
    #[must_use]
    pub fn generations(&self) -> Vec<Generation> {
        self.segments.generations()
    }

    /// Which file holds a filling, for readers.
    #[must_use]
    pub fn segment_of(&self, generation: Generation) -> Option<u32> {
        self.segments.index_of(generation)
    }

    /// Which file holds which filling.
    pub fn fillings(&self) -> impl Iterator<Item = (Generation, u32)> + '_ {
        self.segments.iter().filter(|s| s.generation != 0).map(|s| (s.generation, s.index))
    }

    /// Where durable records lie, in the order of their numbers.
    #[must_use]
    pub fn extents(&self) -> Vec<Extent> {
        let used = self.segments.iter().filter(|s| matches!(s.state, State::Active | State::Sealed));
        let mut extents: Vec<Extent> = used
            .filter(|s| s.end > FIRST_BATCH)
            .map(|s| Extent { generation: s.generation, segment: s.index, end: s.end })
            .collect();
        extents.sort_unstable_by_key(|extent| extent.generation);
        extents
    }

    /// A segment is being made ready.
    #[must_use]
    pub fn is_preparing(&self) -> bool {
        self.preparing.is_some() || matches!(self.stage, Stage::Heading(_))
    }

    /// What all checksums start from.
    #[must_use]
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Figures for an operator.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.segments = self.segments.len();
        stats.durable = self.durable;
        for segment in self.segments.iter() {
            stats.free_segments += u32::from(matches!(segment.state, State::Free | State::Spare));
            stats.suspect_segments += u32::from(segment.suspect);
            stats.live_records += segment.live.count() as u64;
            stats.live_bytes += segment.live.bytes();
        }
        stats
    }

    /// The next shard's news.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        let shard = self.dirty.pop_front()?;
        let state = &mut self.shards[usize::from(shard)];
        state.dirty = false;
        Some(std::mem::take(&mut state.completion))
    }

    // ---- operations ------------------------------------------------------------------------------

    /// The next thing to do, if there is one.
    pub fn poll(&mut self) -> Option<Op<'_>> {
        if self.stage == Stage::Idle {
            self.begin();
        }
        match self.stage {
            Stage::ToWrite => {
                self.stage = Stage::Writing;
                return self.write();
            }
            Stage::ToSync => {
                self.stage = Stage::Syncing;
                return self.active.map(|active| Op::Sync { segment: active.index });
            }
            Stage::ToHead(index) => {
                self.stage = Stage::Heading(index);
                return Some(Op::Prepare(self.prepare(index, false)));
            }
            Stage::Idle | Stage::Writing | Stage::Syncing | Stage::Heading(_) => {}
        }
        if let Some(prepare) = self.plan() {
            return Some(Op::Prepare(prepare));
        }
        if let Some(segment) = self.give_back() {
            return Some(Op::Remove { segment });
        }
        self.copy_step().map(|(segment, offset, length)| Op::Read { segment, offset, length })
    }

    /// The batch was written, or not.
    pub fn written(&mut self, outcome: Outcome) {
        debug_assert_eq!(self.stage, Stage::Writing);
        let Some(active) = &mut self.active else { return };
        if let Err(fault) = outcome {
            self.fail(fault);
            return;
        }
        active.end += self.batch.size;
        active.last_lsn = self.batch.last_lsn;
        active.unsynced = true;
        self.stats.batches += 1;
        self.stats.records += self.batch.records.len() as u64;
        self.stats.bytes += u64::from(self.batch.size);
        self.heads_written += self.batch.head_bytes();
        if self.batch.wants_sync {
            self.stage = Stage::ToSync;
        } else {
            self.stage = Stage::Idle;
            self.finish_lazy();
        }
    }

    /// The sync succeeded, or not.
    pub fn synced(&mut self, outcome: Outcome) {
        debug_assert_eq!(self.stage, Stage::Syncing);
        let Some(active) = &mut self.active else { return };
        if let Err(fault) = outcome {
            self.fail(fault);
            return;
        }
        active.unsynced = false;
        let segment = self.segments.get_mut(active.index);
        segment.end = active.end;
        segment.last_lsn = active.last_lsn;
        self.durable = active.last_lsn;
        self.attempts_left = ATTEMPTS;
        self.stage = Stage::Idle;
        self.stats.syncs += 1;
        self.finish();
    }

    /// The segment is ready, or not.
    pub fn prepared(&mut self, index: u32, outcome: Outcome) {
        if self.stage == Stage::Heading(index) {
            self.stage = Stage::Idle;
            match outcome {
                Ok(()) => {
                    self.segments.get_mut(index).named = std::mem::take(&mut self.seals);
                    self.activate(index);
                }
                Err(_) => self.discard_headless(index),
            }
            return;
        }
        let Some((_, named)) = self.preparing.take_if(|(preparing, _)| *preparing == index) else { return };
        let segment = self.segments.get_mut(index);
        match outcome {
            Ok(()) => {
                segment.state = State::Spare;
                segment.absent = false;
                segment.suspect = false;
                let prior = std::mem::take(&mut segment.prior);
                self.spares.push_back(index);
                self.seals.retain(|seal| !named.contains(seal) && seal.generation != prior);
                self.segments.get_mut(index).named = named;
                // While it rests, one success is no reason to try again before the next tick.
                self.failing &= self.attempts_left == 0;
                if self.spares.len() >= RESERVED_SEGMENTS {
                    self.blocked = None;
                    self.primed = true;
                }
            }
            Err(fault) => {
                segment.state = State::Free;
                segment.absent = true;
                self.create_failed = Some(fault);
                self.blocked = Some(fault);
            }
        }
    }

    /// What was read for copying, or that it could not be.
    pub fn read(&mut self, outcome: Result<Bytes, Fault>) {
        self.copy_read(outcome);
    }

    // ---- the way of a batch ----------------------------------------------------------------------

    /// Gets a batch on its way if there is something to write and somewhere to write it.
    fn begin(&mut self) {
        while self.stage == Stage::Idle {
            self.refuse_messages();
            let Some(first) = self.pending.front() else { return };
            let needed = sectors(BATCH_HEADER_BYTES + footprint(&first.append).unwrap_or(0));
            if self.failing {
                return;
            }
            match self.active {
                Some(active) if active.end + needed <= self.size_of(active.index) => {
                    self.build(active);
                    return;
                }
                Some(active) if active.unsynced => {
                    self.stage = Stage::ToSync;
                    return;
                }
                _ => {}
            }
            if !self.switch() && !self.put_copies_first() {
                return;
            }
        }
    }

    /// The first record waits for a segment, which may be freed only by copies behind it. A copy is in no order with
    /// others: what it copies is durable already. False: there is none to put first.
    fn put_copies_first(&mut self) -> bool {
        let is_copy = |flying: &Flying| flying.copy_of.is_some();
        if !self.copying.is_busy() || self.pending.front().is_none_or(is_copy) {
            return false;
        }
        let pending = std::mem::take(&mut self.pending);
        let (mut copies, others): (VecDeque<_>, VecDeque<_>) = pending.into_iter().partition(is_copy);
        let found = !copies.is_empty();
        copies.extend(others);
        self.pending = copies;
        found
    }

    /// Messages are lost here and now while the log can take none.
    fn refuse_messages(&mut self) {
        let lost = match (self.failing, self.blocked) {
            (true, _) | (false, Some(Fault::Io)) => Lost::Failed,
            (false, _) => Lost::Full,
        };
        let takes = !self.failing
            && !self.starved
            && (self.blocked.is_none() || self.spares.len() >= RESERVED_SEGMENTS);
        if takes || self.pending.iter().all(|flying| flying.append.reserve) {
            return;
        }
        self.lose_pending(lost, |append| !append.reserve);
    }

    fn lose_pending(&mut self, lost: Lost, which: impl Fn(&Append) -> bool) {
        let pending = std::mem::take(&mut self.pending);
        for flying in pending {
            if flying.copy_of.is_none() && which(&flying.append) {
                self.lose(flying.append.shard, flying.append.ticket, lost);
            } else {
                self.pending.push_back(flying);
            }
        }
    }

    fn lacks_what_it_needs(&self, append: &Append) -> bool {
        let lost = self.shards.get(usize::from(append.shard)).and_then(|shard| shard.lost);
        append.needs.is_some_and(|first| lost.is_some_and(|lost| lost >= first))
    }

    fn size_of(&self, index: u32) -> u32 {
        self.segments.get(index).size
    }

    fn room_for_messages(&self) -> u32 {
        let active = self.active.map_or(0, |active| self.size_of(active.index) - active.end);
        match self.spares.len() {
            0..RESERVED_SEGMENTS => 0,
            RESERVED_SEGMENTS => active,
            _ => self.settings.segment_size_bytes,
        }
    }

    /// Leaves the active segment for the next one. False: there is none yet.
    fn switch(&mut self) -> bool {
        let Some(first) = self.pending.front() else { return false };
        // The first segment after a start is taken before the reserve is complete, the next one is not.
        let unprimed = !self.primed && self.blocked.is_none() && self.active.is_none();
        let may = first.append.reserve || self.spares.len() > RESERVED_SEGMENTS || unprimed;
        if !may && let Some(fault) = self.blocked {
            let lost = if fault == Fault::Full { Lost::Full } else { Lost::Failed };
            self.lose_pending(lost, |append| !append.reserve);
            return true;
        }
        if !may || self.seals.len() > SEALS_MAX {
            return false;
        }
        let Some(index) = self.spares.pop_front() else { return false };
        if let Some(active) = self.active.take() {
            self.segments.get_mut(active.index).state = State::Sealed;
        }
        if self.seals.is_empty() {
            self.activate(index);
        } else {
            self.give_up(index);
            self.segments.get_mut(index).state = State::Spare;
            self.stage = Stage::ToHead(index);
        }
        true
    }

    fn activate(&mut self, index: u32) {
        let segment = self.segments.get_mut(index);
        segment.state = State::Active;
        segment.end = FIRST_BATCH;
        let generation = segment.generation;
        self.active = Some(Active {
            index,
            generation,
            seed: Seed::new(self.salt, generation),
            end: FIRST_BATCH,
            last_lsn: self.durable,
            unsynced: false,
        });
    }

    fn build(&mut self, active: Active) {
        let place = Place {
            generation: active.generation,
            seed: active.seed,
            offset: active.end,
            first_lsn: self.next_lsn,
            synced_through: self.durable,
        };
        let room = self.size_of(active.index) - active.end;
        self.batch.fill(&mut self.pending, room, place);
        self.next_lsn = self.batch.last_lsn.next();
        self.stage = Stage::ToWrite;
    }

    fn write(&self) -> Option<Op<'_>> {
        let active = self.active?;
        Some(Op::Write(Write {
            segment: active.index,
            offset: self.batch.offset,
            heads: &self.batch.heads,
            records: &self.batch.records,
            padding: self.batch.padding,
        }))
    }

    /// A batch of chunks is written: their memory may go, their durability comes later.
    fn finish_lazy(&mut self) {
        let mut records = std::mem::take(&mut self.batch.records);
        for flying in records.drain(..) {
            let (shard, ticket) = (flying.append.shard, flying.append.ticket);
            self.lazy.push((shard, ticket));
            if let Some(position) = flying.position {
                self.segments.add_live(position);
                self.news(shard).placed.push((ticket, position));
            }
        }
        self.batch.records = records;
    }

    /// All that was written is durable: tell everybody.
    fn finish(&mut self) {
        let mut lazy = std::mem::take(&mut self.lazy);
        for (shard, ticket) in lazy.drain(..) {
            self.durable_up_to(shard, ticket);
        }
        self.lazy = lazy;
        let mut records = std::mem::take(&mut self.batch.records);
        for flying in records.drain(..) {
            let (shard, ticket) = (flying.append.shard, flying.append.ticket);
            match (flying.position, flying.copy_of) {
                (Some(to), Some(from)) => {
                    let Append { kind, head, .. } = flying.append;
                    self.moved(shard, Moved { kind, head, from, to });
                }
                (Some(position), None) => {
                    self.segments.add_live(position);
                    self.news(shard).placed.push((ticket, position));
                }
                (None, _) => {}
            }
            if flying.copy_of.is_none() {
                self.durable_up_to(shard, ticket);
            }
        }
        self.batch.records = records;
    }

    fn durable_up_to(&mut self, shard: u16, ticket: Ticket) {
        let news = self.news(shard);
        let up_to = news.durable.map_or(ticket, |durable| durable.up_to().max(ticket));
        news.durable = Some(Durable::new(shard, up_to));
    }

    /// The copy is durable. The original may have been released meanwhile: then the copy is dead too.
    fn moved(&mut self, shard: u16, moved: Moved) {
        self.copying.finished();
        let was_live = self.segments.of(moved.from).is_some_and(|s| s.live.remove(moved.from));
        if was_live {
            self.segments.add_live(moved.to);
            self.news(shard).moved.push(moved);
            self.stats.copied += 1;
        }
    }

    fn lose_dependents(&mut self) {
        let lost: Vec<Option<Ticket>> = self.shards.iter().map(|shard| shard.lost).collect();
        self.lose_pending(Lost::Failed, |append| {
            let lost = lost.get(usize::from(append.shard)).copied().flatten();
            append.needs.is_some_and(|first| lost.is_some_and(|lost| lost >= first))
        });
    }

    pub(crate) fn lose(&mut self, shard: u16, ticket: Ticket, why: Lost) {
        self.stats.lost += 1;
        self.news(shard).lost.push((ticket, why));
        let state = &mut self.shards[usize::from(shard)];
        state.lost = state.lost.max(Some(ticket));
    }

    fn news(&mut self, shard: u16) -> &mut Completion {
        let at = usize::from(shard);
        if self.shards.len() <= at {
            self.shards.resize_with(at + 1, Shard::default);
        }
        let state = &mut self.shards[at];
        if !state.dirty {
            state.dirty = true;
            state.completion.shard = shard;
            self.dirty.push_back(shard);
        }
        &mut state.completion
    }
}

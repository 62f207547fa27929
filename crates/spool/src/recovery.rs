//! From the segments on disk back to records in order, and to a log that goes on behind them.
//!
//! The last segment may end in batches that were written and never synced. A batch that a later one calls
//! synced is damaged if it does not verify: that is reported, and the rest goes on. Any other one ends the
//! log where it does not verify: the torn tail is cut, and the next header names the cut.

use crate::format::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH, SEALS_MAX, Seal, Seed, SegmentHeader,
    sectors,
};
use crate::position::{Generation, Lsn};
use crate::scan::{Found, Medium, Records, Replayed, Scanner, replayed};
use crate::segments::{Segment, State};
use rustc_hash::FxHashMap;
use std::ops::Range;

/// So many damages are described; the rest is counted.
pub const DAMAGES_MAX: usize = 1000;

/// More fillings than can have been begun behind the newest whose header can be read.
const UNKNOWN_GENERATIONS: Generation = 1 << 12;

/// A file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its number.
    pub index: u32,
    /// Its octets.
    pub size: u32,
}

/// Something that should be there and is not whole. It was set aside; the rest goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which file.
    pub segment: u32,
    /// From here.
    pub offset: u32,
    /// What it held, if anything is known.
    pub lsns: Range<u64>,
    /// In words.
    pub what: &'static str,
}

/// What recovery met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records read.
    pub records: u64,
    /// Set aside, the first [`DAMAGES_MAX`].
    pub damages: Vec<Damage>,
    /// Set aside in all.
    pub damages_count: u64,
    /// Where an unsynced tail was cut: file and offset.
    pub torn: Option<(u32, u32)>,
}

/// What [`crate::Log::recovered`] starts from.
#[derive(Debug)]
pub struct Recovered {
    pub(crate) salt: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) next_lsn: Lsn,
    pub(crate) next_generation: Generation,
    pub(crate) seals: Vec<Seal>,
}

impl Recovered {
    pub(crate) fn empty(salt: u64) -> Self {
        Self { salt, segments: Vec::new(), next_lsn: Lsn(1), next_generation: 1, seals: Vec::new() }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) index: u32,
    pub(crate) size: u32,
    pub(crate) generation: Generation,
    /// Of the first batch; `None` when that one is damaged.
    pub(crate) first_lsn: Option<Lsn>,
    /// What the first whole batch calls synced, if it is not the first.
    probed: Lsn,
    pub(crate) end: u32,
    pub(crate) last_lsn: Lsn,
}

/// What the segments' headers and first batches tell.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) salt: Option<u64>,
    /// Segments with content, oldest first.
    pub(crate) used: Vec<Known>,
    /// The others.
    pub(crate) free: Vec<Known>,
    pub(crate) seals: FxHashMap<Generation, Seal>,
    headers: Vec<SegmentHeader>,
    pub(crate) bad_headers: Vec<u32>,
    /// Some file has neither a header nor a first batch, and is not merely new.
    has_unreadable: bool,
}

impl Layout {
    pub(crate) fn read(files: &[SegmentFile], medium: &mut impl Medium) -> Self {
        let mut layout = Layout::default();
        let mut starts = Vec::with_capacity(files.len());
        for file in files {
            let mut bytes = vec![0; (FIRST_BATCH + BATCH_HEADER_BYTES) as usize];
            let header = match medium.read_at(file.index, 0, &mut bytes) {
                Ok(()) => SegmentHeader::decode(&bytes).filter(|header| header.index == file.index),
                Err(_) => None,
            };
            layout.salt = layout.salt.or(header.as_ref().map(|header| header.salt));
            starts.push((*file, header, bytes));
        }
        let mut headers: Vec<SegmentHeader> = Vec::new();
        for (file, header, bytes) in starts {
            layout.place(file, header.as_ref(), &bytes);
            headers.extend(header);
        }
        headers.sort_by_key(|header| header.generation);
        for header in &headers {
            for seal in &header.seals {
                layout.seals.insert(seal.generation, *seal);
            }
        }
        layout.used.sort_by_key(|known| known.generation);
        layout.sort_out(medium);
        layout.headers = headers;
        layout
    }

    fn place(&mut self, file: SegmentFile, header: Option<&SegmentHeader>, bytes: &[u8]) {
        let first = &bytes[FIRST_BATCH as usize..];
        let generation = match header {
            Some(header) => Some(header.generation),
            None => BatchHeader::claimed_generation(first),
        };
        let mut known = Known {
            index: file.index,
            size: file.size,
            generation: generation.unwrap_or(0),
            first_lsn: None,
            probed: Lsn(0),
            end: FIRST_BATCH,
            last_lsn: Lsn(0),
        };
        let batch = generation.zip(self.salt).and_then(|(generation, salt)| {
            BatchHeader::decode(first, Seed::new(salt, generation), generation, FIRST_BATCH)
        });
        if header.is_none() {
            if batch.is_none() {
                known.generation = 0;
                self.has_unreadable |= bytes.iter().any(|byte| *byte != 0);
            } else {
                self.bad_headers.push(file.index);
            }
        }
        match batch {
            Some(batch) => {
                known.first_lsn = Some(batch.first_lsn);
                self.used.push(known);
            }
            None => self.free.push(known),
        }
    }

    /// Corrects what the first look said: sealed empty is free; a damaged first batch is no sign of emptiness.
    fn sort_out(&mut self, medium: &mut impl Medium) {
        let seals = &self.seals;
        let is_void =
            |known: &Known| seals.get(&known.generation).is_some_and(|seal| seal.end <= FIRST_BATCH);
        let (void, used): (Vec<_>, Vec<_>) = std::mem::take(&mut self.used).into_iter().partition(is_void);
        self.used = used;
        self.free.extend(void);
        let Some(salt) = self.salt else { return };
        let newest = self.used.last().map_or(0, |known| known.generation);
        let next = self.free.iter().map(|known| known.generation).filter(|g| *g > newest).min();
        let free = std::mem::take(&mut self.free);
        for mut known in free {
            let suspicious =
                known.generation != 0 && (known.generation < newest || Some(known.generation) == next);
            if suspicious && !is_void_in(&self.seals, &known) {
                let limit = if known.generation < newest { known.size } else { 2 * BATCH_BYTES_MAX };
                let seed = Seed::new(salt, known.generation);
                let mut scanner = Scanner::new(known.index, known.size, known.generation, seed);
                if let Some((_, batch)) = scanner.next_batch(medium, FIRST_BATCH, limit.min(known.size)) {
                    known.probed = batch.synced_through;
                    self.used.push(known);
                    continue;
                }
            }
            self.free.push(known);
        }
        self.used.sort_by_key(|known| known.generation);
    }

    pub(crate) fn next_generation(&self) -> Generation {
        let sealed = self.seals.keys().copied();
        let known = self.used.iter().chain(&self.free).map(|known| known.generation);
        let next = known.chain(sealed).max().unwrap_or(0) + 1;
        // A file that cannot be read may hold a later filling than any that is known.
        if self.has_unreadable { next + UNKNOWN_GENERATIONS } else { next }
    }

    /// Where a segment ends at the latest.
    pub(crate) fn limit(&self, known: &Known) -> u32 {
        self.seals.get(&known.generation).map_or(known.size, |seal| seal.end.min(known.size))
    }
}

fn is_void_in(seals: &FxHashMap<Generation, Seal>, known: &Known) -> bool {
    seals.get(&known.generation).is_some_and(|seal| seal.end <= FIRST_BATCH)
}

/// Reads the log, oldest record first. See the module's page for what is believed.
#[derive(Debug)]
pub struct Recovery {
    layout: Layout,
    salt: u64,
    from: Lsn,
    /// The segment being read, in `layout.used`.
    current: usize,
    scanner: Scanner,
    offset: u32,
    /// The number that the next record should have; `None` before the first.
    expected: Option<Lsn>,
    /// What the last segment's batches call synced.
    synced: Lsn,
    heads: Vec<u8>,
    base: u32,
    records: Records,
    report: Report,
    done: bool,
    /// Segments may have been used again in between: what they held is not missing.
    gaps_allowed: bool,
}

impl Recovery {
    /// Looks at the headers. Records before `from` (which a checkpoint holds) are not read; for an empty log
    /// `salt` is taken.
    pub fn new(files: &[SegmentFile], medium: &mut impl Medium, from: Lsn, salt: u64) -> Self {
        let layout = Layout::read(files, medium);
        let salt = layout.salt.unwrap_or(salt);
        let mut recovery = Self {
            layout,
            salt,
            from,
            current: 0,
            scanner: Scanner::default(),
            offset: FIRST_BATCH,
            expected: None,
            synced: Lsn(0),
            heads: Vec::new(),
            base: 0,
            records: Records::default(),
            report: Report::default(),
            done: false,
            gaps_allowed: false,
        };
        for index in recovery.layout.bad_headers.clone() {
            recovery.damage(index, 0, 0..0, "segment header");
        }
        recovery.skip_what_the_checkpoint_holds();
        recovery.open_segment(medium);
        recovery
    }

    /// For a look at all that the files hold, whatever a checkpoint covers: segments that were used again leave
    /// gaps, and these are no damage.
    pub fn of_everything(files: &[SegmentFile], medium: &mut impl Medium) -> Self {
        let mut recovery = Self::new(files, medium, Lsn(1), 0);
        recovery.gaps_allowed = true;
        recovery
    }

    /// The next record.
    pub fn next<'a>(&'a mut self, medium: &mut impl Medium) -> Option<Replayed<'a>> {
        let (header, lsn, offset, position) = loop {
            let (seed, generation) = (self.scanner.seed, self.scanner.generation);
            match self.records.next(&self.heads, seed, generation) {
                Some(Found::Record { lsn, .. }) if lsn < self.from => {}
                Some(Found::Record { header, lsn, offset, position }) => {
                    break (header, lsn, offset, position);
                }
                Some(Found::Damaged { lsn, offset }) => {
                    self.damage(self.scanner.segment, offset, lsn.0..lsn.0 + 1, "record head");
                }
                None if self.done => return None,
                None => self.advance(medium),
            }
        };
        self.report.records += 1;
        Some(replayed(&self.heads, self.base, &header, lsn, offset, position))
    }

    /// The file whose tail was believed without proof that it had been synced: sync it before going on.
    #[must_use]
    pub fn tail(&self) -> Option<u32> {
        self.layout.used.last().map(|known| known.index)
    }

    /// What was met so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// When all is read: what the log goes on from.
    #[must_use]
    pub fn finish(self) -> Recovered {
        let mut next_lsn = self.expected.unwrap_or(Lsn(1)).max(self.from);
        let mut seals = self.loose_seals();
        for seal in self.layout.seals.values() {
            next_lsn = next_lsn.max(seal.next_lsn);
        }
        let next_generation = self.layout.next_generation();
        if let Some(tail) = self.layout.used.last() {
            seals.retain(|seal| seal.generation != tail.generation);
            seals.push(Seal { generation: tail.generation, end: tail.end, next_lsn });
        }
        seals.sort_by_key(|seal| seal.generation);
        seals.dedup_by_key(|seal| seal.generation);
        let surplus = seals.len().saturating_sub(SEALS_MAX);
        seals.drain(..surplus);
        Recovered { salt: self.salt, segments: self.segments(), next_lsn, next_generation, seals }
    }

    /// Ends that only the header of a segment without content names: it will be written over.
    fn loose_seals(&self) -> Vec<Seal> {
        let used = &self.layout.used;
        let has_content =
            |generation| used.iter().any(|known| known.generation == generation && known.end > FIRST_BATCH);
        let loose = self.layout.headers.iter().filter(|header| !has_content(header.generation));
        let seals = loose.flat_map(|header| header.seals.iter().copied());
        let known = |seal: &Seal| {
            used.iter().chain(&self.layout.free).any(|known| known.generation == seal.generation)
        };
        seals.filter(known).collect()
    }

    fn segments(&self) -> Vec<Segment> {
        let all = self.layout.used.iter().chain(&self.layout.free);
        let count = all.clone().map(|known| known.index + 1).max().unwrap_or(0);
        let mut segments: Vec<Segment> = (0..count)
            .map(|index| {
                let mut segment = Segment::new(index, 0, State::Free);
                segment.absent = true;
                segment
            })
            .collect();
        for known in all {
            let segment = &mut segments[known.index as usize];
            segment.absent = false;
            segment.size = known.size;
            segment.generation = known.generation;
        }
        for known in &self.layout.used {
            let segment = &mut segments[known.index as usize];
            if known.end > FIRST_BATCH {
                segment.state = State::Sealed;
                segment.end = known.end;
                segment.last_lsn = known.last_lsn;
            }
        }
        segments
    }

    fn is_last(&self) -> bool {
        self.current + 1 == self.layout.used.len()
    }

    fn damage(&mut self, segment: u32, offset: u32, lsns: Range<u64>, what: &'static str) {
        self.report.damages_count += 1;
        if self.report.damages.len() < DAMAGES_MAX {
            self.report.damages.push(Damage { segment, offset, lsns, what });
        }
    }

    fn skip_what_the_checkpoint_holds(&mut self) {
        let used = &mut self.layout.used;
        let from = self.from;
        let start = used.iter().rposition(|known| known.first_lsn.is_some_and(|first| first <= from));
        self.current = start.unwrap_or(0);
        for i in 0..self.current {
            let last = used[i + 1..].iter().find_map(|known| known.first_lsn).unwrap_or(from);
            let seal = self.layout.seals.get(&used[i].generation);
            used[i].end = seal.map_or(used[i].size, |seal| seal.end.min(used[i].size));
            used[i].last_lsn = Lsn(last.0.saturating_sub(1));
        }
    }

    fn open_segment(&mut self, medium: &mut impl Medium) {
        let Some(known) = self.layout.used.get(self.current) else {
            self.done = true;
            return;
        };
        let seed = Seed::new(self.salt, known.generation);
        self.scanner = Scanner::new(known.index, known.size, known.generation, seed);
        self.offset = FIRST_BATCH;
        if self.expected.is_none() && self.from.0 > 1 {
            let first = known.first_lsn;
            self.expected = first.map(|first| first.min(self.from));
        }
        if self.is_last() {
            self.synced = self.find_synced(medium);
        }
    }

    /// The highest number that any batch of the last segment calls synced.
    fn find_synced(&mut self, medium: &mut impl Medium) -> Lsn {
        let limit = self.layout.limit(&self.layout.used[self.current]);
        let mut synced = Lsn(0);
        let mut offset = FIRST_BATCH;
        let mut least = Lsn(0);
        while let Some((at, batch)) = self.scanner.next_batch(medium, offset, limit) {
            offset = at + sectors(batch.length);
            if batch.first_lsn > least {
                synced = synced.max(batch.synced_through);
                least = batch.last_lsn();
            }
        }
        synced
    }

    /// Loads the next batch, or goes to the next segment, or ends.
    fn advance(&mut self, medium: &mut impl Medium) {
        let limit = self.layout.limit(&self.layout.used[self.current]);
        let expected = self.expected.unwrap_or(Lsn(1));
        let batch = if self.offset < limit { self.scanner.batch(medium, self.offset) } else { None };
        match batch {
            Some(batch) if batch.first_lsn >= expected => self.take_batch(medium, batch, expected),
            _ => self.look_further(medium, limit, expected),
        }
    }

    fn take_batch(&mut self, medium: &mut impl Medium, batch: BatchHeader, expected: Lsn) {
        let sealed = self.layout.seals.contains_key(&self.scanner.generation);
        let doubtful = self.is_last() && !sealed && batch.last_lsn() > self.synced;
        let reused_between = self.gaps_allowed && self.offset == FIRST_BATCH;
        // Before the first batch nothing is expected in particular.
        let misplaced = self.expected.is_some() && batch.first_lsn != expected && !reused_between;
        if doubtful && (misplaced || !self.scanner.verifies(medium, self.offset, &batch)) {
            self.report.torn = Some((self.scanner.segment, self.offset));
            self.leave_segment(medium);
            return;
        }
        if self.expected.is_some() && batch.first_lsn > expected && !reused_between {
            self.damage(
                self.scanner.segment,
                self.offset,
                expected.0..batch.first_lsn.0,
                "records are missing",
            );
        }
        self.heads.clear();
        self.heads.extend_from_slice(self.scanner.heads(medium, self.offset, &batch));
        self.base = self.offset;
        self.records = Records::new(&batch, self.offset);
        self.offset += sectors(batch.length);
        self.expected = Some(batch.last_lsn().next());
        let known = &mut self.layout.used[self.current];
        known.end = self.offset;
        known.last_lsn = batch.last_lsn();
    }

    /// No batch where one could be: the end, or damage with more behind it.
    fn look_further(&mut self, medium: &mut impl Medium, limit: u32, expected: Lsn) {
        let sealed = self.layout.seals.contains_key(&self.scanner.generation);
        let ends_here = if self.offset >= limit {
            true
        } else if self.is_last() && !sealed {
            self.synced < expected
        } else if sealed {
            false
        } else {
            self.layout.used.get(self.current + 1).is_some_and(|next| match next.first_lsn {
                Some(first) => first == expected || (self.gaps_allowed && first > expected),
                None => next.probed < expected,
            })
        };
        if ends_here {
            if self.is_last() && self.offset < limit && !sealed {
                self.note_torn_tail(medium);
            }
            self.leave_segment(medium);
            return;
        }
        let mut from = self.offset + 1;
        while let Some((at, batch)) = self.scanner.next_batch(medium, from, limit) {
            if batch.first_lsn >= expected {
                if self.offset < at {
                    let lsns = expected.0..batch.first_lsn.0;
                    self.damage(self.scanner.segment, self.offset, lsns, "batch");
                }
                self.offset = at;
                self.expected = Some(batch.first_lsn);
                return;
            }
            from = at + sectors(batch.length);
        }
        self.damage(self.scanner.segment, self.offset, expected.0..expected.0, "batch");
        self.offset = limit;
    }

    /// Something of this filling behind the end was written and never synced.
    fn note_torn_tail(&mut self, medium: &mut impl Medium) {
        let limit = self.offset.saturating_add(BATCH_BYTES_MAX).min(self.scanner.size);
        if self.scanner.next_batch(medium, self.offset, limit).is_some() {
            self.report.torn = Some((self.scanner.segment, self.offset));
        }
    }

    fn leave_segment(&mut self, medium: &mut impl Medium) {
        if let Some(seal) = self.layout.seals.get(&self.scanner.generation) {
            self.expected = self.expected.max(Some(seal.next_lsn));
        }
        self.records = Records::default();
        self.heads.clear();
        if self.is_last() {
            self.done = true;
        } else {
            self.current += 1;
            self.open_segment(medium);
        }
    }
}

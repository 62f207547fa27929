//! Reading behind the writer: durable records in order, while the log goes on.

use crate::format::{FIRST_BATCH, Seed, sectors};
use crate::position::{Generation, Lsn};
use crate::scan::{Found, Medium, Records, Replayed, Scanner, replayed};

/// A segment with durable content, as [`crate::Log::extents`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The filling.
    pub generation: Generation,
    /// The file.
    pub segment: u32,
    /// What lies before it is durable.
    pub end: u32,
}

/// Follows the log from a number on. Holds its place from one look to the next.
#[derive(Debug)]
pub struct Follower {
    salt: u64,
    next: Lsn,
    generation: Generation,
    offset: u32,
    scanner: Scanner,
    heads: Vec<u8>,
    base: u32,
    records: Records,
}

impl Follower {
    /// Will give the records from `next` on.
    #[must_use]
    pub fn new(salt: u64, next: Lsn) -> Self {
        Self {
            salt,
            next,
            generation: 0,
            offset: FIRST_BATCH,
            scanner: Scanner::default(),
            heads: Vec::new(),
            base: 0,
            records: Records::default(),
        }
    }

    /// Everything before this number was given, or is damaged or gone.
    #[must_use]
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// A new look: what the extents say now is durable.
    pub fn look_again(&mut self) {
        self.scanner.forget();
    }

    /// The next record before the extents' ends. They are ordered by generation, and of one time.
    pub fn next<'a>(&'a mut self, medium: &mut impl Medium, extents: &[Extent]) -> Option<Replayed<'a>> {
        let (header, lsn, offset, position) = loop {
            match self.records.next(&self.heads, self.scanner.seed, self.scanner.generation) {
                Some(Found::Record { lsn, .. } | Found::Damaged { lsn, .. }) if lsn < self.next => {}
                Some(Found::Damaged { lsn, .. }) => self.next = lsn.next(),
                Some(Found::Record { header, lsn, offset, position }) => {
                    self.next = lsn.next();
                    break (header, lsn, offset, position);
                }
                None if self.advance(medium, extents) => {}
                None => return None,
            }
        };
        Some(replayed(&self.heads, self.base, &header, lsn, offset, position))
    }

    /// Loads a further batch. False: there is none for now.
    fn advance(&mut self, medium: &mut impl Medium, extents: &[Extent]) -> bool {
        let current = extents.iter().find(|extent| extent.generation == self.generation);
        if current.is_some_and(|extent| self.take_batch(medium, extent)) {
            return true;
        }
        // The next segment; one that is damaged is passed over as recovery does.
        let behind = extents.iter().filter(|extent| extent.generation > self.generation);
        for extent in behind.copied().collect::<Vec<_>>() {
            self.open(extent);
            let first = self.scanner.batch(medium, FIRST_BATCH).map(|batch| batch.first_lsn);
            let follows = extents.iter().find(|other| other.generation > extent.generation).copied();
            if let Some(follows) = follows
                && self.first_lsn(medium, follows).is_some_and(|first| first <= self.next)
            {
                continue;
            }
            if first.is_some() && self.take_batch(medium, &extent) {
                return true;
            }
        }
        false
    }

    fn first_lsn(&self, medium: &mut impl Medium, extent: Extent) -> Option<Lsn> {
        let seed = Seed::new(self.salt, extent.generation);
        let mut scanner = Scanner::new(extent.segment, extent.end, extent.generation, seed);
        scanner.batch(medium, FIRST_BATCH).map(|batch| batch.first_lsn)
    }

    fn open(&mut self, extent: Extent) {
        let seed = Seed::new(self.salt, extent.generation);
        self.scanner = Scanner::new(extent.segment, extent.end, extent.generation, seed);
        self.generation = extent.generation;
        self.offset = FIRST_BATCH;
    }

    fn take_batch(&mut self, medium: &mut impl Medium, extent: &Extent) -> bool {
        self.scanner.size = extent.end;
        while self.offset < extent.end {
            let found = match self.scanner.batch(medium, self.offset) {
                Some(batch) => Some((self.offset, batch)),
                None => self.scanner.next_batch(medium, self.offset, extent.end),
            };
            let Some((at, batch)) = found else { return false };
            self.offset = at + sectors(batch.length);
            if batch.last_lsn() >= self.next {
                self.base = at;
                self.heads.clear();
                self.heads.extend_from_slice(self.scanner.heads(medium, at, &batch));
                self.records = Records::new(&batch, at);
                return true;
            }
        }
        false
    }
}

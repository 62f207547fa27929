//! Waiting for a time, for ten million recipients.
//!
//! Time is cut into buckets of about two minutes. A recipient whose time is in a later bucket hangs in that
//! bucket's list; when the bucket becomes the current one, its recipients are spread over a wheel of 16 ms
//! slots. So each is moved twice, whatever the number, and nothing but its own links is kept of it.
//!
//! The buckets are also those of the checkpoint, by due time: how many recipients have their due time in a
//! bucket, and whether any of them changed since the bucket was last written.

use crate::arena::{Arena, List};
use crate::entry::{Entry, Place};
use postrider_model::Timestamp;
use std::collections::BTreeMap;

/// A bucket's width is 2^27 µs: 134 s.
const BUCKET_BITS: u32 = 27;
/// A slot's width is 2^14 µs: 16 ms. Nothing is released early, and nothing later than this.
const SLOT_BITS: u32 = 14;
const SLOTS: usize = 1 << (BUCKET_BITS - SLOT_BITS);

/// A span of due times: the unit of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(pub u32);

impl Bucket {
    /// The bucket of a due time.
    #[must_use]
    pub fn of(due: Timestamp) -> Bucket {
        Bucket(u32::try_from(due.as_micros() >> BUCKET_BITS).unwrap_or(u32::MAX))
    }

    /// Its first moment.
    #[must_use]
    pub fn start(self) -> Timestamp {
        Timestamp::from_micros(u64::from(self.0) << BUCKET_BITS)
    }

    /// The first moment after it.
    #[must_use]
    pub fn end(self) -> Timestamp {
        Timestamp::from_micros((u64::from(self.0) + 1) << BUCKET_BITS)
    }
}

/// What a checkpoint wants to know of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketView {
    /// Which.
    pub bucket: Bucket,
    /// Recipients whose due time lies in it, wherever they are now.
    pub recipients: u32,
    /// Something in it changed since [`crate::Queue::take_dirty`].
    pub is_dirty: bool,
}

#[derive(Default)]
struct Span {
    /// Those who wait for a time in this bucket, in the order they came.
    parked: List<0>,
    /// Those whose due time lies in this bucket.
    recipients: u32,
    is_dirty: bool,
}

/// Buckets and the wheel of the current one.
pub(crate) struct Wheel {
    spans: BTreeMap<Bucket, Span>,
    /// The bucket whose recipients are in the slots.
    current: Bucket,
    /// The first slot that is not over yet.
    tick: usize,
    slots: Box<[List<0>]>,
    /// A bit for each slot that is not empty.
    occupied: Box<[u64]>,
    /// Recipients in the slots: most relays look at an empty wheel most of the time.
    imminent: u32,
    /// The current bucket's list is being spread.
    is_spreading: bool,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Wheel {
            spans: BTreeMap::new(),
            current: Bucket(0),
            tick: 0,
            slots: vec![List::default(); SLOTS].into(),
            occupied: vec![0; SLOTS / 64].into(),
            imminent: 0,
            is_spreading: false,
        }
    }

    pub(crate) fn is_dirty(&self, bucket: Bucket) -> bool {
        self.spans.get(&bucket).is_some_and(|span| span.is_dirty)
    }

    /// Parks a recipient until its wake time; false if that is over already.
    pub(crate) fn park(&mut self, entries: &mut Arena<Entry>, index: u32) -> bool {
        let wake = entries[index].wake();
        let bucket = Bucket::of(wake);
        if bucket > self.current {
            entries[index].place = Place::Parked;
            self.spans.entry(bucket).or_default().parked.push_back(entries, index);
            return true;
        }
        let slot = slot_of(wake);
        if bucket < self.current || slot < self.tick {
            return false;
        }
        entries[index].place = Place::Imminent;
        self.imminent += 1;
        self.slots[slot].push_back(entries, index);
        self.occupied[slot / 64] |= 1 << (slot % 64);
        true
    }

    /// Takes out a parked recipient, whose wake time is still that with which it was parked.
    pub(crate) fn unpark(&mut self, entries: &mut Arena<Entry>, index: u32) {
        let wake = entries[index].wake();
        if entries[index].place == Place::Imminent {
            self.take_from_slot(entries, slot_of(wake), index);
        } else if let Some(span) = self.spans.get_mut(&Bucket::of(wake)) {
            span.parked.remove(entries, index);
        }
    }

    fn take_from_slot(&mut self, entries: &mut Arena<Entry>, slot: usize, index: u32) {
        self.imminent -= 1;
        self.slots[slot].remove(entries, index);
        if self.slots[slot].is_empty() {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// The next recipient whose time has come, taken out. Spends at most `budget` steps; when it is spent
    /// there may be more.
    pub(crate) fn pop(
        &mut self,
        entries: &mut Arena<Entry>,
        now: Timestamp,
        budget: &mut u32,
    ) -> Option<u32> {
        let today = Bucket::of(now);
        while *budget > 0 {
            if self.is_spreading {
                self.spread(entries, budget);
                continue;
            }
            // Slots before this one are over.
            let end = match today.cmp(&self.current) {
                std::cmp::Ordering::Greater => SLOTS,
                std::cmp::Ordering::Equal => slot_of(now),
                std::cmp::Ordering::Less => self.tick,
            };
            let over = if self.tick < end { self.occupied_from(self.tick) } else { None };
            if let Some(slot) = over.filter(|&slot| slot < end) {
                self.tick = slot;
                *budget -= 1;
                let index = self.slots[slot].front()?;
                self.take_from_slot(entries, slot, index);
                return Some(index);
            }
            self.tick = self.tick.max(end);
            if today <= self.current {
                return None;
            }
            self.current = self.next_parked().map_or(today, |next| next.min(today));
            self.tick = 0;
            self.is_spreading = true;
        }
        None
    }

    /// Moves some of the current bucket's list into the slots.
    fn spread(&mut self, entries: &mut Arena<Entry>, budget: &mut u32) {
        let Some(span) = self.spans.get_mut(&self.current) else {
            self.is_spreading = false;
            return;
        };
        while *budget > 0 {
            let Some(index) = span.parked.pop_front(entries) else {
                self.is_spreading = false;
                if span.recipients == 0 && !span.is_dirty {
                    self.spans.remove(&self.current);
                }
                return;
            };
            *budget -= 1;
            let slot = slot_of(entries[index].wake());
            entries[index].place = Place::Imminent;
            self.imminent += 1;
            self.slots[slot].push_back(entries, index);
            self.occupied[slot / 64] |= 1 << (slot % 64);
        }
    }

    /// When [`Wheel::pop`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        if self.is_spreading {
            return Some(self.current.start());
        }
        match self.occupied_from(self.tick) {
            Some(slot) => Some(Timestamp::from_micros(
                self.current.start().as_micros() + ((slot as u64 + 1) << SLOT_BITS),
            )),
            None => self.next_parked().map(Bucket::start),
        }
    }

    fn next_parked(&self) -> Option<Bucket> {
        let later = self.spans.range((std::ops::Bound::Excluded(self.current), std::ops::Bound::Unbounded));
        later.into_iter().find(|(_, span)| !span.parked.is_empty()).map(|(&bucket, _)| bucket)
    }

    fn occupied_from(&self, slot: usize) -> Option<usize> {
        if self.imminent == 0 {
            return None;
        }
        let first = slot / 64;
        let mut mask = u64::MAX << (slot % 64);
        for (word, bits) in self.occupied.iter().enumerate().skip(first) {
            if bits & mask != 0 {
                return Some(word * 64 + (bits & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// A recipient with this due time came.
    pub(crate) fn count_in(&mut self, due: Timestamp) {
        let span = self.spans.entry(Bucket::of(due)).or_default();
        span.recipients += 1;
        span.is_dirty = true;
    }

    /// A recipient with this due time went, or changed its due time.
    pub(crate) fn count_out(&mut self, due: Timestamp) {
        if let Some(span) = self.spans.get_mut(&Bucket::of(due)) {
            span.recipients = span.recipients.saturating_sub(1);
            span.is_dirty = true;
        }
    }

    /// A recipient with this due time changed otherwise.
    pub(crate) fn touch(&mut self, due: Timestamp) {
        if let Some(span) = self.spans.get_mut(&Bucket::of(due)) {
            span.is_dirty = true;
        }
    }

    pub(crate) fn buckets(&self) -> impl Iterator<Item = BucketView> {
        self.spans
            .iter()
            .map(|(&bucket, span)| BucketView {
                bucket,
                recipients: span.recipients,
                is_dirty: span.is_dirty,
            })
            .filter(|view| view.is_dirty || view.recipients > 0)
    }

    pub(crate) fn take_dirty(&mut self) -> Vec<BucketView> {
        let dirty = self.buckets().filter(|view| view.is_dirty).collect();
        self.spans.retain(|_, span| {
            span.is_dirty = false;
            span.recipients > 0 || !span.parked.is_empty()
        });
        dirty
    }
}

fn slot_of(time: Timestamp) -> usize {
    (time.as_micros() >> SLOT_BITS) as usize & (SLOTS - 1)
}

#[cfg(test)]
impl Wheel {
    /// Walks all lists and checks the bits that summarise them.
    pub(crate) fn check(&self, entries: &Arena<Entry>, walk: &mut impl FnMut(List<0>, Place) -> u32) {
        for (&bucket, span) in &self.spans {
            walk(span.parked, Place::Parked);
            let first = span.parked.front();
            assert!(first.is_none_or(|first| Bucket::of(entries[first].wake()) == bucket));
        }
        let mut imminent = 0;
        for (slot, list) in self.slots.iter().enumerate() {
            imminent += walk(*list, Place::Imminent);
            assert_eq!(self.occupied[slot / 64] >> (slot % 64) & 1 == 1, !list.is_empty());
        }
        assert_eq!(self.imminent, imminent);
    }
}

//! What is kept of a recipient: 48 octets, no address, no id.

use crate::arena::{Links, Node};
use postrider_model::{Class, Timestamp};

/// Where a recipient is. It is in exactly one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    /// Nowhere: the slot is free.
    #[default]
    Free,
    /// Waits for its time in a bucket of the far future.
    Parked,
    /// Waits for its time in the wheel.
    Imminent,
    /// Due, waits in its domain: for DNS, or because the domain is suspended.
    Waiting,
    /// Due, waits in a line of its lane.
    Ready,
    /// In a batch that a connection has taken.
    InFlight,
    /// Held; nothing moves it but its release.
    Held,
    /// Not due, but it expires or wants a warning now.
    Alarmed,
    /// Handed to the engine for a verdict (expired, or its domain does not exist).
    Taken,
}

/// A recipient.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) due: Timestamp,
    pub(crate) links: Links,
    pub(crate) message: u32,
    pub(crate) domain: u32,
    /// The line while ready or in flight, else the flow: a line knows its flow.
    pub(crate) group: u32,
    pub(crate) reply: u32,
    /// Seconds since the epoch; 0 is never.
    pub(crate) expires_s: u32,
    /// Seconds since the epoch; 0 is never (or no more).
    pub(crate) warn_s: u32,
    pub(crate) ordinal: u16,
    pub(crate) attempts: u16,
    pub(crate) size_kib: u16,
    pub(crate) place: Place,
    pub(crate) bits: u8,
}

const CLASS: u8 = 0b11;
const LEAD: u8 = 0b100;
const START: u8 = 0b1000;

impl Entry {
    pub(crate) fn class(&self) -> Class {
        Class::ALL[usize::from(self.bits & CLASS).min(Class::ALL.len() - 1)]
    }

    pub(crate) fn set_class(&mut self, class: Class) {
        self.bits = self.bits & !CLASS | class as u8;
    }

    /// True for one recipient of each batch, which stands for the whole transaction.
    pub(crate) fn is_lead(&self) -> bool {
        self.bits & LEAD != 0
    }

    pub(crate) fn set_lead(&mut self, lead: bool) {
        self.bits = if lead { self.bits | LEAD } else { self.bits & !LEAD };
    }

    /// True for a ready recipient that was the first of its transaction when it joined its line.
    pub(crate) fn is_start(&self) -> bool {
        self.bits & START != 0
    }

    pub(crate) fn set_start(&mut self, start: bool) {
        self.bits = if start { self.bits | START } else { self.bits & !START };
    }

    /// When it expires or wants a warning, whichever is first.
    pub(crate) fn alarm(&self) -> Timestamp {
        seconds(self.expires_s).min(seconds(self.warn_s))
    }

    pub(crate) fn has_expired(&self, now: Timestamp) -> bool {
        seconds(self.expires_s) <= now
    }

    pub(crate) fn wants_warning(&self, now: Timestamp) -> bool {
        seconds(self.warn_s) <= now
    }

    /// When it must be looked at again while it waits for its time.
    pub(crate) fn wake(&self) -> Timestamp {
        self.due.min(self.alarm())
    }
}

/// Seconds since the epoch as kept in an entry.
pub(crate) fn seconds(seconds: u32) -> Timestamp {
    if seconds == 0 { Timestamp::MAX } else { Timestamp::from_secs(u64::from(seconds)) }
}

/// The reverse, rounded up: never early. What 32 bits cannot hold (after 2106) is never.
pub(crate) fn to_seconds(time: Option<Timestamp>) -> u32 {
    time.map_or(0, |time| u32::try_from(time.as_micros().div_ceil(1_000_000).max(1)).unwrap_or(0))
}

/// What [`to_seconds`] made, read back.
pub(crate) fn from_seconds(seconds: u32) -> Option<Timestamp> {
    (seconds != 0).then(|| Timestamp::from_secs(u64::from(seconds)))
}

impl Node<0> for Entry {
    #[inline]
    fn links(&self) -> Links {
        self.links
    }
    #[inline]
    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipient_takes_48_octets() {
        println!("size of a queued recipient: {} octets", size_of::<Entry>());
        assert_eq!(size_of::<Entry>(), 48);
    }

    #[test]
    fn seconds_are_rounded_up_and_bounded() {
        assert_eq!(to_seconds(Some(Timestamp::from_micros(1_000_001))), 2);
        assert_eq!(to_seconds(Some(Timestamp::from_micros(0))), 1);
        assert_eq!(to_seconds(Some(Timestamp::MAX)), 0);
        assert_eq!(to_seconds(None), 0);
        assert_eq!(seconds(0), Timestamp::MAX);
    }
}

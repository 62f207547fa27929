//! Deadlines of sessions and connections.
//!
//! A deadline that moves later costs nothing: the old entry stays, and when it comes up the owner is asked
//! for its real deadline. So a session that takes a thousand messages touches this heap about once.

use postrider_model::Timestamp;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Who has a deadline: a slab key and the unique number of what lived there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Session { key: usize, id: u32 },
    Connection { key: usize, id: u32 },
}

/// The heap of deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Timestamp, Owner)>>,
}

impl Timers {
    /// Makes sure that `owner` comes up at `deadline`; `scheduled` is when it comes up anyway.
    pub(crate) fn schedule(&mut self, owner: Owner, deadline: Option<Timestamp>, scheduled: &mut Timestamp) {
        if let Some(deadline) = deadline.filter(|deadline| deadline < scheduled) {
            *scheduled = deadline;
            self.heap.push(Reverse((deadline, owner)));
        }
    }

    /// The next owner whose time has come, if its entry is not an old one.
    pub(crate) fn due(&mut self, now: Timestamp) -> Option<Owner> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, owner))| owner)
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

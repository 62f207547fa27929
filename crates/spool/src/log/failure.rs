//! After a failed write or sync: the segment's end is fixed, outcomes are kept, messages are lost.

use super::{Log, Stage};
use crate::append::{Fault, Lost};
use crate::format::{FIRST_BATCH, Seal};
use crate::segments::State;

impl Log {
    /// A write or a sync failed: the segment ends where it was last durable, for good.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.stage = Stage::Idle;
        let Some(active) = self.active.take() else { return };
        // Nobody has seen the numbers of what failed.
        self.next_lsn = self.durable.next();
        let segment = self.segments.get_mut(active.index);
        let end = segment.end;
        segment.suspect = true;
        segment.live.truncate(end);
        self.seals.push(Seal { generation: active.generation, end, next_lsn: self.next_lsn });
        if end == FIRST_BATCH {
            self.give_up(active.index);
        } else {
            segment.state = State::Sealed;
        }
        let lost = if fault == Fault::Full { Lost::Full } else { Lost::Failed };
        for (shard, ticket) in std::mem::take(&mut self.lazy) {
            self.lose(shard, ticket, lost);
        }
        let mut again = Vec::new();
        for flying in std::mem::take(&mut self.batch.records) {
            if flying.append.reserve {
                again.push(flying);
            } else {
                self.lose(flying.append.shard, flying.append.ticket, lost);
            }
        }
        for flying in again.into_iter().rev() {
            self.pending.push_front(flying);
        }
        self.lose_dependents();
        self.count_failure();
    }

    /// The next segment's header could not be made durable.
    pub(super) fn discard_headless(&mut self, index: u32) {
        let next_lsn = self.next_lsn;
        let segment = self.segments.get_mut(index);
        segment.suspect = true;
        self.seals.push(Seal { generation: segment.generation, end: FIRST_BATCH, next_lsn });
        self.give_up(index);
        self.count_failure();
    }

    /// The segment holds no record, but its header may name ends that the next header must name then.
    pub(super) fn give_up(&mut self, index: u32) {
        let segment = self.segments.get_mut(index);
        segment.state = State::Free;
        let named = std::mem::take(&mut segment.named);
        for seal in named {
            if !self.seals.contains(&seal) && self.segments.may_hold(seal.generation) {
                self.seals.push(seal);
            }
        }
    }

    fn count_failure(&mut self) {
        self.attempts_left = self.attempts_left.saturating_sub(1);
        if self.attempts_left > 0 {
            return;
        }
        // Spares would have to be headed again for the seals; one that is made anew shows that the disk works.
        self.failing = true;
        while let Some(index) = self.spares.pop_front() {
            self.give_up(index);
        }
    }
}

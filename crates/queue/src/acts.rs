//! What operators and the engine do to recipients outside the normal course.

use crate::arena::NIL;
use crate::entry::{Place, to_seconds};
use crate::fair;
use crate::queue::{DomainId, FlowId, Queue, RecipientSlot};
use crate::wheel::{Bucket, BucketView};
use postrider_model::Timestamp;

/// What a suspension covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Everything.
    All,
    /// The lane of this key, whether or not it exists yet.
    Site(&'a str),
    /// A routing domain.
    Domain(DomainId),
    /// A flow.
    Flow(FlowId),
}

impl Queue {
    /// Nothing of the scope is dispatched from now on. What is in flight goes on; expiry runs.
    pub fn suspend(&mut self, scope: Scope<'_>) {
        self.set_suspended(scope, true);
    }

    /// Ends a suspension.
    pub fn resume(&mut self, scope: Scope<'_>) {
        self.set_suspended(scope, false);
    }

    fn set_suspended(&mut self, scope: Scope<'_>, suspended: bool) {
        match scope {
            Scope::All => {
                self.is_suspended = suspended;
                for lane in self.lane_indices() {
                    self.touch_lane(lane);
                }
            }
            Scope::Site(key) => {
                let lane = self.intern_lane(key);
                self.lanes[lane].is_suspended = suspended;
                self.touch_lane(lane);
            }
            Scope::Domain(DomainId(domain)) => {
                self.domains[domain].is_suspended = suspended;
                if suspended {
                    self.domains.set_idle(domain, false);
                    self.patrol.start_now();
                } else {
                    self.drain(domain);
                    let entry = &self.domains[domain];
                    if !entry.waiting.is_empty() && entry.lane == NIL && entry.until <= self.now {
                        self.ask(domain);
                    }
                    self.check_domain(domain);
                }
            }
            Scope::Flow(FlowId(flow)) => self.suspend_flow(flow, suspended),
        }
    }

    /// Takes the flow's lines out of their rounds, or puts them back.
    fn suspend_flow(&mut self, flow: u32, suspended: bool) {
        if std::mem::replace(&mut self.flows[flow].is_suspended, suspended) == suspended {
            return;
        }
        self.flows.set_idle(flow, false);
        for index in 0..self.lines.end() {
            let line = &self.lines[index];
            if line.flow != flow || line.ready_count == 0 || line.in_ring != suspended {
                continue;
            }
            let (count, lane_index) = (line.ready_count, line.lane);
            let units = self.units(index);
            let lane = &mut self.lanes[lane_index];
            let class = &mut lane.classes[usize::from(self.lines[index].class)];
            if suspended {
                fair::leave(class, &mut self.lines, &self.flows, index);
                class.ready -= count;
                lane.ready -= count;
                lane.stalled += count;
                lane.units = lane.units.saturating_sub(units);
            } else {
                fair::join(class, &mut self.lines, index);
                class.ready += count;
                lane.ready += count;
                lane.stalled -= count;
                lane.units += units;
            }
            self.touch_lane(lane_index);
        }
        self.check_flow(flow);
    }

    /// Transactions that a line's recipients make, about.
    fn units(&self, line: u32) -> u32 {
        let ready = self.lines[line].ready;
        let (mut units, mut at) = (0, ready.front());
        while let Some(index) = at {
            units += u32::from(self.entries[index].is_start());
            at = ready.after(&self.entries, index);
        }
        units
    }

    /// Holds a recipient wherever it is: nothing moves it until it is released, its lifetime included. In
    /// flight it is the engine's, who holds it after its outcome.
    pub fn park(&mut self, slot: RecipientSlot) {
        if self.is_queued(slot) {
            self.detach(slot.0);
            self.hold(slot.0);
            self.wheel.touch(self.entries[slot.0].due);
        }
    }

    /// Releases a held recipient; it goes on by its due time. True if it was held.
    pub fn unpark(&mut self, now: Timestamp, slot: RecipientSlot) -> bool {
        self.clock(now);
        let is_held = self.is_queued(slot) && self.entries[slot.0].place == Place::Held;
        if is_held {
            self.detach(slot.0);
            self.wheel.touch(self.entries[slot.0].due);
            self.settle(slot.0, false);
        }
        is_held
    }

    /// Changes when a recipient is due. One in flight keeps its course: false.
    pub fn set_due(&mut self, now: Timestamp, slot: RecipientSlot, due: Timestamp) -> bool {
        self.clock(now);
        self.change(slot, |queue, index| {
            let before = std::mem::replace(&mut queue.entries[index].due, due);
            queue.wheel.count_out(before);
            queue.wheel.count_in(due);
        })
    }

    /// Changes when a recipient expires and when a delay warning is due. One in flight takes it along.
    pub fn set_alarms(
        &mut self,
        now: Timestamp,
        slot: RecipientSlot,
        expires: Option<Timestamp>,
        warn: Option<Timestamp>,
    ) {
        self.clock(now);
        if self.is_queued(slot) && self.entries[slot.0].place == Place::InFlight {
            let entry = &mut self.entries[slot.0];
            (entry.expires_s, entry.warn_s) = (to_seconds(expires), to_seconds(warn));
            return;
        }
        self.change(slot, |queue, index| {
            let entry = &mut queue.entries[index];
            (entry.expires_s, entry.warn_s) = (to_seconds(expires), to_seconds(warn));
        });
    }

    /// The recipient's delay warning is not due any more.
    pub fn clear_warning(&mut self, slot: RecipientSlot) {
        if self.is_queued(slot) {
            self.entries[slot.0].warn_s = to_seconds(None);
            self.wheel.touch(self.entries[slot.0].due);
        }
    }

    /// Puts back a recipient's schedule as it was before a restart.
    pub fn restore(&mut self, now: Timestamp, slot: RecipientSlot, due: Timestamp, attempts: u16) {
        self.clock(now);
        self.change(slot, |queue, index| {
            let before = std::mem::replace(&mut queue.entries[index].due, due);
            queue.entries[index].attempts = attempts;
            queue.wheel.count_out(before);
            queue.wheel.count_in(due);
        });
    }

    /// All routing domains.
    pub fn domains(&self) -> impl Iterator<Item = DomainId> {
        self.domains.iter().map(|(index, _)| DomainId(index))
    }

    /// Changes the recipient's reply reference, as when the engine moves its replies.
    pub fn set_reply(&mut self, slot: RecipientSlot, reply: u32) {
        if self.is_queued(slot) {
            self.entries[slot.0].reply = reply;
            self.wheel.touch(self.entries[slot.0].due);
        }
    }

    /// Takes a recipient to another domain or flow (an operator's move). One in flight stays: false.
    pub fn move_to(&mut self, now: Timestamp, slot: RecipientSlot, domain: DomainId) -> bool {
        self.clock(now);
        self.change(slot, |queue, index| {
            let from = std::mem::replace(&mut queue.entries[index].domain, domain.0);
            for (index, add) in [(domain.0, true), (from, false)] {
                let lane = queue.domains[index].lane;
                let count = |members: &mut u32| *members = if add { *members + 1 } else { *members - 1 };
                count(&mut queue.domains[index].members);
                if lane != NIL {
                    count(&mut queue.lanes[lane].members);
                }
            }
            queue.domains.set_idle(domain.0, false);
            queue.check_domain(from);
        })
    }

    /// Changes a recipient that is not in flight, and finds its place anew unless it is held or taken.
    fn change(&mut self, slot: RecipientSlot, act: impl FnOnce(&mut Queue, u32)) -> bool {
        if !self.is_queued(slot) || self.entries[slot.0].place == Place::InFlight {
            return false;
        }
        let place = self.entries[slot.0].place;
        self.detach(slot.0);
        act(self, slot.0);
        match place {
            Place::Held => self.hold(slot.0),
            Place::Taken => {}
            _ => self.settle(slot.0, false),
        }
        self.wheel.touch(self.entries[slot.0].due);
        true
    }

    /// Walks over all recipients in bounded steps: appends those among the next `steps` slots and gives the
    /// cursor for the next call, `None` at the end. Recipients that come meanwhile may be missed; those
    /// that stay are met once.
    pub fn sweep(&self, cursor: u32, steps: u32, out: &mut Vec<RecipientSlot>) -> Option<u32> {
        let end = self.entries.end();
        let stop = cursor.saturating_add(steps).min(end);
        let queued = |index: &u32| self.entries[*index].place != Place::Free;
        out.extend((cursor..stop).filter(queued).map(RecipientSlot));
        (stop < end).then_some(stop)
    }

    /// The buckets of due times that have recipients or changes, in the order of time.
    pub fn buckets(&self) -> impl Iterator<Item = BucketView> {
        self.wheel.buckets()
    }

    /// The buckets that changed since the last call, an empty one to be deleted; from now on they count as
    /// unchanged. A checkpoint then sweeps once and writes whom it meets to the file of [`Queue::bucket`].
    pub fn take_dirty(&mut self) -> Vec<BucketView> {
        self.wheel.take_dirty()
    }

    /// Something about the recipient changed that the queue does not know but a checkpoint must.
    pub fn touch(&mut self, slot: RecipientSlot) {
        if self.is_queued(slot) {
            self.wheel.touch(self.entries[slot.0].due);
        }
    }

    /// Something in the bucket changed since [`Queue::take_dirty`].
    #[must_use]
    pub fn is_dirty(&self, bucket: Bucket) -> bool {
        self.wheel.is_dirty(bucket)
    }

    /// The bucket of a recipient: that of its due time, wherever it is now.
    #[must_use]
    pub fn bucket(&self, slot: RecipientSlot) -> Option<Bucket> {
        self.is_queued(slot).then(|| Bucket::of(self.entries[slot.0].due))
    }

    /// All recipients of a bucket. It walks over all recipients of the queue; [`Queue::sweep`] does so in steps
    /// and for all buckets at once.
    pub fn recipients_in(&self, bucket: Bucket) -> impl Iterator<Item = RecipientSlot> {
        (0..self.entries.end())
            .filter(|&index| self.entries[index].place != Place::Free)
            .filter(move |&index| Bucket::of(self.entries[index].due) == bucket)
            .map(RecipientSlot)
    }
}

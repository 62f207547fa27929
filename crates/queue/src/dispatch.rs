//! What is to be done next: the face the engine polls, and what a connection pulls.

use crate::arena::NIL;
use crate::entry::Place;
use crate::fair;
use crate::queue::{DomainId, LaneId, Queue, RecipientSlot, Timer};
use crate::table::Question;
use crate::view::Limit;
use postrider_model::Timestamp;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::time::Duration;

/// Steps of work in one call of [`Queue::poll`] that yield nothing to the caller: bounds its time to well
/// below a millisecond. What is left over makes the deadline be now.
const POLL_STEPS: u32 = 1_024;
/// Recipients in the wrong place that one call of [`Queue::next`] moves aside before it gives up.
const STRAYS_MAX: u32 = 256;
/// The patrol walks all recipients at most this often.
const PATROL_PAUSE: Duration = Duration::from_secs(1);

/// What the engine is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out the domain's site; answer with [`Queue::resolved`], [`Queue::unresolvable_for_now`] or
    /// [`Queue::take_domain`].
    Resolve(DomainId),
    /// Ask the broker for one connection slot of the lane; answer with [`Queue::grant`] or [`Queue::refuse`].
    WantSlot(LaneId),
    /// Give one slot back to the broker.
    ReturnSlot(LaneId),
    /// Open a connection; answer with [`Queue::connection_opened`], [`Queue::connection_failed`] or
    /// [`Queue::throttled`].
    Connect(LaneId),
    /// There is work for a connection without: let one call [`Queue::next`], or say that it is closed.
    Pull(LaneId),
    /// Close a connection without work.
    Close(LaneId),
    /// The site is well again: record that its failures are over.
    Recovered(LaneId),
    /// The recipient's lifetime is over. It waits for the engine's verdict: [`Queue::finished`] most often.
    Expired(RecipientSlot),
    /// A delay warning is due. The recipient goes on waiting.
    Warn(RecipientSlot),
}

/// One transaction: recipients of one message in one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The engine's number of the message.
    pub message: u32,
    /// Its recipients, at least one. Each ends by [`Queue::finished`], [`Queue::deferred`] or [`Queue::requeue`].
    pub recipients: SmallVec<[RecipientSlot; 4]>,
}

/// A walk over all recipients, in steps: finds the expired among those that wait for a connection or for DNS,
/// and those whose domain moved to another lane. It costs nothing until the first of them may have expired.
#[derive(Debug)]
pub(crate) struct Patrol {
    cursor: Option<u32>,
    /// No waiting recipient expires or wants a warning before this.
    alarm: Timestamp,
    /// Not before this, unless something moved.
    pause: Timestamp,
    is_urgent: bool,
}

impl Default for Patrol {
    fn default() -> Self {
        Patrol { cursor: None, alarm: Timestamp::MAX, pause: Timestamp::default(), is_urgent: false }
    }
}

impl Patrol {
    /// A recipient with this alarm waits from now on.
    pub(crate) fn expect(&mut self, alarm: Timestamp) {
        self.alarm = self.alarm.min(alarm);
    }

    /// Something moved.
    pub(crate) fn start_now(&mut self) {
        self.is_urgent = true;
    }

    fn deadline(&self) -> Option<Timestamp> {
        if self.is_urgent || self.cursor.is_some() {
            return Some(Timestamp::default());
        }
        (self.alarm < Timestamp::MAX).then(|| self.alarm.max(self.pause))
    }
}

impl Queue {
    /// The next thing to do, if any. To be called until `None`, then again at [`Queue::deadline`] or after
    /// any other call.
    pub fn poll(&mut self, now: Timestamp) -> Option<Action> {
        self.clock(now);
        let mut budget = POLL_STEPS;
        if let Some(action) = self.poll_time(&mut budget) {
            return Some(action);
        }
        self.fire_timers();
        if let Some(action) = self.poll_patrol(&mut budget) {
            return Some(action);
        }
        self.drain_some(&mut budget);
        if let Some(action) = self.poll_questions() {
            return Some(action);
        }
        self.poll_lanes()
    }

    /// When [`Queue::poll`] has something to do if nothing else happens; in the past when it left something
    /// over.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        if !self.alarmed.is_empty()
            || !self.draining.is_empty()
            || !self.agenda.is_empty()
            || self.has_turn_for_starved()
            || (!self.questions.is_empty() && self.asked < self.settings.resolves_max)
        {
            return Some(Timestamp::default());
        }
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [self.wheel.deadline(), timer, self.patrol.deadline()].into_iter().flatten().min()
    }

    /// What a connection of the lane is to send next. `None`: it counts as without work until
    /// [`Action::Pull`] or [`Action::Close`] names its lane.
    pub fn next(&mut self, now: Timestamp, lane: LaneId) -> Option<Batch> {
        let now = self.clock(now);
        let entry = &mut self.lanes[lane.0];
        entry.pulling = entry.pulling.saturating_sub(1);
        let is_open = self.blocked(lane.0, now).is_none()
            && !self.has_too_many(lane.0)
            && self.message_allowed_at(lane.0) <= now;
        let batch = if is_open { self.take_batch(lane.0) } else { None };
        let entry = &mut self.lanes[lane.0];
        match &batch {
            Some(_) => {
                if let Some(rate) = entry.limits.message_rate {
                    entry.message_gcra.count(rate, now);
                    self.touch_lane(lane.0);
                }
            }
            None => {
                entry.idle_connections += 1;
                self.note_idler(lane.0);
                self.touch_lane(lane.0);
            }
        }
        batch
    }

    fn take_batch(&mut self, lane_index: u32) -> Option<Batch> {
        for _ in 0..STRAYS_MAX {
            let class_index = fair::class(&self.lanes[lane_index])?;
            let class = &mut self.lanes[lane_index].classes[class_index];
            let line_index = fair::line(class, &mut self.lines, &self.flows)?;
            let first = self.lines[line_index].ready.front()?;
            if self.is_stray(first) {
                self.detach(first);
                self.arrive(first, false);
                continue;
            }
            return Some(self.fill_batch(lane_index, class_index, line_index, first));
        }
        None
    }

    /// Takes the first recipient of a line and those behind it that are of the same message.
    fn fill_batch(&mut self, lane_index: u32, class: usize, line_index: u32, first: u32) -> Batch {
        let limit = self.lanes[lane_index].limits.recipients_per_transaction.max(1) as usize;
        let mut batch = Batch { message: self.entries[first].message, recipients: SmallVec::new() };
        let size_kib = self.entries[first].size_kib;
        let mut at = Some(first);
        while let Some(index) = at {
            self.leave_line(index);
            let entry = &mut self.entries[index];
            entry.place = Place::InFlight;
            entry.set_lead(batch.recipients.is_empty());
            batch.recipients.push(RecipientSlot(index));
            let next = self.lines[line_index].ready.front();
            at = next.filter(|&next| {
                batch.recipients.len() < limit
                    && self.entries[next].message == batch.message
                    && !self.is_stray(next)
            });
        }
        let count = u32::try_from(batch.recipients.len()).unwrap_or(u32::MAX);
        let cost = fair::cost(size_kib, batch.recipients.len());
        let line = &mut self.lines[line_index];
        line.in_flight += count;
        line.deficit -= cost;
        let lane = &mut self.lanes[lane_index];
        lane.in_flight += count;
        lane.transactions += 1;
        fair::spend_class(lane, class, cost, self.settings.share_reserved_per_mille);
        batch
    }

    /// Recipients whose time has come.
    fn poll_time(&mut self, budget: &mut u32) -> Option<Action> {
        while let Some(index) = self.alarmed.pop_front(&mut self.entries) {
            if let Some(action) = self.wake(index) {
                return Some(action);
            }
        }
        while let Some(index) = self.wheel.pop(&mut self.entries, self.now, budget) {
            if let Some(action) = self.wake(index) {
                return Some(action);
            }
        }
        None
    }

    /// A recipient that stands nowhere: it expires, wants a warning, or is due.
    fn wake(&mut self, index: u32) -> Option<Action> {
        let now = self.now;
        let entry = &mut self.entries[index];
        entry.place = Place::Taken;
        if entry.has_expired(now) {
            return Some(Action::Expired(RecipientSlot(index)));
        }
        let warns = entry.wants_warning(now);
        if warns {
            entry.warn_s = 0;
        }
        self.settle(index, false);
        warns.then_some(Action::Warn(RecipientSlot(index)))
    }

    fn fire_timers(&mut self) {
        while let Some(&Reverse((at, timer))) = self.timers.peek()
            && at <= self.now
        {
            self.timers.pop();
            match timer {
                Timer::Lane(lane) => {
                    // A timer that was overtaken by an earlier one, or whose lane is gone, says nothing.
                    if self.lanes[lane].timer == at {
                        self.lanes[lane].timer = Timestamp::MAX;
                        self.touch_lane(lane);
                    }
                }
                Timer::Domain(domain) => self.domain_timer(domain),
            }
        }
    }

    fn poll_patrol(&mut self, budget: &mut u32) -> Option<Action> {
        let now = self.now;
        if self.patrol.cursor.is_none() {
            let is_due = self.patrol.alarm.max(self.patrol.pause) <= now;
            if !self.patrol.is_urgent && !is_due {
                return None;
            }
            self.patrol = Patrol {
                cursor: Some(0),
                alarm: Timestamp::MAX,
                pause: now + PATROL_PAUSE,
                is_urgent: false,
            };
        }
        while let Some(index) = self.patrol.cursor {
            if index >= self.entries.end() {
                self.patrol.cursor = None;
                return None;
            }
            if *budget == 0 {
                return None;
            }
            *budget -= 1;
            self.patrol.cursor = Some(index + 1);
            if let Some(action) = self.inspect(index) {
                return Some(action);
            }
        }
        None
    }

    /// The patrol looks at a recipient.
    fn inspect(&mut self, index: u32) -> Option<Action> {
        let now = self.now;
        let entry = &mut self.entries[index];
        if !matches!(entry.place, Place::Ready | Place::Waiting) {
            return None;
        }
        if entry.has_expired(now) {
            self.detach(index);
            return Some(Action::Expired(RecipientSlot(index)));
        }
        let warns = entry.wants_warning(now);
        if warns {
            entry.warn_s = 0;
        }
        self.patrol.expect(entry.alarm());
        if self.is_stray(index) {
            self.detach(index);
            self.arrive(index, false);
        }
        warns.then_some(Action::Warn(RecipientSlot(index)))
    }

    fn poll_questions(&mut self) -> Option<Action> {
        if self.asked >= self.settings.resolves_max {
            return None;
        }
        let domain = self.questions.pop_front()?;
        self.domains[domain].question = Question::Asked;
        self.asked += 1;
        Some(Action::Resolve(DomainId(domain)))
    }

    fn poll_lanes(&mut self) -> Option<Action> {
        loop {
            if let Some(lane) = self.next_starved() {
                self.touch_lane(lane);
                self.turn = lane;
                let action = self.evaluate(lane);
                self.turn = NIL;
                if action.is_some() {
                    return action;
                }
            }
            let Some(&lane) = self.agenda.front() else {
                return self.close_for_starved();
            };
            if let Some(action) = self.evaluate(lane) {
                return Some(action);
            }
            self.agenda.pop_front();
            self.lanes[lane].on_agenda = false;
            if !self.lanes[lane].is_idle && self.lanes[lane].is_unused(self.now) {
                self.lanes.set_idle(lane, true);
            }
        }
    }

    /// The next lane that waits for connections of others to end and for which there is room: first those that
    /// have none at all.
    fn next_starved(&mut self) -> Option<u32> {
        if self.connections < self.settings.connections_max
            && let Some(lane) = self.starved.pop_front()
        {
            self.lanes[lane].is_starved = false;
            return Some(lane);
        }
        if self.connections < self.settings.connections_more_max()
            && let Some(lane) = self.starved_more.pop_front()
        {
            self.lanes[lane].is_starved_more = false;
            return Some(lane);
        }
        None
    }

    fn has_turn_for_starved(&self) -> bool {
        !self.starved.is_empty() && self.connections < self.settings.connections_max
            || !self.starved_more.is_empty() && self.connections < self.settings.connections_more_max()
    }

    /// Lanes that wait for any connection to end take those of others that have no work.
    fn close_for_starved(&mut self) -> Option<Action> {
        if self.closing as usize >= self.starved.len() + self.starved_more.len() {
            return None;
        }
        let lane = self.idlers.front()?;
        // The next one is taken of another lane.
        self.idlers.rotate(self.lanes.arena());
        Some(self.close_one(lane))
    }

    fn close_one(&mut self, lane: u32) -> Action {
        self.lanes[lane].idle_connections -= 1;
        self.lanes[lane].closing += 1;
        self.closing += 1;
        self.note_idler(lane);
        Action::Close(LaneId(lane))
    }

    /// Keeps the list of lanes that have connections without work true.
    pub(crate) fn note_idler(&mut self, lane: u32) {
        let has_idle = self.lanes[lane].idle_connections > 0;
        if std::mem::replace(&mut self.lanes[lane].is_idler, has_idle) != has_idle {
            if has_idle {
                self.idlers.push_back(self.lanes.arena(), lane);
            } else {
                self.idlers.remove(self.lanes.arena(), lane);
            }
        }
    }

    /// What a lane wants done, if anything; what it waits for is noted.
    fn evaluate(&mut self, index: u32) -> Option<Action> {
        let now = self.now;
        let id = LaneId(index);
        if std::mem::take(&mut self.lanes[index].has_recovered) {
            return Some(Action::Recovered(id));
        }
        let blocked = self.blocked(index, now);
        let has_too_many = self.has_too_many(index);
        let lane = &mut self.lanes[index];
        let is_closing = blocked.is_some() || has_too_many;
        if is_closing && lane.idle_connections > 0 {
            return Some(self.close_one(index));
        }
        if blocked == Some(Limit::Backoff) {
            let until = lane.backoff.until;
            self.set_lane_timer(index, until);
        }
        let lane = &self.lanes[index];
        // A transaction for each connection that is free already, and those that are on their way.
        let units = if lane.ready > 0 { lane.units.max(1) } else { 0 };
        let is_served = units <= lane.pulling;
        if blocked.is_some() || is_served {
            return self.rest(index, blocked.unwrap_or(Limit::None));
        }
        if lane.limits.message_rate.is_some() && lane.pulling > 0 {
            // One at a time: what it takes decides when the next one may.
            return self.rest(index, Limit::MessageRate);
        }
        let allowed_at = self.message_allowed_at(index);
        if allowed_at > now {
            self.set_lane_timer(index, allowed_at);
            return self.rest(index, Limit::MessageRate);
        }
        let lane = &mut self.lanes[index];
        if lane.idle_connections > 0 {
            lane.idle_connections -= 1;
            lane.pulling += 1;
            lane.limit = Limit::None;
            self.note_idler(index);
            return Some(Action::Pull(id));
        }
        if units <= lane.pulling + lane.opening {
            return self.rest(index, Limit::None);
        }
        self.evaluate_connect(index)
    }

    /// There is work for one more connection: opens it, or says why not.
    fn evaluate_connect(&mut self, index: u32) -> Option<Action> {
        let now = self.now;
        let lane = &mut self.lanes[index];
        let used = lane.used();
        if used >= lane.allowed() {
            let is_window = lane.allowed() < lane.limits.connections;
            return self.rest(index, if is_window { Limit::Window } else { Limit::Connections });
        }
        if let Some(rate) = lane.limits.connection_rate {
            let allowed_at = lane.connection_gcra.allowed_at(rate);
            if allowed_at > now {
                self.set_lane_timer(index, allowed_at);
                return self.rest(index, Limit::ConnectionRate);
            }
        }
        if lane.slots <= used {
            lane.limit = Limit::Slots;
            let ask_again = lane.ask_again;
            if lane.is_wanting {
                return None;
            }
            if ask_again > now {
                self.set_lane_timer(index, ask_again);
                return None;
            }
            lane.is_wanting = true;
            return Some(Action::WantSlot(LaneId(index)));
        }
        let is_first = used == 0;
        let (max, starved) = if is_first {
            (self.settings.connections_max, &mut self.starved)
        } else {
            (self.settings.connections_more_max(), &mut self.starved_more)
        };
        if self.connections >= max || (!starved.is_empty() && self.turn != index) {
            // First come, first served. The slot stays: the turn will come.
            lane.limit = Limit::ConnectionsMax;
            let waits = if is_first { &mut lane.is_starved } else { &mut lane.is_starved_more };
            if !std::mem::replace(waits, true) {
                starved.push_back(index);
            }
            return None;
        }
        if let Some(rate) = lane.limits.connection_rate {
            lane.connection_gcra.count(rate, now);
        }
        lane.opening += 1;
        lane.limit = Limit::None;
        self.connections += 1;
        Some(Action::Connect(LaneId(index)))
    }

    /// The lane opens nothing now, for this reason: slots it does not use go back.
    fn rest(&mut self, index: u32, limit: Limit) -> Option<Action> {
        let lane = &mut self.lanes[index];
        lane.limit = limit;
        if lane.slots > lane.used() {
            lane.slots -= 1;
            return Some(Action::ReturnSlot(LaneId(index)));
        }
        None
    }

    /// Why nothing of the lane may go now.
    pub(crate) fn blocked(&self, lane: u32, now: Timestamp) -> Option<Limit> {
        let lane = &self.lanes[lane];
        if self.is_suspended || lane.is_suspended {
            Some(Limit::Suspended)
        } else if lane.backoff.until > now {
            Some(Limit::Backoff)
        } else {
            None
        }
    }

    /// True if a connection should close rather than work.
    fn has_too_many(&self, lane: u32) -> bool {
        let lane = &self.lanes[lane];
        lane.connections.saturating_sub(lane.closing) > lane.allowed()
    }

    fn message_allowed_at(&self, lane: u32) -> Timestamp {
        let lane = &self.lanes[lane];
        lane.limits.message_rate.map_or(Timestamp::default(), |rate| lane.message_gcra.allowed_at(rate))
    }
}

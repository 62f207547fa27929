//! What became of connections, and what a lane learns from it.

use crate::names::keyed_hash;
use crate::pace::Throttle;
use crate::queue::{LaneId, Queue, Timer, mix};
use crate::settings::LaneLimits;
use postrider_model::Timestamp;
use std::cmp::Reverse;
use std::time::Duration;

/// Connections that a site drops one after the other, without a transaction that comes through, before the
/// lane backs off as if it could not connect.
const LOSSES_MAX: u16 = 3;
/// The broker is asked again this long after it refused a slot.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A lane or a domain waits as a whole: what the one record of it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Failures in a row.
    pub failures: u16,
    /// When it is tried next.
    pub until: Timestamp,
    /// The engine's number of what went wrong.
    pub reply: u32,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// While it had no work: [`Queue::next`] had given it none, or it was told to close.
    Idle,
    /// After its last transaction, by our choice.
    Done,
    /// The site dropped it, or a time-out did, while it had work.
    Lost,
}

impl Queue {
    /// A connection that [`crate::Action::Connect`] asked for can take work; it calls [`Queue::next`] now.
    pub fn connection_opened(&mut self, now: Timestamp, lane: LaneId) {
        let now = self.clock(now);
        let entry = &mut self.lanes[lane.0];
        entry.opening = entry.opening.saturating_sub(1);
        entry.connections += 1;
        entry.pulling += 1;
        if entry.backoff.until > now {
            // One of several that were under way when another failed: the site answers after all.
            entry.backoff.until = now;
        }
        self.touch_lane(lane.0);
    }

    /// A connection that was asked for could not be made, to none of the site's hosts. The lane backs off as a
    /// whole, unless others are open to the same site; `Some` is to be recorded.
    pub fn connection_failed(&mut self, now: Timestamp, lane: LaneId, reply: u32) -> Option<Backoff> {
        let now = self.clock(now);
        self.opening_ended(lane.0);
        let entry = &mut self.lanes[lane.0];
        if entry.connections > 0 && entry.backoff.failures == 0 {
            let (open, under_way) = (entry.connections, entry.opening);
            entry.pace.throttled(now, Throttle::Connect, open, under_way);
            entry.backoff.reply = reply;
            return None;
        }
        self.back_off(now, lane.0, reply)
    }

    /// The site said that it is too much (RFC 5321 §4.2.2: 421, or a 4xx for load). The window falls, at most
    /// once for what was under way; at its floor the lane pauses, and that is to be recorded.
    pub fn throttled(&mut self, now: Timestamp, lane: LaneId, at: Throttle, reply: u32) -> Option<Backoff> {
        let now = self.clock(now);
        if at == Throttle::Connect {
            self.opening_ended(lane.0);
        }
        let entry = &mut self.lanes[lane.0];
        let under_way = entry.opening + if at == Throttle::Session { entry.transactions } else { 0 };
        let is_floor = entry.pace.throttled(now, at, entry.connections, under_way);
        entry.backoff.reply = reply;
        self.touch_lane(lane.0);
        if is_floor { self.back_off(now, lane.0, reply) } else { None }
    }

    /// A connection is gone. A site that drops one connection after the other backs off; `Some` is to be
    /// recorded. The recipients it had in flight are the engine's to settle.
    pub fn connection_closed(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        how: Closed,
        reply: u32,
    ) -> Option<Backoff> {
        let now = self.clock(now);
        let entry = &mut self.lanes[lane.0];
        let closing = entry.closing;
        entry.connections = entry.connections.saturating_sub(1);
        if entry.closing > 0 && how != Closed::Lost {
            entry.closing -= 1;
        } else if how == Closed::Idle {
            if entry.idle_connections > 0 {
                entry.idle_connections -= 1;
            } else {
                entry.pulling = entry.pulling.saturating_sub(1);
            }
        }
        // However the counts came about, none of them may keep the lane from opening another.
        let open = entry.connections;
        entry.closing = entry.closing.min(open);
        entry.idle_connections = entry.idle_connections.min(open - entry.closing);
        entry.pulling = entry.pulling.min(open - entry.closing - entry.idle_connections);
        self.closing -= closing - entry.closing;
        self.note_idler(lane.0);
        self.connection_ended(lane.0);
        if how != Closed::Lost {
            return None;
        }
        let entry = &mut self.lanes[lane.0];
        entry.losses = entry.losses.saturating_add(1);
        if entry.losses < LOSSES_MAX {
            return None;
        }
        entry.losses = 0;
        self.back_off(now, lane.0, reply)
    }

    /// The broker gives this shard one more slot of the lane.
    pub fn grant(&mut self, lane: LaneId) {
        let entry = &mut self.lanes[lane.0];
        entry.slots += 1;
        entry.is_wanting = false;
        self.touch_lane(lane.0);
    }

    /// The broker has no slot now; it may grant one later of itself, and is asked again in a while.
    pub fn refuse(&mut self, lane: LaneId) {
        let at = self.now + ASK_AGAIN;
        let entry = &mut self.lanes[lane.0];
        entry.is_wanting = false;
        entry.ask_again = at;
        self.touch_lane(lane.0);
    }

    /// Puts back what was recorded of a lane before a restart, whether or not a domain leads to it yet.
    pub fn restore_backoff(&mut self, key: &str, backoff: Backoff) {
        let lane = self.intern_lane(key);
        self.lanes[lane].backoff = crate::table::LaneBackoff {
            failures: backoff.failures,
            until: backoff.until,
            reply: backoff.reply,
        };
        self.touch_lane(lane);
    }

    /// An operator wants the lane tried now. True if it was backed off.
    pub fn end_backoff(&mut self, now: Timestamp, lane: LaneId) -> bool {
        let now = self.clock(now);
        let entry = &mut self.lanes[lane.0];
        let was = entry.backoff.until > now;
        entry.backoff.until = entry.backoff.until.min(now);
        entry.ask_again = now;
        self.touch_lane(lane.0);
        was
    }

    /// Replaces a lane's limits.
    pub fn set_limits(&mut self, lane: LaneId, limits: LaneLimits) {
        self.lanes[lane.0].limits = limits;
        self.touch_lane(lane.0);
    }

    fn opening_ended(&mut self, lane: u32) {
        let entry = &mut self.lanes[lane];
        entry.opening = entry.opening.saturating_sub(1);
        self.connection_ended(lane);
    }

    fn connection_ended(&mut self, lane: u32) {
        self.connections = self.connections.saturating_sub(1);
        self.touch_lane(lane);
    }

    /// Makes the lane wait, one step longer than the last time. What fails while it waits already counts as
    /// the same failure.
    fn back_off(&mut self, now: Timestamp, lane: u32, reply: u32) -> Option<Backoff> {
        self.touch_lane(lane);
        let entry = &mut self.lanes[lane];
        if entry.backoff.until > now {
            return None;
        }
        let failures = entry.backoff.failures.saturating_add(1);
        let random = mix(keyed_hash(self.seed, 0, &entry.key) ^ u64::from(failures));
        let until = now + self.settings.wait(None, failures, random);
        entry.backoff = crate::table::LaneBackoff { failures, until, reply };
        entry.has_recovered = false;
        entry.pace.restart(self.settings.window_initial);
        self.ask_for_lane(lane);
        Some(Backoff { failures, until, reply })
    }

    /// A transaction of the lane came to an answer; `is_end` if the site took it to its end.
    pub(crate) fn answered(&mut self, lane: u32, is_end: bool) {
        let entry = &mut self.lanes[lane];
        entry.losses = 0;
        let mut changed = false;
        if entry.backoff.failures > 0 {
            entry.backoff.failures = 0;
            entry.backoff.until = Timestamp::default();
            entry.has_recovered = true;
            changed = true;
        }
        if is_end {
            let (used, limit) = (entry.connections, entry.limits.connections);
            changed |= entry.pace.success(self.now, used, limit);
        }
        if changed {
            self.touch_lane(lane);
        }
    }

    /// Looks at the lane again at this time.
    pub(crate) fn set_lane_timer(&mut self, lane: u32, at: Timestamp) {
        if at < self.lanes[lane].timer {
            self.lanes[lane].timer = at;
            self.timers.push(Reverse((at, Timer::Lane(lane))));
        }
    }
}

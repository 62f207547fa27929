//! Whose turn it is.
//!
//! A session or connection that has more to do than fits into a turn has another one when all others have had
//! theirs, so that a peer that is as fast as we are cannot hold its shard. While connections wait for the log,
//! sessions hand it less at a time: what would leave goes before what would come in.

use crate::event_loop::EventLoop;
use crate::timers::Owner;
use postrider_model::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// Rounds of reading and writing in a turn.
const ROUNDS_MAX: usize = 8;
/// Octets written in a turn, about.
const WRITTEN_MAX: usize = 512 << 10;
/// Messages that a shard's sessions have handed to the log, beyond which they wait a little while connections wait
/// for the log too. A batch is then soon through, outcomes with it, and connections can go on.
const AWAITED_MAX: usize = 16;
/// They wait no longer than this: a slow disk is served best by large batches.
const HOLD_MAX: Duration = Duration::from_millis(5);

/// What is left of a turn. Everybody has one in each round of the event loop, however often it is their turn to do
/// something in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    /// Of this round of the event loop.
    of: u64,
    /// Times that may be read and written.
    rounds: usize,
    /// Octets that may be written.
    pub(crate) octets: usize,
}

impl Turn {
    /// A new one, if this is another round than that of the last.
    pub(crate) fn renew(&mut self, whole: Turn) {
        if self.of != whole.of {
            *self = whole;
        }
    }

    /// Something was read or written.
    pub(crate) fn count(&mut self) {
        self.rounds = self.rounds.saturating_sub(1);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.rounds == 0 || self.octets == 0
    }
}

/// Who waits for a turn.
#[derive(Debug)]
pub(crate) struct Turns {
    /// What everybody has.
    pub(crate) whole: Turn,
    /// Had one and have more to do.
    again: VecDeque<Owner>,
    /// Sessions that may have something to say, and are not listened to yet.
    held: VecDeque<Owner>,
    /// Since when sessions are held.
    held_since: Option<Timestamp>,
}

impl Default for Turns {
    fn default() -> Self {
        Turns {
            whole: Turn { of: 1, rounds: ROUNDS_MAX, octets: WRITTEN_MAX },
            again: VecDeque::new(),
            held: VecDeque::new(),
            held_since: None,
        }
    }
}

impl Turns {
    /// Gives `owner` another turn; `queued` says whether it waits for one already.
    pub(crate) fn queue(&mut self, owner: Owner, queued: &mut bool) {
        if !std::mem::replace(queued, true) {
            self.again.push_back(owner);
        }
    }

    /// Lets a session wait; `queued` as above.
    pub(crate) fn hold(&mut self, owner: Owner, queued: &mut bool) {
        if !std::mem::replace(queued, true) {
            self.held.push_back(owner);
        }
    }

    /// A round of the event loop begins.
    pub(crate) fn begin_round(&mut self) {
        self.whole.of += 1;
    }

    /// The log has moved.
    pub(crate) fn log_moved(&mut self) {
        self.held_since = None;
    }
}

impl EventLoop {
    /// Sessions should hand nothing to the log now.
    pub(crate) fn holds_sessions(&mut self, now: Timestamp) -> bool {
        if self.awaited.len() < AWAITED_MAX || !self.shard.waits_for_log() {
            return false;
        }
        now < *self.turns.held_since.get_or_insert(now) + HOLD_MAX
    }

    /// Another turn for everyone who waits for one. Those who come while this goes on have theirs after the sockets.
    pub(crate) fn take_turns(&mut self, now: Timestamp) {
        for _ in 0..self.turns.again.len() {
            let Some(owner) = self.turns.again.pop_front() else { break };
            self.take_turn(now, owner);
        }
    }

    /// A turn for the sessions that were held, as long as they need not wait on.
    pub(crate) fn hear_held(&mut self, now: Timestamp) {
        for _ in 0..self.turns.held.len() {
            if self.holds_sessions(now) {
                break;
            }
            let Some(owner) = self.turns.held.pop_front() else { break };
            self.take_turn(now, owner);
        }
    }

    fn take_turn(&mut self, now: Timestamp, owner: Owner) {
        match owner {
            Owner::Session { key, id } => {
                if let Some(session) = self.sessions.get_mut(key).filter(|session| session.id == id) {
                    session.queued = false;
                    self.serve(now, key);
                }
            }
            Owner::Connection { key, id } => {
                if let Some(connection) =
                    self.connections.get_mut(key).filter(|connection| connection.id.0 == id)
                {
                    connection.queued = false;
                    self.carry(now, key);
                }
            }
        }
    }

    /// When somebody who waits for a turn may have it.
    pub(crate) fn next_turn(&mut self, now: Timestamp) -> Option<Timestamp> {
        if !self.turns.again.is_empty() {
            return Some(now);
        }
        if self.turns.held.is_empty() {
            return None;
        }
        if self.holds_sessions(now) { self.turns.held_since.map(|since| since + HOLD_MAX) } else { Some(now) }
    }
}

#[cfg(test)]
mod tests;

//! How many connections a site can bear, learned from how it behaves.
//!
//! The window grows by one connection for each window of transactions that came through (Postfix's 1/N) and
//! shrinks by a factor when the site says that it is too much, at most once for the connections that were
//! under way then. Unlike Postfix we remember where it was too much: the window stops below that ceiling and
//! tries a higher one at intervals that grow each time the try fails, and shrink each time it succeeds. A
//! site with a hard limit so refuses a connection now and then, not one in each cycle.

use postrider_model::Timestamp;
use std::time::Duration;

/// A connection refused by a site that others are open to: the window falls to this part of those.
const FACTOR_AT_CONNECT: f32 = 0.8;
/// A transaction refused for load: the window falls to this part of itself.
const FACTOR_IN_SESSION: f32 = 0.5;
/// At its floor the lane pauses if fewer transactions than this came through since the last fall.
const SUCCESSES_MIN: u32 = 4;
/// A higher ceiling is tried after this long, at first and at most.
const PROBE_FIRST: Duration = Duration::from_secs(10);
const PROBE_MAX: Duration = Duration::from_secs(600);
/// Refusals by connections that were under way count no longer than this.
const GUARD: Duration = Duration::from_secs(10);

/// When a site said that it is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// In answer to a connection: 421 or 4xx instead of a banner or to EHLO. The connection is gone.
    Connect,
    /// In answer to MAIL or later, for load and not for the recipient. The connection may go on.
    Session,
}

/// A lane's window and what it remembers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    window: f32,
    ceiling: f32,
    probe_at: Timestamp,
    probe_wait: Duration,
    /// By how much the ceiling is raised next.
    probe_step: f32,
    /// The ceiling was raised and nothing came up to it yet.
    is_probing: bool,
    /// Transactions that came through since the last fall.
    successes: u32,
    /// Answers still to come from what was under way at the last fall.
    guard: u32,
    guard_until: Timestamp,
}

impl Default for Pace {
    fn default() -> Self {
        Pace::new(1)
    }
}

impl Pace {
    pub(crate) fn new(window: u32) -> Self {
        Pace {
            window: small(window.max(1)),
            ceiling: f32::INFINITY,
            probe_at: Timestamp::default(),
            probe_wait: PROBE_FIRST,
            probe_step: 1.0,
            is_probing: false,
            successes: 0,
            guard: 0,
            guard_until: Timestamp::default(),
        }
    }

    /// Connections allowed, at least 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the limit")]
    pub(crate) fn window(&self) -> u32 {
        self.window as u32
    }

    /// The count of connections above which the site refused, if it ever did.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the limit")]
    pub(crate) fn ceiling(&self) -> Option<u32> {
        self.ceiling.is_finite().then_some(self.ceiling as u32)
    }

    /// A transaction came through while `used` connections were open, of at most `limit`. True if one
    /// more connection is allowed now.
    pub(crate) fn success(&mut self, now: Timestamp, used: u32, limit: u32) -> bool {
        let before = self.window();
        self.grow(now, used, limit);
        self.window() > before
    }

    fn grow(&mut self, now: Timestamp, used: u32, limit: u32) {
        self.guard = self.guard.saturating_sub(1);
        self.successes = self.successes.saturating_add(1);
        if used < self.window() {
            // What is not used proves nothing.
            return;
        }
        let grown = (self.window + 1.0 / self.window).min(small(limit.max(1)));
        if grown < self.ceiling + 1.0 {
            self.window = grown.max(self.window.min(small(limit.max(1))));
        } else if now >= self.probe_at {
            self.ceiling += self.probe_step;
            self.is_probing = true;
            self.window = grown;
            self.probe_at = now + self.probe_wait;
        }
        if self.is_probing && small(used) >= self.ceiling.floor() {
            // It bears that many: the limit was lifted, or never was one.
            self.is_probing = false;
            self.probe_step = (self.probe_step * 2.0).min(self.ceiling);
            self.probe_wait = (self.probe_wait / 2).max(PROBE_FIRST);
            self.probe_at = self.probe_at.min(now + self.probe_wait);
        }
    }

    /// The site said that it is too much while `open` connections were open and `under_way` might still say
    /// so. True if the window cannot fall any further.
    pub(crate) fn throttled(&mut self, now: Timestamp, at: Throttle, open: u32, under_way: u32) -> bool {
        if self.guard > 0 && now < self.guard_until {
            self.guard -= 1;
            return false;
        }
        let at_floor = match at {
            Throttle::Connect => open == 0,
            Throttle::Session => self.window < 2.0,
        };
        // A site that takes some and then refuses, as those do that count messages per connection, works.
        let is_floor = at_floor && self.successes < SUCCESSES_MIN;
        let fallen = match at {
            Throttle::Connect => {
                self.ceiling = self.ceiling.min(small(open)).max(1.0);
                self.window.min(small(open) * FACTOR_AT_CONNECT)
            }
            // Not for the number of connections alone, so that number is not remembered.
            Throttle::Session => self.window * FACTOR_IN_SESSION,
        };
        self.window = fallen.max(1.0);
        self.successes = 0;
        self.guard = under_way;
        self.guard_until = now + GUARD;
        self.is_probing = false;
        self.probe_step = 1.0;
        self.probe_at = now + self.probe_wait;
        self.probe_wait = (self.probe_wait * 2).min(PROBE_MAX);
        is_floor
    }

    /// After a back-off the lane begins anew, below what it was.
    pub(crate) fn restart(&mut self, initial: u32) {
        self.window = self.window.min(small(initial.max(1)));
        self.guard = 0;
    }
}

/// Counts of connections are small numbers.
fn small(count: u32) -> f32 {
    f32::from(u16::try_from(count).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + s)
    }

    #[test]
    fn the_window_grows_by_one_for_each_window_of_successes_up_to_the_limit() {
        let mut pace = Pace::new(5);
        let mut successes = 0;
        while pace.window() < 6 {
            pace.success(secs(0), pace.window(), 20);
            successes += 1;
        }
        assert!((5..=6).contains(&successes), "{successes}");
        for _ in 0..10_000 {
            pace.success(secs(0), pace.window(), 20);
        }
        assert_eq!(pace.window(), 20);
    }

    #[test]
    fn a_window_that_is_not_used_does_not_grow() {
        let mut pace = Pace::new(5);
        for _ in 0..1_000 {
            pace.success(secs(0), 2, 20);
        }
        assert_eq!(pace.window(), 5);
    }

    #[test]
    fn many_refusals_under_way_at_once_make_it_fall_once() {
        let mut pace = Pace::new(16);
        for _ in 0..8 {
            assert!(!pace.throttled(secs(0), Throttle::Session, 16, 16));
        }
        assert_eq!(pace.window(), 8);
    }

    #[test]
    fn a_hard_limit_is_met_seldom_once_it_is_known() {
        let mut pace = Pace::new(5);
        let (mut refused, mut came_through) = (0, 0);
        for second in 0..3_600 {
            for _ in 0..20 {
                if pace.window() > 10 {
                    refused += 1;
                    pace.throttled(secs(second), Throttle::Connect, 10, 0);
                } else {
                    came_through += 1;
                    pace.success(secs(second), pace.window(), 20);
                }
            }
        }
        assert!(refused <= 12, "{refused} refusals of {came_through}");
        assert!(pace.window() >= 8);
    }

    #[test]
    fn a_limit_that_is_lifted_is_found_out() {
        let mut pace = Pace::new(5);
        pace.throttled(secs(0), Throttle::Connect, 5, 0);
        for second in 0..600 {
            for _ in 0..20 {
                pace.success(secs(second), pace.window(), 20);
            }
        }
        assert_eq!(pace.window(), 20);
    }

    #[test]
    fn a_site_that_counts_messages_per_connection_is_not_paused() {
        let mut pace = Pace::new(5);
        for second in 0..1_000 {
            for _ in 0..10 {
                pace.success(secs(second * 20), pace.window(), 20);
            }
            assert!(!pace.throttled(secs(second * 20), Throttle::Session, pace.window(), 0));
        }
        assert!(pace.window() >= 2);
    }

    #[test]
    fn at_the_floor_it_says_so() {
        let mut pace = Pace::new(2);
        assert!(!pace.throttled(secs(0), Throttle::Session, 2, 0));
        assert!(pace.throttled(secs(20), Throttle::Session, 1, 0));
        assert!(pace.throttled(secs(40), Throttle::Connect, 0, 0));
    }
}

//! The one place where time comes from.

use postrider_model::Timestamp;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock, anchored once to the wall clock: a step of the wall clock moves no schedule.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor: Instant,
    at_anchor: Timestamp,
}

impl Clock {
    /// Anchored now.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Clock { anchor: Instant::now(), at_anchor: Timestamp::default() + wall }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.at_anchor + self.anchor.elapsed()
    }
}

//! How long a client may take: time-outs, the least rate of content, and the tarpit.

use crate::session::Session;
use postrider_engine::Intake;
use postrider_model::{EnhancedCode, Reply, Timestamp};
use std::time::Duration;

/// Over this long the rate of content is measured.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What the clock was when something last happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    began: Timestamp,
    /// A command or an answer of ours: octets of half a command are no progress.
    progress: Timestamp,
    /// Octets of content.
    content: Timestamp,
    /// Where the current stretch of measuring the rate began, and the octets in it.
    window: Option<(Timestamp, u64)>,
    replies_at: Option<Timestamp>,
}

impl Patience {
    /// Begins with the greeting, which is held back for a while.
    pub(crate) fn new(now: Timestamp, greet_delay: Duration) -> Self {
        let replies_at = (!greet_delay.is_zero()).then(|| now + greet_delay);
        Patience { began: now, progress: now, content: now, window: None, replies_at }
    }

    /// Replies are held back: the client makes too many errors, or shall show whether it waits for the greeting.
    pub(crate) fn delays_replies(&self) -> bool {
        self.replies_at.is_some()
    }

    pub(crate) fn took_input(&mut self, now: Timestamp, octets: usize, in_content: bool) {
        if !in_content {
            self.window = None;
            return;
        }
        self.content = now;
        let (_, seen) = self.window.get_or_insert((now, 0));
        *seen += octets as u64;
    }
}

impl Session {
    /// When [`Session::timeout`] is to be called, if nothing else happens before. It moves with everything
    /// that happens; calling too early is harmless.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        if let Some(at) = self.patience.replies_at {
            return Some(at);
        }
        if self.waits_for_us() {
            return None;
        }
        let limits = &self.context.listener.limits;
        let patience = &self.patience;
        let mut at = patience.began + limits.session_timeout;
        if self.server.is_in_content() {
            at = at.min(patience.content.max(patience.progress) + limits.data_timeout);
            if let Some((began, _)) = patience.window {
                at = at.min(began + RATE_WINDOW);
            }
        } else {
            at = at.min(patience.progress + limits.command_timeout);
        }
        Some(at)
    }

    /// Time has passed: releases replies that were held back, or ends the session of a client that took too
    /// long. Call [`Session::receive`] after it with what input there is.
    pub fn timeout(&mut self, now: Timestamp, intake: &mut impl Intake) {
        if let Some(at) = self.patience.replies_at {
            if at <= now {
                self.patience.replies_at = None;
                self.note_progress(now);
            }
            return;
        }
        if self.waits_for_us() || self.server.is_closed() {
            return;
        }
        if let Some(text) = self.overdue(now) {
            self.server.refuse_and_close(&Reply::ours(421, EnhancedCode(4, 4, 2), &text));
            self.disconnected(intake);
        }
    }

    pub(crate) fn note_progress(&mut self, now: Timestamp) {
        self.patience.progress = now;
    }

    /// Holds replies back if there are errors since there were `errors_before`, and enough of them.
    pub(crate) fn slow_down(&mut self, now: Timestamp, errors_before: usize) {
        let limits = &self.context.listener.limits;
        let errors = self.server.errors();
        if errors > errors_before && errors > limits.errors_soft_max && !limits.tarpit.is_zero() {
            self.patience.replies_at = Some(now + limits.tarpit);
        }
    }

    /// What took too long.
    fn overdue(&mut self, now: Timestamp) -> Option<String> {
        let limits = &self.context.listener.limits;
        let patience = &mut self.patience;
        if now >= patience.began + limits.session_timeout {
            return Some(format!(
                "The session lasted {} seconds, the longest there is",
                limits.session_timeout.as_secs()
            ));
        }
        if !self.server.is_in_content() {
            let late = now >= patience.progress + limits.command_timeout;
            return late.then(|| format!("No command in {} seconds", limits.command_timeout.as_secs()));
        }
        if now >= patience.content.max(patience.progress) + limits.data_timeout {
            return Some(format!("Nothing of the message in {} seconds", limits.data_timeout.as_secs()));
        }
        let (began, octets) = patience.window?;
        if now < began + RATE_WINDOW {
            return None;
        }
        let least = limits.data_rate_min_bytes_per_s.saturating_mul(now.since(began).as_secs());
        patience.window = Some((now, 0));
        (octets < least).then(|| {
            format!("The message comes slower than {} octets a second", limits.data_rate_min_bytes_per_s)
        })
    }
}

//! From routing domain to site: questions to the resolver and what becomes of their answers.

use crate::arena::NIL;
use crate::entry::Place;
use crate::feedback::Backoff;
use crate::names::keyed_hash;
use crate::queue::{DomainId, LaneId, Queue, RecipientSlot, Timer, mix};
use crate::settings::LaneLimits;
use crate::table::Question;
use postrider_model::Timestamp;
use std::cmp::Reverse;
use std::time::Duration;

impl Queue {
    /// The domain leads to this site, for as long as `ttl`. Domains with the same key share a lane; a changed
    /// site takes the domain's recipients along.
    pub fn resolved(
        &mut self,
        now: Timestamp,
        domain: DomainId,
        site_key: &str,
        limits: LaneLimits,
        ttl: Duration,
    ) -> LaneId {
        let now = self.clock(now);
        let lane = self.intern_lane(site_key);
        self.lanes[lane].limits = limits;
        self.answer(domain.0);
        if self.domains[domain.0].lane != lane {
            let had_lane = self.domains[domain.0].lane;
            self.unlink_domain(domain.0);
            self.domains[domain.0].lane = lane;
            let members = self.domains[domain.0].members;
            let to = &mut self.lanes[lane];
            to.domains.push_back(self.domains.arena(), domain.0);
            to.domain_count += 1;
            to.members += members;
            self.lanes.set_idle(lane, false);
            if had_lane != NIL {
                self.patrol.start_now();
            }
        }
        let entry = &mut self.domains[domain.0];
        entry.until = now + ttl;
        entry.failures = 0;
        entry.is_failing = false;
        self.drain(domain.0);
        self.touch_lane(lane);
        self.check_domain(domain.0);
        LaneId(lane)
    }

    /// The domain's site could not be found out for now. All that waits for it waits together by the retry
    /// list; a site that was known stays in use.
    pub fn unresolvable_for_now(&mut self, now: Timestamp, domain: DomainId, reply: u32) -> Backoff {
        let now = self.clock(now);
        self.answer(domain.0);
        let entry = &mut self.domains[domain.0];
        entry.failures = entry.failures.saturating_add(1);
        entry.reply = reply;
        let random = mix(keyed_hash(self.seed, entry.route, &entry.name) ^ u64::from(entry.failures));
        entry.until = now + self.settings.wait(None, entry.failures, random);
        let backoff = Backoff { failures: entry.failures, until: entry.until, reply };
        self.timers.push(Reverse((entry.until, Timer::Domain(domain.0))));
        self.check_domain(domain.0);
        backoff
    }

    /// Puts back what [`Queue::unresolvable_for_now`] said before a restart.
    pub fn restore_domain_backoff(&mut self, domain: DomainId, backoff: Backoff) {
        let entry = &mut self.domains[domain.0];
        entry.failures = backoff.failures;
        entry.until = backoff.until;
        entry.reply = backoff.reply;
        self.timers.push(Reverse((backoff.until, Timer::Domain(domain.0))));
    }

    /// The domain cannot be delivered to (it does not exist, it takes no mail): hands over those that wait
    /// for it, one by one until `None`. The engine gives each its verdict.
    pub fn take_domain(&mut self, domain: DomainId) -> Option<RecipientSlot> {
        if !self.domains[domain.0].is_failing {
            self.answer(domain.0);
            self.unlink_domain(domain.0);
            let entry = &mut self.domains[domain.0];
            entry.is_failing = true;
            entry.until = self.now;
            // Those that are ready in the lane that was known come back and are asked for again.
            self.patrol.start_now();
        }
        let first = self.domains[domain.0].waiting.front();
        match first {
            Some(index) => self.detach(index),
            None => {
                self.domains[domain.0].is_failing = false;
                self.check_domain(domain.0);
            }
        }
        first.map(RecipientSlot)
    }

    /// Wants the domain's site to be found out, unless that is under way.
    pub(crate) fn ask(&mut self, domain: u32) {
        let entry = &mut self.domains[domain];
        if entry.question == Question::None {
            entry.question = Question::Queued;
            self.questions.push_back(domain);
        }
    }

    fn answer(&mut self, domain: u32) {
        match std::mem::take(&mut self.domains[domain].question) {
            Question::Asked => self.asked -= 1,
            Question::Queued => self.questions.retain(|&queued| queued != domain),
            Question::None => {}
        }
    }

    /// Moves those that wait in the domain to its lane, step by step.
    pub(crate) fn drain(&mut self, domain: u32) {
        let entry = &mut self.domains[domain];
        if entry.lane != NIL && !entry.waiting.is_empty() && !entry.is_draining {
            entry.is_draining = true;
            self.draining.push_back(domain);
        }
    }

    /// Some steps of moving. Each costs one of the budget.
    pub(crate) fn drain_some(&mut self, budget: &mut u32) {
        while *budget > 0 {
            let Some(&domain) = self.draining.front() else { return };
            let entry = &mut self.domains[domain];
            let is_open = entry.lane != NIL && !entry.is_suspended && !entry.is_failing;
            let Some(index) = entry.waiting.front().filter(|_| is_open) else {
                entry.is_draining = false;
                self.draining.pop_front();
                self.check_domain(domain);
                continue;
            };
            *budget -= 1;
            let lane = entry.lane;
            self.detach(index);
            self.join_line(lane, index, false);
        }
    }

    /// A domain's back-off ended.
    pub(crate) fn domain_timer(&mut self, domain: u32) {
        let entry = &self.domains[domain];
        if !entry.waiting.is_empty() && entry.lane == NIL && entry.until <= self.now && !entry.is_failing {
            self.ask(domain);
        }
    }

    /// Asks anew for the domains of a lane whose answer is out of date: a site that does not answer may have
    /// moved.
    pub(crate) fn ask_for_lane(&mut self, lane: u32) {
        let mut at = self.lanes[lane].domains.front();
        while let Some(domain) = at {
            at = self.lanes[lane].domains.after(self.domains.arena(), domain);
            if self.domains[domain].members > 0 && self.domains[domain].until <= self.now {
                self.ask(domain);
            }
        }
    }

    /// Severs a domain from its lane.
    pub(crate) fn unlink_domain(&mut self, domain: u32) {
        let (lane, members) = (self.domains[domain].lane, self.domains[domain].members);
        if lane == NIL {
            return;
        }
        self.domains[domain].lane = NIL;
        let entry = &mut self.lanes[lane];
        entry.domains.remove(self.domains.arena(), domain);
        entry.domain_count -= 1;
        entry.members -= members;
        self.touch_lane(lane);
    }

    /// A domain without recipients is idle, and goes when there are too many of its kind.
    pub(crate) fn check_domain(&mut self, index: u32) {
        let domain = &self.domains[index];
        let is_unused = domain.members == 0
            && domain.question == Question::None
            && !domain.is_draining
            && !domain.is_failing
            && !domain.is_suspended;
        if is_unused && !domain.is_idle {
            self.domains.set_idle(index, true);
        }
    }

    /// True if a ready recipient stands in the wrong lane, or should not stand in any.
    pub(crate) fn is_stray(&self, index: u32) -> bool {
        let entry = &self.entries[index];
        let domain = &self.domains[entry.domain];
        entry.place == Place::Ready
            && (self.lines[entry.group].lane != domain.lane || domain.is_suspended || domain.is_failing)
    }
}

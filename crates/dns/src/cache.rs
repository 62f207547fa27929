//! What name servers said, for as long as it holds, and a while longer in case they fall silent.

use crate::records::{FAILURE_TTL, Question, Records, Reply};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Bounds of what the resolver remembers.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Questions remembered.
    pub entries_max: usize,
    /// Answers hold for at least so long, whatever their TTL: a TTL of 0 must not make a look-up per message.
    pub ttl_min: Duration,
    /// Answers hold for at most so long (RFC 8767 §4 asks for days at most; a mistaken record lives no longer).
    pub ttl_max: Duration,
    /// "There is none" holds for at most so long (RFC 2308 §5: one to three hours).
    pub negative_ttl_max: Duration,
    /// After its TTL an answer may be served for so long while the name servers do not answer (RFC 8767 §5).
    pub stale_max: Duration,
    /// A stale answer is served for so long before the name servers are asked again (RFC 8767 §4: 30 s).
    pub stale_ttl: Duration,
    /// With a stale answer in hand the name servers get this long for a fresh one (RFC 8767 §5: 1.8 s).
    pub stale_after: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits {
            entries_max: 50_000,
            ttl_min: Duration::from_secs(10),
            ttl_max: Duration::from_secs(86_400),
            negative_ttl_max: Duration::from_secs(3_600),
            stale_max: Duration::from_secs(86_400),
            stale_ttl: Duration::from_secs(30),
            stale_after: Duration::from_millis(1_800),
        }
    }
}

/// What the cache knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// It holds still.
    Fresh(Reply),
    /// It held once; good enough if nobody answers.
    Stale(Reply),
    Nothing,
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    fresh_until: Instant,
    useful_until: Instant,
    sequence: u64,
}

#[derive(Debug)]
pub(crate) struct Cache {
    limits: CacheLimits,
    entries: HashMap<Question, Entry>,
    /// In the order of their insertion; those that were inserted again since have another sequence number.
    order: VecDeque<(Question, u64)>,
    sequence: u64,
}

impl Cache {
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Cache { limits, entries: HashMap::new(), order: VecDeque::new(), sequence: 0 }
    }

    pub(crate) fn get(&self, question: &Question, now: Instant) -> Cached {
        match self.entries.get(question) {
            Some(entry) if now < entry.fresh_until => {
                Cached::Fresh(Reply { ttl: entry.fresh_until - now, ..entry.reply.clone() })
            }
            Some(entry) if now < entry.useful_until => Cached::Stale(self.stale(entry)),
            _ => Cached::Nothing,
        }
    }

    fn stale(&self, entry: &Entry) -> Reply {
        Reply { records: entry.reply.records.clone(), ttl: self.limits.stale_ttl, stale: true }
    }

    /// Remembers what was said; a failure displaces nothing that can still be served. Returns what the caller
    /// should answer now.
    pub(crate) fn put(&mut self, question: Question, mut reply: Reply, now: Instant) -> Reply {
        if matches!(reply.records, Records::Failed(_)) {
            return self.put_failure(question, reply, now);
        }
        let max = match reply.records {
            Records::NoData | Records::NoSuchName => self.limits.negative_ttl_max,
            _ => self.limits.ttl_max,
        };
        reply.ttl = reply.ttl.min(max).max(self.limits.ttl_min);
        self.insert(question, reply.clone(), reply.ttl, self.limits.stale_max, now);
        reply
    }

    fn put_failure(&mut self, question: Question, reply: Reply, now: Instant) -> Reply {
        match self.entries.get_mut(&question) {
            Some(entry) if now < entry.useful_until && !matches!(entry.reply.records, Records::Failed(_)) => {
                entry.fresh_until = now + self.limits.stale_ttl;
                entry.reply.stale = true;
                Reply { ttl: self.limits.stale_ttl, ..entry.reply.clone() }
            }
            _ => {
                self.insert(question, reply.clone(), FAILURE_TTL, Duration::ZERO, now);
                reply
            }
        }
    }

    fn insert(&mut self, question: Question, reply: Reply, ttl: Duration, stale: Duration, now: Instant) {
        self.sequence += 1;
        let fresh_until = now + ttl;
        let entry = Entry { reply, fresh_until, useful_until: fresh_until + stale, sequence: self.sequence };
        self.order.push_back((question.clone(), self.sequence));
        self.entries.insert(question, entry);
        // The oldest go first. Places of entries that were inserted again are swept on the way, and bounded
        // by the second condition.
        while self.entries.len() > self.limits.entries_max || self.order.len() > 2 * self.limits.entries_max {
            let Some((oldest, sequence)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.sequence == sequence) {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DnsError;
    use crate::records::RecordKind;

    fn question(name: &str) -> Question {
        Question { name: name.parse().unwrap(), kind: RecordKind::A }
    }

    fn answer(last: u8, ttl_s: u64) -> Reply {
        Reply::new(Records::Addresses(vec![[192, 0, 2, last].into()]), Duration::from_secs(ttl_s))
    }

    fn cache() -> (Cache, Instant) {
        (Cache::new(CacheLimits { entries_max: 3, ..CacheLimits::default() }), Instant::now())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_holds_for_its_ttl_within_bounds() {
        let (mut cache, now) = cache();
        let check = |cache: &mut Cache, reply: Reply, ttl_s: u32| {
            cache.put(question("a.example"), reply.clone(), now);
            let hit = cache.get(&question("a.example"), now + SECOND * (ttl_s - 1));
            assert_eq!(hit, Cached::Fresh(Reply { ttl: SECOND, ..reply }));
            assert!(!matches!(cache.get(&question("a.example"), now + SECOND * ttl_s), Cached::Fresh(_)));
        };
        check(&mut cache, answer(1, 300), 300);
        check(&mut cache, answer(1, 0), 10);
        check(&mut cache, answer(1, 10_000_000), 86_400);
        check(&mut cache, Reply::new(Records::NoSuchName, SECOND * 86_400), 3_600);
    }

    #[test]
    fn while_name_servers_fail_the_last_answer_is_served_stale() {
        let (mut cache, now) = cache();
        cache.put(question("a.example"), answer(1, 60), now);
        let later = now + SECOND * 61;
        let stale = Reply { stale: true, ttl: SECOND * 30, ..answer(1, 60) };
        assert_eq!(cache.get(&question("a.example"), later), Cached::Stale(stale.clone()));
        let failed = Reply::failed(DnsError::Timeout);
        assert_eq!(cache.put(question("a.example"), failed.clone(), later), stale);
        // Not asked again for half a minute.
        let hit = cache.get(&question("a.example"), later + SECOND * 29);
        assert_eq!(hit, Cached::Fresh(Reply { ttl: SECOND, ..stale }));
        // A day later it is of no use any more.
        let much_later = now + SECOND * (61 + 86_400);
        assert_eq!(cache.get(&question("a.example"), much_later), Cached::Nothing);
        assert_eq!(cache.put(question("a.example"), failed.clone(), much_later), failed);
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment() {
        let (mut cache, now) = cache();
        let failed = Reply::failed(DnsError::Timeout);
        cache.put(question("a.example"), failed.clone(), now);
        assert!(matches!(cache.get(&question("a.example"), now + SECOND), Cached::Fresh(_)));
        assert_eq!(cache.get(&question("a.example"), now + FAILURE_TTL), Cached::Nothing);
        // And gives way to an answer.
        cache.put(question("a.example"), answer(1, 60), now + SECOND);
        assert_eq!(cache.get(&question("a.example"), now + SECOND), Cached::Fresh(answer(1, 60)));
    }

    #[test]
    fn the_oldest_make_room() {
        let (mut cache, now) = cache();
        for name in ["a.example", "b.example", "a.example", "c.example", "d.example"] {
            cache.put(question(name), answer(1, 60), now);
        }
        let knows = |cache: &Cache, name| cache.get(&question(name), now) != Cached::Nothing;
        assert!(knows(&cache, "a.example") && knows(&cache, "c.example") && knows(&cache, "d.example"));
        assert!(!knows(&cache, "b.example"));
        for _ in 0..100 {
            cache.put(question("a.example"), answer(1, 60), now);
        }
        assert!(cache.order.len() <= 6 && knows(&cache, "a.example"));
    }
}

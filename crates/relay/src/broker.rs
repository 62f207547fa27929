//! Connection slots of a site, shared by all shards.
//!
//! A lock, but not on the hot path: it is taken when a connection is made or closed, never for a message.

use postrider_queue::LaneId;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Lends slots.
#[derive(Debug)]
pub(crate) struct Broker {
    shards: usize,
    sites: Mutex<FxHashMap<Arc<str>, Site>>,
}

#[derive(Debug, Default)]
struct Site {
    slots: usize,
    used_by_shard: Vec<usize>,
    waiting: VecDeque<(usize, LaneId)>,
}

impl Broker {
    pub(crate) fn new(shards: usize) -> Self {
        Broker { shards, sites: Mutex::default() }
    }

    /// Takes a slot for a shard, or notes that it waits for one.
    pub(crate) fn acquire(&self, shard: usize, lane: LaneId, key: &Arc<str>, slots: usize) -> bool {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.entry(key.clone()).or_default();
        site.slots = slots.max(1);
        site.used_by_shard.resize(self.shards, 0);
        if site.may_take(shard, self.shards) {
            site.used_by_shard[shard] += 1;
            return true;
        }
        if !site.waiting.contains(&(shard, lane)) {
            site.waiting.push_back((shard, lane));
        }
        false
    }

    /// Gives a slot back; says who gets it now, if somebody waits.
    pub(crate) fn release(&self, shard: usize, key: &Arc<str>) -> Option<(usize, LaneId)> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.get_mut(key)?;
        if let Some(used) = site.used_by_shard.get_mut(shard) {
            *used = used.saturating_sub(1);
        }
        let next = site.waiting.iter().position(|(waiting, _)| site.may_take(*waiting, self.shards));
        if let Some((waiting, lane)) = next.and_then(|at| site.waiting.remove(at)) {
            site.used_by_shard[waiting] += 1;
            return Some((waiting, lane));
        }
        if site.waiting.is_empty() && site.used_by_shard.iter().all(|used| *used == 0) {
            sites.remove(key);
        }
        None
    }
}

impl Site {
    /// No shard takes more than its share, rounded up, so that none starves the others.
    fn may_take(&self, shard: usize, shards: usize) -> bool {
        let used: usize = self.used_by_shard.iter().sum();
        used < self.slots && self.used_by_shard[shard] < self.slots.div_ceil(shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_with_one_slot_serves_all_shards_in_turn() {
        let broker = Broker::new(2);
        let key: Arc<str> = "mx/example".into();
        assert!(broker.acquire(0, LaneId(1), &key, 1));
        assert!(!broker.acquire(1, LaneId(7), &key, 1));
        assert!(!broker.acquire(1, LaneId(7), &key, 1));
        assert_eq!(broker.release(0, &key), Some((1, LaneId(7))));
        assert_eq!(broker.release(1, &key), None);
        assert!(broker.acquire(0, LaneId(1), &key, 1));
    }

    #[test]
    fn no_shard_takes_more_than_its_share() {
        let broker = Broker::new(2);
        let key: Arc<str> = "mx/example".into();
        let taken = (0..20).filter(|_| broker.acquire(0, LaneId(1), &key, 21)).count();
        assert_eq!(taken, 11);
        let taken = (0..20).filter(|_| broker.acquire(1, LaneId(1), &key, 21)).count();
        assert_eq!(taken, 10);
    }
}

//! The one budget of memory for what comes in (design §5): what sessions hold, and content that is fresh.
//!
//! A quarter of it is for fresh content, which is only a cache: what is beyond is read back from the log. The
//! rest is for sessions. Each shard counts its own and publishes the sum once in a turn of its loop, so that
//! nothing shared is touched for a message.

use postrider_ingress::Pressure;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A shard publishes early when what it holds has changed by this much.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// The budget and what is used of it.
pub(crate) struct Memory {
    max_bytes: usize,
    shards: Box<[Share]>,
    refused: AtomicU64,
    is_short: AtomicBool,
}

/// What one shard's sessions hold, in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicUsize);

/// Figures for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryView {
    /// Octets that sessions hold.
    pub sessions_bytes: usize,
    /// Octets that they may hold.
    pub sessions_max_bytes: usize,
    /// Sessions that were refused since the start because memory was short.
    pub refused: u64,
}

impl Memory {
    pub(crate) fn new(max_bytes: usize, shards: usize) -> Self {
        Memory {
            max_bytes,
            shards: (0..shards).map(|_| Share::default()).collect(),
            refused: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
        }
    }

    /// Octets of fresh content that each shard may keep.
    pub(crate) fn fresh_max_bytes(max_bytes: usize, shards: usize) -> usize {
        max_bytes / 4 / shards.max(1)
    }

    fn sessions_max_bytes(&self) -> usize {
        self.max_bytes - self.max_bytes / 4
    }

    /// Publishes what a shard's sessions hold; gives how short memory is.
    pub(crate) fn publish(&self, shard: usize, held_bytes: usize) -> Pressure {
        if let Some(share) = self.shards.get(shard) {
            share.0.store(held_bytes, Ordering::Relaxed);
        }
        let pressure = Pressure::of(self.held_bytes(), self.sessions_max_bytes());
        let short = pressure >= Pressure::Refuses;
        if self.is_short.load(Ordering::Relaxed) != short
            && self.is_short.swap(short, Ordering::Relaxed) != short
        {
            if short {
                tracing::warn!(
                    sessions_bytes = self.held_bytes(),
                    "short of memory: new sessions are told to come back (`memory` sets how much there is)"
                );
            } else {
                tracing::info!("there is memory again: sessions are taken");
            }
        }
        pressure
    }

    /// A session was refused.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn held_bytes(&self) -> usize {
        self.shards.iter().map(|share| share.0.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn view(&self) -> MemoryView {
        MemoryView {
            sessions_bytes: self.held_bytes(),
            sessions_max_bytes: self.sessions_max_bytes(),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_of_all_shards_together() {
        let memory = Memory::new(4_000, 2);
        assert_eq!(memory.publish(0, 1_400), Pressure::None);
        assert_eq!(memory.publish(1, 1_400), Pressure::Refuses);
        assert_eq!(memory.publish(1, 1_600), Pressure::Sheds);
        assert_eq!(memory.publish(0, 0), Pressure::Spills);
        assert_eq!(memory.view().sessions_bytes, 1_600);
        assert_eq!(Memory::fresh_max_bytes(4_000, 2), 500);
    }
}

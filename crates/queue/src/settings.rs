//! What the operator decides about pace and retries.

use postrider_model::snapshot::Delivery;
use postrider_model::{Class, Timestamp};
use std::time::Duration;

/// A retry list that is empty counts as this.
const RETRY_DEFAULT: Duration = Duration::from_secs(300);

/// How the queue schedules. Replaceable at run time: schedules already made stay as they are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Waits between attempts, for recipients and for lanes; the last one repeats.
    pub retry: Vec<Duration>,
    /// Waits of classes that have their own list, in the order of [`Class::ALL`].
    pub retry_of_class: [Option<Vec<Duration>>; 3],
    /// Each wait is made longer or shorter by up to this many thousandths.
    pub jitter_per_mille: u32,
    /// Connections at once over all lanes of this shard; the last quarter is for lanes that have none.
    pub connections_max: u32,
    /// Domains in resolution at once.
    pub resolves_max: u32,
    /// Connections a lane starts with, before anything was learned about it.
    pub window_initial: u32,
    /// What normal and bulk mail get, in thousandths of what goes ahead of them, however much that is.
    pub share_reserved_per_mille: [u32; 2],
}

impl From<&Delivery> for Settings {
    fn from(delivery: &Delivery) -> Self {
        Settings {
            retry: delivery.retry.clone(),
            connections_max: u32::try_from(delivery.connections_max).unwrap_or(u32::MAX),
            ..Settings::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let delivery = Delivery::default();
        Settings {
            retry: delivery.retry,
            retry_of_class: [None, None, None],
            jitter_per_mille: 100,
            connections_max: u32::try_from(delivery.connections_max).unwrap_or(u32::MAX),
            resolves_max: 512,
            window_initial: 5,
            share_reserved_per_mille: [250, 100],
        }
    }
}

impl Settings {
    /// Connections over all lanes beyond which only lanes without any may open one: a quarter is kept for those,
    /// so that some sites that hold their connections for long do not keep all others from being reached.
    pub(crate) fn connections_more_max(&self) -> u32 {
        self.connections_max - self.connections_max / 4
    }

    /// The wait after so many failed attempts (from 1), spread by `random`.
    pub(crate) fn wait(&self, class: Option<Class>, failures: u16, random: u64) -> Duration {
        let own = class.and_then(|class| self.retry_of_class[class as usize].as_ref());
        let list = own.unwrap_or(&self.retry);
        let step = usize::from(failures.max(1) - 1).min(list.len().saturating_sub(1));
        let base_us = u64::try_from(list.get(step).unwrap_or(&RETRY_DEFAULT).as_micros()).unwrap_or(u64::MAX);
        let spread_us = base_us / 1000 * u64::from(self.jitter_per_mille.min(1000));
        let offset_us = if spread_us == 0 { 0 } else { random % (2 * spread_us + 1) };
        Duration::from_micros((base_us - spread_us).saturating_add(offset_us))
    }
}

/// What a lane may do, all shards' shares already divided by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Connections at once.
    pub connections: u32,
    /// New connections in a time.
    pub connection_rate: Option<Rate>,
    /// Transactions over one connection; the engine counts them.
    pub messages_per_connection: u32,
    /// Transactions in a time.
    pub message_rate: Option<Rate>,
    /// Recipients in one transaction.
    pub recipients_per_transaction: u32,
}

impl From<&Delivery> for LaneLimits {
    fn from(delivery: &Delivery) -> Self {
        let bounded = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).max(1);
        LaneLimits {
            connections: bounded(delivery.connections_per_site_max),
            connection_rate: None,
            messages_per_connection: bounded(delivery.messages_per_connection_max),
            message_rate: None,
            recipients_per_transaction: bounded(delivery.recipients_per_transaction_max),
        }
    }
}

impl Default for LaneLimits {
    fn default() -> Self {
        LaneLimits::from(&Delivery::default())
    }
}

/// So many in a time, evenly spaced but for a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Duration,
    /// How many may come at once after a pause; at least 1.
    pub burst: u32,
}

/// The generic cell rate algorithm: one time says all there is to know about the past.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gcra {
    /// When the next one would come if all were evenly spaced.
    next: Timestamp,
}

impl Gcra {
    /// When one more is allowed; at once if that is not later than now.
    pub(crate) fn allowed_at(self, rate: Rate) -> Timestamp {
        let interval = interval(rate);
        self.next - interval.saturating_mul(rate.burst.max(1) - 1)
    }

    pub(crate) fn count(&mut self, rate: Rate, now: Timestamp) {
        self.next = self.next.max(now) + interval(rate);
    }
}

fn interval(rate: Rate) -> Duration {
    rate.per / rate.count.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_follow_the_list_within_the_jitter_and_the_last_one_repeats() {
        let settings = Settings {
            retry: vec![Duration::from_secs(60), Duration::from_secs(600)],
            ..Settings::default()
        };
        for random in [0, 1, u64::MAX / 3, u64::MAX] {
            for (failures, base_s) in [(0, 60), (1, 60), (2, 600), (3, 600), (u16::MAX, 600)] {
                let wait_s = settings.wait(None, failures, random).as_secs_f64();
                assert!(
                    wait_s >= f64::from(base_s) * 0.9 && wait_s <= f64::from(base_s) * 1.1,
                    "{failures}: {wait_s}"
                );
            }
        }
    }

    #[test]
    fn an_empty_retry_list_still_waits() {
        let settings = Settings { retry: Vec::new(), jitter_per_mille: 0, ..Settings::default() };
        assert_eq!(settings.wait(None, 3, 7), RETRY_DEFAULT);
    }

    #[test]
    fn a_class_may_have_its_own_list() {
        let own = Some(vec![Duration::from_secs(5)]);
        let settings =
            Settings { retry_of_class: [own, None, None], jitter_per_mille: 0, ..Settings::default() };
        assert_eq!(settings.wait(Some(Class::Transactional), 9, 0), Duration::from_secs(5));
        assert_eq!(settings.wait(Some(Class::Bulk), 1, 0), Duration::from_secs(60));
    }

    #[test]
    fn a_rate_is_kept_to_the_microsecond_and_allows_its_burst() {
        let rate = Rate { count: 3, per: Duration::from_secs(1), burst: 2 };
        let mut gcra = Gcra::default();
        let start = Timestamp::from_secs(1_000);
        let mut now = start;
        let mut times = Vec::new();
        for _ in 0..5 {
            now = now.max(gcra.allowed_at(rate));
            gcra.count(rate, now);
            times.push(now.since(start).as_micros());
        }
        assert_eq!(times, [0, 0, 333_333, 666_666, 999_999]);
    }
}

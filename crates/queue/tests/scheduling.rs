//! The queue under a virtual clock, one sentence at a time.

use postrider_model::{Class, Timestamp};
use postrider_queue::*;
use std::time::Duration;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
/// Nothing is later than this after its time.
const LATE_MAX: Duration = Duration::from_micros(1 << 14);

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

struct World {
    queue: Queue,
    now: Timestamp,
    limits: LaneLimits,
}

impl World {
    fn new() -> Self {
        World::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        World { queue: Queue::new(settings, 42), now: START, limits: LaneLimits::default() }
    }

    fn insert(&mut self, message: u32, domain: &str, flow: &str, class: Class) -> RecipientSlot {
        self.insert_as(message, domain, flow, |recipient| recipient.class = class)
    }

    fn insert_as(
        &mut self,
        message: u32,
        domain: &str,
        flow: &str,
        change: impl FnOnce(&mut Recipient),
    ) -> RecipientSlot {
        let domain = self.queue.intern_domain(0, domain);
        let flow = self.queue.intern_flow(flow, 1);
        let mut recipient = Recipient::fresh(message, 0, domain, flow, Class::Normal, self.now);
        change(&mut recipient);
        self.queue.insert(self.now, &recipient)
    }

    /// Polls to the end; domains resolve to the site of their own name, slots are granted.
    fn poll(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        loop {
            let Some(action) = self.queue.poll(self.now) else {
                if self.queue.deadline().is_some_and(|at| at <= self.now) {
                    continue;
                }
                return actions;
            };
            match action {
                Action::Resolve(domain) => {
                    let site = format!("mx.{}", self.queue.domain(domain).name);
                    self.queue.resolved(self.now, domain, &site, self.limits, secs(3600));
                }
                Action::WantSlot(lane) => self.queue.grant(lane),
                _ => {}
            }
            actions.push(action);
        }
    }

    /// Polls, and opens every connection that is asked for.
    fn connect(&mut self) -> Vec<LaneId> {
        let mut opened = Vec::new();
        for action in self.poll() {
            if let Action::Connect(lane) = action {
                self.queue.connection_opened(self.now, lane);
                opened.push(lane);
            }
        }
        opened
    }

    /// Opens what is asked for, which must be for these lanes; gives how many.
    fn connect_only(&mut self, keys: &[&str]) -> usize {
        let opened = self.connect();
        for lane in &opened {
            assert!(keys.iter().any(|key| self.queue.find_lane(key) == Some(*lane)), "{keys:?}");
        }
        opened.len()
    }

    fn lane(&self, key: &str) -> LaneId {
        self.queue.find_lane(key).expect("the lane is known")
    }

    /// Moves the time, calling at every deadline on the way.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = self.poll();
        while let Some(at) = self.queue.deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            actions.extend(self.poll());
        }
        self.now = end;
        actions.extend(self.poll());
        actions
    }
}

#[test]
fn recipients_of_one_message_share_a_transaction_up_to_the_limit() {
    let mut world = World::new();
    world.limits.recipients_per_transaction = 3;
    let slots: Vec<_> = (0..5)
        .map(|ordinal| world.insert_as(1, "a.test", "f", |recipient| recipient.ordinal = ordinal))
        .collect();
    world.insert(2, "a.test", "f", Class::Normal);
    let lanes = world.connect();
    // Two transactions of the first message and one of the second: no more connections than that.
    assert_eq!(lanes.len(), 3);
    let mut next = || world.queue.next(START, lanes[0]).unwrap();
    assert_eq!(next().recipients.as_slice(), &slots[..3]);
    assert_eq!(next().recipients.as_slice(), &slots[3..]);
    assert_eq!(next().message, 2);
    assert_eq!(world.queue.next(START, lanes[0]), None);
}

#[test]
fn domains_of_one_site_share_its_lane() {
    let mut world = World::new();
    let a = world.insert(1, "a.test", "f", Class::Normal);
    let b = world.insert(1, "b.test", "f", Class::Normal);
    let mut lane = None;
    while let Some(action) = world.queue.poll(START) {
        match action {
            Action::Resolve(domain) => {
                let found = world.queue.resolved(START, domain, "shared", world.limits, secs(60));
                assert_eq!(*lane.get_or_insert(found), found);
            }
            Action::WantSlot(lane) => world.queue.grant(lane),
            Action::Connect(lane) => world.queue.connection_opened(START, lane),
            other => panic!("{other:?}"),
        }
    }
    let batch = world.queue.next(START, lane.unwrap()).unwrap();
    assert_eq!(batch.recipients.as_slice(), &[a, b]);
}

#[test]
fn a_deferred_recipient_comes_back_at_its_time_and_not_before() {
    let mut world = World::new();
    let slot = world.insert(1, "a.test", "f", Class::Normal);
    for (attempt, base_s) in [60_u64, 300, 900, 1_800, 3_600, 7_200, 14_400, 14_400].into_iter().enumerate() {
        let lane = world.connect().first().copied().unwrap_or_else(|| world.lane("mx.a.test"));
        let batch = world.queue.next(world.now, lane).unwrap();
        assert_eq!(batch.recipients.as_slice(), &[slot]);
        let (due, attempts) = world.queue.deferred(world.now, slot, 9);
        assert_eq!(usize::from(attempts), attempt + 1);
        let wait = due.since(world.now);
        assert!(wait >= secs(base_s) * 9 / 10 && wait <= secs(base_s) * 11 / 10, "{wait:?}");
        assert_eq!(world.queue.why(slot), Some(Waiting::Due(due)));
        assert_eq!(world.queue.next(world.now, lane), None);
        let wait_short = due.since(world.now) - Duration::from_micros(1);
        world.pass(wait_short);
        assert_eq!(world.queue.why(slot), Some(Waiting::Due(due)));
        let now = world.now + LATE_MAX;
        let pulled = world.pass(now.since(world.now));
        assert!(pulled.contains(&Action::Pull(lane)), "{pulled:?}");
    }
}

#[test]
fn recipients_deferred_together_come_back_together() {
    let mut world = World::new();
    let a = world.insert_as(1, "a.test", "f", |recipient| recipient.ordinal = 0);
    let b = world.insert_as(1, "a.test", "f", |recipient| recipient.ordinal = 1);
    let lane = world.connect()[0];
    assert_eq!(world.queue.next(START, lane).unwrap().recipients.len(), 2);
    let first = world.queue.deferred(START, a, 0);
    assert_eq!(world.queue.deferred(START, b, 0), first);
    world.pass(secs(120));
    assert_eq!(world.queue.next(world.now, lane).unwrap().recipients.as_slice(), &[a, b]);
}

#[test]
fn a_failed_connection_backs_off_the_lane_once_and_leaves_recipients_alone() {
    let mut world = World::new();
    let slots: Vec<_> =
        (0..1_000).map(|message| world.insert(message, "dead.test", "f", Class::Normal)).collect();
    let opening: Vec<_> =
        world.poll().into_iter().filter(|action| matches!(action, Action::Connect(_))).collect();
    assert_eq!(opening.len(), 5);
    let lane = world.lane("mx.dead.test");
    let records: Vec<_> = (0..5).filter_map(|_| world.queue.connection_failed(START, lane, 3)).collect();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].failures, records[0].reply), (1, 3));
    let returned = world.poll().iter().filter(|action| matches!(action, Action::ReturnSlot(_))).count();
    assert_eq!(returned, 5);
    assert_eq!(
        world.queue.why(slots[500]),
        Some(Waiting::Lane { lane, limit: Limit::Backoff, until: Some(records[0].until) })
    );
    assert_eq!(world.queue.recipient(slots[0]).unwrap().attempts, 0);
    // The next try is one connection; its failure waits a step longer.
    let wait = records[0].until.since(START);
    assert!(!world.pass(wait - secs(1)).contains(&Action::Connect(lane)));
    let tries = world.pass(secs(1)).into_iter().filter(|action| *action == Action::Connect(lane)).count();
    assert_eq!(tries, 1);
    let second = world.queue.connection_failed(world.now, lane, 3).unwrap();
    assert_eq!(second.failures, 2);
    assert!(second.until.since(world.now) >= secs(270));
    // Well again: the lane says so once, and opens up.
    world.pass(second.until.since(world.now));
    world.queue.connection_opened(world.now, lane);
    let batch = world.queue.next(world.now, lane).unwrap();
    world.queue.finished(batch.recipients[0]);
    let actions = world.poll();
    assert_eq!(actions.iter().filter(|action| **action == Action::Recovered(lane)).count(), 1);
    assert!(actions.iter().filter(|action| **action == Action::Connect(lane)).count() >= 4);
}

#[test]
fn expiry_runs_for_recipients_of_a_lane_that_is_backed_off() {
    let mut world = World::new();
    let expires = Some(START + secs(100));
    let slot = world.insert_as(1, "dead.test", "f", |recipient| recipient.expires = expires);
    world.poll();
    let lane = world.lane("mx.dead.test");
    world
        .queue
        .restore_backoff("mx.dead.test", Backoff { failures: 9, until: START + secs(9_999), reply: 0 });
    world.queue.connection_failed(world.now, lane, 0);
    assert!(!world.pass(secs(99)).contains(&Action::Expired(slot)));
    assert!(world.pass(secs(2)).contains(&Action::Expired(slot)));
    world.queue.finished(slot);
    assert!(world.queue.is_empty());
}

#[test]
fn expiry_and_warning_reach_a_parked_recipient_in_time() {
    let mut world = World::new();
    let slot = world.insert_as(1, "a.test", "f", |recipient| {
        recipient.due = START + secs(50_000);
        recipient.warn = Some(START + secs(1_000));
        recipient.expires = Some(START + secs(40_000));
    });
    assert_eq!(world.pass(secs(999)), []);
    assert_eq!(world.pass(secs(2)), [Action::Warn(slot)]);
    assert_eq!(world.pass(secs(38_000)), []);
    assert_eq!(world.pass(secs(2_000)), [Action::Expired(slot)]);
}

#[test]
fn expiry_runs_while_a_domain_waits_for_dns() {
    let mut world = World::new();
    let slot = world.insert_as(1, "slow.test", "f", |recipient| recipient.expires = Some(START + secs(10)));
    let Some(Action::Resolve(domain)) = world.queue.poll(START) else { panic!() };
    let backoff = world.queue.unresolvable_for_now(START, domain, 4);
    assert_eq!(
        world.queue.why(slot),
        Some(Waiting::DnsBackoff { until: backoff.until, failures: 1, reply: 4 })
    );
    assert_eq!(world.pass(secs(11)), [Action::Expired(slot)]);
}

#[test]
fn a_domain_that_cannot_be_resolved_is_asked_for_again_once_for_all_its_recipients() {
    let mut world = World::new();
    for message in 0..100 {
        world.insert(message, "slow.test", "f", Class::Normal);
    }
    let Some(Action::Resolve(domain)) = world.queue.poll(START) else { panic!() };
    assert_eq!(world.queue.poll(START), None);
    let backoff = world.queue.unresolvable_for_now(START, domain, 4);
    assert_eq!(world.queue.poll(START), None);
    let resolves = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Resolve(_))).count();
    assert_eq!(resolves(&world.pass(backoff.until.since(START) - secs(1))), 0);
    assert_eq!(resolves(&world.pass(secs(2))), 1);
    let lane = world.lane("mx.slow.test");
    assert_eq!(world.queue.lane(lane).ready, 100);
}

#[test]
fn recipients_of_a_domain_that_does_not_exist_are_handed_over() {
    let mut world = World::new();
    let mut slots: Vec<_> =
        (0..10).map(|message| world.insert(message, "none.test", "f", Class::Normal)).collect();
    let Some(Action::Resolve(domain)) = world.queue.poll(START) else { panic!() };
    while let Some(slot) = world.queue.take_domain(domain) {
        slots.retain(|&other| other != slot);
        world.queue.finished(slot);
    }
    assert!(slots.is_empty() && world.queue.is_empty());
    // One that comes later is asked for anew.
    world.insert(11, "none.test", "f", Class::Normal);
    assert_eq!(world.queue.poll(START), Some(Action::Resolve(domain)));
}

#[test]
fn a_changed_site_takes_the_recipients_of_its_domain_along() {
    let mut world = World::new();
    for message in 0..10 {
        world.insert(message, "moved.test", "f", Class::Normal);
    }
    world.poll();
    let old = world.lane("mx.moved.test");
    let domain = world.queue.find_domain(0, "moved.test").unwrap();
    let new = world.queue.resolved(START, domain, "elsewhere", world.limits, secs(60));
    world.poll();
    assert_eq!((world.queue.lane(old).ready, world.queue.lane(new).ready), (0, 10));
    assert_eq!(world.queue.lane(new).parked, 0);
}

#[test]
fn an_answer_out_of_date_is_asked_for_again_while_the_old_one_serves() {
    let mut world = World::new();
    let first = world.insert(1, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    world.queue.next(world.now, lane);
    world.queue.finished(first);
    world.now = world.now + secs(4_000);
    let slot = world.insert(2, "a.test", "f", Class::Normal);
    assert!(matches!(world.queue.poll(world.now), Some(Action::Resolve(_))));
    assert_eq!(world.queue.next(world.now, lane).unwrap().recipients.as_slice(), &[slot]);
}

#[test]
fn transactional_goes_first_and_starves_nobody() {
    let mut world = World::new();
    for message in 0..2_000 {
        world.insert(message, "a.test", "b", Class::Bulk);
        world.insert(message + 10_000, "a.test", "n", Class::Normal);
        world.insert(message + 20_000, "a.test", "t", Class::Transactional);
    }
    let lane = world.connect()[0];
    let mut counts = [0; 3];
    for step in 0..1_000 {
        let batch = world.queue.next(START, lane).unwrap();
        let class = world.queue.recipient(batch.recipients[0]).unwrap().class;
        assert!(step > 0 || class == Class::Transactional);
        counts[class as usize] += 1;
        world.queue.finished(batch.recipients[0]);
    }
    assert!(counts[0] > 700, "{counts:?}");
    assert!((150..=250).contains(&counts[1]), "{counts:?}");
    assert!((60..=130).contains(&counts[2]), "{counts:?}");
}

#[test]
fn a_large_flow_does_not_delay_a_small_one() {
    let mut world = World::new();
    for message in 0..10_000 {
        world.insert_as(message, "a.test", "large", |recipient| recipient.size_kib = 4);
    }
    let small = world.insert_as(99_999, "a.test", "small", |recipient| recipient.size_kib = 4);
    let lane = world.connect()[0];
    let place = (1..).find(|_| {
        let batch = world.queue.next(START, lane).unwrap();
        batch.recipients[0] == small
    });
    assert!(place.unwrap() <= 10, "{place:?}");
}

#[test]
fn flows_share_by_octets_and_weight() {
    let mut world = World::new();
    world.queue.intern_flow("heavy", 3);
    for message in 0..30_000 {
        world.insert_as(message, "a.test", "big", |recipient| recipient.size_kib = 400);
        world.insert_as(message, "a.test", "small", |recipient| recipient.size_kib = 4);
        let domain = world.queue.intern_domain(0, "a.test");
        let flow = world.queue.intern_flow("heavy", 3);
        let mut recipient = Recipient::fresh(message, 0, domain, flow, Class::Normal, START);
        recipient.size_kib = 4;
        world.queue.insert(START, &recipient);
    }
    let lane = world.connect()[0];
    let (mut big, mut small, mut heavy) = (0_u64, 0_u64, 0_u64);
    for _ in 0..20_000 {
        let batch = world.queue.next(START, lane).unwrap();
        let flow = world.queue.recipient(batch.recipients[0]).unwrap().flow;
        match world.queue.flow_name(flow) {
            "big" => big += 405,
            "small" => small += 9,
            _ => heavy += 9,
        }
    }
    let close = |a: u64, b: u64| a * 100 >= b * 95 && b * 100 >= a * 95;
    assert!(close(big, small), "{big} {small}");
    assert!(close(small * 3, heavy), "{small} {heavy}");
}

#[test]
fn an_idle_connection_is_used_before_a_new_one_is_opened() {
    let mut world = World::new();
    world.insert(1, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    let first = world.queue.next(START, lane).unwrap();
    world.queue.finished(first.recipients[0]);
    assert_eq!(world.queue.next(START, lane), None);
    assert_eq!(world.poll(), []);
    let slot = world.insert(2, "a.test", "f", Class::Normal);
    assert_eq!(world.poll(), [Action::Pull(lane)]);
    assert_eq!(world.queue.next(START, lane).unwrap().recipients.as_slice(), &[slot]);
}

#[test]
fn an_idle_connection_that_closed_meanwhile_is_replaced() {
    let mut world = World::new();
    world.insert(1, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    let first = world.queue.next(START, lane).unwrap();
    world.queue.finished(first.recipients[0]);
    assert_eq!(world.queue.next(START, lane), None);
    world.insert(2, "a.test", "f", Class::Normal);
    assert_eq!(world.poll(), [Action::Pull(lane)]);
    assert_eq!(world.queue.connection_closed(START, lane, Closed::Idle, 0), None);
    assert_eq!(world.poll(), [Action::Connect(lane)]);
}

#[test]
fn slots_go_back_to_the_broker_when_nothing_needs_them() {
    let mut world = World::new();
    world.insert(1, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    let batch = world.queue.next(START, lane).unwrap();
    world.queue.finished(batch.recipients[0]);
    world.queue.connection_closed(START, lane, Closed::Done, 0);
    assert_eq!(world.poll(), [Action::ReturnSlot(lane)]);
}

#[test]
fn a_refused_slot_is_asked_for_again_later() {
    let mut world = World::new();
    let slot = world.insert(1, "a.test", "f", Class::Normal);
    let Some(Action::Resolve(domain)) = world.queue.poll(START) else { panic!() };
    let lane = world.queue.resolved(START, domain, "s", world.limits, secs(60));
    assert_eq!(world.queue.poll(START), Some(Action::WantSlot(lane)));
    world.queue.refuse(lane);
    assert_eq!(world.queue.poll(START), None);
    assert_eq!(world.queue.why(slot), Some(Waiting::Lane { lane, limit: Limit::Slots, until: None }));
    assert_eq!(world.queue.deadline(), Some(START + secs(1)));
    assert_eq!(world.queue.poll(START + secs(1)), Some(Action::WantSlot(lane)));
}

#[test]
fn a_message_rate_is_kept_and_explained() {
    let mut world = World::new();
    world.limits.message_rate = Some(Rate { count: 10, per: secs(1), burst: 1 });
    for message in 0..100 {
        world.insert(message, "a.test", "f", Class::Normal);
    }
    let lanes = world.connect();
    let mut sent = 0;
    let mut send = |world: &mut World, lane| {
        while let Some(batch) = world.queue.next(world.now, lane) {
            sent += 1;
            world.queue.finished(batch.recipients[0]);
        }
    };
    for &lane in &lanes {
        send(&mut world, lane);
    }
    let end = START + secs(5);
    while world.now < end {
        for action in world.poll() {
            match action {
                Action::Pull(lane) => send(&mut world, lane),
                Action::Connect(lane) => {
                    world.queue.connection_opened(world.now, lane);
                    send(&mut world, lane);
                }
                _ => {}
            }
        }
        assert_eq!(world.poll(), []);
        assert_eq!(world.queue.lane(lanes[0]).limit, Limit::MessageRate);
        world.now = world.queue.deadline().unwrap().max(world.now);
    }
    assert!((50..=51).contains(&sent), "{sent}");
}

#[test]
fn new_connections_keep_to_their_rate() {
    let mut world = World::new();
    world.limits.connection_rate = Some(Rate { count: 1, per: secs(1), burst: 1 });
    for message in 0..100 {
        world.insert(message, "a.test", "f", Class::Normal);
    }
    let count = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Connect(_))).count();
    assert_eq!(count(&world.poll()), 1);
    assert_eq!(world.queue.lanes().next().unwrap().limit, Limit::ConnectionRate);
    assert_eq!(count(&world.pass(secs(3))), 3);
}

#[test]
fn connections_over_all_lanes_are_bounded_and_the_next_lane_gets_the_next_one() {
    let mut world = World::with(Settings { connections_max: 2, ..Settings::default() });
    for message in 0..4 {
        world.insert(message, &format!("d{message}.test"), "f", Class::Normal);
    }
    let opened = world.connect();
    assert_eq!(opened.len(), 2);
    let batch = world.queue.next(START, opened[0]).unwrap();
    world.queue.finished(batch.recipients[0]);
    world.queue.connection_closed(START, opened[0], Closed::Done, 0);
    let next = world.connect();
    assert_eq!(next.len(), 1);
    assert!(!opened.contains(&next[0]));
}

#[test]
fn the_last_quarter_of_connections_is_for_lanes_without_any() {
    let mut world = World::with(Settings { connections_max: 12, window_initial: 100, ..Settings::default() });
    for message in 0..40 {
        world.insert(message, ["slow.test", "tarpit.test"][message as usize % 2], "f", Class::Normal);
    }
    // Nine for the first, and the first one for the second.
    assert_eq!(world.connect().len(), 10);
    for message in 40..50 {
        world.insert(message, "good.test", "f", Class::Normal);
    }
    let good = world.connect_only(&["mx.good.test"]);
    assert_eq!(good, 1, "a lane that has none gets one at once");
    world.insert(50, "other.test", "f", Class::Normal);
    assert_eq!(world.connect_only(&["mx.other.test"]), 1);
    world.insert(51, "late.test", "f", Class::Normal);
    assert_eq!(world.connect().len(), 0, "all are in use");
    // What becomes free goes to the one that has none, however long the others have waited for more.
    let slow = world.lane("mx.slow.test");
    world.queue.connection_closed(START, slow, Closed::Done, 0);
    assert_eq!(world.connect_only(&["mx.late.test"]), 1);
}

#[test]
fn a_connection_without_work_makes_place_for_a_lane_that_waits_for_any() {
    let mut world = World::with(Settings { connections_max: 1, ..Settings::default() });
    world.insert(1, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    let batch = world.queue.next(START, lane).unwrap();
    world.queue.finished(batch.recipients[0]);
    assert_eq!(world.queue.next(START, lane), None);
    world.insert(2, "b.test", "f", Class::Normal);
    assert!(world.poll().contains(&Action::Close(lane)));
    world.queue.connection_closed(START, lane, Closed::Idle, 0);
    assert!(world.poll().contains(&Action::Connect(world.lane("mx.b.test"))));
}

#[test]
fn suspension_and_release_work_at_once_on_every_scope() {
    for scope in 0..4 {
        let mut world = World::new();
        let slot = world.insert(1, "a.test", "f", Class::Normal);
        let lane = world.connect()[0];
        let domain = world.queue.find_domain(0, "a.test").unwrap();
        let flow = world.queue.recipient(slot).unwrap().flow;
        let (scope, why) = match scope {
            0 => (Scope::All, Waiting::Suspended),
            1 => (Scope::Site("mx.a.test"), Waiting::Lane { lane, limit: Limit::Suspended, until: None }),
            2 => (Scope::Domain(domain), Waiting::DomainSuspended),
            _ => (Scope::Flow(flow), Waiting::FlowSuspended),
        };
        world.queue.suspend(scope);
        assert_eq!(world.queue.next(START, lane), None, "{scope:?}");
        world.poll();
        assert_eq!(world.queue.why(slot), Some(why));
        let other = world.insert(2, "a.test", "f", Class::Normal);
        assert!(!world.poll().iter().any(|action| matches!(action, Action::Connect(_) | Action::Pull(_))));
        world.queue.resume(scope);
        let actions = world.poll();
        assert!(
            actions.contains(&Action::Pull(lane)) || actions.contains(&Action::Connect(lane)),
            "{scope:?} {actions:?}"
        );
        for expected in [slot, other] {
            assert_eq!(
                world.queue.next(START, lane).unwrap().recipients.as_slice(),
                &[expected],
                "{scope:?}"
            );
        }
    }
}

#[test]
fn a_held_recipient_stays_until_it_is_released_and_then_goes_by_its_due_time() {
    let mut world = World::new();
    let slot = world.insert_as(1, "a.test", "f", |recipient| {
        recipient.held = true;
        recipient.expires = Some(START + secs(10));
    });
    assert_eq!(world.pass(secs(100)), []);
    assert_eq!(world.queue.why(slot), Some(Waiting::Held));
    world.queue.set_alarms(world.now, slot, None, None);
    assert!(world.queue.unpark(world.now, slot));
    assert!(!world.queue.unpark(world.now, slot));
    let lane = world.connect()[0];
    assert_eq!(world.queue.next(world.now, lane).unwrap().recipients.as_slice(), &[slot]);
}

#[test]
fn a_parked_recipient_may_be_tried_now() {
    let mut world = World::new();
    let slot = world.insert_as(1, "a.test", "f", |recipient| recipient.due = START + secs(9_999));
    assert_eq!(world.poll(), []);
    assert!(world.queue.set_due(START, slot, START));
    let lane = world.connect()[0];
    assert_eq!(world.queue.next(START, lane).unwrap().recipients.as_slice(), &[slot]);
}

#[test]
fn a_requeued_recipient_goes_first_and_no_attempt_is_counted() {
    let mut world = World::new();
    let first = world.insert(1, "a.test", "f", Class::Normal);
    world.insert(2, "a.test", "f", Class::Normal);
    let lane = world.connect()[0];
    world.queue.next(START, lane).unwrap();
    world.queue.requeue(first);
    assert_eq!(world.queue.next(START, lane).unwrap().recipients.as_slice(), &[first]);
    assert_eq!(world.queue.recipient(first).unwrap().attempts, 0);
}

#[test]
fn a_site_that_drops_every_connection_backs_off() {
    let mut world = World::new();
    let slot = world.insert(1, "a.test", "f", Class::Normal);
    let mut records = Vec::new();
    for _ in 0..3 {
        let lane = world.connect()[0];
        world.queue.next(START, lane).unwrap();
        world.queue.requeue(slot);
        records.extend(world.queue.connection_closed(START, lane, Closed::Lost, 8));
    }
    assert_eq!(records.len(), 1);
    assert!(world.connect().is_empty());
}

#[test]
fn unused_names_are_forgotten_beyond_a_bound() {
    let mut world = World::new();
    for number in 0..100_000 {
        let slot =
            world.insert_as(number, &format!("d{number}.test"), "f", |recipient| recipient.held = true);
        world.queue.finished(slot);
    }
    assert!(world.queue.domain_count() <= 65_537);
    assert!(world.queue.find_domain(0, "d99999.test").is_some());
    assert!(world.queue.find_domain(0, "d0.test").is_none());
}

#[test]
fn buckets_say_what_a_checkpoint_must_write() {
    let mut world = World::new();
    let far = START + secs(86_400);
    let a = world.insert_as(1, "a.test", "f", |recipient| recipient.due = far);
    let b = world.insert(2, "a.test", "f", Class::Normal);
    let dirty = world.queue.take_dirty();
    assert_eq!(dirty.iter().map(|view| view.recipients).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(world.queue.take_dirty(), []);
    assert_eq!(world.queue.recipients_in(Bucket::of(far)).collect::<Vec<_>>(), [a]);
    // Becoming ready, and waiting in a lane that is backed off, changes nothing that is written.
    world.poll();
    let lane = world.lane("mx.a.test");
    world.queue.connection_failed(START, lane, 0);
    assert_eq!(world.queue.take_dirty(), []);
    world.queue.finished(b);
    let dirty = world.queue.take_dirty();
    assert_eq!(dirty.len(), 1);
    assert_eq!((dirty[0].bucket, dirty[0].recipients), (Bucket::of(START), 0));
    world.queue.park(a);
    assert_eq!(world.queue.take_dirty()[0].bucket, Bucket::of(far));
    let mut met = Vec::new();
    assert_eq!(world.queue.sweep(0, 100, &mut met), None);
    assert_eq!(met, [a]);
}

#[test]
fn a_backoff_is_restored_before_the_lane_is_known() {
    let mut world = World::new();
    let until = START + secs(500);
    world.queue.restore_backoff("mx.a.test", Backoff { failures: 2, until, reply: 7 });
    world.insert(1, "a.test", "f", Class::Normal);
    assert!(world.connect().is_empty());
    let lane = world.lane("mx.a.test");
    assert_eq!(world.queue.lane(lane).backoff_until, Some(until));
    assert_eq!(world.pass(secs(500)).iter().filter(|a| **a == Action::Connect(lane)).count(), 1);
    let third = world.queue.connection_failed(world.now, lane, 7).unwrap();
    assert_eq!(third.failures, 3);
}

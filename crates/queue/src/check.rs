//! Proof that a recipient is in exactly one place: the whole queue checked after every call of random
//! sequences, with a model of the engine around it.

use crate::arena::{List, NIL};
use crate::entry::Place;
use crate::*;
use postrider_model::{Class, Timestamp};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

impl Queue {
    /// Panics if any count, list or place disagrees with another.
    fn check(&self) {
        let mut found = BTreeMap::new();
        let mut walk = |list: List<0>, place: Place| {
            let (mut at, mut count) = (list.front(), 0_u32);
            while let Some(index) = at {
                assert_eq!(self.entries[index].place, place, "recipient {index}");
                assert!(found.insert(index, place).is_none(), "recipient {index} is in two lists");
                count += 1;
                at = list.after(&self.entries, index);
            }
            count
        };
        for (_, domain) in self.domains.iter() {
            assert_eq!(walk(domain.waiting, Place::Waiting), domain.waiting_count);
            assert!(!domain.is_idle || domain.members == 0);
        }
        let mut lanes: BTreeMap<u32, [u32; 5]> = BTreeMap::new();
        for index in 0..self.lines.end() {
            let line = &self.lines[index];
            assert_eq!(walk(line.ready, Place::Ready), line.ready_count);
            assert_eq!(line.in_ring, line.ready_count > 0 && !self.flows[line.flow].is_suspended);
            let counts = lanes.entry(line.lane).or_default();
            counts[usize::from(line.class)] += if line.in_ring { line.ready_count } else { 0 };
            counts[3] += if line.in_ring { 0 } else { line.ready_count };
            counts[4] += line.in_flight;
        }
        let mut connections = 0;
        for (index, lane) in self.lanes.iter() {
            let counts = lanes.get(&index).copied().unwrap_or_default();
            for (class, count) in lane.classes.iter().zip(counts) {
                assert_eq!(class.ready, count);
            }
            assert_eq!(
                (lane.ready, lane.stalled, lane.in_flight),
                (counts[0] + counts[1] + counts[2], counts[3], counts[4])
            );
            assert!(lane.idle_connections + lane.pulling + lane.closing <= lane.connections);
            let members: u32 =
                self.domains.iter().filter(|(_, domain)| domain.lane == index).map(|(_, d)| d.members).sum();
            assert_eq!(lane.members, members);
            assert_eq!(lane.is_idler, lane.idle_connections > 0);
            connections += lane.used();
        }
        assert_eq!(self.connections, connections);
        assert_eq!(self.closing, self.lanes.iter().map(|(_, lane)| lane.closing).sum::<u32>());
        walk(self.alarmed, Place::Alarmed);
        self.wheel.check(&self.entries, &mut walk);
        self.check_entries(&found);
    }

    fn check_entries(&self, found: &BTreeMap<u32, Place>) {
        let mut buckets: BTreeMap<Bucket, u32> = BTreeMap::new();
        let (mut domains, mut flows) = (BTreeMap::new(), BTreeMap::new());
        let (mut live, mut held) = (0, 0);
        for index in 0..self.entries.end() {
            let entry = &self.entries[index];
            if entry.place == Place::Free {
                continue;
            }
            live += 1;
            held += usize::from(entry.place == Place::Held);
            *buckets.entry(Bucket::of(entry.due)).or_default() += 1;
            *domains.entry(entry.domain).or_insert(0) += 1;
            *flows.entry(self.recipient(RecipientSlot(index)).unwrap().flow.0).or_insert(0) += 1;
            let is_listed = !matches!(entry.place, Place::Held | Place::Taken | Place::InFlight);
            assert_eq!(
                found.contains_key(&index),
                is_listed,
                "recipient {index} is nowhere: {:?}",
                entry.place
            );
        }
        assert_eq!(live, self.len());
        assert_eq!(held, self.held_count());
        for view in self.buckets() {
            assert_eq!(buckets.remove(&view.bucket).unwrap_or(0), view.recipients);
        }
        assert!(buckets.is_empty());
        for (index, domain) in self.domains.iter() {
            assert_eq!(domains.get(&index).copied().unwrap_or(0), domain.members);
            assert!(domain.lane == NIL || self.lanes[domain.lane].domain_count > 0);
        }
        for (index, flow) in self.flows.iter() {
            assert_eq!(flows.get(&index).copied().unwrap_or(0), flow.members);
        }
    }
}

/// What the engine of the model does next; the numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
enum Op {
    Insert { message: u8, domain: u8, flow: u8, class: u8, delay_s: u16, lives_s: u16, held: bool },
    Poll,
    Pass { ms: u32 },
    Opened,
    Failed,
    Refused,
    Settle { which: u8, how: u8 },
    Lost { which: u8 },
    CloseIdle,
    Act { which: u8, how: u8 },
    Suspend { scope: u8, on: bool },
    Answer { how: u8 },
    Throttled,
    Grant,
    Settings { connections_max: u8 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let insert = (0..6_u8, 0..4_u8, 0..3_u8, 0..3_u8, 0..400_u16, 0..900_u16, 0..10_u8).prop_map(
        |(message, domain, flow, class, delay_s, lives_s, held)| Op::Insert {
            message,
            domain,
            flow,
            class,
            delay_s: delay_s.saturating_sub(200),
            lives_s,
            held: held == 0,
        },
    );
    let op = prop_oneof![
        6 => insert,
        6 => Just(Op::Poll),
        3 => (0..200_000_u32).prop_map(|ms| Op::Pass { ms }),
        4 => Just(Op::Opened),
        1 => Just(Op::Failed),
        1 => Just(Op::Refused),
        6 => (any::<u8>(), 0..4_u8).prop_map(|(which, how)| Op::Settle { which, how }),
        1 => any::<u8>().prop_map(|which| Op::Lost { which }),
        1 => Just(Op::CloseIdle),
        2 => (any::<u8>(), 0..6_u8).prop_map(|(which, how)| Op::Act { which, how }),
        1 => (0..6_u8, any::<bool>()).prop_map(|(scope, on)| Op::Suspend { scope, on }),
        3 => (0..6_u8).prop_map(|how| Op::Answer { how }),
        1 => Just(Op::Throttled),
        2 => Just(Op::Grant),
        1 => (1..6_u8).prop_map(|connections_max| Op::Settings { connections_max }),
    ];
    proptest::collection::vec(op, 1..250)
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Connection {
    Idle,
    Busy(Vec<RecipientSlot>),
}

struct Model {
    queue: Queue,
    now: Timestamp,
    /// Slots that are the model's to settle: those in flight and those taken.
    ours: BTreeSet<RecipientSlot>,
    live: BTreeSet<RecipientSlot>,
    held: BTreeSet<RecipientSlot>,
    expires: BTreeMap<RecipientSlot, Timestamp>,
    opening: Vec<LaneId>,
    open: Vec<(LaneId, Connection)>,
    asked: Vec<DomainId>,
    wanted: Vec<LaneId>,
}

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

impl Model {
    fn new() -> Self {
        let settings = Settings { connections_max: 4, resolves_max: 3, ..Settings::default() };
        Model {
            queue: Queue::new(settings, 5),
            now: START,
            ours: BTreeSet::new(),
            live: BTreeSet::new(),
            held: BTreeSet::new(),
            expires: BTreeMap::new(),
            opening: Vec::new(),
            open: Vec::new(),
            asked: Vec::new(),
            wanted: Vec::new(),
        }
    }

    fn poll(&mut self) {
        for step in 0.. {
            assert!(step < 10_000, "it polls for ever");
            match self.queue.poll(self.now) {
                Some(action) => self.take(action),
                None if self.queue.deadline().is_some_and(|at| at <= self.now) => {}
                None => break,
            }
            self.queue.check();
        }
        self.check_conservation();
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Resolve(domain) => {
                assert!(!self.asked.contains(&domain), "asked twice at once");
                self.asked.push(domain);
                assert!(self.asked.len() <= 3);
            }
            Action::WantSlot(lane) => {
                assert!(!self.wanted.contains(&lane), "wanted twice at once");
                self.wanted.push(lane);
            }
            Action::Connect(lane) => self.opening.push(lane),
            Action::Pull(lane) => {
                let place = self.open.iter().position(|c| *c == (lane, Connection::Idle));
                let place = place.expect("a connection without work is there to pull");
                self.open.remove(place);
                self.pull(lane);
            }
            Action::Close(lane) => {
                let place = self.open.iter().position(|c| *c == (lane, Connection::Idle));
                self.open.remove(place.expect("a connection without work is there to close"));
                self.queue.connection_closed(self.now, lane, Closed::Idle, 0);
            }
            Action::Expired(slot) => {
                assert!(self.expires[&slot] <= self.now);
                assert!(self.ours.insert(slot));
                self.done(slot);
            }
            Action::Warn(slot) => assert!(self.live.contains(&slot)),
            Action::ReturnSlot(_) | Action::Recovered(_) => {}
        }
    }

    /// A connection asks for work.
    fn pull(&mut self, lane: LaneId) {
        let Some(batch) = self.queue.next(self.now, lane) else {
            self.open.push((lane, Connection::Idle));
            return;
        };
        for slot in &batch.recipients {
            assert!(self.live.contains(slot) && !self.held.contains(slot));
            assert!(self.ours.insert(*slot), "dispatched twice");
            let view = self.queue.recipient(*slot).unwrap();
            assert_eq!(view.message, batch.message);
            assert!(view.due <= self.now, "dispatched early");
        }
        self.open.push((lane, Connection::Busy(batch.recipients.to_vec())));
    }

    fn done(&mut self, slot: RecipientSlot) {
        assert!(self.ours.remove(&slot) && self.live.remove(&slot));
        self.expires.remove(&slot);
        self.queue.finished(slot);
    }

    /// Everything that may go is on its way, or what keeps it is named and true.
    fn check_conservation(&self) {
        let queue = &self.queue;
        for index in 0..queue.entries.end() {
            assert!(!queue.is_stray(index), "recipient {index} waits in a lane that is not its own");
        }
        for (lane, view) in queue.lanes().map(|view| (&queue.lanes[view.lane.0], view)) {
            let is_free = queue.blocked(view.lane.0, self.now).is_none();
            if !is_free || view.ready == 0 {
                continue;
            }
            assert_eq!(view.idle, 0, "{view:?}");
            assert!(
                match view.limit {
                    Limit::None => lane.units.max(1) <= lane.pulling + lane.opening,
                    Limit::Window | Limit::Connections => lane.used() >= lane.allowed(),
                    Limit::ConnectionsMax => {
                        queue.connections >= queue.settings.connections_more_max()
                            && (lane.used() > 0 || queue.connections >= queue.settings.connections_max)
                    }
                    Limit::Slots => lane.slots <= lane.used() && lane.is_wanting,
                    _ => false,
                },
                "{view:?}"
            );
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Insert { message, domain, flow, class, delay_s, lives_s, held } => {
                let domain = self.queue.intern_domain(0, &format!("d{domain}.test"));
                let flow = self.queue.intern_flow(&format!("f{flow}"), 1);
                let class = Class::ALL[usize::from(class)];
                let mut recipient = Recipient::fresh(u32::from(message), 0, domain, flow, class, self.now);
                recipient.due = self.now + Duration::from_secs(u64::from(delay_s));
                let expires = self.now + Duration::from_secs(u64::from(lives_s));
                recipient.expires = Some(expires);
                recipient.warn = Some(self.now + Duration::from_secs(u64::from(lives_s / 2)));
                recipient.held = held;
                let slot = self.queue.insert(self.now, &recipient);
                assert!(self.live.insert(slot), "a slot in use was given out");
                self.expires.insert(slot, expires);
                if held {
                    self.held.insert(slot);
                }
            }
            Op::Poll => self.poll(),
            Op::Pass { ms } => self.now = self.now + Duration::from_millis(u64::from(ms)),
            Op::Opened => {
                if let Some(lane) = self.opening.pop() {
                    self.queue.connection_opened(self.now, lane);
                    self.pull(lane);
                }
            }
            Op::Failed => {
                if let Some(lane) = self.opening.pop() {
                    self.queue.connection_failed(self.now, lane, 1);
                }
            }
            Op::Refused => {
                if let Some(lane) = self.opening.pop() {
                    self.queue.throttled(self.now, lane, Throttle::Connect, 1);
                }
            }
            Op::Throttled => {
                if let Some((lane, Connection::Busy(_))) = self.open.first() {
                    self.queue.throttled(self.now, *lane, Throttle::Session, 1);
                }
            }
            Op::Settle { which, how } => self.settle(which, how),
            Op::Lost { which } => {
                if let Some((lane, slots)) = self.busy(which) {
                    for slot in slots {
                        self.ours.remove(&slot);
                        self.queue.requeue(slot);
                    }
                    self.queue.connection_closed(self.now, lane, Closed::Lost, 1);
                }
            }
            Op::CloseIdle => {
                if let Some(place) = self.open.iter().position(|(_, c)| *c == Connection::Idle) {
                    let (lane, _) = self.open.remove(place);
                    self.queue.connection_closed(self.now, lane, Closed::Idle, 0);
                }
            }
            Op::Act { which, how } => self.act(which, how),
            Op::Suspend { scope, on } => self.suspend(scope, on),
            Op::Answer { how } => self.answer(how),
            Op::Grant => {
                if let Some(lane) = self.wanted.pop() {
                    self.queue.grant(lane);
                }
            }
            Op::Settings { connections_max } => {
                let connections_max = u32::from(connections_max);
                self.queue.set_settings(Settings { connections_max, resolves_max: 3, ..Settings::default() });
            }
        }
    }

    /// Takes a busy connection out.
    fn busy(&mut self, which: u8) -> Option<(LaneId, Vec<RecipientSlot>)> {
        let busy: Vec<usize> = (0..self.open.len()).filter(|&i| self.open[i].1 != Connection::Idle).collect();
        let place = *busy.get(usize::from(which) % busy.len().max(1))?;
        match self.open.remove(place) {
            (lane, Connection::Busy(slots)) => Some((lane, slots)),
            (_, Connection::Idle) => None,
        }
    }

    /// A transaction ends, and the connection goes on or not.
    fn settle(&mut self, which: u8, how: u8) {
        let Some((lane, slots)) = self.busy(which) else { return };
        for (place, slot) in slots.into_iter().enumerate() {
            match (how, place) {
                (1, _) => {
                    self.ours.remove(&slot);
                    let (due, _) = self.queue.deferred(self.now, slot, 2);
                    assert!(due > self.now);
                }
                (2, 1..) => {
                    self.ours.remove(&slot);
                    self.queue.requeue(slot);
                }
                _ => self.done(slot),
            }
            self.queue.check();
        }
        if how == 3 {
            self.queue.connection_closed(self.now, lane, Closed::Done, 0);
        } else {
            self.pull(lane);
        }
    }

    fn act(&mut self, which: u8, how: u8) {
        let free: Vec<_> = self.live.difference(&self.ours).copied().collect();
        let Some(&slot) = free.get(usize::from(which) % free.len().max(1)) else { return };
        match how {
            0 => {
                self.queue.park(slot);
                self.held.insert(slot);
            }
            1 => assert_eq!(self.queue.unpark(self.now, slot), self.held.remove(&slot)),
            2 => {
                self.ours.insert(slot);
                self.held.remove(&slot);
                self.done(slot);
            }
            3 => assert!(self.queue.set_due(self.now, slot, self.now + Duration::from_secs(77))),
            4 => {
                let expires = self.now + Duration::from_secs(500);
                self.queue.set_alarms(self.now, slot, Some(expires), None);
                self.expires.insert(slot, expires);
            }
            _ => {
                let domain = self.queue.intern_domain(0, "d9.test");
                assert!(self.queue.move_to(self.now, slot, domain));
            }
        }
    }

    fn suspend(&mut self, scope: u8, on: bool) {
        let domain = self.queue.intern_domain(0, "d1.test");
        let flow = self.queue.intern_flow("f1", 1);
        let scope = match scope {
            0 => Scope::All,
            1 => Scope::Site("s0"),
            2 => Scope::Domain(domain),
            _ => Scope::Flow(flow),
        };
        if on { self.queue.suspend(scope) } else { self.queue.resume(scope) }
    }

    fn answer(&mut self, how: u8) {
        let Some(domain) = self.asked.pop() else { return };
        match how {
            0 => {
                self.queue.unresolvable_for_now(self.now, domain, 3);
            }
            1 => {
                while let Some(slot) = self.queue.take_domain(domain) {
                    assert!(self.live.contains(&slot) && self.ours.insert(slot));
                    self.done(slot);
                }
            }
            _ => {
                let limits =
                    LaneLimits { connections: 3, recipients_per_transaction: 2, ..LaneLimits::default() };
                let site = format!("s{}", how % 3);
                self.queue.resolved(self.now, domain, &site, limits, Duration::from_secs(60));
            }
        }
    }

    /// From now on all goes well: everything must leave within bounded time.
    fn drain(&mut self) {
        for scope in 0..6 {
            self.suspend(scope, false);
        }
        for slot in std::mem::take(&mut self.held) {
            assert!(self.queue.unpark(self.now, slot));
        }
        for step in 0.. {
            assert!(
                step < 5_000,
                "{:?} of {:?} stay",
                self.queue.why(*self.live.first().unwrap()),
                self.live
            );
            self.poll();
            while !self.asked.is_empty() {
                self.answer(2);
            }
            while let Some(lane) = self.wanted.pop() {
                self.queue.grant(lane);
            }
            while !self.opening.is_empty() {
                self.apply(Op::Opened);
            }
            while self.open.iter().any(|(_, c)| *c != Connection::Idle) {
                self.settle(0, 0);
            }
            self.queue.check();
            if self.live.is_empty() {
                break;
            }
            if let Some(at) = self.queue.deadline() {
                self.now = self.now.max(at);
            }
        }
        assert!(self.queue.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_recipient_is_lost_or_in_two_places_whatever_happens(ops in ops()) {
        let mut model = Model::new();
        for op in ops {
            model.apply(op);
            model.queue.check();
        }
        model.drain();
    }
}

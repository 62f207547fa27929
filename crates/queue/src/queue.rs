//! The queue itself: recipients come, change their place, and go.

use crate::arena::{Arena, List, NIL};
use crate::dispatch::Patrol;
use crate::entry::{Entry, Place, to_seconds};
use crate::fair;
use crate::names::Names;
use crate::settings::Settings;
use crate::table::{Domain, Flow, Lane, Line};
use crate::wheel::Wheel;
use hashbrown::HashTable;
use postrider_model::{Class, Timestamp};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Domains, flows, lanes and lines that nothing uses are kept up to these numbers, for what was learned about
/// them and to spare their making.
const DOMAINS_IDLE_MAX: usize = 65_536;
const FLOWS_IDLE_MAX: usize = 4_096;
const LANES_IDLE_MAX: usize = 4_096;
const LINES_IDLE_MAX: usize = 4_096;

/// A routing domain. Valid while a recipient of it is queued, else until other names are interned: intern
/// and insert in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u32);

/// A lane. Valid while the engine has a connection or a slot of it, or a domain leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

/// A flow. Valid as a [`DomainId`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u32);

/// A queued recipient's place in memory, until it is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecipientSlot(pub u32);

/// A recipient as the engine hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The engine's number of the message.
    pub message: u32,
    /// The recipient's place in the message.
    pub ordinal: u16,
    /// Where it goes.
    pub domain: DomainId,
    /// Whose it is.
    pub flow: FlowId,
    /// How urgent.
    pub class: Class,
    /// When it is to be tried.
    pub due: Timestamp,
    /// When it is given up, to the second above; `None` never.
    pub expires: Option<Timestamp>,
    /// When a delay warning is due, to the second above; `None` never.
    pub warn: Option<Timestamp>,
    /// Attempts made so far.
    pub attempts: u16,
    /// The engine's number of the last reply.
    pub reply: u32,
    /// Size of the content in KiB, for fairness.
    pub size_kib: u16,
    /// It waits for its release.
    pub held: bool,
}

impl Recipient {
    /// One that was just accepted, is due now, never expires and weighs nothing.
    #[must_use]
    pub fn fresh(
        message: u32,
        ordinal: u16,
        domain: DomainId,
        flow: FlowId,
        class: Class,
        now: Timestamp,
    ) -> Self {
        Recipient {
            message,
            ordinal,
            domain,
            flow,
            class,
            due: now,
            expires: None,
            warn: None,
            attempts: 0,
            reply: 0,
            size_kib: 0,
            held: false,
        }
    }
}

/// What waits for a time beside recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A lane's back-off, rate or broker.
    Lane(u32),
    /// A domain's back-off.
    Domain(u32),
}

/// The scheduler of one shard.
pub struct Queue {
    pub(crate) settings: Settings,
    pub(crate) seed: u64,
    /// The latest time seen.
    pub(crate) now: Timestamp,
    pub(crate) entries: Arena<Entry>,
    /// Recipients that are held.
    pub(crate) held: u32,
    pub(crate) wheel: Wheel,
    pub(crate) domains: Names<Domain>,
    pub(crate) flows: Names<Flow>,
    pub(crate) lanes: Names<Lane>,
    pub(crate) lines: Arena<Line>,
    line_index: HashTable<u32>,
    idle_lines: List<1>,
    idle_line_count: usize,
    /// Recipients that expire or want a warning and are not due.
    pub(crate) alarmed: List<0>,
    /// Lanes about which something changed.
    pub(crate) agenda: VecDeque<u32>,
    /// Lanes that wait for any connection to end.
    pub(crate) starved: VecDeque<u32>,
    /// The same, of lanes that have a connection already and want more.
    pub(crate) starved_more: VecDeque<u32>,
    /// The one of those whose turn it is, else `NIL`.
    pub(crate) turn: u32,
    /// Lanes that have connections without work.
    pub(crate) idlers: List<2>,
    /// Domains whose waiting recipients move to their lane.
    pub(crate) draining: VecDeque<u32>,
    /// Domains to be resolved.
    pub(crate) questions: VecDeque<u32>,
    /// Domains being resolved.
    pub(crate) asked: u32,
    pub(crate) timers: BinaryHeap<Reverse<(Timestamp, Timer)>>,
    /// Connections open or on their way, over all lanes.
    pub(crate) connections: u32,
    /// Connections that were told to close, over all lanes.
    pub(crate) closing: u32,
    pub(crate) patrol: Patrol,
    pub(crate) is_suspended: bool,
}

impl Queue {
    /// An empty queue. The seed spreads retries and keeps senders from choosing where names fall in tables.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Queue {
            settings,
            seed,
            now: Timestamp::default(),
            entries: Arena::new(),
            held: 0,
            wheel: Wheel::new(),
            domains: Names::new(mix(seed ^ 1)),
            flows: Names::new(mix(seed ^ 2)),
            lanes: Names::new(mix(seed ^ 3)),
            lines: Arena::new(),
            line_index: HashTable::new(),
            idle_lines: List::default(),
            idle_line_count: 0,
            alarmed: List::default(),
            agenda: VecDeque::new(),
            starved: VecDeque::new(),
            starved_more: VecDeque::new(),
            turn: NIL,
            idlers: List::default(),
            closing: 0,
            draining: VecDeque::new(),
            questions: VecDeque::new(),
            asked: 0,
            timers: BinaryHeap::new(),
            connections: 0,
            patrol: Patrol::default(),
            is_suspended: false,
        }
    }

    /// Replaces the settings. Schedules already made stay as they are.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
        for lane in self.lane_indices() {
            self.touch_lane(lane);
        }
    }

    /// Recipients queued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.live() as usize
    }

    /// Of these: held.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held as usize
    }

    /// True when nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.live() == 0
    }

    /// The number of a routing domain. Domains of different routes are different; for a route with hosts of its
    /// own the engine uses one name for all, so that they share a lane.
    pub fn intern_domain(&mut self, route: u16, name: &str) -> DomainId {
        if let Some(index) = self.domains.find(route, name) {
            return DomainId(index);
        }
        while let Some(oldest) = self.domains.superfluous(DOMAINS_IDLE_MAX) {
            self.unlink_domain(oldest);
            self.domains.remove(oldest);
        }
        let index = self.domains.insert(Domain::new(route, name));
        self.domains.set_idle(index, true);
        DomainId(index)
    }

    /// The number of a flow; its weight is its share beside other flows of its class (at least 1).
    pub fn intern_flow(&mut self, name: &str, weight: u16) -> FlowId {
        if let Some(index) = self.flows.find(0, name) {
            self.flows[index].weight = weight;
            return FlowId(index);
        }
        while let Some(oldest) = self.flows.superfluous(FLOWS_IDLE_MAX) {
            self.flows.remove(oldest);
        }
        let index = self.flows.insert(Flow { name: name.into(), weight, ..Flow::default() });
        self.flows.set_idle(index, true);
        FlowId(index)
    }

    /// The number of a lane; made if there is none.
    pub(crate) fn intern_lane(&mut self, key: &str) -> u32 {
        if let Some(index) = self.lanes.find(0, key) {
            return index;
        }
        while let Some(oldest) = self.lanes.superfluous(LANES_IDLE_MAX) {
            self.lanes.remove(oldest);
        }
        let limits = crate::LaneLimits::default();
        self.lanes.insert(Lane::new(key, limits, self.settings.window_initial))
    }

    /// Takes a recipient in.
    pub fn insert(&mut self, now: Timestamp, recipient: &Recipient) -> RecipientSlot {
        self.clock(now);
        let mut entry = Entry {
            due: recipient.due,
            message: recipient.message,
            domain: recipient.domain.0,
            group: recipient.flow.0,
            reply: recipient.reply,
            expires_s: to_seconds(recipient.expires),
            warn_s: to_seconds(recipient.warn),
            ordinal: recipient.ordinal,
            attempts: recipient.attempts,
            size_kib: recipient.size_kib,
            place: Place::Held,
            ..Entry::default()
        };
        entry.set_class(recipient.class);
        let index = self.entries.insert(entry);
        self.wheel.count_in(recipient.due);
        let domain = &mut self.domains[recipient.domain.0];
        domain.members += 1;
        let (lane, was_idle) = (domain.lane, domain.is_idle);
        if was_idle {
            self.domains.set_idle(recipient.domain.0, false);
        }
        if lane != NIL {
            self.lanes[lane].members += 1;
        }
        self.flows[recipient.flow.0].members += 1;
        if self.flows[recipient.flow.0].is_idle {
            self.flows.set_idle(recipient.flow.0, false);
        }
        if recipient.held {
            self.held += 1;
        } else {
            self.settle(index, false);
        }
        RecipientSlot(index)
    }

    /// The recipient is done with, whatever the verdict and wherever it was; its slot is free. In flight it
    /// also says that the site took a transaction to its end.
    pub fn finished(&mut self, slot: RecipientSlot) {
        if !self.is_queued(slot) {
            return;
        }
        let index = slot.0;
        let entry = &self.entries[index];
        if entry.place == Place::InFlight {
            let (lane, is_lead) = (self.lines[entry.group].lane, entry.is_lead());
            if is_lead {
                self.answered(lane, true);
            }
        }
        self.detach(index);
        let entry = self.entries.remove(index);
        self.wheel.count_out(entry.due);
        let domain = &mut self.domains[entry.domain];
        domain.members -= 1;
        let lane = domain.lane;
        self.check_domain(entry.domain);
        if lane != NIL {
            self.lanes[lane].members -= 1;
        }
        self.flows[entry.group].members -= 1;
        self.check_flow(entry.group);
    }

    /// The attempt failed for now: the recipient waits by the retry list. Recipients of one message that fail
    /// at the same time are due at the same time. Gives the new due time and the attempts made.
    pub fn deferred(&mut self, now: Timestamp, slot: RecipientSlot, reply: u32) -> (Timestamp, u16) {
        let now = self.clock(now);
        if !self.is_queued(slot) {
            return (now, 0);
        }
        let entry = &self.entries[slot.0];
        if entry.place == Place::InFlight && entry.is_lead() {
            self.answered(self.lines[entry.group].lane, false);
        }
        let is_held = self.entries[slot.0].place == Place::Held;
        self.detach(slot.0);
        let entry = &mut self.entries[slot.0];
        let before = entry.due;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.reply = reply;
        let random = mix(self.seed ^ u64::from(entry.message) << 16 ^ u64::from(entry.attempts));
        entry.due = now + self.settings.wait(Some(entry.class()), entry.attempts, random);
        let result = (entry.due, entry.attempts);
        self.wheel.count_out(before);
        self.wheel.count_in(result.0);
        if is_held {
            self.hold(slot.0);
        } else {
            self.settle(slot.0, false);
        }
        result
    }

    /// Nothing was attempted for this recipient after all: it goes to the front of its line.
    pub fn requeue(&mut self, slot: RecipientSlot) {
        if self.is_queued(slot) && matches!(self.entries[slot.0].place, Place::InFlight | Place::Taken) {
            self.detach(slot.0);
            self.settle(slot.0, true);
        }
    }

    pub(crate) fn is_queued(&self, slot: RecipientSlot) -> bool {
        self.entries.get(slot.0).is_some_and(|entry| entry.place != Place::Free)
    }

    /// Time never goes backwards here, whatever the caller says.
    pub(crate) fn clock(&mut self, now: Timestamp) -> Timestamp {
        self.now = self.now.max(now);
        self.now
    }

    /// Finds the place of a recipient that stands nowhere, by its due time.
    pub(crate) fn settle(&mut self, index: u32, front: bool) {
        let entry = &self.entries[index];
        if entry.due <= self.now {
            self.arrive(index, front);
        } else if entry.alarm() <= self.now || !self.wheel.park(&mut self.entries, index) {
            self.entries[index].place = Place::Alarmed;
            self.alarmed.push_back(&mut self.entries, index);
        }
    }

    /// Puts a due recipient into its lane, or lets it wait in its domain.
    pub(crate) fn arrive(&mut self, index: u32, front: bool) {
        let entry = &self.entries[index];
        self.patrol.expect(entry.alarm());
        let domain_index = entry.domain;
        let domain = &mut self.domains[domain_index];
        let is_open = domain.lane != NIL && !domain.is_suspended && !domain.is_failing;
        let lane = domain.lane;
        let may_ask = domain.until <= self.now && !domain.is_failing && !domain.is_suspended;
        if is_open && domain.waiting.is_empty() {
            self.join_line(lane, index, front);
        } else {
            domain.waiting_count += 1;
            self.entries[index].place = Place::Waiting;
            if front {
                domain.waiting.push_front(&mut self.entries, index);
            } else {
                domain.waiting.push_back(&mut self.entries, index);
            }
        }
        if may_ask {
            self.ask(domain_index);
        }
    }

    /// Puts a recipient into its line of a lane.
    pub(crate) fn join_line(&mut self, lane_index: u32, index: u32, front: bool) {
        let entry = &self.entries[index];
        let (class, flow, message, ordinal) = (entry.class(), entry.group, entry.message, entry.ordinal);
        let line_index = self.line(lane_index, class, flow);
        let line = &mut self.lines[line_index];
        let lane = &mut self.lanes[lane_index];
        let neighbour =
            line.ready.front().map(|first| if front { first } else { self.entries[first].links.prev });
        let joins = neighbour.is_some_and(|other| self.entries[other].message == message)
            && u32::from(ordinal) % lane.limits.recipients_per_transaction.max(1) != 0;
        let entry = &mut self.entries[index];
        entry.place = Place::Ready;
        entry.group = line_index;
        entry.set_start(!joins);
        if front {
            line.ready.push_front(&mut self.entries, index);
        } else {
            line.ready.push_back(&mut self.entries, index);
        }
        line.ready_count += 1;
        if self.flows[flow].is_suspended {
            lane.stalled += 1;
            return;
        }
        let queue = &mut lane.classes[class as usize];
        queue.ready += 1;
        lane.ready += 1;
        lane.units += u32::from(!joins);
        if !line.in_ring {
            fair::join(queue, &mut self.lines, line_index);
        }
        self.touch_lane(lane_index);
    }

    /// Takes a ready recipient out of its line; its group is its line still.
    pub(crate) fn leave_line(&mut self, index: u32) {
        let line_index = self.entries[index].group;
        let is_start = self.entries[index].is_start();
        let line = &mut self.lines[line_index];
        line.ready.remove(&mut self.entries, index);
        line.ready_count -= 1;
        let is_last = line.ready_count == 0;
        let in_ring = line.in_ring;
        let lane = &mut self.lanes[line.lane];
        if !in_ring {
            lane.stalled -= 1;
            return;
        }
        let class = &mut lane.classes[usize::from(line.class)];
        class.ready -= 1;
        lane.ready -= 1;
        lane.units = lane.units.saturating_sub(u32::from(is_start));
        if is_last {
            fair::leave(class, &mut self.lines, &self.flows, line_index);
        }
    }

    /// Takes a recipient out of wherever it is; afterwards its group is its flow.
    pub(crate) fn detach(&mut self, index: u32) {
        let entry = &self.entries[index];
        let (place, group, domain) = (entry.place, entry.group, entry.domain);
        match place {
            Place::Free | Place::Taken => {}
            Place::Held => self.held -= 1,
            Place::Parked | Place::Imminent => self.wheel.unpark(&mut self.entries, index),
            Place::Alarmed => self.alarmed.remove(&mut self.entries, index),
            Place::Waiting => {
                let domain = &mut self.domains[domain];
                domain.waiting.remove(&mut self.entries, index);
                domain.waiting_count -= 1;
            }
            Place::Ready => {
                self.leave_line(index);
                self.entries[index].group = self.lines[group].flow;
                self.touch_lane(self.lines[group].lane);
                self.check_line(group);
            }
            Place::InFlight => {
                let is_lead = self.entries[index].is_lead();
                let line = &mut self.lines[group];
                line.in_flight -= 1;
                let lane = &mut self.lanes[line.lane];
                lane.in_flight -= 1;
                lane.transactions -= u32::from(is_lead);
                let entry = &mut self.entries[index];
                entry.group = line.flow;
                entry.set_lead(false);
                self.check_line(group);
            }
        }
        self.entries[index].place = Place::Taken;
    }

    /// Keeps a recipient that stands nowhere until its release.
    pub(crate) fn hold(&mut self, index: u32) {
        self.entries[index].place = Place::Held;
        self.held += 1;
    }

    /// The line of a flow in a class of a lane; made if there is none.
    fn line(&mut self, lane: u32, class: Class, flow: u32) -> u32 {
        let key = (lane, class as u8, flow);
        let hash = line_hash(key);
        let lines = &self.lines;
        if let Some(&index) = self.line_index.find(hash, |&index| line_key(&lines[index]) == key) {
            if self.lines[index].is_idle {
                self.lines[index].is_idle = false;
                self.idle_lines.remove(&mut self.lines, index);
                self.idle_line_count -= 1;
            }
            return index;
        }
        let index = self.lines.insert(Line { lane, flow, class: class as u8, ..Line::default() });
        let lines = &self.lines;
        self.line_index.insert_unique(hash, index, |&index| line_hash(line_key(&lines[index])));
        self.lanes[lane].lines += 1;
        self.lanes.set_idle(lane, false);
        self.flows[flow].lines += 1;
        index
    }

    /// A line that nothing stands in is idle; the oldest idle one makes place.
    fn check_line(&mut self, index: u32) {
        let line = &mut self.lines[index];
        if line.is_idle || line.ready_count > 0 || line.in_flight > 0 {
            return;
        }
        line.is_idle = true;
        self.idle_lines.push_back(&mut self.lines, index);
        self.idle_line_count += 1;
        if self.idle_line_count <= LINES_IDLE_MAX {
            return;
        }
        if let Some(oldest) = self.idle_lines.pop_front(&mut self.lines) {
            self.idle_line_count -= 1;
            let key = line_key(&self.lines[oldest]);
            if let Ok(entry) = self.line_index.find_entry(line_hash(key), |&found| found == oldest) {
                entry.remove();
            }
            let line = self.lines.remove(oldest);
            self.lanes[line.lane].lines -= 1;
            self.touch_lane(line.lane);
            self.flows[line.flow].lines -= 1;
            self.check_flow(line.flow);
        }
    }

    pub(crate) fn check_flow(&mut self, index: u32) {
        let flow = &self.flows[index];
        if !flow.is_idle && flow.members == 0 && flow.lines == 0 && !flow.is_suspended {
            self.flows.set_idle(index, true);
        }
    }

    /// Something about a lane changed: [`Queue::poll`] looks at it.
    pub(crate) fn touch_lane(&mut self, lane: u32) {
        if !std::mem::replace(&mut self.lanes[lane].on_agenda, true) {
            self.agenda.push_back(lane);
            if self.lanes[lane].is_idle {
                self.lanes.set_idle(lane, false);
            }
        }
    }

    pub(crate) fn lane_indices(&self) -> Vec<u32> {
        self.lanes.iter().map(|(index, _)| index).collect()
    }
}

fn line_key(line: &Line) -> (u32, u8, u32) {
    (line.lane, line.class, line.flow)
}

fn line_hash((lane, class, flow): (u32, u8, u32)) -> u64 {
    mix(u64::from(lane) << 34 ^ u64::from(flow) << 2 ^ u64::from(class))
}

/// `SplitMix64`: a well mixed number out of a number.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

//! The world: clients, relay, sites, disk and time, in one heap of events.

mod engine;
mod network;
mod restart;
mod settings;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::site::{Manners, SiteSession};
use postrider_egress::Connection;
use postrider_engine::operate::{Act, Filter, Request, Response};
use postrider_engine::{Plan, Question, QuestionId, Shard};
use postrider_ingress::Session;
use postrider_model::{Snapshot, Timestamp};
use postrider_queue::LaneId;
use postrider_spool::testing::{Dice, Faults, SimDisk};
use postrider_spool::{Log, Lsn, Position, Settings, Ticket};
use settings::{make_shards, snapshot};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const SHARDS: u16 = 2;
const CONNECTIONS_PER_SITE_MAX: usize = 6;
/// Turns of the world before it is called stuck.
const TURNS_MAX: u64 = 3_000_000;

/// How long a life is.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// Crashes.
    pub crashes: u32,
    /// Messages that clients send in all.
    pub messages: u32,
}

impl Default for Length {
    fn default() -> Self {
        Length { crashes: 10, messages: 300 }
    }
}

/// What happened in a life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Power losses.
    pub crashes: u32,
    /// Messages begun by clients.
    pub messages: u64,
    /// Recipients acknowledged.
    pub acknowledged: u64,
    /// Checkpoints completed.
    pub checkpoints: u32,
    /// Recipients compared with the log after restarts.
    pub compared: u64,
    /// Restarts after which parts of the checkpoint came while the mail went on, to the last one.
    pub late_loads: u32,
}

#[derive(Debug)]
enum Event {
    ToSession(u32),
    ToConnection(u32),
    Connect(u16, Arc<Plan>),
    Resolve(u16, postrider_queue::DomainId, Question),
    Load(u16, postrider_engine::JobId, Position),
    Captured(u16, postrider_engine::JobId),
    Client,
    Operator,
    Checkpoint,
    /// The next part of the checkpoint for a shard.
    Part(u16),
}

struct InLink {
    shard: u16,
    session: Session,
    client: Client,
    leftover: Vec<u8>,
    ticket: Option<Ticket>,
}

struct OutLink {
    shard: u16,
    lane: LaneId,
    connection: Connection,
    site: SiteSession,
}

struct World {
    now: Timestamp,
    dice: Dice,
    disk: SimDisk,
    log: Log,
    settings: Settings,
    snapshot: Arc<Snapshot>,
    shards: Vec<Shard>,
    events: BinaryHeap<Reverse<(Timestamp, u64)>>,
    payloads: BTreeMap<u64, Event>,
    sequence: u64,
    inbound: BTreeMap<u32, InLink>,
    outbound: BTreeMap<u32, OutLink>,
    slots: BTreeMap<Arc<str>, usize>,
    ids: u32,
    manners: Manners,
    ledger: Ledger,
    /// Heads of records on their way, by shard and ticket.
    flying: BTreeMap<(u16, Ticket), (u8, Vec<u8>)>,
    /// Kept checkpoints: where their replay starts, and their parts. The newest last.
    checkpoints: Vec<(Lsn, BTreeMap<String, Vec<u8>>)>,
    parts: BTreeMap<String, Vec<u8>>,
    /// Parts that are loaded while the mail goes on, by shard.
    late: Vec<VecDeque<Vec<u8>>>,
    checkpointing: Option<(Lsn, Vec<Option<postrider_engine::Parts>>)>,
    answers: BTreeMap<u64, Response>,
    questions: u64,
    messages_left: u32,
    power_fails: bool,
    acts: u64,
    tally: Tally,
    seed: u64,
}

/// Lives one seed; panics, naming it, when a promise is broken.
#[must_use]
pub fn live(seed: u64, length: &Length) -> Tally {
    let mut world = World::new(seed, length.messages);
    for crash in 0..length.crashes {
        let turns = 200 + world.dice.below(4_000);
        let mut crashed = false;
        for _ in 0..turns {
            if world.turn(true) {
                crashed = true;
                break;
            }
        }
        if !crashed {
            world.power_fails = true;
            for _ in 0..2_000 {
                if world.turn(true) {
                    break;
                }
            }
        }
        world.crash();
        world.tally.crashes = crash + 1;
    }
    world.drain();
    let (messages, acknowledged) = world.ledger.counts();
    Tally { messages, acknowledged, ..world.tally }
}

impl World {
    fn new(seed: u64, messages: u32) -> Self {
        let mut dice = Dice::new(seed);
        let settings = Settings {
            segment_size_bytes: 512 << 10,
            segments_max: 1_024,
            ahead: 1,
            checkpoint_after_bytes: 16 << 10,
        };
        let mut disk = SimDisk::new(dice.roll());
        if dice.chance(400) {
            let often = [1, 5, 20][usize::try_from(dice.below(3)).unwrap_or(0)];
            disk.faults = Faults { write: often, write_full: often, sync: often, prepare: often, read: 0 };
        }
        let bad = [0, 20, 100, 250][usize::try_from(dice.below(4)).unwrap_or(0)];
        let manners = Manners {
            refuses_connections: bad,
            greets_with_421: bad,
            defers: bad,
            rejects: bad / 2,
            drops: bad / 8,
            drops_after_the_dot: bad / 8,
            pipelining: dice.chance(700),
        };
        let snapshot = Arc::new(snapshot());
        let salt = dice.roll();
        let mut world = World {
            now: Timestamp::from_secs(1_800_000_000),
            shards: make_shards(&snapshot, seed),
            log: Log::new(settings, salt),
            dice,
            disk,
            settings,
            snapshot,
            events: BinaryHeap::new(),
            payloads: BTreeMap::new(),
            sequence: 0,
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            slots: BTreeMap::new(),
            ids: 0,
            manners,
            ledger: Ledger::new(seed),
            flying: BTreeMap::new(),
            checkpoints: Vec::new(),
            parts: BTreeMap::new(),
            late: vec![VecDeque::new(); usize::from(SHARDS)],
            checkpointing: None,
            answers: BTreeMap::new(),
            questions: 0,
            messages_left: messages,
            power_fails: false,
            acts: 0,
            tally: Tally::default(),
            seed,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for _ in 0..3 {
            self.after_millis(1, Event::Client);
        }
        self.after_millis(500, Event::Operator);
        self.after_millis(200, Event::Checkpoint);
    }

    fn after_millis(&mut self, most: u64, event: Event) {
        let micros = 10 + self.dice.below(most * 1_000);
        self.sequence += 1;
        self.events.push(Reverse((self.now + Duration::from_micros(micros), self.sequence)));
        self.payloads.insert(self.sequence, event);
    }

    /// One turn: what is due, then everything that follows from it. True when the power failed in it.
    fn turn(&mut self, may_fail: bool) -> bool {
        self.settle_down();
        if self.run_log(may_fail) {
            return true;
        }
        self.advance();
        false
    }

    /// Moves time to the next thing that happens, and lets it happen.
    fn advance(&mut self) {
        let event = self.events.peek().map(|Reverse((at, _))| *at);
        let mut next = event.unwrap_or(Timestamp::MAX);
        for shard in &self.shards {
            next = next.min(shard.deadline().unwrap_or(Timestamp::MAX));
        }
        for link in self.inbound.values() {
            next = next.min(link.session.deadline().unwrap_or(Timestamp::MAX));
        }
        for link in self.outbound.values() {
            next = next.min(link.connection.deadline().unwrap_or(Timestamp::MAX));
        }
        if next == Timestamp::MAX {
            return;
        }
        self.now = self.now.max(next);
        let now = self.now;
        if event.is_some_and(|at| at <= now)
            && let Some(Reverse((_, sequence))) = self.events.pop()
            && let Some(event) = self.payloads.remove(&sequence)
        {
            self.happen(event);
        }
        let due: Vec<u32> = self
            .inbound
            .iter()
            .filter(|(_, l)| l.session.deadline().is_some_and(|d| d <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(link) = self.inbound.get_mut(&id) {
                link.session.timeout(now, &mut self.shards[usize::from(link.shard)]);
            }
            self.serve(id);
        }
        let due: Vec<u32> = self
            .outbound
            .iter()
            .filter(|(_, l)| l.connection.deadline().is_some_and(|d| d <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(link) = self.outbound.get_mut(&id) {
                link.connection.timeout(now, &mut self.shards[usize::from(link.shard)]);
            }
            self.carry(id);
        }
        self.log.tick();
        let is_scarce = self.dice.chance(100);
        self.log.set_scarce(is_scarce);
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::ToSession(id) => self.serve(id),
            Event::ToConnection(id) => self.carry(id),
            Event::Client => self.new_client(),
            Event::Connect(shard, plan) => self.connected(shard, &plan),
            Event::Resolve(shard, domain, question) => {
                let resolution = self.resolution(&question);
                self.shards[usize::from(shard)].resolved(now, domain, resolution);
            }
            Event::Load(shard, job, position) => {
                let loaded = self.read(position);
                self.shards[usize::from(shard)].loaded(now, job, loaded);
            }
            Event::Captured(shard, job) => {
                let result = if self.dice.chance(50) { Err("no room".to_owned()) } else { Ok(()) };
                self.shards[usize::from(shard)].captured(now, job, result);
            }
            Event::Operator => {
                self.operate();
                self.after_millis(3_000, Event::Operator);
            }
            Event::Checkpoint => {
                let is_loading = self.shards.iter().any(Shard::is_loading);
                if self.checkpointing.is_none()
                    && !is_loading
                    && (self.log.checkpoint_due() || self.dice.chance(100))
                {
                    self.settle_down();
                    let from = self.log.begin_checkpoint();
                    self.shards.iter_mut().for_each(Shard::begin_checkpoint);
                    self.checkpointing = Some((from, vec![None; usize::from(SHARDS)]));
                }
                self.after_millis(400, Event::Checkpoint);
            }
            Event::Part(shard) => self.part_comes(shard),
        }
    }

    fn operate(&mut self) {
        let shards = usize::from(SHARDS);
        let filter = match self.dice.below(3) {
            0 => Filter { all: true, ..Filter::default() },
            n => Filter { domain: Some(format!("d{}.test", 2 + n)), ..Filter::default() },
        };
        let act = match self.dice.below(8) {
            0 => Act::Hold,
            1 => Act::Retry,
            2 if self.dice.chance(200) => Act::Cancel { notify: false },
            3 => Act::Suspend { reason: "seeded".to_owned() },
            4 | 5 => Act::Resume { number: None },
            _ => Act::Release,
        };
        self.acts += 1;
        for shard in 0..shards {
            self.questions += 1;
            let request = Request::Act { act: act.clone(), filter: filter.clone() };
            self.shards[shard].ask(self.now, QuestionId(self.questions), self.acts, request);
        }
    }

    /// What is left, for whoever has to find out why.
    fn describe(&mut self) -> String {
        let mut text = format!(
            "health {:?}, {} sessions, {} connections, slots {:?}, {} flying, {:?}",
            self.log.health(),
            self.inbound.len(),
            self.outbound.len(),
            self.slots,
            self.flying.len(),
            self.log.stats()
        );
        for index in 0..self.shards.len() {
            for request in [
                Request::Lanes,
                Request::Suspensions,
                Request::List { filter: Filter { all: true, ..Filter::default() }, limit: 3, after: None },
            ] {
                self.questions += 1;
                self.shards[index].ask(self.now, QuestionId(self.questions), 0, request);
                for _ in 0..1_000 {
                    self.turn(false);
                    if let Some(answer) = self.answers.remove(&self.questions) {
                        text.push_str(&format!("\nshard {index}: {answer:?}"));
                        break;
                    }
                }
            }
        }
        text
    }

    /// No more faults; everything is let go and must come to its verdict.
    fn drain(&mut self) {
        self.disk.faults = Faults::default();
        self.manners = Manners { pipelining: self.manners.pipelining, ..Manners::default() };
        for turn in 0..TURNS_MAX {
            if turn % 20_000 == 0 {
                for act in [Act::Resume { number: None }, Act::Release, Act::Retry] {
                    self.acts += 1;
                    for shard in 0..self.shards.len() {
                        self.questions += 1;
                        let request = Request::Act {
                            act: act.clone(),
                            filter: Filter { all: true, ..Filter::default() },
                        };
                        self.shards[shard].ask(self.now, QuestionId(self.questions), self.acts, request);
                    }
                }
            }
            self.payloads.retain(|_, event| !matches!(event, Event::Operator));
            self.turn(false);
            if self.messages_left == 0 && self.inbound.is_empty() && self.shards.iter().all(Shard::is_empty) {
                self.settle_down();
                self.run_log(false);
                self.settle_down();
                if self.flying.is_empty() {
                    return self.ledger.settle();
                }
            }
        }
        let left = self.describe();
        panic!("seed {}: it never drains; {left}", self.seed);
    }
}

//! The world: clients, relay, sites, disk and time, in one heap of events.

use crate::client::Client;
use crate::ledger::Ledger;
use crate::site::{Manners, SiteSession};
use postrider_auth::Directory;
use postrider_egress::{Connection, Setup, Wants as OutWants};
use postrider_engine::operate::{Act, Filter, Request, Response};
use postrider_engine::{
    ConnectionEnd, ConnectionId, Effect, Health, Loaded, Owner, Plan, PlanHost, Question, QuestionId,
    Resolution, Shard, ShardConfig, owner,
};
use postrider_ingress::{Session, SessionContext, SessionTls, Wants as InWants};
use postrider_model::record::Kind;
use postrider_model::snapshot::{
    AddressPattern, Delivery, DomainPattern, Legacy, Listener, Protocol, Route, SessionLimits, Source,
    Target, TlsLevel,
};
use postrider_model::{Domain, EnhancedCode, IdCipher, Reply, Snapshot, Timestamp};
use postrider_queue::LaneId;
use postrider_spool::testing::{Dice, Faults, SimDisk};
use postrider_spool::{Append, Log, Lsn, Op, Position, Recovery, Settings, Ticket, read_record};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
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

fn snapshot() -> Snapshot {
    let domain = |text: &str| text.parse::<Domain>().unwrap_or_else(|e| panic!("{text}: {e}"));
    let route = |name: &str, domains, to| {
        Arc::new(Route {
            name: name.into(),
            domains,
            senders: Vec::new(),
            to,
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        })
    };
    let client = "127.0.0.0/8".parse().unwrap_or_else(|e| panic!("{e}"));
    Snapshot {
        hostname: domain("relay.test"),
        listeners: vec![Arc::new(Listener {
            name: "relay".into(),
            protocol: Protocol::Smtp,
            address: SocketAddr::from(([127, 0, 0, 1], 25)),
            tls: None,
            legacy: Some(Legacy { clients: vec![client], from: vec![AddressPattern::Any] }),
            sandbox: false,
            limits: SessionLimits::default(),
            xclient: Vec::new(),
            proxy: Vec::new(),
        })],
        accounts: Vec::new(),
        routes: vec![
            route("sandbox", vec![DomainPattern::Exact(domain("sandbox.test"))], Target::Sandbox),
            route("mx", vec![DomainPattern::Any], Target::Mx),
        ],
        delivery: Delivery {
            retry: vec![Duration::from_secs(5), Duration::from_secs(30)],
            expire: Duration::from_secs(3_600),
            delay_warning: Duration::from_secs(600),
            connections_per_site_max: CONNECTIONS_PER_SITE_MAX,
            recipients_per_transaction_max: 3,
            messages_per_connection_max: 20,
            ..Delivery::default()
        },
    }
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
                if self.checkpointing.is_none() && (self.log.checkpoint_due() || self.dice.chance(100)) {
                    self.settle_down();
                    let from = self.log.begin_checkpoint();
                    self.shards.iter_mut().for_each(Shard::begin_checkpoint);
                    self.checkpointing = Some((from, vec![None; usize::from(SHARDS)]));
                }
                self.after_millis(400, Event::Checkpoint);
            }
        }
    }

    fn read(&mut self, position: Position) -> Option<Loaded> {
        let segment = self.log.segment_of(position.generation())?;
        let record = read_record(&mut self.disk, segment, self.log.salt(), position, true).ok()?;
        Some(Loaded { head: record.head, body: record.body })
    }

    fn resolution(&mut self, question: &Question) -> Resolution {
        let Question::MailExchangers(domain) = question else { panic!("seed {}: {question:?}", self.seed) };
        if self.dice.chance(self.manners.refuses_connections / 4) {
            return Resolution::Temporary(Reply::ours(451, EnhancedCode(4, 4, 3), "no answer"));
        }
        if domain.as_str() == "d7.test" {
            return Resolution::Nowhere(Reply::ours(556, EnhancedCode(5, 1, 10), "takes no mail"));
        }
        let site =
            if ["d1.test", "d2.test"].contains(&domain.as_str()) { "shared.test" } else { domain.as_str() };
        let address = SocketAddr::from(([192, 0, 2, 1], 25));
        let host = PlanHost { name: site.into(), addresses: vec![address], hop: None };
        Resolution::Hosts { site: site.into(), hosts: vec![host], ttl: Duration::from_secs(60) }
    }

    fn new_client(&mut self) {
        if self.messages_left == 0 {
            return;
        }
        let messages = self.messages_left.min(1 + u32::try_from(self.dice.below(10)).unwrap_or(0));
        self.messages_left -= messages;
        self.ids += 1;
        let id = self.ids;
        let shard = u16::try_from(self.dice.below(u64::from(SHARDS))).unwrap_or(0);
        let session = Session::new(SessionContext {
            snapshot: self.snapshot.clone(),
            listener: self.snapshot.listeners[0].clone(),
            directory: Arc::new(Directory::anyone()),
            ids: self.shards[0].cipher().clone(),
            peer: SocketAddr::from(([127, 0, 0, 1], 4_000)),
            local: SocketAddr::from(([127, 0, 0, 1], 25)),
            tls: SessionTls::Unavailable,
            seed: self.dice.roll(),
            now: self.now,
        });
        let client = Client::new(messages, 700 << 10);
        self.inbound.insert(id, InLink { shard, session, client, leftover: Vec::new(), ticket: None });
        self.after_millis(1, Event::ToSession(id));
    }

    /// Lets a client and its session talk until both wait.
    fn serve(&mut self, id: u32) {
        loop {
            let Some(link) = self.inbound.get_mut(&id) else { return };
            let shard = &mut self.shards[usize::from(link.shard)];
            let said = std::mem::take(link.session.output());
            link.client.hear(&said, &mut self.ledger, &mut self.dice);
            let mut progress = !said.is_empty();
            match link.session.wants() {
                InWants::Close => return self.hang_up(id),
                InWants::Read => {
                    if link.leftover.is_empty() {
                        let most = 1 + usize::try_from(self.dice.below(9_000)).unwrap_or(0);
                        let count = link.client.out.len().min(most);
                        link.leftover.extend(link.client.out.drain(..count));
                    }
                    if !link.leftover.is_empty() {
                        let taken = link.session.receive(self.now, &link.leftover, shard);
                        link.leftover.drain(..taken);
                        progress |= taken > 0;
                        let more = link.client.out.len().min(4_096);
                        if taken == 0 && more > 0 {
                            link.leftover.extend(link.client.out.drain(..more));
                            progress = true;
                        }
                    }
                }
                InWants::Write | InWants::Blocked | InWants::StartTls => {}
            }
            if let Some(ticket) = shard.take_submitted() {
                link.ticket = Some(ticket);
            }
            if link.client.is_over && link.client.out.is_empty() && link.leftover.is_empty() && !progress {
                return self.hang_up(id);
            }
            if !progress {
                return;
            }
        }
    }

    fn hang_up(&mut self, id: u32) {
        if let Some(mut link) = self.inbound.remove(&id) {
            link.session.disconnected(&mut self.shards[usize::from(link.shard)]);
        }
        self.after_millis(50, Event::Client);
    }

    fn connected(&mut self, shard: u16, plan: &Arc<Plan>) {
        self.ids += 1;
        let id = ConnectionId(self.ids);
        let now = self.now;
        if self.dice.chance(self.manners.refuses_connections) {
            let end = ConnectionEnd::Unreachable(Reply::ours(451, EnhancedCode(4, 4, 1), "refused"));
            return self.shards[usize::from(shard)].connection_ended(now, id, plan.lane, end, Vec::new());
        }
        let connection = Connection::new(
            now,
            Setup {
                id,
                plan: plan.clone(),
                host: 0,
                address: plan.hosts.first().and_then(|host| host.addresses.first().copied()),
                snapshot: self.snapshot.clone(),
                plain_only: false,
                nonce: [7; 18],
                scram: None,
            },
        );
        let site = SiteSession::new(self.manners, &mut self.dice);
        self.outbound.insert(id.0, OutLink { shard, lane: plan.lane, connection, site });
        self.after_millis(2, Event::ToConnection(id.0));
    }

    /// Lets a connection and its site talk, a little at a time.
    fn carry(&mut self, id: u32) {
        for _ in 0..4 {
            let Some(link) = self.outbound.get_mut(&id) else { return };
            let shard = &mut self.shards[usize::from(link.shard)];
            let mut progress = false;
            let octets: Vec<u8> = link.connection.output().flatten().copied().collect();
            if !octets.is_empty() {
                let most = 1 + usize::try_from(self.dice.below(octets.len() as u64)).unwrap_or(0);
                let count = if self.dice.chance(500) { octets.len() } else { most };
                for taken in link.site.hear(&octets[..count], &mut self.dice) {
                    taken.recipients.iter().for_each(|recipient| self.ledger.arrived(recipient));
                    assert!(taken.sender.is_empty() || taken.sender.ends_with("@sender.test"));
                }
                self.ledger.allowance += std::mem::take(&mut link.site.dropped_after_the_dot);
                link.connection.advance(self.now, count, shard);
                progress = true;
            }
            let said = std::mem::take(&mut link.site.out);
            if !said.is_empty() {
                link.connection.receive(self.now, &said, shard);
                progress = true;
            } else if link.site.closes && link.connection.end().is_none() {
                link.connection.closed(self.now, None, shard);
                progress = true;
            }
            if link.connection.wants() == OutWants::Close {
                if let Some(link) = self.outbound.remove(&id) {
                    let end = link.connection.end().cloned().unwrap_or(ConnectionEnd::Done);
                    let shard = &mut self.shards[usize::from(link.shard)];
                    shard.connection_ended(self.now, ConnectionId(id), link.lane, end, Vec::new());
                }
                return;
            }
            if !progress {
                return;
            }
        }
        self.after_millis(1, Event::ToConnection(id));
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

    /// Does what the shards want and hands their records to the log, until nothing moves.
    fn settle_down(&mut self) {
        loop {
            let mut quiet = true;
            self.take_news();
            for index in 0..self.shards.len() {
                let healthy = self.log.health();
                self.shards[index].set_health(Health {
                    full: healthy == postrider_spool::Health::Full,
                    broken: healthy == postrider_spool::Health::Failing,
                    congested: false,
                });
                for _ in 0..100 {
                    let Some(effect) = self.shards[index].poll(self.now) else { break };
                    quiet = false;
                    self.perform(u16::try_from(index).unwrap_or(0), effect);
                }
                self.flush(index);
            }
            self.checkpoint_step();
            if quiet {
                return;
            }
        }
    }

    fn flush(&mut self, index: usize) {
        let mut appends: Vec<Append> = Vec::new();
        self.shards[index].take_appends(&mut appends);
        for append in appends {
            self.flying.insert((append.shard, append.ticket), (append.kind, append.head.clone()));
            self.log.append(append);
        }
        let mut releases = Vec::new();
        self.shards[index].take_releases(&mut releases);
        releases.into_iter().for_each(|position| self.log.release(position));
    }

    fn take_news(&mut self) {
        while let Some(news) = self.log.poll_completion() {
            for (ticket, _) in &news.lost {
                self.flying.remove(&(news.shard, *ticket));
            }
            if let Some(durable) = news.durable {
                let done: Vec<_> = self
                    .flying
                    .range((news.shard, Ticket(0))..=(news.shard, durable.up_to()))
                    .map(|(key, _)| *key)
                    .collect();
                for key in done {
                    if let Some((kind, head)) = self.flying.remove(&key) {
                        self.ledger.durable(kind, &head, false);
                    }
                }
            }
            self.shards[usize::from(news.shard)].completed(self.now, &news);
        }
    }

    fn perform(&mut self, shard: u16, effect: Effect) {
        let index = usize::from(shard);
        let now = self.now;
        match effect {
            Effect::Stored { ticket, result } => {
                let found = self
                    .inbound
                    .iter()
                    .find(|(_, l)| l.shard == shard && l.ticket == Some(ticket))
                    .map(|(id, _)| *id);
                if let Some(id) = found {
                    if let Some(link) = self.inbound.get_mut(&id) {
                        link.session.durable(now, ticket, result.map(|_| ()));
                    }
                    self.serve(id);
                }
            }
            Effect::Resolve { domain, question } => {
                self.after_millis(20, Event::Resolve(shard, domain, question));
            }
            Effect::Connect { plan, .. } => self.after_millis(5, Event::Connect(shard, plan)),
            Effect::Marked { connection, transaction } => {
                self.with(connection, |it, shard| it.marked(now, transaction, shard));
            }
            Effect::Resume { connection } => self.with(connection, |it, shard| it.resume(now, shard)),
            Effect::Close { connection } => self.with(connection, |it, shard| it.drain(now, shard)),
            Effect::Content { connection, transaction, piece, content } => {
                self.with(connection, |it, shard| match content {
                    Ok(bytes) => it.content(now, transaction, piece, bytes, shard),
                    Err(_) => it.content_failed(now, transaction, shard),
                });
            }
            Effect::Load { job, position } => self.after_millis(3, Event::Load(shard, job, position)),
            Effect::Capture(capture) => self.after_millis(3, Event::Captured(shard, capture.job)),
            Effect::WantSlot { lane, key, slots } => {
                let used = self.slots.entry(key).or_default();
                if *used < slots {
                    *used += 1;
                    self.shards[index].slot_granted(lane);
                } else {
                    self.shards[index].slot_refused(lane);
                }
            }
            Effect::ReturnSlot { key } => {
                let used = self.slots.entry(key).or_default();
                assert!(*used > 0, "seed {}: a slot came back that was not lent", self.seed);
                *used -= 1;
            }
            Effect::Answer { question, response } => {
                self.answers.insert(question.0, response);
            }
            Effect::Moved(moved) => {
                if let Ok(Owner::Shard(of)) = owner(moved.kind, &moved.head, SHARDS) {
                    self.shards[usize::from(of)].moved(&moved);
                }
            }
            Effect::Nudge => {}
        }
    }

    fn with(&mut self, connection: ConnectionId, act: impl FnOnce(&mut Connection, &mut Shard)) {
        if let Some(link) = self.outbound.get_mut(&connection.0) {
            act(&mut link.connection, &mut self.shards[usize::from(link.shard)]);
            self.after_millis(1, Event::ToConnection(connection.0));
        }
    }

    fn checkpoint_step(&mut self) {
        let Some((from, mut gathered)) = self.checkpointing.take() else { return };
        for (index, parts) in gathered.iter_mut().enumerate() {
            if parts.is_none() {
                *parts = self.shards[index].checkpoint_step();
            }
        }
        let whole = gathered.iter().enumerate().all(|(index, parts)| {
            parts.as_ref().is_some_and(|parts| self.shards[index].is_durable(parts.after))
        });
        if !whole {
            self.checkpointing = Some((from, gathered));
            return;
        }
        if self.dice.chance(250) {
            // No room for it: what it should have said is for the next one to say.
            return self.log.checkpoint_failed();
        }
        for part in gathered.into_iter().flatten().flat_map(|parts| parts.parts) {
            if part.content.is_empty() {
                self.parts.remove(&part.name);
            } else {
                self.parts.insert(part.name, part.content);
            }
        }
        self.checkpoints.push((from, self.parts.clone()));
        if self.checkpoints.len() > 2 {
            self.checkpoints.remove(0);
        }
        self.shards.iter_mut().for_each(Shard::checkpoint_confirmed);
        self.log.checkpointed(from);
        self.log.journaled(self.log.durable());
        self.tally.checkpoints += 1;
    }

    /// Runs the log's operations. True when the power failed in the midst of one.
    fn run_log(&mut self, may_fail: bool) -> bool {
        for _ in 0..200 {
            let fails = may_fail && (self.power_fails || self.dice.chance(1));
            let Some(op) = self.log.poll() else { return false };
            if fails {
                self.disk.run_partly(&op);
                return true;
            }
            let (outcome, bytes) = self.disk.run(&op);
            match op {
                Op::Write(_) => self.log.written(outcome),
                Op::Sync { .. } => self.log.synced(outcome),
                Op::Prepare(prepare) => self.log.prepared(prepare.segment, outcome),
                Op::Read { .. } => self.log.read(outcome.map(|()| bytes.unwrap_or_default())),
            }
            self.settle_down();
        }
        false
    }

    /// The power fails: memory is gone, the disk keeps what it keeps, and the relay starts anew.
    fn crash(&mut self) {
        self.power_fails = false;
        self.ledger.crashes += 1;
        self.ledger.allowance += 2 * 3 * self.outbound.len() as u64;
        let faults = std::mem::take(&mut self.disk.faults);
        self.disk.crash();
        self.inbound.clear();
        self.outbound.clear();
        self.slots.clear();
        self.flying.clear();
        self.events.clear();
        self.payloads.clear();
        self.answers.clear();
        self.checkpointing = None;
        self.shards = make_shards(&self.snapshot, self.seed);
        let newest = self.checkpoints.last().cloned();
        let from = newest.as_ref().map_or(Lsn(1), |(from, _)| *from);
        self.parts = BTreeMap::new();
        if let Some((_, parts)) = newest {
            for (name, content) in &parts {
                for shard in &mut self.shards {
                    shard
                        .load_part(content)
                        .unwrap_or_else(|e| panic!("seed {}: part {name}: {e}", self.seed));
                }
            }
        }
        let files = self.disk.files();
        let mut recovery = Recovery::new(&files, &mut self.disk, from, 99);
        while let Some(record) = recovery.next(&mut self.disk) {
            if !record.copied || record.kind == Kind::Chunk as u8 {
                self.ledger.durable(record.kind, record.head, true);
            }
            let fold =
                |shard: &mut Shard| shard.replay(record.kind, record.head, record.position, record.copied);
            let folded = match owner(record.kind, record.head, SHARDS) {
                Ok(Owner::Shard(shard)) => fold(&mut self.shards[usize::from(shard)]),
                Ok(Owner::All) => self.shards.iter_mut().try_for_each(fold),
                Err(error) => Err(error),
            };
            folded.unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        }
        assert!(recovery.report().damages.is_empty(), "seed {}: {:?}", self.seed, recovery.report().damages);
        let mut log = Log::recovered(self.settings, recovery.finish());
        let mut live = Vec::new();
        for shard in &mut self.shards {
            shard.replayed(self.now, &mut live);
        }
        live.into_iter().for_each(|position| log.retain(position));
        log.settled();
        if let [(older, _), (newer, _)] = &self.checkpoints[..] {
            log.checkpointed(*older);
            log.checkpointed(*newer);
        }
        log.journaled(log.durable());
        self.log = log;
        self.compare();
        self.disk.faults = faults;
        self.begin();
    }

    /// What the shards hold is what the log says, to the microsecond.
    fn compare(&mut self) {
        let seed = self.seed;
        let question = u64::MAX >> 2;
        let mut found = BTreeMap::new();
        for index in 0..self.shards.len() {
            let filter = Filter { all: true, ..Filter::default() };
            let request = Request::List { filter, limit: 10_000, after: None };
            self.shards[index].ask(self.now, QuestionId(question), 0, request);
            for _ in 0..100_000 {
                if self.answers.contains_key(&question) {
                    break;
                }
                // Only the operator's readings move here: nothing else has begun.
                let mut loads = Vec::new();
                while let Some(effect) = self.shards[index].poll_operator() {
                    match effect {
                        Effect::Load { job, position } => loads.push((job, position)),
                        effect => self.perform(u16::try_from(index).unwrap_or(0), effect),
                    }
                }
                for (job, position) in loads {
                    let loaded = self.read(position);
                    self.shards[index].loaded(self.now, job, loaded);
                }
            }
            match self.answers.remove(&question) {
                Some(Response::Recipients(views)) => {
                    found.extend(views.into_iter().map(|view| (view.order, view)));
                }
                other => panic!("seed {seed}: the list was answered by {other:?}"),
            }
        }
        for (key, logged) in self.ledger.waiting() {
            let Some(view) = found.get(key) else {
                panic!("seed {seed}: {key:?} waits in the log and not in memory")
            };
            assert_eq!(view.attempts, logged.attempts, "seed {seed}: attempts of {key:?}");
            if let Some(due) = logged.due {
                assert_eq!(view.due, due, "seed {seed}: due time of {key:?}");
            }
            self.tally.compared += 1;
        }
        for key in found.keys() {
            let logged = self.ledger.logged.get(key);
            assert!(
                logged.is_some_and(|l| l.terminal.is_none()),
                "seed {seed}: {key:?} came back to life: {logged:?}"
            );
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

fn make_shards(snapshot: &Arc<Snapshot>, seed: u64) -> Vec<Shard> {
    (0..SHARDS)
        .map(|index| {
            Shard::new(ShardConfig {
                index,
                shards: SHARDS,
                snapshot: snapshot.clone(),
                cipher: IdCipher::new([9; 16]),
                seed: seed ^ u64::from(index),
                fresh_size_max_bytes: 64 << 10,
            })
        })
        .collect()
}

//! One shard's event loop: sockets, timers, letters, and the engine between them.

use crate::clock::Clock;
use crate::config::Loadout;
use crate::inbound::Inbound;
use crate::inbox::Inbox;
use crate::letter::{Letter, PartRead, Reply};
use crate::lookup;
use crate::outbound::{Outbound, READ_MAX};
use crate::shared::Shared;
use crate::submissions::Waiter;
use crate::timers::{Owner, Timers};
use crate::turns::Turns;
use crate::workers::Work;
use mio::event::{Event, Source};
use mio::{Events, Poll, Token};
use postrider_disk::{CommitterHandle, Reader};
use postrider_engine::{ConnectionId, Effect, Health, JobId, Parts as CheckpointParts, QuestionId, Shard};
use postrider_ingress::{Answers, Pressure, Settled};
use postrider_model::Timestamp;
use postrider_net::{ClientTls, Listener};
use postrider_queue::LaneId;
use postrider_spool::{Append, Completion, Position, Ticket};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// The inbox's bell.
pub(crate) const WAKER: Token = Token(0);
const FIRST_LISTENER: usize = 1;
/// Listeners of a shard.
pub(crate) const LISTENERS_MAX: usize = 255;
/// Sessions have even, connections odd numbers from here.
pub(crate) const FIRST_TOKEN: usize = FIRST_LISTENER + LISTENERS_MAX;
/// Events taken at once.
const EVENTS_MAX: usize = 1_024;
/// Effects done before sockets have their turn again.
const EFFECTS_MAX: usize = 4_096;

/// A listening socket and the number of its listener in the snapshot.
pub(crate) struct Listening {
    pub(crate) number: usize,
    pub(crate) listener: Listener,
}

pub(crate) struct EventLoop {
    pub(crate) index: usize,
    pub(crate) poll: Poll,
    pub(crate) clock: Clock,
    pub(crate) inbox: Inbox<Letter>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) loadout: Arc<Loadout>,
    pub(crate) committer: CommitterHandle,
    pub(crate) reader: Reader,
    pub(crate) client_tls: ClientTls,
    pub(crate) listeners: Vec<Listening>,
    pub(crate) shard: Shard,
    pub(crate) sessions: Slab<Inbound>,
    pub(crate) connections: Slab<Outbound>,
    pub(crate) connection_keys: FxHashMap<ConnectionId, usize>,
    /// Who waits for a ticket, in the order of tickets.
    pub(crate) awaited: VecDeque<(Ticket, Waiter)>,
    /// Answers to submissions, sent at the end of a turn.
    pub(crate) settled: Vec<(Answers, Settled)>,
    pub(crate) timers: Timers,
    pub(crate) turns: Turns,
    /// Where reads land. It holds nothing between two reads.
    pub(crate) buffer: Vec<u8>,
    /// What AUTH by SCRAM left, by lane and host; as many as there are configured hosts with credentials.
    pub(crate) scram: FxHashMap<(LaneId, usize), postrider_egress::ScramMemory>,
    pub(crate) draining: bool,
    pub(crate) accept_again: Option<Timestamp>,
    pub(crate) held: Held,
    stop_at: Option<Timestamp>,
    /// A checkpoint under way: its parts, once they are whole, and who waits for them.
    checkpoint: Option<(Option<CheckpointParts>, Sender<CheckpointParts>)>,
    /// A part of the checkpoint being read, the bodies it told of so far, and who waits for them.
    part: Option<(Vec<Position>, Sender<PartRead>)>,
    questions: FxHashMap<QuestionId, Reply>,
    letters: Vec<Letter>,
    appends: Vec<Append>,
    releases: Vec<Position>,
    completion: Completion,
    ids: u32,
    random: u64,
}

/// What this shard's sessions hold in memory, and what that leads to.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) size_bytes: usize,
    pub(crate) published_bytes: usize,
    pub(crate) pressure: Pressure,
    /// The pressure when silent sessions were last looked at.
    pub(crate) swept_at: Pressure,
}

/// What an event loop is made of.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) poll: Poll,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) committer: CommitterHandle,
    pub(crate) reader: Reader,
    pub(crate) client_tls: ClientTls,
    pub(crate) listeners: Vec<Listening>,
    pub(crate) shard: Shard,
    pub(crate) seed: u64,
}

impl EventLoop {
    pub(crate) fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts { index, poll, clock, shared, committer, reader, client_tls, mut listeners, shard, seed } =
            parts;
        for (at, listening) in listeners.iter_mut().enumerate().take(LISTENERS_MAX) {
            let interest = mio::Interest::READABLE;
            listening.listener.register(poll.registry(), Token(FIRST_LISTENER + at), interest)?;
        }
        Ok(EventLoop {
            index,
            poll,
            clock,
            inbox: shared.inboxes[index].clone(),
            loadout: shared.loadout.load_full(),
            shared,
            committer,
            reader,
            client_tls,
            listeners,
            shard,
            sessions: Slab::new(),
            connections: Slab::new(),
            connection_keys: FxHashMap::default(),
            awaited: VecDeque::new(),
            settled: Vec::new(),
            timers: Timers::default(),
            turns: Turns::default(),
            buffer: Vec::with_capacity(READ_MAX),
            scram: FxHashMap::default(),
            draining: false,
            accept_again: None,
            held: Held::default(),
            stop_at: None,
            checkpoint: None,
            part: None,
            questions: FxHashMap::default(),
            letters: Vec::new(),
            appends: Vec::new(),
            releases: Vec::new(),
            completion: Completion::default(),
            ids: 0,
            random: seed,
        })
    }

    /// Runs until it is told to stop and has nothing left that it should wait for.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while self.go_round(&mut events) {}
        self.flush_log();
    }

    /// What can be done now, then a wait for more, then what came. False once it may stop.
    pub(crate) fn go_round(&mut self, events: &mut Events) -> bool {
        let now = self.clock.now();
        self.turns.begin_round();
        self.work(now);
        if self.may_stop(now) {
            return false;
        }
        let timeout = self.deadline(now).map(|deadline| deadline.since(now));
        if let Err(error) = self.poll.poll(events, timeout) {
            if error.kind() != std::io::ErrorKind::Interrupted {
                tracing::error!(%error, "waiting for sockets failed");
                std::thread::sleep(Duration::from_millis(10));
            }
            return true;
        }
        let now = self.clock.now();
        self.mind_memory(now);
        self.take_turns(now);
        // Connections before sessions: what leaves makes room for what comes in.
        for event in events.iter().filter(|event| !is_of_session(event)) {
            self.dispatch(now, event);
        }
        self.hear_held(now);
        for event in events.iter().filter(|event| is_of_session(event)) {
            self.dispatch(now, event);
        }
        self.run_timers(now);
        true
    }

    fn dispatch(&mut self, now: Timestamp, event: &Event) {
        match event.token() {
            WAKER => self.read_letters(now),
            Token(token) if token < FIRST_TOKEN => self.accept(now, token - FIRST_LISTENER),
            Token(token) => {
                let key = (token - FIRST_TOKEN) / 2;
                if (token - FIRST_TOKEN).is_multiple_of(2) {
                    self.session_event(now, key, event);
                } else {
                    self.connection_event(now, key, event);
                }
            }
        }
    }

    /// Does what the engine wants and hands its records to the log, until there is no more of either.
    fn work(&mut self, now: Timestamp) {
        self.take_news(now);
        for _ in 0..EFFECTS_MAX {
            let Some(effect) = self.shard.poll(now) else { break };
            self.perform(now, effect);
        }
        self.send_settled();
        self.checkpoint();
        self.load_step(now);
        self.flush_log();
    }

    /// One step of reading a part of the checkpoint.
    fn load_step(&mut self, now: Timestamp) {
        let Some((mut live, reply)) = self.part.take() else { return };
        let read = match self.shard.load_step(now, &mut live) {
            Ok(true) => {
                self.part = Some((live, reply));
                return;
            }
            Ok(false) => Ok(live),
            Err(error) => Err(error),
        };
        // Nobody waits any more if the relay stops.
        let _ = reply.send((self.index, read));
    }

    /// One step of a checkpoint. Its parts are handed over only when the log has everything they reflect.
    fn checkpoint(&mut self) {
        let Some((parts, reply)) = self.checkpoint.take() else { return };
        match parts.or_else(|| self.shard.checkpoint_step()) {
            // Nobody waits any more if the relay stops.
            Some(parts) if self.shard.is_durable(parts.after) => drop(reply.send(parts)),
            parts => self.checkpoint = Some((parts, reply)),
        }
    }

    fn flush_log(&mut self) {
        self.shard.take_appends(&mut self.appends);
        if !self.appends.is_empty() {
            self.committer.submit(&mut self.appends);
        }
        self.shard.take_releases(&mut self.releases);
        if !self.releases.is_empty() {
            self.committer.release(&mut self.releases);
        }
    }

    /// What the log says.
    fn take_news(&mut self, now: Timestamp) {
        let health = self.committer.health();
        self.shard.set_health(Health {
            full: health == postrider_spool::Health::Full,
            exhausted: health == postrider_spool::Health::Exhausted,
            broken: health == postrider_spool::Health::Failing,
            congested: self.committer.is_congested(),
        });
        self.committer.take_news(self.index, &mut self.completion);
        if !self.completion.is_empty() {
            self.turns.log_moved();
            let completion = std::mem::take(&mut self.completion);
            self.shard.completed(now, &completion);
        }
    }

    fn perform(&mut self, now: Timestamp, effect: Effect) {
        match effect {
            Effect::Stored { ticket, result } => self.stored(now, ticket, result.map(|_durable| ())),
            Effect::Resolve { domain, question } => {
                let seed = self.random();
                let port = self.loadout.snapshot.delivery.mx_port;
                lookup::ask(&self.shared.resolver, &self.inbox, domain, question, port, seed);
            }
            Effect::Connect { .. } if self.draining => {}
            Effect::Connect { plan, snapshot } => self.connect(now, plan, snapshot),
            Effect::MayEnd { connection, transaction } => {
                self.with_connection(now, connection, |it, shard| it.may_end(now, transaction, shard));
            }
            Effect::Resume { connection } => {
                self.with_connection(now, connection, |it, shard| it.resume(now, shard));
            }
            Effect::Close { connection } => {
                self.with_connection(now, connection, |it, shard| it.drain(now, shard));
            }
            Effect::Content { connection, transaction, piece, content } => {
                self.with_connection(now, connection, |it, shard| match content {
                    Ok(bytes) => it.content(now, transaction, piece, bytes, shard),
                    Err(_) => it.content_failed(now, transaction, shard),
                });
            }
            Effect::Load { job, position } => self.load(now, job, position),
            Effect::Capture(capture) => self.shared.workers.assign(Work::Capture(capture), &self.inbox),
            Effect::WantSlot { lane, key, slots } => {
                if self.shared.broker.acquire(self.index, lane, &key, slots) {
                    self.shard.slot_granted(lane);
                } else {
                    self.shard.slot_refused(lane);
                }
            }
            Effect::ReturnSlot { key } => {
                if let Some((shard, lane)) = self.shared.broker.release(self.index, &key) {
                    self.shared.inboxes[shard].send(Letter::SlotGranted(lane));
                }
            }
            Effect::Answer { question, response } => {
                if let Some(reply) = self.questions.remove(&question) {
                    reply(response);
                }
            }
            Effect::Moved(moved) => {
                let shards = u16::try_from(self.shared.inboxes.len()).unwrap_or(u16::MAX);
                if let Ok(postrider_engine::Owner::Shard(shard)) =
                    postrider_engine::owner(moved.kind, &moved.head, shards)
                {
                    self.shared.inboxes[usize::from(shard)].send(Letter::Moved(moved));
                }
            }
            Effect::Nudge => {
                self.flush_log();
                self.committer.nudge();
            }
        }
    }

    /// Reads a record: at once if the page cache has it, else on a worker.
    fn load(&mut self, now: Timestamp, job: JobId, position: Position) {
        if let Some(cached) = self.reader.read_cached(position) {
            let loaded = postrider_engine::Loaded { head: cached.head, body: cached.body };
            self.shard.loaded(now, job, Some(loaded));
        } else {
            self.shared.workers.assign(Work::Load { job, position }, &self.inbox);
        }
    }

    fn read_letters(&mut self, now: Timestamp) {
        let mut letters = std::mem::take(&mut self.letters);
        self.inbox.take(&mut letters);
        for letter in letters.drain(..) {
            self.read_letter(now, letter);
        }
        self.letters = letters;
    }

    fn read_letter(&mut self, now: Timestamp, letter: Letter) {
        match letter {
            Letter::Resolved { domain, resolution } => self.shard.resolved(now, domain, resolution),
            Letter::SlotGranted(lane) => self.shard.slot_granted(lane),
            Letter::Loaded { job, loaded } => self.shard.loaded(now, job, loaded),
            Letter::Captured { job, result } => self.shard.captured(now, job, result),
            Letter::Verdict { key, id, verdict } => self.verdict(now, key, id, verdict),
            Letter::Submit { messages, answers } => self.take_submissions(now, messages, &answers),
            Letter::Ask { number, request, reply } => {
                let question = QuestionId(u64::from(self.next_id()));
                self.questions.insert(question, reply);
                self.shard.ask(now, question, number, request);
            }
            Letter::Reload(loadout) => {
                self.shard.reload(now, loadout.snapshot.clone());
                self.loadout = loadout;
            }
            Letter::Control(loadout) => {
                self.loadout = loadout;
                self.reconfigure_sessions(now);
            }
            Letter::Checkpoint(reply) => {
                // What the log called durable by now must be in it.
                self.take_news(now);
                self.shard.begin_checkpoint();
                self.checkpoint = Some((None, reply));
            }
            Letter::Part { content, reply } => {
                self.shard.load_late(content);
                self.part = Some((Vec::new(), reply));
            }
            Letter::AllLoaded => self.shard.all_loaded(),
            Letter::CheckpointConfirmed => self.shard.checkpoint_confirmed(),
            Letter::Moved(moved) => self.shard.moved(&moved),
            Letter::Drain(at) => {
                self.draining = true;
                self.stop_at = Some(at);
                self.listeners.clear();
                self.stop_sessions(now);
                let ids: Vec<_> = self.connection_keys.keys().copied().collect();
                for id in ids {
                    self.with_connection(now, id, |it, shard| it.drain(now, shard));
                }
            }
        }
    }

    fn run_timers(&mut self, now: Timestamp) {
        while let Some(owner) = self.timers.due(now) {
            match owner {
                Owner::Session { key, id } => {
                    if self.sessions.get(key).is_some_and(|session| session.id == id) {
                        self.session_due(now, key);
                    }
                }
                Owner::Connection { key, id } => {
                    if self.connections.get(key).is_some_and(|connection| connection.id.0 == id) {
                        self.connection_due(now, key);
                    }
                }
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            for at in 0..self.listeners.len() {
                self.accept(now, at);
            }
        }
    }

    fn deadline(&mut self, now: Timestamp) -> Option<Timestamp> {
        let engine = if self.draining { None } else { self.shard.deadline() };
        let checkpoint = self.shard.is_checkpointing().then(Timestamp::default);
        let (timer, turn) = (self.timers.next(), self.next_turn(now));
        [engine, checkpoint, timer, turn, self.accept_again, self.stop_at].into_iter().flatten().min()
    }

    fn may_stop(&self, now: Timestamp) -> bool {
        let idle = self.sessions.is_empty() && self.connections.is_empty() && self.awaited.is_empty();
        self.stop_at.is_some_and(|at| at <= now || idle)
    }

    pub(crate) fn next_id(&mut self) -> u32 {
        self.ids = self.ids.wrapping_add(1);
        self.ids
    }

    /// The next of a stream of numbers that nobody outside can foresee.
    pub(crate) fn random(&mut self) -> u64 {
        let mut octets = [0; 8];
        match aws_lc_rs::rand::fill(&mut octets) {
            Ok(()) => u64::from_le_bytes(octets),
            Err(_) => {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                self.random
            }
        }
    }

    pub(crate) fn nonce(&mut self) -> [u8; 18] {
        let mut nonce = [0; 18];
        for chunk in nonce.chunks_mut(8) {
            let random = self.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
        nonce
    }
}

fn is_of_session(event: &Event) -> bool {
    let Token(token) = event.token();
    token >= FIRST_TOKEN && (token - FIRST_TOKEN).is_multiple_of(2)
}

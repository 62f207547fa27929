//! One shard: its state, and the loop of effects and answers around it.

use crate::Refusal;
use crate::checkpoint::Checkpoint;
use crate::effect::{Effect, JobId};
use crate::fold::Fold;
use crate::lanes::Lanes;
use crate::loading::Loading;
use crate::messages::{MessageSlot, Messages};
use crate::operate::Totals;
use crate::operator::Operator;
use crate::outflow::{ConnectionId, TransactionId};
use crate::replies::Replies;
use crate::report::ReportJob;
use crate::transaction::{Link, Open};
use postrider_model::record::Kind;
use postrider_model::snapshot::Route;
use postrider_model::{IdCipher, MessageNo, Snapshot, Timestamp};
use postrider_queue::{Action, Batch, Bucket, LaneId, Queue, RecipientSlot};
use postrider_spool::{Append, Completion, Durable, Position, Ticket};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a shard is made with.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its index among the shards, from 0.
    pub index: u16,
    /// How many shards there are.
    pub shards: u16,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Makes ids of numbers; the same for all shards.
    pub cipher: IdCipher,
    /// For jitter and shuffling.
    pub seed: u64,
    /// Octets of fresh content kept in memory; what is beyond is read back from the log when its turn comes.
    pub fresh_size_max_bytes: usize,
}

/// One shard of the relay.
pub struct Shard {
    pub(crate) index: u16,
    pub(crate) shards: u16,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The built-in route to the sandbox.
    pub(crate) capture: Arc<Route>,
    pub(crate) cipher: IdCipher,
    pub(crate) queue: Queue,
    pub(crate) messages: Messages,
    pub(crate) replies: Replies,
    pub(crate) lanes: Lanes,
    pub(crate) operator: Operator,
    pub(crate) totals: Totals,
    pub(crate) links: FxHashMap<ConnectionId, Link>,
    pub(crate) open: FxHashMap<TransactionId, Open>,
    pub(crate) jobs: FxHashMap<JobId, Job>,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) fresh_size_bytes: usize,
    pub(crate) fresh_size_max_bytes: usize,
    pub(crate) fresh_order: VecDeque<(MessageSlot, MessageNo)>,
    pub(crate) health: Health,
    /// Links with a transaction whose end waits for the log.
    pub(crate) links_ahead: usize,
    pub(crate) fold: Fold,
    /// Recipients of the checkpoint, as its parts count them.
    pub(crate) counted: u64,
    /// Parts of the checkpoint are still to come.
    pub(crate) loading: Option<Box<Loading>>,
    pub(crate) checkpoint: Option<Box<Checkpoint>>,
    /// Buckets that no checkpoint that counts has as they are.
    pub(crate) unconfirmed: FxHashSet<Bucket>,
    /// Streams that have begun and not ended, with the ticket of their first chunk.
    pub(crate) streams: FxHashMap<MessageNo, Ticket>,
    /// The ticket of the last draft that a session submitted, until the shell asks.
    pub(crate) submitted: Option<Ticket>,
    next_number: u64,
    next_ticket: u64,
    durable: Ticket,
    next_job: u64,
    pub(crate) next_transaction: u64,
    appends: Vec<Append>,
    releases: Vec<Position>,
    pending: VecDeque<(Ticket, Pending)>,
}

/// What the log can take, as its shell last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// No room for messages; outcomes still have the reserve.
    pub full: bool,
    /// As full, and the reserve is nearly used up: start nothing either.
    pub exhausted: bool,
    /// Nothing can be made durable: take nothing, start nothing.
    pub broken: bool,
    /// So much waits to be written that sessions are told to come back.
    pub congested: bool,
}

impl Health {
    /// What becomes of a transaction could not be written down.
    pub(crate) fn forbids_start(self) -> bool {
        self.broken || self.exhausted
    }
}

/// What happens when a record is durable.
pub(crate) enum Pending {
    /// A message came in.
    Message { slot: MessageSlot, number: MessageNo, origin: Origin },
    /// A chunk has a place.
    Chunk { number: MessageNo, index: u32 },
    /// A final dot may go.
    Mark { connection: ConnectionId, transaction: TransactionId },
    /// Outcomes of a connection are safe.
    Settled { connection: ConnectionId },
    /// Bodies are dead.
    Dead(Vec<Position>),
    /// Was lost.
    Nothing,
}

/// Who brought a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A session, which waits for the word.
    Session,
    /// The engine: a DSN.
    Engine,
}

/// Why a record is read.
pub(crate) enum Job {
    /// For a transaction of this connection.
    Transaction { connection: ConnectionId, lane: LaneId, batch: Batch },
    /// For the sandbox lane.
    CaptureRead { lane: LaneId, batch: Batch },
    /// Being kept in the sandbox.
    Capturing(Box<crate::capture::Capturing>),
    /// A piece of an open transaction.
    Piece { connection: ConnectionId, transaction: TransactionId, piece: usize },
    /// For a DSN; the record itself first if `job.record` is unknown.
    Report(Box<ReportJob>),
    /// For the operator.
    Operator(crate::operator::Reading),
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        Shard {
            index: config.index,
            shards: config.shards.max(1),
            queue: Queue::new(crate::lanes::queue_settings(&config.snapshot, config.shards), config.seed),
            lanes: Lanes::default(),
            snapshot: config.snapshot,
            capture: Arc::new(Route::capture()),
            cipher: config.cipher,
            messages: Messages::default(),
            replies: Replies::default(),
            operator: Operator::default(),
            totals: Totals::default(),
            links: FxHashMap::default(),
            open: FxHashMap::default(),
            jobs: FxHashMap::default(),
            effects: VecDeque::new(),
            fresh_size_bytes: 0,
            fresh_size_max_bytes: config.fresh_size_max_bytes,
            fresh_order: VecDeque::new(),
            health: Health::default(),
            links_ahead: 0,
            fold: Fold::default(),
            counted: 0,
            loading: None,
            checkpoint: None,
            unconfirmed: FxHashSet::default(),
            streams: FxHashMap::default(),
            submitted: None,
            next_number: u64::from(config.index),
            next_ticket: 1,
            durable: Ticket(0),
            next_job: 1,
            next_transaction: 1,
            appends: Vec::new(),
            releases: Vec::new(),
            pending: VecDeque::new(),
        }
    }

    /// The ticket of a draft that was submitted since the last call, for the shell to know whom to answer.
    pub fn take_submitted(&mut self) -> Option<Ticket> {
        self.submitted.take()
    }

    /// Its configuration.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Makes ids of numbers.
    #[must_use]
    pub fn cipher(&self) -> &IdCipher {
        &self.cipher
    }

    /// What the log's shell says of its health.
    pub fn set_health(&mut self, health: Health) {
        let recovers = self.health.forbids_start() && !health.forbids_start();
        self.health = health;
        if recovers {
            self.resume_waiting();
        }
    }

    /// A connection could go on if the log had what was handed to it.
    #[must_use]
    pub fn waits_for_log(&self) -> bool {
        self.links_ahead > 0
    }

    /// Records to append, in order. The shell takes them all, in one go, every time it has called in.
    pub fn take_appends(&mut self, into: &mut Vec<Append>) {
        into.append(&mut self.appends);
    }

    /// Bodies that are dead, for the log's account of live ones.
    pub fn take_releases(&mut self, into: &mut Vec<Position>) {
        into.append(&mut self.releases);
    }

    /// The next effect, or nothing until something comes in or [`Shard::deadline`] passes.
    pub fn poll(&mut self, now: Timestamp) -> Option<Effect> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            if self.health.forbids_start() {
                // No transaction starts while its outcome could not be written down (design §5).
                return None;
            }
            match self.queue.poll(now) {
                Some(action) => self.act(now, action),
                None => {
                    // One step, so that sockets have their turn; `deadline` asks for the next.
                    self.sweep(now);
                    return self.effects.pop_front();
                }
            }
        }
    }

    /// As [`Shard::poll`], but only for what the operator asked: nothing is sent or looked up.
    pub fn poll_operator(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.sweep(Timestamp::default());
        }
        self.effects.pop_front()
    }

    /// Nothing waits here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.len() == 0 && self.pending.is_empty() && self.loading.is_none()
    }

    /// When [`Shard::poll`] has something to do though nothing comes in.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let has_steps = if self.is_loading() { self.has_part() } else { self.operator.is_sweeping() };
        if has_steps { Some(Timestamp::default()) } else { self.queue.deadline() }
    }

    fn act(&mut self, now: Timestamp, action: Action) {
        match action {
            Action::Resolve(domain) => self.resolve(now, domain),
            Action::Connect(lane) => self.connect(now, lane),
            Action::Expired(recipient) => self.expire(now, recipient),
            Action::Warn(recipient) => self.warn(now, recipient),
            Action::WantSlot(lane) => self.want_slot(lane),
            Action::ReturnSlot(lane) => self.return_slot(lane),
            Action::Pull(lane) => self.pull(now, lane),
            Action::Close(lane) => self.close_idle(now, lane),
            Action::Recovered(lane) => self.recovered(now, lane),
        }
    }

    /// Takes the log's word on what is durable or lost.
    pub fn completed(&mut self, now: Timestamp, completion: &Completion) {
        for &(ticket, lost) in &completion.lost {
            if let Some(Pending::Message { slot, number, origin }) = self.take_pending(ticket) {
                self.stored(now, ticket, (slot, number, origin), None, Err(lost));
            }
        }
        let mut placed = completion.placed.iter().copied().peekable();
        let durable = completion.durable;
        let up_to = durable.map_or(Ticket(0), Durable::up_to);
        self.durable = self.durable.max(up_to);
        while self.pending.front().is_some_and(|(ticket, _)| *ticket <= up_to) {
            let Some((ticket, pending)) = self.pending.pop_front() else { break };
            while placed.next_if(|(of, _)| *of < ticket).is_some() {}
            let position = placed.next_if(|(of, _)| *of == ticket).map(|(_, position)| position);
            match (pending, durable) {
                (Pending::Message { slot, number, origin }, Some(durable)) => {
                    self.stored(now, ticket, (slot, number, origin), position, Ok(durable));
                }
                (Pending::Chunk { number, index }, _) => self.chunk_placed(number, index, position),
                (Pending::Mark { connection, transaction }, _) => {
                    self.mark_durable(connection, transaction);
                }
                (Pending::Settled { connection }, _) => self.settled_durably(connection),
                (Pending::Dead(mut positions), _) => self.releases.append(&mut positions),
                (Pending::Message { .. } | Pending::Nothing, _) => {}
            }
        }
        // Chunks are placed as soon as they are written, before anything makes them durable.
        for (ticket, position) in placed {
            if let Some(&mut (_, Pending::Chunk { number, index })) = self.find_pending(ticket) {
                self.chunk_placed(number, index, Some(position));
            }
        }
        for moved in &completion.moved {
            self.moved(moved);
        }
    }

    fn find_pending(&mut self, ticket: Ticket) -> Option<&mut (Ticket, Pending)> {
        let at = self.pending.partition_point(|(known, _)| *known < ticket);
        self.pending.get_mut(at).filter(|(known, _)| *known == ticket)
    }

    fn take_pending(&mut self, ticket: Ticket) -> Option<Pending> {
        self.find_pending(ticket).map(|(_, pending)| std::mem::replace(pending, Pending::Nothing))
    }

    /// Appends a record; gives its ticket.
    pub(crate) fn append(&mut self, record: NewRecord) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.appends.push(Append {
            shard: self.index,
            ticket,
            kind: record.kind as u8,
            head: record.head,
            body: record.body,
            urgent: record.urgent,
            event: !matches!(record.kind, Kind::Chunk | Kind::Attempt),
            chunk: record.kind == Kind::Chunk,
            reserve: record.reserve,
            needs: record.needs,
        });
        ticket
    }

    /// Appends a record and says what happens when it is durable.
    pub(crate) fn append_then(&mut self, record: NewRecord, pending: Pending) -> Ticket {
        let ticket = self.append(record);
        self.pending.push_back((ticket, pending));
        ticket
    }

    /// Says what happens when an append already made is durable.
    pub(crate) fn watch(&mut self, ticket: Ticket, pending: Pending) {
        self.pending.push_back((ticket, pending));
    }

    /// Bodies that nobody will read again, to be released once all that was appended so far is durable.
    pub(crate) fn release_after(&mut self, ticket: Ticket, positions: Vec<Position>) {
        if !positions.is_empty() {
            self.pending.push_back((ticket, Pending::Dead(positions)));
        }
    }

    /// Everything up to this ticket is durable, but for what was reported lost.
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.durable
    }

    /// The last ticket given out.
    pub(crate) fn last_ticket(&self) -> Ticket {
        Ticket(self.next_ticket - 1)
    }

    pub(crate) fn new_job(&mut self, job: Job) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.jobs.insert(id, job);
        id
    }

    /// A number that no message had.
    pub(crate) fn new_number(&mut self) -> MessageNo {
        let number = MessageNo(self.next_number);
        self.next_number += u64::from(self.shards);
        number
    }

    /// Every number below this one may have been given out.
    pub(crate) fn numbers_taken(&self) -> u64 {
        self.next_number
    }

    /// Numbers up to this one are taken.
    pub(crate) fn number_taken(&mut self, number: MessageNo) {
        let shards = u64::from(self.shards);
        if number.0 >= self.next_number {
            self.next_number = (number.0 / shards + 1) * shards + u64::from(self.index);
        }
    }

    pub(crate) fn refuse_if_unhealthy(&self) -> Result<(), Refusal> {
        match self.health {
            Health { broken: true, .. } => Err(Refusal::write_failed()),
            Health { full: true, .. } | Health { exhausted: true, .. } => Err(Refusal::disk_full()),
            Health { congested: true, .. } => Err(Refusal::busy()),
            Health { .. } => Ok(()),
        }
    }

    /// The message and ordinal of a recipient.
    pub(crate) fn place_of(&self, recipient: RecipientSlot) -> (MessageSlot, u16) {
        match self.queue.recipient(recipient) {
            Some(entry) => (MessageSlot(entry.message), entry.ordinal),
            None => (MessageSlot::NONE, 0),
        }
    }
}

/// A record to append.
pub(crate) struct NewRecord {
    pub(crate) kind: Kind,
    pub(crate) head: Vec<u8>,
    pub(crate) body: postrider_spool::Body,
    pub(crate) urgent: bool,
    /// It must not be refused.
    pub(crate) reserve: bool,
    /// The first chunk it commits.
    pub(crate) needs: Option<Ticket>,
}

impl NewRecord {
    /// One without a body, that rides along with the next batch.
    pub(crate) fn riding(kind: Kind, encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut head = Vec::with_capacity(96);
        encode(&mut head);
        NewRecord { kind, head, body: SmallVec::new(), urgent: false, reserve: true, needs: None }
    }

    /// One without a body that somebody waits for.
    pub(crate) fn urgent(kind: Kind, encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        NewRecord { urgent: true, ..NewRecord::riding(kind, encode) }
    }
}

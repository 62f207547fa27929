//! The engine's side towards connections: transactions out, outcomes in.

use crate::effect::{Effect, Loaded};
use crate::messages::{Fresh, MessageSlot};
use crate::outflow::{ConnectionId, Next, Outflow, Settled, Settlement, Transaction, TransactionId};
use crate::replies::ReplyRef;
use crate::report::Failure;
use crate::shard::{Job, NewRecord, Pending, Shard};
use bytes::Bytes;
use postrider_model::record::{self, Kind, Ordinals};
use postrider_model::{EnhancedCode, Outcome, Reply, Terminal, Timestamp, Via};
use postrider_queue::{Batch, LaneId, RecipientSlot, Throttle};
use smallvec::SmallVec;
use std::sync::Arc;

/// Transactions of a connection without a durable outcome (design §5, "In doubt"): what bounds the copies
/// after a crash.
const IN_DOUBT_MAX: u8 = 2;

/// What the engine knows of an open connection.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Transactions whose end may have been sent and whose outcomes are not yet durable.
    in_doubt: u8,
    /// One more, whose end must wait for the outcome of an earlier one.
    ahead: Option<Ahead>,
    /// It asked for more and was told to wait.
    waiting: bool,
    /// It has no work; the queue counts it as idle.
    pub(crate) idle: bool,
    /// A message is being read for it.
    loading: bool,
    /// A transaction that waits to be fetched.
    ready: Option<Transaction>,
}

/// A transaction that was handed out while as many as may be were in doubt: its envelope goes behind the content of
/// the one before, which saves a round trip.
#[derive(Debug)]
struct Ahead {
    transaction: TransactionId,
    /// Its mark is durable.
    marked: bool,
}

/// A transaction that a connection has.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) connection: ConnectionId,
    pub(crate) lane: LaneId,
    pub(crate) message: MessageSlot,
    pub(crate) record: Arc<record::Message>,
    pub(crate) content: SmallVec<[Bytes; 4]>,
    pub(crate) recipients: SmallVec<[RecipientSlot; 4]>,
    pub(crate) ordinals: Ordinals,
}

impl Outflow for Shard {
    fn next(&mut self, now: Timestamp, connection: ConnectionId, lane: LaneId) -> Next {
        let broken = self.health.forbids_start();
        if !self.links.contains_key(&connection) {
            self.connection_opened(now, connection, lane);
        }
        let link = self.links.entry(connection).or_default();
        if let Some(transaction) = link.ready.take() {
            return Next::Transaction(transaction);
        }
        if link.loading {
            return Next::Loading;
        }
        if link.idle {
            // It was told so, and the queue counts it once; `pull` ends that.
            return Next::Idle;
        }
        if link.ahead.is_some() || broken {
            if !link.waiting {
                link.waiting = true;
                self.effects.push_back(Effect::Nudge);
            }
            return Next::Loading;
        }
        loop {
            let Some(batch) = self.queue.next(now, lane) else {
                self.idle(connection, lane);
                return Next::Idle;
            };
            let slot = MessageSlot(batch.message);
            // Invariant: a queued recipient's message is there.
            let Some(message) = self.messages.get(slot) else { continue };
            if let Some(Fresh { record, content }) = message.fresh.as_deref() {
                let (record, content) = (record.clone(), content.clone());
                match self.open(now, connection, lane, batch, record, content) {
                    Some(transaction) => return Next::Transaction(transaction),
                    None => continue,
                }
            }
            let Some(position) = message.position else { continue };
            self.links.entry(connection).or_default().loading = true;
            let job = self.new_job(Job::Transaction { connection, lane, batch });
            self.effects.push_back(Effect::Load { job, position });
            return Next::Loading;
        }
    }

    fn read(&mut self, connection: ConnectionId, transaction: TransactionId, piece: usize) {
        let position = self
            .open
            .get(&transaction)
            .and_then(|open| self.messages.chunks(open.record.number).get(piece).copied().flatten());
        match position {
            Some(position) => {
                let job = self.new_job(Job::Piece { connection, transaction, piece });
                self.effects.push_back(Effect::Load { job, position });
            }
            None => {
                let content = Err(damaged());
                self.effects.push_back(Effect::Content { connection, transaction, piece, content });
            }
        }
    }

    fn settle(&mut self, now: Timestamp, settlement: Settlement) {
        let Some(open) = self.open.remove(&settlement.transaction) else { return };
        let tickets_before = self.last_ticket();
        self.settle_outcomes(now, &open, &settlement);
        let ticket = self.last_ticket();
        if self.was_ahead(open.connection, settlement.transaction) {
            // Its end was not sent, so nothing was in doubt.
        } else if ticket == tickets_before {
            // Nothing was tried, so nothing is in doubt.
            self.settled_durably(open.connection);
        } else {
            self.watch(ticket, Pending::Settled { connection: open.connection });
        }
    }

    fn throttled(&mut self, now: Timestamp, lane: LaneId, reply: &Reply) {
        if let Some(known) = self.lanes.get_mut(lane) {
            known.last_reply = Some(reply.clone());
        }
        self.site_asks_for_less(now, lane, Throttle::Session, reply);
    }
}

impl Shard {
    /// Makes a transaction of a batch; `None` if none of its recipients may go now.
    fn open(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        lane: LaneId,
        batch: Batch,
        record: Arc<record::Message>,
        content: SmallVec<[Bytes; 4]>,
    ) -> Option<Transaction> {
        let batch = self.stop_suspended(now, lane, batch, &record)?;
        let message = MessageSlot(batch.message);
        let id = TransactionId(self.next_transaction);
        self.next_transaction += 1;
        let mut ordinals = Ordinals::new();
        let mut attempts = 0;
        for &recipient in &batch.recipients {
            let Some(entry) = self.queue.recipient(recipient) else { continue };
            ordinals.push(entry.ordinal);
            attempts = attempts.max(entry.attempts);
        }
        let carries_mark = self.messages.get(message).is_some_and(|message| message.flags.marked);
        let marked = attempts == 0 && carries_mark;
        if !marked {
            let mark =
                record::Attempt { number: record.number, ordinals: ordinals.clone(), attempt: attempts + 1 };
            let mark = NewRecord::urgent(Kind::Attempt, |head| mark.encode(head));
            self.append_then(mark, Pending::Mark { connection, transaction: id });
        }
        let link = self.links.entry(connection).or_default();
        let may_end = link.in_doubt < IN_DOUBT_MAX;
        if may_end {
            link.in_doubt += 1;
        } else {
            link.ahead = Some(Ahead { transaction: id, marked });
            self.links_ahead += 1;
            self.effects.push_back(Effect::Nudge);
        }
        let pieces = Self::pieces(&record, &content);
        let transaction = Transaction {
            id,
            message: record.clone(),
            ordinals: ordinals.clone(),
            pieces,
            may_end: marked && may_end,
            attempts,
        };
        let open =
            Open { connection, lane, message, record, content, recipients: batch.recipients, ordinals };
        self.open.insert(id, open);
        Some(transaction)
    }

    /// A message was read for a transaction.
    pub(crate) fn loaded_for_transaction(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        lane: LaneId,
        batch: Batch,
        loaded: Option<Loaded>,
    ) {
        let known = self.links.contains_key(&connection);
        if let Some(link) = self.links.get_mut(&connection) {
            link.loading = false;
        }
        let record =
            loaded.and_then(|l| record::Message::decode(&l.head).ok().map(|record| (record, l.body)));
        match record {
            None => self.set_aside(batch),
            Some(_) if !known => self.requeue(&batch.recipients),
            Some((record, body)) => {
                let content = SmallVec::from_iter([body]);
                if let Some(transaction) = self.open(now, connection, lane, batch, Arc::new(record), content)
                {
                    self.links.entry(connection).or_default().ready = Some(transaction);
                }
            }
        }
        if known {
            self.effects.push_back(Effect::Resume { connection });
        }
    }

    /// A record cannot be read: its recipients are held for the operator, who sees why.
    pub(crate) fn set_aside(&mut self, batch: Batch) {
        for recipient in batch.recipients {
            let said = self.keep_said(&damaged(), "", false);
            self.set_reply(recipient, said);
            self.hold(recipient);
        }
    }

    pub(crate) fn requeue(&mut self, recipients: &[RecipientSlot]) {
        for &recipient in recipients {
            self.queue.requeue(recipient);
        }
    }

    /// A connection is gone: what it had goes back.
    pub(crate) fn unlink(&mut self, now: Timestamp, connection: ConnectionId) {
        let link = self.links.remove(&connection).unwrap_or_default();
        self.links_ahead -= usize::from(link.ahead.is_some());
        if let Some(transaction) = link.ready
            && let Some(open) = self.open.remove(&transaction.id)
        {
            self.requeue(&open.recipients);
        }
        // A connection settles what it was given before it ends; what it did not is in doubt.
        let mut left: Vec<_> =
            self.open.iter().filter(|(_, open)| open.connection == connection).map(|(id, _)| *id).collect();
        left.sort_unstable();
        for transaction in left {
            let Some(open) = self.open.get(&transaction) else { continue };
            let reply = Reply::ours(451, EnhancedCode(4, 4, 2), "The connection ended without an answer");
            let outcome = Settled::Outcome(Outcome::InDoubt(reply));
            let outcomes = open.ordinals.iter().map(|ordinal| (*ordinal, outcome.clone())).collect();
            let via = self.via(open.lane);
            self.settle(
                now,
                Settlement { transaction, outcomes, peer: "".into(), via, dsn_passed_on: false },
            );
        }
    }

    /// The log takes records again: whoever was told to wait for that asks anew.
    pub(crate) fn resume_waiting(&mut self) {
        let mut waiting: Vec<_> =
            self.links.iter().filter(|(_, link)| link.waiting).map(|(id, _)| *id).collect();
        waiting.sort_unstable();
        for connection in waiting {
            if let Some(link) = self.links.get_mut(&connection) {
                link.waiting = false;
            }
            self.effects.push_back(Effect::Resume { connection });
        }
    }

    /// The mark of a transaction is durable.
    pub(crate) fn mark_durable(&mut self, connection: ConnectionId, transaction: TransactionId) {
        let ahead = self.links.get_mut(&connection).and_then(|link| link.ahead.as_mut());
        match ahead.filter(|ahead| ahead.transaction == transaction) {
            Some(ahead) => ahead.marked = true,
            None => self.effects.push_back(Effect::MayEnd { connection, transaction }),
        }
    }

    /// True if this transaction was settled without leave to send its end.
    fn was_ahead(&mut self, connection: ConnectionId, transaction: TransactionId) -> bool {
        let Some(link) = self.links.get_mut(&connection) else { return false };
        let was = link.ahead.take_if(|ahead| ahead.transaction == transaction).is_some();
        if was {
            self.links_ahead -= 1;
            self.resume_if_waiting(connection);
        }
        was
    }

    /// One outcome of a connection is durable: the transaction that waited for that may end.
    pub(crate) fn settled_durably(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.in_doubt = link.in_doubt.saturating_sub(1);
        if let Some(Ahead { transaction, marked }) = link.ahead.take() {
            link.in_doubt += 1;
            self.links_ahead -= 1;
            if marked {
                self.effects.push_back(Effect::MayEnd { connection, transaction });
            }
        }
        self.resume_if_waiting(connection);
    }

    fn resume_if_waiting(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.waiting {
            link.waiting = false;
            self.effects.push_back(Effect::Resume { connection });
        }
    }

    fn settle_outcomes(&mut self, now: Timestamp, open: &Open, settlement: &Settlement) {
        // The usual case: all recipients share one outcome. Recipients are grouped by equal outcome, in
        // order, so that one record speaks for a group.
        let mut failures: Vec<Failure> = Vec::new();
        let mut delivered = Ordinals::new();
        let mut done: SmallVec<[bool; 8]> = SmallVec::from_elem(false, settlement.outcomes.len());
        for i in 0..settlement.outcomes.len() {
            if done[i] {
                continue;
            }
            let (_, settled) = &settlement.outcomes[i];
            let mut group = SmallVec::<[(RecipientSlot, u16); 4]>::new();
            for (j, (ordinal, other)) in settlement.outcomes.iter().enumerate().skip(i) {
                if !done[j] && other == settled {
                    done[j] = true;
                    let at = open.ordinals.iter().position(|known| known == ordinal);
                    if let Some(at) = at {
                        group.push((open.recipients[at], *ordinal));
                    }
                }
            }
            match settled {
                Settled::NotTried => group.iter().for_each(|(recipient, _)| self.queue.requeue(*recipient)),
                Settled::Outcome(Outcome::Delivered(reply)) => {
                    delivered.extend(group.iter().map(|(_, ordinal)| *ordinal));
                    self.lane_counts(open.lane, group.len(), 0);
                    let verdict = Terminal::Delivered(settlement.via);
                    self.finish(now, open.message, &group, verdict, reply, &settlement.peer);
                }
                Settled::Outcome(Outcome::Deferred(reply)) => {
                    self.defer(now, open, &group, reply, &settlement.peer, false);
                }
                Settled::Outcome(Outcome::InDoubt(reply)) => {
                    self.defer(now, open, &group, reply, &settlement.peer, true);
                }
                Settled::Outcome(Outcome::Failed(reply)) => {
                    failures.extend(group.iter().map(|(recipient, ordinal)| Failure {
                        recipient: *recipient,
                        ordinal: *ordinal,
                        verdict: Terminal::Bounced,
                        reply: reply.clone(),
                        peer: settlement.peer.clone(),
                    }));
                }
            }
        }
        if !failures.is_empty() {
            let content = Some(open.content.clone());
            self.fail(now, open.message, open.record.clone(), content, failures);
        }
        if !delivered.is_empty() && (!settlement.dsn_passed_on || settlement.via == Via::Lmtp) {
            self.report_success(now, open, &delivered, settlement);
        }
    }

    fn lane_counts(&mut self, lane: LaneId, delivered: usize, deferred: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.delivered += delivered as u64;
            lane.deferred += deferred as u64;
        }
        self.totals.deferred += deferred as u64;
    }

    fn defer(
        &mut self,
        now: Timestamp,
        open: &Open,
        group: &[(RecipientSlot, u16)],
        reply: &Reply,
        peer: &str,
        in_doubt: bool,
    ) {
        self.lane_counts(open.lane, 0, group.len());
        for &(recipient, ordinal) in group {
            let (due, attempts) = self.put_off(now, recipient, reply, peer, in_doubt);
            let record = record::Deferral {
                number: open.record.number,
                ordinals: Ordinals::from_slice(&[ordinal]),
                at: now,
                attempts,
                due,
                in_doubt,
                reply: reply.clone(),
                peer: peer.into(),
            };
            self.append(NewRecord::riding(Kind::Deferral, |head| record.encode(head)));
        }
        // What waits holds no content in memory (requirement: bodies not held).
        self.forget_fresh(open.message);
    }

    /// A recipient waits for its next attempt; gives when that is and how many there were.
    pub(crate) fn put_off(
        &mut self,
        now: Timestamp,
        recipient: RecipientSlot,
        reply: &Reply,
        peer: &str,
        in_doubt: bool,
    ) -> (Timestamp, u16) {
        let said = self.keep_said(reply, peer, in_doubt);
        let before = self.reply_of(recipient);
        let result = self.queue.deferred(now, recipient, said.0);
        self.replies.drop(before);
        result
    }

    pub(crate) fn set_reply(&mut self, recipient: RecipientSlot, reply: ReplyRef) {
        let before = self.reply_of(recipient);
        self.queue.set_reply(recipient, reply.0);
        self.replies.drop(before);
    }

    pub(crate) fn reply_of(&self, recipient: RecipientSlot) -> ReplyRef {
        self.queue.recipient(recipient).map_or(ReplyRef::NONE, |entry| ReplyRef(entry.reply))
    }

    /// Gives recipients their verdict, in the log and in memory.
    pub(crate) fn finish(
        &mut self,
        now: Timestamp,
        message: MessageSlot,
        group: &[(RecipientSlot, u16)],
        terminal: Terminal,
        reply: &Reply,
        peer: &str,
    ) {
        let Some(number) = self.messages.get(message).map(|message| message.number) else { return };
        let attempts_of = |recipient| self.queue.recipient(recipient).map_or(0, |entry| entry.attempts);
        let attempts = group.iter().map(|(recipient, _)| attempts_of(*recipient)).max().unwrap_or(0);
        // The verdict of an attempt counts that attempt.
        let tried = matches!(terminal, Terminal::Delivered(_) | Terminal::Bounced | Terminal::Captured);
        let record = record::Final {
            number,
            ordinals: group.iter().map(|(_, ordinal)| *ordinal).collect(),
            at: now,
            attempts: attempts.saturating_add(u16::from(tried)),
            terminal,
            reply: reply.clone(),
            peer: peer.into(),
        };
        let ticket = self.append(NewRecord::riding(Kind::Final, |head| record.encode(head)));
        self.totals.count(terminal, group.len() as u64);
        let mut places = Vec::new();
        for (recipient, _) in group {
            self.remove_recipient(message, *recipient, &mut places);
        }
        self.release_after(ticket, places);
    }

    /// Takes a recipient out of memory; when it was the last one, its message too, unless others of it may
    /// still be loaded.
    pub(crate) fn remove_recipient(
        &mut self,
        message: MessageSlot,
        recipient: RecipientSlot,
        places: &mut Vec<postrider_spool::Position>,
    ) {
        let last = self.messages.unlink(message, recipient);
        let may_have_more = self.remember_end(message, recipient, last);
        let reply = self.reply_of(recipient);
        self.queue.finished(recipient);
        self.replies.drop(reply);
        self.operator.forget(recipient);
        if last && !may_have_more {
            self.forget_fresh(message);
            if let Some(message) = self.messages.remove(message) {
                places.extend(message.position);
                if message.flags.chunked {
                    places.extend(self.messages.take_chunks(message.number));
                }
            }
        }
    }

    /// Takes what was read for [`Effect::Load`]; `None` when the record is damaged or cannot be read.
    pub fn loaded(&mut self, now: Timestamp, job: crate::JobId, loaded: Option<Loaded>) {
        match self.jobs.remove(&job) {
            None | Some(Job::Capturing(_)) => {}
            Some(Job::Transaction { connection, lane, batch }) => {
                self.loaded_for_transaction(now, connection, lane, batch, loaded);
            }
            Some(Job::CaptureRead { lane, batch }) => self.loaded_for_capture(now, lane, batch, loaded),
            Some(Job::Piece { connection, transaction, piece }) => {
                let content = loaded.map(|loaded| loaded.body).ok_or_else(damaged);
                self.effects.push_back(Effect::Content { connection, transaction, piece, content });
            }
            Some(Job::Report(report)) => self.loaded_for_report(now, *report, loaded),
            Some(Job::Operator(reading)) => self.loaded_for_operator(now, &reading, loaded),
        }
    }
}

/// What stands for a reply that is not known any more.
pub(crate) fn unknown() -> Reply {
    Reply::ours(451, EnhancedCode(4, 4, 1), "The site did not answer")
}

/// What is said of a message that cannot be read back.
pub(crate) fn damaged() -> Reply {
    Reply::ours(
        451,
        EnhancedCode(4, 3, 0),
        "The message's record is damaged on disk; see `postrider spool check`",
    )
}

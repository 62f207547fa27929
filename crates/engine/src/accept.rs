//! The engine's side towards sessions: from a draft to a durable message in the queue.

use crate::effect::Effect;
use crate::messages::{Flags, Fresh, MessageSlot};
use crate::outflow::Piece;
use crate::shard::{NewRecord, Origin, Pending, Shard};
use crate::{Draft, Intake, Refusal};
use bytes::Bytes;
use postrider_model::record::{self, Kind};
use postrider_model::{EnhancedCode, MessageNo, Reply, Timestamp};
use postrider_spool::{Body, Durable, Lost, Position, Ticket};
use smallvec::SmallVec;
use std::sync::Arc;

/// With more recipients than this waiting in a lane, a fresh message is not likely to leave at once: it
/// then carries no mark, and its attempt writes one.
const READY_AT_ONCE_MAX: u32 = 4_096;

impl Intake for Shard {
    fn begin(&mut self, _now: Timestamp, _size_bytes: u64) -> Result<MessageNo, Refusal> {
        self.refuse_if_unhealthy()?;
        Ok(self.new_number())
    }

    fn chunk(&mut self, number: MessageNo, index: u32, content: Bytes) -> Result<(), Refusal> {
        self.refuse_if_unhealthy()?;
        let mut head = Vec::with_capacity(12);
        record::Chunk { number, index }.encode(&mut head);
        let body = Body::from_iter([content]);
        let record = NewRecord { kind: Kind::Chunk, head, body, urgent: false, reserve: false, needs: None };
        let ticket = self.append_then(record, Pending::Chunk { number, index });
        self.streams.entry(number).or_insert(ticket);
        Ok(())
    }

    fn submit(&mut self, _now: Timestamp, draft: Draft) -> Result<Ticket, Refusal> {
        let number = draft.message.number;
        if let Err(refusal) = self.refuse_if_unhealthy() {
            self.abandon(number);
            return Err(refusal);
        }
        let from = draft.message.envelope.reverse_path.as_ref();
        if let Some(recipient) =
            draft.message.recipients.iter().find(|recipient| self.way(recipient, from).is_none())
        {
            let text = format!("No route for {} any more: the configuration has changed", recipient.mailbox);
            self.abandon(number);
            return Err(Refusal(Reply::ours(451, EnhancedCode(4, 3, 5), &text)));
        }
        let ticket = self.submit_as(draft, Origin::Session);
        self.submitted = Some(ticket);
        Ok(ticket)
    }

    fn abandon(&mut self, number: MessageNo) {
        if self.streams.remove(&number).is_some() {
            self.abandon_chunks(number);
        }
    }
}

impl Shard {
    pub(crate) fn submit_as(&mut self, mut draft: Draft, origin: Origin) -> Ticket {
        let number = draft.message.number;
        draft.message.sent_at_once = self.leaves_at_once(&draft.message);
        let mut head = Vec::with_capacity(160);
        draft.message.encode(&mut head);
        let flags = Flags { marked: draft.message.sent_at_once, chunked: draft.message.chunks > 0 };
        let needs = self.streams.remove(&number);
        let body: Body = draft.content.iter().cloned().collect();
        let accepted_at = draft.message.accepted_at;
        let fresh = Box::new(Fresh { record: Arc::new(draft.message), content: draft.content });
        self.fresh_size_bytes += fresh.size_bytes();
        let slot = self.messages.insert(number, accepted_at, Some(fresh), flags);
        let reserve = origin == Origin::Engine;
        let record = NewRecord { kind: Kind::Message, head, body, urgent: true, reserve, needs };
        self.append_then(record, Pending::Message { slot, number, origin })
    }

    /// This message is likely to leave at once: every recipient's lane is known and well, and little waits.
    fn leaves_at_once(&self, message: &record::Message) -> bool {
        let from = message.envelope.reverse_path.as_ref();
        !message.held
            && message.due.is_none()
            && !self.health.broken
            && message.recipients.iter().all(|recipient| {
                let domain = recipient.mailbox.domain();
                let known = self.way(recipient, from).and_then(|index| self.find_route(index, domain));
                known.and_then(|domain| self.queue.domain(domain).lane).is_some_and(|lane| {
                    let lane = self.queue.lane(lane);
                    lane.connections > 0 && lane.ready < READY_AT_ONCE_MAX && lane.backoff_until.is_none()
                })
            })
    }

    fn abandon_chunks(&mut self, number: MessageNo) {
        // Chunks still on their way are given up when they arrive (`chunk_placed`).
        let places = self.messages.take_chunks(number);
        self.release_now(places);
    }

    pub(crate) fn release_now(&mut self, places: Vec<Position>) {
        let ticket = self.last_ticket();
        self.release_after(ticket, places);
    }

    pub(crate) fn chunk_placed(&mut self, number: MessageNo, index: u32, position: Option<Position>) {
        let Some(position) = position else { return };
        let belongs = self.streams.contains_key(&number) || self.messages.find(number).is_some();
        if belongs {
            self.messages.place_chunk(number, index, position);
        } else {
            self.release_now(vec![position]);
        }
    }

    /// A message is durable, or lost.
    pub(crate) fn stored(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        (slot, number, origin): (MessageSlot, MessageNo, Origin),
        position: Option<Position>,
        result: Result<Durable, Lost>,
    ) {
        match result {
            Ok(durable) => {
                if let Some(message) = self.messages.get_mut(slot) {
                    message.position = position;
                }
                self.totals.accepted += 1;
                if origin == Origin::Session {
                    self.effects.push_back(Effect::Stored { ticket, result: Ok(durable) });
                }
                self.enqueue(now, slot);
            }
            Err(lost) => {
                self.forget_fresh(slot);
                self.messages.remove(slot);
                let places = self.messages.take_chunks(number);
                self.release_now(places);
                if origin == Origin::Session {
                    let refusal = match lost {
                        Lost::Full => Refusal::disk_full(),
                        Lost::Failed => Refusal::write_failed(),
                        Lost::TooLarge => Refusal::too_large(),
                    };
                    self.effects.push_back(Effect::Stored { ticket, result: Err(refusal) });
                }
            }
        }
    }

    /// Puts the recipients of a fresh message in the queue.
    fn enqueue(&mut self, now: Timestamp, slot: MessageSlot) {
        let Some(fresh) = self.messages.get(slot).and_then(|message| message.fresh.as_ref()) else { return };
        let record = fresh.record.clone();
        for ordinal in (0u16..).take(record.recipients.len()) {
            self.insert_recipient(now, slot, &record, ordinal);
        }
        self.fresh_order.push_back((slot, record.number));
        self.shed_fresh();
    }

    /// Keeps the fresh content within its bound: the oldest is read back from the log when its turn comes.
    fn shed_fresh(&mut self) {
        while self.fresh_size_bytes > self.fresh_size_max_bytes {
            let Some((slot, number)) = self.fresh_order.pop_front() else { return };
            if self.messages.get(slot).is_some_and(|message| message.number == number) {
                self.forget_fresh(slot);
            }
        }
        // Slots of messages that are gone gather here; they are dropped when they outnumber the living.
        if self.fresh_order.len() > 1024 && self.fresh_order.len() > 4 * self.messages.len() {
            let messages = &self.messages;
            self.fresh_order.retain(|(slot, number)| {
                messages.get(*slot).is_some_and(|m| m.number == *number && m.fresh.is_some())
            });
        }
    }

    /// Drops what is held in memory of a message.
    pub(crate) fn forget_fresh(&mut self, slot: MessageSlot) {
        if let Some(fresh) = self.messages.get_mut(slot).and_then(|message| message.fresh.take()) {
            self.fresh_size_bytes = self.fresh_size_bytes.saturating_sub(fresh.size_bytes());
        }
    }

    /// The pieces of a message whose own record's body is `content`: chunks first.
    pub(crate) fn pieces(record: &record::Message, content: &[Bytes]) -> SmallVec<[Piece; 4]> {
        let chunked: u64 = record.content_size - content.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let chunks = u64::from(record.chunks);
        let log = (0..chunks).map(|i| Piece::Log {
            // Chunks are of one size but the last; what counts is that they are asked for in order.
            size: u32::try_from(
                (chunked / chunks.max(1)).min(chunked.saturating_sub(i * (chunked / chunks))),
            )
            .unwrap_or(u32::MAX),
        });
        log.chain(content.iter().cloned().map(Piece::Memory)).collect()
    }
}

impl Fresh {
    pub(crate) fn size_bytes(&self) -> usize {
        // The envelope counts as 512 bytes, whatever it is: the bound is on the content.
        512 + self.content.iter().map(Bytes::len).sum::<usize>()
    }
}

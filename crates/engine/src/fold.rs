//! State as a fold of the log: what a shard does with the records of its past.
//!
//! Records say absolute things (this recipient is due then, after so many attempts), so that folding one
//! twice, or one that a checkpoint already reflects, changes nothing.

use crate::effect::Effect;
use crate::messages::{Flags, MessageSlot};
use crate::replies::{ReplyRef, Said};
use crate::shard::Shard;
use postrider_model::codec::{DecodeError, Reader};
use postrider_model::record::{self, ChangeTo, Kind, Ordinals, ReportKind};
use postrider_model::{EnhancedCode, MessageNo, Reply, Terminal, Timestamp};
use postrider_queue::{Recipient, RecipientSlot};
use postrider_spool::{Moved, Position};

/// Who folds a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The shard of this index.
    Shard(u16),
    /// Every shard.
    All,
}

/// Which of `shards` shards folds a record.
///
/// # Errors
/// When the record is damaged.
pub fn owner(kind: u8, head: &[u8], shards: u16) -> Result<Owner, DecodeError> {
    match Kind::try_from(kind)? {
        Kind::Control | Kind::Backoff => Ok(Owner::All),
        _ => {
            let number = Reader::new(head).uint("message number")?;
            Ok(Owner::Shard(u16::try_from(number % u64::from(shards.max(1))).unwrap_or(0)))
        }
    }
}

/// What the fold could not settle at once.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// Failures whose DSN is in the log and whose verdict may not be.
    owed: Vec<(MessageNo, Ordinals)>,
}

impl Shard {
    /// Folds a record of the past. `position` is where it is, if it has a body; a `copied` one only moves what
    /// is known.
    ///
    /// # Errors
    /// When the record is damaged; it is then set aside by the caller.
    pub fn replay(
        &mut self,
        kind: u8,
        head: &[u8],
        position: Option<Position>,
        copied: bool,
    ) -> Result<(), DecodeError> {
        match Kind::try_from(kind)? {
            Kind::Message => self.replay_message(&record::Message::decode(head)?, position, copied),
            Kind::Chunk => {
                let chunk = record::Chunk::decode(head)?;
                self.number_taken(chunk.number);
                if let Some(position) = position {
                    self.messages.place_chunk(chunk.number, chunk.index, position);
                }
            }
            Kind::Attempt => {
                let attempt = record::Attempt::decode(head)?;
                for recipient in self.folded(attempt.number, &attempt.ordinals) {
                    self.doubt(recipient);
                }
            }
            Kind::Deferral => {
                let deferral = record::Deferral::decode(head)?;
                for recipient in self.folded(deferral.number, &deferral.ordinals) {
                    let said = self.keep_said(&deferral.reply, &deferral.peer, deferral.in_doubt);
                    self.set_reply(recipient, said);
                    self.queue.restore(deferral.at, recipient, deferral.due, deferral.attempts);
                }
            }
            Kind::Final => {
                let done = record::Final::decode(head)?;
                self.forget(done.number, &done.ordinals);
            }
            Kind::Change => {
                let change = record::Change::decode(head)?;
                self.replay_change(&change);
            }
            Kind::Backoff => self.replay_backoff(&record::Backoff::decode(head)?),
            Kind::Control => self.replay_control(&record::Control::decode(head)?)?,
        }
        Ok(())
    }

    fn replay_message(&mut self, message: &record::Message, position: Option<Position>, copied: bool) {
        self.number_taken(message.number);
        if let Some(report) = &message.report {
            if report.kind == ReportKind::Failed {
                self.fold.owed.push((report.of, report.ordinals.clone()));
            }
            if report.kind == ReportKind::Delayed {
                for recipient in self.folded(report.of, &report.ordinals) {
                    self.no_more_warnings(recipient);
                }
            }
        }
        if let Some(slot) = self.messages.find(message.number) {
            // A copy made by the log's reclaim, or one that the checkpoint knew.
            if let Some(known) = self.messages.get_mut(slot) {
                known.position = position.or(known.position);
            }
            return;
        }
        if copied {
            // Its recipients had their verdicts before the copy was made.
            return;
        }
        let flags = Flags { marked: message.sent_at_once, chunked: message.chunks > 0 };
        let slot = self.messages.insert(message.number, message.accepted_at, None, flags);
        if let Some(known) = self.messages.get_mut(slot) {
            known.position = position;
        }
        for ordinal in (0u16..).take(message.recipients.len()) {
            let recipient = self.insert_recipient(message.accepted_at, slot, message, ordinal);
            if message.sent_at_once {
                self.doubt(recipient);
            }
        }
    }

    /// Puts a recipient of a message in the queue, as it is when nothing has happened to it.
    pub(crate) fn insert_recipient(
        &mut self,
        now: Timestamp,
        slot: MessageSlot,
        message: &record::Message,
        ordinal: u16,
    ) -> RecipientSlot {
        // Invariant: callers count ordinals within the recipients.
        let params = &message.recipients[usize::from(ordinal)];
        let way = self.way(params, message.envelope.reverse_path.as_ref());
        let domain = self.intern_route(way, params.mailbox.domain());
        let flow = self.queue.intern_flow(&message.account, 1);
        let warn = self.warning_time(message, ordinal);
        let recipient = Recipient {
            message: slot.0,
            ordinal,
            domain,
            flow,
            class: message.class,
            due: message.due.unwrap_or(now),
            expires: Some(message.expires_at),
            warn,
            attempts: 0,
            reply: ReplyRef::NONE.0,
            size_kib: u16::try_from(message.content_size >> 10).unwrap_or(u16::MAX),
            held: message.held,
        };
        let recipient = self.queue.insert(now, &recipient);
        self.messages.link(slot, recipient);
        recipient
    }

    /// The recipients of a message that are still there.
    pub(crate) fn folded(&self, number: MessageNo, ordinals: &Ordinals) -> Vec<RecipientSlot> {
        let Some(slot) = self.messages.find(number) else { return Vec::new() };
        self.messages.recipients(slot).filter(|r| ordinals.contains(&self.place_of(*r).1)).collect()
    }

    fn forget(&mut self, number: MessageNo, ordinals: &Ordinals) {
        let Some(slot) = self.messages.find(number) else { return };
        let mut places = Vec::new();
        for recipient in self.folded(number, ordinals) {
            self.remove_recipient(slot, recipient, &mut places);
        }
        // Bodies of the past that are dead are simply not retained.
    }

    /// The outcome of its last attempt is unknown.
    pub(crate) fn doubt(&mut self, recipient: RecipientSlot) {
        let before = self.reply_of(recipient);
        let said = match self.replies.get(before) {
            Some(said) => Said { in_doubt: true, ..Said::clone(said) },
            None => Said {
                reply: Reply::ours(
                    451,
                    EnhancedCode(4, 4, 2),
                    "The relay stopped before the outcome was known",
                ),
                peer: "".into(),
                in_doubt: true,
            },
        };
        let said = self.replies.keep(said);
        self.set_reply(recipient, said);
    }

    fn replay_change(&mut self, change: &record::Change) {
        let now = Timestamp::default();
        for recipient in self.folded(change.number, &change.ordinals) {
            match &change.to {
                ChangeTo::Held => self.queue.park(recipient),
                ChangeTo::Released => {
                    self.queue.unpark(now, recipient);
                }
                ChangeTo::Due(due) => {
                    self.queue.set_due(now, recipient, *due);
                }
                ChangeTo::Route(name) => self.reroute(now, recipient, name),
            }
        }
    }

    /// The past is folded: settles what was left open and says which bodies live. Appends made here are
    /// the first of this life.
    pub fn replayed(&mut self, now: Timestamp, live: &mut Vec<Position>) {
        for (number, ordinals) in std::mem::take(&mut self.fold.owed) {
            let Some(slot) = self.messages.find(number) else { continue };
            let group: Vec<_> =
                self.folded(number, &ordinals).into_iter().map(|r| (r, self.place_of(r).1)).collect();
            if !group.is_empty() {
                let reply =
                    Reply::ours(550, EnhancedCode(5, 0, 0), "Failed; the sender was told before the restart");
                self.finish(now, slot, &group, Terminal::Bounced, &reply, "");
            }
        }
        for number in self.messages.orphan_chunks() {
            self.messages.take_chunks(number);
        }
        for (_, message) in self.messages.iter() {
            live.extend(message.position);
            live.extend(self.messages.chunks(message.number).iter().flatten());
        }
    }

    /// The log copied a body forward.
    pub fn moved(&mut self, moved: &Moved) {
        let to = moved.to;
        if !matches!(owner(moved.kind, &moved.head, self.shards), Ok(Owner::Shard(shard)) if shard == self.index)
        {
            // The log names the shard of the record's first life; there may be another number of shards now.
            self.effects.push_back(Effect::Moved(moved.clone()));
            return;
        }
        let number = Reader::new(&moved.head).uint("message number").map(MessageNo);
        let known = match (Kind::try_from(moved.kind), number) {
            (Ok(Kind::Message), Ok(number)) => {
                let slot = self.messages.find(number);
                match slot.and_then(|slot| self.messages.get_mut(slot)) {
                    Some(message) if message.position == Some(moved.from) => {
                        message.position = Some(to);
                        true
                    }
                    _ => false,
                }
            }
            (Ok(Kind::Chunk), _) => record::Chunk::decode(&moved.head).is_ok_and(|chunk| {
                let known = self.messages.chunks(chunk.number).get(chunk.index as usize).copied().flatten();
                if known == Some(moved.from) {
                    self.messages.place_chunk(chunk.number, chunk.index, to);
                }
                known == Some(moved.from)
            }),
            _ => false,
        };
        // A checkpoint that named the old place would send readers into a segment that is used again.
        if let Some(slot) = number.ok().and_then(|number| self.messages.find(number)) {
            for recipient in self.messages.recipients(slot) {
                self.queue.touch(recipient);
            }
        }
        if !known {
            self.release_now(vec![to]);
        }
    }
}

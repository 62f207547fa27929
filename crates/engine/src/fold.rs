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
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

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
    /// Recipients of messages that have many, by ordinal: a look along their chain for each would take too
    /// long. An entry may be stale. Empty once all is folded and loaded.
    pub(crate) places: FxHashMap<MessageNo, Vec<RecipientSlot>>,
}

/// Messages with more recipients than this get an entry in [`Fold::places`].
const FEW_RECIPIENTS: u16 = 16;
/// No recipient, in [`Fold::places`].
const NOBODY: RecipientSlot = RecipientSlot(u32::MAX);

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
        let kind = Kind::try_from(kind)?;
        match kind {
            Kind::Message => self.replay_message(&record::Message::decode(head)?, head, position, copied),
            Kind::Chunk => {
                let chunk = record::Chunk::decode(head)?;
                self.number_taken(chunk.number);
                if let Some(position) = position {
                    self.messages.place_chunk(chunk.number, chunk.index, position);
                }
            }
            Kind::Attempt | Kind::Deferral | Kind::Change => {
                let number = MessageNo(Reader::new(head).uint("message number")?);
                self.remember(number, kind, head);
                self.replay_change_of(kind, head, None)?;
            }
            Kind::Final => {
                let done = record::Final::decode(head)?;
                self.remember_verdict(done.number, &done.ordinals);
                self.forget(done.number, &done.ordinals);
            }
            Kind::Backoff => self.replay_backoff(&record::Backoff::decode(head)?),
            Kind::Control => self.replay_control(&record::Control::decode(head)?)?,
        }
        Ok(())
    }

    /// Folds what a record changes in recipients that wait; if `only` is given, in that one alone.
    pub(crate) fn replay_change_of(
        &mut self,
        kind: Kind,
        head: &[u8],
        only: Option<RecipientSlot>,
    ) -> Result<(), DecodeError> {
        match kind {
            Kind::Message => {
                let message = record::Message::decode(head)?;
                if let Some(report) = message.report.filter(|report| report.kind == ReportKind::Delayed) {
                    for recipient in self.meant(report.of, &report.ordinals, only) {
                        self.no_more_warnings(recipient);
                    }
                }
            }
            Kind::Attempt => {
                let attempt = record::Attempt::decode(head)?;
                for recipient in self.meant(attempt.number, &attempt.ordinals, only) {
                    self.doubt(recipient);
                }
            }
            Kind::Deferral => {
                let deferral = record::Deferral::decode(head)?;
                for recipient in self.meant(deferral.number, &deferral.ordinals, only) {
                    let said = self.keep_said(&deferral.reply, &deferral.peer, deferral.in_doubt);
                    self.set_reply(recipient, said);
                    self.queue.restore(deferral.at, recipient, deferral.due, deferral.attempts);
                }
            }
            Kind::Change => {
                let change = record::Change::decode(head)?;
                let recipients = self.meant(change.number, &change.ordinals, only);
                self.replay_change(&recipients, &change.to);
            }
            Kind::Chunk | Kind::Final | Kind::Backoff | Kind::Control => {}
        }
        Ok(())
    }

    fn replay_message(
        &mut self,
        message: &record::Message,
        head: &[u8],
        position: Option<Position>,
        copied: bool,
    ) {
        self.number_taken(message.number);
        if let Some(report) = &message.report {
            if report.kind == ReportKind::Failed {
                self.fold.owed.push((report.of, report.ordinals.clone()));
            }
            if report.kind == ReportKind::Delayed {
                self.remember(report.of, Kind::Message, head);
                for recipient in self.meant(report.of, &report.ordinals, None) {
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
            // Its recipients had their verdicts before the copy was made, or are still to be loaded.
            self.remember_place(message.number, position);
            return;
        }
        self.remember_whole(message.number);
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
        self.link(message.number, slot, ordinal, recipient);
        recipient
    }

    /// Links a recipient to its message.
    pub(crate) fn link(
        &mut self,
        number: MessageNo,
        slot: MessageSlot,
        ordinal: u16,
        recipient: RecipientSlot,
    ) {
        self.messages.link(slot, recipient);
        if let Some(places) = self.fold.places.get_mut(&number) {
            put_place(places, ordinal, recipient);
        }
    }

    /// As [`Shard::folded`], without a look along a long chain; if `only` is given, that one if it is meant.
    pub(crate) fn meant(
        &mut self,
        number: MessageNo,
        ordinals: &[u16],
        only: Option<RecipientSlot>,
    ) -> SmallVec<[RecipientSlot; 4]> {
        if let Some(recipient) = only {
            return ordinals.contains(&self.place_of(recipient).1).then_some(recipient).into_iter().collect();
        }
        let Some(slot) = self.messages.find(number) else { return SmallVec::new() };
        if self.messages.get(slot).is_some_and(|message| message.live() <= FEW_RECIPIENTS) {
            return self
                .messages
                .recipients(slot)
                .filter(|r| ordinals.contains(&self.place_of(*r).1))
                .collect();
        }
        if !self.fold.places.contains_key(&number) {
            let mut places = Vec::new();
            for recipient in self.messages.recipients(slot) {
                put_place(&mut places, self.place_of(recipient).1, recipient);
            }
            self.fold.places.insert(number, places);
        }
        let places = self.fold.places.get(&number).map_or(&[][..], Vec::as_slice);
        let known =
            ordinals.iter().filter_map(|ordinal| Some((*ordinal, *places.get(usize::from(*ordinal))?)));
        known
            .filter(|(ordinal, recipient)| self.place_of(*recipient) == (slot, *ordinal))
            .map(|(_, r)| r)
            .collect()
    }

    /// The recipients of a message that are still there.
    pub(crate) fn folded(&self, number: MessageNo, ordinals: &Ordinals) -> Vec<RecipientSlot> {
        let Some(slot) = self.messages.find(number) else { return Vec::new() };
        self.messages.recipients(slot).filter(|r| ordinals.contains(&self.place_of(*r).1)).collect()
    }

    fn forget(&mut self, number: MessageNo, ordinals: &Ordinals) {
        let Some(slot) = self.messages.find(number) else { return };
        let mut places = Vec::new();
        for recipient in self.meant(number, ordinals, None) {
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

    fn replay_change(&mut self, recipients: &[RecipientSlot], to: &ChangeTo) {
        let now = Timestamp::default();
        for &recipient in recipients {
            match to {
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
    /// the first of this life. Bodies of recipients still to be loaded are named as these come.
    pub fn replayed(&mut self, now: Timestamp, live: &mut Vec<Position>) {
        for (number, ordinals) in std::mem::take(&mut self.fold.owed) {
            self.give_owed(now, number, &ordinals);
            self.remember_owed(number, &ordinals);
        }
        if !self.begin_life() {
            self.fold.places = FxHashMap::default();
            self.drop_orphan_chunks(MessageNo(self.numbers_taken()));
        }
        for (_, message) in self.messages.iter() {
            live.extend(message.position);
            live.extend(self.messages.chunks(message.number).iter().flatten());
        }
    }

    /// Gives a verdict that was reported and perhaps not written before the restart.
    pub(crate) fn give_owed(&mut self, now: Timestamp, number: MessageNo, ordinals: &[u16]) {
        let Some(slot) = self.messages.find(number) else { return };
        let recipients = self.meant(number, ordinals, None);
        let group: Vec<_> = recipients.into_iter().map(|r| (r, self.place_of(r).1)).collect();
        if !group.is_empty() {
            let reply =
                Reply::ours(550, EnhancedCode(5, 0, 0), "Failed; the sender was told before the restart");
            self.finish(now, slot, &group, Terminal::Bounced, &reply, "");
        }
    }

    /// Gives up the chunks of messages below this number that never came: a crash cut their sessions off.
    pub(crate) fn drop_orphan_chunks(&mut self, below: MessageNo) {
        for number in self.messages.orphan_chunks().into_iter().filter(|number| *number < below) {
            self.messages.take_chunks(number);
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

fn put_place(places: &mut Vec<RecipientSlot>, ordinal: u16, recipient: RecipientSlot) {
    let at = usize::from(ordinal);
    if places.len() <= at {
        places.resize(at + 1, NOBODY);
    }
    places[at] = recipient;
}

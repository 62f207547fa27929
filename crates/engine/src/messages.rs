//! The messages that wait, in as little memory as they allow.

use crate::Pieces;
use postrider_model::{MessageNo, Timestamp, record};
use postrider_queue::RecipientSlot;
use postrider_spool::Position;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// A message's place in [`Messages`]. Reused when the message is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MessageSlot(pub(crate) u32);

const NONE: u32 = u32::MAX;

impl MessageSlot {
    /// No message.
    pub(crate) const NONE: MessageSlot = MessageSlot(u32::MAX);
}

/// A message that waits. Its envelope is in the log; while it is fresh, in memory too.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) number: MessageNo,
    /// Where its record is; `None` until it is durable.
    pub(crate) position: Option<Position>,
    /// Everything, while its first attempts go on.
    pub(crate) fresh: Option<Box<Fresh>>,
    /// First of its recipients that live, linked by `Messages::siblings`.
    first: u32,
    /// Seconds since the epoch.
    accepted_at_s: u32,
    /// Recipients without a verdict.
    live: u16,
    pub(crate) flags: Flags,
}

/// What a message in memory carries.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) record: Arc<record::Message>,
    pub(crate) content: Pieces,
}

/// What is true of a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// Its record carries the mark of the first attempt, which is not yet used up.
    pub(crate) marked: bool,
    /// It has chunks (kept in `Messages::chunks`).
    pub(crate) chunked: bool,
}

impl Message {
    pub(crate) fn accepted_at(&self) -> Timestamp {
        Timestamp::from_secs(u64::from(self.accepted_at_s))
    }

    /// Recipients without a verdict, as far as they are loaded.
    pub(crate) fn live(&self) -> u16 {
        self.live
    }
}

/// All messages of a shard.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    entries: slab::Slab<Message>,
    by_number: FxHashMap<MessageNo, u32>,
    /// The next recipient of the same message, by recipient slot.
    siblings: Vec<u32>,
    /// Ordinals by recipient slot stand in the queue; chunks' places stand here.
    chunks: FxHashMap<MessageNo, Vec<Option<Position>>>,
}

impl Messages {
    pub(crate) fn insert(
        &mut self,
        number: MessageNo,
        accepted_at: Timestamp,
        fresh: Option<Box<Fresh>>,
        flags: Flags,
    ) -> MessageSlot {
        let accepted_at_s = u32::try_from(accepted_at.as_secs()).unwrap_or(u32::MAX);
        let message = Message { number, position: None, fresh, first: NONE, accepted_at_s, live: 0, flags };
        // Invariant: the queue's recipient slots are 32 bits wide and a message has at least one.
        let slot = u32::try_from(self.entries.insert(message)).unwrap_or(NONE);
        self.by_number.insert(number, slot);
        MessageSlot(slot)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn find(&self, number: MessageNo) -> Option<MessageSlot> {
        self.by_number.get(&number).copied().map(MessageSlot)
    }

    pub(crate) fn get(&self, slot: MessageSlot) -> Option<&Message> {
        self.entries.get(slot.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, slot: MessageSlot) -> Option<&mut Message> {
        self.entries.get_mut(slot.0 as usize)
    }

    /// Links a recipient of the message.
    pub(crate) fn link(&mut self, slot: MessageSlot, recipient: RecipientSlot) {
        let Some(message) = self.entries.get_mut(slot.0 as usize) else { return };
        let index = recipient.0 as usize;
        if self.siblings.len() <= index {
            self.siblings.resize(index + 1, NONE);
        }
        self.siblings[index] = message.first;
        message.first = recipient.0;
        message.live += 1;
    }

    /// Unlinks a recipient; true if it was the last one.
    pub(crate) fn unlink(&mut self, slot: MessageSlot, recipient: RecipientSlot) -> bool {
        let Some(message) = self.entries.get_mut(slot.0 as usize) else { return false };
        let mut at = message.first;
        let mut before = NONE;
        while at != NONE && at != recipient.0 {
            before = at;
            at = self.siblings[at as usize];
        }
        if at == NONE {
            return false;
        }
        let next = self.siblings[at as usize];
        match before {
            NONE => message.first = next,
            before => self.siblings[before as usize] = next,
        }
        message.live -= 1;
        message.live == 0
    }

    /// The recipients of the message that live.
    pub(crate) fn recipients(&self, slot: MessageSlot) -> impl Iterator<Item = RecipientSlot> + '_ {
        let mut at = self.get(slot).map_or(NONE, |message| message.first);
        std::iter::from_fn(move || {
            let found = at;
            if found == NONE {
                return None;
            }
            at = self.siblings[found as usize];
            Some(RecipientSlot(found))
        })
    }

    pub(crate) fn remove(&mut self, slot: MessageSlot) -> Option<Message> {
        let message = self.entries.try_remove(slot.0 as usize)?;
        self.by_number.remove(&message.number);
        Some(message)
    }

    /// Notes where a chunk of a message is; the message may come later.
    pub(crate) fn place_chunk(&mut self, number: MessageNo, index: u32, position: Position) {
        let places = self.chunks.entry(number).or_default();
        let index = index as usize;
        if places.len() <= index {
            places.resize(index + 1, None);
        }
        places[index] = Some(position);
    }

    pub(crate) fn chunks(&self, number: MessageNo) -> &[Option<Position>] {
        self.chunks.get(&number).map_or(&[], Vec::as_slice)
    }

    /// Chunks whose message has no place in the log yet.
    pub(crate) fn unfinished_chunks(&self) -> Vec<(MessageNo, u32, Position)> {
        let placed =
            |number| self.find(number).and_then(|slot| self.get(slot)).is_some_and(|m| m.position.is_some());
        let mut chunks: Vec<_> = self
            .chunks
            .iter()
            .filter(|(number, _)| !placed(**number))
            .flat_map(|(number, places)| {
                (0..).zip(places).filter_map(|(index, place)| Some((*number, index, (*place)?)))
            })
            .collect();
        chunks.sort_unstable();
        chunks
    }

    pub(crate) fn take_chunks(&mut self, number: MessageNo) -> Vec<Position> {
        self.chunks.remove(&number).unwrap_or_default().into_iter().flatten().collect()
    }

    /// Numbers that have chunks but no message: what a crash left of sessions.
    pub(crate) fn orphan_chunks(&self) -> Vec<MessageNo> {
        let mut numbers: Vec<_> =
            self.chunks.keys().copied().filter(|n| !self.by_number.contains_key(n)).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MessageSlot, &Message)> {
        self.entries.iter().map(|(slot, message)| (MessageSlot(u32::try_from(slot).unwrap_or(NONE)), message))
    }

    /// The first message at or after a slot: for walks in steps.
    pub(crate) fn starting_at(&self, start: u32) -> impl Iterator<Item = (MessageSlot, &Message)> {
        let end = u32::try_from(self.entries.capacity()).unwrap_or(NONE);
        (start..end)
            .filter_map(|slot| self.entries.get(slot as usize).map(|message| (MessageSlot(slot), message)))
    }

    /// One past the last slot ever used.
    pub(crate) fn slot_end(&self) -> u32 {
        u32::try_from(self.entries.capacity()).unwrap_or(NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_linked_and_unlinked_in_any_order() {
        let mut messages = Messages::default();
        let slot = messages.insert(MessageNo(7), Timestamp::from_secs(1), None, Flags::default());
        for recipient in [4, 0, 9] {
            messages.link(slot, RecipientSlot(recipient));
        }
        let mut found: Vec<_> = messages.recipients(slot).map(|r| r.0).collect();
        found.sort_unstable();
        assert_eq!(found, [0, 4, 9]);
        assert!(!messages.unlink(slot, RecipientSlot(0)));
        assert!(!messages.unlink(slot, RecipientSlot(0)), "once only");
        assert!(!messages.unlink(slot, RecipientSlot(9)));
        assert!(messages.unlink(slot, RecipientSlot(4)));
        assert_eq!(messages.find(MessageNo(7)), Some(slot));
        assert_eq!(messages.remove(slot).map(|m| m.number), Some(MessageNo(7)));
        assert_eq!(messages.find(MessageNo(7)), None);
    }

    #[test]
    fn a_waiting_message_takes_forty_bytes() {
        assert!(size_of::<Message>() <= 40, "{}", size_of::<Message>());
    }
}

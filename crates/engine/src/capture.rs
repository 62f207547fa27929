//! The sandbox lane: messages that are kept instead of sent.

use crate::effect::{Capture, Effect, Loaded, Stored};
use crate::messages::MessageSlot;
use crate::shard::{Job, NewRecord, Shard};
use postrider_model::record::{self, Kind, Ordinals};
use postrider_model::{EnhancedCode, Reply, Terminal, Timestamp};
use postrider_queue::{Batch, Closed, LaneId, RecipientSlot};
use smallvec::SmallVec;
use std::sync::Arc;

/// A capture under way.
#[derive(Debug)]
pub(crate) struct Capturing {
    lane: LaneId,
    message: MessageSlot,
    recipients: SmallVec<[RecipientSlot; 4]>,
    ordinals: Ordinals,
    record: Arc<record::Message>,
}

impl Shard {
    /// Takes the next message of the sandbox lane; its "connection" is one capture.
    pub(crate) fn capture_more(&mut self, now: Timestamp, lane: LaneId) {
        self.queue.connection_opened(now, lane);
        let Some(batch) = self.queue.next(now, lane) else {
            return self.capture_slot_done(now, lane, Closed::Idle);
        };
        let slot = MessageSlot(batch.message);
        let Some(message) = self.messages.get(slot) else {
            return self.capture_slot_done(now, lane, Closed::Done);
        };
        match (message.fresh.as_deref(), message.position) {
            (Some(fresh), _) => {
                let (record, content) = (fresh.record.clone(), Stored::Memory(fresh.content.clone()));
                self.capture(now, lane, batch, record, content);
            }
            (None, Some(position)) => {
                let job = self.new_job(Job::CaptureRead { lane, batch });
                self.effects.push_back(Effect::Load { job, position });
            }
            (None, None) => {
                self.requeue(&batch.recipients);
                self.capture_slot_done(now, lane, Closed::Done);
            }
        }
    }

    pub(crate) fn loaded_for_capture(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        batch: Batch,
        loaded: Option<Loaded>,
    ) {
        let decoded =
            loaded.and_then(|l| record::Message::decode(&l.head).ok().map(|record| (record, l.body)));
        match decoded {
            Some((record, body)) => {
                let content = Stored::Memory(SmallVec::from_iter([body]));
                self.capture(now, lane, batch, Arc::new(record), content);
            }
            None => {
                self.set_aside(batch);
                self.capture_slot_done(now, lane, Closed::Done);
            }
        }
    }

    fn capture(
        &mut self,
        now: Timestamp,
        lane: LaneId,
        batch: Batch,
        record: Arc<record::Message>,
        own: Stored,
    ) {
        let Some(batch) = self.stop_suspended(now, lane, batch, &record) else {
            return self.capture_slot_done(now, lane, Closed::Done);
        };
        let ordinals: Ordinals =
            batch.recipients.iter().map(|recipient| self.place_of(*recipient).1).collect();
        let message = MessageSlot(batch.message);
        let mut content: Vec<Stored> = self
            .messages
            .chunks(record.number)
            .iter()
            .flatten()
            .map(|position| Stored::Log(*position))
            .collect();
        content.push(own);
        let id = self.cipher.message(record.accepted_at, record.number);
        let capturing = Capturing {
            lane,
            message,
            recipients: batch.recipients,
            ordinals: ordinals.clone(),
            record: record.clone(),
        };
        let job = self.new_job(Job::Capturing(Box::new(capturing)));
        self.effects.push_back(Effect::Capture(Box::new(Capture {
            job,
            id,
            message: record,
            ordinals,
            content,
        })));
    }

    /// A message is kept, or could not be: then it is tried again.
    pub fn captured(&mut self, now: Timestamp, job: crate::JobId, result: Result<(), String>) {
        let Some(Job::Capturing(capturing)) = self.jobs.remove(&job) else { return };
        let Capturing { lane, message, recipients, ordinals, record } = *capturing;
        let group: Vec<_> = recipients.iter().copied().zip(ordinals.iter().copied()).collect();
        match result {
            Ok(()) => {
                let reply = Reply::ours(250, EnhancedCode(2, 0, 0), "Captured by the sandbox");
                self.finish(now, message, &group, Terminal::Captured, &reply, "sandbox");
            }
            Err(error) => {
                let reply = Reply::ours(
                    451,
                    EnhancedCode(4, 3, 0),
                    &format!("The sandbox could not keep it: {error}"),
                );
                for (recipient, ordinal) in group {
                    let (due, attempts) = self.put_off(now, recipient, &reply, "sandbox", false);
                    let record = record::Deferral {
                        number: record.number,
                        ordinals: Ordinals::from_slice(&[ordinal]),
                        at: now,
                        attempts,
                        due,
                        in_doubt: false,
                        reply: reply.clone(),
                        peer: "sandbox".into(),
                    };
                    self.append(NewRecord::riding(Kind::Deferral, |head| record.encode(head)));
                }
                self.forget_fresh(message);
            }
        }
        self.capture_slot_done(now, lane, Closed::Done);
    }

    fn capture_slot_done(&mut self, now: Timestamp, lane: LaneId, how: Closed) {
        self.queue.connection_closed(now, lane, how, 0);
    }
}

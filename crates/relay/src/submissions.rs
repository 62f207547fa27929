//! Messages that come whole, from the API: a letter brings a batch, and answers leave together.

use crate::event_loop::EventLoop;
use crate::letter::Letter;
use crate::relay::Relay;
use postrider_auth::Directory;
use postrider_engine::Refusal;
use postrider_ingress::{
    Answers, Desk, HandedOver, Pressure, SessionContext, SessionTls, Settled, Submission,
};
use postrider_model::Timestamp;
use postrider_model::snapshot::{Listener, Protocol, SessionLimits};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Submissions of one shard whose tickets are awaited; more are refused for now.
const AWAITED_MAX: usize = 16_384;

/// Who waits for a ticket.
pub(crate) enum Waiter {
    /// A client's session.
    Session { key: usize, id: u32 },
    /// A submission.
    Submission { tag: u64, id: Box<str>, answers: Answers },
}

impl Relay {
    /// Hands messages to a shard, all to the same one: the shards have their turns. `answers` is told what
    /// became of each, under its tag, on the shard's thread.
    pub fn submit(&self, messages: Vec<Submission>, answers: &Answers) {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let inboxes = &self.shared.inboxes;
        inboxes[turn % inboxes.len()].send(Letter::Submit { messages, answers: answers.clone() });
    }
}

impl EventLoop {
    /// What a submission is taken under.
    fn submission_context(&self, now: Timestamp) -> SessionContext {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let listener = Listener {
            name: "http".into(),
            protocol: Protocol::Submission,
            address: any,
            tls: None,
            legacy: None,
            sandbox: false,
            limits: SessionLimits::default(),
            xclient: Vec::new(),
            proxy: Vec::new(),
        };
        SessionContext {
            snapshot: self.loadout.snapshot.clone(),
            control: self.loadout.control.clone(),
            listener: Arc::new(listener),
            directory: Arc::new(Directory::anyone()),
            ids: self.shard.cipher().clone(),
            peer: any,
            local: any,
            tls: SessionTls::Unavailable,
            seed: 0,
            now,
        }
    }

    /// Takes a batch.
    pub(crate) fn take_submissions(&mut self, now: Timestamp, messages: Vec<Submission>, answers: &Answers) {
        let mut desk = Desk::new(self.submission_context(now));
        for submission in messages {
            let tag = submission.tag;
            let short = self.held.pressure >= Pressure::Refuses;
            let taken = if self.draining || short || self.awaited.len() >= AWAITED_MAX {
                Err(Refusal::busy().0)
            } else {
                desk.submit(now, submission, &mut self.shard)
            };
            match taken {
                Ok(HandedOver { ticket, id }) => {
                    self.shard.take_submitted();
                    let answers = answers.clone();
                    self.awaited.push_back((ticket, Waiter::Submission { tag, id, answers }));
                }
                Err(reply) => self.settled.push((answers.clone(), Settled { tag, result: Err(reply) })),
            }
        }
    }

    /// Sends the answers that have come together, those for one place at once.
    pub(crate) fn send_settled(&mut self) {
        let mut settled = self.settled.drain(..).peekable();
        while let Some((answers, first)) = settled.next() {
            let mut together = vec![first];
            while let Some((_, next)) = settled.next_if(|(other, _)| Arc::ptr_eq(other, &answers)) {
                together.push(next);
            }
            answers(together);
        }
    }
}

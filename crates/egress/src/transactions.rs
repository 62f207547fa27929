//! The open session: transactions, their replies, and the ways in which it all can end.

use crate::classify;
use crate::connection::{Connection, Phase, TRANSACTIONS_MAX, trouble};
use crate::fit::Fit;
use crate::sending::{Pumped, Sending, Stage, outcome};
use postrider_engine::{ConnectionEnd, Next, Outflow, Settled, Settlement, Transaction};
use postrider_model::{EnhancedCode, Outcome, Reply, Timestamp};
use postrider_smtp::client::{Command, Event};
use postrider_smtp::reply::Violation;

/// Transactions taken from the engine by one call that turn out not to fit this server. More wait for the
/// next call, so that one connection does not hold up the others.
const UNFIT_MAX: usize = 64;

impl Connection {
    pub(crate) fn read_replies(&mut self, now: Timestamp, input: &mut &[u8], outflow: &mut impl Outflow) {
        while !matches!(self.phase, Phase::Ended(_)) {
            match self.client.next(input) {
                Ok(Event::NeedInput) => break,
                Ok(event) => {
                    self.progress_at = now;
                    self.on_event(now, event, outflow);
                }
                Err(violation) => self.violated(now, violation, outflow),
            }
        }
    }

    fn on_event(&mut self, now: Timestamp, event: Event, outflow: &mut impl Outflow) {
        match event {
            Event::NeedInput => {}
            // QUIT was sent already; what else comes is of no interest.
            Event::Reply { to: Command::Quit, .. } | Event::Farewell
                if matches!(self.phase, Phase::Quitting(_)) =>
            {
                self.ended();
            }
            _ if matches!(self.phase, Phase::Quitting(_)) => {}
            Event::Ready => self.greeted(now),
            Event::Refused(_) => self.refused(now),
            Event::StartTls => self.phase = Phase::Handshake,
            Event::Farewell => self.dismissed(now, None, outflow),
            Event::Reply { to, code: 421 } => self.dismissed(now, Some(to), outflow),
            Event::Reply { to: Command::StartTls, .. } => self.starttls_refused(now),
            Event::Reply { to: Command::Auth, code } => self.on_auth(now, code),
            Event::Reply { to, code } => self.on_reply(now, to, code, outflow),
        }
    }

    fn on_reply(&mut self, now: Timestamp, to: Command, code: u16, outflow: &mut impl Outflow) {
        if to == Command::Rset {
            // A server that cannot forget a transaction cannot be given another.
            if code / 100 != 2 {
                self.violated(now, Violation::Senseless, outflow);
            }
            return;
        }
        let (client, dialect) = (&self.client, self.client.dialect());
        let Some(front) = self.slots.front_mut() else { return };
        let reply = client.reply();
        let result = match to {
            Command::Mail => {
                if code / 100 == 4 && classify::asks_for_less(reply) {
                    outflow.throttled(now, self.plan.lane, &reply.to_reply());
                }
                front.on_mail(reply)
            }
            Command::Rcpt => front.on_rcpt(reply),
            Command::Data => front.on_data(reply),
            Command::Bdat => front.on_bdat(reply),
            // An answer to what the server cannot have read is none.
            Command::End if front.stage == Stage::Ending && !front.is_end_written(client) => {
                Err(Violation::Unasked)
            }
            Command::End => front.on_end(reply, dialect),
            _ => Ok(()),
        };
        if let Err(violation) = result {
            self.violated(now, violation, outflow);
            return;
        }
        if let Some(full_at) = front.full_at.take() {
            self.recipients_max = self.recipients_max.min(full_at);
        }
        self.drive(now, outflow);
    }

    /// Does whatever can be done now.
    pub(crate) fn work(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let was = (self.client.awaited().is_some(), self.loading);
        self.drive(now, outflow);
        self.fill(now, outflow);
        if matches!(self.phase, Phase::Open) && self.slots.is_empty() && self.is_done() {
            self.quit(now, ConnectionEnd::Done);
        }
        // A wait for something else begins now.
        if was != (self.client.awaited().is_some(), self.loading) {
            self.progress_at = now;
        }
    }

    /// Moves the oldest transaction on, and settles those that are finished.
    fn drive(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        let pipelining = self.pipelines();
        while let Some(front) = self.slots.front_mut() {
            if front.stage == Stage::Gathering
                && let Pumped::Asks(piece) = front.gather(self.client.extensions())
            {
                outflow.read(self.id, front.transaction.id, piece);
            }
            if front.stage == Stage::Envelope {
                front.drive_envelope(&mut self.client, pipelining);
            }
            if front.stage == Stage::Content
                && let Pumped::Asks(piece) = front.pump(&mut self.client, pipelining)
            {
                outflow.read(self.id, front.transaction.id, piece);
            }
            if front.stage != Stage::Finished {
                return;
            }
            if let Some(finished) = self.slots.pop_front() {
                self.settle(now, finished, outflow);
            }
        }
    }

    /// Takes transactions while there is room for them.
    fn fill(&mut self, now: Timestamp, outflow: &mut impl Outflow) {
        self.loading = false;
        for _ in 0..UNFIT_MAX {
            if !self.has_room() {
                return;
            }
            match outflow.next(now, self.id, self.plan.lane) {
                Next::Transaction(transaction) => self.start(now, transaction, outflow),
                Next::Loading => {
                    self.loading = self.slots.is_empty();
                    return;
                }
                Next::Idle => return,
            }
        }
        self.loading = self.slots.is_empty();
    }

    /// A further transaction can be started now: the connection is idle, or the end of the last one has been
    /// sent to a server that takes the next envelope behind it (RFC 2920 §3.1).
    #[must_use]
    pub fn has_room(&self) -> bool {
        let has_slot = match self.slots.back() {
            None => true,
            Some(last) => {
                self.pipelines() && self.slots.len() < TRANSACTIONS_MAX && last.stage == Stage::Ending
            }
        };
        matches!(self.phase, Phase::Open) && has_slot && !self.is_done()
    }

    fn start(&mut self, now: Timestamp, transaction: Transaction, outflow: &mut impl Outflow) {
        match Fit::of(&transaction.message, self.client.extensions(), self.protection) {
            Err(reply) => {
                let outcome = Settled::Outcome(Outcome::Failed(reply));
                let settlement = Settlement {
                    transaction: transaction.id,
                    outcomes: transaction.ordinals.iter().map(|&o| (o, outcome.clone())).collect(),
                    peer: self.peer.clone(),
                    via: self.via,
                    dsn_passed_on: false,
                };
                outflow.settle(now, settlement);
            }
            Ok(fit) => {
                let mut sending = Sending::new(transaction, fit, self.recipients_max);
                if sending.stage == Stage::Finished {
                    self.settle(now, sending, outflow);
                    return;
                }
                self.messages += 1;
                // Behind another one the envelope goes at once; the rest is done when it is the oldest.
                let pipelining = self.pipelines();
                if sending.stage == Stage::Envelope {
                    sending.drive_envelope(&mut self.client, pipelining);
                }
                self.slots.push_back(sending);
                self.drive(now, outflow);
            }
        }
    }

    fn settle(&mut self, now: Timestamp, sending: Sending, outflow: &mut impl Outflow) {
        let settlement = Settlement {
            transaction: sending.transaction.id,
            peer: self.peer.clone(),
            via: self.via,
            dsn_passed_on: sending.passed_dsn(),
            outcomes: sending.into_outcomes(),
        };
        outflow.settle(now, settlement);
    }

    /// The server said 421, as an answer or of itself: it will close, and wants less of us.
    fn dismissed(&mut self, now: Timestamp, to: Option<Command>, outflow: &mut impl Outflow) {
        let raw = self.client.reply();
        let reply = raw.to_reply();
        if matches!(self.phase, Phase::Open) && self.slots.is_empty() {
            // The farewell of a server that closes idle connections.
            self.phase = Phase::Ended(ConnectionEnd::Done);
            return;
        }
        let outcome = outcome(raw);
        if let Some(front) = self.slots.front_mut() {
            match to {
                // Nothing was said about any recipient: the message goes back as it was.
                Some(Command::Mail) => front.settle_rest(Settled::NotTried),
                Some(Command::Rcpt) => {
                    front.settle_next(outcome);
                    front.settle_rest(Settled::NotTried);
                }
                Some(Command::End) if self.client.dialect() == postrider_smtp::client::Dialect::Lmtp => {
                    // The others' deliveries may have been made.
                    front.settle_next(outcome);
                    front.settle_rest(Settled::Outcome(Outcome::InDoubt(reply.clone())));
                }
                Some(Command::End | Command::Data | Command::Bdat) => {
                    front.settle_rest(Settled::Outcome(outcome));
                }
                _ => {}
            }
        }
        self.lose(now, &reply, outflow);
        self.phase = Phase::Ended(ConnectionEnd::Throttled(reply));
    }

    /// The server breaks the protocol: nothing it says can be trusted any more.
    fn violated(&mut self, now: Timestamp, violation: Violation, outflow: &mut impl Outflow) {
        let text = match violation {
            // Some servers refuse in the middle of the content, and close. The order is wrong, so it is not
            // taken for the answer, but a person should see it.
            Violation::Unasked | Violation::Senseless => {
                let said = self.client.reply().to_reply();
                format!("{} broke the protocol: {violation} ({said}).", self.peer)
            }
            _ => format!("{} broke the protocol: {violation}.", self.peer),
        };
        self.client.note(&text);
        self.broke(now, trouble(EnhancedCode(4, 5, 0), &text), outflow);
    }

    /// The connection is gone, whosever fault it is.
    pub(crate) fn broke(&mut self, now: Timestamp, reply: Reply, outflow: &mut impl Outflow) {
        match &self.phase {
            Phase::Ended(_) => {}
            Phase::Quitting(_) => self.ended(),
            Phase::Open if self.slots.is_empty() => self.phase = Phase::Ended(ConnectionEnd::Done),
            Phase::Open => {
                let was_idle = self.messages > self.slots.len()
                    && self.slots.front().is_some_and(Sending::is_unanswered);
                self.lose(now, &reply, outflow);
                // A server may close an idle connection just when we use it again: nobody's fault.
                let end = if was_idle { ConnectionEnd::Done } else { ConnectionEnd::Broken(reply) };
                self.phase = Phase::Ended(end);
            }
            Phase::TlsFirst | Phase::Hello | Phase::Handshake | Phase::Auth(_) => {
                self.handshake_failed |= matches!(self.phase, Phase::Handshake);
                self.phase = Phase::Ended(ConnectionEnd::Unreachable(reply));
            }
        }
    }

    /// Settles all transactions of a connection that is gone. Those whose end was written are in doubt;
    /// those of which the server took no notice were not tried; the others wait for another attempt.
    pub(crate) fn lose(&mut self, now: Timestamp, reply: &Reply, outflow: &mut impl Outflow) {
        while let Some(mut sending) = self.slots.pop_front() {
            // The very first transaction of a connection counts as tried, so that a server which always
            // hangs up at MAIL is not asked for ever.
            let is_first = self.messages == 1 + self.slots.len();
            let settled = if sending.is_end_written(&self.client) {
                Settled::Outcome(Outcome::InDoubt(reply.clone()))
            } else if sending.is_unsent() || sending.is_unanswered() && !is_first {
                Settled::NotTried
            } else {
                Settled::Outcome(Outcome::Deferred(reply.clone()))
            };
            sending.settle_rest(settled);
            self.settle(now, sending, outflow);
        }
    }

    /// Says QUIT and waits a little for the answer.
    pub(crate) fn quit(&mut self, now: Timestamp, end: ConnectionEnd) {
        self.client.quit();
        self.progress_at = now;
        self.phase = Phase::Quitting(end);
    }

    fn ended(&mut self) {
        if let Phase::Quitting(end) = &self.phase {
            self.phase = Phase::Ended(end.clone());
        }
    }

    /// No further transaction may be started.
    fn is_done(&self) -> bool {
        self.draining || self.messages >= self.messages_max
    }

    pub(crate) fn is_content_left(&self) -> bool {
        self.slots.front().is_some_and(|front| front.stage == Stage::Content)
    }

    fn pipelines(&self) -> bool {
        self.client.extensions().pipelining
    }
}

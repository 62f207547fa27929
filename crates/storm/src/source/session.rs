//! One connection to the relay: a client that keeps exact account of what it was told.

use super::worker::{Desk, Next};
use super::{Plan, Security};
use crate::content::variant_of;
use crate::id::{Id, push_address, push_decimal};
use crate::record::{REPLY_MAX, Sent, Verdict, now_us};
use crate::wire::{Scratch, Wire};
use base64::Engine;
use memchr::memchr;
use mio::net::TcpStream;

/// Longest reply line, octets; RFC 5321 §4.5.3.1.5 allows 512.
const LINE_MAX: usize = 16 << 10;

/// What the loop does next with a session.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Wait,
    /// Wants a message when the rate has one.
    Idle,
    Reconnect {
        failures: u32,
    },
    End,
}

#[derive(Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Ready,
    Transaction,
    Quit,
}

#[derive(Default)]
struct Offered {
    pipelining: bool,
    chunking: bool,
    starttls: bool,
    size: bool,
}

impl Offered {
    fn read(&mut self, extension: &[u8]) {
        let keyword = extension.split(|octet| *octet == b' ').next().unwrap_or_default();
        match keyword.to_ascii_uppercase().as_slice() {
            b"PIPELINING" => self.pipelining = true,
            b"CHUNKING" => self.chunking = true,
            b"STARTTLS" => self.starttls = true,
            b"SIZE" => self.size = true,
            _ => {}
        }
    }
}

/// The message in hand.
struct Transaction {
    id: Id,
    start_us: u64,
    dot_us: u64,
    /// Commands written and replies read: MAIL, each RCPT, DATA or BDAT, the dot.
    asked: usize,
    answered: usize,
    refused: Vec<u16>,
    refusal: Option<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct Session {
    wire: Option<Wire>,
    phase: Phase,
    partial: Vec<u8>,
    offered: Offered,
    transaction: Option<Transaction>,
    /// The last transaction was not ended by a dot, so that the next begins with RSET.
    reset_first: bool,
    /// Replies to read past.
    ignored: u8,
    messages: u64,
    failures: u32,
    /// The connection is of no more use.
    broken: bool,
}

impl Session {
    pub(super) fn connected(&mut self, socket: TcpStream, desk: &Desk) -> std::io::Result<()> {
        let mut wire = Wire::new(socket);
        if desk.setup.plan.security == Security::Implicit
            && let Some(config) = &desk.setup.tls
        {
            wire.start_tls_client(config)?;
        }
        *self = Session {
            wire: Some(wire),
            phase: Phase::Greeting,
            failures: self.failures,
            ..Session::default()
        };
        Ok(())
    }

    pub(super) fn on_ready(&mut self, at_end: bool, desk: &mut Desk, scratch: &mut Scratch) -> Step {
        let was_ready = self.phase == Phase::Ready;
        loop {
            let Some(wire) = &mut self.wire else { return Step::Wait };
            let Ok(filled) = wire.fill(scratch, at_end) else { return self.broke(desk) };
            let (more, closed) = (filled.more, filled.closed);
            self.take(filled.octets, desk);
            if closed || self.broken {
                return self.broke(desk);
            }
            if !more {
                break;
            }
        }
        match self.go_on(desk) {
            // Already among the idle.
            Step::Idle if was_ready => Step::Wait,
            step => step,
        }
    }

    /// Begins a message if it is time for one, and writes what is due.
    pub(super) fn go_on(&mut self, desk: &mut Desk) -> Step {
        let mut step = Step::Wait;
        if self.phase == Phase::Ready && self.begin(desk) {
            step = Step::Idle;
        }
        match self.wire.as_mut().map(Wire::flush) {
            Some(Err(_)) => self.broke(desk),
            _ => step,
        }
    }

    /// The connection is gone.
    pub(super) fn broke(&mut self, desk: &mut Desk) -> Step {
        let expected = self.phase == Phase::Quit;
        self.wire = None;
        self.phase = Phase::Closed;
        if !expected {
            desk.counts.broken += 1;
            self.failures += 1;
        }
        if let Some(transaction) = self.transaction.take() {
            let sent_whole = transaction.dot_us > 0;
            if sent_whole {
                verdict(&transaction, Verdict::Unknown, b"", desk);
            }
            if !sent_whole || desk.setup.plan.retry_lost {
                desk.take_back(transaction.id);
            }
        }
        if desk.has_more() {
            Step::Reconnect { failures: if expected { 0 } else { self.failures } }
        } else {
            Step::End
        }
    }

    /// True when no message is in hand.
    pub(super) fn is_free(&self) -> bool {
        self.transaction.is_none()
    }

    /// The run is over: settles the message in hand.
    pub(super) fn give_up(&mut self, desk: &mut Desk) {
        if let Some(transaction) = self.transaction.take() {
            if transaction.dot_us > 0 {
                verdict(&transaction, Verdict::Unknown, b"", desk);
            } else {
                desk.take_back(transaction.id);
            }
        }
    }

    fn take(&mut self, octets: &[u8], desk: &mut Desk) {
        if self.partial.is_empty() {
            let used = self.lines(octets, desk);
            self.partial.extend_from_slice(&octets[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(octets);
            let used = self.lines(&partial, desk);
            partial.drain(..used);
            self.partial = partial;
        }
        self.broken |= self.partial.len() > LINE_MAX;
    }

    fn lines(&mut self, octets: &[u8], desk: &mut Desk) -> usize {
        let mut used = 0;
        while let Some(end) = memchr(b'\n', &octets[used..]) {
            let line = &octets[used..used + end];
            used += end + 1;
            self.line(line.strip_suffix(b"\r").unwrap_or(line), desk);
            if self.broken {
                break;
            }
        }
        used
    }

    fn line(&mut self, line: &[u8], desk: &mut Desk) {
        if self.phase == Phase::Ehlo {
            self.offered.read(line.get(4..).unwrap_or_default());
        }
        if line.get(3) == Some(&b'-') {
            return;
        }
        let code = match line {
            [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => {
                self.broken = true;
                return;
            }
        };
        if self.ignored > 0 {
            self.ignored -= 1;
            return;
        }
        self.reply(code, line, desk);
    }

    fn reply(&mut self, code: u16, line: &[u8], desk: &mut Desk) {
        let good = code / 100 == 2;
        match self.phase {
            Phase::Greeting if good => {
                desk.counts.connections += 1;
                self.ehlo();
            }
            Phase::Ehlo if good => self.greeted(desk),
            Phase::StartTls if good => {
                let started = match (&mut self.wire, &desk.setup.tls) {
                    (Some(wire), Some(config)) => wire.start_tls_client(config).is_ok(),
                    _ => false,
                };
                self.broken |= !started;
                self.ehlo();
            }
            Phase::Auth if good => self.ready(),
            Phase::Transaction => self.transaction_reply(code, line, desk),
            // Words that were not asked for, among them a refusal to greet or to let in.
            _ => self.broken = true,
        }
    }

    fn say(&mut self, text: &[u8]) {
        if let Some(wire) = &mut self.wire {
            wire.out().extend_from_slice(text);
        }
    }

    fn ehlo(&mut self) {
        self.offered = Offered::default();
        self.phase = Phase::Ehlo;
        self.say(b"EHLO storm.example.test\r\n");
    }

    fn greeted(&mut self, desk: &Desk) {
        let plan = &desk.setup.plan;
        let secure = self.wire.as_ref().is_some_and(Wire::is_tls);
        if plan.security == Security::StartTls && !secure {
            self.broken |= !self.offered.starttls;
            self.phase = Phase::StartTls;
            self.say(b"STARTTLS\r\n");
        } else if let Some((user, password)) = &plan.auth {
            self.phase = Phase::Auth;
            let secret = base64::engine::general_purpose::STANDARD.encode(format!("\0{user}\0{password}"));
            self.say(format!("AUTH PLAIN {secret}\r\n").as_bytes());
        } else {
            self.ready();
        }
    }

    fn ready(&mut self) {
        self.failures = 0;
        self.phase = Phase::Ready;
    }

    /// Begins the next message, or ends the session when there is none. True when it has to wait for its slot.
    fn begin(&mut self, desk: &mut Desk) -> bool {
        let worn_out = desk.setup.plan.per_connection.is_some_and(|most| self.messages >= most);
        let next = if worn_out { Next::Nothing } else { desk.next() };
        let id = match next {
            Next::Later => return true,
            Next::Nothing => {
                self.phase = Phase::Quit;
                self.say(b"QUIT\r\n");
                return false;
            }
            Next::Message(id) => id,
        };
        self.phase = Phase::Transaction;
        if std::mem::take(&mut self.reset_first) {
            self.ignored += 1;
            self.say(b"RSET\r\n");
        }
        let start_us = now_us();
        let mut transaction = Transaction {
            id,
            start_us,
            dot_us: 0,
            asked: 0,
            answered: 0,
            refused: Vec::new(),
            refusal: None,
        };
        let all = usize::from(desk.setup.plan.recipients) + 2;
        let count = if desk.setup.plan.pipelining && self.offered.pipelining { all } else { 1 };
        while transaction.asked < count {
            self.ask(&mut transaction, desk);
        }
        self.transaction = Some(transaction);
        false
    }

    fn chunking(&self, plan: &Plan) -> bool {
        plan.bdat && self.offered.chunking
    }

    /// Writes the next command of a transaction.
    fn ask(&mut self, transaction: &mut Transaction, desk: &mut Desk) {
        let recipients = usize::from(desk.setup.plan.recipients);
        let chunking = self.chunking(&desk.setup.plan);
        let Some(wire) = &mut self.wire else { return };
        let step = transaction.asked;
        transaction.asked += 1;
        let out = wire.out();
        if step == 0 {
            out.extend_from_slice(b"MAIL FROM:<");
            out.extend_from_slice(desk.setup.plan.from.as_bytes());
            out.push(b'>');
            if self.offered.size {
                out.extend_from_slice(b" SIZE=");
                push_decimal(out, desk.setup.templates[0].wire_len() as u64);
            }
            out.extend_from_slice(b"\r\n");
        } else if step <= recipients {
            // Invariant: the number of recipients is a u16.
            let index = u16::try_from(step - 1).expect("an index below a u16");
            out.extend_from_slice(b"RCPT TO:<");
            push_address(out, transaction.id, index, desk.domain(transaction.id, index));
            out.extend_from_slice(b">\r\n");
        } else if chunking {
            let chunk = variant_of(&mut desk.setup.chunks, transaction.id).message(transaction.id);
            out.extend_from_slice(b"BDAT ");
            push_decimal(out, chunk.len() as u64);
            out.extend_from_slice(b" LAST\r\n");
            out.extend_from_slice(chunk);
            transaction.dot_us = now_us();
        } else {
            out.extend_from_slice(b"DATA\r\n");
        }
    }

    fn transaction_reply(&mut self, code: u16, line: &[u8], desk: &mut Desk) {
        let Some(mut transaction) = self.transaction.take() else { return };
        let recipients = usize::from(desk.setup.plan.recipients);
        let step = transaction.answered;
        transaction.answered += 1;
        let good = code / 100 == 2;
        let data_step = recipients + 1;
        let content_step = if self.chunking(&desk.setup.plan) { data_step } else { data_step + 1 };
        if step == content_step {
            let verdict = if good { Verdict::Acknowledged } else { Verdict::Refused };
            self.broken |= code == 421;
            return self.end_message(&mut transaction, verdict, line, desk);
        }
        if code == 421 {
            // The relay closes, and has not got the message: it is sent again over another connection.
            self.transaction = Some(transaction);
            self.broken = true;
            return;
        }
        if step == data_step {
            if code != 354 {
                self.reset_first = true;
                return self.end_message(&mut transaction, Verdict::Refused, line, desk);
            }
            self.content(&mut transaction, desk);
            self.transaction = Some(transaction);
            return;
        }
        if !good {
            transaction.refusal.get_or_insert_with(|| line[..line.len().min(REPLY_MAX)].to_vec());
            if let Some(index) = step.checked_sub(1).and_then(|index| u16::try_from(index).ok()) {
                transaction.refused.push(index);
            }
        }
        if transaction.asked == transaction.answered {
            let hopeless = step == 0 && !good || transaction.refused.len() == recipients;
            if hopeless {
                self.reset_first = true;
                return self.end_message(&mut transaction, Verdict::Refused, line, desk);
            }
            self.ask(&mut transaction, desk);
        }
        self.transaction = Some(transaction);
    }

    /// Writes the message after 354; an empty one if nobody is to get it (RFC 2920 §3.1).
    fn content(&mut self, transaction: &mut Transaction, desk: &mut Desk) {
        let nobody = transaction.refused.len() == usize::from(desk.setup.plan.recipients);
        let Some(wire) = &mut self.wire else { return };
        transaction.asked += 1;
        transaction.dot_us = if nobody { 0 } else { now_us() };
        let text = match nobody {
            true => b".\r\n",
            false => variant_of(&mut desk.setup.templates, transaction.id).message(transaction.id),
        };
        self.broken |= wire.write_now(text).is_err();
    }

    fn end_message(
        &mut self,
        transaction: &mut Transaction,
        mut told: Verdict,
        line: &[u8],
        desk: &mut Desk,
    ) {
        let refusal = transaction.refusal.take();
        if transaction.refused.len() == usize::from(desk.setup.plan.recipients) {
            told = Verdict::Refused;
        }
        let reply = match told {
            Verdict::Acknowledged | Verdict::Unknown => b"".as_slice(),
            Verdict::Refused => refusal.as_deref().unwrap_or(line),
        };
        verdict(transaction, told, reply, desk);
        self.messages += 1;
        // The loop begins the next message once all replies are read; it leaves in one write with what is due.
        self.phase = Phase::Ready;
    }
}

fn verdict(transaction: &Transaction, verdict: Verdict, reply: &[u8], desk: &mut Desk) {
    desk.verdict(&Sent {
        id: transaction.id,
        verdict,
        start_us: transaction.start_us,
        dot_us: transaction.dot_us,
        end_us: now_us(),
        recipients: desk.setup.plan.recipients,
        refused: transaction.refused.as_slice().into(),
        reply,
    });
}

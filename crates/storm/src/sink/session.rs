//! One connection to the sink.

use super::worker::{Hall, Recipient};
use crate::content::{Arrived, Reader, Taken, Unstuffer};
use crate::id::parse_address;
use crate::record::How;
use crate::script::{Drop, Phase};
use crate::wire::{Scratch, Wire};
use base64::Engine;
use memchr::memchr;
use mio::net::TcpStream;
use std::time::{Duration, Instant};

/// Longest command line, octets; generous, since it is the relay that is tested.
const LINE_MAX: usize = 16 << 10;
const RECIPIENTS_MAX: usize = 100_000;

/// What the loop does next with a session.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Wait,
    Sleep(Instant),
    End,
}

enum Mode {
    Command,
    Data,
    Chunk { left: u64, last: bool },
    Password { lines: u8 },
}

/// What became of a reply.
#[derive(PartialEq, Eq)]
enum Settled {
    Positive,
    Negative,
    /// The connection closes without one.
    Closed {
        taken: bool,
    },
}

/// A reply that the script holds back, and what follows it.
struct Held {
    reply: Vec<u8>,
    sent: usize,
    /// One octet at a time with this pause.
    tarpit: Option<Duration>,
    end: bool,
    record: Option<(How, Arrived)>,
}

impl Settled {
    fn of(reply: &[u8]) -> Settled {
        if matches!(reply.first(), Some(b'2' | b'3')) { Settled::Positive } else { Settled::Negative }
    }
}

pub(super) struct Session {
    wire: Wire,
    serial: u64,
    /// Octets of an unfinished line, or behind a held reply.
    partial: Vec<u8>,
    mode: Mode,
    reader: Reader,
    unstuffer: Unstuffer,
    mail: bool,
    recipients: Vec<Recipient>,
    /// Rules that the recipients so far have met, as bits.
    met: u64,
    messages: u64,
    /// Content is read but will be refused: CHUNKING without a recipient.
    content_refused: bool,
    held: Option<Held>,
    wake_at: Option<Instant>,
    /// An event came while a reply was held.
    unread: bool,
    at_end: bool,
    ending: bool,
}

impl Session {
    pub(super) fn new(socket: TcpStream, serial: u64) -> Session {
        Session {
            wire: Wire::new(socket),
            serial,
            partial: Vec::new(),
            mode: Mode::Command,
            reader: Reader::default(),
            unstuffer: Unstuffer::default(),
            mail: false,
            recipients: Vec::new(),
            met: 0,
            messages: 0,
            content_refused: false,
            held: None,
            wake_at: None,
            unread: false,
            at_end: false,
            ending: false,
        }
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    pub(super) fn greet(&mut self, hall: &mut Hall, scratch: &mut Scratch) -> Step {
        if hall.implicit_tls
            && let Some(config) = hall.tls.clone()
            && self.wire.start_tls_server(&config).is_err()
        {
            return Step::End;
        }
        let name = hall.script.hostname.as_deref().unwrap_or("sink.example.test");
        let greeting = format!("220 {name} ESMTP storm\r\n");
        let general = hall.general;
        self.settle(hall, Phase::Connect, general, greeting.as_bytes());
        self.go_on(hall, scratch)
    }

    pub(super) fn on_ready(&mut self, at_end: bool, hall: &mut Hall, scratch: &mut Scratch) -> Step {
        self.at_end |= at_end;
        self.unread = true;
        self.go_on(hall, scratch)
    }

    pub(super) fn wake(&mut self, hall: &mut Hall, scratch: &mut Scratch) -> Step {
        self.wake_at = None;
        if let Some(mut held) = self.held.take() {
            let end = if held.tarpit.is_some() { held.sent + 1 } else { held.reply.len() };
            self.wire.out().extend_from_slice(&held.reply[held.sent..end]);
            held.sent = end;
            match held.tarpit {
                Some(pause) if end < held.reply.len() => {
                    self.wake_at = Some(Instant::now() + pause);
                    self.held = Some(held);
                }
                _ => {
                    self.ending |= held.end;
                    if let Some((how, arrived)) = held.record {
                        self.end_message(hall, Some((how, arrived)));
                    }
                }
            }
        }
        self.go_on(hall, scratch)
    }

    /// Uses what was read, reads on, writes what is due.
    fn go_on(&mut self, hall: &mut Hall, scratch: &mut Scratch) -> Step {
        let mut closed = false;
        if self.held.is_none() && !self.partial.is_empty() {
            let partial = std::mem::take(&mut self.partial);
            let used = self.consume(&partial, hall);
            self.keep(&partial[used..]);
        }
        while self.unread && self.held.is_none() && !self.ending {
            let Ok(filled) = self.wire.fill(scratch, self.at_end) else { return Step::End };
            self.unread = filled.more;
            closed |= filled.closed;
            if self.partial.is_empty() {
                let used = self.consume(filled.octets, hall);
                self.keep(&filled.octets[used..]);
            } else {
                let mut partial = std::mem::take(&mut self.partial);
                partial.extend_from_slice(filled.octets);
                let used = self.consume(&partial, hall);
                self.keep(&partial[used..]);
            }
        }
        let flushed = self.wire.flush();
        if flushed.is_err() || closed || self.ending && self.wire.is_flushed() {
            return Step::End;
        }
        match self.wake_at {
            Some(at) if self.held.is_some() => Step::Sleep(at),
            _ => Step::Wait,
        }
    }

    fn keep(&mut self, rest: &[u8]) {
        if !self.ending {
            self.partial.extend_from_slice(rest);
        }
    }

    fn consume(&mut self, octets: &[u8], hall: &mut Hall) -> usize {
        let mut used = 0;
        while self.held.is_none() && !self.ending && used < octets.len() {
            let rest = &octets[used..];
            match self.mode {
                Mode::Command | Mode::Password { .. } => {
                    let Some(end) = memchr(b'\n', rest) else {
                        if rest.len() > LINE_MAX {
                            self.wire.out().extend_from_slice(b"500 5.5.2 Line too long\r\n");
                            self.ending = true;
                        }
                        break;
                    };
                    used += end + 1;
                    let line = &rest[..end];
                    let plain = !self.wire.is_tls();
                    self.command(line.strip_suffix(b"\r").unwrap_or(line), hall);
                    if plain && self.wire.is_tls() {
                        // Clear text behind STARTTLS must never be taken as if it came under TLS.
                        self.ending |= used < octets.len();
                        return octets.len();
                    }
                }
                Mode::Data => match self.unstuffer.take(rest, &mut self.reader) {
                    Taken::Part(count) => return used + count,
                    Taken::All(count) => {
                        used += count;
                        self.mode = Mode::Command;
                        self.content_ended(hall);
                    }
                },
                Mode::Chunk { left, last } => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    self.reader.feed(&rest[..count]);
                    used += count;
                    let left = left - count as u64;
                    self.mode = Mode::Chunk { left, last };
                    if left == 0 {
                        self.chunk_ended(last, hall);
                    }
                }
            }
        }
        used
    }

    fn command(&mut self, line: &[u8], hall: &mut Hall) {
        if let Mode::Password { lines } = self.mode {
            self.password(lines);
            return;
        }
        let verb = line.split(|octet| *octet == b' ').next().unwrap_or_default();
        let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
        let general = hall.general;
        if is("MAIL") {
            self.mail(line, hall);
        } else if is("RCPT") {
            self.rcpt(line, hall);
        } else if is("DATA") {
            self.data(hall);
        } else if is("BDAT") {
            self.bdat(line, hall);
        } else if is("EHLO") || is("LHLO") {
            let reply = self.offer(hall);
            self.settle(hall, Phase::Ehlo, general, &reply);
        } else if is("HELO") {
            self.settle(hall, Phase::Ehlo, general, b"250 sink.example.test\r\n");
        } else if is("RSET") {
            self.reset();
            self.say(b"250 2.0.0 Ok\r\n");
        } else if is("NOOP") {
            self.say(b"250 2.0.0 Ok\r\n");
        } else if is("VRFY") {
            self.say(b"252 2.0.0 Cannot say, send and see\r\n");
        } else if is("STARTTLS") {
            self.starttls(hall);
        } else if is("AUTH") {
            self.auth(line);
        } else if is("QUIT") {
            self.say(b"221 2.0.0 Bye\r\n");
            self.ending = true;
        } else {
            hall.totals.refused += 1;
            self.say(b"500 5.5.1 Unknown command\r\n");
        }
    }

    fn say(&mut self, reply: &[u8]) {
        self.wire.out().extend_from_slice(reply);
    }

    /// Sends the usual reply or what a rule says instead.
    fn settle(&mut self, hall: &mut Hall, phase: Phase, met: u64, usual: &[u8]) -> Settled {
        let Some(number) = hall.decide(phase, met) else {
            self.say(usual);
            return Settled::of(usual);
        };
        let script = hall.script.clone();
        let rule = &script.rules[number];
        if matches!(rule.drop, Some(Drop::Before | Drop::Taken)) {
            hall.totals.dropped += 1;
            self.ending = true;
            return Settled::Closed { taken: rule.drop == Some(Drop::Taken) };
        }
        let reply = rule.reply_on_the_wire().unwrap_or_else(|| usual.to_vec());
        match reply.first() {
            Some(b'4') => hall.totals.deferred += 1,
            Some(b'5') => hall.totals.refused += 1,
            _ => {}
        }
        let settled = Settled::of(&reply);
        let end = rule.drop.is_some() || reply.starts_with(b"421");
        hall.totals.dropped += u64::from(rule.drop.is_some());
        if rule.delay_ms == 0 && rule.tarpit_ms == 0 {
            self.say(&reply);
            self.ending |= end;
            return settled;
        }
        let tarpit = (rule.tarpit_ms > 0).then(|| Duration::from_millis(rule.tarpit_ms));
        self.wake_at = Some(Instant::now() + Duration::from_millis(rule.delay_ms));
        self.held = Some(Held { reply, sent: 0, tarpit, end, record: None });
        settled
    }

    fn offer(&mut self, hall: &Hall) -> Vec<u8> {
        self.reset();
        let offer = &hall.script.offer;
        let mut lines = vec![hall.script.hostname.clone().unwrap_or_else(|| "sink.example.test".into())];
        let secured = self.wire.is_tls();
        for (offered, keyword) in [
            (offer.pipelining, "PIPELINING"),
            (offer.eightbitmime, "8BITMIME"),
            (offer.smtputf8, "SMTPUTF8"),
            (offer.chunking, "CHUNKING"),
            (offer.binarymime, "BINARYMIME"),
            (offer.dsn, "DSN"),
            (offer.enhancedstatuscodes, "ENHANCEDSTATUSCODES"),
            (offer.starttls && !secured, "STARTTLS"),
            (offer.auth, "AUTH PLAIN LOGIN"),
        ] {
            if offered {
                lines.push(keyword.into());
            }
        }
        lines.extend(offer.size.map(|size| format!("SIZE {size}")));
        lines.extend(offer.extra.iter().cloned());
        let last = lines.len() - 1;
        let mut out = Vec::with_capacity(256);
        for (number, line) in lines.iter().enumerate() {
            out.extend_from_slice(if number == last { b"250 " } else { b"250-" });
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    fn mail(&mut self, line: &[u8], hall: &mut Hall) {
        let limit = &hall.script.limit;
        let worn_out = limit.messages_per_connection.is_some_and(|most| self.messages >= most);
        if worn_out || hall.messages.as_mut().is_some_and(|messages| !messages.take()) {
            hall.totals.deferred += u64::from(!worn_out);
            self.say(b"421 4.7.0 Too many messages, try again later\r\n");
            self.ending = true;
            return;
        }
        if self.mail {
            self.say(b"503 5.5.1 Nested MAIL\r\n");
            return;
        }
        let size =
            parameter(line, b"SIZE=").and_then(|size| std::str::from_utf8(size).ok()?.parse::<u64>().ok());
        if hall.script.offer.size.is_some_and(|most| most > 0 && size.is_some_and(|size| size > most)) {
            hall.totals.refused += 1;
            self.say(b"552 5.3.4 Message too big\r\n");
            return;
        }
        let general = hall.general;
        self.mail = self.settle(hall, Phase::Mail, general, b"250 2.1.0 Ok\r\n") == Settled::Positive;
    }

    fn rcpt(&mut self, line: &[u8], hall: &mut Hall) {
        if !self.mail {
            self.say(b"503 5.5.1 MAIL first\r\n");
            return;
        }
        let Some(address) = path(line) else {
            hall.totals.refused += 1;
            self.say(b"501 5.1.3 Bad recipient address\r\n");
            return;
        };
        if self.recipients.len() >= hall.script.limit.recipients.unwrap_or(RECIPIENTS_MAX).min(RECIPIENTS_MAX)
        {
            hall.totals.deferred += 1;
            self.say(b"452 4.5.3 Too many recipients\r\n");
            return;
        }
        let rules = hall.rules_for(address);
        if self.settle(hall, Phase::Rcpt, rules, b"250 2.1.5 Ok\r\n") != Settled::Positive {
            return;
        }
        self.met |= rules;
        self.recipients.push(match parse_address(address) {
            Some((id, index)) => Recipient::Ours(id, index),
            None => Recipient::Foreign(address.into()),
        });
    }

    fn data(&mut self, hall: &mut Hall) {
        if self.recipients.is_empty() {
            self.say(b"554 5.5.1 No valid recipients\r\n");
            return;
        }
        let met = self.met;
        if self.settle(hall, Phase::Data, met, b"354 Go ahead\r\n") == Settled::Positive {
            self.mode = Mode::Data;
        } else {
            self.reset();
        }
    }

    fn bdat(&mut self, line: &[u8], hall: &mut Hall) {
        let mut words = line.split(|octet| *octet == b' ').skip(1);
        let length = words.next().and_then(|length| std::str::from_utf8(length).ok()?.parse::<u64>().ok());
        let Some(left) = length.filter(|_| hall.script.offer.chunking) else {
            hall.totals.refused += 1;
            self.say(b"501 5.5.4 Bad BDAT\r\n");
            // Without a length the octets that follow cannot be told from commands.
            self.ending = true;
            return;
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"LAST"));
        self.content_refused |= self.recipients.is_empty();
        self.mode = Mode::Chunk { left, last };
        if left == 0 {
            self.chunk_ended(last, hall);
        }
    }

    fn chunk_ended(&mut self, last: bool, hall: &mut Hall) {
        self.mode = Mode::Command;
        if self.content_refused {
            self.reader.finish();
            self.content_refused = !last;
            self.say(b"554 5.5.1 No valid recipients\r\n");
        } else if last {
            self.content_ended(hall);
        } else {
            self.say(b"250 2.0.0 Chunk taken\r\n");
        }
    }

    fn content_ended(&mut self, hall: &mut Hall) {
        let arrived = self.reader.finish();
        self.messages += 1;
        let mut usual = b"250 2.0.0 Taken\r\n".to_vec();
        if hall.lmtp {
            usual = usual.repeat(self.recipients.len());
        }
        let met = self.met;
        match self.settle(hall, Phase::Dot, met, &usual) {
            Settled::Positive => match &mut self.held {
                Some(held) => held.record = Some((How::Replied, arrived)),
                None => self.end_message(hall, Some((How::Replied, arrived))),
            },
            Settled::Negative => {
                // `settle` counted one; the others of the transaction were put off with it.
                hall.totals.deferred += self.recipients.len().saturating_sub(1) as u64;
                self.end_message(hall, None);
            }
            Settled::Closed { taken } => {
                self.end_message(hall, Some((if taken { How::Withheld } else { How::Dropped }, arrived)));
            }
        }
    }

    fn end_message(&mut self, hall: &mut Hall, record: Option<(How, Arrived)>) {
        if let Some((how, arrived)) = record {
            hall.record(how, arrived, &self.recipients);
        }
        self.reset();
    }

    fn reset(&mut self) {
        self.mail = false;
        self.recipients.clear();
        self.met = 0;
        self.content_refused = false;
    }

    fn starttls(&mut self, hall: &Hall) {
        let Some(config) = hall.tls.clone().filter(|_| !self.wire.is_tls()) else {
            self.say(b"502 5.5.1 No TLS here\r\n");
            return;
        };
        self.say(b"220 2.0.0 Ready\r\n");
        if self.wire.flush().is_err()
            || !self.wire.is_flushed()
            || self.wire.start_tls_server(&config).is_err()
        {
            self.ending = true;
        }
        self.reset();
    }

    fn auth(&mut self, line: &[u8]) {
        let words = line.split(|octet| *octet == b' ').count();
        let login = line.get(5..10).is_some_and(|name| name.eq_ignore_ascii_case(b"LOGIN"));
        let asked = if login { 2 } else { 1 };
        let given = u8::from(words > 2);
        self.mode = Mode::Password { lines: asked - given };
        if asked == given {
            self.password(1);
        } else {
            self.challenge(login);
        }
    }

    fn challenge(&mut self, login: bool) {
        let text =
            if login { base64::engine::general_purpose::STANDARD.encode("Username:") } else { String::new() };
        self.say(format!("334 {text}\r\n").as_bytes());
    }

    fn password(&mut self, lines: u8) {
        if lines > 1 {
            self.mode = Mode::Password { lines: lines - 1 };
            self.say(b"334 UGFzc3dvcmQ6\r\n");
        } else {
            self.mode = Mode::Command;
            self.say(b"235 2.7.0 Welcome\r\n");
        }
    }
}

/// The address between the angle brackets.
fn path(line: &[u8]) -> Option<&[u8]> {
    let start = memchr(b'<', line)? + 1;
    let end = memchr::memrchr(b'>', line)?;
    line.get(start..end)
}

fn parameter<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut words = line.split(|octet| *octet == b' ').skip(1);
    words.find_map(|word| word.get(..name.len())?.eq_ignore_ascii_case(name).then(|| &word[name.len()..]))
}

//! What the log says: the heads of its records, as the engine writes and folds them.
//!
//! A record's head is small and read at every start; its body (content) is skipped. No head holds a place
//! in the log, so that the log may copy a record forward as it is.

use crate::codec::{DecodeError, Reader, Write};
use crate::{
    BodyKind, Class, Encoding, Envelope, Mailbox, MessageNo, Notify, Ordinal, RecipientParams, Reply,
};
use crate::{Ret, Terminal, Timestamp, Via};
use smallvec::SmallVec;

/// The ordinals a record speaks of.
pub type Ordinals = SmallVec<[Ordinal; 4]>;

/// The kinds of records, as one byte in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Message`]; its body is the content (or what of it is not in chunks).
    Message = 1,
    /// [`Chunk`]; its body is a piece of content.
    Chunk = 2,
    /// [`Attempt`].
    Attempt = 3,
    /// [`Deferral`].
    Deferral = 4,
    /// [`Final`].
    Final = 5,
    /// [`crate::record::Control`].
    Control = 6,
    /// [`Backoff`].
    Backoff = 7,
    /// [`Change`].
    Change = 8,
}

impl TryFrom<u8> for Kind {
    type Error = DecodeError;
    fn try_from(byte: u8) -> Result<Self, DecodeError> {
        Ok(match byte {
            1 => Kind::Message,
            2 => Kind::Chunk,
            3 => Kind::Attempt,
            4 => Kind::Deferral,
            5 => Kind::Final,
            6 => Kind::Control,
            7 => Kind::Backoff,
            8 => Kind::Change,
            _ => return Err(DecodeError::Invalid("record kind")),
        })
    }
}

/// An accepted message. Its content is the chunks in order, then this record's own body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub number: MessageNo,
    /// When the last octet was taken.
    pub accepted_at: Timestamp,
    /// When what is still undelivered expires.
    pub expires_at: Timestamp,
    /// Priority class.
    pub class: Class,
    /// Account or, on a legacy listener, the listener's name.
    pub account: Box<str>,
    /// The client's address, for the operator's eyes.
    pub client: Box<str>,
    /// MAIL's part of the envelope.
    pub envelope: Envelope,
    /// RCPT's part, in order; a recipient's place is its ordinal.
    pub recipients: Vec<RecipientParams>,
    /// The form of the content.
    pub encoding: Encoding,
    /// Some octet of the content is above 127.
    pub eight_bit: bool,
    /// Some octet of the header section is above 127.
    pub utf8_header: bool,
    /// Octets of the header section at the content's start, with the empty line that ends it.
    pub header_size: u32,
    /// Octets of all content in its stored form.
    pub content_size: u64,
    /// How many [`Chunk`]s precede this record.
    pub chunks: u32,
    /// Nothing of it leaves until it is released.
    pub held: bool,
    /// The first attempt may have begun when this record became durable (it carries that attempt's mark).
    pub sent_at_once: bool,
    /// Nothing of it leaves before; `None` is at once.
    pub due: Option<Timestamp>,
    /// For a DSN: what it reports on.
    pub report: Option<Report>,
}

/// What a DSN reports. A durable failure report settles its recipients even if their own [`Final`] was
/// lost in a crash, so that nobody is told twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The message reported on.
    pub of: MessageNo,
    /// What is reported.
    pub kind: ReportKind,
    /// The recipients reported on.
    pub ordinals: Ordinals,
}

/// What a DSN says (RFC 3464 §2.3.3, Action).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// `failed`
    Failed,
    /// `delayed`
    Delayed,
    /// `delivered` or `relayed`
    Delivered,
}

/// An operator changed these recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Message.
    pub number: MessageNo,
    /// Its recipients.
    pub ordinals: Ordinals,
    /// What is so from now on.
    pub to: ChangeTo,
}

/// What a [`Change`] makes of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeTo {
    /// Held.
    Held,
    /// Held no more.
    Released,
    /// Due at this time.
    Due(Timestamp),
    /// Goes by the route of this name.
    Route(Box<str>),
}

/// A piece of a large content, streamed before its message is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The message it will belong to.
    pub number: MessageNo,
    /// Its place, from 0.
    pub index: u32,
}

/// The mark that a transaction may put these recipients' fate in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Message.
    pub number: MessageNo,
    /// Its recipients in the transaction.
    pub ordinals: Ordinals,
    /// Counted from 1.
    pub attempt: u16,
}

/// These recipients wait: the absolute state after an attempt, so that folding it twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// Message.
    pub number: MessageNo,
    /// Recipients with the same reply.
    pub ordinals: Ordinals,
    /// When.
    pub at: Timestamp,
    /// Attempts made so far.
    pub attempts: u16,
    /// When they are next due.
    pub due: Timestamp,
    /// The connection died after the final dot and before its reply.
    pub in_doubt: bool,
    /// What the remote said, or what went wrong in our words.
    pub reply: Reply,
    /// The remote, `mx1.example.net[192.0.2.1]:25`, or empty.
    pub peer: Box<str>,
}

/// These recipients are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Final {
    /// Message.
    pub number: MessageNo,
    /// Recipients with the same verdict and reply.
    pub ordinals: Ordinals,
    /// When.
    pub at: Timestamp,
    /// Attempts made.
    pub attempts: u16,
    /// The verdict.
    pub terminal: Terminal,
    /// The remote's words, or ours.
    pub reply: Reply,
    /// The remote, or empty.
    pub peer: Box<str>,
}

/// A site that does not answer: its lane waits as a whole, its recipients' own schedules untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The lane's key: route and site.
    pub lane: Box<str>,
    /// Failures in a row; 0 when the lane is well again.
    pub failures: u16,
    /// When the lane is tried next.
    pub until: Timestamp,
    /// What went wrong.
    pub reply: Reply,
}

/// An operator's act, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its number, for listing and ending it.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// The act with its filter, encoded by `engine`.
    pub act: Box<[u8]>,
}

const FLAG_SMTPUTF8: u64 = 1;
const FLAG_EIGHT_BIT: u64 = 1 << 1;
const FLAG_UTF8_HEADER: u64 = 1 << 2;
const FLAG_HELD: u64 = 1 << 3;
const FLAG_SENT_AT_ONCE: u64 = 1 << 4;
const FLAG_REQUIRES_TLS: u64 = 1 << 5;
const FLAG_RET_FULL: u64 = 1 << 6;
const FLAG_RET_HEADERS: u64 = 1 << 7;
const FLAG_ENVID: u64 = 1 << 8;
const FLAG_REPORT: u64 = 1 << 9;
const FLAG_DUE: u64 = 1 << 16;
const SHIFT_BODY: u32 = 10;
const SHIFT_ENCODING: u32 = 12;
const SHIFT_CLASS: u32 = 14;

impl Message {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = match self.envelope.body {
            BodyKind::SevenBit => 0,
            BodyKind::EightBitMime => 1,
            BodyKind::BinaryMime => 2,
        };
        let encoding = match self.encoding {
            Encoding::Stuffed => 0,
            Encoding::Plain => 1,
            Encoding::Binary => 2,
        };
        let class = match self.class {
            Class::Transactional => 0,
            Class::Normal => 1,
            Class::Bulk => 2,
        };
        let mut flags = body << SHIFT_BODY | encoding << SHIFT_ENCODING | class << SHIFT_CLASS;
        for (set, flag) in [
            (self.envelope.smtputf8, FLAG_SMTPUTF8),
            (self.eight_bit, FLAG_EIGHT_BIT),
            (self.utf8_header, FLAG_UTF8_HEADER),
            (self.held, FLAG_HELD),
            (self.sent_at_once, FLAG_SENT_AT_ONCE),
            (self.envelope.requires_tls, FLAG_REQUIRES_TLS),
            (self.envelope.ret == Some(Ret::Full), FLAG_RET_FULL),
            (self.envelope.ret == Some(Ret::Headers), FLAG_RET_HEADERS),
            (self.envelope.envid.is_some(), FLAG_ENVID),
            (self.report.is_some(), FLAG_REPORT),
            (self.due.is_some(), FLAG_DUE),
        ] {
            if set {
                flags |= flag;
            }
        }
        out.put_uint(self.number.0);
        out.put_uint(self.accepted_at.as_micros());
        out.put_uint(self.expires_at.as_micros());
        out.put_uint(flags);
        out.put_str(&self.account);
        out.put_str(&self.client);
        out.put_str(self.envelope.reverse_path.as_ref().map_or("", Mailbox::as_str));
        if let Some(envid) = &self.envelope.envid {
            out.put_str(envid);
        }
        out.put_uint(u64::from(self.header_size));
        out.put_uint(self.content_size);
        out.put_uint(u64::from(self.chunks));
        if let Some(due) = self.due {
            out.put_uint(due.as_micros());
        }
        if let Some(report) = &self.report {
            out.put_uint(report.of.0);
            out.put_byte(match report.kind {
                ReportKind::Failed => 0,
                ReportKind::Delayed => 1,
                ReportKind::Delivered => 2,
            });
            put_ordinals(out, &report.ordinals);
        }
        out.put_uint(self.recipients.len() as u64);
        for recipient in &self.recipients {
            out.put_str(recipient.mailbox.as_str());
            out.put_byte(
                notify_byte(recipient.notify)
                    | u8::from(recipient.orcpt.is_some()) << 4
                    | u8::from(recipient.captured) << 5,
            );
            if let Some(orcpt) = &recipient.orcpt {
                out.put_str(orcpt);
            }
        }
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        let number = MessageNo(r.uint("message number")?);
        let accepted_at = timestamp(r, "accepted time")?;
        let expires_at = timestamp(r, "expiry time")?;
        let flags = r.uint("flags")?;
        let has = |flag| flags & flag != 0;
        let account = r.str("account")?.into();
        let client = r.str("client")?.into();
        let reverse_path = match r.str("reverse-path")? {
            "" => None,
            text => Some(text.parse().map_err(|_| DecodeError::Invalid("reverse-path"))?),
        };
        let envid = if has(FLAG_ENVID) { Some(r.str("ENVID")?.into()) } else { None };
        let header_size = r.uint32("header size")?;
        let content_size = r.uint("content size")?;
        let chunks = r.uint32("chunk count")?;
        let due = if has(FLAG_DUE) { Some(timestamp(r, "first due time")?) } else { None };
        let report = if has(FLAG_REPORT) {
            let of = MessageNo(r.uint("reported message")?);
            let kind = match r.byte("report kind")? {
                0 => ReportKind::Failed,
                1 => ReportKind::Delayed,
                2 => ReportKind::Delivered,
                _ => return Err(DecodeError::Invalid("report kind")),
            };
            Some(Report { of, kind, ordinals: ordinals(r)? })
        } else {
            None
        };
        let count = r.uint16("recipient count")?;
        let mut recipients = Vec::with_capacity(usize::from(count).min(r.rest().len()));
        for _ in 0..count {
            let mailbox = r.str("recipient")?.parse().map_err(|_| DecodeError::Invalid("recipient"))?;
            let bits = r.byte("notify")?;
            let orcpt = if bits & 1 << 4 != 0 { Some(r.str("ORCPT")?.into()) } else { None };
            let captured = bits & 1 << 5 != 0;
            recipients.push(RecipientParams { mailbox, notify: notify(bits), orcpt, captured });
        }
        Ok(Message {
            number,
            accepted_at,
            expires_at,
            class: match flags >> SHIFT_CLASS & 3 {
                0 => Class::Transactional,
                1 => Class::Normal,
                2 => Class::Bulk,
                _ => return Err(DecodeError::Invalid("class")),
            },
            account,
            client,
            envelope: Envelope {
                reverse_path,
                body: match flags >> SHIFT_BODY & 3 {
                    0 => BodyKind::SevenBit,
                    1 => BodyKind::EightBitMime,
                    2 => BodyKind::BinaryMime,
                    _ => return Err(DecodeError::Invalid("body kind")),
                },
                smtputf8: has(FLAG_SMTPUTF8),
                envid,
                ret: match (has(FLAG_RET_FULL), has(FLAG_RET_HEADERS)) {
                    (true, _) => Some(Ret::Full),
                    (false, true) => Some(Ret::Headers),
                    (false, false) => None,
                },
                requires_tls: has(FLAG_REQUIRES_TLS),
            },
            recipients,
            encoding: match flags >> SHIFT_ENCODING & 3 {
                0 => Encoding::Stuffed,
                1 => Encoding::Plain,
                2 => Encoding::Binary,
                _ => return Err(DecodeError::Invalid("encoding")),
            },
            eight_bit: has(FLAG_EIGHT_BIT),
            utf8_header: has(FLAG_UTF8_HEADER),
            header_size,
            content_size,
            chunks,
            held: has(FLAG_HELD),
            sent_at_once: has(FLAG_SENT_AT_ONCE),
            due,
            report,
        })
    }
}

impl Chunk {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number.0);
        out.put_uint(u64::from(self.index));
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Chunk { number: MessageNo(r.uint("message number")?), index: r.uint32("chunk index")? })
    }
}

impl Attempt {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number.0);
        put_ordinals(out, &self.ordinals);
        out.put_uint(u64::from(self.attempt));
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Attempt {
            number: MessageNo(r.uint("message number")?),
            ordinals: ordinals(r)?,
            attempt: r.uint16("attempt")?,
        })
    }
}

impl Deferral {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number.0);
        put_ordinals(out, &self.ordinals);
        out.put_uint(self.at.as_micros());
        out.put_uint(u64::from(self.attempts));
        out.put_uint(self.due.as_micros());
        out.put_byte(u8::from(self.in_doubt));
        self.reply.encode(out);
        out.put_str(&self.peer);
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Deferral {
            number: MessageNo(r.uint("message number")?),
            ordinals: ordinals(r)?,
            at: timestamp(r, "time")?,
            attempts: r.uint16("attempts")?,
            due: timestamp(r, "due time")?,
            in_doubt: r.byte("doubt")? != 0,
            reply: Reply::decode(r)?,
            peer: r.str("peer")?.into(),
        })
    }
}

impl Final {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number.0);
        put_ordinals(out, &self.ordinals);
        out.put_uint(self.at.as_micros());
        out.put_uint(u64::from(self.attempts));
        out.put_byte(terminal_byte(self.terminal));
        self.reply.encode(out);
        out.put_str(&self.peer);
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Final {
            number: MessageNo(r.uint("message number")?),
            ordinals: ordinals(r)?,
            at: timestamp(r, "time")?,
            attempts: r.uint16("attempts")?,
            terminal: terminal(r.byte("verdict")?)?,
            reply: Reply::decode(r)?,
            peer: r.str("peer")?.into(),
        })
    }
}

impl Change {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number.0);
        put_ordinals(out, &self.ordinals);
        match &self.to {
            ChangeTo::Held => out.put_byte(0),
            ChangeTo::Released => out.put_byte(1),
            ChangeTo::Due(due) => {
                out.put_byte(2);
                out.put_uint(due.as_micros());
            }
            ChangeTo::Route(name) => {
                out.put_byte(3);
                out.put_str(name);
            }
        }
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Change {
            number: MessageNo(r.uint("message number")?),
            ordinals: ordinals(r)?,
            to: match r.byte("change")? {
                0 => ChangeTo::Held,
                1 => ChangeTo::Released,
                2 => ChangeTo::Due(timestamp(r, "due time")?),
                3 => ChangeTo::Route(r.str("route")?.into()),
                _ => return Err(DecodeError::Invalid("change")),
            },
        })
    }
}

impl Backoff {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_str(&self.lane);
        out.put_uint(u64::from(self.failures));
        out.put_uint(self.until.as_micros());
        self.reply.encode(out);
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Backoff {
            lane: r.str("lane")?.into(),
            failures: r.uint16("failures")?,
            until: timestamp(r, "time")?,
            reply: Reply::decode(r)?,
        })
    }
}

impl Control {
    /// Appends the head's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(self.number);
        out.put_uint(self.at.as_micros());
        out.put_bytes(&self.act);
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(head: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(head);
        Ok(Control {
            number: r.uint("control number")?,
            at: timestamp(r, "time")?,
            act: r.bytes("act")?.into(),
        })
    }
}

fn put_ordinals(out: &mut Vec<u8>, ordinals: &Ordinals) {
    out.put_uint(ordinals.len() as u64);
    for &ordinal in ordinals {
        out.put_uint(u64::from(ordinal));
    }
}

fn ordinals(r: &mut Reader<'_>) -> Result<Ordinals, DecodeError> {
    let count = r.uint16("ordinal count")?;
    (0..count).map(|_| r.uint16("ordinal")).collect()
}

fn timestamp(r: &mut Reader<'_>, what: &'static str) -> Result<Timestamp, DecodeError> {
    Ok(Timestamp::from_micros(r.uint(what)?))
}

fn notify_byte(notify: Option<Notify>) -> u8 {
    match notify {
        None => 0,
        Some(Notify::Never) => 1,
        Some(Notify::On { success, failure, delay }) => {
            8 | u8::from(success) | u8::from(failure) << 1 | u8::from(delay) << 2
        }
    }
}

fn notify(bits: u8) -> Option<Notify> {
    match bits & 0xf {
        0 => None,
        bits if bits & 8 != 0 => {
            Some(Notify::On { success: bits & 1 != 0, failure: bits & 2 != 0, delay: bits & 4 != 0 })
        }
        _ => Some(Notify::Never),
    }
}

fn terminal_byte(terminal: Terminal) -> u8 {
    match terminal {
        Terminal::Delivered(Via::Mx) => 0,
        Terminal::Delivered(Via::Smarthost) => 1,
        Terminal::Delivered(Via::Lmtp) => 2,
        Terminal::Bounced => 3,
        Terminal::Expired => 4,
        Terminal::Cancelled => 5,
        Terminal::Suppressed => 6,
        Terminal::Dropped => 7,
        Terminal::Captured => 8,
    }
}

fn terminal(byte: u8) -> Result<Terminal, DecodeError> {
    Ok(match byte {
        0 => Terminal::Delivered(Via::Mx),
        1 => Terminal::Delivered(Via::Smarthost),
        2 => Terminal::Delivered(Via::Lmtp),
        3 => Terminal::Bounced,
        4 => Terminal::Expired,
        5 => Terminal::Cancelled,
        6 => Terminal::Suppressed,
        7 => Terminal::Dropped,
        8 => Terminal::Captured,
        _ => return Err(DecodeError::Invalid("verdict")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EnhancedCode;
    use proptest::prelude::*;

    fn message() -> Message {
        Message {
            number: MessageNo(7_000_000),
            accepted_at: Timestamp::from_secs(1_795_526_426),
            expires_at: Timestamp::from_secs(1_795_958_426),
            class: Class::Bulk,
            account: "shop".into(),
            client: "192.0.2.7".into(),
            envelope: Envelope {
                reverse_path: Some("a@example.com".parse().unwrap()),
                body: BodyKind::EightBitMime,
                smtputf8: true,
                envid: Some("QQ314159".into()),
                ret: Some(Ret::Headers),
                requires_tls: false,
            },
            recipients: vec![
                RecipientParams::from("b@example.net".parse::<Mailbox>().unwrap()),
                RecipientParams {
                    mailbox: "jürgen@bücher.example".parse().unwrap(),
                    notify: Some(Notify::On { success: true, failure: false, delay: true }),
                    orcpt: Some("rfc822;c@example.net".into()),
                    captured: true,
                },
                RecipientParams {
                    mailbox: "d@example.net".parse().unwrap(),
                    notify: Some(Notify::Never),
                    orcpt: None,
                    captured: false,
                },
            ],
            encoding: Encoding::Plain,
            eight_bit: true,
            utf8_header: false,
            header_size: 300,
            content_size: 5_000_000_000,
            chunks: 19,
            held: true,
            sent_at_once: false,
            due: None,
            report: Some(Report {
                of: MessageNo(3),
                kind: ReportKind::Failed,
                ordinals: Ordinals::from_slice(&[0, 999]),
            }),
        }
    }

    #[test]
    fn every_head_is_read_back() {
        let reply = Reply::ours(450, EnhancedCode(4, 2, 1), "Mailbox busy");
        let (at, due) = (Timestamp::from_secs(5), Timestamp::from_secs(65));
        let (number, ordinals) = (MessageNo(9), Ordinals::from_slice(&[1, 2, 300]));
        macro_rules! check {
            ($type:ident, $value:expr) => {
                let value: $type = $value;
                let mut out = Vec::new();
                value.encode(&mut out);
                assert_eq!($type::decode(&out).unwrap(), value);
                for cut in 0..out.len() {
                    assert!($type::decode(&out[..cut]).is_err(), "cut at {cut} of {}", out.len());
                }
            };
        }
        check!(Message, message());
        check!(Chunk, Chunk { number, index: 4 });
        check!(Attempt, Attempt { number, ordinals: ordinals.clone(), attempt: 3 });
        check!(Deferral, {
            let (ordinals, reply) = (ordinals.clone(), reply.clone());
            Deferral {
                number,
                ordinals,
                at,
                attempts: 2,
                due,
                in_doubt: true,
                reply,
                peer: "mx[::1]:25".into(),
            }
        });
        check!(Change, Change { number, ordinals: ordinals.clone(), to: ChangeTo::Route("backup".into()) });
        check!(Change, Change { number, ordinals: ordinals.clone(), to: ChangeTo::Due(due) });
        let terminal = Terminal::Delivered(Via::Lmtp);
        let peer = Box::from("");
        check!(
            Backoff,
            Backoff { lane: "mx:example.net".into(), failures: 2, until: due, reply: reply.clone() }
        );
        check!(Final, Final { number, ordinals, at, attempts: 1, terminal, reply, peer });
        check!(Control, Control { number: 4, at, act: (*b"act").into() });
    }

    proptest! {
        #[test]
        fn damage_is_an_error_not_a_panic(mut flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut out = Vec::new();
            message().encode(&mut out);
            for (index, byte) in flips.drain(..) {
                let at = index.index(out.len());
                out[at] = byte;
            }
            let _ = Message::decode(&out);
            let _ = Deferral::decode(&out);
            let _ = Final::decode(&out);
        }
    }
}

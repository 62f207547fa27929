//! The state of a shard as parts of a checkpoint: one for each span of due times, so that what has not
//! changed is not written again.
//!
//! A checkpoint begins at a place in the log and is written in steps while the mail goes on; what changes
//! meanwhile is in the log behind that place and folded over it. A recipient is written once, where it is
//! when its turn comes: into the part of its bucket if that is being rewritten, else (its bucket has changed
//! only since the checkpoint began) among the strays.

use crate::messages::{Flags, MessageSlot};
use crate::operate::{Act, Filter};
use crate::operator::{decode_act, encode_act};
use crate::replies::{ReplyRef, Said};
use crate::shard::{NewRecord, Shard};
use postrider_model::codec::{DecodeError, Reader, Write};
use postrider_model::{
    Class, MessageNo, Reply, Timestamp,
    record::{self, Kind},
};
use postrider_queue::{Bucket, DomainId, FlowId, Recipient, RecipientSlot};
use postrider_spool::{Position, Ticket};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// Recipients looked at in one step.
const STEP_RECIPIENTS: u32 = 8_192;
/// The form of a part.
const VERSION: u8 = 1;

/// A part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name among the parts of all shards.
    pub name: String,
    /// What it says; empty when the part is to be deleted.
    pub content: Vec<u8>,
}

/// A checkpoint of one shard: complete once everything up to `after` is durable.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Parts to write, replace or delete; others stay as they are.
    pub parts: Vec<Part>,
    /// It must not be called complete before this ticket is durable: it may reflect what is not yet so.
    pub after: Ticket,
}

/// A checkpoint being written.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    rewritten: FxHashSet<Bucket>,
    buckets: BTreeMap<Bucket, Section>,
    strays: Section,
    cursor: u32,
    /// Gathered in a step.
    recipients: Vec<RecipientSlot>,
}

/// A part being written: names and replies are said once and then counted.
#[derive(Debug, Default)]
struct Section {
    out: Vec<u8>,
    domains: FxHashMap<DomainId, u64>,
    flows: FxHashMap<FlowId, u64>,
    replies: FxHashMap<ReplyRef, u64>,
}

const TAG_DOMAIN: u8 = 1;
const TAG_FLOW: u8 = 2;
const TAG_REPLY: u8 = 3;
const TAG_RECIPIENT: u8 = 4;
const TAG_NUMBER: u8 = 5;
const TAG_ACT: u8 = 6;
const TAG_BACKOFF: u8 = 7;
const TAG_CHUNK: u8 = 8;

const FLAG_HELD: u64 = 1;
const FLAG_MARKED: u64 = 1 << 1;
const FLAG_CHUNKED: u64 = 1 << 2;
const FLAG_WARN: u64 = 1 << 3;
const FLAG_EXPIRES: u64 = 1 << 4;
const SHIFT_CLASS: u32 = 5;
const FLAG_IN_DOUBT: u64 = 1 << 7;

impl Section {
    fn tag(&mut self, tag: u8) {
        if self.out.is_empty() {
            self.out.put_byte(VERSION);
        }
        self.out.put_byte(tag);
    }
}

impl Shard {
    /// Begins a checkpoint. Everything that was completed by now is in it, and everything that a checkpoint
    /// before it should have written if that was not confirmed.
    pub fn begin_checkpoint(&mut self) {
        let dirty = self.queue.take_dirty().into_iter().map(|view| view.bucket);
        self.unconfirmed.extend(dirty);
        self.checkpoint = Some(Box::new(Checkpoint {
            rewritten: self.unconfirmed.clone(),
            buckets: BTreeMap::new(),
            strays: Section::default(),
            cursor: 0,
            recipients: Vec::new(),
        }));
    }

    /// The checkpoint that was begun last counts now. Call it before the next one begins.
    pub fn checkpoint_confirmed(&mut self) {
        self.unconfirmed.clear();
    }

    /// A checkpoint is being written.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// One step of the checkpoint that was begun; its parts once it is whole.
    pub fn checkpoint_step(&mut self) -> Option<Parts> {
        let mut work = self.checkpoint.take()?;
        work.recipients.clear();
        let more = self.queue.sweep(work.cursor, STEP_RECIPIENTS, &mut work.recipients);
        let recipients = std::mem::take(&mut work.recipients);
        for &recipient in &recipients {
            let Some(bucket) = self.queue.bucket(recipient) else { continue };
            let section = if work.rewritten.contains(&bucket) {
                work.buckets.entry(bucket).or_default()
            } else if self.queue.is_dirty(bucket) {
                &mut work.strays
            } else {
                continue;
            };
            self.write_recipient(section, recipient);
        }
        work.recipients = recipients;
        if let Some(cursor) = more {
            work.cursor = cursor;
            self.checkpoint = Some(work);
            return None;
        }
        let mut parts = Vec::with_capacity(work.buckets.len() + 2);
        let name = |what: &str| format!("s{}-{what}", self.index);
        for bucket in work.rewritten {
            let content = work.buckets.remove(&bucket).unwrap_or_default().out;
            parts.push(Part { name: name(&format!("b{}", bucket.0)), content });
        }
        parts.push(Part { name: name("strays"), content: work.strays.out });
        parts.push(Part { name: name("state"), content: self.state_part() });
        // A mark of nobody, which cannot be refused: with it durable, so is all that the parts reflect. The last
        // ticket itself may belong to a message that was lost, and would never become so.
        let number = MessageNo(u64::from(self.index));
        let mark = record::Attempt { number, ordinals: record::Ordinals::new(), attempt: 0 };
        let after = self.append(NewRecord::urgent(Kind::Attempt, |head| mark.encode(head)));
        Some(Parts { parts, after })
    }

    fn write_recipient(&self, section: &mut Section, recipient: RecipientSlot) {
        let Some(entry) = self.queue.recipient(recipient) else { return };
        let slot = MessageSlot(entry.message);
        let Some(message) = self.messages.get(slot) else { return };
        // A message without a place is not durable; its record, once it is, comes behind this checkpoint.
        let Some(position) = message.position else { return };
        let domain = self.write_domain(section, entry.domain);
        let flow = self.write_flow(section, entry.flow);
        let reply = self.write_reply(section, ReplyRef(entry.reply));
        let class = match entry.class {
            Class::Transactional => 0,
            Class::Normal => 1,
            Class::Bulk => 2,
        };
        let held = entry.is_held && !self.operator.has_stopped(recipient);
        let mut flags = class << SHIFT_CLASS;
        for (set, flag) in [
            (held, FLAG_HELD),
            (message.flags.marked, FLAG_MARKED),
            (message.flags.chunked, FLAG_CHUNKED),
            (entry.warn.is_some(), FLAG_WARN),
            (entry.expires.is_some(), FLAG_EXPIRES),
            (entry.is_in_flight || message.flags.marked && entry.attempts == 0, FLAG_IN_DOUBT),
        ] {
            if set {
                flags |= flag;
            }
        }
        section.tag(TAG_RECIPIENT);
        let out = &mut section.out;
        out.put_uint(message.number.0);
        out.put_uint(u64::from(entry.ordinal));
        out.put_uint(position.as_u64());
        out.put_uint(message.accepted_at().as_secs());
        out.put_uint(flags);
        out.put_uint(domain);
        out.put_uint(flow);
        out.put_uint(reply);
        out.put_uint(entry.due.as_micros());
        out.put_uint(u64::from(entry.attempts));
        out.put_uint(u64::from(entry.size_kib));
        for time in [entry.expires, entry.warn].into_iter().flatten() {
            out.put_uint(time.as_secs());
        }
        if message.flags.chunked {
            let chunks = self.messages.chunks(message.number);
            out.put_uint(chunks.len() as u64);
            for chunk in chunks {
                out.put_uint(chunk.map_or(0, Position::as_u64));
            }
        }
    }

    fn write_domain(&self, section: &mut Section, domain: DomainId) -> u64 {
        if let Some(&known) = section.domains.get(&domain) {
            return known;
        }
        let index = section.domains.len() as u64;
        section.domains.insert(domain, index);
        section.tag(TAG_DOMAIN);
        section.out.put_str(self.route_name(domain));
        section.out.put_str(self.queue.domain(domain).name);
        index
    }

    fn write_flow(&self, section: &mut Section, flow: FlowId) -> u64 {
        if let Some(&known) = section.flows.get(&flow) {
            return known;
        }
        let index = section.flows.len() as u64;
        section.flows.insert(flow, index);
        section.tag(TAG_FLOW);
        section.out.put_str(self.queue.flow_name(flow));
        index
    }

    /// 0 is no reply; others are counted from 1.
    fn write_reply(&self, section: &mut Section, reply: ReplyRef) -> u64 {
        let Some(said) = self.replies.get(reply) else { return 0 };
        if let Some(&known) = section.replies.get(&reply) {
            return known;
        }
        let index = section.replies.len() as u64 + 1;
        section.replies.insert(reply, index);
        section.tag(TAG_REPLY);
        said.reply.encode(&mut section.out);
        section.out.put_str(&said.peer);
        section.out.put_byte(u8::from(said.in_doubt));
        index
    }

    /// What is true of the shard beyond its recipients.
    fn state_part(&self) -> Vec<u8> {
        let mut section = Section::default();
        section.tag(TAG_NUMBER);
        section.out.put_uint(self.numbers_taken());
        for (number, at, act, filter) in self.operator.standing() {
            section.tag(TAG_ACT);
            section.out.put_uint(number);
            section.out.put_uint(at.as_micros());
            section.out.put_bytes(&encode_act(&act, &filter));
        }
        // Chunks before the checkpoint whose message may come behind it.
        for (number, index, position) in self.messages.unfinished_chunks() {
            section.tag(TAG_CHUNK);
            section.out.put_uint(number.0);
            section.out.put_uint(u64::from(index));
            section.out.put_uint(position.as_u64());
        }
        for (key, backoff) in self.backoffs() {
            section.tag(TAG_BACKOFF);
            section.out.put_str(&key);
            section.out.put_uint(u64::from(backoff.failures));
            section.out.put_uint(backoff.until.as_micros());
            let said = self.replies.get(ReplyRef(backoff.reply));
            match said {
                Some(said) => said.reply.encode(&mut section.out),
                None => crate::transaction::unknown().encode(&mut section.out),
            }
        }
        section.out
    }

    /// Takes what a part says, as far as it concerns this shard. Give every part to every shard: there may
    /// be another number of shards now.
    ///
    /// # Errors
    /// When the part is damaged. What stood before the damage is taken.
    pub fn load_part(&mut self, content: &[u8]) -> Result<(), DecodeError> {
        let r = &mut Reader::new(content);
        if r.is_empty() {
            return Ok(());
        }
        if r.byte("version")? != VERSION {
            return Err(DecodeError::Invalid("version of a checkpoint's part"));
        }
        let mut names = Names::default();
        while !r.is_empty() {
            match r.byte("tag")? {
                TAG_DOMAIN => names.domains.push((r.str("route")?, r.str("domain")?)),
                TAG_FLOW => names.flows.push(r.str("flow")?),
                TAG_REPLY => {
                    let reply = Reply::decode(r)?;
                    let peer = r.str("peer")?.into();
                    let in_doubt = r.byte("doubt")? != 0;
                    names.replies.push(Said { reply, peer, in_doubt });
                }
                TAG_RECIPIENT => self.load_recipient(r, &names)?,
                TAG_NUMBER => {
                    let taken = r.uint("number")?;
                    if taken > 0 {
                        self.number_taken(MessageNo(taken - 1));
                    }
                }
                TAG_ACT => {
                    let number = r.uint("act number")?;
                    let at = Timestamp::from_micros(r.uint("time")?);
                    let (act, filter) = decode_act(r.bytes("act")?)?;
                    self.restore_act(at, number, act, filter);
                }
                TAG_CHUNK => {
                    let number = MessageNo(r.uint("message number")?);
                    let index = r.uint32("chunk index")?;
                    let position = Position::from_u64(r.uint("chunk position")?);
                    if let Some(position) = position.filter(|_| self.owns(number)) {
                        self.number_taken(number);
                        self.messages.place_chunk(number, index, position);
                    }
                }
                TAG_BACKOFF => {
                    let lane = r.str("lane")?.into();
                    let failures = r.uint16("failures")?;
                    let until = Timestamp::from_micros(r.uint("time")?);
                    let reply = Reply::decode(r)?;
                    self.replay_backoff(&record::Backoff { lane, failures, until, reply });
                }
                _ => return Err(DecodeError::Invalid("tag")),
            }
        }
        Ok(())
    }

    fn load_recipient(&mut self, r: &mut Reader<'_>, names: &Names<'_>) -> Result<(), DecodeError> {
        let number = MessageNo(r.uint("message number")?);
        let ordinal = r.uint16("ordinal")?;
        let position = Position::from_u64(r.uint("position")?);
        let accepted_at = Timestamp::from_secs(r.uint("accepted time")?);
        let flags = r.uint("flags")?;
        let domain = index(r, names.domains.len(), "domain")?;
        let flow = index(r, names.flows.len(), "flow")?;
        let reply = r.uint("reply")?;
        let due = Timestamp::from_micros(r.uint("due time")?);
        let attempts = r.uint16("attempts")?;
        let size_kib = r.uint16("size")?;
        let mut time = |set: bool| -> Result<Option<Timestamp>, DecodeError> {
            Ok(if set { Some(Timestamp::from_secs(r.uint("time")?)) } else { None })
        };
        let expires = time(flags & FLAG_EXPIRES != 0)?;
        let warn = time(flags & FLAG_WARN != 0)?;
        let mut chunks = Vec::new();
        if flags & FLAG_CHUNKED != 0 {
            let count = r.uint32("chunk count")?;
            for _ in 0..count {
                chunks.push(Position::from_u64(r.uint("chunk position")?));
            }
        }
        if !self.owns(number) {
            return Ok(());
        }
        self.number_taken(number);
        let message_flags = Flags { marked: flags & FLAG_MARKED != 0, chunked: flags & FLAG_CHUNKED != 0 };
        let slot = match self.messages.find(number) {
            Some(slot) => {
                // A recipient that changed buckets while the checkpoint was written may stand in two parts;
                // the record of the change follows in the log and says where it is.
                if self.messages.recipients(slot).any(|known| self.place_of(known).1 == ordinal) {
                    return Ok(());
                }
                slot
            }
            None => {
                let slot = self.messages.insert(number, accepted_at, None, message_flags);
                if let Some(message) = self.messages.get_mut(slot) {
                    message.position = position;
                }
                for (index, chunk) in (0..).zip(chunks) {
                    if let Some(chunk) = chunk {
                        self.messages.place_chunk(number, index, chunk);
                    }
                }
                slot
            }
        };
        let (route, name) = names.domains[domain];
        let route = self.lanes.route_number(route);
        let reply = match usize::try_from(reply).ok().and_then(|at| names.replies.get(at.checked_sub(1)?)) {
            Some(said) => self.replies.keep(said.clone()),
            None => ReplyRef::NONE,
        };
        let recipient = Recipient {
            message: slot.0,
            ordinal,
            domain: self.queue.intern_domain(route, name),
            flow: self.queue.intern_flow(names.flows[flow], 1),
            class: match flags >> SHIFT_CLASS & 3 {
                0 => Class::Transactional,
                1 => Class::Normal,
                _ => Class::Bulk,
            },
            due,
            expires,
            warn,
            attempts,
            reply: reply.0,
            size_kib,
            held: flags & FLAG_HELD != 0,
        };
        let recipient = self.queue.insert(accepted_at, &recipient);
        self.messages.link(slot, recipient);
        if flags & FLAG_IN_DOUBT != 0 {
            self.doubt(recipient);
        }
        Ok(())
    }

    fn owns(&self, number: MessageNo) -> bool {
        number.0 % u64::from(self.shards) == u64::from(self.index)
    }

    fn restore_act(&mut self, at: Timestamp, number: u64, act: Act, filter: Filter) {
        self.operator.last_number = self.operator.last_number.max(number);
        if let Act::Suspend { reason } = act {
            self.operator.suspend(number, at, reason, filter);
        }
    }
}

/// Names and replies that a part has said.
#[derive(Default)]
struct Names<'a> {
    domains: Vec<(&'a str, &'a str)>,
    flows: Vec<&'a str>,
    replies: Vec<Said>,
}

fn index(r: &mut Reader<'_>, len: usize, what: &'static str) -> Result<usize, DecodeError> {
    let at = usize::try_from(r.uint(what)?).map_err(|_| DecodeError::Invalid(what))?;
    if at < len { Ok(at) } else { Err(DecodeError::Invalid(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardConfig;
    use crate::{Draft, Intake};
    use bytes::Bytes;
    use postrider_model::snapshot::{Delivery, DomainPattern, Route, Source, Target, TlsLevel};
    use postrider_model::{BodyKind, Encoding, Envelope, IdCipher, Mailbox, RecipientParams, Snapshot};
    use postrider_spool::{Append, BATCH_BYTES_MAX, Log, Op, Settings};
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn shard() -> Shard {
        let route = Route {
            name: "mx".into(),
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            to: Target::Mx,
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        };
        let snapshot = Snapshot {
            hostname: "relay.test".parse().unwrap(),
            listeners: Vec::new(),
            accounts: Vec::new(),
            routes: vec![Arc::new(route)],
            delivery: Delivery::default(),
        };
        Shard::new(ShardConfig {
            index: 0,
            shards: 1,
            snapshot: Arc::new(snapshot),
            cipher: IdCipher::new([1; 16]),
            seed: 1,
            fresh_size_max_bytes: 1 << 20,
        })
    }

    /// Hands the shard's records to the log, which does all it is asked; gives what was appended.
    fn commit(shard: &mut Shard, log: &mut Log) -> Vec<Append> {
        let mut appends = Vec::new();
        shard.take_appends(&mut appends);
        let copies: Vec<Append> = appends.clone();
        appends.into_iter().for_each(|append| log.append(append));
        while let Some(op) = log.poll() {
            match op {
                Op::Prepare(prepare) => log.prepared(prepare.segment, Ok(())),
                Op::Write(_) => log.written(Ok(())),
                Op::Sync { .. } => log.synced(Ok(())),
                Op::Read { .. } | Op::Remove { .. } => unreachable!("nothing is copied or given back"),
            }
        }
        while let Some(news) = log.poll_completion() {
            shard.completed(NOW, &news);
        }
        copies
    }

    fn message(number: MessageNo, chunks: u32) -> record::Message {
        record::Message {
            number,
            accepted_at: NOW,
            expires_at: Timestamp::from_secs(1_900_000_000),
            class: Class::Normal,
            account: "test".into(),
            client: "".into(),
            envelope: Envelope { body: BodyKind::SevenBit, ..Envelope::default() },
            recipients: vec![RecipientParams::from("a@b.test".parse::<Mailbox>().unwrap())],
            encoding: Encoding::Stuffed,
            eight_bit: false,
            utf8_header: false,
            header_size: 2,
            content_size: 12,
            chunks,
            held: false,
            sent_at_once: false,
            due: None,
            report: None,
        }
    }

    fn checkpoint(shard: &mut Shard) -> Vec<Part> {
        shard.begin_checkpoint();
        loop {
            if let Some(parts) = shard.checkpoint_step() {
                return parts.parts;
            }
        }
    }

    #[test]
    fn chunks_before_a_checkpoint_are_there_for_a_message_behind_it() {
        let (mut before, mut log) = (shard(), Log::new(Settings::default(), 7));
        let number = before.begin(NOW, 0).unwrap();
        before.chunk(number, 0, Bytes::from_static(b"0123456789")).unwrap();
        commit(&mut before, &mut log);
        let parts = checkpoint(&mut before);
        let content = [Bytes::from_static(b"\r\n")].into_iter().collect();
        before.submit(NOW, Draft { message: message(number, 1), content }).unwrap();
        let behind = commit(&mut before, &mut log);
        let place = before.messages.chunks(number)[0];
        assert!(place.is_some());

        let mut after = shard();
        parts.iter().for_each(|part| after.load_part(&part.content).unwrap());
        for append in behind {
            after.replay(append.kind, &append.head, None, false).unwrap();
        }
        let mut live = Vec::new();
        after.replayed(NOW, &mut live);
        assert_eq!(after.messages.chunks(number), [place]);
        assert!(place.is_some_and(|place| live.contains(&place)));
    }

    #[test]
    fn what_an_unconfirmed_checkpoint_took_the_next_one_writes_again() {
        let (mut shard, mut log) = (shard(), Log::new(Settings::default(), 7));
        let number = shard.begin(NOW, 0).unwrap();
        let content = [Bytes::from_static(b"\r\n0123456789")].into_iter().collect();
        shard.submit(NOW, Draft { message: message(number, 0), content }).unwrap();
        commit(&mut shard, &mut log);
        let buckets = |parts: &[Part]| parts.iter().filter(|part| part.name.starts_with("s0-b")).count();
        assert_eq!(buckets(&checkpoint(&mut shard)), 1);
        assert_eq!(buckets(&checkpoint(&mut shard)), 1, "the first one came to nothing");
        shard.checkpoint_confirmed();
        assert_eq!(buckets(&checkpoint(&mut shard)), 0);
    }

    #[test]
    fn a_checkpoint_does_not_wait_for_a_ticket_that_was_lost() {
        let (mut shard, mut log) = (shard(), Log::new(Settings::default(), 7));
        let number = shard.begin(NOW, 0).unwrap();
        let content = [Bytes::from(vec![b'x'; BATCH_BYTES_MAX as usize + 1])].into_iter().collect();
        let lost = shard.submit(NOW, Draft { message: message(number, 0), content }).unwrap();
        commit(&mut shard, &mut log);
        assert!(!shard.is_durable(lost), "it is larger than the log takes");
        shard.begin_checkpoint();
        let parts = loop {
            if let Some(parts) = shard.checkpoint_step() {
                break parts;
            }
        };
        commit(&mut shard, &mut log);
        assert!(shard.is_durable(parts.after));
    }
}

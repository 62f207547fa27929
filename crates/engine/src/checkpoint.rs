//! The state of a shard as parts of a checkpoint: one for each span of due times, so that what has not
//! changed is not written again.
//!
//! A checkpoint begins at a place in the log and is written in steps while the mail goes on; what changes
//! meanwhile is in the log behind that place and folded over it. A recipient is written once, where it is
//! when its turn comes: into the part of its bucket if that is being rewritten, else (its bucket has changed
//! only since the checkpoint began) among the strays.

use crate::messages::MessageSlot;
use crate::operator::encode_act;
use crate::replies::ReplyRef;
use crate::shard::{NewRecord, Shard};
use postrider_model::codec::Write;
use postrider_model::{
    Class, MessageNo,
    record::{self, Kind},
};
use postrider_queue::{Bucket, DomainId, FlowId, RecipientSlot};
use postrider_spool::{Position, Ticket};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// Recipients looked at in one step.
const STEP_RECIPIENTS: u32 = 8_192;
/// A part is written in pieces of about this size, so that none takes long to load.
const PIECE_BYTES: usize = 4 << 20;
/// The form of a part.
pub(crate) const VERSION: u8 = 1;

/// A part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name among the parts of all shards. Pieces of one part differ in what follows a dot.
    pub name: String,
    /// What it says.
    pub content: Vec<u8>,
}

/// A checkpoint of one shard: complete once everything up to `after` is durable.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Names of parts that are no more, with all their pieces ([`crate::base_name`]); others stay as they are.
    pub replaced: Vec<String>,
    /// What takes their place.
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
    /// Pieces that are full.
    pieces: Vec<Part>,
    cursor: u32,
    /// Gathered in a step.
    recipients: Vec<RecipientSlot>,
}

/// A part being written: names and replies are said once in each piece and then counted.
#[derive(Debug, Default)]
struct Section {
    out: Vec<u8>,
    /// Pieces before this one.
    before: u32,
    domains: FxHashMap<DomainId, u64>,
    flows: FxHashMap<FlowId, u64>,
    replies: FxHashMap<ReplyRef, u64>,
}

pub(crate) const TAG_DOMAIN: u8 = 1;
pub(crate) const TAG_FLOW: u8 = 2;
pub(crate) const TAG_REPLY: u8 = 3;
pub(crate) const TAG_RECIPIENT: u8 = 4;
pub(crate) const TAG_NUMBER: u8 = 5;
pub(crate) const TAG_ACT: u8 = 6;
pub(crate) const TAG_BACKOFF: u8 = 7;
pub(crate) const TAG_CHUNK: u8 = 8;
pub(crate) const TAG_COUNT: u8 = 9;

pub(crate) const FLAG_HELD: u64 = 1;
pub(crate) const FLAG_MARKED: u64 = 1 << 1;
pub(crate) const FLAG_CHUNKED: u64 = 1 << 2;
pub(crate) const FLAG_WARN: u64 = 1 << 3;
pub(crate) const FLAG_EXPIRES: u64 = 1 << 4;
pub(crate) const SHIFT_CLASS: u32 = 5;
pub(crate) const FLAG_IN_DOUBT: u64 = 1 << 7;

impl Section {
    fn tag(&mut self, tag: u8) {
        if self.out.is_empty() {
            self.out.put_byte(VERSION);
        }
        self.out.put_byte(tag);
    }

    /// Hands over what was written; the next piece begins.
    fn cut(&mut self, name: &str, pieces: &mut Vec<Part>) {
        if self.out.is_empty() {
            return;
        }
        let name = if self.before == 0 { name.to_owned() } else { format!("{name}.{}", self.before) };
        let before = self.before + 1;
        let Section { out: content, .. } = std::mem::replace(self, Section { before, ..Section::default() });
        pieces.push(Part { name, content });
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
            pieces: Vec::new(),
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
            if section.out.len() >= PIECE_BYTES {
                let is_stray = !work.rewritten.contains(&bucket);
                section.cut(&self.part_name((!is_stray).then_some(bucket)), &mut work.pieces);
            }
        }
        work.recipients = recipients;
        if let Some(cursor) = more {
            work.cursor = cursor;
            self.checkpoint = Some(work);
            return None;
        }
        let mut parts = std::mem::take(&mut work.pieces);
        let mut replaced: Vec<_> =
            work.rewritten.iter().map(|bucket| self.part_name(Some(*bucket))).collect();
        for (bucket, mut section) in std::mem::take(&mut work.buckets) {
            section.cut(&self.part_name(Some(bucket)), &mut parts);
        }
        work.strays.cut(&self.part_name(None), &mut parts);
        let state = format!("s{}-state", self.index);
        parts.push(Part { name: state.clone(), content: self.state_part() });
        replaced.extend([self.part_name(None), state]);
        // A mark of nobody, which cannot be refused: with it durable, so is all that the parts reflect. The last
        // ticket itself may belong to a message that was lost, and would never become so.
        let number = MessageNo(u64::from(self.index));
        let mark = record::Attempt { number, ordinals: record::Ordinals::new(), attempt: 0 };
        let after = self.append(NewRecord::urgent(Kind::Attempt, |head| mark.encode(head)));
        Some(Parts { replaced, parts, after })
    }

    /// The part of a bucket, or of the strays.
    fn part_name(&self, bucket: Option<Bucket>) -> String {
        match bucket {
            Some(bucket) => format!("s{}-b{}", self.index, bucket.0),
            None => format!("s{}-strays", self.index),
        }
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
        section.tag(TAG_COUNT);
        section.out.put_uint(self.queue.len() as u64);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardConfig;
    use crate::{Draft, Intake};
    use bytes::Bytes;
    use postrider_model::snapshot::{Delivery, DomainPattern, Route, Source, Target, TlsLevel};
    use postrider_model::{
        BodyKind, Encoding, Envelope, IdCipher, Mailbox, RecipientParams, Snapshot, Timestamp,
    };
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

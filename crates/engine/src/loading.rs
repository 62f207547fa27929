//! Taking up a checkpoint: what is due before the start, the rest while the mail goes on.
//!
//! The log behind the checkpoint is folded when only some recipients are there. What it says of others is kept
//! until they come, and so is what becomes of recipients meanwhile: a part may name one that has had its
//! verdict, or that stands in another part too. A message is not given up while more of its recipients may
//! come. What is kept is bounded by the log behind the checkpoint, which the checkpoints bound, and by what is
//! delivered in the seconds that loading takes.

use crate::checkpoint::{
    FLAG_CHUNKED, FLAG_EXPIRES, FLAG_HELD, FLAG_IN_DOUBT, FLAG_MARKED, FLAG_WARN, SHIFT_CLASS, TAG_ACT,
    TAG_BACKOFF, TAG_CHUNK, TAG_COUNT, TAG_DOMAIN, TAG_FLOW, TAG_NUMBER, TAG_RECIPIENT, TAG_REPLY, VERSION,
};
use crate::messages::{Flags, MessageSlot};
use crate::operate::{Act, Filter};
use crate::operator::decode_act;
use crate::replies::{ReplyRef, Said};
use crate::shard::Shard;
use postrider_model::codec::{DecodeError, Reader};
use postrider_model::record::{self, Kind, Ordinals};
use postrider_model::{Class, MessageNo, Reply, Timestamp};
use postrider_queue::{Bucket, Recipient, RecipientSlot};
use postrider_spool::Position;
use rustc_hash::{FxHashMap, FxHashSet};

/// Recipients loaded in one step.
const STEP_RECIPIENTS: usize = 4_096;

/// What a part of a checkpoint holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// What is true of the shard as a whole: needed before anything else.
    State,
    /// Recipients with various due times.
    Strays,
    /// Recipients with due times in this bucket.
    Bucket(Bucket),
}

impl PartKind {
    /// Of the part with this name; one that cannot be told is taken first.
    #[must_use]
    pub fn of(name: &str) -> PartKind {
        match base_name(name).split_once('-').map(|(_, what)| what) {
            Some("strays") => PartKind::Strays,
            Some(what) => match what.strip_prefix('b').and_then(|bucket| bucket.parse().ok()) {
                Some(bucket) => PartKind::Bucket(Bucket(bucket)),
                None => PartKind::State,
            },
            None => PartKind::State,
        }
    }
}

/// A part's name without the number of the piece: see [`crate::Parts::replaced`].
#[must_use]
pub fn base_name(name: &str) -> &str {
    name.split_once('.').map_or(name, |(base, _)| base)
}

/// What must be known until every part is loaded.
#[derive(Debug)]
pub(crate) struct Loading {
    /// Messages from this number on stand in no part.
    end: MessageNo,
    /// Messages from this number on are of this life.
    first_new: MessageNo,
    /// Messages whose own record is in the log behind the checkpoint: that says all about them.
    whole: FxHashSet<MessageNo>,
    /// Recipients that have their verdict.
    gone: FxHashSet<(MessageNo, u16)>,
    /// Where copies of messages are that are not there yet.
    moved: FxHashMap<MessageNo, Position>,
    /// Verdicts that were reported and perhaps not written.
    owed: FxHashMap<MessageNo, Ordinals>,
    tail: Tail,
    /// Messages that had no recipients at a time.
    emptied: Vec<(MessageSlot, MessageNo)>,
    /// Recipients in parts not read yet.
    unloaded: u64,
    part: Option<Part>,
    /// Loaded in this step, and owed a verdict.
    due_verdicts: Vec<(MessageNo, u16)>,
    /// Bodies of messages that came in this step.
    live: Vec<Position>,
}

impl Loading {
    fn new(end: MessageNo, unloaded: u64) -> Self {
        Loading {
            end,
            first_new: end,
            whole: FxHashSet::default(),
            gone: FxHashSet::default(),
            moved: FxHashMap::default(),
            owed: FxHashMap::default(),
            tail: Tail::default(),
            emptied: Vec::new(),
            unloaded,
            part: None,
            due_verdicts: Vec::new(),
            live: Vec::new(),
        }
    }

    /// Recipients of the message may stand in a part that is not loaded.
    fn may_hold(&self, number: MessageNo) -> bool {
        number < self.end && !self.whole.contains(&number)
    }
}

/// Records behind the checkpoint that change recipients, by message, in their order.
#[derive(Debug, Default)]
struct Tail {
    /// Kind, length and head of each.
    heads: Vec<u8>,
    /// Where each is in `heads`, and the next one of the same message.
    records: Vec<(usize, u32)>,
    /// The first and the last of each message.
    ends: FxHashMap<MessageNo, (u32, u32)>,
}

const NO_MORE: u32 = u32::MAX;

impl Tail {
    fn push(&mut self, number: MessageNo, kind: Kind, head: &[u8]) {
        // Invariant: checkpoints bound the log behind them far below 2^32 records and heads below 2^32 octets.
        let at = u32::try_from(self.records.len()).unwrap_or(NO_MORE);
        let length = u32::try_from(head.len()).unwrap_or(0);
        self.records.push((self.heads.len(), NO_MORE));
        self.heads.push(kind as u8);
        self.heads.extend_from_slice(&length.to_le_bytes());
        self.heads.extend_from_slice(head);
        match self.ends.get_mut(&number) {
            Some((_, last)) => {
                self.records[*last as usize].1 = at;
                *last = at;
            }
            None => {
                self.ends.insert(number, (at, at));
            }
        }
    }

    fn of(&self, number: MessageNo) -> impl Iterator<Item = (u8, &[u8])> {
        let mut at = self.ends.get(&number).map_or(NO_MORE, |(first, _)| *first);
        std::iter::from_fn(move || {
            let &(start, next) = self.records.get(at as usize)?;
            at = next;
            let (&kind, rest) = self.heads.get(start..)?.split_first()?;
            let (length, rest) = rest.split_first_chunk::<4>()?;
            Some((kind, rest.get(..u32::from_le_bytes(*length) as usize)?))
        })
    }
}

/// A part that is being read.
#[derive(Debug)]
struct Part {
    content: Vec<u8>,
    at: usize,
    names: Names,
}

/// Names and replies that a part has said.
#[derive(Debug, Default)]
struct Names {
    /// The queue's number of the route, and the domain.
    domains: Vec<(u16, Box<str>)>,
    flows: Vec<Box<str>>,
    replies: Vec<Said>,
}

/// A recipient as a part tells it.
struct Loaded {
    number: MessageNo,
    ordinal: u16,
    position: Option<Position>,
    accepted_at: Timestamp,
    flags: u64,
    domain: usize,
    flow: usize,
    reply: u64,
    due: Timestamp,
    attempts: u16,
    size_kib: u16,
    expires: Option<Timestamp>,
    warn: Option<Timestamp>,
    chunks: Vec<Option<Position>>,
}

impl Shard {
    /// Takes what a part says, as far as it concerns this shard, before the log is replayed. If there is
    /// another number of shards now, give every part to every shard.
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
        self.read_part(r, &mut Names::default(), usize::MAX)
    }

    /// Further parts come once the log is replayed, by [`Shard::load_late`]. Say so after the parts that do
    /// not, state among them, and before the replay. Until [`Shard::all_loaded`] no checkpoint may begin, and
    /// the log must not be told that all live bodies are known.
    pub fn expect_parts(&mut self) {
        let unloaded = self.counted.saturating_sub(self.queue.len() as u64);
        let end = MessageNo(self.numbers_taken());
        self.loading = Some(Box::new(Loading::new(end, unloaded)));
    }

    /// Parts are still to come.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Recipients in parts that are not loaded yet, as the checkpoint counted them.
    pub(crate) fn unloaded(&self) -> u64 {
        self.loading.as_ref().map_or(0, |loading| loading.unloaded)
    }

    /// A part waits to be read.
    pub(crate) fn has_part(&self) -> bool {
        self.loading.as_ref().is_some_and(|loading| loading.part.is_some())
    }

    /// Takes a further part, for [`Shard::load_step`] to read; the one before must have been read.
    pub fn load_late(&mut self, content: Vec<u8>) {
        if let Some(loading) = &mut self.loading {
            loading.part = Some(Part { content, at: 0, names: Names::default() });
        }
    }

    /// Reads some of the part at hand, and adds to `live` the bodies that came with it. False when the part
    /// has been read.
    ///
    /// # Errors
    /// When the part is damaged.
    pub fn load_step(&mut self, now: Timestamp, live: &mut Vec<Position>) -> Result<bool, DecodeError> {
        let Some(mut part) = self.loading.as_mut().and_then(|loading| loading.part.take()) else {
            return Ok(false);
        };
        let mut r = Reader::new(part.content.get(part.at..).unwrap_or_default());
        if part.at == 0 && !r.is_empty() && r.byte("version")? != VERSION {
            return Err(DecodeError::Invalid("version of a checkpoint's part"));
        }
        let read = self.read_part(&mut r, &mut part.names, STEP_RECIPIENTS);
        part.at = part.content.len() - r.rest().len();
        let is_over = r.is_empty();
        let Some(loading) = &mut self.loading else { return Ok(false) };
        live.append(&mut loading.live);
        for (number, ordinal) in std::mem::take(&mut loading.due_verdicts) {
            self.give_owed(now, number, &[ordinal]);
        }
        read?;
        if let Some(loading) = self.loading.as_mut().filter(|_| !is_over) {
            loading.part = Some(part);
        }
        Ok(!is_over)
    }

    /// Every part has been read.
    pub fn all_loaded(&mut self) {
        let Some(loading) = self.loading.take() else { return };
        self.fold.places = FxHashMap::default();
        self.drop_orphan_chunks(loading.first_new);
        let mut places = Vec::new();
        for (slot, number) in loading.emptied {
            if self.messages.get(slot).is_some_and(|m| m.number == number && m.live() == 0) {
                places.extend(self.messages.remove(slot).and_then(|message| message.position));
                places.extend(self.messages.take_chunks(number));
            }
        }
        self.release_now(places);
    }

    /// The past is folded; gives whether parts are to come.
    pub(crate) fn begin_life(&mut self) -> bool {
        let first_new = MessageNo(self.numbers_taken());
        let Some(loading) = &mut self.loading else { return false };
        loading.first_new = first_new;
        true
    }

    /// A record behind the checkpoint changes recipients that may not be there yet.
    pub(crate) fn remember(&mut self, number: MessageNo, kind: Kind, head: &[u8]) {
        if let Some(loading) = self.loading.as_mut().filter(|loading| loading.may_hold(number)) {
            loading.tail.push(number, kind, head);
        }
    }

    /// A record behind the checkpoint is a verdict.
    pub(crate) fn remember_verdict(&mut self, number: MessageNo, ordinals: &[u16]) {
        if let Some(loading) = self.loading.as_mut().filter(|loading| loading.may_hold(number)) {
            loading.gone.extend(ordinals.iter().map(|ordinal| (number, *ordinal)));
        }
    }

    /// A verdict is due to recipients that may not be there yet.
    pub(crate) fn remember_owed(&mut self, number: MessageNo, ordinals: &[u16]) {
        if let Some(loading) = self.loading.as_mut().filter(|loading| loading.may_hold(number)) {
            loading.owed.entry(number).or_default().extend_from_slice(ordinals);
        }
    }

    /// A copy of a message behind the checkpoint that is not there, or not yet.
    pub(crate) fn remember_place(&mut self, number: MessageNo, position: Option<Position>) {
        if let (Some(loading), Some(position)) = (&mut self.loading, position) {
            loading.moved.insert(number, position);
        }
    }

    /// The log behind the checkpoint has a message from its beginning on.
    pub(crate) fn remember_whole(&mut self, number: MessageNo) {
        if let Some(loading) = self.loading.as_mut().filter(|loading| number < loading.end) {
            loading.whole.insert(number);
        }
    }

    /// A recipient ends. True if more of its message may come: then it stays, without recipients.
    pub(crate) fn remember_end(&mut self, slot: MessageSlot, recipient: RecipientSlot, last: bool) -> bool {
        if self.loading.is_none() {
            return false;
        }
        let ordinal = self.place_of(recipient).1;
        let Some(number) = self.messages.get(slot).map(|message| message.number) else { return false };
        let Some(loading) = self.loading.as_mut().filter(|loading| loading.may_hold(number)) else {
            return false;
        };
        loading.gone.insert((number, ordinal));
        if last {
            loading.emptied.push((slot, number));
        }
        true
    }

    /// Reads a part, or so many of its recipients.
    fn read_part(&mut self, r: &mut Reader<'_>, names: &mut Names, most: usize) -> Result<(), DecodeError> {
        let mut recipients = 0;
        while !r.is_empty() && recipients < most {
            match r.byte("tag")? {
                TAG_DOMAIN => {
                    let route = self.lanes.route_number(r.str("route")?);
                    names.domains.push((route, r.str("domain")?.into()));
                }
                TAG_FLOW => names.flows.push(r.str("flow")?.into()),
                TAG_REPLY => {
                    let reply = Reply::decode(r)?;
                    let peer = r.str("peer")?.into();
                    let in_doubt = r.byte("doubt")? != 0;
                    names.replies.push(Said { reply, peer, in_doubt });
                }
                TAG_RECIPIENT => {
                    recipients += 1;
                    let loaded = Loaded::read(r, names)?;
                    if self.owns(loaded.number) {
                        self.take_loaded(&loaded, names);
                    }
                }
                tag => self.read_state(tag, r)?,
            }
        }
        Ok(())
    }

    /// Reads what is true of the shard as a whole.
    fn read_state(&mut self, tag: u8, r: &mut Reader<'_>) -> Result<(), DecodeError> {
        match tag {
            TAG_NUMBER => {
                let taken = r.uint("number")?;
                if taken > 0 {
                    self.number_taken(MessageNo(taken - 1));
                }
            }
            TAG_COUNT => self.counted += r.uint("count of recipients")?,
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
        Ok(())
    }

    fn take_loaded(&mut self, loaded: &Loaded, names: &Names) {
        let (number, ordinal) = (loaded.number, loaded.ordinal);
        self.number_taken(number);
        if let Some(loading) = &mut self.loading {
            loading.unloaded = loading.unloaded.saturating_sub(1);
            if !loading.may_hold(number) || loading.gone.contains(&(number, ordinal)) {
                return;
            }
        }
        // A recipient that changed buckets while the checkpoint was written may stand in two parts; the
        // record of the change is in the log and says where it is.
        if !self.meant(number, &[ordinal], None).is_empty() {
            return;
        }
        let slot = match self.messages.find(number) {
            Some(slot) => slot,
            None => self.take_message(loaded),
        };
        let (route, name) = &names.domains[loaded.domain];
        let said = usize::try_from(loaded.reply).ok().and_then(|at| names.replies.get(at.checked_sub(1)?));
        let reply = said.map_or(ReplyRef::NONE, |said| self.replies.keep(said.clone()));
        let recipient = Recipient {
            message: slot.0,
            ordinal,
            domain: self.queue.intern_domain(*route, name),
            flow: self.queue.intern_flow(&names.flows[loaded.flow], 1),
            class: match loaded.flags >> SHIFT_CLASS & 3 {
                0 => Class::Transactional,
                1 => Class::Normal,
                _ => Class::Bulk,
            },
            due: loaded.due,
            expires: loaded.expires,
            warn: loaded.warn,
            attempts: loaded.attempts,
            reply: reply.0,
            size_kib: loaded.size_kib,
            held: loaded.flags & FLAG_HELD != 0,
        };
        let recipient = self.queue.insert(loaded.accepted_at, &recipient);
        self.link(number, slot, ordinal, recipient);
        if loaded.flags & FLAG_IN_DOUBT != 0 {
            self.doubt(recipient);
        }
        self.catch_up(number, ordinal, recipient);
    }

    fn take_message(&mut self, loaded: &Loaded) -> MessageSlot {
        let number = loaded.number;
        let flags =
            Flags { marked: loaded.flags & FLAG_MARKED != 0, chunked: loaded.flags & FLAG_CHUNKED != 0 };
        let moved = self.loading.as_ref().and_then(|loading| loading.moved.get(&number).copied());
        let slot = self.messages.insert(number, loaded.accepted_at, None, flags);
        let position = moved.or(loaded.position);
        if let Some(message) = self.messages.get_mut(slot) {
            message.position = position;
        }
        for (index, chunk) in (0..).zip(&loaded.chunks) {
            // The log behind the checkpoint may have placed a copy already.
            let known = self.messages.chunks(number).get(index as usize).copied().flatten();
            if let (None, Some(chunk)) = (known, chunk) {
                self.messages.place_chunk(number, index, *chunk);
            }
        }
        if let Some(loading) = &mut self.loading {
            loading.live.extend(position);
            if flags.chunked {
                loading.live.extend(self.messages.chunks(number).iter().flatten());
            }
        }
        slot
    }

    /// Folds what the log said of a recipient before it was loaded.
    fn catch_up(&mut self, number: MessageNo, ordinal: u16, recipient: RecipientSlot) {
        let Some(loading) = &mut self.loading else { return };
        if loading.owed.get(&number).is_some_and(|ordinals| ordinals.contains(&ordinal)) {
            loading.due_verdicts.push((number, ordinal));
        }
        if !loading.tail.ends.contains_key(&number) {
            return;
        }
        let tail = std::mem::take(&mut loading.tail);
        for (kind, head) in tail.of(number) {
            // Each was understood when it was read from the log.
            if let Ok(kind) = Kind::try_from(kind) {
                let _ = self.replay_change_of(kind, head, Some(recipient));
            }
        }
        if let Some(loading) = &mut self.loading {
            loading.tail = tail;
        }
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

impl Loaded {
    fn read(r: &mut Reader<'_>, names: &Names) -> Result<Self, DecodeError> {
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
        Ok(Loaded {
            number,
            ordinal,
            position,
            accepted_at,
            flags,
            domain,
            flow,
            reply,
            due,
            attempts,
            size_kib,
            expires,
            warn,
            chunks,
        })
    }
}

fn index(r: &mut Reader<'_>, len: usize, what: &'static str) -> Result<usize, DecodeError> {
    let at = usize::try_from(r.uint(what)?).map_err(|_| DecodeError::Invalid(what))?;
    if at < len { Ok(at) } else { Err(DecodeError::Invalid(what)) }
}

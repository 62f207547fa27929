//! Whatever is sent, however the network cuts it and whatever the server answers: a strict server gets the
//! content back octet for octet, and the engine is told what that server did, no more and no less.

#![allow(clippy::unwrap_used)] // A helper that unwraps fails the test that called it.

use bytes::Bytes;
use postrider_egress::{Connection, Setup, TRANSACTIONS_MAX, Wants};
use postrider_engine::{
    ConnectionId, Next, Outflow, Piece, Plan, PlanHost, Settled, Settlement, Transaction, TransactionId,
};
use postrider_model::record::Message;
use postrider_model::snapshot::{Delivery, Host, NextHop, Route, Scheme, Source, Target, TlsLevel};
use postrider_model::{
    BodyKind, Encoding, Envelope, MessageNo, Outcome, RecipientParams, Reply, Snapshot, Timestamp,
};
use postrider_queue::LaneId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A small generator, so that one seed is one story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }
}

/// What the server offers and how ill-tempered it is.
#[derive(Clone, Copy, Debug)]
struct Temper {
    pipelining: bool,
    chunking: bool,
    lmtp: bool,
    /// One reply in so many is a refusal.
    refuses: usize,
    /// One reply in so many is a 421.
    dismisses: usize,
    /// One step in so many is a drop.
    drops: usize,
}

/// A strict server: it panics at whatever the RFCs forbid.
struct Server {
    temper: Temper,
    input: Vec<u8>,
    output: Vec<u8>,
    state: Reading,
    from: Option<u64>,
    accepted: Vec<String>,
    chunks: Vec<u8>,
    by_bdat: bool,
    /// What it took: message and recipient, with the content.
    taken: BTreeMap<(u64, String), Vec<u8>>,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Commands,
    Data,
    Chunk { left: usize, last: bool },
}

impl Server {
    fn reply(&mut self, dice: &mut Dice, good: &str) -> bool {
        let reply = if dice.one_in(self.temper.dismisses) {
            self.closed = true;
            "421 4.3.2 enough\r\n".to_owned()
        } else if dice.one_in(self.temper.refuses) {
            ["451 4.3.0 later\r\n", "550-5.7.1 no\r\n550 5.7.1 never\r\n", "452 4.5.3 too many\r\n"]
                [dice.roll(3)]
            .to_owned()
        } else {
            format!("{good}\r\n")
        };
        let is_good = reply.starts_with(['2', '3']);
        self.output.extend_from_slice(reply.as_bytes());
        is_good
    }

    fn hear(&mut self, dice: &mut Dice, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while !self.closed && self.step(dice) {}
    }

    /// Does what the input allows; false when more is needed.
    fn step(&mut self, dice: &mut Dice) -> bool {
        match self.state {
            Reading::Commands => {
                let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") else { return false };
                let line: Vec<u8> = self.input.drain(..end + 2).collect();
                let line = std::str::from_utf8(&line[..end]).unwrap();
                assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
                self.command(dice, line);
            }
            Reading::Data => {
                let wire = std::mem::take(&mut self.input);
                let Some((content, used)) = decode(&wire) else {
                    self.input = wire;
                    return false;
                };
                self.input = wire[used..].to_vec();
                self.state = Reading::Commands;
                self.end(dice, &content);
            }
            Reading::Chunk { left, last } => {
                if self.input.len() < left {
                    return false;
                }
                let chunk: Vec<u8> = self.input.drain(..left).collect();
                self.state = Reading::Commands;
                self.chunks.extend_from_slice(&chunk);
                if last {
                    let content = std::mem::take(&mut self.chunks);
                    self.end(dice, &content);
                } else if !self.reply(dice, "250 chunk") {
                    self.from = None;
                    self.accepted.clear();
                }
            }
        }
        true
    }

    fn command(&mut self, dice: &mut Dice, line: &str) {
        if let Some(rest) = line.strip_prefix("MAIL FROM:<m") {
            assert!(self.from.is_none(), "MAIL within a transaction");
            let number = rest.split('@').next().unwrap().parse().unwrap();
            assert_eq!(line.contains(" BODY=BINARYMIME"), number % 3 == 2, "{line}");
            self.chunks.clear();
            if self.reply(dice, "250 2.1.0 ok") {
                self.from = Some(number);
            }
        } else if let Some(rest) = line.strip_prefix("RCPT TO:<") {
            if self.from.is_none() {
                self.output.extend_from_slice(b"503 5.5.1 MAIL first\r\n");
            } else if self.reply(dice, "250 2.1.5 ok") {
                self.accepted.push(rest.split('>').next().unwrap().to_owned());
            }
        } else if line == "DATA" {
            if self.accepted.is_empty() {
                // Some servers grant it all the same.
                let granted = dice.one_in(3) && !self.temper.lmtp;
                self.output.extend_from_slice(if granted {
                    b"354 go\r\n"
                } else {
                    b"503 5.5.1 no\r\n".as_slice()
                });
                self.state = if granted { Reading::Data } else { Reading::Commands };
            } else if self.reply(dice, "354 go") {
                self.state = Reading::Data;
            }
            self.by_bdat = false;
        } else if let Some(rest) = line.strip_prefix("BDAT ") {
            assert!(self.temper.chunking);
            let (size, last) = rest.strip_suffix(" LAST").map_or((rest, false), |size| (size, true));
            self.state = Reading::Chunk { left: size.parse().unwrap(), last };
            self.by_bdat = true;
        } else if line == "RSET" {
            self.from = None;
            self.accepted.clear();
            self.chunks.clear();
            self.output.extend_from_slice(b"250 reset\r\n");
        } else if line == "QUIT" {
            self.output.extend_from_slice(b"221 bye\r\n");
            self.closed = true;
        } else {
            assert!(line.starts_with("EHLO ") || line.starts_with("LHLO "), "{line}");
            assert_eq!(line.starts_with("LHLO"), self.temper.lmtp);
            let mut offer = "250-mx\r\n".to_owned();
            if self.temper.pipelining {
                offer += "250-PIPELINING\r\n";
            }
            if self.temper.chunking {
                offer += "250-CHUNKING\r\n250-BINARYMIME\r\n";
            }
            self.output.extend_from_slice((offer + "250 8BITMIME\r\n").as_bytes());
        }
    }

    fn end(&mut self, dice: &mut Dice, content: &[u8]) {
        let accepted = std::mem::take(&mut self.accepted);
        let from = self.from.take();
        if accepted.is_empty() {
            assert!(content.is_empty() || self.by_bdat, "content for nobody");
            self.output.extend_from_slice(b"554 5.5.1 no valid recipients\r\n");
            return;
        }
        let from = from.expect("a transaction");
        let mut take = |recipient: String| {
            let before = self.taken.insert((from, recipient), content.to_vec());
            assert!(before.is_none(), "a copy");
        };
        if self.temper.lmtp {
            for recipient in accepted {
                let closed = self.closed;
                let good = !closed && {
                    let mut lone = Server::new(self.temper);
                    let good = lone.reply(dice, "250 2.0.0 its own");
                    self.output.extend_from_slice(&lone.output);
                    self.closed |= lone.closed;
                    good
                };
                if good {
                    take(recipient);
                }
            }
        } else {
            let mut lone = Server::new(self.temper);
            let good = lone.reply(dice, "250 2.0.0 taken");
            self.output.extend_from_slice(&lone.output);
            self.closed |= lone.closed;
            if good {
                accepted.into_iter().for_each(take);
            }
        }
    }

    fn new(temper: Temper) -> Self {
        Server {
            temper,
            input: Vec::new(),
            output: Vec::new(),
            state: Reading::Commands,
            from: None,
            accepted: Vec::new(),
            chunks: Vec::new(),
            by_bdat: false,
            taken: BTreeMap::new(),
            closed: false,
        }
    }
}

/// DATA's content without its stuffing, and the octets used; `None` if the end has not come.
fn decode(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let end = at + wire[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = &wire[at..end];
        assert!(!line.contains(&b'\r') && !line.contains(&b'\n'), "a lone CR or LF on the wire");
        at = end + 2;
        if line == b"." {
            return Some((content, at));
        }
        if line.starts_with(b".") {
            assert!(line.starts_with(b".."), "a dot that was not doubled");
        }
        content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        content.extend_from_slice(b"\r\n");
    }
}

struct Engine {
    waiting: VecDeque<Transaction>,
    out: BTreeMap<u64, Transaction>,
    marked: BTreeSet<u64>,
    asked: VecDeque<(TransactionId, usize)>,
    /// The last outcome of each recipient.
    told: BTreeMap<(u64, String), Settled>,
}

impl Outflow for Engine {
    fn next(&mut self, _: Timestamp, _: ConnectionId, _: LaneId) -> Next {
        let Some(transaction) = self.waiting.pop_front() else { return Next::Idle };
        self.out.insert(transaction.id.0, transaction.clone());
        assert!(self.out.len() <= TRANSACTIONS_MAX);
        Next::Transaction(transaction)
    }

    fn read(&mut self, _: ConnectionId, transaction: TransactionId, piece: usize) {
        assert!(self.out.contains_key(&transaction.0));
        self.asked.push_back((transaction, piece));
    }

    fn settle(&mut self, _: Timestamp, settlement: Settlement) {
        let transaction = self.out.remove(&settlement.transaction.0).expect("settled once, and taken before");
        let named: BTreeSet<u16> = settlement.outcomes.iter().map(|(ordinal, _)| *ordinal).collect();
        assert_eq!(named.len(), settlement.outcomes.len());
        assert_eq!(named, transaction.ordinals.iter().copied().collect());
        for (ordinal, settled) in settlement.outcomes {
            let to = transaction.message.recipients[usize::from(ordinal)].mailbox.as_str().to_owned();
            self.told.insert((settlement.transaction.0, to), settled);
        }
    }

    fn throttled(&mut self, _: Timestamp, _: LaneId, _: &Reply) {}
}

fn stuff(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in plain.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out
}

/// A message, the content as the server should get it, and the content of its pieces in the log.
fn message(number: u64, dice: &mut Dice, temper: Temper) -> (Transaction, Vec<u8>, Vec<Bytes>) {
    let encoding =
        [Encoding::Stuffed, Encoding::Plain, Encoding::Binary][usize::try_from(number % 3).unwrap()];
    let encoding = if temper.chunking || encoding != Encoding::Binary { encoding } else { Encoding::Plain };
    let mut plain: Vec<u8> = Vec::new();
    for _ in 0..dice.roll(12) {
        plain.extend_from_slice(
            [b".".as_slice(), b"a", b"\r\n", b"..", b"\r\n.\r\n", &[b'x'; 600]][dice.roll(6)],
        );
    }
    if encoding == Encoding::Binary {
        plain.extend_from_slice(b"\0\r.\n\xff");
    } else if !plain.is_empty() && !plain.ends_with(b"\r\n") {
        plain.extend_from_slice(b"\r\n");
    }
    let stored = if encoding == Encoding::Stuffed { stuff(&plain) } else { plain.clone() };
    let stored = Bytes::from(stored);
    let (mut pieces, mut bytes, mut at) = (Vec::new(), Vec::new(), 0);
    while at < stored.len() {
        let n = (1 + dice.roll(700)).min(stored.len() - at);
        let n = if dice.one_in(2) { n.min(3) } else { n };
        let piece = stored.slice(at..at + n);
        at += n;
        bytes.push(piece.clone());
        let in_log = dice.one_in(3);
        pieces.push(if in_log {
            Piece::Log { size: u32::try_from(n).unwrap() }
        } else {
            Piece::Memory(piece)
        });
    }
    let recipients: Vec<RecipientParams> = (0..1 + dice.roll(4))
        .map(|i| {
            RecipientParams::from(format!("r{i}@example.net").parse::<postrider_model::Mailbox>().unwrap())
        })
        .collect();
    let ordinals = (0..u16::try_from(recipients.len()).unwrap()).collect();
    let message = Message {
        number: MessageNo(number),
        accepted_at: Timestamp::from_secs(1),
        expires_at: Timestamp::MAX,
        class: postrider_model::Class::Normal,
        account: "".into(),
        client: "".into(),
        envelope: Envelope {
            reverse_path: Some(format!("m{number}@example.com").parse().unwrap()),
            body: if encoding == Encoding::Binary { BodyKind::BinaryMime } else { BodyKind::SevenBit },
            ..Envelope::default()
        },
        recipients,
        encoding,
        eight_bit: encoding == Encoding::Binary,
        utf8_header: false,
        header_size: 0,
        content_size: stored.len() as u64,
        chunks: 0,
        held: false,
        sent_at_once: false,
        due: None,
        report: None,
    };
    let transaction = Transaction {
        id: TransactionId(number),
        message: Arc::new(message),
        ordinals,
        pieces: pieces.into(),
        may_end: dice.one_in(2),
        attempts: 0,
    };
    (transaction, plain, bytes)
}

fn connection(lmtp: bool) -> Connection {
    let host = Host::Name("mx.example.net".parse().unwrap(), 25);
    let scheme = if lmtp { Scheme::Lmtp } else { Scheme::Smtp };
    let route = Route {
        name: "out".into(),
        domains: Vec::new(),
        senders: Vec::new(),
        to: Target::Hosts(vec![NextHop { scheme, host, credentials: None }]),
        tls: TlsLevel::None,
        source: Source::default(),
        connections_per_site_max: None,
    };
    let snapshot = Snapshot {
        hostname: "host.example".parse().unwrap(),
        listeners: Vec::new(),
        accounts: Vec::new(),
        routes: vec![Arc::new(route)],
        delivery: Delivery::default(),
    };
    let hosts = vec![PlanHost { name: "mx.example.net".into(), addresses: Vec::new(), hop: Some(0) }];
    let setup = Setup {
        id: ConnectionId(3),
        plan: Arc::new(Plan { lane: LaneId(7), route: 0, hosts }),
        host: 0,
        address: None,
        snapshot: Arc::new(snapshot),
        plain_only: false,
        nonce: [0; 18],
        scram: None,
    };
    Connection::new(Timestamp::from_secs(1), setup)
}

/// One connection from greeting to end; gives how many recipients were delivered.
fn story(seed: u64, temper: Temper) -> usize {
    let now = Timestamp::from_secs(1);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut server = Server::new(temper);
    server.output.extend_from_slice(b"220 mx\r\n");
    let mut engine = Engine {
        waiting: VecDeque::new(),
        out: BTreeMap::new(),
        marked: BTreeSet::new(),
        asked: VecDeque::new(),
        told: BTreeMap::new(),
    };
    let (mut contents, mut stored) = (BTreeMap::new(), BTreeMap::new());
    for i in 0..6 {
        let number = if temper.chunking { i } else { i * 3 + i % 2 };
        let (transaction, plain, bytes) = message(number, &mut dice, temper);
        if transaction.may_end {
            engine.marked.insert(number);
        }
        contents.insert(number, plain);
        stored.insert(number, bytes);
        engine.waiting.push_back(transaction);
    }
    let mut c = connection(temper.lmtp);
    for step in 0.. {
        assert!(step < 200_000, "the connection hangs: {}", c.transcript());
        if c.end().is_some() {
            break;
        }
        if dice.one_in(temper.drops) {
            c.closed(now, None, &mut engine);
            break;
        }
        match dice.roll(5) {
            0 if c.output_len() > 0 => {
                let all = c.output().collect::<Vec<_>>().concat();
                let n = 1 + dice.roll(all.len());
                c.advance(now, n, &mut engine);
                let before = server.taken.len();
                server.hear(&mut dice, &all[..n]);
                if server.taken.len() > before {
                    let unmarked = server.taken.keys().find(|(number, _)| !engine.marked.contains(number));
                    assert_eq!(unmarked, None, "sent before its mark was durable");
                }
            }
            1 if !server.output.is_empty() => {
                let n = 1 + dice.roll(server.output.len());
                let words: Vec<u8> = server.output.drain(..n).collect();
                c.receive(now, &words, &mut engine);
            }
            2 if !engine.asked.is_empty() => {
                let (transaction, piece) = engine.asked.pop_front().unwrap();
                c.content(now, transaction, piece, stored[&transaction.0][piece].clone(), &mut engine);
            }
            3 => {
                let unmarked = engine.out.keys().find(|number| !engine.marked.contains(number)).copied();
                if let Some(number) = unmarked {
                    engine.marked.insert(number);
                    c.may_end(now, TransactionId(number), &mut engine);
                }
            }
            _ => {
                let heard_all = server.output.is_empty() && c.output_len() == 0;
                if server.closed && heard_all {
                    c.closed(now, None, &mut engine);
                } else if c.is_idle() && engine.waiting.is_empty() {
                    c.drain(now, &mut engine);
                } else {
                    c.resume(now, &mut engine);
                }
            }
        }
    }
    assert!(c.end().is_some() && c.wants() == Wants::Close);
    assert!(engine.out.is_empty(), "what was taken was settled");
    for ((number, to), content) in &server.taken {
        assert_eq!(content, &contents[number], "message {number}");
        let told = engine.told.get(&(*number, to.clone()));
        let fits = matches!(told, Some(Settled::Outcome(Outcome::Delivered(_) | Outcome::InDoubt(_))));
        assert!(fits, "message {number} to {to} was taken, but: {told:?}\n{}", c.transcript());
    }
    let mut delivered = 0;
    for (recipient, settled) in &engine.told {
        if matches!(settled, Settled::Outcome(Outcome::Delivered(_))) {
            assert!(server.taken.contains_key(recipient), "{recipient:?} was not taken\n{}", c.transcript());
            delivered += 1;
        }
    }
    delivered
}

const KIND: Temper = Temper {
    pipelining: true,
    chunking: false,
    lmtp: false,
    refuses: usize::MAX,
    dismisses: usize::MAX,
    drops: usize::MAX,
};

fn tempers() -> impl Strategy<Value = Temper> {
    let rare = || prop_oneof![Just(usize::MAX), Just(40usize), Just(8)];
    (any::<[bool; 3]>(), rare(), rare(), prop_oneof![Just(usize::MAX), Just(400usize), Just(60)]).prop_map(
        |([pipelining, chunking, lmtp], refuses, dismisses, drops)| Temper {
            pipelining,
            chunking,
            lmtp,
            refuses,
            dismisses,
            drops,
        },
    )
}

#[test]
fn a_kind_server_gets_everything() {
    for seed in 0..50 {
        for chunking in [false, true] {
            for pipelining in [false, true] {
                let all = story(seed, Temper { chunking, pipelining, ..KIND });
                assert!(all >= 6, "six messages with a recipient or more");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_server_makes_us_lose_double_or_invent_a_delivery(seed: u64, temper in tempers()) {
        story(seed, temper);
    }
}

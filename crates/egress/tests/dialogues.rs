//! Dialogues with remote servers, from the text files in `dialogues/`.
//!
//! A file holds exchanges. `== sentence` begins one; then, a line each:
//!
//! | line | meaning |
//! |---|---|
//! | `open A,B,…` | short for the greeting and an EHLO that offers these |
//! | `route WORDS` | `tls=LEVEL`, `smtps`, `lmtp`, `local` (Unix socket), `auth=USER:PASSWORD`, `mx`, `plain-only`, `messages=N` |
//! | `message N WORDS` | waits for the lane: `from=A` (`<>` is null), `to=A,B`, `body=TEXT` (a piece; several allowed), `log=SIZE` (a piece in the log), `encoding=plain`, `binary`, `8bit`, `utf8`, `utf8-header`, `size=N`, `unmarked`, `requires-tls`, `ret=full`, `envid=X`, `notify=never`, `orcpt=X`, `binarymime` |
//! | `S: text` | the server says this and CRLF; a run of these lines arrives at once, and once more octet by octet |
//! | `S- text` | the same without CRLF |
//! | `C: text` | we say this and CRLF, and after a run of these nothing else |
//! | `C- text` | the same without CRLF |
//! | `= N A outcome` | recipient A of message N is settled: `delivered`, `deferred`, `failed`, `in-doubt` with the reply, or `not-tried` |
//! | `dsn N` | message N's settlement says that DSN was passed on |
//! | `throttled REPLY` | the engine is told so |
//! | `mark N`, `piece N I TEXT`, `unreadable N`, `resume`, `drain` | the shell's calls |
//! | `tls`, `tls verified`, `tls failed` | the handshake that must be wanted now |
//! | `loading`, `idle` | what the engine answers when it has no message |
//! | `stall` | from here nothing is written; what we say is only looked at |
//! | `close`, `break`, `wait SECONDS` | the connection is closed by the peer, breaks, or time passes |
//! | `end OUTCOME [REPLY]` | `open`, `done`, `unreachable`, `throttled`, `broken` |
//! | `clear` | the connection may be tried again in clear |
//! | `whole` | the server's words are not cut up (where cutting changes the meaning) |
//!
//! Texts may hold `\r`, `\n`, `\0`, `\xHH`, `\\`; `\s` is a space, `\*N` repeats the character before it N times.

#![allow(clippy::unwrap_used)] // A helper that unwraps fails the test that called it.

use bytes::Bytes;
use postrider_egress::{Connection, Setup, Wants};
use postrider_engine::{
    ConnectionEnd, ConnectionId, Next, Outflow, Piece, Plan, PlanHost, Settled, Settlement, Transaction,
    TransactionId,
};
use postrider_model::record::Message;
use postrider_model::snapshot::{
    Credentials, Delivery, Host, NextHop, Route, Scheme, Source, Target, TlsLevel,
};
use postrider_model::{
    BodyKind, Encoding, Envelope, MessageNo, Notify, Outcome, RecipientParams, Reply, Ret, Snapshot,
    Timestamp,
};
use postrider_queue::LaneId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

#[derive(Default)]
struct Engine {
    waiting: VecDeque<Transaction>,
    loading: bool,
    known: Vec<Arc<Message>>,
    events: Vec<String>,
    asked: Vec<(TransactionId, usize)>,
}

impl Outflow for Engine {
    fn next(&mut self, _: Timestamp, _: ConnectionId, lane: LaneId) -> Next {
        assert_eq!(lane, LaneId(7));
        match self.waiting.pop_front() {
            Some(transaction) => Next::Transaction(transaction),
            None if self.loading => Next::Loading,
            None => Next::Idle,
        }
    }

    fn read(&mut self, connection: ConnectionId, transaction: TransactionId, piece: usize) {
        assert_eq!(connection, ConnectionId(3));
        self.asked.push((transaction, piece));
    }

    fn settle(&mut self, _: Timestamp, settlement: Settlement) {
        let id = settlement.transaction.0;
        let message = self.known.iter().find(|m| m.number.0 == id).expect("a known transaction").clone();
        let mut ordinals: Vec<_> = settlement.outcomes.iter().map(|(ordinal, _)| *ordinal).collect();
        ordinals.sort_unstable();
        let all: Vec<u16> = (0..u16::try_from(message.recipients.len()).unwrap()).collect();
        assert_eq!(ordinals, all, "message {id}: every recipient is named once");
        for (ordinal, settled) in &settlement.outcomes {
            let to = message.recipients[usize::from(*ordinal)].mailbox.as_str();
            let what = match settled {
                Settled::NotTried => "not-tried".to_owned(),
                Settled::Outcome(Outcome::Delivered(reply)) => format!("delivered {reply}"),
                Settled::Outcome(Outcome::Deferred(reply)) => format!("deferred {reply}"),
                Settled::Outcome(Outcome::Failed(reply)) => format!("failed {reply}"),
                Settled::Outcome(Outcome::InDoubt(reply)) => format!("in-doubt {reply}"),
            };
            self.events.push(format!("= {id} {to} {what}"));
        }
        if settlement.dsn_passed_on {
            self.events.push(format!("dsn {id}"));
        }
    }

    fn throttled(&mut self, _: Timestamp, lane: LaneId, reply: &Reply) {
        assert_eq!(lane, LaneId(7));
        self.events.push(format!("throttled {reply}"));
    }
}

struct Exchange<'a> {
    name: &'a str,
    /// Line number in the file and the line.
    lines: Vec<(usize, String)>,
}

struct Run {
    engine: Engine,
    connection: Connection,
    now: Timestamp,
    /// What was said and not yet looked at.
    said: Vec<u8>,
    stalled: bool,
    seen: usize,
    at: String,
}

impl Run {
    fn act(&mut self, act: impl FnOnce(&mut Connection, Timestamp, &mut Engine)) {
        act(&mut self.connection, self.now, &mut self.engine);
        self.write();
    }

    fn write(&mut self) {
        loop {
            let all = self.connection.output().collect::<Vec<_>>().concat();
            assert_eq!(all.len(), self.connection.output_len());
            if self.stalled {
                self.said.extend_from_slice(&all[self.seen..]);
                self.seen = all.len();
                return;
            }
            if all.is_empty() {
                return;
            }
            self.said.extend_from_slice(&all[self.seen..]);
            self.seen = 0;
            self.connection.advance(self.now, all.len(), &mut self.engine);
        }
    }

    fn expect_said(&mut self, expected: &[u8]) {
        let n = expected.len().min(self.said.len());
        assert_eq!(show(&self.said[..n]), show(expected), "{}: all said: {}", self.at, show(&self.said));
        self.said.drain(..n);
    }

    fn expect_silence(&self) {
        assert_eq!(show(&self.said), "", "{}: nothing more should be said", self.at);
    }
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] != b'\\' {
            out.push(bytes[i]);
            i += 1;
            continue;
        }
        i += 2;
        match bytes[i - 1] {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b's' => out.push(b' '),
            b'0' => out.push(0),
            b'\\' => out.push(b'\\'),
            b'x' => {
                out.push(u8::from_str_radix(&text[i..i + 2], 16).expect("two hexadecimal digits"));
                i += 2;
            }
            b'*' => {
                let digits = text[i..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |n| i + n);
                let times: usize = text[i..digits].parse().expect("a number after \\*");
                let last = *out.last().expect("a character before \\*");
                out.resize(out.len() + times - 1, last);
                i = digits;
            }
            other => panic!("unknown escape \\{}", char::from(other)),
        }
    }
    out
}

fn message(number: u64, words: &[&str]) -> Transaction {
    let mut message = Message {
        number: MessageNo(number),
        accepted_at: Timestamp::from_secs(1),
        expires_at: Timestamp::MAX,
        class: postrider_model::Class::Normal,
        account: "".into(),
        client: "".into(),
        envelope: Envelope { reverse_path: Some("a@example.com".parse().unwrap()), ..Envelope::default() },
        recipients: Vec::new(),
        encoding: Encoding::Stuffed,
        eight_bit: false,
        utf8_header: false,
        header_size: 0,
        content_size: 0,
        chunks: 0,
        held: false,
        sent_at_once: false,
        due: None,
        report: None,
    };
    let (mut pieces, mut marked, mut notify, mut orcpt) = (Vec::new(), true, None, None);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "from" if value == "<>" => message.envelope.reverse_path = None,
            "from" => message.envelope.reverse_path = Some(value.parse().unwrap()),
            "to" => {
                message.recipients = value
                    .split(',')
                    .map(|to| RecipientParams::from(to.parse::<postrider_model::Mailbox>().unwrap()))
                    .collect();
            }
            "body" => pieces.push(Piece::Memory(unescape(value).into())),
            "log" => pieces.push(Piece::Log { size: value.parse().unwrap() }),
            "encoding" => {
                message.encoding = if value == "plain" { Encoding::Plain } else { Encoding::Binary }
            }
            "binarymime" => message.envelope.body = BodyKind::BinaryMime,
            "8bit" => message.eight_bit = true,
            "utf8" => message.envelope.smtputf8 = true,
            "utf8-header" => message.utf8_header = true,
            "size" => message.content_size = value.parse().unwrap(),
            "unmarked" => marked = false,
            "requires-tls" => message.envelope.requires_tls = true,
            "ret" => message.envelope.ret = Some(if value == "full" { Ret::Full } else { Ret::Headers }),
            "envid" => message.envelope.envid = Some(value.into()),
            "notify" => {
                notify = Some(if value == "never" {
                    Notify::Never
                } else {
                    Notify::On { success: true, failure: true, delay: false }
                });
            }
            "orcpt" => orcpt = Some(value.into()),
            other => panic!("unknown word {other}"),
        }
    }
    if pieces.is_empty() {
        pieces.push(Piece::Memory(Bytes::from_static(b"Subject: x\r\n\r\nHi\r\n")));
    }
    if message.content_size == 0 {
        message.content_size = pieces
            .iter()
            .map(|p| match p {
                Piece::Memory(b) => b.len() as u64,
                Piece::Log { size } => u64::from(*size),
            })
            .sum();
    }
    for recipient in &mut message.recipients {
        recipient.notify = notify;
        recipient.orcpt.clone_from(&orcpt);
    }
    let ordinals = (0..u16::try_from(message.recipients.len()).unwrap()).collect();
    Transaction {
        id: TransactionId(number),
        message: Arc::new(message),
        ordinals,
        pieces: pieces.into(),
        may_end: marked,
        attempts: 0,
    }
}

fn setup(words: &[&str]) -> Setup {
    let mut tls = TlsLevel::None;
    let (mut scheme, mut credentials, mut mx, mut plain_only) = (Scheme::Smtp, None, false, false);
    let mut host = Host::Name("mx.example.net".parse().unwrap(), 25);
    let mut delivery = Delivery::default();
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "tls" => {
                tls = match value {
                    "none" => TlsLevel::None,
                    "opportunistic" => TlsLevel::Opportunistic,
                    "encrypted" => TlsLevel::Encrypted,
                    "verified" => TlsLevel::Verified,
                    other => panic!("unknown level {other}"),
                }
            }
            "smtps" => scheme = Scheme::Smtps,
            "lmtp" => scheme = Scheme::Lmtp,
            "local" => host = Host::Socket("/run/lmtp".into()),
            "mx" => mx = true,
            "plain-only" => plain_only = true,
            "messages" => delivery.messages_per_connection_max = value.parse().unwrap(),
            "auth" => {
                let (username, password) = value.split_once(':').unwrap();
                credentials = Some(Credentials { username: username.into(), password: password.into() });
            }
            other => panic!("unknown word {other}"),
        }
    }
    let to = if mx { Target::Mx } else { Target::Hosts(vec![NextHop { scheme, host, credentials }]) };
    let route = Route {
        name: "out".into(),
        domains: Vec::new(),
        senders: Vec::new(),
        to,
        tls,
        source: Source { bind: Vec::new(), ehlo: Some("us.example".parse().unwrap()) },
        connections_per_site_max: None,
    };
    let snapshot = Snapshot {
        hostname: "host.example".parse().unwrap(),
        listeners: Vec::new(),
        accounts: Vec::new(),
        routes: vec![Arc::new(route)],
        delivery,
    };
    let hosts =
        vec![PlanHost { name: "mx.example.net".into(), addresses: Vec::new(), hop: (!mx).then_some(0) }];
    Setup {
        id: ConnectionId(3),
        plan: Arc::new(Plan { lane: LaneId(7), route: 0, hosts }),
        host: 0,
        address: Some("192.0.2.1:25".parse().unwrap()),
        snapshot: Arc::new(snapshot),
        plain_only,
        nonce: *b"0123456789abcdefgh",
        scram: None,
    }
}

/// Runs one exchange, the server's words whole or cut into octets.
fn run(file: &str, exchange: &Exchange<'_>, cut: bool) {
    let now = Timestamp::from_secs(1_000_000);
    let route = exchange.lines.iter().find_map(|(_, line)| line.strip_prefix("route "));
    let words: Vec<&str> = route.map(|line| line.split(' ').collect()).unwrap_or_default();
    let mut run = Run {
        engine: Engine::default(),
        connection: Connection::new(now, setup(&words)),
        now,
        said: Vec::new(),
        stalled: false,
        seen: 0,
        at: String::new(),
    };
    let mut expected = Vec::new();
    let mut heard: Vec<u8> = Vec::new();
    for (i, (number, line)) in exchange.lines.iter().enumerate() {
        run.at = format!("{file}:{number} ({}{})", exchange.name, if cut { ", octet by octet" } else { "" });
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if verb == "S:" || verb == "S-" {
            run.expect_silence();
            heard.extend(unescape(rest));
            if verb == "S:" {
                heard.extend_from_slice(b"\r\n");
            }
            let goes_on = exchange
                .lines
                .get(i + 1)
                .is_some_and(|(_, next)| next.starts_with("S: ") || next.starts_with("S- "));
            if !goes_on {
                let all = std::mem::take(&mut heard);
                let step = if cut { 1 } else { all.len().max(1) };
                for piece in all.chunks(step) {
                    run.act(|c, now, e| c.receive(now, piece, e));
                }
            }
            continue;
        }
        if verb == "C:" || verb == "C-" {
            let mut line = unescape(rest);
            if verb == "C:" {
                line.extend_from_slice(b"\r\n");
            }
            run.expect_said(&line);
            continue;
        }
        step(&mut run, verb, rest, line, &mut expected);
    }
    run.at = format!("{file} ({})", exchange.name);
    run.expect_silence();
    assert_eq!(run.engine.events, expected, "{}\n{}", run.at, run.connection.transcript());
}

fn step(run: &mut Run, verb: &str, rest: &str, line: &str, expected: &mut Vec<String>) {
    let at = run.at.clone();
    let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
    let id = || TransactionId(words[0].parse().expect("a message's number"));
    if !matches!(
        verb,
        "route" | "message" | "=" | "dsn" | "throttled" | "whole" | "loading" | "idle" | "stall"
    ) {
        run.expect_silence();
    }
    match verb {
        "route" | "whole" => {}
        "message" => {
            let transaction = message(id().0, &words[1..]);
            run.engine.known.push(transaction.message.clone());
            run.engine.waiting.push_back(transaction);
        }
        "=" | "dsn" | "throttled" => expected.push(line.to_owned()),
        "mark" => run.act(|c, now, e| c.may_end(now, id(), e)),
        "piece" => {
            let piece = words[1].parse().unwrap();
            assert_eq!(run.connection.wants(), Wants::Content { transaction: id(), piece }, "{at}");
            assert_eq!(run.engine.asked.pop(), Some((id(), piece)), "{at}");
            assert!(run.engine.asked.is_empty(), "{at}: asked once");
            let bytes = unescape(words[2]);
            run.act(|c, now, e| c.content(now, id(), piece, bytes.into(), e));
        }
        "unreadable" => run.act(|c, now, e| c.content_failed(now, id(), e)),
        "resume" => run.act(Connection::resume),
        "drain" => run.act(Connection::drain),
        "tls" => {
            let wants = run.connection.wants();
            assert!(
                matches!(wants, Wants::StartTls { server_name: "mx.example.net", .. }),
                "{at}: {wants:?}"
            );
            match rest {
                "failed" => run.act(|c, _, _| c.tls_failed("bad certificate")),
                _ => run.act(|c, now, _| c.tls_started(now, rest == "verified", "TLSv1.3")),
            }
        }
        "loading" => run.engine.loading = true,
        "idle" => run.engine.loading = false,
        "stall" => run.stalled = true,
        "close" => run.act(|c, now, e| c.closed(now, None, e)),
        "break" => run.act(|c, now, e| c.closed(now, Some("connection reset"), e)),
        "wait" => {
            // A moment before the time is up nothing happens.
            run.now = run.now + Duration::from_secs(rest.parse().unwrap()) - Duration::from_micros(1);
            let before = format!("{:?}", run.connection.end());
            run.act(Connection::timeout_of);
            assert_eq!(format!("{:?}", run.connection.end()), before, "{at}: too early");
            run.expect_silence();
            run.now = run.now + Duration::from_micros(1);
            run.act(Connection::timeout_of);
        }
        "end" => {
            let end = match run.connection.end() {
                None => "open".to_owned(),
                Some(ConnectionEnd::Done) => "done".to_owned(),
                Some(ConnectionEnd::Unreachable(reply)) => format!("unreachable {reply}"),
                Some(ConnectionEnd::Throttled(reply)) => format!("throttled {reply}"),
                Some(ConnectionEnd::Broken(reply)) => format!("broken {reply}"),
            };
            assert_eq!(end, rest, "{at}");
            assert_eq!(run.connection.wants() == Wants::Close, rest != "open", "{at}");
            assert_eq!(run.connection.deadline().is_none(), rest != "open", "{at}");
        }
        "clear" => assert!(run.connection.retries_in_clear(), "{at}"),
        "no-clear" => assert!(!run.connection.retries_in_clear(), "{at}"),
        other => panic!("{at}: unknown line {other}"),
    }
}

trait TimeoutOf {
    fn timeout_of(&mut self, now: Timestamp, engine: &mut Engine);
}

impl TimeoutOf for Connection {
    fn timeout_of(&mut self, now: Timestamp, engine: &mut Engine) {
        self.timeout(now, engine);
    }
}

fn exchanges(text: &str) -> Vec<Exchange<'_>> {
    let mut exchanges: Vec<Exchange<'_>> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix("== ") {
            exchanges.push(Exchange { name, lines: Vec::new() });
        } else if !line.is_empty() && !line.starts_with('#') {
            let exchange = exchanges.last_mut().expect("a file begins with ==");
            match line.strip_prefix("open") {
                Some(offers) => opening(exchange, i + 1, offers.trim()),
                None => exchange.lines.push((i + 1, line.to_owned())),
            }
        }
    }
    exchanges
}

fn opening(exchange: &mut Exchange<'_>, number: usize, offers: &str) {
    let is_lmtp = exchange.lines.iter().any(|(_, line)| line.starts_with("route") && line.contains("lmtp"));
    let mut add = |line: &str| exchange.lines.push((number, line.to_owned()));
    add("S: 220 mx");
    add(if is_lmtp { "C: LHLO us.example" } else { "C: EHLO us.example" });
    for offer in offers.split(',').filter(|offer| !offer.is_empty()) {
        add(&format!("S: 250-{offer}"));
    }
    // The first line is the server's name, so the offers stand after one.
    let first = exchange.lines.len() - offers.split(',').filter(|offer| !offer.is_empty()).count();
    exchange.lines.insert(first, (number, "S: 250-mx".to_owned()));
    exchange.lines.push((number, "S: 250 HELP".to_owned()));
}

fn run_file(file: &str, text: &str, at_least: usize) {
    let exchanges = exchanges(text);
    assert!(exchanges.len() >= at_least, "{file} has {} exchanges", exchanges.len());
    for exchange in &exchanges {
        run(file, exchange, false);
        if !exchange.lines.iter().any(|(_, line)| line == "whole") {
            run(file, exchange, true);
        }
    }
}

macro_rules! files {
    ($($test:ident $file:literal $at_least:literal,)*) => {
        $(#[test]
        fn $test() {
            run_file($file, include_str!(concat!("dialogues/", $file)), $at_least);
        })*
    };
}

files! {
    sessions_begin_as_they_should "hello.txt" 25,
    transactions_go_as_they_should "transactions.txt" 15,
    refusals_fall_on_whom_they_concern "refusals.txt" 15,
    connections_end_at_every_point "endings.txt" 25,
    lmtp_answers_for_each_recipient "lmtp.txt" 8,
    chunks_go_where_they_serve "bdat.txt" 8,
    messages_fit_the_next_hop_or_fail "needs.txt" 15,
    hostile_servers_gain_nothing "hostile.txt" 12,
}

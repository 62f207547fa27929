//! Sessions, driven by hand where a dialogue file cannot: tickets, chunks, time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_auth::{Directory, Mechanism, Verdict, Verifier, decode_response, encode_challenge};
use postrider_engine::{Intake, Refusal};
use postrider_ingress::{Keeper, Pressure, Session, SessionContext, Wants, example};
use postrider_model::snapshot::{Account, AddressPattern, Credentials, Snapshot};
use postrider_model::{Encoding, Timestamp};
use postrider_spool::Ticket;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);

struct Client {
    session: Session,
    engine: Keeper,
    now: Timestamp,
    input: Vec<u8>,
}

impl Client {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SessionContext)) -> Self {
        let (mut context, engine) = example(NOW);
        change(&mut context);
        let mut client = Client { session: Session::new(context), engine, now: NOW, input: Vec::new() };
        assert!(client.replies().starts_with("220 mx.example.net ESMTP"));
        client
    }

    fn replies(&mut self) -> String {
        String::from_utf8(std::mem::take(self.session.output())).unwrap()
    }

    fn say(&mut self, input: impl AsRef<[u8]>) -> String {
        self.input.extend_from_slice(input.as_ref());
        let taken = self.session.receive(self.now, &self.input, &mut self.engine);
        self.input.drain(..taken);
        self.replies()
    }

    fn durable(&mut self, ticket: u64, fate: Result<(), Refusal>) -> String {
        self.session.durable(self.now, Ticket(ticket), fate);
        self.say("")
    }

    fn wait(&mut self, time: Duration) -> String {
        self.now = self.now + time;
        self.session.timeout(self.now, &mut self.engine);
        self.say("")
    }
}

const ENVELOPE: &str = "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";

#[test]
fn a_message_is_acknowledged_only_when_it_is_durable() {
    let mut client = Client::new();
    assert!(client.say(ENVELOPE).ends_with("250 2.1.0 Sender accepted\r\n250 2.1.5 Recipient accepted\r\n"));
    assert!(client.say("DATA\r\n").starts_with("354 "));
    assert_eq!(client.say("Subject: x\r\n\r\nhello\r\n..\r\n.\r\nMAIL FROM:<x@y>\r\n"), "");
    assert_eq!(client.session.wants(), Wants::Blocked);
    assert_eq!(client.engine.drafts.len(), 1);
    assert_eq!(client.durable(99, Ok(())), "");
    let reply = client.durable(1, Ok(()));
    assert!(
        reply.starts_with("250 2.0.0 Accepted as msg_") && reply.ends_with("250 2.1.0 Sender accepted\r\n")
    );
    assert_eq!(client.session.wants(), Wants::Read);

    let draft = &client.engine.drafts[0];
    let content = String::from_utf8(client.engine.content(draft)).unwrap();
    let message = &draft.message;
    assert_eq!(message.content_size, content.len() as u64);
    assert_eq!(message.encoding, Encoding::Stuffed);
    assert_eq!(&content[message.header_size as usize..], "hello\r\n..\r\n");
    assert!(
        content.starts_with("Received: from c ([127.0.0.1])\r\n\tby mx.example.net (Postrider) with ESMTP")
    );
    assert_eq!(&*message.client, "127.0.0.1");
    assert_eq!(&*message.account, "relay");
    assert_eq!(message.accepted_at, NOW);
    let id = content.split("msg_").nth(1).unwrap().split(['\r', ';']).next().unwrap();
    assert!(reply.contains(&format!("Accepted as msg_{id}\r\n")), "{content}");
}

#[test]
fn a_message_that_is_not_durable_is_refused() {
    let mut client = Client::new();
    client.say(ENVELOPE);
    client.say("DATA\r\n");
    client.say("\r\nhello\r\n.\r\n");
    assert!(client.durable(1, Err(Refusal::write_failed())).starts_with("451 4.3.0 "));
    client.engine.refusal = Some(Refusal::disk_full());
    assert!(client.say("MAIL FROM:<a@b>\r\n").starts_with("452 4.3.1 "));
}

#[test]
fn a_large_message_is_streamed_and_its_pieces_are_the_content() {
    for size in [200 << 10, 256 << 10, 300 << 10, 2 << 20] {
        let mut client = Client::new();
        client.say(ENVELOPE);
        client.say("DATA\r\n");
        let body = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\r\n".repeat(size / 64 + 1);
        let content = format!("Subject: large\r\nReturn-Path: <x@y>\r\n\r\n{body}");
        for piece in content.as_bytes().chunks(17_000) {
            assert_eq!(client.say(piece), "");
        }
        client.say(".\r\n");
        let draft = &client.engine.drafts[0];
        assert_eq!(draft.message.chunks as usize, client.engine.chunks.len());
        assert_eq!(draft.message.chunks > 0, content.len() >= 256 << 10);
        let stored = String::from_utf8(client.engine.content(draft)).unwrap();
        assert_eq!(stored.len() as u64, draft.message.content_size);
        let (header, stored_body) = stored.split_at(draft.message.header_size as usize);
        assert!(stored_body == body && header.ends_with("Subject: large\r\n\r\n"));
    }
}

#[test]
fn a_large_message_that_breaks_off_leaves_nothing_behind() {
    let stream = || {
        let mut client = Client::new();
        client.say(ENVELOPE);
        client.say("DATA\r\n\r\n");
        client.say("x\r\n".repeat(100 << 10));
        assert!(!client.engine.chunks.is_empty());
        client
    };
    let mut client = stream();
    client.session.disconnected(&mut client.engine);
    assert!(client.engine.chunks.is_empty());

    let mut client = stream();
    client.engine.refusal = Some(Refusal::disk_full());
    client.say("x\r\n".repeat(100 << 10));
    assert!(client.engine.chunks.is_empty());
    assert!(client.say(".\r\n").starts_with("452 4.3.1 "));

    let mut client = stream();
    client.say("\n");
    assert!(client.say("\r\n.\r\n").starts_with("451 ") || client.engine.drafts.len() == 1);

    let mut client = stream();
    assert!(client.wait(Duration::from_secs(180)).starts_with("421 4.4.2 Nothing of the message"));
    assert!(client.engine.chunks.is_empty() && client.session.wants() == Wants::Close);
}

#[test]
fn a_silent_client_is_told_and_let_go() {
    let mut client = Client::new();
    assert_eq!(client.session.deadline(), Some(NOW + Duration::from_secs(300)));
    client.say("EHL");
    assert_eq!(client.wait(Duration::from_secs(299)), "");
    assert_eq!(client.wait(Duration::from_secs(1)), "421 4.4.2 No command in 300 seconds\r\n");
    assert_eq!(client.session.wants(), Wants::Close);
}

#[test]
fn a_slow_message_ends_the_session() {
    let mut client = Client::new();
    client.say(ENVELOPE);
    client.say("DATA\r\n");
    client.say("x");
    let mut replies = String::new();
    for _ in 0..60 {
        replies = client.wait(Duration::from_secs(1));
        if !replies.is_empty() {
            break;
        }
        client.say("xx");
    }
    assert!(replies.starts_with("421 4.4.2 The message comes slower than 64 octets a second"), "{replies}");
}

#[test]
fn a_client_that_makes_many_errors_waits_for_its_replies() {
    let mut client = Client::new();
    for _ in 0..10 {
        assert!(client.say("NONSENSE\r\n").starts_with("500 5.5.1 "));
    }
    assert_eq!(client.say("NONSENSE\r\nNOOP\r\n"), "");
    assert_eq!(client.session.wants(), Wants::Blocked);
    assert_eq!(client.session.deadline(), Some(NOW + Duration::from_secs(1)));
    assert!(client.wait(Duration::from_secs(1)).starts_with("500 5.5.1 "));
}

#[test]
fn a_session_stops_after_the_message_that_is_on_its_way() {
    let mut client = Client::new();
    client.session.shutdown();
    assert!(client.replies().starts_with("421 4.3.2 The server is about to stop"));

    let mut client = Client::new();
    client.say(ENVELOPE);
    client.session.shutdown();
    assert_eq!(client.session.wants(), Wants::Read);
    client.say("DATA\r\n");
    client.say("\r\n.\r\n");
    let replies = client.durable(1, Ok(()));
    assert!(replies.starts_with("250 2.0.0 ") && replies.contains("\r\n421 4.3.2 "), "{replies}");
    assert_eq!(client.session.wants(), Wants::Close);
}

#[test]
fn input_before_the_greeting_ends_the_session() {
    let (context, mut engine) = example(NOW);
    let mut session = Session::new(context);
    session.receive(NOW, b"EHLO c\r\n", &mut engine);
    assert!(session.output().starts_with(b"554 5.5.0 Wait for the greeting"));
    assert_eq!(session.wants(), Wants::Close);
}

#[test]
fn replies_that_nobody_reads_stop_the_input() {
    let mut client = Client::with(|context| {
        let mut listener = (*context.listener).clone();
        listener.limits.junk_commands_max = 1_000_000;
        context.listener = listener.into();
    });
    let input = "NOOP\r\n".repeat(10_000);
    client.input = input.into_bytes();
    let mut rounds = 0;
    while !client.input.is_empty() {
        let taken = client.session.receive(NOW, &client.input, &mut client.engine);
        client.input.drain(..taken);
        assert!(client.session.output().len() < 65 << 10);
        if !client.input.is_empty() {
            assert_eq!(client.session.wants(), Wants::Write);
        }
        client.session.output().clear();
        rounds += 1;
    }
    assert!(rounds > 2);
}

#[test]
fn scram_shows_who_it_is_without_the_password() {
    let verifier = Verifier::new("secret", &[7; 16], 4096).unwrap().to_string();
    let mut client = Client::with(|context| {
        let account =
            Account { name: "app1".into(), verifier: verifier.into(), from: vec![AddressPattern::Any] };
        let accounts = vec![account.into()];
        context.directory = Directory::of_accounts(&accounts, [1; 32]).unwrap().into();
        context.snapshot = Snapshot { accounts, ..(*context.snapshot).clone() }.into();
        context.peer = "192.0.2.1:4711".parse().unwrap();
    });
    assert!(client.say("EHLO c\r\n").contains("250-AUTH SCRAM-SHA-256 PLAIN LOGIN\r\n"));
    let challenge =
        |reply: String| decode_response(reply.strip_prefix("334 ").unwrap().trim().as_bytes()).unwrap();

    let credentials = Credentials { username: "app1".into(), password: "secret".into() };
    let mut scram = postrider_auth::Client::new(Mechanism::ScramSha256, credentials, [3; 18], None);
    let first = scram.initial().unwrap();
    let reply = client.say(format!("AUTH SCRAM-SHA-256 {}\r\n", encode_challenge(&first)));
    let answer = scram.step(&challenge(reply)).unwrap();
    let reply = client.say(format!("{}\r\n", encode_challenge(&answer)));
    let last = scram.step(&challenge(reply)).unwrap();
    assert!(client.session.take_auth_job().is_none(), "SCRAM is no work for us");
    assert!(client.say(format!("{}\r\n", encode_challenge(&last))).starts_with("235 2.7.0 "));
    assert_eq!(client.session.account(), "app1");
}

#[test]
fn a_password_is_checked_elsewhere_while_the_session_waits() {
    let verifier = Verifier::new("secret", &[7; 16], 4096).unwrap().to_string();
    let mut client = Client::with(|context| {
        let account =
            Account { name: "app1".into(), verifier: verifier.into(), from: vec![AddressPattern::Any] };
        let accounts = vec![account.into()];
        context.directory = Directory::of_accounts(&accounts, [1; 32]).unwrap().into();
        context.snapshot = Snapshot { accounts, ..(*context.snapshot).clone() }.into();
        context.peer = "192.0.2.1:4711".parse().unwrap();
    });
    client.say("EHLO c\r\n");
    assert_eq!(client.say(format!("AUTH PLAIN {}\r\n", encode_challenge(b"\0app1\0secret"))), "");
    assert_eq!(client.session.wants(), Wants::Blocked);
    assert_eq!(client.session.deadline(), None);
    let job = client.session.take_auth_job().unwrap();
    assert!(client.session.take_auth_job().is_none());
    assert_eq!(client.say("NOOP\r\n"), "");
    client.session.auth_verdict(NOW, job.verify());
    assert_eq!(client.say(""), "235 2.7.0 Authenticated\r\n250 2.0.0 Nothing done\r\n");
    client.session.auth_verdict(NOW, Verdict::Refused);
    assert_eq!(client.session.account(), "app1");
}

#[test]
fn the_mock_engine_forgets_what_is_abandoned() {
    let (_, mut engine) = example(NOW);
    let number = engine.begin(NOW, 0).unwrap();
    engine.chunk(number, 0, b"x".to_vec().into()).unwrap();
    engine.abandon(number);
    assert!(engine.chunks.is_empty());
}

/// A session whose client is kept waiting for its greeting.
fn kept_waiting() -> Client {
    let (mut context, engine) = example(NOW);
    let mut listener = (*context.listener).clone();
    listener.limits.greet_delay = Duration::from_secs(6);
    listener.legacy = None;
    context.listener = listener.into();
    Client { session: Session::new(context), engine, now: NOW, input: Vec::new() }
}

#[test]
fn a_stranger_waits_for_its_greeting_and_is_turned_away_if_it_does_not() {
    let mut patient = kept_waiting();
    assert_eq!((patient.replies(), patient.session.wants()), (String::new(), Wants::Blocked));
    assert_eq!(patient.session.deadline(), Some(NOW + Duration::from_secs(6)));
    assert_eq!(patient.wait(Duration::from_secs(5)), "");
    patient.now = NOW + Duration::from_secs(6);
    patient.session.timeout(patient.now, &mut patient.engine);
    assert!(patient.session.is_new());
    assert!(patient.replies().starts_with("220 mx.example.net ESMTP"));
    assert!(patient.say("EHLO c\r\n").contains("250-"));

    let mut hasty = kept_waiting();
    hasty.input = b"EHLO c\r\n".to_vec();
    assert_eq!(hasty.wait(Duration::from_secs(6)), "554 5.5.0 Wait for the greeting before you speak\r\n");
    assert_eq!(hasty.session.wants(), Wants::Close);

    let named = Client::with(|context| {
        let mut listener = (*context.listener).clone();
        listener.limits.greet_delay = Duration::from_secs(6);
        context.listener = listener.into();
    });
    assert_eq!(named.session.wants(), Wants::Read, "a client that is named is greeted at once");
}

#[test]
fn under_pressure_content_goes_to_the_log_in_small_chunks() {
    let mut client = Client::new();
    client.say(ENVELOPE);
    client.say("DATA\r\n");
    client.session.set_pressure(client.now, Pressure::Spills, &mut client.engine);
    let idle = client.session.size_bytes();
    let mut content = b"Subject: x\r\n\r\n".to_vec();
    client.say(&content);
    for line in 0..8_000 {
        let line = format!("line {line} of a long message\r\n");
        content.extend_from_slice(line.as_bytes());
        client.say(&line);
        assert!(client.session.size_bytes() < idle + (96 << 10));
    }
    assert!(client.engine.chunks.len() > 5, "{}", client.engine.chunks.len());
    client.session.set_pressure(client.now, Pressure::None, &mut client.engine);
    client.say(".\r\n");
    let draft = &client.engine.drafts[0];
    assert!(client.engine.content(draft).ends_with(&content));
    assert_eq!(draft.message.content_size, client.engine.content(draft).len() as u64);
}

#[test]
fn without_memory_left_content_goes_at_once_and_a_large_half_header_is_refused() {
    let mut client = Client::new();
    client.say(ENVELOPE);
    client.say("DATA\r\n");
    let header = format!("X-Filler: {}\r\n", "x".repeat(900)).repeat(20);
    client.say(&header);
    client.say("\r\nbody\r\n");
    client.session.set_pressure(client.now, Pressure::Sheds, &mut client.engine);
    assert!(!client.engine.chunks.is_empty());
    client.say("more\r\n.\r\n");
    let draft = &client.engine.drafts[0];
    assert!(client.engine.content(draft).ends_with(format!("{header}\r\nbody\r\nmore\r\n").as_bytes()));
    client.durable(1, Ok(()));

    client.say("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
    client.say("Subject: small\r\n");
    client.session.set_pressure(client.now, Pressure::Sheds, &mut client.engine);
    client.say("\r\nbody\r\n.\r\n");
    assert_eq!(client.engine.drafts.len(), 2, "a small message goes on");
    client.durable(2, Ok(()));

    client.say("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
    client.session.set_pressure(client.now, Pressure::None, &mut client.engine);
    client.say(&header);
    let before = client.session.size_bytes();
    client.session.set_pressure(client.now, Pressure::Sheds, &mut client.engine);
    assert!(client.session.size_bytes() + header.len() <= before);
    let reply = client.say(format!("{header}\r\nbody\r\n.\r\n"));
    assert_eq!(reply, "452 4.3.1 Short of memory for so large a header; try again later\r\n");
    assert_eq!(client.engine.drafts.len(), 2);
}

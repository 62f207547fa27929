//! What one message costs a session that is kept: MAIL, RCPT and DATA in one write, 4 KiB of content, the
//! hand-over and the reply when it is durable.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postrider_engine::{Draft, Intake, Refusal};
use postrider_ingress::{Session, example};
use postrider_model::{MessageNo, Timestamp};
use postrider_smtp::data::{Content, ContentRules, Step};
use postrider_spool::Ticket;
use std::hint::black_box;

/// The allocator of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);

/// An engine that drops what it is given at once, so that only the session is measured.
struct Sink(u64);

impl Intake for Sink {
    fn begin(&mut self, _: Timestamp, _: u64) -> Result<MessageNo, Refusal> {
        self.0 += 1;
        Ok(MessageNo(self.0))
    }
    fn chunk(&mut self, _: MessageNo, _: u32, content: bytes::Bytes) -> Result<(), Refusal> {
        drop(black_box(content));
        Ok(())
    }
    fn submit(&mut self, _: Timestamp, draft: Draft) -> Result<Ticket, Refusal> {
        Ok(Ticket(black_box(draft).message.number.0))
    }
    fn abandon(&mut self, _: MessageNo) {}
}

fn content(size: usize) -> Vec<u8> {
    let mut content = b"From: Sender <sender@example.com>\r\nTo: Recipient <recipient@example.net>\r\n\
        Subject: A message of the usual size\r\nDate: Tue, 24 Nov 2026 13:20:26 +0000\r\n\
        Message-ID: <0123456789@example.com>\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=utf-8\r\n\r\n"
        .to_vec();
    while content.len() < size {
        content.extend_from_slice(
            b"The quick brown fox jumps over the lazy dog, and then the dog sleeps on.\r\n",
        );
    }
    content
}

fn message(session: &mut Session, engine: &mut Sink, body: &[u8]) {
    let envelope =
        b"MAIL FROM:<sender@example.com> BODY=8BITMIME\r\nRCPT TO:<recipient@example.net>\r\nDATA\r\n";
    assert_eq!(session.receive(NOW, envelope, engine), envelope.len());
    session.output().clear();
    let mut rest = body;
    while !rest.is_empty() {
        rest = &rest[session.receive(NOW, &rest[..rest.len().min(16 << 10)], engine)..];
    }
    session.durable(NOW, Ticket(engine.0), Ok(()));
    session.receive(NOW, b"", engine);
    black_box(&session.output()[..]);
    session.output().clear();
}

fn session_per_message(c: &mut Criterion) {
    let mut group = c.benchmark_group("session_per_message");
    for (name, size) in [("4KiB", 4 << 10), ("100KB", 100_000), ("1MiB", 1 << 20)] {
        let (mut context, _) = example(NOW);
        let mut listener = (*context.listener).clone();
        listener.limits.messages_max = usize::MAX;
        context.listener = listener.into();
        let mut session = Session::new(context);
        session.output().clear();
        let mut engine = Sink(0);
        session.receive(NOW, b"EHLO client.example\r\n", &mut engine);
        session.output().clear();
        let mut body = content(size);
        body.extend_from_slice(b".\r\n");
        message(&mut session, &mut engine, &body);
        group.bench_function(name, |b| b.iter(|| message(&mut session, &mut engine, &body)));
    }
    group.finish();
}

fn data_decoder(c: &mut Criterion) {
    let mut body = content(4 << 10);
    body.extend_from_slice(b".\r\n");
    let rules = ContentRules { line_size_max_bytes: 65_536, normalises: false, binary: false };
    let mut group = c.benchmark_group("data_decoder");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("4KiB", |b| {
        b.iter(|| {
            let mut content = Content::new(rules);
            let (consumed, step) = content.data(black_box(&body));
            assert!(matches!(step, Step::Content(_)));
            assert_eq!(content.data(&body[consumed..]), (3, Step::End));
        });
    });
    group.finish();
}

fn session_begin(c: &mut Criterion) {
    c.bench_function("session_begin_and_ehlo", |b| {
        b.iter_batched(
            || example(NOW).0,
            |context| {
                let mut engine = Sink(0);
                let mut session = Session::new(context);
                session.output().clear();
                session.receive(NOW, b"EHLO client.example\r\n", &mut engine);
                session
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, session_per_message, data_decoder, session_begin);
criterion_main!(benches);

//! How long a session takes to begin, and the content decoder alone. A message's way through a session that is kept
//! is in the crate `hotpaths`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postrider_ingress::{Keeper, Session, example};
use postrider_model::Timestamp;
use postrider_smtp::data::{Content, ContentRules, Step};
use std::hint::black_box;

/// The allocator of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);

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
                let mut engine = Keeper::default();
                let mut session = Session::new(context);
                session.output().clear();
                session.receive(NOW, b"EHLO client.example\r\n", &mut engine);
                session
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, data_decoder, session_begin);
criterion_main!(benches);

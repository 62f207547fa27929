//! What a message costs this room on its way in: scan, authors, trace fields, assembly.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_message::{
    HeaderScan, REMOVED_ON_SUBMISSION, Received, TraceProtocol, TraceTls, assemble, write_date,
    write_message_id,
};
use postrider_model::{Domain, Mailbox, Timestamp};
use std::hint::black_box;

const HEADER: &str = "Received: from mail.example.org (mail.example.org [192.0.2.7])\r\n\
    \tby mx.example.com (Postfix) with ESMTPS id 4XyZ1234\r\n\
    \tfor <bob@example.net>; Tue, 24 Nov 2026 13:20:26 +0000 (UTC)\r\n\
    DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=s1;\r\n\
    \th=from:to:subject:date:message-id; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n\
    \tb=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n\
    \tAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n\
    From: \"Lovelace, Ada\" <ada@example.com>\r\n\
    To: Bob <bob@example.net>, Carol <carol@example.net>\r\n\
    Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= from the engine room, with a line of usual length\r\n\
    Date: Tue, 24 Nov 2026 13:20:26 +0000\r\n\
    Message-ID: <01936b2e-7c1a-7def-8000-123456789abc@example.com>\r\n\
    MIME-Version: 1.0\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Transfer-Encoding: quoted-printable\r\n\
    List-Unsubscribe: <https://example.com/unsubscribe?id=0123456789>\r\n\
    X-Mailer: Example 1.0\r\n\r\n";

fn content() -> [Bytes; 1] {
    [Bytes::from(format!("{HEADER}{}", "A line of text, as people write them.\r\n".repeat(80)))]
}

fn reading(c: &mut Criterion) {
    let content = content();
    let mut group = c.benchmark_group("header");
    group.throughput(Throughput::Bytes(HEADER.len() as u64));
    let mut scan = HeaderScan::new();
    group.bench_function("scan", |b| {
        b.iter(|| {
            scan.reset();
            scan.feed(black_box(&content[0]))
        });
    });
    let header = HeaderScan::whole(&content);
    group.bench_function("authors", |b| b.iter(|| black_box(&header).authors(&content).unwrap()));
    group.finish();
}

fn writing(c: &mut Criterion) {
    let content = content();
    let header = HeaderScan::whole(&content);
    let by: Domain = "relay.example.com".parse().unwrap();
    let recipient: Mailbox = "bob@example.net".parse().unwrap();
    let at = Timestamp::from_secs(1_795_526_426);
    let fields = || {
        let mut out = Vec::with_capacity(512);
        Received {
            helo: "client.example.org",
            client: Some([192, 0, 2, 1].into()),
            reverse_name: Some("client.example.org"),
            by: &by,
            protocol: TraceProtocol::Esmtp,
            tls: Some(TraceTls { version: "TLSv1.3", cipher: "TLS_AES_256_GCM_SHA384" }),
            authenticated: true,
            smtputf8: false,
            id: "msg_01936b2e-7c1a-7def-8000-123456789abc",
            recipient: Some(&recipient),
            at,
        }
        .write(&mut out);
        write_date(&mut out, at);
        write_message_id(&mut out, "msg_01936b2e-7c1a-7def-8000-123456789abc", &by);
        out
    };
    c.bench_function("trace fields", |b| b.iter(fields));
    let prepend = Bytes::from(fields());
    c.bench_function("assemble", |b| {
        b.iter(|| assemble(black_box(&content), &header, prepend.clone(), REMOVED_ON_SUBMISSION));
    });
}

criterion_group!(benches, reading, writing);
criterion_main!(benches);

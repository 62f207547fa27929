//! How many messages a second are accepted by HTTP, as a share of SMTP in the same run, durable both:
//! `cargo run --profile quick -p postrider-api --example acceptance -- [MESSAGES] [ROUNDS]`.
//!
//! 2 KiB each, 20 connections that stay open, everything on one machine; the next hop refuses connections, so
//! that only acceptance is measured.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../tests/room/mod.rs"]
mod room;

use postrider_model::control::InstanceMode;
use postrider_model::snapshot::{
    AddressPattern, DomainPattern, Host, Legacy, Listener, NextHop, Protocol, Route, Scheme, SessionLimits,
    Source, Target, TlsLevel,
};
use room::{KEY, Room};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const CONNECTIONS: usize = 20;
const SIZE: usize = 2_048;
const BATCH: u64 = 100;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let messages: u64 = arguments.next().unwrap_or(50_000);
    let rounds: u64 = arguments.next().unwrap_or(3);
    for _ in 0..rounds {
        let room = room();
        let smtp = by_smtp(room.relay().addresses()[0].1, messages);
        let single = by_http(room.address(), messages, 1);
        let batch = by_http(room.address(), messages, BATCH);
        println!(
            "SMTP {smtp:.0}/s, POST /v1/emails {single:.0}/s ({:.2}), batches of {BATCH} {batch:.0}/s ({:.2})",
            single / smtp,
            batch / smtp
        );
    }
}

fn room() -> Room {
    let listener = Listener {
        name: "devices".into(),
        protocol: Protocol::Smtp,
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        legacy: Some(Legacy {
            clients: vec!["127.0.0.0/8".parse().unwrap()],
            from: vec![AddressPattern::Domain("example.com".parse().unwrap())],
        }),
        sandbox: false,
        limits: SessionLimits::default(),
        xclient: Vec::new(),
        proxy: Vec::new(),
    };
    let host = Host::Address("127.0.0.1:1".parse().unwrap());
    let route = Route {
        name: "nowhere".into(),
        domains: vec![DomainPattern::Any],
        senders: Vec::new(),
        to: Target::Hosts(vec![NextHop { scheme: Scheme::Smtp, host, credentials: None }]),
        tls: TlsLevel::None,
        source: Source::default(),
        connections_per_site_max: None,
    };
    Room::with(InstanceMode::Live, vec![Arc::new(listener)], vec![Arc::new(route)], 64 << 20)
}

fn by_smtp(relay: SocketAddr, messages: u64) -> f64 {
    let plan = storm::source::Plan {
        size: SIZE,
        from: "a@example.com".into(),
        domains: vec!["example.net".into()],
        ..storm::source::Plan::to(relay).messages(messages).sessions(CONNECTIONS)
    };
    let start = Instant::now();
    let outcome = storm::source::run(&plan).unwrap();
    assert_eq!(outcome.counts.acknowledged, messages, "{outcome:?}");
    messages as f64 / start.elapsed().as_secs_f64()
}

/// Whole requests, one after the other on each connection.
fn by_http(server: SocketAddr, messages: u64, batch: u64) -> f64 {
    let left = Arc::new(AtomicU64::new(messages / batch));
    let request = Arc::new(request(batch));
    let start = Instant::now();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (left, request) = (left.clone(), request.clone());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(server).unwrap();
                stream.set_nodelay(true).unwrap();
                let mut answer = Vec::new();
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    stream.write_all(&request).unwrap();
                    read_answer(&mut stream, &mut answer);
                    assert!(answer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&answer));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    messages as f64 / start.elapsed().as_secs_f64()
}

fn request(batch: u64) -> Vec<u8> {
    let body = |size: usize| {
        json!({
            "from": "Shop <a@example.com>", "to": "b@example.net", "subject": "A message of usual size",
            "text": "words and words. ".repeat(size / 17 + 1)[..size].to_owned(),
        })
    };
    // The body in all, as the issue of speed counts it.
    let text = SIZE - body(0).to_string().len();
    let one = body(text);
    let (path, body) = match batch {
        1 => ("/v1/emails", one),
        _ => ("/v1/emails/batch", (0..batch).map(|_| one.clone()).collect::<Value>()),
    };
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    answer.clear();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the server closed the connection");
        answer.extend_from_slice(&buffer[..read]);
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if answer.len() >= end + 4 + length.unwrap_or(0) {
            return;
        }
    }
}

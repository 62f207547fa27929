//! The committer on a real file system.

#![allow(clippy::unwrap_used, reason = "a test that stops is a test that failed")]

use bytes::Bytes;
use postrider_disk::journal::read_from;
use postrider_disk::{Committer, CommitterHandle, OpenError, ReadError, open, open_with};
use postrider_spool::{Append, Body, Completion, Health, Lost, Lsn, Position, Settings, Ticket};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

struct Shard {
    number: u16,
    handle: CommitterHandle,
    woken: Receiver<()>,
    news: Completion,
    next: u64,
}

impl Shard {
    fn append(&mut self, head: &str, body: &[u8]) -> Append {
        self.next += 1;
        let mut append = Append {
            shard: self.number,
            ticket: Ticket(self.next),
            head: head.as_bytes().to_vec(),
            ..Append::default()
        };
        if body.is_empty() {
            append.reserve = true;
            append.event = true;
        } else {
            append.body = body.chunks(700).map(Bytes::copy_from_slice).collect::<Body>();
            append.urgent = true;
        }
        append
    }

    /// Waits until everything appended so far is durable or lost.
    fn settle(&mut self) {
        while !self.is_settled() {
            self.woken.recv_timeout(PATIENCE).unwrap();
            self.handle.take_news(usize::from(self.number), &mut self.news);
        }
    }

    fn is_settled(&self) -> bool {
        let last = Ticket(self.next);
        self.news.durable.is_some_and(|d| d.up_to() >= last) || self.news.lost.iter().any(|(t, _)| *t == last)
    }
}

fn start(
    dir: &Path,
    settings: Settings,
    shards: u16,
    heads: &mut Vec<String>,
    live: &[Position],
) -> (Committer, Vec<Shard>) {
    let mut recovered = open_with(dir, settings, 7)
        .unwrap()
        .replay(|record| heads.push(String::from_utf8(record.head.to_vec()).unwrap()))
        .unwrap();
    for position in live {
        recovered.retain(*position);
    }
    let (mut wakers, mut receivers): (Vec<Box<dyn Fn() + Send>>, Vec<_>) = (vec![], vec![]);
    for _ in 0..shards {
        let (sender, receiver) = channel();
        wakers.push(Box::new(move || {
            let _ = sender.send(());
        }));
        receivers.push(receiver);
    }
    let committer = Committer::start(recovered, wakers).unwrap();
    let shards = receivers.into_iter().zip(0..).map(|(woken, number)| Shard {
        number,
        handle: committer.handle(),
        woken,
        news: Completion::default(),
        next: 0,
    });
    let shards = shards.collect();
    (committer, shards)
}

fn small() -> Settings {
    Settings { segment_size_bytes: 64 << 10, segments_max: 8, ahead: 1, checkpoint_after_bytes: 1 << 20 }
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let body = vec![b'x'; 3000];
    let mut places = Vec::new();
    {
        let (committer, mut shards) = start(dir.path(), Settings::default(), 2, &mut vec![], &[]);
        for shard in &mut shards {
            let mut appends = vec![shard.append("message", &body), shard.append("outcome", b"")];
            shard.handle.submit(&mut appends);
        }
        for shard in &mut shards {
            shard.settle();
            assert_eq!(shard.news.placed.len(), 1);
            places.push(shard.news.placed[0].1);
        }
        for place in &places {
            assert_eq!(committer.reader().read(*place).unwrap().body, body);
        }
        committer.stop();
    }
    let mut heads = Vec::new();
    let (committer, _) = start(dir.path(), Settings::default(), 2, &mut heads, &places);
    heads.sort();
    assert_eq!(heads, ["message", "message", "outcome", "outcome"]);
    for place in &places {
        let record = committer.reader().read(*place).unwrap();
        assert_eq!((&record.head[..], &record.body[..]), (&b"message"[..], &body[..]));
        assert_eq!(committer.reader().read_head(*place).unwrap().body_len, 3000);
        assert_eq!(committer.reader().read_range(*place, 2990..3000).unwrap(), body[2990..]);
        assert!(committer.reader().read_range(*place, 2990..3001).is_err());
    }
    committer.stop();
}

#[test]
fn outcomes_alone_are_committed_without_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let (committer, mut shards) = start(dir.path(), small(), 1, &mut vec![], &[]);
    let outcome = shards[0].append("outcome", b"");
    shards[0].handle.submit(&mut vec![outcome]);
    shards[0].settle();
    let stats = committer.handle().stats().unwrap();
    assert_eq!((stats.batches, stats.records), (1, 1));
    committer.stop();
}

#[test]
fn a_directory_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (committer, _) = start(dir.path(), small(), 1, &mut vec![], &[]);
    assert!(matches!(open(dir.path(), 0, 1), Err(OpenError::InUse { .. })));
    committer.stop();
    assert!(open(dir.path(), 0, 1).is_ok());
}

#[test]
fn a_full_spool_refuses_messages_serves_outcomes_and_recovers_by_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (committer, mut shards) = start(dir.path(), small(), 1, &mut vec![], &[]);
    let shard = &mut shards[0];
    let body = vec![b'y'; 20_000];
    let mut lost = false;
    for _ in 0..40 {
        let message = shard.append("message", &body);
        shard.handle.submit(&mut vec![message]);
        shard.settle();
        lost |= shard.news.lost.last().is_some_and(|(t, why)| *t == Ticket(shard.next) && *why == Lost::Full);
        if lost {
            break;
        }
    }
    assert!(lost, "eight segments of 64 KiB cannot hold forty bodies of 20 kB");
    assert_eq!(shard.handle.health(), Health::Full);
    let outcome = shard.append("outcome", b"");
    shard.handle.submit(&mut vec![outcome]);
    shard.settle();
    assert_eq!(shard.news.durable.unwrap().up_to(), Ticket(shard.next));

    let places: Vec<Position> = shard.news.placed.iter().map(|(_, place)| *place).collect();
    shard.handle.release(&mut places.clone());
    for _ in 0..3 {
        let from = shard.handle.begin_checkpoint().unwrap();
        let part = committer.checkpoints().write_part("all", b"state").unwrap();
        committer.checkpoints().commit(from, vec![], vec![part]).unwrap();
        shard.handle.checkpointed(from);
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let message = shard.append("message", &body);
        shard.handle.submit(&mut vec![message]);
        shard.settle();
        if shard.news.durable.unwrap().up_to() == Ticket(shard.next) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the spool does not recover");
    }
    // Its segment serves another purpose by now, or will.
    let old = committer.reader().read(places[0]);
    assert!(matches!(old, Err(ReadError::Gone)) || old.is_ok());
    committer.stop();
    let mut heads = Vec::new();
    let (committer, _) = start(dir.path(), small(), 1, &mut heads, &[]);
    assert!(heads.len() < 10, "replay starts at the checkpoint");
    committer.stop();
}

#[test]
fn every_event_is_in_the_journal_once_and_in_order_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join("events");
    for round in 0..3u64 {
        let (committer, mut shards) = start(dir.path(), small(), 2, &mut vec![], &[]);
        assert_eq!(committer.events_dir(), events);
        for i in 0..50 {
            for shard in &mut shards {
                let outcome = shard.append(&format!("{round} {i}"), b"");
                let message = shard.append("no event", b"body");
                shard.handle.submit(&mut vec![outcome, message]);
                shard.settle();
            }
        }
        committer.stop();
        if round == 1 {
            // A frame that was being written when the power went.
            let newest = std::fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
            let mut bytes = std::fs::read(&newest).unwrap();
            bytes.extend_from_within(..70);
            std::fs::write(&newest, bytes).unwrap();
        }
    }
    let read: Vec<_> = read_from(&events, Lsn(1)).unwrap().map(|event| event.unwrap()).collect();
    assert_eq!(read.len(), 300);
    assert!(read.is_sorted_by(|a, b| a.lsn < b.lsn));
    for shard in 0..2 {
        let heads = read.iter().filter(|event| event.shard == shard).map(|event| &event.head[..]);
        let expected = (0..3).flat_map(|round| (0..50).map(move |i| format!("{round} {i}")));
        assert!(heads.eq(expected.map(String::into_bytes).collect::<Vec<_>>().iter().map(|head| &head[..])));
    }
    let middle = read[150].lsn;
    let rest = read_from(&events, middle).unwrap();
    assert_eq!(
        rest.map(|event| event.unwrap().lsn).collect::<Vec<_>>(),
        read[150..].iter().map(|e| e.lsn).collect::<Vec<_>>()
    );
}

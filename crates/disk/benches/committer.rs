//! The committer with a real disk: two shards, each with some messages on their way.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_disk::{Committer, CommitterHandle, open_with};
use postrider_spool::{Append, Completion, Settings, Ticket};
use std::sync::mpsc::{Receiver, channel};

const MESSAGES: u64 = 2000;

struct Shard {
    handle: CommitterHandle,
    woken: Receiver<()>,
    ticket: u64,
    number: u16,
    news: Completion,
}

impl Shard {
    /// As a loop of sessions does: what is acknowledged makes room for the next; each leaves an outcome.
    fn run(&mut self, messages: u64, at_once: u64, body: &Bytes) {
        let first = self.ticket;
        let (mut sent, mut done) = (0, 0);
        let mut appends = Vec::new();
        let mut places = Vec::new();
        while done < messages {
            while sent < messages && sent - done < at_once {
                self.ticket += 1;
                sent += 1;
                appends.push(Append {
                    shard: self.number,
                    ticket: Ticket(self.ticket),
                    head: vec![1; 180],
                    body: std::iter::once(body.clone()).collect(),
                    urgent: true,
                    ..Append::default()
                });
            }
            self.handle.submit(&mut appends);
            self.woken.recv().unwrap();
            self.handle.take_news(usize::from(self.number), &mut self.news);
            for (_, place) in self.news.placed.drain(..) {
                done += 1;
                places.push(place);
                self.ticket += 1;
                appends.push(Append {
                    shard: self.number,
                    ticket: Ticket(self.ticket),
                    head: vec![2; 90],
                    reserve: true,
                    event: true,
                    ..Append::default()
                });
            }
            assert!(self.news.lost.is_empty());
            self.handle.release(&mut places);
        }
        self.handle.submit(&mut appends);
        assert!(self.ticket >= first + messages);
    }
}

fn committer(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let recovered = open_with(dir.path(), Settings::default(), 3).unwrap().replay(|_| {}).unwrap();
    let (mut wakers, mut receivers): (Vec<Box<dyn Fn() + Send>>, Vec<_>) = (vec![], vec![]);
    for _ in 0..2 {
        let (sender, receiver) = channel();
        wakers.push(Box::new(move || sender.send(()).unwrap_or(())));
        receivers.push(receiver);
    }
    let committer = Committer::start(recovered, wakers).unwrap();
    let mut shards: Vec<Shard> = receivers
        .into_iter()
        .zip(0..)
        .map(|(woken, number)| Shard {
            handle: committer.handle(),
            woken,
            ticket: 0,
            number,
            news: Completion::default(),
        })
        .collect();
    let body = Bytes::from(vec![b'x'; 4096]);
    let mut group = c.benchmark_group("committer");
    group.sample_size(10);
    group.throughput(Throughput::Elements(2 * MESSAGES));
    for at_once in [10, 100] {
        group.bench_function(format!("2 shards, {at_once} messages of 4 KiB under way in each"), |b| {
            b.iter(|| {
                std::thread::scope(|scope| {
                    for shard in &mut shards {
                        scope.spawn(|| shard.run(MESSAGES, at_once, &body));
                    }
                });
            });
        });
    }
    group.finish();
    println!("{:?}", committer.handle().stats());
    committer.stop();
}

criterion_group!(benches, committer);
criterion_main!(benches);

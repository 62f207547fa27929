//! What the log itself costs: appending in batches, and reading it back.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postrider_spool::{Append, Body, Fault, Log, Lsn, Medium, Op, Recovery, SegmentFile, Settings, Ticket};
use std::hint::black_box;

const BATCH: u64 = 20;

/// Segments in memory, without a disk's cost.
#[derive(Default)]
struct Memory {
    files: Vec<Vec<u8>>,
    keep: bool,
}

impl Memory {
    fn run(&mut self, log: &mut Log) {
        while let Some(op) = log.poll() {
            match op {
                Op::Write(write) => {
                    if self.keep {
                        let file = &mut self.files[write.segment as usize];
                        let mut at = write.offset as usize;
                        for slice in write.slices() {
                            file[at..at + slice.len()].copy_from_slice(slice);
                            at += slice.len();
                        }
                    } else {
                        black_box(write.slices().map(<[u8]>::len).sum::<usize>());
                    }
                    log.written(Ok(()));
                }
                Op::Sync { .. } => log.synced(Ok(())),
                Op::Prepare(prepare) => {
                    if self.keep {
                        self.files.push(vec![0; prepare.size as usize]);
                        self.files[prepare.segment as usize][..1024]
                            .copy_from_slice(&prepare.header.encode());
                    }
                    log.prepared(prepare.segment, Ok(()));
                }
                Op::Read { .. } => log.read(Err(Fault::Io)),
            }
        }
    }
}

impl Medium for Memory {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        let file = &self.files[segment as usize];
        let start = offset as usize;
        buffer.copy_from_slice(&file[start..start + buffer.len()]);
        Ok(())
    }
}

fn append_pair(log: &mut Log, ticket: &mut u64, body: &Bytes) {
    *ticket += 1;
    let pieces: Body = [body.slice(..400), body.slice(400..)].into_iter().collect();
    log.append(Append {
        ticket: Ticket(*ticket),
        head: vec![1; 180],
        body: pieces,
        urgent: true,
        ..Append::default()
    });
    *ticket += 1;
    log.append(Append { ticket: Ticket(*ticket), head: vec![2; 90], reserve: true, ..Append::default() });
}

fn append(c: &mut Criterion) {
    let body = Bytes::from(vec![b'x'; 4096]);
    let mut group = c.benchmark_group("append");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("20 messages of 4 KiB with outcomes, one batch", |b| {
        let mut log = Log::new(Settings::default(), 7);
        let (mut memory, mut ticket) = (Memory::default(), 0);
        b.iter(|| {
            for _ in 0..BATCH {
                append_pair(&mut log, &mut ticket, &body);
            }
            memory.run(&mut log);
            while let Some(news) = log.poll_completion() {
                for (_, position) in &news.placed {
                    log.release(*position);
                }
                black_box(news);
            }
        });
    });
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let body = Bytes::from(vec![b'x'; 4096]);
    let settings = Settings { segment_size_bytes: 16 << 20, ..Settings::default() };
    let mut log = Log::new(settings, 7);
    let (mut memory, mut ticket) = (Memory { keep: true, ..Memory::default() }, 0);
    for _ in 0..500 {
        for _ in 0..BATCH {
            append_pair(&mut log, &mut ticket, &body);
        }
        memory.run(&mut log);
    }
    let files: Vec<SegmentFile> =
        (0..).zip(&memory.files).map(|(index, _)| SegmentFile { index, size: 16 << 20 }).collect();
    let mut group = c.benchmark_group("recovery");
    group.throughput(Throughput::Elements(ticket));
    group.bench_function("scan of 20,000 records, bodies skipped", |b| {
        b.iter(|| {
            let mut recovery = Recovery::new(&files, &mut memory, Lsn(1), 7);
            let mut records = 0;
            while let Some(record) = recovery.next(&mut memory) {
                records += record.head.len();
            }
            black_box(records)
        });
    });
    group.finish();
}

criterion_group!(benches, append, recovery);
criterion_main!(benches);

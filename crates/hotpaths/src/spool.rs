//! What a message and its outcome cost the log: into a batch, out of it, told, released.

use crate::Path;
use bytes::Bytes;
use postrider_spool::{Append, Body, Fault, Log, Medium, Op, Settings, Ticket};
use std::hint::black_box;

/// Messages that share a write and a sync.
const BATCH: u32 = 20;

/// A log whose disk takes everything and keeps nothing.
pub struct Spool {
    log: Log,
    disk: Memory,
    ticket: u64,
    body: Bytes,
}

impl Path for Spool {
    const NAME: &'static str = "spool_append";
    const ITEMS: u32 = BATCH;

    fn ready() -> Self {
        let mut spool = Spool {
            log: Log::new(Settings::default(), 7),
            disk: Memory::default(),
            ticket: 0,
            body: Bytes::from(vec![b'x'; 4096]),
        };
        spool.step();
        spool
    }

    fn step(&mut self) {
        append_batch(&mut self.log, &mut self.ticket, &self.body);
        self.disk.run(&mut self.log);
        while let Some(news) = self.log.poll_completion() {
            for (_, position) in &news.placed {
                self.log.release(*position);
            }
            black_box(news);
        }
    }
}

/// A batch of messages of 4 KiB, each with the outcome of an earlier one.
pub(crate) fn append_batch(log: &mut Log, ticket: &mut u64, body: &Bytes) {
    for _ in 0..BATCH {
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
}

/// Segments in memory, without a disk's cost.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) keeps: bool,
}

impl Memory {
    pub(crate) fn run(&mut self, log: &mut Log) {
        while let Some(op) = log.poll() {
            match op {
                Op::Write(write) => {
                    if self.keeps {
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
                    if self.keeps {
                        let mut file = vec![0; prepare.size as usize];
                        let header = prepare.header.encode();
                        file[..header.len()].copy_from_slice(&header);
                        self.files.push(file);
                    }
                    log.prepared(prepare.segment, Ok(()));
                }
                Op::Remove { segment } => log.removed(segment),
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

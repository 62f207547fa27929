//! The committer thread.

use crate::files::{Disk, Files, Reader, Recovered};
use bytes::Bytes;
use postrider_spool::{Append, Completion, Fault, Health, Log, Medium, Op, Position};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const LINGER: Duration = Duration::from_millis(5);
const RIDERS_MAX: usize = 64;
const BACKLOG_MAX_BYTES: usize = 256 << 20;

#[derive(Default)]
struct Desk {
    appends: Vec<Append>,
    releases: Vec<Position>,
    wake: bool,
    stop: bool,
}

struct Inner {
    desk: Mutex<Desk>,
    bell: Condvar,
    news: Vec<Mutex<Completion>>,
    wakers: Vec<Mutex<Box<dyn Fn() + Send>>>,
    has_news: Vec<AtomicBool>,
    health: AtomicU8,
    backlog: AtomicUsize,
}

#[derive(Clone)]
pub struct CommitterHandle(Arc<Inner>);

pub struct Committer {
    handle: CommitterHandle,
    reader: Reader,
    thread: JoinHandle<()>,
}

impl Committer {
    pub fn start(recovered: Recovered, wakers: Vec<Box<dyn Fn() + Send>>) -> io::Result<Self> {
        let Recovered { files, mut log } = recovered;
        for generation in log.generations() {
            if let Some(segment) = log.segment_of(generation) {
                files.generations.write().unwrap_or_else(PoisonError::into_inner).insert(generation, segment);
            }
        }
        log.settled();
        let inner = Arc::new(Inner {
            desk: Mutex::default(),
            bell: Condvar::new(),
            news: wakers.iter().map(|_| Mutex::default()).collect(),
            has_news: wakers.iter().map(|_| AtomicBool::new(false)).collect(),
            wakers: wakers.into_iter().map(Mutex::new).collect(),
            health: AtomicU8::new(0),
            backlog: AtomicUsize::new(0),
        });
        let handle = CommitterHandle(inner.clone());
        let reader = Reader { files: files.clone() };
        let thread =
            std::thread::Builder::new().name("committer".into()).spawn(move || run(&inner, &files, log))?;
        Ok(Committer { handle, reader, thread })
    }

    pub fn handle(&self) -> CommitterHandle {
        self.handle.clone()
    }

    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    pub fn stop(self) {
        self.handle.0.desk.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.handle.0.bell.notify_one();
        let _ = self.thread.join();
    }
}

impl CommitterHandle {
    pub fn submit(&self, appends: &mut Vec<Append>) {
        let urgent = appends.iter().any(|append| append.urgent);
        let bytes: usize = appends.iter().map(|append| append.head.len() + append.body_len()).sum();
        self.0.backlog.fetch_add(bytes, Ordering::Relaxed);
        let mut desk = self.0.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if desk.appends.is_empty() {
            std::mem::swap(&mut desk.appends, appends);
        } else {
            desk.appends.append(appends);
        }
        let wake = (urgent || desk.appends.len() >= RIDERS_MAX) && !std::mem::replace(&mut desk.wake, true);
        if !urgent && !wake && desk.appends.len() < RIDERS_MAX {
            desk.wake = false;
        }
        drop(desk);
        if wake {
            self.0.bell.notify_one();
        }
    }

    pub fn release(&self, positions: &mut Vec<Position>) {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner).releases.append(positions);
    }

    pub fn nudge(&self) {
        let mut desk = self.0.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if !desk.appends.is_empty() && !std::mem::replace(&mut desk.wake, true) {
            drop(desk);
            self.0.bell.notify_one();
        }
    }

    pub fn take_news(&self, shard: usize, into: &mut Completion) {
        if self.0.has_news[shard].swap(false, Ordering::Acquire) {
            let mut news = self.0.news[shard].lock().unwrap_or_else(PoisonError::into_inner);
            into.merge(&mut news);
        }
    }

    pub fn health(&self) -> Health {
        match self.0.health.load(Ordering::Relaxed) {
            0 => Health::Good,
            1 => Health::Full,
            _ => Health::Failing,
        }
    }

    pub fn is_congested(&self) -> bool {
        self.0.backlog.load(Ordering::Relaxed) > BACKLOG_MAX_BYTES
    }
}

fn run(inner: &Inner, files: &Files, mut log: Log) {
    let mut appends = Vec::new();
    let mut releases = Vec::new();
    loop {
        let stop;
        {
            let mut desk = inner.desk.lock().unwrap_or_else(PoisonError::into_inner);
            let mut late = false;
            while !(desk.wake || desk.stop || late && !desk.appends.is_empty()) {
                let (d, t) = inner.bell.wait_timeout(desk, LINGER).unwrap_or_else(PoisonError::into_inner);
                (desk, late) = (d, t.timed_out());
            }
            desk.wake = false;
            std::mem::swap(&mut desk.appends, &mut appends);
            std::mem::swap(&mut desk.releases, &mut releases);
            stop = desk.stop && appends.is_empty();
        }
        let bytes: usize = appends.iter().map(|append| append.head.len() + append.body_len()).sum();
        for append in appends.drain(..) {
            log.append(append);
        }
        for position in releases.drain(..) {
            log.release(position);
        }
        perform(files, &mut log);
        inner.backlog.fetch_sub(bytes, Ordering::Relaxed);
        let health = match log.health() {
            Health::Good => 0,
            Health::Full => 1,
            Health::Failing => 2,
        };
        inner.health.store(health, Ordering::Relaxed);
        while let Some(mut completion) = log.poll_completion() {
            let shard = usize::from(completion.shard).min(inner.news.len() - 1);
            inner.news[shard].lock().unwrap_or_else(PoisonError::into_inner).merge(&mut completion);
            if !inner.has_news[shard].swap(true, Ordering::Release) {
                (inner.wakers[shard].lock().unwrap_or_else(PoisonError::into_inner))();
            }
        }
        if stop {
            return;
        }
    }
}

fn perform(files: &Files, log: &mut Log) {
    while let Some(op) = log.poll() {
        match op {
            Op::Prepare(prepare) => {
                let outcome = (|| -> io::Result<()> {
                    let path = files.path(prepare.segment);
                    let mut options = OpenOptions::new();
                    options.read(true).write(true).create(prepare.create);
                    let file = options.open(&path)?;
                    if prepare.create {
                        fallocate(&file, FallocateFlags::empty(), 0, u64::from(prepare.size))?;
                    }
                    file.write_all_at(&prepare.header.encode(), 0)?;
                    file.sync_all()?;
                    if prepare.create {
                        File::open(&files.dir)?.sync_all()?;
                    }
                    Ok(())
                })();
                if outcome.is_ok() {
                    files
                        .generations
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(prepare.header.generation, prepare.segment);
                }
                log.prepared(prepare.segment, outcome.map_err(|error| fault(&error)));
            }
            Op::Write(write) => {
                let outcome = files.file(write.segment).and_then(|file| {
                    let slices: Vec<&[u8]> = write.slices().collect();
                    write_all(&file, &slices, u64::from(write.offset))
                });
                log.written(outcome.map_err(|error| fault(&error)));
            }
            Op::Sync { segment } => {
                let outcome = files.file(segment).and_then(|file| file.sync_data());
                log.synced(outcome.map_err(|error| fault(&error)));
            }
            Op::Read { segment, offset, length } => {
                let mut bytes = vec![0; length as usize];
                let outcome = Disk(files).read_at(segment, offset, &mut bytes);
                log.read(outcome.map(|()| Bytes::from(bytes)));
            }
        }
    }
}

fn write_all(file: &File, slices: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut io: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut rest = &mut io[..];
    while !rest.is_empty() {
        let n = rest.len().min(1024);
        let written = rustix::io::pwritev(file, &rest[..n], offset)?;
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

fn fault(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        Some(28 | 122) => Fault::Full,
        _ => Fault::Io,
    }
}

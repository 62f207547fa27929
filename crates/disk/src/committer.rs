//! The committer thread: one write and one sync per batch.

use crate::checkpoint::Checkpoints;
use crate::desk::{CommitterHandle, Desk, Order, TICK, Work, weight};
use crate::files::{Disk, Files, fault, write_all_at};
use crate::journal::Journal;
use crate::open::Recovered;
use crate::reader::Reader;
use bytes::Bytes;
use postrider_spool::{Log, Lsn, Medium, Op, Prepare};
use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often events are copied and synced.
const JOURNAL_INTERVAL: Duration = Duration::from_secs(1);

/// The running committer. Stop it to end with everything durable that was handed in.
#[derive(Debug)]
pub struct Committer {
    handle: CommitterHandle,
    reader: Reader,
    checkpoints: Checkpoints,
    events_dir: PathBuf,
    /// Dropped to end the journal's thread.
    journal_end: Sender<()>,
    journal: JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
    /// Held as long as the log is in use.
    _lock: File,
}

impl Committer {
    /// Starts the threads. Each shard's waker is called from the committer thread, once when there is news
    /// for it, until it takes them; it must not block.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(recovered: Recovered, wakers: Vec<Box<dyn Fn() + Send>>) -> io::Result<Self> {
        let Recovered { files, mut log, lock, checkpoints, settles_later, upkeep, report: _ } = recovered;
        if !settles_later {
            log.settled();
        }
        let desk = Arc::new(Desk::new(wakers));
        desk.publish(log.health(), false, log.durable());
        let handle = CommitterHandle(desk.clone());
        let reader = Reader::new(files.clone());
        let (to_helper, errands) = channel();
        let helper = {
            let (files, desk) = (files.clone(), desk.clone());
            std::thread::Builder::new()
                .name("segments".into())
                .spawn(move || run_errands(&files, &desk, &errands))?
        };
        let events_dir = files.dir().join("events");
        let writer = Journal::open(&events_dir, files.salt, upkeep.event_days)?;
        let (journal_end, end) = channel();
        let journal = {
            let (files, desk) = (files.clone(), desk.clone());
            let name = std::thread::Builder::new().name("events".into());
            name.spawn(move || follow(writer, &files, &desk, &end))?
        };
        let worker = Worker { desk, files, log, to_helper, in_flight_bytes: 0, slices: Vec::new() };
        let main = std::thread::Builder::new().name("committer".into()).spawn(move || worker.run())?;
        Ok(Self {
            handle,
            reader,
            checkpoints,
            events_dir,
            journal_end,
            journal,
            threads: vec![main, helper],
            _lock: lock,
        })
    }

    /// For shards.
    #[must_use]
    pub fn handle(&self) -> CommitterHandle {
        self.handle.clone()
    }

    /// For whoever sends.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Where checkpoints are written.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Where the event journal is; see [`crate::journal::read_from`].
    #[must_use]
    pub fn events_dir(&self) -> &Path {
        &self.events_dir
    }

    /// Commits what was handed in, delivers the news, and ends.
    pub fn stop(self) {
        drop(self.journal_end);
        let journal = std::iter::once(self.journal);
        // The journal asks the committer where records lie, so it ends first.
        for (n, thread) in journal.chain(self.threads).enumerate() {
            if n == 1 {
                self.handle.0.stop();
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

/// What takes milliseconds and must not hold a batch up.
enum Errand {
    Prepare(Prepare),
    Remove(u32),
}

/// Runs errands, and looks at the room on the disk about once a second.
fn run_errands(files: &Files, desk: &Desk, errands: &Receiver<Errand>) {
    let mut looked: Option<Instant> = None;
    let mut was_scarce = false;
    loop {
        if looked.is_none_or(|at| at.elapsed() >= TICK)
            && let Ok(room) = files.room()
        {
            looked = Some(Instant::now());
            desk.publish_room(room);
            let is_scarce = room.is_scarce();
            if is_scarce && !was_scarce {
                tracing::error!(room.free_bytes, room.free_min_bytes, "the spool's disk is short of room");
            }
            if is_scarce || was_scarce {
                desk.order(Order::Scarce(is_scarce));
            }
            was_scarce = is_scarce;
        }
        match errands.recv_timeout(TICK) {
            Ok(Errand::Prepare(prepare)) => make_ready(files, desk, &prepare),
            Ok(Errand::Remove(segment)) => {
                if let Err(error) = files.remove(segment) {
                    tracing::error!(segment, %error, "a segment that nobody needs cannot be removed");
                }
                desk.order(Order::Removed(segment));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn make_ready(files: &Files, desk: &Desk, prepare: &Prepare) {
    let outcome = files.prepare(prepare);
    if let Err(error) = &outcome {
        tracing::error!(segment = prepare.segment, %error, "a segment cannot be prepared");
    }
    desk.order(Order::Prepared(prepare.segment, outcome.map_err(|error| fault(&error))));
}

/// Copies events into the journal, once a second while there is something new, and once more at the end.
fn follow(mut journal: Journal, files: &Files, desk: &Desk, end: &Receiver<()>) {
    let mut journaled = Lsn(0);
    let mut tried = Instant::now();
    loop {
        let ending = end.recv_timeout(JOURNAL_INTERVAL) != Err(RecvTimeoutError::Timeout);
        let may_try = ending || tried.elapsed() >= journal.patience(JOURNAL_INTERVAL).mul_f32(0.9);
        if desk.durable() > journaled && may_try {
            tried = Instant::now();
            let Some(extents) = desk.extents() else { return };
            match journal.catch_up(files, &extents) {
                Ok(lsn) => {
                    journaled = lsn;
                    desk.publish_journaled(lsn);
                    desk.order(Order::Journaled(lsn));
                }
                Err(error) => {
                    let again_s = journal.patience(JOURNAL_INTERVAL).as_secs();
                    tracing::error!(%error, again_s, "the event journal cannot be written; segments wait for it");
                }
            }
        }
        if ending {
            return;
        }
    }
}

struct Worker {
    desk: Arc<Desk>,
    files: Arc<Files>,
    log: Log,
    to_helper: Sender<Errand>,
    in_flight_bytes: usize,
    /// Room for one batch's slices, kept from batch to batch.
    slices: Vec<IoSlice<'static>>,
}

impl Worker {
    fn run(mut self) {
        let mut work = Work::default();
        let mut busy = true;
        let mut last_tick = Instant::now();
        loop {
            self.desk.take(&mut work, busy);
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.log.tick();
            }
            self.in_flight_bytes += work.appends.iter().map(weight).sum::<usize>();
            for append in work.appends.drain(..) {
                self.log.append(append);
            }
            for position in work.releases.drain(..) {
                self.log.release(position);
            }
            for order in work.orders.drain(..) {
                self.obey(order);
            }
            busy = self.work();
            self.deliver();
            let stuck = !busy && !self.log.is_preparing();
            if work.stop && (stuck || self.log.pending_len() == 0) {
                self.desk.close();
                return;
            }
        }
    }

    /// Operations until a batch is through or there is nothing to do. True: there may be more.
    fn work(&mut self) -> bool {
        while let Some(op) = self.log.poll() {
            match op {
                Op::Prepare(prepare) => {
                    // The helper ends only after this thread.
                    let _ = self.to_helper.send(Errand::Prepare(prepare));
                }
                Op::Remove { segment } => {
                    let _ = self.to_helper.send(Errand::Remove(segment));
                }
                Op::Write(write) => {
                    let mut slices = recycle(std::mem::take(&mut self.slices));
                    slices.extend(write.slices().map(IoSlice::new));
                    let file = self.files.file(write.segment);
                    let outcome =
                        file.and_then(|file| write_all_at(&file, &mut slices, u64::from(write.offset)));
                    slices.clear();
                    self.slices = recycle(slices);
                    if let Err(error) = &outcome {
                        tracing::error!(%error, "a batch cannot be written");
                    }
                    self.log.written(outcome.map_err(|error| fault(&error)));
                }
                Op::Sync { segment } => {
                    let outcome = self.files.file(segment).and_then(|file| file.sync_data());
                    if let Err(error) = &outcome {
                        tracing::error!(segment, %error, "a sync failed; the segment is given up");
                    }
                    self.log.synced(outcome.map_err(|error| fault(&error)));
                    return true;
                }
                Op::Read { segment, offset, length } => {
                    let mut bytes = vec![0; length as usize];
                    let outcome = Disk(&self.files).read_at(segment, offset, &mut bytes);
                    self.log.read(outcome.map(|()| Bytes::from(bytes)));
                    return true;
                }
            }
        }
        false
    }

    fn deliver(&mut self) {
        while let Some(mut completion) = self.log.poll_completion() {
            self.desk.deliver(&mut completion);
        }
        if self.log.pending_len() == 0 {
            self.desk.shrink_backlog(std::mem::take(&mut self.in_flight_bytes));
        }
        self.desk.publish(self.log.health(), self.log.checkpoint_due(), self.log.durable());
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Prepared(segment, outcome) => self.log.prepared(segment, outcome),
            Order::BeginCheckpoint(answer) => {
                // Everything before the start is delivered before anybody captures a state.
                self.deliver();
                let _ = answer.send(self.log.begin_checkpoint());
            }
            Order::Checkpointed(from) => self.log.checkpointed(from),
            Order::CheckpointFailed => self.log.checkpoint_failed(),
            Order::Journaled(lsn) => self.log.journaled(lsn),
            Order::Scarce(scarce) => self.log.set_scarce(scarce),
            Order::Removed(segment) => self.log.removed(segment),
            Order::Retain(positions) => positions.into_iter().for_each(|p| self.log.retain(p)),
            Order::Settled => self.log.settled(),
            Order::Extents(answer) => {
                let _ = answer.send(self.log.extents());
            }
            Order::Stats(answer) => {
                let _ = answer.send(self.log.stats());
            }
        }
    }
}

/// An empty list of slices for another borrow, in the same memory.
fn recycle<'a>(slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}

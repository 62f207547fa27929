//! Where shards and the committer meet: appends in, news out.

use crate::files::Room;
use postrider_spool::{Append, Completion, Extent, Health, Lsn, Position, Stats};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Outcomes wait at most this long for a message to ride with.
const LINGER: Duration = Duration::from_millis(5);
/// So many outcomes go without one.
const RIDERS_MAX: usize = 64;
/// Beyond this, handed in and not yet durable, shards should take nothing more.
const BACKLOG_MAX_BYTES: usize = 256 << 20;
/// How often what failed is tried again.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What the committer is doing, as far as a shard must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rest {
    /// It works, and will look at the desk by itself.
    #[default]
    None,
    /// It sleeps until something comes.
    Idle,
    /// It waits for company for a few outcomes.
    Linger,
}

#[derive(Debug, Default)]
struct Tray {
    inbox: Work,
    rest: Rest,
    /// The committer has ended: orders are not answered any more.
    closed: bool,
}

/// What the committer takes from the desk.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) appends: Vec<Append>,
    pub(crate) releases: Vec<Position>,
    pub(crate) orders: Vec<Order>,
    pub(crate) urgent: bool,
    pub(crate) stop: bool,
}

/// Rarer things for the committer to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// The helper has prepared a segment, or not.
    Prepared(u32, Result<(), postrider_spool::Fault>),
    BeginCheckpoint(std::sync::mpsc::SyncSender<Lsn>),
    Checkpointed(Lsn),
    CheckpointFailed,
    Journaled(Lsn),
    /// Whether the disk has less room than should be free.
    Scarce(bool),
    /// The helper has removed a segment, or not.
    Removed(u32),
    Retain(Vec<Position>),
    Settled,
    Extents(std::sync::mpsc::SyncSender<Vec<Extent>>),
    Stats(std::sync::mpsc::SyncSender<Stats>),
}

struct Mailbox {
    news: Mutex<Completion>,
    has_news: AtomicBool,
    wake: Mutex<Box<dyn Fn() + Send>>,
}

pub(crate) struct Desk {
    tray: Mutex<Tray>,
    bell: Condvar,
    mailboxes: Vec<Mailbox>,
    health: AtomicU8,
    checkpoint_due: AtomicBool,
    durable: AtomicU64,
    journaled: AtomicU64,
    room: Mutex<Room>,
    backlog: AtomicUsize,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("shards", &self.mailboxes.len()).finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(wakers: Vec<Box<dyn Fn() + Send>>) -> Self {
        let mailbox = |wake| Mailbox {
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            wake: Mutex::new(wake),
        };
        Self {
            tray: Mutex::default(),
            bell: Condvar::new(),
            mailboxes: wakers.into_iter().map(mailbox).collect(),
            health: AtomicU8::new(0),
            checkpoint_due: AtomicBool::new(false),
            durable: AtomicU64::new(0),
            journaled: AtomicU64::new(0),
            room: Mutex::default(),
            backlog: AtomicUsize::new(0),
        }
    }

    fn tray(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the committer if it must know of what lies in the tray now.
    fn ring(&self, tray: MutexGuard<'_, Tray>) {
        let wake = match tray.rest {
            Rest::None => false,
            Rest::Idle => true,
            Rest::Linger => {
                tray.inbox.urgent || tray.inbox.appends.len() >= RIDERS_MAX || !tray.inbox.orders.is_empty()
            }
        };
        let mut tray = tray;
        if wake {
            tray.rest = Rest::None;
        }
        drop(tray);
        if wake {
            self.bell.notify_one();
        }
    }

    pub(crate) fn order(&self, order: Order) {
        let mut tray = self.tray();
        if !tray.closed {
            tray.inbox.orders.push(order);
            self.ring(tray);
        }
    }

    /// The committer ends: whoever waits for an answer gets none.
    pub(crate) fn close(&self) {
        let mut tray = self.tray();
        tray.closed = true;
        tray.inbox.orders.clear();
    }

    /// Where durable records lie; `None` when the committer has ended.
    pub(crate) fn extents(&self) -> Option<Vec<Extent>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.order(Order::Extents(sender));
        receiver.recv().ok()
    }

    /// Everything up to this number is durable and delivered.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// What there is to do. Waits for it, but no longer than to the next tick, unless `busy`; `work`'s emptied
    /// lists are used again.
    pub(crate) fn take(&self, work: &mut Work, busy: bool) {
        let mut tray = self.tray();
        if busy && !is_ready(&tray.inbox, false) {
            return;
        }
        let mut lingered = false;
        while !is_ready(&tray.inbox, lingered) {
            let (rest, time) =
                if tray.inbox.appends.is_empty() { (Rest::Idle, TICK) } else { (Rest::Linger, LINGER) };
            tray.rest = rest;
            let (woken, timed_out) =
                self.bell.wait_timeout(tray, time).unwrap_or_else(PoisonError::into_inner);
            tray = woken;
            if timed_out.timed_out() && rest == Rest::Idle {
                break;
            }
            lingered = timed_out.timed_out();
        }
        tray.rest = Rest::None;
        std::mem::swap(&mut tray.inbox.appends, &mut work.appends);
        std::mem::swap(&mut tray.inbox.releases, &mut work.releases);
        std::mem::swap(&mut tray.inbox.orders, &mut work.orders);
        tray.inbox.urgent = false;
        work.stop = tray.inbox.stop;
    }

    /// Tells a shard; wakes it unless it has been woken for earlier news already.
    pub(crate) fn deliver(&self, completion: &mut Completion) {
        let Some(mailbox) = self.mailboxes.get(usize::from(completion.shard)) else { return };
        mailbox.news.lock().unwrap_or_else(PoisonError::into_inner).merge(completion);
        if !mailbox.has_news.swap(true, Ordering::AcqRel) {
            (mailbox.wake.lock().unwrap_or_else(PoisonError::into_inner))();
        }
    }

    /// The event journal has come this far.
    pub(crate) fn publish_journaled(&self, lsn: Lsn) {
        self.journaled.store(lsn.0, Ordering::Relaxed);
    }

    pub(crate) fn publish_room(&self, room: Room) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// Everything up to `durable` has been delivered.
    pub(crate) fn publish(&self, health: Health, checkpoint_due: bool, durable: Lsn) {
        let health = match health {
            Health::Good => 0,
            Health::Full => 1,
            Health::Exhausted => 2,
            Health::Failing => 3,
        };
        if self.health.swap(health, Ordering::Relaxed) != health {
            match health {
                0 => tracing::info!("the spool takes messages again"),
                1 => tracing::error!("the spool is full: messages are refused, outcomes go to the reserve"),
                2 => tracing::error!(
                    "the spool's reserve is nearly used up: nothing is sent before a checkpoint"
                ),
                _ => tracing::error!("the spool's disk fails: messages are refused until a sync succeeds"),
            }
        }
        self.checkpoint_due.store(checkpoint_due, Ordering::Relaxed);
        self.durable.store(durable.0, Ordering::Release);
    }

    pub(crate) fn shrink_backlog(&self, bytes: usize) {
        self.backlog.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        let mut tray = self.tray();
        tray.inbox.stop = true;
        tray.inbox.urgent = true;
        tray.rest = Rest::None;
        drop(tray);
        self.bell.notify_one();
    }
}

fn is_ready(inbox: &Work, lingered: bool) -> bool {
    inbox.urgent
        || inbox.stop
        || !inbox.orders.is_empty()
        || inbox.appends.len() >= RIDERS_MAX
        || (lingered && !inbox.appends.is_empty())
}

/// A shard's way to the committer.
#[derive(Clone, Debug)]
pub struct CommitterHandle(pub(crate) Arc<Desk>);

impl CommitterHandle {
    /// Hands in appends, all of them, in order; `appends` comes back empty with room. One lock, and a wake
    /// only if the committer sleeps.
    pub fn submit(&self, appends: &mut Vec<Append>) {
        if appends.is_empty() {
            return;
        }
        let urgent = appends.iter().any(|append| append.urgent);
        self.0.backlog.fetch_add(appends.iter().map(weight).sum(), Ordering::Relaxed);
        let mut tray = self.0.tray();
        tray.inbox.urgent |= urgent;
        if tray.inbox.appends.is_empty() {
            std::mem::swap(&mut tray.inbox.appends, appends);
        } else {
            tray.inbox.appends.append(appends);
        }
        self.0.ring(tray);
    }

    /// [`Self::submit`], unless the committer is behind: false, and nothing was taken.
    pub fn try_submit(&self, appends: &mut Vec<Append>) -> bool {
        let may = !self.is_congested();
        if may {
            self.submit(appends);
        }
        may
    }

    /// These records are dead; told with the next batch.
    pub fn release(&self, positions: &mut Vec<Position>) {
        self.0.tray().inbox.releases.append(positions);
    }

    /// Somebody waits for what was handed in: commit it now.
    pub fn nudge(&self) {
        let mut tray = self.0.tray();
        if !tray.inbox.appends.is_empty() {
            tray.inbox.urgent = true;
            self.0.ring(tray);
        }
    }

    /// Adds the shard's news to `into`.
    pub fn take_news(&self, shard: usize, into: &mut Completion) {
        let Some(mailbox) = self.0.mailboxes.get(shard) else { return };
        if mailbox.has_news.swap(false, Ordering::AcqRel) {
            into.merge(&mut mailbox.news.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether messages are taken.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.0.health.load(Ordering::Relaxed) {
            0 => Health::Good,
            1 => Health::Full,
            2 => Health::Exhausted,
            _ => Health::Failing,
        }
    }

    /// So much waits for the disk that nothing more should be taken in.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.0.backlog.load(Ordering::Relaxed) > BACKLOG_MAX_BYTES
    }

    /// Everything up to this number is durable and has been delivered to the shards' mailboxes.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.0.durable()
    }

    /// The event journal holds every event up to this number.
    #[must_use]
    pub fn journaled(&self) -> Lsn {
        Lsn(self.0.journaled.load(Ordering::Relaxed))
    }

    /// Room on the disk, as it was a second ago.
    #[must_use]
    pub fn room(&self) -> Room {
        *self.0.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a checkpoint should be made. See [`Self::begin_checkpoint`].
    #[must_use]
    pub fn is_checkpoint_due(&self) -> bool {
        self.0.checkpoint_due.load(Ordering::Relaxed)
    }

    /// Begins a checkpoint and says where its replay will start. Each shard then takes its news and
    /// captures its state: that holds everything before the start (and, perhaps, some of what follows).
    /// `None`: the committer has stopped.
    #[must_use]
    pub fn begin_checkpoint(&self) -> Option<Lsn> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.0.order(Order::BeginCheckpoint(sender));
        receiver.recv().ok()
    }

    /// The checkpoint that was begun is written and durable.
    pub fn checkpointed(&self, replay_from: Lsn) {
        self.0.order(Order::Checkpointed(replay_from));
    }

    /// The checkpoint that was begun came to nothing.
    pub fn checkpoint_failed(&self) {
        self.0.order(Order::CheckpointFailed);
    }

    /// These records of the past are live: see [`crate::Recovered::settle_later`]. One that was released before
    /// stays so.
    pub fn retain(&self, positions: Vec<Position>) {
        if !positions.is_empty() {
            self.0.order(Order::Retain(positions));
        }
    }

    /// All that is live of the past has been retained.
    pub fn settled(&self) {
        self.0.order(Order::Settled);
    }

    /// Figures for an operator; `None` when the committer has stopped.
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.0.order(Order::Stats(sender));
        receiver.recv().ok()
    }
}

pub(crate) fn weight(append: &Append) -> usize {
    append.head.len() + append.body_len()
}

//! A source's event loop: sessions, what they send next, and when.

use super::session::{Session, Step};
use super::{Control, Counts, Plan};
use crate::content::Template;
use crate::id::Id;
use crate::record::{Log, Sent, Verdict};
use crate::wire::Scratch;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const EVENTS: usize = 512;
/// Longest wait for an event, so that a stop is seen.
const TICK: Duration = Duration::from_millis(50);
/// How far a paced source may fall behind and catch up, so that a stall does not become a flood.
const CATCH_UP: Duration = Duration::from_millis(100);
/// Waits after a connection failed double from the first to the last.
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
const RECONNECT_DOUBLINGS: u32 = 6;
/// How long the relay may take to answer QUIT once there is nothing more to send.
const FAREWELL: Duration = Duration::from_secs(2);
/// Connections begun per turn of the loop, so that replies are not left waiting behind them.
const CONNECTS_PER_TURN: usize = 64;

/// What goes over to the thread.
pub(super) struct Setup {
    pub(super) plan: Plan,
    pub(super) run: u64,
    pub(super) templates: Vec<Template>,
    pub(super) chunks: Vec<Template>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) log: Log,
    pub(super) control: Arc<Control>,
    /// This thread's first place in the run, and the distance to the next.
    pub(super) first: u64,
    pub(super) step: u64,
}

/// What all sessions of a thread share.
pub(super) struct Desk {
    pub(super) setup: Setup,
    pub(super) counts: Counts,
    begun: u64,
    again: VecDeque<Id>,
    deadline: Option<Instant>,
    next_slot: Instant,
    interval: Option<Duration>,
    last_verdict: Instant,
    stopping: bool,
}

/// What a session without work is given.
pub(super) enum Next {
    Message(Id),
    /// Not yet, by the rate.
    Later,
    Nothing,
}

impl Desk {
    fn new(setup: Setup, now: Instant) -> Desk {
        Desk {
            counts: Counts::default(),
            begun: 0,
            again: VecDeque::new(),
            deadline: setup.plan.duration.map(|duration| now + duration),
            next_slot: now,
            interval: setup.plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            last_verdict: now,
            stopping: false,
            setup,
        }
    }

    fn left(&self) -> u64 {
        self.setup.plan.messages.unwrap_or(0) - self.begun
    }

    pub(super) fn has_more(&self) -> bool {
        !self.stopping && (!self.again.is_empty() || self.left() > 0)
    }

    pub(super) fn next(&mut self) -> Next {
        if !self.has_more() {
            return Next::Nothing;
        }
        if self.deadline.is_some() || self.interval.is_some() {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                self.stopping = true;
                return Next::Nothing;
            }
            if let Some(interval) = self.interval {
                if self.next_slot > now {
                    return Next::Later;
                }
                self.next_slot = self.next_slot.max(now.checked_sub(CATCH_UP).unwrap_or(now)) + interval;
            }
        }
        if let Some(id) = self.again.pop_front() {
            return Next::Message(id);
        }
        let place = self.setup.first + self.begun * self.setup.step;
        self.begun += 1;
        Next::Message(Id::new(self.setup.run, place))
    }

    /// Takes back a message that the relay did not get whole, or that is to be sent twice.
    pub(super) fn take_back(&mut self, id: Id) {
        self.again.push_back(id);
    }

    pub(super) fn verdict(&mut self, sent: &Sent<'_>) {
        self.setup.log.sent(sent);
        self.last_verdict = Instant::now();
        match sent.verdict {
            Verdict::Acknowledged => {
                self.counts.acknowledged += 1;
                self.setup.control.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Refused => self.counts.refused += 1,
            Verdict::Unknown => self.counts.unknown += 1,
        }
    }

    /// The domain of a recipient.
    pub(super) fn domain(&self, id: Id, index: u16) -> &str {
        let plan = &self.setup.plan;
        crate::record::domain_of(&plan.domains, id, index, plan.recipients)
    }
}

struct Worker {
    poll: Poll,
    desk: Desk,
    sessions: Vec<Session>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Sessions that wait for their slot.
    idle: VecDeque<usize>,
    connecting: VecDeque<usize>,
    open: usize,
}

/// Runs a thread's part. The text says why it ended early, if it did.
pub(super) fn run(setup: Setup) -> std::io::Result<(Log, Counts, Option<String>)> {
    let sessions = setup.plan.sessions;
    let mut worker = Worker {
        poll: Poll::new()?,
        desk: Desk::new(setup, Instant::now()),
        sessions: (0..sessions).map(|_| Session::default()).collect(),
        timers: BinaryHeap::new(),
        idle: VecDeque::new(),
        connecting: (0..sessions).collect(),
        open: sessions,
    };
    let trouble = worker.serve()?;
    for session in &mut worker.sessions {
        session.give_up(&mut worker.desk);
    }
    let mut desk = worker.desk;
    // A run bounded by time has no number of messages to fall short of.
    if desk.setup.plan.duration.is_none() {
        desk.counts.unsent = desk.left() + desk.again.len() as u64;
    }
    desk.setup.log.flush();
    Ok((desk.setup.log, desk.counts, trouble))
}

impl Worker {
    fn serve(&mut self) -> std::io::Result<Option<String>> {
        let mut events = Events::with_capacity(EVENTS);
        let mut scratch = Scratch::new();
        while self.open > 0 {
            self.connect_some();
            if let Err(error) = self.poll.poll(&mut events, Some(self.wait())) {
                if error.kind() == ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            for event in &events {
                let Token(token) = event.token();
                let step =
                    self.sessions[token].on_ready(event.is_read_closed(), &mut self.desk, &mut scratch);
                self.after(token, step);
            }
            self.run_timers();
            self.fill_slots();
            if self.desk.setup.control.stop.load(Ordering::Acquire) {
                self.desk.stopping = true;
                self.dismiss_idle();
            }
            let silence = self.desk.last_verdict.elapsed();
            if silence > FAREWELL && !self.desk.has_more() && self.sessions.iter().all(Session::is_free) {
                return Ok(None);
            }
            if silence > self.desk.setup.plan.patience {
                let seconds = self.desk.setup.plan.patience.as_secs();
                return Ok(Some(format!("the relay gave no verdict for {seconds} s")));
            }
        }
        Ok(None)
    }

    fn wait(&self) -> Duration {
        if !self.connecting.is_empty() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let timer = self.timers.peek().map_or(TICK, |Reverse((at, _))| at.saturating_duration_since(now));
        let slot =
            if self.idle.is_empty() { TICK } else { self.desk.next_slot.saturating_duration_since(now) };
        timer.min(slot).min(TICK)
    }

    fn connect_some(&mut self) {
        for _ in 0..CONNECTS_PER_TURN {
            let Some(token) = self.connecting.pop_front() else { return };
            if !self.desk.has_more() {
                self.open -= 1;
                continue;
            }
            if let Err(step) = self.connect(token) {
                self.after(token, step);
            }
        }
    }

    fn connect(&mut self, token: usize) -> Result<(), Step> {
        let session = &mut self.sessions[token];
        let broken = |session: &mut Session, desk: &mut Desk| session.broke(desk);
        let Ok(mut socket) = TcpStream::connect(self.desk.setup.plan.relay) else {
            return Err(broken(session, &mut self.desk));
        };
        let _ = socket.set_nodelay(true);
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut socket, Token(token), both).is_err() {
            return Err(broken(session, &mut self.desk));
        }
        session.connected(socket, &self.desk).map_err(|_| session.broke(&mut self.desk))
    }

    fn after(&mut self, token: usize, step: Step) {
        match step {
            Step::Wait => {}
            Step::Idle => self.idle.push_back(token),
            Step::Reconnect { failures: 0 } => self.connecting.push_back(token),
            Step::Reconnect { failures } => {
                let delay = RECONNECT_FIRST * 2u32.pow((failures - 1).min(RECONNECT_DOUBLINGS));
                self.timers.push(Reverse((Instant::now() + delay, token)));
            }
            Step::End => self.open -= 1,
        }
    }

    fn run_timers(&mut self) {
        while let Some(Reverse((at, token))) = self.timers.peek().copied() {
            if at > Instant::now() {
                return;
            }
            self.timers.pop();
            self.connecting.push_back(token);
        }
    }

    /// Gives waiting sessions the slots that have come.
    fn fill_slots(&mut self) {
        while let Some(token) = self.idle.front().copied() {
            if self.desk.has_more() && self.desk.next_slot > Instant::now() {
                return;
            }
            self.idle.pop_front();
            let step = self.sessions[token].go_on(&mut self.desk);
            self.after(token, step);
        }
    }

    fn dismiss_idle(&mut self) {
        while let Some(token) = self.idle.pop_front() {
            let step = self.sessions[token].go_on(&mut self.desk);
            self.after(token, step);
        }
    }
}

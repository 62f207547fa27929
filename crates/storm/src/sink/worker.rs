//! The sink's event loop: listeners, sessions, timers.

use super::session::{Session, Step};
use super::{FIRST_LISTENER, Options, Shared, WAKE};
use crate::content::Arrived;
use crate::record::{Content, How, Log, Taken, Totals, now_us};
use crate::script::{Phase, Script};
use crate::wire::Scratch;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest wait for an event: how late the log may be with the operating system, and a stop unseen.
const TICK: Duration = Duration::from_millis(50);
const EVENTS: usize = 512;
/// Sessions open at once, whatever the script says.
const SESSIONS_MAX: usize = 60_000;
const TOO_MANY: &[u8] = b"421 4.7.0 Too many connections, try again later\r\n";

/// What all sessions of a sink share.
pub(super) struct Hall {
    pub(super) script: Rc<Script>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) implicit_tls: bool,
    pub(super) lmtp: bool,
    pub(super) totals: Totals,
    pub(super) messages: Option<Bucket>,
    /// Rules that are for every recipient, as bits.
    pub(super) general: u64,
    log: Log,
    shared: Arc<Shared>,
    seen: Vec<(u64, u64)>,
    random: u64,
}

/// Lets through so many per second, with bursts of a tenth of a second.
pub(super) struct Bucket {
    per_s: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_s: f64) -> Bucket {
        Bucket { per_s, tokens: 1.0, at: Instant::now() }
    }

    pub(super) fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_s;
        self.tokens = (self.tokens + gained).min((self.per_s / 10.0).max(1.0));
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Hall {
    /// The rules that are for this recipient, as bits.
    pub(super) fn rules_for(&self, address: &[u8]) -> u64 {
        if self.script.rules.is_empty() {
            return 0;
        }
        let address = String::from_utf8_lossy(address);
        let of = |(number, rule): (usize, &crate::script::Rule)| u64::from(rule.is_for(&address)) << number;
        self.script.rules.iter().enumerate().map(of).fold(0, |all, bit| all | bit)
    }

    /// The first rule of this phase among `met` whose turn it is.
    pub(super) fn decide(&mut self, phase: Phase, met: u64) -> Option<usize> {
        if met == 0 {
            return None;
        }
        let script = self.script.clone();
        for (number, rule) in script.rules.iter().enumerate() {
            if rule.at != phase || met >> number & 1 == 0 {
                continue;
            }
            let (seen, acted) = &mut self.seen[number];
            *seen += 1;
            if *seen <= rule.after || rule.first.is_some_and(|first| *acted >= first) {
                continue;
            }
            if rule.probability < 1.0 {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                if (self.random >> 11) as f64 / (1u64 << 53) as f64 >= rule.probability {
                    continue;
                }
            }
            self.seen[number].1 += 1;
            return Some(number);
        }
        None
    }

    /// Logs a message's recipients.
    pub(super) fn record(&mut self, how: How, arrived: Arrived, recipients: &[Recipient]) {
        let at_us = now_us();
        for recipient in recipients {
            match recipient {
                Recipient::Ours(id, index) => {
                    let content = match arrived {
                        Arrived::Whole(content) if content == *id => Content::Whole,
                        Arrived::Whole(_) => Content::Crossed,
                        Arrived::Damaged(_) | Arrived::Foreign => Content::Damaged,
                    };
                    self.log.taken(&Taken { id: *id, index: *index, how, content, at_us });
                }
                Recipient::Foreign(address) => {
                    self.totals.foreign += 1;
                    self.log.foreign(at_us, address);
                }
            }
        }
        if how == How::Dropped {
            return;
        }
        let count = recipients.len() as u64;
        self.totals.taken += count;
        self.shared.taken.fetch_add(count, Ordering::Relaxed);
    }
}

/// A recipient of the transaction in progress.
pub(super) enum Recipient {
    /// Of a storm source.
    Ours(crate::id::Id, u16),
    /// Of anyone else.
    Foreign(Box<[u8]>),
}

struct Worker {
    poll: Poll,
    listeners: Vec<TcpListener>,
    sessions: Slab<Session>,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    hall: Hall,
    shared: Arc<Shared>,
    connects: Option<Bucket>,
    expect: Option<u64>,
    serial: u64,
}

impl Worker {
    fn run(mut self) -> (Log, Totals) {
        let mut events = Events::with_capacity(EVENTS);
        let mut scratch = Scratch::new();
        let mut flushed = Instant::now();
        while !self.shared.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now.duration_since(flushed) >= TICK {
                self.hall.log.flush();
                flushed = now;
            }
            let wait = self
                .timers
                .peek()
                .map_or(TICK, |Reverse((at, ..))| at.saturating_duration_since(now).min(TICK));
            match self.poll.poll(&mut events, Some(wait)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    eprintln!("storm: the sink's poll failed: {error}");
                    break;
                }
            }
            for event in &events {
                let Token(token) = event.token();
                if event.token() == WAKE {
                    continue;
                }
                if token >= FIRST_LISTENER {
                    self.accept(token - FIRST_LISTENER, &mut scratch);
                } else if let Some(session) = self.sessions.get_mut(token) {
                    let step = session.on_ready(event.is_read_closed(), &mut self.hall, &mut scratch);
                    self.after(token, step);
                }
            }
            self.run_timers(&mut scratch);
            if self.expect.is_some_and(|expect| self.hall.totals.taken >= expect) {
                self.shared.finished.store(true, Ordering::Release);
            }
        }
        let totals = self.hall.totals;
        self.hall.log.totals(&totals);
        (self.hall.log, totals)
    }

    fn accept(&mut self, listener: usize, scratch: &mut Scratch) {
        loop {
            let mut socket = match self.listeners[listener].accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // A connection that broke while waiting, or no descriptors left: the next event tries again.
                Err(_) => return,
            };
            self.hall.totals.connections += 1;
            let limit = self.hall.script.limit.connections.unwrap_or(SESSIONS_MAX).min(SESSIONS_MAX);
            if self.sessions.len() >= limit || self.connects.as_mut().is_some_and(|connects| !connects.take())
            {
                self.hall.totals.deferred += 1;
                // A new socket takes a short line; a peer that is gone needs none.
                let _ = socket.write(TOO_MANY);
                continue;
            }
            let _ = socket.set_nodelay(true);
            let entry = self.sessions.vacant_entry();
            let token = entry.key();
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut socket, Token(token), both).is_err() {
                continue;
            }
            self.serial += 1;
            entry.insert(Session::new(socket, self.serial));
            self.shared.open.fetch_add(1, Ordering::Relaxed);
            self.hall.totals.connections_max =
                self.hall.totals.connections_max.max(self.sessions.len() as u64);
            let step = self.sessions[token].greet(&mut self.hall, scratch);
            self.after(token, step);
        }
    }

    fn after(&mut self, token: usize, step: Step) {
        match step {
            Step::Wait => {}
            Step::Sleep(until) => self.timers.push(Reverse((until, token, self.sessions[token].serial()))),
            Step::End => {
                // Closing the socket takes it out of the poll.
                self.sessions.remove(token);
                self.shared.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn run_timers(&mut self, scratch: &mut Scratch) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((at, token, serial))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            if let Some(session) = self.sessions.get_mut(token).filter(|session| session.serial() == serial) {
                let step = session.wake(&mut self.hall, scratch);
                self.after(token, step);
            }
        }
    }
}

/// What goes over to the thread; the rest of a worker is made there, since it is not to be shared.
pub(super) struct Setup {
    poll: Poll,
    listeners: Vec<TcpListener>,
    options: Options,
    tls: Option<Arc<ServerConfig>>,
    log: Log,
    shared: Arc<Shared>,
}

impl Setup {
    pub(super) fn new(
        poll: Poll,
        listeners: Vec<std::net::TcpListener>,
        options: Options,
        tls: Option<Arc<ServerConfig>>,
        log: Log,
        shared: Arc<Shared>,
    ) -> std::io::Result<Setup> {
        let mut built = Vec::new();
        for (number, listener) in listeners.into_iter().enumerate() {
            let mut listener = TcpListener::from_std(listener);
            poll.registry().register(&mut listener, Token(FIRST_LISTENER + number), Interest::READABLE)?;
            built.push(listener);
        }
        Ok(Setup { poll, listeners: built, options, tls, log, shared })
    }

    pub(super) fn run(self) -> (Log, Totals) {
        let Options { script, implicit_tls, lmtp, expect, .. } = self.options;
        let general = |(number, rule): (usize, &crate::script::Rule)| {
            u64::from(rule.domains.is_empty() && rule.recipients.is_empty()) << number
        };
        let hall = Hall {
            general: script.rules.iter().enumerate().map(general).fold(0, |all, bit| all | bit),
            messages: script.limit.messages_per_s.map(Bucket::new),
            seen: vec![(0, 0); script.rules.len()],
            // An xorshift state is never zero.
            random: script.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            tls: self.tls,
            implicit_tls,
            lmtp,
            totals: Totals::default(),
            log: self.log,
            shared: self.shared.clone(),
            script: Rc::new(script),
        };
        let worker = Worker {
            poll: self.poll,
            listeners: self.listeners,
            sessions: Slab::new(),
            timers: BinaryHeap::new(),
            connects: hall.script.limit.connections_per_s.map(Bucket::new),
            hall,
            shared: self.shared,
            expect,
            serial: 0,
        };
        worker.run()
    }
}

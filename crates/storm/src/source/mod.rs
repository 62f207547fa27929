//! The sending end: numbered messages over many sessions, and a journal of what the relay said of each.

mod session;
mod worker;

use crate::content::Template;
use crate::record::{Log, now_us};
use crate::tls;
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Sessions at once, at most.
const SESSIONS_MAX: usize = 60_000;
/// Recipients of a message, at most: what RFC 5321 §4.5.3.1.8 makes a server take is 100.
const RECIPIENTS_MAX: u16 = 10_000;
/// Threads, at most.
const THREADS_MAX: usize = 64;
/// A source without a bound in messages or time stops here.
const MESSAGES_MAX: u64 = 1 << 40;

/// TLS between the source and the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// None.
    Clear,
    /// STARTTLS, without which no message is sent.
    StartTls,
    /// TLS from the first octet on.
    Implicit,
}

/// What a source sends.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The relay.
    pub relay: SocketAddr,
    /// Connections at once.
    pub sessions: usize,
    /// Threads they are spread over.
    pub threads: usize,
    /// Messages in all.
    pub messages: Option<u64>,
    /// Time after which no message is begun.
    pub duration: Option<Duration>,
    /// Octets of a message, headers included.
    pub size: usize,
    /// Recipients per message.
    pub recipients: u16,
    /// Recipient domains, taken in turn.
    pub domains: Vec<String>,
    /// Messages per second in all; as fast as the relay answers when absent.
    pub rate: Option<f64>,
    /// Messages per connection; unlimited when absent.
    pub per_connection: Option<u64>,
    /// MAIL, RCPT and DATA in one write, if the relay offers PIPELINING.
    pub pipelining: bool,
    /// BDAT instead of DATA, if the relay offers CHUNKING.
    pub bdat: bool,
    /// TLS.
    pub security: Security,
    /// Resumes TLS sessions.
    pub tls_resumption: bool,
    /// User and password for AUTH PLAIN.
    pub auth: Option<(String, String)>,
    /// Reverse-path.
    pub from: String,
    /// Sends a message again, under the same id, when the connection broke after its final dot.
    pub retry_lost: bool,
    /// Gives up when the relay has said nothing for so long.
    pub patience: Duration,
    /// Tells runs apart; by the clock when absent.
    pub run: Option<u64>,
    /// The journal's file; memory when absent.
    pub journal: Option<PathBuf>,
}

impl Plan {
    /// One session with one message of 4 KiB to one recipient.
    #[must_use]
    pub fn to(relay: SocketAddr) -> Plan {
        Plan {
            relay,
            sessions: 1,
            threads: 1,
            messages: Some(1),
            duration: None,
            size: 4096,
            recipients: 1,
            domains: vec!["example.test".into()],
            rate: None,
            per_connection: None,
            pipelining: true,
            bdat: false,
            security: Security::Clear,
            tls_resumption: false,
            auth: None,
            from: "storm@example.test".into(),
            retry_lost: false,
            patience: Duration::from_secs(30),
            run: None,
            journal: None,
        }
    }

    /// With so many messages.
    #[must_use]
    pub fn messages(self, messages: u64) -> Plan {
        Plan { messages: Some(messages), ..self }
    }

    /// With so many sessions.
    #[must_use]
    pub fn sessions(self, sessions: usize) -> Plan {
        Plan { sessions, ..self }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=SESSIONS_MAX).contains(&self.sessions), "sessions: 1 to {SESSIONS_MAX}");
        ensure!((1..=THREADS_MAX).contains(&self.threads), "threads: 1 to {THREADS_MAX}");
        ensure!((1..=RECIPIENTS_MAX).contains(&self.recipients), "recipients: 1 to {RECIPIENTS_MAX}");
        ensure!(!self.domains.is_empty(), "at least one domain");
        ensure!(
            self.domains.iter().all(|domain| !domain.contains([',', ' ', '\r', '\n'])),
            "a domain is one word"
        );
        ensure!(!self.from.contains(['\r', '\n', '>']), "a reverse-path is one address");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "a rate is greater than 0");
        ensure!(self.per_connection != Some(0), "at least one message per connection");
        ensure!(self.messages.is_some() || self.duration.is_some(), "a bound: messages or duration");
        Ok(())
    }
}

/// What a source counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages acknowledged with 250.
    pub acknowledged: u64,
    /// Messages refused.
    pub refused: u64,
    /// Verdicts unknown, since the connection broke after the final dot.
    pub unknown: u64,
    /// Connections that were established.
    pub connections: u64,
    /// Connections that broke or could not be made.
    pub broken: u64,
    /// Messages of the plan that were never handed over.
    pub unsent: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.connections += other.connections;
        self.broken += other.broken;
        self.unsent += other.unsent;
    }
}

/// What a source leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// Counts.
    pub counts: Counts,
    /// The journal's lines, when it was kept in memory.
    pub journal: Vec<u8>,
    /// Why the source stopped before its plan was done, if it did.
    pub trouble: Option<String>,
}

/// Watches and stops a source from outside.
#[derive(Debug, Default)]
pub struct Control {
    /// Set to begin no further message.
    pub stop: AtomicBool,
    /// Messages acknowledged so far.
    pub acknowledged: AtomicU64,
}

/// Sends what the plan says, until it is done or the relay stays away.
///
/// # Errors
/// A plan out of range, or a journal that cannot be opened. A relay that refuses is an outcome, not an error.
pub fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    run_controlled(plan, &Arc::new(Control::default()))
}

/// As [`run`], to be watched and stopped by another thread.
///
/// # Errors
/// As [`run`].
pub fn run_controlled(plan: &Plan, control: &Arc<Control>) -> anyhow::Result<Outcome> {
    plan.check()?;
    let mut log = match &plan.journal {
        Some(path) => Log::append_to(path)?,
        None => Log::in_memory(),
    };
    log.source_head(&plan.domains);
    log.flush();
    let threads = plan.threads.min(plan.sessions);
    let run = plan.run.unwrap_or_else(|| now_us() >> 10);
    let date = jiff::fmt::rfc2822::to_string(&jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC))?;
    let tls = (plan.security != Security::Clear).then(|| tls::client(plan.tls_resumption)).transpose()?;
    let mut running = Vec::new();
    for thread in 0..threads {
        let share = share(plan, thread, threads);
        let setup = worker::Setup {
            run,
            templates: Template::set(plan.size, &plan.from, &date, true),
            chunks: if plan.bdat { Template::set(plan.size, &plan.from, &date, false) } else { Vec::new() },
            tls: tls.clone(),
            log: log.sibling()?,
            control: control.clone(),
            first: thread as u64,
            step: threads as u64,
            plan: share,
        };
        let name = format!("source-{thread}");
        running.push(std::thread::Builder::new().name(name).spawn(move || worker::run(setup))?);
    }
    let mut outcome = Outcome { counts: Counts::default(), journal: Vec::new(), trouble: None };
    outcome.journal.append(&mut log.lines);
    for thread in running {
        let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (mut log, counts, trouble) = ended.context("a source's event loop failed")?;
        outcome.journal.append(&mut log.lines);
        outcome.counts.add(counts);
        outcome.trouble = outcome.trouble.or(trouble);
    }
    Ok(outcome)
}

/// A thread's part of the plan.
fn share(plan: &Plan, thread: usize, threads: usize) -> Plan {
    let part = |all: u64| all / threads as u64 + u64::from((thread as u64) < all % threads as u64);
    Plan {
        // Invariant: a part is not greater than the whole.
        sessions: usize::try_from(part(plan.sessions as u64)).expect("a part of a usize"),
        messages: Some(part(plan.messages.unwrap_or(MESSAGES_MAX))),
        rate: plan.rate.map(|rate| rate / threads as f64),
        ..plan.clone()
    }
}

/// The flag that stops a source or sink from a signal handler.
impl Control {
    /// Begins no further message.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

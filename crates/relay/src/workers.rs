//! What would hold an event loop up: reading records back, keeping messages in the sandbox, checking
//! passwords.

use crate::inbox::Inbox;
use crate::letter::Letter;
use postrider_auth::{AcceptedPasswords, Job as AuthJob, Verdict};
use postrider_disk::Reader;
use postrider_engine::{Capture, JobId, Loaded, Stored};
use postrider_model::{Mailbox, Timestamp};
use postrider_spool::Position;
use postrider_vault::{CapturedMessage, Sandbox};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

pub(crate) enum Work {
    Load { job: JobId, position: Position },
    Capture(Box<Capture>),
    Verify { key: usize, id: u32, at: Timestamp, job: Box<AuthJob> },
}

struct Assigned {
    work: Work,
    inbox: Inbox<Letter>,
}

#[derive(Default)]
struct Bench {
    state: Mutex<(VecDeque<Assigned>, bool)>,
    bell: Condvar,
}

/// A few threads with one list of work.
pub(crate) struct Workers {
    bench: Arc<Bench>,
    accepted: Arc<Mutex<AcceptedPasswords>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// `secret` is random and of this run only.
    pub(crate) fn start(
        count: usize,
        reader: &Reader,
        sandbox: &Arc<Sandbox>,
        secret: [u8; 32],
    ) -> std::io::Result<Self> {
        let bench = Arc::new(Bench::default());
        let accepted = Arc::new(Mutex::new(AcceptedPasswords::new(secret)));
        let mut threads = Vec::new();
        for n in 0..count.max(1) {
            let (bench, reader, sandbox) = (bench.clone(), reader.clone(), sandbox.clone());
            let accepted = accepted.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
                while let Some(Assigned { work, inbox }) = bench.take() {
                    inbox.send(perform(work, &reader, &sandbox, &accepted));
                }
            })?;
            threads.push(thread);
        }
        Ok(Workers { bench, accepted, threads: Mutex::new(threads) })
    }

    pub(crate) fn assign(&self, work: Work, inbox: &Inbox<Letter>) {
        let mut state = self.bench.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.push_back(Assigned { work, inbox: inbox.clone() });
        drop(state);
        self.bench.bell.notify_one();
    }

    /// True if this password was accepted a short while ago, so that it need not be checked again: a client
    /// that connects for each message does not cost PBKDF2 each time.
    pub(crate) fn know(&self, job: &AuthJob, now: Timestamp) -> bool {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).knows(job, now)
    }

    /// Lets the threads end what they do and stops them.
    pub(crate) fn stop(&self) {
        self.bench.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.bench.bell.notify_all();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

impl Bench {
    fn take(&self) -> Option<Assigned> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(assigned) = state.0.pop_front() {
                return Some(assigned);
            }
            if state.1 {
                return None;
            }
            state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn perform(work: Work, reader: &Reader, sandbox: &Sandbox, accepted: &Mutex<AcceptedPasswords>) -> Letter {
    match work {
        Work::Load { job, position } => Letter::Loaded { job, loaded: load(reader, position) },
        Work::Capture(capture) => {
            Letter::Captured { job: capture.job, result: keep(&capture, reader, sandbox) }
        }
        Work::Verify { key, id, at, job } => {
            let verdict = job.verify();
            if verdict == Verdict::Accepted {
                accepted.lock().unwrap_or_else(PoisonError::into_inner).remember(&job, at);
            }
            Letter::Verdict { key, id, verdict }
        }
    }
}

pub(crate) fn load(reader: &Reader, position: Position) -> Option<Loaded> {
    match reader.read(position) {
        Ok(record) => Some(Loaded { head: record.head, body: record.body }),
        Err(error) => {
            tracing::error!(%error, "a record cannot be read back");
            None
        }
    }
}

fn keep(capture: &Capture, reader: &Reader, sandbox: &Sandbox) -> Result<(), String> {
    let mut content = Vec::new();
    for stored in &capture.content {
        match stored {
            Stored::Memory(pieces) => content.extend(pieces.iter().cloned()),
            Stored::Log(position) => {
                content.push(reader.read(*position).map_err(|error| error.to_string())?.body);
            }
        }
    }
    let message = &capture.message;
    let recipients: Vec<&Mailbox> = capture
        .ordinals
        .iter()
        .filter_map(|ordinal| message.recipients.get(usize::from(*ordinal)))
        .map(|recipient| &recipient.mailbox)
        .collect();
    let kept = CapturedMessage {
        id: &capture.id.to_string(),
        accepted_at: message.accepted_at,
        account: &message.account,
        reverse_path: message.envelope.reverse_path.as_ref(),
        recipients: &recipients,
        content: &content,
        encoding: message.encoding,
    };
    sandbox.capture(&kept).map_err(|error| error.to_string())
}

//! Loading what the start did not wait for: the checkpoint's parts, one at a time for each shard.

use crate::inbox::Inbox;
use crate::letter::{Letter, PartRead};
use postrider_disk::{Checkpoints, CommitterHandle, Part, PartError};
use postrider_model::codec::DecodeError;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How often a stop is looked for.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a checkpoint cannot be taken up whole.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A part cannot be read.
    #[error(transparent)]
    Part(#[from] PartError),
    /// A part is whole and makes no sense.
    #[error("the checkpoint's part {name}: {error}")]
    Content {
        /// Which.
        name: String,
        /// What is wrong.
        error: DecodeError,
    },
}

/// Parts to be loaded, by shard, in the order of their due times.
#[derive(Debug, Default)]
pub(crate) struct Late(pub(crate) Vec<VecDeque<Part>>);

/// The thread that loads.
pub(crate) struct Loader {
    loaded: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<Result<(), LoadError>>>>,
}

impl Loader {
    pub(crate) fn start(
        late: Option<Late>,
        checkpoints: Checkpoints,
        committer: CommitterHandle,
        inboxes: Vec<Inbox<Letter>>,
    ) -> std::io::Result<Self> {
        let loaded = Arc::new(AtomicBool::new(late.is_none()));
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = match late {
            None => None,
            Some(late) => {
                let work = Work { late, checkpoints, committer, inboxes, stopping: stopping.clone() };
                let loaded = loaded.clone();
                Some(
                    std::thread::Builder::new()
                        .name("loader".into())
                        .spawn(move || work.run().map(|done| loaded.store(done, Ordering::Release)))?,
                )
            }
        };
        Ok(Loader { loaded, stopping, thread: Mutex::new(thread) })
    }

    /// Becomes true when every shard has been told all.
    pub(crate) fn loaded(&self) -> Arc<AtomicBool> {
        self.loaded.clone()
    }

    pub(crate) fn wait(&self) -> Result<(), LoadError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic was reported by the thread itself.
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or(Ok(())))
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

struct Work {
    late: Late,
    checkpoints: Checkpoints,
    committer: CommitterHandle,
    inboxes: Vec<Inbox<Letter>>,
    stopping: Arc<AtomicBool>,
}

impl Work {
    /// False when it was stopped before the end.
    fn run(mut self) -> Result<bool, LoadError> {
        let began = Instant::now();
        match self.load_all() {
            Ok(false) => Ok(false),
            Ok(true) => {
                // Ahead of any `Letter::Checkpoint`: an inbox keeps its order.
                self.inboxes.iter().for_each(|inbox| inbox.send(Letter::AllLoaded));
                self.committer.settled();
                tracing::info!(ms = began.elapsed().as_millis(), "all that waits is loaded");
                Ok(true)
            }
            Err(error) => {
                tracing::error!(%error, "a checkpoint is damaged; the next start takes the one before it");
                if let Err(error) = self.checkpoints.set_aside_newest() {
                    tracing::error!(%error, "the damaged checkpoint cannot be set aside");
                }
                Err(error)
            }
        }
    }

    fn load_all(&mut self) -> Result<bool, LoadError> {
        let (sender, read) = channel();
        let shards = 0..self.inboxes.len();
        let mut reading: Vec<Option<String>> =
            shards.map(|shard| self.hand_over(shard, &sender)).collect::<Result<_, _>>()?;
        while reading.iter().any(Option::is_some) {
            let Some((shard, result)) = self.wait_for(&read) else { return Ok(false) };
            let name = reading[shard].take().unwrap_or_default();
            self.committer.retain(result.map_err(|error| LoadError::Content { name, error })?);
            reading[shard] = self.hand_over(shard, &sender)?;
        }
        Ok(true)
    }

    /// Gives a shard its next part; its name, if there is one.
    fn hand_over(&mut self, shard: usize, reply: &Sender<PartRead>) -> Result<Option<String>, LoadError> {
        let Some(part) = self.late.0.get_mut(shard).and_then(VecDeque::pop_front) else { return Ok(None) };
        let content = self.checkpoints.read_part(&part)?;
        self.inboxes[shard].send(Letter::Part { content, reply: reply.clone() });
        Ok(Some(part.name))
    }

    fn wait_for(&self, read: &Receiver<PartRead>) -> Option<PartRead> {
        loop {
            match read.recv_timeout(PAUSE) {
                Ok(part) => return Some(part),
                Err(RecvTimeoutError::Timeout) if !self.stopping.load(Ordering::Acquire) => {}
                Err(_) => return None,
            }
        }
    }
}

//! Checkpoints: when the log says that one is due, every shard writes down its state in parts, and a
//! manifest makes them count.

use crate::inbox::Inbox;
use crate::letter::Letter;
use postrider_disk::{Checkpoints, CommitterHandle, Part};
use postrider_engine::{Parts, base_name};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the log is asked.
const PAUSE: Duration = Duration::from_millis(500);
/// A shard that has not written its state by then is stuck; the checkpoint comes to nothing.
const PATIENCE: Duration = Duration::from_secs(300);

/// The thread that makes checkpoints.
pub(crate) struct Checkpointer {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Checkpointer {
    pub(crate) fn start(
        committer: CommitterHandle,
        checkpoints: Checkpoints,
        inboxes: Vec<Inbox<Letter>>,
        loaded: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            // After a start every bucket counts as changed, so the first checkpoint names all parts anew;
            // those of another number of shards fall away with it.
            let mut known = BTreeMap::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(PAUSE) {
                // A shard that has not taken up the last checkpoint whole cannot write the next.
                if committer.is_checkpoint_due() && loaded.load(Ordering::Acquire) {
                    make(&committer, &checkpoints, &inboxes, &mut known, &stopped);
                }
            }
        })?;
        Ok(Checkpointer { stop, thread })
    }

    pub(crate) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

fn make(
    committer: &CommitterHandle,
    checkpoints: &Checkpoints,
    inboxes: &[Inbox<Letter>],
    known: &mut BTreeMap<String, Part>,
    stopped: &Receiver<()>,
) {
    let Some(replay_from) = committer.begin_checkpoint() else { return };
    let Some(gathered) = gather(inboxes, stopped) else { return committer.checkpoint_failed() };
    let mut parts = known.clone();
    let replaced: HashSet<&str> =
        gathered.iter().flat_map(|shard| &shard.replaced).map(String::as_str).collect();
    parts.retain(|name, _| !replaced.contains(base_name(name)));
    for part in gathered.iter().flat_map(|shard| &shard.parts) {
        match checkpoints.write_part(&part.name, &part.content) {
            Ok(written) => {
                parts.insert(part.name.clone(), written);
            }
            Err(error) => {
                tracing::error!(%error, "a checkpoint's part cannot be written; the log goes on without");
                return committer.checkpoint_failed();
            }
        }
    }
    let head = u16::try_from(inboxes.len()).unwrap_or(u16::MAX).to_le_bytes().to_vec();
    match checkpoints.commit(replay_from, head, parts.values().cloned().collect()) {
        Ok(()) => {
            *known = parts;
            // Ahead of the next `Letter::Checkpoint`: an inbox keeps its order.
            inboxes.iter().for_each(|inbox| inbox.send(Letter::CheckpointConfirmed));
            committer.checkpointed(replay_from);
        }
        Err(error) => {
            tracing::error!(%error, "a checkpoint cannot be completed; the log goes on without");
            committer.checkpoint_failed();
        }
    }
}

/// The state of every shard, each durable in the log.
fn gather(inboxes: &[Inbox<Letter>], stopped: &Receiver<()>) -> Option<Vec<Parts>> {
    let (sender, parts) = channel();
    for inbox in inboxes {
        inbox.send(Letter::Checkpoint(sender.clone()));
    }
    drop(sender);
    let mut gathered = Vec::with_capacity(inboxes.len());
    let mut waited = Duration::ZERO;
    while gathered.len() < inboxes.len() {
        match parts.recv_timeout(PAUSE) {
            Ok(of_shard) => gathered.push(of_shard),
            Err(RecvTimeoutError::Timeout) => {
                waited += PAUSE;
                let is_stopping = !matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
                if is_stopping || waited > PATIENCE {
                    return None;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    Some(gathered)
}

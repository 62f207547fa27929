//! What other threads tell an event loop.

use crate::config::Loadout;
use postrider_auth::Verdict;
use postrider_engine::operate::{Request, Response};
use postrider_engine::{JobId, Loaded, Parts, Resolution};
use postrider_ingress::{Answers, Submission};
use postrider_model::Timestamp;
use postrider_model::codec::DecodeError;
use postrider_queue::{DomainId, LaneId};
use postrider_spool::{Moved, Position};
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Takes one shard's part of an answer.
pub(crate) type Reply = Box<dyn FnOnce(Response) + Send>;

/// A shard has read a part: which shard, and the bodies that came with it.
pub(crate) type PartRead = (usize, Result<Vec<Position>, DecodeError>);

pub(crate) enum Letter {
    /// The resolver's answer.
    Resolved { domain: DomainId, resolution: Resolution },
    /// The broker gave a slot that this shard waits for.
    SlotGranted(LaneId),
    /// A record was read.
    Loaded { job: JobId, loaded: Option<Loaded> },
    /// The sandbox kept a message, or could not.
    Captured { job: JobId, result: Result<(), String> },
    /// A password was checked.
    Verdict { key: usize, id: u32, verdict: Verdict },
    /// Messages that come whole, and where their answers go.
    Submit { messages: Vec<Submission>, answers: Answers },
    /// The operator asks.
    Ask { number: u64, request: Request, reply: Reply },
    /// A new configuration.
    Reload(Arc<Loadout>),
    /// The same configuration with a newer answer to who may send what.
    Control(Arc<Loadout>),
    /// Write down the shard's state for a checkpoint.
    Checkpoint(Sender<Parts>),
    /// A part of the checkpoint that the start did not wait for.
    Part { content: Vec<u8>, reply: Sender<PartRead> },
    /// Every part has been read.
    AllLoaded,
    /// The last checkpoint counts.
    CheckpointConfirmed,
    /// A record of this shard was copied forward.
    Moved(Moved),
    /// Take no more sessions, end what goes on, and stop at the latest at this time.
    Drain(Timestamp),
}

//! Joins spool and queue: what every recipient's state is, and what happens next.
//!
//! **For:** one shard's part of the relay's state, as a fold of the log: it takes messages from sessions,
//! hands transactions to connections, writes down what became of them, and answers the operator.
//! **Promises:** a ticket becomes durable before anyone is told so (P1); every recipient reaches exactly one
//! terminal state (P2); a restart changes nothing (P3).
//! **Never:** a clock, disk, socket or thread; a decision that is not in the log.

mod accept;
mod capture;
mod checkpoint;
mod effect;
mod explain;
mod fold;
mod intake;
mod lanes;
mod loading;
mod messages;
pub mod operate;
mod operator;
mod outflow;
mod replies;
mod report;
mod shard;
mod transaction;

pub use checkpoint::{Part, Parts};
pub use effect::{Capture, Effect, HostQuestion, JobId, Loaded, Question, Resolution, Stored};
pub use fold::{Owner, owner};
pub use intake::{Draft, Intake, Pieces, Refusal};
pub use loading::{PartKind, base_name};
pub use operator::QuestionId;
pub use outflow::{
    ConnectionEnd, ConnectionId, Next, Outflow, Piece, Plan, PlanHost, Settled, Settlement, Transaction,
    TransactionId,
};
pub use shard::{Health, Shard, ShardConfig};

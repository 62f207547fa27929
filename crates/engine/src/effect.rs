//! What a shard wants done by its shell, and what the shell answers.

use crate::operate::Response;
use crate::operator::QuestionId;
use crate::outflow::{ConnectionId, Plan, PlanHost, TransactionId};
use crate::{Pieces, Refusal};
use bytes::Bytes;
use postrider_model::record::{self, Ordinals};
use postrider_model::{Domain, MessageId, Reply, Snapshot};
use postrider_queue::{DomainId, LaneId};
use postrider_spool::{Durable, Moved, Position, Ticket};
use std::sync::Arc;
use std::time::Duration;

/// Names a piece of work handed to the shell; comes back with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Something for the shell to do. Appends to the log are taken apart, by `Shard::take_appends`.
#[derive(Debug)]
pub enum Effect {
    /// A submitted message is safe, or is not: the session may answer.
    Stored {
        /// What `Intake::submit` gave.
        ticket: Ticket,
        /// The proof, or the reply to give.
        result: Result<Durable, Refusal>,
    },
    /// Look up where a domain's mail goes; answer with `Shard::resolved`.
    Resolve {
        /// For the answer.
        domain: DomainId,
        /// What to look up.
        question: Question,
    },
    /// Open a connection; answer with `Shard::connection_opened` and `Shard::connection_ended`.
    Connect {
        /// Where to.
        plan: Arc<Plan>,
        /// The configuration to which the plan's numbers belong.
        snapshot: Arc<Snapshot>,
    },
    /// The final dot of this transaction may go.
    MayEnd {
        /// On which connection.
        connection: ConnectionId,
        /// Which.
        transaction: TransactionId,
    },
    /// Ask `Outflow::next` again for this connection.
    Resume {
        /// Which.
        connection: ConnectionId,
    },
    /// Close this connection, which has no work: QUIT, then `Shard::connection_ended`.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// The answer to `Shard::ask`.
    Answer {
        /// To which question.
        question: QuestionId,
        /// This shard's part of it.
        response: Response,
    },
    /// The content asked for by `Outflow::read`, or why it cannot be read.
    Content {
        /// For which connection.
        connection: ConnectionId,
        /// For which transaction.
        transaction: TransactionId,
        /// Which piece.
        piece: usize,
        /// It.
        content: Result<Bytes, Reply>,
    },
    /// Read a record; answer with `Shard::loaded`.
    Load {
        /// For the answer.
        job: JobId,
        /// Where it is.
        position: Position,
    },
    /// Keep a message in the sandbox; answer with `Shard::captured`.
    Capture(Box<Capture>),
    /// Ask the broker for a slot of this lane; answer with `Shard::slot_granted`, now or later.
    WantSlot {
        /// For the answer.
        lane: LaneId,
        /// The lane's key, the same on every shard.
        key: Arc<str>,
        /// Slots that exist in all.
        slots: usize,
    },
    /// Give a slot back to the broker.
    ReturnSlot {
        /// The lane's key.
        key: Arc<str>,
    },
    /// Another shard's record was copied forward: give it to [`owner`](crate::owner)'s `Shard::moved`.
    Moved(Moved),
    /// Sync what was appended now: somebody waits for it.
    Nudge,
}

/// What to look up for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Its mail exchangers (RFC 5321 §5.1).
    MailExchangers(Domain),
    /// The addresses of a route's hosts, in this order. Hosts that are addresses stand here too.
    Hosts(Vec<HostQuestion>),
}

/// One host of [`Question::Hosts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostQuestion {
    /// Index among the route's hosts.
    pub hop: usize,
    /// The host, still to be looked up if it is a name.
    pub host: postrider_model::snapshot::Host,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Mail goes here.
    Hosts {
        /// Names the site: equal for all domains with the same exchangers.
        site: Box<str>,
        /// In the order in which they are tried.
        hosts: Vec<PlanHost>,
        /// How long this holds.
        ttl: Duration,
    },
    /// There is nowhere to send to, for good (RFC 7505, RFC 5321 §5.1): the reply says why.
    Nowhere(Reply),
    /// Unknown for now.
    Temporary(Reply),
}

/// A record read back.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its head.
    pub head: Bytes,
    /// Its body.
    pub body: Bytes,
}

/// A message for the sandbox.
#[derive(Clone, Debug)]
pub struct Capture {
    /// For the answer.
    pub job: JobId,
    /// Its id.
    pub id: MessageId,
    /// Envelope and all recipients.
    pub message: Arc<record::Message>,
    /// The recipients it is captured for.
    pub ordinals: Ordinals,
    /// The content, in order.
    pub content: Vec<Stored>,
}

/// Content in memory or in the log.
#[derive(Clone, Debug)]
pub enum Stored {
    /// In memory.
    Memory(Pieces),
    /// The body of the record here.
    Log(Position),
}

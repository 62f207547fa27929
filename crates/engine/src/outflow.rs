//! What a connection needs of the engine: the next transaction, and someone to tell what became of it.

use bytes::Bytes;
use postrider_model::record::{self, Ordinals};
use postrider_model::{Ordinal, Outcome, Reply, Timestamp, Via};
use postrider_queue::LaneId;
use smallvec::SmallVec;
use std::sync::Arc;

/// A connection, as its shell numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u32);

/// A transaction in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub u64);

/// A piece of content: at hand, or to be asked for by [`Outflow::read`].
#[derive(Clone, Debug)]
pub enum Piece {
    /// At hand.
    Memory(Bytes),
    /// In the log; of this many octets.
    Log {
        /// Octets.
        size: u32,
    },
}

/// A message for some of its recipients, ready to be sent.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its name in [`Outflow::settle`].
    pub id: TransactionId,
    /// Envelope, all recipients, form of the content.
    pub message: Arc<record::Message>,
    /// Those of `message.recipients` that this transaction is for.
    pub ordinals: Ordinals,
    /// The content.
    pub pieces: SmallVec<[Piece; 4]>,
    /// The final dot may go: the attempt's mark is durable, and no more than one other transaction of the
    /// connection is in doubt. If not, wait for `Connection::may_end` (design §5, "In doubt").
    pub may_end: bool,
    /// How many attempts were made before.
    pub attempts: u16,
}

/// What [`Outflow::next`] has for a connection.
#[derive(Clone, Debug)]
pub enum Next {
    /// Send this.
    Transaction(Transaction),
    /// A message is being read from disk; the shell will call again.
    Loading,
    /// Nothing waits for this lane now.
    Idle,
}

/// What became of a transaction. Every recipient of the transaction is named once.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Which.
    pub transaction: TransactionId,
    /// One outcome per recipient.
    pub outcomes: SmallVec<[(Ordinal, Settled); 4]>,
    /// The remote as `name[address]:port`.
    pub peer: Arc<str>,
    /// How a delivered recipient left us.
    pub via: Via,
    /// The remote speaks DSN and was passed NOTIFY and ORCPT, so a success report is its business
    /// (RFC 3461 §5.2.2); if not, ours.
    pub dsn_passed_on: bool,
}

/// A recipient's part of a [`Settlement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// An attempt was made and this is its outcome.
    Outcome(Outcome),
    /// No attempt was made for this recipient: it goes back as it was. For example the remote takes no
    /// more recipients in this transaction (452 after N), or the connection died before MAIL.
    NotTried,
}

/// Where to go: what a shell needs to connect for a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which lane.
    pub lane: LaneId,
    /// Index of the route in the snapshot under which the lane was made.
    pub route: usize,
    /// Hosts in the order in which they are tried.
    pub hosts: Vec<PlanHost>,
}

/// A host of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanHost {
    /// Its name, for TLS and logs; for a bare address the address in brackets.
    pub name: Box<str>,
    /// Where it listens, in the order in which they are tried; empty for a Unix socket.
    pub addresses: Vec<std::net::SocketAddr>,
    /// Index among the route's hosts, if the route names hosts (`Target::Hosts`).
    pub hop: Option<usize>,
}

/// How a connection ended, or why none could be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// It did its work and was closed.
    Done,
    /// No host could be reached or greeted us well: the lane backs off.
    Unreachable(Reply),
    /// The site asks for less: 421, or a refusal for too many connections or too high a rate.
    Throttled(Reply),
    /// It broke in the middle of work.
    Broken(Reply),
}

/// The engine's side towards connections.
pub trait Outflow {
    /// The next transaction for an open connection of a lane.
    fn next(&mut self, now: Timestamp, connection: ConnectionId, lane: LaneId) -> Next;

    /// Asks for a piece of the transaction's content; the shell brings it to the connection.
    fn read(&mut self, connection: ConnectionId, transaction: TransactionId, piece: usize);

    /// Takes what became of a transaction.
    fn settle(&mut self, now: Timestamp, settlement: Settlement);

    /// The site asked for less while the connection goes on (a 4xx that names a limit).
    fn throttled(&mut self, now: Timestamp, lane: LaneId, reply: &Reply);
}

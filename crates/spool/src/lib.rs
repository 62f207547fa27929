//! The durable log as a state machine.

/// Names an append of one shard; comes back when the append is durable or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

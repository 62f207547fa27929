//! What became of an attempt and of a recipient.

use crate::Reply;

/// Outcome of one attempt for one recipient, as the remote server meant it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The remote took responsibility: a 2xx to the end of data (RFC 5321 §4.2.5). Not yet read by anyone.
    Delivered(Reply),
    /// Try again later; the queue decides when (§4.5.4.1).
    Deferred(Reply),
    /// Final. A DSN goes out unless NOTIFY forbids it (RFC 3461 §4.1).
    Failed(Reply),
    /// The connection died between our last octet and the reply. Retried, and marked so on the timeline.
    InDoubt(Reply),
}

/// How a delivered recipient left us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// To a mail exchanger of its domain.
    Mx,
    /// To a configured smarthost.
    Smarthost,
    /// By LMTP to a delivery agent.
    Lmtp,
}

/// The queue's verdict on a recipient. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Terminal {
    /// Accepted by the next hop.
    Delivered(Via),
    /// Refused for good by the next hop, or undeliverable.
    Bounced,
    /// Not delivered within its lifetime.
    Expired,
    /// Cancelled by an operator or the sender.
    Cancelled,
    /// Not sent because the address is suppressed.
    Suppressed,
    /// Discarded by a named policy.
    Dropped,
    /// Kept by the sandbox.
    Captured,
}

impl Terminal {
    /// The event's name (design §2).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Terminal::Delivered(_) => "delivered",
            Terminal::Bounced => "bounced",
            Terminal::Expired => "expired",
            Terminal::Cancelled => "cancelled",
            Terminal::Suppressed => "suppressed",
            Terminal::Dropped => "dropped",
            Terminal::Captured => "captured",
        }
    }
}

/// Priority class of a message. Each class but the last has a reserved share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// DSNs and what a person waits for.
    Transactional,
    /// Everything that says nothing else.
    #[default]
    Normal,
    /// Campaigns and newsletters.
    Bulk,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Transactional, Class::Normal, Class::Bulk];
}

//! Why a question has no answer yet.

use crate::records::RecordKind;
use std::fmt;
use thiserror::Error;

/// Whose fault a failure is; the text for operators names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// This relay or its host.
    Us,
    /// The name servers we ask, or the network to them.
    NameServers,
    /// The zone asked about: unsigned where it says signed, lame, or its servers are away.
    Zone,
}

/// A failure that may pass. That a name or record does not exist is an answer, not a failure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DnsError {
    /// SERVFAIL, REFUSED and their kind: most often the zone's servers are broken or away, or DNSSEC fails.
    #[error("the name servers answered {0}")]
    ServerFailure(Box<str>),
    /// The name server passed us on to others instead of answering: the zone's delegation is lame, or what we
    /// ask is no recursive resolver.
    #[error("the name server only referred to others (lame delegation)")]
    Referral,
    /// Nothing came back.
    #[error("the name servers did not answer in time")]
    Timeout,
    /// No name server can be reached.
    #[error("no name server can be reached: {0}")]
    Unreachable(Box<str>),
    /// Something came back that is no answer to the question.
    #[error("the answer makes no sense: {0}")]
    Malformed(Box<str>),
    /// More look-ups wait than we keep.
    #[error("too many look-ups are under way")]
    Overloaded,
    /// The resolver was stopped before it answered.
    #[error("the resolver was stopped")]
    Stopped,
}

impl DnsError {
    /// Whose fault it is.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self {
            DnsError::ServerFailure(_) | DnsError::Referral => Culprit::Zone,
            DnsError::Timeout | DnsError::Unreachable(_) | DnsError::Malformed(_) => Culprit::NameServers,
            DnsError::Overloaded | DnsError::Stopped => Culprit::Us,
        }
    }
}

/// What was asked when it failed: `MX of example.com`.
pub(crate) struct Asked<'a>(pub(crate) RecordKind, pub(crate) &'a str);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.0.name(), self.1)
    }
}

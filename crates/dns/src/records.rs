//! Records: the questions that name servers are asked and what they say.

use crate::DnsError;
use postrider_model::Domain;
use std::net::IpAddr;
use std::time::Duration;

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Mail exchangers.
    Mx,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

impl RecordKind {
    /// As in a zone file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RecordKind::Mx => "MX",
            RecordKind::A => "A",
            RecordKind::Aaaa => "AAAA",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) name: Domain,
    pub(crate) kind: RecordKind,
}

/// An MX record as it was received; its host is checked later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mx {
    pub(crate) preference: u16,
    /// Lower case, without the final dot; empty for the root.
    pub(crate) host: Box<str>,
}

/// What the records say, CNAMEs followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    Mx(Vec<Mx>),
    Addresses(Vec<IpAddr>),
    /// The name exists and has no record of this kind.
    NoData,
    /// NXDOMAIN: no record of any kind (RFC 8020).
    NoSuchName,
    Failed(DnsError),
}

/// Records and for how long they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) records: Records,
    pub(crate) ttl: Duration,
    /// The TTL has passed, but the name servers do not answer (RFC 8767).
    pub(crate) stale: bool,
}

impl Reply {
    pub(crate) fn new(records: Records, ttl: Duration) -> Self {
        Reply { records, ttl, stale: false }
    }

    pub(crate) fn failed(error: DnsError) -> Self {
        Reply::new(Records::Failed(error), FAILURE_TTL)
    }
}

/// Failures are remembered for so long (RFC 9520 §3.2 asks for 1 s to 5 min), so that a thousand messages for
/// one broken domain make one question.
pub(crate) const FAILURE_TTL: Duration = Duration::from_secs(5);

//! Questions of the shards and the answers to them.

use crate::error::DnsError;
use crate::site::site_key;
use postrider_model::{Domain, EnhancedCode, Reply};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

/// What a shard asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Where mail for a domain goes.
    MailRoute {
        /// The recipients' domain; an address literal needs no look-up.
        domain: Domain,
        /// Shuffles hosts of equal preference (RFC 5321 §5.1), so that the load spreads and a test repeats.
        seed: u64,
    },
    /// The addresses of a configured host.
    Addresses {
        /// Its name, or an address literal.
        host: Domain,
    },
}

/// The answer to a [`Query`], of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Where mail for the domain goes.
    MailRoute(MailRoute),
    /// The host's addresses.
    Addresses(Addresses),
}

/// Where mail for a domain goes, or why it goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailRoute {
    /// To these hosts.
    Hosts(Route),
    /// The domain says that it takes no mail (RFC 7505). Permanent.
    NullMx {
        /// For how long this holds.
        ttl: Duration,
    },
    /// The domain does not exist (NXDOMAIN). Permanent.
    NoSuchDomain {
        /// For how long this holds.
        ttl: Duration,
    },
    /// The domain exists, but no host that it names can be used, and it will stay so (RFC 5321 §5.1: "this
    /// situation MUST be reported as an error"). Permanent.
    Unusable {
        /// Every host and why.
        skipped: Vec<Skipped>,
        /// For how long this holds.
        ttl: Duration,
    },
    /// We are the best exchanger ourselves and no route says what to do: the mail would loop. Permanent.
    LoopsBack {
        /// For how long this holds.
        ttl: Duration,
    },
    /// Nobody knows now. The queue tries again.
    TemporaryFailure {
        /// What was asked, such as `MX of example.com`.
        asked: Box<str>,
        /// Why it has no answer.
        error: DnsError,
        /// Asking again before makes no sense.
        ttl: Duration,
    },
}

/// Hosts in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Sorted by preference, equal ones shuffled; each has an address.
    pub hosts: Vec<MxHost>,
    /// Hosts that were left out, and why.
    pub skipped: Vec<Skipped>,
    /// No MX record: the domain itself is the host (RFC 5321 §5.1).
    pub implicit: bool,
    /// The answer's TTL has passed, but the name servers do not answer.
    pub stale: bool,
    /// For how long this holds.
    pub ttl: Duration,
    pub(crate) site_key: Box<str>,
}

impl Route {
    /// Names the receiving system: the same for all domains with the same set of exchangers, whatever their
    /// preferences, TTLs and failures of the moment.
    #[must_use]
    pub fn site_key(&self) -> &str {
        &self.site_key
    }

    pub(crate) fn to_literal(domain: &Domain, address: IpAddr) -> Self {
        Route {
            hosts: vec![MxHost { preference: 0, name: domain.clone(), addresses: vec![address] }],
            skipped: Vec::new(),
            implicit: true,
            stale: false,
            ttl: LITERAL_TTL,
            site_key: site_key(std::slice::from_ref(domain)),
        }
    }
}

/// What needs no look-up holds for a day, like any other answer at most.
pub(crate) const LITERAL_TTL: Duration = Duration::from_secs(86_400);

/// A mail exchanger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    /// Lower is tried first.
    pub preference: u16,
    /// The name in the MX record: the one that a certificate must bear.
    pub name: Domain,
    /// Never empty.
    pub addresses: Vec<IpAddr>,
}

/// An exchanger that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name as received.
    pub host: Box<str>,
    /// Why.
    pub why: Skip,
}

/// Why an exchanger was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// An MX record must name a host (RFC 5321 §5.1).
    #[error("is an address, not a host name")]
    Literal,
    /// Not a name that a host can have.
    #[error("is no host name")]
    NoHostName,
    /// NXDOMAIN, or neither A nor AAAA.
    #[error("has no address")]
    NoAddress,
    /// This relay, or an exchanger no better than it: the mail would loop (§5.1).
    #[error("is this relay itself or no better than it")]
    Loop,
    /// More hosts than one message could sensibly try.
    #[error("is one too many")]
    TooMany,
    /// Its addresses could not be looked up now.
    #[error("could not be looked up: {0}")]
    Failed(DnsError),
}

/// The addresses of a configured host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// These, IPv6 and IPv4 apart.
    Found {
        /// Never empty.
        addresses: Vec<IpAddr>,
        /// For how long this holds.
        ttl: Duration,
        /// The TTL has passed, but the name servers do not answer.
        stale: bool,
    },
    /// The host does not exist or has no address.
    None {
        /// For how long this holds.
        ttl: Duration,
    },
    /// Nobody knows now.
    TemporaryFailure {
        /// What was asked, such as `A of mx.example.com`.
        asked: Box<str>,
        /// Why it has no answer.
        error: DnsError,
        /// Asking again before makes no sense.
        ttl: Duration,
    },
}

impl Addresses {
    /// For how long this holds.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        match self {
            Addresses::Found { ttl, .. }
            | Addresses::None { ttl }
            | Addresses::TemporaryFailure { ttl, .. } => *ttl,
        }
    }
}

impl MailRoute {
    /// For how long this holds.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        match self {
            MailRoute::Hosts(Route { ttl, .. })
            | MailRoute::NullMx { ttl }
            | MailRoute::NoSuchDomain { ttl }
            | MailRoute::Unusable { ttl, .. }
            | MailRoute::LoopsBack { ttl }
            | MailRoute::TemporaryFailure { ttl, .. } => *ttl,
        }
    }

    /// What recipients at `domain` are told; `None` if there are hosts.
    #[must_use]
    pub fn reply(&self, domain: &Domain) -> Option<Reply> {
        let (code, enhanced, text) = match self {
            MailRoute::Hosts(_) => return None,
            // RFC 7505 §4.2: 556 and 5.1.10.
            MailRoute::NullMx { .. } => {
                (556, EnhancedCode(5, 1, 10), format!("{domain} says that it takes no mail (null MX)"))
            }
            MailRoute::NoSuchDomain { .. } => {
                (550, EnhancedCode(5, 1, 2), format!("the domain {domain} does not exist"))
            }
            MailRoute::Unusable { skipped, .. } => {
                let text = match skipped.as_slice() {
                    [] => format!("{domain} has neither a mail exchanger nor an address"),
                    [first, ..] => {
                        format!("no mail exchanger of {domain} can be used: {} {}", first.host, first.why)
                    }
                };
                (550, EnhancedCode(5, 4, 4), text)
            }
            MailRoute::LoopsBack { .. } => {
                (554, EnhancedCode(5, 4, 6), format!("mail for {domain} would loop back to this relay"))
            }
            MailRoute::TemporaryFailure { asked, error, .. } => {
                (451, EnhancedCode(4, 4, 3), format!("{asked} cannot be looked up: {error}"))
            }
        };
        Some(Reply::ours(code, enhanced, &text))
    }

    /// Says in lines of text where mail for `domain` goes, or why not: for `postrider explain`.
    #[must_use]
    pub fn explain(&self, domain: &Domain) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match self {
            MailRoute::Hosts(route) => explain_route(&mut text, domain, route),
            other => {
                let reply = other.reply(domain);
                write!(text, "{}", reply.as_ref().map_or("", Reply::text))
            }
        };
        let _ = write!(text, "; this holds for {} s", self.ttl().as_secs());
        text
    }
}

fn explain_route(text: &mut String, domain: &Domain, route: &Route) -> std::fmt::Result {
    match (domain.literal(), route.implicit) {
        (Some(_), _) => write!(text, "{domain} is an address"),
        (None, true) => write!(text, "{domain} has no MX record, so its own addresses count"),
        (None, false) => write!(text, "mail for {domain} goes to the site {}", route.site_key),
    }?;
    for host in &route.hosts {
        write!(text, "\n  {} (preference {}):", host.name, host.preference)?;
        for address in &host.addresses {
            write!(text, " {address}")?;
        }
    }
    for skipped in &route.skipped {
        write!(text, "\n  not {}: it {}", skipped.host, skipped.why)?;
    }
    if route.stale {
        write!(text, "\nthe name servers do not answer; this is what they last said")?;
    }
    Ok(())
}

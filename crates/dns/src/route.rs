//! From records to a route: RFC 5321 §5.1 as two pure steps with the address look-ups between them.

use crate::answer::{Addresses, LITERAL_TTL, MailRoute, MxHost, Route, Skip, Skipped};
use crate::error::Asked;
use crate::records::{Mx, RecordKind, Records, Reply};
use crate::site::site_key;
use postrider_model::Domain;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Exchangers whose addresses are looked up. The largest providers list five to ten.
pub(crate) const MX_HOSTS_MAX: usize = 12;
/// Records of an answer that are looked at; the rest of a larger one is noise or an attack.
const MX_RECORDS_MAX: usize = 100;
/// Addresses of one host and family that are kept.
const ADDRESSES_PER_FAMILY_MAX: usize = 8;

/// What to do after the MX records are known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing else: this is the route.
    Done(MailRoute),
    /// Look up the addresses of these hosts, then [`conclude`].
    LookUp(Candidates),
}

/// Hosts whose addresses are still unknown, in the order in which they will be tried.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) hosts: Vec<(u16, Domain)>,
    skipped: Vec<Skipped>,
    implicit: bool,
    stale: bool,
    ttl: Duration,
    site_key: Box<str>,
}

/// Reads the MX records of `domain`. `own_names` are the names under which this relay is an exchanger.
pub(crate) fn plan(domain: &Domain, mx: Reply, own_names: &[Domain], seed: u64) -> Plan {
    let Reply { records, ttl, stale } = mx;
    let records = match records {
        Records::Mx(records) if records.is_empty() => Vec::new(),
        // RFC 7505 §3: one record, whose host is the root.
        Records::Mx(records) if records.len() == 1 && records[0].host.is_empty() => {
            return Plan::Done(MailRoute::NullMx { ttl });
        }
        Records::Mx(records) => records,
        Records::NoData => Vec::new(),
        Records::NoSuchName => return Plan::Done(MailRoute::NoSuchDomain { ttl }),
        Records::Failed(error) => {
            let asked = Asked(RecordKind::Mx, domain.as_str()).to_string().into();
            return Plan::Done(MailRoute::TemporaryFailure { asked, error, ttl });
        }
        // The kind of record is part of the question.
        Records::Addresses(_) => Vec::new(),
    };
    if records.is_empty() {
        if own_names.contains(domain) {
            return Plan::Done(MailRoute::LoopsBack { ttl });
        }
        return Plan::LookUp(Candidates {
            hosts: vec![(0, domain.clone())],
            skipped: Vec::new(),
            implicit: true,
            stale,
            ttl,
            site_key: site_key(std::slice::from_ref(domain)),
        });
    }
    plan_hosts(records, own_names, seed, ttl, stale)
}

fn plan_hosts(mut records: Vec<Mx>, own_names: &[Domain], seed: u64, ttl: Duration, stale: bool) -> Plan {
    let mut skipped = Vec::new();
    records.sort_by(|a, b| (a.preference, &a.host).cmp(&(b.preference, &b.host)));
    records.truncate(MX_RECORDS_MAX);
    let mut hosts: Vec<(u16, Domain)> = Vec::new();
    for mx in records {
        match host_name(&mx.host) {
            // A host that is listed twice counts where it is best.
            Ok(name) if hosts.iter().any(|(_, known)| *known == name) => {}
            Ok(name) => hosts.push((mx.preference, name)),
            Err(why) => skipped.push(Skipped { host: mx.host, why }),
        }
    }
    let names: Vec<Domain> = hosts.iter().map(|(_, name)| name.clone()).collect();
    let site_key = site_key(&names);
    let skip = |hosts: Vec<(u16, Domain)>, why: Skip, skipped: &mut Vec<Skipped>| {
        skipped.extend(
            hosts.into_iter().map(|(_, name)| Skipped { host: name.as_str().into(), why: why.clone() }),
        );
    };
    let own = hosts.iter().find(|(_, name)| own_names.contains(name)).map(|(preference, _)| *preference);
    if let Some(own) = own {
        let better = hosts.partition_point(|(preference, _)| *preference < own);
        skip(hosts.split_off(better), Skip::Loop, &mut skipped);
        if hosts.is_empty() {
            return Plan::Done(MailRoute::LoopsBack { ttl });
        }
    }
    if hosts.is_empty() {
        return Plan::Done(MailRoute::Unusable { skipped, ttl });
    }
    shuffle_equals(&mut hosts, seed);
    if hosts.len() > MX_HOSTS_MAX {
        skip(hosts.split_off(MX_HOSTS_MAX), Skip::TooMany, &mut skipped);
    }
    Plan::LookUp(Candidates { hosts, skipped, implicit: false, stale, ttl, site_key })
}

fn host_name(text: &str) -> Result<Domain, Skip> {
    if text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok() || text.starts_with('[') {
        return Err(Skip::Literal);
    }
    text.parse().map_err(|_| Skip::NoHostName)
}

/// Shuffles each run of equal preference (Fisher and Yates, on SplitMix64).
fn shuffle_equals(hosts: &mut [(u16, Domain)], seed: u64) {
    let mut state = seed;
    let mut random_below = |bound: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        // Invariant: `bound` is at most MX_RECORDS_MAX, so the remainder is small.
        usize::try_from(x % u64::try_from(bound).unwrap_or(1)).unwrap_or(0)
    };
    for equals in hosts.chunk_by_mut(|(a, _), (b, _)| a == b) {
        for last in (1..equals.len()).rev() {
            equals.swap(last, random_below(last + 1));
        }
    }
}

/// Joins the candidates with their addresses, which come in the same order.
pub(crate) fn conclude(candidates: Candidates, addresses: Vec<Addresses>) -> MailRoute {
    let Candidates { hosts, mut skipped, implicit, mut stale, mut ttl, site_key } = candidates;
    let mut usable = Vec::with_capacity(hosts.len());
    let mut failure = None;
    for ((preference, name), found) in hosts.into_iter().zip(addresses) {
        ttl = ttl.min(found.ttl());
        match found {
            Addresses::Found { addresses, stale: old, .. } => {
                stale |= old;
                usable.push(MxHost { preference, name, addresses });
            }
            Addresses::None { .. } => {
                skipped.push(Skipped { host: name.as_str().into(), why: Skip::NoAddress });
            }
            Addresses::TemporaryFailure { asked, error, ttl } => {
                skipped.push(Skipped { host: name.as_str().into(), why: Skip::Failed(error.clone()) });
                failure.get_or_insert(MailRoute::TemporaryFailure { asked, error, ttl });
            }
        }
    }
    if !usable.is_empty() {
        return MailRoute::Hosts(Route { hosts: usable, skipped, implicit, stale, ttl, site_key });
    }
    match failure {
        // As long as one host may come back, it is too early to give up.
        Some(failure) => failure,
        None if implicit => MailRoute::Unusable { skipped: Vec::new(), ttl },
        None => MailRoute::Unusable { skipped, ttl },
    }
}

/// The addresses of a host from its A and AAAA records. One family that failed does not spoil the other; only
/// together do they say that there is none.
pub(crate) fn addresses(host: &Domain, v4: Reply, v6: Reply) -> Addresses {
    let ttl = v4.ttl.min(v6.ttl);
    let stale = v4.stale || v6.stale;
    let mut addresses = Vec::new();
    let mut failure = None;
    for (kind, reply) in [(RecordKind::Aaaa, v6), (RecordKind::A, v4)] {
        match reply.records {
            Records::Addresses(found) => addresses.extend(found.into_iter().take(ADDRESSES_PER_FAMILY_MAX)),
            Records::Failed(error) => failure = Some((kind, error)),
            Records::NoData | Records::NoSuchName | Records::Mx(_) => {}
        }
    }
    match failure {
        _ if !addresses.is_empty() => Addresses::Found { addresses, ttl, stale },
        Some((kind, error)) => {
            let asked = Asked(kind, host.as_str()).to_string().into();
            Addresses::TemporaryFailure { asked, error, ttl }
        }
        None => Addresses::None { ttl },
    }
}

/// What an address literal answers without a look-up.
pub(crate) fn literal_addresses(address: IpAddr) -> Addresses {
    Addresses::Found { addresses: vec![address], ttl: LITERAL_TTL, stale: false }
}

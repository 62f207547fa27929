//! A resolver that answers from a script: no threads, no clock, no network.

use crate::answer::{Addresses, Answer, MailRoute, Query, Route};
use crate::error::DnsError;
use crate::records::{Mx, Question, RecordKind, Records, Reply};
use crate::resolver::Lookup;
use crate::route::{Plan, addresses, conclude, literal_addresses, plan};
use postrider_model::Domain;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Answers of a [`Scripted`] resolver hold for so long.
const SCRIPTED_TTL: Duration = Duration::from_secs(300);

/// Answers at once, by the same rules as the real resolver, from records given beforehand. A name without any
/// record does not exist; one with a record of another kind exists and has no data.
///
/// The methods that write the script panic on a name or address that is none: scripts are written by hand.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    records: HashMap<Question, Records>,
    own_names: Vec<Domain>,
}

impl Scripted {
    /// Without a record.
    #[must_use]
    pub fn new() -> Self {
        Scripted::default()
    }

    /// A name under which the relay is itself an exchanger.
    #[must_use]
    pub fn own_name(mut self, name: &str) -> Self {
        self.own_names.push(domain(name));
        self
    }

    /// Exchangers of a domain: preference and host. A host of `.` alone is a null MX.
    #[must_use]
    pub fn mx(self, name: &str, hosts: &[(u16, &str)]) -> Self {
        let mx = |(preference, host): &(u16, &str)| Mx {
            preference: *preference,
            host: host.trim_end_matches('.').to_ascii_lowercase().into(),
        };
        self.with(name, RecordKind::Mx, Records::Mx(hosts.iter().map(mx).collect()))
    }

    /// IPv4 addresses of a host.
    #[must_use]
    pub fn a(self, name: &str, addresses: &[&str]) -> Self {
        self.with(name, RecordKind::A, Records::Addresses(parsed(addresses)))
    }

    /// IPv6 addresses of a host.
    #[must_use]
    pub fn aaaa(self, name: &str, addresses: &[&str]) -> Self {
        self.with(name, RecordKind::Aaaa, Records::Addresses(parsed(addresses)))
    }

    /// One kind of record cannot be looked up now.
    #[must_use]
    pub fn fails(self, name: &str, kind: RecordKind, error: DnsError) -> Self {
        self.with(name, kind, Records::Failed(error))
    }

    /// Takes all records of a name away: it no longer exists.
    pub fn forget(&mut self, name: &Domain) {
        self.records.retain(|question, _| question.name != *name);
    }

    /// The answer.
    #[must_use]
    pub fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Addresses { host } => Answer::Addresses(self.addresses(host)),
            Query::MailRoute { domain, seed } => Answer::MailRoute(match domain.literal() {
                Some(address) => MailRoute::Hosts(Route::to_literal(domain, address)),
                None => match plan(domain, self.ask(domain, RecordKind::Mx), &self.own_names, *seed) {
                    Plan::Done(route) => route,
                    Plan::LookUp(candidates) => {
                        let found = candidates.hosts.iter().map(|(_, host)| self.addresses(host)).collect();
                        conclude(candidates, found)
                    }
                },
            }),
        }
    }

    fn addresses(&self, host: &Domain) -> Addresses {
        match host.literal() {
            Some(address) => literal_addresses(address),
            None => addresses(host, self.ask(host, RecordKind::A), self.ask(host, RecordKind::Aaaa)),
        }
    }

    fn ask(&self, name: &Domain, kind: RecordKind) -> Reply {
        let question = Question { name: name.clone(), kind };
        let records = self.records.get(&question).cloned().unwrap_or_else(|| {
            let exists = self.records.keys().any(|question| question.name == *name);
            if exists { Records::NoData } else { Records::NoSuchName }
        });
        Reply::new(records, SCRIPTED_TTL)
    }

    fn with(mut self, name: &str, kind: RecordKind, records: Records) -> Self {
        self.records.insert(Question { name: domain(name), kind }, records);
        self
    }
}

impl Lookup for Scripted {
    fn lookup(&self, query: Query, reply: Box<dyn FnOnce(Answer) + Send>) {
        reply(self.answer(&query));
    }
}

#[allow(clippy::expect_used)]
fn domain(name: &str) -> Domain {
    name.parse().expect("a script names domains")
}

#[allow(clippy::expect_used)]
fn parsed(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("a script names addresses")).collect()
}

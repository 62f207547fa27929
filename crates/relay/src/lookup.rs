//! From the engine's questions to the resolver's answers.

use crate::inbox::Inbox;
use crate::letter::Letter;
use postrider_dns::{Addresses, Answer, Lookup, MailRoute, Query};
use postrider_engine::{HostQuestion, PlanHost, Question, Resolution};
use postrider_model::snapshot::Host;
use postrider_model::{Domain, EnhancedCode, Reply};
use postrider_queue::DomainId;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Asks; the answer comes as a letter.
pub(crate) fn ask(
    resolver: &impl Lookup,
    inbox: &Inbox<Letter>,
    domain: DomainId,
    question: Question,
    mx_port: u16,
    seed: u64,
) {
    let inbox = inbox.clone();
    let answer = move |resolution| inbox.send(Letter::Resolved { domain, resolution });
    match question {
        Question::MailExchangers(name) => {
            let query = Query::MailRoute { domain: name.clone(), seed };
            resolver.lookup(
                query,
                Box::new(move |found| {
                    answer(match found {
                        Answer::MailRoute(route) => exchangers(&name, route, mx_port),
                        Answer::Addresses(_) => temporary("the resolver answered another question"),
                    });
                }),
            );
        }
        Question::Hosts(hosts) => ask_hosts(resolver, hosts, answer),
    }
}

fn exchangers(domain: &Domain, route: MailRoute, port: u16) -> Resolution {
    let reply = route.reply(domain);
    match (route, reply) {
        (MailRoute::Hosts(route), _) => Resolution::Hosts {
            site: route.site_key().into(),
            ttl: route.ttl,
            hosts: route
                .hosts
                .iter()
                .map(|host| PlanHost {
                    name: host.name.as_str().into(),
                    addresses: host.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
                    hop: None,
                })
                .collect(),
        },
        (MailRoute::TemporaryFailure { .. }, Some(reply)) => Resolution::Temporary(reply),
        (_, Some(reply)) => Resolution::Nowhere(reply),
        (_, None) => temporary("the resolver gave no reason"),
    }
}

fn temporary(text: &str) -> Resolution {
    Resolution::Temporary(Reply::ours(451, EnhancedCode(4, 4, 3), text))
}

/// The answers so far, and how many are still to come.
struct Gathered {
    hosts: Vec<Option<PlanHost>>,
    missing: usize,
    ttl: Duration,
    failure: Option<String>,
}

fn ask_hosts(
    resolver: &impl Lookup,
    hosts: Vec<HostQuestion>,
    answer: impl Fn(Resolution) + Clone + Send + 'static,
) {
    let missing = hosts.iter().filter(|question| matches!(question.host, Host::Name(..))).count();
    let at_hand = hosts.iter().map(plan_host).collect();
    let gathered = Gathered { hosts: at_hand, missing, ttl: Duration::from_secs(3_600), failure: None };
    let gathered = Arc::new(Mutex::new(gathered));
    for (at, question) in hosts.into_iter().enumerate() {
        let Host::Name(name, port) = question.host else { continue };
        let (gathered, answer) = (gathered.clone(), answer.clone());
        let query = Query::Addresses { host: name.clone() };
        let taken = move |found| {
            let mut state = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            state.missing -= 1;
            match found {
                Answer::Addresses(Addresses::Found { addresses, ttl, .. }) => {
                    state.ttl = state.ttl.min(ttl);
                    state.hosts[at] = Some(PlanHost {
                        name: name.as_str().into(),
                        addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
                        hop: Some(question.hop),
                    });
                }
                Answer::Addresses(Addresses::TemporaryFailure { asked, error, .. }) => {
                    state.failure = Some(format!("{asked} cannot be looked up: {error}"));
                }
                Answer::Addresses(Addresses::None { .. }) | Answer::MailRoute(_) => {
                    // A smarthost without an address is the operator's mistake: mail waits for its repair.
                    state.failure = Some(format!("the configured host {name} has no address"));
                }
            }
            if state.missing == 0 {
                let hosts: Vec<PlanHost> = state.hosts.drain(..).flatten().collect();
                answer(match (hosts.is_empty(), &state.failure) {
                    (true, Some(failure)) => temporary(failure),
                    _ => Resolution::Hosts { site: "hosts".into(), hosts, ttl: state.ttl },
                });
            }
        };
        resolver.lookup(query, Box::new(taken));
    }
}

fn plan_host(question: &HostQuestion) -> Option<PlanHost> {
    let hop = Some(question.hop);
    match &question.host {
        Host::Address(address) => {
            Some(PlanHost { name: format!("[{}]", address.ip()).into(), addresses: vec![*address], hop })
        }
        Host::Socket(path) => {
            Some(PlanHost { name: path.to_string_lossy().into(), addresses: Vec::new(), hop })
        }
        Host::Name(..) => None,
    }
}

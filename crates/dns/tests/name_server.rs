//! The real resolver against a name server of the test's own, on loopback and a free port.
#![allow(missing_docs, clippy::unwrap_used)]

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use postrider_dns::{
    Addresses, Answer, CacheLimits, DnsError, Lookup, MailRoute, Query, Resolver, ResolverOptions, Route,
};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Longer than any look-up may take, the resolver's own time-outs included.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
enum Says {
    Records(Vec<RData>),
    NoData,
    NoSuchName,
    Code(ResponseCode),
    Referral,
    Nothing,
}

/// A name server that answers from a table; what is not in it does not exist.
struct NameServer {
    address: SocketAddr,
    table: Arc<Mutex<HashMap<(String, RecordType), Says>>>,
    asked: Arc<AtomicUsize>,
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).unwrap()
}

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = NameServer {
            address: socket.local_addr().unwrap(),
            table: Arc::default(),
            asked: Arc::default(),
        };
        let (table, asked) = (Arc::clone(&server.table), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            let mut datagram = [0; 4096];
            // Ends with the process of the test.
            while let Ok((length, client)) = socket.recv_from(&mut datagram) {
                asked.fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&datagram[..length]).unwrap();
                if let Some(response) = respond(&query, &table.lock().unwrap()) {
                    socket.send_to(&response.to_vec().unwrap(), client).unwrap();
                }
            }
        });
        server
    }

    fn says(&self, host: &str, kind: RecordType, says: Says) -> &Self {
        self.table.lock().unwrap().insert((host.into(), kind), says);
        self
    }

    fn mx(&self, domain: &str, hosts: &[(u16, &str)]) -> &Self {
        let mx = |(preference, host): &(u16, &str)| {
            let host = if *host == "." { Name::root() } else { name(host) };
            RData::MX(MX::new(*preference, host))
        };
        self.says(domain, RecordType::MX, Says::Records(hosts.iter().map(mx).collect()))
    }

    /// An IPv4 address and no IPv6 one.
    fn a(&self, host: &str, last: u8) -> &Self {
        let address = RData::A(A::new(192, 0, 2, last));
        self.says(host, RecordType::A, Says::Records(vec![address]))
            .says(host, RecordType::AAAA, Says::NoData)
            .says_if_absent(host, RecordType::MX, Says::NoData)
    }

    fn says_if_absent(&self, host: &str, kind: RecordType, says: Says) -> &Self {
        self.table.lock().unwrap().entry((host.into(), kind)).or_insert(says);
        self
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn resolver(&self) -> Resolver {
        resolver(self.address)
    }
}

fn resolver(server: SocketAddr) -> Resolver {
    let answer_timeout = Duration::from_millis(500);
    Resolver::start(ResolverOptions { servers: vec![server], answer_timeout, ..Default::default() }).unwrap()
}

fn respond(query: &Message, table: &HashMap<(String, RecordType), Says>) -> Option<Message> {
    let question = query.queries[0].clone();
    let mut response = Message::response(query.metadata.id, OpCode::Query);
    response.metadata.message_type = MessageType::Response;
    response.metadata.recursion_available = true;
    response.add_query(question.clone());
    let host = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let soa = || {
        let soa = SOA::new(name("ns.example"), name("admin.example"), 1, 3600, 600, 86400, 120);
        Record::from_rdata(name("example"), 300, RData::SOA(soa))
    };
    let ttl = 300;
    let alias = table.get(&(host.clone(), RecordType::CNAME));
    match table.get(&(host, question.query_type())).or(alias).unwrap_or(&Says::NoSuchName) {
        Says::Records(records) => {
            for data in records {
                response.add_answer(Record::from_rdata(question.name().clone(), ttl, data.clone()));
            }
        }
        Says::NoData => {
            response.add_authority(soa());
        }
        Says::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(soa());
        }
        Says::Code(code) => response.metadata.response_code = *code,
        Says::Referral => {
            let elsewhere = RData::NS(NS(name("a.gtld-servers.example")));
            response.add_authority(Record::from_rdata(name("example"), ttl, elsewhere));
        }
        Says::Nothing => return None,
    }
    Some(response)
}

/// Asks and waits for the answer.
fn ask(resolver: &Resolver, query: Query) -> Answer {
    let (sender, receiver) = mpsc::channel();
    resolver.lookup(query, Box::new(move |answer| sender.send(answer).unwrap()));
    receiver.recv_timeout(PATIENCE).unwrap()
}

fn route(resolver: &Resolver, domain: &str) -> MailRoute {
    match ask(resolver, Query::MailRoute { domain: domain.parse().unwrap(), seed: 1 }) {
        Answer::MailRoute(route) => route,
        Answer::Addresses(_) => panic!("an answer to another question"),
    }
}

fn hosts(resolver: &Resolver, domain: &str) -> Route {
    match route(resolver, domain) {
        MailRoute::Hosts(route) => route,
        other => panic!("{other:?}"),
    }
}

#[test]
fn exchangers_are_found_and_remembered() {
    let server = NameServer::start();
    server.mx("example.com", &[(20, "mx2.example.com"), (10, "mx1.example.com")]);
    server.a("mx1.example.com", 1).a("mx2.example.com", 2);
    let resolver = server.resolver();
    let found = hosts(&resolver, "example.com");
    let names: Vec<_> = found.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["mx1.example.com", "mx2.example.com"]);
    assert_eq!(found.hosts[0].addresses, [Ipv4Addr::new(192, 0, 2, 1)]);
    // The shortest TTL is that of "no AAAA", 120 s by the SOA.
    assert_eq!(found.ttl.as_secs(), 120);
    let asked = server.asked();
    assert_eq!(asked, 5);
    assert_eq!(hosts(&resolver, "example.com").hosts, found.hosts);
    assert_eq!(server.asked(), asked);
}

#[test]
fn what_the_name_server_says_decides_between_bounce_retry_and_implicit_mx() {
    let server = NameServer::start();
    server
        .mx("null.example", &[(0, ".")])
        .a("implicit.example", 5)
        .says("empty.example", RecordType::MX, Says::NoData)
        .says("empty.example", RecordType::A, Says::NoData)
        .says("empty.example", RecordType::AAAA, Says::NoData)
        .a("broken.example", 6)
        .says("broken.example", RecordType::MX, Says::Code(ResponseCode::ServFail))
        .a("refused.example", 6)
        .says("refused.example", RecordType::MX, Says::Code(ResponseCode::Refused))
        .a("lame.example", 6)
        .says("lame.example", RecordType::MX, Says::Referral);
    let resolver = server.resolver();
    assert!(matches!(route(&resolver, "null.example"), MailRoute::NullMx { .. }));
    assert!(matches!(route(&resolver, "nowhere.example"), MailRoute::NoSuchDomain { .. }));
    assert!(matches!(route(&resolver, "empty.example"), MailRoute::Unusable { .. }));
    assert!(hosts(&resolver, "implicit.example").implicit);
    let error = |domain| match route(&resolver, domain) {
        MailRoute::TemporaryFailure { error, .. } => error,
        other => panic!("{domain}: {other:?}"),
    };
    assert_eq!(error("broken.example"), DnsError::ServerFailure("SERVFAIL".into()));
    assert_eq!(error("refused.example"), DnsError::ServerFailure("REFUSED".into()));
    assert_eq!(error("lame.example"), DnsError::Referral);
}

#[test]
fn aliases_are_followed_at_the_domain_and_at_the_exchanger() {
    let server = NameServer::start();
    let alias = |host, target| {
        server.says(host, RecordType::CNAME, Says::Records(vec![RData::CNAME(CNAME(name(target)))]));
    };
    alias("alias.example", "example.com");
    alias("mx.example.com", "real.example.com");
    alias("bare-alias.example", "implicit.example");
    alias("dangling.example", "nowhere.example");
    alias("loop.example", "loop.example");
    server.mx("example.com", &[(10, "mx.example.com")]).a("real.example.com", 1).a("implicit.example", 2);
    let resolver = server.resolver();
    let found = hosts(&resolver, "alias.example");
    assert_eq!(found.hosts[0].name.as_str(), "mx.example.com");
    assert_eq!(found.hosts[0].addresses, [Ipv4Addr::new(192, 0, 2, 1)]);
    let found = hosts(&resolver, "bare-alias.example");
    assert!(found.implicit);
    assert_eq!(found.hosts[0].addresses, [Ipv4Addr::new(192, 0, 2, 2)]);
    assert!(matches!(route(&resolver, "dangling.example"), MailRoute::NoSuchDomain { .. }));
    assert!(!matches!(route(&resolver, "loop.example"), MailRoute::Hosts(_)));
}

#[test]
fn a_name_server_that_is_silent_delays_only_who_asks_for_it() {
    let server = NameServer::start();
    server.says("silent.example", RecordType::MX, Says::Nothing);
    server.mx("example.com", &[(10, "mx.example.com")]).a("mx.example.com", 1);
    let resolver = server.resolver();
    let (sender, receiver) = mpsc::channel();
    let silent = Query::MailRoute { domain: "silent.example".parse().unwrap(), seed: 1 };
    resolver.lookup(silent, Box::new(move |answer| sender.send(answer).unwrap()));
    hosts(&resolver, "example.com");
    assert!(receiver.try_recv().is_err(), "the other answer did not wait");
    let answer = receiver.recv_timeout(PATIENCE).unwrap();
    let Answer::MailRoute(MailRoute::TemporaryFailure { error, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(error, DnsError::Timeout);
}

#[test]
fn equal_questions_are_asked_once() {
    let server = NameServer::start();
    server.mx("example.com", &[(10, "mx.example.com")]).a("mx.example.com", 1);
    let resolver = server.resolver();
    let (sender, receiver) = mpsc::channel();
    for seed in 0..500 {
        let sender = sender.clone();
        let query = Query::MailRoute { domain: "example.com".parse().unwrap(), seed };
        resolver.lookup(query, Box::new(move |answer| sender.send(answer).unwrap()));
    }
    for _ in 0..500 {
        let answer = receiver.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(answer, Answer::MailRoute(MailRoute::Hosts(_))), "{answer:?}");
    }
    assert_eq!(server.asked(), 3);
}

#[test]
fn a_resolver_that_stops_answers_everyone() {
    let server = NameServer::start();
    server.says("silent.example", RecordType::MX, Says::Nothing);
    let resolver = server.resolver();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..100 {
        let sender = sender.clone();
        let query = Query::MailRoute { domain: "silent.example".parse().unwrap(), seed: 1 };
        resolver.lookup(query, Box::new(move |answer| sender.send(answer).unwrap()));
    }
    drop(resolver);
    for _ in 0..100 {
        let answer = receiver.try_recv().unwrap();
        let Answer::MailRoute(MailRoute::TemporaryFailure { error, .. }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(error, DnsError::Stopped);
    }
}

#[test]
fn a_configured_host_is_looked_up_by_address_only() {
    let server = NameServer::start();
    server.a("smarthost.example", 9);
    let resolver = server.resolver();
    let addresses = |host: &str| match ask(&resolver, Query::Addresses { host: host.parse().unwrap() }) {
        Answer::Addresses(addresses) => addresses,
        Answer::MailRoute(_) => panic!("an answer to another question"),
    };
    let Addresses::Found { addresses: found, .. } = addresses("smarthost.example") else {
        panic!("not found")
    };
    assert_eq!(found, [Ipv4Addr::new(192, 0, 2, 9)]);
    assert!(matches!(addresses("nowhere.example"), Addresses::None { .. }));
    assert!(matches!(addresses("localhost"), Addresses::Found { .. }));
    assert!(matches!(addresses("[192.0.2.77]"), Addresses::Found { .. }));
}

#[test]
fn a_port_where_nobody_answers_is_told() {
    let deserted = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let resolver = resolver(deserted);
    let MailRoute::TemporaryFailure { error, .. } = route(&resolver, "example.com") else {
        panic!("no failure")
    };
    assert!(matches!(error, DnsError::Unreachable(_) | DnsError::Timeout), "{error}");
}

#[test]
fn while_the_name_servers_fail_or_are_silent_the_last_answer_is_served() {
    let server = NameServer::start();
    server.mx("example.com", &[(10, "mx.example.com")]).a("mx.example.com", 1);
    let cache = CacheLimits {
        ttl_min: Duration::ZERO,
        ttl_max: Duration::ZERO,
        negative_ttl_max: Duration::ZERO,
        stale_ttl: Duration::ZERO,
        stale_after: Duration::from_millis(50),
        ..CacheLimits::default()
    };
    let options = ResolverOptions {
        servers: vec![server.address],
        answer_timeout: Duration::from_millis(500),
        cache,
        ..Default::default()
    };
    let resolver = Resolver::start(options).unwrap();
    let fresh = hosts(&resolver, "example.com");
    assert!(!fresh.stale);
    let outages = [Says::Code(ResponseCode::ServFail), Says::Nothing];
    for outage in outages {
        server.says("example.com", RecordType::MX, outage);
        let stale = hosts(&resolver, "example.com");
        assert!(stale.stale);
        assert_eq!(stale.hosts, fresh.hosts);
    }
    // What never had an answer has no stale one.
    server.says("other.example", RecordType::MX, Says::Code(ResponseCode::ServFail));
    assert!(matches!(route(&resolver, "other.example"), MailRoute::TemporaryFailure { .. }));
    // And a domain that is deleted is gone at once, not served stale.
    server.says("example.com", RecordType::MX, Says::NoSuchName);
    let deleted = std::iter::repeat_with(|| route(&resolver, "example.com"))
        .take(100)
        .find(|route| matches!(route, MailRoute::NoSuchDomain { .. }));
    assert!(deleted.is_some());
}

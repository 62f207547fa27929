//! The wire: hickory's resolver, without its cache and its words.

use crate::error::DnsError;
use crate::records::{Mx, Question, RecordKind, Records, Reply};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as NameServerError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use std::net::SocketAddr;
use std::time::Duration;

/// Tries after the first.
const RETRIES: usize = 1;

/// A resolver that asks `servers`, or those of the system when there are none.
pub(crate) fn connect(
    servers: &[SocketAddr],
    answer_timeout: Duration,
    questions_max: usize,
) -> Result<TokioResolver, NetError> {
    let config = if servers.is_empty() {
        let (system, _) = hickory_resolver::system_conf::read_system_conf()?;
        ResolverConfig::from_name_servers(system.name_servers().to_vec())
    } else {
        ResolverConfig::from_name_servers(servers.iter().copied().map(name_server).collect())
    };
    let mut options = ResolverOpts::default();
    options.timeout = answer_timeout;
    options.attempts = RETRIES;
    options.edns0 = true;
    options.max_active_requests = questions_max;
    // Ours serves stale answers and tells failures apart; two caches would only disagree.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.to_vec())
}

/// Asks one question. CNAMEs are followed, eight at most.
pub(crate) async fn ask(resolver: &TokioResolver, question: &Question) -> Reply {
    let Ok(mut name) = Name::from_ascii(question.name.as_str()) else {
        // A `Domain` that DNS cannot even ask for, such as one with 250 labels, cannot exist.
        return Reply::new(Records::NoSuchName, Duration::from_secs(3_600));
    };
    // No search list: a recipient's domain is always whole.
    name.set_fqdn(true);
    match resolver.lookup(name, record_type(question.kind)).await {
        Ok(lookup) => found(question.kind, &lookup),
        Err(error) => missing(error),
    }
}

pub(crate) fn record_type(kind: RecordKind) -> RecordType {
    match kind {
        RecordKind::Mx => RecordType::MX,
        RecordKind::A => RecordType::A,
        RecordKind::Aaaa => RecordType::AAAA,
    }
}

pub(crate) fn found(kind: RecordKind, lookup: &Lookup) -> Reply {
    let mut exchangers = Vec::new();
    let mut addresses = Vec::new();
    let mut ttl_s = u32::MAX;
    for record in lookup.answers() {
        // Of the CNAMEs on the way, too.
        ttl_s = ttl_s.min(record.ttl);
        match &record.data {
            RData::MX(mx) => {
                exchangers.push(Mx { preference: mx.preference, host: host_text(&mx.exchange) });
            }
            RData::A(a) => addresses.push(a.0.into()),
            RData::AAAA(aaaa) => addresses.push(aaaa.0.into()),
            _ => {}
        }
    }
    let records = match kind {
        RecordKind::Mx if !exchangers.is_empty() => Records::Mx(exchangers),
        RecordKind::A | RecordKind::Aaaa if !addresses.is_empty() => Records::Addresses(addresses),
        _ => {
            let text = format!("{} records were announced and none came", kind.name());
            return Reply::failed(DnsError::Malformed(text.into()));
        }
    };
    Reply::new(records, Duration::from_secs(u64::from(ttl_s)))
}

/// Lower case, without the final dot.
fn host_text(name: &Name) -> Box<str> {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    text.trim_end_matches('.').into()
}

/// Tells "there is none" from "nobody knows": only the first may lead to an implicit MX or a bounce.
fn missing(error: NetError) -> Reply {
    match error {
        NetError::Dns(NameServerError::NoRecordsFound(none)) => none_found(&none),
        NetError::Dns(NameServerError::ResponseCode(code)) => {
            Reply::failed(DnsError::ServerFailure(code_name(code).into()))
        }
        NetError::Timeout => Reply::failed(DnsError::Timeout),
        NetError::Io(error) => Reply::failed(DnsError::Unreachable(error.to_string().into())),
        NetError::NoConnections => Reply::failed(DnsError::Unreachable("none is configured".into())),
        NetError::Busy => Reply::failed(DnsError::Overloaded),
        other => Reply::failed(DnsError::Malformed(other.to_string().into())),
    }
}

fn none_found(none: &NoRecords) -> Reply {
    let ttl = Duration::from_secs(u64::from(none.negative_ttl.unwrap_or(0)));
    match none.response_code {
        ResponseCode::NXDomain => Reply::new(Records::NoSuchName, ttl),
        // RFC 2308 §2.2: an empty answer with NS records and no SOA is a referral, not "no data".
        ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => Reply::failed(DnsError::Referral),
        ResponseCode::NoError => Reply::new(Records::NoData, ttl),
        code => Reply::failed(DnsError::ServerFailure(code_name(code).into())),
    }
}

/// As operators and `dig` write it.
fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::NotAuth => "NOTAUTH",
        other => other.to_str(),
    }
}

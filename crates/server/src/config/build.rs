//! From values to the checked form: what must fit together, fits, or is noted.

use super::problem::Problems;
use super::read::{Section, Value};
use super::schema;
use super::value;
use super::{DATA_DIR_DEFAULT, HttpSettings, Settings};
use postrider_auth::Verifier;
use postrider_disk::Upkeep;
use postrider_model::snapshot::{
    Account, AddressPattern, CAPTURE_ROUTE, Cidr, Credentials, Delivery, DomainPattern, Host, Legacy,
    Listener, NextHop, Protocol, Route, Scheme, SessionLimits, Source, Target, TlsFiles, TlsLevel,
};
use postrider_model::{Domain, Snapshot};
use postrider_net::{CertificateError, CertificateStore, ClientTls};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the surroundings say where the file says nothing.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The machine's name.
    pub hostname: String,
    /// Where relative paths count from: the directory of the file.
    pub directory: PathBuf,
    /// `--data-dir`, which wins over the file.
    pub data_dir: Option<PathBuf>,
}

const SEGMENT_SIZE_BYTES: u32 = 64 << 20;
const MEMORY_MAX_BYTES: usize = 512 << 20;
/// Where HTTP is served unless told otherwise.
const HTTP_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8025);
const SANDBOX_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2525);

/// Builds the settings; those with errors noted must not be used.
pub(super) fn build(root: &Section, surroundings: &Surroundings, problems: &mut Problems) -> Settings {
    let hostname = root
        .parsed("hostname", problems, |text| {
            text.parse::<Domain>()
                .map_err(|error| format!("{error}; write a name such as \"relay.example.com\""))
        })
        .unwrap_or_else(|| machine_name(&surroundings.hostname));
    let data_dir = match (&surroundings.data_dir, root.text("data_dir")) {
        (Some(path), _) => path.clone(),
        (None, Some((path, _))) => surroundings.directory.join(path),
        (None, None) => surroundings.directory.join(DATA_DIR_DEFAULT),
    };
    let routes = routes(root, problems);
    let leaves = routes.iter().any(|route| route.to != Target::Sandbox);
    let listeners = listeners(root, &surroundings.directory, leaves, problems);
    let accounts = accounts(root, leaves, problems);
    Settings {
        snapshot: Snapshot {
            hostname,
            listeners,
            accounts,
            routes,
            delivery: delivery(root.table("delivery"), problems),
        },
        data_dir,
        shards: root.count("shards").unwrap_or(0),
        memory_max_bytes: root
            .number("memory")
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(MEMORY_MAX_BYTES),
        segment_size_bytes: root
            .table("spool")
            .and_then(|spool| spool.number("segment_size"))
            .and_then(|size| u32::try_from(size).ok())
            .unwrap_or(SEGMENT_SIZE_BYTES),
        upkeep: upkeep(root.table("spool")),
        authorities: authorities(root.table("delivery"), &surroundings.directory, problems),
        http: http(root, &surroundings.directory, problems),
    }
}

/// A newcomer's relay serves HTTP too; one with listeners of its own only where it is told.
fn http(root: &Section, directory: &Path, problems: &mut Problems) -> Option<HttpSettings> {
    let Some(section) = root.table("http") else {
        let newcomer = root.tables("listener").is_empty();
        return newcomer.then(|| HttpSettings {
            address: HTTP_ADDRESS,
            tls: None,
            trusted_proxies: Vec::new(),
        });
    };
    let address = section.parsed("address", problems, value::socket_address).unwrap_or(HTTP_ADDRESS);
    let tls = section.table("tls").and_then(|tls| tls_files(tls, directory, problems));
    if tls.is_none() && section.item("tls").is_none() && !address.ip().is_loopback() {
        let what = format!("API keys and mail pass in clear at {address}");
        let fix = "add tls = { certificate = \"cert.pem\", key = \"key.pem\" }, or listen on 127.0.0.1 behind a proxy";
        problems.warning(section.span_of("address"), what, fix);
    }
    Some(HttpSettings {
        address,
        tls,
        trusted_proxies: section.parsed_list("trusted_proxies", problems, network),
    })
}

fn upkeep(spool: Option<&Section>) -> Upkeep {
    let number = |key| spool.and_then(|spool| spool.number(key));
    let mut upkeep = Upkeep::default();
    if let Some(days) = number("event_days").and_then(|days| u32::try_from(days).ok()) {
        upkeep.event_days = days;
    }
    upkeep.free_min_bytes = number("free_space");
    upkeep
}

/// The machine's name if it is one that a receiver could look up, else `localhost`.
fn machine_name(name: &str) -> Domain {
    name.trim()
        .parse()
        .or_else(|_| "localhost".parse())
        // Invariant: `localhost` is a domain.
        .expect("localhost is a domain")
}

fn unique<'a>(sections: &'a [Section], key: &str, problems: &mut Problems) {
    let mut seen: BTreeMap<&'a str, ()> = BTreeMap::new();
    for section in sections {
        if let Some((text, span)) = section.text(key)
            && seen.insert(text, ()).is_some()
        {
            let what = format!("a second {} with {key} {text:?}", section.table.title);
            problems.error(span, what, "change one of them");
        }
    }
}

fn listeners(root: &Section, directory: &Path, leaves: bool, problems: &mut Problems) -> Vec<Arc<Listener>> {
    let sections = root.tables("listener");
    unique(sections, "name", problems);
    if sections.is_empty() {
        return vec![Arc::new(sandbox_listener())];
    }
    let mut listeners: Vec<Arc<Listener>> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        if let Some(listener) = listener(section, index + 1, directory, leaves, problems) {
            if let Some(other) = listeners
                .iter()
                .find(|other| other.address == listener.address && listener.address.port() != 0)
            {
                let what = format!("{} is already the address of listener {:?}", other.address, other.name);
                problems.error(section.span_of("address"), what, "choose another port or address");
            }
            listeners.push(Arc::new(listener));
        }
    }
    listeners
}

/// The listener of a relay that nobody has configured: loopback, any credentials.
fn sandbox_listener() -> Listener {
    Listener {
        name: "sandbox".into(),
        protocol: Protocol::Smtp,
        address: SANDBOX_ADDRESS,
        tls: None,
        legacy: None,
        sandbox: true,
        limits: SessionLimits::default(),
        xclient: Vec::new(),
        proxy: Vec::new(),
    }
}

fn listener(
    section: &Section,
    number: usize,
    directory: &Path,
    leaves: bool,
    problems: &mut Problems,
) -> Option<Listener> {
    let name = section.text("name").map_or_else(|| format!("listener-{number}"), |(name, _)| name.to_owned());
    section.require("address", "add address = \"127.0.0.1:2525\"", problems);
    let protocol = match section.text("protocol").map(|(word, _)| word) {
        Some("submission") => Protocol::Submission,
        Some("submissions") => Protocol::Submissions,
        Some("lmtp") => Protocol::Lmtp,
        _ => Protocol::Smtp,
    };
    let tls = section.table("tls").and_then(|tls| tls_files(tls, directory, problems));
    let legacy = section.table("legacy").map(|legacy| self::legacy(legacy, leaves, problems));
    let sandbox = section.bool("sandbox").unwrap_or(false);
    let address = section.parsed("address", problems, value::socket_address);
    if section.item("tls").is_none() && protocol == Protocol::Submissions {
        let fix = "add tls = { certificate = \"cert.pem\", key = \"key.pem\" }";
        problems.error(&section.span, format!("listener {name:?} speaks submissions and has no `tls`"), fix);
    } else if section.item("tls").is_none() && section.item("legacy").is_none() && !sandbox {
        let what = format!("nobody can send through listener {name:?}: AUTH is only offered under TLS");
        let fix = "add tls = { certificate = …, key = … }, or legacy = { clients = […], from = […] }";
        problems.warning(&section.span, what, fix);
    }
    if sandbox {
        sandbox_is_closed(section, &name, address, problems);
    }
    let mut limits =
        section.table("limits").map_or_else(SessionLimits::default, |limits| self::limits(limits, problems));
    if let Some(size) = section.number("max_message_size") {
        limits.message_size_max_bytes = size;
    }
    Some(Listener {
        name: name.into(),
        protocol,
        address: address?,
        tls,
        legacy,
        sandbox,
        limits,
        xclient: section.parsed_list("xclient", problems, network),
        proxy: section.parsed_list("proxy", problems, network),
    })
}

/// A sandbox listener takes any credentials: nobody but this machine may reach it (design P7). What it takes is
/// captured, whatever the routes say.
fn sandbox_is_closed(section: &Section, name: &str, address: Option<SocketAddr>, problems: &mut Problems) {
    let span = section.span_of("sandbox");
    if address.is_some_and(|address| !address.ip().is_loopback()) {
        let what = format!("listener {name:?} takes any credentials and is not on loopback");
        problems.error(span, what, "use 127.0.0.1 or [::1], or remove sandbox = true");
    }
}

fn network(text: &str) -> Result<Cidr, String> {
    text.parse().map_err(|error: postrider_model::snapshot::CidrError| error.to_string())
}

fn tls_files(section: &Section, directory: &Path, problems: &mut Problems) -> Option<TlsFiles> {
    let mut path = |name: &str| {
        section.require(name, "a certificate needs both files: certificate and key", problems);
        section.text(name).map(|(text, _)| directory.join(text))
    };
    let (certificate, key) = (path("certificate"), path("key"));
    let files = TlsFiles { certificate: certificate?, key: key? };
    if let Err(error) = CertificateStore::load(vec![files.clone()]) {
        let at_key = matches!(&error, CertificateError::File { path, .. } if *path == files.key)
            || matches!(&error, CertificateError::Key { .. } | CertificateError::Mismatch { .. });
        let span = section.span_of(if at_key { "key" } else { "certificate" });
        let fix = "give PEM files; relative paths count from the directory of this file";
        problems.error(span, error.to_string(), fix);
    }
    Some(files)
}

fn legacy(section: &Section, leaves: bool, problems: &mut Problems) -> Legacy {
    section.require("clients", "say who may relay: clients = [\"192.0.2.0/24\"]", problems);
    section.require("from", "say as whom they may send: from = [\"*@example.com\"]", problems);
    let legacy = Legacy {
        clients: section.parsed_list("clients", problems, network),
        from: section.parsed_list("from", problems, value::address_pattern),
    };
    let everyone = |network: &Cidr| {
        network.contains(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8))) && network.to_string().ends_with("/0")
            || network.to_string() == "::/0"
    };
    if legacy.clients.iter().any(everyone) {
        let fix = "name the networks of your devices, such as \"192.0.2.0/24\"";
        problems.error(
            section.span_of("clients"),
            "this would be an open relay: every address may relay",
            fix,
        );
    }
    for list in ["clients", "from"] {
        not_empty(section, list, problems);
    }
    warn_of_any_sender(section, &legacy.from, leaves, problems);
    legacy
}

fn not_empty(section: &Section, list: &str, problems: &mut Problems) {
    if section.list(list).is_some_and(<[_]>::is_empty) {
        problems.error(
            section.span_of(list),
            format!("`{list}` is empty, so that nothing matches"),
            "add an entry",
        );
    }
}

fn warn_of_any_sender(section: &Section, from: &[AddressPattern], leaves: bool, problems: &mut Problems) {
    if leaves && from.contains(&AddressPattern::Any) {
        let what = "mail from any address may leave: from = [\"*\"] and a route that is not the sandbox";
        problems.warning(
            section.span_of("from"),
            what,
            "name the domains, such as from = [\"*@example.com\"]",
        );
    }
}

fn limits(section: &Section, problems: &mut Problems) -> SessionLimits {
    let defaults = SessionLimits::default();
    let count = |name: &str, default: usize| section.count(name).unwrap_or(default);
    let duration = |name: &str, default| section.duration(name).unwrap_or(default);
    if section.count("recipients").is_some_and(|recipients| recipients < 100) {
        let what = "RFC 5321 §4.5.3.1.8 asks for at least 100 recipients of a message";
        problems.warning(section.span_of("recipients"), what, "senders split larger envelopes, if they can");
    }
    SessionLimits {
        connections_max: count("connections", defaults.connections_max),
        connections_per_client_max: count("connections_per_client", defaults.connections_per_client_max),
        message_size_max_bytes: defaults.message_size_max_bytes,
        recipients_max: count("recipients", defaults.recipients_max),
        junk_commands_max: count("junk_commands", defaults.junk_commands_max),
        errors_soft_max: count("errors_before_tarpit", defaults.errors_soft_max),
        errors_max: count("errors", defaults.errors_max),
        messages_max: count("messages", defaults.messages_max),
        line_size_max_bytes: count("command_line", defaults.line_size_max_bytes),
        text_line_size_max_bytes: count("text_line", defaults.text_line_size_max_bytes),
        command_timeout: duration("command_timeout", defaults.command_timeout),
        data_timeout: duration("data_timeout", defaults.data_timeout),
        session_timeout: duration("session_timeout", defaults.session_timeout),
        data_rate_min_bytes_per_s: section.number("data_rate").unwrap_or(defaults.data_rate_min_bytes_per_s),
        tarpit: duration("tarpit", defaults.tarpit),
        greet_delay: duration("greet_delay", defaults.greet_delay),
    }
}

fn accounts(root: &Section, leaves: bool, problems: &mut Problems) -> Vec<Arc<Account>> {
    let sections = root.tables("account");
    unique(sections, "name", problems);
    let mut accounts = Vec::new();
    for section in sections {
        section.require("name", "add the user name: name = \"app1\"", problems);
        section.require("password", "add a verifier, as `postrider password` makes it", problems);
        section.require("from", "say as whom it may send: from = [\"*@example.com\"]", problems);
        not_empty(section, "from", problems);
        let verifier = section.text("password").and_then(|(text, span)| match text.parse::<Verifier>() {
            Ok(verifier) => Some(verifier.to_string().into_boxed_str()),
            Err(error) => {
                let what = format!("`password` cannot be used: {error}");
                problems.error(span, what, "run `postrider password` and put its line here");
                None
            }
        });
        let from = section.parsed_list("from", problems, value::address_pattern);
        warn_of_any_sender(section, &from, leaves, problems);
        if let (Some((name, _)), Some(verifier)) = (section.text("name"), verifier) {
            accounts.push(Arc::new(Account { name: name.into(), verifier, from }));
        }
    }
    accounts
}

fn routes(root: &Section, problems: &mut Problems) -> Vec<Arc<Route>> {
    let sections = root.tables("route");
    unique(sections, "name", problems);
    for section in sections {
        if let Some((CAPTURE_ROUTE, span)) = section.text("name") {
            let what = format!("{CAPTURE_ROUTE:?} is the name of the built-in route to the sandbox");
            problems.error(span, what, "choose another name");
        }
    }
    if sections.is_empty() {
        return vec![Arc::new(Route {
            name: "sandbox".into(),
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            to: Target::Sandbox,
            tls: TlsLevel::default(),
            source: Source::default(),
            connections_per_site_max: None,
        })];
    }
    let mut routes: Vec<Arc<Route>> = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let takes_all =
            |route: &Arc<Route>| route.domains.contains(&DomainPattern::Any) && route.senders.is_empty();
        if let Some(before) = routes.iter().find(|route| takes_all(route)) {
            let what = format!("this route is never reached: route {:?} above takes everything", before.name);
            problems.warning(&section.span, what, "put it above that one");
        }
        routes.extend(route(section, index + 1, problems).map(Arc::new));
    }
    routes
}

fn route(section: &Section, number: usize, problems: &mut Problems) -> Option<Route> {
    section.require("to", "say where mail goes: to = [\"mx\"]", problems);
    not_empty(section, "domains", problems);
    let tls = match section.text("tls").map(|(word, _)| word) {
        Some("none") => TlsLevel::None,
        Some("encrypted") => TlsLevel::Encrypted,
        Some("verified") => TlsLevel::Verified,
        _ => TlsLevel::Opportunistic,
    };
    let domains = match section.item("domains") {
        None => vec![DomainPattern::Any],
        Some(_) => section.parsed_list("domains", problems, value::domain_pattern),
    };
    let to = target(section, problems);
    if let Some(Target::Hosts(hops)) = &to {
        warn_of_clear_passwords(section, hops, tls, problems);
    }
    Some(Route {
        name: section
            .text("name")
            .map_or_else(|| format!("route-{number}"), |(name, _)| name.to_owned())
            .into(),
        domains,
        senders: section.parsed_list("senders", problems, value::address_pattern),
        to: to?,
        tls,
        source: section.table("source").map_or_else(Source::default, |source| self::source(source, problems)),
        connections_per_site_max: section.count("connections_per_site"),
    })
}

fn target(section: &Section, problems: &mut Problems) -> Option<Target> {
    let auth = section.table("auth").and_then(|auth| credentials(auth, problems));
    let items = section.list("to")?;
    not_empty(section, "to", problems);
    let word = |item: &super::read::Item| match &item.value {
        Value::Text(text) if text == "mx" => Some(Target::Mx),
        Value::Text(text) if text == "sandbox" => Some(Target::Sandbox),
        _ => None,
    };
    if let Some(target) = items.iter().find_map(word) {
        if items.len() > 1 {
            let what = "`mx` and `sandbox` stand alone in `to`";
            problems.error(section.span_of("to"), what, "use hosts only, or one route for each");
        }
        if auth.is_some() {
            problems.error(section.span_of("auth"), "`auth` is for hosts named in `to`", "remove it");
        }
        return Some(target);
    }
    let mut hops = section.parsed_list("to", problems, value::next_hop);
    for hop in &mut hops {
        if hop.credentials.is_none() {
            hop.credentials.clone_from(&auth);
        }
    }
    (!hops.is_empty()).then_some(Target::Hosts(hops))
}

fn credentials(section: &Section, problems: &mut Problems) -> Option<Credentials> {
    section.require("username", "add username = \"…\"", problems);
    section.require("password", "add password = \"…\"", problems);
    let (username, _) = section.text("username")?;
    let (password, _) = section.text("password")?;
    Some(Credentials { username: username.into(), password: password.into() })
}

fn warn_of_clear_passwords(section: &Section, hops: &[NextHop], tls: TlsLevel, problems: &mut Problems) {
    let far = |host: &Host| match host {
        Host::Address(address) => !address.ip().is_loopback(),
        Host::Name(..) => true,
        Host::Socket(_) => false,
    };
    let exposed = |hop: &&NextHop| hop.scheme == Scheme::Smtp && hop.credentials.is_some() && far(&hop.host);
    if tls < TlsLevel::Encrypted && hops.iter().any(|hop| exposed(&hop)) {
        let what = "the password for this host could be sent in clear, to whoever answers there";
        problems.warning(
            section.span_of("to"),
            what,
            "set tls = \"verified\" or \"encrypted\", or use smtps://",
        );
    }
}

fn source(section: &Section, problems: &mut Problems) -> Source {
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| "write an IP address".to_owned());
    let bind = section.parsed_list("bind", problems, ip);
    if bind.iter().filter(|ip| ip.is_ipv4()).count() > 1 || bind.iter().filter(|ip| ip.is_ipv6()).count() > 1
    {
        let fix = "make a route for each address";
        problems.error(section.span_of("bind"), "a source has at most one address of each family", fix);
    }
    Source { bind, ehlo: section.parsed("ehlo", problems, from_str::<Domain>) }
}

fn from_str<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn delivery(section: Option<&Section>, problems: &mut Problems) -> Delivery {
    let empty = Section::empty(&schema::DELIVERY);
    let section = section.unwrap_or(&empty);
    let defaults = Delivery::default();
    not_empty(section, "retry", problems);
    let durations = section.list("retry").map(|items| {
        items.iter().filter_map(|item| match item.value {
            Value::Duration(wait) => Some(wait),
            _ => None,
        })
    });
    let count = |name: &str, default: usize| section.count(name).unwrap_or(default);
    let delivery = Delivery {
        retry: durations.map_or(defaults.retry, Iterator::collect),
        expire: section.duration("expire").unwrap_or(defaults.expire),
        delay_warning: section.duration("delay_warning").unwrap_or(defaults.delay_warning),
        connections_per_site_max: count("connections_per_site", defaults.connections_per_site_max),
        connections_max: count("connections", defaults.connections_max),
        messages_per_connection_max: count("messages_per_connection", defaults.messages_per_connection_max),
        recipients_per_transaction_max: count(
            "recipients_per_transaction",
            defaults.recipients_per_transaction_max,
        ),
        idle_timeout: section.duration("idle_timeout").unwrap_or(defaults.idle_timeout),
        mx_port: section
            .number("mx_port")
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(defaults.mx_port),
        dns_servers: section.parsed_list("dns_servers", problems, value::dns_server),
        allowed_networks: section.parsed_list("allowed_networks", problems, network),
    };
    if delivery.retry.first().is_some_and(|first| *first >= delivery.expire) {
        let what = "a message would expire before it is tried a second time";
        problems.warning(
            section.span_of("expire"),
            what,
            "shorten the first of `retry`, or lengthen `expire`",
        );
    }
    delivery
}

fn authorities(section: Option<&Section>, directory: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    let Some(section) = section else { return Vec::new() };
    section.parsed_list("authorities", problems, |text| {
        let path = directory.join(text);
        match ClientTls::new(std::slice::from_ref(&path)) {
            Ok(_) => Ok(path),
            Err(error) => Err(error.to_string()),
        }
    })
}

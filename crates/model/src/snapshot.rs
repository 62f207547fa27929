//! The configuration as the data plane reads it: immutable, whole and already checked.

use crate::{Domain, Mailbox};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything the data plane needs to know that does not change with every message.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The name in banners, EHLO, Received and Message-ID.
    pub hostname: Domain,
    /// Where we listen.
    pub listeners: Vec<Arc<Listener>>,
    /// Who may send with AUTH.
    pub accounts: Vec<Arc<Account>>,
    /// Where mail goes; the first that matches wins. A recipient that none matches is refused.
    pub routes: Vec<Arc<Route>>,
    /// How mail leaves.
    pub delivery: Delivery,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Relay (port 25): AUTH optional.
    Smtp,
    /// Submission (RFC 6409, port 587): AUTH required, Bcc removed, missing headers added.
    Submission,
    /// Submission under implicit TLS (RFC 8314, port 465).
    Submissions,
    /// LMTP (RFC 2033).
    Lmtp,
}

impl Protocol {
    /// Submission with or without implicit TLS.
    #[must_use]
    pub fn is_submission(self) -> bool {
        matches!(self, Protocol::Submission | Protocol::Submissions)
    }
}

/// One listening address and its policy.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in logs, metrics and records.
    pub name: Box<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate files, if TLS is offered.
    pub tls: Option<TlsFiles>,
    /// Set when this is a legacy listener.
    pub legacy: Option<Legacy>,
    /// Any credentials are taken, AUTH is offered in clear (loopback sandbox only).
    pub sandbox: bool,
    /// Bounds.
    pub limits: SessionLimits,
    /// Clients that may use XCLIENT.
    pub xclient: Vec<Cidr>,
    /// Clients that speak the PROXY protocol first; from these it is required, from others refused.
    pub proxy: Vec<Cidr>,
}

/// PEM files of a certificate chain and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// What may relay by its address, without AUTH (design P7: only with both lists). AUTH in clear and bare
/// line feeds are tolerated on such a listener.
#[derive(Clone, Debug)]
pub struct Legacy {
    /// Who.
    pub clients: Vec<Cidr>,
    /// As whom.
    pub from: Vec<AddressPattern>,
}

/// Bounds of a session. Defaults in [`SessionLimits::default`].
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Sessions at once on this listener, on all shards together.
    pub connections_max: usize,
    /// Sessions at once from one client address.
    pub connections_per_client_max: usize,
    /// Octets of a message.
    pub message_size_max_bytes: u64,
    /// Recipients of a message (RFC 5321 §4.5.3.1.8 asks for at least 100).
    pub recipients_max: usize,
    /// Commands in a session that lead to no mail (NOOP, RSET, VRFY, EHLO …).
    pub junk_commands_max: usize,
    /// Errors before the session is slowed down.
    pub errors_soft_max: usize,
    /// Errors before the session ends.
    pub errors_max: usize,
    /// Messages in a session.
    pub messages_max: usize,
    /// Octets of a command line (RFC 5321 §4.5.3.1.4 asks for at least 512; AUTH needs 12,288: RFC 4954 §4).
    pub line_size_max_bytes: usize,
    /// Octets of a line of content (§4.5.3.1.6 asks for 998 and CRLF; more is common).
    pub text_line_size_max_bytes: usize,
    /// Waiting for a command (§4.5.3.2.7: at least 5 minutes).
    pub command_timeout: Duration,
    /// Waiting for the next octets of content.
    pub data_timeout: Duration,
    /// A session in all.
    pub session_timeout: Duration,
    /// Content slower than this over a minute ends the session.
    pub data_rate_min_bytes_per_s: u64,
    /// Delay of each reply after `errors_soft_max` errors.
    pub tarpit: Duration,
    /// Delay of the greeting for clients that [`Legacy`] does not name. Whoever speaks before it is no client of
    /// SMTP and is turned away.
    pub greet_delay: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        SessionLimits {
            connections_max: 10_000,
            connections_per_client_max: 1_000,
            message_size_max_bytes: 50 << 20,
            recipients_max: 1_000,
            junk_commands_max: 100,
            errors_soft_max: 10,
            errors_max: 20,
            messages_max: 1_000_000,
            line_size_max_bytes: 12_288,
            text_line_size_max_bytes: 65_536,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
            session_timeout: Duration::from_secs(24 * 3600),
            data_rate_min_bytes_per_s: 64,
            tarpit: Duration::from_secs(1),
            greet_delay: Duration::ZERO,
        }
    }
}

/// Someone who may send with AUTH.
#[derive(Clone, Debug)]
pub struct Account {
    /// The user name.
    pub name: Box<str>,
    /// `scram-sha-256:ITERATIONS:SALT:STORED-KEY:SERVER-KEY`, checked by `auth`.
    pub verifier: Box<str>,
    /// Allowed From addresses, in the envelope and in the header.
    pub from: Vec<AddressPattern>,
}

/// A pattern of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressPattern {
    /// `*`
    Any,
    /// `*@example.com`
    Domain(Domain),
    /// `*@*.example.com`: subdomains, not the domain itself.
    Subdomains(Domain),
    /// `a@example.com`
    Mailbox(Mailbox),
}

impl AddressPattern {
    /// True if `mailbox` is one of these addresses.
    #[must_use]
    pub fn matches(&self, mailbox: &Mailbox) -> bool {
        match self {
            AddressPattern::Any => true,
            AddressPattern::Domain(domain) => mailbox.domain() == domain,
            AddressPattern::Subdomains(domain) => {
                mailbox.domain() != domain && mailbox.domain().is_within(domain)
            }
            AddressPattern::Mailbox(pattern) => {
                mailbox.domain() == pattern.domain() && mailbox.local().eq_ignore_ascii_case(pattern.local())
            }
        }
    }
}

impl std::fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AddressPattern::Any => f.write_str("*"),
            AddressPattern::Domain(domain) => write!(f, "*@{domain}"),
            AddressPattern::Subdomains(domain) => write!(f, "*@*.{domain}"),
            AddressPattern::Mailbox(mailbox) => write!(f, "{mailbox}"),
        }
    }
}

/// Not a pattern of addresses; says what one looks like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl std::str::FromStr for AddressPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(AddressPattern::Any);
        }
        let fix = "write an address, \"*@example.com\", \"*@*.example.com\" (subdomains) or \"*\"";
        let Some(domain) = text.strip_prefix("*@") else {
            return text.parse().map(AddressPattern::Mailbox).map_err(|error| {
                PatternError(if text.contains('@') { format!("{error}; {fix}") } else { fix.to_owned() })
            });
        };
        let (subdomains, domain) = domain.strip_prefix("*.").map_or((false, domain), |parent| (true, parent));
        let domain: Domain = domain.parse().map_err(|error| PatternError(format!("{error}; {fix}")))?;
        Ok(if subdomains { AddressPattern::Subdomains(domain) } else { AddressPattern::Domain(domain) })
    }
}

crate::text::text_serde!(AddressPattern);

/// Patterns for a refusal: the first `max` of them.
#[must_use]
pub fn listed(patterns: &[AddressPattern], max: usize) -> String {
    let mut out = patterns.iter().take(max).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if patterns.len() > max {
        out.push_str(", …");
    }
    if out.is_empty() { "nobody".to_owned() } else { out }
}

/// A pattern of domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainPattern {
    /// `*`
    Any,
    /// `example.com`
    Exact(Domain),
    /// `*.example.com` or `.example.com`: subdomains, not the domain itself.
    Suffix(Domain),
}

impl DomainPattern {
    /// True if `domain` is one of these.
    #[must_use]
    pub fn matches(&self, domain: &Domain) -> bool {
        match self {
            DomainPattern::Any => true,
            DomainPattern::Exact(exact) => domain == exact,
            DomainPattern::Suffix(suffix) => domain != suffix && domain.is_within(suffix),
        }
    }
}

/// A row of the route table.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in logs and `explain`; defaults to `route-N`, counted from 1.
    pub name: Box<str>,
    /// Recipient domains.
    pub domains: Vec<DomainPattern>,
    /// Reverse-paths; empty matches all, the null reverse-path too.
    pub senders: Vec<AddressPattern>,
    /// Where to.
    pub to: Target,
    /// How much TLS.
    pub tls: TlsLevel,
    /// The egress source: local address and EHLO name.
    pub source: Source,
    /// Overrides `Delivery::connections_per_site_max`.
    pub connections_per_site_max: Option<usize>,
}

/// The name of the built-in route to the sandbox, on which recipients go that were accepted to be captured.
/// It stands in no route table, and no route of a table may be called so.
pub const CAPTURE_ROUTE: &str = "capture";

impl Route {
    /// The built-in route.
    #[must_use]
    pub fn capture() -> Self {
        Route {
            name: CAPTURE_ROUTE.into(),
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            to: Target::Sandbox,
            tls: TlsLevel::None,
            source: Source::default(),
            connections_per_site_max: None,
        }
    }

    /// True if a recipient at `domain` from `reverse_path` goes this way.
    #[must_use]
    pub fn matches(&self, domain: &Domain, reverse_path: Option<&Mailbox>) -> bool {
        self.domains.iter().any(|pattern| pattern.matches(domain))
            && (self.senders.is_empty()
                || reverse_path.is_some_and(|from| self.senders.iter().any(|pattern| pattern.matches(from))))
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The mail exchangers of the recipient's domain.
    Mx,
    /// These hosts, failing over in order.
    Hosts(Vec<NextHop>),
    /// Kept, listed, never sent.
    Sandbox,
}

/// A configured host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// `smtp`, `smtps` or `lmtp`.
    pub scheme: Scheme,
    /// Where.
    pub host: Host,
    /// AUTH, if the host wants it.
    pub credentials: Option<Credentials>,
}

/// How to speak to a configured host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// SMTP, port 25 unless named.
    Smtp,
    /// SMTP under implicit TLS, port 465 unless named.
    Smtps,
    /// LMTP, port 24 unless named.
    Lmtp,
}

/// The place of a configured host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address and port.
    Address(SocketAddr),
    /// A name, looked up for A and AAAA (not MX), and a port.
    Name(Domain, u16),
    /// A Unix socket (`lmtp:///run/dovecot/lmtp`).
    Socket(PathBuf),
}

/// A name and a password for AUTH toward a smarthost.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: Box<str>,
    /// Password.
    pub password: Box<str>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// How much TLS a route asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsLevel {
    /// Never.
    None,
    /// If offered, without checking the certificate; in clear after a failed handshake, and logged.
    #[default]
    Opportunistic,
    /// Always, without checking the certificate.
    Encrypted,
    /// Always, with a certificate that the web's authorities vouch for and that names the host.
    Verified,
}

/// An egress source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Local addresses to bind, at most one per family.
    pub bind: Vec<IpAddr>,
    /// EHLO name; `None` is the hostname.
    pub ehlo: Option<Domain>,
}

/// How mail leaves.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Waits between attempts; the last one repeats.
    pub retry: Vec<Duration>,
    /// A message's lifetime.
    pub expire: Duration,
    /// After this long a delay DSN is sent where NOTIFY allows; zero never.
    pub delay_warning: Duration,
    /// Connections at once to one site from one source, all shards together.
    pub connections_per_site_max: usize,
    /// Connections at once in all.
    pub connections_max: usize,
    /// Messages sent over one connection before a new one is made.
    pub messages_per_connection_max: usize,
    /// Recipients in one transaction.
    pub recipients_per_transaction_max: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// The port of mail exchangers: 25 but in tests.
    pub mx_port: u16,
    /// DNS servers; empty means those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// Destinations that are private or loopback and still allowed for MX routes.
    pub allowed_networks: Vec<Cidr>,
}

impl Default for Delivery {
    fn default() -> Self {
        let minutes = |m: u64| Duration::from_secs(m * 60);
        Delivery {
            retry: [1, 5, 15, 30, 60, 120, 240].map(minutes).to_vec(),
            expire: minutes(5 * 24 * 60),
            delay_warning: minutes(4 * 60),
            connections_per_site_max: 20,
            connections_max: 5_000,
            messages_per_connection_max: 1_000,
            recipients_per_transaction_max: 100,
            idle_timeout: Duration::from_secs(5),
            mx_port: 25,
            dns_servers: Vec::new(),
            allowed_networks: Vec::new(),
        }
    }
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// True if `address` lies in the network; an IPv4-mapped IPv6 address counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix);
                net.to_bits().checked_shr(shift) == ip.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix);
                net.to_bits().checked_shr(shift) == ip.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), str::parse).map_err(|_| CidrError)?;
        if prefix > bits {
            return Err(CidrError);
        }
        Ok(Cidr { address, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

crate::text::text_serde!(Cidr);

/// Not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network; write an address and a prefix length, such as 192.0.2.0/24 or 2001:db8::/32")]
pub struct CidrError;

impl Snapshot {
    /// The first route for a recipient at `domain` from `reverse_path`.
    #[must_use]
    pub fn route(&self, domain: &Domain, reverse_path: Option<&Mailbox>) -> Option<(usize, &Arc<Route>)> {
        self.routes.iter().enumerate().find(|(_, route)| route.matches(domain, reverse_path))
    }

    /// The account of this name.
    #[must_use]
    pub fn account(&self, name: &str) -> Option<&Arc<Account>> {
        self.accounts.iter().find(|account| &*account.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_only() {
        let check = |net: &str, ip: &str, inside| {
            let net: Cidr = net.parse().unwrap();
            assert_eq!(net.contains(ip.parse().unwrap()), inside, "{net} {ip}");
        };
        check("192.0.2.0/24", "192.0.2.255", true);
        check("192.0.2.0/24", "192.0.3.0", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "::1", false);
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.0/8", "::ffff:127.0.0.9", true);
        check("2001:db8::/32", "2001:db8:ffff::1", true);
        check("::/0", "2001:db8::1", true);
        assert!("192.0.2.0/33".parse::<Cidr>().is_err());
        assert!("example.com".parse::<Cidr>().is_err());
    }

    #[test]
    fn subdomains_are_matched_only_where_listed() {
        let mailbox: Mailbox = "Ada@sub.example.com".parse().unwrap();
        let domain: Domain = "example.com".parse().unwrap();
        assert!(!AddressPattern::Domain(domain.clone()).matches(&mailbox));
        assert!(AddressPattern::Subdomains(domain.clone()).matches(&mailbox));
        assert!(!AddressPattern::Subdomains(domain).matches(&"a@example.com".parse().unwrap()));
        assert!(AddressPattern::Mailbox("ada@SUB.example.com".parse().unwrap()).matches(&mailbox));
    }
}

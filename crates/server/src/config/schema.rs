//! Every setting in one place: its name, kind, default and meaning.
//!
//! The reader, the JSON schema, `config show` and `docs/configuration.md` are all made from these tables,
//! so that a setting cannot be read and not documented, or documented and not read.

/// A table of the file.
#[derive(Debug)]
pub struct Table {
    /// How it is written: `[delivery]`, `[[listener]]`.
    pub title: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its keys, in the order in which they are shown.
    pub keys: &'static [Key],
}

/// A key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// The default as TOML; empty if there is none.
    pub default: &'static str,
    /// What it means.
    pub about: &'static str,
}

/// What may stand at a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A string; the word says of what form.
    Text(&'static str),
    /// A string that is never shown.
    Secret(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number within bounds.
    Number {
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A number of octets: `"50 MiB"`.
    Size {
        /// Least octets.
        min: u64,
        /// Most octets.
        max: u64,
    },
    /// A length of time: `"1h30m"`.
    Duration {
        /// Least seconds.
        min_s: u64,
        /// Most seconds.
        max_s: u64,
    },
    /// `true` or `false`.
    Bool,
    /// Several of one kind; a single one may stand without brackets.
    List(&'static Kind),
    /// A table.
    Table(&'static Table),
    /// Tables in order.
    Tables(&'static Table),
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}

const DAY_S: u64 = 86_400;
const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}
const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max }
}
const fn duration(min_s: u64, max_s: u64) -> Kind {
    Kind::Duration { min_s, max_s }
}

const NETWORK: Kind = Kind::Text("network");
const ADDRESS_PATTERN: Kind = Kind::Text("address pattern");
const DOMAIN_PATTERN: Kind = Kind::Text("domain pattern");
const PATH: Kind = Kind::Text("path");
const TARGET: Kind = Kind::Text("target");
const IP: Kind = Kind::Text("IP address");
const SERVER: Kind = Kind::Text("IP address, with :port if not 53");
const WAIT: Kind = duration(1, 30 * DAY_S);

/// The file.
pub static ROOT: Table = Table {
    title: "Top of the file",
    about: "What must be known before anything else. Every key is optional.",
    keys: &[
        key(
            "hostname",
            Kind::Text("domain name"),
            "",
            "The name in the banner, EHLO, Received and Message-ID fields. Receivers expect a name that \
             resolves to the address they see. Default: the name of the machine.",
        ),
        key(
            "data_dir",
            Kind::Text("path"),
            "",
            "Where the spool, the sandbox and the admin socket live. Relative paths count from the \
             directory of this file. Default: `postrider-data` there. Changing it needs a restart.",
        ),
        key(
            "shards",
            number(0, 1024),
            "0",
            "Event loops, each on a thread of its own; 0 takes one for each core. Changing it needs a \
             restart.",
        ),
        key(
            "memory",
            size(16 << 20, 1 << 40),
            "\"512 MiB\"",
            "Octets that incoming mail may hold in memory: three quarters for sessions, the rest for messages \
             that wait to leave at once (others are read back from the log). When sessions use half of their \
             share, large messages go to the log in smaller pieces; at three quarters new sessions are told \
             `421 4.3.2`; beyond all of it, messages whose header is large and not complete are told \
             `452 4.3.1`. Deliveries go on. Changing it needs a restart.",
        ),
        key("listener", Kind::Tables(&LISTENER), "", "Where mail is taken. Repeat for each address."),
        key("account", Kind::Tables(&ACCOUNT), "", "Who may send after AUTH. Repeat for each."),
        key(
            "route",
            Kind::Tables(&ROUTE),
            "",
            "Where mail goes. The first route that matches wins; a recipient that none matches is refused.",
        ),
        key("http", Kind::Table(&HTTP), "", "Where applications use the HTTP API."),
        key("delivery", Kind::Table(&DELIVERY), "", "How mail leaves."),
        key("spool", Kind::Table(&SPOOL), "", "The durable log on disk."),
    ],
};

/// `[[listener]]`
pub static LISTENER: Table = Table {
    title: "[[listener]]",
    about: "One listening address and its policy. Without any, a sandbox listener on 127.0.0.1:2525 \
            is started.",
    keys: &[
        key("name", Kind::Text("name"), "", "Its name in logs and records. Default: `listener-N`."),
        key(
            "protocol",
            Kind::Choice(&["smtp", "submission", "submissions", "lmtp"]),
            "\"smtp\"",
            "`smtp`: relay, AUTH optional. `submission` (RFC 6409): AUTH required, Bcc removed, missing \
             header fields added. `submissions` (RFC 8314): the same under TLS from the first octet. `lmtp` \
             (RFC 2033).",
        ),
        key(
            "address",
            Kind::Text("address:port"),
            "",
            "Where to listen, such as `\"0.0.0.0:25\"` or `\"[::]:587\"`. Required. Port 0 takes a free port.",
        ),
        key(
            "tls",
            Kind::Table(&TLS_FILES),
            "",
            "The certificate. Without it STARTTLS is not offered, and AUTH only where `legacy` or `sandbox` \
             says so.",
        ),
        key(
            "legacy",
            Kind::Table(&LEGACY),
            "",
            "Relay by address, without AUTH, for devices that cannot log in. AUTH in clear and bare line \
             feeds are tolerated here.",
        ),
        key(
            "sandbox",
            Kind::Bool,
            "false",
            "Takes any credentials, also in clear. Only on loopback. What is sent without the login of an \
             application is captured, whatever the routes say.",
        ),
        key(
            "max_message_size",
            size(64 << 10, 1 << 30),
            "\"50 MiB\"",
            "Octets of a message; more is refused with 552.",
        ),
        key(
            "xclient",
            Kind::List(&NETWORK),
            "[]",
            "Networks whose clients may pass on another client's address with XCLIENT (proxies and filters).",
        ),
        key(
            "proxy",
            Kind::List(&NETWORK),
            "[]",
            "Networks whose connections begin with the PROXY protocol, version 1 or 2. From these it is \
             required, from others refused.",
        ),
        key("limits", Kind::Table(&LIMITS), "", "Bounds of a session."),
    ],
};

/// `listener.tls`
pub static TLS_FILES: Table = Table {
    title: "[listener.tls]",
    about: "PEM files; relative paths count from the directory of the configuration file. Read again on \
            reload, without dropping a session.",
    keys: &[
        key(
            "certificate",
            Kind::Text("path"),
            "",
            "The certificate chain, the server's own first. Required.",
        ),
        key("key", Kind::Text("path"), "", "The private key. Required."),
    ],
};

/// `listener.legacy`
pub static LEGACY: Table = Table {
    title: "[listener.legacy]",
    about: "An IP address alone is an identity only with both lists.",
    keys: &[
        key("clients", Kind::List(&NETWORK), "", "Networks of the clients. Required."),
        key("from", Kind::List(&ADDRESS_PATTERN), "", "From addresses that they may use. Required."),
    ],
};

/// `listener.limits`
pub static LIMITS: Table = Table {
    title: "[listener.limits]",
    about: "Bounds of the sessions of one listener. Reaching one is answered with a reply that names it.",
    keys: &[
        key("connections", number(1, 1_000_000), "10000", "Sessions at once on this listener."),
        key(
            "connections_per_client",
            number(1, 1_000_000),
            "1000",
            "Sessions at once from one client address.",
        ),
        key(
            "recipients",
            number(1, 50_000),
            "1000",
            "Recipients of a message. RFC 5321 asks for at least 100.",
        ),
        key("messages", number(1, 1_000_000_000), "1000000", "Messages in a session."),
        key(
            "junk_commands",
            number(1, 1_000_000),
            "100",
            "Commands in a row that lead to no mail: NOOP, RSET, VRFY, EHLO and so on.",
        ),
        key("errors_before_tarpit", number(0, 1_000_000), "10", "Errors before replies are slowed down."),
        key("errors", number(1, 1_000_000), "20", "Errors before the session ends."),
        key("tarpit", duration(0, 60), "\"1s\"", "Delay of each reply once errors are many."),
        key(
            "greet_delay",
            duration(0, 60),
            "\"0s\"",
            "Delay of the greeting for clients that `legacy` does not name. Programs that send spam speak before \
             they are greeted and are turned away; \"6s\" suits port 25 open to the world. Without a delay only \
             those are caught whose words are there at once.",
        ),
        key(
            "command_line",
            size(512, 1 << 20),
            "\"12 KiB\"",
            "Octets of a command line. AUTH needs 12 KiB (RFC 4954).",
        ),
        key("text_line", size(1000, 1 << 20), "\"64 KiB\"", "Octets of a line of content."),
        key("command_timeout", duration(1, DAY_S), "\"5m\"", "Waiting for a command."),
        key("data_timeout", duration(1, DAY_S), "\"3m\"", "Waiting for the next octets of content."),
        key("session_timeout", duration(1, 7 * DAY_S), "\"1d\"", "A session in all."),
        key(
            "data_rate",
            size(0, 1 << 30),
            "\"64 B\"",
            "Least octets of content per second, over a minute; slower clients are cut off.",
        ),
    ],
};

/// `[[account]]`
pub static ACCOUNT: Table = Table {
    title: "[[account]]",
    about: "A sender that logs in with AUTH.",
    keys: &[
        key("name", Kind::Text("name"), "", "The user name. Required."),
        key(
            "password",
            Kind::Secret("verifier"),
            "",
            "A verifier made by `postrider password`: the password itself is never stored. Required.",
        ),
        key(
            "from",
            Kind::List(&ADDRESS_PATTERN),
            "",
            "From addresses that it may use, in the envelope and in the header: `\"a@example.com\"`, \
             `\"*@example.com\"`, `\"*@*.example.com\"` (subdomains) or `\"*\"`. Required.",
        ),
    ],
};

/// `[[route]]`
pub static ROUTE: Table = Table {
    title: "[[route]]",
    about: "A row of the route table. Without any, everything is kept in the sandbox.",
    keys: &[
        key("name", Kind::Text("name"), "", "Its name in logs and `postrider explain`. Default: `route-N`."),
        key(
            "domains",
            Kind::List(&DOMAIN_PATTERN),
            "[\"*\"]",
            "Recipient domains: `\"example.com\"`, `\"*.example.com\"` (subdomains) or `\"*\"`.",
        ),
        key(
            "senders",
            Kind::List(&ADDRESS_PATTERN),
            "[]",
            "Only mail from these reverse-paths; empty means all, bounces (`<>`) too.",
        ),
        key(
            "to",
            Kind::List(&TARGET),
            "",
            "`\"mx\"`: the mail exchangers of the recipient's domain. `\"sandbox\"`: kept, never sent. Or hosts \
             that fail over in order: `\"smtp://host:25\"`, `\"smtps://user:password@host\"`, \
             `\"lmtp://host:24\"`, `\"lmtp:///run/dovecot/lmtp\"`. Required.",
        ),
        key(
            "tls",
            Kind::Choice(&["none", "opportunistic", "encrypted", "verified"]),
            "\"opportunistic\"",
            "`none`: never. `opportunistic`: if offered, any certificate, in clear if the handshake fails. \
             `encrypted`: always, any certificate. `verified`: always, with a certificate that authorities \
             vouch for and that names the host.",
        ),
        key("auth", Kind::Table(&ROUTE_AUTH), "", "User name and password for hosts whose URL has none."),
        key("source", Kind::Table(&SOURCE), "", "The address and the name from which mail leaves."),
        key(
            "connections_per_site",
            number(1, 100_000),
            "",
            "Connections at once to one site. Default: that of `[delivery]`.",
        ),
    ],
};

/// `route.auth`
pub static ROUTE_AUTH: Table = Table {
    title: "[route.auth]",
    about: "How to log in at the hosts of a route.",
    keys: &[
        key("username", Kind::Text("name"), "", "The user name. Required."),
        key("password", Kind::Secret("password"), "", "The password, as the host knows it. Required."),
    ],
};

/// `route.source`
pub static SOURCE: Table = Table {
    title: "[route.source]",
    about: "An egress source.",
    keys: &[
        key("bind", Kind::List(&IP), "[]", "Local addresses, at most one of each family."),
        key("ehlo", Kind::Text("domain name"), "", "The EHLO name. Default: `hostname`."),
    ],
};

/// `[http]`
pub static HTTP: Table = Table {
    title: "[http]",
    about: "The HTTP API for applications, each request under an API key. Changing it needs a restart.",
    keys: &[
        key(
            "address",
            Kind::Text("address:port"),
            "\"127.0.0.1:8025\"",
            "Where to listen. Port 0 takes a free port. A file with `[[listener]]` and without `[http]` serves none.",
        ),
        key(
            "tls",
            Kind::Table(&HTTP_TLS),
            "",
            "The certificate: TLS from the first octet. Without it HTTP is served in clear, which is for loopback \
             and for networks behind a proxy.",
        ),
        key(
            "trusted_proxies",
            Kind::List(&NETWORK),
            "[]",
            "Networks whose `X-Forwarded-For` is believed: the client is the last address in it that is none of \
             these.",
        ),
    ],
};

/// `http.tls`
pub static HTTP_TLS: Table = Table {
    title: "[http.tls]",
    about: "PEM files; relative paths count from the directory of the configuration file.",
    keys: TLS_FILES.keys,
};

/// `[delivery]`
pub static DELIVERY: Table = Table {
    title: "[delivery]",
    about: "How mail leaves.",
    keys: &[
        key(
            "retry",
            Kind::List(&WAIT),
            "[\"1m\", \"5m\", \"15m\", \"30m\", \"1h\", \"2h\", \"4h\"]",
            "Waits between attempts, each varied a little; the last one repeats.",
        ),
        key("expire", duration(60, 30 * DAY_S), "\"5d\"", "A message's lifetime; then it is returned."),
        key(
            "delay_warning",
            duration(0, 30 * DAY_S),
            "\"4h\"",
            "After this long the sender is told of the delay, where NOTIFY allows; \"0s\" never.",
        ),
        key(
            "connections_per_site",
            number(1, 100_000),
            "20",
            "Connections at once to one site from one source.",
        ),
        key(
            "connections",
            number(1, 100_000),
            "5000",
            "Connections at once in all. The last quarter is for sites to which there is none yet, so that slow \
             sites cannot take every one.",
        ),
        key(
            "messages_per_connection",
            number(1, 1_000_000),
            "1000",
            "Messages sent over one connection before a new one is made.",
        ),
        key("recipients_per_transaction", number(1, 50_000), "100", "Recipients in one transaction."),
        key("idle_timeout", duration(0, 300), "\"5s\"", "How long an idle connection is kept for more mail."),
        key(
            "allowed_networks",
            Kind::List(&NETWORK),
            "[]",
            "Private or loopback networks to which `mx` routes may deliver all the same. Hosts named in a \
             route need no entry.",
        ),
        key(
            "authorities",
            Kind::List(&PATH),
            "[]",
            "PEM files of certificate authorities that vouch for hosts, besides those of the system. Changing \
             it needs a restart.",
        ),
        key("dns_servers", Kind::List(&SERVER), "[]", "DNS servers; empty means those of the system."),
        key("mx_port", number(1, 65_535), "25", "The port of mail exchangers; another one only in tests."),
    ],
};

/// `[spool]`
pub static SPOOL: Table = Table {
    title: "[spool]",
    about: "The durable log in `data_dir`. Changes need a restart.",
    keys: &[
        key(
            "segment_size",
            size(1 << 20, 1 << 30),
            "\"64 MiB\"",
            "Octets of one file of the log. A message must fit.",
        ),
        key(
            "free_space",
            size(0, 1 << 50),
            "",
            "Room on the disk that messages leave free, for checkpoints, the event journal and others. With less, \
             the log gives back what it does not need, and if that is not enough, messages are refused with \
             `452 4.3.1`. Default: 512 MiB, or 5 % of the disk if that is less.",
        ),
        key(
            "event_days",
            number(1, 3_650),
            "30",
            "Days for which the event journal is kept in `spool/events`; today is one.",
        ),
    ],
};

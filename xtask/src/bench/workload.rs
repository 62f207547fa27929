//! What the relays are given to do.

use super::relay::Kind;

/// One row of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Workload {
    /// 4 KiB, 20 sessions.
    #[value(name = "4k-20")]
    Small20,
    /// 4 KiB, 200 sessions.
    #[value(name = "4k-200")]
    Small200,
    /// 4 KiB, one message per connection, STARTTLS and AUTH PLAIN.
    #[value(name = "4k-connect")]
    Connect,
    /// 100 KB, 20 sessions.
    #[value(name = "100k-20")]
    Large,
    /// 4 KiB, 20 sessions, STARTTLS in and out.
    #[value(name = "4k-tls")]
    Tls,
    /// 20,000 messages for a dead host, then drained.
    #[value(name = "parked")]
    Parked,
}

/// User and password of the workload with AUTH.
pub(crate) const USER: &str = "app1";
pub(crate) const PASSWORD: &str = "correct-horse-battery";

impl Workload {
    pub(crate) const ALL: [Workload; 6] = [
        Workload::Small20,
        Workload::Small200,
        Workload::Connect,
        Workload::Large,
        Workload::Tls,
        Workload::Parked,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Workload::Small20 => "4k-20",
            Workload::Small200 => "4k-200",
            Workload::Connect => "4k-connect",
            Workload::Large => "100k-20",
            Workload::Tls => "4k-tls",
            Workload::Parked => "parked",
        }
    }

    /// Messages of a run: some seconds of work for each relay.
    pub(crate) fn messages(self, kind: Kind, quick: bool) -> u64 {
        let fast = match self {
            Workload::Small20 | Workload::Small200 => 100_000,
            Workload::Tls => 60_000,
            Workload::Connect => 5_000,
            Workload::Large | Workload::Parked => 20_000,
        };
        let messages = match kind {
            Kind::Postrider | Kind::Yardstick => fast,
            Kind::Postfix => fast / 20 + 1_500,
            Kind::Exim | Kind::OpenSmtpd => fast / 100 + 400,
        };
        if quick { messages / 5 } else { messages }
    }

    /// What `storm source` and `storm run` are given beside addresses and count.
    pub(crate) fn storm_args(self) -> Vec<String> {
        let auth = format!("{USER}:{PASSWORD}");
        let args: &[&str] = match self {
            Workload::Small20 | Workload::Parked => &["--sessions", "20", "--size", "4096"],
            Workload::Small200 => &["--sessions", "200", "--size", "4096"],
            Workload::Connect => &[
                "--sessions",
                "20",
                "--size",
                "4096",
                "--messages-per-connection",
                "1",
                "--starttls",
                "--auth",
                &auth,
            ],
            Workload::Large => &["--sessions", "20", "--size", "100000"],
            Workload::Tls => &["--sessions", "20", "--size", "4096", "--starttls"],
        };
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    pub(crate) fn tls_in(self) -> bool {
        matches!(self, Workload::Connect | Workload::Tls)
    }

    pub(crate) fn tls_out(self) -> bool {
        self == Workload::Tls
    }

    pub(crate) fn auth(self) -> bool {
        self == Workload::Connect
    }
}

//! The command line.

use crate::check::{self, Known, Report};
use crate::run;
use crate::script::Script;
use crate::sink::{self, Sink};
use crate::source::{self, Control, Plan, Security};
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a waiting command looks.
const LOOK: Duration = Duration::from_millis(20);

/// Load and exact accounting for SMTP relays.
///
/// A relay under test listens at one address and has the sink as its next hop. Source and sink number every
/// message; the check proves that nothing the relay acknowledged was lost.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send numbered messages to a relay and journal its verdicts.
    Source(SourceArgs),
    /// Take mail by script and log each recipient.
    Sink(SinkArgs),
    /// Account for every recipient; exit code 1 when the claim fails.
    Check(CheckArgs),
    /// Source, sink and check at once; prints one line.
    Run(RunArgs),
    /// Write a self-made certificate and its key in PEM form.
    Certificate {
        /// Where the certificate goes.
        certificate: PathBuf,
        /// Where the key goes.
        key: PathBuf,
        /// Host names in it.
        #[arg(long, value_delimiter = ',', default_value = "localhost")]
        names: Vec<String>,
    },
}

#[derive(Args)]
struct SourceArgs {
    /// The relay, as IP:PORT.
    relay: SocketAddr,
    #[command(flatten)]
    load: Load,
    /// Journal of verdicts, for the check.
    #[arg(long, default_value = "/dev/null")]
    journal: PathBuf,
    /// Counts as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Args)]
struct Load {
    /// Connections at once.
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// Messages in all.
    #[arg(long, required_unless_present = "duration")]
    messages: Option<u64>,
    /// Begin no message after so long, as 30s or 5m.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Size of a message, as 4096, 4k or 1m (k is 1024).
    #[arg(long, default_value = "4k", value_parser = size)]
    size: usize,
    /// Recipients per message.
    #[arg(long, default_value_t = 1)]
    recipients: u16,
    /// Recipient domains, taken in turn.
    #[arg(long, value_delimiter = ',', default_value = "example.test")]
    domains: Vec<String>,
    /// Domains by template, {} standing for the number from 0; with --domain-count.
    #[arg(long, requires = "domain_count", conflicts_with = "domains")]
    domain_template: Option<String>,
    /// How many domains the template makes.
    #[arg(long)]
    domain_count: Option<usize>,
    /// Messages per second in all; as fast as the relay answers when absent.
    #[arg(long)]
    rate: Option<f64>,
    /// Messages per connection; unlimited when absent.
    #[arg(long)]
    messages_per_connection: Option<u64>,
    /// MAIL, RCPT and DATA in one write where the relay offers PIPELINING.
    #[arg(long, default_value = "on")]
    pipelining: Switch,
    /// BDAT instead of DATA where the relay offers CHUNKING.
    #[arg(long)]
    bdat: bool,
    /// STARTTLS before the first message.
    #[arg(long, conflicts_with = "tls")]
    starttls: bool,
    /// TLS from the first octet on.
    #[arg(long)]
    tls: bool,
    /// Resume TLS sessions; each connection makes a full handshake otherwise.
    #[arg(long)]
    tls_resumption: bool,
    /// AUTH PLAIN as USER:PASSWORD.
    #[arg(long)]
    auth: Option<String>,
    /// Reverse-path.
    #[arg(long, default_value = "storm@example.test")]
    from: String,
    /// Send a message again when the connection broke after its final dot.
    #[arg(long)]
    retry_lost: bool,
    /// Give up when there was no verdict for so long.
    #[arg(long, default_value = "30s", value_parser = duration)]
    patience: Duration,
    /// Threads of the source.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Args)]
struct SinkArgs {
    /// Addresses to listen on, as IP:PORT.
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
    /// Log of recipients, for the check.
    #[arg(long, default_value = "/dev/null")]
    log: PathBuf,
    #[command(flatten)]
    behaviour: Behaviour,
    /// End after so many recipients.
    #[arg(long)]
    expect: Option<u64>,
    /// End when nothing was taken for so long (from the start on).
    #[arg(long, value_parser = duration)]
    idle: Option<Duration>,
    /// Totals as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Behaviour {
    /// TOML file: extensions, limits, and rules that spoil deliveries.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Offer STARTTLS, whatever the script says.
    #[arg(long)]
    sink_starttls: bool,
    /// TLS from the first octet on, at the sink.
    #[arg(long)]
    sink_tls: bool,
    /// LMTP instead of SMTP.
    #[arg(long)]
    lmtp: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// Journal of the source.
    #[arg(long)]
    source: PathBuf,
    /// Log of the sink.
    #[arg(long)]
    sink: PathBuf,
    /// JSON list of recipients that the relay still holds.
    #[arg(long)]
    relay_state: Option<PathBuf>,
    /// Connections open at the relay's crashes, summed over them; each excuses two copies.
    #[arg(long, default_value_t = 0)]
    open_connections: u64,
    /// All figures as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RunArgs {
    /// The relay, as IP:PORT.
    relay: SocketAddr,
    /// Where the relay's next hop is, as IP:PORT.
    #[arg(long, required = true)]
    sink: Vec<SocketAddr>,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    behaviour: Behaviour,
    /// Keep the source's journal.
    #[arg(long)]
    journal: Option<PathBuf>,
    /// Keep the sink's log.
    #[arg(long)]
    log: Option<PathBuf>,
    /// How long to wait for a further delivery after the source is done.
    #[arg(long, default_value = "20s", value_parser = duration)]
    drain_patience: Duration,
    /// All figures as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command line's command. The exit code is 1 when a claim failed.
///
/// # Errors
/// Mistakes in the arguments, files and addresses that cannot be used.
pub fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Source(args) => source(args),
        Command::Sink(args) => sink(args),
        Command::Check(args) => check(&args),
        Command::Run(args) => run(args),
        Command::Certificate { certificate, key, names } => {
            let (_, certificate_pem, key_pem) = crate::tls::Identity::self_signed(&names)?;
            std::fs::write(&certificate, certificate_pem).context("cannot write the certificate")?;
            std::fs::write(&key, key_pem).context("cannot write the key")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Load {
    fn plan(self, relay: SocketAddr, journal: Option<PathBuf>) -> anyhow::Result<Plan> {
        let domains = match (self.domain_template, self.domain_count) {
            (Some(template), Some(count)) => {
                (0..count).map(|number| template.replace("{}", &number.to_string())).collect()
            }
            _ => self.domains,
        };
        let auth = match self.auth.as_deref().map(|auth| auth.split_once(':')) {
            Some(Some((user, password))) => Some((user.to_owned(), password.to_owned())),
            Some(None) => bail!("--auth is USER:PASSWORD"),
            None => None,
        };
        Ok(Plan {
            relay,
            sessions: self.sessions,
            threads: self.threads,
            messages: self.messages,
            duration: self.duration,
            size: self.size,
            recipients: self.recipients,
            domains,
            rate: self.rate,
            per_connection: self.messages_per_connection,
            pipelining: matches!(self.pipelining, Switch::On),
            bdat: self.bdat,
            security: match (self.starttls, self.tls) {
                (true, _) => Security::StartTls,
                (_, true) => Security::Implicit,
                _ => Security::Clear,
            },
            tls_resumption: self.tls_resumption,
            auth,
            from: self.from,
            retry_lost: self.retry_lost,
            patience: self.patience,
            run: None,
            journal,
        })
    }
}

impl Behaviour {
    fn options(self, listen: Vec<SocketAddr>, log: Option<PathBuf>) -> anyhow::Result<sink::Options> {
        let mut script = self.script.as_deref().map(Script::read).transpose()?.unwrap_or_default();
        script.offer.starttls |= self.sink_starttls;
        Ok(sink::Options {
            script,
            log,
            implicit_tls: self.sink_tls,
            lmtp: self.lmtp,
            ..sink::Options::at(listen)
        })
    }
}

fn source(args: SourceArgs) -> anyhow::Result<ExitCode> {
    let plan = args.load.plan(args.relay, Some(args.journal))?;
    let control = Arc::new(Control::default());
    let watcher = control.clone();
    let stop = stop_signals()?;
    let watch = std::thread::spawn(move || {
        while Arc::strong_count(&watcher) > 1 {
            if stop.load(Ordering::Relaxed) {
                watcher.stop();
            }
            std::thread::sleep(LOOK);
        }
    });
    let began = Instant::now();
    let outcome = source::run_controlled(&plan, &control)?;
    let seconds = began.elapsed().as_secs_f64();
    drop(control);
    // The watcher only sleeps; a panic there has nothing to say about the load.
    let _ = watch.join();
    let counts = outcome.counts;
    let rate = counts.acknowledged as f64 / seconds;
    if args.json {
        let value = serde_json::json!({
            "acknowledged": counts.acknowledged, "refused": counts.refused, "unknown": counts.unknown,
            "unsent": counts.unsent, "connections": counts.connections, "broken": counts.broken,
            "seconds": seconds, "accepted_per_s": rate, "trouble": outcome.trouble,
        });
        println!("{value}");
    } else {
        println!(
            "{rate:.0} accepted/s: {} acknowledged in {seconds:.2} s, {} refused, {} unknown, {} unsent, \
             {} connections ({} broke)",
            counts.acknowledged,
            counts.refused,
            counts.unknown,
            counts.unsent,
            counts.connections,
            counts.broken
        );
    }
    if let Some(trouble) = &outcome.trouble {
        eprintln!("storm: {trouble}");
    }
    Ok(exit(outcome.trouble.is_none() && counts.unsent == 0))
}

fn sink(args: SinkArgs) -> anyhow::Result<ExitCode> {
    let mut options = args.behaviour.options(args.addresses, Some(args.log))?;
    options.expect = args.expect;
    let stop = stop_signals()?;
    let sink = Sink::start(options)?;
    for address in sink.addresses() {
        eprintln!("storm: sink listens on {address}");
    }
    let mut seen = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) && !sink.is_finished() {
        std::thread::sleep(LOOK);
        let taken = sink.taken();
        if taken != seen.0 {
            seen = (taken, Instant::now());
        }
        if args.idle.is_some_and(|idle| seen.1.elapsed() > idle) {
            break;
        }
    }
    let totals = sink.stop().totals;
    if args.json {
        println!("{}", serde_json::to_string(&totals)?);
    } else {
        println!(
            "{} taken ({} foreign), {} deferred ({:.1} %), {} refused, {} dropped, at most {} connections",
            totals.taken,
            totals.foreign,
            totals.deferred,
            100.0 * totals.deferral_share(),
            totals.refused,
            totals.dropped,
            totals.connections_max
        );
    }
    Ok(exit(args.expect.is_none_or(|expect| totals.taken >= expect)))
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut known = Known { open_connections: args.open_connections, ..Known::default() };
    if let Some(path) = &args.relay_state {
        let json =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        known.read_queued(&json)?;
    }
    let report = check::check(&read(&args.source)?, &read(&args.sink)?, &known)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(exit(report.holds()))
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let options = run::Options {
        plan: args.load.plan(args.relay, args.journal)?,
        sink: args.behaviour.options(args.sink, args.log)?,
        drain_patience: args.drain_patience,
    };
    let result = run::run(options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!("{}", result.line());
    }
    if let Some(trouble) = &result.trouble {
        eprintln!("storm: {trouble}");
    }
    Ok(exit(result.holds()))
}

fn print_report(report: &Report) {
    println!(
        "messages    {} acknowledged, {} refused, {} unknown",
        report.acknowledged, report.refused, report.unknown
    );
    println!(
        "recipients  {} owed: {} delivered, {} queued, {} lost",
        report.recipients, report.delivered, report.queued, report.lost
    );
    println!(
        "copies      {} duplicates (at most {} allowed), {} asked for",
        report.duplicates, report.duplicates_allowed, report.copies_expected
    );
    println!("content     {} damaged, {} under another envelope", report.damaged, report.crossed);
    println!(
        "unasked     {} delivered though unknown, {} though refused, {} unheard of; {} out of order",
        report.delivered_unknown, report.delivered_refused, report.delivered_unheard_of, report.disordered
    );
    for (what, times) in [
        ("acceptance", &report.acceptance),
        ("dot-reply", &report.dot_to_reply),
        ("end-to-end", &report.end_to_end),
    ] {
        let [p50, p99, p999, max] =
            [times.p50_us, times.p99_us, times.p999_us, times.max_us].map(|us| us as f64 / 1000.0);
        println!("{what:<11} p50 {p50:.2} p99 {p99:.2} p99.9 {p999:.2} max {max:.2} ms");
    }
    println!("rate        {:.0} relayed/s over {:.2} s", report.relayed_per_s, report.span_s);
    for (what, list) in [
        ("lost", &report.lost_recipients),
        ("duplicate", &report.duplicate_recipients),
        ("damaged", &report.damaged_recipients),
        ("disordered", &report.disordered_recipients),
    ] {
        for recipient in list {
            println!("{what:<11} {recipient}");
        }
    }
    println!("{}", if report.holds() { "the claim holds" } else { "THE CLAIM FAILS" });
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn stop_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // A second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic()).len());
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no time; write 30s, 500ms or 5m"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("unknown unit {unit:?}; write ms, s, m or h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1024),
        Some(b'm') => (&lower[..lower.len() - 1], 1024 * 1024),
        _ => (lower.as_str(), 1),
    };
    let number: usize = digits.parse().map_err(|_| format!("{text:?} is no size; write 4096, 4k or 1m"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert!(duration("2x").is_err() && duration("s").is_err() && duration("-1s").is_err());
        assert_eq!(size("100k").unwrap(), 102_400);
        assert!(size("k").is_err() && size("").is_err());
    }
}

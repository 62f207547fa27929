//! `cargo xtask bench`: our relay beside others, with the same disk, durability and workload, in one table.

mod measure;
mod peers;
mod relay;
mod table;
mod workload;

use crate::{instructions, shell};
use anyhow::{Context, Result, bail, ensure};
use measure::{MemoryWatch, SyncCount};
use relay::{Kind, Kit, Relay};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use table::{Figures, Results};
use workload::Workload;

/// Outcomes are on the disk this long after the last delivery.
const SETTLE: Duration = Duration::from_millis(100);
/// A sink for a parked queue listens within this time.
const SINK_START: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run Debian's Postfix, Exim and OpenSMTPD beside ours (needs root and apt-get).
    #[arg(long)]
    peers: bool,
    /// Workloads to run; all when absent.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// A fifth of the messages, once.
    #[arg(long)]
    quick: bool,
    /// How often each relay has its turn; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A program that relays with the least work possible: PROGRAM LISTEN NEXT-HOP LOG-FILE.
    #[arg(long)]
    yardstick: Option<PathBuf>,
    /// Count the instructions of the hot paths instead, and hold them against the recorded figures.
    #[arg(long)]
    instructions: bool,
    /// Record what was counted.
    #[arg(long, requires = "instructions")]
    record: bool,
    /// Leave our own relay out.
    #[arg(long)]
    only_others: bool,
    /// Where queues are kept, on the disk that is to be measured.
    #[arg(long)]
    scratch: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.instructions {
        return instructions::run(args.record);
    }
    let kit = prepare(args)?;
    let mut kinds = Vec::new();
    kinds.extend((!args.only_others).then_some(Kind::Postrider));
    kinds.extend(args.yardstick.is_some().then_some(Kind::Yardstick));
    if args.peers {
        kinds.extend([Kind::Postfix, Kind::Exim, Kind::OpenSmtpd]);
    }
    ensure!(!kinds.is_empty(), "nothing to run");
    let workloads = if args.workload.is_empty() { Workload::ALL.to_vec() } else { args.workload.clone() };
    let rounds = if args.quick { 1 } else { args.rounds };
    let mut results = Results::default();
    for workload in workloads {
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.can(workload)).collect();
        // A B A B: what disturbs the machine for a while disturbs all alike.
        for round in 1..=rounds {
            for kind in &kinds {
                let figures = turn(*kind, workload, args.quick, &kit);
                let told = figures.trouble.clone().unwrap_or_else(|| {
                    format!("{:.0} msg/s, {:.0} µs of CPU each", figures.per_s, figures.cpu_us)
                });
                eprintln!("── {} {round}/{rounds} {}: {told}", workload.name(), kind.name());
                results.add(workload, *kind, figures);
            }
        }
        for kind in &kinds {
            match count_syncs(*kind, workload, &kit) {
                Ok(Some(per_message)) => results.add_syncs(workload, *kind, per_message),
                Ok(None) => {}
                Err(error) => {
                    eprintln!("── {} {}: syncs not counted: {error:#}", workload.name(), kind.name());
                }
            }
        }
    }
    println!("{}", results.table());
    println!("Medians of {rounds} rounds; noise is half the distance between the best and the worst round.");
    if !report(&results) {
        // Everything was said; an error's chain would only bury it.
        std::process::exit(1);
    }
    Ok(())
}

/// Prints targets and troubles; true if no target was missed.
fn report(results: &Results) -> bool {
    for trouble in results.troubles() {
        println!("trouble  {trouble}");
    }
    let targets = results.targets();
    for (target, met) in &targets {
        println!("{}   {target}", if *met { "met   " } else { "MISSED" });
    }
    targets.iter().all(|(_, met)| *met)
}

/// Builds the binaries, makes the certificate, unpacks the peers.
fn prepare(args: &Args) -> Result<Kit> {
    let mut build = shell::command(&shell::cargo(), &["build", "--release", "--package", "storm"]);
    if !args.only_others {
        build.args(["--package", "postrider"]);
    }
    shell::must("build", &mut build)?;
    let target = shell::target();
    let scratch = args.scratch.clone().unwrap_or_else(|| target.join("bench"));
    fs::create_dir_all(&scratch)?;
    let scratch = scratch.canonicalize()?;
    let storm = target.join("release/storm");
    let (certificate, key) = (scratch.join("certificate.pem"), scratch.join("key.pem"));
    shell::must("certificate", Command::new(&storm).arg("certificate").args([&certificate, &key]))?;
    let postrider = (!args.only_others).then(|| target.join("release/postrider"));
    let verifier = postrider.as_deref().map(relay::verifier).transpose()?.unwrap_or_default();
    let packages = scratch.join("debian");
    Ok(Kit {
        storm,
        postrider,
        yardstick: args.yardstick.clone(),
        packages,
        scratch,
        certificate,
        key,
        verifier,
    })
}

/// One run of one relay, from an empty queue. What fails is told in the figures: the others go on.
fn turn(kind: Kind, workload: Workload, quick: bool, kit: &Kit) -> Figures {
    let messages = workload.messages(kind, quick);
    let figures = || -> Result<Figures> {
        let relay = Relay::start(kind, workload, kit)?;
        let memory = MemoryWatch::start(relay.processes());
        let before = relay.processes().usage();
        let result = match workload {
            Workload::Parked => park_and_drain(&relay, workload, messages, kit),
            _ => through(&relay, workload, messages, kit),
        };
        std::thread::sleep(SETTLE);
        let after = relay.processes().usage();
        let memory_bytes = memory.peak_bytes();
        let mut figures = result?;
        figures.cpu_us = (after.cpu_s - before.cpu_s) * 1e6 / messages as f64;
        figures.written_bytes =
            after.written_bytes.saturating_sub(before.written_bytes) as f64 / messages as f64;
        figures.memory_bytes = memory_bytes;
        Ok(figures)
    };
    figures().unwrap_or_else(|error| Figures { trouble: Some(format!("{error:#}")), ..Figures::default() })
}

/// Source and sink at once.
fn through(relay: &Relay, workload: Workload, messages: u64, kit: &Kit) -> Result<Figures> {
    let mut command = Command::new(&kit.storm);
    command.arg("run").arg(relay.relay.to_string()).args(["--sink", &relay.sink.to_string(), "--json"]);
    command.args(["--messages", &messages.to_string()]).args(workload.storm_args());
    if workload.tls_out() {
        command.arg("--sink-starttls");
    }
    figures(&json(&mut command)?, "relayed_per_s")
}

/// The sink is away while the source works; then it comes back and takes all.
fn park_and_drain(relay: &Relay, workload: Workload, messages: u64, kit: &Kit) -> Result<Figures> {
    let (journal, log) = (kit.scratch.join("journal"), kit.scratch.join("sink-log"));
    for old in [&journal, &log] {
        let _ = fs::remove_file(old);
    }
    let mut source = Command::new(&kit.storm);
    source.arg("source").arg(relay.relay.to_string()).arg("--journal").arg(&journal).arg("--json");
    source.args(["--messages", &messages.to_string()]).args(workload.storm_args());
    json(&mut source)?;
    let mut sink = Command::new(&kit.storm)
        .arg("sink")
        .arg(relay.sink.to_string())
        .arg("--log")
        .arg(&log)
        .args(["--expect", &messages.to_string(), "--idle", "120s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let drained = wait_for_sink(relay, &mut sink).and_then(|()| relay.retry_all());
    if drained.is_err() {
        let _ = sink.kill();
    }
    sink.wait()?;
    drained?;
    let mut check = Command::new(&kit.storm);
    check.arg("check").arg("--source").arg(&journal).arg("--sink").arg(&log).arg("--json");
    figures(&json(&mut check)?, "drained_per_s")
}

fn wait_for_sink(relay: &Relay, sink: &mut Child) -> Result<()> {
    let started = Instant::now();
    while std::net::TcpStream::connect(relay.sink).is_err() {
        if let Some(status) = sink.try_wait()? {
            bail!("the sink ended: {status}");
        }
        ensure!(started.elapsed() < SINK_START, "the sink does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs storm and reads what it prints. Exit code 1 is a finding, which is in the figures.
fn json(command: &mut Command) -> Result<Value> {
    let output = command.stdin(Stdio::null()).output().context("cannot start storm")?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(matches!(output.status.code(), Some(0 | 1)), "storm failed: {error}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("storm printed no JSON: {error}"))
}

fn figures(value: &Value, rate: &str) -> Result<Figures> {
    let number = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_f64)
            .with_context(|| format!("storm's result has no {pointer}"))
    };
    let count = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_u64)
            .with_context(|| format!("storm's result has no {pointer}"))
    };
    Ok(Figures {
        per_s: number(&format!("/{rate}"))?,
        accept_p50_us: number("/acceptance/p50_us")?,
        accept_p99_us: number("/acceptance/p99_us")?,
        through_p99_us: number("/end_to_end/p99_us")?,
        lost: count("/lost")?,
        duplicates: count("/duplicates")?,
        damaged: count("/damaged")? + count("/crossed")?,
        refused: count("/refused")?,
        trouble: value.get("trouble").and_then(Value::as_str).map(str::to_owned),
        ..Figures::default()
    })
}

/// Syncs per message, in a short run of its own. `None` where they cannot be counted.
fn count_syncs(kind: Kind, workload: Workload, kit: &Kit) -> Result<Option<f64>> {
    if workload == Workload::Parked {
        return Ok(None);
    }
    let messages = workload.messages(kind, true).min(10_000);
    let relay = Relay::start(kind, workload, kit)?;
    let Some(count) = SyncCount::start(&relay.processes(), Path::new(&kit.scratch))? else { return Ok(None) };
    let result = through(&relay, workload, messages, kit);
    std::thread::sleep(SETTLE);
    let syncs = count.finish()?;
    result?;
    Ok(Some(syncs as f64 / messages as f64))
}

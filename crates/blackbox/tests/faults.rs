//! Disks that are full, fail to write or fail to sync: no false 250, a clear 4xx, recovery where it may be; and
//! the order of system calls behind a 250.

use blackbox::{Relay, Site, program, skip, until};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storm::check::{self, Known};
use storm::record::{self, Verdict};
use storm::sink::{Options, Sink};
use storm::source::{self, Outcome, Plan};

/// Everything is delivered within this time.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a client waits for any verdict before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// A disk that fails is told to the client within this time.
const PROMPT: Duration = Duration::from_secs(5);

fn config(address: SocketAddr, sink: SocketAddr) -> String {
    format!(
        "shards = 1\n[[listener]]\naddress = \"{address}\"\n\
         legacy = {{ clients = [\"127.0.0.0/8\"], from = [\"*@example.test\"] }}\n\
         [[route]]\nto = [\"smtp://{sink}\"]\n[delivery]\nretry = [\"1s\"]\n[spool]\nsegment_size = \"1 MiB\"\n"
    )
}

/// `shards` stands at the top of the file, before the first table.
fn start(site: &Site, address: SocketAddr, sink: SocketAddr, wrapper: &[&str]) -> Relay {
    Relay::start_wrapped(site, &config(address, sink), wrapper)
}

/// Replies with which messages were refused.
fn refusals(outcome: &Outcome) -> Vec<String> {
    let known = Known::default();
    let report = check::check(&outcome.journal, b"", &known);
    report.map(|report| report.refusals.into_keys().collect()).unwrap_or_default()
}

fn send(address: SocketAddr, messages: u64, run: u64) -> Outcome {
    let plan = Plan { run: Some(run), patience: PATIENCE, ..Plan::to(address).messages(messages) };
    source::run(&plan).unwrap()
}

/// Sends more 4 KiB messages than a small disk holds; many are taken, and the rest is refused for want of room.
fn fill(address: SocketAddr, messages: u64) -> Outcome {
    let outcome = send(address, messages, 1);
    let replies = refusals(&outcome);
    eprintln!("{:?}: {replies:?}", outcome.counts);
    assert!(outcome.counts.refused > 0, "everything went into a disk of 24 MiB");
    assert!(outcome.counts.acknowledged > 500, "{:?}", outcome.counts);
    assert!(replies.iter().all(|reply| reply.starts_with("452 4.3.1")), "{replies:?}");
    outcome
}

/// Sends until ten messages in a row are taken; what was sent comes to the journal.
fn take_again(address: SocketAddr, journal: &mut Vec<u8>) {
    // No two runs have the same number: their messages are told apart by it.
    static RUN: AtomicU64 = AtomicU64::new(1_000);
    until("mail is taken again", DRAIN, || {
        let outcome = send(address, 10, RUN.fetch_add(1, Ordering::Relaxed));
        journal.extend_from_slice(&outcome.journal);
        (outcome.counts.acknowledged == 10).then_some(())
    });
}

/// From MAIL to the verdict, for each message.
fn waits(outcome: &Outcome) -> Vec<Duration> {
    let mut waits = Vec::new();
    record::read_source(&outcome.journal, |sent| {
        waits.push(Duration::from_micros(sent.end_us - sent.start_us));
    })
    .unwrap();
    waits
}

/// strace on the binary, with these faults; its output goes to the file.
fn tracer(trace: &Path, faults: &[&str]) -> Option<Vec<String>> {
    let strace = program("strace", "strace").ok()?;
    let works = Command::new(&strace).args(["-qq", "-o", "/dev/null", "true"]).status();
    if !works.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut words = vec![strace.display().to_string(), "-f".into(), "-qq".into(), "-y".into(), "-o".into()];
    words.push(trace.display().to_string());
    words.extend(faults.iter().map(|word| (*word).to_owned()));
    Some(words)
}

fn words(tracer: &[String]) -> Vec<&str> {
    tracer.iter().map(String::as_str).collect()
}

/// Calls of one kind on files of the log that succeeded.
fn successes(trace: &Path, call: &str) -> u64 {
    let text = std::fs::read_to_string(trace).unwrap();
    let finished =
        |line: &&str| line.contains(&format!("{call}(")) || line.contains(&format!("{call} resumed>"));
    text.lines().filter(finished).filter(|line| line.trim_end().ends_with("= 0")).count() as u64
}

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(at))
    }

    /// Octets that are free.
    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_failed_sync_is_never_a_250_and_heals() {
    let site = Site::new();
    let trace = site.path("trace");
    let fault = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=12"];
    let Some(tracer) = tracer(&trace, &fault) else { skip!("strace cannot trace here") };
    let (address, next_hop) = (site.free(1), site.free(2));
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    let mut relay = start(&site, address, next_hop, &words(&tracer));
    let mut journal = Vec::new();
    let (mut acknowledged, mut refused) = (0, Vec::new());
    for run in 1..=10 {
        let outcome = send(address, 10, run);
        acknowledged += outcome.counts.acknowledged;
        refused.extend(refusals(&outcome));
        journal.extend_from_slice(&outcome.journal);
    }
    let failed = std::fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count();
    eprintln!("{acknowledged} acknowledged, {failed} syncs failed, refused with {refused:?}");
    assert!(failed >= 1, "no sync failed");
    assert!(
        refused.iter().all(|reply| reply.starts_with("451 4.3.0") || reply.starts_with("452 4.3.1")),
        "{refused:?}"
    );
    assert!(acknowledged > 80, "one failed sync stopped the relay: {acknowledged} of 100; {refused:?}");
    relay.wait_until_empty(DRAIN);
    relay.restart();
    relay.wait_until_empty(DRAIN);
    let report =
        check::check(&journal, &sink.stop().log, &Known { open_connections: 20, ..Known::default() })
            .unwrap();
    assert!(report.holds() && report.acknowledged == acknowledged, "{report:#?}");
}

#[test]
fn when_no_sync_succeeds_no_mail_is_taken() {
    let site = Site::new();
    let trace = site.path("trace");
    let fault = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=12+"];
    let Some(tracer) = tracer(&trace, &fault) else { skip!("strace cannot trace here") };
    let (address, next_hop) = (site.free(1), site.free(2));
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    let mut relay = start(&site, address, next_hop, &words(&tracer));
    let outcome = send(address, 60, 1);
    let last = send(address, 5, 2);
    let mut replies = refusals(&outcome);
    replies.extend(refusals(&last));
    eprintln!("{:?}, then {:?}: {replies:?}", outcome.counts, last.counts);
    // One session, one message after the other: each 250 had a sync of its own.
    assert!(outcome.counts.acknowledged <= successes(&trace, "fdatasync"));
    assert_eq!(last.counts.acknowledged, 0, "a 250 without a disk");
    assert!(replies.iter().all(|reply| reply.starts_with("451 4.3.0")), "{replies:?}");
    for told in [&outcome, &last] {
        assert_eq!((&told.trouble, told.counts.unsent, told.counts.broken), (&None, 0, 0));
        let waits = waits(told);
        let longest = waits.iter().max();
        assert!(longest < Some(&PROMPT), "a client waited {longest:?}");
        assert_eq!(waits.len() as u64, told.counts.acknowledged + told.counts.refused);
    }
    assert!(relay.is_running(), "a bad disk is no reason to end: {}", relay.log());
    relay.kill();
    // With a disk that works, everything acknowledged is there.
    drop(relay);
    let relay = start(&site, address, next_hop, &[]);
    relay.wait_until_empty(DRAIN);
    let journal = [outcome.journal, last.journal].concat();
    let report =
        check::check(&journal, &sink.stop().log, &Known { open_connections: 20, ..Known::default() })
            .unwrap();
    assert!(report.holds(), "{report:#?}");
}

#[test]
fn a_failed_write_is_never_a_250_and_heals() {
    let site = Site::new();
    let trace = site.path("trace");
    let calls = "pwritev,pwritev2,pwrite64";
    let (one, two) = (format!("trace={calls}"), format!("inject={calls}:error=EIO:when=12..14"));
    let Some(tracer) = tracer(&trace, &["-e", &one, "-e", &two]) else { skip!("strace cannot trace here") };
    let (address, next_hop) = (site.free(1), site.free(2));
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    let relay = start(&site, address, next_hop, &words(&tracer));
    let mut outcome = send(address, 100, 1);
    let replies = refusals(&outcome);
    take_again(address, &mut outcome.journal);
    let failed = std::fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count();
    eprintln!("{:?}, {failed} writes failed, {replies:?}", outcome.counts);
    assert!(failed >= 1, "no write failed");
    assert!(
        replies.iter().all(|reply| reply.starts_with("451 4.3.0") || reply.starts_with("452 4.3.1")),
        "{replies:?}"
    );
    relay.wait_until_empty(DRAIN);
    let report =
        check::check(&outcome.journal, &sink.stop().log, &Known { open_connections: 20, ..Known::default() })
            .unwrap();
    assert!(report.holds(), "{report:#?}");
}

#[test]
fn a_full_disk_refuses_drains_and_takes_mail_again() {
    let site = Site::new();
    let Some(disk) = SmallDisk::mount(site.path("small"), "24m") else {
        skip!("no small disk can be mounted here")
    };
    let (address, next_hop) = (site.free(1), site.free(2));
    // The next hop is away: the backlog fills the disk.
    let relay = Relay::start_at(&site, &disk.0.join("data"), &config(address, next_hop), &[]);
    let mut journal = fill(address, 8_000).journal;
    // The next hop is back: what was taken goes out, although there is no room.
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    relay.command(&["queue", "retry", "--all"]).must_succeed("queue retry");
    relay.wait_until_empty(DRAIN);
    take_again(address, &mut journal);
    relay.wait_until_empty(DRAIN);
    let report = check::check(&journal, &sink.stop().log, &Known::default()).unwrap();
    assert!(report.holds(), "{report:#?}");
    drop(relay);
    drop(disk);
}

#[test]
fn a_disk_short_of_room_refuses_mail_and_gets_room_back() {
    const FREE: u64 = 8 << 20;
    let site = Site::new();
    let Some(disk) = SmallDisk::mount(site.path("small"), "24m") else {
        skip!("no small disk can be mounted here")
    };
    let (address, next_hop) = (site.free(1), site.free(2));
    let config = config(address, next_hop) + "free_space = \"8 MiB\"\n";
    let relay = Relay::start_at(&site, &disk.0.join("data"), &config, &[]);
    let mut journal = fill(address, 5_000).journal;
    assert!(disk.free() > FREE / 2, "{} octets are left of {FREE}", disk.free());
    // What was taken goes out, and others take room: what the log does not need any more is given back.
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    relay.command(&["queue", "retry", "--all"]).must_succeed("queue retry");
    relay.wait_until_empty(DRAIN);
    take_again(address, &mut journal);
    let before = disk.free();
    std::fs::write(disk.0.join("of-others"), vec![1; 4 << 20]).unwrap();
    until("room is given back", DRAIN, || (disk.free() >= FREE).then_some(()));
    assert!(disk.free() + (4 << 20) > before);
    take_again(address, &mut journal);
    relay.wait_until_empty(DRAIN);
    let report = check::check(&journal, &sink.stop().log, &Known::default()).unwrap();
    assert!(report.holds(), "{report:#?}");
    drop(relay);
    drop(disk);
}

#[test]
fn a_250_comes_after_the_sync_and_the_directory_sync() {
    let site = Site::new();
    let trace = site.path("trace");
    let calls = "trace=openat,fsync,fdatasync,pwritev,pwritev2,pwrite64,write,writev,sendto,sendmsg";
    let Some(tracer) = tracer(&trace, &["-s", "64", "-e", calls]) else { skip!("strace cannot trace here") };
    let (address, next_hop) = (site.free(1), site.free(2));
    let sink = Sink::start(Options::at(vec![next_hop])).unwrap();
    let mut relay = start(&site, address, next_hop, &words(&tracer));
    // Some hundred messages, so that segments of 1 MiB follow each other.
    let outcome = send(address, 600, 1);
    relay.wait_until_empty(DRAIN);
    relay.stop();
    drop(sink);
    let text = std::fs::read_to_string(&trace).unwrap();
    let order = Order::read(&text);
    eprintln!("{order:?}");
    assert_eq!(order.accepted as u64, outcome.counts.acknowledged);
    assert!(order.early.is_empty(), "a 250 without a sync of its own before it: {:#?}", order.early);
    assert!(
        order.undirected.is_empty(),
        "a segment took mail before its folder was synced: {:#?}",
        order.undirected
    );
    assert!(order.segments >= 2, "the log stayed in one segment");
    let mut verdicts = 0;
    record::read_source(&outcome.journal, |sent| {
        verdicts += usize::from(sent.verdict == Verdict::Acknowledged);
    })
    .unwrap();
    assert_eq!(verdicts, order.accepted);
}

/// What a trace says of the order of things.
#[derive(Debug, Default)]
struct Order {
    accepted: usize,
    segments: usize,
    early: Vec<String>,
    undirected: Vec<String>,
}

impl Order {
    /// One session sends one message after the other, so that each reply to a final dot needs a sync that ended
    /// after the reply before it.
    fn read(trace: &str) -> Order {
        let mut order = Order::default();
        // Files synced since the last reply; segments whose entry in the folder is not durable yet; calls that
        // another thread's line interrupted.
        let (mut synced, mut loose, mut unfinished) = (HashSet::new(), HashSet::new(), HashMap::new());
        for line in trace.lines() {
            let thread = line.split(' ').next().unwrap_or_default();
            let file = line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path);
            for call in ["fdatasync", "fsync"] {
                let done = if line.contains(&format!(" {call}(")) && line.contains("<unfinished") {
                    unfinished.insert((thread, call), file.unwrap_or_default());
                    None
                } else if line.contains(&format!(" {call}(")) {
                    file
                } else if line.contains(&format!("<... {call} resumed>")) {
                    unfinished.remove(&(thread, call))
                } else {
                    None
                };
                if let Some(done) = done.filter(|_| line.ends_with("= 0")) {
                    synced.insert(done);
                    loose.retain(|segment: &&str| !segment.starts_with(&format!("{done}/")));
                }
            }
            if line.contains("O_CREAT")
                && let Some(path) = line.split('"').nth(1).filter(|path| path.contains("/segment"))
            {
                order.segments += 1;
                loose.insert(path);
            }
            if line.contains("\"250 2.0.0 Accepted as") {
                order.accepted += 1;
                let logs: Vec<_> = synced.drain().filter(|path| path.contains("/segment")).collect();
                if logs.is_empty() {
                    order.early.push(line.to_owned());
                } else if logs.iter().all(|path| loose.contains(path)) {
                    order.undirected.push(line.to_owned());
                }
            }
        }
        order
    }
}

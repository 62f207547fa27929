//! System calls that fail, by strace's fault injection: never a false acknowledgement, and recovery where it
//! may be. Without strace the test says so and shows nothing.

#![allow(clippy::unwrap_used, reason = "a test that stops is a test that failed")]

use bytes::Bytes;
use postrider_disk::{Committer, open_with};
use postrider_spool::{Append, Completion, Lost, Settings, Ticket};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

const MESSAGES: u64 = 60;
const DIR: &str = "SPOOL_FAULTS_DIR";

fn settings() -> Settings {
    Settings { segment_size_bytes: 64 << 10, segments_max: 64, ahead: 1, checkpoint_after_bytes: 1 << 20 }
}

/// What runs under strace: messages and outcomes one after the other; says what became of each.
#[test]
fn workload() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let recovered = open_with(Path::new(&dir), settings(), 7).unwrap().replay(|_| {}).unwrap();
    let (sender, woken) = channel();
    let committer =
        Committer::start(recovered, vec![Box::new(move || sender.send(()).unwrap_or(()))]).unwrap();
    let handle = committer.handle();
    let mut news = Completion::default();
    for i in 1..=MESSAGES {
        let body = std::iter::once(Bytes::from(vec![b'x'; 3000])).collect();
        let ticket = Ticket(i * 2);
        let message =
            Append { ticket, head: ticket.0.to_le_bytes().to_vec(), body, urgent: true, ..Append::default() };
        handle.submit(&mut vec![message]);
        loop {
            if let Some((_, why)) = news.lost.iter().find(|(lost, _)| *lost == ticket) {
                println!("lost {} {}", ticket.0, if *why == Lost::Full { "full" } else { "failed" });
                break;
            }
            if news.durable.is_some_and(|durable| durable.up_to() >= ticket) {
                println!("durable {}", ticket.0);
                break;
            }
            woken.recv_timeout(Duration::from_secs(20)).unwrap();
            handle.take_news(0, &mut news);
        }
        let outcome = Ticket(i * 2 + 1);
        let head = outcome.0.to_le_bytes().to_vec();
        handle.submit(&mut vec![Append { ticket: outcome, head, reserve: true, ..Append::default() }]);
    }
    // Without a way to the disk the last outcomes stay behind; stopping must not hang on them.
    committer.stop();
}

struct Told {
    durable: BTreeSet<u64>,
    failed: usize,
    full: usize,
    /// What a restart finds.
    found: BTreeSet<u64>,
}

/// Runs the workload with a fault; `None` when strace cannot be used here.
fn run(fault: &str) -> Option<Told> {
    let dir = tempfile::tempdir().unwrap();
    let call = fault.split(':').next().unwrap();
    let output = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
            &format!("inject={fault}"),
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "workload", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: strace cannot be run ({error})");
            return None;
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    if stdout.is_empty() {
        println!("skipped: strace may not trace here ({})", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    assert!(output.status.success(), "{fault}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    let mut told = Told { durable: BTreeSet::new(), failed: 0, full: 0, found: BTreeSet::new() };
    for line in stdout.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [.., "durable", ticket] => drop(told.durable.insert(ticket.parse().unwrap())),
            [.., "lost", _, "full"] => told.full += 1,
            [.., "lost", _, "failed"] => told.failed += 1,
            _ => {}
        }
    }
    assert_eq!(told.durable.len() + told.full + told.failed, 60, "{fault}: {stdout}");
    let recovered = open_with(dir.path(), settings(), 7).unwrap();
    let recovered = recovered.replay(|record| {
        told.found.insert(u64::from_le_bytes(record.head.try_into().unwrap()));
    });
    assert_eq!(recovered.unwrap().report().damages_count, 0, "{fault}");
    assert!(told.durable.is_subset(&told.found), "{fault}: a false acknowledgement");
    Some(told)
}

#[test]
fn a_failed_sync_costs_its_batch_and_no_outcome() {
    let Some(told) = run("fdatasync:error=EIO:when=5") else { return };
    assert!(told.failed <= 1 && told.full == 0, "{} failed", told.failed);
    assert_eq!(told.found.iter().filter(|ticket| *ticket % 2 == 1).count(), 60, "outcomes are written again");
}

#[test]
fn a_disk_that_never_syncs_again_acknowledges_nothing_more() {
    let Some(told) = run("fdatasync:error=EIO:when=20+") else { return };
    assert!(!told.durable.is_empty() && told.durable.len() < 40);
    assert_eq!(told.full, 0);
}

#[test]
fn a_failed_write_is_no_acknowledgement_and_the_log_goes_on() {
    for error in ["EIO", "ENOSPC"] {
        let Some(told) = run(&format!("pwritev:error={error}:when=7")) else { return };
        assert!(told.durable.len() >= 59, "{} durable", told.durable.len());
        assert_eq!(told.found.iter().filter(|ticket| *ticket % 2 == 1).count(), 60);
    }
}

#[test]
fn a_disk_without_room_for_segments_refuses_messages_and_keeps_outcomes() {
    let Some(told) = run("fallocate:error=ENOSPC:when=4+") else { return };
    assert!(told.full > 0 && told.failed == 0, "{} full, {} failed", told.full, told.failed);
    assert_eq!(
        told.found.iter().filter(|ticket| *ticket % 2 == 1).count(),
        60,
        "the reserve serves outcomes"
    );
}

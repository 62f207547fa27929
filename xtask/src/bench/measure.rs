//! What a relay's processes used, read from /proc.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clock ticks per second in /proc/PID/stat: USER_HZ, 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(500);

/// Which processes are the relay.
#[derive(Clone, Debug)]
pub(crate) enum Processes {
    /// A single one.
    One(u32),
    /// All of a PID namespace, by the link's text.
    Namespace(PathBuf),
}

/// Sums over the processes, those that ended and were waited for included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) written_bytes: u64,
}

impl Processes {
    pub(crate) fn pids(&self) -> Vec<u32> {
        let namespace = match self {
            Processes::One(pid) => return vec![*pid],
            Processes::Namespace(namespace) => namespace,
        };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == *namespace)
        })
        .collect()
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pid in self.pids() {
            usage.cpu_s += cpu_s(pid).unwrap_or(0.0);
            usage.written_bytes += field(pid, "io", "write_bytes:").unwrap_or(0);
        }
        usage
    }

    /// Memory in use now: the peak of a single process; of several, the sum of their shares, since what they
    /// have in common counts once.
    fn memory_bytes(&self) -> u64 {
        match self {
            Processes::One(pid) => field(*pid, "status", "VmHWM:").unwrap_or(0) * 1024,
            Processes::Namespace(_) => {
                self.pids().into_iter().filter_map(|pid| field(pid, "smaps_rollup", "Pss:")).sum::<u64>()
                    * 1024
            }
        }
    }
}

/// User and system time of a process and of its children that it waited for.
fn cpu_s(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; the fields after its last bracket are numbered from 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(ticks as f64 / TICKS_PER_S)
}

fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Watches a relay's memory while it runs.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl MemoryWatch {
    pub(crate) fn start(processes: Processes) -> MemoryWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !stopped.load(Ordering::Relaxed) {
                peak = peak.max(processes.memory_bytes());
                std::thread::park_timeout(SAMPLE);
            }
            peak.max(processes.memory_bytes())
        });
        MemoryWatch { stop, thread }
    }

    pub(crate) fn peak_bytes(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or(0)
    }
}

/// Counts the sync calls of processes and of those they start, by kernel tracepoints.
///
/// This slows every system call of the machine a little, so it is done in a run of its own.
pub(crate) struct SyncCount {
    perf: Child,
    output: PathBuf,
}

impl SyncCount {
    /// `None` where there is no `perf` or it may not trace.
    pub(crate) fn start(processes: &Processes, folder: &Path) -> Result<Option<SyncCount>> {
        const EVENTS: &str = "syscalls:sys_enter_fdatasync,syscalls:sys_enter_fsync,syscalls:sys_enter_msync,\
                              syscalls:sys_enter_sync_file_range";
        let probe = Command::new("perf").args(["stat", "-e", EVENTS, "true"]).stderr(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let output = folder.join("perf-syncs");
        let pids: HashSet<String> = processes.pids().iter().map(u32::to_string).collect();
        let pids: Vec<String> = pids.into_iter().collect();
        let perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", EVENTS, "-p", &pids.join(","), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start perf")?;
        // It attaches within some milliseconds and says nothing when it has.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Some(SyncCount { perf, output }))
    }

    pub(crate) fn finish(mut self) -> Result<u64> {
        Command::new("kill").args(["-INT", &self.perf.id().to_string()]).status()?;
        self.perf.wait()?;
        let text = fs::read_to_string(&self.output)?;
        Ok(text.lines().filter_map(|line| line.split(',').next()?.parse::<u64>().ok()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let processes = Processes::One(std::process::id());
        assert!(processes.memory_bytes() > 100_000);
        assert!(cpu_s(std::process::id()).is_some());
        assert_eq!(processes.pids(), [std::process::id()]);
    }

    #[test]
    fn a_namespace_holds_this_process() {
        let link = fs::read_link("/proc/self/ns/pid").unwrap();
        assert!(Processes::Namespace(link).pids().contains(&std::process::id()));
    }
}

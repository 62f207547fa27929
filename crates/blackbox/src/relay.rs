//! The binary under test.

use crate::command::{Answer, run, run_with_input};
use crate::site::{Site, shared_folder, target_folder, until};
use anyhow::{Context, Result, ensure};
use enclosure::{dying_with_us, once};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The account that tests log in with.
pub const USER: &str = "app1";
/// Its password.
pub const PASSWORD: &str = "correct-horse-battery";
/// The binary greets within this time of its start.
const START: Duration = Duration::from_secs(20);
/// A stop takes no longer.
const STOP: Duration = Duration::from_secs(40);

/// The `postrider` binary: that of `POSTRIDER_BIN`, or the one in this target directory, built when it is out of
/// date.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(given) = std::env::var_os("POSTRIDER_BIN") {
        return given.into();
    }
    let target = target_folder();
    // One build for each run of nextest; under `cargo test` each program asks cargo, who knows.
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| format!("process-{}", std::process::id()));
    let mark = shared_folder("built").join(run);
    once(&mark, || build(&target)).unwrap();
    target.join("quick/postrider")
}

fn build(target: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", "quick", "-p", "postrider", "--target-dir"]).arg(target);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    // What nextest sets for the tests would make cargo build everything anew.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST"))
        {
            command.env_remove(name);
        }
    }
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The verifier of [`PASSWORD`], as the binary makes it.
#[must_use]
pub fn verifier() -> String {
    let answer = run_with_input(Command::new(binary()).args(["password", "--stdin"]), PASSWORD.as_bytes());
    let text = answer.must_succeed("postrider password").text;
    let found = text.split(['"', '\n', ' ']).find(|word| word.starts_with("scram-sha-256:"));
    found.expect("postrider password prints a verifier").to_owned()
}

/// A running relay. It is killed when this is dropped.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    /// What runs the binary: nothing, or a tracer with its arguments.
    wrapper: Vec<String>,
    listener: Option<SocketAddr>,
}

impl Relay {
    /// Starts the binary with this configuration; `hostname` and `data_dir` are put before it. The first
    /// listener's address is waited for.
    #[track_caller]
    pub fn start(site: &Site, config: &str) -> Relay {
        Relay::start_wrapped(site, config, &[])
    }

    /// The same, run by another program such as strace.
    #[track_caller]
    pub fn start_wrapped(site: &Site, config: &str, wrapper: &[&str]) -> Relay {
        Relay::start_at(site, &site.path("data"), config, wrapper)
    }

    /// The same, with its data elsewhere.
    #[track_caller]
    pub fn start_at(site: &Site, data: &Path, config: &str, wrapper: &[&str]) -> Relay {
        let head = format!("hostname = \"relay.example.com\"\ndata_dir = {data:?}\n");
        let path = site.write("postrider.toml", head + config);
        let wrapper: Vec<_> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let log = site.path("postrider.log");
        let listener = first_address(config);
        let child = launch(&wrapper, &path, &log);
        let mut relay = Relay { child, config: path, data: data.to_owned(), log, wrapper, listener };
        relay.wait_until_ready();
        relay
    }

    /// Starts the killed or stopped relay again on the same configuration and data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Starts it again after [`Relay::kill`].
    #[track_caller]
    pub fn start_again(&mut self) {
        self.child = launch(&self.wrapper, &self.config, &self.log);
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        if let Some(address) = self.listener {
            let (child, log) = (&mut self.child, &self.log);
            until("the relay greets", START, || {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("the relay ended: {status}\n{}", fs::read_to_string(log).unwrap_or_default());
                }
                greets(address).then_some(())
            });
        }
    }

    /// Waits until a further listener answers.
    #[track_caller]
    pub fn wait_for_banner(&self, address: SocketAddr) {
        until("the relay greets", START, || greets(address).then_some(()));
    }

    /// The process of the binary itself, also under a wrapper.
    #[must_use]
    pub fn process(&self) -> u32 {
        let own = self.child.id();
        if self.wrapper.is_empty() {
            return own;
        }
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(own)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process().try_into().unwrap()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Ends it at once, as kill -9 does.
    pub fn kill(&mut self) {
        let process = self.process();
        self.signal(Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Under a wrapper it is no child of ours, and may still hold the lock of its data.
        until("the relay is dead", STOP, || is_dead(process).then_some(()));
    }

    /// Asks it to stop and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let child = &mut self.child;
        until("the relay stops", STOP, || child.try_wait().unwrap());
    }

    /// True while the process lives.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Runs a command of the binary on this relay.
    pub fn command(&self, args: &[&str]) -> Answer {
        run(Command::new(binary()).args(args).arg("--config").arg(&self.config))
    }

    /// Everything that waits, as `queue list --json` tells it.
    #[track_caller]
    pub fn queue(&self) -> Vec<Value> {
        let answer = self.command(&["queue", "list", "--json", "--limit", "0"]).must_succeed("queue list");
        serde_json::from_slice(&answer.output).unwrap()
    }

    /// Waits until nothing is queued.
    #[track_caller]
    pub fn wait_until_empty(&self, bound: Duration) {
        let mut last = Vec::new();
        let started = std::time::Instant::now();
        while started.elapsed() < bound {
            last = self.queue();
            if last.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("still queued: {last:#?}\n{}", self.log());
    }

    /// What the admin socket answers to a GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let mut socket = UnixStream::connect(self.data.join("admin.sock")).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}\n{answer}"))
    }

    /// Memory of the process that is in use, in octets.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().rev().nth(6_000).map_or(0, |(at, _)| at);
            eprintln!("--- the relay's log\n{}", &log[from..]);
        }
    }
}

/// No such process, or a zombie.
fn is_dead(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn launch(wrapper: &[String], config: &Path, log: &Path) -> Child {
    let output = File::options().create(true).append(true).open(log).unwrap();
    let program = binary();
    let mut command = match wrapper.split_first() {
        None => dying_with_us(&program),
        Some((first, rest)) => {
            let mut command = dying_with_us(Path::new(first));
            command.args(rest).arg(&program);
            command
        }
    };
    command.args(["serve", "--log-format", "json", "--config"]).arg(config);
    command.env("POSTRIDER_LOG", "info,postrider=debug");
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    command.spawn().unwrap()
}

/// True when something greets as an SMTP server, or listens for TLS.
fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut line = String::new();
    match BufReader::new(&stream).read_line(&mut line) {
        Ok(0) => false,
        Ok(_) => {
            let greeted = line.starts_with("220");
            let _ = stream.write_all(b"QUIT\r\n");
            greeted
        }
        // A listener with TLS from the first octet on, or with the PROXY protocol, waits for us.
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

fn first_address(config: &str) -> Option<SocketAddr> {
    let (_, rest) = config.split_once("address = \"")?;
    rest.split('"').next()?.parse().ok()
}

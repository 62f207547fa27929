//! Running other programs within a bound, and getting them.

use crate::site::shared_folder;
use anyhow::{Context, Result};
use enclosure::{apt_get, once};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A client that takes longer hangs.
const CLIENT: Duration = Duration::from_secs(60);

/// What a program said.
#[derive(Debug)]
pub struct Answer {
    /// True for exit code 0.
    pub succeeded: bool,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Both streams, as text for people.
    pub text: String,
}

impl Answer {
    /// Panics with all that was printed unless the exit code is 0.
    #[track_caller]
    pub fn must_succeed(self, what: &str) -> Answer {
        assert!(self.succeeded, "{what} failed:\n{}", self.text);
        self
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Answer {
    run_with_input(command, b"")
}

/// Runs a command to its end with this standard input; kills it and panics when it hangs.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program may end without reading all of it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut errors = Vec::new();
        err.read_to_end(&mut errors).map(|_| errors)
    });
    let output = std::thread::spawn(move || {
        let mut output = Vec::new();
        out.read_to_end(&mut output).map(|_| output)
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > CLIENT {
            child.kill().unwrap();
            let _ = child.wait();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let output = output.join().unwrap().unwrap();
    let errors = reader.join().unwrap().unwrap();
    writer.join().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output), String::from_utf8_lossy(&errors));
    Answer { succeeded: status.success(), output, text }
}

/// The path of a program; installs the Debian package when it is missing.
///
/// # Errors
/// It cannot be installed here.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = found(name) {
        return Ok(found);
    }
    install(&[package])?;
    found(name).with_context(|| format!("{package} has no {name}"))
}

fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Installs Debian packages that are missing.
///
/// # Errors
/// No apt-get, no root, no such package.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut mark = shared_folder("installed").join("run");
    for package in &missing {
        mark.as_mut_os_string().push(format!("-{package}"));
    }
    once(&mark, || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        apt.args(["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]);
        apt_get(apt.args(missing))
    })
}

fn is_installed(package: &str) -> bool {
    let info = Path::new("/var/lib/dpkg/info");
    ["", ":amd64", ":arm64"].iter().any(|kind| info.join(format!("{package}{kind}.list")).exists())
}

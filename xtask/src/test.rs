//! `cargo xtask test`: all that must hold before a change lands.

use crate::{debian, shell};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Set for tests by `--long`: full counts instead of a seeded part of each.
const LONG: &str = "POSTRIDER_TEST_LONG";
/// Seconds for which each fuzz target runs.
const FUZZ_SECONDS: &str = "60";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Full counts (crash rounds, seeds, recipients) instead of a part of each; takes hours.
    #[arg(long)]
    long: bool,
    /// Only tests whose names contain this; skips everything that is not a test.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cargo = shell::cargo();
    debian::install_missing()?;
    if args.filter.is_none() {
        shell::must("format", &mut shell::command(&cargo, &["fmt", "--all", "--check"]))?;
        lints(&cargo)?;
        licences(&cargo)?;
        let doc = ["test", "--doc", "--workspace", "--quiet"];
        shell::must("documentation tests", &mut shell::command(&cargo, &doc))?;
        fuzz(&cargo)?;
    }
    build_binaries(&cargo)?;
    tests(&cargo, args)
}

/// Clippy. Helpers of integration tests may unwrap: clippy knows only the test functions themselves as tests.
fn lints(cargo: &str) -> Result<()> {
    let programs = ["clippy", "--workspace", "--quiet", "--", "-D", "warnings"];
    shell::must("lints", &mut shell::command(cargo, &programs))?;
    let tests = ["clippy", "--workspace", "--all-targets", "--quiet", "--"];
    let mut command = shell::command(cargo, &tests);
    command.args(["-D", "warnings", "-A", "clippy::unwrap_used"]);
    shell::must("lints of tests and benches", &mut command)
}

/// The programs that black-box tests start. Tests find them in the same target directory.
fn build_binaries(cargo: &str) -> Result<()> {
    let build = ["build", "--quiet", "--profile", "quick", "-p", "postrider", "-p", "postrider-storm"];
    shell::must("programs for black-box tests", &mut shell::command(cargo, &build))
}

fn tests(cargo: &str, args: &Args) -> Result<()> {
    let mut command = if shell::succeeds(cargo, &["nextest", "--version"]) {
        shell::command(cargo, &["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        eprintln!("── cargo-nextest is not installed (cargo install cargo-nextest); using cargo test");
        shell::command(cargo, &["test", "--workspace", "--no-fail-fast", "--all-targets"])
    };
    if std::env::var_os("CI").is_some() {
        command.arg("--color=never");
    }
    if args.long {
        command.env(LONG, "1");
    }
    command.args(args.filter.as_deref());
    // Last, so that its summary closes the output.
    shell::must_quietly("tests", &mut command)
}

/// Licences, advisories and banned crates. The advisory database may be out of reach; the rest is not.
fn licences(cargo: &str) -> Result<()> {
    if !shell::succeeds(cargo, &["deny", "--version"]) {
        eprintln!("\n── licences: skipped, cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    let deny = ["deny", "--offline", "--workspace", "check", "bans", "licenses", "sources"];
    shell::must("licences and banned crates", &mut shell::command(cargo, &deny))
}

/// Runs each fuzz target of each crate for a while.
fn fuzz(cargo: &str) -> Result<()> {
    let directories: Vec<_> = std::fs::read_dir(shell::root().join("crates"))?
        .filter_map(|entry| Some(entry.ok()?.path().join("fuzz")))
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    if directories.is_empty() {
        return Ok(());
    }
    if !shell::succeeds(cargo, &["fuzz", "--version"]) {
        eprintln!("\n── fuzzing: skipped, cargo-fuzz is not installed (cargo install cargo-fuzz)");
        return Ok(());
    }
    for directory in directories {
        for target in targets(cargo, &directory)? {
            let mut command = Command::new(cargo);
            command.current_dir(&directory).args(["fuzz", "run", &target, "--fuzz-dir", "."]);
            command.args(["--", &format!("-max_total_time={FUZZ_SECONDS}"), "-verbosity=0"]);
            shell::must(&format!("fuzzing {target}"), &mut command)?;
        }
    }
    Ok(())
}

fn targets(cargo: &str, directory: &PathBuf) -> Result<Vec<String>> {
    let mut command = Command::new(cargo);
    command.current_dir(directory).args(["fuzz", "list", "--fuzz-dir", "."]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot list fuzz targets")?;
    if !output.status.success() {
        bail!("cannot list the fuzz targets of {}", directory.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

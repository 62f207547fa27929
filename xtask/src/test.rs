//! `cargo xtask test`: all that must hold before a change lands.

use crate::{debian, fuzz, instructions, shell};
use anyhow::Result;

/// Set for tests by `--long`: full counts instead of a seeded part of each.
const LONG: &str = "POSTRIDER_TEST_LONG";
/// Seconds for which each fuzz target runs: at a developer's desk, in CI, and with `--long`.
const FUZZ_SECONDS: [u32; 3] = [5, 60, 3_600];

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
        fuzz::run(&fuzz::Args { seconds: fuzz_seconds(args), targets: Vec::new() })?;
    }
    build_binaries(&cargo)?;
    if args.filter.is_none() {
        instructions::run(false)?;
    }
    tests(&cargo, args)
}

fn fuzz_seconds(args: &Args) -> u32 {
    let [desk, ci, long] = FUZZ_SECONDS;
    match (args.long, std::env::var_os("CI")) {
        (true, _) => long,
        (false, Some(_)) => ci,
        (false, None) => desk,
    }
}

/// Clippy. Helpers of integration tests may unwrap: clippy knows only the test functions themselves as tests.
fn lints(cargo: &str) -> Result<()> {
    // The kit of the black-box tests is a test helper as a whole.
    let programs = ["clippy", "--workspace", "--exclude", "blackbox", "--quiet", "--", "-D", "warnings"];
    shell::must("lints", &mut shell::command(cargo, &programs))?;
    let tests = ["clippy", "--workspace", "--all-targets", "--quiet", "--"];
    let mut command = shell::command(cargo, &tests);
    command.args(["-D", "warnings", "-A", "clippy::unwrap_used"]);
    shell::must("lints of tests and benches", &mut command)
}

/// The programs that black-box tests start. Tests find them in the same target directory.
fn build_binaries(cargo: &str) -> Result<()> {
    shell::must("programs for black-box tests", &mut shell::command(cargo, &shell::BUILD_QUICK))
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

/// Licences, sources and banned crates. Advisories need a database from the network: `cargo deny check advisories`.
fn licences(cargo: &str) -> Result<()> {
    if !shell::succeeds(cargo, &["deny", "--version"]) {
        eprintln!("\n── licences: skipped, cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    let deny = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
    shell::must("licences and banned crates", &mut shell::command(cargo, &deny))
}

//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, each for a while.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::process::{Child, Command, Stdio};

/// Targets that run at once.
const AT_ONCE: usize = 2;
/// Input octets: enough for a session, small enough to be quick.
const INPUT_SIZE_MAX: &str = "-max_len=4096";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u32,
    /// Only these targets
    pub(crate) targets: Vec<String>,
}

/// Runs the targets; a finding is an error that names the input.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cargo = shell::cargo();
    if !shell::succeeds(&cargo, &["fuzz", "--version"]) {
        let install = ["install", "--locked", "--quiet", "cargo-fuzz"];
        shell::must("installing cargo-fuzz", &mut shell::command(&cargo, &install))?;
    }
    shell::must("fuzz targets", &mut fuzz(&cargo, &["build"]))?;
    let targets = if args.targets.is_empty() { all(&cargo)? } else { args.targets.clone() };
    eprintln!("\n── fuzzing {} for {} s each", targets.join(", "), args.seconds);
    for group in targets.chunks(AT_ONCE) {
        let started = group.iter().map(|target| start(&cargo, target, args.seconds));
        let running = started.collect::<Result<Vec<_>>>()?;
        for (target, child) in group.iter().zip(running) {
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                eprintln!("{said}");
                bail!("fuzz target {target} has a finding; its input is in fuzz/artifacts/{target}");
            }
            let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            eprintln!("   {target}: {} runs, no finding", runs.unwrap_or("?").trim());
        }
    }
    Ok(())
}

/// `cargo fuzz` on the stable toolchain. Without a sanitizer: the code is safe Rust, and what is looked for are
/// panics, overflows, endless loops and broken promises.
fn fuzz(cargo: &str, args: &[&str]) -> Command {
    let (verb, rest) = args.split_first().unwrap_or((&"list", &[]));
    let mut command = shell::command(cargo, &["fuzz", verb, "--fuzz-dir", "."]);
    command.current_dir(shell::root().join("fuzz")).env("RUSTC_BOOTSTRAP", "1");
    if *verb != "list" {
        command.args(["--sanitizer", "none"]);
    }
    command.args(rest);
    command
}

fn start(cargo: &str, target: &str, seconds: u32) -> Result<Child> {
    let time = format!("-max_total_time={seconds}");
    let fuzz_dir = shell::root().join("fuzz");
    let (corpus, seeds) = (fuzz_dir.join("corpus").join(target), fuzz_dir.join("seeds").join(target));
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let mut command = fuzz(cargo, &["run", target]);
    // What is new goes to the first directory; the second holds inputs that once found something.
    command.arg(&corpus).args(seeds.is_dir().then_some(&seeds));
    command.args(["--", &time, "-timeout=10", INPUT_SIZE_MAX]);
    command.args(["-verbosity=0", "-print_final_stats=1"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).spawn().context("cannot start cargo fuzz")
}

fn all(cargo: &str) -> Result<Vec<String>> {
    let output = fuzz(cargo, &["list"]).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("cannot list the fuzz targets");
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

//! Developer commands: `cargo xtask run | test | bench | fuzz`.
//!
//! Everything that a fresh clone needs beyond a Rust toolchain is installed by the command that needs it.

mod bench;
mod debian;
mod fuzz;
mod instructions;
mod run;
mod shell;
mod test;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Postrider")]
enum Command {
    /// Build and start a relay in ./try whose sandbox keeps all mail.
    Run(run::Args),
    /// Format, lints, all tests, documentation tests, licences and a short fuzz run.
    Test(test::Args),
    /// Our relay beside others, with the same disk, durability and workload, in one table.
    Bench(bench::Args),
    /// The fuzz targets, each for a while.
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

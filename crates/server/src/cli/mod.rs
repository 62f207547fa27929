//! The command line.

mod acts;
mod application;
mod args;
mod configuration;
mod control;
mod explain;
mod output;
mod password;
mod place;
mod queue;
mod sandbox;
mod send;
mod spool;
mod top;

pub use args::Cli;
pub(crate) use configuration::refused;
pub use place::Place;

use args::Command;
use clap::Parser;
use postrider_api::ClientError;
use std::process::ExitCode;

/// It did what it was asked to.
pub const EXIT_OK: u8 = 0;
/// It failed, or was refused.
pub const EXIT_FAILED: u8 = 1;
// 2 is clap's, for arguments that are wrong.
/// No relay runs.
pub const EXIT_NOT_RUNNING: u8 = 3;
/// The configuration, or what was checked, has errors.
pub const EXIT_FOUND_PROBLEMS: u8 = 4;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("postrider: {error:#}");
            ExitCode::from(explained(&cli, &error))
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let place = &cli.place;
    match &cli.command {
        Command::Serve(args) => crate::serve::run(place, args),
        Command::Queue { command } => queue::run(place, command),
        Command::Explain(args) => explain::run(place, args),
        Command::Sandbox { command } => sandbox::run(place, command),
        Command::Send(args) => send::run(place, args),
        Command::Config { command } => configuration::run(place, command),
        Command::Spool { command } => spool::run(place, command),
        Command::Top(args) => top::run(place, args),
        Command::App { command } => application::run(place, command),
        Command::Key { command } => control::keys(place, command),
        Command::Instance { command } => control::instance(place, command),
        Command::Audit { command } => control::audit(place, command),
        Command::Password(args) => password::run(args),
        Command::Reload => configuration::reload(place),
        Command::Version => {
            println!("postrider {}", env!("CARGO_PKG_VERSION"));
            Ok(EXIT_OK)
        }
    }
}

/// Says what to do about an error, where that is known, and with which code to end.
fn explained(cli: &Cli, error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning(_)) => {
            eprintln!("Start one with `postrider serve{}`,", cli.place.arguments());
            eprintln!("or say where it is: --data-dir DIR, or --config FILE as it was started with.");
            EXIT_NOT_RUNNING
        }
        _ => EXIT_FAILED,
    }
}

//! `postrider password`

use super::EXIT_OK;
use super::args::PasswordArgs;
use super::output;
use anyhow::{Context, Result, bail};
use postrider_auth::Verifier;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read};

/// Octets of a password; more is surely something else.
const PASSWORD_SIZE_MAX: u64 = 4_096;

pub(super) fn run(args: &PasswordArgs) -> Result<u8> {
    let password = if args.stdin { from_stdin()? } else { asked_twice()? };
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).ok().context("the system has no randomness")?;
    let verifier = Verifier::new(&password, &salt, args.iterations)?;
    output::print(&format!("{verifier}\n"));
    Ok(EXIT_OK)
}

fn from_stdin() -> Result<String> {
    let mut password = String::new();
    std::io::stdin().take(PASSWORD_SIZE_MAX).read_to_string(&mut password)?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

fn asked_twice() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask at; use --stdin");
    }
    let password = asked("Password: ")?;
    if asked("Again: ")? != password {
        bail!("the two are not the same");
    }
    Ok(password)
}

/// Asks at the terminal without showing what is typed.
pub(super) fn asked(prompt: &str) -> Result<String> {
    let stdin = std::io::stdin();
    eprint!("{prompt}");
    let before = tcgetattr(&stdin).context("cannot turn off the echo")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    eprintln!();
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

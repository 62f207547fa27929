//! Running other programs, loudly.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").components().collect()
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The programs that tests start and those whose instructions are counted. Always together: what is built alone may
/// have its dependencies with other features.
pub(crate) const BUILD_QUICK: [&str; 10] =
    ["build", "--quiet", "--profile", "quick", "-p", "postrider", "-p", "storm", "-p", "hotpaths"];

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A command in the root of the workspace.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs a command that must succeed, after saying which.
pub(crate) fn must(title: &str, command: &mut Command) -> Result<()> {
    eprintln!("\n── {title}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {}", described(command)))?;
    if !status.success() {
        bail!("{title} failed: {} ({status})", described(command));
    }
    eprintln!("── {title}: done in {} s", start.elapsed().as_secs());
    Ok(())
}

/// The same, with nothing printed after the command: its own last lines stay last.
pub(crate) fn must_quietly(title: &str, command: &mut Command) -> Result<()> {
    eprintln!("\n── {title}");
    let status = command.status().with_context(|| format!("cannot start {}", described(command)))?;
    if !status.success() {
        bail!("{title} failed ({status})");
    }
    Ok(())
}

/// True if a command succeeds; what it prints is dropped.
pub(crate) fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = command(program, args);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn described(command: &Command) -> String {
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    format!("{} {}", command.get_program().to_string_lossy(), args.join(" "))
}

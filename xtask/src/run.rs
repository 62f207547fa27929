//! `cargo xtask run`: a relay to try things with.

use crate::shell;
use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build with full optimisation (slower to build).
    #[arg(long)]
    release: bool,
    /// What else `postrider serve` is given, such as `--config FILE`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = if args.release { "release" } else { "quick" };
    let mut command = shell::command(&shell::cargo(), &["run", "--quiet", "--profile", profile]);
    command.args(["--package", "postrider", "--", "serve"]);
    if !args.rest.iter().any(|arg| arg.starts_with("--data-dir") || arg.starts_with("--config")) {
        command.args(["--data-dir", "try"]);
    }
    command.args(&args.rest);
    shell::must("postrider serve", &mut command)
}

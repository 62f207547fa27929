//! Debian packages that the tests need: real clients, real servers, tools.

use crate::shell;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Each crate names the packages of its tests in this file beside its `Cargo.toml`, one on a line.
const LIST: &str = "tests/debian-packages.txt";

/// A package, and the command that shows that it is not needed because something else has brought it.
type Wanted = (String, Option<String>);

/// Packages that the workspace's tests need.
fn wanted() -> Result<BTreeSet<Wanted>> {
    let mut wanted = BTreeSet::new();
    for entry in std::fs::read_dir(shell::root().join("crates"))? {
        let list = entry?.path().join(LIST);
        if list.exists() {
            wanted.extend(packages(&std::fs::read_to_string(&list)?));
        }
    }
    Ok(wanted)
}

/// Lines of `package` or `package ?command`; what follows a `#` is a comment.
fn packages(list: &str) -> impl Iterator<Item = Wanted> + '_ {
    list.lines().filter_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let package = words.next()?.to_owned();
        Some((package, words.next().and_then(|word| word.strip_prefix('?')).map(str::to_owned)))
    })
}

fn is_there((package, command): &Wanted) -> bool {
    // A package's list of files is there once it has been unpacked, whatever its architecture.
    let unpacked = |name: String| Path::new("/var/lib/dpkg/info").join(name).exists();
    let in_path = |command: &String| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(command).is_file())
    };
    command.as_ref().is_some_and(in_path)
        || ["", ":amd64", ":arm64"].iter().any(|suffix| unpacked(format!("{package}{suffix}.list")))
}

/// Installs what is missing; on a system without apt says what the tests will miss.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<_> =
        wanted()?.into_iter().filter(|wanted| !is_there(wanted)).map(|(package, _)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::succeeds("apt-get", &["--version"]) {
        eprintln!("── no apt-get here; the tests need what Debian calls: {}", missing.join(" "));
        return Ok(());
    }
    let sudo = !shell::succeeds("test", &["-w", "/var/lib/dpkg"]);
    let apt = |args: &[&str]| {
        let mut all = Vec::new();
        if sudo {
            all.push("apt-get");
        }
        all.extend_from_slice(args);
        let mut command = shell::command(if sudo { "sudo" } else { "apt-get" }, &all);
        // Servers are started by the tests that need them, on ports of their own, never by the system.
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        command
    };
    shell::must("package lists", &mut apt(&["update", "-qq"]))?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(missing.iter().map(String::as_str));
    shell::must("packages for the tests", &mut apt(&args)).context("the tests need these packages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_packages_commands_and_comments() {
        let all: Vec<_> = packages("swaks # a client\n\n# servers\nnpm ?npm\n").collect();
        assert_eq!(all, [("swaks".into(), None), ("npm".into(), Some("npm".into()))]);
    }
}

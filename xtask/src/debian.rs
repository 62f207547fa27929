//! Debian packages that the tests need: real clients, real servers, tools.

use crate::shell;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Each crate names the packages of its tests in this file beside its `Cargo.toml`, one on a line.
const LIST: &str = "tests/debian-packages.txt";

/// Packages that the workspace's tests need.
fn wanted() -> Result<BTreeSet<String>> {
    let mut wanted = BTreeSet::new();
    for entry in std::fs::read_dir(shell::root().join("crates"))? {
        let list = entry?.path().join(LIST);
        if list.exists() {
            wanted.extend(packages(&std::fs::read_to_string(&list)?));
        }
    }
    Ok(wanted)
}

fn packages(list: &str) -> impl Iterator<Item = String> + '_ {
    list.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

fn installed(package: &str) -> bool {
    // A package's list of files is there once it has been unpacked, whatever its architecture.
    let info = Path::new("/var/lib/dpkg/info");
    info.join(format!("{package}.list")).exists()
        || info.join(format!("{package}:amd64.list")).exists()
        || info.join(format!("{package}:arm64.list")).exists()
}

/// Installs what is missing; on a system without apt says what the tests will miss.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<_> = wanted()?.into_iter().filter(|package| !installed(package)).collect();
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
    fn a_list_has_names_and_comments() {
        let names: Vec<_> = packages("swaks # a client\n\n# servers\npostfix\n").collect();
        assert_eq!(names, ["swaks", "postfix"]);
    }
}

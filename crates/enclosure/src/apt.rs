//! Debian packages, downloaded and unpacked without being installed.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian packages with what they need beyond the machine, unpacked.
#[derive(Clone, Debug)]
pub struct Packages {
    pub(crate) root: PathBuf,
}

impl Packages {
    /// Downloads and unpacks them below the folder, unless that was done before.
    ///
    /// # Errors
    /// No root, no apt-get, no such package.
    pub fn unpack(folder: &Path, packages: &[&str]) -> Result<Packages> {
        ensure!(is_root()?, "servers are unpacked and started as root only");
        let root = folder.join("root");
        fs::create_dir_all(folder)?;
        once(&folder.join("unpacked"), || {
            let debs = folder.join("deb");
            fs::create_dir_all(debs.join("partial"))?;
            let mut download = Command::new("apt-get");
            download.args([
                "install",
                "--download-only",
                "--reinstall",
                "-y",
                "-qq",
                "--no-install-recommends",
            ]);
            download.args(["-o", "Debug::NoLocking=1", "-o"]);
            download.arg(format!("Dir::Cache::archives={}/", debs.display())).args(packages);
            apt_get(&mut download)?;
            for deb in fs::read_dir(&debs)? {
                let deb = deb?.path();
                if deb.extension().is_some_and(|kind| kind == "deb") {
                    let status = Command::new("dpkg").arg("-x").arg(&deb).arg(&root).status()?;
                    ensure!(status.success(), "dpkg -x {} failed", deb.display());
                }
            }
            Ok(())
        })?;
        Ok(Packages { root })
    }
}

/// Does the work unless the mark says that it was done; tests that come at the same time wait.
///
/// # Errors
/// What the work said; it is tried again by the next.
pub fn once(mark: &Path, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let lock = File::create(mark.with_extension("lock"))?;
    lock.lock()?;
    if !mark.exists() {
        work()?;
        fs::write(mark, "")?;
    }
    Ok(())
}

/// Runs an apt-get command, and once more with fresh package lists when it fails.
///
/// # Errors
/// It failed both times, or there is no apt-get.
pub fn apt_get(command: &mut Command) -> Result<()> {
    if command.output().context("cannot start apt-get")?.status.success() {
        return Ok(());
    }
    Command::new("apt-get").args(["update", "-qq"]).output()?;
    let again = command.output()?;
    ensure!(again.status.success(), "{command:?}: {}", String::from_utf8_lossy(&again.stderr));
    Ok(())
}

fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(user.and_then(|line| line.split_whitespace().nth(1)) == Some("0"))
}

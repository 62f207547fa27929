//! A place in which Debian's mail servers run unchanged, each under its own paths and users, beside each other
//! and beside whatever the machine has installed: a mount and PID namespace over unpacked packages.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The servers, and those of their libraries that a machine may lack.
const PACKAGES: &[&str] = &[
    "postfix",
    "exim4-base",
    "exim4-daemon-light",
    "opensmtpd",
    "sasl2-bin",
    "libsasl2-modules",
    "libsasl2-modules-db",
    "libsasl2-2",
    "libdb5.3",
    "libicu72",
    "libnsl2",
    "libidn12",
    "libidn2-0",
    "libpcre2-8-0",
    "libgnutls30",
    "libgnutls-dane0",
    "libunbound8",
    "libevent-2.1-7",
    "libpam0g",
];
/// A room's first process is there within this time.
const START: Duration = Duration::from_secs(10);

/// The packages, unpacked.
pub(crate) struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Downloads and unpacks; kept between runs.
    pub(crate) fn unpack(folder: PathBuf) -> Result<Packages> {
        let done = folder.join("complete");
        if done.exists() {
            return Ok(Packages { folder });
        }
        let debs = folder.join("deb");
        fs::create_dir_all(&debs)?;
        let mut download = Command::new("apt-get");
        download.args(["download", "-qq"]).args(PACKAGES).current_dir(&debs);
        if shell::must("download Debian's mail servers", &mut download).is_err() {
            shell::must("package lists", Command::new("apt-get").args(["update", "-qq"]))?;
            shell::must("download Debian's mail servers", &mut download)?;
        }
        for deb in fs::read_dir(&debs)? {
            let status = Command::new("dpkg").arg("-x").arg(deb?.path()).arg(folder.join("root")).status()?;
            ensure!(status.success(), "dpkg -x failed");
        }
        fs::write(done, "")?;
        Ok(Packages { folder })
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }
}

/// A user of a room, with a group of the same name and number.
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) id: u32,
    pub(crate) home: &'static str,
}

/// A room before anything runs in it.
pub(crate) struct Room {
    folder: PathBuf,
    usr: PathBuf,
}

impl Room {
    /// Makes a fresh room: the machine's /usr under the packages', a copy of /etc, everything else its own.
    pub(crate) fn build(folder: &Path, packages: &Packages, users: &[User]) -> Result<Room> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        for name in
            ["usr", "etc", "dev", "proc", "tmp", "run", "root", "var/lib", "var/log", "var/spool", "var/tmp"]
        {
            fs::create_dir_all(folder.join(name))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), folder.join(name))?;
        }
        symlink("/run", folder.join("var/run"))?;
        copy(Path::new("/etc"), &folder.join("etc"))?;
        copy(&packages.root().join("etc"), &folder.join("etc"))?;
        let mut passwd = fs::read_to_string(folder.join("etc/passwd"))?;
        let mut group = fs::read_to_string(folder.join("etc/group"))?;
        for User { name, id, home } in users {
            let line = format!("{name}:");
            passwd =
                passwd.lines().filter(|old| !old.starts_with(&line)).map(|old| format!("{old}\n")).collect();
            group =
                group.lines().filter(|old| !old.starts_with(&line)).map(|old| format!("{old}\n")).collect();
            passwd += &format!("{name}:x:{id}:{id}::{home}:/usr/sbin/nologin\n");
            group += &format!("{name}:x:{id}:\n");
        }
        fs::write(folder.join("etc/passwd"), passwd)?;
        fs::write(folder.join("etc/group"), group)?;
        Ok(Room { folder: folder.to_owned(), usr: packages.root().join("usr") })
    }

    /// Writes a file, given by its path in the room.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.folder.join(path.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // What stands there may be a link out of the room.
        let _ = fs::remove_file(&path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs a script as the room's first process; what it starts in the background ends with it.
    pub(crate) fn start(self, script: &str) -> Result<Running> {
        self.write("/start", script)?;
        let enter = format!(
            "mount -t overlay overlay -o lowerdir={usr}:/usr {room}/usr && mount --rbind /dev {room}/dev && \
             mount -t proc proc {room}/proc && exec chroot {room} /bin/sh /start",
            usr = self.usr.display(),
            room = self.folder.display(),
        );
        let log = fs::File::create(self.folder.join("output"))?;
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &enter])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start unshare")?;
        let started = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let namespace = loop {
            let first = fs::read_to_string(&children).unwrap_or_default();
            let own = fs::read_link("/proc/self/ns/pid")?;
            if let Some(pid) = first.split_whitespace().next()
                && let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/pid"))
                && link != own
            {
                break link;
            }
            if let Some(status) = child.try_wait()? {
                bail!("{status}: {}", fs::read_to_string(self.folder.join("output"))?);
            }
            ensure!(started.elapsed() < START, "the room has no process");
            std::thread::sleep(Duration::from_millis(10));
        };
        Ok(Running { child, room: self, namespace })
    }
}

/// A room with processes in it. They end when this is dropped.
pub(crate) struct Running {
    child: Child,
    room: Room,
    pub(crate) namespace: PathBuf,
}

impl Running {
    /// Runs a command in the room's file system and process space.
    pub(crate) fn enter(&self, command: &str) -> Result<bool> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))?;
        let pid = children.split_whitespace().next().context("the room is empty")?;
        let status = Command::new("nsenter")
            .args(["--mount", "--pid", "--root", "--wd", "--target", pid, "sh", "-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        Ok(status.success())
    }

    /// What the room's processes printed.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.room.folder.join("output")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

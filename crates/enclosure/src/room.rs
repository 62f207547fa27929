//! A mount and PID namespace over unpacked packages.

use crate::Packages;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A room's first process is there within this time.
const START: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A user of a room, with a group of the same name and number.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Its name.
    pub name: &'static str,
    /// Its number and that of its group.
    pub id: u32,
    /// Its home.
    pub home: &'static str,
}

/// A room before anything runs in it.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    usr: PathBuf,
}

impl Room {
    /// Makes a fresh room of the folder: the machine's /usr under the packages', a copy of /etc, everything else its own.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn build(folder: &Path, packages: &Packages, users: &[User]) -> Result<Room> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        for name in [
            "usr",
            "etc",
            "dev",
            "proc",
            "tmp",
            "run",
            "root",
            "var/lib",
            "var/log",
            "var/spool",
            "var/tmp",
            "mail",
        ] {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::set_permissions(folder.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), folder.join(name))?;
        }
        symlink("/run", folder.join("var/run"))?;
        copy(Path::new("/etc"), &folder.join("etc"))?;
        // Packages that put libraries beside /usr instead of into it.
        for name in ["lib", "bin", "sbin"] {
            let beside = packages.root.join(name);
            if beside.is_dir() && !beside.is_symlink() {
                fs::create_dir_all(packages.root.join("usr").join(name))?;
                copy(&beside, &packages.root.join("usr").join(name))?;
            }
        }
        if packages.root.join("etc").is_dir() {
            copy(&packages.root.join("etc"), &folder.join("etc"))?;
        }
        for file in ["etc/passwd", "etc/group"] {
            let path = folder.join(file);
            let mut text = fs::read_to_string(&path)?;
            for User { name, id, home } in users {
                let begin = format!("{name}:");
                text = text
                    .lines()
                    .filter(|old| !old.starts_with(&begin))
                    .map(|old| format!("{old}\n"))
                    .collect();
                text += &match file {
                    "etc/passwd" => format!("{name}:x:{id}:{id}::{home}:/usr/sbin/nologin\n"),
                    _ => format!("{name}:x:{id}:\n"),
                };
            }
            fs::write(path, text)?;
        }
        Ok(Room { folder: folder.to_owned(), usr: packages.root.join("usr") })
    }

    /// A path of the room, as seen from outside.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// Writes a file, given by its path in the room.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // What stands there may be a link out of the room.
        let _ = fs::remove_file(&path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs a script as the room's first process; what it starts in the background ends with it.
    ///
    /// # Errors
    /// Namespaces or mounts are not allowed here.
    pub fn start(self, script: &str) -> Result<Running> {
        self.write("/start", script)?;
        let enter = format!(
            "mount -t overlay overlay -o lowerdir={usr}:/usr {room}/usr && mount --rbind /dev {room}/dev && \
             mount -t proc proc {room}/proc && touch {room}/run/entered && exec chroot {room} /bin/sh /start",
            usr = self.usr.display(),
            room = self.folder.display(),
        );
        let log = fs::File::create(self.folder.join("output"))?;
        let child = dying_with_us(Path::new("unshare"))
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &enter])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start unshare")?;
        let mut running = Running { child, room: self };
        let started = Instant::now();
        while !running.room.path("run/entered").exists() {
            ensure!(running.child.try_wait()?.is_none(), "the room is empty: {}", running.output());
            ensure!(started.elapsed() < START, "the room has no process within {START:?}");
            std::thread::sleep(LOOK);
        }
        Ok(running)
    }
}

/// A room with processes in it. They end when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The room.
    pub room: Room,
}

impl Running {
    /// Runs a command in the room's file system and process space; gives what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn enter(&self, command: &str) -> Result<String> {
        let output = Command::new("nsenter")
            .args(["--mount", "--pid", "--root", "--wd", "--target", &self.first_process()?, "sh", "-c"])
            .arg(command)
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The PID namespace of the room's processes, as `/proc/PID/ns/pid` names it.
    ///
    /// # Errors
    /// No process is left.
    pub fn namespace(&self) -> Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/ns/pid", self.first_process()?))?)
    }

    fn first_process(&self) -> Result<String> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))?;
        Ok(children.split_whitespace().next().context("the room is empty")?.to_owned())
    }

    /// What the room's processes printed.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.room.path("output")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.room.folder.display(), self.output());
        }
    }
}

/// A command that is killed when the thread that starts it ends, however that ends.
#[must_use]
pub fn dying_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status()?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

//! A disk that forgets: a file system in memory, mounted by FUSE, from which the plug can be pulled.

mod platter;

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use platter::{Content, Directory, File, Platter, ROOT, Refused};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel asks again after this time.
const TTL: Duration = Duration::from_secs(1);
/// Requests served at once.
const THREADS: usize = 4;
const BLOCK: u32 = 4096;
const TYPE_MASK: u32 = 0o170_000;
const TYPE_REGULAR: u32 = 0o100_000;

/// A mounted file system that keeps of a loss of power what was synced, and of the rest what chance leaves.
#[derive(Debug)]
pub struct ForgetfulDisk {
    at: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

#[derive(Debug)]
struct Shared {
    platter: Mutex<Platter>,
    power: Mutex<Power>,
    /// Rings when the power changes.
    bell: Condvar,
    /// How long a sync takes: where most of the points are at which the power can fail.
    sync_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Whoever wants to change something waits.
    Failing,
    /// It is refused.
    Off,
}

impl ForgetfulDisk {
    /// An empty disk of so many octets, mounted at a folder that is made for it.
    ///
    /// # Errors
    /// When there is no `/dev/fuse`, or no right to mount.
    pub fn mount(at: &Path, capacity: u64, sync_time: Duration) -> std::io::Result<ForgetfulDisk> {
        std::fs::create_dir_all(at)?;
        let shared = Arc::new(Shared {
            platter: Mutex::new(Platter::new(capacity)),
            power: Mutex::new(Power::On),
            bell: Condvar::new(),
            sync_time,
        });
        let mut disk = ForgetfulDisk { at: at.to_owned(), shared, session: None };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("forgetful".into()), MountOption::NoAtime];
        config.n_threads = Some(THREADS);
        let face = Face(self.shared.clone());
        self.session = Some(fuser::spawn_mount(face, &self.at, &config)?);
        Ok(())
    }

    /// Pulls the plug: from now on nothing is changed or synced, and whoever wants to waits.
    pub fn cut_power(&self) {
        self.shared.set(Power::Failing);
    }

    /// Lets go of those who wait, so that they can die: send them the signal first.
    pub fn turn_off(&self) {
        self.shared.set(Power::Off);
    }

    /// Comes back with what was synced. What survives of the rest is drawn from the seed. Tells how many octets and
    /// changes of directories were at risk.
    ///
    /// # Errors
    /// When the disk cannot be mounted again, for example since something has it in use.
    pub fn restore_power(&mut self, seed: u64) -> std::io::Result<(usize, usize)> {
        let mut state = seed | 1;
        let mut platter = self.shared.platter();
        let at_risk = platter.at_risk();
        platter.lose_power(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
        });
        drop(platter);
        // Mounted anew, so that the kernel remembers nothing either.
        if let Some(session) = self.session.take() {
            session.umount_and_join()?;
        }
        self.shared.set(Power::On);
        self.attach()?;
        Ok(at_risk)
    }
}

impl Drop for ForgetfulDisk {
    fn drop(&mut self) {
        self.turn_off();
    }
}

impl Shared {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The platter for a change, or nothing without power.
    fn changing(&self) -> Option<MutexGuard<'_, Platter>> {
        let mut power = self.power.lock().unwrap_or_else(PoisonError::into_inner);
        while *power == Power::Failing {
            power = self.bell.wait(power).unwrap_or_else(PoisonError::into_inner);
        }
        // Taken while the power is known to be on.
        (*power == Power::On).then(|| self.platter())
    }

    fn set(&self, power: Power) {
        *self.power.lock().unwrap_or_else(PoisonError::into_inner) = power;
        self.bell.notify_all();
    }
}

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Errno {
        match refused {
            Refused::Absent => Errno::ENOENT,
            Refused::Exists => Errno::EEXIST,
            Refused::NotEmpty => Errno::ENOTEMPTY,
            Refused::NotDirectory => Errno::ENOTDIR,
            Refused::OtherDirectory => Errno::EXDEV,
            Refused::Full => Errno::ENOSPC,
        }
    }
}

/// What the kernel talks to.
struct Face(Arc<Shared>);

fn attributes(platter: &mut Platter, number: u64) -> Result<FileAttr, Refused> {
    let node = platter.node(number)?;
    let (kind, size) = match &node.content {
        Content::File(file) => (FileType::RegularFile, file.now.len() as u64),
        Content::Directory(_) => (FileType::Directory, 0),
        Content::Special => (FileType::Socket, 0),
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: u16::try_from(node.mode & 0o7777).unwrap_or(0),
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

fn size(octets: u64) -> usize {
    usize::try_from(octets).unwrap_or(usize::MAX)
}

impl Face {
    fn made(&self, make: impl FnOnce(&mut Platter) -> Result<u64, Refused>, reply: ReplyEntry) {
        let Some(mut platter) = self.0.changing() else { return reply.error(Errno::EIO) };
        match make(&mut platter).and_then(|number| attributes(&mut platter, number)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn done(&self, work: impl FnOnce(&mut Platter) -> Result<(), Refused>, reply: ReplyEmpty) {
        let Some(mut platter) = self.0.changing() else { return reply.error(Errno::EIO) };
        match work(&mut platter) {
            Ok(()) => reply.ok(),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn sync(&self, number: INodeNo, reply: ReplyEmpty) {
        std::thread::sleep(self.0.sync_time);
        self.done(|platter| platter.sync(number.0), reply);
    }
}

impl Filesystem for Face {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let platter = &mut self.0.platter();
        match platter.find(parent.0, name).and_then(|number| attributes(platter, number)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&mut self.0.platter(), number.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        length: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(mut platter) = self.0.changing() else { return reply.error(Errno::EIO) };
        let mut change = || {
            if let Some(length) = length {
                platter.resize(number.0, size(length))?;
            }
            if let Some(mode) = mode {
                let node = platter.node(number.0)?;
                node.mode = node.mode & TYPE_MASK | mode & !TYPE_MASK;
            }
            attributes(&mut platter, number.0)
        };
        match change() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let content = match mode & TYPE_MASK {
            TYPE_REGULAR => Content::File(File::default()),
            _ => Content::Special,
        };
        self.made(|platter| platter.make(parent.0, name, mode & !umask, content), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let content = Content::Directory(Directory::default());
        self.made(|platter| platter.make(parent.0, name, mode & !umask, content), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(|platter| platter.remove(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(|platter| platter.remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.done(|platter| platter.rename((parent.0, name), (new_parent.0, new_name)), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let Some(mut platter) = self.0.changing() else { return reply.error(Errno::EIO) };
        let made = platter
            .make(parent.0, name, mode & !umask, Content::File(File::default()))
            .and_then(|number| attributes(&mut platter, number));
        match made {
            Ok(made) => reply.created(&TTL, &made, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.platter().file(number.0) {
            Ok(file) => {
                let from = size(offset).min(file.now.len());
                let to = from.saturating_add(length as usize).min(file.now.len());
                reply.data(&file.now[from..to]);
            }
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        octets: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(mut platter) = self.0.changing() else { return reply.error(Errno::EIO) };
        match platter.write(number.0, size(offset), octets) {
            Ok(()) => reply.written(u32::try_from(octets.len()).unwrap_or(u32::MAX)),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(number, reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(number, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let end = size(offset.saturating_add(length));
        self.done(
            |platter| {
                let grows = platter.file(number.0)?.now.len() < end;
                if grows { platter.resize(number.0, end) } else { Ok(()) }
            },
            reply,
        );
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let platter = &mut self.0.platter();
        let names = match platter.directory(number.0) {
            Ok(directory) => directory.names.clone(),
            Err(refused) => return reply.error(refused.into()),
        };
        let dots = [(".".into(), number.0), ("..".into(), ROOT)];
        for (place, (name, node)) in (1..).zip(dots.into_iter().chain(names)).skip(size(offset)) {
            let kind = attributes(platter, node).map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(INodeNo(node), place, kind, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let platter = self.0.platter();
        let (all, free) = (platter.capacity() / u64::from(BLOCK), platter.free() / u64::from(BLOCK));
        reply.statfs(all, free, free, all, free, BLOCK, 255, BLOCK);
    }
}

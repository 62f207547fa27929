//! Segment files: their names, their handles, and which filling each holds.

use postrider_spool::{Fault, Generation, Medium, Position, Prepare, SegmentFile};
use rustc_hash::FxHashMap;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// The most slices one system call takes (IOV_MAX).
const SLICES_MAX: usize = 1024;
const ZEROS_BYTES: usize = 1 << 20;
/// What messages leave free on the disk when nobody says how much: so many octets, or this part of the disk if that is
/// less.
const FREE_MIN_DEFAULT_BYTES: u64 = 512 << 20;
const FREE_MIN_DEFAULT_PART: u64 = 20;

/// Room on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Octets that are free.
    pub free_bytes: u64,
    /// Octets that messages leave free, for checkpoints, the event journal and others.
    pub free_min_bytes: u64,
}

impl Room {
    pub(crate) fn is_scarce(self) -> bool {
        self.free_bytes < self.free_min_bytes
    }
}

/// All segment files of one directory, shared by the committer and the readers.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    pub(crate) salt: u64,
    /// Octets of the disk that messages leave free, if somebody said so.
    free_min: Option<u64>,
    open: RwLock<FxHashMap<u32, Arc<File>>>,
    /// Which file holds a filling, for readers.
    fillings: RwLock<FxHashMap<Generation, u32>>,
}

impl Files {
    pub(crate) fn new(dir: &Path, salt: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            salt,
            free_min: None,
            open: RwLock::default(),
            fillings: RwLock::default(),
        }
    }

    pub(crate) fn with_free_min(self, free_min: Option<u64>) -> Self {
        Self { free_min, ..self }
    }

    /// How much room the disk has.
    pub(crate) fn room(&self) -> io::Result<Room> {
        let disk = statvfs(&self.dir)?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free_min = self.free_min.unwrap_or(FREE_MIN_DEFAULT_BYTES.min(size / FREE_MIN_DEFAULT_PART));
        Ok(Room { free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize), free_min_bytes: free_min })
    }

    /// Gives the room of a segment back.
    pub(crate) fn remove(&self, segment: u32) -> io::Result<()> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        self.fillings.write().unwrap_or_else(PoisonError::into_inner).retain(|_, of| *of != segment);
        std::fs::remove_file(self.path(segment))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("segment-{segment:06}"))
    }

    /// The segment files that are there.
    pub(crate) fn list(&self) -> io::Result<Vec<SegmentFile>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("segment-"));
            if let Some(index) = number.and_then(|number| number.parse().ok()) {
                let size = u32::try_from(entry.metadata()?.len()).unwrap_or(u32::MAX);
                segments.push(SegmentFile { index, size });
            }
        }
        segments.sort_by_key(|segment| segment.index);
        Ok(segments)
    }

    pub(crate) fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(segment))?);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(segment, file.clone());
        Ok(file)
    }

    pub(crate) fn set_filling(&self, generation: Generation, segment: u32) {
        let mut fillings = self.fillings.write().unwrap_or_else(PoisonError::into_inner);
        fillings.retain(|_, of| *of != segment);
        fillings.insert(generation, segment);
    }

    pub(crate) fn segment_of(&self, position: Position) -> Option<u32> {
        let fillings = self.fillings.read().unwrap_or_else(PoisonError::into_inner);
        fillings.get(&position.generation()).copied()
    }

    /// Makes a segment ready and durable: file, room, header, directory entry.
    pub(crate) fn prepare(&self, prepare: &Prepare) -> io::Result<()> {
        if prepare.create {
            self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&prepare.segment);
            let path = self.path(prepare.segment);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let room = self.room()?;
            if !prepare.reserve && room.free_bytes < room.free_min_bytes.saturating_add(prepare.size.into()) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            if let Err(error) = allocate(&file, u64::from(prepare.size)) {
                // Room that is not enough for a segment is of use to others.
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
        }
        let file = self.file(prepare.segment)?;
        self.set_filling(prepare.header.generation, prepare.segment);
        file.write_all_at(&prepare.header.encode(), 0)?;
        if prepare.create {
            file.sync_all()?;
            sync_directory(&self.dir)
        } else {
            file.sync_data()
        }
    }
}

/// Makes a directory, for its owner alone, with those above it that are missing. Their names are durable when it
/// returns: what is synced in a directory is of no use if the directory itself is gone after a loss of power.
///
/// # Errors
/// The operating system's.
pub fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    make_directory(parent)?;
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(parent)
}

/// Makes the directory's entries durable.
pub(crate) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Room for the whole file. Where the file system cannot reserve it, it is written.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    loop {
        return match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let zeros = vec![0; ZEROS_BYTES];
                let mut at = 0;
                while at < size {
                    let length = zeros.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
                    file.write_all_at(&zeros[..length], at)?;
                    at += length as u64;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        };
    }
}

/// Writes all slices, one system call for each thousand of them.
pub(crate) fn write_all_at(file: &File, slices: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    let mut rest = slices;
    while !rest.is_empty() {
        let count = rest.len().min(SLICES_MAX);
        match rustix::io::pwritev(file, &rest[..count], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What the log is told of an error.
pub(crate) fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::Full,
        _ => Fault::Io,
    }
}

/// Reads segments, waiting for the device where it must.
pub(crate) struct Disk<'a>(pub(crate) &'a Files);

impl Medium for Disk<'_> {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        let file = self.0.file(segment).map_err(|_| Fault::Io)?;
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], u64::from(offset) + done as u64) {
                Ok(0) => {
                    buffer[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Fault::Io),
            }
        }
        Ok(())
    }
}

/// Reads segments only as far as they are in memory.
pub(crate) struct PageCache<'a>(pub(crate) &'a Files);

impl Medium for PageCache<'_> {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        let file = self.0.file(segment).map_err(|_| Fault::Io)?;
        let mut done = 0;
        while done < buffer.len() {
            let at = u64::from(offset) + done as u64;
            let slices = &mut [IoSliceMut::new(&mut buffer[done..])];
            match rustix::io::preadv2(&*file, slices, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => {
                    buffer[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Fault::Io),
            }
        }
        Ok(())
    }
}

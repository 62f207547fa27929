//! Segment files, read and written by offset.

use bytes::Bytes;
use postrider_spool::{
    Fault, Generation, Lsn, Medium, Position, RecordError, Recovery, SegmentFile, Settings, read_record,
};
use rustc_hash::FxHashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the record's segment has been used again")]
    Gone,
    #[error(transparent)]
    Record(#[from] RecordError),
}

pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) open: RwLock<FxHashMap<u32, Arc<File>>>,
    pub(crate) generations: RwLock<FxHashMap<Generation, u32>>,
    pub(crate) salt: std::sync::atomic::AtomicU64,
}

impl Files {
    pub(crate) fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("segment-{segment:06}"))
    }

    pub(crate) fn file(&self, segment: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(segment))?);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(segment, file.clone());
        Ok(file)
    }
}

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

/// A log directory before its past is read.
pub struct Opened {
    files: Arc<Files>,
    segments: Vec<SegmentFile>,
    settings: Settings,
    salt: u64,
}

pub struct ReplayedRecord<'a> {
    pub lsn: Lsn,
    pub kind: u8,
    pub head: &'a [u8],
    pub position: Option<Position>,
    pub copied: bool,
}

/// A log whose past is read.
pub struct Recovered {
    pub(crate) files: Arc<Files>,
    pub(crate) log: postrider_spool::Log,
}

pub fn open(dir: &Path, segment_size_bytes: u32, salt: u64) -> Result<Opened, OpenError> {
    let fail = |error| OpenError::Io { path: dir.to_owned(), error };
    std::fs::create_dir_all(dir).map_err(fail)?;
    let files = Arc::new(Files {
        dir: dir.to_owned(),
        open: RwLock::default(),
        generations: RwLock::default(),
        salt: std::sync::atomic::AtomicU64::new(0),
    });
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("segment-")).and_then(|n| n.parse().ok());
        if let Some(index) = index {
            let size = u32::try_from(entry.metadata().map_err(fail)?.len()).unwrap_or(u32::MAX);
            segments.push(SegmentFile { index, size });
        }
    }
    segments.sort_by_key(|segment| segment.index);
    let mut settings = Settings::default();
    if segment_size_bytes > 0 {
        settings.segment_size_bytes = segment_size_bytes;
    }
    Ok(Opened { files, segments, settings, salt })
}

impl Opened {
    pub fn replay(self, mut take: impl FnMut(&ReplayedRecord<'_>)) -> Result<Recovered, OpenError> {
        let mut disk = Disk(&self.files);
        let mut recovery = Recovery::new(&self.segments, &mut disk, Lsn(1), self.salt);
        while let Some(r) = recovery.next(&mut disk) {
            take(&ReplayedRecord {
                lsn: r.lsn,
                kind: r.kind,
                head: r.head,
                position: r.position,
                copied: r.copied,
            });
        }
        if let Some(tail) = recovery.tail() {
            let fail = |error| OpenError::Io { path: self.files.path(tail), error };
            self.files.file(tail).and_then(|file| file.sync_data()).map_err(fail)?;
        }
        for damage in &recovery.report().damages {
            tracing::error!(?damage, "the log is damaged; what could not be read was set aside");
        }
        let log = postrider_spool::Log::recovered(self.settings, recovery.finish());
        self.files.salt.store(log.salt(), std::sync::atomic::Ordering::Relaxed);
        Ok(Recovered { files: self.files, log })
    }
}

impl Recovered {
    pub fn retain(&mut self, position: Position) {
        self.log.retain(position);
    }
}

/// Reads records back.
#[derive(Clone)]
pub struct Reader {
    pub(crate) files: Arc<Files>,
}

pub struct ReadRecord {
    pub head: Bytes,
    pub body: Bytes,
}

impl Reader {
    pub fn read(&self, position: Position) -> Result<ReadRecord, ReadError> {
        let generations = self.files.generations.read().unwrap_or_else(PoisonError::into_inner);
        let segment = *generations.get(&position.generation()).ok_or(ReadError::Gone)?;
        drop(generations);
        let salt = self.files.salt.load(std::sync::atomic::Ordering::Relaxed);
        let record = read_record(&mut Disk(&self.files), segment, salt, position, true)?;
        Ok(ReadRecord { head: record.head.into(), body: record.body.into() })
    }

    pub fn read_cached(&self, position: Position) -> Option<ReadRecord> {
        self.read(position).ok()
    }
}

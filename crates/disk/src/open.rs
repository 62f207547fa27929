//! Opening a data directory: the lock, the checkpoint, the replay.

use crate::checkpoint::{Checkpoints, Manifest};
use crate::files::{Disk, Files, make_directory};
use postrider_spool::{Log, Lsn, Position, Recovery, Replayed, Report, Settings};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system says no.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl OpenError {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        OpenError::Io { path: path.to_owned(), error }
    }
}

/// How the directory is kept in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Days for which the event journal is kept; today is one.
    pub event_days: u32,
    /// Octets of the disk that messages leave free; `None` is 512 MiB, or 5 % of the disk if that is less.
    pub free_min_bytes: Option<u64>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self { event_days: crate::journal::DAYS_DEFAULT, free_min_bytes: None }
    }
}

/// A log directory before its past is read.
#[derive(Debug)]
pub struct Opened {
    dir: PathBuf,
    settings: Settings,
    upkeep: Upkeep,
    salt: u64,
    lock: File,
    checkpoints: Checkpoints,
}

/// Opens the log in `dir`, made if need be, for this process alone. `segment_size_bytes` is that of new
/// segments, 0 for the default; `salt` is a random number, used when the log is new.
///
/// # Errors
/// When the directory cannot be used or another process uses it.
pub fn open(dir: &Path, segment_size_bytes: u32, salt: u64) -> Result<Opened, OpenError> {
    let mut settings = Settings::default();
    if segment_size_bytes > 0 {
        settings.segment_size_bytes = segment_size_bytes;
    }
    open_with(dir, settings, salt)
}

/// [`open`] with all settings.
///
/// # Errors
/// As [`open`].
pub fn open_with(dir: &Path, settings: Settings, salt: u64) -> Result<Opened, OpenError> {
    make_directory(dir).map_err(|error| OpenError::io(dir, error))?;
    let lock = lock(dir)?;
    let checkpoints = Checkpoints::open(&dir.join("checkpoint"))?;
    let upkeep = Upkeep::default();
    Ok(Opened { dir: dir.to_owned(), settings, upkeep, salt, lock, checkpoints })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| OpenError::io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io(&path, error)),
    }
}

impl Opened {
    /// With other than the default upkeep.
    #[must_use]
    pub fn with_upkeep(self, upkeep: Upkeep) -> Self {
        Self { upkeep, ..self }
    }

    /// The newest valid checkpoint, if there is one; load its parts before the replay.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Arc<Manifest>> {
        self.checkpoints.newest()
    }

    /// Where parts are read from and written to.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// The newest checkpoint proved unusable: start from the one before it, if there is one.
    pub fn discard_checkpoint(&self) {
        self.checkpoints.discard_newest();
    }

    /// Gives every record behind the checkpoint, oldest first.
    ///
    /// # Errors
    /// When the log cannot be listed, or its tail not be made durable. Damaged records are no error: they
    /// are set aside and reported.
    pub fn replay(self, mut take: impl FnMut(&Replayed<'_>)) -> Result<Recovered, OpenError> {
        let fail = |error| OpenError::io(&self.dir, error);
        let probe = Files::new(&self.dir, self.salt);
        let segments = probe.list().map_err(fail)?;
        let from = self.checkpoints.newest().map_or(Lsn(1), |manifest| manifest.replay_from);
        let mut disk = Disk(&probe);
        let mut recovery = Recovery::new(&segments, &mut disk, from, self.salt);
        while let Some(record) = recovery.next(&mut disk) {
            take(&record);
        }
        // What was read behind the last known sync is believed from now on.
        if let Some(tail) = recovery.tail() {
            let synced = probe.file(tail).and_then(|file| file.sync_data());
            synced.map_err(|error| OpenError::io(&probe.path(tail), error))?;
        }
        let report = recovery.report().clone();
        for damage in &report.damages {
            tracing::error!(?damage, "the log is damaged; what could not be read was set aside");
        }
        if let Some((segment, offset)) = report.torn {
            tracing::info!(segment, offset, "a tail that was never synced was cut");
        }
        let mut log = Log::recovered(self.settings, recovery.finish());
        let files = Files::new(&self.dir, log.salt()).with_free_min(self.upkeep.free_min_bytes);
        for (generation, segment) in log.fillings() {
            files.set_filling(generation, segment);
        }
        for manifest in self.checkpoints.kept() {
            log.checkpointed(manifest.replay_from);
        }
        Ok(Recovered {
            files: Arc::new(files),
            log,
            report,
            upkeep: self.upkeep,
            lock: self.lock,
            checkpoints: self.checkpoints,
            settles_later: false,
        })
    }
}

/// A log whose past is read.
#[derive(Debug)]
pub struct Recovered {
    pub(crate) files: Arc<Files>,
    pub(crate) log: Log,
    pub(crate) report: Report,
    pub(crate) upkeep: Upkeep,
    pub(crate) lock: File,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) settles_later: bool,
}

impl Recovered {
    /// Not all that is live is known yet: the committer writes nothing over before
    /// [`crate::CommitterHandle::settled`].
    pub fn settle_later(&mut self) {
        self.settles_later = true;
    }

    /// This record is live. What is not retained before the committer starts may be written over.
    pub fn retain(&mut self, position: Position) {
        self.log.retain(position);
    }

    /// What the replay met.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

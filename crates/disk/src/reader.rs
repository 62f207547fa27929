//! Reading records back.

use crate::files::{Disk, Files, PageCache};
use postrider_spool::{Position, Record, RecordError, read_body_range, read_record};
use std::ops::Range;
use std::sync::Arc;

/// Reads kept records by position; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Reader {
    files: Arc<Files>,
}

impl Reader {
    pub(crate) fn new(files: Arc<Files>) -> Self {
        Self { files }
    }

    /// The whole record, verified. Waits for the device.
    ///
    /// # Errors
    /// [`RecordError::Gone`] when its segment has been used again: ask for the position anew.
    pub fn read(&self, position: Position) -> Result<Record, RecordError> {
        let segment = self.segment(position)?;
        let record = read_record(&mut Disk(&self.files), segment, self.files.salt, position, true);
        self.check(position, record)
    }

    /// Only its head, verified.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_head(&self, position: Position) -> Result<Record, RecordError> {
        let segment = self.segment(position)?;
        let record = read_record(&mut Disk(&self.files), segment, self.files.salt, position, false);
        self.check(position, record)
    }

    /// The whole record, if all of it is in memory: never waits, fit for an event loop.
    #[must_use]
    pub fn read_cached(&self, position: Position) -> Option<Record> {
        let segment = self.segment(position).ok()?;
        read_record(&mut PageCache(&self.files), segment, self.files.salt, position, true).ok()
    }

    /// A part of a body. Its checksum covers the whole, so a part is not verified.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_range(&self, position: Position, range: Range<u32>) -> Result<bytes::Bytes, RecordError> {
        let segment = self.segment(position)?;
        let part = read_body_range(&mut Disk(&self.files), segment, self.files.salt, position, range);
        self.check(position, part)
    }

    fn segment(&self, position: Position) -> Result<u32, RecordError> {
        self.files.segment_of(position).ok_or(RecordError::Gone)
    }

    /// What was read while the segment was prepared anew is no damage.
    fn check<T>(&self, position: Position, result: Result<T, RecordError>) -> Result<T, RecordError> {
        if self.files.segment_of(position).is_none() { Err(RecordError::Gone) } else { result }
    }
}

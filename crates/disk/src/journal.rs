//! The event journal: event records copied out of the log into compressed day files, in order.
//!
//! A file is a sequence of pairs: a zstd skippable frame with our header (which numbers the data frame
//! holds, its length and checksum), then the data frame. `zstd -dc` reads the file as it is. A follower
//! reads the log's segments as far as they are durable, so that nothing is held in memory for it and a
//! crash loses and repeats nothing: it goes on behind the last whole frame. Files of days long past are removed.

use crate::files::{Disk, Files, make_directory, sync_directory};
use postrider_spool::{Extent, Follower, Lsn};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A frame is closed at about so many octets of events.
const FRAME_BYTES: usize = 1 << 20;
/// No frame is longer than this, packed or not.
const FRAME_BYTES_MAX: usize = 16 << 20;
const LEVEL: i32 = 1;
/// Days of the journal that are kept when nobody says how many.
pub const DAYS_DEFAULT: u32 = 30;
/// The longest wait between two attempts to write a journal that cannot be written.
const PATIENCE_MAX: Duration = Duration::from_secs(60);
const SKIPPABLE_MAGIC: u32 = 0x184d_2a5b;
const OUR_MAGIC: [u8; 4] = *b"PRJ1";
const HEADER_BYTES: usize = 8 + 32;
/// Octets of an event's own header in a frame.
const EVENT_HEADER_BYTES: usize = 15;

/// One event, as it was appended to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its record's number.
    pub lsn: Lsn,
    /// Whose.
    pub shard: u16,
    /// The record's kind.
    pub kind: u8,
    /// The record's head.
    pub head: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHeader {
    first: Lsn,
    last: Lsn,
    length: u32,
    checksum: u32,
}

impl FrameHeader {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&32u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&OUR_MAGIC);
        bytes[12..20].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.last.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.length.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.checksum.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let long = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let valid = number(0) == SKIPPABLE_MAGIC
            && bytes[8..12] == OUR_MAGIC
            && number(36) == crc32c::crc32c(&bytes[..36])
            && number(28) as usize <= FRAME_BYTES_MAX;
        let header =
            Self { first: Lsn(long(12)), last: Lsn(long(20)), length: number(28), checksum: number(32) };
        valid.then_some(header)
    }
}

/// `2026-11-24.log.zst`, or with a number before `.log` when a file had to be given up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    day: String,
    part: u32,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".log.zst")?;
        let (day, part) = stem.split_once('.').unwrap_or((stem, "0"));
        (day.len() == 10).then_some(())?;
        Some(Self { day: day.to_owned(), part: part.parse().ok()? })
    }

    fn path(&self, dir: &Path) -> PathBuf {
        match self.part {
            0 => dir.join(format!("{}.log.zst", self.day)),
            part => dir.join(format!("{}.{part:06}.log.zst", self.day)),
        }
    }
}

fn names(dir: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.extend(entry?.file_name().to_str().and_then(Name::parse));
    }
    names.sort();
    Ok(names)
}

/// The day as it is written, by the civil calendar (UTC).
fn day_name(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Days to civil date after Howard Hinnant, for days since 1970-01-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The file being written.
#[derive(Debug)]
struct Writing {
    name: Name,
    file: File,
    /// Octets of whole frames that are synced.
    safe: u64,
    /// Octets written.
    end: u64,
    /// A sync failed: what the file holds behind its safe end is unknown for good.
    spoilt: bool,
}

/// Writes the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    follower: Follower,
    writing: Option<Writing>,
    /// The newest name ever used: days never go back.
    newest: Option<Name>,
    /// Everything up to this one is in synced frames.
    synced: Lsn,
    /// Events of the frame being filled.
    frame: Vec<u8>,
    first: Option<Lsn>,
    salt: u64,
    /// Days that are kept; today is one.
    days: u32,
    /// Attempts in a row that failed.
    failures: u32,
}

impl Journal {
    /// Goes on behind the last whole frame in `dir`; what follows it is cut off. Files of more than `days` days are
    /// removed.
    pub(crate) fn open(dir: &Path, salt: u64, days: u32) -> io::Result<Self> {
        make_directory(dir)?;
        let names = names(dir)?;
        let mut last = Lsn(0);
        for name in names.iter().rev() {
            let path = name.path(dir);
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut frames = Frames::new(file);
            while let Some(header) = frames.next_header()? {
                if frames.skip(&header)? {
                    last = last.max(header.last);
                }
            }
            if Some(name) == names.last() {
                frames.file.set_len(frames.whole)?;
                frames.file.sync_all()?;
            }
            if last.0 > 0 {
                break;
            }
        }
        let journal = Self {
            dir: dir.to_owned(),
            follower: Follower::new(salt, last.next()),
            writing: None,
            newest: names.last().cloned(),
            synced: last,
            frame: Vec::new(),
            first: None,
            salt,
            days: days.max(1),
            failures: 0,
        };
        journal.prune(SystemTime::now());
        Ok(journal)
    }

    /// How long to wait after the last attempt: twice as long after each failure.
    pub(crate) fn patience(&self, interval: Duration) -> Duration {
        interval.saturating_mul(1 << self.failures.min(16)).min(PATIENCE_MAX.max(interval))
    }

    /// Copies what the extents hold and syncs it. The answer is how far the journal is durable.
    pub(crate) fn catch_up(&mut self, files: &Files, extents: &[Extent]) -> io::Result<Lsn> {
        self.follower.look_again();
        let copied = self.copy(files, extents);
        if copied.is_ok() {
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.step_back();
        }
        copied
    }

    /// What failed is written again: over what came of it, if that can be cut off, else to another file. A reader
    /// passes over what it has seen.
    fn step_back(&mut self) {
        if let Some(mut writing) = self.writing.take() {
            if !writing.spoilt && writing.file.set_len(writing.safe).is_ok() {
                writing.end = writing.safe;
                self.writing = Some(writing);
            } else if let Some(newest) = &mut self.newest {
                newest.part += 1;
            }
        }
        self.follower = Follower::new(self.salt, self.synced.next());
        self.frame.clear();
        self.first = None;
    }

    /// Removes the files of days that are not kept. One that cannot be removed waits for the next day.
    fn prune(&self, now: SystemTime) {
        let kept = Duration::from_secs(86_400) * (self.days - 1);
        let oldest = day_name(now.checked_sub(kept).unwrap_or(UNIX_EPOCH));
        let Ok(names) = names(&self.dir) else { return };
        // The newest says where the journal goes on, however old it is.
        let Some((_, older)) = names.split_last() else { return };
        for name in older.iter().filter(|name| name.day < oldest) {
            match std::fs::remove_file(name.path(&self.dir)) {
                Ok(()) => tracing::info!(day = name.day, "a day of the event journal is removed"),
                Err(error) => {
                    tracing::warn!(day = name.day, %error, "an old event journal cannot be removed");
                }
            }
        }
    }

    fn copy(&mut self, files: &Files, extents: &[Extent]) -> io::Result<Lsn> {
        let mut wrote = false;
        while let Some(record) = self.follower.next(&mut Disk(files), extents) {
            if !record.event {
                continue;
            }
            let lsn = record.lsn;
            self.first.get_or_insert(lsn);
            self.frame.extend_from_slice(&record.lsn.0.to_le_bytes());
            self.frame.push(record.kind);
            self.frame.extend_from_slice(&record.shard.to_le_bytes());
            self.frame.extend_from_slice(&u32::try_from(record.head.len()).unwrap_or(u32::MAX).to_le_bytes());
            self.frame.extend_from_slice(record.head);
            if self.frame.len() >= FRAME_BYTES {
                self.write_frame(lsn)?;
                wrote = true;
            }
        }
        let last = Lsn(self.follower.next_lsn().0 - 1);
        if !self.frame.is_empty() {
            self.write_frame(last)?;
            wrote = true;
        }
        if wrote && let Some(writing) = &mut self.writing {
            writing.sync()?;
        }
        self.synced = last;
        Ok(last)
    }

    fn write_frame(&mut self, last: Lsn) -> io::Result<()> {
        let packed = zstd::bulk::compress(&self.frame, LEVEL)?;
        let header = FrameHeader {
            first: self.first.unwrap_or(last),
            last,
            length: u32::try_from(packed.len()).unwrap_or(u32::MAX),
            checksum: crc32c::crc32c(&packed),
        };
        let frame = [&header.encode()[..], &packed].concat();
        let writing = self.file_of_today()?;
        writing.file.write_all(&frame)?;
        writing.end += frame.len() as u64;
        self.frame.clear();
        self.first = None;
        Ok(())
    }

    fn file_of_today(&mut self) -> io::Result<&mut Writing> {
        let now = SystemTime::now();
        let today = Name { day: day_name(now), part: 0 };
        let name = self.newest.clone().map_or(today.clone(), |newest| newest.max(today));
        if let Some(writing) = &mut self.writing
            && writing.name != name
        {
            writing.sync()?;
            self.writing = None;
        }
        if self.writing.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(name.path(&self.dir))?;
            file.sync_all()?;
            sync_directory(&self.dir)?;
            let end = file.metadata()?.len();
            self.newest = Some(name.clone());
            self.writing = Some(Writing { name, file, safe: end, end, spoilt: false });
            self.prune(now);
        }
        // Invariant: made above if there was none.
        self.writing.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Writing {
    fn sync(&mut self) -> io::Result<()> {
        let synced = self.file.sync_data();
        match synced {
            Ok(()) => self.safe = self.end,
            Err(_) => self.spoilt = true,
        }
        synced
    }
}

/// Goes through a file frame by frame, and stops before what is not whole.
struct Frames {
    file: File,
    length: u64,
    /// Where the last whole frame ends.
    whole: u64,
}

impl Frames {
    fn new(file: File) -> Self {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        Self { file, length, whole: 0 }
    }

    fn next_header(&mut self) -> io::Result<Option<FrameHeader>> {
        if self.whole + HEADER_BYTES as u64 > self.length {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(self.whole))?;
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact(&mut bytes)?;
        let header = FrameHeader::decode(&bytes);
        let end = |header: &FrameHeader| self.whole + HEADER_BYTES as u64 + u64::from(header.length);
        Ok(header.filter(|header| end(header) <= self.length))
    }

    /// Passes over the data; the last frame's is verified. False: it is not whole.
    fn skip(&mut self, header: &FrameHeader) -> io::Result<bool> {
        let end = self.whole + HEADER_BYTES as u64 + u64::from(header.length);
        if end + HEADER_BYTES as u64 > self.length && self.data(header)?.is_none() {
            self.length = self.whole;
            return Ok(false);
        }
        self.whole = end;
        Ok(true)
    }

    /// The frame's events, still packed; `None` if damaged. Does not go on.
    fn data(&mut self, header: &FrameHeader) -> io::Result<Option<Vec<u8>>> {
        self.file.seek(SeekFrom::Start(self.whole + HEADER_BYTES as u64))?;
        let mut packed = vec![0; header.length as usize];
        self.file.read_exact(&mut packed)?;
        Ok((crc32c::crc32c(&packed) == header.checksum).then_some(packed))
    }
}

/// Reads a journal that may still be written.
pub struct Events {
    dir: PathBuf,
    names: std::vec::IntoIter<Name>,
    frames: Option<Frames>,
    events: std::vec::IntoIter<Event>,
    next: Lsn,
}

/// The events in `dir` from `lsn` on, as far as whole frames go; call again later for what comes then.
///
/// # Errors
/// When the directory cannot be listed.
pub fn read_from(dir: &Path, lsn: Lsn) -> io::Result<Events> {
    let names = names(dir)?;
    let mut start = 0;
    for (i, name) in names.iter().enumerate() {
        let mut frames = Frames::new(File::open(name.path(dir))?);
        match frames.next_header()? {
            Some(header) if header.first <= lsn => start = i,
            Some(_) => break,
            None => {}
        }
    }
    let names = names.into_iter().skip(start).collect::<Vec<_>>().into_iter();
    Ok(Events { dir: dir.to_owned(), names, frames: None, events: Vec::new().into_iter(), next: lsn })
}

impl Events {
    /// The number to go on from.
    #[must_use]
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// Loads the next frame with something new. False: there is none.
    fn load(&mut self) -> io::Result<bool> {
        loop {
            if self.frames.is_none() {
                let Some(name) = self.names.next() else { return Ok(false) };
                self.frames = Some(Frames::new(File::open(name.path(&self.dir))?));
            }
            let Some(frames) = &mut self.frames else { return Ok(false) };
            let Some(header) = frames.next_header()? else {
                self.frames = None;
                continue;
            };
            let wanted = header.last >= self.next;
            let data = if wanted { frames.data(&header)? } else { None };
            if wanted && data.is_none() {
                // Not whole yet, or damaged: what follows in this file is not believed.
                self.frames = None;
                continue;
            }
            frames.whole += HEADER_BYTES as u64 + u64::from(header.length);
            if let Some(packed) = data {
                let plain = zstd::bulk::decompress(&packed, FRAME_BYTES_MAX)?;
                let next = self.next;
                let events: Vec<Event> = unpack(&plain).filter(|event| event.lsn >= next).collect();
                self.events = events.into_iter();
                return Ok(true);
            }
        }
    }
}

impl Iterator for Events {
    type Item = io::Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.events.next() {
                self.next = event.lsn.next();
                return Some(Ok(event));
            }
            match self.load() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn unpack(mut plain: &[u8]) -> impl Iterator<Item = Event> + '_ {
    std::iter::from_fn(move || {
        let (header, rest) = plain.split_first_chunk::<EVENT_HEADER_BYTES>()?;
        let length = header[11..15].try_into().map_or(0, u32::from_le_bytes);
        let (head, rest) = rest.split_at_checked(length as usize)?;
        plain = rest;
        Some(Event {
            lsn: Lsn(header[0..8].try_into().map_or(0, u64::from_le_bytes)),
            kind: header[8],
            shard: u16::from_le_bytes([header[9], header[10]]),
            head: head.to_vec(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_named_by_the_civil_calendar() {
        let at = |seconds| day_name(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(951_782_400), "2000-02-29");
        assert_eq!(at(1_795_564_799), "2026-11-24");
        assert_eq!(at(1_795_564_800), "2026-11-25");
    }

    #[test]
    fn days_that_are_not_kept_are_removed_but_never_the_newest_file() {
        let dir = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_795_564_800);
        for name in
            ["2026-11-20.log.zst", "2026-11-23.log.zst", "2026-11-23.000001.log.zst", "2026-11-24.log.zst"]
        {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        std::fs::write(dir.path().join("notes.txt"), b"").unwrap();
        let mut journal = Journal::open(dir.path(), 7, u32::MAX).unwrap();
        let left = |journal: &Journal| {
            journal.prune(now);
            names(dir.path()).unwrap().into_iter().map(|name| name.day).collect::<Vec<_>>()
        };
        journal.days = 3;
        assert_eq!(left(&journal), ["2026-11-23", "2026-11-23", "2026-11-24"]);
        journal.days = 1;
        assert_eq!(left(&journal), ["2026-11-24"]);
        assert!(dir.path().join("notes.txt").exists());
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_tried_less_and_less_often() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), 7, 30).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(journal.patience(second), second);
        journal.failures = 3;
        assert_eq!(journal.patience(second), 8 * second);
        journal.failures = u32::MAX;
        assert_eq!(journal.patience(second), PATIENCE_MAX);
    }

    #[test]
    fn a_write_that_failed_is_cut_off_and_its_file_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), 7, 30).unwrap();
        for _ in 0..3 {
            let writing = journal.file_of_today().unwrap();
            // Half a frame, and the disk is full.
            writing.file.write_all(b"half a frame").unwrap();
            journal.step_back();
        }
        let only = names(dir.path()).unwrap();
        assert_eq!(only.len(), 1);
        assert_eq!(std::fs::metadata(only[0].path(dir.path())).unwrap().len(), 0);
        journal.file_of_today().unwrap().spoilt = true;
        journal.step_back();
        journal.file_of_today().unwrap();
        assert_eq!(names(dir.path()).unwrap().len(), 2, "after a failed sync the file is not trusted");
    }

    #[test]
    fn a_given_up_file_sorts_before_its_successor() {
        let mut names: Vec<Name> = ["2026-11-25.log.zst", "2026-11-24.000001.log.zst", "2026-11-24.log.zst"]
            .iter()
            .map(|name| Name::parse(name).unwrap())
            .collect();
        names.sort();
        let days: Vec<(&str, u32)> = names.iter().map(|name| (&name.day[..], name.part)).collect();
        assert_eq!(days, [("2026-11-24", 0), ("2026-11-24", 1), ("2026-11-25", 0)]);
        assert_eq!(Name::parse("2026-11-24.log"), None);
    }
}

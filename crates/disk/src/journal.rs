//! The event journal: event records copied out of the log into compressed day files, in order.
//!
//! A file is a sequence of pairs: a zstd skippable frame with our header (which numbers the data frame
//! holds, its length and checksum), then the data frame. `zstd -dc` reads the file as it is. A follower
//! reads the log's segments as far as they are durable, so that nothing is held in memory for it and a
//! crash loses and repeats nothing: it goes on behind the last whole frame.

use crate::files::{Disk, Files, sync_directory};
use postrider_spool::{Extent, Follower, Lsn};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A frame is closed at about so many octets of events.
const FRAME_BYTES: usize = 1 << 20;
/// No frame is longer than this, packed or not.
const FRAME_BYTES_MAX: usize = 16 << 20;
const LEVEL: i32 = 1;
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

/// Writes the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    follower: Follower,
    file: Option<(Name, File)>,
    /// The newest name ever used: days never go back.
    newest: Option<Name>,
    /// Everything up to this one is in synced frames.
    synced: Lsn,
    /// Events of the frame being filled.
    frame: Vec<u8>,
    first: Option<Lsn>,
    salt: u64,
}

impl Journal {
    /// Goes on behind the last whole frame in `dir`; what follows it is cut off.
    pub(crate) fn open(dir: &Path, salt: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
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
        Ok(Self {
            dir: dir.to_owned(),
            follower: Follower::new(salt, last.next()),
            file: None,
            newest: names.last().cloned(),
            synced: last,
            frame: Vec::new(),
            first: None,
            salt,
        })
    }

    /// Copies what the extents hold and syncs it. The answer is how far the journal is durable.
    pub(crate) fn catch_up(&mut self, files: &Files, extents: &[Extent]) -> io::Result<Lsn> {
        self.follower.look_again();
        let copied = self.copy(files, extents);
        if copied.is_err() {
            // What of it is on disk is unknown: the file is left as it is, and its events are written again
            // to another. A reader passes over what it has seen.
            self.file = None;
            if let Some(newest) = &mut self.newest {
                newest.part += 1;
            }
            self.follower = Follower::new(self.salt, self.synced.next());
            self.frame.clear();
            self.first = None;
        }
        copied
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
        if wrote && let Some((_, file)) = &self.file {
            file.sync_data()?;
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
        let file = self.file_of_today()?;
        file.write_all(&[&header.encode()[..], &packed].concat())?;
        self.frame.clear();
        self.first = None;
        Ok(())
    }

    fn file_of_today(&mut self) -> io::Result<&mut File> {
        let today = Name { day: day_name(SystemTime::now()), part: 0 };
        let name = self.newest.clone().map_or(today.clone(), |newest| newest.max(today));
        if let Some((of, file)) = self.file.take() {
            if of == name {
                return Ok(&mut self.file.insert((of, file)).1);
            }
            file.sync_data()?;
        }
        let file = OpenOptions::new().create(true).append(true).open(name.path(&self.dir))?;
        file.sync_all()?;
        sync_directory(&self.dir)?;
        self.newest = Some(name.clone());
        Ok(&mut self.file.insert((name, file)).1)
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
    use std::time::Duration;

    #[test]
    fn days_are_named_by_the_civil_calendar() {
        let at = |seconds| day_name(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(951_782_400), "2000-02-29");
        assert_eq!(at(1_795_564_799), "2026-11-24");
        assert_eq!(at(1_795_564_800), "2026-11-25");
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

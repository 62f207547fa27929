//! The audit log's head, noted outside the store once a day, so that a log rewritten as a whole is detected.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file's name in the data directory. Copy it elsewhere to be safe from whoever owns the machine.
const FILE_NAME: &str = "audit.anchors";

/// The log's head on a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// `2026-11-24`
    pub(crate) day: String,
    /// The entry.
    pub(crate) seq: u64,
    /// Its hash.
    pub(crate) hash: String,
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Anchors {
    path: PathBuf,
}

impl Anchors {
    pub(crate) fn new(dir: &Path) -> Self {
        Anchors { path: dir.join(FILE_NAME) }
    }

    /// All anchors, in the order of entries.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn read(&self) -> io::Result<Vec<Anchor>> {
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text?,
        };
        let mut anchors: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (day, seq, hash) = (words.next()?, words.next()?, words.next()?);
                Some(Anchor { day: day.to_owned(), seq: seq.parse().ok()?, hash: hash.to_owned() })
            })
            .collect();
        anchors.sort_by_key(|anchor| anchor.seq);
        Ok(anchors)
    }

    /// Adds one, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn add(&self, anchor: &Anchor) -> io::Result<()> {
        let mut file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        file.write_all(format!("{} {} {}\n", anchor.day, anchor.seq, anchor.hash).as_bytes())?;
        file.sync_all()
    }
}

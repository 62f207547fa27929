//! The sandbox: files on disk and an index of them in memory.

use crate::files::{self, UNFINISHED};
use bytes::Bytes;
use postrider_message::{FieldKind, HeaderScan, decode_words, lines};
use postrider_model::{Encoding, Mailbox, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Octets kept of a header field for listing.
const TEXT_SIZE_MAX: usize = 500;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages.
    pub messages_max: usize,
    /// Octets of their content.
    pub size_max_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { messages_max: 10_000, size_max_bytes: 1 << 30 }
    }
}

/// A message to be kept.
#[derive(Clone, Copy, Debug)]
pub struct CapturedMessage<'a> {
    /// Its id, which names its files: letters, digits, `_` and `-`.
    pub id: &'a str,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The application, account or listener that brought it.
    pub account: &'a str,
    /// `None` is the null reverse-path.
    pub reverse_path: Option<&'a Mailbox>,
    /// Those of its recipients that are captured.
    pub recipients: &'a [&'a Mailbox],
    /// Its content.
    pub content: &'a [Bytes],
    /// The content's form; it is kept without stuffing.
    pub encoding: Encoding,
}

/// What is known of a kept message without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Its id.
    pub id: String,
    /// When it was accepted, for people.
    pub accepted_at: String,
    /// The same in microseconds since the Unix epoch.
    pub accepted_at_us: u64,
    /// The application, account or listener that brought it; empty for what was kept before this was noted.
    #[serde(default)]
    pub account: String,
    /// The reverse-path; empty when null.
    pub sender: String,
    /// The recipients.
    pub recipients: Vec<String>,
    /// The From field.
    pub from: String,
    /// The Subject field, decoded.
    pub subject: String,
    /// Octets of the content.
    pub size: u64,
}

/// Which messages to list: those that match every part that is given. Parts match anywhere, whatever
/// their case.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In one of the recipients.
    pub recipient: Option<String>,
    /// In the reverse-path or the From field.
    pub sender: Option<String>,
    /// In the subject.
    pub subject: Option<String>,
    /// Brought by exactly this application, account or listener.
    pub account: Option<String>,
}

impl Filter {
    fn matches(&self, captured: &Captured) -> bool {
        let holds = |text: &str, part: &Option<String>| match part {
            Some(part) => text.to_lowercase().contains(&part.to_lowercase()),
            None => true,
        };
        self.account.as_ref().is_none_or(|account| *account == captured.account)
            && (self.recipient.is_none()
                || captured.recipients.iter().any(|text| holds(text, &self.recipient)))
            && (holds(&captured.sender, &self.sender) || holds(&captured.from, &self.sender))
            && holds(&captured.subject, &self.subject)
    }
}

#[derive(Default)]
struct Index {
    by_id: BTreeMap<String, Arc<Captured>>,
    by_age: BTreeSet<(u64, String)>,
    size: u64,
}

impl Index {
    fn insert(&mut self, captured: Captured) {
        self.remove(&captured.id.clone());
        self.size += captured.size;
        self.by_age.insert((captured.accepted_at_us, captured.id.clone()));
        self.by_id.insert(captured.id.clone(), Arc::new(captured));
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(captured) = self.by_id.remove(id) else { return false };
        self.size -= captured.size;
        self.by_age.remove(&(captured.accepted_at_us, captured.id.clone()));
        true
    }

    fn oldest_beyond(&self, bounds: &Bounds) -> Option<String> {
        let beyond = self.by_id.len() > bounds.messages_max || self.size > bounds.size_max_bytes;
        if beyond { self.by_age.first().map(|(_, id)| id.clone()) } else { None }
    }
}

/// Captured messages in a directory of their own. It may be shared between threads.
pub struct Sandbox {
    dir: PathBuf,
    bounds: Bounds,
    index: Mutex<Index>,
    unreadable: usize,
}

impl Sandbox {
    /// Opens the directory, which is made if it is missing, and reads what it holds. Files that a crash left
    /// unfinished go.
    ///
    /// # Errors
    /// When the directory cannot be made, read or cleaned.
    pub fn open(dir: impl Into<PathBuf>, bounds: Bounds) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            files::sync_dir(parent)?;
        }
        let mut index = Index::default();
        let mut contents = Vec::new();
        let mut unreadable = 0;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(UNFINISHED) {
                files::remove(&path)?;
            } else if let Some(id) = name.strip_suffix(".eml") {
                contents.push(id.to_owned());
            } else if let Some(id) = name.strip_suffix(".json") {
                match serde_json::from_slice::<Captured>(&fs::read(&path)?) {
                    Ok(captured) if captured.id == id => index.insert(captured),
                    _ => unreadable += 1,
                }
            }
        }
        let sandbox = Sandbox { dir, bounds, index: Mutex::new(index), unreadable };
        for id in contents {
            // The description is written last: content without one was never captured.
            let described = files::path(&sandbox.dir, &id, "json").is_ok_and(|path| path.exists());
            if !described && let Ok(path) = files::path(&sandbox.dir, &id, "eml") {
                files::remove(&path)?;
            }
        }
        sandbox.keep_bounds()?;
        Ok(sandbox)
    }

    /// How many descriptions could not be read at the start; they are left as they are.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Keeps a message, durably. An id that is kept already stays as it is.
    ///
    /// # Errors
    /// When the id is unfit or the disk fails; then nothing is kept.
    pub fn capture(&self, message: &CapturedMessage<'_>) -> io::Result<()> {
        self.capture_all(std::slice::from_ref(message))
    }

    /// Keeps several messages with one sync of the directory.
    ///
    /// # Errors
    /// When an id is unfit or the disk fails; then those before it may be kept, and all may be tried again.
    pub fn capture_all(&self, messages: &[CapturedMessage<'_>]) -> io::Result<()> {
        let mut kept = Vec::with_capacity(messages.len());
        for message in messages {
            if self.lock().by_id.contains_key(message.id) {
                continue;
            }
            kept.push(self.write(message)?);
        }
        // Also when all were kept already: an earlier try may have failed right here.
        files::sync_dir(&self.dir)?;
        let mut index = self.lock();
        for captured in kept {
            index.insert(captured);
        }
        drop(index);
        self.keep_bounds()
    }

    fn write(&self, message: &CapturedMessage<'_>) -> io::Result<Captured> {
        let content_path = files::path(&self.dir, message.id, "eml")?;
        let description_path = files::path(&self.dir, message.id, "json")?;
        let unstuffed;
        let parts: Vec<&[u8]> = if message.encoding == Encoding::Stuffed {
            unstuffed = unstuff(message.content);
            vec![&unstuffed]
        } else {
            message.content.iter().map(|piece| &**piece).collect()
        };
        let size = parts.iter().map(|part| part.len() as u64).sum();
        let captured = describe(message, size);
        files::write(&content_path, &parts)?;
        files::write(&description_path, &[&serde_json::to_vec_pretty(&captured)?])?;
        Ok(captured)
    }

    /// The messages that match, the newest first, at most `limit`.
    #[must_use]
    pub fn list(&self, filter: &Filter, limit: usize) -> Vec<Arc<Captured>> {
        let index = self.lock();
        let newest_first = index.by_age.iter().rev().filter_map(|(_, id)| index.by_id.get(id));
        newest_first.filter(|captured| filter.matches(captured)).take(limit).cloned().collect()
    }

    /// How many messages are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// True if none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A message and its octets; `None` if no such id is kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn show(&self, id: &str) -> io::Result<Option<(Arc<Captured>, Vec<u8>)>> {
        let Some(captured) = self.lock().by_id.get(id).cloned() else { return Ok(None) };
        match fs::read(files::path(&self.dir, id, "eml")?) {
            Ok(content) => Ok(Some((captured, content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a message; true if it was kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn delete(&self, id: &str) -> io::Result<bool> {
        if !self.lock().by_id.contains_key(id) {
            return Ok(false);
        }
        // The description first: without it the content is rubbish that the next start removes.
        files::remove(&files::path(&self.dir, id, "json")?)?;
        files::remove(&files::path(&self.dir, id, "eml")?)?;
        Ok(self.lock().remove(id))
    }

    /// Removes all messages; gives how many.
    ///
    /// # Errors
    /// When the disk fails; then some are left.
    pub fn clear(&self) -> io::Result<usize> {
        let ids: Vec<String> = self.lock().by_id.keys().cloned().collect();
        let mut removed = 0;
        for id in ids {
            removed += usize::from(self.delete(&id)?);
        }
        Ok(removed)
    }

    fn keep_bounds(&self) -> io::Result<()> {
        loop {
            let Some(id) = self.lock().oldest_beyond(&self.bounds) else { return Ok(()) };
            self.delete(&id)?;
        }
    }

    /// The index is whole after every statement that changes it, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sandbox({})", self.dir.display())
    }
}

fn describe(message: &CapturedMessage<'_>, size: u64) -> Captured {
    let header = HeaderScan::whole(message.content);
    let text = |kind| {
        let raw = header.text(kind, message.content, TEXT_SIZE_MAX).unwrap_or_default();
        decode_words(&raw, TEXT_SIZE_MAX)
    };
    Captured {
        id: message.id.to_owned(),
        accepted_at: message.accepted_at.to_string(),
        accepted_at_us: message.accepted_at.as_micros(),
        account: message.account.to_owned(),
        sender: message.reverse_path.map(ToString::to_string).unwrap_or_default(),
        recipients: message.recipients.iter().map(ToString::to_string).collect(),
        from: text(FieldKind::From),
        subject: text(FieldKind::Subject),
        size,
    }
}

fn unstuff(content: &[Bytes]) -> Vec<u8> {
    match content {
        [piece] => lines::unstuff(piece).into_owned(),
        pieces => lines::unstuff(&pieces.concat()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn sandbox(dir: &TempDir, messages_max: usize, size_max_bytes: u64) -> Sandbox {
        Sandbox::open(dir.path().join("box"), Bounds { messages_max, size_max_bytes }).unwrap()
    }

    fn capture(sandbox: &Sandbox, id: &str, secs: u64, recipient: &str, content: &str) -> io::Result<()> {
        let (recipient, sender) = (recipient.parse().unwrap(), "ada@example.com".parse().unwrap());
        sandbox.capture(&CapturedMessage {
            id,
            accepted_at: Timestamp::from_secs(secs),
            account: "app1",
            reverse_path: Some(&sender),
            recipients: &[&recipient],
            content: &[Bytes::copy_from_slice(content.as_bytes())],
            encoding: Encoding::Stuffed,
        })
    }

    fn ids(sandbox: &Sandbox, filter: &Filter) -> Vec<String> {
        sandbox.list(filter, 100).iter().map(|captured| captured.id.clone()).collect()
    }

    #[test]
    fn what_was_captured_is_found_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let content = "From: Ada <ada@example.com>\r\nSubject: =?utf-8?q?=C3=BC?=\r\n\r\n..\r\nx\r\n";
        capture(&sandbox(&dir, 10, 1 << 20), "msg_1", 1, "bob@example.net", content).unwrap();
        let again = sandbox(&dir, 10, 1 << 20);
        let (captured, octets) = again.show("msg_1").unwrap().unwrap();
        assert_eq!((&*captured.subject, &*captured.from), ("ü", "Ada <ada@example.com>"));
        assert_eq!((&*captured.sender, &*captured.recipients[0]), ("ada@example.com", "bob@example.net"));
        assert_eq!(captured.accepted_at, "1970-01-01T00:00:01.000Z");
        assert!(octets.ends_with(b"\r\n\r\n.\r\nx\r\n"));
        assert_eq!(captured.size, octets.len() as u64);
    }

    #[test]
    fn capturing_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&dir, 10, 1 << 20);
        capture(&sandbox, "a", 1, "bob@example.net", "first\r\n").unwrap();
        capture(&sandbox, "a", 2, "carol@example.net", "second\r\n").unwrap();
        assert_eq!(sandbox.len(), 1);
        assert_eq!(sandbox.show("a").unwrap().unwrap().1, b"first\r\n");
    }

    #[test]
    fn the_newest_come_first_and_filters_narrow() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&dir, 10, 1 << 20);
        capture(&sandbox, "b", 2, "bob@example.net", "Subject: Hello World\r\n\r\n").unwrap();
        capture(&sandbox, "a", 1, "carol@example.net", "From: X\r\nSubject: Bye\r\n\r\n").unwrap();
        capture(&sandbox, "c", 3, "bob@example.org", "Subject: other\r\n\r\n").unwrap();
        let filter = |recipient: Option<&str>, sender: Option<&str>, subject: Option<&str>| Filter {
            recipient: recipient.map(Into::into),
            sender: sender.map(Into::into),
            subject: subject.map(Into::into),
            account: None,
        };
        assert_eq!(ids(&sandbox, &Filter::default()), ["c", "b", "a"]);
        assert_eq!(ids(&sandbox, &filter(Some("BOB@"), None, None)), ["c", "b"]);
        assert_eq!(ids(&sandbox, &filter(Some("bob@"), None, Some("world"))), ["b"]);
        assert_eq!(ids(&sandbox, &filter(None, Some("x"), None)), ["c", "b", "a"]);
        assert_eq!(ids(&sandbox, &filter(None, Some("nobody"), None)), Vec::<String>::new());
        assert_eq!(sandbox.list(&Filter::default(), 1).len(), 1);
    }

    #[test]
    fn the_oldest_go_beyond_the_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&dir, 3, 40);
        for n in 1..=5 {
            capture(&sandbox, &n.to_string(), n, "bob@example.net", "x: y\r\n\r\n").unwrap();
        }
        assert_eq!(ids(&sandbox, &Filter::default()), ["5", "4", "3"]);
        capture(&sandbox, "6", 6, "bob@example.net", &format!("x: {}\r\n\r\n", "y".repeat(20))).unwrap();
        assert_eq!(ids(&sandbox, &Filter::default()), ["6", "5"]);
        let files = fs::read_dir(sandbox.dir()).unwrap().count();
        assert_eq!(files, 4);
    }

    #[test]
    fn what_was_deleted_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&dir, 10, 1 << 20);
        for id in ["a", "b", "c"] {
            capture(&sandbox, id, 1, "bob@example.net", "x\r\n").unwrap();
        }
        assert!(sandbox.delete("a").unwrap());
        assert!(!sandbox.delete("a").unwrap());
        assert!(!sandbox.delete("../a").unwrap());
        assert_eq!(sandbox.show("a").unwrap(), None);
        assert_eq!(sandbox.clear().unwrap(), 2);
        assert!(sandbox.is_empty());
        assert_eq!(fs::read_dir(sandbox.dir()).unwrap().count(), 0);
    }

    #[test]
    fn no_id_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&dir, 10, 1 << 20);
        for id in ["", "../x", "a/b", "a\\b", "a.b", ".", "-rf", "a\0", "ü", &"a".repeat(129)] {
            let error = capture(&sandbox, id, 1, "bob@example.net", "x\r\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{id:?}");
        }
        assert!(sandbox.is_empty());
    }

    #[test]
    fn what_a_crash_left_unfinished_goes_and_damage_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let first = sandbox(&dir, 10, 1 << 20);
        capture(&first, "whole", 1, "bob@example.net", "x\r\n").unwrap();
        fs::write(first.dir().join("orphan.eml"), "x").unwrap();
        fs::write(first.dir().join(format!("{UNFINISHED}y.eml")), "x").unwrap();
        fs::write(first.dir().join("bad.json"), "{").unwrap();
        fs::write(first.dir().join("note.txt"), "mine").unwrap();
        let again = sandbox(&dir, 10, 1 << 20);
        assert_eq!((again.len(), again.unreadable()), (1, 1));
        let mut names: Vec<_> =
            fs::read_dir(again.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["bad.json", "note.txt", "whole.eml", "whole.json"]);
    }
}

//! Checkpoints: parts that never change once written, and manifests that name them.
//!
//! A part is a file of its own, so that a new checkpoint writes only what has changed and names the rest
//! again. The two newest manifests are kept; what neither names is removed.

use crate::files::{make_directory, sync_directory};
use crate::open::OpenError;
use postrider_spool::Lsn;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const MAGIC: [u8; 8] = *b"PRIDECKP";
/// No manifest is longer.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// This many are kept, so that damage to the newest costs time and nothing else.
const KEPT: usize = 2;

/// One part, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The writer's name for it.
    pub name: String,
    /// Which file: never given twice.
    pub version: u64,
    /// Octets.
    pub length: u64,
    /// CRC32C of the content.
    pub checksum: u32,
}

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Rises with each.
    pub number: u64,
    /// Replay starts here: the parts hold the effect of everything before.
    pub replay_from: Lsn,
    /// The writer's own.
    pub head: Vec<u8>,
    /// All parts, new and old.
    pub parts: Vec<Part>,
}

/// Why a part cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The operating system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("the checkpoint's part {0} is damaged")]
    Damaged(String),
}

/// The checkpoints of one log; cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoints(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest last.
    kept: Vec<Arc<Manifest>>,
    next_version: u64,
    next_number: u64,
    /// Unnamed parts from before this version are of no use to anybody.
    stale_before: u64,
}

impl Checkpoints {
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        let fail = |error| OpenError::io(dir, error);
        make_directory(dir).map_err(fail)?;
        let mut state = State { next_version: 1, next_number: 1, ..State::default() };
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            match parse_name(&name) {
                Some(Name::Manifest(number)) => numbers.push(number),
                Some(Name::Part(version)) => state.next_version = state.next_version.max(version + 1),
                None => {}
            }
        }
        numbers.sort_unstable();
        state.next_number = numbers.last().map_or(1, |number| number + 1);
        state.stale_before = state.next_version;
        for number in numbers.into_iter().rev() {
            match read_manifest(dir, number) {
                Ok(manifest) => state.kept.insert(0, Arc::new(manifest)),
                Err(error) => tracing::error!(number, %error, "a checkpoint is set aside"),
            }
            if state.kept.len() == KEPT {
                break;
            }
        }
        Ok(Self(Arc::new(Shelf { dir: dir.to_owned(), state: Mutex::new(state) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one to start from.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Manifest>> {
        self.state().kept.last().cloned()
    }

    /// Those that are kept, the newest last.
    #[must_use]
    pub fn kept(&self) -> Vec<Arc<Manifest>> {
        self.state().kept.clone()
    }

    pub(crate) fn discard_newest(&self) {
        self.state().kept.pop();
    }

    /// The newest checkpoint proved damaged when others relied on it already: the next start takes the one
    /// before it. Its manifest is kept under another name.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_aside_newest(&self) -> io::Result<()> {
        let Some(manifest) = self.state().kept.pop() else { return Ok(()) };
        let path = self.0.dir.join(manifest_name(manifest.number));
        std::fs::rename(&path, path.with_extension("damaged"))?;
        sync_directory(&self.0.dir)
    }

    /// Writes a part and makes it durable. It counts once a manifest names it; what two manifests in a row
    /// do not name is removed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_part(&self, name: &str, content: &[u8]) -> io::Result<Part> {
        let version = {
            let mut state = self.state();
            state.next_version += 1;
            state.next_version - 1
        };
        let path = self.0.dir.join(part_name(version));
        let written = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        if let Err(error) = written {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let checksum = crc32c::crc32c(content);
        Ok(Part { name: name.to_owned(), version, length: content.len() as u64, checksum })
    }

    /// Reads a part back, verified.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn read_part(&self, part: &Part) -> Result<Vec<u8>, PartError> {
        let content = std::fs::read(self.0.dir.join(part_name(part.version)))?;
        if content.len() as u64 != part.length || crc32c::crc32c(&content) != part.checksum {
            return Err(PartError::Damaged(part.name.clone()));
        }
        Ok(content)
    }

    /// Makes a checkpoint of these parts. When it returns, recovery starts from it; tell the committer.
    ///
    /// # Errors
    /// The operating system's; the checkpoints before it stay as they are.
    pub fn commit(&self, replay_from: Lsn, head: Vec<u8>, parts: Vec<Part>) -> io::Result<()> {
        let number = self.state().next_number;
        let manifest = Manifest { number, replay_from, head, parts };
        let path = self.0.dir.join(manifest_name(number));
        let draft = path.with_extension("draft");
        let mut file = File::create(&draft)?;
        file.write_all(&encode(&manifest))?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)?;
        sync_directory(&self.0.dir)?;
        let mut state = self.state();
        state.next_number += 1;
        state.kept.push(Arc::new(manifest));
        let surplus = state.kept.len().saturating_sub(KEPT);
        state.kept.drain(..surplus);
        if let Err(error) = self.prune(&state) {
            tracing::warn!(%error, "old checkpoint files cannot be removed");
        }
        state.stale_before = state.next_version;
        Ok(())
    }

    /// Removes what no kept manifest names.
    fn prune(&self, state: &State) -> io::Result<()> {
        let named: HashSet<u64> =
            state.kept.iter().flat_map(|manifest| manifest.parts.iter().map(|part| part.version)).collect();
        let numbers: HashSet<u64> = state.kept.iter().map(|manifest| manifest.number).collect();
        for entry in std::fs::read_dir(&self.0.dir)? {
            let entry = entry?;
            let stale = match parse_name(&entry.file_name()) {
                Some(Name::Manifest(number)) => !numbers.contains(&number),
                Some(Name::Part(version)) => version < state.stale_before && !named.contains(&version),
                None => false,
            };
            if stale {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

enum Name {
    Manifest(u64),
    Part(u64),
}

fn manifest_name(number: u64) -> String {
    format!("manifest-{number:016x}")
}

fn part_name(version: u64) -> String {
    format!("part-{version:016x}")
}

fn parse_name(name: &std::ffi::OsStr) -> Option<Name> {
    let name = name.to_str()?;
    let (kind, number) = name.split_once('-')?;
    let number = u64::from_str_radix(number, 16).ok()?;
    match kind {
        "manifest" => Some(Name::Manifest(number)),
        "part" => Some(Name::Part(number)),
        _ => None,
    }
}

fn read_manifest(dir: &Path, number: u64) -> io::Result<Manifest> {
    let path = dir.join(manifest_name(number));
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the manifest is damaged");
    if std::fs::metadata(&path)?.len() > MANIFEST_BYTES_MAX {
        return Err(damaged());
    }
    let manifest = decode(&std::fs::read(&path)?).filter(|manifest| manifest.number == number);
    let manifest = manifest.ok_or_else(damaged)?;
    for part in &manifest.parts {
        if std::fs::metadata(dir.join(part_name(part.version)))?.len() != part.length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a part has not its length"));
        }
    }
    Ok(manifest)
}

fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut put = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    put(&manifest.number.to_le_bytes());
    put(&manifest.replay_from.0.to_le_bytes());
    put(&manifest.head);
    for part in &manifest.parts {
        put(part.name.as_bytes());
        put(&part.version.to_le_bytes());
        put(&part.length.to_le_bytes());
        put(&part.checksum.to_le_bytes());
    }
    let sum = crc32c::crc32c(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Manifest> {
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut fields = Fields(content.strip_prefix(&MAGIC)?);
    let number = fields.number()?;
    let replay_from = Lsn(fields.number()?);
    let head = fields.bytes()?.to_vec();
    let mut parts = Vec::new();
    while !fields.0.is_empty() {
        parts.push(Part {
            name: String::from_utf8(fields.bytes()?.to_vec()).ok()?,
            version: fields.number()?,
            length: fields.number()?,
            checksum: u32::from_le_bytes(fields.bytes()?.try_into().ok()?),
        });
    }
    Some(Manifest { number, replay_from, head, parts })
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<8>()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes()?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(checkpoints: &Checkpoints, names: &[&str]) -> Vec<Part> {
        names.iter().map(|name| checkpoints.write_part(name, name.as_bytes()).unwrap()).collect()
    }

    #[test]
    fn an_old_part_lives_as_long_as_a_kept_manifest_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(dir.path()).unwrap();
        let first = write(&checkpoints, &["a", "b"]);
        checkpoints.commit(Lsn(5), b"one".to_vec(), first.clone()).unwrap();
        let second = [write(&checkpoints, &["a2"]), vec![first[1].clone()]].concat();
        checkpoints.commit(Lsn(9), b"two".to_vec(), second.clone()).unwrap();
        checkpoints.commit(Lsn(12), b"three".to_vec(), second.clone()).unwrap();
        assert!(checkpoints.read_part(&first[0]).is_err(), "no kept manifest names it");
        let again = Checkpoints::open(dir.path()).unwrap();
        let newest = again.newest().unwrap();
        assert_eq!((newest.replay_from, &newest.parts), (Lsn(12), &second));
        assert_eq!(again.read_part(&newest.parts[1]).unwrap(), b"b");
    }

    #[test]
    fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(dir.path()).unwrap();
        checkpoints.commit(Lsn(5), vec![], write(&checkpoints, &["a"])).unwrap();
        checkpoints.commit(Lsn(9), vec![], write(&checkpoints, &["b"])).unwrap();
        let part = checkpoints.newest().unwrap().parts[0].version;
        std::fs::write(dir.path().join(part_name(part)), b"").unwrap();
        assert_eq!(Checkpoints::open(dir.path()).unwrap().newest().unwrap().replay_from, Lsn(5));
        std::fs::write(dir.path().join(part_name(part)), b"x").unwrap();
        let again = Checkpoints::open(dir.path()).unwrap();
        let newest = again.newest().unwrap();
        assert!(matches!(again.read_part(&newest.parts[0]), Err(PartError::Damaged(name)) if name == "b"));
        again.discard_newest();
        assert_eq!(again.newest().unwrap().replay_from, Lsn(5));
    }

    proptest! {
        #[test]
        fn a_manifest_reads_back_and_damage_is_seen(
            head in proptest::collection::vec(any::<u8>(), 0..50), at in 0usize..1000, name in "[a-z]{0,9}",
        ) {
            let part = Part { name, version: 3, length: 4, checksum: 5 };
            let manifest = Manifest { number: 1, replay_from: Lsn(2), head, parts: vec![part.clone(), part] };
            let mut bytes = encode(&manifest);
            prop_assert_eq!(decode(&bytes), Some(manifest));
            let at = at % bytes.len();
            bytes[at] ^= 4;
            prop_assert_eq!(decode(&bytes), None);
        }
    }
}

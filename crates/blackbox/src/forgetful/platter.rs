//! What a forgetful disk holds: everything twice, as programs see it and as a loss of power would leave it.
//!
//! The rules are the least that POSIX promises. Content is safe after `fsync` or `fdatasync` of its file; a name
//! is safe after `fsync` of its directory, whatever was done to the file. What is not safe may survive in part:
//! single sectors of content in any choice, changes of a directory up to any point in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// The root's number.
pub(crate) const ROOT: u64 = 1;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Absent,
    Exists,
    NotEmpty,
    NotDirectory,
    OtherDirectory,
    Full,
}

/// A file or a directory.
#[derive(Debug)]
pub(crate) struct Node {
    /// Type and permissions; changes to them are safe at once.
    pub(crate) mode: u32,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    File(File),
    Directory(Directory),
    /// A socket.
    Special,
}

/// Octets, now and after a loss of power.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) now: Vec<u8>,
    safe: Vec<u8>,
    /// Numbers of the sectors in which the two may differ.
    dirty: BTreeSet<usize>,
}

impl File {
    fn touch(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
    }

    fn resize(&mut self, size: usize) {
        let before = self.now.len();
        self.now.resize(size, 0);
        self.touch(before.min(size), before.max(size));
    }

    fn keep(&mut self, sector: usize) {
        let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.now.len());
        if self.safe.len() < range.end {
            self.safe.resize(range.end, 0);
        }
        if !range.is_empty() {
            self.safe[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
        self.safe.resize(self.now.len(), 0);
    }

    fn lose(&mut self, random: &mut impl FnMut() -> u64) {
        let dirty = std::mem::take(&mut self.dirty);
        // As often as not nothing of it had left the cache.
        if random().is_multiple_of(2) {
            for sector in dirty {
                if random().is_multiple_of(2) {
                    self.keep(sector);
                }
            }
            if random().is_multiple_of(2) {
                self.safe.resize(self.now.len(), 0);
            }
        }
        self.now.clone_from(&self.safe);
    }
}

/// Names, now and after a loss of power, and what lies between the two.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) names: BTreeMap<OsString, u64>,
    safe: BTreeMap<OsString, u64>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Add(OsString, u64),
    Remove(OsString),
    Rename(OsString, OsString),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<OsString, u64>) {
        match self {
            Change::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Change::Remove(name) => drop(names.remove(name)),
            Change::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl Directory {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn sync(&mut self) {
        self.changes.clear();
        self.safe.clone_from(&self.names);
    }

    fn lose(&mut self, random: &mut impl FnMut() -> u64) {
        let changes = std::mem::take(&mut self.changes);
        let survive = random() % (changes.len() as u64 + 1);
        for change in changes.iter().take(usize::try_from(survive).unwrap_or(0)) {
            change.apply(&mut self.safe);
        }
        self.names.clone_from(&self.safe);
    }
}

/// The whole disk.
#[derive(Debug)]
pub(crate) struct Platter {
    nodes: HashMap<u64, Node>,
    last: u64,
    /// Octets that all files together may have.
    capacity: u64,
}

impl Platter {
    /// An empty one.
    pub(crate) fn new(capacity: u64) -> Platter {
        let root = Node { mode: 0o040_755, content: Content::Directory(Directory::default()) };
        Platter { nodes: HashMap::from([(ROOT, root)]), last: ROOT, capacity }
    }

    pub(crate) fn node(&mut self, number: u64) -> Result<&mut Node, Refused> {
        self.nodes.get_mut(&number).ok_or(Refused::Absent)
    }

    pub(crate) fn directory(&mut self, number: u64) -> Result<&mut Directory, Refused> {
        match &mut self.node(number)?.content {
            Content::Directory(directory) => Ok(directory),
            Content::File(_) | Content::Special => Err(Refused::NotDirectory),
        }
    }

    pub(crate) fn file(&mut self, number: u64) -> Result<&mut File, Refused> {
        match &mut self.node(number)?.content {
            Content::File(file) => Ok(file),
            Content::Directory(_) | Content::Special => Err(Refused::Absent),
        }
    }

    pub(crate) fn find(&mut self, parent: u64, name: &OsStr) -> Result<u64, Refused> {
        self.directory(parent)?.names.get(name).copied().ok_or(Refused::Absent)
    }

    pub(crate) fn make(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        content: Content,
    ) -> Result<u64, Refused> {
        let number = self.last + 1;
        let directory = self.directory(parent)?;
        if directory.names.contains_key(name) {
            return Err(Refused::Exists);
        }
        directory.change(Change::Add(name.to_owned(), number));
        self.last = number;
        self.nodes.insert(number, Node { mode, content });
        Ok(number)
    }

    pub(crate) fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Refused> {
        let number = self.find(parent, name)?;
        if let Content::Directory(directory) = &self.node(number)?.content
            && !directory.names.is_empty()
        {
            return Err(Refused::NotEmpty);
        }
        self.directory(parent)?.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    /// Within one directory; nothing here needs more.
    pub(crate) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Refused> {
        self.find(from.0, from.1)?;
        if from.0 != to.0 {
            return Err(Refused::OtherDirectory);
        }
        self.directory(from.0)?.change(Change::Rename(from.1.to_owned(), to.1.to_owned()));
        Ok(())
    }

    pub(crate) fn write(&mut self, number: u64, offset: usize, octets: &[u8]) -> Result<(), Refused> {
        let end = offset + octets.len();
        if self.file(number)?.now.len() < end {
            self.resize(number, end)?;
        }
        let file = self.file(number)?;
        file.now[offset..end].copy_from_slice(octets);
        file.touch(offset, end);
        Ok(())
    }

    pub(crate) fn resize(&mut self, number: u64, size: usize) -> Result<(), Refused> {
        let before = self.file(number)?.now.len();
        if size > before && (size - before) as u64 > self.free() {
            return Err(Refused::Full);
        }
        self.file(number)?.resize(size);
        Ok(())
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Octets that files may still take.
    pub(crate) fn free(&self) -> u64 {
        let named = self.nodes.values().filter_map(|node| match &node.content {
            Content::Directory(directory) => Some(directory.names.values()),
            Content::File(_) | Content::Special => None,
        });
        let used = named.flatten().filter_map(|number| match &self.nodes.get(number)?.content {
            Content::File(file) => Some(file.now.len() as u64),
            Content::Directory(_) | Content::Special => None,
        });
        self.capacity.saturating_sub(used.sum())
    }

    /// What `fsync` and `fdatasync` do.
    pub(crate) fn sync(&mut self, number: u64) -> Result<(), Refused> {
        match &mut self.node(number)?.content {
            Content::File(file) => file.sync(),
            Content::Directory(directory) => directory.sync(),
            Content::Special => {}
        }
        Ok(())
    }

    /// Octets and changes that are not safe.
    pub(crate) fn at_risk(&self) -> (usize, usize) {
        self.nodes.values().fold((0, 0), |(octets, changes), node| match &node.content {
            Content::File(file) => (octets + file.dirty.len() * SECTOR, changes),
            Content::Directory(directory) => (octets, changes + directory.changes.len()),
            Content::Special => (octets, changes),
        })
    }

    /// The power fails: what is left of the unsafe is drawn by lot.
    pub(crate) fn lose_power(&mut self, mut random: impl FnMut() -> u64) {
        let mut numbers: Vec<u64> = self.nodes.keys().copied().collect();
        // The same lots fall in the same places every time.
        numbers.sort_unstable();
        for number in numbers {
            match self.nodes.get_mut(&number).map(|node| &mut node.content) {
                Some(Content::File(file)) => file.lose(&mut random),
                Some(Content::Directory(directory)) => directory.lose(&mut random),
                Some(Content::Special) | None => {}
            }
        }
        let mut named = HashSet::new();
        let mut rest = vec![ROOT];
        while let Some(number) = rest.pop() {
            named.insert(number);
            if let Ok(directory) = self.directory(number) {
                rest.extend(directory.names.values());
            }
        }
        self.nodes.retain(|number, _| named.contains(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(platter: &mut Platter, name: &str, octets: &[u8]) -> u64 {
        let content = Content::File(File::default());
        let number = platter.make(ROOT, name.as_ref(), 0o100_644, content).unwrap();
        platter.write(number, 0, octets).unwrap();
        number
    }

    /// What is left when nothing unsafe survives.
    fn after(platter: &mut Platter) -> BTreeMap<String, Vec<u8>> {
        platter.lose_power(|| 1);
        left(platter)
    }

    fn left(platter: &mut Platter) -> BTreeMap<String, Vec<u8>> {
        let names = platter.directory(ROOT).unwrap().names.clone();
        let named = names
            .into_iter()
            .map(|(name, number)| (name.into_string().unwrap(), platter.file(number).unwrap().now.clone()));
        named.collect()
    }

    #[test]
    fn a_synced_file_without_a_synced_name_is_gone() {
        let mut platter = Platter::new(1 << 20);
        let number = file(&mut platter, "a", b"x");
        platter.sync(number).unwrap();
        platter.lose_power(|| 0);
        assert!(left(&mut platter).is_empty());
    }

    #[test]
    fn a_synced_name_of_a_file_that_was_not_synced_is_empty() {
        let mut platter = Platter::new(1 << 20);
        file(&mut platter, "a", b"x");
        platter.sync(ROOT).unwrap();
        assert_eq!(after(&mut platter)["a"], b"");
    }

    #[test]
    fn what_was_synced_survives_and_what_came_later_does_not() {
        let mut platter = Platter::new(1 << 20);
        let number = file(&mut platter, "a", &[1; 1500]);
        platter.sync(number).unwrap();
        platter.sync(ROOT).unwrap();
        platter.write(number, 100, &[2; 2000]).unwrap();
        assert_eq!(after(&mut platter)["a"], [1; 1500]);
    }

    #[test]
    fn an_unlinked_name_comes_back_and_a_rename_is_undone_until_the_directory_is_synced() {
        let mut platter = Platter::new(1 << 20);
        for (name, octets) in [("old", b"1"), ("draft", b"2"), ("dead", b"3")] {
            let number = file(&mut platter, name, octets);
            platter.sync(number).unwrap();
        }
        platter.sync(ROOT).unwrap();
        platter.rename((ROOT, "draft".as_ref()), (ROOT, "old".as_ref())).unwrap();
        platter.remove(ROOT, "dead".as_ref()).unwrap();
        platter.lose_power(|| 0);
        assert_eq!(left(&mut platter).into_values().collect::<Vec<_>>(), [b"3", b"2", b"1"]);
        platter.rename((ROOT, "draft".as_ref()), (ROOT, "old".as_ref())).unwrap();
        platter.remove(ROOT, "dead".as_ref()).unwrap();
        platter.sync(ROOT).unwrap();
        platter.lose_power(|| 0);
        assert_eq!(left(&mut platter), BTreeMap::from([("old".to_owned(), b"2".to_vec())]));
    }

    #[test]
    fn whole_sectors_survive_and_no_parts_of_them() {
        let mut platter = Platter::new(1 << 20);
        let number = file(&mut platter, "a", &[1; 64 * SECTOR]);
        platter.sync(number).unwrap();
        platter.sync(ROOT).unwrap();
        platter.write(number, 0, &[2; 64 * SECTOR]).unwrap();
        let mut state = 0u64;
        platter.lose_power(|| {
            state += 1;
            state / 3
        });
        let octets = left(&mut platter).remove("a").unwrap();
        let sectors: Vec<&[u8]> = octets.chunks(SECTOR).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|octet| *octet == sector[0])));
        assert!([1, 2].iter().all(|octet| sectors.iter().any(|sector| sector[0] == *octet)));
    }
}

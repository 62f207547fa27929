//! A simulated disk that forgets, tears and fails like a real one, from a seed.

use crate::append::Fault;
use crate::format::SECTOR_BYTES;
use crate::op::{Op, Outcome, Prepare};
use crate::recovery::SegmentFile;
use crate::scan::Medium;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Small, seeded random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// True in `per_mille` of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// How often, of a thousand operations, each kind fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Writes end with an error after a part.
    pub write: u64,
    /// Writes end with "no space" after a part.
    pub write_full: u64,
    /// Syncs fail; what was dirty is then never written.
    pub sync: u64,
    /// Preparations fail at some step.
    pub prepare: u64,
    /// Reads fail.
    pub read: u64,
}

#[derive(Clone, Debug, Default)]
struct File {
    /// What a read gives.
    cached: Vec<u8>,
    /// What a crash leaves.
    durable: Vec<u8>,
    dirty: BTreeSet<u32>,
    /// Its directory entry is durable.
    linked: bool,
    /// What a crash brings back while the entry is not durable.
    replaced: Option<Box<File>>,
}

/// The disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    files: BTreeMap<u32, File>,
    /// Removed, but a crash may bring them back.
    removed: BTreeMap<u32, File>,
    /// Its chances; roll for other things too, if you like.
    pub dice: Dice,
    /// What goes wrong.
    pub faults: Faults,
    /// Octets that fit in all files.
    pub room_bytes: u64,
    /// Successful syncs.
    pub syncs: u64,
}

impl SimDisk {
    /// An empty, faultless disk of endless room.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            files: BTreeMap::new(),
            removed: BTreeMap::new(),
            dice: Dice::new(seed),
            faults: Faults::default(),
            room_bytes: u64::MAX,
            syncs: 0,
        }
    }

    /// The files there are.
    #[must_use]
    pub fn files(&self) -> Vec<SegmentFile> {
        let size = |file: &File| u32::try_from(file.cached.len()).unwrap_or(u32::MAX);
        self.files.iter().map(|(index, file)| SegmentFile { index: *index, size: size(file) }).collect()
    }

    /// Does an operation, or fails it. A read gives its bytes as well.
    pub fn run(&mut self, op: &Op<'_>) -> (Outcome, Option<Bytes>) {
        match op {
            Op::Write(write) => {
                let bytes: Vec<u8> = write.slices().flatten().copied().collect();
                let fault = self.fault(self.faults.write, self.faults.write_full);
                let length = if fault.is_some() { self.part(bytes.len()) } else { bytes.len() };
                self.put(write.segment, write.offset, &bytes[..length]);
                (fault.map_or(Ok(()), Err), None)
            }
            Op::Sync { segment } => {
                if self.dice.chance(self.faults.sync) {
                    self.forget(*segment);
                    return (Err(Fault::Io), None);
                }
                self.sync(*segment);
                self.syncs += 1;
                (Ok(()), None)
            }
            Op::Prepare(prepare) => {
                let steps = if self.dice.chance(self.faults.prepare) { self.dice.below(4) } else { 4 };
                (self.prepare(prepare, steps), None)
            }
            Op::Remove { segment } => {
                self.remove(*segment);
                (Ok(()), None)
            }
            Op::Read { segment, offset, length } => {
                let mut bytes = vec![0; *length as usize];
                match self.read_at(*segment, *offset, &mut bytes) {
                    Ok(()) => (Ok(()), Some(bytes.into())),
                    Err(fault) => (Err(fault), None),
                }
            }
        }
    }

    /// Does a part of an operation, as when the power goes in its midst.
    pub fn run_partly(&mut self, op: &Op<'_>) {
        match op {
            Op::Write(write) => {
                let bytes: Vec<u8> = write.slices().flatten().copied().collect();
                let length = self.part(bytes.len());
                self.put(write.segment, write.offset, &bytes[..length]);
            }
            Op::Prepare(prepare) => {
                let steps = self.dice.below(4);
                let _ = self.prepare(prepare, steps);
            }
            Op::Remove { segment } => self.remove(*segment),
            Op::Sync { .. } | Op::Read { .. } => {}
        }
    }

    /// The power goes: every sector that was not synced is there or not, each by its own luck.
    pub fn crash(&mut self) {
        let odds = [0, 500, 1000, 100, 900][usize::try_from(self.dice.below(5)).unwrap_or(0)];
        for (index, file) in std::mem::take(&mut self.removed) {
            if self.dice.chance(odds) {
                self.files.entry(index).or_insert(file);
            }
        }
        let indexes: Vec<u32> = self.files.keys().copied().collect();
        for index in indexes {
            let Some(mut file) = self.files.remove(&index) else { continue };
            if !file.linked && !self.dice.chance(odds) {
                match file.replaced {
                    Some(old) => file = *old,
                    None => continue,
                }
            }
            file.linked = true;
            file.replaced = None;
            for sector in std::mem::take(&mut file.dirty) {
                if self.dice.chance(odds) {
                    file.persist(sector);
                }
            }
            file.cached.clone_from(&file.durable);
            self.files.insert(index, file);
        }
    }

    /// Flips a bit on the medium.
    pub fn damage(&mut self, segment: u32, offset: u32) {
        if let Some(file) = self.files.get_mut(&segment)
            && let Some(byte) = file.cached.get_mut(offset as usize)
        {
            *byte ^= 0x10;
            file.durable[offset as usize] ^= 0x10;
        }
    }

    fn remove(&mut self, segment: u32) {
        if let Some(file) = self.files.remove(&segment) {
            self.removed.insert(segment, file);
        }
    }

    fn fault(&mut self, io: u64, full: u64) -> Option<Fault> {
        if self.dice.chance(io) { Some(Fault::Io) } else { self.dice.chance(full).then_some(Fault::Full) }
    }

    fn part(&mut self, length: usize) -> usize {
        let sectors = length as u64 / u64::from(SECTOR_BYTES);
        usize::try_from(self.dice.below(sectors + 1)).unwrap_or(0) * SECTOR_BYTES as usize
    }

    fn put(&mut self, segment: u32, offset: u32, bytes: &[u8]) {
        let Some(file) = self.files.get_mut(&segment) else { return };
        let start = offset as usize;
        file.cached[start..start + bytes.len()].copy_from_slice(bytes);
        let end = offset + u32::try_from(bytes.len()).unwrap_or(0);
        file.dirty.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
    }

    fn sync(&mut self, segment: u32) {
        let Some(file) = self.files.get_mut(&segment) else { return };
        for sector in std::mem::take(&mut file.dirty) {
            file.persist(sector);
        }
    }

    /// A failed sync: some sectors made it, the others are called clean and never will.
    fn forget(&mut self, segment: u32) {
        let Some(file) = self.files.get_mut(&segment) else { return };
        for sector in std::mem::take(&mut file.dirty) {
            if self.dice.chance(300) {
                file.persist(sector);
            }
        }
    }

    /// Steps: make and allocate, write the header, sync the file, sync the directory.
    fn prepare(&mut self, prepare: &Prepare, steps: u64) -> Outcome {
        if prepare.create {
            let old = self.files.remove(&prepare.segment).or_else(|| self.removed.remove(&prepare.segment));
            let used: u64 = self.files.values().map(|file| file.cached.len() as u64).sum();
            if used + u64::from(prepare.size) > self.room_bytes {
                return Err(Fault::Full);
            }
            let bytes = vec![0; prepare.size as usize];
            let replaced = old.filter(|old| old.linked).map(Box::new);
            let file = File {
                cached: bytes.clone(),
                durable: bytes,
                dirty: BTreeSet::new(),
                linked: false,
                replaced,
            };
            self.files.insert(prepare.segment, file);
        }
        if steps == 0 {
            return Err(Fault::Io);
        }
        self.put(prepare.segment, 0, &prepare.header.encode());
        if steps == 1 {
            return Err(Fault::Io);
        }
        if steps == 2 {
            self.forget(prepare.segment);
            return Err(Fault::Io);
        }
        self.sync(prepare.segment);
        if steps == 3 {
            return Err(Fault::Io);
        }
        if let Some(file) = self.files.get_mut(&prepare.segment) {
            file.linked = true;
            file.replaced = None;
        }
        // The directory is synced, with all that was removed from it.
        self.removed.clear();
        Ok(())
    }
}

impl File {
    fn persist(&mut self, sector: u32) {
        let start = (sector * SECTOR_BYTES) as usize;
        let end = (start + SECTOR_BYTES as usize).min(self.cached.len());
        self.durable[start..end].copy_from_slice(&self.cached[start..end]);
    }
}

impl Medium for SimDisk {
    fn read_at(&mut self, segment: u32, offset: u32, buffer: &mut [u8]) -> Result<(), Fault> {
        if self.dice.chance(self.faults.read) {
            return Err(Fault::Io);
        }
        let file = self.files.get(&segment).ok_or(Fault::Io)?;
        let start = (offset as usize).min(file.cached.len());
        let end = (offset as usize + buffer.len()).min(file.cached.len());
        let length = end - start;
        buffer[..length].copy_from_slice(&file.cached[start..end]);
        buffer[length..].fill(0);
        Ok(())
    }
}

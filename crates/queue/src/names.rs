//! Names turned into small numbers and back, with bounded memory of those no longer in use.

use crate::arena::{Arena, List, Node};
use hashbrown::HashTable;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is known by a name. `Node<1>` is its place among the idle.
pub(crate) trait Named: Node<0> + Node<1> + Default {
    /// What tells apart equal names: the route, for domains.
    fn route(&self) -> u16;
    fn name(&self) -> &str;
    fn idle_mut(&mut self) -> &mut bool;
}

/// A table of named things. A thing that nothing uses stands among the idle, and the one idle for longest
/// goes when there are more than the bound.
pub(crate) struct Names<T> {
    arena: Arena<T>,
    table: HashTable<u32>,
    seed: u64,
    idle: List<1>,
    idle_count: usize,
}

impl<T: Named> Names<T> {
    pub(crate) fn new(seed: u64) -> Self {
        Names { arena: Arena::new(), table: HashTable::new(), seed, idle: List::default(), idle_count: 0 }
    }

    pub(crate) fn find(&self, route: u16, name: &str) -> Option<u32> {
        let hash = keyed_hash(self.seed, route, name);
        let same = |&index: &u32| self.arena[index].route() == route && self.arena[index].name() == name;
        self.table.find(hash, same).copied()
    }

    /// Adds a thing of a new name; it is in use until it is said to be idle.
    pub(crate) fn insert(&mut self, thing: T) -> u32 {
        let seed = self.seed;
        let hash = keyed_hash(seed, thing.route(), thing.name());
        let index = self.arena.insert(thing);
        let arena = &self.arena;
        let rehash = |&index: &u32| keyed_hash(seed, arena[index].route(), arena[index].name());
        self.table.insert_unique(hash, index, rehash);
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> T {
        self.set_idle(index, false);
        let hash = keyed_hash(self.seed, self.arena[index].route(), self.arena[index].name());
        if let Ok(entry) = self.table.find_entry(hash, |&found| found == index) {
            entry.remove();
        }
        self.arena.remove(index)
    }

    /// Says whether a thing is idle. One that was idle and is said to be so again was just used.
    pub(crate) fn set_idle(&mut self, index: u32, idle: bool) {
        if std::mem::replace(self.arena[index].idle_mut(), idle) {
            self.idle.remove(&mut self.arena, index);
            self.idle_count -= 1;
        }
        if idle {
            self.idle.push_back(&mut self.arena, index);
            self.idle_count += 1;
        }
    }

    /// The one to remove when more than `idle_max` are idle.
    pub(crate) fn superfluous(&self, idle_max: usize) -> Option<u32> {
        if self.idle_count > idle_max { self.idle.front() } else { None }
    }

    pub(crate) fn arena(&mut self) -> &mut Arena<T> {
        &mut self.arena
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// All things, by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.table.iter().map(|&index| (index, &self.arena[index]))
    }
}

impl<T> std::ops::Index<u32> for Names<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.arena[index]
    }
}

impl<T> std::ops::IndexMut<u32> for Names<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.arena[index]
    }
}

/// SipHash behind a secret: senders choose these names and must not be able to choose where they fall.
pub(crate) fn keyed_hash(seed: u64, route: u16, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15, route).hash(&mut hasher);
    name.hash(&mut hasher);
    hasher.finish()
}

//! Names turned into small numbers and back, with bounded memory of those no longer in use.

use crate::arena::{Arena, List, NIL, Node};
use hashbrown::HashTable;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};

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
    /// Has taken the secret in already.
    hasher: DefaultHasher,
    /// The one found last: mail comes in runs of one sender and one domain.
    last: Cell<u32>,
    idle: List<1>,
    idle_count: usize,
}

impl<T: Named> Names<T> {
    pub(crate) fn new(seed: u64) -> Self {
        Names {
            arena: Arena::new(),
            table: HashTable::new(),
            hasher: keyed(seed),
            last: Cell::new(NIL),
            idle: List::default(),
            idle_count: 0,
        }
    }

    pub(crate) fn find(&self, route: u16, name: &str) -> Option<u32> {
        let same = |&index: &u32| self.arena[index].route() == route && self.arena[index].name() == name;
        let last = self.last.get();
        if last != NIL && same(&last) {
            return Some(last);
        }
        let found = self.table.find(hash(&self.hasher, route, name), same).copied()?;
        self.last.set(found);
        Some(found)
    }

    /// Adds a thing of a new name; it is in use until it is said to be idle.
    pub(crate) fn insert(&mut self, thing: T) -> u32 {
        let hasher = &self.hasher;
        let hashed = hash(hasher, thing.route(), thing.name());
        let index = self.arena.insert(thing);
        let arena = &self.arena;
        self.table
            .insert_unique(hashed, index, |&index| hash(hasher, arena[index].route(), arena[index].name()));
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> T {
        self.set_idle(index, false);
        self.last.set(NIL);
        let hashed = hash(&self.hasher, self.arena[index].route(), self.arena[index].name());
        if let Ok(entry) = self.table.find_entry(hashed, |&found| found == index) {
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
fn keyed(seed: u64) -> DefaultHasher {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    hasher.write_u64(seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15);
    hasher
}

fn hash(hasher: &DefaultHasher, route: u16, name: &str) -> u64 {
    let mut hasher = hasher.clone();
    hasher.write(name.as_bytes());
    hasher.write_u16(route);
    hasher.finish()
}

/// A number for a name that only the holder of the seed can tell.
pub(crate) fn keyed_hash(seed: u64, route: u16, name: &str) -> u64 {
    hash(&keyed(seed), route, name)
}

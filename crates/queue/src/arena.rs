//! Fixed-size slabs and the intrusive lists that thread through them.
//!
//! Ten million recipients must cost their own size and nothing else: no allocation per node, no copy when
//! the slab grows (it grows by chunks), O(1) insertion and removal anywhere in a list.

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// Nodes in a chunk.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 14;

/// A node's place in one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) prev: u32,
    pub(crate) next: u32,
}

impl Default for Links {
    fn default() -> Self {
        Links { prev: NIL, next: NIL }
    }
}

/// What can stand in a list; `L` tells apart the lists a node can stand in at the same time.
pub(crate) trait Node<const L: usize> {
    fn links(&self) -> Links;
    fn links_mut(&mut self) -> &mut Links;
}

/// A slab of nodes that grows by chunks and reuses what was freed, the last freed first.
pub(crate) struct Arena<T> {
    chunks: Vec<Vec<T>>,
    free: u32,
    live: u32,
}

impl<T: Node<0> + Default> Arena<T> {
    pub(crate) fn new() -> Self {
        Arena { chunks: Vec::new(), free: NIL, live: 0 }
    }

    /// Nodes in use.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// One past the highest index ever used.
    pub(crate) fn end(&self) -> u32 {
        let full = self.chunks.len().saturating_sub(1) << CHUNK_BITS;
        // Invariant: `insert` stops below `NIL` nodes.
        u32::try_from(full + self.chunks.last().map_or(0, Vec::len)).expect("indices fit in 32 bits")
    }

    pub(crate) fn insert(&mut self, node: T) -> u32 {
        self.live += 1;
        if self.free != NIL {
            let index = self.free;
            self.free = self[index].links().next;
            self[index] = node;
            return index;
        }
        let index = self.end();
        // Invariant: 2^32 nodes of 48 octets do not fit into the memory the engine allows itself.
        assert!(index < NIL, "the slab is full");
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk grows with use, so that an idle relay stays small.
            self.chunks.push(Vec::with_capacity(if self.chunks.is_empty() { 0 } else { CHUNK }));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(node);
        }
        index
    }

    /// Takes a node out; it must stand in no list.
    pub(crate) fn remove(&mut self, index: u32) -> T {
        let node = std::mem::take(&mut self[index]);
        self[index].links_mut().next = self.free;
        self.free = index;
        self.live -= 1;
        node
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.chunks.get((index >> CHUNK_BITS) as usize)?.get(index as usize & (CHUNK - 1))
    }
}

impl<T> std::ops::Index<u32> for Arena<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

impl<T> std::ops::IndexMut<u32> for Arena<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

/// A circular doubly linked list; all it holds is its first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct List<const L: usize> {
    head: u32,
}

impl<const L: usize> Default for List<L> {
    fn default() -> Self {
        List { head: NIL }
    }
}

impl<const L: usize> List<L> {
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.head == NIL
    }

    #[inline]
    pub(crate) fn front(self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    pub(crate) fn push_back<T: Node<L>>(&mut self, arena: &mut Arena<T>, index: u32) {
        if self.head == NIL {
            *arena[index].links_mut() = Links { prev: index, next: index };
            self.head = index;
            return;
        }
        let tail = arena[self.head].links().prev;
        *arena[index].links_mut() = Links { prev: tail, next: self.head };
        arena[tail].links_mut().next = index;
        arena[self.head].links_mut().prev = index;
    }

    pub(crate) fn push_front<T: Node<L>>(&mut self, arena: &mut Arena<T>, index: u32) {
        self.push_back(arena, index);
        self.head = index;
    }

    /// Takes out a node, which must be in this list.
    pub(crate) fn remove<T: Node<L>>(&mut self, arena: &mut Arena<T>, index: u32) {
        let Links { prev, next } = arena[index].links();
        if next == index {
            self.head = NIL;
        } else {
            arena[prev].links_mut().next = next;
            arena[next].links_mut().prev = prev;
            if self.head == index {
                self.head = next;
            }
        }
        *arena[index].links_mut() = Links::default();
    }

    pub(crate) fn pop_front<T: Node<L>>(&mut self, arena: &mut Arena<T>) -> Option<u32> {
        let head = self.front()?;
        self.remove(arena, head);
        Some(head)
    }

    /// The first becomes the last.
    pub(crate) fn rotate<T: Node<L>>(&mut self, arena: &Arena<T>) {
        if self.head != NIL {
            self.head = arena[self.head].links().next;
        }
    }

    /// The node after `index`, unless that was the last.
    pub(crate) fn after<T: Node<L>>(self, arena: &Arena<T>, index: u32) -> Option<u32> {
        let next = arena[index].links().next;
        (next != self.head).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_CHUNK: u32 = 1 << CHUNK_BITS;

    #[derive(Default)]
    struct Item(Links);

    impl Node<0> for Item {
        fn links(&self) -> Links {
            self.0
        }
        fn links_mut(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    fn order(list: List<0>, arena: &Arena<Item>) -> Vec<u32> {
        let mut out = Vec::new();
        let mut at = list.front();
        while let Some(index) = at {
            out.push(index);
            at = list.after(arena, index);
        }
        out
    }

    #[test]
    fn a_list_keeps_its_order_whatever_is_taken_out() {
        let mut arena = Arena::new();
        let mut list = List::<0>::default();
        for _ in 0..5 {
            let index = arena.insert(Item::default());
            list.push_back(&mut arena, index);
        }
        list.remove(&mut arena, 2);
        assert_eq!(order(list, &arena), [0, 1, 3, 4]);
        list.remove(&mut arena, 0);
        list.push_front(&mut arena, 2);
        assert_eq!(order(list, &arena), [2, 1, 3, 4]);
        list.rotate(&arena);
        assert_eq!(order(list, &arena), [1, 3, 4, 2]);
        while list.pop_front(&mut arena).is_some() {}
        assert!(list.is_empty());
    }

    #[test]
    fn a_freed_node_is_used_again_before_the_slab_grows() {
        let mut arena = Arena::<Item>::new();
        let indices: Vec<u32> = (0..ONE_CHUNK + 3).map(|_| arena.insert(Item::default())).collect();
        assert_eq!(arena.end(), ONE_CHUNK + 3);
        arena.remove(indices[7]);
        arena.remove(indices[CHUNK]);
        assert_eq!(arena.live(), ONE_CHUNK + 1);
        assert_eq!(arena.insert(Item::default()), ONE_CHUNK);
        assert_eq!(arena.insert(Item::default()), 7);
        assert_eq!(arena.end(), ONE_CHUNK + 3);
    }
}

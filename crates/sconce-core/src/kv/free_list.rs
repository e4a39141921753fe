//! [`FreeList`]: the free blocks, in the order in which they are handed out.

use super::block_pool::BlockId;

/// What stands for no block.
const NONE: BlockId = BlockId::MAX;

/// A list of blocks, each in it at most once, from which any can be taken in constant time.
#[derive(Debug)]
pub(super) struct FreeList {
    /// Of each block its neighbours in the list.
    links: Vec<Link>,
    first: BlockId,
    last: BlockId,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: BlockId,
    after: BlockId,
}

impl FreeList {
    /// All of `num_blocks` blocks, in order.
    pub(super) fn all(num_blocks: u32) -> Self {
        let links = vec![Link { before: NONE, after: NONE }; num_blocks as usize];
        let mut list = Self { links, first: NONE, last: NONE, len: 0 };
        (0..num_blocks).for_each(|id| list.push_last(id));
        list
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block that is not in the list: it is the next to go.
    pub(super) fn push_first(&mut self, id: BlockId) {
        self.insert(id, Link { before: NONE, after: self.first });
    }

    /// Adds a block that is not in the list: it goes after all others.
    pub(super) fn push_last(&mut self, id: BlockId) {
        self.insert(id, Link { before: self.last, after: NONE });
    }

    pub(super) fn pop_first(&mut self) -> Option<BlockId> {
        let id = self.first;
        (id != NONE).then(|| {
            self.remove(id);
            id
        })
    }

    /// Takes out a block that is in the list.
    pub(super) fn remove(&mut self, id: BlockId) {
        let Link { before, after } = self.links[id as usize];
        *self.after(before) = after;
        *self.before(after) = before;
        self.len -= 1;
    }

    fn insert(&mut self, id: BlockId, link: Link) {
        self.links[id as usize] = link;
        *self.after(link.before) = id;
        *self.before(link.after) = id;
        self.len += 1;
    }

    /// What follows `id`, or the list's first.
    fn after(&mut self, id: BlockId) -> &mut BlockId {
        if id == NONE { &mut self.first } else { &mut self.links[id as usize].after }
    }

    /// What stands before `id`, or the list's last.
    fn before(&mut self, id: BlockId) -> &mut BlockId {
        if id == NONE { &mut self.last } else { &mut self.links[id as usize].before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(mut list: FreeList) -> Vec<BlockId> {
        let mut ids = Vec::new();
        while let Some(id) = list.pop_first() {
            ids.push(id);
            assert_eq!(list.len() + ids.len(), 4);
        }
        ids
    }

    fn check(change: fn(&mut FreeList), expected: &[BlockId]) {
        let mut list = FreeList::all(4);
        change(&mut list);
        assert_eq!(list.len(), 4);
        assert_eq!(drained(list), expected);
    }

    #[test]
    fn blocks_go_from_first_to_last() {
        check(|_| {}, &[0, 1, 2, 3]);
        check(|l| (l.remove(2), l.push_first(2)).1, &[2, 0, 1, 3]);
        check(|l| (l.remove(0), l.push_last(0)).1, &[1, 2, 3, 0]);
        check(|l| (l.remove(3), l.push_first(3), l.remove(1), l.push_last(1)).3, &[3, 0, 2, 1]);
        check(|l| drop((0..4).map(|id| (l.remove(id), l.push_first(id))).collect::<Vec<_>>()), &[3, 2, 1, 0]);
    }

    #[test]
    fn an_empty_list_has_nothing_and_takes_anything() {
        let mut list = FreeList::all(1);
        assert_eq!((list.pop_first(), list.pop_first()), (Some(0), None));
        list.push_last(0);
        assert_eq!((list.pop_first(), list.pop_first()), (Some(0), None));
    }
}

//! [`BlockTable`]: the KV blocks of one sequence, in order of its tokens.

use super::block_pool::{BlockId, BlockPool};

/// The contents of block `src` are to be copied to block `dst`, in all layers, before the step's first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Copied from.
    pub src: BlockId,
    /// Copied to.
    pub dst: BlockId,
}

/// The KV blocks of one sequence. It must be [released](BlockTable::release) to its pool before it is dropped.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// Blocks at the front that were given back: nothing reads them any more. Their entries stay, so that the others
    /// keep their places, and name blocks that may be somebody else's by now.
    num_released: usize,
}

impl BlockTable {
    /// The blocks, in order of the tokens that they hold. The first [`BlockTable::num_released`] are not to be used.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Blocks at the front that were given back by [`BlockTable::release_before`].
    pub fn num_released(&self) -> usize {
        self.num_released
    }

    /// Free blocks that [`BlockTable::reserve`] would take.
    pub fn num_missing(&self, pool: &BlockPool, start: usize, len: usize) -> usize {
        let needed = pool.blocks_for(start + len).saturating_sub(self.blocks.len());
        needed + usize::from(self.shared_write(pool, start, len).is_some())
    }

    /// Makes room to write tokens `start..start + len`, of which everything before `start` is written. A last block
    /// that others hold too is replaced by a copy, which is returned to be carried out.
    ///
    /// Call only with [`BlockTable::num_missing`] blocks free.
    pub fn reserve(&mut self, pool: &mut BlockPool, start: usize, len: usize) -> Option<BlockCopy> {
        let copy = self.shared_write(pool, start, len).map(|idx| {
            let src = self.blocks[idx];
            let dst = pool.allocate().expect("invariant: num_missing blocks are free");
            pool.release(src);
            self.blocks[idx] = dst;
            BlockCopy { src, dst }
        });
        while self.blocks.len() < pool.blocks_for(start + len) {
            self.blocks.push(pool.allocate().expect("invariant: num_missing blocks are free"));
        }
        copy
    }

    /// A table that holds the blocks of the first `num_tokens` tokens too, but for those that were given back.
    pub fn fork(&self, pool: &mut BlockPool, num_tokens: usize) -> Self {
        let blocks = self.blocks[..pool.blocks_for(num_tokens)].to_vec();
        let num_released = self.num_released.min(blocks.len());
        blocks[num_released..].iter().for_each(|&id| pool.retain(id));
        Self { blocks, num_released }
    }

    /// Gives back the blocks that hold only tokens before `first`: nothing may read those any more.
    pub fn release_before(&mut self, pool: &mut BlockPool, first: usize) {
        let end = (first / pool.block_size()).min(self.blocks.len());
        if end > self.num_released {
            self.blocks[self.num_released..end].iter().for_each(|&id| pool.release(id));
            self.num_released = end;
        }
    }

    /// Gives all blocks back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.blocks[self.num_released..].iter().rev().for_each(|&id| pool.release(id));
        self.blocks.clear();
        self.num_released = 0;
    }

    /// Index of the block that a write at `start` would change though others hold it. Only the block that `start`
    /// falls into can be one: later blocks are this table's own.
    fn shared_write(&self, pool: &BlockPool, start: usize, len: usize) -> Option<usize> {
        let idx = start / pool.block_size();
        (len > 0 && idx < self.blocks.len() && pool.is_shared(self.blocks[idx])).then_some(idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reserves as the scheduler does: only when enough blocks are free.
    fn check_reserve(table: &mut BlockTable, pool: &mut BlockPool, start: usize, len: usize) -> Option<BlockCopy> {
        let (free, missing) = (pool.num_free(), table.num_missing(pool, start, len));
        assert!(missing <= free);
        let copy = table.reserve(pool, start, len);
        assert_eq!(pool.num_free(), free - missing);
        copy
    }

    #[test]
    fn a_write_to_a_shared_block_copies_it_once() {
        let mut pool = BlockPool::new(8, 4);
        let mut a = BlockTable::default();
        assert_eq!(check_reserve(&mut a, &mut pool, 0, 6), None);
        let mut b = a.fork(&mut pool, 6);
        assert_eq!(pool.num_used(), 2);
        let copy = check_reserve(&mut b, &mut pool, 6, 1).expect("the last block is shared");
        assert_eq!(copy.src, a.blocks()[1]);
        assert_eq!(copy.dst, b.blocks()[1]);
        assert_eq!(check_reserve(&mut a, &mut pool, 6, 1), None);
        assert_eq!(a.blocks()[0], b.blocks()[0]);
        a.release(&mut pool);
        b.release(&mut pool);
        assert_eq!(pool.num_used(), 0);
    }

    #[test]
    fn what_was_given_back_is_neither_shared_nor_given_back_again() {
        let mut pool = BlockPool::new(8, 4);
        let mut a = BlockTable::default();
        check_reserve(&mut a, &mut pool, 0, 18);
        let mut before = a.fork(&mut pool, 18);
        a.release_before(&mut pool, 11);
        assert_eq!((a.num_released(), a.blocks().len(), pool.num_used()), (2, 5, 5), "the fork still holds all");
        let mut after = a.fork(&mut pool, 18);
        assert_eq!((after.num_released(), after.blocks()), (2, a.blocks()));
        before.release(&mut pool);
        assert_eq!(pool.num_used(), 3);
        a.release_before(&mut pool, 3);
        assert_eq!(a.num_released(), 2, "what is released stays so");
        check_reserve(&mut after, &mut pool, 18, 3);
        assert_eq!((after.blocks().len(), pool.num_used()), (6, 5), "a copy and a new block");
        a.release(&mut pool);
        assert_eq!((a.num_released(), a.blocks().len(), pool.num_used()), (0, 0, 4));
        after.release_before(&mut pool, 1000);
        after.release(&mut pool);
        assert_eq!(pool.num_used(), 0);
    }

    #[test]
    fn a_fork_at_a_block_border_copies_nothing() {
        let mut pool = BlockPool::new(8, 4);
        let mut a = BlockTable::default();
        check_reserve(&mut a, &mut pool, 0, 8);
        let mut b = a.fork(&mut pool, 8);
        assert_eq!(check_reserve(&mut b, &mut pool, 8, 1), None);
        assert_eq!(check_reserve(&mut a, &mut pool, 8, 1), None);
        assert_ne!(a.blocks()[2], b.blocks()[2]);
        a.release(&mut pool);
        b.release(&mut pool);
        assert_eq!(pool.num_free(), 8);
    }
}

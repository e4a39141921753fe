//! [`BlockTable`]: the KV blocks of one sequence, in order of its tokens.

use super::block_pool::{BlockId, BlockPool};
use super::prefix_cache::{CachedBlock, PrefixId};

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
    /// Of each full block that the prefix cache has been told of, in order: its tokens and all before it.
    prefixes: Vec<PrefixId>,
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
        let mut prefixes = self.prefixes.clone();
        prefixes.truncate(num_tokens / pool.block_size());
        Self { blocks, num_released, prefixes }
    }

    /// A table that holds blocks that [`BlockPool::find_prefix`] has just found.
    pub fn of_cached(pool: &mut BlockPool, found: &[CachedBlock]) -> Self {
        found.iter().for_each(|cached| pool.take_cached(cached.block));
        let blocks = found.iter().map(|cached| cached.block).collect();
        Self { blocks, num_released: 0, prefixes: found.iter().map(|cached| cached.prefix).collect() }
    }

    /// Lets the full blocks of `computed`, the tokens whose keys and values are written, be found by others after `root`, which is no
    /// token and the same for as long as the table holds blocks. Does nothing without a prefix cache.
    pub fn cache_full_blocks(&mut self, pool: &mut BlockPool, root: PrefixId, computed: &[u32]) {
        if !pool.has_prefix_cache() {
            return;
        }
        let block_size = pool.block_size();
        for (idx, tokens) in computed.chunks_exact(block_size).enumerate().skip(self.prefixes.len()) {
            let before = self.prefixes.last().copied().unwrap_or(root);
            self.prefixes.push(pool.cache_block(before, tokens, self.blocks[idx]));
        }
    }

    /// Gives back the blocks that hold only tokens before `first`: nothing may read those any more.
    pub fn release_before(&mut self, pool: &mut BlockPool, first: usize) {
        let end = (first / pool.block_size()).min(self.blocks.len());
        if end > self.num_released {
            self.blocks[self.num_released..end].iter().for_each(|&id| pool.release(id));
            self.num_released = end;
        }
    }

    /// Gives back the blocks behind those of the first `num_tokens` tokens.
    pub fn release_behind(&mut self, pool: &mut BlockPool, num_tokens: usize) {
        let end = pool.blocks_for(num_tokens).min(self.blocks.len());
        self.blocks.drain(end..).rev().for_each(|id| pool.release(id));
    }

    /// Gives all blocks back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.blocks[self.num_released..].iter().rev().for_each(|&id| pool.release(id));
        self.blocks.clear();
        self.prefixes.clear();
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
    fn full_blocks_are_found_until_they_are_handed_out_the_oldest_first() {
        let tokens: Vec<u32> = (0..12).collect();
        let mut pool = BlockPool::new(6, 4).with_prefix_cache();
        let mut a = BlockTable::default();
        check_reserve(&mut a, &mut pool, 0, 11);
        a.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..11]);
        let found = |pool: &mut BlockPool, tokens: &[u32]| {
            pool.find_prefix(PrefixId::EMPTY, tokens).iter().map(|cached| cached.block).collect::<Vec<_>>()
        };
        assert_eq!(found(&mut pool, &tokens), a.blocks()[..2], "the third is not full");
        assert_eq!(found(&mut pool, &tokens[..7]), a.blocks()[..1]);
        assert!(found(&mut pool, &tokens[4..]).is_empty(), "the same tokens at another place");
        let blocks = a.blocks().to_vec();
        a.release(&mut pool);
        assert_eq!((pool.num_used(), found(&mut pool, &tokens)), (0, blocks[..2].to_vec()));

        // Held by one who found it, and by two.
        let cached = pool.find_prefix(PrefixId::EMPTY, &tokens);
        let mut b = BlockTable::of_cached(&mut pool, &cached);
        assert_eq!((pool.num_used(), b.blocks()), (2, &blocks[..2]));
        let mut c = BlockTable::of_cached(&mut pool, &cached[..1]);
        assert!(pool.is_shared(blocks[0]) && !pool.is_shared(blocks[1]));
        c.release(&mut pool);
        b.release(&mut pool);

        // Blocks that cannot be found go first, then the end of the chain.
        let mut d = BlockTable::default();
        check_reserve(&mut d, &mut pool, 0, 16);
        assert_eq!(found(&mut pool, &tokens), blocks[..2]);
        check_reserve(&mut d, &mut pool, 16, 4);
        assert_eq!(found(&mut pool, &tokens), blocks[..1]);
        check_reserve(&mut d, &mut pool, 20, 4);
        assert!(found(&mut pool, &tokens).is_empty());
        d.release(&mut pool);
        assert_eq!(pool.num_used(), 0);
    }

    #[test]
    fn of_two_blocks_with_the_same_tokens_the_first_is_found() {
        let tokens: Vec<u32> = (0..8).collect();
        let mut pool = BlockPool::new(8, 4).with_prefix_cache();
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        for table in [&mut a, &mut b] {
            check_reserve(table, &mut pool, 0, 8);
            table.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens[..4]);
        }
        // The chain goes on after either.
        b.cache_full_blocks(&mut pool, PrefixId::EMPTY, &tokens);
        let found = pool.find_prefix(PrefixId::EMPTY, &tokens);
        assert_eq!([found[0].block, found[1].block], [a.blocks()[0], b.blocks()[1]]);
        a.release(&mut pool);
        b.release(&mut pool);
        assert_eq!((pool.num_used(), pool.find_prefix(PrefixId::EMPTY, &tokens).len()), (0, 2));
    }

    #[test]
    fn what_follows_one_root_is_not_found_after_another() {
        let tokens: Vec<u32> = (0..8).collect();
        let mut pool = BlockPool::new(8, 4).with_prefix_cache();
        let mut tables = [BlockTable::default(), BlockTable::default()];
        let roots = [PrefixId::EMPTY, PrefixId::EMPTY_LONG];
        for (table, root) in tables.iter_mut().zip(roots) {
            assert!(pool.find_prefix(root, &tokens).is_empty());
            check_reserve(table, &mut pool, 0, 8);
            table.cache_full_blocks(&mut pool, root, &tokens[..4]);
            table.cache_full_blocks(&mut pool, root, &tokens);
        }
        for (table, root) in tables.iter_mut().zip(roots) {
            let found: Vec<_> = pool.find_prefix(root, &tokens).iter().map(|cached| cached.block).collect();
            assert_eq!(found, table.blocks());
            table.release(&mut pool);
        }
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

//! [`BlockTable`]: the KV blocks of one sequence for one group of layers, in order of its tokens.

use super::block_pool::{BlockId, BlockPool};
use super::prefix_cache::{CachedPrefix, PrefixId, beside_key};

/// The contents of block `src` are to be copied to block `dst`, in all arrays, before the step's first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Copied from.
    pub src: BlockId,
    /// Copied to.
    pub dst: BlockId,
}

/// The KV blocks of one sequence for one group of layers. It must be [released](BlockTable::release) to its pool before it is dropped.
#[derive(Debug, Default)]
pub struct BlockTable {
    /// Of the pool's groups.
    group: usize,
    blocks: Vec<BlockId>,
    /// Blocks at the front that were given back: nothing reads them any more. Their entries stay, so that the others
    /// keep their places, and name blocks that may be somebody else's by now.
    num_released: usize,
    /// Of each full block that the prefix cache has been told of, in order: its tokens and all before it; of a second group, what it has
    /// been entered as.
    prefixes: Vec<PrefixId>,
}

impl BlockTable {
    /// An empty one of a group.
    pub fn of_group(group: usize) -> Self {
        Self { group, ..Self::default() }
    }

    /// Its group.
    pub fn group(&self) -> usize {
        self.group
    }

    /// The blocks, in order of the tokens that they hold. The first [`BlockTable::num_released`] are not to be used.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Blocks at the front that were given back by [`BlockTable::release_unseen`].
    pub fn num_released(&self) -> usize {
        self.num_released
    }

    /// Free blocks that [`BlockTable::reserve`] would take.
    pub fn num_missing(&self, pool: &BlockPool, start: usize, len: usize) -> usize {
        let needed = pool.group(self.group).blocks_for(start + len).saturating_sub(self.blocks.len());
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
        while self.blocks.len() < pool.group(self.group).blocks_for(start + len) {
            self.blocks.push(pool.allocate().expect("invariant: num_missing blocks are free"));
        }
        copy
    }

    /// A table that holds the blocks of the first `num_tokens` tokens too, but for those that were given back.
    pub fn fork(&self, pool: &mut BlockPool, num_tokens: usize) -> Self {
        let group = pool.group(self.group);
        let blocks = self.blocks[..group.blocks_for(num_tokens)].to_vec();
        let num_released = self.num_released.min(blocks.len());
        blocks[num_released..].iter().for_each(|&id| pool.retain(id));
        let mut prefixes = self.prefixes.clone();
        prefixes.truncate(num_tokens / group.block_len);
        Self { group: self.group, blocks, num_released, prefixes }
    }

    /// A table of `group` that holds those blocks that [`BlockPool::find_prefix`] has just found and that queries behind them see.
    pub fn of_cached(pool: &mut BlockPool, group: usize, found: &CachedPrefix) -> Self {
        let of = pool.group(group);
        let num_blocks = found.len() / of.block_len;
        let (blocks, num_released) = found.blocks(group, of);
        assert_eq!(blocks.len(), num_blocks, "invariant: all that is seen was found");
        blocks[num_released..].iter().for_each(|&id| pool.take_cached(id));
        let mut prefixes: Vec<PrefixId> = if group == 0 { found.prefixes().collect() } else { Vec::new() };
        prefixes.resize(num_blocks, PrefixId::EMPTY);
        Self { group, blocks, num_released, prefixes }
    }

    /// Lets the full blocks of `computed`, the tokens whose keys and values are written, be found by others after `root`, which is no
    /// token and the same for as long as the table holds blocks. Does nothing without a prefix cache.
    pub fn cache_full_blocks(&mut self, pool: &mut BlockPool, root: PrefixId, computed: &[u32]) {
        if !pool.has_prefix_cache() {
            return;
        }
        let block_len = pool.group(self.group).block_len;
        for (idx, tokens) in computed.chunks_exact(block_len).enumerate().skip(self.prefixes.len()) {
            let before = self.prefixes.last().copied().unwrap_or(root);
            self.prefixes.push(pool.cache_block(before, tokens, self.blocks[idx]));
        }
    }

    /// The same of a second group, beside the first one's table, which has been told of them. They are found by its prefixes.
    pub fn cache_beside(&mut self, first: &Self, pool: &mut BlockPool, root: PrefixId, computed: &[u32]) {
        let [first_len, block_len] = [first.group, self.group].map(|group| pool.group(group).block_len);
        let prefix = |num: usize| num.checked_sub(1).map_or(root, |last| first.prefixes[last]);
        for idx in self.prefixes.len()..computed.len() / block_len {
            let (before, tokens) = beside_key(prefix, computed, first_len, (idx + 1) * block_len);
            self.prefixes.push(pool.cache_block(before, tokens, self.blocks[idx]));
        }
    }

    /// Gives back the blocks that hold only tokens that queries from `start` on do not see: nothing may read those any more.
    pub fn release_unseen(&mut self, pool: &mut BlockPool, start: usize) {
        let end = pool.group(self.group).first_visible_block(start).min(self.blocks.len());
        if end > self.num_released {
            self.blocks[self.num_released..end].iter().for_each(|&id| pool.release(id));
            self.num_released = end;
        }
    }

    /// Gives back the blocks behind those of the first `num_tokens` tokens.
    pub fn release_behind(&mut self, pool: &mut BlockPool, num_tokens: usize) {
        let end = pool.group(self.group).blocks_for(num_tokens).min(self.blocks.len());
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
        let idx = start / pool.group(self.group).block_len;
        (len > 0 && idx < self.blocks.len() && pool.is_shared(self.blocks[idx])).then_some(idx)
    }
}

#[cfg(test)]
mod tests;

//! [`SequenceBlocks`]: the KV blocks of one sequence, a table for each group of layers.

use super::block_pool::BlockPool;
use super::block_table::{BlockCopy, BlockTable};
use super::layers::MAX_GROUPS;
use super::prefix_cache::{CachedPrefix, PrefixId};

/// The KV blocks of one sequence. They must be [released](SequenceBlocks::release) to their pool before they are dropped.
#[derive(Debug)]
pub struct SequenceBlocks {
    /// Of the pool's groups; where there are fewer the last are empty.
    tables: [BlockTable; MAX_GROUPS],
}

impl Default for SequenceBlocks {
    fn default() -> Self {
        Self { tables: [0, 1].map(BlockTable::of_group) }
    }
}

impl SequenceBlocks {
    /// The table of a group of layers.
    pub fn table(&self, group: usize) -> &BlockTable {
        &self.tables[group]
    }

    /// The tables of the pool's groups.
    pub fn tables(&self, pool: &BlockPool) -> &[BlockTable] {
        &self.tables[..pool.groups().len()]
    }

    fn tables_mut(&mut self, pool: &BlockPool) -> &mut [BlockTable] {
        &mut self.tables[..pool.groups().len()]
    }

    /// Free blocks that [`SequenceBlocks::reserve`] would take.
    pub fn num_missing(&self, pool: &BlockPool, start: usize, len: usize) -> usize {
        self.tables(pool).iter().map(|table| table.num_missing(pool, start, len)).sum()
    }

    /// [`BlockTable::reserve`] in all groups. Call only with [`SequenceBlocks::num_missing`] blocks free.
    pub fn reserve(
        &mut self,
        pool: &mut BlockPool,
        start: usize,
        len: usize,
    ) -> impl Iterator<Item = BlockCopy> + use<> {
        let mut copies = [None; MAX_GROUPS];
        for (copy, table) in copies.iter_mut().zip(self.tables_mut(pool)) {
            *copy = table.reserve(pool, start, len);
        }
        copies.into_iter().flatten()
    }

    /// Blocks of the first `num_tokens` tokens too, but for those that were given back.
    pub fn fork(&self, pool: &mut BlockPool, num_tokens: usize) -> Self {
        let mut forked = Self::default();
        for (to, from) in forked.tables.iter_mut().zip(self.tables(pool)) {
            *to = from.fork(pool, num_tokens);
        }
        forked
    }

    /// Those that [`BlockPool::find_prefix`] has just found.
    pub fn of_cached(pool: &mut BlockPool, found: &CachedPrefix) -> Self {
        let mut blocks = Self::default();
        for (group, table) in blocks.tables_mut(pool).iter_mut().enumerate() {
            *table = BlockTable::of_cached(pool, group, found);
        }
        blocks
    }

    /// Lets the full blocks of `computed`, the tokens whose keys and values are written, be found by others after `root`, which is no
    /// token and the same for as long as there are blocks. Does nothing without a prefix cache.
    pub fn cache_full_blocks(&mut self, pool: &mut BlockPool, root: PrefixId, computed: &[u32]) {
        if !pool.has_prefix_cache() {
            return;
        }
        let num_groups = pool.groups().len();
        let [first, second] = &mut self.tables;
        first.cache_full_blocks(pool, root, computed);
        if num_groups > 1 {
            second.cache_beside(first, pool, root, computed);
        }
    }

    /// Gives back the blocks of tokens that queries from `start` on do not see.
    pub fn release_unseen(&mut self, pool: &mut BlockPool, start: usize) {
        self.tables_mut(pool).iter_mut().for_each(|table| table.release_unseen(pool, start));
    }

    /// Gives back the blocks behind those of the first `num_tokens` tokens.
    pub fn release_behind(&mut self, pool: &mut BlockPool, num_tokens: usize) {
        self.tables_mut(pool).iter_mut().for_each(|table| table.release_behind(pool, num_tokens));
    }

    /// Gives all blocks back.
    pub fn release(&mut self, pool: &mut BlockPool) {
        // Those of the first group last: without its blocks nothing is found.
        self.tables_mut(pool).iter_mut().rev().for_each(|table| table.release(pool));
    }

    /// Whether blocks of everything that queries from `len` on see of what is before are there.
    pub fn has_seen_from(&self, pool: &BlockPool, len: usize) -> bool {
        let has_all = |table: &BlockTable| table.num_released() <= pool.group(table.group()).first_visible_block(len);
        self.tables(pool).iter().all(has_all)
    }
}

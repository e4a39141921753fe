//! [`BlockPool`]: a fixed number of KV blocks, each with a count of the tables that hold it.

use super::free_list::FreeList;
use super::prefix_cache::{CachedBlock, PrefixCache, PrefixId};

/// Number of a KV block.
pub type BlockId = u32;

/// A fixed number of KV blocks. A block is free when nobody holds it.
///
/// With a prefix cache, a full block can be found by its tokens, also while it is free: it keeps its contents until it
/// is handed out. Free blocks that cannot be found go first, then those that were used longest ago.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    /// How often each has been handed out.
    num_allocations: Vec<u64>,
    free: FreeList,
    cache: Option<PrefixCache>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks of `block_size` tokens, without a prefix cache.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "invariant: a block holds at least one token");
        let num_blocks = u32::try_from(num_blocks).expect("invariant: block ids fit u32");
        let len = num_blocks as usize;
        let (ref_counts, num_allocations) = (vec![0; len], vec![0; len]);
        Self { ref_counts, num_allocations, free: FreeList::all(num_blocks), cache: None, block_size }
    }

    /// The same with a prefix cache.
    pub fn with_prefix_cache(self) -> Self {
        Self { cache: Some(PrefixCache::default()), ..self }
    }

    /// Whether full blocks can be found by their tokens.
    pub fn has_prefix_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Tokens in one block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that hold `num_tokens` tokens.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// Blocks in all.
    pub fn num_total(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that somebody holds.
    pub fn num_used(&self) -> usize {
        self.num_total() - self.num_free()
    }

    /// Takes a free block, with one holder. What it held is forgotten.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop_first()?;
        debug_assert_eq!(self.ref_counts[id as usize], 0, "invariant: a free block has no holder");
        self.ref_counts[id as usize] = 1;
        self.num_allocations[id as usize] += 1;
        if let Some(cache) = &mut self.cache {
            cache.remove(id);
        }
        Some(id)
    }

    /// Adds a holder to a block that has one.
    pub fn retain(&mut self, id: BlockId) {
        let count = &mut self.ref_counts[id as usize];
        assert!(*count > 0, "invariant: only a held block can be shared");
        *count += 1;
    }

    /// Takes a holder away; the last one frees the block.
    pub fn release(&mut self, id: BlockId) {
        let count = &mut self.ref_counts[id as usize];
        assert!(*count > 0, "invariant: only a held block can be released");
        *count -= 1;
        if *count > 0 {
            return;
        }
        if self.cache.as_ref().is_some_and(|cache| cache.contains(id)) {
            self.free.push_last(id);
        } else {
            self.free.push_first(id);
        }
    }

    /// How often the block has been handed out: what was known of its contents holds for as long as that stays the same.
    pub fn num_allocations(&self, id: BlockId) -> u64 {
        self.num_allocations[id as usize]
    }

    /// Whether nobody holds the block.
    pub fn is_free(&self, id: BlockId) -> bool {
        self.ref_counts[id as usize] == 0
    }

    /// Whether more than one table holds the block, so that a write must copy it first.
    pub fn is_shared(&self, id: BlockId) -> bool {
        self.ref_counts[id as usize] > 1
    }

    /// The cached blocks that hold the first of `tokens` after `root`, which is no token, as many as there are and as `tokens` fill.
    /// Nobody holds them for that: take them with [`BlockTable::of_cached`](super::BlockTable::of_cached) before the next allocation.
    pub fn find_prefix(&mut self, root: PrefixId, tokens: &[u32]) -> Vec<CachedBlock> {
        let mut found = Vec::new();
        if let Some(cache) = &mut self.cache {
            let mut before = root;
            for tokens in tokens.chunks_exact(self.block_size) {
                let Some(cached) = cache.find(before, tokens) else { break };
                before = cached.prefix;
                found.push(cached);
            }
        }
        found
    }

    /// Adds a holder to a block that was found in the cache.
    pub(super) fn take_cached(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.free.remove(id);
        }
        self.ref_counts[id as usize] += 1;
    }

    /// Lets a held block be found by its `tokens`, a whole block of them, after `before`.
    pub(super) fn cache_block(&mut self, before: PrefixId, tokens: &[u32], id: BlockId) -> PrefixId {
        debug_assert!(!self.is_free(id), "invariant: the block is held");
        debug_assert_eq!(tokens.len(), self.block_size, "invariant: the block is full");
        self.cache.as_mut().map_or(PrefixId::EMPTY, |cache| cache.insert(before, tokens, id))
    }
}

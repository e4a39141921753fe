//! [`BlockPool`]: a fixed number of KV blocks, each with a count of the tables that hold it.

use super::block_table::{BlockCopy, BlockTable};
use super::free_list::FreeList;
use super::layers::{LayerGroup, most_blocks};
use super::prefix_cache::{CachedPrefix, PrefixCache, PrefixId};

/// Number of a KV block.
pub type BlockId = u32;

/// A fixed number of KV blocks. A block is free when nobody holds it. Whoever holds it has it for the layers of one group.
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
    groups: Vec<LayerGroup>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks for these groups of layers, without a prefix cache.
    pub fn new(num_blocks: usize, groups: &[LayerGroup]) -> Self {
        assert!(groups.iter().all(|group| group.block_len > 0), "invariant: a block holds at least one token");
        let num_blocks = u32::try_from(num_blocks).expect("invariant: block ids fit u32");
        let len = num_blocks as usize;
        let (ref_counts, num_allocations) = (vec![0; len], vec![0; len]);
        Self { ref_counts, num_allocations, free: FreeList::all(num_blocks), cache: None, groups: groups.to_vec() }
    }

    /// The same with a prefix cache.
    pub fn with_prefix_cache(self) -> Self {
        Self { cache: Some(PrefixCache::default()), ..self }
    }

    /// Whether full blocks can be found by their tokens.
    pub fn has_prefix_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// The groups of layers; where there are two, first the one that sees all tokens.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// One of them.
    pub fn group(&self, group: usize) -> LayerGroup {
        self.groups[group]
    }

    /// Tokens of one of the cache's blocks, of which a block is one or several.
    pub fn cache_block_len(&self) -> usize {
        self.groups.iter().map(|group| group.block_len).min().expect("invariant: there is a group")
    }

    /// Sequences can begin with the same blocks up to multiples of so many tokens.
    pub fn prefix_unit(&self) -> usize {
        self.groups.iter().map(|group| group.block_len).max().expect("invariant: there is a group")
    }

    /// How many of the cache's blocks a block is.
    pub fn num_parts(&self) -> usize {
        self.prefix_unit() / self.cache_block_len()
    }

    /// The cache's blocks that a table's are, one after another. `room`: for those that are several.
    pub fn cache_blocks<'a>(&self, table: &'a BlockTable, room: &'a mut Vec<u32>) -> &'a [u32] {
        let num_parts = self.num_parts() as u32;
        if num_parts == 1 {
            return table.blocks();
        }
        let own_parts = (self.group(table.group()).block_len / self.cache_block_len()) as u32;
        room.clear();
        room.extend(table.blocks().iter().flat_map(|id| (0..own_parts).map(move |part| id * num_parts + part)));
        room
    }

    /// The same of copies.
    pub fn cache_copies<'a>(&self, copies: &'a [BlockCopy], room: &'a mut Vec<BlockCopy>) -> &'a [BlockCopy] {
        let num_parts = self.num_parts() as u32;
        if num_parts == 1 {
            return copies;
        }
        let part_of = |copy: &BlockCopy, part: u32| BlockCopy {
            src: copy.src * num_parts + part,
            dst: copy.dst * num_parts + part,
        };
        room.clear();
        room.extend(copies.iter().flat_map(|copy| (0..num_parts).map(move |part| part_of(copy, part))));
        room
    }

    /// Blocks that a sequence of `num_tokens` tokens has at once, at most, where a step computes `step_tokens` of them.
    pub fn most_blocks(&self, num_tokens: usize, step_tokens: usize) -> usize {
        most_blocks(&self.groups, num_tokens, step_tokens)
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
        assert_eq!(self.ref_counts[id as usize], 0, "invariant: a free block has no holder");
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

    /// The longest prefix of `tokens` after `root`, which is no token, whose blocks are cached in all groups, as far as queries behind
    /// it see them. Nobody holds them for that: take them with [`SequenceBlocks::of_cached`](super::SequenceBlocks::of_cached) before the
    /// next allocation.
    pub fn find_prefix(&mut self, root: PrefixId, tokens: &[u32]) -> CachedPrefix {
        let mut found = CachedPrefix::default();
        let Some(cache) = &mut self.cache else { return found };
        let block_len = self.groups[0].block_len;
        let mut before = root;
        for tokens in tokens.chunks_exact(block_len) {
            let Some(cached) = cache.find(before, tokens) else { break };
            before = cached.prefix;
            found.chain.push(cached);
        }
        found.len = found.chain.len() * block_len;
        if let Some(second) = self.groups.get(1) {
            cache.find_beside(&mut found, (root, tokens), block_len, *second);
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

    /// Lets a held block be found by its `tokens` after `before`.
    pub(super) fn cache_block(&mut self, before: PrefixId, tokens: &[u32], id: BlockId) -> PrefixId {
        assert!(!self.is_free(id), "invariant: the block is held");
        self.cache.as_mut().map_or(PrefixId::EMPTY, |cache| cache.insert(before, tokens, id))
    }
}

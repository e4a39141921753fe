//! [`BlockPool`]: a fixed number of KV blocks, each with a count of the tables that hold it.

/// Number of a KV block.
pub type BlockId = u32;

/// A fixed number of KV blocks. A block is free when nobody holds it.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    /// Free blocks, the next one to hand out last.
    free: Vec<BlockId>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks of `block_size` tokens.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "invariant: a block holds at least one token");
        let num_blocks = u32::try_from(num_blocks).expect("invariant: block ids fit u32");
        Self { ref_counts: vec![0; num_blocks as usize], free: (0..num_blocks).rev().collect(), block_size }
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

    /// Takes a free block, with one holder.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop()?;
        debug_assert_eq!(self.ref_counts[id as usize], 0, "invariant: a free block has no holder");
        self.ref_counts[id as usize] = 1;
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
        if *count == 0 {
            self.free.push(id);
        }
    }

    /// Whether more than one table holds the block, so that a write must copy it first.
    pub fn is_shared(&self, id: BlockId) -> bool {
        self.ref_counts[id as usize] > 1
    }
}

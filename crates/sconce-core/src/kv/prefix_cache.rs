//! [`PrefixCache`]: finds full blocks by the tokens that they and all blocks before them hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::block_pool::BlockId;
use super::layers::LayerGroup;

/// Some tokens that fill whole blocks, from a sequence's first token on, as a number: equal for equal tokens as long as
/// their blocks are cached, and never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixId(u64);

impl PrefixId {
    /// No tokens.
    pub const EMPTY: Self = Self(0);

    /// No tokens of a sequence of another kind than those behind [`PrefixId::EMPTY`]: the same tokens have other keys and values. Kinds
    /// have numbers; 0 is the kind of those.
    pub const fn empty_of(kind: u64) -> Self {
        Self(0u64.wrapping_sub(kind))
    }
}

/// A block that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedBlock {
    /// The block.
    pub block: BlockId,
    /// Its tokens and all before it.
    pub prefix: PrefixId,
}

/// Blocks that hold the first tokens of a sequence, as far as what comes behind them sees them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CachedPrefix {
    /// Tokens.
    pub(super) len: usize,
    /// Of the first group of layers all blocks, from the first token on.
    pub(super) chain: Vec<CachedBlock>,
    /// Of the second group, if there is one, those that are seen.
    pub(super) beside: Vec<BlockId>,
}

impl CachedPrefix {
    /// Its tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its whole blocks of the first group.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = PrefixId> {
        self.chain.iter().map(|cached| cached.prefix)
    }

    /// The blocks of a group's layers, from the first token on, and how many of the first ones no query behind the prefix sees: those
    /// need not be there.
    pub fn blocks(&self, group: usize, of: LayerGroup) -> (Vec<BlockId>, usize) {
        let num_unseen = of.first_visible_block(self.len);
        if group == 0 {
            return (self.chain.iter().map(|cached| cached.block).collect(), num_unseen);
        }
        let unseen = std::iter::repeat_n(0, num_unseen);
        (unseen.chain(self.beside.iter().copied()).collect(), num_unseen)
    }
}

/// Full blocks by what stands before them and by their own tokens.
///
/// A key holds all of a block's tokens and the number of the prefix before it, so that different tokens are never
/// taken for equal ones. A block whose predecessor is evicted is not found any more, even when the predecessor is
/// computed anew: it has a new number then.
///
/// Blocks of a second group of layers are no chain, as most of what is before a window is nobody's: such a block is found by the last
/// prefix of the first group that ends within it or before it, and the tokens from there to its own end.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    found: HashMap<Arc<[u32]>, CachedBlock>,
    /// Of each block the key under which it is found.
    keys: HashMap<BlockId, Arc<[u32]>>,
    last_id: u64,
    /// The key that is looked up; kept to be allocated once.
    key: Vec<u32>,
}

impl PrefixCache {
    pub(super) fn contains(&self, block: BlockId) -> bool {
        self.keys.contains_key(&block)
    }

    /// The block that holds `tokens` after `before`.
    pub(super) fn find(&mut self, before: PrefixId, tokens: &[u32]) -> Option<CachedBlock> {
        self.set_key(before, tokens);
        self.found.get(self.key.as_slice()).copied()
    }

    /// Cuts a prefix, of which the first group's blocks, of `block_len` tokens, have been found, down to one whose blocks of `second` are
    /// there too, as far as they are seen.
    pub(super) fn find_beside(
        &mut self,
        found: &mut CachedPrefix,
        (root, tokens): (PrefixId, &[u32]),
        block_len: usize,
        second: LayerGroup,
    ) {
        let unit = block_len.max(second.block_len);
        found.len = found.len / unit * unit;
        let mut idx = found.len / second.block_len;
        while idx > second.first_visible_block(found.len) {
            let prefix = |num: usize| num.checked_sub(1).map_or(root, |last| found.chain[last].prefix);
            let (before, tokens) = beside_key(prefix, tokens, block_len, idx * second.block_len);
            idx -= 1;
            match self.find(before, tokens) {
                Some(cached) => found.beside.push(cached.block),
                None => {
                    found.len = idx * second.block_len / unit * unit;
                    idx = found.len / second.block_len;
                    found.beside.clear();
                }
            }
        }
        found.beside.reverse();
        found.chain.truncate(found.len / block_len);
    }

    /// Enters a block that holds `tokens` after `before`. Where another holds the same, that one stays.
    pub(super) fn insert(&mut self, before: PrefixId, tokens: &[u32], block: BlockId) -> PrefixId {
        if let Some(cached) = self.find(before, tokens) {
            return cached.prefix;
        }
        let key: Arc<[u32]> = self.key.as_slice().into();
        self.last_id += 1;
        let prefix = PrefixId(self.last_id);
        self.found.insert(Arc::clone(&key), CachedBlock { block, prefix });
        self.keys.insert(block, key);
        prefix
    }

    /// Forgets a block, if it is there.
    pub(super) fn remove(&mut self, block: BlockId) {
        if let Some(key) = self.keys.remove(&block) {
            self.found.remove(&key);
        }
    }

    fn set_key(&mut self, PrefixId(before): PrefixId, tokens: &[u32]) {
        self.key.clear();
        self.key.extend([before as u32, (before >> 32) as u32]);
        self.key.extend_from_slice(tokens);
    }
}

/// What a block of a second group that ends behind `end` tokens is found by. `prefix`: of so many of the first group's blocks, of
/// `block_len` tokens.
pub(super) fn beside_key(
    prefix: impl Fn(usize) -> PrefixId,
    tokens: &[u32],
    block_len: usize,
    end: usize,
) -> (PrefixId, &[u32]) {
    let num_before = end / block_len;
    (prefix(num_before), &tokens[num_before * block_len..end])
}

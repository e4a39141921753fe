//! [`PrefixCache`]: finds full blocks by the tokens that they and all blocks before them hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::block_pool::BlockId;

/// Some tokens that fill whole blocks, from a sequence's first token on, as a number: equal for equal tokens as long as
/// their blocks are cached, and never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixId(u64);

impl PrefixId {
    /// No tokens.
    pub const EMPTY: Self = Self(0);
    /// No tokens of a sequence whose keys and values are other ones than those that the same tokens have behind [`PrefixId::EMPTY`].
    pub const EMPTY_LONG: Self = Self(u64::MAX);
}

/// A block that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedBlock {
    /// The block.
    pub block: BlockId,
    /// Its tokens and all before it.
    pub prefix: PrefixId,
}

/// Full blocks by what stands before them and by their own tokens.
///
/// A key holds all of a block's tokens and the number of the prefix before it, so that different tokens are never
/// taken for equal ones. A block whose predecessor is evicted is not found any more, even when the predecessor is
/// computed anew: it has a new number then.
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

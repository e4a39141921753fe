//! KV blocks: who holds which block of the cache. No tensor is seen here; the storage is the backend's.

mod block_pool;
mod block_table;
mod free_list;
mod layers;
mod prefix_cache;
mod sequence_blocks;

pub use block_pool::{BlockId, BlockPool};
pub use block_table::{BlockCopy, BlockTable};
pub use layers::{LayerGroup, LayerGroups, LayerPlace, MAX_GROUPS};
pub use prefix_cache::{CachedBlock, CachedPrefix, PrefixId};
pub use sequence_blocks::SequenceBlocks;

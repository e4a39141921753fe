//! KV blocks: who holds which block of the cache. No tensor is seen here; the storage is the backend's.

mod block_pool;
mod block_table;
mod free_list;
mod prefix_cache;

pub use block_pool::{BlockId, BlockPool};
pub use block_table::{BlockCopy, BlockTable};
pub use prefix_cache::{CachedBlock, PrefixId};

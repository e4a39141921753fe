//! KV blocks: who holds which block of the cache. No tensor is seen here; the storage is the backend's.

mod block_pool;
mod block_table;

pub use block_pool::{BlockId, BlockPool};
pub use block_table::{BlockCopy, BlockTable};

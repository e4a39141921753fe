//! The CPU: f32 activations, weights as the file stores them, SIMD chosen at run time.

mod arena;
mod backend;
mod isa;
mod kv_cache;
mod memory;
mod peaks;
mod pool;
mod storage;
mod topology;

pub(crate) use arena::{Arena, ArenaSlice};
pub use backend::CpuBackend;
pub(crate) use backend::{Cpu, memory_dtype};
pub use isa::Isa;
pub use kv_cache::{KvCache, KvLayer};
pub use pool::ThreadPool;
pub use storage::{Buffer, Matrix, MatrixPart, PartData, RopeTable};

pub(crate) use isa::multiversion;
pub(crate) use kv_cache::{KvElem, with_kv_elem};
pub(crate) use memory::release_freed;
pub(crate) use pool::SharedSlice;

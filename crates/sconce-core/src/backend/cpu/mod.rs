//! The CPU: f32 activations, weights as the file stores them, SIMD chosen at run time.

mod backend;
mod isa;
mod memory;
mod peaks;
mod pool;
mod storage;
mod topology;

pub use backend::CpuBackend;
pub(crate) use backend::{Cpu, memory_dtype};
pub use isa::Isa;
pub use peaks::Peaks;
pub use pool::ThreadPool;
pub use storage::{Buffer, KvCache, Matrix, MatrixPart, PartData, RopeTable};

pub(crate) use isa::multiversion;
pub(crate) use pool::SharedSlice;

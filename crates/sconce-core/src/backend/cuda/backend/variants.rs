//! [`CudaBackend`] with one thing or another in another way, for tests.

use super::{CudaBackend, Products};

impl CudaBackend {
    /// The same with kernels for Hopper.
    pub(crate) fn with_hopper(self) -> Self {
        Self { products: Products::Hopper, ..self }
    }

    /// The same, whose weights of block formats are expanded at load.
    pub(crate) fn without_blocks(self) -> Self {
        Self { keeps_blocks: false, ..self }
    }

    /// The same, with every launch made anew in each step.
    pub(crate) fn without_graphs(self) -> Self {
        Self { uses_graphs: false, ..self }
    }

    /// The same, where sequences that begin alike are attended together however little that saves.
    pub(crate) fn sharing_always(self) -> Self {
        Self { min_saved_bytes: 0, ..self }
    }

    /// The same, with RoPE of decodes in a launch of its own.
    pub(crate) fn without_fused_rope(self) -> Self {
        Self { fuses_rope: false, ..self }
    }

    /// The same, with every step read before the next is launched.
    pub(crate) fn without_running_ahead(self) -> Self {
        Self { runs_ahead: false, ..self }
    }

    /// The same, with algorithms of products tried before the first step.
    pub(crate) fn tuned(self) -> Self {
        Self { tunes: true, ..self }
    }

    /// How many graphs there are.
    pub(crate) fn num_graphs(&self) -> usize {
        self.scratch.borrow().graphs.len()
    }
}

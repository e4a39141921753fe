//! [`Linear`]: a matrix of a block, and what adapters add to its products.

use crate::backend::Backend;
use crate::config::Activation;
use crate::error::Result;

/// A matrix of a block, and what adapters add to its products.
pub struct Linear<B: Backend> {
    matrix: B::Matrix,
    /// `None`: nothing, whichever adapter it is.
    lora: Option<B::Lora>,
}

impl<B: Backend> Linear<B> {
    pub(super) fn new(matrix: B::Matrix, lora: Option<B::Lora>) -> Self {
        Self { matrix, lora }
    }

    /// What adapters add, where a token of the step goes through one.
    fn lora(&self, backend: &B, batch: &B::Batch) -> Option<&B::Lora> {
        self.lora.as_ref().filter(|_| backend.has_adapters(batch))
    }

    /// [`Backend::linear`], adapters included.
    pub(super) fn forward(&self, backend: &B, out: &mut B::Buffer, x: &B::Buffer, batch: &B::Batch) -> Result<()> {
        backend.linear(out, x, &self.matrix)?;
        match self.lora(backend, batch) {
            Some(lora) => backend.add_lora(out, x, lora, batch),
            None => Ok(()),
        }
    }

    /// [`Backend::gated_linear`], adapters included. Where there are some it is two operations, which have the same bits.
    pub(super) fn gated(
        &self,
        backend: &B,
        (out, gate_up): (&mut B::Buffer, &mut B::Buffer),
        x: &B::Buffer,
        batch: &B::Batch,
        act: Activation,
    ) -> Result<()> {
        let Some(lora) = self.lora(backend, batch) else {
            return backend.gated_linear(out, gate_up, x, &self.matrix, act);
        };
        backend.linear(gate_up, x, &self.matrix)?;
        backend.add_lora(gate_up, x, lora, batch)?;
        backend.gate_act_mul(out, gate_up, act)
    }
}

//! [`Linear`]: a matrix of a block, and what adapters add to its products; [`Output`]: one whose products the residual stream is given.

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

/// A matrix of a block whose products the residual stream is given, and what they are normalised by before that, where they are.
pub struct Output<B: Backend> {
    linear: Linear<B>,
    norm: Option<B::Vector>,
    /// Of the norm.
    eps: f32,
}

impl<B: Backend> Output<B> {
    pub(super) fn new(linear: Linear<B>, norm: Option<B::Vector>, eps: f32) -> Self {
        Self { linear, norm, eps }
    }

    /// What `out` is given. `room`: as wide, and nobody's then.
    pub(super) fn forward(
        &self,
        backend: &B,
        (out, room): (&mut B::Buffer, &mut B::Buffer),
        x: &B::Buffer,
        batch: &B::Batch,
    ) -> Result<()> {
        let Some(norm) = &self.norm else { return self.linear.forward(backend, out, x, batch) };
        self.linear.forward(backend, room, x, batch)?;
        backend.rms_norm(out, room, norm, self.eps)
    }
}

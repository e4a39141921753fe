//! [`Norm`]: the RMSNorm of what a part of a block takes in, or none.

use super::Loader;
use crate::backend::{Backend, Workspace};
use crate::error::Result;

/// The RMSNorm of what a part of a block takes in.
pub(super) struct Norm<B: Backend> {
    weight: B::Vector,
    eps: f32,
}

/// 2^100: so great that squares of hidden states are as nothing beside it.
const EPS_OF_NONE: f32 = f32::from_bits((127 + 100) << 23);
/// Its root, 2^50.
const WEIGHT_OF_NONE: f32 = f32::from_bits((127 + 50) << 23);

impl<B: Backend> Norm<B> {
    /// That of `name`, as wide as the residual stream. `None`: what comes in is taken as it is, by the norm that makes
    /// x / 2^50 * 2^50 of x, so that it is of the type of activations and all else of a block as elsewhere.
    pub(super) fn load(loader: &Loader<'_, B>, name: Option<&str>) -> Result<Self> {
        let hidden = loader.config.hidden_size;
        Ok(match name {
            Some(name) => Self { weight: loader.norm(name, hidden)?, eps: loader.config.norm_eps },
            None => Self { weight: loader.backend.vector(&vec![WEIGHT_OF_NONE; hidden])?, eps: EPS_OF_NONE },
        })
    }

    /// `ws.normed`, of the residual stream.
    pub(super) fn forward(&self, backend: &B, ws: &mut Workspace<B>) -> Result<()> {
        backend.rms_norm(&mut ws.normed, &ws.residual, &self.weight, self.eps)
    }

    /// The same after the residual stream has been given `ws.delta`.
    pub(super) fn add_forward(&self, backend: &B, ws: &mut Workspace<B>) -> Result<()> {
        backend.add_rms_norm(&mut ws.normed, &mut ws.residual, &ws.delta, &self.weight, self.eps)
    }
}

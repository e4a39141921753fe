//! [`Ropes`]: by which angles the tokens turn, layer by layer.

use super::Loader;
use crate::backend::Backend;
use crate::config::{ModelConfig, RopeConfig, RopeScaling};
use crate::error::Result;

/// By which angles the tokens turn, layer by layer.
pub(super) struct Ropes<B: Backend> {
    all: B::Rope,
    /// Of layers with a sliding window, where they have another.
    local: Option<B::Rope>,
    /// Of layers that do not turn, where there are some.
    still: Option<B::Rope>,
}

impl<B: Backend> Ropes<B> {
    /// Those of the model's config.
    pub(super) fn load(loader: &Loader<'_, B>) -> Result<Self> {
        let config = loader.config;
        let rope = |rope: &RopeConfig| loader.backend.rope(rope, loader.max_model_len);
        let has_still = config.rope_layers.contains(&false);
        Ok(Self {
            all: rope(&config.rope)?,
            local: config.local_rope.as_ref().map(rope).transpose()?,
            still: has_still.then(|| rope(&still(&config.rope))).transpose()?,
        })
    }

    /// That of a layer.
    pub(super) fn of_layer(&self, config: &ModelConfig, layer: usize) -> &B::Rope {
        let own = match config.sliding_window[layer] {
            _ if !config.rope_layers[layer] => self.still.as_ref(),
            Some(_) => self.local.as_ref(),
            None => None,
        };
        own.unwrap_or(&self.all)
    }
}

/// Angles of 0, by which each number stays as it is; of few pairs, and as many as kernels turn on their way.
fn still(rope: &RopeConfig) -> RopeConfig {
    let rotary_dim = rope.rotary_dim.min(4);
    RopeConfig { rotary_dim, scaling: RopeScaling::Factors(vec![f32::INFINITY; rotary_dim / 2]), ..rope.clone() }
}

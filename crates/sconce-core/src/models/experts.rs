//! [`Experts`]: a mixture of experts, which the layers of Mixtral, of Qwen's MoE models and of gpt-oss have in place of an MLP.

use super::{Bias, Loader, RawConfig};
use crate::backend::{Backend, ExpertsSpec, Workspace};
use crate::config::ExpertsConfig;
use crate::error::Result;
use crate::ops::experts::{MAX_EXPERTS, MAX_PER_TOKEN};

/// The experts of one layer.
pub(super) struct Experts<B: Backend> {
    router: B::Matrix,
    gate_up: B::ExpertMatrices,
    down: B::ExpertMatrices,
    spec: ExpertsSpec,
}

/// What the matrices are called within a layer.
pub(super) struct Names {
    pub(super) router: &'static str,
    /// Before an expert's number.
    pub(super) experts: &'static str,
    /// After it.
    pub(super) gate: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
}

/// Checks what a config says. `key`: of the number of experts.
pub(super) fn checked(raw: &RawConfig, key: &str, config: ExpertsConfig) -> Result<ExpertsConfig> {
    let ExpertsConfig { num_experts, per_token, .. } = config;
    if num_experts > MAX_EXPERTS {
        return Err(raw.error(key, format!("expected at most {MAX_EXPERTS}, found {num_experts}")));
    }
    let most = num_experts.min(MAX_PER_TOKEN);
    if per_token > most {
        return Err(raw.error("num_experts_per_tok", format!("expected at most {most}, found {per_token}")));
    }
    Ok(config)
}

impl<B: Backend> Experts<B> {
    /// Those of layer `layer`.
    pub(super) fn load(loader: &Loader<'_, B>, layer: usize, names: &Names, config: &ExpertsConfig) -> Result<Self> {
        let (hidden, inter, num_experts) = (loader.config.hidden_size, config.intermediate_size, config.num_experts);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let of_expert = |expert: usize, part: &str| name(&format!("{}.{expert}.{part}", names.experts));
        let gate_up = (0..num_experts)
            .flat_map(|expert| [(of_expert(expert, names.gate), inter), (of_expert(expert, names.up), inter)]);
        let down = (0..num_experts).map(|expert| (of_expert(expert, names.down), hidden));
        let bias = Bias::from(loader.config.mlp_bias);
        Ok(Self {
            router: loader.matrix(&[(name(names.router), num_experts)], hidden, bias)?,
            gate_up: loader.expert_matrices(&gate_up.collect::<Vec<_>>(), hidden, num_experts, bias)?,
            down: loader.expert_matrices(&down.collect::<Vec<_>>(), inter, num_experts, bias)?,
            spec: ExpertsSpec::new(config, loader.config.hidden_act),
        })
    }

    /// `ws.delta`, of `ws.normed`.
    pub(super) fn forward(&self, backend: &B, ws: &mut Workspace<B>) -> Result<()> {
        backend.linear(&mut ws.router_logits, &ws.normed, &self.router)?;
        let weights = [&self.gate_up, &self.down];
        backend.experts(&mut ws.delta, &ws.normed, &ws.router_logits, weights, &self.spec)
    }
}

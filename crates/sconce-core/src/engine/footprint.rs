//! [`Footprint`]: what a model's weights come to, before any of them is read.

use crate::backend::cpu::CpuBackend;
use crate::config::{ModelConfig, WeightDtype};
use crate::engine::NoProgress;
use crate::error::Result;
use crate::models::{self, Loader, RawConfig};
use crate::weights::{Adapters, Dtype, Outline, TensorInfo, WeightStore};

/// The weights' names, which are Hugging Face's whatever the file.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Part of the names of experts' matrices.
const EXPERTS: &str = ".experts.";

/// Weights of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightGroup {
    /// The type that they have in memory.
    pub dtype: Dtype,
    /// Tensors.
    pub num_tensors: usize,
    /// Elements.
    pub num_parameters: u64,
    /// Bytes in memory.
    pub bytes: u64,
}

/// What the weights cost a token. Attention, activations, keys and values are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenCost {
    /// Elements of the matrices that a token is multiplied with: of experts, as many as it goes through.
    pub layer_weights: u64,
    /// Elements of the head, which only tokens that are sampled from are multiplied with.
    pub head_weights: u64,
    /// Bytes of weights that a token sampled alone reads: all but an embedding that only gives rows, and experts it does not go through.
    pub bytes_read: u64,
}

/// What a model's weights come to: those that the architecture asks for, whatever else the files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// By type in memory, the one with the most bytes first.
    pub groups: Vec<WeightGroup>,
    /// Bytes as they are read: as the files store them, or as they are quantized at load.
    pub stored_bytes: u64,
    /// What they cost a token.
    pub token_cost: TokenCost,
}

impl Footprint {
    /// Finds out by loading the architecture from an outline of `store`. Errors: the first tensor that is missing, or
    /// of another shape or type than the config says, of the adapters' too. `in_memory`: the type that a stored one has in memory.
    pub(super) fn new(
        raw: &RawConfig,
        config: &ModelConfig,
        (store, adapters): (&WeightStore, &Adapters),
        in_memory: &dyn Fn(Dtype) -> Dtype,
    ) -> Result<Self> {
        let outline = Outline::new(store);
        let loader = Loader {
            backend: &CpuBackend::new(Some(1)),
            store: &outline,
            config,
            adapters,
            dtype: WeightDtype::Auto,
            max_model_len: 0,
            progress: &NoProgress,
        };
        (models::find(raw)?.load)(&loader)?;
        adapters.check_all_are_asked_for()?;
        let mut footprint = Self { groups: Vec::new(), stored_bytes: 0, token_cost: TokenCost::default() };
        let tensors = outline.into_tensors();
        // Without a head of its own, a model multiplies with its embedding.
        let head = if tensors.contains_key(HEAD) { HEAD } else { EMBEDDING };
        for (name, tensor) in &tensors {
            let bytes = footprint.add(tensor, in_memory);
            // Of a token's way through the experts.
            let [taken, all] = match config.experts {
                Some(experts) if name.contains(EXPERTS) => [experts.per_token, experts.num_experts],
                _ => [1, 1],
            };
            let share = |count: u64| count * taken as u64 / all as u64;
            footprint.token_cost.add(name, head, tensor.shape.len(), share(tensor.num_elements()), share(bytes));
        }
        footprint.groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        Ok(footprint)
    }

    /// Returns its bytes in memory.
    fn add(&mut self, tensor: &TensorInfo, in_memory: &dyn Fn(Dtype) -> Dtype) -> u64 {
        // Norms and biases are kept in f32: they are few.
        let dtype = if tensor.shape.len() == 1 { Dtype::F32 } else { in_memory(tensor.dtype) };
        let bytes = tensor.bytes_as(dtype) + if tensor.shape.len() == 1 { 0 } else { tensor.scale_bytes() };
        let idx = self.groups.iter().position(|group| group.dtype == dtype).unwrap_or_else(|| {
            self.groups.push(WeightGroup { dtype, num_tensors: 0, num_parameters: 0, bytes: 0 });
            self.groups.len() - 1
        });
        let group = &mut self.groups[idx];
        group.num_tensors += 1;
        group.num_parameters += tensor.num_elements();
        group.bytes += bytes;
        self.stored_bytes += tensor.bytes_as(tensor.dtype);
        bytes
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> u64 {
        self.groups.iter().map(|group| group.num_parameters).sum()
    }

    /// Bytes of the weights in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes).sum()
    }
}

impl TokenCost {
    fn add(&mut self, name: &str, head: &str, num_dims: usize, num_elements: u64, bytes: u64) {
        if name == EMBEDDING && name != head {
            return;
        }
        self.bytes_read += bytes;
        match num_dims {
            1 => {}
            _ if name == head => self.head_weights += num_elements,
            _ => self.layer_weights += num_elements,
        }
    }
}

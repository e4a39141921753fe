//! [`Loader`]: weights by name, checked against the config, into the backend's forms.

use super::{Linear, Output};
use crate::backend::Backend;
use crate::config::{ModelConfig, WeightDtype};
use crate::engine::Progress;
use crate::error::Result;
use crate::weights::{Adapters, LoraUpdate, TensorSource, TensorView};

/// Weights by name, checked against the config, into the backend's forms.
pub struct Loader<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// The tensors.
    pub store: &'a dyn TensorSource,
    /// The model's config.
    pub config: &'a ModelConfig,
    /// What may be added to the products of its blocks' matrices.
    pub adapters: &'a Adapters,
    /// The type that matrices have in memory.
    pub dtype: WeightDtype,
    /// The longest sequence.
    pub max_model_len: usize,
    /// Told of every tensor.
    pub progress: &'a dyn Progress,
}

/// Whether a matrix has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// `<name>.bias` is added.
    Present,
    /// There is none.
    Absent,
}

impl From<bool> for Bias {
    fn from(has_bias: bool) -> Self {
        if has_bias { Self::Present } else { Self::Absent }
    }
}

impl<B: Backend> Loader<'_, B> {
    /// `<name>.weight` of each part, (name, rows), over each other: [sum of rows, cols].
    pub fn matrix(&self, parts: &[(String, usize)], cols: usize, bias: Bias) -> Result<B::Matrix> {
        let bias = self.bias(parts, bias)?;
        if let Some(random) = self.store.random(&format!("{}.weight", parts[0].0)) {
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            if let Some(matrix) = self.backend.random_matrix([rows, cols], bias.as_deref(), random)? {
                // As the files of such a model would have them.
                self.progress.advance((rows * random.dtype.row_bytes(cols)) as u64);
                return Ok(matrix);
            }
        }
        let matrix = self.backend.matrix(self.tensors(parts, cols)?, bias.as_deref(), self.dtype);
        // The file and its copy would take twice the memory.
        self.store.release();
        matrix
    }

    /// The same of a block, with what adapters add to its products.
    pub fn linear(&self, parts: &[(String, usize)], cols: usize, bias: Bias) -> Result<Linear<B>> {
        let updates = self.adapters.updates(parts, cols)?.into_iter();
        let updates = updates.map(|update| LoraUpdate { b: self.in_halves(&parts[update.part].0, update.b), ..update });
        let updates: Vec<_> = updates.collect();
        let matrix = self.matrix(parts, cols, bias)?;
        if updates.is_empty() || !self.store.has_data() {
            return Ok(Linear::new(matrix, None));
        }
        let part_rows: Vec<usize> = parts.iter().map(|&(_, rows)| rows).collect();
        let lora = self.backend.lora((&part_rows, cols), self.adapters.len(), &updates)?;
        self.adapters.release();
        Ok(Linear::new(matrix, Some(lora)))
    }

    /// The same of one part, whose products are normalised by the RMSNorm `norm` if there is one.
    pub fn output(&self, part: (String, usize), cols: usize, bias: Bias, norm: Option<String>) -> Result<Output<B>> {
        let norm = norm.map(|name| self.norm(&name, part.1)).transpose()?;
        Ok(Output::new(self.linear(&[part], cols, bias)?, norm, self.config.norm_eps))
    }

    /// `<name>.weight` of each part, (name, rows): equally many of each expert, the first expert's first.
    pub fn expert_matrices(
        &self,
        parts: &[(String, usize)],
        cols: usize,
        num_experts: usize,
        bias: Bias,
    ) -> Result<B::ExpertMatrices> {
        let bias = self.bias(parts, bias)?;
        let bias = bias.as_deref();
        if let Some(random) = self.store.random(&format!("{}.weight", parts[0].0)) {
            let rows = parts[..parts.len() / num_experts].iter().map(|(_, rows)| rows).sum();
            if let Some(matrices) = self.backend.random_expert_matrices(num_experts, [rows, cols], bias, random)? {
                self.progress.advance((num_experts * rows * random.dtype.row_bytes(cols)) as u64);
                return Ok(matrices);
            }
        }
        let matrices = self.backend.expert_matrices(self.tensors(parts, cols)?, num_experts, bias, self.dtype);
        self.store.release();
        matrices
    }

    /// `name`, a vector.
    pub fn vector(&self, name: &str, len: usize) -> Result<B::Vector> {
        self.backend.vector(&self.floats(name, len)?)
    }

    /// The same times `scale`.
    pub fn scaled_vector(&self, name: &str, len: usize, scale: f32) -> Result<B::Vector> {
        let data: Vec<f32> = self.floats(name, len)?.iter().map(|x| x * scale).collect();
        self.backend.vector(&data)
    }

    /// What the RMSNorm `name` multiplies with.
    pub fn norm(&self, name: &str, len: usize) -> Result<B::Vector> {
        self.scaled_norm(name, len, 1.0)
    }

    /// The same of a norm whose results are multiplied by `scale`.
    pub fn scaled_norm(&self, name: &str, len: usize, scale: f32) -> Result<B::Vector> {
        let mut data = self.floats(&format!("{name}.weight"), len)?;
        data.iter_mut().for_each(|weight| *weight = (*weight + self.config.norm_offset) * scale);
        self.backend.vector(&data)
    }

    fn tensors(&self, parts: &[(String, usize)], cols: usize) -> Result<Vec<TensorView<'_>>> {
        parts.iter().map(|(name, rows)| self.tensor(&format!("{name}.weight"), &[*rows, cols])).collect()
    }

    fn bias(&self, parts: &[(String, usize)], bias: Bias) -> Result<Option<Vec<f32>>> {
        let part = |(name, rows): &(String, usize)| self.floats(&format!("{name}.bias"), *rows);
        match bias {
            Bias::Present => Ok(Some(parts.iter().map(part).collect::<Result<Vec<_>>>()?.concat())),
            Bias::Absent => Ok(None),
        }
    }

    fn floats(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensor(name, &[len])?.to_f32())
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = self.store.get(name, shape)?;
        self.progress.advance(tensor.data.len() as u64);
        Ok(self.in_halves(name, tensor))
    }

    /// The rows of q and of k in the order of a RoPE that turns halves, whichever the model's files have.
    fn in_halves<'t>(&self, name: &str, tensor: TensorView<'t>) -> TensorView<'t> {
        let config = self.config;
        let turns = [".q_proj", ".k_proj"].iter().any(|part| name.contains(part));
        if config.interleaved_rope && turns {
            tensor.in_halves(config.head_dim, config.rope.rotary_dim)
        } else {
            tensor
        }
    }
}

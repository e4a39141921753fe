//! [`Runner`]: a model without an engine, to see its logits at every position and its hidden states.

use sconce_core::backend::cpu::CpuBackend;
use sconce_core::backend::{Backend, Batch, KvCacheShape, KvDtype, Workspace};
use sconce_core::config::{ModelConfig, WeightDtype};
use sconce_core::engine::NoProgress;
use sconce_core::models::{self, Loader, Model, RawConfig, Step};
use sconce_core::weights::WeightStore;

use crate::fixture::Fixture;

const BLOCK_SIZE: usize = 4;
const MAX_TOKENS: usize = 1024;
const BLOCKS_PER_SEQ: usize = 64;
const MAX_SEQS: usize = 8;

pub(crate) struct Runner {
    backend: CpuBackend,
    model: Box<dyn Model<CpuBackend>>,
    config: ModelConfig,
    ws: Workspace<CpuBackend>,
    kv: <CpuBackend as Backend>::KvCache,
}

impl Runner {
    pub(crate) fn new(fixture: &Fixture, dtype: WeightDtype) -> Self {
        let backend = CpuBackend::new(Some(2));
        let raw = RawConfig::from_dir(&fixture.dir).unwrap();
        let entry = models::find::<CpuBackend>(&raw).unwrap();
        let config = (entry.parse_config)(&raw).unwrap();
        let store = WeightStore::open_safetensors(&fixture.dir).unwrap();
        let loader = Loader {
            backend: &backend,
            store: &store,
            config: &config,
            dtype,
            max_model_len: BLOCK_SIZE * BLOCKS_PER_SEQ,
            progress: &NoProgress,
        };
        let model = (entry.load)(&loader).unwrap();
        let ws = Workspace::new(&backend, &config, MAX_TOKENS, MAX_TOKENS).unwrap();
        let shape = KvCacheShape {
            dtype: KvDtype::F32,
            num_layers: config.num_hidden_layers,
            num_blocks: MAX_SEQS * BLOCKS_PER_SEQ,
            block_size: BLOCK_SIZE,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let kv = backend.kv_cache(shape).unwrap();
        Self { backend, model, config, ws, kv }
    }

    /// Logits at every position of each sequence, [tokens, vocab], computed side by side in chunks of `chunk_len`.
    pub(crate) fn logits(&mut self, sequences: &[&[u32]], chunk_len: usize) -> Vec<Vec<f32>> {
        let mut logits = vec![Vec::new(); sequences.len()];
        let longest = sequences.iter().map(|s| s.len()).max().unwrap();
        for start in (0..longest).step_by(chunk_len) {
            let (mut batch, mut rows) = (Batch::default(), Vec::new());
            for (i, seq) in sequences.iter().enumerate().filter(|(_, s)| s.len() > start) {
                let end = seq.len().min(start + chunk_len);
                batch.push(&seq[start..end], &blocks_of(i), start, start, BLOCK_SIZE);
                rows.extend(std::iter::repeat_n(i, end - start));
            }
            let mut step = Step { backend: &self.backend, ws: &mut self.ws, kv: &mut self.kv, batch: &batch };
            self.model.embed(&mut step).unwrap();
            (0..self.config.num_hidden_layers).for_each(|i| self.model.layer(i, &mut step).unwrap());
            self.model.head(&mut step).unwrap();
            for (row, &i) in self.ws.logits.data().chunks_exact(self.config.vocab_size).zip(&rows) {
                logits[i].extend_from_slice(row);
            }
        }
        logits
    }

    /// The hidden state before each layer, [tokens, hidden].
    pub(crate) fn hidden_states(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        batch.push(tokens, &blocks_of(0), 0, tokens.len(), BLOCK_SIZE);
        let mut step = Step { backend: &self.backend, ws: &mut self.ws, kv: &mut self.kv, batch: &batch };
        self.model.embed(&mut step).unwrap();
        let mut hidden = vec![step.ws.residual.data().to_vec()];
        for i in 0..self.config.num_hidden_layers - 1 {
            self.model.layer(i, &mut step).unwrap();
            let sum = step.ws.residual.data().iter().zip(step.ws.delta.data()).map(|(r, d)| r + d);
            hidden.push(sum.collect());
        }
        hidden
    }
}

/// Blocks out of order, so that a table that is ignored shows.
fn blocks_of(seq: usize) -> Vec<u32> {
    let first = seq * BLOCKS_PER_SEQ;
    (first..first + BLOCKS_PER_SEQ).rev().map(|b| b as u32).collect()
}

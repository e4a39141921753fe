//! [`Runner`]: a model without an engine, to see its logits at every position and its hidden states.

use sconce_core::backend::{Backend, Batch, KvCacheShape, StepLimits, Workspace};
use sconce_core::config::{KvCacheDtype, ModelConfig, WeightDtype};
use sconce_core::engine::NoProgress;
use sconce_core::kv::{BlockPool, LayerGroups, MAX_GROUPS, SequenceBlocks};
use sconce_core::models::{self, Loader, Model, RawConfig, Step, Wanted};
use sconce_core::weights::{Adapters, StoredForm, WeightStore};

use super::compare::{argmax, divergence};
use super::fixture::Fixture;

pub(crate) const BLOCK_SIZE: usize = 8;
const MAX_TOKENS: usize = 1024;
const BLOCKS_PER_SEQ: usize = 40;
const MAX_SEQS: usize = 8;
const MAX_MODEL_LEN: usize = BLOCK_SIZE * BLOCKS_PER_SEQ;

pub(crate) struct Runner<B: Backend> {
    model: Box<dyn Model<B>>,
    config: ModelConfig,
    ws: Workspace<B>,
    kv: B::KvCache,
    device_batch: B::Batch,
    /// `None`: each sequence has blocks of its own, for all layers.
    pool: Option<BlockPool>,
    pub(crate) backend: B,
}

impl<B: Backend> Runner<B> {
    pub(crate) fn new(fixture: &Fixture, dtype: WeightDtype, backend: B) -> Self {
        let raw = RawConfig::from_dir(&fixture.dir).unwrap();
        let config = (models::find::<B>(&raw).unwrap().parse_config)(&raw).unwrap();
        let store = WeightStore::open_safetensors(&fixture.dir, StoredForm::Plain).unwrap();
        Self::of_weights(&raw, config, &store, dtype, backend)
    }

    /// A model of any weights.
    pub(crate) fn of_weights(
        raw: &RawConfig,
        config: ModelConfig,
        store: &WeightStore,
        dtype: WeightDtype,
        backend: B,
    ) -> Self {
        Self::of_adapters(raw, config, (store, &Adapters::default()), dtype, backend)
    }

    /// The same with adapters.
    pub(crate) fn of_adapters(
        raw: &RawConfig,
        config: ModelConfig,
        (store, adapters): (&WeightStore, &Adapters),
        dtype: WeightDtype,
        backend: B,
    ) -> Self {
        let loader = Loader {
            backend: &backend,
            store,
            config: &config,
            adapters,
            dtype,
            max_model_len: MAX_MODEL_LEN,
            progress: &NoProgress,
        };
        let model = (models::find::<B>(raw).unwrap().load)(&loader).unwrap();
        let ws = Workspace::new(&backend, &config, MAX_TOKENS, MAX_TOKENS).unwrap();
        let layers = LayerGroups::one(&vec![None; config.num_hidden_layers], BLOCK_SIZE);
        let (kv, device_batch) = Self::cache(&backend, &config, KvCacheDtype::Auto, &layers);
        Self { backend, model, config, ws, kv, device_batch, pool: None }
    }

    /// The same with an empty cache of another type.
    #[allow(dead_code, reason = "of those who share this file one has caches of several types")]
    pub(crate) fn with_kv(self, asked: KvCacheDtype) -> Self {
        let layers = LayerGroups::one(&vec![None; self.config.num_hidden_layers], BLOCK_SIZE);
        let (kv, device_batch) = Self::cache(&self.backend, &self.config, asked, &layers);
        Self { kv, device_batch, ..self }
    }

    /// The same where layers with a window give back what is before it, and what they give back is handed out at once.
    pub(crate) fn with_groups(self, asked: KvCacheDtype) -> Self {
        let layers = LayerGroups::choose(&self.config.sliding_window, BLOCK_SIZE, 1 << 15, 1);
        assert_eq!(layers.groups().len(), MAX_GROUPS, "a model with layers of two kinds");
        let (kv, device_batch) = Self::cache(&self.backend, &self.config, asked, &layers);
        let pool = BlockPool::new(MAX_SEQS * BLOCKS_PER_SEQ, layers.groups());
        Self { kv, device_batch, pool: Some(pool), ..self }
    }

    /// Whether some layers have a window, and others have none.
    #[allow(dead_code, reason = "of those who share this file one asks")]
    pub(crate) fn has_two_kinds_of_layers(&self) -> bool {
        let mut windows = self.config.sliding_window.iter().map(Option::is_some);
        windows.clone().any(|has| has) && !windows.all(|has| has)
    }

    /// Whether kernels can turn what turns two numbers of a half at a time.
    #[allow(dead_code, reason = "of those who share this file one asks")]
    pub(crate) fn turns_whole_words(&self) -> bool {
        self.config.rope.rotary_dim.is_multiple_of(4)
    }

    fn cache(backend: &B, config: &ModelConfig, asked: KvCacheDtype, layers: &LayerGroups) -> (B::KvCache, B::Batch) {
        let dtype = backend.kv_dtype(asked).unwrap();
        let limits = StepLimits {
            max_tokens: MAX_TOKENS,
            max_seqs: MAX_SEQS,
            max_logits: MAX_TOKENS,
            max_model_len: MAX_MODEL_LEN,
            block_size: BLOCK_SIZE,
            num_groups: layers.groups().len(),
            kv_dtype: dtype,
        };
        let shape = KvCacheShape {
            dtype,
            num_layers: layers.num_arrays(),
            num_blocks: MAX_SEQS * BLOCKS_PER_SEQ * layers.num_parts(),
            block_size: BLOCK_SIZE,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        (backend.kv_cache(shape, layers.places()).unwrap(), backend.batch(config, &limits).unwrap())
    }

    /// Logits at every position of each sequence, [tokens, vocab], computed side by side in chunks of `chunk_len`.
    pub(crate) fn logits(&mut self, sequences: &[&[u32]], chunk_len: usize) -> Vec<Vec<f32>> {
        self.logits_through(sequences, &vec![0; sequences.len()], chunk_len)
    }

    /// The same where each goes through an adapter, by its number from 1 on, or through none.
    pub(crate) fn logits_through(&mut self, sequences: &[&[u32]], adapters: &[u32], chunk_len: usize) -> Vec<Vec<f32>> {
        let mut logits = vec![Vec::new(); sequences.len()];
        let longest = sequences.iter().map(|s| s.len()).max().unwrap();
        let mut held: Vec<SequenceBlocks> = sequences.iter().map(|_| SequenceBlocks::default()).collect();
        let mut num_released = 0;
        for start in (0..longest).step_by(chunk_len) {
            let (mut batch, mut rows) = (Batch::default(), Vec::new());
            for (i, seq) in sequences.iter().enumerate().filter(|(_, s)| s.len() > start) {
                let end = seq.len().min(start + chunk_len);
                let first = batch.num_tokens();
                let tables =
                    self.pool.as_mut().map_or_else(|| vec![blocks_of(i)], |pool| reserved(pool, &mut held[i], end));
                let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
                batch.push_grouped(&seq[start..end], &tables, start, start, BLOCK_SIZE);
                batch.shift_rope_rows(first, self.first_rope_row(seq.len()));
                batch.set_adapter(first, adapters[i]);
                rows.extend(std::iter::repeat_n(i, end - start));
            }
            self.forward(&batch);
            let found = self.backend.read(&self.ws.logits, batch.logit_rows.len()).unwrap();
            for (row, &i) in found.chunks_exact(self.config.vocab_size).zip(&rows) {
                logits[i].extend_from_slice(row);
            }
            if let Some(pool) = &mut self.pool {
                held.iter_mut().for_each(|blocks| blocks.release_unseen(pool, start + chunk_len));
                num_released =
                    num_released.max(held.iter().map(|blocks| blocks.table(1).num_released()).max().unwrap());
            }
        }
        if let Some(pool) = &mut self.pool {
            held.iter_mut().for_each(|blocks| blocks.release(pool));
            assert!(num_released > 0 || longest < 2 * BLOCK_SIZE, "nothing was given back");
        }
        logits
    }

    /// Logits of each sequence's tokens behind the first blocks of the sequence that `logits` was called with, which they have
    /// in common. `is_known`: whether the batches say so.
    pub(crate) fn continued(&mut self, num_common: usize, sequences: &[&[u32]], is_known: bool) -> Vec<f32> {
        let mut logits = Vec::new();
        for step in 0..sequences[0].len() {
            let mut batch = Batch::default();
            for (i, seq) in sequences.iter().enumerate() {
                let blocks = [&blocks_of(0)[..num_common], &blocks_of(1 + i)[num_common..]].concat();
                let start = num_common * BLOCK_SIZE + step;
                batch.push(&seq[step..=step], &blocks, start, start, BLOCK_SIZE);
            }
            if is_known {
                batch.find_shared_prefixes();
                assert_eq!(batch.shared_prefixes[0].len(), 1);
            }
            self.forward(&batch);
            logits.extend(self.backend.read(&self.ws.logits, sequences.len()).unwrap());
        }
        logits
    }

    /// Checks every position of every prompt against the golden logits: the least share whose most probable token is the
    /// golden one, and the greatest mean of KL(golden || found). Returns what was found.
    pub(crate) fn check_distribution(&mut self, fixture: &Fixture, min_agreement: f64, max_divergence: f64) -> String {
        self.check_against(fixture, |i, _| fixture.logits(i), min_agreement, max_divergence)
    }

    /// The same against other logits, which `expected` gives of a prompt's number and ids.
    pub(crate) fn check_against(
        &mut self,
        fixture: &Fixture,
        mut expected: impl FnMut(usize, &[u32]) -> Vec<f32>,
        min_agreement: f64,
        max_divergence: f64,
    ) -> String {
        let (mut num_rows, mut num_equal, mut sum) = (0, 0, 0.0);
        for (i, prompt) in fixture.prompts().iter().enumerate() {
            let ids = prompt.input_ids.as_slice();
            let (found, expected) = (self.logits(&[ids], ids.len()).remove(0), expected(i, ids));
            let vocab_size = self.config.vocab_size;
            for (found, expected) in found.chunks_exact(vocab_size).zip(expected.chunks_exact(vocab_size)) {
                num_rows += 1;
                num_equal += usize::from(argmax(found) == argmax(expected));
                sum += divergence(found, expected);
            }
        }
        let (agreement, mean) = (num_equal as f64 / num_rows as f64, sum / num_rows as f64);
        assert!(agreement >= min_agreement, "{}: {num_equal} of {num_rows} top tokens agree", fixture.name);
        assert!(mean <= max_divergence, "{}: the mean divergence is {mean:.1e}", fixture.name);
        format!("{:.0} %, KL {mean:.0e}", 100.0 * agreement)
    }

    /// The row of the RoPE table by which the first token of a sequence of so many turns.
    fn first_rope_row(&self, len: usize) -> usize {
        self.config.rope.short_len(MAX_MODEL_LEN).filter(|&short_len| len > short_len).unwrap_or(0)
    }

    fn forward(&mut self, batch: &Batch) {
        let Self { backend, model, ws, kv, device_batch, .. } = self;
        backend.upload(device_batch, batch).unwrap();
        let mut step = Step { backend, ws, kv, batch: device_batch };
        backend.run(device_batch, &mut || model.forward(&mut step, Wanted::Logits)).unwrap();
    }

    /// The hidden state before each layer, [tokens, hidden].
    pub(crate) fn hidden_states(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        batch.push(tokens, &blocks_of(0), 0, tokens.len(), BLOCK_SIZE);
        batch.shift_rope_rows(0, self.first_rope_row(tokens.len()));
        let Self { backend, model, ws, kv, device_batch, config, .. } = self;
        backend.upload(device_batch, &batch).unwrap();
        let mut step = Step { backend, ws, kv, batch: device_batch };
        model.embed(&mut step).unwrap();
        let read = |x: &B::Buffer| backend.read(x, tokens.len()).unwrap();
        let mut hidden = vec![read(&step.ws.residual)];
        for i in 0..config.num_hidden_layers - 1 {
            model.layer(i, &mut step).unwrap();
            let (residual, delta) = (read(&step.ws.residual), read(&step.ws.delta));
            hidden.push(residual.iter().zip(&delta).map(|(r, d)| r + d).collect());
        }
        hidden
    }
}

/// Blocks out of order, so that a table that is ignored shows.
fn blocks_of(seq: usize) -> Vec<u32> {
    let first = seq * BLOCKS_PER_SEQ;
    (first..first + BLOCKS_PER_SEQ).rev().map(|b| b as u32).collect()
}

/// The tables of a sequence that is written up to `end`.
fn reserved(pool: &mut BlockPool, held: &mut SequenceBlocks, end: usize) -> Vec<Vec<u32>> {
    assert_eq!(held.reserve(pool, 0, end).count(), 0, "nothing is shared");
    let tables = held.tables(pool).iter();
    tables.map(|table| pool.cache_blocks(table, &mut Vec::new()).to_vec()).collect()
}

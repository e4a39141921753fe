//! [`Models`]: the model that answers, and the one that drafts for it where there is one, ready for steps.

use std::path::{Path, PathBuf};

use super::compute::{Compute, Loaded, Source};
use super::draft_model::DraftModel;
use super::files::ModelFiles;
use super::footprint::Footprint;
use super::progress::Progress;
use crate::backend::{Backend, KvDtype};
use crate::config::{EngineConfig, WeightDtype};
use crate::error::{Error, Result};
use crate::kv::LayerGroups;

/// How a model is loaded: now, and again should its device be lost.
pub(super) struct Part<B: Backend> {
    pub(super) id: String,
    path: PathBuf,
    pub(super) config: EngineConfig,
    /// The type that weights have in memory.
    dtype: WeightDtype,
    /// Opens the device.
    open: Box<dyn Fn() -> Result<B> + Send>,
}

/// A model's files and device, both open.
pub(super) struct Opened<B: Backend> {
    pub(super) files: ModelFiles,
    pub(super) backend: B,
}

/// The model that answers, and the one that drafts for it.
pub(super) struct Models<B: Backend> {
    pub(super) target: Compute<B>,
    pub(super) draft: Option<DraftModel<B>>,
}

/// What loading found out.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub(super) footprint: Footprint,
    /// Of keys and values.
    pub(super) kv_dtype: KvDtype,
    pub(super) layers: LayerGroups,
    /// The pool's blocks.
    pub(super) num_blocks: usize,
    /// Bytes of keys and values, those of the draft model among them.
    pub(super) kv_cache_bytes: usize,
    pub(super) max_model_len: usize,
    pub(super) max_num_seqs: usize,
    pub(super) max_step_tokens: usize,
}

impl Sizes {
    /// Tokens that have room in the pool. Where every layer has a window, one sequence can have more than lie there at once.
    pub(super) fn num_kv_tokens(&self) -> usize {
        self.layers.pool_tokens(self.num_blocks, self.max_step_tokens).max(self.max_model_len)
    }
}

impl<B: Backend> Part<B> {
    /// A model's id and path, and how its device is opened.
    pub(super) fn new(
        (id, path): (&str, &Path),
        config: &EngineConfig,
        dtype: WeightDtype,
        open: impl Fn() -> Result<B> + Send + 'static,
    ) -> Self {
        Self { id: id.into(), path: path.into(), config: config.clone(), dtype, open: Box::new(open) }
    }

    /// The same on a backend that is made of its own.
    pub(super) fn map<C: Backend>(self, make: impl Fn(B) -> C + Send + 'static) -> Part<C> {
        let Self { id, path, config, dtype, open } = self;
        Part { id, path, config, dtype, open: Box::new(move || Ok(make(open()?))) }
    }

    /// Opens files and device.
    pub(super) fn open(&self) -> Result<Opened<B>> {
        Ok(Opened { files: ModelFiles::open(&self.path, &self.config)?, backend: (self.open)()? })
    }

    /// [`Loaded::load`] of its files. `keeps_all`: layers with a window keep what is before it too.
    fn load(
        &self,
        (Opened { files, backend }, keeps_all): (Opened<B>, bool),
        wanted_len: Option<usize>,
        least_seqs: usize,
        progress: &dyn Progress,
    ) -> Result<Loaded<B>> {
        let ModelFiles { raw, config: model, store, adapters, .. } = files;
        let store = store?;
        let Self { id, config, dtype, .. } = self;
        let source = Source {
            id,
            raw: &raw,
            model: &model,
            store: &store,
            adapters: &adapters,
            config,
            dtype: *dtype,
            keeps_all,
        };
        Loaded::load(backend, &source, wanted_len, least_seqs, progress)
    }
}

impl<B: Backend> Models<B> {
    /// Reads the weights and takes all memory that steps need. `drafting_rows`: of a step with drafts, at most. `sizes`: those of an
    /// earlier load, which are kept.
    pub(super) fn load(
        (target, opened): (&Part<B>, Opened<B>),
        draft: Option<(&Part<B>, Opened<B>)>,
        drafting_rows: usize,
        sizes: Option<&Sizes>,
        progress: &dyn Progress,
    ) -> Result<(Self, Sizes)> {
        let vocab_size = opened.files.config.vocab_size;
        let short_len = opened.files.config.rope.short_len(usize::MAX);
        // A draft model computes a prompt when the model has: blocks that this does not see any more are needed for that.
        let keeps_all = draft.is_some();
        let loaded =
            target.load((opened, keeps_all), sizes.map(|sizes| sizes.max_model_len), drafting_rows, progress)?;
        let load_draft = |(part, opened): (&Part<B>, Opened<B>)| {
            let config = &opened.files.config;
            let (len, common) = (config.max_position_embeddings, config.vocab_size.min(vocab_size));
            let len = len.min(loaded.wanted_len);
            // Sequences are long where the model's are: where its own are elsewhere, the draft model has short ones alone.
            let own_short_len = config.rope.short_len(len);
            let len = own_short_len.filter(|_| own_short_len != short_len).unwrap_or(len);
            Ok::<_, Error>((part.load((opened, keeps_all), Some(len), drafting_rows, progress)?, common))
        };
        let draft = draft.map(load_draft).transpose()?;
        let all = || draft.iter().map(|(draft, _)| draft).chain([&loaded]);
        // After all else: the pool takes what is left. Blocks of the draft model have the same numbers.
        let sizes = match sizes {
            Some(sizes) => sizes.clone(),
            None => {
                let pool = loaded.pool(&target.config, all().map(Loaded::block_bytes).sum())?;
                let kv_bytes = |of: &Loaded<B>| of.backend.kv_cache_bytes(&of.kv_shape(pool.num_blocks));
                Sizes {
                    footprint: loaded.footprint.clone(),
                    kv_dtype: loaded.kv_shape(0).dtype,
                    layers: loaded.layers.clone(),
                    num_blocks: pool.num_blocks,
                    kv_cache_bytes: all().map(kv_bytes).sum(),
                    max_model_len: pool.max_model_len,
                    max_num_seqs: loaded.max_num_seqs,
                    max_step_tokens: loaded.max_step_tokens,
                }
            }
        };
        let num_blocks = sizes.num_blocks;
        let draft = draft.map(|(loaded, common)| DraftModel::new(loaded, num_blocks, common)).transpose()?;
        Ok((Self { target: loaded.with_blocks(num_blocks)?, draft }, sizes))
    }

    /// Whether a device does not come back from an error.
    pub(super) fn is_lost(&self) -> bool {
        self.target.backend.is_lost() || self.draft.as_ref().is_some_and(DraftModel::is_lost)
    }
}

//! [`Tuned`]: for each shape of matrix, and numbers of tokens up to a step's, the algorithm that was the fastest in a trial on the
//! device itself. A trial takes some tenths of a second at load, so that nothing is kept from one process to the next; and as
//! algorithms differ in time alone, what it finds changes no result.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use super::algorithm::{Algorithm, GatedAlgorithm, Product};
use super::cuda::{self, Kernel, MAX_ROWS, Options};
use crate::backend::StepLimits;
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::storage::{Buffer, Form, Matrix, Memory, QuantPart};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::{gate_act_mul, random};

/// A matrix of so many bytes is more than any second cache has.
const FLUSHED_BYTES: usize = 128 << 20;
const FLUSHED_COLS: usize = 4096;
/// More tokens are multiplied as so many are.
const MAX_TOKENS: usize = 2048;
/// One in so many bytes of the free memory is the most that a trial takes for inputs and outputs.
const MEMORY_SHARE: usize = 2;

/// What trials have found.
#[derive(Default)]
pub(super) struct Tuned {
    entries: Vec<Entry>,
}

/// Of matrices that are alike.
struct Entry {
    shape: [usize; 2],
    form: FormKind,
    /// For up to so many tokens, fewest first.
    products: Vec<(usize, Algorithm)>,
    gated: Vec<(usize, GatedAlgorithm)>,
}

/// A matrix's [`Form`] without its memory.
#[derive(PartialEq, Eq)]
enum FormKind {
    Floats,
    Scratch,
    Fp8,
    Blocks(Vec<QuantPart>),
}

impl FormKind {
    fn of(weight: &Matrix) -> Self {
        match &weight.form {
            Form::Floats => Self::Floats,
            Form::Scratch => Self::Scratch,
            Form::Fp8(_) => Self::Fp8,
            Form::Blocks(parts) => Self::Blocks(parts.clone()),
        }
    }

    fn is_of(&self, weight: &Matrix) -> bool {
        match (self, &weight.form) {
            (Self::Floats, Form::Floats) | (Self::Scratch, Form::Scratch) | (Self::Fp8, Form::Fp8(_)) => true,
            (Self::Blocks(parts), Form::Blocks(others)) => parts == others,
            _ => false,
        }
    }
}

impl Entry {
    fn is_of(&self, weight: &Matrix) -> bool {
        self.shape == [weight.rows, weight.cols] && self.form.is_of(weight)
    }
}

/// Whether what is found of one matrix is good for another.
pub(super) fn are_alike(one: &Matrix, other: &Matrix) -> bool {
    (one.rows, one.cols) == (other.rows, other.cols) && FormKind::of(one).is_of(other)
}

impl Tuned {
    /// Tries all algorithms with the matrices, and with what `options` expands them to, of as many tokens as steps have at most; the
    /// head, with `vocab_size` rows, has as many as there are logits. Finds nothing on a device that takes no times.
    ///
    /// Errors: the device's, as when it has no memory left.
    pub(super) fn new(
        device: &Arc<dyn Device>,
        weights: &[Matrix],
        vocab_size: usize,
        limits: &StepLimits,
        options: Options<'_>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let mut tuned = Self::default();
        let mut flush = Flush::new(device)?;
        // What weights are expanded to first: how that is multiplied is part of their own trials.
        let expansions = options.expansion.map_or(&[][..], |expansion| expansion.matrices());
        for weight in expansions.iter().chain(weights) {
            if tuned.of(weight).is_some() {
                continue;
            }
            let is_head = weight.rows == vocab_size;
            let most = if is_head { limits.max_logits } else { limits.max_tokens };
            let trial = Trial::new(device, weight, is_head, most.min(MAX_TOKENS), &mut flush)?;
            let Some(entry) = trial.run(Options { tuned: Some(&tuned), ..options })? else { break };
            tuned.entries.push(entry);
        }
        tracing::debug!(
            "algorithms of {} matrices tried in {:.2} s",
            tuned.entries.len(),
            begun.elapsed().as_secs_f64()
        );
        Ok(tuned)
    }

    /// `None`: not tried.
    pub(super) fn product(&self, weight: &Matrix, num_tokens: usize) -> Option<Algorithm> {
        self.of(weight).and_then(|entry| of_tokens(&entry.products, num_tokens))
    }

    /// The same for gate, up and their product.
    pub(super) fn gated(&self, weight: &Matrix, num_tokens: usize) -> Option<GatedAlgorithm> {
        self.of(weight).and_then(|entry| of_tokens(&entry.gated, num_tokens))
    }

    fn of(&self, weight: &Matrix) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.is_of(weight))
    }
}

/// More tokens than were tried are multiplied as the most that were, unless those may be few enough for kernels that have room for
/// no more.
fn of_tokens<T: Copy>(found: &[(usize, T)], num_tokens: usize) -> Option<T> {
    let idx = found.partition_point(|(most, _)| *most < num_tokens);
    let last = found.last().filter(|(most, _)| *most > MAX_ROWS);
    found.get(idx).or(last).map(|(_, algorithm)| *algorithm)
}

/// The numbers of tokens that are tried: those beyond which a kernel has more tiles or no room, as long as that makes a difference.
fn tried_tokens(most: usize) -> Vec<usize> {
    let few = [2, 8, 16, 32, 64];
    let more = (128..=512).step_by(64).chain((640..=1024).step_by(128)).chain((1280..=MAX_TOKENS).step_by(256));
    let mut tried: Vec<usize> = few.into_iter().chain(more).take_while(|&tokens| tokens < most).collect();
    tried.push(most);
    tried
}

/// Multiplies with a large matrix before each launch that is timed: as in a step, weights come from memory then, the second cache has
/// nothing that must be written back, and the kernel before lets this one begin when its own weights are there.
struct Flush {
    weight: Matrix,
    x: Buffer,
    out: Buffer,
}

impl Flush {
    fn new(device: &Arc<dyn Device>) -> Result<Self> {
        const ELEM: ElemType = ElemType::Bf16;
        let shape = [FLUSHED_BYTES / ELEM.bytes() / FLUSHED_COLS, FLUSHED_COLS];
        let weight = Matrix::new(Memory::new(device, FLUSHED_BYTES)?, shape, ELEM, Form::Scratch, None)?;
        weight.memory.clear()?;
        let (mut x, mut out) = (Buffer::new(device, 1, shape[1], ELEM)?, Buffer::new(device, 1, shape[0], ELEM)?);
        random::fill(&**device, x.ptr(), shape[1], ELEM, 1)?;
        x.set_rows(1);
        out.set_rows(1);
        Ok(Self { weight, x, out })
    }

    fn run(&mut self, device: &dyn Device) -> Result<()> {
        cuda::launch(device, Kernel::Rows(8), &mut self.out, &self.x, &self.weight)
    }
}

/// One matrix's trials.
struct Trial<'a> {
    device: &'a dyn Device,
    weight: &'a Matrix,
    most: usize,
    flush: &'a mut Flush,
    x: Buffer,
    out: Buffer,
    /// Of gate, up and their product, where the matrix may be theirs.
    gated: Option<Buffer>,
}

impl<'a> Trial<'a> {
    fn new(
        device: &'a Arc<dyn Device>,
        weight: &'a Matrix,
        is_head: bool,
        most: usize,
        flush: &'a mut Flush,
    ) -> Result<Self> {
        let elem = weight.elem;
        let token_bytes = (weight.cols + 2 * weight.rows) * ElemType::F32.bytes();
        let most = most.min(device.free_memory()? / MEMORY_SHARE / token_bytes).max(1);
        let x = Buffer::new(device, most, weight.cols, elem)?;
        // With zeros a device takes less power, and is faster.
        random::fill(&**device, x.ptr(), most * weight.cols, elem, 1)?;
        if weight.is_scratch() {
            random::fill(&**device, weight.memory.ptr(), weight.rows * weight.cols, elem, 2)?;
        }
        let out_elem = if is_head { ElemType::F32 } else { elem };
        let out = Buffer::new(device, most, weight.rows, out_elem)?;
        let may_be_gated = !is_head && weight.rows.is_multiple_of(2);
        let gated = may_be_gated.then(|| Buffer::new(device, most, weight.rows / 2, elem)).transpose()?;
        Ok(Self { device: &**device, weight, most, flush, x, out, gated })
    }

    /// `None`: the device takes no times.
    fn run(mut self, options: Options<'_>) -> Result<Option<Entry>> {
        let weight = self.weight;
        let shape = [weight.rows, weight.cols];
        let mut entry = Entry { shape, form: FormKind::of(weight), products: Vec::new(), gated: Vec::new() };
        for num_tokens in tried_tokens(self.most) {
            self.x.set_rows(num_tokens);
            let product = Product { device: self.device, x: &self.x, weight, options };
            let candidates = Algorithm::candidates(product);
            let gated_candidates = GatedAlgorithm::candidates(product);
            let best = match candidates[..] {
                [only] => Some(only),
                _ => self.fastest_product(&candidates, options)?,
            };
            let Some(best) = best else { return Ok(None) };
            tracing::debug!("{shape:?}, {num_tokens} tokens: {}", best.name(weight));
            entry.products.push((num_tokens, best));
            // Where there is no other, it is two launches without a trial.
            if gated_candidates.len() < 2 {
                entry.gated.push((num_tokens, GatedAlgorithm::Apart));
            } else if let Some(best) = self.fastest_gated(&gated_candidates, best, options)? {
                tracing::debug!("{shape:?}, {num_tokens} tokens, gated: {best:?}");
                entry.gated.push((num_tokens, best));
            }
        }
        Ok(Some(entry))
    }

    fn fastest_product(&mut self, candidates: &[Algorithm], options: Options<'_>) -> Result<Option<Algorithm>> {
        let Self { device, weight, flush, x, out, .. } = self;
        out.set_rows(x.rows());
        let product = Product { device: *device, x, weight, options };
        let mut work = |idx: usize| candidates[idx].launch(product, out);
        Ok(device.fastest(candidates.len(), &mut || flush.run(*device), &mut work)?.map(|idx| candidates[idx]))
    }

    /// `apart`: how gate and up are multiplied in two launches.
    fn fastest_gated(
        &mut self,
        candidates: &[GatedAlgorithm],
        apart: Algorithm,
        options: Options<'_>,
    ) -> Result<Option<GatedAlgorithm>> {
        const ACT: Activation = Activation::Silu;
        let Self { device, weight, flush, x, out, gated, .. } = self;
        let Some(gated) = gated else { return Ok(None) };
        gated.set_rows(x.rows());
        out.set_rows(x.rows());
        let product = Product { device: *device, x, weight, options };
        let mut work = |idx: usize| {
            if candidates[idx].launch(product, gated, ACT)? {
                return Ok(());
            }
            apart.launch(product, out)?;
            gate_act_mul::cuda(*device, gated, out, ACT)
        };
        Ok(device.fastest(candidates.len(), &mut || flush.run(*device), &mut work)?.map(|idx| candidates[idx]))
    }
}

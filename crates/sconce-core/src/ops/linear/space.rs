//! [`LinearSpace`]: what products on a device need beside their arguments.

use std::sync::Arc;

use super::cuda::{self, Options, Products};
use super::cuda_quant::Expansion;
use super::hopper::Codes;
use super::tuned::{Tuned, are_alike};
use crate::backend::StepLimits;
use crate::backend::cuda::device::Device;
use crate::backend::cuda::storage::{Buffer, Matrix};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::{gate_act_mul, gather_columns};

/// What products on a device need beside their arguments: it sees all matrices while they are loaded, and is prepared before the first
/// step.
pub(crate) struct LinearSpace {
    device: Arc<dyn Device>,
    products: Products,
    /// One matrix of each kind, until it is prepared.
    samples: Vec<Matrix>,
    expansion: Option<Expansion>,
    codes: Option<Codes>,
    tuned: Option<Tuned>,
    /// Inputs of matrices whose columns are not in order, one for each number of columns.
    ordered: Vec<Buffer>,
}

/// How products are to be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) products: Products,
    /// Whether kernels for Hopper may be used with [`Products::Library`], for inputs in e4m3.
    pub(crate) takes_codes: bool,
    /// Whether algorithms are tried.
    pub(crate) tunes: bool,
}

impl LinearSpace {
    pub(crate) fn new(device: &Arc<dyn Device>) -> Self {
        Self {
            device: Arc::clone(device),
            products: Products::Portable,
            samples: Vec::new(),
            expansion: None,
            codes: None,
            tuned: None,
            ordered: Vec::new(),
        }
    }

    /// Takes note of a matrix that products are to be taken with.
    pub(crate) fn add(&mut self, weight: &Matrix) {
        let is_ordered = |matrix: &Matrix| matrix.column_order.is_some();
        let is_known = |other: &Matrix| are_alike(other, weight) && is_ordered(other) == is_ordered(weight);
        if !self.samples.iter().any(is_known) {
            self.samples.push(weight.clone());
        }
    }

    /// Takes the memory that steps within `limits` need, and tries which algorithms are the fastest for all matrices, if that is wanted.
    /// What goes wrong in a trial costs speed and no more, but where the device is lost.
    ///
    /// Errors: the device's.
    pub(crate) fn prepare(&mut self, settings: Settings, vocab_size: usize, limits: &StepLimits) -> Result<()> {
        let Settings { products, takes_codes, tunes } = settings;
        self.products = products;
        let device = &self.device;
        let samples = std::mem::take(&mut self.samples);
        let shapes = samples.iter().filter(|weight| weight.is_quantized()).map(|weight| [weight.rows, weight.cols]);
        self.expansion = Expansion::needed(device, shapes.collect(), vocab_size, limits)?;
        let max_rows = limits.max_tokens.max(limits.max_logits);
        if products == Products::Library && takes_codes {
            let cols = samples.iter().filter(|weight| weight.is_fp8()).map(|weight| weight.cols).collect();
            self.codes = Codes::new(device, max_rows, cols)?;
        }
        for weight in samples.iter().filter(|weight| weight.column_order.is_some()) {
            if self.ordered.iter().all(|ordered| ordered.cols() != weight.cols) {
                self.ordered.push(Buffer::new(device, max_rows, weight.cols, weight.elem)?);
            }
        }
        if tunes {
            let (expansion, codes) = (self.expansion.as_ref(), self.codes.as_ref());
            let options = Options { products, expansion, codes, tuned: None };
            match Tuned::new(device, &samples, vocab_size, limits, options) {
                Ok(tuned) => self.tuned = Some(tuned),
                Err(error) if device.is_lost() => return Err(error),
                Err(error) => tracing::warn!("algorithms of products were not tried, estimates are used: {error}"),
            }
        }
        Ok(())
    }

    /// out = x . weight^T + bias.
    pub(crate) fn linear(&mut self, out: &mut Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
        let (device, x, options) = self.inputs(x, weight)?;
        cuda::cuda(device, out, x, weight, options)
    }

    /// out = act(gate) * up; `gate_up`: room for both.
    pub(crate) fn gated_linear(
        &mut self,
        out: &mut Buffer,
        gate_up: &mut Buffer,
        x: &Buffer,
        weight: &Matrix,
        act: Activation,
    ) -> Result<()> {
        let (device, x, options) = self.inputs(x, weight)?;
        if cuda::gated(device, out, x, weight, act, options)? {
            return Ok(());
        }
        cuda::cuda(device, gate_up, x, weight, options)?;
        gate_act_mul::cuda(device, out, gate_up, act)
    }

    /// The device, the inputs of `weight` in the order of its columns, and what else products need.
    fn inputs<'a>(&'a mut self, x: &'a Buffer, weight: &Matrix) -> Result<(&'a dyn Device, &'a Buffer, Options<'a>)> {
        let device = &*self.device;
        let options = Options {
            products: self.products,
            expansion: self.expansion.as_ref(),
            codes: self.codes.as_ref(),
            tuned: self.tuned.as_ref(),
        };
        let Some(order) = &weight.column_order else { return Ok((device, x, options)) };
        let ordered = self.ordered.iter_mut().find(|ordered| ordered.cols() == weight.cols);
        let ordered = ordered.expect("invariant: it is prepared before the first step");
        gather_columns::cuda(device, ordered, x, order)?;
        Ok((device, ordered, options))
    }
}

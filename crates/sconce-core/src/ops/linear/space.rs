//! [`LinearSpace`]: what products on a device need beside their arguments.

use std::sync::Arc;

use super::cuda::{self, Options, Products};
use super::cuda_quant::Expansion;
use super::tuned::{Tuned, are_alike};
use crate::backend::StepLimits;
use crate::backend::cuda::device::Device;
use crate::backend::cuda::storage::{Buffer, Matrix};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::{gate_act_mul, gather_columns};

/// What products on a device need beside their arguments: it sees all matrices while they are loaded, and is prepared before the first
/// step.
#[derive(Default)]
pub(crate) struct LinearSpace {
    /// One matrix of each kind, until it is prepared.
    samples: Vec<Matrix>,
    expansion: Option<Expansion>,
    tuned: Option<Tuned>,
    /// Inputs of matrices whose columns are not in order, one for each number of columns.
    ordered: Vec<Buffer>,
}

impl LinearSpace {
    /// Takes note of a matrix that products are to be taken with.
    pub(crate) fn add(&mut self, weight: &Matrix) {
        let is_ordered = |matrix: &Matrix| matrix.column_order.is_some();
        let is_known = |other: &Matrix| are_alike(other, weight) && is_ordered(other) == is_ordered(weight);
        if !self.samples.iter().any(is_known) {
            self.samples.push(weight.clone());
        }
    }

    /// Takes the memory that steps within `limits` need, and with `tunes` tries which algorithms are the fastest for all matrices. What
    /// goes wrong in a trial costs speed and no more, but where the device is lost.
    ///
    /// Errors: the device's.
    pub(crate) fn prepare(
        &mut self,
        device: &Arc<dyn Device>,
        products: Products,
        vocab_size: usize,
        limits: &StepLimits,
        tunes: bool,
    ) -> Result<()> {
        let samples = std::mem::take(&mut self.samples);
        let shapes = samples.iter().filter(|weight| weight.is_quantized()).map(|weight| [weight.rows, weight.cols]);
        self.expansion = Expansion::needed(device, shapes.collect(), vocab_size, limits)?;
        for weight in samples.iter().filter(|weight| weight.column_order.is_some()) {
            if self.ordered.iter().all(|ordered| ordered.cols() != weight.cols) {
                let max_rows = limits.max_tokens.max(limits.max_logits);
                self.ordered.push(Buffer::new(device, max_rows, weight.cols, weight.elem)?);
            }
        }
        if tunes {
            let options = Options { expansion: self.expansion.as_ref(), ..Options::new(products) };
            match Tuned::new(device, &samples, vocab_size, limits, options) {
                Ok(tuned) => self.tuned = Some(tuned),
                Err(error) if device.is_lost() => return Err(error),
                Err(error) => tracing::warn!("algorithms of products were not tried, estimates are used: {error}"),
            }
        }
        Ok(())
    }

    /// out = x . weight^T + bias.
    pub(crate) fn linear(
        &mut self,
        device: &dyn Device,
        products: Products,
        out: &mut Buffer,
        x: &Buffer,
        weight: &Matrix,
    ) -> Result<()> {
        let (x, options) = self.inputs(device, products, x, weight)?;
        cuda::cuda(device, out, x, weight, options)
    }

    /// out = act(gate) * up; `gate_up`: room for both.
    #[allow(clippy::too_many_arguments, reason = "one more than the operation has")]
    pub(crate) fn gated_linear(
        &mut self,
        device: &dyn Device,
        products: Products,
        out: &mut Buffer,
        gate_up: &mut Buffer,
        x: &Buffer,
        weight: &Matrix,
        act: Activation,
    ) -> Result<()> {
        let (x, options) = self.inputs(device, products, x, weight)?;
        if cuda::gated(device, out, x, weight, act, options)? {
            return Ok(());
        }
        cuda::cuda(device, gate_up, x, weight, options)?;
        gate_act_mul::cuda(device, out, gate_up, act)
    }

    /// The inputs of `weight` in the order of its columns, and what else products need.
    fn inputs<'a>(
        &'a mut self,
        device: &dyn Device,
        products: Products,
        x: &'a Buffer,
        weight: &Matrix,
    ) -> Result<(&'a Buffer, Options<'a>)> {
        let options = Options { products, expansion: self.expansion.as_ref(), tuned: self.tuned.as_ref() };
        let Some(order) = &weight.column_order else { return Ok((x, options)) };
        let ordered = self.ordered.iter_mut().find(|ordered| ordered.cols() == weight.cols);
        let ordered = ordered.expect("invariant: it is prepared before the first step");
        gather_columns::cuda(device, ordered, x, order)?;
        Ok((ordered, options))
    }
}

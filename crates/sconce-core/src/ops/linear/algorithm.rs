//! [`Algorithm`] and [`GatedAlgorithm`]: by which kernels a device takes a product. All that suit give the same bits, but for those that
//! are only taken where somebody asked for speed, so that which it is is a matter of time alone: what a trial has found
//! ([`Tuned`](super::tuned::Tuned)), or an estimate.

use super::cuda::{Kernel as Portable, MAX_ROWS, Options, Products, by_library, check, launch, launch_gated_rows};
use super::cuda_quant::{self, Expansion, MIN_EXPANDED_TOKENS};
use super::hopper;
use crate::backend::cuda::device::Device;
use crate::backend::cuda::storage::{Buffer, Matrix};
use crate::config::Activation;
use crate::error::Result;

/// From so many tokens on it is tried whether blocks are better expanded first.
const MIN_TRIED_EXPANSION: usize = 128;
/// Beyond so many tokens portable kernels are not tried where others are: they have been slower by far from fewer on.
const MAX_TRIED_PORTABLE: usize = 256;
/// A kernel whose estimate is so many times the least is not tried.
const MAX_TRIED_COST: usize = 3;

/// A product that is to be taken: x . weight^T + bias.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) x: &'a Buffer,
    pub(super) weight: &'a Matrix,
    pub(super) options: Options<'a>,
}

impl<'a> Product<'a> {
    /// What blocks become in 16 bits, still to be filled; `None` of other weights, and where there is no room for it.
    fn expanded(&self) -> Option<(&'a Expansion, Matrix)> {
        let expansion = self.options.expansion.filter(|_| self.weight.is_quantized())?;
        expansion.matrix(self.weight).map(|matrix| (expansion, matrix))
    }

    /// The call with inputs in e4m3, where there is room for them.
    fn of_codes(&self, kernel: hopper::Kernel) -> Option<hopper::Call<'a>> {
        let Self { device, x, weight, options } = *self;
        hopper::Call::of_codes(device, kernel, x, weight, options.codes?)
    }
}

/// How a product is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// By a kernel for all devices, of weights in 16 bits or e4m3.
    Portable(Portable),
    /// By one for Hopper, of the same.
    Hopper(hopper::Kernel),
    /// By one for block formats.
    Blocks(cuda_quant::Kernel),
    /// Blocks are expanded to 16 bits first; what those are multiplied by is a choice of its own.
    Expanded,
    /// By one for Hopper, of weights in e4m3 and inputs that are rounded to it. Its bits are its own.
    Codes(hopper::Kernel),
    /// By the device's library. Its bits are its own.
    Library,
}

impl Algorithm {
    /// What a trial has found for the product, or what seems best.
    pub(super) fn of(product: Product<'_>) -> Self {
        let found = product.options.tuned.and_then(|tuned| tuned.product(product.weight, product.x.rows()));
        found.unwrap_or_else(|| Self::estimated(product))
    }

    fn estimated(product: Product<'_>) -> Self {
        let Product { device, x, weight, options } = product;
        let num_tokens = x.rows();
        if weight.is_quantized() {
            let is_expanded = num_tokens >= MIN_EXPANDED_TOKENS && product.expanded().is_some();
            return if is_expanded { Self::Expanded } else { Self::Blocks(cuda_quant::Kernel::choose(num_tokens)) };
        }
        if num_tokens > MAX_ROWS {
            if options.products == Products::Library && !weight.is_fp8() {
                return Self::Library;
            }
            let kernel = hopper::Kernel::cheapest_of_codes(device, num_tokens, weight);
            if product.of_codes(kernel).is_some() {
                return Self::Codes(kernel);
            }
            let kernel = hopper::Kernel::cheapest(device, num_tokens, weight);
            if options.products == Products::Hopper && hopper::Call::new(device, kernel, x, weight).is_some() {
                return Self::Hopper(kernel);
            }
        }
        Self::Portable(Portable::choose(device, num_tokens, weight))
    }

    /// All with the bits of what seems best that are worth a trial, that first; of inputs in e4m3, all of those.
    pub(super) fn candidates(product: Product<'_>) -> Vec<Self> {
        let Product { device, x, weight, options } = product;
        let num_tokens = x.rows();
        let (best, mut found) = (Self::estimated(product), Vec::new());
        if best == Self::Library {
            return vec![best];
        }
        if matches!(best, Self::Codes(_)) {
            let suits = |kernel: &hopper::Kernel| product.of_codes(*kernel).is_some();
            found.extend(hopper::Kernel::all_of_codes().filter(suits).map(Self::Codes));
        } else if weight.is_quantized() {
            found.extend(cuda_quant::Kernel::all(num_tokens).map(Self::Blocks));
            let is_expanded = num_tokens >= MIN_TRIED_EXPANSION && product.expanded().is_some();
            found.extend(is_expanded.then_some(Self::Expanded));
        } else {
            if options.products == Products::Hopper {
                let suits = |kernel: &hopper::Kernel| hopper::Call::new(device, *kernel, x, weight).is_some();
                let cost = |kernel: &hopper::Kernel| kernel.cost(device, num_tokens, weight);
                let kernels: Vec<_> = hopper::Kernel::all().filter(suits).collect();
                let most = MAX_TRIED_COST * kernels.iter().map(cost).min().unwrap_or(0);
                found.extend(kernels.into_iter().filter(|kernel| cost(kernel) <= most).map(Self::Hopper));
            }
            if num_tokens <= MAX_TRIED_PORTABLE || found.is_empty() {
                found.extend(Portable::all(device, num_tokens, weight).map(Self::Portable));
            }
        }
        found.retain(|found| *found != best);
        found.insert(0, best);
        found
    }

    /// The product to `out`, whose rows are set.
    pub(super) fn launch(self, product: Product<'_>, out: &mut Buffer) -> Result<()> {
        let Product { device, x, weight, .. } = product;
        match self {
            Self::Portable(kernel) => launch(device, kernel, out, x, weight),
            Self::Library => by_library(device, out, x, weight),
            Self::Blocks(kernel) => {
                check(out, x, weight);
                cuda_quant::launch(device, kernel, out, x, weight)
            }
            Self::Hopper(kernel) => match hopper::Call::new(device, kernel, x, weight) {
                Some(call) => call.launch(out),
                None => launch(device, Portable::choose(device, x.rows(), weight), out, x, weight),
            },
            Self::Codes(kernel) => match product.of_codes(kernel) {
                Some(call) => call.launch(out),
                None => launch(device, Portable::choose(device, x.rows(), weight), out, x, weight),
            },
            Self::Expanded => {
                let (expansion, expanded) = product.expanded().expect(ROOM);
                expansion.fill(device, weight)?;
                let product = Product { weight: &expanded, ..product };
                Self::of(product).launch(product, out)
            }
        }
    }

    /// The name of its kernel.
    pub(super) fn name(self, weight: &Matrix) -> &'static str {
        match (self, weight.quant_parts()) {
            (Self::Portable(kernel), _) => kernel.name(weight),
            (Self::Hopper(kernel), _) => kernel.name(weight.elem),
            (Self::Codes(kernel), _) => kernel.name_of_codes(weight.elem).unwrap_or("none"),
            (Self::Blocks(kernel), [part, ..]) => kernel.name(part.dtype),
            (Self::Blocks(_) | Self::Expanded, _) => "expanded",
            (Self::Library, _) => "library",
        }
    }
}

/// How out = act(gate) * up is computed, where rows of x . weight^T + bias are gate's, then up's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatedAlgorithm {
    /// By an [`Algorithm`], and another launch.
    Apart,
    /// By the kernels for few rows.
    Rows,
    /// By one for Hopper.
    Hopper(hopper::Kernel),
    /// By one for Hopper, with inputs that are rounded to e4m3.
    Codes(hopper::Kernel),
    /// Blocks are expanded to 16 bits first.
    Expanded,
}

impl GatedAlgorithm {
    /// What a trial has found, or what seems best.
    pub(super) fn of(product: Product<'_>) -> Self {
        let found = product.options.tuned.and_then(|tuned| tuned.gated(product.weight, product.x.rows()));
        found.unwrap_or_else(|| Self::estimated(product))
    }

    fn estimated(product: Product<'_>) -> Self {
        let Product { device, x, weight, options } = product;
        if Self::Rows.suits(product) {
            return Self::Rows;
        }
        let num_tokens = x.rows();
        let cheapest = |apart| hopper::Kernel::cheapest_gated(device, num_tokens, weight, apart);
        let found = match options.products {
            _ if num_tokens <= MAX_ROWS => None,
            Products::Portable => None,
            Products::Library => {
                cheapest(hopper::Kernel::cheapest_of_codes(device, num_tokens, weight)).map(Self::Codes)
            }
            Products::Hopper if weight.is_quantized() => (num_tokens >= MIN_EXPANDED_TOKENS).then_some(Self::Expanded),
            Products::Hopper => cheapest(hopper::Kernel::cheapest(device, num_tokens, weight)).map(Self::Hopper),
        };
        found.filter(|found| found.suits(product)).unwrap_or(Self::Apart)
    }

    /// All that are worth a trial, what seems best first.
    pub(super) fn candidates(product: Product<'_>) -> Vec<Self> {
        let mut found = vec![Self::Apart, Self::Rows];
        if product.x.rows() > MAX_ROWS {
            found.extend(hopper::Kernel::all_gated().map(Self::Codes));
        }
        if product.options.products == Products::Hopper {
            found.extend(hopper::Kernel::all_gated().map(Self::Hopper));
            found.extend((product.x.rows() >= MIN_TRIED_EXPANSION).then_some(Self::Expanded));
        }
        found.retain(|found| found.suits(product));
        let best = Self::estimated(product);
        found.sort_by_key(|found| *found != best);
        found
    }

    fn suits(self, product: Product<'_>) -> bool {
        let Product { device, x, weight, .. } = product;
        match self {
            Self::Apart => true,
            Self::Rows => (1..=MAX_ROWS).contains(&x.rows()) && Portable::has_gated_rows(weight),
            Self::Hopper(kernel) => hopper::Call::new(device, kernel, x, weight).is_some(),
            Self::Codes(kernel) => product.of_codes(kernel).is_some(),
            Self::Expanded => product
                .expanded()
                .is_some_and(|(_, expanded)| Self::of(Product { weight: &expanded, ..product }) != Self::Apart),
        }
    }

    /// Whether it was done; with [`GatedAlgorithm::Apart`], or where inputs do not suit, it is not. The rows of `out` are set.
    pub(super) fn launch(self, product: Product<'_>, out: &mut Buffer, act: Activation) -> Result<bool> {
        let Product { device, x, weight, .. } = product;
        match self {
            Self::Apart => return Ok(false),
            Self::Rows => launch_gated_rows(device, out, x, weight, act)?,
            Self::Hopper(kernel) => match hopper::Call::new(device, kernel, x, weight) {
                Some(call) => call.launch_gated(out, act)?,
                None => return Ok(false),
            },
            Self::Codes(kernel) => match product.of_codes(kernel) {
                Some(call) => call.launch_gated(out, act)?,
                None => return Ok(false),
            },
            Self::Expanded => {
                let (expansion, expanded) = product.expanded().expect(ROOM);
                let product = Product { weight: &expanded, ..product };
                let inner = Self::of(product);
                if inner == Self::Apart {
                    return Ok(false);
                }
                expansion.fill(device, weight)?;
                return inner.launch(product, out, act);
            }
        }
        Ok(true)
    }
}

const ROOM: &str = "invariant: weights are expanded where there is room for them";

//! [`time_products`]: what each kernel that could multiply takes, to see whether the one that is chosen is the fastest.

use std::sync::Arc;

use super::algorithm::{Algorithm, Product};
use super::cuda::{self, Options, Products};
use super::cuda_quant::{self, Expansion, kernel_of};
use super::hopper::{self, Codes};
use super::tuned::Tuned;
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::storage::{Buffer, Matrix};
use crate::backend::cuda::weights;
use crate::backend::{KvDtype, StepLimits};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::random;
use crate::ops::timing::time;
use crate::weights::{Dtype, RandomWeights, TensorView, quant};

/// One kernel's time for one product.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductTime {
    /// Rows and columns of the weights.
    pub shape: [usize; 2],
    /// Rows of the inputs.
    pub num_tokens: usize,
    /// The kernel's name, or `library`.
    pub kernel: &'static str,
    /// Of one launch among many.
    pub microseconds: f64,
    /// Whether it is what a step of so many tokens would use.
    pub is_chosen: bool,
}

/// Weights are as many as the second cache does not hold, so that they come from memory as in a model.
const WEIGHT_BYTES: usize = 256 << 20;

/// `device`'s kernels for bf16 activations and random weights [rows, cols], stored as `dtype`: bf16, e4m3, or a block format that stays
/// as it is, of which it is also told what expanding takes.
pub(crate) fn time_products(
    device: &Arc<dyn Device>,
    shape: [usize; 2],
    dtype: Dtype,
    tokens: &[usize],
) -> Result<Vec<ProductTime>> {
    let num_weights = (WEIGHT_BYTES / (shape[0] * shape[1])).clamp(1, 64);
    let weight = |seed| random_matrix(device, shape, dtype, seed);
    let matrices = (0..num_weights as u64).map(weight).collect::<Result<Vec<Matrix>>>()?;
    let products = if hopper::adds_alike(device, ELEM)? { Products::Hopper } else { Products::Portable };
    let expansion = matrices[0].is_quantized().then(|| Expansion::new(device, &[shape])).transpose()?;
    let options = Options { expansion: expansion.as_ref(), ..Options::new(products) };
    let most = tokens.iter().copied().max().unwrap_or(0);
    let limits = StepLimits {
        max_tokens: most,
        max_seqs: most,
        max_logits: most,
        max_model_len: most,
        block_size: most,
        num_groups: 1,
        kv_dtype: KvDtype::Bf16,
    };
    let tuned = Tuned::new(device, &matrices[..1], 0, &limits, options)?;
    let options = Options { tuned: Some(&tuned), ..options };
    let times = tokens.iter().map(|&num_tokens| time_tokens(device, dtype, &matrices, options, num_tokens));
    Ok(times.collect::<Result<Vec<_>>>()?.concat())
}

const ELEM: ElemType = ElemType::Bf16;

fn random_matrix(device: &Arc<dyn Device>, shape: [usize; 2], dtype: Dtype, seed: u64) -> Result<Matrix> {
    if !dtype.is_quantized() {
        return weights::random(device, shape, None, ELEM, RandomWeights { seed, dtype });
    }
    let num_blocks = shape[0] * shape[1] / dtype.block_len();
    let data = quant::random_blocks(dtype, num_blocks, seed + 1);
    let view = TensorView::new(dtype, shape.to_vec(), data);
    weights::load(device, vec![view], None, ELEM, true)
}

/// Of so many tokens and each of the matrices in turn.
fn time_tokens(
    device: &Arc<dyn Device>,
    dtype: Dtype,
    matrices: &[Matrix],
    options: Options<'_>,
    num_tokens: usize,
) -> Result<Vec<ProductTime>> {
    let [rows, cols] = [matrices[0].rows, matrices[0].cols];
    let mut x = Buffer::new(device, num_tokens, cols, ELEM)?;
    x.set_rows(num_tokens);
    random::fill(&**device, x.ptr(), num_tokens * cols, ELEM, 7)?;
    let mut out = Buffer::new(device, num_tokens, rows, ELEM)?;
    out.set_rows(num_tokens);

    let weight = |i: usize| &matrices[i % matrices.len()];
    let product = |i: usize| Product { device: &**device, x: &x, weight: weight(i), options };
    let chosen = Algorithm::of(product(0)).name(weight(0));
    let mut times = Vec::new();
    let mut add = |kernel: &'static str, run: &mut dyn FnMut(usize) -> Result<()>| -> Result<()> {
        let (microseconds, is_chosen) = (time(&**device, run)?, kernel == chosen);
        times.push(ProductTime { shape: [rows, cols], num_tokens, kernel, microseconds, is_chosen });
        Ok(())
    };
    if dtype.is_quantized() {
        for kernel in cuda_quant::Kernel::all(num_tokens) {
            let run = &mut |i: usize| cuda_quant::launch(&**device, kernel, &out, &x, weight(i));
            add(kernel.name(dtype), run)?;
        }
        if let Some(expansion) = options.expansion {
            add(kernel_of!("linear_expand", dtype), &mut |i| expansion.fill(&**device, weight(i)))?;
            let expanded = Algorithm::Expanded;
            let run = &mut |i: usize| expanded.launch(product(i), &mut out);
            add(expanded.name(weight(0)), run)?;
        }
        return Ok(times);
    }
    for kernel in cuda::Kernel::all(&**device, num_tokens, weight(0)) {
        let run = &mut |i: usize| cuda::launch(&**device, kernel, &mut out, &x, weight(i));
        add(kernel.name(weight(0)), run)?;
    }
    for kernel in hopper::Kernel::all() {
        let call = |i: usize| hopper::Call::new(&**device, kernel, &x, weight(i));
        if call(0).is_some() {
            add(kernel.name(ELEM), &mut |i| call(i).map_or(Ok(()), |call| call.launch(&mut out)))?;
        }
    }
    // Rounded inputs are for `fast` alone; what rounding takes is in their times.
    let codes = Codes::new(device, num_tokens, if dtype == Dtype::F8E4M3 { vec![cols] } else { Vec::new() })?;
    for kernel in hopper::Kernel::all_of_codes() {
        let call = |i: usize| hopper::Call::of_codes(&**device, kernel, &x, weight(i), codes.as_ref()?);
        if let (Some(_), Some(name)) = (call(0), kernel.name_of_codes(ELEM)) {
            add(name, &mut |i| call(i).map_or(Ok(()), |call| call.launch(&mut out)))?;
        }
    }
    if dtype == Dtype::BF16 {
        add("library", &mut |i| cuda::by_library(&**device, &mut out, &x, weight(i)))?;
        let mut half = Buffer::new(device, num_tokens, rows / 2, ELEM)?;
        let mut gated = |i: usize| cuda::gated(&**device, &mut half, &x, weight(i), Activation::Silu, options);
        if gated(0)? {
            add("gated", &mut |i| gated(i).map(|_| ()))?;
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::devices;

    #[test]
    fn every_kernel_is_timed_and_one_is_chosen() {
        for device in devices() {
            for (num_tokens, dtype) in
                [(3, Dtype::BF16), (70, Dtype::BF16), (70, Dtype::F8E4M3), (3, Dtype::Q4_0), (70, Dtype::Q8_0)]
            {
                let times = time_products(&device, [48, 128], dtype, &[num_tokens]).unwrap();
                assert!(times.iter().all(|time| time.microseconds > 0.0), "{times:?}");
                assert_eq!(times.iter().filter(|time| time.is_chosen).count(), 1, "{times:?}");
                let has = |word: &str| times.iter().any(|time| time.kernel.contains(word));
                assert_eq!(has("rows"), num_tokens == 3);
                assert_eq!(has("library"), dtype == Dtype::BF16);
                assert!(has("tile64x64") && has("fp8") == (dtype == Dtype::F8E4M3), "{times:?}");
                assert_eq!(has("w8a8"), dtype == Dtype::F8E4M3);
                assert_eq!(has("expand"), dtype.is_quantized());
            }
        }
    }
}

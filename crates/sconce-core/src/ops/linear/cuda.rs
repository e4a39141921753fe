//! Products on a device; the launches of `kernels/linear.cu` and `kernels/linear_rows.cu`, and how a matrix's columns are cut into
//! segments.

#[cfg(test)]
pub(super) mod tests;

use std::ops::Range;

use super::algorithm::{Algorithm, GatedAlgorithm, Product};
use super::cuda_quant::{self, Expansion};
use super::hopper::Codes;
use super::tuned::Tuned;
use crate::backend::cuda::device::{Args, Device, DevicePtr, Dims, ElemType, Matmul};
use crate::backend::cuda::quant;
use crate::backend::cuda::storage::{Buffer, Matrix, Vector};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::gate_act_mul;

/// Who multiplies more than [`MAX_ROWS`] tokens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    /// Our kernels for all devices: a token's results have the same bits whatever else is in the step.
    Portable,
    /// Our kernels for Hopper too, where shapes suit: on a device whose products of warpgroups add as others do the bits are the
    /// same ([`adds_alike`](super::hopper::adds_alike)).
    Hopper,
    /// The device's library, whose sums may be taken in another order where the number of tokens is another.
    Library,
}

/// How products are carried out.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    pub(super) products: Products,
    /// Where weights in block formats are expanded for many tokens.
    pub(super) expansion: Option<&'a Expansion>,
    /// Where inputs of weights in e4m3 are rounded to it, for speed.
    pub(super) codes: Option<&'a Codes>,
    /// What trials have found.
    pub(super) tuned: Option<&'a Tuned>,
}

impl Options<'static> {
    /// Without room for expanded weights or rounded inputs, and without trials.
    pub(super) fn new(products: Products) -> Self {
        Self { products, expansion: None, codes: None, tuned: None }
    }
}

/// `x`: [n, cols] and `weight`: [rows, cols] of the same 16-bit type, or `weight` e4m3, which the library does not multiply, or in
/// block formats; `out`: [n, rows] of that type or f32.
pub(super) fn cuda(
    device: &dyn Device,
    out: &mut Buffer,
    x: &Buffer,
    weight: &Matrix,
    options: Options<'_>,
) -> Result<()> {
    out.set_rows(x.rows());
    let product = Product { device, x, weight, options };
    Algorithm::of(product).launch(product, out)
}

/// out = act(gate) * up in one launch, where rows of x . weight^T + bias are gate's, then up's: whether it suits and was done. The
/// bits are those of two launches.
pub(super) fn gated(
    device: &dyn Device,
    out: &mut Buffer,
    x: &Buffer,
    weight: &Matrix,
    act: Activation,
    options: Options<'_>,
) -> Result<bool> {
    out.set_rows(x.rows());
    let product = Product { device, x, weight, options };
    GatedAlgorithm::of(product).launch(product, out, act)
}

/// Gate, up and their product of at most [`MAX_ROWS`] tokens, one at least, where [`Kernel::has_gated_rows`].
pub(super) fn launch_gated_rows(
    device: &dyn Device,
    out: &mut Buffer,
    x: &Buffer,
    weight: &Matrix,
    act: Activation,
) -> Result<()> {
    let (num_tokens, features) = (x.rows(), weight.rows / 2);
    assert!((x.cols(), out.cols()) == (weight.cols, features), "invariant: shapes fit");
    assert!(x.elem() == weight.elem && out.elem() == weight.elem, "invariant: all are of one type");
    let splits = Segments::of(weight).splits;
    let args = args(out, x, weight, 0..features, 0).with(splits).with(gate_act_mul::activation_kind(act));
    let (name, stream_bytes) = match weight.quant_parts().first() {
        Some(part) => (cuda_quant::gated_name(num_tokens, part.dtype), cuda_quant::STREAM_BYTES),
        None => (gated_name(num_tokens, weight), STREAM_BYTES),
    };
    let dims = stream_dims(device, num_tokens, weight.rows, splits, stream_bytes).behind(weight.is_scratch());
    // SAFETY: shapes are compared above; the grid and shared memory are as the kernels' head says.
    unsafe { device.launch(name, &dims, &args) }
}

fn gated_name(num_tokens: usize, weight: &Matrix) -> &'static str {
    let elem = weight.elem;
    match (weight.is_fp8(), num_tokens <= 8) {
        (false, true) => elem.kernel("linear_gated_rows8_bf16", "linear_gated_rows8_f16"),
        (false, false) => elem.kernel("linear_gated_rows16_bf16", "linear_gated_rows16_f16"),
        (true, true) => elem.kernel("linear_gated_rows8_fp8_bf16", "linear_gated_rows8_fp8_f16"),
        (true, false) => elem.kernel("linear_gated_rows16_fp8_bf16", "linear_gated_rows16_fp8_f16"),
    }
}

/// Of the kernels without tiles, for all rows of weights. Blocks that have a multiprocessor each ask for more than half of its shared
/// memory: two on one would take their share of the memory's rate twice as long.
pub(super) fn stream_dims(
    device: &dyn Device,
    num_tokens: usize,
    num_rows: usize,
    splits: usize,
    warp_bytes: usize,
) -> Dims {
    let num_blocks = if num_tokens == 0 { 0 } else { num_rows.div_ceil(WARPS / splits * WARP_FEATURES) };
    let needed = WARPS * warp_bytes;
    let alone = if num_blocks <= device.num_sms() { device.max_shared_bytes() / 2 } else { 0 };
    Dims::linear(num_blocks, WARPS * 32).with_shared(needed.max(alone))
}

/// Features of a warp, columns of a chunk, and the warps of a block, as `linear.cu` has them.
pub(crate) const WARP_FEATURES: usize = 16;
const CHUNK: usize = 32;
pub(crate) const WARPS: usize = 8;
/// Bytes of a warp's stages, where it streams its weights.
pub(crate) const STREAM_BYTES: usize = 10 * 1024;
/// The most tokens of the kernels without tiles.
pub(super) const MAX_ROWS: usize = 16;
/// Warps that keep a large device's memory busy, each with some KiB under way.
const ENOUGH_WARPS: usize = 1024;
/// A segment shorter than this is over before its loads flow.
const MIN_SEGMENT: usize = 256;
/// No segment ends within the columns that are read together: two steps of e4m3, or a tile of a block format.
const SEGMENT_STEP: usize = quant::COLUMNS;

/// How the sums over a matrix's columns are cut. It depends on the matrix's shape alone, never on the device or the step: with
/// it the order of the sums would change, and with that the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    /// A power of two, at least as many as there are segments.
    pub(crate) splits: usize,
    /// Columns of a segment.
    pub(crate) len: usize,
}

impl Segments {
    pub(super) fn of(weight: &Matrix) -> Self {
        Self::of_shape([weight.rows, weight.cols], WARPS)
    }

    /// Of so many rows and columns, with so many splits at most.
    pub(crate) fn of_shape([rows, cols]: [usize; 2], most: usize) -> Self {
        let num_warps = rows.div_ceil(WARP_FEATURES);
        let mut splits = 1;
        while splits < most && splits * num_warps < ENOUGH_WARPS && cols >= 2 * splits * MIN_SEGMENT {
            splits *= 2;
        }
        Self { splits, len: cols.div_ceil(splits).next_multiple_of(SEGMENT_STEP) }
    }
}

/// A kernel of `linear.cu`: its names, and the shape of its tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// At most so many tokens.
    Rows(usize),
    Tile(Tile),
}

/// A tile, as `linear.cu` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    features: usize,
    tokens: usize,
    /// Of a stage.
    chunks: usize,
    stages: usize,
}

pub(crate) const TILE_THREADS: usize = 128;
const TILE_64X32: Tile = Tile { features: 64, tokens: 32, chunks: 2, stages: 7 };
pub(crate) const TILE_64X64: Tile = Tile { features: 64, tokens: 64, chunks: 2, stages: 5 };
const TILE_128X128: Tile = Tile { features: 128, tokens: 128, chunks: 1, stages: 3 };

impl Tile {
    fn count(&self, num_tokens: usize, weight: &Matrix) -> usize {
        tile_count(self.features, self.tokens, num_tokens, weight.rows)
    }

    fn shared_bytes(&self, weight: &Matrix) -> usize {
        self.shared_bytes_of(weight.is_fp8(), Segments::of(weight).len < weight.cols)
    }

    /// `has_totals`: where there is more than one segment.
    pub(crate) fn shared_bytes_of(&self, is_fp8: bool, has_totals: bool) -> usize {
        // Chunks in 64 bytes of a row of weights, and in a stage.
        let of_step = if is_fp8 { 2 } else { 1 };
        let chunks = self.chunks.max(of_step);
        let padding = if chunks > 1 { 64 } else { 0 };
        let step = self.features * 64 + of_step * (self.tokens * CHUNK * 2 + padding);
        let stages = self.stages * chunks / of_step * step;
        let totals = if has_totals { self.features * self.tokens * 4 } else { 0 };
        let results = self.tokens * (self.features + 4) * 4;
        results.max(stages + totals)
    }
}

pub(super) fn tile_count(features: usize, tokens: usize, num_tokens: usize, num_rows: usize) -> usize {
    num_rows.div_ceil(features) * num_tokens.div_ceil(tokens)
}

impl Kernel {
    /// An estimate: large tiles read least, where there are enough of them for the whole device and its blocks have
    /// the shared memory; of few tokens a large tile would be empty for the most part.
    pub(super) fn choose(device: &dyn Device, num_tokens: usize, weight: &Matrix) -> Self {
        let fills = |tile: Tile| {
            tile.count(num_tokens, weight) >= device.num_sms() && tile.shared_bytes(weight) <= device.max_shared_bytes()
        };
        match num_tokens {
            0..=8 => Self::Rows(8),
            9..=MAX_ROWS => Self::Rows(16),
            17..=32 => Self::Tile(TILE_64X32),
            33..=64 => Self::Tile(TILE_64X64),
            _ if fills(TILE_128X128) => Self::Tile(TILE_128X128),
            _ => Self::Tile(TILE_64X64),
        }
    }

    /// Whether the kernels for few rows do gate, up and their product too: both have half of a block's warps, and in block formats up
    /// begins with a tile.
    pub(super) fn has_gated_rows(weight: &Matrix) -> bool {
        let suits = !weight.is_quantized()
            || (weight.quant_parts().len() == 1 && (weight.rows / 2).is_multiple_of(quant::ROWS));
        suits && Segments::of(weight).splits < WARPS
    }

    /// All that can multiply so many tokens.
    pub(super) fn all(device: &dyn Device, num_tokens: usize, weight: &Matrix) -> impl Iterator<Item = Self> {
        let rows = [8, MAX_ROWS].into_iter().filter(move |&most| num_tokens <= most).map(Self::Rows);
        let most = device.max_shared_bytes();
        let tiles = [TILE_64X32, TILE_64X64, TILE_128X128].into_iter();
        rows.chain(tiles.filter(move |tile| tile.shared_bytes(weight) <= most).map(Self::Tile))
    }

    pub(super) fn name(self, weight: &Matrix) -> &'static str {
        let elem = weight.elem;
        if weight.is_fp8() {
            return match self {
                Self::Rows(8) => elem.kernel("linear_rows8_fp8_bf16", "linear_rows8_fp8_f16"),
                Self::Rows(_) => elem.kernel("linear_rows16_fp8_bf16", "linear_rows16_fp8_f16"),
                Self::Tile(TILE_64X32) => elem.kernel("linear_tile64x32_fp8_bf16", "linear_tile64x32_fp8_f16"),
                Self::Tile(TILE_64X64) => elem.kernel("linear_tile64x64_fp8_bf16", "linear_tile64x64_fp8_f16"),
                Self::Tile(_) => elem.kernel("linear_tile128x128_fp8_bf16", "linear_tile128x128_fp8_f16"),
            };
        }
        match self {
            Self::Rows(8) => elem.kernel("linear_rows8_bf16", "linear_rows8_f16"),
            Self::Rows(_) => elem.kernel("linear_rows16_bf16", "linear_rows16_f16"),
            Self::Tile(TILE_64X32) => elem.kernel("linear_tile64x32_bf16", "linear_tile64x32_f16"),
            Self::Tile(TILE_64X64) => elem.kernel("linear_tile64x64_bf16", "linear_tile64x64_f16"),
            Self::Tile(_) => elem.kernel("linear_tile128x128_bf16", "linear_tile128x128_f16"),
        }
    }
}

pub(super) fn check(out: &Buffer, x: &Buffer, weight: &Matrix) {
    assert_eq!((x.cols(), out.cols()), (weight.cols, weight.rows), "invariant: shapes fit");
    assert_eq!(x.elem(), weight.elem, "invariant: inputs have the weights' type");
    assert!(out.elem() == ElemType::F32 || out.elem() == weight.elem, "invariant: outputs are f32 or as the inputs");
    assert!(weight.cols.is_multiple_of(8), "invariant: rows begin at multiples of 16 bytes");
}

/// Of a vector with an element a row; null where there is none.
pub(crate) fn ptr_of_rows(weight: &Matrix, vector: Option<&Vector>) -> DevicePtr {
    vector.map_or(DevicePtr::NULL, |vector| {
        assert_eq!(vector.len, weight.rows, "invariant: a bias and a scale a row");
        vector.memory.ptr()
    })
}

/// What all kernels are given for some rows of weights, whose results stand side by side, and which begin at byte `start` of the matrix's
/// memory.
pub(super) fn args(out: &Buffer, x: &Buffer, weight: &Matrix, rows: Range<usize>, start: usize) -> Args {
    let of_rows = |vector: Option<&Vector>| match ptr_of_rows(weight, vector) {
        DevicePtr::NULL => DevicePtr::NULL,
        ptr => ptr.offset(rows.start * ElemType::F32.bytes()),
    };
    let args = Args::new().with(out.ptr().offset(rows.start * out.elem().bytes())).with(x.ptr());
    let args = args.with(weight.memory.ptr().offset(start));
    let args = args.with(of_rows(weight.row_scales())).with(of_rows(weight.bias.as_ref()));
    let args = args.with(x.rows()).with(rows.len()).with(out.cols()).with(weight.cols).with(Segments::of(weight).len);
    args.with(u32::from(out.elem() == ElemType::F32))
}

pub(super) fn launch(device: &dyn Device, kernel: Kernel, out: &mut Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
    check(out, x, weight);
    let (segments, args) = (Segments::of(weight), args(out, x, weight, 0..weight.rows, 0));
    let (dims, args) = match kernel {
        Kernel::Rows(_) => {
            (stream_dims(device, x.rows(), weight.rows, segments.splits, STREAM_BYTES), args.with(segments.splits))
        }
        Kernel::Tile(tile) => {
            let dims = Dims::linear(tile.count(x.rows(), weight), TILE_THREADS);
            (dims.with_shared(tile.shared_bytes(weight)), args)
        }
    };
    // SAFETY: `check` compared the shapes; grids and shared memory are as the kernels' head says.
    unsafe { device.launch(kernel.name(weight), &dims.behind(weight.is_scratch()), &args) }
}

pub(super) fn by_library(device: &dyn Device, out: &mut Buffer, x: &Buffer, weight: &Matrix) -> Result<()> {
    check(out, x, weight);
    let call = Matmul {
        out: out.ptr(),
        x: x.ptr(),
        weight: weight.memory.ptr(),
        num_rows: x.rows(),
        cols: weight.cols,
        out_cols: weight.rows,
        out_stride: weight.rows,
        in_type: weight.elem,
        out_type: out.elem(),
    };
    // SAFETY: `check` compared the shapes.
    unsafe { device.matmul(&call)? };
    if weight.bias.is_none() {
        return Ok(());
    }
    let kernel = match out.elem() {
        ElemType::F32 => "linear_add_bias_f32",
        elem => elem.kernel("linear_add_bias_bf16", "linear_add_bias_f16"),
    };
    let args = Args::new().with(out.ptr()).with(ptr_of_rows(weight, weight.bias.as_ref())).with(weight.rows);
    // SAFETY: the bias is as long as a row of `out`.
    unsafe { device.launch(kernel, &Dims::over_rows(out.rows(), weight.rows), &args) }
}

//! The launches of `kernels/experts.cu`, `experts_linear.cu` and `experts_quant.cu`.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::backend::ExpertsSpec;
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Buffer, ExpertMatrices, Memory};
use crate::config::ExpertsConfig;
use crate::error::Result;
use crate::ops::gate_act_mul::{self, activation_kind};
use crate::ops::linear::cuda::{STREAM_BYTES, Segments, TILE_64X64, TILE_THREADS, WARP_FEATURES, WARPS, ptr_of_rows};
use crate::ops::linear::cuda_quant::{self, kernel_of};
use crate::weights::Dtype;

/// Threads of a block that routes, a warp a token, and of one that sorts.
const ROUTE_THREADS: usize = 128;
const SORT_THREADS: usize = 256;
/// Rows and features of a tile of products.
const TILE: usize = 64;
/// Bytes of an expert and its weight, and of a tile's place.
const PICK_BYTES: usize = 8;
const TILE_BYTES: usize = 16;

/// By which kernels rows are multiplied: it depends on their number alone, and no bit depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Weights are streamed for up to 8 rows at a time.
    Rows,
    Tile,
}

impl Kernel {
    /// Streams while experts have no more rows than a stream takes, were all to have equally many.
    fn choose(num_pairs: usize, num_experts: usize) -> Self {
        if num_pairs <= Self::Rows.tile_rows() * num_experts { Self::Rows } else { Self::Tile }
    }

    fn tile_rows(self) -> usize {
        if self == Self::Rows { 8 } else { TILE }
    }

    /// The most tiles that so many rows can make: each expert can have one that is not full.
    fn max_tiles(self, num_pairs: usize, num_experts: usize) -> usize {
        num_pairs.min(num_pairs / self.tile_rows() + num_experts)
    }
}

/// Room for a step's rows. A pair is a token and one of its experts.
pub(crate) struct ExpertsSpace {
    device: Arc<dyn Device>,
    /// Of each pair, the expert and its weight; and where its row is.
    picks: Memory,
    places: Memory,
    tiles: Memory,
    /// [pairs, hidden]: the inputs of pairs, and later their results.
    rows: Buffer,
    /// [pairs, 2 * inter] and [pairs, inter].
    gate_up: Buffer,
    act: Buffer,
}

impl ExpertsSpace {
    /// For steps of so many tokens.
    pub(crate) fn new(
        device: &Arc<dyn Device>,
        elem: ElemType,
        hidden: usize,
        config: &ExpertsConfig,
        max_tokens: usize,
    ) -> Result<Self> {
        let num_pairs = max_tokens * config.per_token;
        let max_tiles = [Kernel::Rows, Kernel::Tile].map(|kernel| kernel.max_tiles(num_pairs, config.num_experts));
        let buffer = |cols| Buffer::new(device, num_pairs, cols, elem);
        Ok(Self {
            device: Arc::clone(device),
            picks: Memory::new(device, num_pairs * PICK_BYTES)?,
            places: Memory::new(device, num_pairs * size_of::<u32>())?,
            tiles: Memory::new(device, max_tiles[0].max(max_tiles[1]) * TILE_BYTES)?,
            rows: buffer(hidden)?,
            gate_up: buffer(2 * config.intermediate_size)?,
            act: buffer(config.intermediate_size)?,
        })
    }

    /// What [`reference`](super::reference) computes. `x`, `out`: of the weights' type; `logits`: f32.
    pub(crate) fn experts(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        logits: &Buffer,
        [gate_up, down]: [&ExpertMatrices; 2],
        spec: &ExpertsSpec,
    ) -> Result<()> {
        let ([rows, hidden], [_, inter]) = (gate_up.shape(), down.shape());
        assert_eq!((x.cols(), rows, out.cols()), (hidden, 2 * inter, hidden), "invariant: shapes fit");
        assert_eq!((logits.rows(), logits.cols()), (x.rows(), gate_up.num_experts), "invariant: a logit an expert");
        assert!(
            x.elem() == gate_up.all.elem && logits.elem() == ElemType::F32,
            "invariant: types are the weights' and f32"
        );
        out.set_rows(x.rows());
        let num_pairs = x.rows() * spec.per_token;
        for buffer in [&mut self.rows, &mut self.gate_up, &mut self.act] {
            buffer.set_rows(num_pairs);
        }
        if num_pairs == 0 {
            return Ok(());
        }
        let kernel = Kernel::choose(num_pairs, gate_up.num_experts);
        self.route(logits, spec)?;
        self.sort(kernel, x, gate_up.num_experts, spec.per_token)?;
        // Gate and up have a half of a block's warps each.
        let segments = Segments::of_shape([rows, hidden], WARPS / 2);
        let (device, tiles) = (&*self.device, &self.tiles);
        if kernel == Kernel::Rows {
            let call = Call { device, tiles, weight: gate_up, segments, features: inter };
            call.gated_rows(&self.act, &self.rows, activation_kind(spec.act))?;
        } else {
            let call = Call { device, tiles, weight: gate_up, segments, features: rows };
            call.tile(&self.gate_up, &self.rows)?;
            gate_act_mul::cuda(device, &mut self.act, &self.gate_up, spec.act)?;
        }
        let segments = Segments::of_shape([hidden, inter], WARPS);
        let call = Call { device, tiles, weight: down, segments, features: hidden };
        if kernel == Kernel::Rows {
            call.rows(&self.rows, &self.act)?;
        } else {
            call.tile(&self.rows, &self.act)?;
        }
        self.combine(out, spec.per_token)
    }

    fn route(&self, logits: &Buffer, spec: &ExpertsSpec) -> Result<()> {
        let args = Args::new().with(self.picks.ptr()).with(logits.ptr()).with(logits.rows()).with(logits.cols());
        let args = args.with(spec.per_token).with(u32::from(spec.normalizes));
        let dims = Dims::linear(logits.rows().div_ceil(ROUTE_THREADS / 32), ROUTE_THREADS);
        // SAFETY: there are picks of all rows; the numbers of experts are checked where configs are read.
        unsafe { self.device.launch("experts_route", &dims, &args) }
    }

    fn sort(&self, kernel: Kernel, x: &Buffer, num_experts: usize, per_token: usize) -> Result<()> {
        let num_pairs = x.rows() * per_token;
        let args = Args::new().with(self.places.ptr()).with(self.tiles.ptr()).with(self.rows.ptr());
        let args = args.with(self.picks.ptr()).with(x.ptr()).with(num_pairs).with(per_token).with(x.cols());
        let args = args.with(kernel.tile_rows()).with(kernel.max_tiles(num_pairs, num_experts));
        // SAFETY: there are places and rows for all pairs, and room for so many tiles.
        unsafe { self.device.launch("experts_sort", &Dims::linear(num_experts, SORT_THREADS), &args) }
    }

    fn combine(&self, out: &mut Buffer, per_token: usize) -> Result<()> {
        let args = Args::new().with(out.ptr()).with(self.rows.ptr()).with(self.picks.ptr()).with(self.places.ptr());
        let args = args.with(per_token).with(out.cols());
        let name = out.elem().kernel("experts_combine_bf16", "experts_combine_f16");
        // SAFETY: each row of `out` has so many pairs, whose places hold results.
        unsafe { self.device.launch(name, &Dims::over_rows(out.rows(), out.cols() / 8), &args) }
    }
}

/// The products of all tiles with `features` features of their experts' matrices.
struct Call<'a> {
    device: &'a dyn Device,
    tiles: &'a Memory,
    weight: &'a ExpertMatrices,
    segments: Segments,
    features: usize,
}

impl Call<'_> {
    fn rows(&self, out: &Buffer, x: &Buffer) -> Result<()> {
        let name = match self.weight.all.quant_parts() {
            [part, ..] => kernel_of!("experts_rows", part.dtype),
            [] => self.name(["experts_rows_bf16", "experts_rows_f16", "experts_rows_fp8_bf16", "experts_rows_fp8_f16"]),
        };
        let args = self.args(out, x).with(self.segments.splits);
        // SAFETY: as `args` has checked; the grid and shared memory are as the kernels' head says.
        unsafe { self.device.launch(name, &self.stream_dims(x, self.features), &args) }
    }

    fn gated_rows(&self, out: &Buffer, x: &Buffer, kind: u32) -> Result<()> {
        let name = match self.weight.all.quant_parts() {
            [part, ..] => kernel_of!("experts_gated_rows", part.dtype),
            [] => self.name([
                "experts_gated_rows_bf16",
                "experts_gated_rows_f16",
                "experts_gated_rows_fp8_bf16",
                "experts_gated_rows_fp8_f16",
            ]),
        };
        let args = self.args(out, x).with(self.segments.splits).with(kind);
        // SAFETY: as above.
        unsafe { self.device.launch(name, &self.stream_dims(x, 2 * self.features), &args) }
    }

    fn tile(&self, out: &Buffer, x: &Buffer) -> Result<()> {
        let all = &self.weight.all;
        let has_totals = self.segments.len < all.cols;
        let (name, shared_bytes) = match all.quant_parts() {
            [part, ..] => (kernel_of!("experts_tile", part.dtype), cuda_quant::shared_bytes(part.dtype, has_totals)),
            [] => {
                let names = ["experts_tile_bf16", "experts_tile_f16", "experts_tile_fp8_bf16", "experts_tile_fp8_f16"];
                (self.name(names), TILE_64X64.shared_bytes_of(all.is_fp8(), has_totals))
            }
        };
        let dims = self.dims(Kernel::Tile, x, self.features.div_ceil(TILE), TILE_THREADS).with_shared(shared_bytes);
        // SAFETY: as above.
        unsafe { self.device.launch(name, &dims, &self.args(out, x)) }
    }

    /// Of kernels of bf16, f16, and of e4m3 beside them.
    fn name(&self, [bf16, f16, fp8_bf16, fp8_f16]: [&'static str; 4]) -> &'static str {
        let all = &self.weight.all;
        if all.is_fp8() { all.elem.kernel(fp8_bf16, fp8_f16) } else { all.elem.kernel(bf16, f16) }
    }

    /// A block has as many warps for its rows of weights as there are splits.
    fn stream_dims(&self, x: &Buffer, num_rows: usize) -> Dims {
        let warp_bytes = if self.weight.all.is_quantized() { cuda_quant::STREAM_BYTES } else { STREAM_BYTES };
        let num_blocks = num_rows.div_ceil(WARPS / self.segments.splits * WARP_FEATURES);
        self.dims(Kernel::Rows, x, num_blocks, WARPS * 32).with_shared(WARPS * warp_bytes)
    }

    fn dims(&self, kernel: Kernel, x: &Buffer, num_blocks: usize, num_threads: usize) -> Dims {
        let max_tiles = kernel.max_tiles(x.rows(), self.weight.num_experts);
        Dims { grid: [num_blocks as u32, max_tiles as u32, 1], ..Dims::linear(0, num_threads) }
    }

    fn args(&self, out: &Buffer, x: &Buffer) -> Args {
        let ([expert_rows, cols], all) = (self.weight.shape(), &self.weight.all);
        assert!(x.cols() == cols && out.cols() == self.features, "invariant: shapes fit");
        assert!(x.elem() == all.elem && out.elem() == all.elem, "invariant: all are of one type");
        let args = Args::new().with(out.ptr()).with(x.ptr()).with(all.memory.ptr());
        let args = args.with(ptr_of_rows(all, all.row_scales())).with(ptr_of_rows(all, all.bias.as_ref()));
        let args = args.with(self.tiles.ptr());
        let args = args.with(self.weight.bytes() as u64).with(expert_rows);
        args.with(self.features).with(cols).with(self.segments.len)
    }
}

//! The launches of `kernels/linear_hopper.cu`, `kernels/linear_fp8_hopper.cu` and `kernels/linear_w8a8_hopper.cu`: products of more
//! than 16 tokens on a Hopper GPU, where their shape suits.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::cuda::{Kernel as Portable, Segments, TILE_64X64, check, launch, ptr_of_rows};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType, TensorMap};
use crate::backend::cuda::storage::{Buffer, FP8_STEP, Form, Matrix, Memory, boxes, bytes_of};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::gate_act_mul;
use crate::weights::random_weight;

/// A tile of so many tokens is enough: more of its rows would be empty than waiting for weights costs.
const FEW_TOKENS: usize = 64;

/// Tiles of tokens and of rows of the weights, and how the kernel ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// A cluster a tile, a block a segment: 64 tokens.
    Split64,
    /// The same of 128, of 256.
    Split128,
    Split256,
    /// Of 64 and of 128 too, for no more blocks than there are multiprocessors.
    Deep64,
    Deep128,
    /// A block a tile, 64 tokens and gate and up.
    SplitGated64,
    /// Tile after tile, of 128 tokens.
    Large(Rows),
    /// Tile after tile of weights in e4m3 (`linear_fp8_hopper.cu`), of 128 tokens; a cluster a tile, of 64 or of 128.
    Fp8,
    Fp8Split64,
    Fp8Split128,
}

/// Rows of the weights that a large tile has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    R128,
    R192,
    /// For matrices of one segment.
    R256,
    /// The same, of gate and up.
    Gated256,
}

/// A block, as `linear_hopper.cu` has it.
struct Block {
    tokens: usize,
    /// Rows of weights.
    rows: usize,
    stages: usize,
    /// Of weights in e4m3: stages of their codes.
    code_stages: usize,
    threads: usize,
}

impl Kernel {
    fn block(self) -> Block {
        let (tokens, rows, stages, code_stages, threads) = match self {
            Self::Split64 | Self::SplitGated64 => (64, 128, 4, 0, 192),
            Self::Split128 => (128, 128, 3, 0, 320),
            Self::Split256 => (256, 128, 4, 0, 320),
            Self::Deep64 => (64, 128, 8, 0, 192),
            Self::Deep128 => (128, 128, 6, 0, 320),
            Self::Large(Rows::R128) => (128, 128, 6, 0, 384),
            Self::Large(Rows::R192) => (128, 192, 5, 0, 384),
            Self::Large(..) => (128, 256, 4, 0, 384),
            Self::Fp8 => (128, 128, 4, 3, 512),
            Self::Fp8Split64 => (64, 128, 4, 6, 320),
            Self::Fp8Split128 => (128, 128, 4, 5, 448),
        };
        Block { tokens, rows, stages, code_stages, threads }
    }

    /// All but those for gate and up.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let large = [Rows::R256, Rows::R192, Rows::R128].map(Self::Large);
        let split = [Self::Split64, Self::Split128, Self::Split256, Self::Deep64, Self::Deep128];
        large.into_iter().chain(split).chain([Self::Fp8, Self::Fp8Split64, Self::Fp8Split128])
    }

    /// Those for gate and up.
    pub(super) fn all_gated() -> impl Iterator<Item = Self> {
        [Self::SplitGated64, Self::Large(Rows::Gated256)].into_iter()
    }

    /// Those that there are for inputs in e4m3 too ([`Codes`]), but those for gate and up, which all are.
    pub(super) fn all_of_codes() -> impl Iterator<Item = Self> {
        [Self::Large(Rows::R256), Self::Large(Rows::R128), Self::Split64, Self::Deep128].into_iter()
    }

    /// The name of the one for inputs in e4m3, if there is one.
    pub(super) fn name_of_codes(self, elem: ElemType) -> Option<&'static str> {
        let (bf16, f16) = match self {
            Self::Split64 => ("linear_w8a8_hopper_split_64x128_bf16", "linear_w8a8_hopper_split_64x128_f16"),
            Self::Deep128 => ("linear_w8a8_hopper_split_128x128_bf16", "linear_w8a8_hopper_split_128x128_f16"),
            Self::SplitGated64 => {
                ("linear_w8a8_hopper_split_gated_64x128_bf16", "linear_w8a8_hopper_split_gated_64x128_f16")
            }
            Self::Large(Rows::R128) => ("linear_w8a8_hopper_128x128_bf16", "linear_w8a8_hopper_128x128_f16"),
            Self::Large(Rows::R256) => ("linear_w8a8_hopper_128x256_bf16", "linear_w8a8_hopper_128x256_f16"),
            Self::Large(Rows::Gated256) => {
                ("linear_w8a8_hopper_gated_128x256_bf16", "linear_w8a8_hopper_gated_128x256_f16")
            }
            _ => return None,
        };
        Some(elem.kernel(bf16, f16))
    }

    pub(super) fn name(self, elem: ElemType) -> &'static str {
        let (bf16, f16) = match self {
            Self::Split64 => ("linear_hopper_split_64x128_bf16", "linear_hopper_split_64x128_f16"),
            Self::Split128 => ("linear_hopper_split_128x128_bf16", "linear_hopper_split_128x128_f16"),
            Self::Split256 => ("linear_hopper_split_256x128_bf16", "linear_hopper_split_256x128_f16"),
            Self::Deep64 => ("linear_hopper_split_deep_64x128_bf16", "linear_hopper_split_deep_64x128_f16"),
            Self::Deep128 => ("linear_hopper_split_deep_128x128_bf16", "linear_hopper_split_deep_128x128_f16"),
            Self::SplitGated64 => ("linear_hopper_split_gated_64x128_bf16", "linear_hopper_split_gated_64x128_f16"),
            Self::Large(Rows::R128) => ("linear_hopper_128x128_bf16", "linear_hopper_128x128_f16"),
            Self::Large(Rows::R192) => ("linear_hopper_128x192_bf16", "linear_hopper_128x192_f16"),
            Self::Large(Rows::R256) => ("linear_hopper_128x256_bf16", "linear_hopper_128x256_f16"),
            Self::Large(Rows::Gated256) => ("linear_hopper_gated_128x256_bf16", "linear_hopper_gated_128x256_f16"),
            Self::Fp8 => ("linear_fp8_hopper_bf16", "linear_fp8_hopper_f16"),
            Self::Fp8Split64 => ("linear_fp8_hopper_split_64x128_bf16", "linear_fp8_hopper_split_64x128_f16"),
            Self::Fp8Split128 => ("linear_fp8_hopper_split_128x128_bf16", "linear_fp8_hopper_split_128x128_f16"),
        };
        elem.kernel(bf16, f16)
    }

    /// Whether it takes one segment.
    fn is_whole(self) -> bool {
        matches!(self, Self::SplitGated64 | Self::Large(Rows::R256 | Rows::Gated256))
    }

    /// Whether a cluster has a tile.
    fn is_split(self) -> bool {
        !matches!(self, Self::Large(_) | Self::Fp8)
    }

    /// Whether it is for weights in e4m3.
    fn is_fp8(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp8Split64 | Self::Fp8Split128)
    }

    /// Whether it is for gate and up.
    fn is_gated(self) -> bool {
        matches!(self, Self::SplitGated64 | Self::Large(Rows::Gated256))
    }

    /// Blocks of a cluster.
    fn cluster(self, weight: &Matrix) -> usize {
        if self.is_split() && !self.is_gated() { Segments::of(weight).splits } else { 1 }
    }

    /// Blocks for all tiles.
    fn num_blocks(self, num_tokens: usize, weight: &Matrix) -> usize {
        let Block { tokens, rows, .. } = self.block();
        num_tokens.div_ceil(tokens) * weight.rows.div_ceil(rows) * self.cluster(weight)
    }

    /// What it takes, as far as that is known without asking a device: rows of weights that the multiprocessor with most to do
    /// multiplies, by 128 tokens, in percent of what the tiles of 256 rows take for them. Smaller ones wait for the second cache
    /// more often, and what is split is put together at the end: on an H200 split tiles of 128 took 0.9 to 1.8 times what those
    /// of 128 rows that are not took, of 128 and 256 tokens. Those of 256, and of e4m3, were not measured.
    pub(super) fn cost(self, device: &dyn Device, num_tokens: usize, weight: &Matrix) -> usize {
        let percent = match self {
            Self::Split64 | Self::SplitGated64 | Self::Split128 | Self::Deep64 | Self::Deep128 => 250,
            Self::Split256 => 150,
            Self::Fp8Split64 | Self::Fp8Split128 => 130,
            Self::Large(Rows::R128) => 110,
            Self::Large(Rows::R192) => 103,
            Self::Large(..) | Self::Fp8 => 100,
        };
        let Block { tokens, rows, .. } = self.block();
        let rows = self.num_blocks(num_tokens, weight).div_ceil(device.num_sms()) * rows * tokens.div_ceil(128);
        rows * percent / self.cluster(weight)
    }

    /// The one that seems fastest.
    pub(super) fn cheapest(device: &dyn Device, num_tokens: usize, weight: &Matrix) -> Self {
        let (is_fp8, is_one_segment) = (weight.is_fp8(), Segments::of(weight).len >= weight.cols);
        let suits = |kernel: &Self| {
            kernel.is_fp8() == is_fp8
                && (!kernel.is_whole() || is_one_segment)
                && (kernel.block().tokens <= FEW_TOKENS) == (num_tokens <= FEW_TOKENS)
                && !matches!(kernel, Self::Deep64 | Self::Deep128)
        };
        let cheapest = Self::all().filter(suits).min_by_key(|kernel| kernel.cost(device, num_tokens, weight));
        let cheapest = cheapest.expect("invariant: there are some of each kind");
        match cheapest {
            Self::Split64 if cheapest.num_blocks(num_tokens, weight) <= device.num_sms() => Self::Deep64,
            Self::Split128 if cheapest.num_blocks(num_tokens, weight) <= device.num_sms() => Self::Deep128,
            _ => cheapest,
        }
    }

    /// The one of those for gate and up that seems fastest, where `apart` does without; `None`: two launches do.
    pub(super) fn cheapest_gated(device: &dyn Device, num_tokens: usize, weight: &Matrix, apart: Self) -> Option<Self> {
        let kernel = if num_tokens <= FEW_TOKENS { Self::SplitGated64 } else { Self::Large(Rows::Gated256) };
        let cost = |kernel: Self| kernel.cost(device, num_tokens, weight);
        // What it saves is worth some of the products' time.
        (100 * cost(kernel) <= 115 * cost(apart)).then_some(kernel)
    }

    /// The one of those for inputs in e4m3 that seems fastest.
    pub(super) fn cheapest_of_codes(device: &dyn Device, num_tokens: usize, weight: &Matrix) -> Self {
        let suits = |kernel: &Self| (kernel.block().tokens <= FEW_TOKENS) == (num_tokens <= FEW_TOKENS);
        let cheapest = Self::all_of_codes().filter(suits).min_by_key(|kernel| kernel.cost(device, num_tokens, weight));
        cheapest.expect("invariant: there are some of each kind")
    }

    fn shared_bytes(self) -> usize {
        const ROW_BYTES: usize = 128;
        const OTHER_BYTES: usize = 1024 + 256;
        let Block { tokens, rows, stages, code_stages, .. } = self.block();
        (stages * (tokens + rows) + code_stages * rows) * ROW_BYTES + OTHER_BYTES
    }
}

/// A product that suits.
pub(super) struct Call<'a> {
    device: &'a dyn Device,
    kernel: Kernel,
    name: &'static str,
    inputs: &'a Buffer,
    x: &'a TensorMap,
    map: &'a TensorMap,
    weight: &'a Matrix,
    /// Where inputs are rounded to e4m3 first.
    codes: Option<&'a Codes>,
}

impl<'a> Call<'a> {
    /// `None` where there is no such kernel, or shapes do not suit it.
    pub(super) fn new(device: &'a dyn Device, kernel: Kernel, x: &'a Buffer, weight: &'a Matrix) -> Option<Self> {
        let suits =
            weight.is_fp8() == kernel.is_fp8() && (!kernel.is_whole() || Segments::of(weight).len >= weight.cols);
        let call = Self {
            device,
            kernel,
            name: kernel.name(weight.elem),
            inputs: x,
            x: x.map()?,
            map: weight.map()?,
            weight,
            codes: None,
        };
        (suits && call.is_possible()).then_some(call)
    }

    /// The same of inputs that `codes` has room for, which are rounded to e4m3 first.
    pub(super) fn of_codes(
        device: &'a dyn Device,
        kernel: Kernel,
        x: &'a Buffer,
        weight: &'a Matrix,
        codes: &'a Codes,
    ) -> Option<Self> {
        let suits = weight.is_fp8() && x.rows() <= codes.max_rows;
        let (name, x_map) = (kernel.name_of_codes(weight.elem)?, codes.map(weight.cols)?);
        let call = Self { device, kernel, name, inputs: x, x: x_map, map: weight.map()?, weight, codes: Some(codes) };
        (suits && call.is_possible()).then_some(call)
    }

    fn is_possible(&self) -> bool {
        let Self { device, kernel, name, weight, .. } = self;
        device.has_kernel(name)
            && kernel.shared_bytes() <= device.max_shared_bytes()
            // Results are stored 16 bytes at a time.
            && weight.rows.is_multiple_of(if kernel.is_gated() { 16 } else { 8 })
    }

    fn args(&self, out: &Buffer) -> Args {
        let weight = self.weight;
        let mut args = Args::new().with(out.ptr()).with_map(self.x).with_map(self.map);
        if weight.is_fp8() {
            args = args.with(ptr_of_rows(weight, weight.row_scales()));
        }
        let (mut cols, mut segment) = (weight.cols, Segments::of(weight).len);
        if let Some(codes) = self.codes {
            args = args.with(codes.scales.ptr());
            // In pairs of codes; what does not split columns has one segment.
            cols = weight.cols.next_multiple_of(FP8_STEP) / 2;
            segment = if self.kernel.cluster(weight) > 1 { segment / 2 } else { cols };
        }
        let args = args.with(ptr_of_rows(weight, weight.bias.as_ref())).with(self.inputs.rows()).with(out.cols());
        args.with(cols).with(segment).with(u32::from(out.elem() == ElemType::F32))
    }

    fn dims(&self) -> Dims {
        let cluster = self.kernel.cluster(self.weight);
        let mut num_blocks = self.kernel.num_blocks(self.inputs.rows(), self.weight);
        if !self.kernel.is_split() {
            num_blocks = num_blocks.min(self.device.num_sms());
        }
        let dims = Dims::linear(num_blocks, self.kernel.block().threads).in_clusters(cluster);
        dims.with_shared(self.kernel.shared_bytes()).behind(self.weight.is_scratch())
    }

    /// Of the inputs that it was chosen for.
    pub(super) fn launch(&self, out: &mut Buffer) -> Result<()> {
        assert!(out.cols() == self.weight.rows && out.rows() == self.inputs.rows(), "invariant: shapes fit");
        check(out, self.inputs, self.weight);
        let args = self.args(out).with(self.dims().cluster);
        self.launch_with(&args)
    }

    /// The same of gate and up.
    pub(super) fn launch_gated(&self, out: &mut Buffer, act: Activation) -> Result<()> {
        assert!(2 * out.cols() == self.weight.rows && out.rows() == self.inputs.rows(), "invariant: shapes fit");
        assert_eq!(out.elem(), self.weight.elem, "invariant: outputs are as the inputs");
        let args = self.args(out).with(gate_act_mul::activation_kind(act));
        self.launch_with(&args)
    }

    fn launch_with(&self, args: &Args) -> Result<()> {
        if let Some(codes) = self.codes {
            codes.fill(self.device, self.inputs)?;
        }
        // SAFETY: the callers compared the shapes; maps are the inputs', the codes' and the matrix's own.
        unsafe { self.device.launch(self.name, &self.dims(), args) }
    }
}

/// Room for a product's inputs in e4m3, with a scale a token.
pub(super) struct Codes {
    memory: Memory,
    scales: Memory,
    max_rows: usize,
    /// Boxes of rows of so many columns.
    maps: Vec<(usize, TensorMap)>,
}

impl Codes {
    /// For at most `max_rows` rows of these numbers of columns; `None` where a device has no kernels for them, or they suit none.
    pub(super) fn new(device: &Arc<dyn Device>, max_rows: usize, mut cols: Vec<usize>) -> Result<Option<Self>> {
        cols.sort_unstable();
        cols.dedup();
        let Some(most) = cols.last().filter(|_| has_kernels(&**device)) else { return Ok(None) };
        let memory = Memory::new(device, max_rows * most.next_multiple_of(FP8_STEP))?;
        // Boxes have the rows that tiles end with beyond the last token, whatever they hold.
        memory.clear()?;
        let scales = Memory::new(device, max_rows * ElemType::F32.bytes())?;
        let mut maps = Vec::new();
        for cols in cols {
            let pairs = cols.next_multiple_of(FP8_STEP) / 2;
            maps.extend(boxes(&memory, [max_rows, pairs], ElemType::Bf16)?.map(|map| (cols, map)));
        }
        Ok(Some(Self { memory, scales, max_rows, maps }))
    }

    fn map(&self, cols: usize) -> Option<&TensorMap> {
        self.maps.iter().find(|(of, _)| *of == cols).map(|(_, map)| map)
    }

    /// Rounds `x`: what was there before is gone.
    fn fill(&self, device: &dyn Device, x: &Buffer) -> Result<()> {
        let row_bytes = x.cols().next_multiple_of(FP8_STEP);
        assert!(x.rows() <= self.max_rows && x.rows() * row_bytes <= self.memory.bytes(), "invariant: there is room");
        let args = Args::new().with(self.memory.ptr()).with(self.scales.ptr()).with(x.ptr());
        let args = args.with(x.cols()).with(row_bytes);
        // SAFETY: the room is compared above.
        unsafe {
            device.launch(
                x.elem().kernel("linear_quantize_bf16", "linear_quantize_f16"),
                &Dims::linear(x.rows(), 256),
                &args,
            )
        }
    }
}

/// Whether a device has kernels for Hopper.
pub(crate) fn has_kernels(device: &dyn Device) -> bool {
    device.has_kernel(Kernel::Split128.name(ElemType::Bf16))
}

/// Whether a device's products of warpgroups take their sums as its other ones do: some that the order and every lost bit of a
/// sum would change are computed by both. False where it has none.
pub(crate) fn adds_alike(device: &Arc<dyn Device>, elem: ElemType) -> Result<bool> {
    const TOKENS: usize = 128;
    const COLS: usize = 1024;
    const FEATURES: usize = 128;
    if !has_kernels(&**device) {
        return Ok(false);
    }
    // Of magnitudes that differ, so that terms are cut off where they are aligned.
    let number = |seed: u64, i: u64| random_weight(seed, i) * f32::from(1u8 << (i % 7));
    let numbers = |seed: u64, len: usize| (0..len as u64).map(|i| number(seed, i)).collect::<Vec<f32>>();
    let mut x = Buffer::new(device, TOKENS, COLS, elem)?;
    x.write_f32(&numbers(1, TOKENS * COLS))?;
    let memory = Memory::of_bytes(device, &bytes_of(&numbers(2, FEATURES * COLS), elem))?;
    let weight = Matrix::new(memory, [FEATURES, COLS], elem, Form::Floats, None)?;
    // Products read weights before they wait for what comes before.
    device.synchronize()?;
    let mut out = Buffer::new(device, TOKENS, FEATURES, ElemType::F32)?;
    out.set_rows(TOKENS);
    check(&out, &x, &weight);
    launch(&**device, Portable::Tile(TILE_64X64), &mut out, &x, &weight)?;
    let expected = out.first_rows_to_f32(TOKENS)?;
    let Some(call) = Call::new(&**device, Kernel::Split128, &x, &weight) else { return Ok(false) };
    call.launch(&mut out)?;
    let found = out.first_rows_to_f32(TOKENS)?;
    Ok(found.iter().zip(&expected).all(|(found, expected)| found.to_bits() == expected.to_bits()))
}

//! The launches of `kernels/linear_hopper.cu`: products of more than 16 tokens on a Hopper GPU, where their shape suits.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::cuda::{Kernel as Portable, MAX_ROWS, Segments, TILE_64X64, check, launch, ptr_of_rows};
use crate::backend::cuda::device::{Args, Device, Dims, ElemType, TensorMap};
use crate::backend::cuda::storage::{Buffer, Matrix, Memory, bytes_of};
use crate::config::Activation;
use crate::error::Result;
use crate::ops::gate_act_mul;

/// Tiles of tokens and of rows of the weights, and how the kernel ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// A cluster a tile, a block a segment: 64 tokens.
    Split64,
    /// The same of 128.
    Split128,
    /// Tile after tile, of 128 tokens or, by two blocks, of 256.
    Large(Ending, Blocks),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Matrices of several segments.
    Segments,
    /// Matrices of one.
    Whole,
    /// The same, whose rows are gate's and up's.
    Gated,
}

/// Blocks of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocks {
    One,
    Two,
}

impl Blocks {
    /// Two where few of the second ones have no tokens.
    fn of(num_tokens: usize) -> Self {
        let num = num_tokens.div_ceil(128);
        if num > 8 || num.is_multiple_of(2) { Self::Two } else { Self::One }
    }
}

/// A block, as `linear_hopper.cu` has it.
struct Block {
    tokens: usize,
    /// Rows of weights.
    rows: usize,
    stages: usize,
    threads: usize,
}

impl Kernel {
    fn block(self) -> Block {
        match self {
            Self::Split64 => Block { tokens: 64, rows: 128, stages: 4, threads: 160 },
            Self::Split128 => Block { tokens: 128, rows: 128, stages: 3, threads: 288 },
            Self::Large(Ending::Segments, _) => Block { tokens: 128, rows: 192, stages: 5, threads: 384 },
            Self::Large(..) => Block { tokens: 128, rows: 256, stages: 4, threads: 384 },
        }
    }

    fn name(self, elem: ElemType) -> &'static str {
        use Blocks::{One, Two};
        use Ending::{Gated, Segments, Whole};
        match self {
            Self::Split64 => elem.kernel("linear_hopper_split_64x128_bf16", "linear_hopper_split_64x128_f16"),
            Self::Split128 => elem.kernel("linear_hopper_split_128x128_bf16", "linear_hopper_split_128x128_f16"),
            Self::Large(Segments, One) => elem.kernel("linear_hopper_128x192_bf16", "linear_hopper_128x192_f16"),
            Self::Large(Segments, Two) => elem.kernel("linear_hopper_256x192_bf16", "linear_hopper_256x192_f16"),
            Self::Large(Whole, One) => elem.kernel("linear_hopper_128x256_bf16", "linear_hopper_128x256_f16"),
            Self::Large(Whole, Two) => elem.kernel("linear_hopper_256x256_bf16", "linear_hopper_256x256_f16"),
            Self::Large(Gated, One) => {
                elem.kernel("linear_hopper_gated_128x256_bf16", "linear_hopper_gated_128x256_f16")
            }
            Self::Large(Gated, Two) => {
                elem.kernel("linear_hopper_gated_256x256_bf16", "linear_hopper_gated_256x256_f16")
            }
        }
    }

    /// Blocks of a cluster.
    fn cluster(self, weight: &Matrix) -> usize {
        match self {
            Self::Split64 | Self::Split128 => Segments::of(weight).splits,
            Self::Large(_, Blocks::One) => 1,
            Self::Large(_, Blocks::Two) => 2,
        }
    }

    /// Blocks for all tiles.
    fn num_blocks(self, num_tokens: usize, weight: &Matrix) -> usize {
        let Block { tokens, rows, .. } = self.block();
        let (cluster, num_tokens) = (self.cluster(weight), num_tokens.div_ceil(tokens));
        let of_tokens = match self {
            Self::Large(..) => num_tokens.next_multiple_of(cluster),
            _ => num_tokens * cluster,
        };
        of_tokens * weight.rows.div_ceil(rows)
    }

    /// Whether its tiles occupy three of four multiprocessors: what waits for memory needs no more.
    fn fills(self, device: &dyn Device, num_tokens: usize, weight: &Matrix) -> bool {
        4 * self.num_blocks(num_tokens, weight) >= 3 * device.num_sms()
    }

    fn shared_bytes(self) -> usize {
        const ROW_BYTES: usize = 128;
        const OTHER_BYTES: usize = 1024 + 128;
        let Block { tokens, rows, stages, .. } = self.block();
        stages * (tokens + rows) * ROW_BYTES + OTHER_BYTES
    }
}

/// A product that suits.
pub(super) struct Call<'a> {
    device: &'a dyn Device,
    kernel: Kernel,
    num_tokens: usize,
    x: &'a TensorMap,
    map: &'a TensorMap,
    weight: &'a Matrix,
}

impl<'a> Call<'a> {
    /// `None` where the portable kernels must do, or do better.
    pub(super) fn choose(device: &'a dyn Device, x: &'a Buffer, weight: &'a Matrix) -> Option<Self> {
        let of_segments = Segments::of(weight).len < weight.cols;
        let ending = if of_segments { Ending::Segments } else { Ending::Whole };
        let large = Kernel::Large(ending, Blocks::of(x.rows()));
        let kernel = match x.rows() {
            0..=MAX_ROWS => return None,
            17..=64 => Kernel::Split64,
            num_tokens if large.fills(device, num_tokens, weight) => large,
            _ => Kernel::Split128,
        };
        Self::new(device, kernel, x, weight)
    }

    /// `None` where there is no such kernel, or shapes do not suit it.
    fn new(device: &'a dyn Device, kernel: Kernel, x: &'a Buffer, weight: &'a Matrix) -> Option<Self> {
        let (x_map, map) = (x.map()?, weight.map()?);
        let is_there =
            device.has_kernel(kernel.name(weight.elem)) && kernel.shared_bytes() <= device.max_shared_bytes();
        // Results are stored 16 bytes at a time.
        let is_gated = matches!(kernel, Kernel::Large(Ending::Gated, _));
        let suits = is_there && weight.rows.is_multiple_of(if is_gated { 16 } else { 8 });
        suits.then_some(Self { device, kernel, num_tokens: x.rows(), x: x_map, map, weight })
    }

    fn args(&self, out: &Buffer) -> Args {
        let Self { weight, num_tokens, .. } = *self;
        let args = Args::new().with(out.ptr()).with_map(self.x).with_map(self.map);
        let args = args.with(ptr_of_rows(weight, weight.bias.as_ref())).with(num_tokens).with(out.cols());
        args.with(weight.cols).with(Segments::of(weight).len).with(u32::from(out.elem() == ElemType::F32))
    }

    fn dims(&self) -> Dims {
        let cluster = self.kernel.cluster(self.weight);
        let mut num_blocks = self.kernel.num_blocks(self.num_tokens, self.weight);
        if matches!(self.kernel, Kernel::Large(..)) {
            num_blocks = num_blocks.min((self.device.num_sms() / cluster).max(1) * cluster);
        }
        let dims = Dims::linear(num_blocks, self.kernel.block().threads).in_clusters(cluster);
        dims.with_shared(self.kernel.shared_bytes())
    }

    /// Of the inputs that it was chosen for.
    pub(super) fn launch(&self, out: &mut Buffer) -> Result<()> {
        assert!(out.cols() == self.weight.rows && out.rows() == self.num_tokens, "invariant: shapes fit");
        let dims = self.dims();
        let args = self.args(out).with(dims.cluster);
        // SAFETY: shapes are compared above, by `new` and by `check` where the kernel is chosen; maps are the buffer's and the
        // matrix's own.
        unsafe { self.device.launch(self.kernel.name(self.weight.elem), &dims, &args) }
    }

    fn launch_gated(&self, out: &mut Buffer, act: Activation) -> Result<()> {
        assert!(2 * out.cols() == self.weight.rows && out.rows() == self.num_tokens, "invariant: shapes fit");
        assert_eq!(out.elem(), self.weight.elem, "invariant: outputs are as the inputs");
        let args = self.args(out).with(gate_act_mul::activation_kind(act));
        // SAFETY: as above.
        unsafe { self.device.launch(self.kernel.name(self.weight.elem), &self.dims(), &args) }
    }
}

/// out = act(gate) * up in one launch, where rows of x . weight^T + bias are gate's, then up's: whether it suits and was done. The
/// bits are those of two launches.
pub(crate) fn gated(
    device: &dyn Device,
    out: &mut Buffer,
    x: &Buffer,
    weight: &Matrix,
    act: Activation,
) -> Result<bool> {
    let num_tokens = x.rows();
    let kernel = Kernel::Large(Ending::Gated, Blocks::of(num_tokens));
    let is_large = num_tokens > 64 && kernel.fills(device, num_tokens, weight);
    if !is_large || Segments::of(weight).len < weight.cols {
        return Ok(false);
    }
    let Some(call) = Call::new(device, kernel, x, weight) else { return Ok(false) };
    out.set_rows(num_tokens);
    call.launch_gated(out, act)?;
    Ok(true)
}

/// Whether a device's products of warpgroups take their sums as its other ones do: some that the order and every lost bit of a
/// sum would change are computed by both. False where it has none.
pub(crate) fn adds_alike(device: &Arc<dyn Device>, elem: ElemType) -> Result<bool> {
    const TOKENS: usize = 128;
    const COLS: usize = 1024;
    const FEATURES: usize = 128;
    if !device.has_kernel(Kernel::Split128.name(elem)) {
        return Ok(false);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    // Of both signs and of magnitudes that differ, so that terms are cut off where they are aligned.
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fraction = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
        fraction * f32::from(1u16 << (state >> 33 & 7)) / 16.0
    };
    let mut numbers = |len: usize| (0..len).map(|_| number()).collect::<Vec<f32>>();
    let mut x = Buffer::new(device, TOKENS, COLS, elem)?;
    x.write_f32(&numbers(TOKENS * COLS))?;
    let memory = Memory::of_bytes(device, &bytes_of(&numbers(FEATURES * COLS), elem))?;
    let weight = Matrix::new(memory, [FEATURES, COLS], elem, None, None)?;
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

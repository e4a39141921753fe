//! `kernels/lora.cu`: the adapters of a matrix on a device, and its two launches.

use std::sync::Arc;

use super::Lora;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Args, Device, Dims, ElemType};
use crate::backend::cuda::storage::{Buffer, Memory, bytes_of};
use crate::error::Result;

/// Parts of a matrix at most, as the kernel has them.
const MAX_PARTS: usize = 3;
/// Threads of a block, as the kernel has them.
const THREADS: usize = 128;
/// Rows that a block takes where there are many, and how many those are. Fewer are taken one by one: each may have another adapter, and
/// blocks are to be had.
const TILE_ROWS: usize = 8;
const MANY_ROWS: usize = 64;

/// What adapters add to the products of one matrix. A and B have the type of activations.
pub struct CudaLora {
    /// [all ranks, cols], of each adapter those of its parts.
    a: Memory,
    /// Of each of them [rank, rows of the part].
    b: Memory,
    /// [num_adapters, num_parts]: the rank, its first row of `a`, and its first element of `b` in 8 bytes.
    updates: Memory,
    /// The rows that end the first part, and the second.
    part_ends: [usize; MAX_PARTS - 1],
    num_parts: usize,
    /// The greatest rank of a part.
    max_rank: usize,
    rows: usize,
    cols: usize,
    num_adapters: usize,
    elem: ElemType,
}

impl CudaLora {
    /// Brings them to a device, rounded to `elem`, a type of 16 bits.
    pub(crate) fn new(device: &Arc<dyn Device>, lora: &Lora, elem: ElemType) -> Result<Self> {
        let num_parts = lora.part_starts.len() - 1;
        assert!(num_parts <= MAX_PARTS, "invariant: q, k and v are the most that one matrix has");
        let (mut a, mut b, mut table) = (Vec::new(), Vec::new(), Vec::new());
        let mut max_rank = 0;
        for updates in &lora.adapters {
            for part in 0..num_parts {
                let update = updates.iter().find(|update| update.part == part);
                let rank = update.map_or(0, |update| update.rank);
                let first_row = a.len() / (lora.cols * elem.bytes());
                table.extend([rank as u32, first_row as u32].iter().flat_map(|word| word.to_le_bytes()));
                table.extend(((b.len() / elem.bytes()) as u64).to_le_bytes());
                max_rank = max_rank.max(rank);
                if let Some(update) = update {
                    a.extend(bytes_of(&update.a, elem));
                    b.extend(bytes_of(&update.b, elem));
                }
            }
        }
        let end = |part: usize| lora.part_starts.get(part + 1).copied().unwrap_or(lora.rows);
        Ok(Self {
            a: Memory::of_bytes(device, &a)?,
            b: Memory::of_bytes(device, &b)?,
            updates: Memory::of_bytes(device, &table)?,
            part_ends: [end(0), end(1)],
            num_parts,
            max_rank,
            rows: lora.rows,
            cols: lora.cols,
            num_adapters: lora.adapters.len(),
            elem,
        })
    }

    /// The type of A, B and the activations.
    #[cfg(test)]
    pub(crate) fn elem(&self) -> ElemType {
        self.elem
    }

    /// Elements of A . x of a row.
    pub(crate) fn hidden_len(&self) -> usize {
        self.num_parts * self.max_rank
    }
}

/// `x` and `out` have the adapters' type. `hidden`: room for A . x in f32, [rows, [`CudaLora::hidden_len`]].
pub(crate) fn cuda(
    device: &dyn Device,
    out: &mut Buffer,
    x: &Buffer,
    lora: &CudaLora,
    hidden: &Memory,
    batch: &DeviceBatch,
) -> Result<()> {
    let num_rows = x.rows();
    assert_eq!((x.cols(), out.cols()), (lora.cols, lora.rows), "invariant: shapes fit");
    assert_eq!((x.elem(), out.elem()), (lora.elem, lora.elem), "invariant: equal types");
    assert_eq!((out.rows(), batch.num_tokens()), (num_rows, num_rows), "invariant: a row for each token");
    assert!(batch.max_adapter() <= lora.num_adapters, "invariant: adapters are those that were loaded");
    assert!(4 * num_rows * lora.hidden_len() <= hidden.bytes(), "invariant: a step fits its scratch memory");
    let tile_rows = if num_rows > MANY_ROWS { TILE_ROWS } else { 1 };
    let kernel = |names: [[&'static str; 2]; 2]| {
        let [bf16, f16] = names[usize::from(tile_rows > 1)];
        lora.elem.kernel(bf16, f16)
    };
    let common = |args: Args| {
        let args = args.with(lora.updates.ptr()).with(batch.adapters()).with(num_rows);
        args.with(lora.num_parts).with(lora.max_rank)
    };
    let grid = |units: usize| [num_rows.div_ceil(tile_rows) as u32, units as u32, 1];
    let dims = |units: usize| Dims { grid: grid(units), ..Dims::linear(0, THREADS) };
    let args = common(Args::new().with(hidden.ptr()).with(x.ptr()).with(lora.a.ptr())).with(lora.cols);
    let shrink = kernel([["lora_shrink_bf16", "lora_shrink_f16"], ["lora_shrink_rows_bf16", "lora_shrink_rows_f16"]]);
    // SAFETY: the shapes were compared, the scratch memory has room, and adapters have entries in the table.
    unsafe { device.launch(shrink, &dims(lora.hidden_len()), &args)? };
    let args = common(Args::new().with(out.ptr()).with(hidden.ptr()).with(lora.b.ptr())).with(lora.rows);
    let args = args.with(lora.part_ends[0]).with(lora.part_ends[1]);
    let expand = kernel([["lora_expand_bf16", "lora_expand_f16"], ["lora_expand_rows_bf16", "lora_expand_rows_f16"]]);
    // SAFETY: as above.
    unsafe { device.launch(expand, &dims(lora.rows.div_ceil(THREADS)), &args) }
}

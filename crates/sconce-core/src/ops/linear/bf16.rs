//! Products of bf16 [`FloatPanels`] with inputs rounded to bf16, by `vdpbf16ps`: 32 products an instruction.
//!
//! An output is one chain of these in a lane of its own: it is the same bits whatever number of tokens is beside it.

use std::arch::x86_64::*;

use super::Target;
use super::float_panels::FloatPanels;
use super::panels::{Line, ROWS};
use crate::backend::cpu::{Buffer, SharedSlice, ThreadPool};

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows that one task rounds.
const TASK_ROWS: usize = 8;

/// Input rows in bf16, an odd number of columns made even by a zero.
#[derive(Debug, Default)]
pub(crate) struct Bf16Rows {
    rows: usize,
    /// Pairs of columns.
    pairs: usize,
    /// [rows, pairs].
    data: Vec<[half::bf16; 2]>,
}

impl Bf16Rows {
    /// Rounds the rows of `x`.
    pub(crate) fn fill(&mut self, pool: &mut ThreadPool, x: &Buffer) {
        let (cols, pairs) = (x.cols(), x.cols().div_ceil(2));
        (self.rows, self.pairs) = (x.rows(), pairs);
        self.data.resize((self.rows * pairs).max(self.data.len()), Default::default());
        let data = SharedSlice::new(&mut self.data);
        pool.run(x.rows().div_ceil(TASK_ROWS), &|task| {
            for row in task * TASK_ROWS..x.rows().min((task + 1) * TASK_ROWS) {
                // SAFETY: each task has rows of its own; the type is chosen where Isa::detect found the instructions.
                unsafe { round(data.range(row * pairs, pairs), &x.row(row)[..cols]) };
            }
        });
    }

    /// The rows as the products see them.
    #[cfg(test)]
    pub(super) fn dequantize(&self, cols: usize) -> Buffer {
        let rows = self.data.chunks_exact(self.pairs.max(1)).take(self.rows);
        let data = rows.flat_map(|row| row.iter().flatten().take(cols).map(|x| x.to_f32()));
        Buffer::from_vec(data.collect(), cols)
    }
}

/// # Safety
/// The machine has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn round(out: &mut [[half::bf16; 2]], x: &[f32]) {
    let out: &mut [half::bf16] = out.as_flattened_mut();
    out[x.len()..].fill(half::bf16::ZERO);
    for (out, x) in out.chunks_mut(16).zip(x.chunks(16)) {
        let mask = ((1u32 << x.len()) - 1) as u16;
        // SAFETY: the mask has as many lanes as there are inputs, and places for them.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x.as_ptr()));
            let bits = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, bits);
        }
    }
}

/// What one task multiplies.
struct Task<'a> {
    target: &'a Target<'a>,
    weight: &'a FloatPanels,
    first: usize,
    x: &'a Bf16Rows,
}

/// Panels `first..first + count` times the target's tokens.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL and BF16; the weights are bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn multiply(target: &Target<'_>, weight: &FloatPanels, first: usize, count: usize, x: &Bf16Rows) {
    let task = Task { target, weight, first, x };
    let chunk_rows = (CHUNK_BYTES / (4 * x.pairs).max(1)).next_multiple_of(8).max(8);
    let end_panel = first + count;
    for start in (target.first_token..target.end_token).step_by(chunk_rows) {
        let end = target.end_token.min(start + chunk_rows);
        let mut panel = first;
        while panel < end_panel {
            // SAFETY: tokens up to `end` and the panels exist.
            panel += unsafe {
                if end - start == 1 && panel + 4 <= end_panel {
                    tile::<4, 1>(&task, panel, start);
                    4
                } else if panel + 2 <= end_panel {
                    tokens::<2>(&task, panel, start, end);
                    2
                } else {
                    tokens::<1>(&task, panel, start, end);
                    1
                }
            };
        }
    }
}

/// `P` panels times tokens `t..end`.
///
/// # Safety
/// The machine has the instructions; the weights have the panels, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn tokens<const P: usize>(task: &Task<'_>, panel: usize, mut t: usize, end: usize) {
    // SAFETY: as the caller's.
    unsafe {
        while t + 8 <= end {
            tile::<P, 8>(task, panel, t);
            t += 8;
        }
        while t + 2 <= end {
            tile::<P, 2>(task, panel, t);
            t += 2;
        }
        if t < end {
            tile::<P, 1>(task, panel, t);
        }
    }
}

/// `P` panels times tokens `t0..t0 + T`.
///
/// # Safety
/// The machine has the instructions; the weights have the panels, the inputs the tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn tile<const P: usize, const T: usize>(task: &Task<'_>, panel: usize, t0: usize) {
    /// Pairs of columns that a lone token's weights are asked for ahead of their use.
    const AHEAD: usize = 32;
    let Bf16Rows { pairs, data, .. } = task.x;
    let mut lines = [std::ptr::null::<Line>(); P];
    for (p, lines) in lines.iter_mut().enumerate() {
        *lines = task.weight.lines_of(panel + p).as_ptr();
    }
    let mut x = [std::ptr::null::<i32>(); T];
    for (i, x) in x.iter_mut().enumerate() {
        *x = data[(t0 + i) * pairs..(t0 + i + 1) * pairs].as_ptr().cast();
    }
    let mut acc = [[_mm512_setzero_ps(); T]; P];
    for j in 0..*pairs {
        // SAFETY: a panel has a line of every pair, a token all pairs; both are plain bits.
        unsafe {
            let mut w = [_mm512_setzero_si512(); P];
            for p in 0..P {
                if T == 1 {
                    _mm_prefetch::<_MM_HINT_T0>(lines[p].wrapping_add(j + AHEAD).cast());
                }
                w[p] = _mm512_load_si512(lines[p].add(j).cast());
            }
            for i in 0..T {
                let pair = _mm512_set1_epi32(x[i].add(j).read_unaligned());
                for p in 0..P {
                    acc[p][i] = _mm512_dpbf16_ps(
                        acc[p][i],
                        std::mem::transmute::<__m512i, __m512bh>(w[p]),
                        std::mem::transmute::<__m512i, __m512bh>(pair),
                    );
                }
            }
        }
    }
    for (p, acc) in acc.into_iter().enumerate() {
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the task's own cells, of which no others are held here; the mask has no more lanes than there are.
            unsafe {
                let (out, bias) = task.target.cells(t0 + i, (panel + p - task.first) * ROWS);
                let mask = ((1u32 << out.len().min(ROWS)) - 1) as u16;
                let bias = bias.map_or(_mm512_setzero_ps(), |b| _mm512_maskz_loadu_ps(mask, b.as_ptr()));
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(acc, bias));
            }
        }
    }
}

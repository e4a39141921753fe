//! Products of [`FloatPanels`] with f32 inputs.
//!
//! An output is the sum of two chains of fused multiply-adds, one over the even columns and one over the odd ones, in a
//! lane of its own: it is the same bits whatever number of tokens is computed beside it.

use super::Target;
use super::float_panels::{FloatPanels, lines_of_pair};
use super::panels::{Line, ROWS};
use crate::backend::cpu::{Buffer, Isa};
use crate::ops::lanes::{Baseline, Lanes};
use crate::weights::Dtype;

/// Bytes of inputs that a pass over a task's panels goes through: they stay in the second cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Pairs of columns that a lone token's weights are asked for ahead of their use.
const AHEAD: usize = 32;

/// Formats as const parameters.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// What one task multiplies.
struct Task<'a> {
    target: &'a Target<'a>,
    weight: &'a FloatPanels,
    first: usize,
    count: usize,
    x: &'a Buffer,
}

/// Panels `first..first + count` times the target's tokens.
pub(super) fn multiply(isa: Isa, target: &Target<'_>, weight: &FloatPanels, first: usize, count: usize, x: &Buffer) {
    let task = Task { target, weight, first, count, x };
    #[cfg(target_arch = "x86_64")]
    {
        use crate::ops::lanes::{Avx2, Avx512};
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2(task: &Task<'_>) {
            // SAFETY: this function is called only where the machine has the instructions.
            unsafe { of_any_type::<Avx2>(task) }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512(task: &Task<'_>) {
            // SAFETY: as above.
            unsafe { of_any_type::<Avx512>(task) }
        }
        if isa >= Isa::Avx512 {
            // SAFETY: Isa::detect found these features on this machine.
            return unsafe { avx512(&task) };
        }
        if isa == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(&task) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    // SAFETY: every machine has the baseline.
    unsafe { of_any_type::<Baseline>(&task) }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn of_any_type<V: Lanes>(task: &Task<'_>) {
    // SAFETY: as the caller's.
    unsafe {
        match task.weight.dtype() {
            Dtype::F32 => run::<V, F32>(task),
            Dtype::F16 => run::<V, F16>(task),
            Dtype::BF16 => run::<V, BF16>(task),
            dtype => unreachable!("{dtype} is no float type"),
        }
    }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn run<V: Lanes, const F: u8>(task: &Task<'_>) {
    let chunk_rows = (CHUNK_BYTES / (4 * task.x.cols()).max(1)).next_multiple_of(12).max(12);
    let end_panel = task.first + task.count;
    for start in (task.target.first_token..task.target.end_token).step_by(chunk_rows) {
        let end = task.target.end_token.min(start + chunk_rows);
        let mut panel = task.first;
        while panel < end_panel {
            let most = end_panel - panel;
            // SAFETY: tokens up to `end` and the panels exist.
            panel += unsafe {
                if end - start == 1 && most >= 4 {
                    tile::<V, F, 4, 1>(task, panel, start);
                    4
                } else if V::NUM_REGISTERS >= 32 && most >= 2 {
                    tokens::<V, F, 2, 6>(task, panel, start, end);
                    2
                } else if V::NUM_REGISTERS >= 32 {
                    tokens::<V, F, 1, 6>(task, panel, start, end);
                    1
                } else {
                    tokens::<V, F, 1, 2>(task, panel, start, end);
                    1
                }
            };
        }
    }
}

/// `P` panels times tokens `t..end`, `T` of them (2 or 6) at a time.
///
/// # Safety
/// The machine has the instructions of `V`; the weights have the panels, the inputs the tokens.
#[inline(always)]
unsafe fn tokens<V: Lanes, const F: u8, const P: usize, const T: usize>(
    task: &Task<'_>,
    panel: usize,
    mut t: usize,
    end: usize,
) {
    // SAFETY: as the caller's.
    unsafe {
        while t + T <= end {
            tile::<V, F, P, T>(task, panel, t);
            t += T;
        }
        while T > 2 && t + 2 <= end {
            tile::<V, F, P, 2>(task, panel, t);
            t += 2;
        }
        if t < end {
            tile::<V, F, P, 1>(task, panel, t);
        }
    }
}

/// `P` panels times tokens `t0..t0 + T`.
///
/// # Safety
/// The machine has the instructions of `V`; the weights have the panels, the inputs the tokens.
#[inline(always)]
unsafe fn tile<V: Lanes, const F: u8, const P: usize, const T: usize>(task: &Task<'_>, panel: usize, t0: usize) {
    let cols = task.x.cols();
    let pair_lines = const { if F == F32 { lines_of_pair(Dtype::F32) } else { 1 } };
    let mut x = [std::ptr::null::<f32>(); T];
    for (i, x) in x.iter_mut().enumerate() {
        *x = task.x.row(t0 + i).as_ptr();
    }
    let mut lines = [std::ptr::null::<Line>(); P];
    for (p, lines) in lines.iter_mut().enumerate() {
        *lines = task.weight.lines_of(panel + p).as_ptr();
    }
    // SAFETY: the caller vouches for the instructions; a panel has lines of every pair, a token all columns.
    unsafe {
        let (mut even, mut odd) = ([[V::splat(0.0); T]; P], [[V::splat(0.0); T]; P]);
        for j in 0..cols / 2 {
            let mut w = [(V::splat(0.0), V::splat(0.0)); P];
            for p in 0..P {
                if T == 1 {
                    let next = lines[p].wrapping_add((j + AHEAD) * pair_lines);
                    (0..pair_lines).for_each(|line| V::prefetch(next.wrapping_add(line).cast()));
                }
                w[p] = load_pair::<V, F>(lines[p].add(j * pair_lines));
            }
            for i in 0..T {
                let (x0, x1) = (V::splat(*x[i].add(2 * j)), V::splat(*x[i].add(2 * j + 1)));
                for p in 0..P {
                    even[p][i] = even[p][i].fma(w[p].0, x0);
                    odd[p][i] = odd[p][i].fma(w[p].1, x1);
                }
            }
        }
        for p in 0..P {
            if cols % 2 == 1 {
                let last = load_pair::<V, F>(lines[p].add(cols / 2 * pair_lines)).0;
                for i in 0..T {
                    even[p][i] = even[p][i].fma(last, V::splat(*x[i].add(cols - 1)));
                }
            }
            for i in 0..T {
                let (out, bias) = task.target.cells(t0 + i, (panel + p - task.first) * ROWS);
                let (sum, n) = (even[p][i].add(odd[p][i]), out.len());
                if n == ROWS {
                    let bias = bias.map_or(V::splat(0.0), |bias| V::load(bias.as_ptr()));
                    sum.add(bias).store(out.as_mut_ptr());
                } else {
                    let bias = bias.map_or(V::splat(0.0), |bias| V::load_some(bias.as_ptr(), n));
                    sum.add(bias).store_some(out.as_mut_ptr(), n);
                }
            }
        }
    }
}

/// Two columns of a panel.
///
/// # Safety
/// The machine has the instructions of `V`; `lines` are those of a pair.
#[inline(always)]
unsafe fn load_pair<V: Lanes, const F: u8>(lines: *const Line) -> (V, V) {
    // SAFETY: as the caller's.
    unsafe {
        match F {
            F32 => (V::load(lines.cast()), V::load(lines.add(1).cast())),
            F16 => (V::load_f16(lines.cast()), V::load_f16(lines.cast::<u16>().add(ROWS))),
            _ => V::load_bf16_pairs(lines.cast()),
        }
    }
}

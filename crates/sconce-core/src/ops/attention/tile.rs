//! [`Tile`]: queries that read the same keys, and what attention does with them.

use std::ops::Range;

use super::products::{Keys, MOST_ROWS, MOST_SCORE_ROWS, SPAN, Weights, add_values, score_rows};
use super::{Call, PART_LEN};
use crate::backend::cpu::{Isa, SharedSlice};
use crate::ops::lanes::Lanes;
use crate::ops::simd::{self, LANES};

/// Queries that read the same keys: neighbours of one sequence, or one of each of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// The first query's row in the batch.
    pub(super) first_row: usize,
    /// Queries.
    pub(super) num_rows: usize,
    /// The first query's sequence.
    pub(super) first_seq: usize,
    /// Keys before this are the same for all; without bound where all are of one sequence.
    pub(super) shared_len: usize,
    /// The first key that any of them sees.
    pub(super) first_key: usize,
    /// One past the last key that any of them sees.
    pub(super) end_key: usize,
}

impl Tile {
    /// The parts of the context in which it sees keys.
    pub(super) fn parts(&self) -> Range<usize> {
        self.first_key / PART_LEN..self.end_key.div_ceil(PART_LEN)
    }

    pub(super) fn num_parts(&self) -> usize {
        self.parts().len()
    }
}

/// A softmax on its way: of each query head the greatest score, the sum of the weights, and the weighted sum of values.
#[derive(Debug, Default)]
struct Sums {
    max: Vec<f32>,
    total: Vec<f32>,
    /// [rows, head_dim].
    out: Vec<f32>,
}

impl Sums {
    fn clear(&mut self, rows: usize, dim: usize) {
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(rows, 0.0);
        self.out.clear();
        self.out.resize(rows * dim, 0.0);
    }
}

/// What a thread works on: rows are the query heads of a tile's queries, query after query.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    dim: usize,
    /// The part that is computed.
    part: Sums,
    /// The parts before it.
    sums: Sums,
    /// [rows, SPAN]: scores, then weights.
    scores: Vec<f32>,
    /// [rows]: what a span multiplies the sums before it with.
    shrink: Vec<f32>,
}

impl Scratch {
    pub(super) fn begin(&mut self, rows: usize, dim: usize) {
        self.dim = dim;
        self.part.clear(rows, dim);
        self.sums.clear(rows, dim);
        self.scores.resize(rows * SPAN, 0.0);
        self.shrink.resize(rows, 0.0);
    }

    /// Adds the part to those before it, and makes room for the next.
    pub(super) fn merge_part(&mut self) {
        let Self { dim, part, sums, .. } = self;
        for row in 0..part.max.len() {
            if part.total[row] == 0.0 {
                continue; // it sees no key there
            }
            let max = part.max[row].max(sums.max[row]);
            let (old, new) = (simd::exp::<false>(sums.max[row] - max), simd::exp::<false>(part.max[row] - max));
            sums.max[row] = max;
            sums.total[row] = sums.total[row] * old + part.total[row] * new;
            let range = row * *dim..(row + 1) * *dim;
            for (sum, &x) in sums.out[range.clone()].iter_mut().zip(&part.out[range]) {
                *sum = *sum * old + x * new;
            }
        }
        part.clear(sums.max.len(), *dim);
    }

    /// Puts the part away: sums, then maxima and totals.
    pub(super) fn save_part(&self, dst: &mut [f32]) {
        let (out, rest) = dst.split_at_mut(self.part.out.len());
        let (max, total) = rest.split_at_mut(self.part.max.len());
        out.copy_from_slice(&self.part.out);
        max.copy_from_slice(&self.part.max);
        total.copy_from_slice(&self.part.total);
    }

    /// Takes up a part that was put away.
    pub(super) fn load_part(&mut self, src: &[f32]) {
        let (out, rest) = src.split_at(self.part.out.len());
        let (max, total) = rest.split_at(self.part.max.len());
        self.part.out.copy_from_slice(out);
        self.part.max.copy_from_slice(max);
        self.part.total.copy_from_slice(total);
    }

    /// Writes what the parts came to.
    pub(super) fn write(&self, tile: &Tile, head: usize, group: usize, cols: usize, out: SharedSlice<'_, f32>) {
        let len = group * self.dim;
        for query in 0..tile.num_rows {
            // SAFETY: the task of this tile and key head alone writes the head's query heads of these rows.
            let dst = unsafe { out.range((tile.first_row + query) * cols + head * len, len) };
            let rows = query * group..(query + 1) * group;
            let src = self.sums.out[query * len..(query + 1) * len].chunks_exact(self.dim);
            for ((dst, src), total) in dst.chunks_exact_mut(self.dim).zip(src).zip(&self.sums.total[rows]) {
                let factor = 1.0 / total;
                dst.iter_mut().zip(src).for_each(|(dst, src)| *dst = src * factor);
            }
        }
    }
}

/// One part of a tile for one key head: `scratch.part`.
pub(super) fn attend(isa: Isa, call: &Call<'_>, tile: &Tile, head: usize, part: usize, scratch: &mut Scratch) {
    let task = Task { call, tile, head, part };
    #[cfg(target_arch = "x86_64")]
    {
        use crate::ops::lanes::{Avx2, Avx512};
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2(task: &Task<'_>, scratch: &mut Scratch) {
            // SAFETY: this function is called only where the machine has the instructions.
            unsafe { attend_part::<Avx2, true>(task, scratch) }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512(task: &Task<'_>, scratch: &mut Scratch) {
            // SAFETY: as above.
            unsafe { attend_part::<Avx512, true>(task, scratch) }
        }
        if isa >= Isa::Avx512 {
            // SAFETY: Isa::detect found these features on this machine.
            return unsafe { avx512(&task, scratch) };
        }
        if isa == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(&task, scratch) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    // SAFETY: every machine has the baseline.
    unsafe { attend_part::<[f32; LANES], false>(&task, scratch) }
}

struct Task<'a> {
    call: &'a Call<'a>,
    tile: &'a Tile,
    head: usize,
    part: usize,
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn attend_part<V: Lanes, const FMA: bool>(task: &Task<'_>, scratch: &mut Scratch) {
    let Task { tile, part, .. } = *task;
    let end = tile.end_key.min((part + 1) * PART_LEN);
    let mut start = tile.first_key.max(part * PART_LEN) / SPAN * SPAN;
    while start < end {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if start + SPAN <= tile.shared_len {
                attend_span::<V, FMA>(task, scratch, start, 0..tile.num_rows);
            } else {
                for query in 0..tile.num_rows {
                    attend_span::<V, FMA>(task, scratch, start, query..query + 1);
                }
            }
        }
        start += SPAN;
    }
}

/// Keys from `start` on for some queries, which read them from the first one's blocks.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn attend_span<V: Lanes, const FMA: bool>(
    task: &Task<'_>,
    scratch: &mut Scratch,
    start: usize,
    queries: Range<usize>,
) {
    let Task { call, tile, head, .. } = *task;
    let Call { qkv, kv, batch, spec } = *call;
    let (dim, group, block_size) = (spec.head_dim, spec.num_heads / spec.num_kv_heads, kv.shape.block_size);
    let position = |query: usize| batch.positions[tile.first_row + query] as usize;
    let mut num_keys = 0;
    for query in queries.clone() {
        num_keys = num_keys.max((position(query) + 1).min(start + SPAN).saturating_sub(start));
    }
    if num_keys == 0 {
        return;
    }
    let seq = if tile.shared_len == usize::MAX { tile.first_seq } else { tile.first_seq + queries.start };
    let table = &batch.block_tables[batch.sequences[seq].table_start + start / block_size..];
    let lanes = LANES.min(block_size);
    let rows = queries.start * group..queries.end * group;
    let mut q = [std::ptr::null(); super::MAX_GROUP];
    for (at, row) in rows.clone().enumerate() {
        let query = qkv.row(tile.first_row + row / group);
        q[at] = query[(head * group + row % group) * dim..][..dim].as_ptr();
    }
    let (keys, values) = (kv.k[spec.layer].as_ptr(), kv.v[spec.layer].as_ptr());
    let key_at = |key: usize| {
        let key = start + key;
        let block = table[key / block_size - start / block_size];
        kv.shape.tile_start(block, head) + kv.shape.key_offset(key % block_size, 0)
    };

    // Scores, for as many vectors of keys as there are.
    let num_vectors = num_keys.div_ceil(lanes);
    let mut vector = 0;
    while vector < num_vectors {
        let count = if vector + 4 <= num_vectors { 4 } else { 1 };
        let mut k = [keys; 4];
        for i in 0..count {
            // SAFETY: the key's block is in the cache, with room for all lanes of it.
            k[i] = unsafe { keys.add(key_at((vector + i) * lanes)) };
        }
        let mut row = 0;
        while row < rows.len() {
            let n = MOST_SCORE_ROWS.min(rows.len() - row);
            let dst = scratch.scores[(rows.start + row) * SPAN + vector * lanes..].as_mut_ptr();
            let keys = Keys { k, dim, stride: block_size, lanes };
            // SAFETY: the caller vouches for the instructions; rows and keys exist.
            unsafe { score_rows::<V>(n, count, &q[row..], &keys, spec.scale, dst) };
            row += n;
        }
        vector += count;
    }

    for query in queries.clone() {
        let pos = position(query);
        let first = spec.window.map_or(0, |w| (pos + 1).saturating_sub(w));
        let seen = first.saturating_sub(start).min(SPAN)..(pos + 1).saturating_sub(start).min(SPAN);
        for row in query * group..(query + 1) * group {
            // SAFETY: the caller vouches for the instructions.
            unsafe { weigh::<V, FMA>(scratch, row, seen.clone(), num_keys, spec.softcap) };
        }
    }

    // Values: a block's are in one stretch.
    let mut row = rows.start;
    while row < rows.end {
        let n = MOST_ROWS.min(rows.end - row);
        let weights = Weights {
            shrink: &scratch.shrink[row..row + n],
            weights: scratch.scores[row * SPAN..].as_ptr(),
            num_keys,
            block_size,
            dim,
        };
        let out = scratch.part.out[row * dim..].as_mut_ptr();
        let value_at = |key: usize| {
            let block = table[(start + key) / block_size - start / block_size];
            // SAFETY: the block is in the cache.
            unsafe {
                values.add(kv.shape.tile_start(block, head) + kv.shape.value_offset((start + key) % block_size, 0))
            }
        };
        let mut blocks = [values; SPAN];
        let mut num_blocks = 0;
        while num_blocks * block_size.min(SPAN) < num_keys {
            blocks[num_blocks] = value_at(num_blocks * block_size.min(SPAN));
            num_blocks += 1;
        }
        // SAFETY: the caller vouches for the instructions; rows and values exist.
        unsafe { add_values::<V>(n, &weights, &blocks[..num_blocks], out) };
        row += n;
    }
}

/// Turns a row's scores into weights, of which only those of the keys `seen` are above 0.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn weigh<V: Lanes, const FMA: bool>(
    scratch: &mut Scratch,
    row: usize,
    seen: Range<usize>,
    num_keys: usize,
    softcap: Option<f32>,
) {
    let scores = &mut scratch.scores[row * SPAN..(row + 1) * SPAN];
    if seen.is_empty() {
        scores.fill(0.0);
        scratch.shrink[row] = 1.0;
        return;
    }
    if let Some(cap) = softcap {
        for score in &mut scores[seen.clone()] {
            *score = cap * simd::tanh::<FMA>(*score / cap);
        }
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let scores = &mut scores[..num_keys.next_multiple_of(LANES)];
    // SAFETY: the caller vouches for the instructions; whole vectors of scores.
    let max = unsafe {
        let mut max = V::splat(f32::NEG_INFINITY);
        for scores in scores.as_chunks::<LANES>().0 {
            max = max.max(V::load(scores.as_ptr()));
        }
        let mut lanes = [0.0f32; LANES];
        max.store(lanes.as_mut_ptr());
        lanes.iter().fold(scratch.part.max[row], |max, &lane| if lane > max { lane } else { max })
    };
    for score in scores.iter_mut() {
        *score = simd::exp::<FMA>(*score - max);
    }
    // SAFETY: as above.
    let total = unsafe {
        let mut total = V::splat(0.0);
        for weights in scores.as_chunks::<LANES>().0 {
            total = total.add(V::load(weights.as_ptr()));
        }
        let mut lanes = [0.0f32; LANES];
        total.store(lanes.as_mut_ptr());
        simd::sum_lanes(lanes)
    };
    let shrink = simd::exp::<FMA>(scratch.part.max[row] - max);
    scratch.shrink[row] = shrink;
    scratch.part.total[row] = simd::mul_add::<FMA>(scratch.part.total[row], shrink, total);
    scratch.part.max[row] = max;
}

//! [`Tile`]: queries that read the same keys, and what attention does with them.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::products::{Element, Keys, MOST_ROWS, SPAN, Weights, add_values, convert, score_rows};
use super::scratch::Scratch;
use super::softmax::{LOG2_E, mask, weigh};
use super::{Call, PART_LEN};
use crate::backend::cpu::{Buffer, Isa, KvCache};
use crate::backend::{AttentionSpec, Batch, KvDtype};
use crate::ops::lanes::{Baseline, Lanes};
use crate::ops::simd::LANES;

/// From so many rows on, a span's keys and values are converted to f32 once for all of them.
const CONVERT_ROWS: usize = 2 * MOST_ROWS;

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

/// One part of a tile for one key head: `scratch.part`.
pub(super) fn attend<E: Element>(
    isa: Isa,
    call: &Call<'_>,
    tile: &Tile,
    head: usize,
    part: usize,
    scratch: &mut Scratch,
) {
    let Call { qkv, kv, batch, spec, in_bf16, .. } = *call;
    let [keys, values] = kv.layer::<E>(spec.layer);
    let task = Task { qkv, kv, batch, spec, keys, values, tile, head, part, in_bf16 };
    let task = &task;
    #[cfg(target_arch = "x86_64")]
    {
        use crate::ops::lanes::{Avx2, Avx512};
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<E: Element>(task: &Task<'_, E>, scratch: &mut Scratch) {
            // SAFETY: this function is called only where the machine has the instructions.
            unsafe { attend_part::<Avx2, E, true>(task, scratch) }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512<E: Element>(task: &Task<'_, E>, scratch: &mut Scratch) {
            // SAFETY: as above.
            unsafe { attend_part::<Avx512, E, true>(task, scratch) }
        }
        if isa >= Isa::Avx512 {
            // SAFETY: Isa::detect found these features on this machine.
            return unsafe { avx512(task, scratch) };
        }
        if isa == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(task, scratch) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    // SAFETY: every machine has the baseline.
    unsafe { attend_part::<Baseline, E, { cfg!(target_arch = "aarch64") }>(task, scratch) }
}

struct Task<'a, E> {
    qkv: &'a Buffer,
    kv: &'a KvCache,
    batch: &'a Batch,
    spec: &'a AttentionSpec,
    /// The layer's.
    keys: &'a [E],
    values: &'a [E],
    tile: &'a Tile,
    head: usize,
    part: usize,
    in_bf16: bool,
}

impl<E> Task<'_, E> {
    fn position(&self, query: usize) -> usize {
        self.batch.positions[self.tile.first_row + query] as usize
    }

    fn group(&self) -> usize {
        self.spec.num_heads / self.spec.num_kv_heads
    }

    /// Where the head's tile begins, of the block that holds the key at `pos` of sequence `seq`.
    fn tile_start(&self, seq: usize, pos: usize) -> usize {
        let first = self.batch.sequences[seq].table_starts[self.kv.places[self.spec.layer].group];
        self.kv.shape.tile_start(self.batch.block_tables[first + pos / self.kv.shape.block_size], self.head)
    }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn attend_part<V: Lanes, E: Element, const FMA: bool>(task: &Task<'_, E>, scratch: &mut Scratch) {
    let Task { tile, part, .. } = *task;
    let end = tile.end_key.min((part + 1) * PART_LEN);
    let mut start = tile.first_key.max(part * PART_LEN) / SPAN * SPAN;
    #[cfg(target_arch = "x86_64")]
    if task.in_bf16 {
        round_queries(task, scratch);
    }
    while start < end {
        let is_shared = start + SPAN <= tile.shared_len;
        if is_shared && tile.num_rows * task.group() < CONVERT_ROWS && start + SPAN < end {
            // SAFETY: the caller vouches for the instructions.
            unsafe { prefetch::<V, E>(task, start + SPAN..end.min(start + 2 * SPAN)) };
        }
        // All queries at once, or each by itself; in one place, as it is a lot of code.
        let step = if is_shared { tile.num_rows } else { 1 };
        for query in (0..tile.num_rows).step_by(step) {
            // SAFETY: as above.
            unsafe { attend_span::<V, E, FMA>(task, scratch, start, query..query + step) };
        }
        start += SPAN;
    }
    scratch.end_part();
}

/// Asks for the keys and values of a span that comes next: a head's are in short stretches, which the machine does not
/// foresee.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn prefetch<V: Lanes, E: Element>(task: &Task<'_, E>, span: Range<usize>) {
    const LINE: usize = 64;
    let (block_size, dim) = (task.kv.shape.block_size, task.spec.head_dim);
    let tile_bytes = block_size * dim * size_of::<E>();
    for pos in span.step_by(block_size) {
        let start = task.tile_start(task.tile.first_seq, pos);
        for tile in [task.keys[start..].as_ptr(), task.values[start..].as_ptr()] {
            for at in (0..tile_bytes).step_by(LINE) {
                V::prefetch(tile.cast::<u8>().wrapping_add(at));
            }
        }
    }
}

/// Keys from `start` on for some queries, which read them from the first one's blocks.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn attend_span<V: Lanes, E: Element, const FMA: bool>(
    task: &Task<'_, E>,
    scratch: &mut Scratch,
    start: usize,
    queries: Range<usize>,
) {
    let (spec, tile, group) = (task.spec, task.tile, task.group());
    let (dim, block_size) = (spec.head_dim, task.kv.shape.block_size);
    let first_seen = |query: usize| spec.window.map_or(0, |w| (task.position(query) + 1).saturating_sub(w));
    let (mut num_keys, mut first_key) = (0, usize::MAX);
    for query in queries.clone() {
        num_keys = num_keys.max((task.position(query) + 1).min(start + SPAN).saturating_sub(start));
        first_key = first_key.min(first_seen(query));
    }
    if num_keys == 0 {
        return;
    }
    let seq = if tile.shared_len == usize::MAX { tile.first_seq } else { tile.first_seq + queries.start };
    let rows = queries.start * group..queries.end * group;
    let lanes = LANES.min(block_size);
    // Vectors of keys, and stretches of values.
    let mut keys = [task.keys.as_ptr(); SPAN];
    for (i, key) in keys.iter_mut().enumerate().take(num_keys.div_ceil(lanes)) {
        let pos = start + i * lanes;
        let place = task.tile_start(seq, pos) + task.kv.shape.key_offset(pos % block_size, 0);
        // SAFETY: the key's block is in the cache, with room for all lanes of it.
        *key = unsafe { task.keys.as_ptr().add(place) };
    }
    let stretch = block_size.min(SPAN);
    let mut values = [task.values.as_ptr(); SPAN];
    let num_stretches = num_keys.div_ceil(stretch);
    for (i, value) in values.iter_mut().enumerate().take(num_stretches) {
        let pos = start + i * stretch;
        if pos + stretch <= first_key {
            // The block may be another sequence's by now, and its values no numbers: those times a weight of 0 would show.
            *value = scratch.zeros.as_ptr().cast();
            continue;
        }
        let place = task.tile_start(seq, pos) + task.kv.shape.value_offset(pos % block_size, 0);
        // SAFETY: as above.
        *value = unsafe { task.values.as_ptr().add(place) };
    }
    let is_converted = !task.in_bf16
        && E::DTYPE != KvDtype::F32
        && rows.len() >= CONVERT_ROWS
        && lanes == LANES
        && dim.is_multiple_of(LANES);
    let span = Span { rows: rows.clone(), num_keys, lanes, stride: block_size, stretch };
    let seen = |query: usize| {
        let end = task.position(query) + 1;
        first_seen(query).saturating_sub(start).min(SPAN)..end.saturating_sub(start).min(SPAN)
    };
    // SAFETY: the caller vouches for the instructions; the pointers are good for the keys of the span.
    unsafe {
        if task.in_bf16 {
            #[cfg(target_arch = "x86_64")]
            score_span_bf16(task, scratch, &span, &keys, &values[..num_stretches]);
        } else if is_converted {
            let converted = convert_span::<V, E>(scratch, &span, dim, &keys, &values[..num_stretches]);
            score_span::<V, f32>(task, scratch, &converted.0, &converted.1);
        } else {
            score_span::<V, E>(task, scratch, &span, &keys);
        }
        for query in queries {
            for row in query * group..(query + 1) * group {
                mask::<V, FMA>(scratch, row, seen(query), num_keys, spec.softcap);
            }
        }
        weigh::<V>(scratch, rows, num_keys);
        if task.in_bf16 {
            #[cfg(target_arch = "x86_64")]
            add_span_bf16(scratch, &span, dim);
        } else if is_converted {
            let span = Span { stretch: SPAN, ..span };
            add_span::<V, f32>(scratch, &span, dim, &[scratch.values.as_ptr()]);
        } else {
            add_span::<V, E>(scratch, &span, dim, &values[..num_stretches]);
        }
    }
}

/// Keys of one span, for some rows.
struct Span {
    rows: Range<usize>,
    num_keys: usize,
    /// Keys of a vector.
    lanes: usize,
    /// From one dimension of a key to the next.
    stride: usize,
    /// Values one after another.
    stretch: usize,
}

/// Converts a span's keys to `scratch.keys` and its values to `scratch.values`. Returns how and where the keys are now.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many keys and values, 16 keys to a vector.
#[inline(always)]
unsafe fn convert_span<V: Lanes, E: Element>(
    scratch: &mut Scratch,
    span: &Span,
    dim: usize,
    keys: &[*const E; SPAN],
    values: &[*const E],
) -> (Span, [*const f32; SPAN]) {
    let mut converted = [scratch.keys.as_ptr(); SPAN];
    // SAFETY: the caller vouches for the instructions, keys and values; the scratch has room for a span.
    unsafe {
        for (i, &key) in keys[..span.num_keys.div_ceil(LANES)].iter().enumerate() {
            let dst = scratch.keys.as_mut_ptr().add(i * LANES);
            for d in 0..dim {
                E::load::<V>(key.add(d * span.stride)).store(dst.add(d * SPAN));
            }
            converted[i] = dst;
        }
        for (i, &value) in values.iter().enumerate() {
            let first = i * span.stretch;
            let num = span.stretch.min(span.num_keys - first) * dim;
            convert::<V, E>(value, num, scratch.values.as_mut_ptr().add(first * dim));
        }
    }
    (Span { rows: span.rows.clone(), stride: SPAN, ..*span }, converted)
}

/// Scores of a span's rows, for as many vectors of keys as there are.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many keys.
#[inline(always)]
unsafe fn score_span<V: Lanes, E: Element>(
    task: &Task<'_, impl Element>,
    scratch: &mut Scratch,
    span: &Span,
    keys: &[*const E; SPAN],
) {
    let (spec, tile, group) = (task.spec, task.tile, task.group());
    // Weights are powers of two. What is capped is scaled after that.
    let scale = if spec.softcap.is_some() { spec.scale } else { spec.scale * LOG2_E };
    let mut q = [std::ptr::null(); super::MAX_GROUP];
    for (at, row) in span.rows.clone().enumerate() {
        let query = task.qkv.row(tile.first_row + row / group);
        q[at] = query[(task.head * group + row % group) * spec.head_dim..][..spec.head_dim].as_ptr();
    }
    let num_vectors = span.num_keys.div_ceil(span.lanes);
    let mut vector = 0;
    while vector < num_vectors {
        let count = if vector + 4 <= num_vectors { 4 } else { 1 };
        let mut k = [keys[vector]; 4];
        k[..count].copy_from_slice(&keys[vector..vector + count]);
        let keys = Keys { k, dim: spec.head_dim, stride: span.stride, lanes: span.lanes };
        let mut row = 0;
        while row < span.rows.len() {
            let n = MOST_ROWS.min(span.rows.len() - row);
            let dst = scratch.scores[(span.rows.start + row) * SPAN + vector * span.lanes..].as_mut_ptr();
            // SAFETY: the caller vouches for the instructions and the keys; rows exist.
            unsafe { score_rows::<V, E>(n, count, &q[row..], &keys, scale, dst) };
            row += n;
        }
        vector += count;
    }
}

/// Adds a span's weighted values to its rows' sums.
///
/// # Safety
/// The machine has the instructions of `V`; there are as many values.
#[inline(always)]
unsafe fn add_span<V: Lanes, E: Element>(scratch: &mut Scratch, span: &Span, dim: usize, values: &[*const E]) {
    let mut row = span.rows.start;
    while row < span.rows.end {
        let n = MOST_ROWS.min(span.rows.end - row);
        let weights = Weights {
            shrink: &scratch.shrink[row..row + n],
            weights: scratch.scores[row * SPAN..].as_ptr(),
            num_keys: span.num_keys,
            block_size: span.stretch,
            dim,
        };
        let out = scratch.part.out[row * dim..].as_mut_ptr();
        // SAFETY: the caller vouches for the instructions and the values; rows exist.
        unsafe { add_values::<V, E>(n, &weights, values, out) };
        row += n;
    }
}

/// The tile's queries to `scratch.queries`.
#[cfg(target_arch = "x86_64")]
fn round_queries<E: Element>(task: &Task<'_, E>, scratch: &mut Scratch) {
    let (dim, len) = (task.spec.head_dim, task.group() * task.spec.head_dim);
    for query in 0..task.tile.num_rows {
        let src = &task.qkv.row(task.tile.first_row + query)[task.head * len..][..len];
        let dst = scratch.queries[query * task.group() * (dim / 2)..][..len / 2].as_mut_ptr();
        // SAFETY: in_bf16 says that the machine has the instructions, and that heads are whole vectors.
        unsafe { bf16::round(src.as_ptr(), src.len(), dst) };
    }
}

/// [`score_span`] of keys, and values made ready, that are rounded.
///
/// # Safety
/// The machine has AVX-512 and BF16; there are as many keys and values.
#[cfg(target_arch = "x86_64")]
unsafe fn score_span_bf16<E: Element>(
    task: &Task<'_, E>,
    scratch: &mut Scratch,
    span: &Span,
    keys: &[*const E; SPAN],
    values: &[*const E],
) {
    let (spec, rows) = (task.spec, &span.rows);
    let scale = if spec.softcap.is_some() { spec.scale } else { spec.scale * LOG2_E };
    let num_vectors = span.num_keys.div_ceil(LANES);
    let Scratch { queries, keys: rounded, values: rounded_values, scores, .. } = scratch;
    // SAFETY: the caller vouches for the instructions, keys and values; the scratch has room for a span.
    unsafe {
        bf16::round_keys(rounded, &keys[..num_vectors], spec.head_dim, span.stride);
        bf16::round_values(rounded_values, values, span.num_keys, spec.head_dim, span.stretch);
        let q = queries[rows.start * (spec.head_dim / 2)..].as_ptr();
        let dst = scores[rows.start * SPAN..].as_mut_ptr();
        bf16::score(dst, (q, rows.len()), rounded, num_vectors, spec.head_dim, scale);
    }
}

/// [`add_span`] of weights that are rounded, and values that were.
///
/// # Safety
/// The machine has AVX-512 and BF16; [`score_span_bf16`] was called for the span.
#[cfg(target_arch = "x86_64")]
unsafe fn add_span_bf16(scratch: &mut Scratch, span: &Span, dim: usize) {
    let Scratch { part, shrink, scores, values, .. } = scratch;
    let num_weights = span.num_keys.next_multiple_of(LANES);
    for row in span.rows.clone() {
        let weights = scores[row * SPAN..][..num_weights].as_mut_ptr();
        // SAFETY: the caller vouches for the instructions; pairs take less room than what they are made of, vector after
        // vector.
        unsafe { bf16::round(weights, num_weights, weights) };
    }
    let rows = &span.rows;
    // SAFETY: the caller vouches for the instructions and the values; rows exist.
    unsafe {
        let out = part.out[rows.start * dim..].as_mut_ptr();
        let weights = scores[rows.start * SPAN..].as_ptr();
        bf16::add_values(out, &shrink[rows.clone()], weights, values, span.num_keys, dim);
    }
}

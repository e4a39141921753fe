//! `attention`: softmax(q . K^T * scale) . V over the paged cache, causal, grouped-query, with an optional sliding
//! window and soft cap. With sinks (Xiao et al. 2023; Hugging Face's `modeling_gpt_oss.py`) a row's exponentials are divided by their
//! sum and that of its head's sink.
//!
//! The CPU's kernel works on tiles: some queries that read the same keys, for one key head with all its query heads.
//! Those are neighbours of one prompt, or the sequences of a [`SharedPrefix`](crate::backend::SharedPrefix), each of
//! which goes on alone where its own blocks begin. Keys are taken in spans with an online softmax (Milakov and
//! Gimelshein 2018); at fixed positions it begins anew, so that a long context can be shared among threads, and the parts
//! are put together in order. Where spans and parts begin depends on the position alone, and each query has sums of
//! its own: its result depends neither on its tile nor on how its prompt was cut into chunks. Bounded by the cache's
//! bytes when decoding, by FLOPs (4 * head_dim a query head and key) in prompts.

#[cfg(target_arch = "x86_64")]
mod bf16;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub(crate) mod decode;
pub(crate) mod hopper;
#[cfg(test)]
mod hopper_tests;
mod products;
pub(crate) mod rope;
mod scratch;
pub(crate) mod shared;
mod softmax;
#[cfg(test)]
mod tests;
mod tile;
pub(crate) mod timing;

use std::cell::RefCell;

use crate::backend::cpu::{Buffer, Cpu, Isa, KvCache, SharedSlice, with_kv_elem};
use crate::backend::{AttentionSpec, Batch, LayerAttention, SharedPrefix};
use crate::config::MatmulPrecision;
use products::Element;
use scratch::Scratch;
use tile::Tile;

/// Most query heads a key head.
pub const MAX_GROUP: usize = 64;
/// Query heads that a tile has room for, unless one query alone has more.
const TILE_ROWS: usize = 48;
/// Keys of a part: what one thread goes through in one stretch where there are fewer tiles than threads like.
const PART_LEN: usize = 512;

/// `qkv`: [num_tokens, qkv_dim], q turned and k, v in the cache already. `out`: [num_tokens, num_heads * head_dim].
/// `sinks`: [num_heads]. In f64, with all of a query's scores at once.
pub fn reference(
    out: &mut Buffer,
    qkv: &Buffer,
    kv: &KvCache,
    batch: &Batch,
    LayerAttention { spec, sinks }: LayerAttention<'_, Vec<f32>>,
) {
    let (dim, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let (block_size, place, start) = (kv.shape.block_size, kv.places[spec.layer], kv.start(spec.layer));
    out.set_rows(qkv.rows());
    for seq in &batch.sequences {
        for t in seq.query_start..seq.query_start + seq.query_len {
            let pos = batch.positions[t] as usize;
            let first = spec.window.map_or(0, |w| (pos + 1).saturating_sub(w));
            for head in 0..spec.num_heads {
                let table = &batch.block_tables[seq.table_starts[place.group]..];
                let tile = |j: usize| start + kv.shape.tile_start(table[j / block_size], head / group);
                let key = |j: usize, d: usize| kv.k[place.array].get(tile(j) + kv.shape.key_offset(j % block_size, d));
                let value =
                    |j: usize, d: usize| kv.v[place.array].get(tile(j) + kv.shape.value_offset(j % block_size, d));
                let q = &qkv.row(t)[head * dim..(head + 1) * dim];
                let score = |j: usize| {
                    let dot: f64 = q.iter().enumerate().map(|(d, &q)| f64::from(q) * f64::from(key(j, d))).sum();
                    let scaled = dot * f64::from(spec.scale);
                    spec.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (first..=pos).map(score).collect();
                let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
                let max = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total = weights.iter().sum::<f64>() + (sink - max).exp();
                let cols = out.cols();
                for d in 0..dim {
                    let sum: f64 = (first..=pos).zip(&weights).map(|(j, w)| w * f64::from(value(j, d))).sum();
                    out.data_mut()[t * cols + head * dim + d] = (sum / total) as f32;
                }
            }
        }
    }
}

/// The tiles of a step and what their parts leave behind; kept to be allocated once.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    tiles: Vec<Tile>,
    /// Before each tile: the tasks of the parts, and the numbers that they leave behind.
    starts: Vec<(usize, usize)>,
    /// Of each tile and key head the parts: [parts, rows, head_dim + 2].
    parts: Vec<f32>,
}

/// One call: what all tasks see.
struct Call<'a> {
    qkv: &'a Buffer,
    kv: &'a KvCache,
    batch: &'a Batch,
    spec: &'a AttentionSpec,
    /// One a query head.
    sinks: Option<&'a [f32]>,
    /// Whether both products are of numbers rounded to bf16.
    in_bf16: bool,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The same over the threads, in f32, or in bf16 where that is fast and asked for: one task a tile and key head, or a part of one where those are few.
pub(crate) fn cpu(
    cpu: &mut Cpu,
    out: &mut Buffer,
    qkv: &Buffer,
    kv: &KvCache,
    batch: &Batch,
    LayerAttention { spec, sinks }: LayerAttention<'_, Vec<f32>>,
) {
    let sinks = sinks.map(Vec::as_slice);
    assert!(sinks.is_none_or(|sinks| sinks.len() == spec.num_heads), "invariant: a sink a head");
    #[cfg(target_arch = "x86_64")]
    let in_bf16 = is_in_bf16(cpu) && bf16::suits(spec.head_dim, kv.shape.block_size);
    #[cfg(not(target_arch = "x86_64"))]
    let in_bf16 = false;
    with_kv_elem!(kv.shape.dtype, E => run::<E>(cpu, out, &Call { qkv, kv, batch, spec, sinks, in_bf16 }));
}

/// Whether products are of numbers rounded to bf16, of heads that are whole vectors.
pub(crate) fn is_in_bf16(cpu: &Cpu) -> bool {
    cpu.precision == MatmulPrecision::Fast && cpu.isa >= Isa::Avx512Bf16
}

fn run<E: Element>(cpu: &mut Cpu, out: &mut Buffer, call: &Call<'_>) {
    let Call { qkv, kv, batch, spec, sinks, .. } = *call;
    let (dim, heads, isa) = (spec.head_dim, spec.num_kv_heads, cpu.isa);
    let group = spec.num_heads / heads;
    assert!(group <= MAX_GROUP, "invariant: checked when the model was loaded");
    assert_eq!(out.cols(), spec.num_heads * dim, "invariant: all heads");
    out.set_rows(qkv.rows());
    let Plan { tiles, starts, parts } = &mut cpu.attention;
    let runs = &batch.shared_prefixes[kv.places[spec.layer].group];
    plan_tiles(tiles, (batch, runs), spec, kv.shape.block_size);
    let cols = out.cols();
    let out = SharedSlice::new(out.data_mut());
    if tiles.len() * heads >= 3 * cpu.pool.num_threads() || tiles.iter().all(|tile| tile.num_parts() <= 1) {
        cpu.pool.run(tiles.len() * heads, &|task| {
            let (tile, head) = (&tiles[task / heads], task % heads);
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.begin(tile.num_rows * group, dim);
                for part in tile.parts() {
                    tile::attend::<E>(isa, call, tile, head, part, scratch);
                    scratch.merge_part();
                }
                scratch.add_sinks(sinks.map(|sinks| &sinks[head * group..(head + 1) * group]));
                scratch.write(tile, head, group, cols, out);
            });
        });
        return;
    }
    // Parts first, then what they make together.
    let part_len = |tile: &Tile| tile.num_rows * group * (dim + 2);
    let (mut num_tasks, mut len) = (0, 0);
    starts.clear();
    for tile in tiles.iter() {
        starts.push((num_tasks, len));
        num_tasks += tile.num_parts() * heads;
        len += tile.num_parts() * heads * part_len(tile);
    }
    parts.resize(len.max(parts.len()), 0.0);
    let parts = SharedSlice::new(parts);
    cpu.pool.run(num_tasks, &|task| {
        let at = starts.partition_point(|&(first, _)| first <= task) - 1;
        let tile = &tiles[at];
        let (part, head) = ((task - starts[at].0) / heads, (task - starts[at].0) % heads);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.begin(tile.num_rows * group, dim);
            tile::attend::<E>(isa, call, tile, head, tile.parts().start + part, scratch);
            let start = starts[at].1 + (head * tile.num_parts() + part) * part_len(tile);
            // SAFETY: each part of each tile and head has a place of its own.
            scratch.save_part(unsafe { parts.range(start, part_len(tile)) });
        });
    });
    cpu.pool.run(tiles.len() * heads, &|task| {
        let (tile, head) = (&tiles[task / heads], task % heads);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.begin(tile.num_rows * group, dim);
            for part in 0..tile.num_parts() {
                let start = starts[task / heads].1 + (head * tile.num_parts() + part) * part_len(tile);
                // SAFETY: nobody writes parts any more, and this task alone reads those of its tile and head.
                scratch.load_part(unsafe { parts.range(start, part_len(tile)) });
                scratch.merge_part();
            }
            scratch.add_sinks(sinks.map(|sinks| &sinks[head * group..(head + 1) * group]));
            scratch.write(tile, head, group, cols, out);
        });
    });
}

/// Cuts the step's queries into tiles, those with most keys first, so that the threads end together.
fn plan_tiles(
    tiles: &mut Vec<Tile>,
    (batch, runs): (&Batch, &[SharedPrefix]),
    spec: &AttentionSpec,
    block_size: usize,
) {
    let group = spec.num_heads / spec.num_kv_heads;
    let most = (TILE_ROWS / group).max(1);
    tiles.clear();
    let mut runs = runs.iter().peekable();
    let mut idx = 0;
    while idx < batch.sequences.len() {
        let run = runs.next_if(|run| run.first_seq == idx);
        let (num_seqs, shared_len) = run.map_or((1, usize::MAX), |run| (run.num_seqs, run.num_blocks * block_size));
        let seq = &batch.sequences[idx];
        let num_rows = if run.is_some() { num_seqs } else { seq.query_len };
        for start in (0..num_rows).step_by(most) {
            let first_row = seq.query_start + start;
            let tile_rows = most.min(num_rows - start);
            let positions = &batch.positions[first_row..first_row + tile_rows];
            let visible = |pos: u32| spec.window.map_or(0, |w| (pos as usize + 1).saturating_sub(w));
            tiles.push(Tile {
                first_row,
                num_rows: tile_rows,
                first_seq: if run.is_some() { idx + start } else { idx },
                shared_len: if tile_rows == 1 { usize::MAX } else { shared_len },
                first_key: positions.iter().map(|&pos| visible(pos)).min().unwrap_or(0),
                end_key: positions.iter().map(|&pos| pos as usize + 1).max().unwrap_or(0),
            });
        }
        idx += num_seqs;
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse((tile.end_key - tile.first_key) * tile.num_rows));
}

//! [`Work`]: what a model's steps have to read and to multiply; [`Reached`]: how near to the machine's peaks they came.

use std::iter::Sum;
use std::ops::{Add, Range};

use sconce::{ModelInfo, Peaks};
use serde_json::{Value, json};

use super::report::{figure, percent};

/// For people, beside the peaks.
pub(super) const EXPLANATION: &str = "The roof is memory's or products' peak, whichever binds; keys and values that decodes read, and \
    attention's products, count too.\n";

/// What some steps cannot do without.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Weights once a step; keys and values that decodes read, those of a shared prompt once.
    pub(super) bytes: f64,
    /// Two for each product, with weights and in attention.
    pub(super) flop: f64,
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flop: self.flop + other.flop }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), Add::add)
    }
}

impl Work {
    /// Weights of so many steps, which together take `num_tokens` through the layers, `num_sampled` of them through the head.
    pub(super) fn weights(info: &ModelInfo, num_steps: usize, num_tokens: usize, num_sampled: usize) -> Self {
        let cost = info.token_cost;
        let products = cost.layer_weights as f64 * num_tokens as f64 + cost.head_weights as f64 * num_sampled as f64;
        Self { bytes: cost.bytes_read as f64 * num_steps as f64, flop: 2.0 * products }
    }

    /// Attention of a whole prompt, which reads nothing that it has not made itself.
    pub(super) fn prompt(info: &ModelInfo, len: usize) -> Self {
        Self { bytes: 0.0, flop: attention_flop(info, keys_seen(&info.config.sliding_window, 0..len)) }
    }

    /// Attention of `num_sequences` that follow one prompt, from the steps that take each of them from so many tokens to so many,
    /// of which the first is the prompt's.
    pub(super) fn decoding(info: &ModelInfo, prompt_len: usize, tokens: Range<usize>, num_sequences: usize) -> Self {
        let [read, seen] = decoded_keys(&info.config.sliding_window, prompt_len, tokens, num_sequences);
        let config = &info.config;
        let token_bytes = config.kv_bytes_per_token(info.kv_dtype.head_bytes(config.head_dim)) as f64;
        let layer_bytes = token_bytes / config.num_hidden_layers as f64;
        Self { bytes: read * layer_bytes, flop: attention_flop(info, seen) }
    }
}

/// A query's products with a key and with a value, of all heads of a layer.
fn attention_flop(info: &ModelInfo, keys: f64) -> f64 {
    4.0 * (info.config.num_attention_heads * info.config.head_dim) as f64 * keys
}

/// Keys that such decoding reads, and those that its tokens see, of layers with these windows together.
pub(super) fn decoded_keys(
    windows: &[Option<usize>],
    prompt_len: usize,
    tokens: Range<usize>,
    num_sequences: usize,
) -> [f64; 2] {
    let own = tokens.start.saturating_sub(1)..tokens.end.saturating_sub(1);
    let all = keys_seen(windows, prompt_len + own.start..prompt_len + own.end);
    let (own, num) = (keys_seen(windows, own), num_sequences as f64);
    [all - own + num * own, num * all]
}

/// Keys that tokens at these positions see, their own among them, of all layers together.
fn keys_seen(windows: &[Option<usize>], positions: Range<usize>) -> f64 {
    let of_layer = |window: &Option<usize>| keys_below(positions.end, *window) - keys_below(positions.start, *window);
    windows.iter().map(of_layer).sum()
}

/// The same of one layer and the first `num` positions: the sum of min(i, window) for i from 1 to `num`.
fn keys_below(num: usize, window: Option<usize>) -> f64 {
    let inside = window.map_or(num, |window| window.min(num)) as f64;
    inside * (inside + 1.0) / 2.0 + (num as f64 - inside) * inside
}

/// Work in the time that it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    gb_per_s: f64,
    gflop_per_s: f64,
}

impl Reached {
    pub(super) fn new(work: Work, seconds: f64) -> Self {
        Self { gb_per_s: work.bytes / seconds / 1e9, gflop_per_s: work.flop / seconds / 1e9 }
    }

    /// Of the memory's peak, and of the greatest of products'.
    fn shares(self, peaks: &Peaks) -> [f64; 2] {
        let products = [peaks.f32_gflop_per_s, peaks.int8_gop_per_s, peaks.bf16_gflop_per_s];
        let greatest = products.into_iter().flatten().fold(0.0, f64::max);
        let of_products = if greatest > 0.0 { self.gflop_per_s / greatest } else { 0.0 };
        [self.gb_per_s / peaks.dram_read_gb_per_s, of_products]
    }

    pub(super) fn text(self, peaks: &Peaks) -> String {
        let [memory, products] = self.shares(peaks);
        let (share, by) = if memory < products { (products, "products") } else { (memory, "memory") };
        let rate = if memory < products {
            format!("{} GFLOP/s", figure(self.gflop_per_s))
        } else {
            format!("{} GB/s", figure(self.gb_per_s))
        };
        format!("{} of the roof by {by} ({rate})", percent(share, 1.0))
    }

    /// `share` is that of the roof: the time that whichever of both binds takes at its peak, by the time taken.
    pub(super) fn to_json(self, peaks: &Peaks) -> Value {
        let [memory, products] = self.shares(peaks);
        json!({
            "gb_per_s": self.gb_per_s,
            "share_of_memory": memory,
            "gflop_per_s": self.gflop_per_s,
            "share_of_products": products,
            "share": memory.max(products),
            "bound_by": if memory < products { "products" } else { "memory" },
        })
    }
}

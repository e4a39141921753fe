//! Trials on a device that says of each which candidate is the fastest.

use std::sync::Mutex;

use super::super::cuda::{Kernel, Products};
use super::super::cuda_quant::{Expansion, Kernel as BlockKernel};
use super::*;
use crate::backend::KvDtype;
use crate::backend::cuda::host::HostDevice;
use crate::backend::cuda::weights;
use crate::ops::testing::{on_device, random};
use crate::weights::{Dtype, TensorView, quant};

/// A device whose trials end with the last candidate, and how many candidates each had.
fn device() -> (Arc<dyn Device>, Arc<Mutex<Vec<usize>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let choose = move |num_candidates| {
        seen.lock().unwrap().push(num_candidates);
        num_candidates - 1
    };
    (HostDevice::choosing(choose), asked)
}

fn limits(max_tokens: usize, max_logits: usize) -> StepLimits {
    let (max_seqs, max_model_len, block_size, num_groups, kv_dtype) = (8, 64, 16, 1, KvDtype::Bf16);
    StepLimits { max_tokens, max_seqs, max_logits, max_model_len, block_size, num_groups, kv_dtype }
}

fn floats(device: &Arc<dyn Device>, [rows, cols]: [usize; 2]) -> Matrix {
    on_device::matrix(device, &random(rows * cols, 1), cols, ElemType::Bf16, None)
}

fn inputs(device: &Arc<dyn Device>, num_tokens: usize, cols: usize) -> Buffer {
    let mut x = Buffer::new(device, num_tokens, cols, ElemType::Bf16).unwrap();
    x.set_rows(num_tokens);
    x
}

#[test]
fn numbers_of_tokens_end_with_the_most() {
    assert_eq!(tried_tokens(1), [1]);
    assert_eq!(tried_tokens(16), [2, 8, 16]);
    assert_eq!(tried_tokens(200), [2, 8, 16, 32, 64, 128, 192, 200]);
    assert_eq!(tried_tokens(MAX_TOKENS).len(), 20);
    assert!(tried_tokens(MAX_TOKENS).is_sorted() && tried_tokens(MAX_TOKENS).ends_with(&[1792, 2048]));
}

#[test]
fn what_was_found_is_for_up_to_so_many_tokens_and_the_last_for_more() {
    let found = [(8, 'a'), (16, 'b'), (100, 'c')];
    for (num_tokens, expected) in [(0, 'a'), (8, 'a'), (9, 'b'), (16, 'b'), (17, 'c'), (100, 'c'), (101, 'c')] {
        assert_eq!(of_tokens(&found, num_tokens), Some(expected), "{num_tokens}");
    }
    assert_eq!(of_tokens::<char>(&[], 1), None);
    // Kernels for few rows have room for no more.
    assert_eq!(of_tokens(&found[..2], 17), None);
}

#[test]
fn the_fastest_is_taken_for_matrices_that_are_alike() {
    let (device, asked) = device();
    let options = Options::new(Products::Hopper);
    let (layer, head) = (floats(&device, [128, 64]), floats(&device, [576, 64]));
    let tuned = Tuned::new(&device, &[layer, head], 576, &limits(40, 10), options).unwrap();
    let asked = asked.lock().unwrap().clone();
    // 2, 8, 16, 32 and 40 tokens of the layer, with a trial of gate and up each; 2, 8 and 10 of the head.
    assert_eq!(asked.len(), 2 * 5 + 3);
    let like = |shape| floats(&device, shape);
    for num_tokens in [1, 8, 12, 40, 41] {
        let x = inputs(&device, num_tokens, 64);
        let product = tuned.product(&like([128, 64]), num_tokens).unwrap();
        let tried = match num_tokens {
            1 => 2,
            2..=8 => 8,
            9..=16 => 16,
            _ => 40,
        };
        let (x_tried, weight) = (inputs(&device, tried, 64), like([128, 64]));
        let candidates = Algorithm::candidates(Product { device: &*device, x: &x_tried, weight: &weight, options });
        assert_eq!(Some(&product), candidates.last());
        let options = Options { tuned: Some(&tuned), ..options };
        assert_eq!(Algorithm::of(Product { device: &*device, x: &x, weight: &weight, options }), product);
        assert!(tuned.gated(&like([128, 64]), num_tokens).is_some());
        // The head's is none, and another shape was not tried.
        assert!(tuned.gated(&like([576, 64]), num_tokens).is_none());
        assert!(tuned.product(&like([64, 128]), num_tokens).is_none());
    }
}

#[test]
fn blocks_are_tried_as_they_are_and_expanded() {
    let (device, _) = device();
    let (rows, cols) = (32, 128);
    let blocks = quant::random_blocks(Dtype::Q8_0, rows * cols / 32, 1);
    let view = TensorView::new(Dtype::Q8_0, vec![rows, cols], blocks);
    let weight = weights::load(&device, vec![view], None, ElemType::Bf16, true).unwrap();
    let expansion = Expansion::new(&device, &[[rows, cols]]).unwrap();
    let options = Options { expansion: Some(&expansion), ..Options::new(Products::Portable) };
    let tuned = Tuned::new(&device, std::slice::from_ref(&weight), 0, &limits(600, 8), options).unwrap();
    assert_eq!(tuned.product(&weight, 64), Some(Algorithm::Blocks(BlockKernel::Tile)));
    assert_eq!(tuned.product(&weight, 128), Some(Algorithm::Expanded));
    let expanded = expansion.matrix(&weight).unwrap();
    assert!(matches!(tuned.product(&expanded, 128), Some(Algorithm::Portable(Kernel::Tile(_)))));
    // Without room for them there is nothing else to try.
    let tuned =
        Tuned::new(&device, std::slice::from_ref(&weight), 0, &limits(600, 8), Options::new(Products::Portable));
    assert_eq!(tuned.unwrap().product(&weight, 128), Some(Algorithm::Blocks(BlockKernel::Tile)));
}

#[test]
fn a_device_without_times_leaves_it_to_estimates() {
    let device = HostDevice::open();
    let weight = floats(&device, [128, 64]);
    let options = Options::new(Products::Portable);
    let tuned = Tuned::new(&device, std::slice::from_ref(&weight), 0, &limits(40, 10), options).unwrap();
    assert!(tuned.product(&weight, 8).is_none() && tuned.gated(&weight, 8).is_none());
}

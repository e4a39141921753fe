//! The device's kernel against the reference, and against itself in other batches.

mod int8_tests;
mod rope_tests;
mod shared_tests;

use std::sync::Arc;

use super::cuda::{check, cuda};
use super::decode::{AttentionSpace, DecodeShape};
use super::tests::sinks_of;
use super::*;
use crate::backend::cuda::batch::DeviceBatch;
use crate::backend::cuda::device::{Device, ElemType};
use crate::backend::cuda::kv_cache::KvCache as CudaKvCache;
use crate::backend::cuda::storage::{Buffer as CudaBuffer, Vector};
use crate::backend::cuda::weights::vector;
use crate::backend::{KvCacheShape, KvDtype};
use crate::ops::testing::{assert_device_close, devices, on_device, random, round};

/// A model's attention on a device, with a cache of random contents.
pub(super) struct Case {
    pub(super) device: Arc<dyn Device>,
    pub(super) spec: AttentionSpec,
    /// [`sinks_of`] it.
    sinks: Option<Vector>,
    elem: ElemType,
    cpu_kv: KvCache,
    pub(super) kv: CudaKvCache,
    pub(super) space: AttentionSpace,
}

impl Case {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        spec: AttentionSpec,
        dtype: KvDtype,
        block_size: usize,
        max_keys: usize,
    ) -> Self {
        let (num_kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
        let num_blocks = max_keys.div_ceil(block_size) + 1;
        let shape = KvCacheShape { dtype, num_layers: 2, num_blocks, block_size, num_kv_heads, head_dim };
        let mut cpu_kv = KvCache::new(shape).unwrap();
        let len = cpu_kv.k[0].len();
        cpu_kv.k[spec.layer].set(0, &random(len, 1));
        cpu_kv.v[spec.layer].set(0, &random(len, 2));
        check(&spec).unwrap();
        Self {
            device: Arc::clone(device),
            spec,
            sinks: sinks_of(&spec).map(|sinks| vector(device, &sinks).unwrap()),
            elem: if dtype == KvDtype::F16 { ElemType::F16 } else { ElemType::Bf16 },
            kv: on_device::kv_cache(device, &cpu_kv),
            cpu_kv,
            space: AttentionSpace::new(device, 8, &spec, 2048).unwrap(),
        }
    }

    /// What its layer has of its own.
    pub(super) fn layer(&self) -> LayerAttention<'_, Vector> {
        LayerAttention { spec: &self.spec, sinks: self.sinks.as_ref() }
    }

    /// Sequences of (context, query tokens), with blocks in no order and none of two sequences.
    pub(super) fn tables(&self, lens: &[(usize, usize)]) -> Vec<Vec<u32>> {
        let mut free: Vec<u32> = (0..self.cpu_kv.shape.num_blocks as u32).collect();
        let num = free.len();
        (0..num).for_each(|i| free.swap(i, i * 7919 % num));
        let mut free = free.into_iter();
        let block_size = self.cpu_kv.shape.block_size;
        lens.iter().map(|&(context, _)| free.by_ref().take(context.div_ceil(block_size)).collect()).collect()
    }

    pub(super) fn batch(&self, lens: &[(usize, usize)], tables: &[Vec<u32>]) -> Batch {
        let mut batch = Batch::default();
        let block_size = self.cpu_kv.shape.block_size;
        for (&(context, query), table) in lens.iter().zip(tables) {
            batch.push(&vec![0; query], &table[..context.div_ceil(block_size)], context - query, context, block_size);
        }
        batch
    }

    pub(super) fn queries(&self, num_tokens: usize) -> Vec<f32> {
        let data: Vec<f32> = random(num_tokens * self.spec.qkv_dim(), 3).iter().map(|x| x * 4.0).collect();
        round(&data, self.elem)
    }

    pub(super) fn upload(&self, batch: &Batch, num_rows: Option<usize>) -> DeviceBatch {
        let mut inputs = DeviceBatch::new(&self.device, 16384).unwrap();
        inputs.upload(batch, num_rows).unwrap();
        inputs
    }

    pub(super) fn run(&self, batch: &Batch, qkv: &[f32], num_rows: Option<usize>) -> Vec<f32> {
        self.run_inputs(&self.upload(batch, num_rows), qkv)
    }

    fn run_inputs(&self, inputs: &DeviceBatch, qkv: &[f32]) -> Vec<f32> {
        let cols = self.spec.qkv_dim();
        let mut padded = qkv.to_vec();
        padded.resize(inputs.num_tokens() * cols, 1.0);
        let qkv = on_device::buffer(&self.device, &padded, cols, self.elem);
        let out_cols = self.spec.num_heads * self.spec.head_dim;
        let mut out = CudaBuffer::new(&self.device, inputs.num_tokens(), out_cols, self.elem).unwrap();
        out.write_f32(&vec![f32::NAN; inputs.num_tokens() * out_cols]).unwrap();
        cuda(&self.space, &mut out, &qkv, &self.kv, inputs, self.layer()).unwrap();
        out.to_f32().unwrap()
    }

    fn reference(&self, expected: &mut Buffer, qkv: &Buffer, batch: &Batch) {
        let sinks = sinks_of(&self.spec);
        let layer = LayerAttention { spec: &self.spec, sinks: sinks.as_ref() };
        reference(expected, qkv, &self.cpu_kv, batch, layer);
    }

    pub(super) fn check_reference(&self, batch: &Batch, qkv: &[f32], found: &[f32]) {
        let mut expected = Buffer::new(batch.num_tokens(), self.spec.num_heads * self.spec.head_dim);
        let qkv = Buffer::from_vec(qkv.to_vec(), self.spec.qkv_dim());
        self.reference(&mut expected, &qkv, batch);
        assert_device_close(found, expected.data(), if self.elem == ElemType::F16 { 2e-3 } else { 1e-2 });
    }

    /// Against the reference, and each sequence alone.
    fn check(&self, lens: &[(usize, usize)]) {
        let tables = self.tables(lens);
        let batch = self.batch(lens, &tables);
        let qkv = self.queries(batch.num_tokens());
        let (cols, out_cols) = (self.spec.qkv_dim(), self.spec.num_heads * self.spec.head_dim);
        let found = self.run(&batch, &qkv, None);
        self.check_reference(&batch, &qkv, &found);
        for (seq, (&lens, table)) in batch.sequences.iter().zip(lens.iter().zip(&tables)) {
            let alone = self.batch(&[lens], std::slice::from_ref(table));
            let end = seq.query_start + seq.query_len;
            let alone = self.run(&alone, &qkv[seq.query_start * cols..end * cols], None);
            assert_eq!(alone, found[seq.query_start * out_cols..end * out_cols], "{:?} {seq:?}", self.spec);
        }
    }

    /// A prompt in chunks of such lengths.
    pub(super) fn run_chunks(&self, qkv: &[f32], table: &[u32], lens: &[usize]) -> Vec<f32> {
        let (mut out, mut start, cols) = (Vec::new(), 0, self.spec.qkv_dim());
        for &len in lens {
            let batch = self.batch(&[(start + len, len)], &[table.to_vec()]);
            out.extend(self.run(&batch, &qkv[start * cols..(start + len) * cols], None));
            start += len;
        }
        out
    }
}

pub(super) fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { layer: 1, num_heads, num_kv_heads, head_dim, scale, softcap: None, window: None }
}

#[test]
fn device_equals_reference_for_all_widths() {
    for device in devices() {
        for head_dim in [4, 8, 10, 12, 16, 20, 24, 40, 64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::F16] {
                let case = Case::new(&device, spec(4, 2, head_dim), dtype, 16, 500);
                case.check(&[(1, 1), (33, 1), (40, 9), (290, 1)]);
            }
        }
    }
}

#[test]
fn device_equals_reference_for_groups_windows_caps_and_blocks() {
    for device in devices() {
        for (num_heads, num_kv_heads) in [(2, 2), (4, 2), (3, 1), (8, 2), (8, 1), (20, 1)] {
            for (block_size, dtype) in [(8, KvDtype::F16), (32, KvDtype::Bf16)] {
                let plain = spec(num_heads, num_kv_heads, 16);
                for (window, softcap) in [(None, None), (Some(1), Some(2.0)), (Some(9), None), (Some(300), Some(3.0))] {
                    let case = Case::new(&device, AttentionSpec { window, softcap, ..plain }, dtype, block_size, 1100);
                    case.check(&[(5, 1), (70, 66), (300, 3), (600, 1)]);
                }
            }
        }
    }
}

/// More prompts than a warp looks at together, of several tiles and of one.
#[test]
fn many_prompts_beside_decodes() {
    for device in devices() {
        let lens: Vec<_> = (0..60).map(|i| if i == 55 { (40, 37) } else { (3 + i % 5, 1 + i % 3) }).collect();
        Case::new(&device, spec(16, 1, 16), KvDtype::F16, 1, 500).check(&lens);
    }
}

#[test]
fn a_graph_is_good_for_steps_of_its_bucket() {
    for device in devices() {
        let case = Case::new(&device, spec(4, 2, 20), KvDtype::Bf16, 16, 1200);
        let lens = [(400, 1), (20, 1), (511, 1)];
        let batch = case.batch(&lens, &case.tables(&lens));
        let qkv = case.queries(4);
        let expected = case.run(&batch, &qkv[..3 * case.spec.qkv_dim()], Some(4));

        let mut inputs = DeviceBatch::new(&device, 1000).unwrap();
        let captured = [(257, 1), (300, 1)];
        inputs.upload(&case.batch(&captured, &case.tables(&captured)), Some(4)).unwrap();
        let qkv = on_device::buffer(&device, &qkv, case.spec.qkv_dim(), case.elem);
        let mut out = CudaBuffer::new(&device, 4, case.spec.num_heads * case.spec.head_dim, case.elem).unwrap();
        device.begin_capture().unwrap();
        cuda(&case.space, &mut out, &qkv, &case.kv, &inputs, case.layer()).unwrap();
        let graph = device.end_capture().unwrap();
        inputs.upload(&batch, Some(4)).unwrap();
        // SAFETY: all that was captured is still there.
        unsafe { graph.launch() }.unwrap();
        assert_eq!(out.to_f32().unwrap(), expected);
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits() {
    for device in devices() {
        for (window, softcap) in [(None, None), (Some(270), Some(5.0))] {
            let case = Case::new(&device, AttentionSpec { window, softcap, ..spec(4, 2, 20) }, KvDtype::Bf16, 16, 600);
            let len = 553;
            let table = case.tables(&[(len, len)]).remove(0);
            let qkv = case.queries(len);
            let whole = case.run_chunks(&qkv, &table, &[len]);
            let sevens: Vec<usize> = (0..len / 7).map(|_| 7).collect();
            assert_eq!(case.run_chunks(&qkv, &table, &sevens), whole);
            assert_eq!(case.run_chunks(&qkv, &table, &[250, 1, 1, 10, 1, 290]), whole);
            let ones: Vec<usize> = [500].into_iter().chain(vec![1; 53]).collect();
            assert_eq!(case.run_chunks(&qkv, &table, &ones), whole);
        }
    }
}

/// Kernels of their own take single queries and several: the contexts end before, at and behind where rounds and splits do.
#[test]
fn a_query_alone_has_the_bits_that_it_has_beside_others() {
    for device in devices() {
        for (head_dim, len) in [(16, 130), (32, 258), (64, 386), (80, 514), (96, 258), (128, 386), (256, 322)] {
            for (window, softcap) in [(None, None), (Some(150), Some(5.0))] {
                let case = Case::new(
                    &device,
                    AttentionSpec { window, softcap, ..spec(4, 2, head_dim) },
                    KvDtype::Bf16,
                    16,
                    len,
                );
                let tables = case.tables(&[(len, 1)]);
                let (qkv, cols) = (case.queries(5), case.spec.qkv_dim());
                let together = case.run(&case.batch(&[(len, 5)], &tables), &qkv, None);
                let alone = (0..5).flat_map(|i| {
                    let batch = case.batch(&[(len - 4 + i, 1)], &tables);
                    case.run(&batch, &qkv[i * cols..(i + 1) * cols], None)
                });
                assert!(alone.collect::<Vec<_>>() == together, "{:?}", case.spec);
            }
        }
    }
}

#[test]
fn parts_of_long_sequences_and_padding_change_no_bits() {
    for device in devices() {
        for window in [None, Some(700)] {
            let mut case = Case::new(&device, AttentionSpec { window, ..spec(4, 1, 20) }, KvDtype::Bf16, 16, 4000);
            let lens = [(1500, 1), (256, 1), (257, 1), (512, 1), (1, 1)];
            case.check(&lens);
            let batch = case.batch(&lens, &case.tables(&lens));
            let qkv = case.queries(batch.num_tokens());
            let found = case.run(&batch, &qkv, None);
            let padded = case.run(&batch, &qkv, Some(8));
            assert_eq!(padded[..found.len()], found);
            assert!(padded[found.len()..].iter().all(|&x| x == 0.0));
            // No room for partial results: one block goes through all splits.
            case.space = AttentionSpace::new(&device, 1, &case.spec, 1).unwrap();
            assert_eq!(case.run(&batch, &qkv, None), found);
        }
    }
}

#[test]
fn what_kernels_cannot_do_is_refused() {
    assert!(check(&spec(32, 1, 256)).is_ok());
    for (spec, what) in [(spec(40, 1, 256), "40 query heads"), (spec(2, 1, 258), "258"), (spec(2, 1, 7), "7")] {
        assert!(check(&spec).unwrap_err().to_string().contains(what));
    }
}

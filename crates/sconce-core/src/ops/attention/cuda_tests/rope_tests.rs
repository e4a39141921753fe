//! RoPE and the append within decode attention: the bits, of outputs and of the cache, that two launches give.

use super::*;
use crate::backend::cuda::storage::RopeTable;
use crate::config::{RopeConfig, RopeScaling};
use crate::ops::attention::rope::{self, OwnKeys};
use crate::ops::attention::shared::SharedSplits;
use crate::ops::rope_append_kv;

fn rope_table(device: &Arc<dyn Device>, rotary_dim: usize) -> RopeTable {
    let config = RopeConfig { rope_theta: 1e4, rotary_dim, scaling: RopeScaling::Default };
    rope_append_kv::cuda::table(device, &rope_append_kv::table(&config, 4096)).unwrap()
}

/// Whose cache has 8 bits, if so asked.
fn new_case(device: &Arc<dyn Device>, spec: AttentionSpec, dtype: KvDtype, is_int8: bool, max_keys: usize) -> Case {
    let mut case = Case::new(device, spec, dtype, 16, max_keys);
    if is_int8 {
        case.kv = on_device::int8_kv_cache(device, &mut case.cpu_kv);
    }
    case
}

impl Case {
    fn cache_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.kv.memory.bytes()];
        self.kv.memory.read(0, &mut bytes).unwrap();
        bytes
    }

    fn own_inputs(&self, batch: &Batch, num_rows: Option<usize>) -> DeviceBatch {
        let inputs = DeviceBatch::new(&self.device, 1 << 15).unwrap();
        let mut inputs = inputs.with_own_keys(OwnKeys::new(self.cpu_kv.shape.block_size));
        inputs.upload(batch, num_rows).unwrap();
        inputs
    }

    /// Both ways, from the same cache on, which is as it was then: `is_one` is whether there is to be one launch.
    fn check_rope(&mut self, inputs: &DeviceBatch, rope: &RopeTable, is_one: bool) {
        let (cols, out_cols) = (self.spec.qkv_dim(), self.spec.num_heads * self.spec.head_dim);
        let num_tokens = inputs.num_tokens();
        let (data, before) = (self.queries(num_tokens), self.cache_bytes());
        let new = || {
            let mut out = CudaBuffer::new(&self.device, num_tokens, out_cols, self.elem).unwrap();
            out.write_f32(&vec![f32::NAN; num_tokens * out_cols]).unwrap();
            (out, on_device::buffer(&self.device, &data, cols, self.elem))
        };
        let ((mut out, mut qkv), (mut expected, mut turned)) = (new(), new());
        let (device, space) = (&*self.device, &self.space);
        let layer = LayerAttention { spec: &self.spec, sinks: self.sinks.as_ref() };
        rope_append_kv::cuda::cuda(device, &mut turned, &mut self.kv, rope, inputs, layer.spec).unwrap();
        cuda(space, &mut expected, &turned, &self.kv, inputs, layer).unwrap();
        let expected_cache = self.cache_bytes();
        assert!(before != expected_cache);
        self.kv.memory.write(0, &before).unwrap();
        rope::cuda(&self.space, (&mut out, &mut qkv), &mut self.kv, rope, inputs, layer).unwrap();
        let what = format!("{:?} {:?} {} int8: {}", self.spec, self.elem, rope.rotary_dim, self.kv.is_int8());
        // One launch leaves queries as they were.
        assert_eq!(qkv.to_f32().unwrap() == data, is_one, "{what}");
        let (found, expected) = (out.to_f32().unwrap(), expected.to_f32().unwrap());
        let differs = found.iter().zip(&expected).position(|(x, y)| x.to_bits() != y.to_bits());
        assert_eq!(differs.map(|i| (i / out_cols, i % out_cols, found[i], expected[i])), None, "{what}");
        assert!(self.cache_bytes() == expected_cache, "{what}: the cache differs");
        self.kv.memory.write(0, &before).unwrap();
    }

    fn check_decodes(&mut self, contexts: &[usize], num_rows: Option<usize>, rope: &RopeTable) {
        let lens: Vec<_> = contexts.iter().map(|&context| (context, 1)).collect();
        let mut batch = self.batch(&lens, &self.tables(&lens));
        // Of some sequences the rows of the table are others than those of their positions.
        batch.shift_rope_rows(lens.len() / 2, 500);
        let inputs = self.own_inputs(&batch, num_rows);
        assert!(inputs.are_keys_apart());
        self.check_rope(&inputs, rope, true);
    }
}

const KINDS: [(KvDtype, bool); 4] =
    [(KvDtype::Bf16, false), (KvDtype::F16, false), (KvDtype::Bf16, true), (KvDtype::F16, true)];

#[test]
fn one_launch_has_the_bits_of_two_for_all_widths() {
    for device in devices() {
        for (head_dim, rotary_dim) in [
            (4, 4),
            (8, 8),
            (10, 8),
            (16, 0),
            (20, 8),
            (32, 32),
            (64, 64),
            (80, 32),
            (96, 96),
            (128, 128),
            (128, 64),
            (256, 256),
            (256, 128),
        ] {
            let rope = rope_table(&device, rotary_dim);
            for (dtype, is_int8) in KINDS {
                let mut case = new_case(&device, spec(4, 2, head_dim), dtype, is_int8, 700);
                case.check_decodes(&[1, 2, 16, 33, 290], None, &rope);
            }
        }
    }
}

/// Around where tiles, rounds, blocks and splits begin.
#[test]
fn one_launch_has_the_bits_of_two_for_all_contexts() {
    for device in devices() {
        for (head_dim, kinds) in [(128, &KINDS[1..3]), (256, &KINDS[..3]), (16, &KINDS[2..])] {
            let rope = rope_table(&device, head_dim);
            for &(dtype, is_int8) in kinds {
                let mut case = new_case(&device, spec(2, 1, head_dim), dtype, is_int8, 3200);
                for middle in [8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768] {
                    case.check_decodes(&[middle - 1, middle, middle + 1, middle + 2], None, &rope);
                }
            }
        }
    }
}

#[test]
fn one_launch_has_the_bits_of_two_for_groups_windows_and_caps() {
    for device in devices() {
        let rope = rope_table(&device, 16);
        for (num_heads, num_kv_heads) in [(2, 2), (8, 2), (8, 1), (20, 1), (35, 1)] {
            for (window, softcap) in [(None, None), (Some(1), Some(2.0)), (Some(9), None), (Some(300), Some(3.0))] {
                let spec = AttentionSpec { window, softcap, ..spec(num_heads, num_kv_heads, 16) };
                for (dtype, is_int8) in KINDS {
                    let mut case = new_case(&device, spec, dtype, is_int8, 1500);
                    let lens = [(5, 1), (70, 1), (300, 1), (600, 1), (61, 1)];
                    let inputs = case.own_inputs(&case.batch(&lens, &case.tables(&lens)), None);
                    // Several blocks with rows of one key head would read scales while one of them writes a new one.
                    case.check_rope(&inputs, &rope, !is_int8 || num_heads / num_kv_heads <= 16);
                }
            }
        }
    }
}

/// Long sequences are shared among several blocks, or one goes through all.
#[test]
fn one_launch_has_the_bits_of_two_for_parts_and_padding() {
    for device in devices() {
        for (head_dim, window) in [(20, None), (64, Some(700))] {
            let rope = rope_table(&device, 16);
            for (dtype, is_int8) in KINDS {
                let spec = AttentionSpec { window, ..spec(4, 1, head_dim) };
                let mut case = new_case(&device, spec, dtype, is_int8, 4000);
                case.check_decodes(&[1500], None, &rope);
                case.check_decodes(&[1500, 256, 257, 1025, 1], Some(8), &rope);
                case.space = AttentionSpace::new(&device, 1, &case.spec, 1).unwrap();
                case.check_decodes(&[1500, 512, 1], Some(4), &rope);
            }
        }
    }
}

#[test]
fn other_steps_have_two_launches() {
    for device in devices() {
        let mut case = new_case(&device, spec(4, 2, 20), KvDtype::Bf16, false, 2000);
        let [even, odd] = [16, 10].map(|rotary_dim| rope_table(&device, rotary_dim));
        let lens = [(300, 1), (40, 1), (310, 1)];
        let tables = case.tables(&lens);
        let plain = case.own_inputs(&case.batch(&lens, &tables), None);
        case.check_rope(&plain, &even, true);
        case.check_rope(&plain, &odd, false);
        // Nobody has looked.
        case.check_rope(&case.upload(&case.batch(&lens, &tables), None), &even, false);
        let prompts = case.own_inputs(&case.batch(&[(300, 1), (40, 2)], &tables), None);
        case.check_rope(&prompts, &even, false);
        // Drafts: each sees the key of the one before, across the end of a block too. A graph of the one is not for the other.
        for first in [300, 304] {
            let lens = [(first, 1), (first + 1, 1), (40, 1)];
            let tables = [&tables[2], &tables[2], &tables[1]].map(Clone::clone);
            let drafts = case.own_inputs(&case.batch(&lens, &tables), Some(4));
            case.check_rope(&drafts, &even, false);
            let plain = case.own_inputs(&case.batch(&lens[1..], &tables[1..]), Some(4));
            assert!(DecodeShape::of(&plain) != DecodeShape::of(&drafts));
        }
    }
}

/// Sequences that begin alike are read by a kernel before, where that saves something; elsewhere they are like others.
#[test]
fn queries_of_shared_keys_are_turned_before() {
    for device in devices() {
        let mut case = new_case(&device, spec(4, 2, 20), KvDtype::Bf16, false, 2000);
        let rope = rope_table(&device, 16);
        let common = case.tables(&[(288, 1), (20, 1), (40, 1)]);
        let mut batch = Batch::default();
        for (own, context) in [(&common[1], 300), (&common[2], 320)] {
            batch.push(&[0], &[&common[0][..], own].concat(), context - 1, 0, 16);
        }
        batch.find_shared_prefixes();
        for (min_saved_bytes, is_one) in [(0, false), (1 << 30, true)] {
            let shared = SharedSplits::new(&case.spec, KvDtype::Bf16, 16, device.num_sms());
            let mut inputs = DeviceBatch::new(&device, 1 << 15)
                .unwrap()
                .with_own_keys(OwnKeys::new(16))
                .with_shared_splits(shared.with_min_saved_bytes(min_saved_bytes));
            inputs.upload(&batch, None).unwrap();
            assert!(inputs.are_keys_apart());
            case.check_rope(&inputs, &rope, is_one);
        }
    }
}

/// A graph is for any step of its bucket.
#[test]
fn a_graph_of_one_launch_is_good_for_other_steps() {
    for device in devices() {
        let rope = rope_table(&device, 20);
        let [mut replayed, mut other] = [(); 2].map(|()| new_case(&device, spec(4, 2, 20), KvDtype::Bf16, false, 1200));
        let lens = [(400, 1), (20, 1), (511, 1)];
        let batch = replayed.batch(&lens, &replayed.tables(&lens));
        let captured = [(257, 1), (300, 1)];
        let mut inputs = replayed.own_inputs(&replayed.batch(&captured, &replayed.tables(&captured)), Some(4));
        let buffers = |case: &Case| {
            let qkv = on_device::buffer(&device, &case.queries(4), case.spec.qkv_dim(), case.elem);
            (CudaBuffer::new(&device, 4, case.spec.num_heads * case.spec.head_dim, case.elem).unwrap(), qkv)
        };
        let (mut out, mut qkv) = buffers(&replayed);
        device.begin_capture().unwrap();
        let Case { space, kv, spec, .. } = &mut replayed;
        rope::cuda(space, (&mut out, &mut qkv), kv, &rope, &inputs, (&*spec).into()).unwrap();
        let graph = device.end_capture().unwrap();
        inputs.upload(&batch, Some(4)).unwrap();
        // SAFETY: all that was captured is still there.
        unsafe { graph.launch() }.unwrap();

        let (mut expected, mut qkv) = buffers(&other);
        let inputs = other.own_inputs(&batch, Some(4));
        let Case { space, kv, spec, .. } = &mut other;
        rope::cuda(space, (&mut expected, &mut qkv), kv, &rope, &inputs, (&*spec).into()).unwrap();
        assert_eq!(out.to_f32().unwrap(), expected.to_f32().unwrap());
        assert!(replayed.cache_bytes() == other.cache_bytes());
    }
}

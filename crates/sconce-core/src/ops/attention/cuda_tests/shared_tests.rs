//! Sequences that begin alike: the same bits as without the knowledge of it, and fewer keys that are read.

use super::*;
use crate::ops::attention::shared::SharedSplits;

/// Neighbours of (common keys, keys of each); one with the number of its queries where it is a prompt.
enum Run {
    Decodes(usize, &'static [usize]),
    Prompt(usize, usize),
}
use Run::{Decodes, Prompt};

impl Case {
    /// A step of all runs. Keys that are not common, and those of a last block that is not full, are in blocks of their own.
    fn runs(&self, runs: &[Run]) -> Batch {
        let (mut batch, block_size) = (Batch::default(), self.cpu_kv.shape.block_size);
        // What sequences have in common, then what each has of its own.
        let own_from = |common: usize, context: usize| common.min(context - 1) / block_size * block_size;
        let lens_of = |run: &Run| match *run {
            Decodes(common, contexts) => {
                let own = contexts.iter().map(|&context| (context - own_from(common, context), 1));
                std::iter::once((common, 1)).chain(own).collect()
            }
            Prompt(context, query) => vec![(context, query)],
        };
        let mut tables = self.tables(&runs.iter().flat_map(lens_of).collect::<Vec<_>>()).into_iter();
        for run in runs {
            let table = tables.next().unwrap();
            match *run {
                Prompt(context, query) => batch.push(&vec![0; query], &table, context - query, context, block_size),
                Decodes(common, contexts) => {
                    for (&context, own) in contexts.iter().zip(tables.by_ref()) {
                        let blocks = [&table[..own_from(common, context) / block_size], &own].concat();
                        batch.push(&[0], &blocks, context - 1, 0, block_size);
                    }
                }
            }
        }
        batch.find_shared_prefixes();
        batch
    }

    fn inputs(&self, batch: &Batch, num_rows: Option<usize>) -> DeviceBatch {
        let shared =
            SharedSplits::new(&self.spec, self.kv.shape.dtype, self.cpu_kv.shape.block_size, self.device.num_sms());
        let inputs = DeviceBatch::new(&self.device, 1 << 16).unwrap();
        let mut inputs = inputs.with_shared_splits(shared.with_min_saved_bytes(0));
        inputs.upload(batch, num_rows).unwrap();
        inputs
    }

    /// With what is shared and without, and against the reference.
    fn check_runs(&self, runs: &[Run], num_rows: Option<usize>) {
        let batch = self.runs(runs);
        let qkv = self.queries(batch.num_tokens());
        let inputs = self.inputs(&batch, num_rows);
        assert!(inputs.shared_warps() > 0, "nothing is shared");
        let found = self.run_inputs(&inputs, &qkv);
        let alone = self.run(&batch, &qkv, num_rows);
        assert!(found == alone, "{:?}, blocks of {}", self.spec, self.cpu_kv.shape.block_size);
        let (cols, out_cols) = (self.spec.qkv_dim(), self.spec.num_heads * self.spec.head_dim);
        let mut expected = Buffer::new(batch.num_tokens(), out_cols);
        self.reference(&mut expected, &Buffer::from_vec(qkv, cols), &batch);
        let found = &found[..expected.data().len()];
        assert_device_close(found, expected.data(), if self.elem == ElemType::F16 { 2e-3 } else { 1e-2 });
    }
}

impl Case {
    /// Runs that are shared have the bits that they have in another case.
    pub(super) fn check_shared_runs(&self, other: &Self) {
        let batch = self.runs(&[Decodes(300, &[340, 301, 400]), Prompt(70, 20)]);
        let qkv = self.queries(batch.num_tokens());
        let [found, expected] = [self, other].map(|case| {
            let inputs = case.inputs(&batch, None);
            assert!(inputs.shared_warps() > 0, "nothing is shared");
            case.run_inputs(&inputs, &qkv)
        });
        assert!(found == expected, "{:?}", self.spec);
        assert!(found == self.run(&batch, &qkv, None), "{:?}", self.spec);
    }
}

#[test]
fn device_shares_for_all_widths() {
    for device in devices() {
        for head_dim in [4, 20, 40, 64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::F16] {
                let case = Case::new(&device, spec(4, 2, head_dim), dtype, 16, 800);
                case.check_runs(&[Decodes(300, &[340, 301, 400])], None);
            }
        }
    }
}

#[test]
fn device_shares_for_groups_windows_caps_and_blocks() {
    for device in devices() {
        for (num_heads, num_kv_heads) in [(2, 2), (4, 2), (3, 1), (8, 1), (20, 1)] {
            for (block_size, dtype) in [(16, KvDtype::F16), (32, KvDtype::Bf16)] {
                let plain = spec(num_heads, num_kv_heads, 16);
                // Windows that see nothing of what is shared, begin within it for some and behind it for others, reach beyond it.
                for (window, softcap) in [(None, None), (Some(9), None), (Some(130), Some(3.0)), (Some(420), None)] {
                    let case = Case::new(&device, AttentionSpec { window, softcap, ..plain }, dtype, block_size, 5200);
                    let runs =
                        [Decodes(560, &[600, 561, 870]), Prompt(70, 20), Decodes(256, &[300, 900]), Decodes(0, &[700])];
                    case.check_runs(&runs, None);
                }
            }
        }
    }
}

#[test]
fn long_runs_several_runs_and_padding() {
    const CONTEXTS: [usize; 40] = {
        let mut contexts = [0; 40];
        let mut i = 0;
        while i < contexts.len() {
            contexts[i] = 515 + i * 7 % 40;
            i += 1;
        }
        contexts
    };
    for device in devices() {
        // 8 warps, whose last has 2 sequences; 3 blocks, whose last has 8.
        for (num_heads, num_seqs) in [(4, 34), (8, 40)] {
            let mut case = Case::new(&device, spec(num_heads, 1, 16), KvDtype::Bf16, 16, 6000);
            case.space = AttentionSpace::new(&device, 48, &case.spec, 2048).unwrap();
            case.check_runs(&[Decodes(512, &CONTEXTS[..num_seqs])], Some(48));
            case.check_runs(
                &[Decodes(300, &CONTEXTS[..3]), Decodes(800, &[1030, 900]), Decodes(512, &CONTEXTS[..5])],
                Some(16),
            );
            // No room for partial results: each for itself.
            case.space = AttentionSpace::new(&device, 1, &case.spec, 1).unwrap();
            case.check_runs(&[Decodes(512, &CONTEXTS[..6])], None);
        }
    }
}

/// The others' tables name blocks of other contents once it is known what is shared: nobody looks.
#[test]
fn shared_keys_are_read_by_way_of_the_first_alone() {
    for device in devices() {
        let case = Case::new(&device, spec(4, 2, 16), KvDtype::Bf16, 16, 3000);
        let mut batch = case.runs(&[Decodes(544, &[600, 550, 700, 545])]);
        let qkv = case.queries(4);
        let expected = case.run(&batch, &qkv, None);
        let (first, blocks) = (batch.block_tables[0], 2 * 256 / 16);
        for seq in &batch.sequences[1..] {
            batch.block_tables[seq.table_starts[0]..seq.table_starts[0] + blocks].fill(first);
        }
        assert!(case.run_inputs(&case.inputs(&batch, None), &qkv) == expected);
        assert!(case.run(&batch, &qkv, None) != expected, "the blocks differ");
    }
}

#[test]
fn a_graph_is_good_for_other_runs_of_its_shape() {
    for device in devices() {
        let case = Case::new(&device, spec(4, 2, 20), KvDtype::Bf16, 16, 5000);
        let captured = case.runs(&[Decodes(272, &[300, 290]), Decodes(0, &[300]), Decodes(0, &[900])]);
        let batch = case.runs(&[Decodes(0, &[20]), Decodes(512, &[600, 700]), Decodes(0, &[800]), Decodes(0, &[900])]);
        let qkv = case.queries(8);
        let expected = case.run(&batch, &qkv[..5 * case.spec.qkv_dim()], Some(8));

        let mut inputs = case.inputs(&captured, Some(8));
        let shape = DecodeShape::of(&inputs);
        let qkv = on_device::buffer(&device, &qkv, case.spec.qkv_dim(), case.elem);
        let mut out = CudaBuffer::new(&device, 8, case.spec.num_heads * case.spec.head_dim, case.elem).unwrap();
        device.begin_capture().unwrap();
        cuda(&case.space, &mut out, &qkv, &case.kv, &inputs, case.layer()).unwrap();
        let graph = device.end_capture().unwrap();
        inputs.upload(&batch, Some(8)).unwrap();
        assert_eq!(DecodeShape::of(&inputs), shape);
        // SAFETY: all that was captured is still there.
        unsafe { graph.launch() }.unwrap();
        let found = out.to_f32().unwrap();
        let real = 5 * out.cols();
        assert_eq!(found[..real], expected[..real]);
    }
}

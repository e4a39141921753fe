//! What does not fit is refused by name. That what fits is read rightly is in `tests/engine/packed.rs`.

use std::path::Path;

use ::safetensors::tensor::TensorView as StView;

use super::*;

const GPTQ: Packing = Packing { layout: PackedLayout::Gptq, bits: 4, group_size: Some(32), is_symmetric: false };

type Tensor<'a> = (&'a str, StDtype, &'a [usize], Vec<u8>);

fn open(tensors: &[Tensor<'_>], packing: Packing) -> (tempfile::TempDir, Safetensors) {
    let dir = tempfile::tempdir().unwrap();
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, StView::new(*dtype, shape.to_vec(), data).unwrap()));
    let path: &Path = dir.path();
    std::fs::write(path.join("model.safetensors"), ::safetensors::serialize(views, None).unwrap()).unwrap();
    let files = Safetensors::open(path, StoredForm::Packed(packing)).unwrap();
    (dir, files)
}

/// A matrix of 8 rows and 64 columns: codes, zero points and scales.
fn parts() -> [Tensor<'static>; 3] {
    let scales = [0x3c00u16; 16].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    [
        ("m.qweight", StDtype::I32, &[8, 8], vec![0x21; 256]),
        ("m.qzeros", StDtype::I32, &[2, 1], vec![0x77; 8]),
        ("m.scales", StDtype::F16, &[2, 8], scales),
    ]
}

#[track_caller]
fn refused(tensors: &[Tensor<'_>], packing: Packing, words: &[&str]) {
    let (_dir, files) = open(tensors, packing);
    let message = files.tensor("m.weight").map(|_| ()).unwrap_err().to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn what_fits_is_read() {
    let (_dir, files) = open(&parts(), GPTQ);
    let found = files.tensor("m.weight").unwrap().unwrap();
    assert_eq!((found.dtype, &found.shape[..]), (Dtype::Int4G32, &[8, 64][..]));
    assert_eq!(found.to_f32()[..4], [-7.0, -6.0, -7.0, -6.0]);
    assert!(files.contains("m.weight") && files.block_format() == Some(Dtype::Int4G32));
    assert!(files.tensor("n.weight").unwrap().is_none() && !files.contains("n.weight"));
    // Every other column belongs to the second group.
    let scales = [0x3c00u16, 0x4000].map(|bits| bits.to_le_bytes().repeat(8)).concat();
    let [codes, zeros, _] = parts();
    let groups = (0..64).flat_map(|col: u32| (col % 2).to_le_bytes()).collect();
    let of_groups = [("m.scales", StDtype::F16, &[2, 8][..], scales), ("m.g_idx", StDtype::I32, &[64], groups)];
    let (_dir, files) = open(&[&[codes, zeros], &of_groups[..]].concat(), GPTQ);
    let found = files.tensor("m.weight").unwrap().unwrap();
    assert_eq!((found.dtype, found.column_order.as_ref().unwrap()[31..34].to_vec()), (Dtype::Int4G32, vec![62, 1, 3]));
    assert_eq!(found.to_f32()[..4], [-7.0, -12.0, -7.0, -12.0]);
    // Their zero points are all the middle.
    let (_dir, files) = open(&parts(), Packing { is_symmetric: true, ..GPTQ });
    assert_eq!(files.tensor("m.weight").unwrap().unwrap().dtype, Dtype::Q4_0);
}

#[test]
fn what_does_not_fit_is_named() {
    let [codes, zeros, scales] = parts();
    let with = |other: Tensor<'static>| {
        let mut tensors = parts().to_vec();
        tensors.retain(|tensor| tensor.0 != other.0);
        tensors.push(other);
        tensors
    };
    refused(&[codes.clone(), scales.clone()], GPTQ, &["model.safetensors", "m.qzeros", "m.qweight"]);
    refused(&[codes, zeros], GPTQ, &["m.scales", "m.qweight"]);
    refused(&with(("m.qweight", StDtype::I64, &[4, 8], vec![0; 256])), GPTQ, &["m.qweight", "I32", "I64"]);
    refused(&with(("m.qweight", StDtype::I32, &[64], vec![0; 256])), GPTQ, &["m.qweight", "[64]"]);
    refused(&with(("m.qweight", StDtype::I32, &[8, 4], vec![0; 128])), GPTQ, &["m.scales", "[2, 4]", "[2, 8]"]);
    refused(&with(("m.qzeros", StDtype::I32, &[1, 2], vec![0; 8])), GPTQ, &["m.qzeros", "[2, 1]", "[1, 2]"]);
    refused(&with(("m.scales", StDtype::I16, &[2, 8], vec![0; 32])), GPTQ, &["m.scales", "I16"]);
    let infinite = [0x3c, 0x7c].repeat(16);
    refused(&with(("m.scales", StDtype::F16, &[2, 8], infinite)), GPTQ, &["m.scales", "finite"]);
    let large = 1e6f32.to_le_bytes().repeat(16);
    refused(&with(("m.scales", StDtype::F32, &[2, 8], large)), GPTQ, &["m.scales", "6.5504e4", "1000000"]);
    refused(&with(("m.g_idx", StDtype::I32, &[63], vec![0; 252])), GPTQ, &["m.g_idx", "[64]", "[63]"]);
    refused(&with(("m.g_idx", StDtype::I32, &[64], vec![2; 256])), GPTQ, &["m.g_idx", "found column 0 in"]);
    let uneven = (0..64).flat_map(|col: u32| u32::from(col > 30).to_le_bytes()).collect();
    refused(&with(("m.g_idx", StDtype::I32, &[64], uneven)), GPTQ, &["m.g_idx", "32 columns", "column 31 in 1"]);
    let symmetric = Packing { is_symmetric: true, ..GPTQ };
    refused(&with(("m.qzeros", StDtype::I32, &[2, 1], vec![0x67; 8])), symmetric, &["m.qzeros", "symmetric"]);
    for group_size in [48, 16, 0, 128] {
        refused(&parts(), Packing { group_size: Some(group_size), ..GPTQ }, &["m.qweight", "multiple of 32"]);
    }
    let rows =
        [("m.qweight", StDtype::I32, &[4, 6][..], vec![0; 96]), ("m.scales", StDtype::F16, &[1, 6], vec![0; 12])];
    refused(&rows, GPTQ, &["m.qweight", "multiple of 8"]);
    // compressed-tensors has zero points where it needs them alone.
    let packed = Packing { layout: PackedLayout::PackQuantized, is_symmetric: true, ..GPTQ };
    let mut tensors = vec![
        ("m.weight_packed", StDtype::I32, &[8, 8][..], vec![0; 256]),
        ("m.weight_scale", StDtype::F16, &[8, 2], vec![0; 32]),
    ];
    refused(&tensors, Packing { is_symmetric: false, ..packed }, &["m.weight_zero_point", "m.weight_packed"]);
    tensors.push(("m.weight_zero_point", StDtype::I32, &[1, 2], vec![0; 8]));
    refused(&tensors, packed, &["m.weight_zero_point", "symmetric"]);
}

#[test]
fn floats_beside_integers_stay_floats() {
    let packing = Packing { layout: PackedLayout::IntQuantized, bits: 8, group_size: None, is_symmetric: true };
    let tensors = [
        ("norm.weight", StDtype::F32, &[2][..], vec![0; 8]),
        ("head.weight", StDtype::BF16, &[1, 32], vec![0; 64]),
        ("m.weight", StDtype::I8, &[1, 32], vec![0xff; 32]),
        ("m.weight_scale", StDtype::BF16, &[1, 1], vec![0x00, 0x3f]),
    ];
    let (_dir, files) = open(&tensors, packing);
    let dtype = |name: &str| files.tensor(name).unwrap().unwrap().dtype;
    assert_eq!([dtype("norm.weight"), dtype("head.weight"), dtype("m.weight")], [Dtype::F32, Dtype::BF16, Dtype::Q8_0]);
    assert_eq!(files.tensor("m.weight").unwrap().unwrap().to_f32(), [-0.5; 32]);
}

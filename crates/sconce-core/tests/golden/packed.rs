//! Weights of packed integers with zero points, and the same written out as plain numbers.

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use sconce_core::config::WeightDtype;
use sconce_core::weights::{PackedLayout, Packing, StoredForm, WeightStore};

use super::checkpoint::{Tensor, f32_bytes, logits, store};
use super::compare::max_error;
use super::fixture::Fixture;

/// Columns that share a scale.
const GROUP: usize = 32;
/// Of logits: inputs of blocks have 16 bits.
const TOLERANCE: f32 = 2e-2;

/// Which columns share a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// Neighbours.
    Plain,
    /// Others, the same ones in all matrices of so many columns.
    Alike,
    /// Others, in each matrix, so that those beside each other do not have one order.
    Apart,
}

/// The model's logits are the same, whichever way the numbers came.
pub(crate) fn check(fixture: &Fixture) -> Result<String, &'static str> {
    let path = fixture.dir.join("model.safetensors");
    let Ok(file) = std::fs::read(path) else { return Err("it has several files") };
    if fixture.is_quantized() {
        return Err("it is stored in a quantized form");
    }
    let plain = WeightStore::open_safetensors(&fixture.dir, StoredForm::Plain).unwrap();
    let mut report = Vec::new();
    for order in [Order::Plain, Order::Alike, Order::Apart] {
        let (mut packed, mut numbers): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
        let mut num_packed = 0;
        for (name, tensor) in SafeTensors::deserialize(&file).unwrap().tensors() {
            let shape = tensor.shape().to_vec();
            // No tool packs what chooses experts.
            let is_layers = name.contains(".layers.") && shape.len() == 2 && !name.ends_with(".gate.weight");
            let prefix = name.strip_suffix(".weight").filter(|_| is_layers);
            let Some(prefix) = prefix.filter(|_| shape[1].is_multiple_of(GROUP)) else {
                let plain = (name, tensor.dtype(), shape, tensor.data().to_vec());
                packed.push(plain.clone());
                numbers.push(plain);
                continue;
            };
            let cols = shape[1];
            let columns: Vec<usize> = match order {
                Order::Plain => (0..cols).collect(),
                Order::Alike => (0..cols).map(|i| i * 37 % cols).collect(),
                Order::Apart => (0..cols).map(|i| (i * 37 + num_packed) % cols).collect(),
            };
            let matrix = Quantized::of(&plain.get(&name, &shape).unwrap().to_f32(), &columns);
            packed.extend(matrix.packed(prefix));
            numbers.push((name.clone(), Dtype::F32, shape, f32_bytes(&matrix.numbers())));
            num_packed += 1;
        }
        assert!(num_packed > 0, "{}: no matrix is packed", fixture.name);
        let packing =
            Packing { layout: PackedLayout::PackQuantized, bits: 4, group_size: Some(GROUP), is_symmetric: false };
        let (packed, numbers) = (store(&packed, StoredForm::Packed(packing)), store(&numbers, StoredForm::Plain));
        let expected = logits(fixture, &numbers, WeightDtype::F32);
        let found = logits(fixture, &packed, WeightDtype::F32);
        // Where columns are in another order, so are sums.
        let error = max_error(&found, &expected);
        let tolerance = if order == Order::Plain { 0.0 } else { 1e-4 };
        assert!(error <= tolerance, "{}: numbers differ by {error} {order:?}", fixture.name);
        let error = max_error(&logits(fixture, &packed, WeightDtype::Auto), &expected);
        assert!(error <= TOLERANCE, "{}: logits are off by {error} {order:?}", fixture.name);
        report.push(format!("{error:.0e}"));
    }
    Ok(report.join(", "))
}

/// A matrix of 4-bit integers: scale * (code - zero), with scales of f16 and zero points of each group of a row.
struct Quantized {
    cols: usize,
    codes: Vec<u8>,
    /// Of each column.
    group_of: Vec<usize>,
    /// [rows, groups].
    scales: Vec<half::f16>,
    zeros: Vec<u8>,
}

impl Quantized {
    /// Columns that are neighbours in `order` are a group.
    fn of(values: &[f32], order: &[usize]) -> Self {
        let cols = order.len();
        let mut group_of = vec![0; cols];
        order.iter().enumerate().for_each(|(i, &col)| group_of[col] = i / GROUP);
        let mut this = Self { cols, codes: vec![0; values.len()], group_of, scales: Vec::new(), zeros: Vec::new() };
        for (row, codes) in values.chunks(cols).zip(this.codes.chunks_mut(cols)) {
            for group in order.chunks(GROUP) {
                let of_group = || group.iter().map(|&col| row[col]);
                let (min, max) = of_group().fold((0.0f32, 0.0f32), |(min, max), x| (min.min(x), max.max(x)));
                let scale = half::f16::from_f32(((max - min) / 15.0).max(1e-4));
                let zero = (-min / scale.to_f32()).round();
                for &col in group {
                    codes[col] = (row[col] / scale.to_f32() + zero).round().clamp(0.0, 15.0) as u8;
                }
                this.scales.push(scale);
                this.zeros.push(zero as u8);
            }
        }
        this
    }

    fn numbers(&self) -> Vec<f32> {
        let value = |(i, &code): (usize, &u8)| {
            let group = i / self.cols * (self.cols / GROUP) + self.group_of[i % self.cols];
            self.scales[group].to_f32() * (f32::from(code) - f32::from(self.zeros[group]))
        };
        self.codes.iter().enumerate().map(value).collect()
    }

    /// As compressed-tensors packs it.
    fn packed(&self, prefix: &str) -> [Tensor; 4] {
        let (rows, groups) = (self.codes.len() / self.cols, self.cols / GROUP);
        let codes = pack(self.codes.iter().copied());
        let columns = (0..rows.div_ceil(8)).flat_map(|word| (0..groups).map(move |group| (word, group)));
        let zeros: Vec<u8> = columns
            .flat_map(|(word, group)| {
                pack((8 * word..8 * word + 8).map(|row| self.zeros.get(row * groups + group).copied().unwrap_or(0)))
            })
            .collect();
        let scales = self.scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        let group_of = self.group_of.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect();
        [
            (format!("{prefix}.weight_packed"), Dtype::I32, vec![rows, self.cols / 8], codes),
            (format!("{prefix}.weight_zero_point"), Dtype::I32, vec![rows.div_ceil(8), groups], zeros),
            (format!("{prefix}.weight_scale"), Dtype::F16, vec![rows, groups], scales),
            (format!("{prefix}.weight_g_idx"), Dtype::I32, vec![self.cols], group_of),
        ]
    }
}

/// Words of eight codes, the first in the lowest bits: two codes a byte.
fn pack(codes: impl Iterator<Item = u8>) -> Vec<u8> {
    let codes: Vec<u8> = codes.collect();
    codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect()
}

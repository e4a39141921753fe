//! What operations keep in a device's memory: activations and weights.

use std::sync::Arc;

use super::device::{BoxShape, Device, DevicePtr, ElemType, TensorMap};
use crate::error::Result;
use crate::weights::Dtype;

/// A piece of a device's memory, given back when the last of those who have it is dropped.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Piece>);

struct Piece {
    device: Arc<dyn Device>,
    ptr: DevicePtr,
    bytes: usize,
}

impl Memory {
    /// So many bytes, of any contents.
    pub(crate) fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let ptr = device.alloc(bytes.max(1))?;
        Ok(Self(Arc::new(Piece { device: Arc::clone(device), ptr, bytes })))
    }

    /// The bytes of `data`.
    pub(crate) fn of_bytes(device: &Arc<dyn Device>, data: &[u8]) -> Result<Self> {
        let memory = Self::new(device, data.len())?;
        memory.write(0, data)?;
        Ok(memory)
    }

    /// Where it begins.
    pub(crate) fn ptr(&self) -> DevicePtr {
        self.0.ptr
    }

    /// How much there is.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Copies `data` to byte `start`.
    pub(crate) fn write(&self, start: usize, data: &[u8]) -> Result<()> {
        assert!(start + data.len() <= self.0.bytes, "invariant: what is written fits");
        // SAFETY: checked above.
        unsafe { self.0.device.upload(self.0.ptr.offset(start), data) }
    }

    /// Reads from byte `start` on.
    pub(crate) fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        assert!(start + out.len() <= self.0.bytes, "invariant: what is read is there");
        // SAFETY: checked above.
        unsafe { self.0.device.download(out, self.0.ptr.offset(start)) }
    }

    /// Fills it with zeros.
    pub(crate) fn clear(&self) -> Result<()> {
        // SAFETY: as many bytes as there are.
        unsafe { self.0.device.clear(self.0.ptr, self.0.bytes) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: it came from this device, and goes with its owner.
        unsafe { self.device.free(self.ptr) };
    }
}

/// Boxes of a matrix of 16 bits, row after row, as kernels for Hopper bring them: 64 rows of 64 columns. `None` where the device
/// has none, or the matrix does not suit.
pub(crate) fn boxes(memory: &Memory, [rows, cols]: [usize; 2], elem: ElemType) -> Result<Option<TensorMap>> {
    const SIDE: usize = 64;
    let suits = elem != ElemType::F32 && rows > 0 && cols >= SIDE && cols.is_multiple_of(8);
    if !suits || i32::try_from(rows).is_err() {
        return Ok(None);
    }
    let shape = BoxShape { elem, dims: [cols, rows, 1], box_dims: [SIDE as u32, SIDE as u32, 1] };
    memory.0.device.tensor_map(memory.ptr(), &shape)
}

/// Activations, [rows, cols].
pub struct Buffer {
    memory: Memory,
    map: Option<TensorMap>,
    max_rows: usize,
    rows: usize,
    cols: usize,
    elem: ElemType,
}

impl Buffer {
    /// Room for `max_rows` rows, none in use.
    pub(crate) fn new(device: &Arc<dyn Device>, max_rows: usize, cols: usize, elem: ElemType) -> Result<Self> {
        let memory = Memory::new(device, max_rows * cols * elem.bytes())?;
        // What no step has written is read by none, but NaNs in rows that graphs add must not look like errors.
        memory.clear()?;
        let map = boxes(&memory, [max_rows, cols], elem)?;
        Ok(Self { memory, map, max_rows, rows: 0, cols, elem })
    }

    /// Boxes of all the rows that there is room for.
    pub(crate) fn map(&self) -> Option<&TensorMap> {
        self.map.as_ref()
    }

    /// Where row 0 begins.
    pub(crate) fn ptr(&self) -> DevicePtr {
        self.memory.ptr()
    }

    /// Rows in use.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the elements.
    pub(crate) fn elem(&self) -> ElemType {
        self.elem
    }

    /// Sets the rows in use; their contents are whatever was there.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "invariant: a step fits the workspace");
        self.rows = rows;
    }

    /// Rows that there is room for. Launches that are repeated from a graph leave [`Buffer::rows`] as it was.
    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// The rows in use in f32. Waits for the device.
    #[cfg(test)]
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>> {
        self.first_rows_to_f32(self.rows)
    }

    /// The first rows in f32. Waits for the device.
    pub(crate) fn first_rows_to_f32(&self, num_rows: usize) -> Result<Vec<f32>> {
        assert!(num_rows <= self.max_rows, "invariant: what is read is there");
        let mut bytes = vec![0; num_rows * self.cols * self.elem.bytes()];
        self.memory.read(0, &mut bytes)?;
        Ok(floats_of(&bytes, self.elem))
    }

    /// Writes rows of f32, as the buffer's type has them, and sets the rows in use.
    pub(crate) fn write_f32(&mut self, data: &[f32]) -> Result<()> {
        self.set_rows(data.len() / self.cols.max(1));
        self.memory.write(0, &bytes_of(data, self.elem))
    }
}

/// Numbers as a device has them, in f32.
pub(crate) fn floats_of(bytes: &[u8], elem: ElemType) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match elem {
        ElemType::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        ElemType::Bf16 => pairs().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        ElemType::F16 => pairs().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
    }
}

/// Numbers of f32 as a device has them.
pub(crate) fn bytes_of(data: &[f32], elem: ElemType) -> Vec<u8> {
    match elem {
        ElemType::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElemType::Bf16 => data.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        ElemType::F16 => data.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// A vector of f32.
#[derive(Clone)]
pub struct Vector {
    pub(crate) memory: Memory,
    pub(crate) len: usize,
}

/// Columns of e4m3 that `linear.cu` reads together: rows of it are padded to whole steps, and no segment of a sum ends within
/// one.
pub(crate) const FP8_STEP: usize = 64;

/// What a matrix's weights are.
#[derive(Clone)]
pub(crate) enum Form {
    /// 16 bits each.
    Floats,
    /// The same, written by steps: products must not read it before the kernel that does has ended.
    Scratch,
    /// e4m3 as `linear.cu` reads them, and the scale of each row.
    Fp8(Vector),
    /// Block formats: the parts that they come in, one after another in memory.
    Blocks(Vec<QuantPart>),
}

/// Weight matrices of the same number of columns over each other, [rows, cols], as inputs of products. Clones share their memory.
#[derive(Clone)]
pub struct Matrix {
    pub(crate) memory: Memory,
    pub(crate) rows: usize,
    /// A multiple of 8: rows begin at multiples of 16 bytes.
    pub(crate) cols: usize,
    /// 16 bits: the type of inputs, and of weights that are floats.
    pub(crate) elem: ElemType,
    pub(crate) form: Form,
    /// [rows].
    pub(crate) bias: Option<Vector>,
    /// [cols] u32: which column each stored one is, where they are not in order. Inputs of products are brought into it before.
    pub(crate) column_order: Option<Memory>,
    /// Boxes of it; of e4m3 two columns are one.
    map: Option<TensorMap>,
}

/// Neighbouring rows of one block format, as `kernels/lib/quant.h` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuantPart {
    pub(crate) dtype: Dtype,
    /// A multiple of 16.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// The byte of the matrix's memory at which it begins.
    pub(crate) start: usize,
}

impl Matrix {
    /// Of memory that has the rows, whatever its contents; of scratch it may have more.
    pub(crate) fn new(
        memory: Memory,
        [rows, cols]: [usize; 2],
        elem: ElemType,
        form: Form,
        bias: Option<Vector>,
    ) -> Result<Self> {
        let map = match form {
            // Two codes of e4m3 are a number of 16 bits to who copies them.
            Form::Fp8(_) => boxes(&memory, [rows, cols.next_multiple_of(FP8_STEP) / 2], elem)?,
            Form::Floats | Form::Scratch => boxes(&memory, [rows, cols], elem)?,
            Form::Blocks(_) => None,
        };
        Ok(Self { memory, rows, cols, elem, form, bias, column_order: None, map })
    }

    /// The same weights with another's bias.
    pub(crate) fn with_bias_of(&self, other: &Self) -> Self {
        Self { bias: other.bias.clone(), ..self.clone() }
    }

    /// Boxes of its rows.
    pub(crate) fn map(&self) -> Option<&TensorMap> {
        self.map.as_ref()
    }

    /// Of e4m3, [rows].
    pub(crate) fn row_scales(&self) -> Option<&Vector> {
        if let Form::Fp8(scales) = &self.form { Some(scales) } else { None }
    }

    /// Whether weights are e4m3.
    pub(crate) fn is_fp8(&self) -> bool {
        self.row_scales().is_some()
    }

    /// Of block formats; elsewhere there are none.
    pub(crate) fn quant_parts(&self) -> &[QuantPart] {
        if let Form::Blocks(parts) = &self.form { parts } else { &[] }
    }

    /// Whether weights are in block formats.
    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self.form, Form::Blocks(_))
    }

    /// Whether steps write it.
    pub(crate) fn is_scratch(&self) -> bool {
        matches!(self.form, Form::Scratch)
    }
}

/// A matrix for each expert of a layer, one after another in memory, all of one shape and form.
pub struct ExpertMatrices {
    /// Over each other, [num_experts * rows, cols], without a bias.
    pub(crate) all: Matrix,
    pub(crate) num_experts: usize,
}

impl ExpertMatrices {
    /// Of one of them.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.all.rows / self.num_experts, self.all.cols]
    }

    /// Of one of them in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.all.memory.bytes() / self.num_experts
    }
}

/// Cosines and sines: [rows, rotary_dim] f32, of a row the cosines, then the sines.
pub struct RopeTable {
    pub(crate) memory: Memory,
    pub(crate) rotary_dim: usize,
}

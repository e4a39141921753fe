//! `add`: out += x, element by element. Bounded by memory: 12 bytes an element.

use crate::backend::cpu::Buffer;

/// out[t, i] += x[t, i]; both [rows, cols], f32.
pub fn reference(out: &mut Buffer, x: &Buffer) {
    assert_eq!((out.rows(), out.cols()), (x.rows(), x.cols()), "invariant: equal shapes");
    out.data_mut().iter_mut().zip(x.data()).for_each(|(o, x)| *o += x);
}

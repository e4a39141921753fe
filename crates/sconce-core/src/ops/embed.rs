//! `embed`: rows of the embedding table, in f32, times a scale (Gemma's sqrt(hidden); 1 elsewhere).

use crate::backend::cpu::{Buffer, Matrix};
use crate::ops::linear;

/// out[t] = table[token_ids[t]] * scale. `out`: [num_tokens, hidden]; quantized rows are dequantized.
pub fn reference(out: &mut Buffer, table: &Matrix, token_ids: &[u32], scale: f32) {
    assert_eq!(out.cols(), table.cols, "invariant: equal widths");
    let part = &table.parts[0];
    out.set_rows(token_ids.len());
    for (row, &id) in out.data_mut().chunks_exact_mut(table.cols).zip(token_ids) {
        linear::dequantize_row(part, id as usize, row);
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::dense_matrix;

    #[test]
    fn rows_are_looked_up_and_scaled() {
        let table = dense_matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        let mut out = Buffer::new(4, 2);
        reference(&mut out, &table, &[2, 0, 2], 0.5);
        assert_eq!(out.data(), [2.5, 3.0, 0.5, 1.0, 2.5, 3.0]);
        reference(&mut out, &table, &[], 1.0);
        assert_eq!(out.rows(), 0);
    }
}

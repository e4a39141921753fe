//! `gather_rows`: the rows whose logits are wanted.

use crate::backend::cpu::Buffer;

/// out[i] = x[rows[i]]. `out`: [rows.len(), cols].
pub fn reference(out: &mut Buffer, x: &Buffer, rows: &[u32]) {
    assert_eq!(out.cols(), x.cols(), "invariant: equal widths");
    out.set_rows(rows.len());
    let cols = x.cols();
    for (dst, &row) in out.data_mut().chunks_exact_mut(cols).zip(rows) {
        dst.copy_from_slice(x.row(row as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_asked_for() {
        let x = Buffer::from_vec(vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0], 2);
        let mut out = Buffer::new(3, 2);
        reference(&mut out, &x, &[2, 0]);
        assert_eq!(out.data(), [20.0, 21.0, 0.0, 1.0]);
    }
}

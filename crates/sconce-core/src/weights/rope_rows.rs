//! The order of q's and k's rows, which a RoPE that turns the halves of heads has otherwise than one that turns neighbours.

use super::TensorView;

impl TensorView<'_> {
    /// Of a matrix, or a bias, whose rows are heads of `head_dim`, of which the first `rotary_dim` are in the order of a RoPE that turns
    /// neighbours: row 2i + j of those becomes row j * rotary_dim / 2 + i of the head, as for one that turns halves. The same rows of q and
    /// of k meet in a score as before. Rows are moved whole, so blocks stay as they are.
    pub(crate) fn in_halves(self, head_dim: usize, rotary_dim: usize) -> Self {
        let (num_rows, half) = (self.shape[0], rotary_dim / 2);
        let stored_at = |row: usize| {
            let (first, in_head) = (row / head_dim * head_dim, row % head_dim);
            first
                + match in_head {
                    low if low < half => 2 * low,
                    high if high < 2 * half => 2 * (high - half) + 1,
                    still => still,
                }
        };
        let row_bytes = self.data.len() / num_rows.max(1);
        let mut data = Vec::with_capacity(self.data.len());
        for row in 0..num_rows {
            data.extend_from_slice(&self.data[stored_at(row) * row_bytes..][..row_bytes]);
        }
        let row_scales = self.row_scales.map(|scales| (0..num_rows).map(|row| scales[stored_at(row)]).collect());
        Self { data: data.into(), row_scales, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    #[test]
    fn neighbours_come_to_halves_and_the_rest_stays() {
        // Two heads of 7 rows, of which 4 turn; rows of 3 bytes.
        let data: Vec<u8> = (0..14).flat_map(|row| [row, 100 + row, 200 + row]).collect();
        let scales = (0..14).map(|row| row as f32).collect();
        let stored = TensorView { row_scales: Some(scales), ..TensorView::new(Dtype::F8E4M3, vec![14, 3], data) };
        let found = stored.in_halves(7, 4);
        let rows = [0, 2, 1, 3, 4, 5, 6, 7, 9, 8, 10, 11, 12, 13];
        let expected: Vec<u8> = rows.iter().flat_map(|row| [*row, 100 + row, 200 + row]).collect();
        assert_eq!((&*found.data, &found.shape), (&expected[..], &vec![14, 3]));
        assert_eq!(found.row_scales.unwrap(), rows.map(f32::from));

        let bias = TensorView::new(Dtype::F16, vec![6], (0..12).collect::<Vec<u8>>()).in_halves(6, 6);
        assert_eq!(*bias.data, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
        let none = TensorView::new(Dtype::F32, vec![0, 8], &[]).in_halves(4, 4);
        assert_eq!((none.data.len(), none.shape), (0, vec![0, 8]));
    }
}

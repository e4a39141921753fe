//! [`with_one_order`]: matrices whose columns are not stored in order, beside others.

use super::TensorView;

/// Matrices over each other, and the order that the columns of all have. Where that is not the same one, they are put in order, as f32.
pub(crate) fn with_one_order<'a>(parts: Vec<TensorView<'a>>) -> (Vec<TensorView<'a>>, Option<Vec<u32>>) {
    if parts.iter().all(|part| part.column_order == parts[0].column_order) {
        let order = parts[0].column_order.clone();
        return (parts, order);
    }
    let in_order = |part: TensorView<'a>| if part.column_order.is_some() { part.in_f32() } else { part };
    (parts.into_iter().map(in_order).collect(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    #[test]
    fn one_order_is_kept_and_several_are_undone() {
        let view = |first: u8, order: Option<Vec<u32>>| {
            let data: Vec<u8> = (first..first + 3).flat_map(|x| f32::from(x).to_le_bytes()).collect();
            TensorView { column_order: order, ..TensorView::new(Dtype::F32, vec![1, 3], data) }
        };
        let numbers = |parts: Vec<Option<Vec<u32>>>| {
            let parts = parts.into_iter().enumerate().map(|(i, order)| view(10 * i as u8, order)).collect();
            let (parts, order) = with_one_order(parts);
            let stored: Vec<_> =
                parts.into_iter().map(|part| TensorView { column_order: None, ..part }.to_f32()).collect();
            (stored.concat(), order)
        };
        let order = Some(vec![2, 0, 1]);
        assert_eq!(numbers(vec![None, None]), (vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0], None));
        assert_eq!(numbers(vec![order.clone(); 2]), (vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0], order.clone()));
        assert_eq!(numbers(vec![None, order]), (vec![0.0, 1.0, 2.0, 11.0, 12.0, 10.0], None));
    }
}

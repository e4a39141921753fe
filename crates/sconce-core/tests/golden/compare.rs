//! How far numbers are from golden ones.

/// The greatest difference; infinite if a number is none.
pub(crate) fn max_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let worse = |max: f32, (f, e): (&f32, &f32)| if (f - e).is_nan() { f32::INFINITY } else { max.max((f - e).abs()) };
    found.iter().zip(expected).fold(0.0, worse)
}

/// Log-probabilities of one row of logits.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits.iter().map(|l| (f64::from(l - max) - sum.ln()) as f32).collect()
}

/// The place of the greatest.
pub(crate) fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// KL(expected || found) of two rows of logits, in nats.
pub(crate) fn divergence(found: &[f32], expected: &[f32]) -> f64 {
    let (p, q) = (log_softmax(expected), log_softmax(found));
    p.iter().zip(&q).map(|(&p, &q)| f64::from(p).exp() * f64::from(p - q)).sum()
}

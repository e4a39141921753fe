//! [`Softmax`]: log-probabilities of a row, and the draw from a whole row.

use super::filters::draw_target;
use super::numeric::{BLOCK, block_masses, clean, row_mass, weight};

/// The softmax of a row, or of what filters left of it.
#[derive(Debug, Clone, Copy)]
pub struct Softmax {
    max: f32,
    temperature: f32,
    log_total: f64,
}

impl Softmax {
    /// Of rows that are log-probabilities already.
    pub const IDENTITY: Self = Self { max: 0.0, temperature: 1.0, log_total: 0.0 };

    /// Of tokens whose weights relative to the logit `max` at `temperature` sum to `total`.
    pub(super) fn new(max: f32, temperature: f32, total: f64) -> Self {
        Self { max, temperature, log_total: total.ln() }
    }

    /// Of a whole row whose greatest logit is `max`. A row without a number gives every token the logprob -inf.
    pub(super) fn of_row(row: &[f32], max: f32, temperature: f32) -> Self {
        if max == f32::NEG_INFINITY {
            return Self { temperature, ..Self::IDENTITY };
        }
        Self::new(max, temperature, row_mass(row, max, temperature))
    }

    /// Whether logits go in as they are.
    pub(super) fn is_untempered(&self) -> bool {
        self.temperature == 1.0
    }

    /// The same where the tokens' weights have been summed in units of 2^-34, to which each is rounded.
    pub fn of_mass(max: f32, temperature: f32, mass: u64) -> Self {
        if max == f32::NEG_INFINITY {
            return Self { temperature, ..Self::IDENTITY };
        }
        Self::new(max, temperature, mass as f64 * (1.0 / (1u64 << 34) as f64))
    }

    /// The log-probability of a token with this logit.
    pub fn logprob(&self, logit: f32) -> f32 {
        let scaled = (clean(logit) - self.max) / self.temperature;
        (f64::from(scaled) - self.log_total) as f32
    }
}

/// Draws from a whole row without looking at every token twice: the masses of its blocks find the block.
#[derive(Debug, Clone, Default)]
pub(super) struct RowDraw {
    /// Of each block of the row, `[vocab_size / BLOCK]`.
    block_masses: Vec<f64>,
}

impl RowDraw {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { block_masses: Vec::with_capacity(vocab_size.div_ceil(BLOCK)) }
    }

    /// Takes in a row whose greatest logit is `max`, which is finite, and returns its mass.
    pub(super) fn weigh(&mut self, row: &[f32], max: f32, temperature: f32) -> f64 {
        self.block_masses.clear();
        block_masses(row, max, temperature, &mut self.block_masses);
        self.block_masses.iter().sum()
    }

    /// The token at `uniform`, in [0, 1), of the cumulative distribution of the row that was weighed last, by
    /// ascending id. The other arguments are those that it was weighed with. `None` only where a row is so long
    /// (more than 2^19 tokens) that its mass had to be rounded.
    pub(super) fn draw(&self, row: &[f32], max: f32, temperature: f32, uniform: f64) -> Option<u32> {
        let target = draw_target(uniform, self.block_masses.iter().sum());
        let mut cumulative = 0.0;
        let block_idx = self.block_masses.iter().position(|mass| {
            let is_here = cumulative + mass > target;
            if !is_here {
                cumulative += mass;
            }
            is_here
        })?;
        let start = block_idx * BLOCK;
        let offset = row.iter().skip(start).position(|&logit| {
            cumulative += f64::from(weight(logit, max, temperature));
            cumulative > target
        })?;
        Some((start + offset) as u32)
    }
}

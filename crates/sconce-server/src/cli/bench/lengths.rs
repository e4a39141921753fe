//! [`LengthArgs`]: how long requests are, the same for a server as inside this process.

use super::parse_count;
use super::random::Random;

/// Flags that say how far lengths lie from their means.
#[derive(Debug, clap::Args)]
pub(super) struct LengthArgs {
    /// Lengths are log-normal, the standard deviation of their logarithms being this (conversations: about 1); 0: all are the
    /// same.
    #[arg(long, value_name = "SIGMA", default_value = "0", value_parser = parse_spread)]
    pub(super) spread: f64,
    /// With --spread: the longest prompt and the longest answer; longer ones are cut, so that means are below what is asked for.
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = parse_count)]
    pub(super) spread_max: usize,
}

fn parse_spread(text: &str) -> Result<f64, String> {
    let spread = text.parse().ok().filter(|spread: &f64| (0.0..=3.0).contains(spread));
    spread.ok_or_else(|| format!("{text} is not a number from 0 to 3"))
}

impl LengthArgs {
    /// So many requests' tokens of the prompt and of the answer, of these means, which follow from the seed. None that differs from
    /// its mean is above `limit`.
    pub(super) fn lengths(&self, seed: u64, num: usize, means: [usize; 2], limit: usize) -> Vec<[usize; 2]> {
        let mut random = Random::new(seed);
        let mut length = |mean: usize| match self.spread {
            0.0 => mean,
            spread => {
                let length = random.log_normal(mean as f64, spread).round() as usize;
                length.clamp(1, self.spread_max.min(limit).max(1))
            }
        };
        (0..num).map(|_| means.map(&mut length)).collect()
    }
}

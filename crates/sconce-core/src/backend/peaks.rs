//! [`Peaks`]: what a device does at most, measured, so that results can be stated against it.

/// What a device does at most. The figures are the best of several short tries: what others on the machine take away is missing
/// from few of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Threads that were measured together; 0 of a GPU.
    pub num_threads: usize,
    /// Reading memory that no cache holds, in 10^9 bytes a second; on a GPU copying within its memory, what is read and
    /// what is written counted.
    pub dram_read_gb_per_s: f64,
    /// Fused multiply-adds of f32 (products and sums apart where there is nothing fused), in 10^9 operations a second, of
    /// which a multiply-add is two. `None`: not what the device multiplies with.
    pub f32_gflop_per_s: Option<f64>,
    /// Products of bytes added up in i32, counted alike. `None`: there are no instructions for them.
    pub int8_gop_per_s: Option<f64>,
    /// Products of bf16 added up in f32, counted alike; on a GPU by cuBLASLt. `None`: there are no instructions for them.
    pub bf16_gflop_per_s: Option<f64>,
}

impl Peaks {
    /// The greater of each figure: of what was measured before something and after it.
    pub fn best(self, other: Self) -> Self {
        let best = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.max(b)).or(a).or(b);
        Self {
            num_threads: self.num_threads,
            dram_read_gb_per_s: self.dram_read_gb_per_s.max(other.dram_read_gb_per_s),
            f32_gflop_per_s: best(self.f32_gflop_per_s, other.f32_gflop_per_s),
            int8_gop_per_s: best(self.int8_gop_per_s, other.int8_gop_per_s),
            bf16_gflop_per_s: best(self.bf16_gflop_per_s, other.bf16_gflop_per_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_two() {
        let peaks = |x: f64, int8| Peaks {
            num_threads: 1,
            dram_read_gb_per_s: x,
            f32_gflop_per_s: Some(3.0 - x),
            int8_gop_per_s: int8,
            bf16_gflop_per_s: None,
        };
        let best = peaks(1.0, Some(5.0)).best(peaks(2.0, Some(4.0)));
        assert_eq!(best, Peaks { dram_read_gb_per_s: 2.0, f32_gflop_per_s: Some(2.0), ..peaks(1.0, Some(5.0)) });
    }
}

//! [`time`]: what a launch takes, among many of its kind.

use std::time::Instant;

use crate::backend::cuda::device::Device;
use crate::error::Result;

/// Launches are repeated for about so long, after the first ones.
const SECONDS: f64 = 0.02;
const MAX_RUNS: f64 = 500.0;

/// Microseconds of a launch. `run` is told how many came before.
pub(crate) fn time(device: &dyn Device, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut runs = |num: usize| -> Result<f64> {
        device.synchronize()?;
        let begun = Instant::now();
        (0..num).try_for_each(&mut *run)?;
        device.synchronize()?;
        Ok(begun.elapsed().as_secs_f64() / num as f64)
    };
    runs(2)?;
    let about = runs(2)?;
    let num = (SECONDS / about.max(1e-9)).clamp(1.0, MAX_RUNS);
    Ok(runs(num as usize)? * 1e6)
}

//! Whether a GPU does what the backend asks of it: memory, copies, matrix products and graphs, each against the host.

use std::sync::Arc;
use std::time::Instant;

use half::bf16;

use super::super::device::{Device, DevicePtr, ElemType, Matmul};
use super::Gpu;
use crate::error::{Error, Result};
use crate::ops::linear::hopper::{self, adds_alike};

const LARGE_BYTES: usize = (72 << 20) + 12345;

/// Memory that is given back when the test is over, however it ends.
struct Memory<'a>(&'a Gpu, DevicePtr);

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: it was allocated by `memory`, and nobody has its address after this.
        unsafe { self.0.free(self.1) };
    }
}

fn memory(gpu: &Gpu, bytes: usize) -> Result<Memory<'_>> {
    Ok(Memory(gpu, gpu.alloc(bytes)?))
}

/// Opens a GPU and tries it. Returns a line for each thing that was tried.
pub fn self_test(index: usize) -> Result<Vec<String>> {
    let begun = Instant::now();
    let gpu = Arc::new(Gpu::open(index)?);
    let mut lines = vec![format!("opened in {:.2} s: {}", begun.elapsed().as_secs_f64(), gpu.name())];
    let gib = gpu.free_memory()? as f64 / (1u64 << 30) as f64;
    lines.push(format!("{gib:.1} GiB free, {} multiprocessors", gpu.num_sms()));
    lines.push(copies(&gpu)?);
    lines.push(small_uploads(&gpu)?);
    lines.push(answers(&gpu)?);
    for (in_type, out_type) in [(ElemType::Bf16, ElemType::Bf16), (ElemType::Bf16, ElemType::F32)] {
        lines.push(product(&gpu, in_type, out_type)?);
    }
    lines.push(captured(&gpu)?);
    lines.push(warpgroups(&gpu)?);
    gpu.synchronize()?;
    Ok(lines)
}

fn failed(what: String) -> Error {
    Error::Device { message: format!("self-test: {what}") }
}

fn copies(gpu: &Gpu) -> Result<String> {
    let (there, other) = (memory(gpu, LARGE_BYTES)?, memory(gpu, LARGE_BYTES)?);
    let sent: Vec<u8> = (0..LARGE_BYTES).map(|i| (i ^ (i >> 11)) as u8).collect();
    let mut back = vec![0; LARGE_BYTES];
    let gb = LARGE_BYTES as f64 / 1e9;
    // SAFETY: both allocations have this length.
    unsafe {
        let begun = Instant::now();
        gpu.upload(there.1, &sent)?;
        gpu.synchronize()?;
        let up = begun.elapsed().as_secs_f64();
        gpu.copy(other.1, there.1, LARGE_BYTES)?;
        let begun = Instant::now();
        gpu.download(&mut back, other.1)?;
        let down = begun.elapsed().as_secs_f64();
        if back != sent {
            return Err(failed("what was sent and copied is not what came back".into()));
        }
        gpu.clear(other.1, LARGE_BYTES - 1)?;
        gpu.download(&mut back, other.1)?;
        let (last, cleared) = (back[LARGE_BYTES - 1], &back[..LARGE_BYTES - 1]);
        if cleared.iter().any(|&byte| byte != 0) || last != sent[LARGE_BYTES - 1] {
            return Err(failed("clearing cleared too little or too much".into()));
        }
        Ok(format!("copies: {:.1} GB/s to the device, {:.1} GB/s back", gb / up, gb / down))
    }
}

/// More of them than there are slots, without waiting.
fn small_uploads(gpu: &Gpu) -> Result<String> {
    const LEN: usize = 1000;
    const COUNT: usize = 100;
    let there = memory(gpu, LEN * COUNT)?;
    let mut back = vec![0; LEN * COUNT];
    let begun = Instant::now();
    // SAFETY: the parts are within the allocation.
    unsafe {
        for part in 0..COUNT {
            gpu.upload(there.1.offset(part * LEN), &[part as u8; LEN])?;
        }
        gpu.download(&mut back, there.1)?;
    }
    let us = begun.elapsed().as_secs_f64() * 1e6 / COUNT as f64;
    if let Some(at) = (0..LEN * COUNT).find(|&at| back[at] != (at / LEN) as u8) {
        return Err(failed(format!("small upload {} was overwritten", at / LEN)));
    }
    Ok(format!("small uploads: {us:.1} us each"))
}

/// What was asked for comes as it was then, however much follows, and only that is waited for.
fn answers(gpu: &Gpu) -> Result<String> {
    const LEN: usize = 1000;
    let (there, much) = (memory(gpu, LEN * 4)?, memory(gpu, LARGE_BYTES)?);
    let mut mailbox = gpu.mailbox(2 * LEN)?;
    let mut us = [0.0; 2];
    for (round, us) in us.iter_mut().enumerate() {
        let sent = [round as u32 + 1; LEN];
        let begun = Instant::now();
        // SAFETY: both allocations have these lengths.
        unsafe {
            gpu.upload(there.1, bytemuck::cast_slice(&sent))?;
            mailbox.fetch(round * LEN, there.1, LEN)?;
            (0..20).try_for_each(|_| gpu.clear(much.1, LARGE_BYTES))?;
            gpu.clear(there.1, LEN * 4)?;
        }
        let words = mailbox.wait()?;
        *us = begun.elapsed().as_secs_f64() * 1e6;
        if words[round * LEN..][..LEN] != sent || words[..round * LEN].iter().any(|&word| word != 1) {
            return Err(failed(format!("answers of round {round} are not what was there when they were asked for")));
        }
    }
    let begun = Instant::now();
    gpu.synchronize()?;
    let rest = begun.elapsed().as_secs_f64() * 1e6;
    Ok(format!("answers: there after {:.0} us, {rest:.0} us before what follows them is done", us[1]))
}

/// Numbers that bf16 holds.
fn numbers(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 16) as f32 / 65_536.0 - 0.5)
    };
    (0..count).map(|_| next()).collect()
}

/// A product's shapes: nothing is round, and output rows have room between them.
const ROWS: usize = 37;
const COLS: usize = 264;
const OUT_COLS: usize = 136;
const OUT_STRIDE: usize = 144;

fn expected(x: &[bf16], weight: &[bf16]) -> Vec<f32> {
    let dot = |x: &[bf16], w: &[bf16]| x.iter().zip(w).map(|(x, w)| x.to_f32() * w.to_f32()).sum::<f32>();
    x.chunks(COLS).flat_map(|x| weight.chunks(COLS).map(move |w| dot(x, w))).collect()
}

/// Brings a product's output back and returns its greatest error.
///
/// # Safety
/// `out` is an output of the shapes above.
unsafe fn worst_error(gpu: &Gpu, out: DevicePtr, out_type: ElemType, expected: &[f32]) -> Result<f32> {
    let mut bytes = vec![0; ROWS * OUT_STRIDE * out_type.bytes()];
    // SAFETY: by the contract.
    unsafe { gpu.download(&mut bytes, out)? };
    let value = |at: usize| match out_type {
        ElemType::F32 => f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
        _ => bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32(),
    };
    let places = (0..ROWS).flat_map(|row| (0..OUT_COLS).map(move |col| row * OUT_STRIDE + col));
    // `max` would pass over NaN.
    let errors = places.zip(expected).map(|(at, expected)| (value(at) - expected).abs());
    Ok(errors.fold(0.0, |worst, error| if error <= worst { worst } else { error }))
}

fn is_off(error: f32, out_type: ElemType) -> bool {
    let tolerance = if out_type == ElemType::F32 { 1e-4 } else { 0.05 };
    error.is_nan() || error > tolerance
}

fn product(gpu: &Gpu, in_type: ElemType, out_type: ElemType) -> Result<String> {
    let (x, weight) = (numbers(ROWS * COLS, 1), numbers(OUT_COLS * COLS, 2));
    let (x_there, weight_there) = (memory(gpu, x.len() * 2)?, memory(gpu, weight.len() * 2)?);
    let out = memory(gpu, ROWS * OUT_STRIDE * out_type.bytes())?;
    let call = call(&x_there, &weight_there, &out, (in_type, out_type));
    // SAFETY: the allocations have the lengths of the shapes.
    let worst = unsafe {
        gpu.upload(x_there.1, bytemuck::cast_slice(&x))?;
        gpu.upload(weight_there.1, bytemuck::cast_slice(&weight))?;
        gpu.matmul(&call)?;
        worst_error(gpu, out.1, out_type, &expected(&x, &weight))?
    };
    if is_off(worst, out_type) {
        return Err(failed(format!("a product of {in_type:?} to {out_type:?} is off by {worst}")));
    }
    Ok(format!("product of {in_type:?} to {out_type:?}: off by {worst:.1e} at most"))
}

fn call(x: &Memory<'_>, weight: &Memory<'_>, out: &Memory<'_>, (in_type, out_type): (ElemType, ElemType)) -> Matmul {
    Matmul {
        out: out.1,
        x: x.1,
        weight: weight.1,
        num_rows: ROWS,
        cols: COLS,
        out_cols: OUT_COLS,
        out_stride: OUT_STRIDE,
        in_type,
        out_type,
    }
}

/// Whether kernels for Hopper are used.
fn warpgroups(gpu: &Arc<Gpu>) -> Result<String> {
    let device: Arc<dyn Device> = gpu.clone();
    if !hopper::has_kernels(&*device) {
        return Ok("products of warpgroups: none".into());
    }
    let say =
        |elem| Ok::<_, Error>(if adds_alike(&device, elem)? { "as others do" } else { "otherwise, and are not used" });
    Ok(format!("products of warpgroups: add in bf16 {}; in f16 {}", say(ElemType::Bf16)?, say(ElemType::F16)?))
}

/// A graph of a copy and a product reads its inputs when it runs, not when it was captured.
fn captured(gpu: &Gpu) -> Result<String> {
    let types = (ElemType::Bf16, ElemType::F32);
    let weight = numbers(OUT_COLS * COLS, 2);
    let bytes = ROWS * COLS * 2;
    let (input, x, weight_there) = (memory(gpu, bytes)?, memory(gpu, bytes)?, memory(gpu, weight.len() * 2)?);
    let out = memory(gpu, ROWS * OUT_STRIDE * types.1.bytes())?;
    let call = call(&x, &weight_there, &out, types);
    // SAFETY: the allocations have the lengths of the shapes, and outlive the graph.
    unsafe {
        gpu.upload(weight_there.1, bytemuck::cast_slice(&weight))?;
        gpu.clear(x.1, bytes)?;
        gpu.matmul(&call)?;
        gpu.synchronize()?;
        gpu.begin_capture()?;
        let steps = gpu.copy(x.1, input.1, bytes).and_then(|()| gpu.matmul(&call));
        let graph = gpu.end_capture();
        steps?;
        let graph = graph?;
        let mut worst = 0.0f32;
        let mut us = 0.0;
        for seed in 3..6 {
            let numbers = numbers(ROWS * COLS, seed);
            gpu.upload(input.1, bytemuck::cast_slice(&numbers))?;
            let begun = Instant::now();
            graph.launch()?;
            gpu.synchronize()?;
            us = begun.elapsed().as_secs_f64() * 1e6;
            let error = worst_error(gpu, out.1, types.1, &expected(&numbers, &weight))?;
            if is_off(error, types.1) {
                return Err(failed(format!("a captured product is off by {error}")));
            }
            worst = worst.max(error);
        }
        Ok(format!("graph of a copy and a product: {us:.0} us, off by {worst:.1e} at most"))
    }
}

//! [`Peaks::of_cpu`]: what this machine does at most, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::backend::Peaks;

use super::{Isa, SharedSlice, ThreadPool, memory, multiversion, topology};

/// What is read: far more than caches hold.
const READ_BYTES: usize = 512 << 20;
/// One part of the free memory in so many is the most that is taken.
const MEMORY_SHARE: usize = 8;
/// What one task reads.
const TASK_BYTES: usize = 4 << 20;
/// Numbers of a cache line, and numbers that are read in one go.
const LINE: usize = 8;
const STRIDE: usize = 4 * LINE;
/// Lines that memory is asked for ahead of their use.
const LINES_AHEAD: usize = 32;
/// How long reading is tried, once the memory is there.
const READ_TIME: Duration = Duration::from_millis(200);
/// How long each kind of arithmetic is tried.
const ARITHMETIC_TIME: Duration = Duration::from_millis(60);
/// Steps of every sum in one try: some tenths of a millisecond.
const NUM_STEPS: usize = 1 << 18;
/// Sums that go on side by side: enough to hide how long one operation takes, and no more than fit into 16 registers, or
/// on Arm 32, with what is added to them.
const NUM_SUMS: usize = if cfg!(target_arch = "aarch64") { 24 } else { 12 };

impl Peaks {
    /// This machine, measured with so many threads (`None`: one a physical core, as engines have) in well under a second.
    pub fn of_cpu(num_threads: Option<usize>) -> Self {
        let num_threads = num_threads.unwrap_or_else(topology::default_num_threads);
        let bytes = memory::free_memory().map_or(READ_BYTES, |free| READ_BYTES.min(free / MEMORY_SHARE));
        measure(&mut ThreadPool::new(num_threads), Isa::detect(), bytes)
    }
}

fn measure(pool: &mut ThreadPool, isa: Isa, read_bytes: usize) -> Peaks {
    Peaks {
        num_threads: pool.num_threads(),
        dram_read_gb_per_s: read_gb_per_s(pool, isa, read_bytes),
        f32_gflop_per_s: Some(arithmetic_gop_per_s(pool, f32_kernel(isa))),
        int8_gop_per_s: int8_kernel(isa).map(|kernel| arithmetic_gop_per_s(pool, kernel)),
        bf16_gflop_per_s: bf16_kernel(isa).map(|kernel| arithmetic_gop_per_s(pool, kernel)),
    }
}

/// The shortest of as many tries as fit into `time`, at least two.
fn shortest(time: Duration, mut work: impl FnMut()) -> f64 {
    let (begun, mut shortest, mut num_tries) = (Instant::now(), Duration::MAX, 0);
    while num_tries < 2 || begun.elapsed() < time {
        let start = Instant::now();
        work();
        shortest = shortest.min(start.elapsed());
        num_tries += 1;
    }
    shortest.as_secs_f64().max(1e-9)
}

fn read_gb_per_s(pool: &mut ThreadPool, isa: Isa, bytes: usize) -> f64 {
    let task_len = TASK_BYTES / size_of::<u64>();
    let num_tasks = (bytes / TASK_BYTES).max(1);
    let mut data = vec![0u64; num_tasks * task_len];
    let shared = SharedSlice::new(&mut data);
    // The system gives memory, and the machine something to read, when it is first written.
    pool.run(num_tasks, &|task| {
        // SAFETY: each task has its own part.
        unsafe { shared.range(task * task_len, task_len) }.fill(task as u64 + 1);
    });
    let seconds = shortest(READ_TIME, || {
        pool.run(num_tasks, &|task| {
            black_box(sum(isa, &data[task * task_len..][..task_len]));
        });
    });
    (num_tasks * TASK_BYTES) as f64 / seconds / 1e9
}

multiversion! {
    /// A sum that takes less time than reading.
    fn sum(data: &[u64]) -> u64 = sum_body
}

/// Asking ahead of the machine's own guesses reads a sixth more a second (1 thread, AMD Zen 5: 43 GB/s in place of 36).
#[inline(always)]
fn sum_body<const FMA: bool>(data: &[u64]) -> u64 {
    let mut sums = [0u64; STRIDE];
    for (idx, stride) in data.chunks_exact(STRIDE).enumerate() {
        for line in 0..STRIDE / LINE {
            prefetch(data.as_ptr().wrapping_add(idx * STRIDE + (line + LINES_AHEAD) * LINE));
        }
        for (sum, &x) in sums.iter_mut().zip(stride) {
            *sum = sum.wrapping_add(x);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Asks for the line at `address`, which need not exist, and for no room in the caches to keep it.
#[inline(always)]
fn prefetch(address: *const u64) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, which reads nothing and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Arithmetic in registers alone.
#[derive(Clone, Copy)]
struct Kernel {
    /// Does so many steps of every sum.
    run: fn(usize),
    /// Operations of one step of one sum, a multiply-add being two.
    num_ops: usize,
}

fn arithmetic_gop_per_s(pool: &mut ThreadPool, kernel: Kernel) -> f64 {
    let num_threads = pool.num_threads();
    let seconds = shortest(ARITHMETIC_TIME, || pool.run(num_threads, &|_| (kernel.run)(NUM_STEPS)));
    (num_threads * NUM_STEPS * NUM_SUMS * kernel.num_ops) as f64 / seconds / 1e9
}

fn f32_kernel(isa: Isa) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
            // SAFETY: Isa::detect found the instructions on this machine.
            return Kernel { run: |steps| unsafe { x86::f32_avx512(steps) }, num_ops: 2 * 16 };
        }
        Isa::Avx2 => {
            // SAFETY: as above.
            return Kernel { run: |steps| unsafe { x86::f32_avx2(steps) }, num_ops: 2 * 8 };
        }
        Isa::Baseline | Isa::NeonDotprod => {}
    }
    let _ = isa;
    Kernel { run: f32_plain, num_ops: 2 * 4 }
}

fn int8_kernel(isa: Isa) -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni {
        // SAFETY: Isa::detect found the instructions on this machine.
        return Some(Kernel { run: |steps| unsafe { x86::int8_vnni(steps) }, num_ops: 2 * 64 });
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::NeonDotprod {
        // SAFETY: as above.
        return Some(Kernel { run: |steps| unsafe { arm::int8_dotprod(steps) }, num_ops: 2 * 16 });
    }
    let _ = isa;
    None
}

fn bf16_kernel(isa: Isa) -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Bf16 {
        // SAFETY: the machine has the instructions, as was just asked.
        return Some(Kernel { run: |steps| unsafe { x86::bf16_avx512(steps) }, num_ops: 2 * 32 });
    }
    let _ = isa;
    None
}

/// What plain code gives: four numbers a register on x86-64 and aarch64, which has fused operations.
fn f32_plain(num_steps: usize) {
    let (a, b) = (black_box([0.5f32; 4]), black_box([1.0f32; 4]));
    let mut sums = [[0.0f32; 4]; NUM_SUMS];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = black_box([i as f32; 4]);
    }
    for _ in 0..num_steps {
        for sum in &mut sums {
            for lane in 0..4 {
                let (x, a, b) = (sum[lane], a[lane], b[lane]);
                sum[lane] = if cfg!(target_arch = "aarch64") { x.mul_add(a, b) } else { x * a + b };
            }
        }
    }
    black_box(sums);
}

/// Sums begin with different numbers that the compiler does not know, or it would do one for all of them.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::NUM_SUMS;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(num_steps: usize) {
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [_mm256_setzero_ps(); NUM_SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set1_ps(black_box(i as f32));
        }
        for _ in 0..num_steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(num_steps: usize) {
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [_mm512_setzero_ps(); NUM_SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(black_box(i as f32));
        }
        for _ in 0..num_steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_vnni(num_steps: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(1)), _mm512_set1_epi8(black_box(-1)));
        let mut sums = [_mm512_setzero_si512(); NUM_SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_epi32(black_box(i as i32));
        }
        for _ in 0..num_steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(num_steps: usize) {
        // 1.0, the upper half of an f32, twice a lane.
        let ones = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: both are 512 bits, and all bits are numbers.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums = [_mm512_setzero_ps(); NUM_SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(black_box(i as f32));
        }
        for _ in 0..num_steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{vdupq_n_s8, vdupq_n_s32};
    use std::arch::asm;
    use std::hint::black_box;

    use super::NUM_SUMS;

    #[target_feature(enable = "neon,dotprod")]
    pub(super) fn int8_dotprod(num_steps: usize) {
        let (a, b) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(-1)));
        let mut sums = [vdupq_n_s32(0); NUM_SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = vdupq_n_s32(black_box(i as i32));
        }
        for _ in 0..num_steps {
            for sum in &mut sums {
                // SAFETY: the caller has the instruction, which reads and writes registers alone.
                unsafe {
                    asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) *sum, a = in(vreg) a, b = in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_peaks() {
        for isa in Isa::available() {
            let peaks = measure(&mut ThreadPool::new(2), isa, 8 << 20);
            let optional = [peaks.f32_gflop_per_s, peaks.int8_gop_per_s, peaks.bf16_gflop_per_s].into_iter().flatten();
            for figure in optional.chain([peaks.dram_read_gb_per_s]) {
                assert!(figure.is_finite() && figure > 0.0, "{isa:?}: {peaks:?}");
            }
            assert_eq!(peaks.int8_gop_per_s.is_some(), isa >= Isa::Avx512Vnni || isa == Isa::NeonDotprod);
            assert_eq!(peaks.num_threads, 2);
        }
    }

    #[test]
    fn little_memory_is_enough() {
        assert!(read_gb_per_s(&mut ThreadPool::new(1), Isa::Baseline, 0) > 0.0);
    }
}

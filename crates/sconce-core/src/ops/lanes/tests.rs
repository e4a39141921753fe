//! Every machine's vectors compute the same.

use super::*;
use crate::backend::cpu::Isa;

/// 2^x, its lanes' greatest, and 16 numbers of each half type, as the instruction set has them.
#[inline(always)]
unsafe fn lanes<V: Lanes>(x: &[f32; LANES], bits: &[u16; LANES]) -> ([f32; LANES], f32, [f32; LANES], [f32; LANES]) {
    let mut out = [[0.0; LANES]; 3];
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        V::load(x.as_ptr()).exp2().store(out[0].as_mut_ptr());
        V::load_f16(bits.as_ptr()).store(out[1].as_mut_ptr());
        V::load_bf16(bits.as_ptr()).store(out[2].as_mut_ptr());
        (out[0], V::load(x.as_ptr()).greatest(), out[1], out[2])
    }
}

fn check(x: [f32; LANES]) {
    let bits: [u16; LANES] = std::array::from_fn(|i| i as u16 * 3001);
    for isa in Isa::available() {
        // SAFETY: the machine has the instructions.
        let (powers, greatest, halves, bf16) = unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => lanes::<Avx2>(&x, &bits),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => lanes::<Avx512>(&x, &bits),
                Isa::Baseline => lanes::<Baseline>(&x, &bits),
                _ => continue,
            }
        };
        for (x, found) in x.iter().zip(powers) {
            let expected = f64::from(*x).exp2();
            let tolerance = if *x < -125.0 { f64::from(f32::MIN_POSITIVE) } else { expected * 2.4e-7 };
            assert!((f64::from(found) - expected).abs() <= tolerance, "{isa:?}: 2^{x} = {found}");
            assert!(*x > -151.0 || found == 0.0, "{isa:?}: 2^{x} = {found}");
        }
        assert_eq!(greatest, x.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{isa:?}");
        assert_eq!(halves, bits.map(f16_to_f32));
        assert_eq!(bf16, bits.map(|bits| f32::from_bits(u32::from(bits) << 16)));
    }
}

#[test]
fn powers_of_two_are_exact_to_two_units() {
    for start in -160_000..126_000 {
        check(std::array::from_fn(|i| (start as f32 + i as f32 / 16.0) * 1e-3));
    }
    check([
        f32::NEG_INFINITY,
        f32::MIN,
        -1e30,
        -1e4,
        -151.5,
        -0.0,
        0.0,
        1.0,
        2.0,
        1.5,
        0.5,
        -0.5,
        -1.5,
        -3.0,
        7.0,
        9.0,
    ]);
}

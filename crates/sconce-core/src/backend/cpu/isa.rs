//! [`Isa`]: which SIMD the machine has, and functions compiled once for each.

/// The widest instruction set that the machine has and that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every machine of the architecture has (SSE2 on x86-64, NEON on aarch64).
    Baseline,
    /// NEON with products of bytes (FEAT_DotProd).
    NeonDotprod,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same with VNNI: integer products of bytes.
    Avx512Vnni,
    /// The same with BF16: products of bf16 pairs.
    Avx512Bf16,
}

impl Isa {
    /// Asks the machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                let (vnni, bf16) = (is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avx512bf16"));
                return match (vnni, bf16) {
                    (true, true) => Self::Avx512Bf16,
                    (true, false) => Self::Avx512Vnni,
                    _ => Self::Avx512,
                };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            return Self::NeonDotprod;
        }
        Self::Baseline
    }

    /// The instruction sets that this machine can run, for tests of each.
    pub fn available() -> Vec<Self> {
        let x86 = [Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16];
        let more = if cfg!(target_arch = "aarch64") { &[Self::NeonDotprod][..] } else { &x86 };
        let available = more.iter().copied().filter(|&isa| isa <= Self::detect());
        std::iter::once(Self::Baseline).chain(available).collect()
    }

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline if cfg!(target_arch = "aarch64") => "neon",
            Self::Baseline => "baseline",
            Self::NeonDotprod => "neon dotprod",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512 vnni",
            Self::Avx512Bf16 => "avx512 vnni bf16",
        }
    }
}

/// Compiles `$body`, an `#[inline(always)]` function with a const parameter `FMA: bool`, once for each [`Isa`] whose
/// floats differ, and defines `$name(isa, ...)` that calls the right one. The compiler vectorises plain loops in it.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::backend::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if isa >= $crate::backend::cpu::Isa::Avx512 {
                    // SAFETY: Isa::detect found these features on this machine.
                    return unsafe { avx512($($arg),*) };
                }
                if isa == $crate::backend::cpu::Isa::Avx2 {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

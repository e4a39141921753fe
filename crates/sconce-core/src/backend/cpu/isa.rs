//! [`Isa`]: which SIMD the machine has, and functions compiled once for each.

/// The widest instruction set that the machine has and that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every machine of the architecture has (SSE2 on x86-64, NEON on aarch64).
    Baseline,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same with VNNI: integer products of bytes.
    Avx512Vnni,
}

/// How exactly the inputs of quantized weights are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InputBits {
    /// As exactly as f32 products would be.
    #[default]
    Sixteen,
    /// At half the work in prompts, with a visible error. For weights that are packed; others take 16.
    Eight,
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
                return if is_x86_feature_detected!("avx512vnni") { Self::Avx512Vnni } else { Self::Avx512 };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Baseline
    }

    /// The instruction sets that this machine can run, for tests of each.
    pub fn available() -> Vec<Self> {
        match Self::detect() {
            Self::Baseline => vec![Self::Baseline],
            Self::Avx2 => vec![Self::Baseline, Self::Avx2],
            Self::Avx512 => vec![Self::Baseline, Self::Avx2, Self::Avx512],
            Self::Avx512Vnni => vec![Self::Baseline, Self::Avx2, Self::Avx512, Self::Avx512Vnni],
        }
    }

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512 vnni",
        }
    }
}

/// Compiles `$body`, an `#[inline(always)]` function with a const parameter `FMA: bool`, once for each [`Isa`], and
/// defines `$name(isa, ...)` that calls the right one. The compiler vectorises plain loops in it.
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
                match isa {
                    $crate::backend::cpu::Isa::Avx512 | $crate::backend::cpu::Isa::Avx512Vnni => {
                        // SAFETY: Isa::detect found these features on this machine.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::backend::cpu::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::backend::cpu::Isa::Baseline => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

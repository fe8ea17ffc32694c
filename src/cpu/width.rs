//! Which instruction set the vector loops run with.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that the loops are compiled for. Who has one may use it: there are no others than the processor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// what every processor of the target has
    Least = 1,
    /// 256 bits: AVX2, FMA, BMI and F16C, in x86-64 processors since 2013
    Avx2,
    /// 512 bits: AVX-512 F, BW, CD, DQ and VL, in servers since 2017
    Avx512,
}

/// The chosen one; 0: not chosen yet.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Width {
    /// The widest that processor and build have.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "the vectors are not there"))]
    #[inline(always)]
    pub(crate) fn chosen() -> Self {
        match CHOSEN.load(Ordering::Relaxed) {
            1 => Self::Least,
            2 => Self::Avx2,
            3 => Self::Avx512,
            _ => {
                let width = Self::of_processor();
                CHOSEN.store(width as u8, Ordering::Relaxed);
                width
            }
        }
    }

    /// Runs `work` with every width that there is. Tests beside it meet them too, which changes no result.
    #[cfg(test)]
    pub(crate) fn each(mut work: impl FnMut(Self)) {
        for width in [Self::Least, Self::Avx2, Self::Avx512] {
            if width <= Self::of_processor() {
                CHOSEN.store(width as u8, Ordering::Relaxed);
                work(width);
            }
        }
    }

    #[cold]
    fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! has {
                ($($feature:tt)*) => { [$(is_x86_feature_detected!($feature)),*].into_iter().all(|has| has) };
            }
            if has!("avx2" "bmi1" "bmi2" "f16c" "fma") {
                let more = cfg!(avx512) && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
                return if more { Self::Avx512 } else { Self::Avx2 };
            }
        }
        Self::Least
    }
}

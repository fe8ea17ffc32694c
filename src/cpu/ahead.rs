//! Memory that is asked for before it is needed.

/// Asks for a row of a table that is read soon, if the processor can. Nothing waits for it.
#[inline(always)]
pub(crate) fn ask_for<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks((64 / size_of::<T>()).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program sees; any address would do, and this one is a row's.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

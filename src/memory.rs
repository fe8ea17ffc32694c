//! Where the data of a call lies: one set of structs serves the CPU and the device.

use std::fmt::Debug;

#[cfg(feature = "cuda")]
use crate::gpu::Read;
#[cfg(feature = "cuda")]
use crate::position::Ids;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Host {}
    #[cfg(feature = "cuda")]
    impl Sealed for super::Device {}
}

/// Memory of a call's data: [`Host`] or [`Device`]. Sealed.
pub trait Memory: sealed::Sealed + Copy + Debug {
    /// Values of `V` that a call reads.
    type Slice<'a, V: 'a>: Copy;
    /// Positions or ids.
    type Ids<'a>: Copy + Debug;

    #[doc(hidden)]
    fn len<V>(slice: Self::Slice<'_, V>) -> usize;
}

/// Slices in the memory of the CPU.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

/// Buffers in the memory of a CUDA device.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
pub enum Device {}

impl Memory for Host {
    type Slice<'a, V: 'a> = &'a [V];
    type Ids<'a> = &'a [i64];

    fn len<V>(slice: &[V]) -> usize {
        slice.len()
    }
}

#[cfg(feature = "cuda")]
impl Memory for Device {
    type Slice<'a, V: 'a> = Read<'a, V>;
    type Ids<'a> = Ids<'a>;

    fn len<V>(slice: Read<'_, V>) -> usize {
        slice.len()
    }
}

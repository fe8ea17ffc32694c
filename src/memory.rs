//! Where the data of a call lies: one set of structs serves the CPU and the device.

use std::fmt::Debug;

use crate::{Error, Result};

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

// --------------------------------------------------------------------------------------------------------- host tables

/// Bytes of a table on the host, at most: a system that lends more than it has ends the process when they are written.
const MOST_BYTES: usize = 1 << 32;

/// An empty list with room for `n` numbers of a size that a caller chose.
pub(crate) fn reserved<V>(what: &str, n: usize) -> Result<Vec<V>> {
    let bytes = n.saturating_mul(size_of::<V>());
    if bytes > MOST_BYTES {
        return Err(Error::Value(format!(
            "{n} {what} take {bytes} bytes on the host, at most {MOST_BYTES} are possible"
        )));
    }
    let mut list = Vec::new();
    match list.try_reserve_exact(n) {
        Ok(()) => Ok(list),
        Err(_) => Err(Error::Value(format!("{n} {what} take {bytes} bytes, which the host does not have"))),
    }
}

/// `n` values of a size that a caller chose.
pub(crate) fn collected<V>(what: &str, n: usize, values: impl IntoIterator<Item = V>) -> Result<Vec<V>> {
    let mut list = reserved(what, n)?;
    list.extend(values);
    Ok(list)
}

/// `n` zeros of a size that a caller chose.
pub(crate) fn zeros(what: &str, n: usize) -> Result<Vec<f64>> {
    collected(what, n, std::iter::repeat_n(0.0, n))
}

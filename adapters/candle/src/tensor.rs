//! candle's layouts as posenc's shapes, and element types.

use std::any::Any;

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, Tensor, WithDType};
use posenc::{Heads, Scalar};

/// An error with a sentence of this crate.
pub(crate) fn refused<T>(sentence: impl Into<String>) -> Result<T> {
    Err(Error::msg(sentence.into()))
}

/// posenc's errors as candle's.
pub(crate) trait InCandle<T> {
    fn in_candle(self) -> Result<T>;
}

impl<T> InCandle<T> for posenc::Result<T> {
    fn in_candle(self) -> Result<T> {
        self.map_err(Error::wrap)
    }
}

/// f32, f16 or bf16, as both crates know them.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Element: Scalar + WithDType {}
#[cfg(not(feature = "cuda"))]
impl<T: Scalar + WithDType> Element for T {}

/// f32, f16 or bf16, as both crates know them.
#[cfg(feature = "cuda")]
pub(crate) trait Element:
    Scalar + WithDType + candle_core::cuda_backend::CudaDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr
{
}
#[cfg(feature = "cuda")]
impl<T> Element for T where
    T: Scalar
        + WithDType
        + candle_core::cuda_backend::CudaDType
        + candle_core::cuda_backend::cudarc::driver::DeviceRepr
{
}

/// An expression with `$T` the element type of `$dtype`; the refusal of `$name`, if it is another one.
macro_rules! by_type {
    ($dtype:expr, $name:expr, $T:ident => $call:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $call
            }
            candle_core::DType::F16 => {
                type $T = posenc::half::f16;
                $call
            }
            candle_core::DType::BF16 => {
                type $T = posenc::half::bf16;
                $call
            }
            other => $crate::tensor::unknown_type($name, other),
        }
    };
}
pub(crate) use by_type;

/// The elements of a contiguous layout.
#[cfg(feature = "cuda")]
pub(crate) fn range(layout: &Layout) -> std::ops::Range<usize> {
    let first = layout.start_offset();
    first..first + layout.shape().elem_count()
}

/// The elements of a contiguous tensor.
#[cfg(feature = "cuda")]
pub(crate) fn view<'a, T: Element>(
    (storage, layout): (&'a candle_core::CudaStorage, &Layout),
) -> Result<candle_core::cuda_backend::cudarc::driver::CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(range(layout)))
}

/// Order of the dimensions of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[batch, heads, tokens, dim]`
    Bhtd,
    /// `[batch, tokens, heads, dim]` or `[tokens, heads, dim]`
    Thd,
}

impl Order {
    /// The sizes and strides of a tensor of heads, and whether its channels lie side by side.
    fn split(self, name: &str, layout: &Layout) -> Result<(Heads, bool)> {
        let (sizes, strides) = (layout.dims(), layout.stride());
        let (sizes, strides) = match (self, sizes, strides) {
            (Self::Bhtd, &[b, h, t, d], &[sb, sh, st, sd]) => ([b, t, h, d], [sb, st, sh, sd]),
            (Self::Thd, &[b, t, h, d], &[sb, st, sh, sd]) => ([b, t, h, d], [sb, st, sh, sd]),
            (Self::Thd, &[t, h, d], &[st, sh, sd]) => ([1, t, h, d], [0, st, sh, sd]),
            (Self::Bhtd, ..) => {
                return refused(format!("{name} has the shape {sizes:?}, [batch, heads, tokens, dim] is needed"));
            }
            (Self::Thd, ..) => {
                return refused(format!(
                    "{name} has the shape {sizes:?}, [batch, tokens, heads, dim] or [tokens, heads, dim] is needed"
                ));
            }
        };
        let ([batch, tokens, heads, dim], [sb, st, sh, sd]) = (sizes, strides);
        let heads = Heads { batch, tokens, heads, dim, offset: layout.start_offset(), strides: [sb, st, sh] };
        Ok((heads, sd == 1 || dim == 1))
    }

    /// The sizes and strides of a tensor of heads, wherever its channels lie.
    pub(crate) fn sizes(self, name: &str, layout: &Layout) -> Result<Heads> {
        self.split(name, layout).map(|(heads, _)| heads)
    }

    /// A tensor of heads whose channels lie side by side.
    pub(crate) fn heads(self, name: &str, layout: &Layout) -> Result<Heads> {
        match self.split(name, layout)? {
            (heads, true) => Ok(heads),
            (heads, false) => refused(format!(
                "the channels of {name} lie {} elements apart, in place they must lie side by side",
                layout.stride().last().map_or(heads.dim, |&stride| stride)
            )),
        }
    }

    /// The same tensor, copied if its channels do not lie side by side.
    pub(crate) fn readable(self, name: &str, x: &Tensor) -> Result<Tensor> {
        match self.split(name, x.layout())? {
            (_, true) => Ok(x.clone()),
            (_, false) => x.force_contiguous(),
        }
    }

    /// The contiguous tensor of the same sizes, `offset` elements into its buffer.
    pub(crate) fn contiguous(self, of: &Heads, offset: usize) -> Heads {
        let Heads { batch, tokens, heads, dim, .. } = *of;
        match self {
            Self::Bhtd => Heads::bhtd(batch, heads, tokens, dim).at(offset),
            Self::Thd => Heads::bthd(batch, tokens, heads, dim).at(offset),
        }
    }
}

/// Refuses tensors of two types.
pub(crate) fn mixed_types<T>(names: [&str; 2], types: [DType; 2]) -> Result<T> {
    refused(format!("{} is {:?} and {} {:?}, they must be equal", names[0], types[0], names[1], types[1]))
}

/// Refuses a type that no kernel has.
pub(crate) fn unknown_type<T>(name: &str, dtype: DType) -> Result<T> {
    refused(format!("{name} is {dtype:?}, this operation knows F32, F16 and BF16"))
}

/// Refuses a tensor on another device than `device`.
pub(crate) fn check_device(name: &str, x: &Tensor, device: &candle_core::Device, owner: &str) -> Result<()> {
    if x.device().same_device(device) {
        return Ok(());
    }
    let (of, at) = (x.device().location(), device.location());
    if of == at {
        return refused(format!("{name} belongs to another candle device of {at:?} than {owner}: another stream"));
    }
    refused(format!("{name} lies on {of:?} and {owner} on {at:?}, they must be on one device"))
}

/// Where the storage behind a tensor lies: equal for views of one tensor.
pub(crate) fn storage_address(x: &Tensor) -> usize {
    let (storage, _) = x.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// The elements of a tensor on the CPU that is written.
pub(crate) fn slice_mut<T: Element>(storage: &mut CpuStorage) -> Result<&mut [T]> {
    let dtype = storage.dtype();
    let elements: &mut dyn Any = match storage {
        CpuStorage::F32(x) => x,
        CpuStorage::F16(x) => x,
        CpuStorage::BF16(x) => x,
        _ => return unknown_type("what is written", dtype),
    };
    match elements.downcast_mut::<Vec<T>>() {
        Some(elements) => Ok(elements),
        None => refused(format!("what is written is {dtype:?}, {} is needed", T::NAME)),
    }
}

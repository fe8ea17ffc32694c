//! Token positions of a call, from candle's tensors.

use candle_core::{DType, Device, Result, Tensor};
use posenc::Positions;

#[cfg(feature = "cuda")]
use crate::tensor::range;
use crate::tensor::{check_device, refused};

/// Token positions of one call.
///
/// | variant | tensor | position of token `t` of sequence `b` |
/// |---|---|---|
/// | `Start(i)` | none | `i + t` |
/// | `Starts(&s)` | `[batch]` | `s[b] + t` |
/// | `Ids(&p)` | `[batch, tokens]`, or `[tokens]` for all sequences | `p[b, t]` |
///
/// Tensors are of U32, I32 or I64 and lie on the device of queries and keys. A spec with several axes (M-RoPE, grids) has `[axes,
/// ..]` in front of these shapes, and `Start` is the same on every axis.
///
/// A captured CUDA graph replays `Start` with the number of its capture; tensors are read anew.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// all sequences start here
    Start(usize),
    /// a start for each sequence
    Starts(&'a Tensor),
    /// a position for each token
    Ids(&'a Tensor),
}

/// Checked positions, as an operation keeps them for its gradient.
#[derive(Clone, Debug)]
pub(crate) struct HeldAt {
    kind: Kind,
    /// one row for all sequences
    shared: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Counted,
    Start { first: i64, axes: usize },
    Starts(Tensor),
    Ids(Tensor),
}

impl At<'_> {
    /// Refuses tensors that do not go with `axes`, `batch` and `tokens`, or lie elsewhere than on `device`.
    pub(crate) fn hold(self, axes: usize, batch: usize, tokens: usize, device: &Device) -> Result<HeldAt> {
        let (tensor, tail, full) = match self {
            Self::Start(0) if axes == 1 => return Ok(HeldAt { kind: Kind::Counted, shared: false }),
            Self::Start(first) => {
                let Ok(first) = i64::try_from(first) else {
                    return refused(format!("the start is {first}, it must be below 2^63"));
                };
                return Ok(HeldAt { kind: Kind::Start { first, axes }, shared: true });
            }
            Self::Starts(starts) => (starts, vec![], vec![batch]),
            Self::Ids(ids) => (ids, vec![tokens], vec![batch, tokens]),
        };
        if !matches!(tensor.dtype(), DType::U32 | DType::I32 | DType::I64) {
            return refused(format!("positions are {:?}, they must be U32, I32 or I64", tensor.dtype()));
        }
        check_device("the tensor of positions", tensor, device, "the queries")?;
        let lead = if axes == 1 { vec![] } else { vec![axes] };
        let with = |rest: &[usize]| [&lead[..], rest].concat();
        let one = with(&[&[1][..], &tail[..]].concat());
        let (full, bare) = (with(&full), with(&tail));
        let dims = tensor.dims();
        if dims != full && dims != one && dims != bare {
            return refused(format!("positions have the shape {dims:?}, {full:?} or {bare:?} is needed"));
        }
        let tensor = tensor.contiguous()?;
        let shared = dims != full;
        let kind = if matches!(self, Self::Starts(_)) { Kind::Starts(tensor) } else { Kind::Ids(tensor) };
        Ok(HeldAt { kind, shared })
    }
}

impl HeldAt {
    /// Calls with the positions on the CPU.
    pub(crate) fn on_cpu<R>(&self, call: impl FnOnce(Positions<&[i64]>) -> Result<R>) -> Result<R> {
        let numbers = match &self.kind {
            Kind::Counted => return call(Positions::counted()),
            Kind::Start { first, axes } => vec![*first; *axes],
            Kind::Starts(of) | Kind::Ids(of) => of.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?,
        };
        let positions = match self.kind {
            Kind::Ids(_) => Positions::ids(&numbers),
            _ => Positions::starts(&numbers),
        };
        call(if self.shared { positions.shared() } else { positions })
    }

    /// Calls with the positions on a CUDA device.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_cuda<R>(
        &self,
        device: &candle_core::CudaDevice,
        call: impl FnOnce(Positions<posenc::Ids<'_>>) -> Result<R>,
    ) -> Result<R> {
        use candle_core::Storage;
        use candle_core::cuda_backend::CudaStorageSlice::{I32, I64, U32};

        let call =
            |positions: Positions<posenc::Ids<'_>>| call(if self.shared { positions.shared() } else { positions });
        let of = match &self.kind {
            Kind::Counted => return call(Positions::counted()),
            Kind::Start { first, axes } => {
                return call(Positions::starts(&device.clone_htod(&vec![*first; *axes])?));
            }
            Kind::Starts(of) | Kind::Ids(of) => of,
        };
        let (storage, layout) = of.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return refused("positions lie on the CPU, the queries on a CUDA device");
        };
        let range = range(layout);
        macro_rules! call {
            ($slice:expr) => {{
                let view = $slice.slice(range);
                call(match self.kind {
                    Kind::Ids(_) => Positions::ids(&view),
                    _ => Positions::starts(&view),
                })
            }};
        }
        match &storage.slice {
            U32(slice) => call!(slice),
            I32(slice) => call!(slice),
            I64(slice) => call!(slice),
            _ => refused("positions must be U32, I32 or I64"),
        }
    }
}

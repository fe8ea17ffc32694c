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
/// | `Packed { cu_seqlens: &c, starts }` | I32 `[sequences + 1]`, `[sequences]` | `starts[s] + t - c[s]`, for `c[s] <= t < c[s + 1]` |
///
/// Tensors are of U32, I32 or I64 but for `cu_seqlens`, and lie on the device of queries and keys. A spec with several axes (M-RoPE,
/// grids) has `[axes, ..]` in front of these shapes but for that of `cu_seqlens`, and `Start` is the same on every axis.
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
    /// sequences packed one after another into a batch of one
    Packed {
        /// the first token of each sequence, from 0, and behind them the number of tokens
        cu_seqlens: &'a Tensor,
        /// the first position of each sequence, 0 for `None`
        starts: Option<&'a Tensor>,
    },
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
    Packed { cu_seqlens: Tensor, starts: Option<Tensor> },
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
            Self::Packed { cu_seqlens, starts } => {
                let kind = packed(cu_seqlens, starts, axes, batch, device)?;
                return Ok(HeldAt { kind, shared: false });
            }
        };
        check_integers("positions", tensor, device)?;
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

/// Refuses what are no integers on the device of the queries.
pub(crate) fn check_integers(name: &str, tensor: &Tensor, device: &Device) -> Result<()> {
    if !matches!(tensor.dtype(), DType::U32 | DType::I32 | DType::I64) {
        return refused(format!("{name} are {:?}, they must be U32, I32 or I64", tensor.dtype()));
    }
    check_device(&format!("the tensor of {name}"), tensor, device, "the queries")
}

/// Packed sequences. What `cu_seqlens` says is checked on the CPU, where it is read.
fn packed(cu_seqlens: &Tensor, starts: Option<&Tensor>, axes: usize, batch: usize, device: &Device) -> Result<Kind> {
    if cu_seqlens.dtype() != DType::I32 {
        return refused(format!("cu_seqlens is {:?}, it must be I32", cu_seqlens.dtype()));
    }
    check_device("cu_seqlens", cu_seqlens, device, "the queries")?;
    let &[ends] = cu_seqlens.dims() else {
        return refused(format!("cu_seqlens has the shape {:?}, [sequences + 1] is needed", cu_seqlens.dims()));
    };
    if ends < 2 || batch != 1 {
        return refused(format!(
            "cu_seqlens holds {ends} numbers and the batch is {batch}: at least 2 and a batch of 1 are needed"
        ));
    }
    let starts = starts
        .map(|starts| {
            check_integers("starts", starts, device)?;
            let need = if axes == 1 { vec![ends - 1] } else { vec![axes, ends - 1] };
            if starts.dims() != need {
                return refused(format!("starts have the shape {:?}, {need:?} is needed", starts.dims()));
            }
            starts.contiguous()
        })
        .transpose()?;
    Ok(Kind::Packed { cu_seqlens: cu_seqlens.contiguous()?, starts })
}

impl HeldAt {
    /// Calls with the positions on the CPU.
    pub(crate) fn on_cpu<R>(&self, call: impl FnOnce(Positions<&[i64]>) -> Result<R>) -> Result<R> {
        let read = |of: &Tensor| of.flatten_all()?.to_dtype(DType::I64)?.to_vec1();
        let numbers = match &self.kind {
            Kind::Counted => return call(Positions::counted()),
            Kind::Packed { cu_seqlens, starts } => {
                let ends: Vec<i64> = read(cu_seqlens)?;
                let first = starts.as_ref().map(read).transpose()?;
                let positions = Positions::packed(&ends, ends.len() - 1);
                return call(match &first {
                    Some(first) => positions.starting_at(first),
                    None => positions,
                });
            }
            Kind::Start { first, axes } => vec![*first; *axes],
            Kind::Starts(of) | Kind::Ids(of) => read(of)?,
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
        let call =
            |positions: Positions<posenc::Ids<'_>>| call(if self.shared { positions.shared() } else { positions });
        match &self.kind {
            Kind::Counted => call(Positions::counted()),
            Kind::Start { first, axes } => call(Positions::starts(&device.clone_htod(&vec![*first; *axes])?)),
            Kind::Starts(of) => lent(of, |ids| call(Positions::starts(ids))),
            Kind::Ids(of) => lent(of, |ids| call(Positions::ids(ids))),
            Kind::Packed { cu_seqlens, starts } => lent(cu_seqlens, |ends| {
                let positions = Positions::packed(ends, cu_seqlens.elem_count() - 1);
                match starts {
                    Some(starts) => lent(starts, |first| call(positions.starting_at(first))),
                    None => call(positions),
                }
            }),
        }
    }
}

/// Calls with the integers of a contiguous tensor on a CUDA device.
#[cfg(feature = "cuda")]
pub(crate) fn lent<R>(of: &Tensor, call: impl FnOnce(posenc::Ids<'_>) -> Result<R>) -> Result<R> {
    use candle_core::Storage;
    use candle_core::cuda_backend::CudaStorageSlice::{I32, I64, U32};
    use posenc::Ids;

    let (storage, layout) = of.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return refused("positions lie on the CPU, the queries on a CUDA device");
    };
    let range = range(layout);
    match &storage.slice {
        U32(slice) => call(Ids::U32(&slice.slice(range))),
        I32(slice) => call(Ids::I32(&slice.slice(range))),
        I64(slice) => call(Ids::I64(&slice.slice(range))),
        _ => refused("positions must be U32, I32 or I64"),
    }
}

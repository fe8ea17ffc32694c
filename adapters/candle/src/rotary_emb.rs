//! Rotations by given cosines and sines, under the names and with the arguments of `candle_nn::rotary_emb`.
//!
//! A model is ported by its `use` line:
//!
//! ```
//! use posenc_candle::rotary_emb;
//! # use candle_core::{Device, Result, Tensor};
//!
//! # fn main() -> Result<()> {
//! let x = Tensor::randn(0f32, 1.0, (1, 2, 3, 4), &Device::Cpu)?;
//! let cos = Tensor::new(&[[1f32, 1.0], [0.5403023, 0.99995], [-0.41614684, 0.99980]], &Device::Cpu)?;
//! let sin = Tensor::new(&[[0f32, 0.0], [0.841471, 0.0099998], [0.9092974, 0.0199987]], &Device::Cpu)?;
//! let y = rotary_emb::rope(&x, &cos, &sin)?;
//! assert_eq!(y.dims(), x.dims());
//! # Ok(())
//! # }
//! ```
//!
//! What differs from `candle_nn`: tensors may have any strides, there is a gradient for `xs` (none for `cos` and `sin`),
//! products and sums are rounded once, and tables may be F32 beside tensors of F16 and BF16. The results are as good as the
//! tables: those that models of candle make in f32 are off by 2e-2 at position 100,000. [`Rope`](crate::Rope) is exact there.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType};
use posenc::{Direction, Heads, Pairing};
use rayon::prelude::*;

use crate::tensor::{Order, check_device, mixed_types, refused, unknown_type};

/// Rotates `xs`, `[batch, heads, tokens, dim]`, whose pairs are channel `i` and `i + dim / 2`.
///
/// | argument | shape | meaning |
/// |---|---|---|
/// | `xs` | `[batch, heads, tokens, dim]` | queries or keys: F32, F16, BF16, and F64 on the CPU |
/// | `cos`, `sin` | `[rows, dim / 2]`, or `[batch, rows, dim / 2]` | of `tokens` rows or more, in the type of `xs` or F32 |
///
/// # Errors
/// If shapes, types or devices do not go together.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(Order::Bhtd, Pairing::Half, xs, cos, sin)
}

/// [`rope`] with pairs of neighbours, `2 i` and `2 i + 1`.
///
/// # Errors
/// As [`rope`].
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(Order::Bhtd, Pairing::Interleaved, xs, cos, sin)
}

/// [`rope`] for `[batch, tokens, heads, dim]`, or `[tokens, heads, dim]`.
///
/// # Errors
/// As [`rope`].
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotated(Order::Thd, Pairing::Half, xs, cos, sin)
}

fn rotated(order: Order, pairing: Pairing, xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let heads = order.sizes("xs", xs.layout())?;
    let Heads { batch, tokens, dim, .. } = heads;
    if dim % 2 == 1 {
        return refused(format!("xs has heads of {dim} channels, which form no pairs"));
    }
    if cos.dtype() != sin.dtype() {
        return mixed_types(["cos", "sin"], [cos.dtype(), sin.dtype()]);
    }
    let dtype = cos.dtype();
    if dtype != xs.dtype() && dtype != DType::F32 {
        return refused(format!(
            "cos and sin are {dtype:?} and xs {:?}: they must be equal, or the tables F32",
            xs.dtype()
        ));
    }
    for (name, table) in [("cos", cos), ("sin", sin)] {
        check_device(name, table, xs.device(), "xs")?;
        let fits = match *table.dims() {
            [rows, pairs] => rows >= tokens && 2 * pairs == dim,
            [sequences, rows, pairs] => sequences == batch && rows >= tokens && 2 * pairs == dim,
            _ => false,
        };
        if !fits {
            let half = dim / 2;
            return refused(format!(
                "{name} has the shape {:?}, [{tokens} or more, {half}] or [{batch}, {tokens} or more, {half}] is needed",
                table.dims()
            ));
        }
    }
    if cos.rank() != sin.rank() {
        return refused(format!("cos has {} dimensions and sin {}, they must be equal", cos.rank(), sin.rank()));
    }
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let rows = |table: &Tensor| table.detach().narrow(table.rank() - 2, 0, tokens)?.contiguous();
    let by_table = ByTable { order, pairing, cos: rows(cos)?, sin: rows(sin)?, direction: Direction::Forward };
    order.readable("xs", xs)?.apply_op1(by_table)
}

/// A rotation by tables whose rows are the tokens of one sequence, or of all.
#[derive(Clone, Debug)]
struct ByTable {
    order: Order,
    pairing: Pairing,
    cos: Tensor,
    sin: Tensor,
    direction: Direction,
}

impl ByTable {
    fn rotate<T: WithDType>(&self, x: &[T], heads: &Heads) -> Result<Vec<T>> {
        let values = |table: &Tensor| table.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        let sign = if self.direction == Direction::Forward { 1.0 } else { -1.0 };
        let Heads { tokens, heads: count, dim, .. } = *heads;
        let pairs = dim / 2;
        let own_rows = self.cos.rank() == 3;
        let mut out = vec![T::from_f64(0.0); heads.batch * tokens * count * dim];
        let inner = if self.order == Order::Bhtd { tokens } else { count };
        out.par_chunks_mut(inner * dim).enumerate().for_each(|(outer, out)| {
            for (inner, out) in out.chunks_exact_mut(dim).enumerate() {
                let (batch, token, head) = match self.order {
                    Order::Bhtd => (outer / count, inner, outer % count),
                    Order::Thd => (outer / tokens, outer % tokens, inner),
                };
                let first = heads.index(batch, token, head, 0);
                let x = &x[first..first + dim];
                let row = pairs * (token + if own_rows { batch * tokens } else { 0 });
                for (pair, (cos, sin)) in cos[row..row + pairs].iter().zip(&sin[row..]).enumerate() {
                    let (a, b) = self.pairing.channels(pair, dim);
                    let (left, right, sin) = (x[a].to_f64(), x[b].to_f64(), sign * sin);
                    out[a] = T::from_f64(left * cos - right * sin);
                    out[b] = T::from_f64(left * sin + right * cos);
                }
            }
        });
        Ok(out)
    }
}

impl CustomOp1 for ByTable {
    fn name(&self) -> &'static str {
        "posenc-rope-by-table"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let heads = self.order.heads("xs", layout)?;
        let out = match x {
            CpuStorage::F32(x) => CpuStorage::F32(self.rotate(x, &heads)?),
            CpuStorage::F64(x) => CpuStorage::F64(self.rotate(x, &heads)?),
            CpuStorage::F16(x) => CpuStorage::F16(self.rotate(x, &heads)?),
            CpuStorage::BF16(x) => CpuStorage::BF16(self.rotate(x, &heads)?),
            other => return unknown_type("xs", other.dtype()),
        };
        Ok((out, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.cuda(x, layout)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let direction = match self.direction {
            Direction::Forward => Direction::Inverse,
            Direction::Inverse => Direction::Forward,
        };
        let grad = self.order.readable("the gradient", grad)?;
        grad.apply_op1_no_bwd(&Self { direction, ..self.clone() }).map(Some)
    }
}

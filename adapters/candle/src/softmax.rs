//! The softmax of attention logits with a bias by distance or a given one.

#[cfg(feature = "cuda")]
mod cuda;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Storage, StorageRef, Tensor,
};
use posenc::attend::Inputs;
use posenc::bias::Slopes;
use posenc::{Alibi, Logits, Scalar, T5Bias, Toeplitz};

#[cfg(feature = "cuda")]
use crate::plans::Plans;
use crate::tensor::{Element, InCandle, by_type, check_device, mixed_types, refused, unknown_type};

/// What depends on the distance of key and query and is added to every logit.
#[derive(Clone, Debug, Default)]
pub enum Bias {
    /// nothing
    #[default]
    None,
    /// a slope for each head: ALiBi
    Slopes(Slopes),
    /// a number for each distance: T5, KERPLE, Sandwich, or any law
    Toeplitz(Toeplitz),
}

impl Bias {
    /// ALiBi's slopes.
    ///
    /// # Errors
    /// If the spec is refused.
    pub fn alibi(alibi: &Alibi) -> Result<Self> {
        alibi.slopes().in_candle().map(Self::Slopes)
    }

    /// T5's buckets, with a model's table, `[buckets, heads]`. The table is read once; it gets no gradient.
    ///
    /// # Errors
    /// If the spec or the table's shape is refused.
    pub fn t5(spec: &T5Bias, table: &Tensor) -> Result<Self> {
        let (buckets, heads) = table.dims2()?;
        if buckets != spec.buckets {
            return refused(format!("the table has {buckets} rows, the spec has {} buckets", spec.buckets));
        }
        let table = table.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        spec.row(&table, heads).in_candle().map(Self::Toeplitz)
    }

    fn law(&self) -> posenc::Bias<'_> {
        match self {
            Self::None => posenc::Bias::None,
            Self::Slopes(slopes) => posenc::Bias::Slopes(slopes),
            Self::Toeplitz(row) => posenc::Bias::Toeplitz(row),
        }
    }
}

/// The softmax over keys, with scale, softcap, window and bias in one pass, and its gradient.
///
/// Queries are aligned to the end of the keys: with a KV cache, `keys - queries` tokens came before them.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use posenc_candle::{Bias, Softmax};
///
/// # fn main() -> candle_core::Result<()> {
/// // Two queries behind three cached keys, with ALiBi for 8 heads.
/// let alibi = Bias::alibi(&posenc::Alibi::new(8))?;
/// let softmax = Softmax::new(posenc::Softmax::causal(0.125), alibi, &Device::Cpu)?;
/// let scores = Tensor::randn(0f32, 1.0, (1, 8, 2, 5), &Device::Cpu)?;
/// let p = softmax.apply(&scores, None)?;
/// assert_eq!(p.get(0)?.get(0)?.get(0)?.to_vec1::<f32>()?[4], 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Softmax {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: posenc::Softmax,
    bias: Bias,
    device: Device,
    #[cfg(feature = "cuda")]
    plans: Plans,
}

impl Softmax {
    /// A softmax of any spec on `device`.
    ///
    /// # Errors
    /// If the spec is refused.
    pub fn new(spec: posenc::Softmax, bias: Bias, device: &Device) -> Result<Self> {
        spec.check().in_candle()?;
        let shared = Shared {
            spec,
            bias,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            plans: Plans::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Probabilities of `[batch, heads, queries, keys]` logits.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `scores` | `[batch, heads, queries, keys]` | products of queries and keys, not yet scaled: F32, F16 or BF16 |
    /// | `given` | broadcasts to `scores` | a bias or mask of the same type, added last; -inf masks |
    ///
    /// Accuracy is that of [`posenc::Softmax::apply`] on the CPU and [`posenc::Softmax::error_bound`] on a device. Both arguments get
    /// gradients.
    ///
    /// # Errors
    /// If types, devices or shapes do not go together.
    pub fn apply(&self, scores: &Tensor, given: Option<&Tensor>) -> Result<Tensor> {
        let shape = logits("scores", scores.layout())?;
        check_device("scores", scores, &self.shared.device, "the softmax")?;
        let dtype = scores.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return unknown_type("scores", dtype);
        }
        let given = match given {
            None => None,
            Some(given) => {
                check_device("the given bias", given, scores.device(), "scores")?;
                if given.dtype() != dtype {
                    return mixed_types(["scores", "the given bias"], [dtype, given.dtype()]);
                }
                Some(in_four_dimensions(given, &shape)?)
            }
        };
        let scores = scores.contiguous()?;
        let own = given.as_ref().map(Tensor::detach);
        let call = Call { shared: self.shared.clone(), given: own };
        match given.filter(Tensor::track_op) {
            Some(given) => scores.apply_op2(&given, call),
            None => scores.apply_op1(call),
        }
    }
}

/// The sizes of contiguous logits, `offset` elements into their buffer.
fn logits(name: &str, layout: &Layout) -> Result<Logits> {
    match *layout.dims() {
        [batch, heads, queries, keys] => Ok(Logits::bhqk(batch, heads, queries, keys).at(layout.start_offset())),
        ref dims => refused(format!("{name} has the shape {dims:?}, [batch, heads, queries, keys] is needed")),
    }
}

/// A bias with sizes of one where it is the same, contiguous.
fn in_four_dimensions(given: &Tensor, shape: &Logits) -> Result<Tensor> {
    let full = [shape.batch, shape.heads, shape.queries, shape.keys];
    let dims = given.dims();
    let lead = full.len().saturating_sub(dims.len());
    let fits = dims.len() <= full.len() && dims.iter().zip(&full[lead..]).all(|(&own, &size)| own == size || own == 1);
    if !fits {
        return refused(format!("the given bias has the shape {dims:?}, which does not broadcast to {full:?}"));
    }
    let given = given.reshape([&[1; 4][..lead], dims].concat())?;
    if given.dim(3)? == shape.keys {
        return given.contiguous();
    }
    let [b, h, q] = [0, 1, 2].map(|i| given.dims()[i]);
    given.broadcast_as((b, h, q, shape.keys))?.contiguous()
}

/// One softmax, as its gradient remembers it.
#[derive(Clone, Debug)]
struct Call {
    shared: Arc<Shared>,
    given: Option<Tensor>,
}

impl Call {
    /// What the softmax reads beside its logits, from the storage of the given bias.
    fn inputs<'a, T: Element>(&'a self, given: Option<&'a (StorageRef<'_>, &Layout)>) -> Result<Inputs<'a, T>> {
        let mut inputs = Inputs { bias: self.shared.bias.law(), ..Inputs::default() };
        if let Some((storage, layout)) = given {
            let Storage::Cpu(storage) = &**storage else {
                return refused("the given bias lies on a device and scores on the CPU");
            };
            inputs.mask = Some((T::cpu_storage_as_slice(storage)?, logits("the given bias", layout)?));
        }
        Ok(inputs)
    }

    fn on_cpu<T: Element>(&self, scores: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let shape = logits("scores", layout)?;
        let mut out = T::cpu_storage_as_slice(scores)?[shape.offset..][..layout.shape().elem_count()].to_vec();
        let given = self.given.as_ref().map(Tensor::storage_and_layout);
        let inputs = self.inputs::<T>(given.as_ref())?;
        self.shared.spec.apply(&mut out, &shape.at(0), &inputs).in_candle()?;
        Ok(T::to_cpu_storage_owned(out))
    }

    fn grad_on_cpu<T: Element>(&self, [scores, grad]: [(&CpuStorage, &Layout); 2]) -> Result<CpuStorage> {
        let shape = logits("scores", scores.1)?.at(0);
        let slice = |(storage, layout): (&CpuStorage, &Layout)| {
            T::cpu_storage_as_slice(storage)
                .map(|all| all[layout.start_offset()..][..layout.shape().elem_count()].to_vec())
        };
        let given = self.given.as_ref().map(Tensor::storage_and_layout);
        let inputs = self.inputs::<T>(given.as_ref())?;
        let grads = self.shared.spec.grad(&slice(scores)?, &slice(grad)?, &shape, &inputs).in_candle()?;
        let typed = grads.logits.into_iter().map(<T as Scalar>::from_f64).collect();
        Ok(T::to_cpu_storage_owned(typed))
    }

    fn forward(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = by_type!(scores.dtype(), "scores", T => self.on_cpu::<T>(scores, layout))?;
        Ok((out, layout.shape().clone()))
    }

    /// The gradient of the scores.
    fn back(&self, scores: &Tensor, p: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let back = Back(Self { given: self.given.as_ref().map(Tensor::detach), ..self.clone() });
        scores.apply_op3_no_bwd(p, &grad.contiguous()?, &back)
    }
}

impl CustomOp1 for Call {
    fn name(&self) -> &'static str {
        "posenc-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(scores, layout)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, scores: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_type!(scores.dtype(), "scores", T => self.on_cuda::<T>(scores, layout))
    }

    fn bwd(&self, scores: &Tensor, p: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.back(scores, p, grad).map(Some)
    }
}

/// With a given bias that gets a gradient.
impl CustomOp2 for Call {
    fn name(&self) -> &'static str {
        "posenc-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(scores, layout)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        scores: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_type!(scores.dtype(), "scores", T => self.on_cuda::<T>(scores, layout))
    }

    fn bwd(
        &self,
        scores: &Tensor,
        given: &Tensor,
        p: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // The bias is added last, so its gradient is that of the logits as they are: p (g - sum of p g).
        let (wide_p, wide_grad) = (p.to_dtype(DType::F32)?, grad.to_dtype(DType::F32)?);
        let product = (&wide_p * &wide_grad)?;
        let dots = product.sum_keepdim(D::Minus1)?;
        let mut sums = (product - wide_p.broadcast_mul(&dots)?)?;
        for (axis, &size) in given.dims().iter().enumerate() {
            if size == 1 {
                sums = sums.sum_keepdim(axis)?;
            }
        }
        Ok((Some(self.back(scores, p, grad)?), Some(sums.to_dtype(given.dtype())?)))
    }
}

/// The gradient of one softmax.
struct Back(Call);

impl CustomOp3 for Back {
    fn name(&self) -> &'static str {
        "posenc-softmax-grad"
    }

    fn cpu_fwd(
        &self,
        scores: &CpuStorage,
        scores_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let both = [(scores, scores_layout), (grad, grad_layout)];
        let out = by_type!(scores.dtype(), "scores", T => self.0.grad_on_cpu::<T>(both))?;
        Ok((out, scores_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        scores: &CudaStorage,
        scores_layout: &Layout,
        p: &CudaStorage,
        p_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let all = [(scores, scores_layout), (p, p_layout), (grad, grad_layout)];
        by_type!(scores.dtype(), "scores", T => self.0.grad_on_cuda::<T>(all))
    }
}

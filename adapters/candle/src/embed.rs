//! Positions that are added to embeddings.

#[cfg(feature = "cuda")]
mod cuda;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use posenc::embed::{HostLookup, HostTables, Tokens};

use crate::at::{At, HeldAt};
#[cfg(feature = "cuda")]
use crate::plans::Plans;
use crate::tensor::{Element, InCandle, by_type, check_device, mixed_types, refused, unknown_type};

fn check_type(name: &str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => unknown_type(name, other),
    }
}

// ------------------------------------------------------------------------------------------------------------- sinusoid

/// Sinusoids, added to embeddings: exact at every position, without a table.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use posenc_candle::{At, Sinusoid};
///
/// # fn main() -> candle_core::Result<()> {
/// let sinusoid = Sinusoid::new(posenc::Sinusoid::new(512), &Device::Cpu)?;
/// let x = Tensor::randn(0f32, 0.04, (2, 7, 512), &Device::Cpu)?;
/// // The paper multiplies embeddings by the root of their channels.
/// let x = sinusoid.add(&x, At::Start(0), 512f64.sqrt())?;
/// assert_eq!(x.dims(), [2, 7, 512]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sinusoid {
    shared: Arc<SinusoidShared>,
}

#[derive(Debug)]
struct SinusoidShared {
    spec: posenc::Sinusoid,
    device: Device,
    #[cfg(feature = "cuda")]
    plans: Plans,
}

impl Sinusoid {
    /// Any spec on `device`.
    ///
    /// # Errors
    /// If the spec is refused.
    pub fn new(spec: posenc::Sinusoid, device: &Device) -> Result<Self> {
        spec.check().in_candle()?;
        let shared = SinusoidShared {
            spec,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            plans: Plans::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// `x * scale + sinusoid`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `[batch, tokens, dim]` | embeddings: F32, F16 or BF16 |
    /// | `at` | see [`At`] | token positions |
    /// | `scale` | | multiplies `x` |
    ///
    /// # Errors
    /// If the shape, the type, the device, the positions or `scale` is refused.
    pub fn add(&self, x: &Tensor, at: At<'_>, scale: f64) -> Result<Tensor> {
        check_type("x", x)?;
        check_device("x", x, &self.shared.device, "the sinusoid")?;
        let (batch, tokens, dim) = x.dims3()?;
        Tokens::new(batch, tokens, dim).check_dim("x", self.shared.spec.dim).in_candle()?;
        let at = at.hold(1, batch, tokens, x.device())?;
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        x.contiguous()?.apply_op1(AddSinusoid { shared: self.shared.clone(), at, scale })
    }
}

#[derive(Clone, Debug)]
struct AddSinusoid {
    shared: Arc<SinusoidShared>,
    at: HeldAt,
    scale: f64,
}

/// The shape of contiguous embeddings from the start of their buffer.
fn tokens(layout: &Layout) -> Result<Tokens> {
    let (batch, tokens, dim) = layout.shape().dims3()?;
    Ok(Tokens::new(batch, tokens, dim))
}

impl AddSinusoid {
    fn on_cpu<T: Element>(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let first = layout.start_offset();
        let mut out = T::cpu_storage_as_slice(x)?[first..first + layout.shape().elem_count()].to_vec();
        self.at
            .on_cpu(|positions| self.shared.spec.add(&mut out, &tokens(layout)?, positions, self.scale).in_candle())?;
        Ok(T::to_cpu_storage_owned(out))
    }
}

impl CustomOp1 for AddSinusoid {
    fn name(&self) -> &'static str {
        "posenc-sinusoid"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = by_type!(x.dtype(), "x", T => self.on_cpu::<T>(x, layout))?;
        Ok((out, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let out = by_type!(x.dtype(), "x", T => self.on_cuda::<T>(x, layout))?;
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.affine(self.scale, 0.0).map(Some)
    }
}

// -------------------------------------------------------------------------------------------------------------- learned

/// Learned tables: the rows of token and position, added in one pass, with gradients.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use posenc_candle::{At, Learned};
///
/// # fn main() -> candle_core::Result<()> {
/// // GPT-2's, at step 2 of decoding.
/// let device = Device::Cpu;
/// let (token, position) = (Tensor::randn(0f32, 1.0, (50, 8), &device)?, Tensor::randn(0f32, 1.0, (16, 8), &device)?);
/// let learned = Learned::new(posenc::Learned::new(8), &device)?;
/// let ids = Tensor::new(&[[7u32]], &device)?;
/// let x = learned.gather(&ids, &token, &position, At::Start(2))?;
/// assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, (token.get(7)? + position.get(2)?)?.to_vec1::<f32>()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Learned {
    shared: Arc<LearnedShared>,
}

#[derive(Debug)]
struct LearnedShared {
    spec: posenc::Learned,
    device: Device,
    #[cfg(feature = "cuda")]
    plans: Plans,
}

impl Learned {
    /// A spec without a norm on `device`: for a norm there is `candle_nn`'s.
    ///
    /// # Errors
    /// If the spec is refused or has a norm.
    pub fn new(spec: posenc::Learned, device: &Device) -> Result<Self> {
        spec.check().in_candle()?;
        if spec.norm.is_some() {
            return refused(
                "the spec has a norm, which is an operation of its own here: candle_nn::LayerNorm or RmsNorm",
            );
        }
        let shared = LearnedShared {
            spec,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            plans: Plans::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// `token[ids] * scale + position[row]`, by the spec's rule of rows, `[batch, tokens, dim]`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `ids` | `[batch, tokens]` | token ids: U32, I32 or I64 |
    /// | `token` | `[rows, dim]` | table: F32, F16 or BF16 |
    /// | `position` | `[rows, dim]` | table of the same type |
    /// | `at` | see [`At`] | token positions; with [`Rows::Kept`](posenc::embed::Rows::Kept) the kept tokens of earlier calls |
    ///
    /// Both tables get gradients, summed in F32.
    ///
    /// # Errors
    /// If shapes, types, devices or positions are refused; on the CPU if an id lies outside its table. On a device the rows of
    /// such a token are NaN.
    pub fn gather(&self, ids: &Tensor, token: &Tensor, position: &Tensor, at: At<'_>) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let device = &self.shared.device;
        if !matches!(ids.dtype(), DType::U32 | DType::I32 | DType::I64) {
            return refused(format!("ids are {:?}, they must be U32, I32 or I64", ids.dtype()));
        }
        for (name, x) in [("ids", ids), ("the token table", token), ("the position table", position)] {
            check_device(name, x, device, "the embedding")?;
        }
        for (name, table) in [("the token table", token), ("the position table", position)] {
            check_type(name, table)?;
            let (_, dim) = table.dims2()?;
            Tokens::new(1, 1, dim).check_dim(name, self.shared.spec.dim).in_candle()?;
        }
        if token.dtype() != position.dtype() {
            return mixed_types(["the token table", "the position table"], [token.dtype(), position.dtype()]);
        }
        let at = at.hold(1, batch, tokens, device)?;
        let gather = Gather { shared: self.shared.clone(), ids: ids.contiguous()?, at };
        token.contiguous()?.apply_op2(&position.contiguous()?, gather)
    }
}

#[derive(Clone, Debug)]
struct Gather {
    shared: Arc<LearnedShared>,
    ids: Tensor,
    at: HeldAt,
}

impl Gather {
    fn shape(&self) -> Result<Tokens> {
        let (batch, tokens) = self.ids.dims2()?;
        Ok(Tokens::new(batch, tokens, self.shared.spec.dim))
    }

    /// Calls with what the tokens are, on the CPU.
    fn with_lookup<R>(&self, call: impl FnOnce(&HostLookup<'_>) -> Result<R>) -> Result<R> {
        let ids = self.ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?;
        self.at.on_cpu(|positions| call(&HostLookup { ids: Some(&ids), positions, ..HostLookup::default() }))
    }

    fn on_cpu<T: Element>(&self, [token, position]: [(&CpuStorage, &Layout); 2]) -> Result<(CpuStorage, Shape)> {
        fn table<'a, T: Element>((storage, layout): (&'a CpuStorage, &Layout)) -> Result<&'a [T]> {
            Ok(&T::cpu_storage_as_slice(storage)?[layout.start_offset()..][..layout.shape().elem_count()])
        }
        let shape = self.shape()?;
        let tables =
            HostTables { token: Some(table::<T>(token)?), position: Some(table(position)?), ..HostTables::default() };
        let mut out = vec![<T as posenc::Scalar>::from_f64(0.0); shape.elements().in_candle()?];
        self.with_lookup(|lookup| self.shared.spec.gather(&mut out, &shape, &tables, lookup).in_candle())?;
        Ok((T::to_cpu_storage_owned(out), (shape.batch, shape.tokens, shape.dim).into()))
    }

    /// The row of the position table of every token.
    fn position_rows(&self) -> Result<Tensor> {
        let shape = self.shape()?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.shared.device {
            return self.position_rows_on_cuda(device);
        }
        let rows =
            |lookup: &HostLookup<'_>| self.shared.spec.position_rows(shape.batch, shape.tokens, lookup).in_candle();
        Tensor::new(self.with_lookup(rows)?, &self.shared.device)
    }
}

impl CustomOp2 for Gather {
    fn name(&self) -> &'static str {
        "posenc-learned"
    }

    fn cpu_fwd(
        &self,
        token: &CpuStorage,
        token_layout: &Layout,
        position: &CpuStorage,
        position_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tables = [(token, token_layout), (position, position_layout)];
        by_type!(token.dtype(), "the token table", T => self.on_cpu::<T>(tables))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        token: &CudaStorage,
        token_layout: &Layout,
        position: &CudaStorage,
        position_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let tables = [(token, token_layout), (position, position_layout)];
        by_type!(token.dtype(), "the token table", T => self.on_cuda::<T>(tables))
    }

    fn bwd(
        &self,
        token: &Tensor,
        position: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.flatten_to(1)?.to_dtype(DType::F32)?.contiguous()?;
        let summed = |table: &Tensor, rows: &Tensor, scale: f64| {
            let sums = Tensor::zeros(table.shape(), DType::F32, table.device())?.index_add(rows, &grad, 0)?;
            sums.affine(scale, 0.0)?.to_dtype(table.dtype()).map(Some)
        };
        let ids = self.ids.flatten_all()?.to_dtype(DType::I64)?;
        Ok((summed(token, &ids, self.shared.spec.scale)?, summed(position, &self.position_rows()?, 1.0)?))
    }
}

//! RoPE of queries and keys.

#[cfg(feature = "cuda")]
mod cuda;

#[cfg(feature = "cuda")]
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, InplaceOp1, Layout, Result, Shape, Tensor};
use posenc::{Direction, Heads, ModelRope, Scalar, Shape as _};

#[cfg(feature = "cuda")]
use self::cuda::{KeysAt, Second};
use crate::at::{At, HeldAt};
use crate::tensor::{
    Element, InCandle, Order, by_type, check_device, mixed_types, refused, storage_address, unknown_type,
};

/// RoPE on candle's tensors, exact at every position, with any of posenc's specs.
///
/// Queries and keys are rotated in one kernel. They may have any strides and are F32, F16 or BF16; the plan for a type is made
/// when that type is first met. [`Rope::apply`] has a gradient, the inverse rotation. Cloning is cheap: clones share plans, so that a
/// model makes one for each different spec and clones it into its layers.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use posenc_candle::{At, Rope};
///
/// # fn main() -> candle_core::Result<()> {
/// let device = Device::Cpu;
/// let rope = Rope::new(posenc::Rope::new(64, 10_000.0), &device)?;
/// let q = Tensor::randn(0f32, 1.0, (1, 8, 5, 64), &device)?;
/// let k = Tensor::randn(0f32, 1.0, (1, 2, 5, 64), &device)?;
/// let (q, k) = rope.apply(&q, &k, At::Start(100_000))?;
/// assert_eq!((q.dims(), k.dims()), (&[1, 8, 5, 64][..], &[1, 2, 5, 64][..]));
/// assert_eq!(q.dtype(), DType::F32);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rope {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: posenc::Rope,
    device: Device,
    #[cfg(feature = "cuda")]
    plans: Option<posenc::RopePlans>,
    /// the transposed rotation, where pairs move and it is another one
    back: OnceLock<Arc<Shared>>,
}

impl Shared {
    fn new(spec: posenc::Rope, device: &Device) -> Result<Self> {
        spec.check().in_candle()?;
        #[cfg(feature = "cuda")]
        let plans = match device {
            Device::Cuda(device) => {
                let gpu = posenc::Gpu::new(&device.cuda_stream()).in_candle()?;
                Some(posenc::RopePlans::new(&gpu, &spec).in_candle()?)
            }
            _ => None,
        };
        if device.is_metal() {
            return refused("posenc has no kernels for Metal");
        }
        Ok(Self {
            spec,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            plans,
            back: OnceLock::new(),
        })
    }

    /// What the gradient is rotated by, inversely.
    fn back(self: &Arc<Self>) -> Result<Arc<Self>> {
        let spec = &self.spec;
        if spec.written() == spec.pairing {
            return Ok(self.clone());
        }
        if let Some(back) = self.back.get() {
            return Ok(back.clone());
        }
        let transposed = posenc::Rope { pairing: spec.written(), pairing_out: Some(spec.pairing), ..spec.clone() };
        let made = Arc::new(Self::new(transposed, &self.device)?);
        Ok(self.back.get_or_init(|| made).clone())
    }
}

impl Rope {
    /// A rope of any spec on `device`.
    ///
    /// # Errors
    /// If the spec is refused, the device is of Metal, or posenc was built without kernels for the device.
    pub fn new(spec: posenc::Rope, device: &Device) -> Result<Self> {
        Ok(Self { shared: Arc::new(Shared::new(spec, device)?) })
    }

    /// The rope of layer `layer` of a model, from its `config.json`: [`ModelRope::from_hf`]. In a layer without RoPE nothing is
    /// rotated.
    ///
    /// The rotation alone: scales of logits and queries beside it (YaRN in latent attention, Llama 4) are in
    /// [`posenc::model::Layer`]. Scalings that depend on the sequence's length (dynamic NTK, LongRoPE) are refused here;
    /// [`ModelRope::at_length`] gives their spec to [`Rope::new`].
    ///
    /// # Errors
    /// If the config is not understood, has no such layer, or as [`Rope::new`].
    ///
    /// # Example
    /// ```
    /// use candle_core::Device;
    /// let llama = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "rope_theta": 500000.0}"#;
    /// let rope = posenc_candle::Rope::from_config(llama, 0, &Device::Cpu)?;
    /// assert_eq!((rope.spec().rotary, rope.spec().base), (128, 500_000.0));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn from_config(json: &str, layer: usize, device: &Device) -> Result<Self> {
        let model = ModelRope::from_hf(json).in_candle()?;
        Self::new(model.layer(layer).in_candle()?.rope_or_none(), device)
    }

    /// The spec.
    pub fn spec(&self) -> &posenc::Rope {
        &self.shared.spec
    }

    /// The device it was made for.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Rotates queries and keys in one kernel; both results are views of one new tensor.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q` | `[batch, heads, tokens, dim]` | queries, of any strides |
    /// | `k` | the same but for the heads | keys, of the same type |
    /// | `at` | see [`At`] | token positions |
    ///
    /// Channels outside the rotary part are copied. The accuracy is that of [`posenc::Rope::rotate`] on the CPU and
    /// [`posenc::Rope::error_bound`] on a device, at every position. Channels that do not lie side by side are copied first.
    ///
    /// # Errors
    /// If types, devices or shapes do not go together, or positions are of another type or shape.
    pub fn apply(&self, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<(Tensor, Tensor)> {
        self.apply_in(Order::Bhtd, q, k, at)
    }

    /// [`Rope::apply`] for `[batch, tokens, heads, dim]`, or `[tokens, heads, dim]`.
    ///
    /// # Errors
    /// As [`Rope::apply`].
    pub fn apply_thd(&self, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<(Tensor, Tensor)> {
        self.apply_in(Order::Thd, q, k, at)
    }

    /// [`Rope::apply`] for one tensor, such as the rotary keys of latent attention.
    ///
    /// # Errors
    /// As [`Rope::apply`].
    pub fn apply_one(&self, x: &Tensor, at: At<'_>) -> Result<Tensor> {
        let turn = self.turn(Order::Bhtd, &[("x", x)], at)?;
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        let x = turn.order.readable("x", x)?;
        x.apply_op1(turn)?.reshape(x.shape())
    }

    /// Rotates queries and keys where they lie, `[batch, heads, tokens, dim]`, in one kernel. They may be views of one
    /// tensor, as of packed QKV; every other view of their memory sees the result.
    ///
    /// # Errors
    /// As [`Rope::apply`]; if a tensor takes part in a gradient, its channels do not lie side by side, its elements
    /// overlap, `q` and `k` overlap, or the spec moves pairs. Nothing is written then.
    ///
    /// # Example
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use posenc_candle::{At, Rope};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let rope = Rope::new(posenc::Rope::new(64, 10_000.0), &Device::Cpu)?;
    /// // [batch, tokens, (8 + 2 + 2) * 64]: queries, keys and values side by side.
    /// let qkv = Tensor::randn(0f32, 1.0, (1, 5, 12 * 64), &Device::Cpu)?;
    /// let heads = qkv.reshape((1, 5, 12, 64))?.transpose(1, 2)?;
    /// let (q, k) = (heads.narrow(1, 0, 8)?, heads.narrow(1, 8, 2)?);
    /// rope.apply_inplace(&q, &k, At::Start(0))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_inplace(&self, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<()> {
        self.apply_inplace_in(Order::Bhtd, q, k, at)
    }

    /// [`Rope::apply_inplace`] for `[batch, tokens, heads, dim]`, or `[tokens, heads, dim]`.
    ///
    /// # Errors
    /// As [`Rope::apply_inplace`].
    pub fn apply_inplace_thd(&self, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<()> {
        self.apply_inplace_in(Order::Thd, q, k, at)
    }

    fn apply_in(&self, order: Order, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<(Tensor, Tensor)> {
        let turn = self.turn(order, &[("q", q), ("k", k)], at)?;
        if q.elem_count() == 0 {
            return Ok((q.clone(), k.clone()));
        }
        let (q, k) = (order.readable("q", q)?, order.readable("k", k)?);
        let both = q.apply_op2(&k, turn)?;
        let [q_count, k_count] = [&q, &k].map(|x| x.elem_count());
        let (q_out, k_out) = (both.narrow(0, 0, q_count)?, both.narrow(0, q_count, k_count)?);
        Ok((q_out.reshape(q.shape())?, k_out.reshape(k.shape())?))
    }

    fn apply_inplace_in(&self, order: Order, q: &Tensor, k: &Tensor, at: At<'_>) -> Result<()> {
        let turn = self.turn(order, &[("q", q), ("k", k)], at)?;
        let spec = self.spec();
        if spec.written() != spec.pairing {
            return refused(format!(
                "pairing is {:?} and pairing_out {:?}: pairs move, so the rotation cannot be in place",
                spec.pairing,
                spec.written()
            ));
        }
        for (name, x) in [("q", q), ("k", k)] {
            if x.track_op() {
                return refused(format!("{name} takes part in a gradient, which a rotation in place would spoil"));
            }
            order.heads(name, x.layout())?.check_written(name, usize::MAX).in_candle()?;
        }
        if q.elem_count() == 0 {
            return Ok(());
        }
        let [q_address, k_address] = [q, k].map(storage_address);
        if q_address == k_address {
            let [q_heads, k_heads] = [("q", q), ("k", k)].map(|(name, x)| order.heads(name, x.layout()));
            q_heads?.strided().check_apart("q", &k_heads?.strided(), "k").in_candle()?;
            return q.inplace_op1(&InPlace { turn: &turn, other: Other::Beside(k.layout()) });
        }
        // A rotation does the same to both: locks are taken in candle's own order, that of their addresses.
        let (first, second) = if q_address < k_address { (q, k) } else { (k, q) };
        first.inplace_op1(&InPlace { turn: &turn, other: Other::Apart(second) })
    }

    /// The operation, after everything is checked that tensors and positions say.
    fn turn(&self, order: Order, tensors: &[(&'static str, &Tensor)], at: At<'_>) -> Result<Turn> {
        let mut queries: Option<(&str, DType, Heads)> = None;
        for &(name, x) in tensors {
            let dtype = x.dtype();
            if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                return unknown_type(name, dtype);
            }
            check_device(name, x, self.device(), "the rope")?;
            let heads = order.sizes(name, x.layout())?;
            // All but the tokens: head and sets of frequencies.
            let none = Heads { tokens: 0, ..heads };
            self.spec().rotate::<f32>(&mut [], &none, &[0; 0], Direction::Forward).in_candle()?;
            match queries {
                None => queries = Some((name, dtype, heads)),
                Some((first, of, _)) if of != dtype => return mixed_types([first, name], [of, dtype]),
                Some((.., queries)) => queries.check_pair(&heads).in_candle()?,
            }
        }
        let Some((.., heads)) = queries else { return refused("there is no tensor to rotate") };
        let at = at.hold(self.spec().position_axes(), heads.batch, heads.tokens, self.device())?;
        Ok(Turn { shared: self.shared.clone(), order, at, direction: Direction::Forward })
    }
}

// ----------------------------------------------------------------------------------------------------------- operations

/// A rotation of one tensor or two, whose results lie one behind the other.
#[derive(Clone, Debug)]
struct Turn {
    shared: Arc<Shared>,
    order: Order,
    at: HeldAt,
    direction: Direction,
}

impl Turn {
    /// What takes a gradient back.
    fn back(&self) -> Result<Self> {
        let direction = match self.direction {
            Direction::Forward => Direction::Inverse,
            Direction::Inverse => Direction::Forward,
        };
        Ok(Self { shared: self.shared.back()?, direction, ..self.clone() })
    }

    fn cpu<T: Element>(&self, tensors: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let mut list = Vec::new();
        let mut len = 0;
        for (storage, layout) in tensors {
            let heads = self.order.heads("x", layout)?;
            list.push((T::cpu_storage_as_slice(storage)?, heads, self.order.contiguous(&heads, len)));
            len += layout.shape().elem_count();
        }
        let mut out = vec![<T as Scalar>::from_f64(0.0); len];
        self.at.on_cpu(|positions| {
            for (x, heads, to) in &list {
                self.shared.spec.rotate_to((x, heads), (&mut out, to), positions, self.direction).in_candle()?;
            }
            Ok(())
        })?;
        Ok((T::to_cpu_storage_owned(out), len.into()))
    }

    fn cpu_in_place(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let heads = self.order.heads("x", layout)?;
        let spec = &self.shared.spec;
        self.at.on_cpu(|positions| {
            match storage {
                CpuStorage::F32(x) => spec.rotate(x, &heads, positions, self.direction),
                CpuStorage::F16(x) => spec.rotate(x, &heads, positions, self.direction),
                CpuStorage::BF16(x) => spec.rotate(x, &heads, positions, self.direction),
                other => return unknown_type("x", other.dtype()),
            }
            .in_candle()
        })
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "posenc-rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_type!(x.dtype(), "x", T => self.cpu::<T>(&[(x, layout)]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_type!(x.dtype(), "x", T => self.cuda::<T>(&[(x, layout)]))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = self.order.readable("the gradient", &grad.reshape(x.shape())?)?;
        Ok(Some(grad.apply_op1_no_bwd(&self.back()?)?.reshape(x.shape())?))
    }
}

impl CustomOp2 for Turn {
    fn name(&self) -> &'static str {
        "posenc-rope"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_type!(q.dtype(), "q", T => self.cpu::<T>(&[(q, q_layout), (k, k_layout)]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_type!(q.dtype(), "q", T => self.cuda::<T>(&[(q, q_layout), (k, k_layout)]))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [q_count, k_count] = [q, k].map(|x| x.elem_count());
        let part = |first: usize, of: &Tensor| {
            let grad = grad.narrow(0, first, of.elem_count())?.reshape(of.shape())?;
            self.order.readable("the gradient", &grad)
        };
        let both = part(0, q)?.apply_op2_no_bwd(&part(q_count, k)?, &self.back()?)?;
        let (q_grad, k_grad) = (both.narrow(0, 0, q_count)?, both.narrow(0, q_count, k_count)?);
        Ok((Some(q_grad.reshape(q.shape())?), Some(k_grad.reshape(k.shape())?)))
    }
}

/// A rotation in place of a tensor, whose storage is lent, and of another one.
struct InPlace<'a> {
    turn: &'a Turn,
    other: Other<'a>,
}

enum Other<'a> {
    /// in the same storage
    Beside(&'a Layout),
    /// in a storage of its own
    Apart(&'a Tensor),
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "posenc-rope-inplace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.turn.cpu_in_place(storage, layout)?;
        match self.other {
            Other::Beside(layout) => self.turn.cpu_in_place(storage, layout),
            Other::Apart(other) => other.inplace_op1(&Alone(self.turn)),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        match self.other {
            Other::Beside(other) => {
                by_type!(storage.dtype(), "q", T => self.turn.cuda_in_place::<T>(storage, layout, KeysAt::Beside(other)))
            }
            // Both are lent to one kernel.
            Other::Apart(other) => other.inplace_op1(&Second { turn: self.turn, first: RefCell::new(storage), layout }),
        }
    }
}

/// A rotation in place of one tensor on the CPU.
struct Alone<'a>(&'a Turn);

impl InplaceOp1 for Alone<'_> {
    fn name(&self) -> &'static str {
        "posenc-rope-inplace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0.cpu_in_place(storage, layout)
    }
}

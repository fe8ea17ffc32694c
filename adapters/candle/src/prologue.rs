//! What happens between a projection and attention.

#[cfg(feature = "cuda")]
mod cuda;

use std::cell::RefCell;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Device, InplaceOp1, Layout, Result, Shape, Tensor};
use posenc::rotate::{CacheRows, HostCache, HostStored, Qkv, Vectors};
use posenc::{Heads, Positions, Scalar, Shape as _};

use crate::at::{At, HeldAt, check_integers};
#[cfg(feature = "cuda")]
use crate::plans::Plans;
use crate::tensor::{
    Element, InCandle, Order, by_type, check_device, mixed_types, refused, slice_mut, storage_address, unknown_type,
};

const ALL: [(Qkv, &str); 3] = [(Qkv::Query, "q"), (Qkv::Key, "k"), (Qkv::Value, "v")];

/// Bias, norm, rotation and factor of queries, keys and values in one kernel, which writes the cache too.
///
/// Cloning is cheap: clones share plans. Nothing has a gradient: for inference.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use posenc::rotate::{Branch, HeadNorm, Vectors};
/// use posenc_candle::{At, Prologue, Slots, posenc};
///
/// # fn main() -> candle_core::Result<()> {
/// let device = Device::Cpu;
/// // Qwen3: queries and keys are normalised, then rotated.
/// let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
/// let spec = posenc::Prologue { q: normed, k: normed, ..posenc::Prologue::new(posenc::Rope::new(64, 1e6)) };
/// let prologue = Prologue::new(spec, &device)?;
///
/// // One token: 8 heads of queries, 2 of keys and 2 of values.
/// let qkv = Tensor::randn(0f32, 1.0, (1, 12, 1, 64), &device)?;
/// let [q, k, v] = [(0, 8), (8, 2), (10, 2)].map(|(first, heads)| qkv.narrow(1, first, heads));
/// let weight = Tensor::ones(64, DType::F32, &device)?;
/// let weights = [Vectors::weight(&weight), Vectors::weight(&weight), Vectors::none()];
/// // A cache of 4 pages of 16 rows.
/// let (keys, values) = (Tensor::zeros((4, 2, 16, 64), DType::F32, &device)?, Tensor::zeros((4, 2, 16, 64), DType::F32, &device)?);
/// let slots = Tensor::new(&[[37i64]], &device)?;
/// let cache = Slots { k: &keys, v: &values, slots: &slots };
/// let (q, k, v) = prologue.apply([&q?, &k?, &v?], weights, At::Start(1000), Some(cache))?;
/// assert_eq!(q.dims(), [1, 8, 1, 64]);
/// // Row 5 of page 2.
/// let row = |cache: &Tensor| cache.get(2)?.narrow(1, 5, 1)?.flatten_all()?.to_vec1::<f32>();
/// assert_eq!((row(&keys)?, row(&values)?), (k.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Prologue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: posenc::Prologue,
    device: Device,
    #[cfg(feature = "cuda")]
    plans: Plans,
}

/// A cache of keys and values, and where in it tokens go.
///
/// | field | shape | |
/// |---|---|---|
/// | `k`, `v` | `[pages, heads, rows of a page, dim]`, any strides | written where tokens have a slot |
/// | `slots` | `[batch, tokens]`, I64, I32 or U32 | `page * rows of a page + row`; below 0: not cached |
///
/// A row outside the cache is refused on the CPU, and not written on a device.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    /// of keys
    pub k: &'a Tensor,
    /// of values
    pub v: &'a Tensor,
    /// a slot for each token
    pub slots: &'a Tensor,
}

impl Prologue {
    /// A prologue of any spec on `device`.
    ///
    /// # Errors
    /// If the spec is refused, or the device is of Metal.
    pub fn new(spec: posenc::Prologue, device: &Device) -> Result<Self> {
        spec.check().in_candle()?;
        if device.is_metal() {
            return refused("posenc has no kernels for Metal");
        }
        let shared = Shared {
            spec,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            plans: Plans::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The spec.
    pub fn spec(&self) -> &posenc::Prologue {
        &self.shared.spec
    }

    /// Applies it to queries, keys and values; the results are views of one new tensor.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `qkv` | `[batch, heads, tokens, dim]` each | queries, keys and values of any strides, such as views of a packed projection |
    /// | `vectors` | weights `[dim]`, or `[heads, dim]` over all heads; biases `[heads, dim]` | of queries, keys and values |
    /// | `at` | see [`At`] | token positions |
    /// | `cache` | [`Slots`] | written too |
    ///
    /// The accuracy is that of [`posenc::Prologue::apply`] on the CPU and [`posenc::Prologue::expect`] on a device.
    ///
    /// # Errors
    /// If types, devices or shapes do not go together, a vector is missing, a tensor takes part in a gradient, or a cache
    /// shares memory with what is read or with the other one. Nothing is written then.
    pub fn apply(
        &self,
        qkv: [&Tensor; 3],
        vectors: [Vectors<&Tensor>; 3],
        at: At<'_>,
        cache: Option<Slots<'_>>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let step = self.step(qkv, vectors, at, cache)?;
        let [q, k, v] = qkv;
        if q.elem_count() == 0 {
            return Ok((q.clone(), k.clone(), v.clone()));
        }
        let order = Order::Bhtd;
        let [q, k, v] = [order.readable("q", q)?, order.readable("k", k)?, order.readable("v", v)?];
        let all = q.apply_op3_no_bwd(&k, &v, &step)?;
        let mut first = 0;
        let mut part = |of: &Tensor| {
            let x = all.narrow(0, first, of.elem_count())?.reshape(of.shape());
            first += of.elem_count();
            x
        };
        Ok((part(&q)?, part(&k)?, part(&v)?))
    }

    /// The operation, after everything is checked that tensors say.
    fn step(
        &self,
        qkv: [&Tensor; 3],
        vectors: [Vectors<&Tensor>; 3],
        at: At<'_>,
        cache: Option<Slots<'_>>,
    ) -> Result<Step> {
        let (device, dtype) = (&self.shared.device, qkv[0].dtype());
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return unknown_type("q", dtype);
        }
        let check = |name: &'static str, x: &Tensor| {
            check_device(name, x, device, "the prologue")?;
            if x.dtype() != dtype {
                return mixed_types(["q", name], [dtype, x.dtype()]);
            }
            if x.track_op() {
                return refused(format!(
                    "{name} takes part in a gradient, which the prologue does not have: detach it"
                ));
            }
            Ok(())
        };
        let names = [["q", "q's weight", "q's bias"], ["k", "k's weight", "k's bias"], ["v", "v's weight", "v's bias"]];
        let held = |x: Option<&Tensor>, name| x.map(|x| check(name, x).and_then(|()| x.contiguous())).transpose();
        let mut own = Vec::new();
        for ((x, vectors), [name, weight, bias]) in qkv.iter().zip(vectors).zip(names) {
            check(name, x)?;
            own.push(Vectors { weight: held(vectors.weight, weight)?, bias: held(vectors.bias, bias)? });
        }
        let shapes = [0, 1, 2].map(|i| Order::Bhtd.sizes(ALL[i].1, qkv[i].layout()));
        let [q_shape, k_shape, v_shape] = shapes;
        let shapes = [q_shape?, k_shape?, v_shape?];
        let [q, k, v] = &shapes;
        for (name, x) in [("k", k), ("v", v)] {
            for (what, q, x) in [("sequences", q.batch, x.batch), ("tokens", q.tokens, x.tokens)] {
                if q != x {
                    return refused(format!("q has {q} {what} and {name} {x}, they must be equal"));
                }
            }
        }
        let axes = self.spec().rope.as_ref().map_or(1, posenc::Rope::position_axes);
        let at = at.hold(axes, q.batch, q.tokens, device)?;
        let cache = match cache {
            None => None,
            Some(Slots { k, v, slots }) => {
                for (name, x) in [("the cache of keys", k), ("the cache of values", v)] {
                    check(name, x)?;
                    Order::Bhtd.heads(name, x.layout())?.check_written(name, usize::MAX).in_candle()?;
                    let vectors = own.iter().flat_map(|own: &Vectors<Tensor>| [&own.weight, &own.bias]).flatten();
                    if qkv.into_iter().chain(vectors).any(|other| storage_address(other) == storage_address(x)) {
                        return refused(format!("{name} shares the memory of what is read"));
                    }
                }
                if storage_address(k) == storage_address(v) {
                    return refused("the caches of keys and values share their memory");
                }
                check_integers("slots", slots, device)?;
                if slots.dims() != [q.batch, q.tokens] {
                    return refused(format!(
                        "slots have the shape {:?}, {:?} is needed",
                        slots.dims(),
                        [q.batch, q.tokens]
                    ));
                }
                Some(Held { k: k.clone(), v: v.clone(), slots: slots.contiguous()? })
            }
        };
        Ok(Step { shared: self.shared.clone(), at, vectors: own, cache })
    }
}

// ----------------------------------------------------------------------------------------------------------- operations

/// Results of queries, keys and values, one behind the other.
struct Step {
    shared: Arc<Shared>,
    at: HeldAt,
    vectors: Vec<Vectors<Tensor>>,
    cache: Option<Held>,
}

struct Held {
    k: Tensor,
    v: Tensor,
    slots: Tensor,
}

/// Calls with the storage of a tensor that is written.
struct Lent<F>(RefCell<F>);

impl<F: FnMut(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Lent<F> {
    fn name(&self) -> &'static str {
        "posenc-prologue-cache"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(storage, layout)
    }
}

impl Step {
    fn cpu<T: Element>(&self, tensors: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Shape)> {
        let spec = &self.shared.spec;
        let order = Order::Bhtd;
        let mut parts = Vec::new();
        let mut len = 0;
        for (((storage, layout), vectors), (which, name)) in tensors.into_iter().zip(&self.vectors).zip(ALL) {
            let heads = order.heads(name, layout)?;
            let read = |x: &Option<Tensor>| x.as_ref().map(|x| x.flatten_all()?.to_vec1::<T>()).transpose();
            let vectors = Vectors { weight: read(&vectors.weight)?, bias: read(&vectors.bias)? };
            parts.push((which, T::cpu_storage_as_slice(storage)?, heads, order.contiguous(&heads, len), vectors));
            len += layout.shape().elem_count();
        }
        let slots = match &self.cache {
            Some(cache) => cache.slots.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?,
            None => Vec::new(),
        };
        let rows = CacheRows::Slots(&slots[..]);
        let mut out = vec![<T as Scalar>::from_f64(0.0); len];
        self.at.on_cpu(|positions: Positions<&[i64]>| {
            self.with_cache(&mut |mut stores: Stores<'_, T>| {
                // All of them, before a cache is written.
                for ((which, _, heads, _, vectors), store) in parts.iter().zip(&mut stores) {
                    let cache = host(store, rows);
                    spec.check_call::<T>(*which, heads, borrowed(vectors), positions, cache.as_ref()).in_candle()?;
                }
                for ((which, x, heads, to, vectors), store) in parts.iter().zip(&mut stores) {
                    let (vectors, cache) = (borrowed(vectors), host(store, rows));
                    spec.apply_to(*which, (x, heads), Some((&mut out, to)), vectors, positions, cache).in_candle()?;
                }
                Ok(())
            })
        })?;
        Ok((T::to_cpu_storage_owned(out), len.into()))
    }
}

/// Elements of the caches of queries (there is none), keys and values.
type Stores<'a, T> = [Option<(&'a mut [T], Heads)>; 3];

impl Step {
    /// Calls with the elements of both caches.
    fn with_cache<T: Element>(&self, call: &mut dyn FnMut(Stores<'_, T>) -> Result<()>) -> Result<()> {
        let Some(cache) = &self.cache else { return call([None, None, None]) };
        let keys = |k: &mut CpuStorage, k_layout: &Layout| {
            let k_heads = Order::Bhtd.heads("the cache of keys", k_layout)?;
            let values = |v: &mut CpuStorage, v_layout: &Layout| {
                let v_heads = Order::Bhtd.heads("the cache of values", v_layout)?;
                call([None, Some((slice_mut(k)?, k_heads)), Some((slice_mut(v)?, v_heads))])
            };
            cache.v.inplace_op1(&Lent(RefCell::new(values)))
        };
        cache.k.inplace_op1(&Lent(RefCell::new(keys)))
    }
}

/// A cache as posenc's.
fn host<'a, T>(store: &'a mut Option<(&mut [T], Heads)>, rows: CacheRows<&'a [i64]>) -> Option<HostCache<'a, T>> {
    store.as_mut().map(|(x, shape)| HostCache { x: HostStored::Same(x), shape: *shape, rows })
}

fn borrowed<T>(vectors: &Vectors<Vec<T>>) -> Vectors<&[T]> {
    Vectors { weight: vectors.weight.as_deref(), bias: vectors.bias.as_deref() }
}

impl CustomOp3 for Step {
    fn name(&self) -> &'static str {
        "posenc-prologue"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_type!(q.dtype(), "q", T => self.cpu::<T>([(q, q_layout), (k, k_layout), (v, v_layout)]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_type!(q.dtype(), "q", T => self.cuda::<T>([(q, q_layout), (k, k_layout), (v, v_layout)]))
    }
}

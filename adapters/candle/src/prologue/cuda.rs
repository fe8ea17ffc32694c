//! The prologue on a CUDA device.

use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor};
use posenc::rotate::{Cache, CacheRows, PrologueCall, ProloguePlan, Vectors};
use posenc::{Gpu, Heads, Ids};

use super::{ALL, Step};
use crate::at::lent;
use crate::tensor::{Element, InCandle, Order, refused, unknown_type, view};

/// Calls with the storage of a tensor that is written.
struct Lent<F>(RefCell<F>);

impl<F: FnMut(&mut CudaStorage, &Layout) -> Result<()>> InplaceOp1 for Lent<F> {
    fn name(&self) -> &'static str {
        "posenc-prologue-cache"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        unknown_type("a cache on the CPU", storage.dtype())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(storage, layout)
    }
}

type Lended<'a> = Option<(StorageRef<'a>, &'a Layout)>;

fn vectors<'a, T: Element>([weight, bias]: [&'a Lended<'_>; 2]) -> Result<[Option<CudaView<'a, T>>; 2]> {
    let of = |lended: &'a Lended<'_>| {
        let Some((storage, layout)) = lended else { return Ok(None) };
        match &**storage {
            Storage::Cuda(storage) => view::<T>((storage, layout)).map(Some),
            _ => refused("a vector lies on the CPU, the queries on a CUDA device"),
        }
    };
    Ok([of(weight)?, of(bias)?])
}

impl Step {
    pub(super) fn cuda<T: Element>(&self, tensors: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
        let device = &tensors[0].0.device;
        let plan = self
            .shared
            .plans
            .of::<T, ProloguePlan<T>>(|| ProloguePlan::new(&Gpu::new(&device.cuda_stream())?, &self.shared.spec))?;
        let order = Order::Bhtd;
        let mut list = Vec::new();
        let counts = tensors.map(|(_, layout)| layout.shape().elem_count());
        for ((storage, layout), (_, name)) in tensors.into_iter().zip(ALL) {
            list.push((storage.as_cuda_slice::<T>()?, order.heads(name, layout)?));
        }
        let [(q, q_heads), (k, k_heads), (v, v_heads)] = list[..] else {
            return refused("a prologue is of three tensors");
        };
        // SAFETY: the prologue writes every element of what it gives, and the tensors fill the buffer.
        let mut out = unsafe { device.alloc::<T>(counts.iter().sum())? };
        let lended: Vec<[Lended<'_>; 2]> = self
            .vectors
            .iter()
            .map(|own| [&own.weight, &own.bias].map(|x| x.as_ref().map(Tensor::storage_and_layout)))
            .collect();
        let own = lended.iter().map(|[weight, bias]| vectors::<T>([weight, bias])).collect::<Result<Vec<_>>>()?;
        let of = |i: usize| {
            let [weight, bias] = &own[i];
            Vectors { weight: weight.as_ref().map(|x| x as _), bias: bias.as_ref().map(|x| x as _) }
        };
        self.at.on_cuda(device, |positions| {
            let mut run = |stores: Option<[(&mut CudaSlice<T>, Heads); 2]>, slots: Option<Ids<'_>>| {
                let cache = stores.zip(slots).map(|([(k, k_heads), (v, v_heads)], slots)| Cache {
                    k: k_heads.of_mut(k).into(),
                    v: Some(v_heads.of_mut(v).into()),
                    rows: CacheRows::Slots(slots),
                    flag: None,
                });
                let (mut q_out, mut rest) = out.split_at_mut(counts[0]);
                let (mut k_out, mut v_out) = rest.split_at_mut(counts[1]);
                let to = |heads: &Heads| order.contiguous(heads, 0);
                let call = PrologueCall { q: of(0), k: of(1), v: of(2), cache, ..PrologueCall::at(positions) };
                plan.apply(
                    q_heads.of(q).to(to(&q_heads).of_mut(&mut q_out)),
                    k_heads.of(k).to(to(&k_heads).of_mut(&mut k_out)),
                    v_heads.of(v).to(to(&v_heads).of_mut(&mut v_out)),
                    call,
                )
                .in_candle()
            };
            let Some(cache) = &self.cache else { return run(None, None) };
            lent(&cache.slots, |slots| {
                let keys = |k: &mut CudaStorage, k_layout: &Layout| {
                    let k_heads = order.heads("the cache of keys", k_layout)?;
                    let values = |v: &mut CudaStorage, v_layout: &Layout| {
                        let v_heads = order.heads("the cache of values", v_layout)?;
                        let stores = [(k.as_cuda_slice_mut::<T>()?, k_heads), (v.as_cuda_slice_mut::<T>()?, v_heads)];
                        run(Some(stores), Some(slots))
                    };
                    cache.v.inplace_op1(&Lent(RefCell::new(values)))
                };
                cache.k.inplace_op1(&Lent(RefCell::new(keys)))
            })
        })?;
        Ok((T::wrap_cuda_slice(out, device.clone()), counts.iter().sum::<usize>().into()))
    }
}

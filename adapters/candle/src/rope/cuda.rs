//! The rotation on a CUDA device.

use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Shape};
use posenc::rotate::{Keys, Rotation};
use posenc::{Heads, Ids, Positions, RopePlan, Scalar};

use super::Turn;
use crate::tensor::{Element, InCandle, by_type, refused, unknown_type};

/// The second tensor of a rotation in place.
pub(super) enum KeysAt<'a> {
    /// in the storage of the first
    Beside(&'a Layout),
    /// in a storage of its own
    Apart(&'a mut CudaStorage, &'a Layout),
}

impl Turn {
    fn plan<T: Scalar>(&self) -> Result<&RopePlan<T>> {
        match &self.shared.plans {
            Some(plans) => plans.of().in_candle(),
            None => refused("the rope was made for the CPU"),
        }
    }

    fn rotation<'a, T>(&self, positions: Positions<Ids<'a>>) -> Rotation<'a, T> {
        Rotation { direction: self.direction, ..Rotation::at(positions) }
    }

    pub(super) fn cuda<T: Element>(&self, tensors: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let plan = self.plan::<T>()?;
        let device = &tensors[0].0.device;
        let mut list = Vec::new();
        let mut len = 0;
        for (storage, layout) in tensors {
            list.push((storage.as_cuda_slice::<T>()?, self.order.heads("x", layout)?));
            len += layout.shape().elem_count();
        }
        // SAFETY: the rotation writes every element of what it copies, and the tensors fill the buffer.
        let mut out = unsafe { device.alloc::<T>(len)? };
        self.at.on_cuda(device, |positions| {
            let rotation = self.rotation(positions);
            let to = |heads: &Heads| self.order.contiguous(heads, 0);
            match *list {
                [(q, q_heads), (k, k_heads)] => {
                    let (mut q_out, mut k_out) = out.split_at_mut(tensors[0].1.shape().elem_count());
                    let q = q_heads.of(q).to(to(&q_heads).of_mut(&mut q_out));
                    let k = k_heads.of(k).to(to(&k_heads).of_mut(&mut k_out));
                    plan.rotate(q, k, rotation)
                }
                [(x, heads)] => plan.rotate(heads.of(x).to(to(&heads).of_mut(&mut out)), None, rotation),
                _ => return refused("a rotation is of one tensor or two"),
            }
            .in_candle()
        })?;
        Ok((T::wrap_cuda_slice(out, device.clone()), len.into()))
    }

    pub(super) fn cuda_in_place<T: Element>(
        &self,
        q: &mut CudaStorage,
        layout: &Layout,
        keys: KeysAt<'_>,
    ) -> Result<()> {
        let plan = self.plan::<T>()?;
        let device = q.device.clone();
        let q_heads = self.order.heads("q", layout)?;
        let q = q.as_cuda_slice_mut::<T>()?;
        self.at.on_cuda(&device, |positions| {
            let keys = match keys {
                KeysAt::Beside(layout) => Keys::Beside(self.order.heads("k", layout)?),
                KeysAt::Apart(k, layout) => {
                    Keys::from(self.order.heads("k", layout)?.of_mut(k.as_cuda_slice_mut::<T>()?))
                }
            };
            plan.rotate(q_heads.of_mut(q), keys, self.rotation(positions)).in_candle()
        })
    }
}

/// A rotation in place of a tensor whose storage is lent, beside one that was lent before.
pub(super) struct Second<'a> {
    pub(super) turn: &'a Turn,
    pub(super) first: RefCell<&'a mut CudaStorage>,
    pub(super) layout: &'a Layout,
}

impl InplaceOp1 for Second<'_> {
    fn name(&self) -> &'static str {
        "posenc-rope-inplace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        unknown_type("a tensor on the CPU", storage.dtype())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let mut first = self.first.borrow_mut();
        let keys = KeysAt::Apart(storage, layout);
        by_type!(first.dtype(), "q", T => self.turn.cuda_in_place::<T>(&mut first, self.layout, keys))
    }
}

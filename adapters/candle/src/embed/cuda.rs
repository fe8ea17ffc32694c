//! Positions that are added to embeddings, on a CUDA device.

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor};
use posenc::embed::{DeviceLookup, DeviceTables};
use posenc::{Gpu, Ids, LearnedPlan, SinusoidPlan};

use super::{AddSinusoid, Gather, tokens};
use crate::tensor::{Element, InCandle, range, refused, view};

impl AddSinusoid {
    pub(super) fn on_cuda<T: Element>(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let (shared, device) = (&self.shared, &x.device);
        let plan = shared
            .plans
            .of::<T, SinusoidPlan<T>>(|| SinusoidPlan::new(&Gpu::new(&device.cuda_stream())?, &shared.spec))?;
        // SAFETY: the copy writes every element.
        let mut out = unsafe { device.alloc::<T>(layout.shape().elem_count())? };
        device.memcpy_dtod(&view::<T>((x, layout))?, &mut out)?;
        self.at.on_cuda(device, |positions| {
            plan.add(tokens(layout)?.of_mut(&mut out), positions, self.scale).in_candle()
        })?;
        Ok(T::wrap_cuda_slice(out, device.clone()))
    }
}

impl Gather {
    fn plan<T: Element>(&self, device: &CudaDevice) -> Result<&LearnedPlan<T>> {
        let shared = &self.shared;
        shared.plans.of::<T, LearnedPlan<T>>(|| LearnedPlan::new(&Gpu::new(&device.cuda_stream())?, &shared.spec))
    }

    /// Calls with what the tokens are, on the device.
    fn with_device_lookup<R>(
        &self,
        device: &CudaDevice,
        call: impl FnOnce(&DeviceLookup<'_>) -> Result<R>,
    ) -> Result<R> {
        let (storage, layout) = self.ids.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return refused("ids lie on the CPU, the tables on a CUDA device");
        };
        let range = range(layout);
        self.at.on_cuda(device, |positions| {
            let call = |ids: Ids<'_>| call(&DeviceLookup { ids: Some(ids), positions, ..DeviceLookup::default() });
            match &storage.slice {
                CudaStorageSlice::U32(ids) => call(Ids::U32(&ids.slice(range))),
                CudaStorageSlice::I32(ids) => call(Ids::I32(&ids.slice(range))),
                CudaStorageSlice::I64(ids) => call(Ids::I64(&ids.slice(range))),
                _ => refused("ids must be U32, I32 or I64"),
            }
        })
    }

    pub(super) fn on_cuda<T: Element>(
        &self,
        [token, position]: [(&CudaStorage, &Layout); 2],
    ) -> Result<(CudaStorage, Shape)> {
        let device = &token.0.device;
        let plan = self.plan::<T>(device)?;
        let shape = self.shape()?;
        let (token, position) = (view::<T>(token)?, view::<T>(position)?);
        let tables = DeviceTables { token: Some(&token), position: Some(&position), ..DeviceTables::default() };
        // SAFETY: the gather writes every element.
        let mut out = unsafe { device.alloc::<T>(shape.elements().in_candle()?)? };
        self.with_device_lookup(device, |lookup| {
            plan.gather(shape.of_mut(&mut out), &tables, lookup, None).in_candle()
        })?;
        Ok((T::wrap_cuda_slice(out, device.clone()), (shape.batch, shape.tokens, shape.dim).into()))
    }

    pub(super) fn position_rows_on_cuda(&self, device: &CudaDevice) -> Result<Tensor> {
        let shape = self.shape()?;
        let count = shape.batch * shape.tokens;
        // SAFETY: the kernel writes every row.
        let mut rows = unsafe { device.alloc::<i64>(count)? };
        self.with_device_lookup(device, |lookup| {
            self.plan::<f32>(device)?.rows(&mut rows, shape.batch, shape.tokens, lookup).in_candle()
        })?;
        let storage = Storage::Cuda(CudaStorage { slice: CudaStorageSlice::I64(rows), device: device.clone() });
        Ok(Tensor::from_storage(storage, count, BackpropOp::none(), false))
    }
}

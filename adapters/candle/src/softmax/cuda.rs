//! The softmax on a CUDA device.

use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Storage, StorageRef, Tensor};
use posenc::attend::{DeviceInputs, GradOptions};
use posenc::{Gpu, SoftmaxPlan};

use super::{Call, logits};
use crate::tensor::{Element, InCandle, refused, view};

impl Call {
    fn plan<T: Element>(&self, device: &CudaDevice) -> Result<&SoftmaxPlan<T>> {
        let shared = &self.shared;
        shared.plans.of::<T, SoftmaxPlan<T>>(|| {
            let gpu = Gpu::new(&device.cuda_stream())?;
            SoftmaxPlan::new(&gpu, &shared.spec, shared.bias.law())
        })
    }

    /// Calls with what the softmax reads beside its logits.
    fn with_inputs<T: Element>(
        given: Option<&(StorageRef<'_>, &Layout)>,
        call: impl FnOnce(DeviceInputs<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let Some((storage, layout)) = given else { return call(DeviceInputs::default()) };
        let Storage::Cuda(storage) = &**storage else {
            return refused("the given bias lies on the CPU and scores on a CUDA device");
        };
        let mask = logits("the given bias", layout)?.of(storage.as_cuda_slice::<T>()?);
        call(DeviceInputs { mask: Some(mask), ..DeviceInputs::default() })
    }

    pub(super) fn on_cuda<T: Element>(&self, scores: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = &scores.device;
        let plan = self.plan::<T>(device)?;
        let shape = logits("scores", layout)?;
        let x = scores.as_cuda_slice::<T>()?;
        // SAFETY: the softmax writes every element.
        let mut out = unsafe { device.alloc::<T>(layout.shape().elem_count())? };
        let given = self.given.as_ref().map(Tensor::storage_and_layout);
        Self::with_inputs::<T>(given.as_ref(), |inputs| {
            plan.apply(shape.of(x).to(shape.at(0).of_mut(&mut out)), &inputs).in_candle()
        })?;
        Ok((T::wrap_cuda_slice(out, device.clone()), layout.shape().clone()))
    }

    pub(super) fn grad_on_cuda<T: Element>(
        &self,
        [scores, p, grad]: [(&CudaStorage, &Layout); 3],
    ) -> Result<(CudaStorage, Shape)> {
        let device = &scores.0.device;
        let plan = self.plan::<T>(device)?;
        let shape = logits("scores", scores.1)?.at(0);
        let (x, p, grad) = (view(scores)?, view(p)?, view(grad)?);
        // SAFETY: the gradient writes every element.
        let mut out = unsafe { device.alloc::<T>(scores.1.shape().elem_count())? };
        let given = self.given.as_ref().map(Tensor::storage_and_layout);
        Self::with_inputs::<T>(given.as_ref(), |inputs| {
            let options = GradOptions { logits: Some(shape.of(&x)), ..GradOptions::default() };
            plan.grad(shape.of(&p), shape.of(&grad).to(shape.of_mut(&mut out)), &inputs, options).in_candle()
        })?;
        Ok((T::wrap_cuda_slice(out, device.clone()), scores.1.shape().clone()))
    }
}

//! Rotations by given cosines and sines on a CUDA device.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage};
use posenc::rotate::{OutOfRange, Rotation, Table, TableValues};
use posenc::{Gpu, Ids, Pairing, Positions, Rope, RopePlans};

use super::ByTable;
use crate::tensor::{Element, InCandle, by_type, range, refused};

type Key = (DeviceId, usize, Pairing);

/// Plans by device, channels of a head and pairing, the youngest last: a program meets one or two.
static PLANS: Mutex<Vec<(Key, Arc<RopePlans>)>> = Mutex::new(Vec::new());
const MOST_PLANS: usize = 16;

fn plans(device: &CudaDevice, dim: usize, pairing: Pairing) -> Result<Arc<RopePlans>> {
    let key = (device.id(), dim, pairing);
    let mut known = PLANS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, plans)) = known.iter().find(|(of, _)| *of == key) {
        return Ok(plans.clone());
    }
    let gpu = Gpu::new(&device.cuda_stream()).in_candle()?;
    // Its own angles are not used: any base will do.
    let made = Arc::new(RopePlans::new(&gpu, &Rope { pairing, ..Rope::new(dim, 10_000.0) }).in_candle()?);
    if known.len() == MOST_PLANS {
        known.remove(0);
    }
    known.push((key, made.clone()));
    Ok(made)
}

impl ByTable {
    pub(super) fn cuda(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let out = by_type!(x.dtype(), "xs on a CUDA device", T => self.rotate_on_cuda::<T>(x, layout))?;
        Ok((out, layout.shape().clone()))
    }

    fn rotate_on_cuda<T: Element>(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        let (heads, device) = (self.order.heads("xs", layout)?, &x.device);
        let plans = plans(device, heads.dim, self.pairing)?;
        let plan = plans.of::<T>().in_candle()?;
        let x = x.as_cuda_slice::<T>()?;
        // SAFETY: the rotation writes every element.
        let mut out = unsafe { device.alloc::<T>(layout.shape().elem_count())? };
        let to = self.order.contiguous(&heads, 0);
        let own_rows = self.cos.rank() == 3;
        let rows = heads.tokens * if own_rows { heads.batch } else { 1 };
        let mut turn = |positions: Positions<Ids<'_>>, values: TableValues<'_, T>| {
            let table = Table { values, rows, stride: heads.dim / 2, out_of_range: OutOfRange::Clamp };
            let rotation = Rotation { direction: self.direction, table: Some(table), ..Rotation::at(positions) };
            plan.rotate(heads.of(x).to(to.of_mut(&mut out)), None, rotation).in_candle()
        };

        let starts = match own_rows {
            true => {
                let starts: Vec<i64> = (0..heads.batch).map(|batch| (batch * heads.tokens) as i64).collect();
                Some(device.clone_htod(&starts)?)
            }
            false => None,
        };
        let positions = starts.as_ref().map_or(Positions::counted(), |starts| Positions::starts(starts));
        let ((cos, cos_layout), (sin, sin_layout)) = (self.cos.storage_and_layout(), self.sin.storage_and_layout());
        let (Storage::Cuda(cos), Storage::Cuda(sin)) = (&*cos, &*sin) else {
            return refused("cos and sin lie on the CPU and xs on a CUDA device");
        };
        let (cos_range, sin_range) = (range(cos_layout), range(sin_layout));
        if cos.dtype() == DType::F32 {
            let (cos, sin) = (cos.as_cuda_slice::<f32>()?, sin.as_cuda_slice::<f32>()?);
            let (cos, sin) = (cos.slice(cos_range), sin.slice(sin_range));
            turn(positions, TableValues::F32 { cos: &cos, sin: Some(&sin) })?;
        } else {
            let (cos, sin) = (cos.as_cuda_slice::<T>()?, sin.as_cuda_slice::<T>()?);
            let (cos, sin) = (cos.slice(cos_range), sin.slice(sin_range));
            turn(positions, TableValues::Same { cos: &cos, sin: Some(&sin) })?;
        }
        Ok(T::wrap_cuda_slice(out, device.clone()))
    }
}

//! Real positions on a device, as whole numbers of units.

use std::sync::Arc;

use bytemuck::Zeroable;
use cudarc::driver::CudaStream;

use crate::gpu::args::PositionUnitsArgs;
use crate::gpu::kernel::POSITION_UNITS;
use crate::gpu::{Gpu, Kernel, Launch, Read, Write};
use crate::{Error, Result};

/// A device buffer of real numbers.
#[derive(Clone, Copy)]
pub enum Reals<'a> {
    /// 24 bits of precision: seconds of a day are then known to 4 ms
    F32(Read<'a, f32>),
    /// 53 bits of precision
    F64(Read<'a, f64>),
}

impl Reals<'_> {
    /// Number of reals.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(reals) => reals.len(),
            Self::F64(reals) => reals.len(),
        }
    }

    /// True without reals.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Reals<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if matches!(self, Self::F32(_)) { "f32" } else { "f64" };
        write!(f, "Reals({} of {name})", self.len())
    }
}

impl<'a> From<&'a cudarc::driver::CudaSlice<f32>> for Reals<'a> {
    fn from(reals: &'a cudarc::driver::CudaSlice<f32>) -> Self {
        Self::F32(reals)
    }
}

impl<'a> From<&'a cudarc::driver::CudaSlice<f64>> for Reals<'a> {
    fn from(reals: &'a cudarc::driver::CudaSlice<f64>) -> Self {
        Self::F64(reals)
    }
}

/// [`fixed`](super::fixed) on a [`Gpu`]: positions in seconds or scaled coordinates become ids for a rope with
/// [`fraction_bits`](crate::Rope::fraction_bits).
#[derive(Clone, Debug)]
pub struct FixedPlan {
    gpu: Gpu,
    kernel: Kernel<PositionUnitsArgs>,
}

impl FixedPlan {
    /// Loads the kernel.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let [kernel] = gpu.load::<f32, _, 1>(POSITION_UNITS)?;
        Ok(Self { gpu: gpu.clone(), kernel })
    }

    /// The same plan on another stream of its context.
    ///
    /// # Errors
    /// If the stream is of another context.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self { gpu: self.gpu.on(stream)?, kernel: self.kernel.clone() })
    }

    /// Writes positions in units of `2^-bits`, in one kernel.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `positions` | `[n]` | f32 or f64 |
    /// | `bits` | | fraction bits, at most 62 |
    /// | `out` | i64 `[n]` | written: `n` is that of the positions |
    /// | `flag` | 1 | set to 1 by a position that is not finite or does not fit into 64 bits, whose units then are 0 |
    ///
    /// # Accuracy
    /// The nearest unit, ties to even: off by half a unit at most.
    ///
    /// # Errors
    /// If `bits` is above 62, or a buffer is too short, belongs to another context or shares memory with one that is written.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::position::FixedPlan;
    /// use posenc::{Gpu, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let rope = Rope { fraction_bits: vec![13], ..Rope::new(64, 10_000.0) };
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &rope)?;
    /// let seconds = gpu.stream().clone_htod(&[0.0f32, 0.04, 0.08])?;
    /// let mut ids = gpu.stream().alloc_zeros::<i64>(3)?;
    /// FixedPlan::new(&gpu)?.write(&seconds, 13, &mut ids, None)?;
    /// let mut q = gpu.stream().alloc_zeros(3 * 8 * 64)?;
    /// plan.rotate(posenc::Heads::thd(3, 8, 64).of_mut(&mut q), None, Positions::ids(&ids))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(
        &'a self,
        positions: impl Into<Reals<'a>>,
        bits: u32,
        out: Write<'a, i64>,
        flag: Option<Write<'a, u32>>,
    ) -> Result<()> {
        if bits > 62 {
            return Err(Error::Value(format!("positions have {bits} fraction bits, at most 62 are possible")));
        }
        let positions = positions.into();
        let (n, is_f64) = (positions.len(), matches!(positions, Reals::F64(_)));
        let mut call = self.gpu.call();
        let args = PositionUnitsArgs {
            positions: match positions {
                Reals::F32(reals) => call.read("positions", reals, n)?,
                Reals::F64(reals) => call.read("positions", reals, n)?,
            },
            units: call.write("out", out, n)?,
            flag: call.write_some("flag", flag, 1)?,
            count: u32::try_from(n).map_err(|_| Error::Overflow(format!("{n} positions")))?,
            bits,
            is_f64: u32::from(is_f64),
            ..PositionUnitsArgs::zeroed()
        };
        if n == 0 {
            return Ok(());
        }
        call.launch(&self.kernel, &Launch::new([args.count.div_ceil(256), 1, 1], [256, 1, 1], args))
    }
}

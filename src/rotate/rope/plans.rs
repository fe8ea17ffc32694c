//! Plans of one rotation for tensors of any element type.

use std::any::Any;
use std::sync::OnceLock;

use super::{Rope, RopePlan};
use crate::rotate::XPos;
use crate::{Error, Gpu, Result, Scalar};

/// [`RopePlan`]s of one spec, for a caller that meets tensors of several element types: each is made when it is first asked for.
///
/// # Example
/// ```no_run
/// use half::bf16;
/// use posenc::{Gpu, Heads, Positions, Rope, RopePlans};
///
/// let gpu = Gpu::open(0)?;
/// let plans = RopePlans::new(&gpu, &Rope::new(128, 10_000.0))?;
/// let (heads, mut q) = (Heads::thd(7, 32, 128), gpu.stream().alloc_zeros::<bf16>(7 * 32 * 128)?);
/// plans.of::<bf16>()?.rotate(heads.of_mut(&mut q), None, Positions::counted())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RopePlans {
    gpu: Gpu,
    spec: Spec,
    /// of f32, f16 and bf16
    plans: [OnceLock<Box<dyn Any + Send + Sync>>; 3],
}

#[derive(Clone, Debug)]
enum Spec {
    Rope(Rope),
    XPos(XPos),
}

impl RopePlans {
    /// Checks the spec; nothing is uploaded or loaded yet.
    ///
    /// # Errors
    /// If the spec is refused.
    pub fn new(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        rope.check()?;
        Ok(Self { gpu: gpu.clone(), spec: Spec::Rope(rope.clone()), plans: Default::default() })
    }

    /// The same of xPos.
    ///
    /// # Errors
    /// If the spec is refused.
    pub fn xpos(gpu: &Gpu, xpos: &XPos) -> Result<Self> {
        xpos.check()?;
        Ok(Self { gpu: gpu.clone(), spec: Spec::XPos(xpos.clone()), plans: Default::default() })
    }

    /// The plan for an element type.
    ///
    /// # Errors
    /// If the kernels cannot be loaded, or the device has no memory for the tables.
    pub fn of<T: Scalar>(&self) -> Result<&RopePlan<T>> {
        let plan = &self.plans[["f32", "f16", "bf16"].iter().position(|name| *name == T::NAME).unwrap_or(0)];
        if plan.get().is_none() {
            let made: RopePlan<T> = match &self.spec {
                Spec::Rope(rope) => RopePlan::new(&self.gpu, rope)?,
                Spec::XPos(xpos) => RopePlan::xpos(&self.gpu, xpos)?,
            };
            // Of two threads that make it at once, one keeps its own.
            let _ = plan.set(Box::new(made));
        }
        let found = plan.get().and_then(|plan| plan.downcast_ref());
        found.ok_or_else(|| Error::Value(format!("there is no plan for {}", T::NAME)))
    }
}

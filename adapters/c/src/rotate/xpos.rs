//! xPos: rotated queries shrink with their position, keys grow.

use posenc::rotate::{XPos, XPosPlan};
use posenc::{Gpu, Scalar};

use crate::rotate::rope::{direction, rope};
use crate::rotate::{PosencRopeCall, PosencRopeSpec};
use crate::{
    Failure, PosencGpu, PosencStatus, Versioned, call, free, make, make_plan, plans, switch, versioned, with_plan,
};

/// What to compute.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencXPosSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencXPosSpec)`
    pub size: u32,
    /// the rotation
    pub rope: PosencRopeSpec,
    /// the offset of zeta: 0.4 in the paper
    pub gamma: f64,
    /// positions over which a pair shrinks by its zeta: 512 in the paper
    pub scale_base: f64,
    /// the position where nothing shrinks
    pub center: i64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers.
unsafe impl Versioned for PosencXPosSpec {}

/// xPos on a device, for one element type.
pub struct PosencXPos {
    plan: plans!(XPosPlan),
    gpu: Gpu,
}

/// Makes a plan: uploads the frequencies and factors and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_xpos_new(
    gpu: *const PosencGpu,
    spec: *const PosencXPosSpec,
    element: u32,
    out: *mut *mut PosencXPos,
) -> PosencStatus {
    // SAFETY: as the caller promises, what `rope` points to too.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let rope = rope(versioned("rope", &spec.rope)?)?;
            let PosencXPosSpec { gamma, scale_base, center, .. } = *spec;
            let spec = XPos { rope, gamma, scale_base, center };
            Ok(PosencXPos { plan: make_plan!(element, T => XPosPlan::<T>::new(gpu, &spec)?), gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_xpos_free(xpos: *mut PosencXPos) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(xpos) }
}

/// Rotates and scales queries, or keys, or both, in one kernel. A call has no table.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_xpos_rotate(xpos: *const PosencXPos, call: *const PosencRopeCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("xpos", xpos, call, |xpos, call| with_plan!(&xpos.plan, plan => rotate(plan, &xpos.gpu, call)))
    }
}

fn rotate<T: Scalar>(plan: &XPosPlan<T>, gpu: &Gpu, call: &PosencRopeCall) -> Result<(), Failure> {
    if call.table.cos.data != 0 {
        return Err(Failure::argument("xPos takes its angles from the spec, the call has a table".into()));
    }
    let direction = direction(call)?;
    let positions = call.positions.get(gpu)?;
    let positions = positions.positions()?;
    if switch("packed", call.packed)? {
        let (mut x, q, k) = call.packed::<T>(gpu)?;
        return Ok(plan.rotate_packed(&mut x, q, k, positions, direction)?);
    }
    let (mut q, mut q_out) = (call.q.x.optional(gpu, "q")?, call.q.out.optional(gpu, "q_out")?);
    let (mut k, mut k_out) = (call.k.x.optional(gpu, "k")?, call.k.out.optional(gpu, "k_out")?);
    let (q, k) = (call.q.operand("q", &mut q, &mut q_out)?, call.k.operand("k", &mut k, &mut k_out)?);
    match (q, k) {
        (Some(q), k) => Ok(plan.rotate(q, k, positions, direction)?),
        (None, Some(k)) => Ok(plan.rotate_keys(k, positions, direction)?),
        (None, None) => Err(Failure::argument("q and k are null".into())),
    }
}

//! How one scalar function becomes an instruction for 32 lanes.
//!
//! A register is an array of 32 values in the warp's register file, a predicate is a mask of 32 bits. The functions
//! [`un`], [`bin`], [`tri`] ... turn a plain closure over scalars into a [`Sem`], so that the instruction table reads
//! like the PTX manual. Each is compiled twice, for any x86-64 and for one with AVX2 and FMA, and the better one is
//! taken when a module is loaded.

use super::{Cx, Exec, Flow, Op};

/// Threads of a warp.
pub(crate) const LANES: usize = 32;
/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// What a register of an instruction's operand must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Kind {
    W16,
    W32,
    W64,
    W128,
    /// 32 bits that hold a single, so that `1.0` as a literal means the single
    F32,
    /// 64 bits that hold a double
    F64,
    Pred,
}

impl Kind {
    /// Bytes per lane in the register file; a predicate is one word for all lanes.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::W16 => 2,
            Self::W32 | Self::F32 => 4,
            Self::W64 | Self::F64 => 8,
            Self::W128 => 16,
            Self::Pred => 0,
        }
    }
}

/// A value of one lane.
pub(crate) trait Lane: Copy + Default + 'static {
    /// What its register must be.
    const KIND: Kind;
}

macro_rules! lanes {
    ($($ty:ty => $kind:ident),*) => { $(impl Lane for $ty { const KIND: Kind = Kind::$kind; })* };
}
lanes!(u16 => W16, i16 => W16, u32 => W32, i32 => W32, u64 => W64, i64 => W64, u128 => W128, f32 => F32, f64 => F64);

/// A semantic: the function that runs it and the registers it wants.
#[derive(Clone)]
pub(crate) struct Sem {
    /// Runs it for one warp.
    pub(crate) exec: Exec,
    /// Results.
    pub(crate) dst: &'static [Kind],
    /// Sources.
    pub(crate) src: &'static [Kind],
    /// What stands in [`Op::imm`], where the instruction needs a constant.
    pub(crate) imm: u64,
    /// The last operand is a literal that goes to [`Op::imm`].
    pub(crate) literal: bool,
}

impl Sem {
    /// A semantic without constants.
    pub(crate) fn new(exec: Exec, dst: &'static [Kind], src: &'static [Kind]) -> Self {
        Self { exec, dst, src, imm: 0, literal: false }
    }

    /// With a constant.
    pub(crate) fn imm(self, imm: u64) -> Self {
        Self { imm, ..self }
    }
}

/// The closure `F`, which captures nothing and so has no bytes.
#[inline(always)]
fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a semantic must capture nothing") };
    // SAFETY: a type without bytes that is Copy has exactly one value, and it is read from nowhere.
    unsafe { std::ptr::NonNull::<F>::dangling().as_ptr().read() }
}

/// Whether the second compilation may run here.
pub(crate) fn wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static WIDE: OnceLock<bool> = OnceLock::new();
        *WIDE.get_or_init(|| {
            // the plain compilation can be asked for, so that it is tested on machines that would not take it
            std::env::var_os("EMULATOR_PLAIN").is_none()
                && std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("fma")
                && std::is_x86_feature_detected!("bmi2")
                && std::is_x86_feature_detected!("lzcnt")
                && std::is_x86_feature_detected!("popcnt")
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Writes `value` to the lanes in `mask`.
///
/// # Safety
/// `at` is a register of kind `D` in the current frame.
#[inline(always)]
pub(crate) unsafe fn put<D: Lane>(cx: &mut Cx, at: u32, value: &[D; LANES], mask: u32) {
    // SAFETY: the caller's promise.
    let slot = unsafe { &mut *cx.regs.add(at as usize).cast::<[D; LANES]>() };
    if mask == FULL {
        *slot = *value;
    } else {
        for i in 0..LANES {
            slot[i] = if mask >> i & 1 != 0 { value[i] } else { slot[i] };
        }
    }
}

/// Reads a register.
///
/// # Safety
/// `at` is a register of kind `A` in the current frame.
#[inline(always)]
pub(crate) unsafe fn get<A: Lane>(cx: &Cx, at: u32) -> [A; LANES] {
    // SAFETY: the caller's promise.
    unsafe { *cx.regs.add(at as usize).cast::<[A; LANES]>() }
}

/// Reads a predicate.
///
/// # Safety
/// `at` is a predicate in the current frame.
#[inline(always)]
pub(crate) unsafe fn get_pred(cx: &Cx, at: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { *cx.regs.add(at as usize).cast::<u32>() }
}

/// Writes the lanes in `mask` of a predicate.
///
/// # Safety
/// `at` is a predicate in the current frame.
#[inline(always)]
pub(crate) unsafe fn put_pred(cx: &mut Cx, at: u32, value: u32, mask: u32) {
    // SAFETY: the caller's promise.
    let slot = unsafe { &mut *cx.regs.add(at as usize).cast::<u32>() };
    *slot = (*slot & !mask) | (value & mask);
}

/// Makes the two compilations of a body.
macro_rules! twice {
    ($plain:ident, $wide:ident, [$($g:ident : $b:path),*], $f:ident : $fb:path, $cx:ident, $op:ident, $mask:ident, $body:block) => {
        #[inline(always)]
        unsafe fn body<$($g: $b,)* $f: $fb + Copy>($cx: &mut Cx, $op: &Op, $mask: u32) -> Flow $body
        unsafe fn $plain<$($g: $b,)* $f: $fb + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
            // SAFETY: the same promise as the caller's.
            unsafe { body::<$($g,)* $f>(cx, op, mask) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        unsafe fn $wide<$($g: $b,)* $f: $fb + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
            // SAFETY: the same promise as the caller's.
            unsafe { body::<$($g,)* $f>(cx, op, mask) }
        }
    };
}

macro_rules! pick {
    ($plain:expr, $wide:expr) => {{
        #[cfg(target_arch = "x86_64")]
        let exec: Exec = if wide() { $wide } else { $plain };
        #[cfg(not(target_arch = "x86_64"))]
        let exec: Exec = $plain;
        exec
    }};
}

/// `d = f(a)`
pub(crate) fn un<A: Lane, D: Lane, F: Fn(A) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, D: Lane], F: Fn(A) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let a = get::<A>(cx, op.a);
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                d[i] = conjure::<F>()(a[i]);
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, D, F>, vector::<A, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND] })
}

/// `d = f(a)` for functions so costly that only active lanes are computed.
pub(crate) fn un_each<A: Lane, D: Lane, F: Fn(A) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, D: Lane], F: Fn(A) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let a = get::<A>(cx, op.a);
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    d[i] = conjure::<F>()(a[i]);
                }
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, D, F>, vector::<A, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND] })
}

/// `d = f(a, imm)` with a constant of the instruction, such as its rounding.
pub(crate) fn un_imm<A: Lane, D: Lane, F: Fn(A, u32) -> D + Copy>(imm: u32, _: F) -> Sem {
    twice!(plain, vector, [A: Lane, D: Lane], F: Fn(A, u32) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let a = get::<A>(cx, op.a);
            let imm = op.imm as u32;
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    d[i] = conjure::<F>()(a[i], imm);
                }
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, D, F>, vector::<A, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND] }).imm(imm.into())
}

/// `d = f(a, b)`
pub(crate) fn bin<A: Lane, B: Lane, D: Lane, F: Fn(A, B) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, B: Lane, D: Lane], F: Fn(A, B) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (get::<A>(cx, op.a), get::<B>(cx, op.b));
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                d[i] = conjure::<F>()(a[i], b[i]);
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, B, D, F>, vector::<A, B, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, B::KIND] })
}

/// `d = f(a, b)` on active lanes only.
pub(crate) fn bin_each<A: Lane, B: Lane, D: Lane, F: Fn(A, B) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, B: Lane, D: Lane], F: Fn(A, B) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (get::<A>(cx, op.a), get::<B>(cx, op.b));
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    d[i] = conjure::<F>()(a[i], b[i]);
                }
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, B, D, F>, vector::<A, B, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, B::KIND] })
}

/// `d = f(a, b, c)`
pub(crate) fn tri<A: Lane, B: Lane, C: Lane, D: Lane, F: Fn(A, B, C) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, B: Lane, C: Lane, D: Lane], F: Fn(A, B, C) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b, c) = (get::<A>(cx, op.a), get::<B>(cx, op.b), get::<C>(cx, op.c));
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                d[i] = conjure::<F>()(a[i], b[i], c[i]);
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, B, C, D, F>, vector::<A, B, C, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, B::KIND, C::KIND] })
}

/// `d = f(a, b, c)` on active lanes only.
pub(crate) fn tri_each<A: Lane, B: Lane, C: Lane, D: Lane, F: Fn(A, B, C) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, B: Lane, C: Lane, D: Lane], F: Fn(A, B, C) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b, c) = (get::<A>(cx, op.a), get::<B>(cx, op.b), get::<C>(cx, op.c));
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                if mask >> i & 1 != 0 {
                    d[i] = conjure::<F>()(a[i], b[i], c[i]);
                }
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, B, C, D, F>, vector::<A, B, C, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, B::KIND, C::KIND] })
}

/// `d = f(a, b, carry)` with the carry flag of the frame, a predicate in [`Op::e`]; bit 0 of `imm`: the flag is read,
/// bit 1: it is written.
pub(crate) fn carry<A: Lane, F: Fn(A, A, bool) -> (A, bool) + Copy>(_: F) -> Sem {
    unsafe fn run<A: Lane, F: Fn(A, A, bool) -> (A, bool) + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (get::<A>(cx, op.a), get::<A>(cx, op.b));
            let flag = if op.imm & 1 != 0 { get_pred(cx, op.e) } else { 0 };
            let (mut d, mut out) = ([A::default(); LANES], 0);
            for i in 0..LANES {
                let (value, carried) = conjure::<F>()(a[i], b[i], flag >> i & 1 != 0);
                d[i] = value;
                out |= u32::from(carried) << i;
            }
            put(cx, op.d, &d, mask);
            if op.imm & 2 != 0 {
                put_pred(cx, op.e, out, mask);
            }
        }
        Flow::Next
    }
    Sem::new(run::<A, F>, const { &[A::KIND] }, const { &[A::KIND, A::KIND] })
}

/// As [`carry`], with a third source: `d = f(a, b, c, carry)`.
pub(crate) fn carry_mad<A: Lane, F: Fn(A, A, A, bool) -> (A, bool) + Copy>(_: F) -> Sem {
    unsafe fn run<A: Lane, F: Fn(A, A, A, bool) -> (A, bool) + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b, c) = (get::<A>(cx, op.a), get::<A>(cx, op.b), get::<A>(cx, op.c));
            let flag = if op.imm & 1 != 0 { get_pred(cx, op.e) } else { 0 };
            let (mut d, mut out) = ([A::default(); LANES], 0);
            for i in 0..LANES {
                let (value, carried) = conjure::<F>()(a[i], b[i], c[i], flag >> i & 1 != 0);
                d[i] = value;
                out |= u32::from(carried) << i;
            }
            put(cx, op.d, &d, mask);
            if op.imm & 2 != 0 {
                put_pred(cx, op.e, out, mask);
            }
        }
        Flow::Next
    }
    Sem::new(run::<A, F>, const { &[A::KIND] }, const { &[A::KIND, A::KIND, A::KIND] })
}

/// `d = f(a, b, c, immediate)`; the immediate is the last operand and a literal (`lop3`, `prmt` modes).
pub(crate) fn tri_imm<A: Lane, D: Lane, F: Fn(A, A, A, u32) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, D: Lane], F: Fn(A, A, A, u32) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b, c) = (get::<A>(cx, op.a), get::<A>(cx, op.b), get::<A>(cx, op.c));
            let imm = op.imm as u32;
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                d[i] = conjure::<F>()(a[i], b[i], c[i], imm);
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, D, F>, vector::<A, D, F>);
    Sem { literal: true, ..Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, A::KIND, A::KIND] }) }
}

/// `d = f(a, b, c, e)`: four registers; the fourth's place is in `imm`.
pub(crate) fn quad<A: Lane, B: Lane, C: Lane, E: Lane, D: Lane, F: Fn(A, B, C, E) -> D + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane, B: Lane, C: Lane, E: Lane, D: Lane], F: Fn(A, B, C, E) -> D, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b, c) = (get::<A>(cx, op.a), get::<B>(cx, op.b), get::<C>(cx, op.c));
            let e = get::<E>(cx, op.imm as u32);
            let mut d = [D::default(); LANES];
            for i in 0..LANES {
                d[i] = conjure::<F>()(a[i], b[i], c[i], e[i]);
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, B, C, E, D, F>, vector::<A, B, C, E, D, F>);
    Sem::new(exec, const { &[D::KIND] }, const { &[A::KIND, B::KIND, C::KIND, E::KIND] })
}

/// `p = f(a, b)`, combined with the predicate `c` by the operator that lowering put into `op.imm`; the complement, where
/// a second destination is wanted, goes to `op.e`.
pub(crate) fn cmp<A: Lane, F: Fn(A, A) -> bool + Copy>(_: F) -> Sem {
    twice!(plain, vector, [A: Lane], F: Fn(A, A) -> bool, cx, op, mask, {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (get::<A>(cx, op.a), get::<A>(cx, op.b));
            let mut bits = [0u32; LANES];
            for i in 0..LANES {
                bits[i] = u32::from(conjure::<F>()(a[i], b[i])) << i;
            }
            let found = bits.iter().fold(0, |all, bit| all | bit);
            let combined = super::table::combine(op.imm as u8, found, op.c, cx);
            put_pred(cx, op.d, combined, mask);
            if op.e != super::NONE {
                let other = super::table::combine(op.imm as u8, !found, op.c, cx);
                put_pred(cx, op.e, other, mask);
            }
        }
        Flow::Next
    });
    let exec = pick!(plain::<A, F>, vector::<A, F>);
    Sem::new(exec, const { &[Kind::Pred] }, const { &[A::KIND, A::KIND] })
}

/// `d = f(a, b)` of two predicates, for all lanes at once.
pub(crate) fn pred<F: Fn(u32, u32) -> u32 + Copy>(_: F) -> Sem {
    unsafe fn run<F: Fn(u32, u32) -> u32 + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: lowering gave predicates.
        unsafe {
            let b = if op.b == super::NONE { 0 } else { get_pred(cx, op.b) };
            let value = conjure::<F>()(get_pred(cx, op.a), b);
            put_pred(cx, op.d, value, mask);
        }
        Flow::Next
    }
    Sem::new(run::<F>, &[Kind::Pred], &[Kind::Pred, Kind::Pred])
}

/// `d = p ? a : b`
pub(crate) fn select<A: Lane>() -> Sem {
    unsafe fn run<A: Lane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (get::<A>(cx, op.a), get::<A>(cx, op.b));
            let p = get_pred(cx, op.c);
            let mut d = b;
            for i in 0..LANES {
                d[i] = if p >> i & 1 != 0 { a[i] } else { b[i] };
            }
            put(cx, op.d, &d, mask);
        }
        Flow::Next
    }
    Sem::new(run::<A>, const { &[A::KIND] }, const { &[A::KIND, A::KIND, Kind::Pred] })
}

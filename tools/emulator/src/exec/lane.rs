//! How one scalar function becomes an instruction for 32 lanes.
//!
//! A register is an array of 32 values in the warp's register file, a predicate is a mask of 32 bits. The functions
//! [`un`], [`bin`], [`tri`] ... turn a plain closure over scalars into a [`Sem`], so that the instruction table reads
//! like the PTX manual.
//!
//! Each closure is compiled twice, and the better one is taken when a module is loaded: for a machine with AVX2 and FMA
//! as vector code, for any other x86-64 as a loop over active lanes, which costs the compiler little. What is rare (a
//! directed rounding, a saturation) is one closure with its modifiers in a constant, run lane by lane: the table's
//! length is what a build of this package costs.

use super::machine::{Cx, Exec, Flow, Op};
use super::operand::{FULL, Kind, LANES, NONE};

/// A value of one lane.
pub(crate) trait Lane: Copy + Default + 'static {
    /// What its register must be.
    const KIND: Kind;
}

macro_rules! lanes {
    ($($ty:ty => $kind:ident),*) => { $(impl Lane for $ty { const KIND: Kind = Kind::$kind; })* };
}

lanes!(u16 => W16, i16 => W16, u32 => W32, i32 => W32, u64 => W64, i64 => W64, u128 => W128, f32 => F32, f64 => F64);

/// How an instruction runs and the registers it wants: one constant per line of the table.
pub(crate) struct Run {
    plain: Exec,
    wide: Exec,
    /// The result.
    pub(crate) dst: Kind,
    /// Sources.
    pub(crate) src: &'static [Kind],
}

/// A semantic: how it runs, and the constants that stand in [`Op::imm`].
#[derive(Clone, Copy)]
pub(crate) struct Sem {
    pub(crate) run: &'static Run,
    pub(crate) imm: u64,
    /// The last operand is a literal that goes to [`Op::imm`].
    pub(crate) literal: bool,
}

impl Sem {
    #[inline(always)]
    fn new(run: &'static Run) -> Self {
        Self { run, imm: 0, literal: false }
    }

    /// With a constant.
    pub(crate) fn imm(self, imm: u64) -> Self {
        Self { imm, ..self }
    }

    /// With a constant that is the instruction's last operand.
    pub(crate) fn literal(self) -> Self {
        Self { literal: true, ..self }
    }

    /// The better of its compilations on this machine.
    pub(crate) fn exec(&self) -> Exec {
        if wide() { self.run.wide } else { self.run.plain }
    }
}

/// A [`Run`] as a constant; without a second compilation where there is none for this architecture.
macro_rules! run {
    ($plain:expr, $wide:expr, $dst:expr, $src:expr) => {
        const {
            #[cfg(target_arch = "x86_64")]
            let wide: Exec = $wide;
            #[cfg(not(target_arch = "x86_64"))]
            let wide: Exec = $plain;
            &Run { plain: $plain, wide, dst: $dst, src: $src }
        }
    };
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

/// What an instruction makes of one lane of its operands.
trait PerLane {
    type Out: Lane;
    /// Where the operands stand.
    type From: Copy;

    /// # Safety
    /// The operation's registers are of the kinds of the operands, in the current frame.
    unsafe fn from(cx: &Cx, op: &Op) -> Self::From;

    /// # Safety
    /// `i` is a lane.
    unsafe fn lane(from: Self::From, i: usize) -> Self::Out;
}

/// All lanes at once, which the compiler turns into vectors; lanes not in the mask are computed and dropped.
#[inline(always)]
unsafe fn run_all<L: PerLane, const WIDE: bool>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave registers of these kinds.
    unsafe {
        let from = L::from(cx, op);
        let mut d = [L::Out::default(); LANES];
        for i in 0..LANES {
            d[i] = L::lane(from, i);
        }
        let slot = cx.regs.add(op.d as usize).cast::<[L::Out; LANES]>();
        if mask == FULL {
            *slot = d;
        } else {
            blend::<L::Out, WIDE>(slot, &d, mask);
        }
    }
    Flow::Next
}

/// One active lane after another: for functions that no vector instruction computes, and little to compile.
#[inline(always)]
unsafe fn run_each<L: PerLane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave registers of these kinds; a lane's operands are read before its result is written.
    unsafe {
        let from = L::from(cx, op);
        let to = cx.regs.add(op.d as usize).cast::<L::Out>();
        let mut left = mask;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            to.add(i).write(L::lane(from, i));
            left &= left - 1;
        }
    }
    Flow::Next
}

unsafe fn all_plain<L: PerLane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // where the host has better vectors these are for the rare machine without, and for the compiler's time
    // SAFETY: the same promise as the caller's.
    unsafe {
        if cfg!(target_arch = "x86_64") { run_each::<L>(cx, op, mask) } else { run_all::<L, false>(cx, op, mask) }
    }
}

unsafe fn each_plain<L: PerLane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the same promise as the caller's.
    unsafe { run_each::<L>(cx, op, mask) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn all_wide<L: PerLane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the same promise as the caller's.
    unsafe { run_all::<L, true>(cx, op, mask) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn each_wide<L: PerLane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the same promise as the caller's.
    unsafe { run_each::<L>(cx, op, mask) }
}

/// Writes the lanes in `mask`, once for each width.
///
/// # Safety
/// `slot` is a register of kind `D`.
#[inline(always)]
unsafe fn blend<D: Lane, const WIDE: bool>(slot: *mut [D; LANES], value: &[D; LANES], mask: u32) {
    macro_rules! cast {
        ($($width:literal $ty:ident),*) => {
            match size_of::<D>() {
                // SAFETY: the caller's promise; the types have the same size and any bits.
                $($width => unsafe {
                    let (slot, value) = (slot.cast::<[$ty; LANES]>(), std::ptr::from_ref(value).cast::<[$ty; LANES]>());
                    #[cfg(target_arch = "x86_64")]
                    if WIDE {
                        return blend_wide::<$ty>(&mut *slot, &*value, mask);
                    }
                    blend_plain::<$ty>(&mut *slot, &*value, mask);
                },)*
                _ => unreachable!("no register is so wide"),
            }
        };
    }
    cast!(2 u16, 4 u32, 8 u64, 16 u128);
}

#[inline(never)]
fn blend_plain<D: Copy>(slot: &mut [D; LANES], value: &[D; LANES], mask: u32) {
    for i in 0..LANES {
        slot[i] = if mask >> i & 1 != 0 { value[i] } else { slot[i] };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline(never)]
fn blend_wide<D: Copy>(slot: &mut [D; LANES], value: &[D; LANES], mask: u32) {
    for i in 0..LANES {
        slot[i] = if mask >> i & 1 != 0 { value[i] } else { slot[i] };
    }
}

/// Declares the functions that make a [`Sem`] of a closure: its operands and where their registers stand in an [`Op`],
/// perhaps a constant of the instruction after them, and the names of the functions that run it on all lanes or on each.
macro_rules! shapes {
    ($(
        $(#[$doc:meta])*
        $Shape:ident($($arg:ident: $A:ident @ $place:ident),* $(; $imm:ident: $I:ty)?) { $($how:ident $name:ident),* }
    )*) => { $(
        struct $Shape<$($A,)* D, F>(std::marker::PhantomData<($($A,)* D, F)>);

        impl<$($A: Lane,)* D: Lane, F: Fn($($A,)* $($I)?) -> D + Copy> PerLane for $Shape<$($A,)* D, F> {
            type Out = D;
            type From = ($(*const $A,)* $($I,)?);

            #[inline(always)]
            unsafe fn from(cx: &Cx, op: &Op) -> Self::From {
                // SAFETY: the caller's promise.
                unsafe { ($(cx.regs.add(op.$place as usize).cast_const().cast::<$A>(),)* $(op.imm as $I,)?) }
            }

            #[inline(always)]
            unsafe fn lane(($($arg,)* $($imm,)?): Self::From, i: usize) -> D {
                // SAFETY: the caller's promise.
                unsafe { conjure::<F>()($(*$arg.add(i),)* $($imm)?) }
            }
        }

        shapes!(@makers [$(#[$doc])*] $Shape [$($A)*] [$($imm: $I)?] $($how $name),*);
    )* };
    (@makers $doc:tt $Shape:ident $A:tt $imm:tt $($how:ident $name:ident),*) => {
        $( shapes!(@maker $doc $Shape $A $imm $how $name); )*
    };
    (@maker [$(#[$doc:meta])*] $Shape:ident [$($A:ident)*] [$($imm:ident: $I:ty)?] $how:ident $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name<$($A: Lane,)* D: Lane, F: Fn($($A,)* $($I)?) -> D + Copy>($($imm: $I,)? _: F) -> Sem {
            Sem::new(shapes!(@run $how $Shape<$($A,)* D, F>, D::KIND, &[$($A::KIND),*]))$(.imm($imm.into()))?
        }
    };
    (@run all $S:ty, $dst:expr, $src:expr) => { run!(all_plain::<$S>, all_wide::<$S>, $dst, $src) };
    (@run each $S:ty, $dst:expr, $src:expr) => { run!(each_plain::<$S>, each_wide::<$S>, $dst, $src) };
}

shapes! {
    /// `d = f(a)`
    Un(a: A @ a) { all un, each un_each }
    /// `d = f(a, b)`
    Bin(a: A @ a, b: B @ b) { all bin }
    /// `d = f(a, b, c)`
    Tri(a: A @ a, b: B @ b, c: C @ c) { all tri }
    /// `d = f(a, b, c, e)`: four registers; the fourth's place is in `imm`.
    Quad(a: A @ a, b: B @ b, c: C @ c, e: E @ imm) { all quad }
    /// `d = f(a, imm)` with a constant of the instruction, such as its rounding.
    UnImm(a: A @ a; imm: u32) { each un_imm }
    /// `d = f(a, b, imm)`
    BinImm(a: A @ a, b: B @ b; imm: u32) { each bin_imm }
    /// `d = f(a, b, c, imm)`
    TriImm(a: A @ a, b: B @ b, c: C @ c; imm: u32) { each tri_imm, all tri_imm_all }
}

/// `d = f(a, b, carry)` with the carry flag of the frame, a predicate in [`Op::e`]; bit 0 of `imm`: the flag is read,
/// bit 1: it is written.
#[inline(always)]
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
    Sem::new(run!(run::<A, F>, run::<A, F>, A::KIND, &[A::KIND, A::KIND]))
}

/// As [`carry`], with a third source: `d = f(a, b, c, carry)`.
#[inline(always)]
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
    Sem::new(run!(run::<A, F>, run::<A, F>, A::KIND, &[A::KIND, A::KIND, A::KIND]))
}

/// In a comparison's constant beside the code of [`combine`]: the result is its opposite.
pub(crate) const FLIP: u64 = 8;

/// Combines a comparison with the predicate at `at`: bits 0-1 of `code` the operator, bit 2 negates the predicate.
///
/// # Safety
/// `at` is a predicate of the frame, or unused where `code` is 0.
#[inline(always)]
unsafe fn combine(code: u8, found: u32, at: u32, cx: &Cx) -> u32 {
    if code & 3 == 0 {
        return found;
    }
    // SAFETY: the caller's promise.
    let other = unsafe { get_pred(cx, at) };
    let other = if code & 4 != 0 { !other } else { other };
    match code & 3 {
        1 => found & other,
        2 => found | other,
        _ => found ^ other,
    }
}

/// The end of every comparison: `found` in the lanes of `mask`, turned round and combined as the constant says.
///
/// # Safety
/// The operation's predicates are of the frame.
#[inline]
unsafe fn compared(cx: &mut Cx, op: &Op, mask: u32, found: u32) -> Flow {
    let found = if op.imm & FLIP != 0 { !found } else { found };
    // SAFETY: the caller's promise.
    unsafe {
        let combined = combine(op.imm as u8, found, op.c, cx);
        put_pred(cx, op.d, combined, mask);
        if op.e != NONE {
            let other = combine(op.imm as u8, !found, op.c, cx);
            put_pred(cx, op.e, other, mask);
        }
    }
    Flow::Next
}

/// `p = f(a, b)`, combined with the predicate `c` by the operator that lowering put into `op.imm`; the complement, where
/// a second destination is wanted, goes to `op.e`.
#[inline(always)]
pub(crate) fn cmp<A: Lane, F: Fn(A, A) -> bool + Copy>(_: F) -> Sem {
    #[inline(always)]
    unsafe fn found<A: Lane, F: Fn(A, A) -> bool + Copy>(cx: &Cx, op: &Op, mask: u32, vectors: bool) -> u32 {
        // SAFETY: lowering gave registers of these kinds.
        unsafe {
            let (a, b) = (cx.regs.add(op.a as usize).cast::<A>(), cx.regs.add(op.b as usize).cast::<A>());
            let test = |i: usize| u32::from(conjure::<F>()(*a.add(i), *b.add(i))) << i;
            if vectors {
                let mut bits = [0u32; LANES];
                for i in 0..LANES {
                    bits[i] = test(i);
                }
                return bits.iter().fold(0, |all, bit| all | bit);
            }
            let (mut left, mut all) = (mask, 0);
            while left != 0 {
                all |= test(left.trailing_zeros() as usize);
                left &= left - 1;
            }
            all
        }
    }
    unsafe fn plain<A: Lane, F: Fn(A, A) -> bool + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the same promise as the caller's.
        unsafe {
            let found = found::<A, F>(cx, op, mask, cfg!(not(target_arch = "x86_64")));
            compared(cx, op, mask, found)
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    unsafe fn vector<A: Lane, F: Fn(A, A) -> bool + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: the same promise as the caller's.
        unsafe {
            let found = found::<A, F>(cx, op, mask, true);
            compared(cx, op, mask, found)
        }
    }
    Sem::new(run!(plain::<A, F>, vector::<A, F>, Kind::Pred, &[A::KIND, A::KIND]))
}

/// `d = f(a, b)` of two predicates, for all lanes at once.
#[inline(always)]
pub(crate) fn pred<F: Fn(u32, u32) -> u32 + Copy>(_: F) -> Sem {
    unsafe fn run<F: Fn(u32, u32) -> u32 + Copy>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
        // SAFETY: lowering gave predicates.
        unsafe {
            let b = if op.b == NONE { 0 } else { get_pred(cx, op.b) };
            let value = conjure::<F>()(get_pred(cx, op.a), b);
            put_pred(cx, op.d, value, mask);
        }
        Flow::Next
    }
    Sem::new(run!(run::<F>, run::<F>, Kind::Pred, &[Kind::Pred, Kind::Pred]))
}

/// `d = p ? a : b`
#[inline(always)]
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
    Sem::new(run!(run::<A>, run::<A>, A::KIND, &[A::KIND, A::KIND, Kind::Pred]))
}

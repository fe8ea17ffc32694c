//! The table of instruction semantics: one line per instruction and type, a plain function of scalars.
//!
//! Instructions that touch memory, other lanes or the program counter are in the files that `mod.rs` lists after this one.

use super::convert::select_cvt;
use super::float::{
    self, BF16, F16, F32, F64, FTZ, Format, NAN16, NAN32, RELU, RN, Round, SAT, canonical, finish_if, flush, flush_if,
    round_of, saturate,
};
use super::lane::*;
use super::mods::Mods;
use super::operand::Class;
use crate::ptx::ast::Ty;

macro_rules! by_flag {
    ($flag:expr, $NAME:ident => $body:expr) => {
        if $flag {
            const $NAME: bool = true;
            $body
        } else {
            const $NAME: bool = false;
            $body
        }
    };
}

// ---- single precision ------------------------------------------------------------------------------------------------

#[inline(always)]
fn finish32<const FTZ: bool, const SAT: bool>(value: f32) -> f32 {
    saturate::<SAT>(flush::<FTZ>(canonical(value)))
}

#[inline(always)]
fn add32<const FTZ: bool, const SAT: bool>(a: f32, b: f32) -> f32 {
    finish32::<FTZ, SAT>(flush::<FTZ>(a) + flush::<FTZ>(b))
}

#[inline(always)]
fn mul32<const FTZ: bool, const SAT: bool>(a: f32, b: f32) -> f32 {
    finish32::<FTZ, SAT>(flush::<FTZ>(a) * flush::<FTZ>(b))
}

#[inline(always)]
fn fma32<const FTZ: bool, const SAT: bool>(a: f32, b: f32, c: f32) -> f32 {
    finish32::<FTZ, SAT>(flush::<FTZ>(a).mul_add(flush::<FTZ>(b), flush::<FTZ>(c)))
}

#[inline(always)]
fn div32<const FTZ: bool>(a: f32, b: f32) -> f32 {
    finish32::<FTZ, false>(flush::<FTZ>(a) / flush::<FTZ>(b))
}

#[inline(always)]
fn sqrt32<const FTZ: bool>(a: f32) -> f32 {
    finish32::<FTZ, false>(flush::<FTZ>(a).sqrt())
}

// ---- directed roundings: rare, so their modifiers are a constant of the instruction ---------------------------------

/// A function of two numbers in a format, of two singles.
fn directed2(a: f32, b: f32, imm: u32, f: fn(u64, u64, Format, Round) -> u64) -> f32 {
    let (a, b) = (flush_if(a, imm), flush_if(b, imm));
    finish_if(f32::from_bits(f(a.to_bits().into(), b.to_bits().into(), F32, round_of(imm)) as u32), imm)
}

fn directed_fma(a: f32, b: f32, c: f32, imm: u32) -> f32 {
    let bits = |x: f32| u64::from(flush_if(x, imm).to_bits());
    finish_if(f32::from_bits(float::fma(bits(a), bits(b), bits(c), F32, round_of(imm)) as u32), imm)
}

fn directed_sqrt(a: f32, imm: u32) -> f32 {
    finish_if(f32::from_bits(float::sqrt(flush_if(a, imm).to_bits().into(), F32, round_of(imm)) as u32), imm)
}

/// `div.approx`: as PTX says, a divisor in 2^126 .. 2^128 gives zero, or NaN for an infinite dividend.
#[inline(always)]
fn div_approx<const FTZ: bool>(a: f32, b: f32) -> f32 {
    let (a, b) = (flush::<FTZ>(a), flush::<FTZ>(b));
    let big = b.is_finite() && b.abs() > f32::from_bits(0x7e80_0000);
    let value = if big {
        if a.is_infinite() || a.is_nan() { f32::NAN } else { 0f32.copysign(a) * 1f32.copysign(b) }
    } else {
        a / b
    };
    finish32::<FTZ, false>(value)
}

/// A function known to far more bits than a single holds, rounded once: inside every documented error.
#[inline(always)]
fn approx<const FTZ: bool>(a: f32, f: impl Fn(f64) -> f64) -> f32 {
    finish32::<FTZ, false>(f(f64::from(flush::<FTZ>(a))) as f32)
}

// which zero is smaller, and NaN only where both are (or NAN_WINS)
#[inline(always)]
fn min32<const FTZ: bool, const NAN_WINS: bool>(a: f32, b: f32) -> f32 {
    let (a, b) = (flush::<FTZ>(a), flush::<FTZ>(b));
    if a.is_nan() || b.is_nan() {
        return if NAN_WINS || (a.is_nan() && b.is_nan()) {
            f32::from_bits(NAN32)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a < b || (a == b && a.is_sign_negative()) { a } else { b }
}

#[inline(always)]
fn max32<const FTZ: bool, const NAN_WINS: bool>(a: f32, b: f32) -> f32 {
    let (a, b) = (flush::<FTZ>(a), flush::<FTZ>(b));
    if a.is_nan() || b.is_nan() {
        return if NAN_WINS || (a.is_nan() && b.is_nan()) {
            f32::from_bits(NAN32)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a > b || (a == b && a.is_sign_positive()) { a } else { b }
}

/// `.xorsign.abs`: the magnitudes compared, the sign the product's.
#[inline(always)]
fn xorsign(a: f32, b: f32, pick: impl Fn(f32, f32) -> f32) -> f32 {
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    f32::from_bits(pick(a.abs(), b.abs()).to_bits() & 0x7fff_ffff | sign)
}

#[inline(always)]
fn min64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

#[inline(always)]
fn max64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || (a == b && a.is_sign_positive()) {
        a
    } else {
        b
    }
}

// ---- half precision --------------------------------------------------------------------------------------------------

/// A 16-bit format as a type, so that one line of the table serves both.
trait Half: Copy + 'static {
    const FORMAT: float::Format;
    fn widen(bits: u16) -> f32;
    fn narrow(value: f32) -> u16;
}

#[derive(Clone, Copy)]
struct H16;
#[derive(Clone, Copy)]
struct B16;

impl Half for H16 {
    const FORMAT: float::Format = F16;
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        float::f16_to_f32(bits)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        float::f32_to_f16(value, Round::Near)
    }
}

impl Half for B16 {
    const FORMAT: float::Format = BF16;
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        float::bf16_to_f32(bits)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        float::f32_to_bf16(value, Round::Near)
    }
}

/// Subnormals to zero in a 16-bit format, where the constant says so.
#[inline(always)]
fn flush16<H: Half>(bits: u16, imm: u32) -> u16 {
    let exponent = ((1 << H::FORMAT.exp) - 1) << H::FORMAT.man;
    if imm & FTZ != 0 && u64::from(bits) & exponent == 0 { bits & 0x8000 } else { bits }
}

#[inline(always)]
fn finish16<H: Half>(bits: u16, imm: u32) -> u16 {
    let bits = flush16::<H>(bits, imm);
    match () {
        () if imm & SAT != 0 => H::narrow(saturate::<true>(H::widen(bits))),
        () if imm & RELU != 0 => relu16::<H>(bits),
        () => bits,
    }
}

// A single has more than twice a half's bits and two to spare, so rounding through it is rounding once.
#[inline(always)]
fn add16<H: Half>(a: u16, b: u16) -> u16 {
    H::narrow(H::widen(a) + H::widen(b))
}

#[inline(always)]
fn sub16<H: Half>(a: u16, b: u16) -> u16 {
    H::narrow(H::widen(a) - H::widen(b))
}

#[inline(always)]
fn mul16<H: Half>(a: u16, b: u16) -> u16 {
    H::narrow(H::widen(a) * H::widen(b))
}

/// The same with `.ftz` and `.sat`.
fn flagged16<H: Half>(a: u16, b: u16, imm: u32, f: fn(u16, u16) -> u16) -> u16 {
    finish16::<H>(f(flush16::<H>(a, imm), flush16::<H>(b, imm)), imm)
}

fn fma16<H: Half>(a: u16, b: u16, c: u16, imm: u32) -> u16 {
    let (a, b, c) = (flush16::<H>(a, imm), flush16::<H>(b, imm), flush16::<H>(c, imm));
    finish16::<H>(float::fma(a.into(), b.into(), c.into(), H::FORMAT, Round::Near) as u16, imm)
}

#[inline(always)]
fn relu16<H: Half>(bits: u16) -> u16 {
    if H::widen(bits).is_nan() {
        NAN16
    } else if bits & 0x8000 != 0 {
        0
    } else {
        bits
    }
}

#[inline(always)]
fn pick16<H: Half, const NAN_WINS: bool, const MAX: bool>(a: u16, b: u16, imm: u32) -> u16 {
    let (x, y) = (H::widen(flush16::<H>(a, imm)), H::widen(flush16::<H>(b, imm)));
    H::narrow(if MAX { max32::<false, NAN_WINS>(x, y) } else { min32::<false, NAN_WINS>(x, y) })
}

#[inline(always)]
fn fun16<H: Half>(a: u16, imm: u32, f: impl Fn(f64) -> f64) -> u16 {
    let a = flush16::<H>(a, imm);
    flush16::<H>(H::narrow(canonical(f(f64::from(H::widen(a))) as f32)), imm)
}

#[inline(always)]
fn both1(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(a as u16)) | u32::from(f((a >> 16) as u16)) << 16
}

#[inline(always)]
fn both2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[inline(always)]
fn both3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16, c as u16))
        | u32::from(f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
}

#[inline(always)]
fn pair32(a: u64, b: u64, f: impl Fn(f32, f32) -> f32) -> u64 {
    pair32x3(a, b, 0, |a, b, _| f(a, b))
}

#[inline(always)]
fn pair32x3(a: u64, b: u64, c: u64, f: impl Fn(f32, f32, f32) -> f32) -> u64 {
    let half = |x: u64, s: u32| f32::from_bits((x >> s) as u32);
    let one = |s: u32| u64::from(f(half(a, s), half(b, s), half(c, s)).to_bits());
    one(0) | one(32) << 32
}

/// One line for `f16`, `bf16` and their pairs.
macro_rules! halves {
    ($ty:expr, $H:ident, $one:expr, $two:expr) => {
        match $ty {
            Ty::F16 => {
                type $H = H16;
                $one
            }
            Ty::Bf16 => {
                type $H = B16;
                $one
            }
            Ty::F16x2 => {
                type $H = H16;
                $two
            }
            _ => {
                type $H = B16;
                $two
            }
        }
    };
}

fn half_type(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2)
}

// ---- integers --------------------------------------------------------------------------------------------------------

/// `prmt`: the fourth bit of a selector replicates the sign.
#[inline(always)]
fn prmt(a: u32, b: u32, c: u32) -> u32 {
    let pool = u64::from(b) << 32 | u64::from(a);
    let select = |i: u32| -> u32 {
        let s = c >> (4 * i) & 0xf;
        let value = (pool >> (8 * (s & 7))) as u32 & 0xff;
        let sign = 0u32.wrapping_sub(value >> 7 & 1) & 0xff;
        if s & 8 != 0 { sign } else { value }
    };
    select(0) | select(1) << 8 | select(2) << 16 | select(3) << 24
}

/// The modes of `prmt`.
const PRMT_MODES: [&str; 6] = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];

/// `prmt` in one of its modes.
fn prmt_mode(a: u32, b: u32, c: u32, mode: u32) -> u32 {
    let pool = u64::from(b) << 32 | u64::from(a);
    let byte = |i: u32| (pool >> (8 * (i & 7))) as u32 & 0xff;
    let n = c & 3;
    let select = |i: u32| match PRMT_MODES[mode as usize] {
        "f4e" => byte(n + i),
        "b4e" => byte(n.wrapping_sub(i)),
        "rc8" => byte(n),
        "ecl" => byte(n.max(i)),
        "ecr" => byte(n.min(i)),
        _ => byte(2 * (n & 1) + (i & 1)),
    };
    (0..4).fold(0, |all, i| all | select(i) << (8 * i))
}

#[inline(always)]
fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut d = 0;
    for i in 0..8u32 {
        let row = if i & 4 != 0 { a } else { !a } & if i & 2 != 0 { b } else { !b } & if i & 1 != 0 { c } else { !c };
        d |= row & 0u32.wrapping_sub(table >> i & 1);
    }
    d
}

fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let msb = bits - 1;
    let sign = if !signed || len == 0 { 0 } else { a >> (pos + len - 1).min(msb) & 1 };
    (0..bits).fold(0, |d, i| d | if i < len && pos + i <= msb { a >> (pos + i) & 1 } else { sign } << i)
}

fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    (0..len).take_while(|i| pos + i < bits).fold(b, |f, i| f & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
}

fn bfind(a: u64, bits: u32, signed: bool, shift: bool) -> u32 {
    let a = if signed && a >> (bits - 1) & 1 != 0 { !a & (u64::MAX >> (64 - bits)) } else { a };
    if a == 0 {
        return u32::MAX;
    }
    let msb = 63 - a.leading_zeros();
    if shift { bits - 1 - msb } else { msb }
}

fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |x: u32, i: u32, signed: bool| {
        let v = (x >> (8 * i)) as u8;
        if signed { i32::from(v as i8) } else { i32::from(v) }
    };
    (0..4).fold(c, |d, i| d.wrapping_add((byte(a, i, a_signed) * byte(b, i, b_signed)) as u32))
}

fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, high: bool) -> u32 {
    let half = |i: u32| {
        let v = (a >> (16 * i)) as u16;
        if a_signed { i32::from(v as i16) } else { i32::from(v) }
    };
    let byte = |i: u32| {
        let v = (b >> (8 * (i + if high { 2 } else { 0 }))) as u8;
        if b_signed { i32::from(v as i8) } else { i32::from(v) }
    };
    (0..2).fold(c, |d, i| d.wrapping_add(half(i).wrapping_mul(byte(i)) as u32))
}

fn vabsdiff4(a: u32, b: u32, c: u32, signed: bool, add: bool) -> u32 {
    let byte = |x: u32, i: u32| {
        let v = (x >> (8 * i)) as u8;
        if signed { i32::from(v as i8) } else { i32::from(v) }
    };
    let one = |i: u32| byte(a, i).abs_diff(byte(b, i));
    (0..4).fold(if add { c } else { 0 }, |d, i| if add { d.wrapping_add(one(i)) } else { d | one(i) << (8 * i) })
}

#[inline(always)]
fn mulhi_s64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

#[inline(always)]
fn mulhi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// A 24-bit operand.
#[inline(always)]
fn low24(a: u32, signed: bool) -> i64 {
    if signed { i64::from((a << 8) as i32 >> 8) } else { i64::from(a & 0xff_ffff) }
}

/// A comparison: what is computed, whether the operands change places, and in `Sem::imm` whether the result is turned
/// round. `a > b` is `b < a`, `a >= b` is `b <= a`, and each unordered relation is the opposite of an ordered one.
pub(crate) struct Relation {
    pub(crate) sem: Sem,
    pub(crate) swap: bool,
}

/// The comparison `op` of a type, for `setp` and `set`.
pub(crate) fn comparison(op: &str, ty: Ty, ftz: bool) -> Result<Relation, String> {
    // of a float: what is computed, in place of what
    let float = |op: &str| {
        Some(match op {
            "eq" | "ne" | "lt" | "le" | "num" => (op.to_owned(), false, 0),
            "gt" => ("lt".into(), true, 0),
            "ge" => ("le".into(), true, 0),
            "neu" => ("eq".into(), false, FLIP),
            "equ" => ("ne".into(), false, FLIP),
            "geu" => ("lt".into(), false, FLIP),
            "gtu" => ("le".into(), false, FLIP),
            "leu" => ("lt".into(), true, FLIP),
            "ltu" => ("le".into(), true, FLIP),
            "nan" => ("num".into(), false, FLIP),
            _ => return None,
        })
    };
    let int = |op: &str, signed: bool| {
        Some(match (op, signed) {
            ("eq", _) => ("eq".to_owned(), false, 0),
            ("ne", _) => ("eq".into(), false, FLIP),
            ("lt", _) | ("lo", false) => ("lt".into(), false, 0),
            ("gt", _) | ("hi", false) => ("lt".into(), true, 0),
            ("ge", _) | ("hs", false) => ("lt".into(), false, FLIP),
            ("le", _) | ("ls", false) => ("lt".into(), true, FLIP),
            _ => return None,
        })
    };
    let found = if ty.float() { float(op) } else { int(op, ty.signed()) };
    let Some((base, swap, flip)) = found else { return Err(format!("`.{op}` does not compare {ty:?}")) };
    macro_rules! ints {
        ($s:ty, $u:ty) => {
            match (base.as_str(), ty.signed()) {
                ("eq", _) => cmp(|a: $u, b: $u| a == b),
                (_, true) => cmp(|a: $s, b: $s| a < b),
                (_, false) => cmp(|a: $u, b: $u| a < b),
            }
        };
    }
    macro_rules! floats {
        ($t:ty, $v:expr) => {
            match base.as_str() {
                "eq" => cmp(|a: $t, b: $t| $v(a) == $v(b)),
                "ne" => cmp(|a: $t, b: $t| $v(a) < $v(b) || $v(a) > $v(b)),
                "lt" => cmp(|a: $t, b: $t| $v(a) < $v(b)),
                "le" => cmp(|a: $t, b: $t| $v(a) <= $v(b)),
                _ => cmp(|a: $t, b: $t| !$v(a).is_nan() && !$v(b).is_nan()),
            }
        };
    }
    let sem = match ty {
        Ty::B16 | Ty::U16 | Ty::S16 => ints!(i16, u16),
        Ty::B32 | Ty::U32 | Ty::S32 => ints!(i32, u32),
        Ty::B64 | Ty::U64 | Ty::S64 => ints!(i64, u64),
        Ty::F32 => by_flag!(ftz, FTZ => floats!(f32, flush::<FTZ>)),
        Ty::F64 if !ftz => floats!(f64, std::convert::identity),
        Ty::F16 if ftz => floats!(u16, |a| H16::widen(flush16::<H16>(a, FTZ))),
        Ty::F16 => floats!(u16, H16::widen),
        Ty::Bf16 if !ftz => floats!(u16, B16::widen),
        _ => return Err(format!("{ty:?} is not compared")),
    };
    Ok(Relation { sem: sem.imm(flip), swap })
}

// ---- the table -------------------------------------------------------------------------------------------------------

/// Integer types that share a line, where the sign makes no difference.
macro_rules! any_int {
    ($ty:expr, $op:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::S16 => bin(|$a: u16, $b: u16| $e),
            Ty::U32 | Ty::S32 => bin(|$a: u32, $b: u32| $e),
            Ty::U64 | Ty::S64 => bin(|$a: u64, $b: u64| $e),
            other => return Err(format!("`{}` has no type {other:?}", $op)),
        }
    };
}

/// Integer types that share a line: the signed flag is in the type.
macro_rules! int {
    ($ty:expr, $op:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 => bin(|$a: u16, $b: u16| $e),
            Ty::S16 => bin(|$a: i16, $b: i16| $e),
            Ty::U32 => bin(|$a: u32, $b: u32| $e),
            Ty::S32 => bin(|$a: i32, $b: i32| $e),
            Ty::U64 => bin(|$a: u64, $b: u64| $e),
            Ty::S64 => bin(|$a: i64, $b: i64| $e),
            other => return Err(format!("`{}` has no type {other:?}", $op)),
        }
    };
}

macro_rules! bits {
    ($ty:expr, $op:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::B16 => bin(|$a: u16, $b: u16| $e),
            Ty::B32 => bin(|$a: u32, $b: u32| $e),
            Ty::B64 => bin(|$a: u64, $b: u64| $e),
            other => return Err(format!("`{}` has no type {other:?}", $op)),
        }
    };
}

/// The semantic of a lane-wise instruction, or `None` if the opcode is not one.
pub(crate) fn select_sem(op: &str, mods: &mut Mods<'_>) -> Result<Option<(Sem, Class)>, String> {
    if op == "cvt" {
        return select_cvt(mods).map(|sem| Some((sem, Class::Convert)));
    }
    const KNOWN: &[&str] = &[
        "add",
        "sub",
        "mul",
        "mad",
        "fma",
        "div",
        "rem",
        "abs",
        "neg",
        "min",
        "max",
        "mul24",
        "mad24",
        "sad",
        "popc",
        "clz",
        "bfind",
        "brev",
        "bfe",
        "bfi",
        "bmsk",
        "szext",
        "dp4a",
        "dp2a",
        "and",
        "or",
        "xor",
        "not",
        "cnot",
        "lop3",
        "shf",
        "shl",
        "shr",
        "selp",
        "slct",
        "mov",
        "prmt",
        "rcp",
        "sqrt",
        "rsqrt",
        "ex2",
        "lg2",
        "sin",
        "cos",
        "tanh",
        "testp",
        "copysign",
        "addc",
        "subc",
        "madc",
        "fns",
        "vabsdiff4",
    ];
    if !KNOWN.contains(&op) {
        return Ok(None);
    }
    // stands after the type
    let relu = matches!(op, "min" | "max") && mods.has("relu");
    let mode = if op == "prmt" { mods.one(&PRMT_MODES) } else { None };
    let accumulates = op == "vabsdiff4" && mods.has("add");
    let ty = if op == "dp4a" || op == "dp2a" { Ty::U32 } else { mods.ty()? };
    let class = match ty {
        _ if op == "mov" || op == "selp" => Class::Move,
        _ if matches!(op, "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" | "rcp" | "sqrt") => Class::Special,
        Ty::F32 | Ty::F32x2 => Class::Float32,
        Ty::F64 => Class::Float64,
        _ if half_type(ty) => Class::Half,
        _ => Class::Integer,
    };
    let none = || Err(format!("`{op}` has no type {ty:?}"));
    let sem = match op {
        "mov" => match ty.size() {
            _ if ty == Ty::Pred => pred(|a, _| a),
            2 => un(|a: u16| a),
            4 if ty == Ty::F32 => un(|a: f32| a),
            4 => un(|a: u32| a),
            8 if ty == Ty::F64 => un(|a: f64| a),
            8 => un(|a: u64| a),
            16 => un(|a: u128| a),
            _ => return none(),
        },
        "selp" => match ty.size() {
            _ if ty == Ty::Pred => return none(),
            2 => select::<u16>(),
            4 if ty == Ty::F32 => select::<f32>(),
            4 => select::<u32>(),
            8 if ty == Ty::F64 => select::<f64>(),
            8 => select::<u64>(),
            _ => return none(),
        },
        "slct" => {
            let ftz = mods.has("ftz");
            // the type before the last is that of the choice's operands
            let (by, ty) = (ty, mods.ty()?);
            match (ty.size(), by) {
                (2, Ty::S32) => tri(|a: u16, b: u16, c: i32| if c >= 0 { a } else { b }),
                (4, Ty::S32) if ty == Ty::F32 => tri(|a: f32, b: f32, c: i32| if c >= 0 { a } else { b }),
                (4, Ty::S32) => tri(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
                (8, Ty::S32) => tri(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
                (4, Ty::F32) if ty == Ty::F32 => {
                    by_flag!(ftz, FTZ => tri(|a: f32, b: f32, c: f32| if flush::<FTZ>(c) >= 0.0 { a } else { b }))
                }
                (4, Ty::F32) => {
                    by_flag!(ftz, FTZ => tri(|a: u32, b: u32, c: f32| if flush::<FTZ>(c) >= 0.0 { a } else { b }))
                }
                (8, Ty::F32) => {
                    by_flag!(ftz, FTZ => tri(|a: u64, b: u64, c: f32| if flush::<FTZ>(c) >= 0.0 { a } else { b }))
                }
                _ => return none(),
            }
        }
        "add" | "sub" | "mul" if ty == Ty::F32 => {
            let (r, ftz, sat) = (mods.rounding().unwrap_or(RN), mods.has("ftz"), mods.has("sat"));
            let imm = float::flags(r, ftz, sat, false);
            match op {
                _ if r == RN => by_flag!(ftz, FTZ => by_flag!(sat, SAT => match op {
                    "add" => bin(add32::<FTZ, SAT>),
                    "sub" => bin(|a: f32, b: f32| add32::<FTZ, SAT>(a, -b)),
                    _ => bin(mul32::<FTZ, SAT>),
                })),
                "add" => bin_imm(imm, |a: f32, b: f32, imm| directed2(a, b, imm, float::add)),
                "sub" => bin_imm(imm, |a: f32, b: f32, imm| directed2(a, -b, imm, float::add)),
                _ => bin_imm(imm, |a: f32, b: f32, imm| directed2(a, b, imm, float::mul)),
            }
        }
        "add" | "sub" | "mul" if ty == Ty::F32x2 => {
            let (r, ftz) = (mods.rounding().unwrap_or(RN), mods.has("ftz"));
            let imm = float::flags(r, ftz, false, false);
            match op {
                _ if r == RN => by_flag!(ftz, FTZ => match op {
                    "add" => bin(|a: u64, b: u64| pair32(a, b, add32::<FTZ, false>)),
                    "sub" => bin(|a: u64, b: u64| pair32(a, b, |a, b| add32::<FTZ, false>(a, -b))),
                    _ => bin(|a: u64, b: u64| pair32(a, b, mul32::<FTZ, false>)),
                }),
                "add" => bin_imm(imm, |a: u64, b: u64, imm| pair32(a, b, |a, b| directed2(a, b, imm, float::add))),
                "sub" => bin_imm(imm, |a: u64, b: u64, imm| pair32(a, b, |a, b| directed2(a, -b, imm, float::add))),
                _ => bin_imm(imm, |a: u64, b: u64, imm| pair32(a, b, |a, b| directed2(a, b, imm, float::mul))),
            }
        }
        "fma" if ty == Ty::F32x2 => {
            let (r, ftz) = (mods.rounding().unwrap_or(RN), mods.has("ftz"));
            match r {
                RN => by_flag!(ftz, FTZ => tri(|a: u64, b: u64, c: u64| pair32x3(a, b, c, fma32::<FTZ, false>))),
                _ => tri_imm(float::flags(r, ftz, false, false), |a: u64, b: u64, c: u64, imm| {
                    pair32x3(a, b, c, |a, b, c| directed_fma(a, b, c, imm))
                }),
            }
        }
        "add" | "sub" | "mul" if ty == Ty::F64 => match (op, mods.rounding().unwrap_or(RN)) {
            ("add", RN) => bin(|a: f64, b: f64| a + b),
            ("sub", RN) => bin(|a: f64, b: f64| a - b),
            (_, RN) => bin(|a: f64, b: f64| a * b),
            ("add", r) => bin_imm(r.into(), |a: u64, b: u64, r| float::add(a, b, F64, round_of(r))),
            ("sub", r) => bin_imm(r.into(), |a: u64, b: u64, r| float::add(a, b ^ 1 << 63, F64, round_of(r))),
            (_, r) => bin_imm(r.into(), |a: u64, b: u64, r| float::mul(a, b, F64, round_of(r))),
        },
        "add" | "sub" | "mul" if half_type(ty) => {
            mods.has("rn");
            let imm = float::flags(RN, mods.has("ftz"), mods.has("sat"), false);
            macro_rules! op16 {
                ($f:ident) => {
                    halves!(
                        ty,
                        H,
                        if imm == 0 {
                            bin($f::<H>)
                        } else {
                            bin_imm(imm, |a, b, imm| flagged16::<H>(a, b, imm, $f::<H>))
                        },
                        if imm == 0 {
                            bin(|a: u32, b: u32| both2(a, b, $f::<H>))
                        } else {
                            bin_imm(imm, |a, b, imm| both2(a, b, |a, b| flagged16::<H>(a, b, imm, $f::<H>)))
                        }
                    )
                };
            }
            match op {
                "add" => op16!(add16),
                "sub" => op16!(sub16),
                _ => op16!(mul16),
            }
        }
        "add" | "sub" if mods.has("cc") => carry_op(op, ty, 2)?,
        "addc" | "subc" => {
            let write = mods.has("cc");
            carry_op(if op == "addc" { "add" } else { "sub" }, ty, 1 | u64::from(write) << 1)?
        }
        "add" if matches!(ty, Ty::U16x2 | Ty::S16x2) => bin(|a: u32, b: u32| both2(a, b, u16::wrapping_add)),
        "add" if mods.has("sat") => match ty {
            Ty::S32 => bin(|a: i32, b: i32| a.saturating_add(b)),
            _ => return none(),
        },
        "sub" if mods.has("sat") => match ty {
            Ty::S32 => bin(|a: i32, b: i32| a.saturating_sub(b)),
            _ => return none(),
        },
        "add" => any_int!(ty, op, |a, b| a.wrapping_add(b)),
        "sub" => any_int!(ty, op, |a, b| a.wrapping_sub(b)),
        "mul" => match mods.one(&["lo", "hi", "wide"]) {
            Some("lo") => any_int!(ty, op, |a, b| a.wrapping_mul(b)),
            Some("hi") => match ty {
                Ty::U16 => bin(|a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16),
                Ty::S16 => bin(|a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16),
                Ty::U32 => bin(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
                Ty::S32 => bin(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32),
                Ty::U64 => bin(mulhi_u64),
                Ty::S64 => bin(mulhi_s64),
                _ => return none(),
            },
            Some(_) => match ty {
                Ty::U16 => bin(|a: u16, b: u16| u32::from(a) * u32::from(b)),
                Ty::S16 => bin(|a: i16, b: i16| i32::from(a) * i32::from(b)),
                Ty::U32 => bin(|a: u32, b: u32| u64::from(a) * u64::from(b)),
                Ty::S32 => bin(|a: i32, b: i32| i64::from(a) * i64::from(b)),
                _ => return none(),
            },
            None => return Err("`mul` of integers needs `.lo`, `.hi` or `.wide`".into()),
        },
        "mad" if matches!(ty, Ty::F32 | Ty::F64) => float_fma(ty, mods)?,
        "mad" | "madc" if op == "madc" || mods.has("cc") => {
            let flags = if op == "madc" { 1 | u64::from(mods.has("cc")) << 1 } else { 2 };
            match (mods.one(&["lo", "hi"]), ty) {
                (Some("lo"), Ty::U32 | Ty::S32) => carry_mad(|a: u32, b: u32, c: u32, f| add3(a.wrapping_mul(b), c, f)),
                (Some(_), Ty::U32) => {
                    carry_mad(|a: u32, b: u32, c: u32, f| add3(((u64::from(a) * u64::from(b)) >> 32) as u32, c, f))
                }
                (Some(_), Ty::S32) => carry_mad(|a: u32, b: u32, c: u32, f| {
                    add3(((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32, c, f)
                }),
                (Some("lo"), Ty::U64 | Ty::S64) => {
                    carry_mad(|a: u64, b: u64, c: u64, f| add3w(a.wrapping_mul(b), c, f))
                }
                (Some(_), Ty::U64) => carry_mad(|a: u64, b: u64, c: u64, f| add3w(mulhi_u64(a, b), c, f)),
                (Some(_), Ty::S64) => {
                    carry_mad(|a: u64, b: u64, c: u64, f| add3w(mulhi_s64(a as i64, b as i64) as u64, c, f))
                }
                _ => return none(),
            }
            .imm(flags)
        }
        "mad" => match (mods.one(&["lo", "hi", "wide"]), ty) {
            (Some("lo"), Ty::U16 | Ty::S16) => tri(|a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c)),
            (Some("lo"), Ty::U32 | Ty::S32) => tri(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
            (Some("lo"), Ty::U64 | Ty::S64) => tri(|a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            (Some("hi"), Ty::U16) => {
                tri(|a: u16, b: u16, c: u16| (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c))
            }
            (Some("hi"), Ty::S16) => {
                tri(|a: i16, b: i16, c: i16| (((i32::from(a) * i32::from(b)) >> 16) as i16).wrapping_add(c))
            }
            (Some("hi"), Ty::U32) => {
                tri(|a: u32, b: u32, c: u32| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
            }
            (Some("hi"), Ty::S32) if mods.has("sat") => {
                tri(|a: i32, b: i32, c: i32| (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c))
            }
            (Some("hi"), Ty::S32) => {
                tri(|a: i32, b: i32, c: i32| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c))
            }
            (Some("hi"), Ty::U64) => tri(|a: u64, b: u64, c: u64| mulhi_u64(a, b).wrapping_add(c)),
            (Some("hi"), Ty::S64) => tri(|a: i64, b: i64, c: i64| mulhi_s64(a, b).wrapping_add(c)),
            (Some("wide"), Ty::U16) => tri(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
            (Some("wide"), Ty::S16) => tri(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
            (Some("wide"), Ty::U32) => tri(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
            (Some("wide"), Ty::S32) => tri(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
            _ => return none(),
        },
        "mul24" => match (mods.one(&["lo", "hi"]), ty) {
            (Some("lo"), Ty::U32) => bin(|a: u32, b: u32| (low24(a, false) * low24(b, false)) as u32),
            (Some("lo"), Ty::S32) => bin(|a: u32, b: u32| (low24(a, true) * low24(b, true)) as u32),
            (Some("hi"), Ty::U32) => bin(|a: u32, b: u32| ((low24(a, false) * low24(b, false)) >> 16) as u32),
            (Some("hi"), Ty::S32) => bin(|a: u32, b: u32| ((low24(a, true) * low24(b, true)) >> 16) as u32),
            _ => return none(),
        },
        "mad24" => match (mods.one(&["lo", "hi"]), ty) {
            (Some("lo"), Ty::U32) => {
                tri(|a: u32, b: u32, c: u32| ((low24(a, false) * low24(b, false)) as u32).wrapping_add(c))
            }
            (Some("lo"), Ty::S32) => {
                tri(|a: u32, b: u32, c: u32| ((low24(a, true) * low24(b, true)) as u32).wrapping_add(c))
            }
            (Some("hi"), Ty::U32) => {
                tri(|a: u32, b: u32, c: u32| (((low24(a, false) * low24(b, false)) >> 16) as u32).wrapping_add(c))
            }
            (Some("hi"), Ty::S32) => {
                tri(|a: u32, b: u32, c: u32| (((low24(a, true) * low24(b, true)) >> 16) as u32).wrapping_add(c))
            }
            _ => return none(),
        },
        "sad" => match ty {
            Ty::U16 => tri(|a: u16, b: u16, c: u16| c.wrapping_add(a.abs_diff(b))),
            Ty::S16 => tri(|a: i16, b: i16, c: u16| c.wrapping_add(a.abs_diff(b))),
            Ty::U32 => tri(|a: u32, b: u32, c: u32| c.wrapping_add(a.abs_diff(b))),
            Ty::S32 => tri(|a: i32, b: i32, c: u32| c.wrapping_add(a.abs_diff(b))),
            Ty::U64 => tri(|a: u64, b: u64, c: u64| c.wrapping_add(a.abs_diff(b))),
            Ty::S64 => tri(|a: i64, b: i64, c: u64| c.wrapping_add(a.abs_diff(b))),
            _ => return none(),
        },
        "fma" => float_fma(ty, mods)?,
        "div" if ty == Ty::F32 => {
            let kind = mods.one(&["approx", "full"]);
            let (r, ftz) = (mods.rounding().unwrap_or(RN), mods.has("ftz"));
            match kind {
                Some("approx") => by_flag!(ftz, FTZ => bin(div_approx::<FTZ>)),
                // `.full` is within 2 ulp: the rounded quotient is
                _ if r == RN => by_flag!(ftz, FTZ => bin(div32::<FTZ>)),
                _ => bin_imm(float::flags(r, ftz, false, false), |a, b, imm| directed2(a, b, imm, float::div)),
            }
        }
        "div" if ty == Ty::F64 => match mods.rounding().unwrap_or(RN) {
            RN => bin(|a: f64, b: f64| a / b),
            r => bin_imm(r.into(), |a: u64, b: u64, r| float::div(a, b, F64, round_of(r))),
        },
        // division by zero gives all ones, the remainder the dividend, as the hardware's sequences do
        "div" => match ty {
            Ty::U16 => bin(|a: u16, b: u16| a.checked_div(b).unwrap_or(u16::MAX)),
            Ty::S16 => bin(|a: i16, b: i16| if b == 0 { -1 } else { a.wrapping_div(b) }),
            Ty::U32 => bin(|a: u32, b: u32| a.checked_div(b).unwrap_or(u32::MAX)),
            Ty::S32 => bin(|a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) }),
            Ty::U64 => bin(|a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX)),
            Ty::S64 => bin(|a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) }),
            _ => return none(),
        },
        "rem" => int!(ty, op, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        "abs" => match ty {
            Ty::S16 => un(|a: i16| a.wrapping_abs()),
            Ty::S32 => un(|a: i32| a.wrapping_abs()),
            Ty::S64 => un(|a: i64| a.wrapping_abs()),
            Ty::F32 => by_flag!(mods.has("ftz"), FTZ => un(|a: f32| flush::<FTZ>(a.abs()))),
            Ty::F64 => un(|a: f64| a.abs()),
            Ty::F16 | Ty::Bf16 if !mods.has("ftz") => un(|a: u16| a & 0x7fff),
            Ty::F16x2 | Ty::Bf16x2 if !mods.has("ftz") => un(|a: u32| a & 0x7fff_7fff),
            _ if half_type(ty) => halves!(
                ty,
                H,
                un_imm(FTZ, |a: u16, ftz| flush16::<H>(a & 0x7fff, ftz)),
                un_imm(FTZ, |a: u32, ftz| both1(a, |a| flush16::<H>(a & 0x7fff, ftz)))
            ),
            _ => return none(),
        },
        "neg" => match ty {
            Ty::S16 => un(|a: i16| a.wrapping_neg()),
            Ty::S32 => un(|a: i32| a.wrapping_neg()),
            Ty::S64 => un(|a: i64| a.wrapping_neg()),
            Ty::F32 => by_flag!(mods.has("ftz"), FTZ => un(|a: f32| flush::<FTZ>(-a))),
            Ty::F64 => un(|a: f64| -a),
            Ty::F16 | Ty::Bf16 if !mods.has("ftz") => un(|a: u16| a ^ 0x8000),
            Ty::F16x2 | Ty::Bf16x2 if !mods.has("ftz") => un(|a: u32| a ^ 0x8000_8000),
            _ if half_type(ty) => halves!(
                ty,
                H,
                un_imm(FTZ, |a: u16, ftz| flush16::<H>(a ^ 0x8000, ftz)),
                un_imm(FTZ, |a: u32, ftz| both1(a, |a| flush16::<H>(a ^ 0x8000, ftz)))
            ),
            _ => return none(),
        },
        "min" | "max" if ty == Ty::F32 => {
            let (ftz, nan, xor) = (mods.has("ftz"), mods.has("NaN"), mods.has("xorsign") && mods.has("abs"));
            by_flag!(ftz, FTZ => by_flag!(nan, NAN => match (op, xor) {
                ("min", false) => bin(min32::<FTZ, NAN>),
                ("min", true) => bin(|a: f32, b: f32| xorsign(a, b, min32::<FTZ, NAN>)),
                (_, false) => bin(max32::<FTZ, NAN>),
                (_, true) => bin(|a: f32, b: f32| xorsign(a, b, max32::<FTZ, NAN>)),
            }))
        }
        "min" if ty == Ty::F64 => bin(min64),
        "max" if ty == Ty::F64 => bin(max64),
        "min" | "max" if half_type(ty) => {
            let (imm, nan) = (float::flags(RN, mods.has("ftz"), false, false), mods.has("NaN"));
            by_flag!(nan, NAN => by_flag!(op == "max", MAX => halves!(ty, H,
                bin_imm(imm, pick16::<H, NAN, MAX>),
                bin_imm(imm, |a: u32, b: u32, imm| both2(a, b, |a, b| pick16::<H, NAN, MAX>(a, b, imm))))))
        }
        "min" | "max" if matches!(ty, Ty::U16x2 | Ty::S16x2) => match (op, ty) {
            ("min", Ty::U16x2) => bin(|a: u32, b: u32| both2(a, b, u16::min)),
            ("max", Ty::U16x2) => bin(|a: u32, b: u32| both2(a, b, u16::max)),
            ("min", _) if relu => bin(|a: u32, b: u32| both2(a, b, |a, b| (a as i16).min(b as i16).max(0) as u16)),
            (_, _) if relu => bin(|a: u32, b: u32| both2(a, b, |a, b| (a as i16).max(b as i16).max(0) as u16)),
            ("min", _) => bin(|a: u32, b: u32| both2(a, b, |a, b| (a as i16).min(b as i16) as u16)),
            _ => bin(|a: u32, b: u32| both2(a, b, |a, b| (a as i16).max(b as i16) as u16)),
        },
        "min" if ty == Ty::S32 && relu => bin(|a: i32, b: i32| a.min(b).max(0)),
        "max" if ty == Ty::S32 && relu => bin(|a: i32, b: i32| a.max(b).max(0)),
        "min" | "max" if relu => return none(),
        "min" => int!(ty, op, |a, b| a.min(b)),
        "max" => int!(ty, op, |a, b| a.max(b)),
        "popc" => match ty {
            Ty::B32 => un(|a: u32| a.count_ones()),
            Ty::B64 => un(|a: u64| a.count_ones()),
            _ => return none(),
        },
        "clz" => match ty {
            Ty::B32 => un(|a: u32| a.leading_zeros()),
            Ty::B64 => un(|a: u64| a.leading_zeros()),
            _ => return none(),
        },
        "bfind" => by_flag!(mods.has("shiftamt"), SHIFT => match ty {
            Ty::U32 => un(|a: u32| bfind(a.into(), 32, false, SHIFT)),
            Ty::S32 => un(|a: u32| bfind(a.into(), 32, true, SHIFT)),
            Ty::U64 => un(|a: u64| bfind(a, 64, false, SHIFT)),
            Ty::S64 => un(|a: u64| bfind(a, 64, true, SHIFT)),
            _ => return none(),
        }),
        "brev" => match ty {
            Ty::B32 => un(|a: u32| a.reverse_bits()),
            Ty::B64 => un(|a: u64| a.reverse_bits()),
            _ => return none(),
        },
        "bfe" => match ty {
            Ty::U32 => tri(|a: u32, b: u32, c: u32| bfe(a.into(), b, c, 32, false) as u32),
            Ty::S32 => tri(|a: u32, b: u32, c: u32| bfe(a.into(), b, c, 32, true) as u32),
            Ty::U64 => tri(|a: u64, b: u32, c: u32| bfe(a, b, c, 64, false)),
            Ty::S64 => tri(|a: u64, b: u32, c: u32| bfe(a, b, c, 64, true)),
            _ => return none(),
        },
        "bfi" => match ty {
            Ty::B32 => quad(|a: u32, b: u32, c: u32, d: u32| bfi(a.into(), b.into(), c, d, 32) as u32),
            Ty::B64 => quad(|a: u64, b: u64, c: u32, d: u32| bfi(a, b, c, d, 64)),
            _ => return none(),
        },
        "bmsk" => match (mods.one(&["clamp", "wrap"]), ty) {
            (Some("clamp"), Ty::B32) => {
                bin(|a: u32, b: u32| if a >= 32 { 0 } else { (((1u64 << b.min(32)) - 1) << a) as u32 })
            }
            (Some(_), Ty::B32) => bin(|a: u32, b: u32| (((1u64 << (b & 31)) - 1) << (a & 31)) as u32),
            _ => return none(),
        },
        "szext" => match (mods.one(&["clamp", "wrap"]), ty) {
            (Some("clamp"), Ty::U32) => bin(|a: u32, b: u32| if b >= 32 { a } else { a & ((1u64 << b) - 1) as u32 }),
            (Some("clamp"), Ty::S32) => bin(|a: u32, b: u32| match b {
                0 => 0,
                32.. => a,
                _ => ((a << (32 - b)) as i32 >> (32 - b)) as u32,
            }),
            (Some(_), Ty::U32) => bin(|a: u32, b: u32| a & ((1u64 << (b & 31)) - 1) as u32),
            (Some(_), Ty::S32) => bin(|a: u32, b: u32| match b & 31 {
                0 => 0,
                n => ((a << (32 - n)) as i32 >> (32 - n)) as u32,
            }),
            _ => return none(),
        },
        "dp4a" => match (mods.ty()?, mods.ty()?) {
            // the second type is the last one taken
            (Ty::U32, Ty::U32) => tri(|a: u32, b: u32, c: u32| dp4a(a, b, c, false, false)),
            (Ty::S32, Ty::U32) => tri(|a: u32, b: u32, c: u32| dp4a(a, b, c, false, true)),
            (Ty::U32, Ty::S32) => tri(|a: u32, b: u32, c: u32| dp4a(a, b, c, true, false)),
            (Ty::S32, Ty::S32) => tri(|a: u32, b: u32, c: u32| dp4a(a, b, c, true, true)),
            _ => return none(),
        },
        "dp2a" => {
            let (b, a, high) = (mods.ty()?, mods.ty()?, mods.one(&["lo", "hi"]) == Some("hi"));
            by_flag!(high, HIGH => match (a, b) {
                (Ty::U32, Ty::U32) => tri(|a: u32, b: u32, c: u32| dp2a(a, b, c, false, false, HIGH)),
                (Ty::U32, Ty::S32) => tri(|a: u32, b: u32, c: u32| dp2a(a, b, c, false, true, HIGH)),
                (Ty::S32, Ty::U32) => tri(|a: u32, b: u32, c: u32| dp2a(a, b, c, true, false, HIGH)),
                (Ty::S32, Ty::S32) => tri(|a: u32, b: u32, c: u32| dp2a(a, b, c, true, true, HIGH)),
                _ => return none(),
            })
        }
        // bytes of both, and of the third what they are added to
        "vabsdiff4" => {
            let (b, a, d) = (ty, mods.ty()?, mods.ty()?);
            by_flag!(accumulates, ADD => match (a, b, d) {
                (Ty::U32, Ty::U32, Ty::U32 | Ty::S32) => tri(|a: u32, b: u32, c: u32| vabsdiff4(a, b, c, false, ADD)),
                (Ty::S32, Ty::S32, Ty::U32 | Ty::S32) => tri(|a: u32, b: u32, c: u32| vabsdiff4(a, b, c, true, ADD)),
                _ => return none(),
            })
        }
        "fns" => match ty {
            Ty::B32 => tri(|mask: u32, base: u32, offset: i32| fns(mask, base, offset)),
            _ => return none(),
        },
        "and" | "or" | "xor" if ty == Ty::Pred => match op {
            "and" => pred(|a, b| a & b),
            "or" => pred(|a, b| a | b),
            _ => pred(|a, b| a ^ b),
        },
        "and" => bits!(ty, op, |a, b| a & b),
        "or" => bits!(ty, op, |a, b| a | b),
        "xor" => bits!(ty, op, |a, b| a ^ b),
        "not" => match ty {
            Ty::Pred => pred(|a, _| !a),
            Ty::B16 => un(|a: u16| !a),
            Ty::B32 => un(|a: u32| !a),
            Ty::B64 => un(|a: u64| !a),
            _ => return none(),
        },
        "cnot" => match ty {
            Ty::B16 => un(|a: u16| u16::from(a == 0)),
            Ty::B32 => un(|a: u32| u32::from(a == 0)),
            Ty::B64 => un(|a: u64| u64::from(a == 0)),
            _ => return none(),
        },
        "lop3" => match ty {
            Ty::B32 => tri_imm_all(0, lop3).literal(),
            _ => return none(),
        },
        "shf" => match (mods.one(&["l", "r"]), mods.one(&["clamp", "wrap"]), ty) {
            (Some("l"), Some("wrap"), Ty::B32) => tri(|a: u32, b: u32, c: u32| (join(b, a) << (c & 31) >> 32) as u32),
            (Some("l"), Some("clamp"), Ty::B32) => tri(|a: u32, b: u32, c: u32| (join(b, a) << c.min(32) >> 32) as u32),
            (Some("r"), Some("wrap"), Ty::B32) => tri(|a: u32, b: u32, c: u32| (join(b, a) >> (c & 31)) as u32),
            (Some("r"), Some("clamp"), Ty::B32) => tri(|a: u32, b: u32, c: u32| (join(b, a) >> c.min(32)) as u32),
            _ => return none(),
        },
        // shifts by the width or more give all zeros, or all signs
        "shl" => match ty {
            Ty::B16 => bin(|a: u16, b: u32| if b > 15 { 0 } else { a << b }),
            Ty::B32 => bin(|a: u32, b: u32| if b > 31 { 0 } else { a << b }),
            Ty::B64 => bin(|a: u64, b: u32| if b > 63 { 0 } else { a << b }),
            _ => return none(),
        },
        "shr" => match ty {
            Ty::B16 | Ty::U16 => bin(|a: u16, b: u32| if b > 15 { 0 } else { a >> b }),
            Ty::B32 | Ty::U32 => bin(|a: u32, b: u32| if b > 31 { 0 } else { a >> b }),
            Ty::B64 | Ty::U64 => bin(|a: u64, b: u32| if b > 63 { 0 } else { a >> b }),
            Ty::S16 => bin(|a: i16, b: u32| a >> b.min(15)),
            Ty::S32 => bin(|a: i32, b: u32| a >> b.min(31)),
            Ty::S64 => bin(|a: i64, b: u32| a >> b.min(63)),
            _ => return none(),
        },
        "prmt" => {
            if ty != Ty::B32 {
                return none();
            }
            match PRMT_MODES.iter().position(|m| Some(*m) == mode) {
                None => tri(prmt),
                Some(mode) => tri_imm(mode as u32, prmt_mode),
            }
        }
        "rcp" | "sqrt" if ty == Ty::F32 => {
            let (fast, r, ftz) = (mods.has("approx"), mods.rounding().unwrap_or(RN), mods.has("ftz"));
            let imm = float::flags(r, ftz, false, false);
            match op {
                "rcp" if fast || r == RN => by_flag!(ftz, FTZ => un(|a: f32| div32::<FTZ>(1.0, a))),
                "rcp" => un_imm(imm, |a: f32, imm| directed2(1.0, a, imm, float::div)),
                _ if fast || r == RN => by_flag!(ftz, FTZ => un(sqrt32::<FTZ>)),
                _ => un_imm(imm, directed_sqrt),
            }
        }
        "rcp" | "sqrt" if ty == Ty::F64 => {
            // rcp.approx.ftz.f64 keeps the upper 32 bits and drops the rest
            let (fast, r) = (mods.has("approx") && mods.has("ftz"), mods.rounding().unwrap_or(RN));
            match (op, fast, r) {
                ("rcp", true, _) => un(|a: f64| f64::from_bits((1.0 / a).to_bits() & !0xffff_ffff)),
                ("rcp", false, RN) => un(|a: f64| 1.0 / a),
                ("rcp", false, r) => un_imm(r.into(), |a: u64, r| float::div(1f64.to_bits(), a, F64, round_of(r))),
                (_, false, RN) => un(|a: f64| a.sqrt()),
                (_, false, r) => un_imm(r.into(), |a: u64, r| float::sqrt(a, F64, round_of(r))),
                _ => return none(),
            }
        }
        "rsqrt" if ty == Ty::F32 && mods.has("approx") => {
            by_flag!(mods.has("ftz"), FTZ => un(|a: f32| approx::<FTZ>(a, |x| 1.0 / x.sqrt())))
        }
        "rsqrt" if ty == Ty::F64 && mods.has("approx") => by_flag!(mods.has("ftz"), UPPER => un(|a: f64| {
            let value = 1.0 / a.sqrt();
            if UPPER { f64::from_bits(value.to_bits() & !0xffff_ffff) } else { value }
        })),
        "ex2" if ty == Ty::F32 && mods.has("approx") => {
            by_flag!(mods.has("ftz"), FTZ => un_each(|a: f32| approx::<FTZ>(a, libm::exp2)))
        }
        "ex2" if half_type(ty) && mods.has("approx") => {
            let imm = float::flags(RN, mods.has("ftz"), false, false);
            halves!(
                ty,
                H,
                un_imm(imm, |a: u16, imm| fun16::<H>(a, imm, libm::exp2)),
                un_imm(imm, |a: u32, imm| both1(a, |a| fun16::<H>(a, imm, libm::exp2)))
            )
        }
        "lg2" if ty == Ty::F32 && mods.has("approx") => {
            by_flag!(mods.has("ftz"), FTZ => un_each(|a: f32| approx::<FTZ>(a, libm::log2)))
        }
        "sin" if ty == Ty::F32 && mods.has("approx") => {
            by_flag!(mods.has("ftz"), FTZ => un_each(|a: f32| approx::<FTZ>(a, libm::sin)))
        }
        "cos" if ty == Ty::F32 && mods.has("approx") => {
            by_flag!(mods.has("ftz"), FTZ => un_each(|a: f32| approx::<FTZ>(a, libm::cos)))
        }
        "tanh" if ty == Ty::F32 && mods.has("approx") => un_each(|a: f32| approx::<false>(a, libm::tanh)),
        "tanh" if half_type(ty) && mods.has("approx") => halves!(
            ty,
            H,
            un_each(|a: u16| fun16::<H>(a, 0, libm::tanh)),
            un_each(|a: u32| both1(a, |a| fun16::<H>(a, 0, libm::tanh)))
        ),
        "testp" => {
            let what = mods.one(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
            // a comparison of the value with itself: lowering gives the same register twice
            match (what, ty) {
                (Some("finite"), Ty::F32) => cmp(|a: f32, _| a.is_finite()),
                (Some("infinite"), Ty::F32) => cmp(|a: f32, _| a.is_infinite()),
                (Some("number"), Ty::F32) => cmp(|a: f32, _| !a.is_nan()),
                (Some("notanumber"), Ty::F32) => cmp(|a: f32, _| a.is_nan()),
                (Some("normal"), Ty::F32) => cmp(|a: f32, _| a.is_normal() || a == 0.0),
                (Some("subnormal"), Ty::F32) => cmp(|a: f32, _| a.is_subnormal()),
                (Some("finite"), Ty::F64) => cmp(|a: f64, _| a.is_finite()),
                (Some("infinite"), Ty::F64) => cmp(|a: f64, _| a.is_infinite()),
                (Some("number"), Ty::F64) => cmp(|a: f64, _| !a.is_nan()),
                (Some("notanumber"), Ty::F64) => cmp(|a: f64, _| a.is_nan()),
                (Some("normal"), Ty::F64) => cmp(|a: f64, _| a.is_normal() || a == 0.0),
                (Some("subnormal"), Ty::F64) => cmp(|a: f64, _| a.is_subnormal()),
                _ => return none(),
            }
        }
        // the sign of the first, the magnitude of the second
        "copysign" => match ty {
            Ty::F32 => bin(|a: f32, b: f32| b.copysign(a)),
            Ty::F64 => bin(|a: f64, b: f64| b.copysign(a)),
            _ => return none(),
        },
        _ => return none(),
    };
    Ok(Some((sem, class)))
}

fn float_fma(ty: Ty, mods: &mut Mods<'_>) -> Result<Sem, String> {
    let (r, ftz, sat, relu) = (mods.rounding().unwrap_or(RN), mods.has("ftz"), mods.has("sat"), mods.has("relu"));
    let imm = float::flags(r, ftz, sat, relu);
    Ok(match ty {
        Ty::F32 if r == RN => by_flag!(ftz, FTZ => by_flag!(sat, SAT => tri(fma32::<FTZ, SAT>))),
        Ty::F32 => tri_imm(imm, directed_fma),
        Ty::F64 if r == RN => tri(|a: f64, b: f64, c: f64| a.mul_add(b, c)),
        Ty::F64 => tri_imm(imm, |a: u64, b: u64, c: u64, r| float::fma(a, b, c, F64, round_of(r))),
        _ if half_type(ty) && r == RN => halves!(
            ty,
            H,
            tri_imm(imm, fma16::<H>),
            tri_imm(imm, |a: u32, b: u32, c: u32, imm| both3(a, b, c, |a, b, c| fma16::<H>(a, b, c, imm)))
        ),
        _ => return Err(format!("`fma` has no type {ty:?}")),
    })
}

#[inline(always)]
fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn add3(a: u32, b: u32, carry: bool) -> (u32, bool) {
    let sum = u64::from(a) + u64::from(b) + u64::from(carry);
    (sum as u32, sum >> 32 != 0)
}

fn add3w(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    (sum as u64, sum >> 64 != 0)
}

/// Subtraction with borrow: the flag is the borrow, as `sub.cc` leaves it.
fn carry_op(op: &str, ty: Ty, flags: u64) -> Result<Sem, String> {
    let sem = match (op, ty) {
        ("add", Ty::U32 | Ty::S32) => carry(|a: u32, b: u32, f| add3(a, b, f)),
        ("add", Ty::U64 | Ty::S64) => carry(|a: u64, b: u64, f| add3w(a, b, f)),
        ("sub", Ty::U32 | Ty::S32) => carry(|a: u32, b: u32, f| {
            let (d, x) = a.overflowing_sub(b);
            let (d, y) = d.overflowing_sub(u32::from(f));
            (d, x || y)
        }),
        ("sub", Ty::U64 | Ty::S64) => carry(|a: u64, b: u64, f| {
            let (d, x) = a.overflowing_sub(b);
            let (d, y) = d.overflowing_sub(u64::from(f));
            (d, x || y)
        }),
        _ => return Err(format!("`{op}` with a carry has no type {ty:?}")),
    };
    Ok(sem.imm(flags))
}

/// Position of the n-th set bit.
fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    if offset == 0 {
        return if mask >> base & 1 != 0 { base } else { u32::MAX };
    }
    let mut left = offset.unsigned_abs();
    let mut pos = base as i32;
    while (0..32).contains(&pos) {
        if mask >> pos & 1 != 0 {
            left -= 1;
            if left == 0 {
                return pos as u32;
            }
        }
        pos += offset.signum();
    }
    u32::MAX
}

//! `cvt` and `cvt.pack`: every pair of types.

use super::float::{
    self, BF16, F16, F32, F64, Format, Fp8, NAN16, NAN32, RELU, RN, Round, SAT, TF32, finish_if, flush_if, round_of,
};
use super::lane::{Sem, bin, bin_imm, tri, un, un_each, un_imm};
use super::mods::Mods;
use crate::ptx::ast::Ty;

/// Expands an expression for each integer type, with `$T` the type and `$S` what its register holds.
macro_rules! with_int {
    ($ty:expr, $T:ident, $S:ident => $e:expr) => {
        match $ty {
            Ty::U8 => {
                type $T = u8;
                type $S = u16;
                $e
            }
            Ty::S8 => {
                type $T = i8;
                type $S = u16;
                $e
            }
            Ty::U16 => {
                type $T = u16;
                type $S = u16;
                $e
            }
            Ty::S16 => {
                type $T = i16;
                type $S = u16;
                $e
            }
            Ty::U32 => {
                type $T = u32;
                type $S = u32;
                $e
            }
            Ty::S32 => {
                type $T = i32;
                type $S = u32;
                $e
            }
            Ty::U64 => {
                type $T = u64;
                type $S = u64;
                $e
            }
            _ => {
                type $T = i64;
                type $S = u64;
                $e
            }
        }
    };
}

fn int(ty: Ty) -> bool {
    matches!(ty, Ty::U8 | Ty::S8 | Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64)
}

fn format(ty: Ty) -> Format {
    match ty {
        Ty::F16 => F16,
        Ty::Bf16 => BF16,
        Ty::F32 => F32,
        _ => F64,
    }
}

/// A rounded double from a float; what is NaN stays NaN.
#[inline(always)]
fn whole(value: f64, imm: u32) -> f64 {
    float::integral(value, round_of(imm))
}

/// To an integer type: `as` clamps. NaN gives the highest bit where the source is a double or the result has 64 bits,
/// zero otherwise (PTX ISA, `cvt`).
macro_rules! clamp_int {
    ($T:ident, $value:expr, $double:expr) => {{
        let value: f64 = $value;
        if value.is_nan() && ($double || $T::BITS == 64) { (1u64 << ($T::BITS - 1)) as $T } else { value as $T }
    }};
}

/// Flags on a 16-bit result.
fn finish16(bits: u16, imm: u32) -> u16 {
    let nan = |inf: u16| bits & 0x7fff > inf;
    if imm & SAT != 0 {
        // only f16 has it
        if nan(0x7c00) || bits & 0x8000 != 0 {
            return 0;
        }
        return bits.min(0x3c00);
    }
    if imm & RELU != 0 && bits & 0x8000 != 0 { 0 } else { bits }
}

/// In a conversion's constant: the largest finite value instead of infinity.
const FINITE: u32 = 64;
/// In a conversion's constant: to a whole number.
const WHOLE: u32 = 32;

fn to_half(a: f32, imm: u32, bf16: bool) -> u16 {
    let (a, mode) = (flush_if(a, imm), round_of(imm));
    let (bits, inf) = if bf16 { (float::f32_to_bf16(a, mode), 0x7f80) } else { (float::f32_to_f16(a, mode), 0x7c00) };
    let bits = if imm & FINITE != 0 && bits & 0x7fff == inf { bits - 1 } else { bits };
    finish16(bits, imm)
}

fn join(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// The semantic of a conversion.
pub(crate) fn select_cvt(mods: &mut Mods<'_>) -> Result<Sem, String> {
    if mods.has("pack") {
        return pack(mods);
    }
    let (from, to) = (mods.ty()?, mods.ty()?);
    let none = || Err(format!("`cvt` does not convert {from:?} to {to:?} in this way"));
    let to_whole = mods.one(&["rni", "rzi", "rmi", "rpi"]);
    let rounding = mods.rounding();
    let away = mods.has("rna");
    let (ftz, sat, relu, satfinite) = (mods.has("ftz"), mods.has("sat"), mods.has("relu"), mods.has("satfinite"));
    let code = match to_whole {
        Some("rni") => 0,
        Some("rzi") => 1,
        Some("rmi") => 2,
        Some(_) => 3,
        None => u32::from(rounding.unwrap_or(RN)),
    };
    let imm = float::flags(code as u8, ftz, sat, relu) | if satfinite { FINITE } else { 0 };
    Ok(match (from, to) {
        _ if int(from) && int(to) => {
            if sat {
                with_int!(from, A, S => with_int!(to, D, T => un_each(|a: S| {
                    let (low, high) = (i128::from(D::MIN), i128::from(D::MAX));
                    i128::from(a as A).clamp(low, high) as D as T
                })))
            } else {
                with_int!(from, A, S => with_int!(to, D, T => un(|a: S| a as A as D as T)))
            }
        }
        (Ty::F32, _) if int(to) && to_whole.is_some() => with_int!(to, D, T => un_imm(imm, |a: f32, imm| {
            clamp_int!(D, whole(f64::from(flush_if(a, imm)), imm), false) as T
        })),
        (Ty::F64, _) if int(to) && to_whole.is_some() => {
            with_int!(to, D, T => un_imm(imm, |a: f64, imm| clamp_int!(D, whole(a, imm), true) as T))
        }
        (Ty::F16, _) if int(to) && to_whole.is_some() => with_int!(to, D, T => un_imm(imm, |a: u16, imm| {
            clamp_int!(D, whole(f64::from(float::f16_to_f32(a)), imm), false) as T
        })),
        (Ty::Bf16, _) if int(to) && to_whole.is_some() => with_int!(to, D, T => un_imm(imm, |a: u16, imm| {
            clamp_int!(D, whole(f64::from(float::bf16_to_f32(a)), imm), false) as T
        })),
        (_, Ty::F32) if int(from) && rounding == Some(RN) && !sat => {
            with_int!(from, A, S => un(|a: S| (a as A) as f32))
        }
        (_, Ty::F64) if int(from) && rounding == Some(RN) => with_int!(from, A, S => un(|a: S| (a as A) as f64)),
        (_, Ty::F32) if int(from) && rounding.is_some() => with_int!(from, A, S => un_imm(imm, |a: S, imm| {
            let a = i128::from(a as A);
            finish_if(f32::from_bits(float::from_int(a < 0, a.unsigned_abs() as u64, F32, round_of(imm)) as u32), imm)
        })),
        (_, Ty::F64) if int(from) && rounding.is_some() => with_int!(from, A, S => un_imm(imm, |a: S, imm| {
            let a = i128::from(a as A);
            float::from_int(a < 0, a.unsigned_abs() as u64, F64, round_of(imm))
        })),
        (_, Ty::F16) if int(from) && rounding.is_some() => with_int!(from, A, S => un_imm(imm, |a: S, imm| {
            let a = i128::from(a as A);
            finish16(float::from_int(a < 0, a.unsigned_abs() as u64, F16, round_of(imm)) as u16, imm)
        })),
        (_, Ty::Bf16) if int(from) && rounding.is_some() => with_int!(from, A, S => un_imm(imm, |a: S, imm| {
            let a = i128::from(a as A);
            float::from_int(a < 0, a.unsigned_abs() as u64, BF16, round_of(imm)) as u16
        })),
        (Ty::F32, Ty::F32) => un_imm(imm | if to_whole.is_some() { WHOLE } else { 0 }, |a: f32, imm| {
            let a = flush_if(a, imm);
            finish_if(if imm & WHOLE != 0 { whole(f64::from(a), imm) as f32 } else { a }, imm)
        }),
        (Ty::F64, Ty::F64) if to_whole.is_some() => un_imm(imm, whole),
        (Ty::F64, Ty::F64) => un_imm(imm, |a: f64, imm| {
            if imm & SAT == 0 {
                a
            } else if a > 0.0 {
                a.min(1.0)
            } else {
                0.0
            }
        }),
        (Ty::F16, Ty::F16) => un_imm(imm | if to_whole.is_some() { WHOLE } else { 0 }, |a: u16, imm| {
            let value = float::f16_to_f32(a);
            let value = if imm & WHOLE != 0 { whole(f64::from(value), imm) as f32 } else { value };
            finish16(float::f32_to_f16(value, Round::Near), imm)
        }),
        (Ty::Bf16, Ty::Bf16) => un_imm(imm | if to_whole.is_some() { WHOLE } else { 0 }, |a: u16, imm| {
            let value = float::bf16_to_f32(a);
            let value = if imm & WHOLE != 0 { whole(f64::from(value), imm) as f32 } else { value };
            float::f32_to_bf16(value, Round::Near)
        }),
        (Ty::F32, Ty::F64) => un_imm(imm, |a: f32, imm| {
            let a = f64::from(flush_if(a, imm));
            if imm & SAT == 0 {
                a
            } else if a > 0.0 {
                a.min(1.0)
            } else {
                0.0
            }
        }),
        (Ty::F64, Ty::F32) if rounding.is_some() => un_imm(imm, |a: f64, imm| {
            let value = if imm & 3 == 0 {
                a as f32
            } else {
                f32::from_bits(float::convert(a.to_bits(), F64, F32, round_of(imm)) as u32)
            };
            finish_if(value, imm)
        }),
        (Ty::F32, Ty::F16) if imm == 0 => un(|a: f32| float::f32_to_f16(a, Round::Near)),
        (Ty::F32, Ty::Bf16) if imm == 0 => un(|a: f32| float::f32_to_bf16(a, Round::Near)),
        (Ty::F32, Ty::F16) => un_imm(imm, |a: f32, imm| to_half(a, imm, false)),
        (Ty::F32, Ty::Bf16) => un_imm(imm, |a: f32, imm| to_half(a, imm, true)),
        (Ty::F16, Ty::F32) if imm == 0 => un(float::f16_to_f32),
        (Ty::F16, Ty::F32) => un_imm(imm, |a: u16, imm| finish_if(float::f16_to_f32(a), imm)),
        (Ty::Bf16, Ty::F32) if imm == 0 => un(float::bf16_to_f32),
        (Ty::Bf16, Ty::F32) => un_imm(imm, |a: u16, imm| finish_if(float::bf16_to_f32(a), imm)),
        (Ty::F16 | Ty::Bf16, Ty::F64) => match from {
            Ty::F16 => un(|a: u16| f64::from(float::f16_to_f32(a))),
            _ => un(|a: u16| f64::from(float::bf16_to_f32(a))),
        },
        (Ty::F64, Ty::F16 | Ty::Bf16) if rounding.is_some() => match format(to) {
            F16 => un_imm(imm, |a: u64, imm| finish16(float::convert(a, F64, F16, round_of(imm)) as u16, imm)),
            _ => un_imm(imm, |a: u64, imm| finish16(float::convert(a, F64, BF16, round_of(imm)) as u16, imm)),
        },
        (Ty::F16, Ty::Bf16) => {
            un_imm(imm, |a: u16, imm| finish16(float::f32_to_bf16(float::f16_to_f32(a), round_of(imm)), imm))
        }
        (Ty::Bf16, Ty::F16) => {
            un_imm(imm, |a: u16, imm| finish16(float::f32_to_f16(float::bf16_to_f32(a), round_of(imm)), imm))
        }
        // the first source goes to the upper half
        (Ty::F32, Ty::F16x2 | Ty::Bf16x2) if code > 1 || ftz || sat => return none(),
        (Ty::F32, Ty::F16x2) if imm == 0 => {
            bin(|a: f32, b: f32| join(float::f32_to_f16(a, Round::Near), float::f32_to_f16(b, Round::Near)))
        }
        (Ty::F32, Ty::Bf16x2) if imm == 0 => {
            bin(|a: f32, b: f32| join(float::f32_to_bf16(a, Round::Near), float::f32_to_bf16(b, Round::Near)))
        }
        (Ty::F32, Ty::F16x2) => {
            bin_imm(imm, |a: f32, b: f32, imm| join(to_half(a, imm, false), to_half(b, imm, false)))
        }
        (Ty::F32, Ty::Bf16x2) => bin_imm(imm, |a: f32, b: f32, imm| join(to_half(a, imm, true), to_half(b, imm, true))),
        (Ty::F32, Ty::E4m3x2) if satfinite => match relu {
            false => bin(|a: f32, b: f32| fp8_pair(a, b, Fp8::E4m3)),
            true => bin(|a: f32, b: f32| fp8_pair(relu32(a), relu32(b), Fp8::E4m3)),
        },
        (Ty::F32, Ty::E5m2x2) if satfinite => match relu {
            false => bin(|a: f32, b: f32| fp8_pair(a, b, Fp8::E5m2)),
            true => bin(|a: f32, b: f32| fp8_pair(relu32(a), relu32(b), Fp8::E5m2)),
        },
        (Ty::F16x2, Ty::E4m3x2) if satfinite => match relu {
            false => un_each(|a: u32| fp8_pair(upper(a), lower(a), Fp8::E4m3)),
            true => un_each(|a: u32| fp8_pair(relu32(upper(a)), relu32(lower(a)), Fp8::E4m3)),
        },
        (Ty::F16x2, Ty::E5m2x2) if satfinite => match relu {
            false => un_each(|a: u32| fp8_pair(upper(a), lower(a), Fp8::E5m2)),
            true => un_each(|a: u32| fp8_pair(relu32(upper(a)), relu32(lower(a)), Fp8::E5m2)),
        },
        (Ty::E4m3x2, Ty::F16x2) => un_imm(imm, |a: u16, imm| from_fp8(a, imm, Fp8::E4m3)),
        (Ty::E5m2x2, Ty::F16x2) => un_imm(imm, |a: u16, imm| from_fp8(a, imm, Fp8::E5m2)),
        (Ty::F32, Ty::Tf32) => {
            // a rounding that only this type has stands in the place of a flag that it has not
            un_imm(imm | if away { WHOLE } else { 0 }, |a: f32, imm| {
                let mode = if imm & WHOLE != 0 { Round::Away } else { round_of(imm) };
                let bits = to_tf32(if imm & RELU != 0 { relu32(a) } else { a }, mode);
                if imm & FINITE != 0 && bits & 0x7fff_ffff == 0x7f80_0000 { bits - 0x2000 } else { bits }
            })
        }
        _ => return none(),
    })
}

fn relu32(value: f32) -> f32 {
    if value.is_nan() { value } else { value.max(0.0) }
}

fn upper(pair: u32) -> f32 {
    float::f16_to_f32((pair >> 16) as u16)
}

fn lower(pair: u32) -> f32 {
    float::f16_to_f32(pair as u16)
}

fn from_fp8(pair: u16, imm: u32, from: Fp8) -> u32 {
    let one = |bits: u8| {
        let bits = float::f32_to_f16(float::fp8_to_f32(bits, from), Round::Near);
        let bits = if bits & 0x7fff > 0x7c00 { NAN16 } else { bits };
        u32::from(if imm & RELU != 0 && bits & 0x8000 != 0 { 0 } else { bits })
    };
    one((pair >> 8) as u8) << 16 | one(pair as u8)
}

/// `cvt.pack.sat`: two integers clamped and joined, for 8-bit results above the upper half of a third.
fn pack(mods: &mut Mods<'_>) -> Result<Sem, String> {
    if !mods.has("sat") {
        return Err("`cvt.pack` needs `.sat`".into());
    }
    let mut ty = mods.ty()?;
    let third = ty == Ty::B32;
    if third {
        ty = mods.ty()?;
    }
    let to = mods.ty()?;
    Ok(match (ty, to, third) {
        (Ty::S32, Ty::U16, false) => {
            bin(|a: i32, b: i32| (a.clamp(0, 0xffff) as u32) << 16 | b.clamp(0, 0xffff) as u32)
        }
        (Ty::S32, Ty::S16, false) => bin(|a: i32, b: i32| {
            u32::from(a.clamp(-0x8000, 0x7fff) as u16) << 16 | u32::from(b.clamp(-0x8000, 0x7fff) as u16)
        }),
        (Ty::S32, Ty::U8, true) => {
            tri(|a: i32, b: i32, c: u32| c << 16 | (a.clamp(0, 255) as u32) << 8 | b.clamp(0, 255) as u32)
        }
        (Ty::S32, Ty::S8, true) => tri(|a: i32, b: i32, c: u32| {
            c << 16 | u32::from(a.clamp(-128, 127) as u8) << 8 | u32::from(b.clamp(-128, 127) as u8)
        }),
        _ => return Err(format!("`cvt.pack` does not join {ty:?} to {to:?}")),
    })
}

/// Used by `cvt` for pairs of 8-bit floats.
fn fp8_pair(high: f32, low: f32, to: Fp8) -> u16 {
    u16::from(float::f32_to_fp8(high, to)) << 8 | u16::from(float::f32_to_fp8(low, to))
}

/// Single to tf32, which stays a single with 13 zero bits below.
fn to_tf32(value: f32, mode: Round) -> u32 {
    if value.is_nan() {
        return NAN32;
    }
    (float::convert(value.to_bits().into(), F32, TF32, mode) as u32) << 13
}

//! Floating-point arithmetic with one meaning: every format, every rounding, NaN and subnormals as PTX has them.
//!
//! Round-to-nearest of f32 and f64 is the host's own (IEEE 754 leaves no choice). Everything else, directed rounding
//! and the 16-bit and 8-bit formats, goes through [`pack`], which rounds an exact integer significand once.

/// A binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    /// Stored bits of the significand.
    pub(crate) man: u32,
    /// Bits of the exponent.
    pub(crate) exp: u32,
}

/// IEEE half.
pub(crate) const F16: Format = Format { man: 10, exp: 5 };
/// bfloat16.
pub(crate) const BF16: Format = Format { man: 7, exp: 8 };
/// IEEE single.
pub(crate) const F32: Format = Format { man: 23, exp: 8 };
/// IEEE double.
pub(crate) const F64: Format = Format { man: 52, exp: 11 };
/// The 19 bits of tf32; they stand in the upper bits of a single.
pub(crate) const TF32: Format = Format { man: 10, exp: 8 };

/// Rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// The constants through which a rounding is a type parameter of the instruction table.
pub(crate) const RN: u8 = 0;
/// Towards zero.
pub(crate) const RZ: u8 = 1;
/// Towards minus infinity.
pub(crate) const RM: u8 = 2;
/// Towards plus infinity.
pub(crate) const RP: u8 = 3;

/// The rounding of a constant.
pub(crate) const fn round(code: u8) -> Round {
    match code {
        RN => Round::Near,
        RZ => Round::Zero,
        RM => Round::Down,
        RP => Round::Up,
        _ => Round::Away,
    }
}

/// Bits of an instruction's constant beside its rounding: subnormals become zero.
pub(crate) const FTZ: u32 = 4;
/// The result is clamped to [0, 1].
pub(crate) const SAT: u32 = 8;
/// A negative result becomes zero.
pub(crate) const RELU: u32 = 16;

/// Modifiers as an instruction's constant.
pub(crate) fn flags(rounding: u8, ftz: bool, sat: bool, relu: bool) -> u32 {
    u32::from(rounding) | if ftz { FTZ } else { 0 } | if sat { SAT } else { 0 } | if relu { RELU } else { 0 }
}

/// The rounding of such a constant.
pub(crate) fn round_of(imm: u32) -> Round {
    round((imm & 3) as u8)
}

/// PTX's NaN of single precision.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
/// PTX's NaN of f16 and bf16.
pub(crate) const NAN16: u16 = 0x7fff;

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exp - 1)) - 1
    }

    fn inf(self) -> u64 {
        ((1 << self.exp) - 1) << self.man
    }

    fn sign_bit(self) -> u64 {
        1 << (self.man + self.exp)
    }

    /// The NaN that an operation makes.
    fn nan(self) -> u64 {
        if self == F64 { 0xfff8_0000_0000_0000 } else { self.sign_bit() - 1 }
    }
}

/// A number taken apart: `(-1)^negative * man * 2^exp`.
#[derive(Debug, Clone, Copy)]
enum Num {
    Nan,
    Inf(bool),
    Finite { negative: bool, man: u128, exp: i32 },
}

fn unpack(bits: u64, f: Format) -> Num {
    let negative = bits & f.sign_bit() != 0;
    let magnitude = bits & (f.sign_bit() - 1);
    if magnitude > f.inf() {
        return Num::Nan;
    }
    if magnitude == f.inf() {
        return Num::Inf(negative);
    }
    let e = (magnitude >> f.man) as i32;
    let m = magnitude & ((1 << f.man) - 1);
    let (man, exp) = if e == 0 { (m, 1) } else { (m | 1 << f.man, e) };
    Num::Finite { negative, man: u128::from(man), exp: exp - f.bias() - f.man as i32 }
}

/// Rounds `man * 2^exp`, plus something smaller than one unit where `sticky`, to a format.
pub(crate) fn pack(negative: bool, mut man: u128, mut exp: i32, mut sticky: bool, f: Format, mode: Round) -> u64 {
    let sign = if negative { f.sign_bit() } else { 0 };
    if man == 0 {
        // only an inexact zero can round up; the callers keep enough bits that it never is
        return sign;
    }
    // one bit more than the format keeps, plus sticky, decides; give the significand room first
    let lead = man.leading_zeros();
    if lead > 8 {
        let up = (lead - 8).min(120) as i32;
        man <<= up;
        exp -= up;
    }
    let top = 127 - man.leading_zeros() as i32;
    let lowest = 1 - f.bias() - f.man as i32;
    // exponent of the last place that is kept
    let place = (exp + top - f.man as i32).max(lowest);
    let drop = place - exp;
    let (mut kept, rest, half);
    if drop >= 128 {
        kept = 0;
        rest = true;
        half = std::cmp::Ordering::Less;
        sticky = true;
    } else if drop <= 0 {
        // cannot happen: the shift above leaves at least 119 bits, more than any format
        kept = man << -drop;
        rest = sticky;
        half = if sticky { std::cmp::Ordering::Less } else { std::cmp::Ordering::Equal };
    } else {
        kept = man >> drop;
        let tail = man & ((1u128 << drop) - 1);
        rest = tail != 0 || sticky;
        half = match tail.cmp(&(1u128 << (drop - 1))) {
            std::cmp::Ordering::Equal if sticky => std::cmp::Ordering::Greater,
            other => other,
        };
    }
    let _ = sticky;
    let up = rest
        && match mode {
            Round::Near => half.is_gt() || (half.is_eq() && kept & 1 == 1),
            Round::Away => half.is_ge(),
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
    kept += u128::from(up);
    let mut place = place;
    if kept >> (f.man + 1) != 0 {
        kept >>= 1;
        place += 1;
    }
    if kept >> f.man == 0 {
        return sign | kept as u64;
    }
    let biased = place + f.man as i32 + f.bias();
    if biased >= (1 << f.exp) - 1 {
        let to_inf = match mode {
            Round::Near | Round::Away => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        return sign | if to_inf { f.inf() } else { f.inf() - 1 };
    }
    sign | (biased as u64) << f.man | (kept as u64 & ((1 << f.man) - 1))
}

/// `a * b + c`, rounded once.
pub(crate) fn fma(a: u64, b: u64, c: u64, f: Format, mode: Round) -> u64 {
    let (na, nb, nc) = (unpack(a, f), unpack(b, f), unpack(c, f));
    let sign = (a ^ b) & f.sign_bit() != 0;
    match (na, nb, nc) {
        (Num::Nan, ..) | (_, Num::Nan, _) | (.., Num::Nan) => f.nan(),
        (Num::Inf(_), Num::Finite { man: 0, .. }, _) | (Num::Finite { man: 0, .. }, Num::Inf(_), _) => f.nan(),
        (Num::Inf(_), ..) | (_, Num::Inf(_), _) => match nc {
            Num::Inf(other) if other != sign => f.nan(),
            _ => f.inf() | if sign { f.sign_bit() } else { 0 },
        },
        (.., Num::Inf(negative)) => f.inf() | if negative { f.sign_bit() } else { 0 },
        (
            Num::Finite { man: ma, exp: ea, .. },
            Num::Finite { man: mb, exp: eb, .. },
            Num::Finite { negative, man: mc, exp: ec },
        ) => sum((sign, ma * mb, ea + eb), (negative, mc, ec), f, mode),
    }
}

/// The sum of two exact numbers, rounded once. Significands have at most 106 bits.
fn sum(x: (bool, u128, i32), y: (bool, u128, i32), f: Format, mode: Round) -> u64 {
    let zero = |negative: bool| if negative { f.sign_bit() } else { 0 };
    let cancelled = mode == Round::Down;
    match (x.1, y.1) {
        (0, 0) => return zero(if x.0 == y.0 { x.0 } else { cancelled }),
        (0, _) => return pack(y.0, y.1, y.2, false, f, mode),
        (_, 0) => return pack(x.0, x.1, x.2, false, f, mode),
        _ => {}
    }
    let norm = |(s, m, e): (bool, u128, i32)| {
        let up = m.leading_zeros() as i32 - 2;
        (s, m << up, e - up)
    };
    let (mut x, mut y) = (norm(x), norm(y));
    if (x.2, x.1) < (y.2, y.1) {
        std::mem::swap(&mut x, &mut y);
    }
    let gap = (x.2 - y.2) as u32;
    // what falls out is smaller than a unit of the 126 bits kept; after it fell out, cancellation costs one bit at most
    let (low, lost) = if gap >= 127 { (0, true) } else { (y.1 >> gap, y.1 & ((1u128 << gap) - 1) != 0) };
    if x.0 == y.0 {
        pack(x.0, x.1 + low, x.2, lost, f, mode)
    } else {
        let difference = x.1 - low - u128::from(lost);
        if difference == 0 && !lost {
            return zero(cancelled);
        }
        pack(x.0, difference, x.2, lost, f, mode)
    }
}

/// `a + b`
pub(crate) fn add(a: u64, b: u64, f: Format, mode: Round) -> u64 {
    fma(a, (f.bias() as u64) << f.man, b, f, mode)
}

/// `a * b`
pub(crate) fn mul(a: u64, b: u64, f: Format, mode: Round) -> u64 {
    let sign = (a ^ b) & f.sign_bit();
    match (unpack(a, f), unpack(b, f)) {
        (Num::Finite { man: ma, exp: ea, .. }, Num::Finite { man: mb, exp: eb, .. }) => {
            pack(sign != 0, ma * mb, ea + eb, false, f, mode)
        }
        (Num::Nan, _) | (_, Num::Nan) => f.nan(),
        (Num::Finite { man: 0, .. }, _) | (_, Num::Finite { man: 0, .. }) => f.nan(),
        _ => sign | f.inf(),
    }
}

/// `a / b`
pub(crate) fn div(a: u64, b: u64, f: Format, mode: Round) -> u64 {
    let sign = (a ^ b) & f.sign_bit();
    match (unpack(a, f), unpack(b, f)) {
        (Num::Nan, _) | (_, Num::Nan) | (Num::Inf(_), Num::Inf(_)) => f.nan(),
        (Num::Inf(_), _) => sign | f.inf(),
        (_, Num::Inf(_)) => sign,
        (Num::Finite { man: 0, .. }, Num::Finite { man: 0, .. }) => f.nan(),
        (_, Num::Finite { man: 0, .. }) => sign | f.inf(),
        (Num::Finite { man: ma, exp: ea, .. }, Num::Finite { man: mb, exp: eb, .. }) => {
            let up = ma.leading_zeros();
            let top = ma << up;
            pack(sign != 0, top / mb, ea - up as i32 - eb, top % mb != 0, f, mode)
        }
    }
}

/// The square root.
pub(crate) fn sqrt(a: u64, f: Format, mode: Round) -> u64 {
    match unpack(a, f) {
        Num::Finite { man: 0, .. } => a,
        Num::Nan | Num::Inf(true) | Num::Finite { negative: true, .. } => f.nan(),
        Num::Inf(false) => f.inf(),
        Num::Finite { man, exp, .. } => {
            let mut up = man.leading_zeros() as i32 & !1;
            if (exp - up) & 1 != 0 {
                up -= 1;
            }
            let (m, e) = (man << up, exp - up);
            let root = m.isqrt();
            pack(false, root, e / 2, root * root != m, f, mode)
        }
    }
}

/// From one format to another.
pub(crate) fn convert(bits: u64, from: Format, to: Format, mode: Round) -> u64 {
    match unpack(bits, from) {
        Num::Nan => to.nan(),
        Num::Inf(negative) => to.inf() | if negative { to.sign_bit() } else { 0 },
        Num::Finite { negative, man, exp } => pack(negative, man, exp, false, to, mode),
    }
}

/// From an integer.
pub(crate) fn from_int(negative: bool, magnitude: u64, to: Format, mode: Round) -> u64 {
    if magnitude == 0 { 0 } else { pack(negative, u128::from(magnitude), 0, false, to, mode) }
}

/// The integer that a rounding gives, as a double.
pub(crate) fn integral(value: f64, mode: Round) -> f64 {
    let whole = match mode {
        Round::Near => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
        Round::Away => value.round(),
    };
    if whole == 0.0 { whole.copysign(value) } else { whole }
}

/// Single to f16.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32, mode: Round) -> u16 {
    let bits = value.to_bits();
    if mode == Round::Near {
        return f32_to_f16_near(bits);
    }
    convert(u64::from(bits), F32, F16, mode) as u16
}

fn f32_to_f16_near(bits: u32) -> u16 {
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return NAN16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // below the normal f16: the addition of 0.5 rounds to a multiple of 2^-24, f16's last place there
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = magnitude >> 13 & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

/// f16 to single, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    if magnitude > 0x7c00 {
        return f32::from_bits(NAN32);
    }
    if magnitude == 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000);
    }
    // the exponent is rebiased by a multiplication, which also normalises subnormals
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(scaled.to_bits() | sign)
}

/// Single to bf16.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32, mode: Round) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return NAN16;
    }
    match mode {
        Round::Near => ((u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16) as u16,
        Round::Zero => (bits >> 16) as u16,
        _ => convert(u64::from(bits), F32, BF16, mode) as u16,
    }
}

/// bf16 to single: the same bits with zeros below.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// An 8-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fp8 {
    /// 4 exponent bits, no infinity, largest 448.
    E4m3,
    /// 5 exponent bits, largest finite 57344.
    E5m2,
}

/// Single to an 8-bit float, to nearest even and saturated to the largest finite value (PTX allows only that).
pub(crate) fn f32_to_fp8(value: f32, to: Fp8) -> u8 {
    let sign = (value.to_bits() >> 24 & 0x80) as u8;
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = u64::from(value.abs().to_bits());
    let (f, most) = match to {
        // one exponent bit more, so that the code 15, which here is not infinity, stays a number
        Fp8::E4m3 => (Format { man: 3, exp: 5 }, 0x7e),
        Fp8::E5m2 => (Format { man: 2, exp: 5 }, 0x7b),
    };
    let code = match to {
        Fp8::E5m2 => convert(magnitude, F32, f, Round::Near).min(most),
        Fp8::E4m3 => {
            // e4m3's bias is 7: rescale to the bias 15 of the wider format, but keep its subnormals' last place 2^-9
            let value = f64::from(value.abs());
            let least = 2f64.powi(-6);
            if value >= 480.0 {
                most
            } else if value < least {
                (value * 512.0).round_ties_even() as u64
            } else {
                let wide = convert((value.min(448.0) * 256.0).to_bits(), F64, Format { man: 3, exp: 8 }, Round::Near);
                // bias 127 and 2^8 in front: e4m3's exponent code is e - 127 - 8 + 7
                let (e, m) = ((wide >> 3) as i64 - 127 - 8 + 7, wide & 7);
                (((e as u64) << 3) | m).min(most)
            }
        }
    };
    sign | code as u8
}

/// An 8-bit float to single, exactly.
pub(crate) fn fp8_to_f32(bits: u8, from: Fp8) -> f32 {
    match from {
        Fp8::E5m2 => f16_to_f32(u16::from(bits) << 8),
        Fp8::E4m3 => {
            let magnitude = bits & 0x7f;
            if magnitude == 0x7f {
                return f32::from_bits(NAN32);
            }
            let (e, m) = (i32::from(magnitude >> 3), f32::from(magnitude & 7));
            let value = if e == 0 { m * 2f32.powi(-9) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
            if bits & 0x80 != 0 { -value } else { value }
        }
    }
}

/// Subnormal to zero of the same sign, where `FTZ`.
#[inline(always)]
pub(crate) fn flush<const FTZ: bool>(value: f32) -> f32 {
    if FTZ && value.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(value.to_bits() & 0x8000_0000) } else { value }
}

/// As [`flush`], where the constant says so.
#[inline(always)]
pub(crate) fn flush_if(value: f32, imm: u32) -> f32 {
    if imm & FTZ != 0 { flush::<true>(value) } else { value }
}

/// What the constant says of a result.
pub(crate) fn finish_if(value: f32, imm: u32) -> f32 {
    let value = flush_if(canonical(value), imm);
    if imm & SAT != 0 { saturate::<true>(value) } else { value }
}

/// PTX's NaN for any NaN. In integers, because a compiler may take one NaN for as good as another.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { NAN32 } else { bits })
}

/// The interval [0, 1], NaN to +0.
#[inline(always)]
pub(crate) fn saturate<const SAT: bool>(value: f32) -> f32 {
    if !SAT {
        value
    } else if value > 0.0 {
        value.min(1.0)
    } else {
        0.0
    }
}

//! Directed roundings of doubles by exact integers: the result is found among all doubles by comparing each candidate
//! with the exact value, never by rounding.

use std::cmp::Ordering;

/// Words of 64 bits: products and sums of doubles in units of 2^-2148 have at most 4200 bits.
const WORDS: usize = 68;
const UNIT: i32 = 2148;

/// A number in units of 2^-2148.
#[derive(Clone)]
struct Exact {
    negative: bool,
    words: [u64; WORDS],
}

/// Sign, significand and exponent of a finite double.
fn parts(x: f64) -> (bool, u64, i32) {
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 2047) as i32, bits & ((1 << 52) - 1));
    let negative = bits >> 63 != 0;
    if exponent == 0 { (negative, fraction, -1074) } else { (negative, fraction | 1 << 52, exponent - 1075) }
}

impl Exact {
    /// `a * b`
    fn product(a: f64, b: f64) -> Self {
        let ((sa, ma, ea), (sb, mb, eb)) = (parts(a), parts(b));
        let (man, shift) = (u128::from(ma) * u128::from(mb), (ea + eb + UNIT) as usize);
        let mut words = [0; WORDS];
        for bit in (0..106).filter(|bit| man >> bit & 1 != 0) {
            words[(shift + bit) / 64] |= 1 << ((shift + bit) % 64);
        }
        Self { negative: sa != sb, words }
    }

    fn zero(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        self.words.iter().rev().cmp(other.words.iter().rev())
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.zero() && other.zero(), self.negative, other.negative) {
            (true, ..) => Ordering::Equal,
            (_, false, true) => Ordering::Greater,
            (_, true, false) => Ordering::Less,
            (_, false, false) => self.magnitude(other),
            (_, true, true) => other.magnitude(self),
        }
    }

    fn sum(&self, other: &Self) -> Self {
        let (large, small) = if self.magnitude(other).is_lt() { (other, self) } else { (self, other) };
        let (mut words, mut carry) = ([0; WORDS], 0i128);
        for (i, word) in words.iter_mut().enumerate() {
            let term = i128::from(small.words[i]);
            let all = i128::from(large.words[i]) + if large.negative == small.negative { term } else { -term } + carry;
            *word = all as u64;
            carry = all >> 64;
        }
        Self { negative: large.negative, words }
    }
}

/// The double of a place in the order of all finite doubles.
fn at(key: i64) -> f64 {
    f64::from_bits(if key < 0 { (1 << 63) | (-key) as u64 } else { key as u64 })
}

/// Rounds what `compare` says of each candidate: its order relative to the exact value.
fn directed(compare: impl Fn(f64) -> Ordering, mode: &str) -> f64 {
    let most = f64::MAX.to_bits() as i64;
    // the last double that is not above the exact value, or the one before all
    let (mut low, mut high) = (-most - 1, most + 1);
    while low + 1 < high {
        let middle = i64::midpoint(low, high);
        if compare(at(middle)).is_gt() { high = middle } else { low = middle }
    }
    let exact = low >= -most && compare(at(low)).is_eq();
    let (below, above) = (low, if exact { low } else { low + 1 });
    let negative = compare(0.0).is_gt();
    let pick = match mode {
        "rm" => below,
        "rp" => above,
        _ if negative => above,
        _ => below,
    };
    match () {
        () if pick > most => f64::INFINITY,
        () if pick < -most => f64::NEG_INFINITY,
        // what is below zero and rounds up to it is minus zero
        () if pick == 0 && negative => -0.0,
        () => at(pick),
    }
}

/// `a * b + c`, rounded once.
pub fn fma(a: f64, b: f64, c: f64, mode: &str) -> f64 {
    let near = a.mul_add(b, c);
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return near;
    }
    let (product, addend) = (Exact::product(a, b), Exact::product(c, 1.0));
    let sum = product.sum(&addend);
    if sum.zero() {
        return match (product.negative, addend.negative) {
            (true, true) => -0.0,
            (false, false) => 0.0,
            _ if mode == "rm" => -0.0,
            _ => 0.0,
        };
    }
    directed(|x| Exact::product(x, 1.0).compare(&sum), mode)
}

/// `a * b`
pub fn mul(a: f64, b: f64, mode: &str) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a * b;
    }
    let product = Exact::product(a, b);
    directed(|x| Exact::product(x, 1.0).compare(&product), mode)
}

/// `a / b`
pub fn div(a: f64, b: f64, mode: &str) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let dividend = Exact::product(a, 1.0);
    let order = |x: f64| Exact::product(x, b).compare(&dividend);
    directed(|x| if b < 0.0 { order(x).reverse() } else { order(x) }, mode)
}

/// The square root.
pub fn sqrt(a: f64, mode: &str) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        return a.sqrt();
    }
    let radicand = Exact::product(a, 1.0);
    directed(|x| if x < 0.0 { Ordering::Less } else { Exact::product(x, x).compare(&radicand) }, mode)
}

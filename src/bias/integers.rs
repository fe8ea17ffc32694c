//! Powers of whole numbers, compared exactly: where a logarithm decides a bucket.

/// The largest number that divides both.
pub(super) fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// `base^exponent * start`, in digits of 2^32, the least first.
pub(super) fn power(base: usize, exponent: usize, start: Vec<u32>) -> Vec<u32> {
    let mut number = start;
    for _ in 0..exponent {
        let mut carry = 0u64;
        for digit in &mut number {
            // base is at most 2^20
            let value = u64::from(*digit) * base as u64 + carry;
            *digit = value as u32;
            carry = value >> 32;
        }
        if carry > 0 {
            number.push(carry as u32);
        }
    }
    number
}

/// `a >= b`; neither has leading zeros.
pub(super) fn at_least(a: &[u32], b: &[u32]) -> bool {
    (a.len(), a.iter().rev().collect::<Vec<_>>()) >= (b.len(), b.iter().rev().collect::<Vec<_>>())
}

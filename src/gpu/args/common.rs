//! Arguments that kernels of several rooms share.

use super::{In, args, codes, words};

codes! {
    /// Layout of a [`PositionArgs`].
    PositionKind {
        /// an id for each token
        IDS = 0,
        /// a start for each sequence
        STARTS = 1,
        /// sequences packed one after another, by `indptr`
        PACKED = 2,
    }

    /// The integer type of positions and ids.
    IdType {
        /// 32 bits
        I32 = 0,
        /// 64 bits
        I64 = 1,
        /// 32 bits without sign
        U32 = 2,
    }
}

args! {
    /// A number to divide by, made ready: `n / by` is `(n * multiplier) >> (31 + shift)`. A part of other arguments.
    Divisor {
        /// 2^(31 + shift) / by, rounded up
        multiplier: u32,
        /// log2 of by, rounded up
        shift: u32,
    }

    /// Token positions. A part of other arguments.
    PositionArgs {
        /// an id for each token, axis after axis, or a start for each sequence; null: 0
        ids: In,
        /// first token of each sequence of a packed batch, `sequences + 1` of them
        indptr: In,
        /// elements from one axis to the next in `ids`
        axis_stride: i64,
        /// elements from one sequence to the next in `ids`; 0: all share a row
        sequence_stride: i64,
        /// how `ids` is read
        kind: PositionKind,
        /// type of `ids`
        id_type: IdType,
        /// sequences of a packed batch
        sequences: u32,
    }
}

impl Divisor {
    /// For dividends below 2^31; `by` is 1 to 2^31.
    #[allow(dead_code, reason = "build.rs compiles this file too, and divides nothing")]
    pub(crate) const fn new(by: u32) -> Self {
        let shift = by.next_power_of_two().ilog2();
        // At most 2^31, and too large by less than 1: the quotient is too large by less than 1 / by.
        let multiplier = (1u64 << (31 + shift)).div_ceil(by as u64) as u32;
        Self { multiplier, shift, pad: [] }
    }
}

#[cfg(test)]
mod tests {
    use super::Divisor;

    #[test]
    fn a_divisor_divides_every_number_below_2_31() {
        let most = (1u64 << 31) - 1;
        let near = |n: u64| n.saturating_sub(2)..=(n + 2).min(most);
        let divisors = (1..=300).chain((1..31).flat_map(|n| near(1 << n))).chain(near(most)).filter(|&by| by > 0);
        for by in divisors {
            let Divisor { multiplier, shift, .. } = Divisor::new(by as u32);
            // Exactness can only fail where the quotient changes.
            let steps =
                (0..300).map(|i| i * by).chain((0..64).map(|i| most / by * by / 64 * i)).chain([most / by * by]);
            for n in steps.chain([most]).flat_map(near) {
                let quotient = ((2 * n * u64::from(multiplier)) >> 32) >> shift;
                assert_eq!(quotient, n / by, "{n} / {by}");
            }
        }
    }
}

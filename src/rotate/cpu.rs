//! RoPE on the CPU in vectors and threads: what [`Rope::rotate`] runs, and users without a GPU with it.
//!
//! The reference is the loop behind [`Rope::expect`]; tests hold this to it. They share the rates and nothing else.
//! Cosines and sines are made once for a block of tokens and serve all its heads. No library function and no branch stand
//! in the loops over pairs, so that the compiler makes vectors of them.

use std::sync::Arc;

use crate::cpu::vector::{sin_cos_of_phase, waves, wide};
use crate::cpu::{Kept, Lines, Part};
use crate::rotate::{Angles, Direction, Rope};
use crate::{Heads, Pairing, Result, Scalar};

/// Elements below which a thread is not worth its start, about 20 microseconds of work.
const GRAIN: usize = 1 << 16;
/// Pairs of a block of tokens, whose cosines and sines should stay in the first cache beside a few heads: 16 KiB.
const BLOCK: usize = 1024;

/// Rotates a tensor whose shape and positions, `[axes, batch, tokens]`, were checked: in place, or what `from` reads.
pub(super) fn rotate<T: Scalar>(
    rope: &Rope,
    from: Option<(&[T], &Heads)>,
    x: &mut [T],
    heads: &Heads,
    positions: &[i64],
    direction: Direction,
) -> Result<()> {
    let sharing = heads.heads / rope.sets();
    for set in 0..rope.sets() {
        let own = |of: &Heads| Heads { heads: sharing, offset: of.offset + set * sharing * of.strides[2], ..*of };
        let heads = own(heads);
        let from = from.map(|(from, of)| (from, own(of)));
        let from = from.as_ref().map(|(from, of)| (*from, of));
        let turner = Turner::new(rope, set, positions, heads.batch * heads.tokens, heads.tokens, direction);
        let turner = Turner { channel: rope.first_channel(heads.dim), ..turner };
        let x = &mut x[heads.offset..heads.span()?];
        turner.part(&heads).share_out(x, heads.dim, GRAIN, &|part, x| {
            wide(
                #[inline(always)]
                || turner.rotate(from, x, part),
            )
        });
    }
    Ok(())
}

/// The spec, made ready for one call.
struct Turner<'a> {
    rope: &'a Rope,
    /// of heads with the same frequencies
    set: usize,
    law: Arc<Law>,
    /// first rotated channel of a head
    channel: usize,
    /// axis of each pair, if there are several
    axes: Option<Vec<usize>>,
    /// pairs of a block of channels: all but for grids like Gemma 4's; no head has to divide for it
    block: usize,
    positions: &'a [i64],
    /// positions of one axis, and of one sequence
    row: usize,
    tokens: usize,
    factor: f64,
    sign: f64,
}

enum Law {
    Exact {
        /// turns per position in units of 2^-64
        rates: Vec<u64>,
        /// the waves of single tokens: a decoder rotates queries and keys of every layer at one position
        last: Kept<i64, [Lines; 2]>,
    },
    /// turns per position in units of 2^-64, `[axes, sets, pairs]`
    Mixed(Vec<u64>),
    /// radians per position
    Compat(Vec<f32>),
}

static LAWS: Kept<Rope, Law> = Kept::new();

impl Law {
    fn of(rope: &Rope) -> Arc<Self> {
        LAWS.of(rope, || {
            let pairs = 0..rope.pairs();
            match rope.angles {
                Angles::Exact => Self::Exact { rates: rope.all_rates(), last: Kept::new() },
                Angles::Mixed(_) => Self::Mixed(rope.all_rates()),
                Angles::HfCompat | Angles::Given(_) => {
                    Self::Compat(pairs.map(|pair| rope.compat_frequency(pair)).collect())
                }
            }
        })
    }
}

impl<'a> Turner<'a> {
    fn new(rope: &'a Rope, set: usize, positions: &'a [i64], row: usize, tokens: usize, direction: Direction) -> Self {
        let pairs = 0..rope.pairs();
        let axes = (rope.axes.count() > 1).then(|| pairs.clone().map(|i| rope.axes.axis(i, rope.pairs())).collect());
        let law = Law::of(rope);
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        let block = rope.pairs() / rope.axes.blocks();
        let factor = rope.attention_factor;
        Self { rope, set, law, channel: rope.offset, axes, block, positions, row, tokens, factor, sign }
    }

    /// All of a tensor.
    fn part(&self, heads: &Heads) -> Part {
        Part::whole([heads.batch, heads.tokens, heads.heads], heads.strides)
    }

    #[inline(always)]
    fn rotate<T: Scalar>(&self, from: Option<(&[T], &Heads)>, x: &mut [T], part: Part) {
        let ([batch, tokens, heads], [_, token_stride, head_stride]) = (part.sizes, part.strides);
        let pairs = self.rope.pairs();
        let block = (BLOCK / pairs).clamp(1, tokens);
        let [mut sin, mut cos] = [(); 2].map(|()| Lines::new(0.0, block * pairs));
        // Other types are widened, and a head whose pairs move has a copy; `f32` is turned where it lies.
        let mut row = if T::NAME == f32::NAME && self.rope.pairing == self.rope.written() {
            Vec::new()
        } else {
            vec![0f32; 4 * pairs]
        };
        for b in 0..batch {
            for first in (0..tokens).step_by(block) {
                let block = first..(first + block).min(tokens);
                for (t, (sin, cos)) in block.clone().zip(sin.chunks_exact_mut(pairs).zip(cos.chunks_exact_mut(pairs))) {
                    self.turns(part.first[0] + b, part.first[1] + t, sin, cos);
                }
                // In the order of memory.
                let (outer, inner) =
                    if head_stride < token_stride { (block.clone(), 0..heads) } else { (0..heads, block) };
                for i in outer {
                    for j in inner.clone() {
                        let (t, h) = if head_stride < token_stride { (i, j) } else { (j, i) };
                        let at = part.at(b, t, h);
                        if let Some((from, heads)) = from {
                            let [b, t, h] = [part.first[0] + b, part.first[1] + t, part.first[2] + h];
                            let from_at = heads.index(b, t, h, 0);
                            x[at..at + heads.dim].copy_from_slice(&from[from_at..from_at + heads.dim]);
                        }
                        let at = at + self.channel;
                        let turn = (t - first) * pairs..(t - first + 1) * pairs;
                        self.turn(&mut x[at..at + 2 * pairs], &sin[turn.clone()], &cos[turn], &mut row);
                    }
                }
            }
        }
    }

    /// Sine and cosine of every pair at one token, with direction and factor.
    #[inline(always)]
    fn turns(&self, batch: usize, token: usize, sin: &mut [f64], cos: &mut [f64]) {
        let at = |axis: usize| self.positions[axis * self.row + batch * self.tokens + token];
        let scaled = |(s, c): (f64, f64)| (s * (self.factor * self.sign), c * self.factor);
        let out = sin.iter_mut().zip(cos.iter_mut());
        match (&*self.law, &self.axes) {
            (Law::Exact { rates, last }, None) if self.row == 1 => {
                let last = last.of(&at(0), || waves(rates, at(0) as u64));
                for ((s, c), last) in out.zip(last[0].iter().zip(&*last[1])) {
                    (*s, *c) = scaled((*last.0, *last.1));
                }
            }
            (Law::Exact { rates, .. }, None) => {
                let position = at(0) as u64;
                for ((s, c), rate) in out.zip(rates) {
                    (*s, *c) = scaled(sin_cos_of_phase(rate.wrapping_mul(position)));
                }
            }
            (Law::Exact { rates, .. }, Some(axes)) => {
                for (((s, c), rate), &axis) in out.zip(rates).zip(axes) {
                    (*s, *c) = scaled(sin_cos_of_phase(rate.wrapping_mul(at(axis) as u64)));
                }
            }
            (Law::Mixed(rates), _) => {
                let pairs = sin.len();
                let rates = rates.chunks_exact(pairs).skip(self.set).step_by(self.rope.sets());
                for (pair, (s, c)) in sin.iter_mut().zip(cos).enumerate() {
                    let turned = |axis, rates: &[u64]| rates[pair].wrapping_mul(at(axis) as u64);
                    let phases = rates.clone().enumerate().map(|(axis, rates)| turned(axis, rates));
                    (*s, *c) = scaled(sin_cos_of_phase(phases.fold(0, u64::wrapping_add)));
                }
            }
            (Law::Compat(frequencies), axes) => {
                for (pair, ((s, c), frequency)) in out.zip(frequencies).enumerate() {
                    let position = at(axes.as_ref().map_or(0, |axes| axes[pair]));
                    (*s, *c) = scaled(f64::from(position as f32 * frequency).sin_cos());
                }
            }
        }
    }

    /// Rotates the pairs of one head.
    #[inline(always)]
    fn turn<T: Scalar>(&self, x: &mut [T], sin: &[f64], cos: &[f64], row: &mut [f32]) {
        let (from, to) = (self.rope.pairing, self.rope.written());
        if T::NAME == f32::NAME && from == to {
            return self.turn_blocks(bytemuck::cast_slice_mut(x), sin, cos);
        }
        let (row, moved) = row.split_at_mut(x.len());
        T::widen(x, row);
        self.turn_blocks(row, sin, cos);
        if from == to {
            return T::narrow(row, x);
        }
        for pair in 0..sin.len() {
            let ((a, b), (a_out, b_out)) = (self.rope.channels(from, pair), self.rope.channels(to, pair));
            (moved[a_out], moved[b_out]) = (row[a], row[b]);
        }
        T::narrow(moved, x);
    }

    /// Each block of channels for itself.
    #[inline(always)]
    fn turn_blocks(&self, x: &mut [f32], sin: &[f64], cos: &[f64]) {
        if self.block == sin.len() {
            return turn_row(x, sin, cos, self.rope.pairing);
        }
        let turns = sin.chunks_exact(self.block).zip(cos.chunks_exact(self.block));
        for (x, (sin, cos)) in x.chunks_exact_mut(2 * self.block).zip(turns) {
            turn_row(x, sin, cos, self.rope.pairing);
        }
    }
}

/// `a' = a cos - b sin`, `b' = a sin + b cos` for every pair of a head.
#[inline(always)]
fn turn_row(x: &mut [f32], sin: &[f64], cos: &[f64], pairing: Pairing) {
    let turn = |a: &mut f32, b: &mut f32, sin: f64, cos: f64| {
        let (x, y) = (f64::from(*a), f64::from(*b));
        (*a, *b) = (x.mul_add(cos, -(y * sin)) as f32, x.mul_add(sin, y * cos) as f32);
    };
    let turns = sin.iter().zip(cos);
    match pairing {
        Pairing::Half => {
            let (a, b) = x.split_at_mut(sin.len());
            let (a8, a) = a.as_chunks_mut::<8>();
            let (b8, b) = b.as_chunks_mut::<8>();
            let (sin8, sin) = sin.as_chunks::<8>();
            let (cos8, cos) = cos.as_chunks::<8>();
            for (((a, b), sin), cos) in a8.iter_mut().zip(b8).zip(sin8).zip(cos8) {
                let (mut c, mut d) = ([0f32; 8], [0f32; 8]);
                for i in 0..8 {
                    let (x, y) = (f64::from(a[i]), f64::from(b[i]));
                    (c[i], d[i]) = (x.mul_add(cos[i], -(y * sin[i])) as f32, x.mul_add(sin[i], y * cos[i]) as f32);
                }
                (*a, *b) = (c, d);
            }
            for ((a, b), (&sin, &cos)) in a.iter_mut().zip(b).zip(sin.iter().zip(cos)) {
                turn(a, b, sin, cos);
            }
        }
        Pairing::Interleaved => {
            for (pair, (&sin, &cos)) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                let [a, b] = pair;
                turn(a, b, sin, cos);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::{assert_close, rounded_on_cpu};
    use crate::rotate::Axes;
    use half::{bf16, f16};

    /// Numbers of magnitude 0.5 to 2 by index, no two alike.
    fn data<T: Scalar>(n: usize) -> Vec<T> {
        let value = |i: usize| {
            let bits = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64) * if bits & 1 == 0 { 1.0 } else { -1.0 }
        };
        (0..n).map(|i| T::from_f64(value(i))).collect()
    }

    /// Compares with the reference: half an ulp, one of f32 where that is between, and what the doc says of the pair.
    #[track_caller]
    fn check<T: Scalar>(rope: &Rope, heads: &Heads, grain: Option<usize>) {
        let x = data::<T>(heads.span().unwrap() + 3);
        let row = heads.batch * heads.tokens;
        let positions: Vec<i64> = (0..row * rope.position_axes())
            .map(|i| [0, 1, -1, 131_071, (1 << 31) - 1, -(1 << 31), 7][i % 7] + i as i64 / 7)
            .collect();
        for direction in [Direction::Forward, Direction::Inverse] {
            let expected = rope.expect(&x, heads, &positions, direction).unwrap();
            let mut got = x.clone();
            match grain {
                None => rope.rotate(&mut got, heads, &positions, direction).unwrap(),
                Some(grain) => {
                    let turner = Turner::new(rope, 0, &positions, row, heads.tokens, direction);
                    let x = &mut got[heads.offset..heads.span().unwrap()];
                    turner.part(heads).cut(x, heads.dim, grain, &|part, x| turner.rotate(None, x, part));
                }
            }
            assert_close(&got, &expected.want, |i| {
                let want = expected.want[i];
                if expected.bound[i] == 0.0 {
                    return 0.0;
                }
                // Of a pair of numbers up to 2.
                let error = rope.attention_factor * 4.0 * 2e-15;
                rounded_on_cpu::<T>(want, error)
            });
        }
    }

    fn ropes() -> Vec<Rope> {
        let plain = Rope::new(12, 10_000.0);
        vec![
            plain.clone(),
            Rope { pairing: Pairing::Interleaved, offset: 3, attention_factor: 1.25, ..plain.clone() },
            Rope { pairing: Pairing::Interleaved, pairing_out: Some(Pairing::Half), ..plain.clone() },
            Rope { pairing_out: Some(Pairing::Interleaved), offset: 1, ..plain.clone() },
            Rope { axes: Axes::Sections(vec![2, 3, 1]), ..plain.clone() },
            Rope { axes: Axes::Blocks(2), ..plain.clone() },
            Rope { axes: Axes::Blocks(3), pairing_out: Some(Pairing::Interleaved), ..plain.clone() },
            Rope { angles: Angles::HfCompat, ..plain },
        ]
    }

    fn layouts() -> Vec<Heads> {
        vec![
            Heads::thd(1, 1, 17),
            Heads::bthd(3, 5, 2, 16),
            Heads::bhtd(2, 3, 200, 16).at(2),
            Heads::bthd(2, 7, 3, 15).row(100).at(5),
            Heads { strides: [16, 80, 500], ..Heads::bthd(5, 6, 4, 16) },
        ]
    }

    #[test]
    fn rotate_is_its_reference() {
        for rope in ropes() {
            for heads in layouts() {
                check::<f32>(&rope, &heads, None);
                check::<f16>(&rope, &heads, None);
                check::<bf16>(&rope, &heads, None);
            }
        }
    }

    /// In other strides and not in place: the bits of the rotation in place, whatever lay there, and nothing in between.
    #[test]
    fn rotate_to_has_the_bits_of_rotate() {
        fn check<T: Scalar + PartialEq>(rope: &Rope, heads: &Heads, out_heads: &Heads) {
            let x = data::<T>(heads.span().unwrap());
            let positions: Vec<i64> =
                (0..heads.batch * heads.tokens * rope.axes.count()).map(|i| 3 * i as i64 - 7).collect();
            let poison = T::from_f64(9.0);
            let mut want = vec![poison; out_heads.span().unwrap() + 3];
            for b in 0..heads.batch {
                for t in 0..heads.tokens {
                    for h in 0..heads.heads {
                        let [from, to] = [heads, out_heads].map(|of| of.index(b, t, h, 0));
                        want[to..to + heads.dim].copy_from_slice(&x[from..from + heads.dim]);
                    }
                }
            }
            rope.rotate(&mut want, out_heads, &positions, Direction::Inverse).unwrap();
            let mut out = vec![poison; want.len()];
            rope.rotate_to((&x, heads), (&mut out, out_heads), &positions, Direction::Inverse).unwrap();
            assert_eq!(out, want);
        }
        for rope in ropes() {
            for (heads, out_heads) in [
                (Heads::bthd(2, 5, 3, 16), Heads::bhtd(2, 3, 5, 16).at(3)),
                (Heads::bthd(2, 5, 3, 16).row(100).at(7), Heads::bthd(2, 5, 3, 16).row(70)),
                // One head for all, as a framework's expanded tensor has it; and a large one, for threads.
                (Heads { strides: [80, 16, 0], ..Heads::bthd(2, 5, 3, 16) }, Heads::bthd(2, 5, 3, 16)),
                (Heads::bhtd(1, 8, 1100, 16), Heads::bthd(1, 1100, 8, 16)),
            ] {
                check::<f32>(&rope, &heads, &out_heads);
                check::<f16>(&rope, &heads, &out_heads);
                check::<bf16>(&rope, &heads, &out_heads);
            }
        }
        let (rope, heads) = (Rope::new(4, 1e4), Heads::thd(2, 1, 4));
        let to = |x: &[f32], out_heads: &Heads| {
            let out = &mut [0.0f32; 16][..];
            rope.rotate_to((x, &heads), (out, out_heads), &[0, 1], Direction::Forward).unwrap_err().to_string()
        };
        assert_eq!(to(&[0.0; 7], &heads), "x holds 7 elements, the shape needs 8");
        let sizes = "x has the sizes [1, 2, 1, 4] and out [1, 2, 2, 4] (batch, tokens, heads, dim), they must be equal";
        assert_eq!(to(&[0.0; 8], &Heads::thd(2, 2, 4)), sizes);
        assert_eq!(to(&[0.0; 8], &Heads::thd(2, 1, 4).at(9)), "out holds 16 elements, the shape needs 17");
    }

    #[test]
    fn every_way_of_sharing_out_gives_the_reference() {
        for rope in ropes() {
            for heads in layouts() {
                for grain in [0, 1, 40, 300] {
                    check::<f32>(&rope, &heads, Some(grain));
                }
            }
        }
    }

    #[test]
    fn a_large_tensor_is_shared_among_threads() {
        let rope = Rope::new(64, 500_000.0);
        for heads in [Heads::thd(1500, 8, 64), Heads::bhtd(2, 8, 700, 64)] {
            let x = data::<f32>(heads.span().unwrap());
            let positions: Vec<i64> = (0..1500).collect();
            let [one, two] = [1, 3].map(|threads| {
                let mut x = x.clone();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| rope.rotate(&mut x, &heads, &positions, Direction::Forward)).unwrap();
                x
            });
            assert_eq!(one, two);
            check::<f32>(&rope, &heads, None);
        }
    }
}

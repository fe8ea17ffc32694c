//! RoPE on the CPU in vectors and threads: what [`Rope::rotate`] runs, and users without a GPU with it.
//!
//! The reference is the loop behind [`Rope::expect`]; tests hold this to it. They share the rates and nothing else.
//! Cosines and sines are computed in f64 once for a block of tokens and serve all its heads; half types are rotated by their
//! nearest f32. No library function and no branch stand in the loops over pairs, so that the compiler makes vectors of them.

use std::sync::Arc;

use half::f16;

use crate::cpu::vector::{sin_cos_of_phase, through, wide};
use crate::cpu::{Kept, Lines, Part, Width};
use crate::rotate::rope::{Law, Rates};
use crate::rotate::{Direction, Rope};
use crate::{Heads, Pairing, Result, Scalar};

/// Elements below which a thread is not worth its start, about 10 microseconds of work.
const GRAIN: usize = 1 << 16;
/// Pairs of a block of tokens, whose cosines and sines should stay in the first cache beside a few heads: 16 KiB.
const BLOCK: usize = 1024;
/// Pairs of all tokens whose cosines and sines are kept: 1 MiB in f64, 1024 tokens of 128 channels.
const MOST_KEPT: usize = 1 << 16;

/// Sines and cosines of the last calls of a spec, `[tokens, pairs]`: a model rotates queries and keys of every layer at the same
/// positions.
pub(super) struct Turns {
    f64: KeptTurns<f64>,
    f32: KeptTurns<f32>,
}

type KeptTurns<N> = Kept<Key, [Lines<N>; 2], 4>;

impl Turns {
    pub(super) const fn new() -> Self {
        Self { f64: Kept::new(), f32: Kept::new() }
    }
}

struct Key {
    /// `[axes, batch, tokens]`
    positions: Vec<i64>,
    set: usize,
    direction: Direction,
}

/// Rotates a tensor whose shape and positions, `[axes, batch, tokens]`, were checked: in place, or what `from` reads.
pub(super) fn rotate<T: Scalar>(
    of: (&Rope, &Law),
    from: Option<(&[T], &Heads)>,
    x: &mut [T],
    heads: &Heads,
    positions: &[i64],
    direction: Direction,
) -> Result<()> {
    if T::NAME == f32::NAME {
        rotate_by::<T, f64>(of, from, x, heads, positions, direction)
    } else {
        rotate_by::<T, f32>(of, from, x, heads, positions, direction)
    }
}

fn rotate_by<T: Scalar, N: Number>(
    (rope, law): (&Rope, &Law),
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
        let turner = Turner::new((rope, law), set, positions, &heads, direction);
        let kept = turner.kept::<N>();
        let kept = kept.as_deref();
        let x = &mut x[heads.offset..heads.span()?];
        turner.part(&heads).share_out(x, heads.dim, GRAIN, &|part, x| {
            wide(
                #[inline(always)]
                |width| turner.rotate(width, kept, from, x, part),
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
    law: &'a Law,
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
    direction: Direction,
}

impl<'a> Turner<'a> {
    fn new(
        (rope, law): (&'a Rope, &'a Law),
        set: usize,
        positions: &'a [i64],
        heads: &Heads,
        direction: Direction,
    ) -> Self {
        let pairs = 0..rope.pairs();
        let axes = (rope.axes.count() > 1).then(|| pairs.clone().map(|i| rope.axes.axis(i, rope.pairs())).collect());
        let block = rope.pairs() / rope.axes.blocks();
        let (channel, tokens) = (rope.first_channel(heads.dim), heads.tokens);
        Self { rope, set, law, channel, axes, block, positions, row: heads.batch * tokens, tokens, direction }
    }

    /// All of a tensor.
    fn part(&self, heads: &Heads) -> Part {
        Part::whole([heads.batch, heads.tokens, heads.heads], heads.strides)
    }

    /// Sines and cosines of all tokens, if they are few enough to be kept.
    fn kept<N: Number>(&self) -> Option<Arc<[Lines<N>; 2]>> {
        let pairs = self.rope.pairs();
        if self.row.saturating_mul(pairs) > MOST_KEPT {
            return None;
        }
        let same =
            |key: &Key| key.positions == self.positions && key.set == self.set && key.direction == self.direction;
        let key = || Key { positions: self.positions.to_vec(), set: self.set, direction: self.direction };
        Some(N::kept(&self.law.turns).of_key(same, key, || {
            let [mut sin, mut cos] = [(); 2].map(|()| Lines::new(N::of(0.0), self.row * pairs));
            wide(
                #[inline(always)]
                |_| {
                    for (row, (sin, cos)) in sin.chunks_exact_mut(pairs).zip(cos.chunks_exact_mut(pairs)).enumerate() {
                        self.turns(row, sin, cos);
                    }
                },
            );
            [sin, cos]
        }))
    }

    #[inline(always)]
    fn rotate<T: Scalar, N: Number>(
        &self,
        width: Width,
        kept: Option<&[Lines<N>; 2]>,
        from: Option<(&[T], &Heads)>,
        x: &mut [T],
        part: Part,
    ) {
        let ([batch, tokens, heads], [_, token_stride, head_stride]) = (part.sizes, part.strides);
        let pairs = self.rope.pairs();
        let block = (BLOCK / pairs).clamp(1, tokens);
        let [mut sin, mut cos] =
            [(); 2].map(|()| Lines::new(N::of(0.0), if kept.is_some() { 0 } else { block * pairs }));
        // Of a head whose pairs move: what is rotated, and where it goes.
        let mut row = vec![0f32; if self.rope.pairing == self.rope.written() { 0 } else { 4 * pairs }];
        for b in 0..batch {
            for first in (0..tokens).step_by(block) {
                let block = first..(first + block).min(tokens);
                // The block's first position.
                let at = (part.first[0] + b) * self.tokens + part.first[1] + first;
                let (sin, cos) = match kept {
                    Some([sin, cos]) => (&sin[at * pairs..], &cos[at * pairs..]),
                    None => {
                        let turns = sin.chunks_exact_mut(pairs).zip(cos.chunks_exact_mut(pairs));
                        (at..at + block.len()).zip(turns).for_each(|(at, (sin, cos))| self.turns(at, sin, cos));
                        (&*sin, &*cos)
                    }
                };
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
                        self.turn(width, &mut x[at..at + 2 * pairs], &sin[turn.clone()], &cos[turn], &mut row);
                    }
                }
            }
        }
    }

    /// Sine and cosine of every pair at one position, with direction and factor.
    #[inline(always)]
    fn turns<N: Number>(&self, row: usize, sin: &mut [N], cos: &mut [N]) {
        let at = |axis: usize| self.positions[axis * self.row + row];
        let factor = self.rope.attention_factor;
        let signed = if self.direction == Direction::Forward { factor } else { -factor };
        let scaled = |(s, c): (f64, f64)| (N::of(s * signed), N::of(c * factor));
        let out = sin.iter_mut().zip(cos.iter_mut());
        match (&self.law.rates, &self.axes) {
            (Rates::Exact(rates), None) => {
                let position = at(0) as u64;
                for ((s, c), rate) in out.zip(rates) {
                    (*s, *c) = scaled(sin_cos_of_phase(rate.wrapping_mul(position)));
                }
            }
            (Rates::Exact(rates), Some(axes)) => {
                for (((s, c), rate), &axis) in out.zip(rates).zip(axes) {
                    (*s, *c) = scaled(sin_cos_of_phase(rate.wrapping_mul(at(axis) as u64)));
                }
            }
            (Rates::Mixed(rates), _) => {
                let pairs = sin.len();
                let rates = rates.chunks_exact(pairs).skip(self.set).step_by(self.rope.sets());
                for (pair, (s, c)) in sin.iter_mut().zip(cos).enumerate() {
                    let turned = |axis, rates: &[u64]| rates[pair].wrapping_mul(at(axis) as u64);
                    let phases = rates.clone().enumerate().map(|(axis, rates)| turned(axis, rates));
                    (*s, *c) = scaled(sin_cos_of_phase(phases.fold(0, u64::wrapping_add)));
                }
            }
            (Rates::Compat(frequencies), axes) => {
                for (pair, ((s, c), frequency)) in out.zip(frequencies).enumerate() {
                    let position = at(axes.as_ref().map_or(0, |axes| axes[pair]));
                    (*s, *c) = scaled(f64::from(position as f32 * frequency).sin_cos());
                }
            }
        }
    }

    /// Rotates the pairs of one head.
    #[inline(always)]
    fn turn<T: Scalar, N: Number>(&self, width: Width, x: &mut [T], sin: &[N], cos: &[N], row: &mut [f32]) {
        let (from, to) = (self.rope.pairing, self.rope.written());
        if from == to {
            return self.turn_blocks(width, x, sin, cos);
        }
        let (row, moved) = row.split_at_mut(x.len());
        T::widen(width, x, row);
        self.turn_blocks(width, row, sin, cos);
        for pair in 0..sin.len() {
            let ((a, b), (a_out, b_out)) = (self.rope.channels(from, pair), self.rope.channels(to, pair));
            (moved[a_out], moved[b_out]) = (row[a], row[b]);
        }
        T::narrow(width, moved, x);
    }

    /// Each block of channels for itself.
    #[inline(always)]
    fn turn_blocks<T: Scalar, N: Number>(&self, width: Width, x: &mut [T], sin: &[N], cos: &[N]) {
        if self.block == sin.len() {
            return turn_row(width, self.rope.pairing, x, sin, cos);
        }
        let turns = sin.chunks_exact(self.block).zip(cos.chunks_exact(self.block));
        for (x, (sin, cos)) in x.chunks_exact_mut(2 * self.block).zip(turns) {
            turn_row(width, self.rope.pairing, x, sin, cos);
        }
    }
}

/// What pairs of f32 are rotated in: f64 for results in f32, f32 for those in half types.
trait Number: bytemuck::Pod + Send + Sync {
    /// Where its sines and cosines are kept.
    fn kept(turns: &Turns) -> &KeptTurns<Self>;
    fn of(value: f64) -> Self;
    /// `a cos - b sin` and `a sin + b cos`, rounded to f32.
    fn turn(pair: [f32; 2], sin: Self, cos: Self) -> [f32; 2];
}

impl Number for f64 {
    fn kept(turns: &Turns) -> &KeptTurns<Self> {
        &turns.f64
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn turn(pair: [f32; 2], sin: Self, cos: Self) -> [f32; 2] {
        let [a, b] = pair.map(f64::from);
        [a.mul_add(cos, -(b * sin)) as f32, a.mul_add(sin, b * cos) as f32]
    }
}

impl Number for f32 {
    fn kept(turns: &Turns) -> &KeptTurns<Self> {
        &turns.f32
    }
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn turn([a, b]: [f32; 2], sin: Self, cos: Self) -> [f32; 2] {
        [a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos)]
    }
}

/// Rotates the pairs of a row.
#[inline(always)]
fn turn_row<T: Scalar, N: Number>(width: Width, pairing: Pairing, x: &mut [T], sin: &[N], cos: &[N]) {
    // 512 bits of what pairs are rotated in.
    match pairing {
        Pairing::Half if T::NAME == f32::NAME => turn_halves::<T, N, 8>(width, x, sin, cos),
        Pairing::Half => turn_halves::<T, N, 16>(width, x, sin, cos),
        Pairing::Interleaved if T::NAME == f16::NAME => turn_packs_of_neighbours::<T, N, 16>(width, x, sin, cos),
        Pairing::Interleaved => turn_neighbours(width, x, sin, cos),
    }
}

/// A row whose second half has each pair's second channel: `P` pairs at a time, which so stay in registers.
#[inline(always)]
fn turn_halves<T: Scalar, N: Number, const P: usize>(width: Width, x: &mut [T], sin: &[N], cos: &[N]) {
    let (a, b) = x.split_at_mut(sin.len());
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks_mut::<P>(), b.as_chunks_mut::<P>());
    let ((sin, sin_rest), (cos, cos_rest)) = (sin.as_chunks::<P>(), cos.as_chunks::<P>());
    for ((a, b), (sin, cos)) in a.iter_mut().zip(b).zip(sin.iter().zip(cos)) {
        turn_pack(width, [a, b], sin, cos);
    }
    if !a_rest.is_empty() {
        let [mut a, mut b] = [&*a_rest, &*b_rest].map(|rest| filled::<_, P>(rest, T::from_f32(0.0)));
        let [sin, cos] = [sin_rest, cos_rest].map(|rest| filled::<_, P>(rest, N::of(0.0)));
        turn_pack(width, [&mut a, &mut b], &sin, &cos);
        a_rest.copy_from_slice(&a[..a_rest.len()]);
        b_rest.copy_from_slice(&b[..b_rest.len()]);
    }
}

#[inline(always)]
fn turn_pack<T: Scalar, N: Number, const P: usize>(width: Width, [a, b]: [&mut [T; P]; 2], sin: &[N; P], cos: &[N; P]) {
    let [mut x, mut y, mut c, mut d] = [[0f32; P]; 4];
    T::widen(width, a, &mut x);
    T::widen(width, b, &mut y);
    for i in 0..P {
        [c[i], d[i]] = N::turn([x[i], y[i]], sin[i], cos[i]);
    }
    T::narrow(width, &c, a);
    T::narrow(width, &d, b);
}

/// A row whose pairs are neighbours. Of this loop a compiler makes vectors with shuffles, of one over packs in f16 alone.
#[inline(always)]
fn turn_neighbours<T: Scalar, N: Number>(width: Width, x: &mut [T], sin: &[N], cos: &[N]) {
    through(
        width,
        x,
        true,
        #[inline(always)]
        |first, x| {
            let at = first / 2..(first + x.len()) / 2;
            for (pair, (sin, cos)) in x.as_chunks_mut::<2>().0.iter_mut().zip(sin[at.clone()].iter().zip(&cos[at])) {
                *pair = N::turn(*pair, *sin, *cos);
            }
        },
    );
}

/// The same in packs.
#[inline(always)]
fn turn_packs_of_neighbours<T: Scalar, N: Number, const P: usize>(width: Width, x: &mut [T], sin: &[N], cos: &[N]) {
    let (x, rest) = x.as_chunks_mut::<2>().0.as_chunks_mut::<P>();
    let ((sin, sin_rest), (cos, cos_rest)) = (sin.as_chunks::<P>(), cos.as_chunks::<P>());
    for (x, (sin, cos)) in x.iter_mut().zip(sin.iter().zip(cos)) {
        turn_pairs(width, x, sin, cos);
    }
    if !rest.is_empty() {
        let mut pack = filled::<_, P>(rest, [T::from_f32(0.0); 2]);
        let [sin, cos] = [sin_rest, cos_rest].map(|rest| filled::<_, P>(rest, N::of(0.0)));
        turn_pairs(width, &mut pack, &sin, &cos);
        rest.copy_from_slice(&pack[..rest.len()]);
    }
}

#[inline(always)]
fn turn_pairs<T: Scalar, N: Number, const P: usize>(width: Width, x: &mut [[T; 2]; P], sin: &[N; P], cos: &[N; P]) {
    let mut pairs = [[0f32; 2]; P];
    T::widen(width, x.as_flattened(), pairs.as_flattened_mut());
    // As halves of whole numbers, which are shifted in vectors.
    let mut words: [u64; P] = bytemuck::cast(pairs);
    for (word, (sin, cos)) in words.iter_mut().zip(sin.iter().zip(cos)) {
        let [a, b] = N::turn([*word as u32, (*word >> 32) as u32].map(f32::from_bits), *sin, *cos).map(f32::to_bits);
        *word = u64::from(a) | u64::from(b) << 32;
    }
    pairs = bytemuck::cast(words);
    T::narrow(width, pairs.as_flattened(), x.as_flattened_mut());
}

/// A pack of what is left of a row.
#[inline(always)]
fn filled<X: Copy, const P: usize>(rest: &[X], with: X) -> [X; P] {
    let mut pack = [with; P];
    pack[..rest.len()].copy_from_slice(rest);
    pack
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::{assert_close, rounded_on_cpu};
    use crate::rotate::{Angles, Axes, Mixed};
    use half::bf16;

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
                    let law = Law::of(rope).unwrap();
                    let turner = Turner::new((rope, &law), 0, &positions, heads, direction);
                    let x = &mut got[heads.offset..heads.span().unwrap()];
                    let mut rotate = |part, x: &mut [T]| match T::NAME == f32::NAME {
                        true => turner.rotate::<T, f64>(Width::Least, None, None, x, part),
                        false => turner.rotate::<T, f32>(Width::Least, None, None, x, part),
                    };
                    turner.part(heads).cut(x, heads.dim, grain, &mut rotate);
                }
            }
            assert_close(&got, &expected.want, |i| {
                let want = expected.want[i];
                if expected.bound[i] == 0.0 {
                    return 0.0;
                }
                // Of a pair of numbers up to 2.
                let error = rope.attention_factor * 4.0 * if T::NAME == f32::NAME { 2e-15 } else { 1.2e-7 };
                rounded_on_cpu::<T>(want, error)
            });
        }
    }

    /// Packs of 8 and 16 pairs, and what is left of them.
    #[test]
    fn rows_of_several_packs() {
        for rotary in [16, 30, 32, 66, 128] {
            for pairing in [Pairing::Half, Pairing::Interleaved] {
                let (rope, heads) = (Rope { pairing, ..Rope::new(rotary, 10_000.0) }, Heads::thd(3, 2, rotary));
                check::<f32>(&rope, &heads, None);
                check::<f16>(&rope, &heads, None);
                check::<bf16>(&rope, &heads, None);
            }
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

    /// Calls of one spec after one another, each with its own positions, direction and number of tokens: few, and too many to keep.
    #[test]
    fn kept_sines_are_those_of_the_call() {
        fn check<T: Scalar>(rope: &Rope) {
            for tokens in [6, MOST_KEPT / rope.pairs() + 1, 6] {
                let heads = Heads::thd(tokens, 2, rope.rotary);
                let x = data::<T>(heads.span().unwrap());
                for (first, direction) in [
                    (0, Direction::Forward),
                    (1, Direction::Forward),
                    (1, Direction::Inverse),
                    (0, Direction::Forward),
                    (0, Direction::Inverse),
                ] {
                    let positions: Vec<i64> = (first..).step_by(7919).take(tokens * rope.position_axes()).collect();
                    let expected = rope.expect(&x, &heads, &positions, direction).unwrap();
                    let mut got = x.clone();
                    rope.rotate(&mut got, &heads, &positions, direction).unwrap();
                    assert_close(&got, &expected.want, |i| rounded_on_cpu::<T>(expected.want[i], 1e-6));
                }
            }
        }
        let mixed = Mixed { axes: 2, heads: 2, frequencies: (0..64).map(|i| 0.9f64.powi(i)).collect() };
        for angles in [Angles::Exact, Angles::Mixed(mixed)] {
            let rope = Rope { angles, ..Rope::new(32, 10_000.0) };
            check::<f32>(&rope);
            check::<f16>(&rope);
        }
    }

    #[test]
    fn every_width_gives_the_same_bits() {
        fn check<T: Scalar + PartialEq>() {
            for rope in ropes() {
                let heads = Heads::bthd(2, 7, 3, 15).row(100).at(5);
                let x = data::<T>(heads.span().unwrap());
                let positions: Vec<i64> = (0..14 * rope.axes.count() as i64).map(|i| i * 7919).collect();
                let mut first = None;
                Width::each(|_| {
                    let mut x = x.clone();
                    rope.rotate(&mut x, &heads, &positions, Direction::Forward).unwrap();
                    assert_eq!(*first.get_or_insert_with(|| x.clone()), x);
                });
            }
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
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

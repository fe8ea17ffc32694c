//! Embeddings on the CPU in vectors and threads: what `write`, `add`, `write_times` and `gather` run.
//!
//! The laws ([`Sinusoid::value`], [`Sinusoid::value_at`]) and the loop behind [`Learned::expect`] are the reference; tests
//! hold this to them.

use std::sync::Arc;

use crate::Scalar;
use crate::cpu::vector::{
    add as add_to, add_two, gather as gather_from, narrow, sin_cos_of_turns, sum, sum_of_three, waves, wide, widen,
};
use crate::cpu::{Kept, Lines, Part};
use crate::embed::resample::Taps;
use crate::embed::{GridSize, Learned, Norm, Row, Sinusoid, Tables, Tokens, Wave};
use crate::rotate::Pairing;

/// Elements below which a thread is not worth its start, about 20 microseconds of work: of waves, which are made, and of
/// rows, which are read.
const GRAIN_OF_WAVES: usize = 1 << 14;
const GRAIN_OF_ROWS: usize = 1 << 16;

/// Channels that are worked on at once, in the first cache.
const BLOCK: usize = 256;

/// Positions that share the waves of the first of them.
const NEAR: u64 = 16;

static STEPS: Kept<Sinusoid, Steps> = Kept::new();
static TURNS: Kept<Sinusoid, [Vec<f64>; 2]> = Kept::new();

/// What a sinusoid's rows are made of: the waves of a position are those of the last multiple of [`NEAR`], turned on.
struct Steps {
    /// turns per position in units of 2^-64
    rates: Vec<u64>,
    /// sines and cosines of 0 to 15 positions
    near: Vec<[Lines; 2]>,
    /// the last multiples of [`NEAR`]; a decoder stays at one for some calls
    bases: Kept<u64, [Lines; 2]>,
}

impl Steps {
    fn new(spec: &Sinusoid) -> Self {
        let rates: Vec<u64> = (0..spec.pairs()).map(|pair| spec.rate(pair)).collect();
        Self { near: (0..NEAR).map(|position| waves(&rates, position)).collect(), rates, bases: Kept::new() }
    }
}

/// A row of sines and cosines in the order of its channels.
struct Waves<'a> {
    spec: &'a Sinusoid,
    /// the last multiple of [`NEAR`], and its waves
    base: Option<(u64, Arc<[Lines; 2]>)>,
    row: Lines,
}

impl<'a> Waves<'a> {
    fn new(spec: &'a Sinusoid) -> Self {
        Self { spec, base: None, row: Lines::new(0.0, spec.dim) }
    }

    /// The row of a position that is no padding.
    #[inline(always)]
    fn at(&mut self, steps: &Steps, position: u64) -> &[f64] {
        let (first, near) = (position - position % NEAR, position % NEAR);
        let (_, base) = match self.base.take() {
            Some(known) if known.0 == first => self.base.insert(known),
            _ => self.base.insert((first, steps.bases.of(&first, || waves(&steps.rates, first)))),
        };
        let ([sin, cos], [near_sin, near_cos]) = (&**base, &steps.near[near as usize]);
        let turn = |((s, c), (more_s, more_c)): ((&f64, &f64), (&f64, &f64))| {
            (s * more_c + c * more_s, c * more_c - s * more_s)
        };
        put(self.spec, &mut self.row, sin.iter().zip(&**cos).zip(near_sin.iter().zip(&**near_cos)), turn);
        &self.row
    }

    /// The row of a time that is no padding.
    #[inline(always)]
    fn at_time(&mut self, [hi, lo]: &[Vec<f64>; 2], t: f64) -> &[f64] {
        let turn = |(hi, lo): (&f64, &f64)| sin_cos_of_turns(t, *hi, *lo);
        put(self.spec, &mut self.row, hi.iter().zip(lo), turn);
        &self.row
    }
}

/// Sine and cosine of each pair in the order of channels. Of an odd dim, the last channel has the first wave, or none and is
/// left alone.
#[inline(always)]
fn put<Pair>(
    spec: &Sinusoid,
    row: &mut [f64],
    mut pairs: impl ExactSizeIterator<Item = Pair> + Clone,
    waves: impl Fn(Pair) -> (f64, f64),
) {
    let order = |(sin, cos)| match spec.first {
        Wave::Sine => (sin, cos),
        Wave::Cosine => (cos, sin),
    };
    match spec.pairing {
        Pairing::Half => {
            let (a, b) = row.split_at_mut(pairs.len());
            for ((a, b), pair) in a.iter_mut().zip(b).zip(pairs.clone()) {
                (*a, *b) = order(waves(pair));
            }
        }
        Pairing::Interleaved => {
            for (channels, pair) in row.as_chunks_mut::<2>().0.iter_mut().zip(pairs.clone()) {
                *channels = order(waves(pair)).into();
            }
        }
    }
    if let Some(pair) = pairs.nth(spec.dim / 2) {
        let last = match spec.pairing {
            Pairing::Half => spec.dim / 2,
            Pairing::Interleaved => spec.dim - 1,
        };
        row[last] = order(waves(pair)).0;
    }
}

impl Sinusoid {
    fn kept_steps(&self) -> Arc<Steps> {
        STEPS.of(self, || Steps::new(self))
    }

    /// Turns per unit of time of every pair, in 106 bits: the upper halves and the lower ones.
    pub(super) fn kept_turns(&self) -> Arc<[Vec<f64>; 2]> {
        TURNS.of(self, || {
            let turns = (0..self.pairs()).map(|pair| self.turns(pair));
            let (hi, lo) = turns.map(|turns| (turns.hi, turns.lo)).unzip();
            [hi, lo]
        })
    }
}

/// [`Sinusoid::write`] of checked arguments.
pub(super) fn write<T: Scalar>(spec: &Sinusoid, out: &mut [T], positions: &[i64]) {
    let steps = spec.kept_steps();
    let part = Part::whole([1, 1, positions.len()], [0, 0, spec.dim]);
    part.share_out(out, spec.dim, GRAIN_OF_WAVES, &|part, out| {
        let mut waves = Waves::new(spec);
        part.rows(out, spec.dim, |[_, _, row], out| {
            let position = spec.row(positions[row]);
            if spec.padding == Some(position) {
                return out.fill(T::from_f32(0.0));
            }
            wide(
                #[inline(always)]
                || narrow(waves.at(&steps, position as u64), 1.0, out),
            );
        });
    });
}

/// [`Sinusoid::add`] of checked arguments.
pub(super) fn add<T: Scalar>(
    spec: &Sinusoid,
    x: &mut [T],
    tokens: &Tokens,
    positions: &[i64],
    shared: bool,
    scale: f64,
) {
    if tokens.is_empty() {
        return;
    }
    let steps = spec.kept_steps();
    // Tokens first: sequences that share their positions share a row of waves.
    let part = Part::whole([1, tokens.tokens, tokens.batch], [0, tokens.strides[1], tokens.strides[0]]);
    part.share_out(&mut x[tokens.offset..], spec.dim, GRAIN_OF_WAVES, &|part, x| {
        let mut waves = Waves::new(spec);
        let mut made = None;
        part.rows(x, spec.dim, |[_, token, batch], x| {
            let position = spec.row(positions[if shared { token } else { batch * tokens.tokens + token }]);
            wide(
                #[inline(always)]
                || {
                    if made != Some(position) {
                        made = Some(position);
                        if spec.padding == made { waves.row.fill(0.0) } else { _ = waves.at(&steps, position as u64) }
                    }
                    add_to(x, scale, &waves.row);
                },
            );
        });
    });
}

/// [`Sinusoid::write_times`] of checked arguments; `shifted` gives a time, or nothing where it is padding.
pub(super) fn write_times<T: Scalar>(
    spec: &Sinusoid,
    out: &mut [T],
    turns: &[Vec<f64>; 2],
    times: usize,
    shifted: &(impl Fn(usize) -> Option<f64> + Sync),
) {
    let part = Part::whole([1, 1, times], [0, 0, spec.dim]);
    part.share_out(out, spec.dim, GRAIN_OF_WAVES, &|part, out| {
        let mut waves = Waves::new(spec);
        part.rows(out, spec.dim, |[_, _, row], out| match shifted(row) {
            None => out.fill(T::from_f32(0.0)),
            Some(t) => wide(
                #[inline(always)]
                || narrow(waves.at_time(turns, t), 1.0, out),
            ),
        });
    });
}

/// [`Learned::gather`] of checked arguments.
pub(super) fn gather<T: Scalar>(spec: &Learned, x: &mut [T], tokens: &Tokens, tables: &Tables<'_, T>, rows: &[Row]) {
    if tokens.is_empty() {
        return;
    }
    let dim = spec.dim;
    let part = Part::whole([1, tokens.batch, tokens.tokens], [0, tokens.strides[0], tokens.strides[1]]);
    let vector = |from: &[T], default: f64| {
        let mut vector = Lines::new(default, if spec.norm.is_some() { dim } else { 0 });
        widen(from, &mut vector[..from.len()]);
        vector
    };
    let (gain, bias) = (vector(tables.gain, 1.0), vector(tables.bias, 0.0));
    part.share_out(&mut x[tokens.offset..], dim, GRAIN_OF_ROWS, &|part, x| {
        let mut v = Lines::new(0.0, dim);
        part.rows(x, dim, |[_, batch, token], x| {
            let row = rows[batch * tokens.tokens + token];
            let at = |row: usize| row * dim..(row + 1) * dim;
            // A copy has all of a row's reads on their way at once, which a sum has not: tables lie far away.
            if let Some(token) = row.token {
                x.copy_from_slice(&tables.token[at(token)]);
            }
            if let (1.0, None, None) = (spec.scale, spec.norm, row.types) {
                let Some(position) = row.position else { return };
                return wide(
                    #[inline(always)]
                    || add_two(x, &tables.position[at(position)]),
                );
            }
            wide(
                #[inline(always)]
                || {
                    for (first, v) in (0..dim).step_by(BLOCK).zip(v.chunks_mut(BLOCK)) {
                        let end = first + v.len();
                        let at = |row: usize| row * dim + first..row * dim + end;
                        let from = &x[first..end];
                        match (row.position, row.types) {
                            (Some(position), Some(types)) => {
                                let more = [&tables.position[at(position)], &tables.types[at(types)]];
                                sum_of_three(v, from, spec.scale, more);
                            }
                            (position, types) => {
                                widen(from, v);
                                if spec.scale != 1.0 {
                                    v.iter_mut().for_each(|v| *v *= spec.scale);
                                }
                                for (table, row) in [(tables.position, position), (tables.types, types)] {
                                    if let Some(row) = row {
                                        gather_from(v, &table[at(row)], 1.0);
                                    }
                                }
                            }
                        }
                    }
                    match spec.norm {
                        Some(norm) => normalise(&mut v, norm, &gain, &bias, x),
                        None => narrow(&v, 1.0, x),
                    }
                },
            );
        });
    });
}

#[inline(always)]
fn normalise<T: Scalar>(v: &mut [f64], norm: Norm, gain: &[f64], bias: &[f64], out: &mut [T]) {
    let n = v.len() as f64;
    let (mean, eps) = match norm {
        Norm::Rms { eps } => (0.0, eps),
        Norm::Layer { eps } => (sum(v) / n, eps),
    };
    let inverse = 1.0 / (squares_about(v, mean) / n + eps).sqrt();
    let vectors = v.chunks_mut(BLOCK).zip(gain.chunks(BLOCK)).zip(bias.chunks(BLOCK));
    for (((v, gain), bias), out) in vectors.zip(out.chunks_mut(BLOCK)) {
        for ((v, gain), bias) in v.iter_mut().zip(gain).zip(bias) {
            *v = ((*v - mean) * inverse).mul_add(*gain, *bias);
        }
        narrow(v, 1.0, out);
    }
}

/// The sum of squares of what lies between elements and their mean, in eight parts.
#[inline(always)]
fn squares_about(x: &[f64], mean: f64) -> f64 {
    let mut parts = [0.0; 8];
    let (eights, rest) = x.as_chunks::<8>();
    for eight in eights {
        for (part, x) in parts.iter_mut().zip(eight) {
            *part = (x - mean).mul_add(x - mean, *part);
        }
    }
    for (part, x) in parts.iter_mut().zip(rest) {
        *part = (x - mean).mul_add(x - mean, *part);
    }
    parts.iter().sum()
}

/// The rows behind the prefix of a resampled table, `from` and `to` being the grids that are read and written.
pub(super) fn resample<T: Scalar>(
    out: &mut [T],
    table: &[T],
    dim: usize,
    (from, to): (GridSize, GridSize),
    (rows, columns): (&[Taps], &[Taps]),
) {
    let part = Part::whole([1, to.rows, to.columns], [0, to.columns * dim, dim]);
    part.share_out(out, dim, GRAIN_OF_WAVES, &|part, out| {
        let mut sum = Lines::new(0.0, dim);
        part.rows(out, dim, |[_, y, x], out| {
            let (rows, columns) = (&rows[y], &columns[x]);
            wide(
                #[inline(always)]
                || {
                    sum.fill(0.0);
                    for (i, row) in rows.weights.iter().enumerate() {
                        for (j, column) in columns.weights.iter().enumerate() {
                            let place = (rows.first + i) * from.columns + columns.first + j;
                            gather_from(&mut sum, &table[place * dim..(place + 1) * dim], row * column);
                        }
                    }
                    narrow(&sum, 1.0, out);
                },
            );
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::{assert_close, rounded};
    use crate::embed::{Lookup, Odd};
    use half::{bf16, f16};

    /// Numbers of magnitude 0.5 to 2 by index, no two alike.
    fn data<T: Scalar>(n: usize, seed: u64) -> Vec<T> {
        let value = |i: usize| {
            let bits = (i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64) * if bits & 1 == 0 { 1.0 } else { -1.0 }
        };
        (0..n).map(|i| T::from_f64(value(i))).collect()
    }

    fn specs() -> Vec<Sinusoid> {
        let plain = Sinusoid::new(38);
        let half = Sinusoid { pairing: Pairing::Half, ..plain.clone() };
        vec![
            plain.clone(),
            Sinusoid { first: Wave::Cosine, ..plain.clone() },
            half.clone(),
            Sinusoid { first: Wave::Cosine, ..half.clone() },
            Sinusoid { dim: 37, ..plain.clone() },
            Sinusoid { dim: 37, ..half.clone() },
            Sinusoid { dim: 37, odd: Odd::Zero, ..plain },
            Sinusoid { dim: 37, odd: Odd::Zero, shift: 1.0, padding: Some(6), offset: 5, ..half },
        ]
    }

    const POSITIONS: [i64; 7] = [0, 1, -1, 131_071, (1 << 31) - 1, -(1 << 31), 7];

    fn written_and_added<T: Scalar>() {
        for spec in specs() {
            let mut got = data::<T>(7 * spec.dim, 3);
            spec.write(&mut got, &POSITIONS).unwrap();
            let want: Vec<f64> = (0..got.len()).map(|i| spec.value(POSITIONS[i / spec.dim], i % spec.dim)).collect();
            assert_close(&got, &want, |i| rounded::<T>(want[i], 3e-15));
            let tokens = Tokens { offset: 3, strides: [400, 40], ..Tokens::new(2, 3, spec.dim) };
            for positions in [&POSITIONS[..3], &POSITIONS[1..]] {
                let before = data::<T>(tokens.span().unwrap() + 2, 1);
                let mut got = before.clone();
                spec.add(&mut got, &tokens, positions, 3.0).unwrap();
                let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
                let mut bound = vec![0.0; want.len()];
                for (batch, token, channel) in (0..2)
                    .flat_map(|b| (0..3).flat_map(move |t| (0..spec.dim).map(move |c| (b, t, c))))
                    .collect::<Vec<_>>()
                {
                    let position = positions[if positions.len() == 3 { token } else { batch * 3 + token }];
                    let at = tokens.index(batch, token, channel);
                    want[at] = want[at] * 3.0 + spec.value(position, channel);
                    bound[at] = rounded::<T>(want[at], 4e-15);
                }
                assert_close(&got, &want, |i| bound[i]);
            }
        }
    }

    fn times<T: Scalar>() {
        let t = [0.0, 0.5, -3.25, 999.0, 6.0, 1e7, 1.0];
        for spec in specs() {
            let mut got = data::<T>(7 * spec.dim, 3);
            spec.write_times(&mut got, &t).unwrap();
            let want: Vec<f64> = (0..got.len()).map(|i| spec.value_at(t[i / spec.dim], i % spec.dim)).collect();
            assert_close(&got, &want, |i| rounded::<T>(want[i], want[i].abs() * f64::exp2(-49.0)));
        }
    }

    fn gathered<T: Scalar>() {
        let dim = 21;
        let (token, position, types) = (data::<T>(9 * dim, 1), data::<T>(8 * dim, 500), data::<T>(2 * dim, 900));
        let (gain, bias) = (data::<T>(dim, 40), data::<T>(dim, 70));
        let lookup = Lookup { ids: &[5, 6, 1, 7, 1, 0], types: &[0, 1, 1, 0, 0, 1], ..Lookup::default() };
        let tokens = Tokens { offset: 2, strides: [200, 23], ..Tokens::new(2, 3, dim) };
        let all = Tables { token: &token, position: &position, types: &types, gain: &[], bias: &[] };
        let normed = Tables { gain: &gain, bias: &bias, ..all };
        let layer = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), scale: 1.5, ..Learned::new(dim) };
        let cases = [
            (Learned::new(dim), Tables { token: &token, ..Tables::default() }),
            (Learned::new(dim), Tables { position: &position, ..Tables::default() }),
            (Learned { scale: -2.5, ..Learned::new(dim) }, all),
            (layer, normed),
            (layer, all),
            (Learned { norm: Some(Norm::Rms { eps: 0.0 }), ..layer }, Tables { gain: &gain, ..all }),
        ];
        for (spec, tables) in cases {
            let x = data::<T>(tokens.span().unwrap() + 3, 7);
            let lookup = if tables.token.is_empty() { Lookup::default() } else { lookup };
            let expected = spec.expect(&x, &tokens, &tables, &lookup).unwrap();
            let mut got = x.clone();
            spec.gather(&mut got, &tokens, &tables, &lookup).unwrap();
            assert_close(&got, &expected.want, |i| {
                if expected.bound[i] == 0.0 { 0.0 } else { rounded::<T>(expected.want[i], 1e-12) }
            });
        }
    }

    #[test]
    fn sinusoids_are_their_law() {
        written_and_added::<f32>();
        written_and_added::<f16>();
        written_and_added::<bf16>();
    }

    #[test]
    fn timesteps_are_their_law() {
        times::<f32>();
        times::<f16>();
        times::<bf16>();
    }

    #[test]
    fn gathers_are_their_reference() {
        gathered::<f32>();
        gathered::<f16>();
        gathered::<bf16>();
    }

    #[test]
    fn threads_do_not_show() {
        let spec = Sinusoid::new(96);
        let x = data::<f32>(4 * 700 * 96, 5);
        let positions: Vec<i64> = (0..700).collect();
        let [one, two] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut x, mut rows) = (x.clone(), vec![0.0f32; 700 * 96]);
            pool.install(|| {
                spec.add(&mut x, &Tokens::new(4, 700, 96), &positions, 1.0).unwrap();
                spec.write(&mut rows, &positions).unwrap();
            });
            (x, rows)
        });
        assert!(one == two);
        assert_eq!(two.1[699 * 96], (spec.value(699, 0)) as f32);
    }
}

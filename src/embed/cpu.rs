//! Embeddings on the CPU in vectors and threads: what `write`, `add`, `write_times` and `gather` run.
//!
//! The laws ([`Sinusoid::value`], [`Sinusoid::value_at`]) and the loop behind [`Learned::expect`] are the reference; tests
//! hold this to them.

use std::sync::Arc;

use crate::Scalar;
use crate::cpu::vector::{
    add as add_to, add_two, gather as gather_from, narrow, sin_cos_of_turns, sum, waves, wide, widen,
};
use crate::cpu::{Kept, Part};
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

/// What a sinusoid's rows are made of: the row of a position is that of the last multiple of [`NEAR`], turned on by a row of
/// these.
struct Steps {
    /// turns per position in units of 2^-64
    rates: Vec<u64>,
    /// for 0 to 15 positions, in the order of channels: the cosine, and the sine with the sign that its channel has it with
    near: Vec<[Vec<f64>; 2]>,
    /// the last multiples of [`NEAR`]; a decoder stays at one for some calls
    bases: Kept<u64, [Vec<f64>; 2]>,
}

impl Steps {
    fn new(spec: &Sinusoid) -> Self {
        let rates: Vec<u64> = (0..spec.pairs()).map(|pair| spec.rate(pair)).collect();
        let near = (0..NEAR).map(|position| {
            let ([sin, cos], minus) = (waves(&rates, position), |x: &f64| -x);
            [in_order(spec, &cos, &cos), in_order(spec, &sin, &sin.iter().map(minus).collect::<Vec<_>>())]
        });
        Self { near: near.collect(), rates, bases: Kept::new() }
    }

    /// The row of a multiple of [`NEAR`], and the same with sine and cosine of each pair exchanged.
    fn base(&self, spec: &Sinusoid, position: u64) -> Arc<[Vec<f64>; 2]> {
        self.bases.of(&position, || {
            let [sin, cos] = waves(&self.rates, position);
            [in_order(spec, &sin, &cos), in_order(spec, &cos, &sin)]
        })
    }
}

/// A row of sines and cosines, or of what stands in their place.
fn in_order(spec: &Sinusoid, sin: &[f64], cos: &[f64]) -> Vec<f64> {
    let mut row = vec![0.0; spec.dim];
    wide(
        #[inline(always)]
        || put_in_order(spec, &mut row, sin, cos),
    );
    row
}

/// A row's sines and cosines in the order of its channels.
struct Waves<'a> {
    spec: &'a Sinusoid,
    /// the last multiple of [`NEAR`], and what [`Steps::base`] has for it
    base: Option<(u64, Arc<[Vec<f64>; 2]>)>,
    /// of times, one pair after another
    sin: Vec<f64>,
    cos: Vec<f64>,
    row: Vec<f64>,
}

impl<'a> Waves<'a> {
    fn new(spec: &'a Sinusoid) -> Self {
        Self { spec, base: None, sin: Vec::new(), cos: Vec::new(), row: vec![0.0; spec.dim] }
    }

    fn of_times(spec: &'a Sinusoid) -> Self {
        let [sin, cos] = [(); 2].map(|()| vec![0.0; spec.pairs()]);
        Self { sin, cos, ..Self::new(spec) }
    }

    /// The row of a position that is no padding.
    #[inline(always)]
    fn at(&mut self, steps: &Steps, position: u64) -> &[f64] {
        let (first, near) = (position - position % NEAR, position % NEAR);
        let (_, base) = match self.base.take() {
            Some(known) if known.0 == first => self.base.insert(known),
            _ => self.base.insert((first, steps.base(self.spec, first))),
        };
        let ([base, exchanged], [cos, sin]) = (&**base, &steps.near[near as usize]);
        for ((((row, base), cos), exchanged), sin) in self.row.iter_mut().zip(base).zip(cos).zip(exchanged).zip(sin) {
            *row = base * cos + exchanged * sin;
        }
        &self.row
    }

    /// The row of a time that is no padding.
    #[inline(always)]
    fn at_time(&mut self, [hi, lo]: &[Vec<f64>; 2], t: f64) -> &[f64] {
        for (((sin, cos), hi), lo) in self.sin.iter_mut().zip(&mut self.cos).zip(hi).zip(lo) {
            (*sin, *cos) = sin_cos_of_turns(t, *hi, *lo);
        }
        put_in_order(self.spec, &mut self.row, &self.sin, &self.cos);
        &self.row
    }
}

#[inline(always)]
fn put_in_order(spec: &Sinusoid, row: &mut [f64], sin: &[f64], cos: &[f64]) {
    let (first, second) = match spec.first {
        Wave::Sine => (sin, cos),
        Wave::Cosine => (cos, sin),
    };
    let shorter = spec.dim / 2;
    match spec.pairing {
        Pairing::Half => {
            // Of an odd dim, the first wave has a channel more, or the last one stays 0.
            let (a, b) = row.split_at_mut(first.len());
            a.copy_from_slice(first);
            b[..shorter].copy_from_slice(&second[..shorter]);
        }
        Pairing::Interleaved => {
            let (pairs, rest) = row.as_chunks_mut::<2>();
            for (pair, (first, second)) in pairs.iter_mut().zip(first.iter().zip(second)) {
                *pair = [*first, *second];
            }
            if let (Some(rest), Some(first)) = (rest.first_mut(), first.get(shorter)) {
                *rest = *first;
            }
        }
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
                || narrow(waves.at(&steps, position as u64), out),
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
        let mut waves = Waves::of_times(spec);
        part.rows(out, spec.dim, |[_, _, row], out| match shifted(row) {
            None => out.fill(T::from_f32(0.0)),
            Some(t) => wide(
                #[inline(always)]
                || narrow(waves.at_time(turns, t), out),
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
        let mut vector = vec![default; if spec.norm.is_some() { dim } else { 0 }];
        widen(from, &mut vector[..from.len()]);
        vector
    };
    let (gain, bias) = (vector(tables.gain, 1.0), vector(tables.bias, 0.0));
    part.share_out(&mut x[tokens.offset..], dim, GRAIN_OF_ROWS, &|part, x| {
        let mut v = vec![0.0; dim];
        part.rows(x, dim, |[_, batch, token], x| {
            let row = rows[batch * tokens.tokens + token];
            let at = |row: usize| row * dim..(row + 1) * dim;
            if spec.scale == 1.0 && spec.norm.is_none() {
                match (row.token, row.position, row.types) {
                    (Some(token), None, None) => return x.copy_from_slice(&tables.token[at(token)]),
                    (token, Some(position), None) => {
                        let token = token.map(|token| &tables.token[at(token)]);
                        return wide(
                            #[inline(always)]
                            || add_two(x, token, &tables.position[at(position)]),
                        );
                    }
                    _ => {}
                }
            }
            wide(
                #[inline(always)]
                || {
                    for (first, v) in (0..dim).step_by(BLOCK).zip(v.chunks_mut(BLOCK)) {
                        let end = first + v.len();
                        let at = |row: usize| row * dim + first..row * dim + end;
                        match row.token {
                            Some(token) => widen(&tables.token[at(token)], v),
                            None => widen(&x[at(0)], v),
                        }
                        if spec.scale != 1.0 {
                            v.iter_mut().for_each(|v| *v *= spec.scale);
                        }
                        for (table, row) in [(tables.position, row.position), (tables.types, row.types)] {
                            if let Some(row) = row {
                                gather_from(v, &table[at(row)], 1.0);
                            }
                        }
                    }
                    match spec.norm {
                        Some(norm) => normalise(&mut v, norm, &gain, &bias, x),
                        None => narrow(&v, x),
                    }
                },
            );
        });
    });
}

#[inline(always)]
fn normalise<T: Scalar>(v: &mut [f64], norm: Norm, gain: &[f64], bias: &[f64], out: &mut [T]) {
    let n = v.len() as f64;
    let (squares, eps) = match norm {
        Norm::Rms { eps } => (squares_less(v, 0.0), eps),
        Norm::Layer { eps } => (squares_less(v, sum(v) / n), eps),
    };
    let inverse = 1.0 / (squares / n + eps).sqrt();
    let vectors = v.chunks_mut(BLOCK).zip(gain.chunks(BLOCK)).zip(bias.chunks(BLOCK));
    for (((v, gain), bias), out) in vectors.zip(out.chunks_mut(BLOCK)) {
        for ((v, gain), bias) in v.iter_mut().zip(gain).zip(bias) {
            *v = *v * inverse * gain + bias;
        }
        narrow(v, out);
    }
}

/// Takes the mean away and gives the sum of squares, in eight parts.
#[inline(always)]
fn squares_less(x: &mut [f64], mean: f64) -> f64 {
    let mut parts = [0.0; 8];
    let (eights, rest) = x.as_chunks_mut::<8>();
    for eight in eights {
        for (part, x) in parts.iter_mut().zip(eight) {
            *x -= mean;
            *part += *x * *x;
        }
    }
    rest.iter_mut().for_each(|x| *x -= mean);
    parts.iter().sum::<f64>() + rest.iter().map(|x| x * x).sum::<f64>()
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
        let mut sum = vec![0.0; dim];
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
                    narrow(&sum, out);
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

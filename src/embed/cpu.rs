//! Embeddings on the CPU in vectors and threads: what `write`, `add`, `write_times` and `gather` run.
//!
//! The laws ([`Sinusoid::value`], [`Sinusoid::value_at`]) and the loop behind [`Learned::expect`] are the reference; tests
//! hold this to them.

use std::ops::Range;
use std::sync::Arc;

use crate::cpu::vector::{
    add_three, add_two, gather as gather_from, narrow, sin_cos_of_turns, sum_of_three, through, waves, wide, widen,
};
use crate::cpu::{Kept, Lines, Part, Width, ask_for};
use crate::embed::{GridSize, HostTables, Learned, Norm, Row, Sinusoid, Tokens, Wave};
use crate::filter::Taps;
use crate::{Pairing, Scalar};

/// Elements below which a thread is not worth its start, about 20 microseconds of work: of waves, which are made, and of
/// rows, which are read.
const GRAIN_OF_WAVES: usize = 1 << 14;
const GRAIN_OF_ROWS: usize = 1 << 16;

/// Bytes of a table's rows that are asked for before they are needed.
const AHEAD: usize = 3 << 10;

/// Positions that share the waves of the first of them, and such groups that share those of the first group's first.
const NEAR: u64 = 16;
const GROUPS: u64 = 64;

/// How many of the latter are kept of a spec, 16 bytes a channel each: those of 65,536 positions.
const FAR: usize = 64;

static STEPS: Kept<Sinusoid, Steps> = Kept::new();
static TURNS: Kept<Sinusoid, [Vec<f64>; 2]> = Kept::new();

/// What a sinusoid's rows are made of. A position has three digits, `1024 a + 16 b + c`: the waves of `1024 a` are turned on by
/// `16 b`, which serves sixteen positions, and by `c`.
struct Steps {
    /// turns per position in units of 2^-64
    rates: Vec<u64>,
    /// of each `c`, and of each `16 b`: a pair's cosine and sine for both its channels
    near: Vec<[Lines; 2]>,
    groups: Vec<[Lines; 2]>,
    /// of the last `1024 a`: each channel's wave and the one a quarter of a turn on
    far: Kept<u64, [Lines; 2], FAR>,
}

impl Steps {
    fn new(spec: &Sinusoid) -> Self {
        let rates: Vec<u64> = (0..spec.pairs()).map(|pair| spec.rate(pair)).collect();
        let turn = |position| {
            let [sin, cos] = waves(&rates, position);
            [&cos, &sin].map(|wave| channels(spec, wave.iter().map(|wave| (*wave, *wave))))
        };
        let (near, groups) = ((0..NEAR).map(turn).collect(), (0..GROUPS).map(|group| turn(group * NEAR)).collect());
        Self { near, groups, rates, far: Kept::new() }
    }

    fn far(&self, spec: &Sinusoid, first: u64) -> [Lines; 2] {
        let [sin, cos] = waves(&self.rates, first);
        let waves = sin.iter().zip(&*cos);
        [channels(spec, waves.clone().map(|(s, c)| (*s, *c))), channels(spec, waves.map(|(s, c)| (*c, -s)))]
    }
}

/// The waves of one position after another.
struct Waves<'a> {
    spec: &'a Sinusoid,
    steps: &'a Steps,
    /// those of the last `1024 a`
    far: (u64, Arc<[Lines; 2]>),
    /// those of the last `1024 a + 16 b` whose `b` is not 0
    group: (u64, [Lines; 2]),
}

impl<'a> Waves<'a> {
    fn new(spec: &'a Sinusoid, steps: &'a Steps) -> Self {
        let none = || [(); 2].map(|()| Lines::new(0.0, 0));
        // No group begins there.
        Self { spec, steps, far: (u64::MAX, Arc::new(none())), group: (u64::MAX, none()) }
    }

    /// What the waves of a position that is no padding are sums of products of: the first with the third, the second with the
    /// fourth.
    #[inline(always)]
    fn at(&mut self, position: u64) -> [&[f64]; 4] {
        let first = position - position % NEAR;
        let (start, group) = (first - first % (NEAR * GROUPS), first / NEAR % GROUPS);
        if self.far.0 != start {
            self.far = (start, self.steps.far.of(&start, || self.steps.far(self.spec, start)));
        }
        if group > 0 && self.group.0 != first {
            if self.group.0 == u64::MAX {
                self.group.1 = [(); 2].map(|()| Lines::new(0.0, self.spec.dim));
            }
            self.group.0 = first;
            turn_on(&self.far.1, &self.steps.groups[group as usize], &mut self.group.1);
        }
        let [wave, quarter] = if group == 0 { &*self.far.1 } else { &self.group.1 };
        let [cos, sin] = &self.steps.near[(position % NEAR) as usize];
        [wave, quarter, cos, sin]
    }
}

/// The waves and those a quarter of a turn on, turned on.
#[inline(always)]
fn turn_on([a, b]: &[Lines; 2], [cos, sin]: &[Lines; 2], [wave, quarter]: &mut [Lines; 2]) {
    let turns = a.iter().zip(&**b).zip(cos.iter().zip(&**sin));
    for ((wave, quarter), ((a, b), (cos, sin))) in wave.iter_mut().zip(&mut **quarter).zip(turns) {
        (*wave, *quarter) = (a.mul_add(*cos, b * sin), b.mul_add(*cos, -(a * sin)));
    }
}

/// The waves of some channels, of what [`Waves::at`] gives.
#[inline(always)]
fn turned(of: [&[f64]; 4], channels: Range<usize>) -> impl Iterator<Item = f64> {
    let [a, b, c, d] = of.map(|of| &of[channels.clone()]);
    a.iter().zip(b).zip(c).zip(d).map(|(((a, b), c), d)| a.mul_add(*c, b * d))
}

/// A row in the order of channels.
fn channels(spec: &Sinusoid, pairs: impl ExactSizeIterator<Item = (f64, f64)> + Clone) -> Lines {
    let mut row = Lines::new(0.0, spec.dim);
    put(spec, &mut row, pairs, |pair| pair);
    row
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

/// Calls `work` on every row of a part with this processor's vectors: once for all, as a row of 768 takes a twentieth of a
/// microsecond.
#[inline(always)]
fn wide_rows<T>(part: Part, x: &mut [T], dim: usize, mut work: impl FnMut(Width, [usize; 3], &mut [T])) {
    wide(
        #[inline(always)]
        |width| {
            part.rows(
                x,
                dim,
                #[inline(always)]
                |at, x| work(width, at, x),
            );
        },
    );
}

/// [`Sinusoid::write`] of checked arguments.
pub(super) fn write<T: Scalar>(spec: &Sinusoid, out: &mut [T], positions: &[i64]) {
    let steps = spec.kept_steps();
    let part = Part::whole([1, 1, positions.len()], [0, 0, spec.dim]);
    part.share_out(out, spec.dim, GRAIN_OF_WAVES, &|part, out| {
        let mut waves = Waves::new(spec, &steps);
        wide_rows(
            part,
            out,
            spec.dim,
            #[inline(always)]
            |width, [_, _, row], out| {
                let position = spec.row(positions[row]);
                if spec.padding == Some(position) {
                    return out.fill(T::from_f32(0.0));
                }
                let of = waves.at(position as u64);
                through(
                    width,
                    out,
                    false,
                    #[inline(always)]
                    |first, out| {
                        let waves = turned(of, first..first + out.len());
                        out.iter_mut().zip(waves).for_each(|(out, wave)| *out = wave as f32);
                    },
                );
            },
        );
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
    // Tokens first: sequences that share their positions share what their waves are made of.
    let part = Part::whole([1, tokens.tokens, tokens.batch], [0, tokens.strides[1], tokens.strides[0]]);
    part.share_out(&mut x[tokens.offset..], spec.dim, GRAIN_OF_WAVES, &|part, x| {
        let mut waves = Waves::new(spec, &steps);
        // The waves of the position that was `made`, if it has several rows; or zeros. Short types read them as `f32`.
        let (mut row, mut short) =
            (Lines::new(0.0, spec.dim), vec![0f32; if T::NAME == f32::NAME { 0 } else { spec.dim }]);
        let (several, mut made) = (shared && part.sizes[2] > 1, None);
        wide_rows(
            part,
            x,
            spec.dim,
            #[inline(always)]
            |width, [_, token, batch], x| {
                let position = spec.row(positions[if shared { token } else { batch * tokens.tokens + token }]);
                let padding = spec.padding == Some(position);
                if several && made != Some(position) {
                    made = Some(position);
                    row.fill(0.0);
                    if !padding {
                        let waves = turned(waves.at(position as u64), 0..spec.dim);
                        row.iter_mut().zip(waves).for_each(|(row, wave)| *row = wave);
                    }
                    short.iter_mut().zip(&*row).for_each(|(short, wave)| *short = *wave as f32);
                }
                let of = if several || padding { None } else { Some(waves.at(position as u64)) };
                through(
                    width,
                    x,
                    true,
                    #[inline(always)]
                    |first, x| {
                        let at = first..first + x.len();
                        let sum = |x, wave| scaled_sum::<T>(x, scale, wave);
                        if let Some(of) = of {
                            x.iter_mut().zip(turned(of, at)).for_each(|(x, wave)| *x = sum(*x, wave));
                        } else if T::NAME == f32::NAME {
                            x.iter_mut().zip(&row[at]).for_each(|(x, wave)| *x = sum(*x, *wave));
                        } else {
                            x.iter_mut().zip(&short[at]).for_each(|(x, wave)| *x = sum(*x, f64::from(*wave)));
                        }
                    },
                );
            },
        );
    });
}

/// `x * scale + wave`; short types have the terms in `f32`.
#[inline(always)]
fn scaled_sum<T: Scalar>(x: f32, scale: f64, wave: f64) -> f32 {
    if T::NAME == f32::NAME { f64::from(x).mul_add(scale, wave) as f32 } else { x.mul_add(scale as f32, wave as f32) }
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
        let mut waves = Lines::new(0.0, spec.dim);
        wide_rows(
            part,
            out,
            spec.dim,
            #[inline(always)]
            |width, [_, _, row], out| match shifted(row) {
                None => out.fill(T::from_f32(0.0)),
                Some(t) => {
                    let turns = turns[0].iter().zip(&turns[1]);
                    put(spec, &mut waves, turns, |(hi, lo)| sin_cos_of_turns(t, *hi, *lo));
                    narrow(width, &waves, 1.0, out);
                }
            },
        );
    });
}

/// [`Learned::gather`] of checked arguments.
pub(super) fn gather<T: Scalar>(
    spec: &Learned,
    x: &mut [T],
    tokens: &Tokens,
    tables: &HostTables<'_, T>,
    rows: &[Row],
) {
    if tokens.is_empty() {
        return;
    }
    let dim = spec.dim;
    let part = Part::whole([1, tokens.batch, tokens.tokens], [0, tokens.strides[0], tokens.strides[1]]);
    let vector = |from: &[T], default: f64| {
        let mut vector = Lines::new(default, if spec.norm.is_some() { dim } else { 0 });
        widen(Width::Least, from, &mut vector[..from.len()]);
        vector
    };
    let (gain, bias) = (vector(tables.gain.unwrap_or(&[]), 1.0), vector(tables.bias.unwrap_or(&[]), 0.0));
    let [words, positions, types] = [tables.token, tables.position, tables.types].map(|table| table.unwrap_or(&[]));
    part.share_out(&mut x[tokens.offset..], dim, GRAIN_OF_ROWS, &|part, x| {
        let mut v = Lines::new(0.0, gain.len());
        let ahead = AHEAD.div_ceil(dim * size_of::<T>());
        // What is added to without a change.
        let none = vec![T::from_f32(-0.0); dim];
        wide_rows(
            part,
            x,
            dim,
            #[inline(always)]
            |width, [_, batch, token], x| {
                let at = |row: usize| row * dim..(row + 1) * dim;
                let index = batch * tokens.tokens + token;
                if let Some(Row { token: Some(token), .. }) = rows.get(index + ahead) {
                    ask_for(&words[at(*token)]);
                }
                let row = rows[index];
                // A copy has all of a row's reads on their way at once, which a sum has not: tables lie far away.
                if let Some(token) = row.token {
                    x.copy_from_slice(&words[at(token)]);
                }
                let more = [(positions, row.position), (types, row.types)];
                let [position, types] = more.map(|(table, row)| row.map_or(&none[..], |row| &table[at(row)]));
                match spec.norm {
                    Some(norm) => {
                        let [mean, inverse] = moments(width, &mut v, x, spec.scale, [position, types], norm);
                        normalise(width, &v, [mean, inverse], &gain, &bias, x);
                    }
                    None if spec.scale == 1.0 && row.types.is_none() => {
                        // A row alone is a copy.
                        if row.position.is_some() {
                            add_two(width, x, position);
                        }
                    }
                    None => add_three(width, x, spec.scale, [position, types]),
                }
            },
        );
    });
}

/// `v = x * scale + a + b`, and what a norm needs of it: the mean to subtract and the factor.
#[inline(always)]
fn moments<T: Scalar>(width: Width, v: &mut [f64], x: &[T], scale: f64, more: [&[T]; 2], norm: Norm) -> [f64; 2] {
    let n = v.len() as f64;
    let (eps, first) = match norm {
        Norm::Rms { eps } => (eps, false),
        Norm::Layer { eps } => (eps, true),
    };
    // About an element: it is at most sqrt(n) deviations away from the mean, so that the difference below is safe.
    let origin = if first { x[0].to_f64().mul_add(scale, more[0][0].to_f64()) + more[1][0].to_f64() } else { 0.0 };
    let [sum, squares] = sum_of_three(width, v, x, scale, more, origin);
    let mean = if first { sum / n } else { 0.0 };
    [origin + mean, 1.0 / (squares / n - mean * mean + eps).sqrt()]
}

/// `(v - mean) * inverse * gain + bias`
#[inline(always)]
fn normalise<T: Scalar>(width: Width, v: &[f64], [mean, inverse]: [f64; 2], gain: &[f64], bias: &[f64], out: &mut [T]) {
    through(
        width,
        out,
        false,
        #[inline(always)]
        |first, out| {
            let at = first..first + out.len();
            let vectors = v[at.clone()].iter().zip(&gain[at.clone()]).zip(&bias[at]);
            for (((v, gain), bias), out) in vectors.zip(out) {
                *out = ((*v - mean) * inverse).mul_add(*gain, *bias) as f32;
            }
        },
    );
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
        wide_rows(
            part,
            out,
            dim,
            #[inline(always)]
            |width, [_, y, x], out| {
                let (rows, columns) = (&rows[y], &columns[x]);
                sum.fill(0.0);
                for (i, row) in rows.weights.iter().enumerate() {
                    for (j, column) in columns.weights.iter().enumerate() {
                        let place = (rows.first + i) * from.columns + columns.first + j;
                        gather_from(width, &mut sum, &table[place * dim..(place + 1) * dim], row * column);
                    }
                }
                narrow(width, &sum, 1.0, out);
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Positions;
    use crate::accuracy::{assert_close, rounded_on_cpu};
    use crate::embed::{HostLookup, Odd};
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
            assert_close(&got, &want, |i| rounded_on_cpu::<T>(want[i], 3e-15));
            let (tokens, scale) =
                (Tokens { offset: 3, strides: [400, 40], ..Tokens::new(2, 3, spec.dim) }, 768f64.sqrt());
            for positions in [&POSITIONS[..3], &POSITIONS[1..]] {
                let of = Positions::ids(positions);
                let of = if positions.len() == 3 { of.shared() } else { of };
                let before = data::<T>(tokens.span().unwrap() + 2, 1);
                let mut got = before.clone();
                spec.add(&mut got, &tokens, of, scale).unwrap();
                let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
                let mut bound = vec![0.0; want.len()];
                for (batch, token, channel) in (0..2)
                    .flat_map(|b| (0..3).flat_map(move |t| (0..spec.dim).map(move |c| (b, t, c))))
                    .collect::<Vec<_>>()
                {
                    let position = positions[if positions.len() == 3 { token } else { batch * 3 + token }];
                    let at = tokens.index(batch, token, channel);
                    let terms = [want[at] * scale, spec.value(position, channel)];
                    want[at] = terms[0] + terms[1];
                    let of_terms = if T::NAME == f32::NAME { 4e-15 } else { f32::ROUNDOFF };
                    bound[at] = rounded_on_cpu::<T>(want[at], of_terms * (terms[0].abs() + terms[1].abs()));
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
            assert_close(&got, &want, |i| rounded_on_cpu::<T>(want[i], want[i].abs() * f64::exp2(-49.0)));
        }
    }

    fn gathered<T: Scalar>() {
        let dim = 21;
        let (token, position, types) = (data::<T>(9 * dim, 1), data::<T>(8 * dim, 500), data::<T>(2 * dim, 900));
        let (gain, bias) = (data::<T>(dim, 40), data::<T>(dim, 70));
        let (ids, types_of) = ([5, 6, 1, 7, 1, 0], [0, 1, 1, 0, 0, 1]);
        let lookup = HostLookup { ids: Some(&ids), types: Some(&types_of), ..HostLookup::default() };
        let tokens = Tokens { offset: 2, strides: [200, 23], ..Tokens::new(2, 3, dim) };
        let all =
            HostTables { token: Some(&token), position: Some(&position), types: Some(&types), ..HostTables::default() };
        let normed = HostTables { gain: Some(&gain), bias: Some(&bias), ..all };
        let layer = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), scale: 1.5, ..Learned::new(dim) };
        let cases = [
            (Learned::new(dim), HostTables { token: Some(&token), ..HostTables::default() }),
            (Learned::new(dim), HostTables { position: Some(&position), ..HostTables::default() }),
            (Learned { scale: -2.5, ..Learned::new(dim) }, all),
            (layer, normed),
            (layer, all),
            (Learned { norm: Some(Norm::Rms { eps: 0.0 }), ..layer }, HostTables { gain: Some(&gain), ..all }),
        ];
        for (spec, tables) in cases {
            let x = data::<T>(tokens.span().unwrap() + 3, 7);
            let lookup = if tables.token.is_none() { HostLookup::default() } else { lookup };
            let expected = spec.expect(&x, &tokens, &tables, &lookup).unwrap();
            let mut got = x.clone();
            spec.gather(&mut got, &tokens, &tables, &lookup).unwrap();
            assert_close(&got, &expected.want, |i| {
                if expected.bound[i] == 0.0 { 0.0 } else { rounded_on_cpu::<T>(expected.want[i], 1e-12) }
            });
        }
    }

    #[test]
    fn norms_of_rows_far_from_zero_and_of_rows_that_begin_far_from_the_others() {
        let dim = 768;
        let mut token = data::<f32>(3 * dim, 1);
        token[..dim].iter_mut().for_each(|x| *x += 1e4);
        token[dim] = 1e6;
        token[2 * dim + 5] = 1e6;
        let spec = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(dim) };
        let (tables, lookup) = (
            HostTables { token: Some(&token), ..HostTables::default() },
            HostLookup { ids: Some(&[0, 1, 2]), ..HostLookup::default() },
        );
        let (tokens, mut got) = (Tokens::new(1, 3, dim), vec![0.0f32; 3 * dim]);
        let expected = spec.expect(&got, &tokens, &tables, &lookup).unwrap();
        spec.gather(&mut got, &tokens, &tables, &lookup).unwrap();
        assert_close(&got, &expected.want, |i| rounded_on_cpu::<f32>(expected.want[i], 1e-12));
    }

    #[test]
    fn sinusoids_are_their_law() {
        written_and_added::<f32>();
        written_and_added::<f16>();
        written_and_added::<bf16>();
    }

    #[test]
    fn sinusoids_of_every_digit_are_their_law() {
        let spec = Sinusoid::new(38);
        let positions: Vec<i64> = (-40..80).chain(990..1060).chain((0..200).map(|i| i * 1021)).collect();
        let mut got = vec![0.0f32; positions.len() * spec.dim];
        spec.write(&mut got, &positions).unwrap();
        let want: Vec<f64> = (0..got.len()).map(|i| spec.value(positions[i / spec.dim], i % spec.dim)).collect();
        assert_close(&got, &want, |i| rounded_on_cpu::<f32>(want[i], 3e-15));
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
                spec.add(&mut x, &Tokens::new(4, 700, 96), Positions::ids(&positions).shared(), 1.0).unwrap();
                spec.write(&mut rows, &positions).unwrap();
            });
            (x, rows)
        });
        assert!(one == two);
        assert_eq!(two.1[699 * 96], (spec.value(699, 0)) as f32);
    }
}

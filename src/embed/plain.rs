//! The room's operations on the CPU without the feature `cpu`: loops over the laws in f64, rounded once. The functions are those of
//! `cpu.rs`, of checked arguments.

use crate::Scalar;
use crate::double::Double;
use crate::embed::{GridSize, HostTables, Learned, Row, Sinusoid, Taps, Tokens};

impl Sinusoid {
    /// Turns per unit of time of each pair, a sum of two f64.
    pub(super) fn kept_turns(&self) -> [Vec<f64>; 2] {
        let turns = (0..self.pairs()).map(|pair| self.turns(pair));
        let (hi, lo) = turns.map(|turns| (turns.hi, turns.lo)).unzip();
        [hi, lo]
    }
}

pub(super) fn write<T: Scalar>(spec: &Sinusoid, out: &mut [T], positions: &[i64]) {
    let value = spec.rows();
    for (row, &position) in out.chunks_exact_mut(spec.dim).zip(positions) {
        for (channel, x) in row.iter_mut().enumerate() {
            *x = T::from_f64(value(position, channel));
        }
    }
}

pub(super) fn add<T: Scalar>(
    spec: &Sinusoid,
    x: &mut [T],
    tokens: &Tokens,
    positions: &[i64],
    shared: bool,
    scale: f64,
) {
    let value = spec.rows();
    for batch in 0..if tokens.is_empty() { 0 } else { tokens.batch } {
        for token in 0..tokens.tokens {
            let position = positions[if shared { token } else { batch * tokens.tokens + token }];
            for channel in 0..spec.dim {
                let x = &mut x[tokens.index(batch, token, channel)];
                *x = T::from_f64(x.to_f64() * scale + value(position, channel));
            }
        }
    }
}

pub(super) fn write_times<T: Scalar>(
    spec: &Sinusoid,
    out: &mut [T],
    _: &[Vec<f64>; 2],
    times: usize,
    shifted: &impl Fn(usize) -> Option<f64>,
) {
    for (row, out) in out.chunks_exact_mut(spec.dim).take(times).enumerate() {
        let time = shifted(row);
        for (channel, x) in out.iter_mut().enumerate() {
            let wave = time.zip(spec.channel(channel));
            *x = T::from_f64(
                wave.map_or(0.0, |(time, (pair, wave))| wave.of_turns(Double::from(time) * spec.turns(pair))),
            );
        }
    }
}

pub(super) fn gather<T: Scalar>(
    spec: &Learned,
    x: &mut [T],
    tokens: &Tokens,
    tables: &HostTables<'_, T>,
    rows: &[Row],
) {
    for (index, row) in rows.iter().enumerate() {
        let at = tokens.index(index / tokens.tokens, index % tokens.tokens, 0);
        let x = &mut x[at..at + spec.dim];
        let values = spec.gathered(row, x, tables);
        for (x, value) in x.iter_mut().zip(values) {
            *x = T::from_f64(value);
        }
    }
}

pub(super) fn resample<T: Scalar>(
    out: &mut [T],
    table: &[T],
    dim: usize,
    (from, to): (GridSize, GridSize),
    (rows, columns): (&[Taps], &[Taps]),
) {
    for (place, out) in out.chunks_exact_mut(dim).take(to.rows * to.columns).enumerate() {
        let (row, column) = (&rows[place / to.columns], &columns[place % to.columns]);
        for (channel, x) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (i, by_row) in row.weights.iter().enumerate() {
                for (j, by_column) in column.weights.iter().enumerate() {
                    let at = (row.first + i) * from.columns + column.first + j;
                    sum += by_row * by_column * table[at * dim + channel].to_f64();
                }
            }
            *x = T::from_f64(sum);
        }
    }
}

//! Biases on the CPU in vectors and threads: what [`Bias::write`] and [`Bias::add`] run.
//!
//! The reference is the loop of [`Bias::at`]; tests hold this to it.

use std::ops::Range;

use crate::bias::Bias;
use crate::bias::terms::Pair;
use crate::cpu::vector::{through, wide};
use crate::cpu::{Part, Width};
use crate::position::{Place, Places};
use crate::{Logits, Scalar};

/// Elements below which a thread is not worth its start, about 20 microseconds of work.
const GRAIN: usize = 1 << 15;

/// The rows of a tensor.
pub(crate) fn part(shape: &Logits) -> Part {
    Part::whole([shape.batch, shape.heads, shape.queries], shape.strides)
}

/// A row's place: sequence, head and query.
pub(crate) type At = [usize; 3];

/// What is done with an element of a row and its bias.
pub(crate) trait Merge<X> {
    fn value(&self, x: &mut X, bias: f64);

    /// Several that have one bias.
    #[inline(always)]
    fn same(&self, row: &mut [X], bias: f64) {
        row.iter_mut().for_each(|x| self.value(x, bias));
    }

    /// Several, each with its own.
    #[inline(always)]
    fn each(&self, row: &mut [X], biases: &[f32]) {
        row.iter_mut().zip(biases).for_each(|(x, bias)| self.value(x, f64::from(*bias)));
    }

    /// Several whose bias is a slope times the distance, which rises from a first one: one slope below 0, one from it on.
    #[inline(always)]
    fn line(&self, row: &mut [X], slopes: [f32; 2], first: i64) {
        line(self, row, slopes, first);
    }
}

impl<F: Fn(&mut f64, f64)> Merge<f64> for F {
    #[inline(always)]
    fn value(&self, x: &mut f64, bias: f64) {
        self(x, bias);
    }
}

/// Written, or added.
struct Put {
    width: Width,
    add: bool,
}

impl Put {
    #[inline(always)]
    fn put(&self, x: f32, bias: f64) -> f32 {
        (if self.add { f64::from(x) } else { 0.0 } + bias) as f32
    }
}

impl<T: Scalar> Merge<T> for Put {
    #[inline(always)]
    fn value(&self, x: &mut T, bias: f64) {
        *x = T::from_f32(self.put(x.to_f64() as f32, bias));
    }

    #[inline(always)]
    fn same(&self, row: &mut [T], bias: f64) {
        through(
            self.width,
            row,
            self.add,
            #[inline(always)]
            |_, row| row.iter_mut().for_each(|x| *x = self.put(*x, bias)),
        );
    }

    #[inline(always)]
    fn each(&self, row: &mut [T], biases: &[f32]) {
        through(
            self.width,
            row,
            self.add,
            #[inline(always)]
            |first, row| {
                let biases = &biases[first..first + row.len()];
                row.iter_mut().zip(biases).for_each(|(x, bias)| *x = self.put(*x, f64::from(*bias)));
            },
        );
    }

    #[inline(always)]
    fn line(&self, row: &mut [T], [past, future]: [f32; 2], first: i64) {
        // Where f32 holds the distances, it rounds the sum once.
        let Some(first) = i32::try_from(first).ok().filter(|first| first.abs().max(row.len() as i32) <= 1 << 23) else {
            return line(self, row, [past, future], first);
        };
        // Both sides alike need no choice.
        let alike = past == -future && past.is_finite();
        through(
            self.width,
            row,
            self.add,
            #[inline(always)]
            |from, row| {
                let first = first + from as i32;
                if alike {
                    for (distance, x) in (first..).zip(row) {
                        *x = (distance as f32).abs().mul_add(future, if self.add { *x } else { 0.0 });
                    }
                    return;
                }
                for (distance, x) in (first..).zip(row) {
                    // None at 0, where a slope that is infinite has no product.
                    let slope = if distance < 0 { past } else { future };
                    let slope = if distance == 0 { 0.0 } else { slope };
                    *x = (distance as f32).mul_add(slope, if self.add { *x } else { 0.0 });
                }
            },
        );
    }
}

/// [`Merge::line`] in f64.
#[inline(always)]
fn line<X>(with: &(impl Merge<X> + ?Sized), row: &mut [X], slopes: [f32; 2], first: i64) {
    let past = first.saturating_neg().clamp(0, row.len() as i64) as usize;
    let (past, rest) = row.split_at_mut(past);
    let (here, future) = rest.split_at_mut(usize::from(first <= 0).min(rest.len()));
    ramp(with, past, slopes[0], first);
    with.same(here, 0.0);
    ramp(with, future, slopes[1], first.max(1));
}

/// `slope * distance` in f64.
#[inline(always)]
fn ramp<X>(with: &(impl Merge<X> + ?Sized), row: &mut [X], slope: f32, first: i64) {
    let (slope, mut first) = (f64::from(slope), first as f64);
    // Added up, for converting each distance would take longer than all else.
    let steps = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    let (eights, rest) = row.as_chunks_mut::<8>();
    for eight in eights {
        for (x, step) in eight.iter_mut().zip(steps) {
            with.value(x, slope * (first + step));
        }
        first += 8.0;
    }
    for (x, step) in rest.iter_mut().zip(steps) {
        with.value(x, slope * (first + step));
    }
}

/// Merges some keys of a row with their biases.
#[inline(always)]
pub(crate) fn merge<X>(
    bias: Bias,
    places: &Places<&[i32]>,
    shape: &Logits,
    [batch, head, query]: At,
    keys: Range<usize>,
    row: &mut [X],
    with: &impl Merge<X>,
) {
    let at = places.query(shape, batch, query);
    let (Place::Counted(start), None) = (places.keys, places.packed) else {
        for (key, x) in keys.zip(row) {
            let apart = places.packed.is_some() && !places.meet(shape, batch, query, key);
            let value = || bias.of(shape, &Pair::of(shape, places, [batch, head, query], key));
            with.value(x, if apart { f64::NEG_INFINITY } else { value() });
        }
        return;
    };
    // Keys follow one another, and so do distances.
    let first = start + keys.start as i64 - at;
    match bias {
        Bias::None => with.same(row, 0.0),
        Bias::Slopes(slopes) => {
            let index = if slopes.batch == 1 { 0 } else { batch * slopes.heads } + head;
            with.line(row, [slopes.left[index], -slopes.right[index]], first);
        }
        Bias::Toeplitz(toeplitz) => {
            let count = toeplitz.distances();
            let values = &toeplitz.values[head * count..(head + 1) * count];
            // What lies outside takes the value at the nearer end. A row has fewer than 2^31 distances.
            let keys = row.len() as i64;
            let below = |distance: i64| distance.saturating_sub(first).clamp(0, keys) as usize;
            let (low, high) = (below(toeplitz.first), below(toeplitz.first.saturating_add(count as i64)));
            with.same(&mut row[..low], f64::from(values[0]));
            let skip = first.saturating_sub(toeplitz.first).clamp(0, count as i64) as usize;
            with.each(&mut row[low..high], &values[skip..skip + (high - low)]);
            with.same(&mut row[high..], f64::from(values[count - 1]));
        }
        Bias::Fire(_) | Bias::Terms(_) => {
            let pair = |key: usize| Pair { batch, head, query, key, at: [at, start + key as i64] };
            keys.zip(row).for_each(|(key, x)| with.value(x, bias.of(shape, &pair(key))));
        }
    }
}

/// [`Bias::write`] of checked arguments, or [`Bias::add`].
pub(super) fn put<T: Scalar>(bias: Bias, out: &mut [T], add: bool, shape: &Logits, places: &Places<&[i32]>) {
    if shape.is_empty() {
        return;
    }
    part(shape).share_out(&mut out[shape.offset..], shape.keys, GRAIN, &|part, out| {
        wide(
            #[inline(always)]
            |width| {
                let put = Put { width, add };
                part.rows(
                    out,
                    shape.keys,
                    #[inline(always)]
                    |at, out| merge(bias, places, shape, at, 0..out.len(), out, &put),
                );
            },
        );
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::accuracy::assert_close;
    use crate::bias::{Alibi, Sides, T5Bias, Toeplitz};
    use half::{bf16, f16};

    /// Numbers of magnitude 0.5 to 2 by index, no two alike.
    pub(crate) fn data<T: Scalar>(n: usize, seed: u64) -> Vec<T> {
        let value = |i: usize| {
            let bits = (i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64) * if bits & 1 == 0 { 1.0 } else { -1.0 }
        };
        (0..n).map(|i| T::from_f64(value(i))).collect()
    }

    pub(crate) const SHAPE: Logits =
        Logits { batch: 2, heads: 4, queries: 3, keys: 13, offset: 5, strides: [200, 50, 15] };
    const PLACED: [i32; 26] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3];

    pub(crate) fn places() -> Vec<Places<&'static [i32]>> {
        vec![
            Places::bottom_right(),
            Places::counted(5, 0),
            Places::counted(-3, 4),
            Places { key_lengths: Some(&[7, 13]), query_lengths: Some(&[2, 3]), ..Places::counted(4, 0) },
            Places { key_lengths: Some(&[0, 2]), ..Places::bottom_right() },
            Places { queries: Place::Ids(&PLACED[3..]), ..Places::counted(0, 0) },
            Places { keys: Place::Ids(&PLACED), ..Places::counted(5, 0) },
        ]
    }

    pub(crate) fn with_biases(check: impl Fn(Bias)) {
        let slopes = |sides| Alibi { sides, ..Alibi::new(4) }.slopes().unwrap();
        check(Bias::None);
        check(Bias::Slopes(&slopes(Sides::Symmetric)));
        check(Bias::Slopes(&slopes(Sides::Signed)));
        check(Bias::Slopes(&slopes(Sides::Halves)));
        let own: Vec<f32> = (1..=8).map(|i| i as f32 / 16.0).collect();
        check(Bias::Slopes(&crate::bias::Slopes::symmetric(4, &own).unwrap()));
        let t5 = T5Bias::new(8, 5, true);
        check(Bias::Toeplitz(&t5.row(&data::<f32>(8 * 4, 3), 4).unwrap()));
        let wide = Toeplitz::from_law(4, -40..=40, |head, distance| (head as f64 + 0.5) * (distance as f64).sin());
        check(Bias::Toeplitz(&wide.unwrap()));
    }

    #[test]
    fn biases_are_their_law() {
        fn check<T: Scalar>(bias: Bias, places: &Places<&[i32]>, packed: bool) {
            let shape = if packed { Logits { batch: 1, ..SHAPE } } else { SHAPE };
            if matches!(bias, Bias::Slopes(slopes) if slopes.batch > shape.batch) {
                return;
            }
            let before = data::<T>(SHAPE.span().unwrap() + 4, 1);
            let (mut written, mut added) = (before.clone(), before.clone());
            bias.write(&mut written, &shape, places).unwrap();
            bias.add(&mut added, &shape, places).unwrap();
            let old: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
            let (mut want_written, mut want_added) = (old.clone(), old.clone());
            for (index, value) in bias.plain(&shape, places) {
                want_written[index] = T::from_f64(value).to_f64();
                want_added[index] = T::from_f64(old[index] + value).to_f64();
            }
            assert_close(&written, &want_written, |_| 0.0);
            assert_close(&added, &want_added, |_| 0.0);
        }
        with_biases(|bias| {
            for places in places() {
                check::<f32>(bias, &places, false);
                check::<f16>(bias, &places, false);
                check::<bf16>(bias, &places, false);
            }
            check::<f32>(bias, &Places::packed(&[0, 2, 3], &[1, 5, 12], 2), true);
        });
    }
}

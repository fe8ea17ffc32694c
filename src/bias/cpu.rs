//! Biases and their softmax on the CPU in vectors and threads: what [`Bias::write`], [`Bias::add`] and [`Softmax::apply`]
//! run.
//!
//! The reference is the loop behind [`Softmax::expect`]; tests hold this to it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bias::{Bias, Inputs, Order, Place, Places, Softmax};
use crate::cpu::vector::{exp, exponentials, largest, narrow, through, wide, widen};
use crate::cpu::{Lines, Part};
use crate::{Logits, Scalar};

/// Elements below which a thread is not worth its start, about 20 microseconds of work.
const GRAIN_OF_BIAS: usize = 1 << 15;
const GRAIN_OF_SOFTMAX: usize = 1 << 13;
/// Keys whose logits are made at once, in the first cache.
const BLOCK: usize = 256;

fn part(shape: &Logits) -> Part {
    Part::whole([shape.batch, shape.heads, shape.queries], shape.strides)
}

/// A row's place: sequence, head and query.
type At = [usize; 3];

/// What is done with an element of a row and its bias.
trait Merge<X> {
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
            row,
            self.add,
            #[inline(always)]
            |_, row| row.iter_mut().for_each(|x| *x = self.put(*x, bias)),
        );
    }

    #[inline(always)]
    fn each(&self, row: &mut [T], biases: &[f32]) {
        through(
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
fn merge<X>(
    bias: Bias,
    places: &Places<&[i32]>,
    shape: &Logits,
    [batch, head, query]: At,
    keys: Range<usize>,
    row: &mut [X],
    with: &impl Merge<X>,
) {
    let at = places.query(shape, batch, query);
    let (Place::From(start), None) = (places.keys, places.packed) else {
        for (key, x) in keys.zip(row) {
            let apart = places.packed.is_some() && !places.meet(shape, batch, query, key);
            let value = || bias.at(batch, head, at, places.key(shape, batch, key));
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
        Bias::Fire(_) => {
            keys.zip(row).for_each(|(key, x)| with.value(x, bias.at(batch, head, at, start + key as i64)));
        }
    }
}

/// [`Bias::write`] of checked arguments, or [`Bias::add`].
pub(super) fn put<T: Scalar>(bias: Bias, out: &mut [T], add: bool, shape: &Logits, places: &Places<&[i32]>) {
    if shape.is_empty() {
        return;
    }
    let put = Put { add };
    part(shape).share_out(&mut out[shape.offset..], shape.keys, GRAIN_OF_BIAS, &|part, out| {
        wide(
            #[inline(always)]
            || {
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

/// [`Softmax::apply`] of checked arguments: the log-sum-exp of each row.
pub(super) fn softmax<T: Scalar>(softmax: &Softmax, x: &mut [T], shape: &Logits, inputs: &Inputs<T>) -> Vec<f32> {
    let rows = shape.batch * shape.heads * shape.queries;
    // Each row's bits, written by whichever thread has the row.
    let lse: Vec<AtomicU32> = (0..rows).map(|_| AtomicU32::new(f32::NEG_INFINITY.to_bits())).collect();
    let put = |[batch, head, query]: At, value: f64| {
        let row = (batch * shape.heads + head) * shape.queries + query;
        lse[row].store((value as f32).to_bits(), Ordering::Relaxed);
    };
    let work = |part: Part, x: &mut [T]| {
        let [mut z, mut mask] = [shape.keys, BLOCK].map(|len| Lines::new(0.0, len.next_multiple_of(8)));
        wide(
            #[inline(always)]
            || {
                part.rows(
                    x,
                    shape.keys,
                    #[inline(always)]
                    |at, x| {
                        let value = row(softmax, x, shape, inputs, at, &mut z, &mut mask);
                        put(at, value.unwrap_or_else(|| softmax.apply_row(x, shape, inputs, at)));
                    },
                );
            },
        );
    };
    let whole = part(shape);
    if shape.keys == 0 {
        // There is nothing to write, and still a row may have a sink.
        (0..shape.batch).for_each(|batch| {
            (0..shape.heads).for_each(|head| {
                (0..shape.queries).for_each(|query| {
                    let at = [batch, head, query];
                    put(at, softmax.apply_row(&mut [], shape, inputs, at));
                });
            });
        });
    } else if rows > 0 {
        whole.share_out(&mut x[shape.offset..], shape.keys, GRAIN_OF_SOFTMAX, &work);
    }
    lse.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect()
}

/// The softmax of a row whose keys follow one another and whose logits are numbers; nothing else is touched.
#[inline(always)]
fn row<T: Scalar>(
    softmax: &Softmax,
    x: &mut [T],
    shape: &Logits,
    inputs: &Inputs<T>,
    at: At,
    z: &mut [f64],
    mask: &mut [f64],
) -> Option<f64> {
    let [batch, head, query] = at;
    let places = &inputs.positions;
    let (Place::From(start), None) = (places.keys, places.packed) else { return None };
    if !places.has(shape, batch, query) {
        return None;
    }
    let position = places.query(shape, batch, query);
    let keys = places.key_lengths.map_or(shape.keys, |lengths| usize::try_from(lengths[batch]).unwrap_or(0));
    let (left, right) = softmax.window();
    // Keys below a position; there are fewer than 2^31.
    let below = |position: i64| position.saturating_sub(start).clamp(0, keys as i64) as usize;
    let (low, high) = (below(position.saturating_add(left)), below(position.saturating_add(right).saturating_add(1)));
    if low >= high {
        return None;
    }
    // Whole vectors; what lies behind the row adds nothing.
    let z = &mut z[..(high - low).next_multiple_of(8)];
    z[high - low..].fill(f64::NEG_INFINITY);
    for (first, z) in (low..high).step_by(BLOCK).zip(z.chunks_mut(BLOCK)) {
        let end = high.min(first + BLOCK);
        logits(softmax, x, shape, inputs, at, first..end, [&mut z[..end - first], mask]);
    }
    let sink = inputs.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
    let max = largest(z).max(sink);
    if !max.is_finite() {
        return None;
    }
    let total = exp(sink - max) + exponentials(z, max);
    if !total.is_finite() {
        return None;
    }
    x[..low].fill(T::from_f32(0.0));
    narrow(z, 1.0 / total, &mut x[low..high]);
    x[high..].fill(T::from_f32(0.0));
    Some(max + total.ln())
}

/// Up to [`BLOCK`] logits of a row, with all that is added to them.
#[inline(always)]
fn logits<T: Scalar>(
    softmax: &Softmax,
    x: &[T],
    shape: &Logits,
    inputs: &Inputs<T>,
    at: At,
    keys: Range<usize>,
    [z, mask]: [&mut [f64]; 2],
) {
    let [batch, head, query] = at;
    widen(&x[keys.clone()], z);
    let scale = f64::from(softmax.scale);
    let gate = inputs.gates.map_or(1.0, |gates| f64::from(gates[(batch * shape.heads + head) * shape.queries + query]));
    let (bias, places) = (inputs.bias, &inputs.positions);
    let cap = |z: &mut [f64]| {
        if let Some(cap) = softmax.softcap {
            let cap = f64::from(cap);
            z.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
        }
    };
    match softmax.order {
        _ if matches!(bias, Bias::None) => {
            z.iter_mut().for_each(|z| *z *= scale);
            cap(z);
        }
        Order::SoftcapThenBias if softmax.softcap.is_some() => {
            z.iter_mut().for_each(|z| *z *= scale);
            cap(z);
            merge(bias, places, shape, at, keys.clone(), z, &|z: &mut f64, bias: f64| *z += bias * gate);
        }
        Order::SoftcapThenBias | Order::BiasThenSoftcap => {
            merge(bias, places, shape, at, keys.clone(), z, &|z: &mut f64, bias: f64| {
                *z = bias.mul_add(gate, *z * scale)
            });
            cap(z);
        }
        Order::BiasThenScale => {
            merge(bias, places, shape, at, keys.clone(), z, &|z: &mut f64, bias: f64| {
                *z = bias.mul_add(gate, *z) * scale
            });
            cap(z);
        }
    }
    if let Some((values, mask_shape)) = inputs.mask {
        let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
        let from = mask_shape.index(
            at(mask_shape.batch, batch),
            at(mask_shape.heads, head),
            at(mask_shape.queries, query),
            keys.start,
        );
        let mask = &mut mask[..z.len()];
        widen(&values[from..from + z.len()], mask);
        z.iter_mut().zip(&*mask).for_each(|(z, mask)| *z += mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::{assert_close, rounded, rounded_on_cpu};
    use crate::bias::{Alibi, Sides, T5Bias, Toeplitz};
    use half::{bf16, f16};

    /// Numbers of magnitude 0.5 to 2 by index, no two alike.
    fn data<T: Scalar>(n: usize, seed: u64) -> Vec<T> {
        let value = |i: usize| {
            let bits = (i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64) * if bits & 1 == 0 { 1.0 } else { -1.0 }
        };
        (0..n).map(|i| T::from_f64(value(i))).collect()
    }

    const SHAPE: Logits = Logits { batch: 2, heads: 4, queries: 3, keys: 13, offset: 5, strides: [200, 50, 15] };
    const PLACED: [i32; 26] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3];

    fn places() -> Vec<Places<&'static [i32]>> {
        vec![
            Places::last(),
            Places::from(5, 0),
            Places::from(-3, 4),
            Places { key_lengths: Some(&[7, 13]), query_lengths: Some(&[2, 3]), ..Places::from(4, 0) },
            Places { key_lengths: Some(&[0, 2]), ..Places::last() },
            Places { queries: Place::Each(&PLACED[3..]), ..Places::from(0, 0) },
            Places { keys: Place::Each(&PLACED), ..Places::from(5, 0) },
        ]
    }

    fn with_biases(check: impl Fn(Bias)) {
        let slopes = |sides| Alibi { sides, ..Alibi::new(4) }.slopes().unwrap();
        check(Bias::None);
        check(Bias::Slopes(&slopes(Sides::Symmetric)));
        check(Bias::Slopes(&slopes(Sides::Signed)));
        check(Bias::Slopes(&slopes(Sides::Halves)));
        let own: Vec<f32> = (1..=8).map(|i| i as f32 / 16.0).collect();
        check(Bias::Slopes(&crate::Slopes::symmetric(4, &own).unwrap()));
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
            let old = |i: usize| before[i].to_f64();
            let (mut want_written, mut want_added) =
                ((0..before.len()).map(old).collect::<Vec<_>>(), (0..before.len()).map(old).collect::<Vec<_>>());
            for batch in 0..shape.batch {
                for (head, query, key) in
                    (0..4).flat_map(|h| (0..3).flat_map(move |q| (0..13).map(move |k| (h, q, k)))).collect::<Vec<_>>()
                {
                    let index = shape.index(batch, head, query, key);
                    let value = if packed && !places.meet(&shape, batch, query, key) {
                        f64::NEG_INFINITY
                    } else {
                        bias.at(batch, head, places.query(&shape, batch, query), places.key(&shape, batch, key))
                    };
                    want_written[index] = T::from_f64(value).to_f64();
                    want_added[index] = T::from_f64(old(index) + value).to_f64();
                }
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

    fn softmaxes() -> Vec<Softmax> {
        let plain = Softmax::new(0.7);
        let capped = |order| Softmax { softcap: Some(1.5), order, left: Some(4), right: Some(1), ..plain };
        vec![
            plain,
            Softmax::causal(0.7),
            Softmax { left: Some(2), right: Some(0), ..plain },
            capped(Order::SoftcapThenBias),
            capped(Order::BiasThenSoftcap),
            capped(Order::BiasThenScale),
            Softmax { order: Order::BiasThenScale, ..plain },
        ]
    }

    /// The reference, within half an ulp of the type and the doc's 1e-12.
    fn is_reference<T: Scalar>(softmax: &Softmax, x: &[T], inputs: &Inputs<T>) {
        let expected = softmax.expect(x, &SHAPE, inputs).unwrap();
        let mut got = x.to_vec();
        let lse = softmax.apply(&mut got, &SHAPE, inputs).unwrap();
        assert_close(&got, &expected.want, |i| {
            let want = expected.want[i];
            if expected.bound[i] == 0.0 { 0.0 } else { rounded_on_cpu::<T>(want, want.abs() * 1e-12) }
        });
        assert_close(&lse, &expected.lse, |i| rounded::<f32>(expected.lse[i], 1e-12));
    }

    #[test]
    fn softmax_is_its_reference() {
        fn check<T: Scalar>(bias: Bias) {
            let x = data::<T>(SHAPE.span().unwrap() + 4, 1);
            let (sinks, gates) = (data::<f32>(4, 50), data::<f32>(2 * 4 * 3, 60));
            let mut mask = data::<T>(2 * 3 * 13, 70);
            mask[17] = T::from_f64(f64::NEG_INFINITY);
            mask[40..52].fill(T::from_f64(f64::NEG_INFINITY));
            for softmax in softmaxes() {
                for positions in places() {
                    let inputs = Inputs { bias, ..Inputs::at(positions) };
                    is_reference(&softmax, &x, &inputs);
                    is_reference(&softmax, &x, &Inputs { sinks: Some(&sinks), gates: Some(&gates), ..inputs });
                    let mask = Some((&mask[..], Logits::bhqk(2, 1, 3, 13)));
                    is_reference(&softmax, &x, &Inputs { mask, ..inputs });
                }
            }
        }
        with_biases(|bias| {
            check::<f32>(bias);
            check::<f16>(bias);
            check::<bf16>(bias);
        });
    }

    #[test]
    fn what_is_no_number_is_as_the_reference_has_it() {
        let mut x = data::<f32>(SHAPE.span().unwrap() + 4, 1);
        x[SHAPE.index(0, 0, 0, 3)] = f32::NAN;
        x[SHAPE.index(0, 1, 1, 5)] = f32::INFINITY;
        x[SHAPE.index(1, 2, 2, 7)] = f32::NEG_INFINITY;
        x[SHAPE.index(1, 3, 0, 0)..][..13].fill(f32::NEG_INFINITY);
        for softmax in softmaxes() {
            is_reference(&softmax, &x, &Inputs::at(Places::from(6, 0)));
        }
    }

    #[test]
    fn threads_do_not_show() {
        let shape = Logits::bhqk(2, 4, 96, 70);
        let slopes = Alibi::new(4).slopes().unwrap();
        let x = data::<f32>(shape.elements().unwrap(), 9);
        let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Places::from(0, 0)) };
        let [one, two] = [1, 3].map(|threads| {
            let mut x = x.clone();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let lse = pool.install(|| Softmax::causal(0.5).apply(&mut x, &shape, &inputs)).unwrap();
            (x, lse)
        });
        assert!(one == two);
    }
}

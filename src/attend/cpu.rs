//! The softmax on the CPU in vectors and threads: what [`Softmax::apply`] runs.
//!
//! The reference is the loop behind [`Softmax::expect`]; tests hold this to it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::attend::softmax::{LARGEST, as_in_f32, masked};
use crate::attend::{Inputs, Order, Softmax};
use crate::bias::Bias;
use crate::bias::cpu::{At, merge, part};
use crate::cpu::vector::{exp, exponentials, largest, narrow, wide, widen};
use crate::cpu::{Lines, Part, Width};
use crate::memory::collected;
use crate::position::Place;
use crate::{Logits, Result, Scalar};

/// Elements below which a thread is not worth its start, about 20 microseconds of work.
const GRAIN: usize = 1 << 13;
/// Keys whose logits are made at once, in the first cache.
const BLOCK: usize = 256;

/// [`Softmax::apply`] of checked arguments: the log-sum-exp of each row.
pub(super) fn softmax<T: Scalar>(
    softmax: &Softmax,
    x: &mut [T],
    shape: &Logits,
    inputs: &Inputs<T>,
) -> Result<Vec<f32>> {
    let rows = shape.rows()?;
    // Each row's bits, written by whichever thread has the row.
    let lse = collected("rows", rows, (0..rows).map(|_| AtomicU32::new(f32::NEG_INFINITY.to_bits())))?;
    let put = |[batch, head, query]: At, value: f64| {
        let row = (batch * shape.heads + head) * shape.queries + query;
        lse[row].store((value as f32).to_bits(), Ordering::Relaxed);
    };
    let work = |part: Part, x: &mut [T]| {
        let [mut z, mut mask] = [shape.keys, BLOCK].map(|len| Lines::new(0.0, len.next_multiple_of(8)));
        wide(
            #[inline(always)]
            |width| {
                part.rows(
                    x,
                    shape.keys,
                    #[inline(always)]
                    |at, x| put(at, row(width, softmax, x, shape, inputs, at, [&mut z, &mut mask])),
                );
            },
        );
    };
    if shape.keys == 0 {
        // There is nothing to write, and still a row may have a sink.
        shape
            .each_row()
            .for_each(|at| put(at, row(Width::Least, softmax, &mut [], shape, inputs, at, [&mut [], &mut []])));
    } else if rows > 0 {
        part(shape).share_out(&mut x[shape.offset..], shape.keys, GRAIN, &work);
    }
    Ok(lse.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect())
}

/// The softmax of a row, and its log-sum-exp.
#[inline(always)]
fn row<T: Scalar>(
    width: Width,
    softmax: &Softmax,
    x: &mut [T],
    shape: &Logits,
    inputs: &Inputs<T>,
    at: At,
    [z, mask]: [&mut [f64]; 2],
) -> f64 {
    let [batch, head, query] = at;
    let softmax = &softmax.of_head(inputs, head);
    let keys = seen(softmax, shape, inputs, at);
    let sink = if inputs.places.has(shape, batch, query) { inputs.sink(head) } else { f64::NEG_INFINITY };
    let sink = as_in_f32(sink);
    // Whole vectors; what lies behind the row adds nothing.
    let z = &mut z[..keys.len().next_multiple_of(8)];
    z[keys.len()..].fill(f64::NEG_INFINITY);
    logits(width, softmax, x, shape, inputs, (at, keys.clone()), [z, mask]);
    let zero = T::from_f32(0.0);
    x[..keys.start].fill(zero);
    x[keys.end..].fill(zero);
    let max = as_in_f32(largest(z).max(sink));
    if max == -LARGEST {
        // Nothing above it: all that is not masked is alike.
        z.iter_mut().for_each(|z| *z = as_in_f32(*z));
    }
    if max == f64::NEG_INFINITY && !z.iter().any(|z| z.is_nan()) {
        x.fill(zero);
        return max;
    }
    let total = exponentials(z, max) + if sink == f64::NEG_INFINITY { 0.0 } else { exp(sink - max) };
    if !(max.is_finite() && total.is_finite()) {
        // A logit of NaN or inf: no number has a share but where the mask leaves none.
        logits(width, softmax, x, shape, inputs, (at, keys.clone()), [z, mask]);
        for (x, z) in x[keys.clone()].iter_mut().zip(&*z) {
            *x = if as_in_f32(*z) == f64::NEG_INFINITY { zero } else { T::from_f64(f64::NAN) };
        }
        return f64::NAN;
    }
    narrow(width, z, 1.0 / total, &mut x[keys]);
    max + total.ln()
}

/// The keys outside of which a row sees none.
#[inline(always)]
fn seen<T: Scalar>(softmax: &Softmax, shape: &Logits, inputs: &Inputs<T>, [batch, _, query]: At) -> Range<usize> {
    let places = &inputs.places;
    if !places.has(shape, batch, query) {
        return 0..0;
    }
    let (Place::Counted(start), None) = (places.keys, places.packed) else { return 0..shape.keys };
    let keys = places.key_lengths.map_or(shape.keys, |lengths| usize::try_from(lengths[batch]).unwrap_or(0));
    let ((left, right), position) = (softmax.window(), places.query(shape, batch, query));
    // Keys below a position; there are fewer than 2^31.
    let below = |position: i64| position.saturating_sub(start).clamp(0, keys as i64) as usize;
    let (low, high) = (below(position.saturating_add(left)), below(position.saturating_add(right).saturating_add(1)));
    low.min(high)..high
}

/// The logits of a row, with all that is added to them.
#[inline(always)]
fn logits<T: Scalar>(
    width: Width,
    softmax: &Softmax,
    x: &[T],
    shape: &Logits,
    inputs: &Inputs<T>,
    (at, keys): (At, Range<usize>),
    [z, mask]: [&mut [f64]; 2],
) {
    for (first, z) in keys.clone().step_by(BLOCK).zip(z.chunks_mut(BLOCK)) {
        let end = keys.end.min(first + BLOCK);
        block(width, softmax, x, shape, inputs, (at, first..end), [&mut z[..end - first], &mut *mask]);
    }
}

/// Up to [`BLOCK`] of them.
#[inline(always)]
fn block<T: Scalar>(
    width: Width,
    softmax: &Softmax,
    x: &[T],
    shape: &Logits,
    inputs: &Inputs<T>,
    (at, keys): (At, Range<usize>),
    [z, mask]: [&mut [f64]; 2],
) {
    widen(width, &x[keys.clone()], z);
    let scale = f64::from(softmax.scale);
    let gate = inputs.gate(shape, at);
    let (bias, places) = (inputs.bias, &inputs.places);
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
    if let Some((values, first)) = inputs.mask_of(at) {
        let mask = &mut mask[..z.len()];
        widen(width, &values[first + keys.start..][..z.len()], mask);
        z.iter_mut().zip(&*mask).for_each(|(z, mask)| *z = masked(*z, *mask));
    }
    if matches!(places.keys, Place::Counted(_)) && places.packed.is_none() {
        return;
    }
    // Of keys that do not follow one another each is asked whether it is seen.
    let [batch, _, query] = at;
    let position = places.query(shape, batch, query);
    for (key, z) in keys.zip(z) {
        let sees = softmax.sees(places.key(shape, batch, key) - position);
        *z = if sees && places.meet(shape, batch, query, key) { *z } else { f64::NEG_INFINITY };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accuracy::{assert_close, rounded, rounded_on_cpu};
    use crate::bias::Alibi;
    use crate::bias::cpu::tests::{SHAPE, data, places, with_biases};
    use crate::position::Places;
    use half::{bf16, f16};

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
        let shape = Logits { batch: if inputs.places.packed.is_some() { 1 } else { 2 }, ..SHAPE };
        let expected = softmax.expect(x, &shape, inputs).unwrap();
        let mut got = x.to_vec();
        let lse = softmax.apply(&mut got, &shape, inputs).unwrap();
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
                for places in places() {
                    let inputs = Inputs { bias, ..Inputs::at(places) };
                    is_reference(&softmax, &x, &inputs);
                    let gates = (!matches!(bias, Bias::None)).then_some(&gates[..]);
                    is_reference(&softmax, &x, &Inputs { sinks: Some(&sinks), gates, ..inputs });
                    is_reference(&softmax, &x, &Inputs { scales: Some(&[0.5, -1.0, 2.5, 0.0]), ..inputs });
                    let mask = Some((&mask[..], Logits::bhqk(2, 1, 3, 13)));
                    is_reference(&softmax, &x, &Inputs { mask, ..inputs });
                }
                if matches!(bias, Bias::Slopes(slopes) if slopes.batch > 1) {
                    continue;
                }
                let packed = Inputs { bias, ..Inputs::at(Places::packed(&[1, 1, 3][..], &[1, 5, 12], 2)) };
                is_reference(&softmax, &x, &packed);
                is_reference(&softmax, &x, &Inputs { sinks: Some(&sinks), ..packed });
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
        let ids: Vec<i32> = (0..26).map(|key| key * key % 13).collect();
        let mut x = data::<f32>(SHAPE.span().unwrap() + 4, 1);
        x[SHAPE.index(0, 0, 0, 3)] = f32::NAN;
        x[SHAPE.index(0, 1, 1, 5)] = f32::INFINITY;
        x[SHAPE.index(1, 2, 2, 7)] = f32::NEG_INFINITY;
        x[SHAPE.index(1, 3, 0, 0)..][..13].fill(f32::NEG_INFINITY);
        // Numbers that a scale makes infinite in f32: all keys of one row, one key of others.
        x[SHAPE.index(0, 2, 0, 0)..][..13].fill(f32::MIN);
        x[SHAPE.index(0, 2, 1, 2)] = f32::MIN;
        x[SHAPE.index(0, 2, 2, 4)] = f32::MAX;
        x[SHAPE.index(0, 2, 2, 5)] = f32::MIN;
        for softmax in softmaxes().into_iter().chain([Softmax::new(2.0)]) {
            is_reference(&softmax, &x, &Inputs::at(Places::counted(6, 0)));
            is_reference(&softmax, &x, &Inputs { sinks: Some(&[0.5; 4]), ..Inputs::at(Places::counted(6, 0)) });
            is_reference(&softmax, &x, &Inputs::at(Places { keys: Place::Ids(&ids[..]), ..Places::counted(6, 0) }));
            is_reference(&softmax, &x, &Inputs::at(Places::packed(&[0, 1, 3][..], &[0, 5, 13], 2)));
        }
    }

    #[test]
    fn threads_do_not_show() {
        let shape = Logits::bhqk(2, 4, 96, 70);
        let slopes = Alibi::new(4).slopes().unwrap();
        let x = data::<f32>(shape.elements().unwrap(), 9);
        let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Places::counted(0, 0)) };
        let [one, two] = [1, 3].map(|threads| {
            let mut x = x.clone();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let lse = pool.install(|| Softmax::causal(0.5).apply(&mut x, &shape, &inputs)).unwrap();
            (x, lse)
        });
        assert!(one == two);
    }
}

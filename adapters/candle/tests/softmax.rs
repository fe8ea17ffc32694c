//! The softmax with ALiBi, T5 and given biases, beside one of candle's own operations.

#![allow(missing_docs, reason = "a test")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use posenc::attend::{Inputs, Order};
use posenc::{Alibi, Logits, T5Bias};
use posenc_candle::{Bias, Softmax};

mod support;
use support::{apart, numbers, refusal, values};

const SCALE: f32 = 0.4;

/// `[heads, queries, keys]` numbers of a bias by distance, with -inf for keys of the future, made by loops.
fn by_distance(heads: usize, queries: usize, keys: usize, bias: impl Fn(usize, i64) -> f64) -> Result<Tensor> {
    let mut values = Vec::new();
    for head in 0..heads {
        for query in 0..queries {
            for key in 0..keys {
                let distance = key as i64 - (query + keys - queries) as i64;
                values.push(if distance > 0 { f64::NEG_INFINITY } else { bias(head, distance) });
            }
        }
    }
    Tensor::from_vec(values, (heads, queries, keys), &Device::Cpu)
}

fn plain(scores: &Tensor, bias: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax(&(scores * f64::from(SCALE))?.broadcast_add(bias)?, D::Minus1)
}

fn biases() -> Result<Vec<(Bias, Tensor)>> {
    let spec = T5Bias::new(8, 12, false);
    let table = numbers((8, 4), DType::F32)?;
    let rows = table.to_vec2::<f32>()?;
    Ok(vec![
        (Bias::None, by_distance(4, 3, 7, |_, _| 0.0)?),
        // Four heads: slopes of 1/4, 1/16, 1/64 and 1/256.
        (
            Bias::alibi(&Alibi::new(4))?,
            by_distance(4, 3, 7, |head, distance| distance as f64 * 0.25f64.powi(head as i32 + 1))?,
        ),
        (
            Bias::t5(&spec, &table)?,
            by_distance(4, 3, 7, |head, distance| f64::from(rows[spec.bucket(distance).unwrap()][head]))?,
        ),
    ])
}

/// Probabilities and gradients are those of the softmax that candle makes in f64 of scaled scores and a written bias.
#[test]
fn probabilities_and_gradients_of_each_bias() -> Result<()> {
    for (bias, written) in biases()? {
        let softmax = Softmax::new(posenc::Softmax::causal(SCALE), bias, &Device::Cpu)?;
        for (dtype, rounding) in [(DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
            let scores = Var::from_tensor(&numbers((2, 4, 3, 7), dtype)?)?;
            let given = Var::from_tensor(&numbers((4, 1, 7), dtype)?)?;
            let [wide_scores, wide_given] = [&scores, &given].map(|x| x.to_dtype(DType::F64));
            let (wide_scores, wide_given) = (wide_scores?, wide_given?);
            for with_given in [false, true] {
                let got = softmax.apply(&scores, with_given.then_some(given.as_tensor()))?;
                let bias = if with_given { written.broadcast_add(&wide_given)? } else { written.clone() };
                let want = plain(&wide_scores, &bias)?;
                assert!(apart(&got, &want)? < rounding, "{}", apart(&got, &want)?);

                let weights = numbers((2, 4, 3, 7), DType::F64)?;
                let got = (got.to_dtype(DType::F64)? * &weights)?.sum_all()?.backward()?;
                let want = (want * &weights)?.sum_all()?.backward()?;
                let gradients = [&scores, &given].into_iter().take(1 + usize::from(with_given));
                for x in gradients {
                    let (got, want) = (got.get(x).unwrap(), want.get(x).unwrap());
                    assert_eq!((got.dims(), got.dtype()), (x.dims(), dtype));
                    let difference = apart(got, want)?;
                    assert!(difference < 20.0 * rounding, "{dtype:?} {difference}");
                }
            }
        }
    }
    Ok(())
}

/// Every order of scale, softcap and bias: the bits of posenc's own slices, and gradients by differences.
#[test]
fn softcaps_in_every_order() -> Result<()> {
    for order in [Order::SoftcapThenBias, Order::BiasThenSoftcap, Order::BiasThenScale] {
        let spec = posenc::Softmax { softcap: Some(1.5), order, ..posenc::Softmax::causal(SCALE) };
        let alibi = Alibi::new(4);
        let softmax = Softmax::new(spec, Bias::alibi(&alibi)?, &Device::Cpu)?;
        let slopes = alibi.slopes().unwrap();
        let inputs = Inputs { bias: posenc::Bias::Slopes(&slopes), ..Inputs::default() };
        let scores = Var::from_tensor(&numbers((2, 4, 3, 7), DType::F32)?)?;
        let mut want = scores.flatten_all()?.to_vec1::<f32>()?;
        spec.apply(&mut want, &Logits::bhqk(2, 4, 3, 7), &inputs).unwrap();
        let got = softmax.apply(&scores, None)?;
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, want);

        let weights = numbers((2, 4, 3, 7), DType::F32)?;
        let loss = |scores: &Tensor| -> Result<f64> {
            (softmax.apply(scores, None)?.to_dtype(DType::F64)? * weights.to_dtype(DType::F64)?)?.sum_all()?.to_scalar()
        };
        let grads = (got * &weights)?.sum_all()?.backward()?;
        let direction = numbers((2, 4, 3, 7), DType::F32)?.affine(0.3, 0.2)?;
        let along = (grads.get(&scores).unwrap() * &direction)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        let step = |by: f64| loss(&(scores.as_tensor() + (&direction * by)?)?);
        let difference = (step(0.01)? - step(-0.01)?) / 0.02;
        assert!((difference - along).abs() < 1e-3 * along.abs().max(1.0), "{order:?}: {difference} and {along}");
    }
    Ok(())
}

#[test]
fn scores_of_any_strides() -> Result<()> {
    let softmax = Softmax::new(posenc::Softmax::new(SCALE), Bias::None, &Device::Cpu)?;
    for (view, dtype) in [
        (numbers((2, 3, 4, 7), DType::F16)?.transpose(1, 2)?, DType::F16),
        (numbers((2, 4, 7, 3), DType::BF16)?.transpose(2, 3)?, DType::BF16),
        (numbers((2, 5, 6, 9), DType::F32)?.narrow(1, 1, 4)?.narrow(2, 2, 3)?.narrow(3, 1, 7)?, DType::F32),
        (numbers((1, 4, 3, 7), DType::F32)?.broadcast_as((2, 4, 3, 7))?, DType::F32),
    ] {
        let (got, want) = (softmax.apply(&view, None)?, softmax.apply(&view.force_contiguous()?, None)?);
        assert_eq!((got.dtype(), values(&got)?), (dtype, values(&want)?));
    }
    Ok(())
}

#[test]
fn refusals_name_what_is_wrong() -> Result<()> {
    let cpu = &Device::Cpu;
    let says = |error: String, want: &str| assert_eq!(error, want);
    let softmax = Softmax::new(posenc::Softmax::new(1.0), Bias::alibi(&Alibi::new(4))?, cpu)?;
    let scores = numbers((2, 4, 3, 7), DType::F32)?;
    says(
        refusal(softmax.apply(&scores.get(0)?, None)),
        "scores has the shape [4, 3, 7], [batch, heads, queries, keys] is needed",
    );
    says(
        refusal(softmax.apply(&scores, Some(&numbers((3, 6), DType::F32)?))),
        "the given bias has the shape [3, 6], which does not broadcast to [2, 4, 3, 7]",
    );
    says(
        refusal(softmax.apply(&scores, Some(&numbers((3, 7), DType::F16)?))),
        "scores is F32 and the given bias F16, they must be equal",
    );
    assert!(refusal(softmax.apply(&scores.narrow(1, 0, 3)?, None)).contains("4 heads"));
    says(
        refusal(softmax.apply(&scores.to_dtype(DType::F64)?, None)),
        "scores is F64, this operation knows F32, F16 and BF16",
    );
    says(
        refusal(Bias::t5(&T5Bias::new(32, 128, true), &numbers((16, 4), DType::F32)?)),
        "the table has 16 rows, the spec has 32 buckets",
    );
    says(refusal(Softmax::new(posenc::Softmax::new(f32::NAN), Bias::None, cpu)), "scale is NaN, it must be finite");
    Ok(())
}

/// Any law of distance.
#[test]
fn laws_of_posenc_are_biases() -> Result<()> {
    let law = posenc::Toeplitz::from_law(2, -4..=0, |head, distance| distance as f64 * (head + 1) as f64);
    let Ok(row) = law else { panic!("the law is refused") };
    let softmax = Softmax::new(posenc::Softmax::causal(1.0), Bias::Toeplitz(row), &Device::Cpu)?;
    let p = softmax.apply(&Tensor::zeros((1, 2, 1, 2), DType::F32, &Device::Cpu)?, None)?;
    let want = |slope: f64| 1.0 / (1.0 + slope.exp());
    assert!((values(&p)?[0] - want(1.0)).abs() < 1e-7 && (values(&p)?[2] - want(2.0)).abs() < 1e-7);
    Ok(())
}

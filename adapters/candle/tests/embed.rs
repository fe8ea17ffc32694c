//! Sinusoids and learned tables on candle's tensors are posenc's own, and have gradients.

#![allow(missing_docs, reason = "a test")]

use candle_core::{DType, Device, Result, Tensor, Var};
use posenc::embed::{Norm, Rows, Tokens};
use posenc::half::{bf16, f16};
use posenc_candle::{At, Learned, Sinusoid};

mod support;
use support::{apart, numbers, refusal, values};

#[test]
fn sinusoids_are_added_to_tensors_of_any_strides() -> Result<()> {
    fn want<T: posenc::Scalar + candle_core::WithDType>(x: &Tensor, positions: &[i64]) -> Result<Vec<f64>> {
        let (batch, tokens, dim) = x.dims3()?;
        let mut values = x.flatten_all()?.to_vec1::<T>()?;
        let shape = Tokens::new(batch, tokens, dim);
        posenc::Sinusoid::new(dim).add(&mut values, &shape, positions, 3.0).unwrap();
        Ok(values.into_iter().map(posenc::Scalar::to_f64).collect())
    }
    let sinusoid = Sinusoid::new(posenc::Sinusoid::new(10), &Device::Cpu)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let views = [
            numbers((2, 3, 10), dtype)?,
            numbers((3, 2, 10), dtype)?.transpose(0, 1)?,
            numbers((2, 5, 14), dtype)?.narrow(1, 1, 3)?.narrow(2, 2, 10)?,
            numbers((2, 1, 10), dtype)?.broadcast_as((2, 3, 10))?,
        ];
        for x in &views {
            let starts = Tensor::new(&[100_000i64, -2], &Device::Cpu)?;
            let got = sinusoid.add(x, At::Starts(&starts), 3.0)?;
            let positions = [100_000, 100_001, 100_002, -2, -1, 0];
            let want = match dtype {
                DType::F32 => want::<f32>(x, &positions)?,
                DType::F16 => want::<f16>(x, &positions)?,
                _ => want::<bf16>(x, &positions)?,
            };
            assert_eq!(values(&got)?, want);
        }
    }
    let x = Var::from_tensor(&numbers((2, 3, 10), DType::F32)?)?;
    let grads = sinusoid.add(&x, At::Start(0), 3.0)?.sum_all()?.backward()?;
    assert_eq!(values(grads.get(&x).unwrap())?, [3.0; 60]);
    Ok(())
}

/// Rows of both tables and their gradients are those of candle's own operations; tokens come again and again.
#[test]
fn learned_tables_and_their_gradients() -> Result<()> {
    let learned =
        Learned::new(posenc::Learned { scale: 2.0, rows: Rows::Offset(1), ..posenc::Learned::new(6) }, &Device::Cpu)?;
    let ids = Tensor::new(&[[4u32, 0, 4], [8, 4, 1]], &Device::Cpu)?;
    let rows = Tensor::new(&[3u32, 4, 5, 1, 2, 3], &Device::Cpu)?;
    let starts = Tensor::new(&[2u32, 0], &Device::Cpu)?;
    for (dtype, rounding) in [(DType::F32, 1e-6), (DType::F16, 4e-3), (DType::BF16, 4e-2)] {
        let token = Var::from_tensor(&numbers((9, 6), dtype)?)?;
        let position = Var::from_tensor(&numbers((7, 6), dtype)?.affine(-0.5, 0.25)?)?;
        let got = learned.gather(&ids, &token, &position, At::Starts(&starts))?;
        let wide = |x: &Var| x.to_dtype(DType::F32);
        let picked = (wide(&token)?.index_select(&ids.flatten_all()?, 0)? * 2.0)?;
        let want = (picked + wide(&position)?.index_select(&rows, 0)?)?.reshape((2, 3, 6))?;
        assert!(apart(&got, &want)? <= rounding, "{}", apart(&got, &want)?);

        let weights = numbers((2, 3, 6), DType::F32)?;
        let (got, want) = ((got.to_dtype(DType::F32)? * &weights)?.backward()?, (want * &weights)?.backward()?);
        for table in [&token, &position] {
            let (got, want) = (got.get(table).unwrap(), want.get(table).unwrap());
            assert_eq!(got.dtype(), dtype);
            let difference = apart(got, want)?;
            assert!(difference <= 4.0 * rounding, "{difference}");
        }
    }
    Ok(())
}

/// RoBERTa's rows: padding is not counted.
#[test]
fn rows_that_skip_padding() -> Result<()> {
    let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    let learned = Learned::new(posenc::Learned { rows, ..posenc::Learned::new(2) }, &Device::Cpu)?;
    let ids = Tensor::new(&[[5i64, 1, 6, 7]], &Device::Cpu)?;
    let token = Tensor::zeros((8, 2), DType::F32, &Device::Cpu)?;
    let position = Var::from_tensor(&numbers((6, 2), DType::F32)?)?;
    let got = learned.gather(&ids, &token, &position, At::Start(0))?;
    let want = position.index_select(&Tensor::new(&[2u32, 1, 3, 4], &Device::Cpu)?, 0)?.unsqueeze(0)?;
    assert_eq!(values(&got)?, values(&want)?);
    let grads = got.sum_all()?.backward()?;
    assert_eq!(values(grads.get(&position).unwrap())?, [0., 0., 1., 1., 1., 1., 1., 1., 1., 1., 0., 0.]);
    Ok(())
}

#[test]
fn refusals_name_what_is_wrong() -> Result<()> {
    let cpu = &Device::Cpu;
    let says = |error: String, want: &str| assert_eq!(error, want);
    let sinusoid = Sinusoid::new(posenc::Sinusoid::new(10), cpu)?;
    let x = numbers((2, 3, 8), DType::F32)?;
    says(refusal(sinusoid.add(&x, At::Start(0), 1.0)), "x has 8 channels, the encoding has 10");
    let ints = x.to_dtype(DType::U32)?;
    says(refusal(sinusoid.add(&ints, At::Start(0), 1.0)), "x is U32, this operation knows F32, F16 and BF16");

    let learned = Learned::new(posenc::Learned::new(8), cpu)?;
    let (token, position) = (numbers((9, 8), DType::F32)?, numbers((4, 8), DType::F32)?);
    let ids = Tensor::new(&[[4u32, 9]], cpu)?;
    says(refusal(learned.gather(&ids, &token, &position, At::Start(0))), "ids[1] is 9, the token table has 9 rows");
    let ids = Tensor::new(&[[4u32, 8]], cpu)?;
    says(
        refusal(learned.gather(&ids, &token, &position, At::Start(3))),
        "the position row of token[1] is 4, the position table has 4 rows",
    );
    says(
        refusal(learned.gather(&ids, &token.to_dtype(DType::F16)?, &position, At::Start(0))),
        "the token table is F16 and the position table F32, they must be equal",
    );
    says(
        refusal(learned.gather(&ids, &token, &position.narrow(1, 0, 7)?, At::Start(0))),
        "the position table has 7 channels, the encoding has 8",
    );
    says(
        refusal(learned.gather(&ids.to_dtype(DType::F32)?, &token, &position, At::Start(0))),
        "ids are F32, they must be U32, I32 or I64",
    );
    let normed = posenc::Learned { norm: Some(Norm::Rms { eps: 1e-5 }), ..posenc::Learned::new(8) };
    says(
        refusal(Learned::new(normed, cpu)),
        "the spec has a norm, which is an operation of its own here: candle_nn::LayerNorm or RmsNorm",
    );
    Ok(())
}

//! The functions of `candle_nn::rotary_emb`, and what they take beyond candle's.

#![allow(missing_docs, reason = "a test")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::rotary_emb as candle;
use posenc_candle::rotary_emb;

mod support;
use support::{apart, numbers, refusal, values};

type Function = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;
const FUNCTIONS: [(Function, Function, bool); 3] = [
    (rotary_emb::rope, candle::rope, false),
    (rotary_emb::rope_i, candle::rope_i, false),
    (rotary_emb::rope_thd, candle::rope_thd, true),
];

/// Tables of two sequences, `[2, rows, 4]`, or of one.
fn tables(rows: usize, batch: Option<usize>, dtype: DType) -> Result<(Tensor, Tensor)> {
    let angles = numbers((batch.unwrap_or(1), rows, 4), DType::F64)?;
    let angles = if batch.is_some() { angles } else { angles.get(0)? };
    Ok((angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?))
}

#[test]
fn results_are_candles_own_but_for_roundings() -> Result<()> {
    for (ours, theirs, tokens_first) in FUNCTIONS {
        let x = if tokens_first { numbers((2, 5, 3, 8), DType::F64)? } else { numbers((2, 3, 5, 8), DType::F64)? };
        for (dtype, rounding) in [(DType::F64, 1e-15), (DType::F32, 1e-6), (DType::F16, 6e-3), (DType::BF16, 5e-2)] {
            for batch in [None, Some(2)] {
                let x = x.to_dtype(dtype)?;
                let (cos, sin) = tables(5, batch, dtype)?;
                let difference = apart(&ours(&x, &cos, &sin)?, &theirs(&x, &cos, &sin)?)?;
                assert!(difference <= rounding, "{dtype:?} {difference}");
            }
        }
    }
    Ok(())
}

/// Longer tables, of F32 beside BF16, and views of any strides.
#[test]
fn tables_and_tensors_beyond_candles() -> Result<()> {
    for (ours, _, tokens_first) in FUNCTIONS {
        let x = if tokens_first { numbers((2, 5, 3, 8), DType::BF16)? } else { numbers((2, 3, 5, 8), DType::BF16)? };
        for batch in [None, Some(2)] {
            let (cos, sin) = tables(9, batch, DType::F32)?;
            let axis = cos.rank() - 2;
            let want = ours(&x.to_dtype(DType::F32)?, &cos.narrow(axis, 0, 5)?, &sin.narrow(axis, 0, 5)?)?;
            let view = x.transpose(1, 2)?.contiguous()?.transpose(1, 2)?;
            let got = ours(&view, &cos.t()?.contiguous()?.t()?, &sin)?;
            assert_eq!(values(&got)?, values(&want.to_dtype(DType::BF16)?)?);
        }
    }
    Ok(())
}

#[test]
fn gradient_is_the_inverse() -> Result<()> {
    for (ours, ..) in FUNCTIONS {
        let x = Var::from_tensor(&numbers((2, 3, 3, 8), DType::F32)?)?;
        let (cos, sin) = tables(3, None, DType::F32)?;
        let weights = numbers((2, 3, 3, 8), DType::F32)?.affine(0.5, 0.25)?;
        let grads = (ours(&x, &cos, &sin)? * &weights)?.sum_all()?.backward()?;
        assert_eq!(values(grads.get(&x).unwrap())?, values(&ours(&weights, &cos, &sin.neg()?)?)?);
        let expanded = ours(&x, &cos, &sin)?.sum_all()?.backward()?;
        assert_eq!(values(expanded.get(&x).unwrap())?, values(&ours(&x.ones_like()?, &cos, &sin.neg()?)?)?);
    }
    Ok(())
}

#[test]
fn refusals_name_what_is_wrong() -> Result<()> {
    let x = numbers((2, 3, 5, 8), DType::F32)?;
    let (cos, sin) = tables(5, None, DType::F32)?;
    let says = |error: String, want: &str| assert_eq!(error, want);
    says(
        refusal(rotary_emb::rope(&x, &cos.narrow(0, 0, 4)?, &sin)),
        "cos has the shape [4, 4], [5 or more, 4] or [2, 5 or more, 4] is needed",
    );
    says(
        refusal(rotary_emb::rope(&x, &cos, &sin.narrow(1, 0, 3)?)),
        "sin has the shape [5, 3], [5 or more, 4] or [2, 5 or more, 4] is needed",
    );
    says(
        refusal(rotary_emb::rope_thd(&x, &cos.unsqueeze(0)?, &sin)),
        "cos has the shape [1, 5, 4], [3 or more, 4] or [2, 3 or more, 4] is needed",
    );
    says(
        refusal(rotary_emb::rope_i(&x, &cos.to_dtype(DType::F16)?, &sin.to_dtype(DType::F16)?)),
        "cos and sin are F16 and xs F32: they must be equal, or the tables F32",
    );
    says(
        refusal(rotary_emb::rope_i(&x, &cos, &sin.to_dtype(DType::F16)?)),
        "cos is F32 and sin F16, they must be equal",
    );
    says(refusal(rotary_emb::rope(&x.narrow(3, 0, 7)?, &cos, &sin)), "xs has heads of 7 channels, which form no pairs");
    let ints = Tensor::zeros((2, 3, 5, 8), DType::U32, &Device::Cpu)?;
    says(refusal(rotary_emb::rope(&ints, &cos, &sin)), "xs is U32, this operation knows F32, F16 and BF16");
    Ok(())
}

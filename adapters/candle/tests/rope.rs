//! Queries and keys of candle are rotated as posenc's own slices are, bit for bit.

#![allow(missing_docs, reason = "a test")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use posenc::half::{bf16, f16};
use posenc::rotate::{Axes, Scaling};
use posenc::{Direction, Heads, Pairing, Scalar};
use posenc_candle::{At, Rope};

mod support;
use support::{apart, numbers, refusal, values};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn spec() -> posenc::Rope {
    posenc::Rope { pairing: Pairing::Interleaved, offset: 2, attention_factor: 1.25, ..posenc::Rope::new(12, 10_000.0) }
}

/// What posenc makes of a contiguous copy, with a position for each token, `[axes, batch, tokens]`.
fn want(spec: &posenc::Rope, x: &Tensor, positions: &[i64], direction: Direction) -> Result<Vec<f64>> {
    fn rotated<T: Scalar + candle_core::WithDType>(
        spec: &posenc::Rope,
        x: &Tensor,
        positions: &[i64],
        direction: Direction,
    ) -> Result<Vec<f64>> {
        let (batch, heads, tokens, dim) = x.dims4()?;
        let mut values = x.flatten_all()?.to_vec1::<T>()?;
        let shape = Heads::bhtd(batch, heads, tokens, dim);
        spec.rotate(&mut values, &shape, positions, direction).unwrap();
        Ok(values.into_iter().map(Scalar::to_f64).collect())
    }
    match x.dtype() {
        DType::F32 => rotated::<f32>(spec, x, positions, direction),
        DType::F16 => rotated::<f16>(spec, x, positions, direction),
        _ => rotated::<bf16>(spec, x, positions, direction),
    }
}

/// Views of `[2, heads, 3, 16]`: contiguous, of another order, a part of larger ones, the same for every head, of channels apart.
fn views(heads: usize, dtype: DType) -> Result<Vec<Tensor>> {
    Ok(vec![
        numbers((2, heads, 3, 16), dtype)?,
        numbers((2, 3, heads, 16), dtype)?.transpose(1, 2)?,
        numbers((2, heads + 1, 5, 20), dtype)?.narrow(1, 1, heads)?.narrow(2, 2, 3)?.narrow(3, 3, 16)?,
        numbers((2, 1, 3, 16), dtype)?.broadcast_as((2, heads, 3, 16))?,
        numbers((2, heads, 16, 3), dtype)?.transpose(2, 3)?,
    ])
}

#[test]
fn tensors_of_any_strides_have_the_bits_of_posenc() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let positions: Vec<i64> = [0, 1].iter().flat_map(|_| (100_000..100_003).collect::<Vec<_>>()).collect();
    for dtype in TYPES {
        for (q, k) in views(4, dtype)?.iter().zip(views(2, dtype)?.iter().rev()) {
            let (q_out, k_out) = rope.apply(q, k, At::Start(100_000))?;
            for (x, out) in [(q, &q_out), (k, &k_out)] {
                assert_eq!((out.dims(), out.dtype()), (x.dims(), dtype));
                assert_eq!(values(out)?, want(&spec(), x, &positions, Direction::Forward)?);
            }
            assert_eq!(values(&rope.apply_one(q, At::Start(100_000))?)?, values(&q_out)?);
        }
    }
    Ok(())
}

#[test]
fn positions_of_every_form() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let (q, k) = (numbers((2, 4, 3, 16), DType::F32)?, numbers((2, 1, 3, 16), DType::F32)?);
    let device = &Device::Cpu;
    let cases = [
        (At::Start(0), vec![0, 1, 2, 0, 1, 2]),
        (
            At::Starts(&Tensor::new(&[7u32, 4_000_000_000], device)?),
            vec![7, 8, 9, 4_000_000_000, 4_000_000_001, 4_000_000_002],
        ),
        (At::Starts(&Tensor::new(&[-7i64], device)?), vec![-7, -6, -5, -7, -6, -5]),
        (At::Ids(&Tensor::new(&[[5i64, 5, 1], [0, 1 << 31, -3]], device)?), vec![5, 5, 1, 0, 1 << 31, -3]),
        (At::Ids(&Tensor::new(&[3u32, 1, 4], device)?), vec![3, 1, 4, 3, 1, 4]),
        (At::Ids(&Tensor::new(&[[3i64], [1], [4]], device)?.t()?), vec![3, 1, 4, 3, 1, 4]),
        (At::Ids(&Tensor::new(&[3i64, 1, 4], device)?.to_dtype(DType::I32)?), vec![3, 1, 4, 3, 1, 4]),
    ];
    for (at, positions) in &cases {
        let (q_out, k_out) = rope.apply(&q, &k, *at)?;
        assert_eq!(values(&q_out)?, want(&spec(), &q, positions, Direction::Forward)?, "{at:?}");
        assert_eq!(values(&k_out)?, want(&spec(), &k, positions, Direction::Forward)?, "{at:?}");
    }
    Ok(())
}

/// Sequences of three, none and two tokens in a batch of one.
#[test]
fn packed_sequences() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let q = Var::from_tensor(&numbers((1, 4, 5, 16), DType::F32)?)?;
    let k = numbers((1, 1, 5, 16), DType::F32)?;
    let ends = Tensor::new(&[0i64, 3, 3, 5], &Device::Cpu)?.to_dtype(DType::I32)?;
    let starts = Tensor::new(&[100_000i64, 5, -4], &Device::Cpu)?;
    for (starts, positions) in [(None, [0, 1, 2, 0, 1]), (Some(&starts), [100_000, 100_001, 100_002, -4, -3])] {
        let at = At::Packed { cu_seqlens: &ends, starts };
        let (q_out, k_out) = rope.apply(&q, &k, at)?;
        assert_eq!(values(&q_out)?, want(&spec(), &q, &positions, Direction::Forward)?);
        assert_eq!(values(&k_out)?, want(&spec(), &k, &positions, Direction::Forward)?);
        let (thd, _) = rope.apply_thd(&q.get(0)?.transpose(0, 1)?, &k.get(0)?.transpose(0, 1)?, at)?;
        assert_eq!(values(&thd.transpose(0, 1)?)?, values(&q_out)?);
        let grads = q_out.sum_all()?.backward()?;
        assert_eq!(values(grads.get(&q).unwrap())?, want(&spec(), &q.ones_like()?, &positions, Direction::Inverse)?);
        let own = k.copy()?;
        rope.apply_inplace(&q.detach().copy()?, &own, at)?;
        assert_eq!(values(&own)?, values(&k_out)?);
    }
    let says = |cu_seqlens: &Tensor, starts: Option<&Tensor>, want: &str| {
        let error = refusal(rope.apply(&q, &k, At::Packed { cu_seqlens, starts }));
        assert!(error.contains(want), "{error}");
    };
    says(&starts, None, "cu_seqlens is I64, it must be I32");
    says(&ends.unsqueeze(0)?, None, "cu_seqlens has the shape [1, 4], [sequences + 1] is needed");
    says(&ends.narrow(0, 0, 1)?, None, "cu_seqlens holds 1 numbers and the batch is 1: at least 2");
    says(&ends, Some(&starts.narrow(0, 0, 2)?), "starts have the shape [2], [3] is needed");
    let far = Tensor::new(&[0i64, 3, 6], &Device::Cpu)?.to_dtype(DType::I32)?;
    says(&far, None, "indptr is [0, 3, 6], it must ascend from 0 to at most 5");
    let two = numbers((2, 4, 5, 16), DType::F32)?;
    let error = refusal(rope.apply(&two, &two, At::Packed { cu_seqlens: &ends, starts: None }));
    assert!(error.contains("the batch is 2"), "{error}");
    Ok(())
}

/// Three axes, as in Qwen2-VL: ids of `[axes, batch, tokens]`, or the text's on each.
#[test]
fn several_axes() -> Result<()> {
    let spec = posenc::Rope { axes: Axes::Sections(vec![2, 3, 3]), ..posenc::Rope::new(16, 10_000.0) };
    let rope = Rope::new(spec.clone(), &Device::Cpu)?;
    let (q, k) = (numbers((2, 4, 3, 16), DType::F32)?, numbers((2, 2, 3, 16), DType::F32)?);
    let ids: Vec<i64> = (0..18).map(|i| i * i).collect();
    let tensor = Tensor::from_vec(ids.clone(), (3, 2, 3), &Device::Cpu)?;
    let (q_out, _) = rope.apply(&q, &k, At::Ids(&tensor))?;
    assert_eq!(values(&q_out)?, want(&spec, &q, &ids, Direction::Forward)?);
    let (q_out, _) = rope.apply(&q, &k, At::Start(9))?;
    let text: Vec<i64> = (0..18).map(|i| 9 + i % 3).collect();
    assert_eq!(values(&q_out)?, want(&spec, &q, &text, Direction::Forward)?);
    let error = refusal(rope.apply(&q, &k, At::Ids(&tensor.narrow(0, 0, 2)?)));
    assert_eq!(error, "positions have the shape [2, 2, 3], [3, 2, 3] or [3, 3] is needed");
    Ok(())
}

#[test]
fn tokens_before_heads() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let (q, k) = (numbers((2, 3, 4, 16), DType::F16)?, numbers((2, 3, 2, 16), DType::F16)?);
    let (q_out, k_out) = rope.apply_thd(&q, &k, At::Start(5))?;
    let (q_want, k_want) = rope.apply(&q.transpose(1, 2)?, &k.transpose(1, 2)?, At::Start(5))?;
    assert_eq!(values(&q_out)?, values(&q_want.transpose(1, 2)?)?);
    assert_eq!(values(&k_out)?, values(&k_want.transpose(1, 2)?)?);
    // Without a batch.
    let (q_one, k_one) = rope.apply_thd(&q.get(1)?, &k.get(1)?, At::Start(5))?;
    assert_eq!(values(&q_one)?, values(&q_out.get(1)?)?);
    assert_eq!((k_one.dims(), values(&k_one)?), (&[3, 2, 16][..], values(&k_out.get(1)?)?));
    Ok(())
}

/// The gradient is the inverse rotation, also of gradients that are expanded and of specs that move pairs.
#[test]
fn gradients() -> Result<()> {
    let moved = posenc::Rope { pairing_out: Some(Pairing::Half), ..spec() };
    for spec in [spec(), moved] {
        let rope = Rope::new(spec.clone(), &Device::Cpu)?;
        let ids = Tensor::new(&[[3i64, 100_000, 7], [0, 2, 1]], &Device::Cpu)?;
        let q = Var::from_tensor(&numbers((2, 4, 3, 16), DType::F32)?)?;
        let k = Var::from_tensor(&numbers((2, 3, 2, 16), DType::F32)?)?;
        let k_view = k.transpose(1, 2)?;
        let (q_out, k_out) = rope.apply(&q, &k_view, At::Ids(&ids))?;
        let weights = numbers((2, 4, 3, 16), DType::F32)?.affine(-0.5, 0.25)?;
        let loss = ((&q_out * &weights)?.sum_all()? + k_out.sum_all()?)?;
        let grads = loss.backward()?;
        let (q_grad, k_grad) = (grads.get(&q).unwrap(), grads.get(&k).unwrap());
        assert_eq!((q_grad.dims(), k_grad.dims()), (q.dims(), k.dims()));

        let back = posenc::Rope { pairing: spec.written(), pairing_out: Some(spec.pairing), ..spec.clone() };
        let positions = [3, 100_000, 7, 0, 2, 1];
        assert_eq!(values(q_grad)?, want(&back, &weights, &positions, Direction::Inverse)?);
        let ones = k_view.ones_like()?;
        assert_eq!(values(&k_grad.transpose(1, 2)?)?, want(&back, &ones, &positions, Direction::Inverse)?);
        // The rotation is linear: the sum of output and gradient is that of input and its gradient.
        let sum = |a: &Tensor, b: &Tensor| (a * b)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>();
        let difference = sum(&q_out, &weights)? - sum(&q, q_grad)?;
        assert!(difference.abs() < 1e-3, "{difference}");
    }
    Ok(())
}

#[test]
fn one_of_both_may_be_unused() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let q = Var::from_tensor(&numbers((1, 2, 3, 16), DType::F32)?)?;
    let (q_out, _) = rope.apply(&q, &numbers((1, 1, 3, 16), DType::F32)?, At::Start(1))?;
    let grads = q_out.sum_all()?.backward()?;
    let one = rope.apply_one(&q, At::Start(1))?.sum_all()?.backward()?;
    assert_eq!(values(grads.get(&q).unwrap())?, values(one.get(&q).unwrap())?);
    Ok(())
}

#[test]
fn in_place() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    for dtype in TYPES {
        // Two tensors, in either order of their memory.
        for swapped in [false, true] {
            let (a, b) = (numbers((2, 4, 3, 16), dtype)?, numbers((2, 4, 3, 16), dtype)?.affine(0.5, 0.0)?);
            let (q, k) = if swapped { (b, a) } else { (a, b) };
            let (q_want, k_want) = rope.apply(&q, &k, At::Start(9))?;
            rope.apply_inplace(&q, &k, At::Start(9))?;
            assert_eq!((values(&q)?, values(&k)?), (values(&q_want)?, values(&k_want)?));
        }
        // Packed, where values and the memory around stay as they are.
        let packed = numbers((2, 3, 9, 16), dtype)?;
        let before = packed.copy()?;
        let part = |of: &Tensor, first: usize, heads: usize| of.narrow(2, first, heads);
        let (q, k) = (part(&packed, 1, 4)?, part(&packed, 5, 2)?);
        let (q_want, k_want) = rope.apply_thd(&part(&before, 1, 4)?, &part(&before, 5, 2)?, At::Start(9))?;
        rope.apply_inplace_thd(&q, &k, At::Start(9))?;
        let want = Tensor::cat(&[&part(&before, 0, 1)?, &q_want, &k_want, &part(&before, 7, 2)?], 2)?;
        assert_eq!(values(&packed)?, values(&want)?);
    }
    Ok(())
}

#[test]
fn refusals_name_what_is_wrong() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let q = numbers((2, 4, 3, 16), DType::F32)?;
    let k = numbers((2, 2, 3, 16), DType::F32)?;
    let start = At::Start(0);
    let says = |error: String, want: &str| assert_eq!(error, want);

    says(refusal(rope.apply(&q.to_dtype(DType::F64)?, &k, start)), "q is F64, this operation knows F32, F16 and BF16");
    says(refusal(rope.apply(&q, &k.to_dtype(DType::BF16)?, start)), "q is F32 and k BF16, they must be equal");
    says(
        refusal(rope.apply(&q.get(0)?, &k, start)),
        "q has the shape [4, 3, 16], [batch, heads, tokens, dim] is needed",
    );
    says(
        refusal(rope.apply_thd(&q, &k.flatten(0, 2)?, start)),
        "k has the shape [12, 16], [batch, tokens, heads, dim] or [tokens, heads, dim] is needed",
    );
    says(refusal(rope.apply(&q, &k.narrow(2, 0, 2)?, start)), "q has 3 tokens and k 2, they must be equal");
    says(
        refusal(rope.apply(&q.narrow(D::Minus1, 0, 8)?, &k.narrow(D::Minus1, 0, 8)?, start)),
        "the rotary part ends at channel 14 (12 from 2), a head has 8",
    );
    let ids = Tensor::new(&[0f32, 1.0, 2.0], &Device::Cpu)?;
    says(refusal(rope.apply(&q, &k, At::Ids(&ids))), "positions are F32, they must be U32, I32 or I64");
    let ids = Tensor::new(&[0u32, 1], &Device::Cpu)?;
    says(refusal(rope.apply(&q, &k, At::Ids(&ids))), "positions have the shape [2], [2, 3] or [3] is needed");
    let starts = Tensor::new(&[[0u32, 1]], &Device::Cpu)?;
    says(refusal(rope.apply(&q, &k, At::Starts(&starts))), "positions have the shape [1, 2], [2] or [] is needed");
    let odd = posenc::Rope::new(7, 10_000.0);
    says(refusal(Rope::new(odd, &Device::Cpu)), "rotary is 7, it must be even and at least 2");
    let dynamic = Scaling::DynamicNtk { factor: 2.0, context: 2048.0, length: None };
    let dynamic = posenc::Rope { scaling: dynamic, ..posenc::Rope::new(8, 10_000.0) };
    assert!(refusal(Rope::new(dynamic, &Device::Cpu)).contains("length"));
    let config = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}"#;
    says(refusal(Rope::from_config(config, 2, &Device::Cpu)), "layer 2 is asked for, the model has 2");
    Ok(())
}

/// In place nothing is written where something is refused.
#[test]
fn refusals_in_place_write_nothing() -> Result<()> {
    let rope = Rope::new(spec(), &Device::Cpu)?;
    let buffer = numbers((2, 6, 3, 16), DType::F32)?;
    let before = values(&buffer)?;
    let (q, k) = (buffer.narrow(1, 0, 4)?, buffer.narrow(1, 4, 2)?);
    let start = At::Start(3);

    let overlapping = buffer.narrow(1, 3, 2)?;
    let error = refusal(rope.apply_inplace(&q, &overlapping, start));
    assert!(error.contains("may overlap in one buffer"), "{error}");
    let apart_channels = numbers((2, 2, 16, 3), DType::F32)?.transpose(2, 3)?;
    assert_eq!(
        refusal(rope.apply_inplace(&q, &apart_channels, start)),
        "the channels of k lie 3 elements apart, in place they must lie side by side"
    );
    let error = refusal(rope.apply_inplace(&q, &k.narrow(1, 0, 1)?.broadcast_as((2, 2, 3, 16))?, start));
    assert!(error.contains("k is written and its elements overlap"), "{error}");
    let tracked = Var::from_tensor(&k)?;
    assert_eq!(
        refusal(rope.apply_inplace(&q, tracked.as_tensor(), start)),
        "k takes part in a gradient, which a rotation in place would spoil"
    );
    let moved = posenc::Rope { pairing_out: Some(Pairing::Half), ..spec() };
    assert_eq!(
        refusal(Rope::new(moved, &Device::Cpu)?.apply_inplace(&q, &k, start)),
        "pairing is Interleaved and pairing_out Half: pairs move, so the rotation cannot be in place"
    );
    assert_eq!(values(&buffer)?, before);
    Ok(())
}

#[test]
fn layers_without_rope_and_empty_tensors() -> Result<()> {
    let llama4 = r#"{"model_type": "llama4_text", "head_dim": 16, "num_hidden_layers": 4}"#;
    let rope = Rope::from_config(llama4, 3, &Device::Cpu)?;
    let (q, k) = (numbers((2, 4, 3, 16), DType::F32)?, numbers((2, 2, 3, 16), DType::F32)?);
    let (q_out, k_out) = rope.apply(&q, &k, At::Start(5))?;
    assert_eq!((apart(&q_out, &q)?, apart(&k_out, &k)?), (0.0, 0.0));
    rope.apply_inplace(&q, &k, At::Start(5))?;
    assert_eq!(apart(&q_out, &q)?, 0.0);

    let rope = Rope::new(spec(), &Device::Cpu)?;
    let (q, k) = (q.narrow(2, 0, 0)?, k.narrow(2, 0, 0)?);
    let (q_out, k_out) = rope.apply(&q, &k, At::Start(5))?;
    assert_eq!((q_out.dims(), k_out.dims()), (q.dims(), k.dims()));
    rope.apply_inplace(&q, &k, At::Start(5))
}

//! The prologue of candle's tensors has the bits of posenc's own slices, and of the rope that it holds.

#![allow(missing_docs, reason = "a test")]

use candle_core::{DType, Device, Result, Tensor, Var};
use posenc::rotate::{Branch, HeadNorm, Qkv, Vectors};
use posenc::{Heads, Positions};
use posenc_candle::{At, Prologue, Rope, Slots};

mod support;
use support::{numbers, refusal, values};

const CPU: Device = Device::Cpu;

fn spec() -> posenc::Prologue {
    let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
    let biased = Branch { bias: true, ..Branch::plain() };
    posenc::Prologue { q: normed, k: normed, v: biased, ..posenc::Prologue::new(posenc::Rope::new(16, 10_000.0)) }
}

/// 4 heads of queries, 2 of keys and 2 of values, views of a packed projection of two sequences of three tokens.
fn packed(dtype: DType) -> Result<[Tensor; 3]> {
    let qkv = numbers((2, 3, 8, 16), dtype)?.transpose(1, 2)?;
    Ok([qkv.narrow(1, 0, 4)?, qkv.narrow(1, 4, 2)?, qkv.narrow(1, 6, 2)?])
}

#[test]
fn steps_have_the_bits_of_posenc() -> Result<()> {
    let prologue = Prologue::new(spec(), &CPU)?;
    let [q, k, v] = packed(DType::F32)?;
    let (weight, bias) = (numbers(16, DType::F32)?, numbers((2, 16), DType::F32)?);
    let vectors = [Vectors::weight(&weight), Vectors::weight(&weight), Vectors { weight: None, bias: Some(&bias) }];
    let starts = Tensor::new(&[100_000i64, 7], &CPU)?;
    let out = prologue.apply([&q, &k, &v], vectors, At::Starts(&starts), None)?;
    for (which, x, out, vectors) in
        [(Qkv::Query, &q, &out.0, vectors[0]), (Qkv::Key, &k, &out.1, vectors[1]), (Qkv::Value, &v, &out.2, vectors[2])]
    {
        let list = |x: Option<&Tensor>| x.map(|x| x.flatten_all()?.to_vec1::<f32>()).transpose();
        let (weight, bias) = (list(vectors.weight)?, list(vectors.bias)?);
        let mut want = x.flatten_all()?.to_vec1::<f32>()?;
        let (batch, heads, tokens, dim) = x.dims4()?;
        let vectors = Vectors { weight: weight.as_deref(), bias: bias.as_deref() };
        let positions = Positions::starts(&[100_000, 7]);
        spec().apply(which, &mut want, &Heads::bhtd(batch, heads, tokens, dim), vectors, positions, None).unwrap();
        assert_eq!(out.dims(), x.dims());
        assert_eq!(out.flatten_all()?.to_vec1::<f32>()?, want);
    }
    Ok(())
}

/// A rotation alone, of every type, for packed sequences and without tokens.
#[test]
fn a_rope_alone_has_its_bits() -> Result<()> {
    let rope = posenc::Rope::new(16, 10_000.0);
    let (prologue, rope) = (Prologue::new(posenc::Prologue::new(rope.clone()), &CPU)?, Rope::new(rope, &CPU)?);
    let none = || [Vectors::none(), Vectors::none(), Vectors::none()];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let [q, k, v] = packed(dtype)?;
        let (q_out, k_out, v_out) = prologue.apply([&q, &k, &v], none(), At::Start(9), None)?;
        let want = rope.apply(&q, &k, At::Start(9))?;
        assert_eq!((values(&q_out)?, values(&k_out)?), (values(&want.0)?, values(&want.1)?));
        assert_eq!((values(&v_out)?, v_out.dtype()), (values(&v)?, dtype));
        let one = [q.narrow(0, 0, 1)?, k.narrow(0, 0, 1)?, v.narrow(0, 0, 1)?];
        let ends = Tensor::new(&[0i64, 1, 3], &CPU)?.to_dtype(DType::I32)?;
        let at = At::Packed { cu_seqlens: &ends, starts: None };
        let (q_out, ..) = prologue.apply([&one[0], &one[1], &one[2]], none(), at, None)?;
        assert_eq!(values(&q_out)?, values(&rope.apply_one(&one[0], at)?)?);
        let empty = [q.narrow(2, 0, 0)?, k.narrow(2, 0, 0)?, v.narrow(2, 0, 0)?];
        let (q_out, ..) = prologue.apply([&empty[0], &empty[1], &empty[2]], none(), At::Start(9), None)?;
        assert_eq!(q_out.dims(), [2, 4, 0, 16]);
    }
    Ok(())
}

#[test]
fn caches_are_written_by_slot() -> Result<()> {
    let prologue = Prologue::new(posenc::Prologue::new(posenc::Rope::new(16, 10_000.0)), &CPU)?;
    for dtype in [DType::F32, DType::BF16] {
        let [q, k, v] = packed(dtype)?;
        // Rows before heads in memory, and a part of a larger tensor.
        let keys = Tensor::zeros((3, 4, 2, 16), dtype, &CPU)?.transpose(1, 2)?;
        let vals = Tensor::zeros((3, 3, 4, 16), dtype, &CPU)?;
        let slots = Tensor::new(&[[4i64, -1, 0], [11, 7, 2]], &CPU)?;
        let cache = Slots { k: &keys, v: &vals.narrow(1, 1, 2)?, slots: &slots };
        let vectors = [Vectors::none(), Vectors::none(), Vectors::none()];
        let (_, k_out, v_out) = prologue.apply([&q, &k, &v], vectors, At::Start(1000), Some(cache))?;
        let slots = slots.to_vec2::<i64>()?;
        let mut written = 0;
        for (cache, out) in [(&keys, &k_out), (&vals.narrow(1, 1, 2)?, &v_out)] {
            for slot in 0..12i64 {
                let place =
                    slots.iter().enumerate().find_map(|(b, row)| Some((b, row.iter().position(|&s| s == slot)?)));
                let row = cache.get(slot as usize / 4)?.narrow(1, slot as usize % 4, 1)?;
                let want = match place {
                    Some((batch, token)) => values(&out.get(batch)?.narrow(1, token, 1)?)?,
                    None => vec![0.0; 32],
                };
                assert_eq!(values(&row)?, want, "slot {slot}");
                written += usize::from(place.is_some());
            }
        }
        assert_eq!(written, 10);
        assert!(values(&vals.narrow(1, 0, 1)?)?.iter().all(|&x| x == 0.0));
    }
    Ok(())
}

#[test]
fn refusals_write_nothing() -> Result<()> {
    let prologue = Prologue::new(spec(), &CPU)?;
    let [q, k, v] = packed(DType::F32)?;
    let (weight, bias) = (numbers(16, DType::F32)?, numbers((2, 16), DType::F32)?);
    let own = [Vectors::weight(&weight), Vectors::weight(&weight), Vectors { weight: None, bias: Some(&bias) }];
    let (keys, vals) = (numbers((3, 2, 4, 16), DType::F32)?, numbers((3, 2, 4, 16), DType::F32)?);
    let before = (values(&keys)?, values(&vals)?);
    let slots = Tensor::new(&[[4i64, 5, 6], [7, 8, 9]], &CPU)?;
    let cache = Slots { k: &keys, v: &vals, slots: &slots };
    let says = |qkv: [&Tensor; 3], vectors: [Vectors<&Tensor>; 3], cache: Slots<'_>, want: &str| {
        let error = refusal(prologue.apply(qkv, vectors, At::Start(0), Some(cache)));
        assert!(error.contains(want), "{error}");
    };
    let all = [&q, &k, &v];
    says([&q.to_dtype(DType::F64)?, &k, &v], own, cache, "q is F64, this operation knows F32, F16 and BF16");
    says([&q, &k.to_dtype(DType::F16)?, &v], own, cache, "q is F32 and k F16, they must be equal");
    says([&q, &k, &v.narrow(2, 0, 2)?], own, cache, "q has 3 tokens and v 2, they must be equal");
    says([&q, &k.narrow(0, 0, 1)?, &v], own, cache, "q has 2 sequences and k 1, they must be equal");
    says(all, [own[0], own[1], Vectors::none()], cache, "v needs a bias of 32 elements, there is none");
    says(all, [own[0], Vectors::none(), own[2]], cache, "k needs a weight of 16 elements, there is none");
    let half = weight.to_dtype(DType::F16)?;
    says(all, [Vectors::weight(&half), own[1], own[2]], cache, "q is F32 and q's weight F16, they must be equal");
    let tracked = Var::from_tensor(&weight)?;
    let vectors = [Vectors::weight(tracked.as_tensor()), own[1], own[2]];
    says(all, vectors, cache, "q's weight takes part in a gradient, which the prologue does not have: detach it");
    let far = Tensor::new(&[[4i64, 5, 6], [7, 8, 12]], &CPU)?;
    says(all, own, Slots { slots: &far, ..cache }, "slot 12 lies outside the cache, which has 12");
    says(all, own, Slots { slots: &slots.narrow(1, 0, 2)?, ..cache }, "slots have the shape [2, 2], [2, 3] is needed");
    let real = slots.to_dtype(DType::F32)?;
    says(all, own, Slots { slots: &real, ..cache }, "slots are F32, they must be U32, I32 or I64");
    says(all, own, Slots { v: &keys, ..cache }, "the caches of keys and values share their memory");
    says(all, own, Slots { k: &v, ..cache }, "the cache of keys shares the memory of what is read");
    let row = vals.get(0)?.get(0)?.get(0)?;
    let vectors = [Vectors::weight(&row), own[1], own[2]];
    says(all, vectors, cache, "the cache of values shares the memory of what is read");
    let narrow = vals.narrow(3, 0, 8)?;
    says(all, own, Slots { v: &narrow, ..cache }, "they must be equal");
    let apart = numbers((3, 2, 16, 4), DType::F32)?.transpose(2, 3)?;
    says(all, own, Slots { k: &apart, ..cache }, "the channels of the cache of keys lie 4 elements apart");
    assert_eq!((values(&keys)?, values(&vals)?), before);
    Ok(())
}

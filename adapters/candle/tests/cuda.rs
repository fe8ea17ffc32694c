//! Every operation on a CUDA device beside the CPU.

#![cfg(feature = "cuda")]
#![allow(missing_docs, reason = "a test")]

use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{DType, Device, Result, Storage, Tensor, Var};
use posenc::half::bf16;
use posenc::rotate::{Branch, HeadNorm, Vectors};
use posenc::{Alibi, Pairing, Shape as _, T5Bias};
use posenc_candle::{At, Bias, Learned, Prologue, Rope, Sinusoid, Slots, Softmax, rotary_emb};

mod support;
use support::{apart, numbers, refusal};

const CPU: Device = Device::Cpu;
/// Element types, and how far two roundings of a number up to 4 may be apart.
const TYPES: [(DType, f64); 3] = [(DType::F32, 2e-6), (DType::F16, 4e-3), (DType::BF16, 3.2e-2)];

fn check(on_device: &Tensor, on_cpu: &Tensor, bound: f64) -> Result<()> {
    assert_eq!(on_device.dtype(), on_cpu.dtype());
    let difference = apart(&on_device.to_device(&CPU)?, on_cpu)?;
    assert!(difference <= bound, "{:?}: {difference}", on_cpu.dtype());
    Ok(())
}

fn spec() -> posenc::Rope {
    posenc::Rope { pairing: Pairing::Interleaved, offset: 2, attention_factor: 1.25, ..posenc::Rope::new(12, 10_000.0) }
}

fn at(are_ids: bool, tensor: Option<&Tensor>) -> At<'_> {
    match tensor {
        Some(ids) if are_ids => At::Ids(ids),
        Some(starts) => At::Starts(starts),
        None => At::Start(100_000),
    }
}

/// All forms of positions, for views of any order, in both layouts.
#[test]
fn rope() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (ropes, mut cases) = ((Rope::new(spec(), &CPU)?, Rope::new(spec(), &device)?), 0);
    let tensors = [
        None,
        Some((false, Tensor::new(&[100_000i64, -7], &CPU)?)),
        Some((false, Tensor::new(&[9u32], &CPU)?)),
        Some((true, Tensor::new(&[[5i64, 5, 1], [0, 1 << 31, -3]], &CPU)?)),
        Some((true, Tensor::new(&[[5u32, 5, 1], [0, 7, 100_000]], &CPU)?)),
        Some((true, Tensor::new(&[3i64, 1, 4], &CPU)?.to_dtype(DType::I32)?)),
    ];
    for (dtype, bound) in TYPES {
        for tensor in &tensors {
            let there = tensor.as_ref().map(|(_, x)| x.to_device(&device)).transpose()?;
            let are_ids = tensor.as_ref().is_some_and(|(are_ids, _)| *are_ids);
            let here = tensor.as_ref().map(|(_, x)| x);
            let (q, k) = (numbers((2, 4, 3, 16), dtype)?, numbers((2, 3, 2, 20), dtype)?);
            let (q_there, k_there) = (q.to_device(&device)?, k.to_device(&device)?);
            let view = |k: &Tensor| k.transpose(1, 2)?.narrow(3, 3, 16);
            let (k, k_there) = (view(&k)?, view(&k_there)?);
            let (want, got) = (
                ropes.0.apply(&q, &k, at(are_ids, here))?,
                ropes.1.apply(&q_there, &k_there, at(are_ids, there.as_ref()))?,
            );
            check(&got.0, &want.0, bound)?;
            check(&got.1, &want.1, bound)?;
            check(&ropes.1.apply_one(&q_there, at(are_ids, there.as_ref()))?, &want.0, bound)?;
            let thd = |x: &Tensor| x.transpose(1, 2);
            let (want, got) = (
                ropes.0.apply_thd(&thd(&q)?, &thd(&k)?, at(are_ids, here))?,
                ropes.1.apply_thd(&thd(&q_there)?, &thd(&k_there)?, at(are_ids, there.as_ref()))?,
            );
            check(&got.0, &want.0, bound)?;
            check(&got.1, &want.1, bound)?;
            cases += 1;
        }
    }
    assert_eq!(cases, 18);
    Ok(())
}

#[test]
fn packed_sequences() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (on_cpu, on_device) = (Rope::new(spec(), &CPU)?, Rope::new(spec(), &device)?);
    let (q, k) = (numbers((1, 4, 5, 16), DType::F32)?, numbers((1, 2, 5, 16), DType::F32)?);
    let (q_there, k_there) = (q.to_device(&device)?, k.to_device(&device)?);
    let ends = Tensor::new(&[0i64, 3, 3, 5], &CPU)?.to_dtype(DType::I32)?;
    let starts = Tensor::new(&[100_000i64, 5, -4], &CPU)?;
    let (ends_there, starts_there) = (ends.to_device(&device)?, starts.to_device(&device)?);
    for with_starts in [false, true] {
        let starts = with_starts.then_some((&starts, &starts_there));
        let here = At::Packed { cu_seqlens: &ends, starts: starts.map(|(here, _)| here) };
        let there = At::Packed { cu_seqlens: &ends_there, starts: starts.map(|(_, there)| there) };
        let (want, got) = (on_cpu.apply(&q, &k, here)?, on_device.apply(&q_there, &k_there, there)?);
        check(&got.0, &want.0, 2e-6)?;
        check(&got.1, &want.1, 2e-6)?;
    }
    let here = At::Packed { cu_seqlens: &ends, starts: None };
    assert_eq!(
        refusal(on_device.apply(&q_there, &k_there, here)),
        "cu_seqlens lies on Cpu and the queries on Cuda { gpu_id: 0 }, they must be on one device"
    );
    Ok(())
}

/// Two tensors in either order of their memory, and packed QKV.
#[test]
fn rope_in_place() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (on_cpu, on_device) = (Rope::new(spec(), &CPU)?, Rope::new(spec(), &device)?);
    for (dtype, bound) in TYPES {
        for swapped in [false, true] {
            let (a, b) = (numbers((2, 4, 3, 16), dtype)?, numbers((2, 4, 3, 16), dtype)?.affine(0.5, 0.0)?);
            let (a_there, b_there) = (a.to_device(&device)?, b.to_device(&device)?);
            if swapped {
                on_cpu.apply_inplace(&b, &a, At::Start(9))?;
                on_device.apply_inplace(&b_there, &a_there, At::Start(9))?;
            } else {
                on_cpu.apply_inplace(&a, &b, At::Start(9))?;
                on_device.apply_inplace(&a_there, &b_there, At::Start(9))?;
            }
            check(&a_there, &a, bound)?;
            check(&b_there, &b, bound)?;
        }
        let packed = numbers((2, 3, 9, 16), dtype)?;
        let there = packed.to_device(&device)?;
        for (rope, x) in [(&on_cpu, &packed), (&on_device, &there)] {
            rope.apply_inplace_thd(&x.narrow(2, 1, 4)?, &x.narrow(2, 5, 2)?, At::Start(9))?;
        }
        check(&there, &packed, bound)?;
    }
    Ok(())
}

#[test]
fn functions_of_candle() -> Result<()> {
    let device = Device::new_cuda(0)?;
    for (function, tokens_first) in
        [(rotary_emb::rope as fn(&_, &_, &_) -> _, false), (rotary_emb::rope_i, false), (rotary_emb::rope_thd, true)]
    {
        for (dtype, bound) in TYPES {
            let x = if tokens_first { numbers((2, 5, 3, 8), dtype)? } else { numbers((2, 3, 5, 8), dtype)? };
            for table_type in [dtype, DType::F32] {
                for batch in [None, Some(2)] {
                    let angles = numbers((batch.unwrap_or(1), 5, 4), DType::F64)?;
                    let angles = if batch.is_some() { angles } else { angles.get(0)? };
                    let (cos, sin) = (angles.cos()?.to_dtype(table_type)?, angles.sin()?.to_dtype(table_type)?);
                    let [x_there, cos_there, sin_there] = [&x, &cos, &sin].map(|x| x.to_device(&device));
                    let got: Result<Tensor> = function(&x_there?, &cos_there?, &sin_there?);
                    let want: Result<Tensor> = function(&x, &cos, &sin);
                    check(&got?, &want?, bound)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn embeddings() -> Result<()> {
    let device = Device::new_cuda(0)?;
    for (dtype, bound) in TYPES {
        let x = numbers((2, 3, 10), dtype)?;
        let starts = Tensor::new(&[100_000i64, -2], &CPU)?;
        let sinusoid = |device: &Device| Sinusoid::new(posenc::Sinusoid::new(10), device);
        let want = sinusoid(&CPU)?.add(&x, At::Starts(&starts), 1.5)?;
        let got = sinusoid(&device)?.add(&x.to_device(&device)?, At::Starts(&starts.to_device(&device)?), 1.5)?;
        check(&got, &want, bound)?;

        let (token, position) = (numbers((9, 10), dtype)?, numbers((7, 10), dtype)?);
        let ids = Tensor::new(&[[4u32, 0, 4], [8, 4, 1]], &CPU)?;
        let learned = |device: &Device| Learned::new(posenc::Learned::new(10), device);
        let want = learned(&CPU)?.gather(&ids, &token, &position, At::Start(3))?;
        let [ids, token, position] = [&ids, &token, &position].map(|x| x.to_device(&device));
        check(&learned(&device)?.gather(&ids?, &token?, &position?, At::Start(3))?, &want, bound)?;
    }
    Ok(())
}

#[test]
fn softmax() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let table = numbers((8, 4), DType::F32)?;
    for bias in [Bias::None, Bias::alibi(&Alibi::new(4))?, Bias::t5(&T5Bias::new(8, 12, false), &table)?] {
        for (dtype, bound) in TYPES {
            let softmax = |device: &Device| Softmax::new(posenc::Softmax::causal(0.4), bias.clone(), device);
            let (scores, given) = (numbers((2, 4, 3, 8), dtype)?, numbers((4, 1, 8), dtype)?);
            let (scores_there, given_there) = (scores.to_device(&device)?, given.to_device(&device)?);
            let (on_cpu, on_device) = (softmax(&CPU)?, softmax(&device)?);
            check(&on_device.apply(&scores_there, None)?, &on_cpu.apply(&scores, None)?, bound)?;
            let want = on_cpu.apply(&scores, Some(&given))?;
            check(&on_device.apply(&scores_there, Some(&given_there))?, &want, bound)?;
        }
    }
    Ok(())
}

#[test]
fn prologue() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
    let biased = Branch { bias: true, ..Branch::plain() };
    let spec = posenc::Prologue { q: normed, k: normed, v: biased, ..posenc::Prologue::new(spec()) };
    for (dtype, bound) in TYPES {
        for cached in [false, true] {
            let mut results = Vec::new();
            for at in [&CPU, &device] {
                let prologue = Prologue::new(spec.clone(), at)?;
                let qkv = numbers((2, 3, 8, 16), dtype)?.to_device(at)?.transpose(1, 2)?;
                let (q, k, v) = (qkv.narrow(1, 0, 4)?, qkv.narrow(1, 4, 2)?, qkv.narrow(1, 6, 2)?);
                let (weight, bias) = (numbers(16, dtype)?.to_device(at)?, numbers((2, 16), dtype)?.to_device(at)?);
                let vectors =
                    [Vectors::weight(&weight), Vectors::weight(&weight), Vectors { weight: None, bias: Some(&bias) }];
                let keys = Tensor::zeros((3, 4, 2, 16), dtype, &CPU)?.to_device(at)?.transpose(1, 2)?;
                let values = Tensor::zeros((3, 2, 4, 16), dtype, &CPU)?.to_device(at)?;
                let slots = Tensor::new(&[[4i64, -1, 0], [11, 7, 2]], at)?;
                let cache = Slots { k: &keys, v: &values, slots: &slots };
                let out = prologue.apply([&q, &k, &v], vectors, At::Start(100_000), cached.then_some(cache))?;
                results.push([out.0, out.1, out.2, keys, values]);
            }
            for (here, there) in results[0].iter().zip(&results[1]) {
                check(there, here, bound)?;
            }
            assert_eq!(apart(&results[0][3], &results[0][3].zeros_like()?)? > 0.0, cached);
        }
    }
    Ok(())
}

/// candle adds gradients up by kernels of its own.
#[test]
fn gradients() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (q, k) = (numbers((2, 4, 3, 16), DType::F32)?, numbers((2, 2, 3, 16), DType::F32)?);
    let (weights, table) = (numbers((2, 4, 3, 16), DType::F32)?, numbers((9, 16), DType::F32)?);
    let (scores, given) = (numbers((2, 4, 3, 3), DType::F32)?, numbers((4, 1, 3), DType::F32)?);
    let ids = Tensor::new(&[[4u32, 0, 4], [8, 4, 1]], &CPU)?;
    let mut grads = Vec::new();
    for at in [&CPU, &device] {
        let [q, k, table, scores, given] =
            [&q, &k, &table, &scores, &given].map(|x| Var::from_tensor(&x.to_device(at).unwrap()).unwrap());
        let (weights, ids) = (weights.to_device(at)?, ids.to_device(at)?);
        let (q_out, k_out) = Rope::new(spec(), at)?.apply(&q, &k, At::Start(100_000))?;
        let loss = ((q_out * &weights)?.sum_all()? + k_out.sqr()?.sum_all()?)?;
        let learned = Learned::new(posenc::Learned::new(16), at)?.gather(&ids, &table, &table, At::Start(3))?;
        let loss = (loss + (learned * weights.narrow(1, 0, 1)?.squeeze(1)?)?.sum_all()?)?;
        let softmax = Softmax::new(posenc::Softmax::causal(0.4), Bias::alibi(&Alibi::new(4))?, at)?;
        let p = softmax.apply(&scores, Some(&given))?;
        let own = (loss + (p * weights.narrow(3, 0, 3)?)?.sum_all()?)?.backward()?;
        grads.push([q, k, table, scores, given].map(|x| own.get(&x).cloned().expect("it has a gradient")));
    }
    for (here, there) in grads[0].iter().zip(&grads[1]) {
        check(there, here, 1e-5)?;
        assert!(apart(here, &here.zeros_like()?)? > 0.01);
    }
    Ok(())
}

/// The page's lines for tensors of other libraries, such as burn's, which give an address and a stream.
#[test]
fn memory_of_another_library_is_rotated_by_its_address() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (q, rope) = (numbers((2, 32, 3, 128), DType::BF16)?, posenc::Rope::new(128, 10_000.0));
    let there = q.to_device(&device)?;
    let (stream, address) = {
        let (storage, _) = there.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { panic!("it lies on the device") };
        let stream = storage.device.cuda_stream();
        let (address, _used) = storage.as_cuda_slice::<bf16>()?.device_ptr(&stream);
        (stream.clone(), address)
    };
    let plans = posenc::RopePlans::new(&posenc::Gpu::new(&stream).unwrap(), &rope).unwrap();
    let heads = posenc::Heads::bhtd(2, 32, 3, 128);
    // SAFETY: `there` keeps this memory, whose work is ordered by `stream`.
    let mut raw = unsafe { posenc::gpu::Raw::<bf16>::new(address, heads.elements().unwrap()) };
    plans.of().unwrap().rotate(heads.of_mut(&mut raw), None, posenc::Positions::counted()).unwrap();
    let want = Rope::new(rope, &CPU)?.apply_one(&q, At::Start(0))?;
    check(&there, &want, 3.2e-2)
}

#[test]
fn tensors_of_other_devices_are_refused() -> Result<()> {
    let device = Device::new_cuda(0)?;
    let (q, k) = (numbers((1, 2, 3, 16), DType::F32)?, numbers((1, 1, 3, 16), DType::F32)?);
    let rope = Rope::new(spec(), &device)?;
    assert_eq!(
        refusal(rope.apply(&q, &k, At::Start(0))),
        "q lies on Cpu and the rope on Cuda { gpu_id: 0 }, they must be on one device"
    );
    let (q_there, k_there) = (q.to_device(&device)?, k.to_device(&device)?);
    let ids = Tensor::new(&[3u32, 1, 4], &CPU)?;
    assert_eq!(
        refusal(rope.apply(&q_there, &k_there, At::Ids(&ids))),
        "the tensor of positions lies on Cpu and the queries on Cuda { gpu_id: 0 }, they must be on one device"
    );
    let other = Device::new_cuda_with_stream(0)?;
    assert_eq!(
        refusal(Rope::new(spec(), &other)?.apply(&q_there, &k_there, At::Start(0))),
        "q belongs to another candle device of Cuda { gpu_id: 0 } than the rope: another stream"
    );
    Ok(())
}

//! RoPE on the CPU: `Rope::rotate` beside candle's `rotary_emb`, on the same values, in one process.
//!
//! `cargo run --release --manifest-path benches/peers/cpu/Cargo.toml`, and `python3 benches/peers/cpu/torch_cpu.py` for
//! PyTorch. candle is given its tables of cosines and sines and writes a new tensor; posenc makes its angles in the call and
//! rotates in place. Each result is compared with the reference before it is timed. The figure is the fastest of many
//! rounds: other programs can only add.

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use posenc::{Direction, Heads, Pairing, Rope, Scalar};

const HEADS: usize = 32;
const DIM: usize = 128;

fn fastest(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.6 {
        let start = Instant::now();
        call()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best * 1e6)
}

/// The reference of the first token and of the last.
fn check<T: Scalar>(rope: &Rope, before: &[T], after: &[T], heads: &Heads, slack: f64) -> Result<()> {
    for (token, head) in [(0, 0), (heads.tokens - 1, heads.heads - 1)] {
        let at = heads.index(0, token, head, 0);
        let row = at..at + heads.dim;
        let one = Heads::thd(1, 1, heads.dim);
        let expected = rope.expect(&before[row.clone()], &one, &[token as i64], Direction::Forward)?;
        let worst = posenc::accuracy::compare(&after[row], &expected.want, |i| expected.bound[i] + slack);
        ensure!(worst.share <= 1.0, "{worst:?}");
    }
    Ok(())
}

fn compare<T: Scalar + WithDType>(dtype: DType, tokens: usize) -> Result<()> {
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let n = tokens * HEADS * DIM;
    let x: Vec<T> = (0..n).map(|i| <T as Scalar>::from_f64(((i * 7919) % 1021) as f64 / 512.0 - 1.0)).collect();
    for (layout, pairing) in [("thd", Pairing::Half), ("bhtd", Pairing::Half), ("bhtd", Pairing::Interleaved)] {
        let rope = Rope { pairing, ..Rope::new(DIM, 10_000.0) };
        let shape = if layout == "thd" { Heads::thd(tokens, HEADS, DIM) } else { Heads::bhtd(1, HEADS, tokens, DIM) };
        let mut y = x.clone();
        rope.rotate(&mut y, &shape, &positions, Direction::Forward)?;
        check(&rope, &x, &y, &shape, 0.0)?;
        let ours = fastest(|| Ok(rope.rotate(&mut y, &shape, &positions, Direction::Forward)?))?;

        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let angles = positions.iter().flat_map(|&p| (0..DIM / 2).map(move |i| (p, i)));
            let values: Vec<f32> = angles.map(|(p, i)| f(p as f64 * rope.frequency(i)) as f32).collect();
            Ok(Tensor::from_vec(values, (tokens, DIM / 2), &Device::Cpu)?.to_dtype(dtype)?)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let dims = if layout == "thd" { (1, tokens, HEADS, DIM) } else { (1, HEADS, tokens, DIM) };
        let input = Tensor::from_vec(x.clone(), dims, &Device::Cpu)?;
        use candle_nn::rotary_emb as candle;
        let call = || match (layout, pairing) {
            ("thd", _) => candle::rope_thd(&input, &cos, &sin),
            (_, Pairing::Half) => candle::rope(&input, &cos, &sin),
            (_, Pairing::Interleaved) => candle::rope_i(&input, &cos, &sin),
        };
        // It computes in the tensors' type: a few of its roundings are allowed.
        check(&rope, &x, &call()?.flatten_all()?.to_vec1::<T>()?, &shape, 16.0 * T::ROUNDOFF)?;
        let theirs = fastest(|| {
            call()?;
            Ok(())
        })?;
        println!(
            "{:5} {tokens:6} tokens, {layout:4} {pairing:?}: posenc {ours:10.1} us, candle {theirs:10.1} us, {:.1} times",
            T::NAME,
            theirs / ours
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    println!("{HEADS} heads of {DIM}, {} threads", std::thread::available_parallelism()?);
    for tokens in [1, 16, 512, 4096] {
        compare::<f32>(DType::F32, tokens)?;
        compare::<bf16>(DType::BF16, tokens)?;
        compare::<f16>(DType::F16, tokens)?;
    }
    Ok(())
}

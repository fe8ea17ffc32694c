//! Times on this CPU beside candle's own rope, in one run: the least of many, in microseconds.
//!
//! `POSENC_KERNELS=none RAYON_NUM_THREADS=1 cargo run --release --example times`

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb;
use posenc_candle::{At, Rope};

/// Of one function in one round, and rounds.
const TIME: Duration = Duration::from_millis(150);
const ROUNDS: usize = 7;

type Case<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// The least time of each, by turns, so that a busy machine disturbs all alike.
fn least(cases: &[Case<'_>]) -> Result<Vec<f64>> {
    let mut times = vec![f64::INFINITY; cases.len()];
    for _ in 0..ROUNDS {
        for ((_, call), least) in cases.iter().zip(&mut times) {
            let end = Instant::now() + TIME;
            while Instant::now() < end {
                let start = Instant::now();
                call()?;
                *least = least.min(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    Ok(times)
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let rope = Rope::new(posenc::Rope::new(128, 500_000.0), &device)?;
    let (mut columns, mut rows): (Vec<String>, Vec<(&str, Vec<f64>)>) = (Vec::new(), Vec::new());
    for (tokens, dtype) in [(1, DType::F32), (1, DType::BF16), (512, DType::F32), (512, DType::BF16)] {
        let q = Tensor::randn(0f32, 1.0, (1, 32, tokens, 128), &device)?.to_dtype(dtype)?;
        let k = Tensor::randn(0f32, 1.0, (1, 8, tokens, 128), &device)?.to_dtype(dtype)?;
        // As candle's Llama has them: tables by rank, narrowed by each layer.
        let rates: Vec<f32> = (0..64).map(|i| 500_000f32.powf(-(i as f32) / 64.0)).collect();
        let rates = Tensor::new(rates, &device)?.reshape((1, 64))?;
        let places = Tensor::arange(0u32, 4096, &device)?.to_dtype(DType::F32)?.reshape((4096, 1))?;
        let angles = places.matmul(&rates)?;
        let (cos, sin) = (angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?);
        let narrowed = || Ok::<_, candle_core::Error>((cos.narrow(0, 1000, tokens)?, sin.narrow(0, 1000, tokens)?));
        let cases: [Case<'_>; 4] = [
            ("posenc, exact angles", Box::new(|| rope.apply(&q, &k, At::Start(1000)).map(drop))),
            ("posenc, in place", Box::new(|| rope.apply_inplace(&q, &k, At::Start(1000)))),
            ("posenc, candle's function and tables", {
                Box::new(|| {
                    let (cos, sin) = narrowed()?;
                    posenc_candle::rotary_emb::rope(&q, &cos, &sin)?;
                    posenc_candle::rotary_emb::rope(&k, &cos, &sin).map(drop)
                })
            }),
            ("candle, tables beforehand", {
                Box::new(|| {
                    let (cos, sin) = narrowed()?;
                    rotary_emb::rope(&q, &cos, &sin)?;
                    rotary_emb::rope(&k, &cos, &sin).map(drop)
                })
            }),
        ];
        columns.push(format!("{tokens} token{}, {}", if tokens > 1 { "s" } else { "" }, dtype.as_str()));
        let times = least(&cases)?;
        rows.resize_with(cases.len(), || ("", Vec::new()));
        for (row, ((name, _), time)) in rows.iter_mut().zip(cases.iter().zip(times)) {
            row.0 = name;
            row.1.push(time);
        }
    }
    println!("| 32 + 8 heads of 128 | {} |", columns.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (name, times) in rows {
        let times: Vec<String> = times.iter().map(|time| format!("{time:.1}")).collect();
        println!("| {name} | {} |", times.join(" | "));
    }
    Ok(())
}

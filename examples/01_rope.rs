//! From a model's config to rotated queries and keys: on the CPU, and on a GPU if there is one.
//!
//! `cargo run --example 01_rope`

use anyhow::Result;
use posenc::accuracy::assert_close;
use posenc::{Direction, Error, Gpu, Heads, Positions, Rope, RopePlan};

pub(crate) fn main() -> Result<()> {
    // Llama-3.1-8B, as its config.json says it.
    let rope = Rope::from_hf_config(
        r#"{
            "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
            "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            }
        }"#,
    )?;
    assert_eq!((rope.rotary, rope.base), (128, 500_000.0));
    // Short wavelengths are kept, long ones divided by 8.
    assert_eq!(rope.frequency(0), 1.0);
    assert_eq!(rope.frequency(63), 500_000f64.powf(-126.0 / 128.0) / 8.0);

    // Two queries of one head at far positions.
    let (heads, positions) = (Heads::thd(2, 1, 128), [131_070i64, 131_071]);
    let q: Vec<f32> = (0..256).map(|i| (i as f32 - 127.5) / 64.0).collect();
    let mut rotated = q.clone();
    rope.rotate(&mut rotated, &heads, &positions, Direction::Forward)?;
    // Channel 0 turns with channel 64, by one radian a position.
    let (sin, cos) = 131_070f64.sin_cos();
    let want = f64::from(q[0]) * cos - f64::from(q[64]) * sin;
    assert!((f64::from(rotated[0]) - want).abs() < 1e-6);

    // Back again.
    rope.rotate(&mut rotated, &heads, &positions, Direction::Inverse)?;
    assert!(q.iter().zip(&rotated).all(|(a, b)| (a - b).abs() < 1e-6));

    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("rotated on the CPU; {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let plan = RopePlan::<f32>::new(&gpu, &rope)?;
    let mut q_gpu = gpu.stream().clone_htod(&q)?;
    let ids = gpu.stream().clone_htod(&positions)?;
    plan.rotate(heads.of_mut(&mut q_gpu), None, Positions::ids(&ids))?;
    let expected = rope.expect(&q, &heads, &positions, Direction::Forward)?;
    let worst = assert_close(&gpu.stream().clone_dtoh(&q_gpu)?, &expected.want, |i| expected.bound[i]);
    println!("rotated on the CPU and on {gpu:?}; worst error {:e}, {:.2} of the bound", worst.error, worst.share);
    Ok(())
}

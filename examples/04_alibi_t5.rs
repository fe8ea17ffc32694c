//! Attention probabilities with ALiBi and with T5's bias, their gradients, and a decode step: on the CPU, and on a GPU if
//! there is one.
//!
//! `cargo run --example 04_alibi_t5`

use anyhow::Result;
use posenc::accuracy::assert_close;
use posenc::attend::{GradOptions, Inputs};
use posenc::bias::{DistanceGrad, DistanceGradPlan};
use posenc::{Alibi, Bias, BiasPlan, Error, Gpu, Logits, Places, Softmax, SoftmaxPlan, T5Bias};

pub(crate) fn main() -> Result<()> {
    // BLOOM-560m has 16 heads, the second of two ranks holds 8..16: its slopes are those of the whole model.
    let slopes = Alibi::new(16).shard(8, 8).slopes()?;
    assert_eq!(slopes.left[7], 1.0 / 256.0);

    // One step of a decode: a query against a cache of five keys, whatever its length in memory.
    let (heads, shape) = (8, Logits::bhqk(1, 8, 1, 8));
    let logits = vec![0.0f32; 64];
    let places = Places { key_lengths: Some(&[5][..]), ..Places::bottom_right() };
    let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(places) };
    let mut p = logits.clone();
    let lse = Softmax::causal(1.0).apply(&mut p, &shape, &inputs)?;
    // With equal logits a probability falls by exp(-slope) a key, and keys beyond the length have none.
    assert!((p[3] / p[4] - (-slopes.left[0]).exp()).abs() < 1e-6);
    assert_eq!(p[5..8], [0.0; 3]);
    assert!((lse[0] - (0..5).map(|n| (-slopes.left[0] * n as f32).exp()).sum::<f32>().ln()).abs() < 1e-6);

    // T5: 32 buckets, a table of one number per bucket and head, no scale.
    let t5 = T5Bias::new(32, 128, false);
    assert_eq!((t5.bucket(-15)?, t5.bucket(-16)?, t5.bucket(-19)?, t5.bucket(-500)?), (15, 16, 17, 31));
    let table: Vec<f32> = (0..32 * heads).map(|i| (i % 7) as f32 / 4.0).collect();
    let row = t5.row(&table, heads)?;
    let square = Logits::bhqk(2, heads, 40, 40);
    let elements = square.elements()?;
    let x: Vec<f32> = (0..elements).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let weights: Vec<f32> = (0..elements).map(|i| ((i * 53) % 89) as f32 / 44.0 - 1.0).collect();
    let softmax = Softmax::causal(1.0);
    let inputs = Inputs { bias: Bias::Toeplitz(&row), ..Inputs::default() };
    let grad = softmax.grad(&x, &weights, &square, &inputs)?;
    let by_bias: Vec<f32> = grad.bias.iter().map(|&g| g as f32).collect();
    let table_grad = t5.grad(&DistanceGrad::new(&by_bias, &square, &Places::bottom_right(), t5.distances())?)?;
    // A softmax does not notice what is added to a whole row: the buckets of a head sum to zero.
    let sum: f64 = (0..32).map(|bucket| table_grad[bucket * heads]).sum();
    assert!(sum.abs() < 1e-6);

    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("computed on the CPU; {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let stream = gpu.stream();
    let mut bias = BiasPlan::<f32>::t5(&gpu, t5, heads)?;
    bias.set_table(&stream.clone_htod(&table)?)?;
    let plan = SoftmaxPlan::<f32>::new(&gpu, &softmax, bias)?;
    let mut p_gpu = stream.clone_htod(&x)?;
    plan.apply(square.of_mut(&mut p_gpu), &Inputs::default())?;
    let expected = softmax.expect(&x, &square, &inputs)?;
    let worst = assert_close(&stream.clone_dtoh(&p_gpu)?, &expected.want, |i| expected.bound[i]);

    let mut grad_gpu = stream.clone_htod(&weights)?;
    plan.grad(square.of(&p_gpu), square.of_mut(&mut grad_gpu), &Inputs::default(), GradOptions::default())?;
    let sums = DistanceGradPlan::<f32>::t5(&gpu, t5, heads, square)?;
    let mut table_gpu = stream.clone_htod(&vec![0.0f32; sums.len()])?;
    sums.apply(square.of(&grad_gpu), Places::bottom_right(), 1.0, &mut table_gpu)?;
    assert_close(&stream.clone_dtoh(&table_gpu)?, &table_grad, |_| 1e-5);
    println!("computed on the CPU and on {gpu:?}; worst error {:e}, {:.2} of the bound", worst.error, worst.share);
    Ok(())
}

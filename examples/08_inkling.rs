//! Inkling's banded bias in a decode step against a cache: states of sixteen channels against a table that all heads share; on the
//! CPU, and on a GPU if there is one.
//!
//! `cargo run --example 08_inkling`

use anyhow::Result;
use half::bf16;
use posenc::accuracy::assert_close;
use posenc::attend::{DeviceBias, DeviceInputs, HostInputs};
use posenc::bias::{DeviceTermInputs, Distances, Numbers, Relative, Term, TermInputs, Terms};
use posenc::{Bias, Error, Gpu, Logits, Places, Softmax, SoftmaxPlan};

pub(crate) fn main() -> Result<()> {
    // A sliding layer: four heads on this rank, a band of 512 keys, a cache of 3000.
    let (heads, extent, keys, width) = (4, 512, 3000, 16);
    let band = Distances::inkling(extent);
    let some = |n: usize, step: usize| (0..n).map(|i| ((i * step) % 89) as f32 / 44.0 - 1.0).collect::<Vec<f32>>();
    // The step's states, [heads, 16], and the layer's table, [extent, 16].
    let (states, table) = (some(heads * width, 31), some(extent * width, 47));
    // What the engine's matrix product gives: heads x extent numbers, however long the cache.
    let products = Relative::new(band.clone(), &table, 1.0).products(&states, [1, heads, 1, width])?;
    let products: Vec<bf16> = products.iter().map(|x| bf16::from_f64(*x)).collect();

    let shape = Logits::bhqk(1, heads, 1, keys);
    let logits: Vec<bf16> = some(heads * keys, 37).into_iter().map(bf16::from_f32).collect();
    // q and k are normed, the scale is 1 / dim; the window is the band.
    let softmax = Softmax { left: Some(extent as u32 - 1), ..Softmax::causal(1.0 / 128.0) };
    let (terms, numbers) = ([Term::queries(band)], Numbers::rows(1, heads, 1, extent));
    let wide: Vec<f32> = products.iter().map(|x| x.to_f32()).collect();
    let inputs = [TermInputs::of((&wide[..], numbers))];
    let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs });
    let inputs = HostInputs { bias, ..HostInputs::at(Places::bottom_right()) };
    let expected = softmax.expect(&logits, &shape, &inputs)?;
    // Nothing before the window; all of it within the last 512 keys.
    assert!(expected.want[..keys - extent].iter().all(|p| *p == 0.0));
    assert!((expected.want[keys - extent..keys].iter().sum::<f64>() - 1.0).abs() < 1e-12);

    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("computed on the CPU; {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let stream = gpu.stream();
    let plan = SoftmaxPlan::<bf16>::new(&gpu, &softmax, &terms)?;
    let (mut x, products) = (stream.clone_htod(&logits)?, stream.clone_htod(&products)?);
    let inputs = [DeviceTermInputs::of(numbers.of(&products))];
    plan.apply(shape.of_mut(&mut x), &DeviceInputs { bias: DeviceBias::terms(&inputs), ..Default::default() })?;
    assert_close(&stream.clone_dtoh(&x)?, &expected.want, |i| expected.bound[i]);
    println!("a decode step with the band's {extent} numbers a head, on {gpu:?}");
    Ok(())
}

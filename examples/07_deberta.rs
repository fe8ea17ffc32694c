//! DeBERTa's disentangled attention: both products with relative positions, fused with the softmax; on the CPU, and on a GPU if
//! there is one.
//!
//! `cargo run --example 07_deberta`

use anyhow::Result;
use posenc::accuracy::assert_close;
use posenc::attend::{DeviceBias, DeviceInputs, HostInputs, Order};
use posenc::bias::{DeviceTermInputs, Distances, Numbers, Relative, RelativeLayer, Term, TermInputs, Terms};
use posenc::{Bias, Error, Gpu, Logits, Places, Softmax, SoftmaxPlan};

pub(crate) fn main() -> Result<()> {
    // deberta-v3's buckets; two heads of eight channels, twelve tokens.
    let (heads, dim, tokens) = (2, 8, 12);
    let deberta = Distances::deberta(256, 512)?;
    let shape = Logits::bhqk(1, heads, tokens, tokens);
    let some = |n: usize, step: usize| (0..n).map(|i| ((i * step) % 97) as f32 / 48.0 - 1.0).collect::<Vec<f32>>();
    let (q, k) = (some(heads * tokens * dim, 37), some(heads * tokens * dim, 53));
    // Projections of the embeddings of relative positions, [512, heads, dim].
    let (kr, qr) = (some(512 * heads * dim, 29), some(512 * heads * dim, 41));

    // The reference: content to content, content to position, position to content, all divided by sqrt(3 dim).
    let scale = 1.0 / (3.0 * dim as f64).sqrt();
    let relative = |table| Relative { heads, ..Relative::new(deberta.clone(), table, scale) };
    let layer =
        RelativeLayer { queries: Some(relative(&kr)), keys: Some(relative(&qr)), ..RelativeLayer::new(dim, scale) };
    let places = Places::counted(0, 0);
    let scores = layer.scores(&q, &k, &shape, &places)?;

    // What an engine has: three matrix products, here made by the reference.
    let content = RelativeLayer::new(dim, 1.0).scores(&q, &k, &shape, &places)?;
    let products = |relative: &Option<Relative>, states: &[f32]| -> Result<Vec<f32>> {
        let relative = relative.as_ref().expect("both terms are there");
        Ok(relative.products(states, [1, heads, tokens, dim])?.iter().map(|x| *x as f32).collect())
    };
    let (c2p, p2c) = (products(&layer.queries, &q)?, products(&layer.keys, &k)?);
    let numbers = Numbers::rows(1, heads, tokens, 512);
    let terms = [Term::queries(deberta.clone()), Term::keys(deberta)];
    let inputs = [TermInputs::of((&c2p[..], numbers)), TermInputs::of((&p2c[..], numbers))];
    let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs });
    let softmax = Softmax { order: Order::BiasThenScale, ..Softmax::new(scale as f32) };
    let logits: Vec<f32> = content.iter().map(|x| *x as f32).collect();
    let inputs = HostInputs { bias, ..HostInputs::at(places) };
    let expected = softmax.expect(&logits, &shape, &inputs)?;
    // The same probabilities as the layer's scores give.
    for row in 0..heads * tokens {
        let row = row * tokens..(row + 1) * tokens;
        let sum: f64 = scores[row.clone()].iter().map(|score| score.exp()).sum();
        for i in row {
            assert!((expected.want[i] - scores[i].exp() / sum).abs() < 1e-6);
        }
    }

    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("computed on the CPU; {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let stream = gpu.stream();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &softmax, &terms)?;
    let (mut x, c2p, p2c) = (stream.clone_htod(&logits)?, stream.clone_htod(&c2p)?, stream.clone_htod(&p2c)?);
    let inputs = [&c2p, &p2c].map(|products| DeviceTermInputs::of(numbers.of(products)));
    plan.apply(shape.of_mut(&mut x), &DeviceInputs { bias: DeviceBias::terms(&inputs), ..Default::default() })?;
    assert_close(&stream.clone_dtoh(&x)?, &expected.want, |i| expected.bound[i]);
    println!("both products with relative positions read by one kernel, on {gpu:?}");
    Ok(())
}

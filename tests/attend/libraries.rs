//! Attention of other libraries' models: BLOOM, MPT, Falcon, flash-attention, WavLM.

use posenc::accuracy::assert_close;
use posenc::attend::{HostInputs, Inputs, Order};
use posenc::bias::{KeyOnly, Sides};
use posenc::{Alibi, Bias, BiasPlan, Logits, Softmax, SoftmaxPlan};

use crate::biases::{Context, Host, Numbers, bits, double, golden, wavlm};
use crate::softmax;
use crate::support::{Guarded, gpu};

/// Logits, scale and probabilities of a model's attention at Hugging Face.
fn attention(model: &str) -> (Logits, f32, Vec<f32>, Vec<f64>) {
    let golden = golden();
    let case = golden["probabilities"].as_array().unwrap().iter().find(|case| case["model"] == model).unwrap();
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    let shape = Logits::bhqk(1, number("heads"), number("tokens"), number("tokens"));
    let probabilities = bits(&case["probabilities"]).into_iter().map(f64::from).collect();
    (shape, case["scale"].as_f64().unwrap() as f32, bits(&case["scores"]), probabilities)
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn attention_on_the_device_is_that_of_bloom_mpt_and_falcon() {
    let gpu = gpu();
    for (model, form) in [("bloom", KeyOnly::Bloom), ("mpt", KeyOnly::Mpt), ("falcon", KeyOnly::Falcon)] {
        let (shape, scale, scores, want) = attention(model);
        let order = if model == "falcon" { Order::BiasThenScale } else { Order::SoftcapThenBias };
        let softmax = Softmax { order, ..Softmax::causal(scale) };
        let alibi = Alibi::new(shape.heads);
        let row = form.bias(&alibi, shape.keys).unwrap();
        let near = |got: &[f32], bound: f64, what: &str| {
            let _context = Context(|| format!("{model} {what}"));
            // A logit's roundings grow with it.
            let size = |p: f64| 1.0 - p.max(1e-37).ln() / 30.0;
            assert_close(got, &want, |i| bound * size(want[i]) * want[i] + 1e-36);
        };
        let run = |bias: BiasPlan<f32>, mask: Option<(&[f32], Logits)>| {
            let mut x = Guarded::new(&gpu, &scores, 0);
            let mask = mask.map(|(mask, shape)| (gpu.stream().clone_htod(mask).unwrap(), shape));
            let mask = mask.as_ref().map(|(mask, shape)| shape.of(mask));
            let plan = SoftmaxPlan::new(&gpu, &softmax, bias).unwrap();
            plan.apply(shape.of_mut(&mut x.view()), &Inputs { mask, ..Inputs::default() }).unwrap();
            x.read(&gpu)
        };
        // As the library does it: numbers of key positions.
        near(&run(BiasPlan::key_only(&gpu, Bias::Toeplitz(&row)).unwrap(), None), 4e-6, "row");
        // The same as an additive mask; Falcon's times the scale.
        let scaled = if model == "falcon" { scale } else { 1.0 };
        let mask: Vec<f32> = row.values.iter().map(|x| x * scaled).collect();
        let none = BiasPlan::new(&gpu, Bias::None).unwrap();
        near(&run(none, Some((&mask, Logits::bhqk(1, shape.heads, 1, shape.keys)))), 4e-6, "mask");
        // In the distance form: Falcon's slopes and products are rounded to bf16, and that shows.
        let slopes = BiasPlan::new(&gpu, &alibi).unwrap();
        if model == "falcon" {
            let got = run(slopes, None);
            assert!(got.iter().zip(&want).any(|(got, want)| (f64::from(*got) - want).abs() > 1e-4 * want));
        } else {
            near(&run(slopes, None), 1e-5, "distance");
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_key_only_form_on_the_device_is_the_distance_form_but_for_the_log_sum_exp() {
    let gpu = gpu();
    for heads in [1, 6, 12, 40, 71, 112] {
        // flash-attention's causal kernels: scale * s + slope * key, in f32.
        let alibi = Alibi { sides: Sides::Signed, ..Alibi::new(heads) };
        let slopes = alibi.slopes().unwrap();
        let shape = Logits::bhqk(2, heads, 5, 300);
        let logits: Vec<f32> = Numbers(heads as u64).take(shape.elements().unwrap(), 2.0);
        let run = |bias: BiasPlan<f32>| {
            let mut x = Guarded::new(&gpu, &logits, 0);
            let mut lse = Guarded::<f32>::poisoned(&gpu, shape.rows().unwrap(), 0);
            let plan = SoftmaxPlan::new(&gpu, &Softmax::causal(0.5), bias).unwrap();
            plan.apply_with_lse(shape.of_mut(&mut x.view()), &Inputs::default(), &mut lse.view()).unwrap();
            (x.read(&gpu), lse.read(&gpu))
        };
        let (want, want_lse) = run(BiasPlan::new(&gpu, &slopes).unwrap());
        let row = KeyOnly::FlashAttention.bias(&alibi, 300).unwrap();
        for bias in [Bias::Slopes(&slopes), Bias::Toeplitz(&row)] {
            let (got, lse) = run(BiasPlan::key_only(&gpu, bias).unwrap());
            // Numbers up to 300 * slope are rounded: 2^-24 * 300 / 2 and the logit's own.
            let (want, _context) = (double(&want), Context(|| format!("{heads} heads")));
            // Beyond the range a probability is any number below 2^-126.
            assert_close(&got, &want, |i| 6e-5 * want[i] + f64::exp2(-126.0));
            let shifted = |(row, want): (usize, &f32)| {
                let (query, head) = (295 + row % 5, row / 5 % heads);
                f64::from(*want) + f64::from(slopes.left[head]) * query as f64
            };
            let want_lse: Vec<f64> = want_lse.iter().enumerate().map(shifted).collect();
            assert_close(&lse, &want_lse, |_| 6e-5);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_softmax_of_the_gated_bias_is_wavlms() {
    let gpu = gpu();
    let (shape, row, gates, bias) = wavlm();
    let places = Host::counted(0, 0);
    let inputs = HostInputs { bias: Bias::Toeplitz(&row), gates: Some(&gates), ..HostInputs::at(places) };
    let logits: Vec<f32> = Numbers(3).take(bias.len(), 1.0);
    let (got, _) = softmax::run(&gpu, &Softmax::new(1.0), &logits, &shape, &inputs, 0);
    // Hugging Face hands its bias to the softmax as an additive mask.
    let inputs = HostInputs { mask: Some((&bias[..], shape)), ..HostInputs::at(places) };
    let want = Softmax::new(1.0).expect(&logits, &shape, &inputs).unwrap().want;
    assert_close(&got, &want, |i| 1e-5 * want[i]);
}

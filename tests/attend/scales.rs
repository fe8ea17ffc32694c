//! Scales of heads: Swin v2's cosine attention.

use half::bf16;
use posenc::attend::{DeviceInputs, HostInputs};
use posenc::bias::{
    Numbers, ShiftedWindows, Swin2Bias, Swin2Weights, Term, TermInputs, Terms, Window, swin2_logit_scale,
};
use posenc::gpu::Read;
use posenc::{Alibi, Bias, Gpu, Logits, Places, Softmax, SoftmaxPlan};

use crate::biases::{Context, Host};
use crate::cases::{Case, assert_near, case};
use crate::softmax::{all, bits, check, run};
use crate::softmax_grad::check_grad;
use crate::support::{Data, gpu};
use crate::terms_support::Own;

// -------------------------------------------------------------------------------------------------------------- values

/// `[rows, dim]`, each of length 1.
fn unit(x: &[f64], dim: usize) -> Vec<f64> {
    let rows = x.chunks(dim).map(|row| {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / length).collect::<Vec<_>>()
    });
    rows.collect::<Vec<_>>().concat()
}

/// The cosines of queries and keys of a case, `[batch, heads, tokens, tokens]`.
fn cosines(case: &Case, tokens: usize) -> Vec<f32> {
    let dim = case.size("dim");
    let (q, k) = (unit(&case.f64s("q"), dim), unit(&case.f64s("k"), dim));
    let of_head = |(q, k): (&[f64], &[f64])| -> Vec<f32> {
        let dot = |q: &[f64], k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() as f32;
        q.chunks(dim).flat_map(|q| k.chunks(dim).map(move |k| dot(q, k))).collect()
    };
    let each = |x: &'_ [f64]| x.chunks(tokens * dim).map(<[f64]>::to_vec).collect::<Vec<_>>();
    each(&q).iter().zip(&each(&k)).flat_map(|(q, k)| of_head((q, k))).collect()
}

/// Cosine attention end to end on the CPU: network, table, mask, scales, softmax.
fn check_golden(name: &str, masked: Option<f32>) {
    let _context = Context(|| name.into());
    let case = &case(name);
    let (window, heads, batch) = (case.pair("window"), case.size("heads"), case.size("batch"));
    let tokens = window[0] * window[1];
    let spec = Swin2Bias::new(window, case.size("hidden"), heads);
    let pretrained = case.pair("pretrained");
    let spec = if pretrained == [0, 0] { spec } else { spec.pretrained(pretrained) };
    let (w1, b1, w2) = (case.f32s("w1"), case.f32s("b1"), case.f32s("w2"));
    let table = spec.table(&Swin2Weights { w1: &w1[..], b1: &b1[..], w2: &w2[..], b2: None }).unwrap();
    let table: Vec<f32> = table.iter().map(|&x| x as f32).collect();
    let scales: Vec<f32> = case.f32s("logit_scale").into_iter().map(swin2_logit_scale).collect();
    let shifted = ShiftedWindows { height: 2 * window[0], width: window[1], window, shift: [1, 0] };
    let terms = [Term::table(Window::swin(window[0], window[1])), Term::shifted(shifted, masked.unwrap_or(0.0))];
    let read = [TermInputs::of((&table[..], Numbers::table(spec.entries(), heads))), TermInputs::default()];
    let count = 1 + usize::from(masked.is_some());
    let bias = Bias::Terms(Terms { terms: &terms[..count], inputs: &read[..count] });
    let inputs = HostInputs { bias, scales: Some(&scales), ..HostInputs::at(Places::counted(0, 0)) };
    let mut p = cosines(case, tokens);
    Softmax::new(1.0).apply(&mut p, &Logits::bhqk(batch, heads, tokens, tokens), &inputs).unwrap();
    let want = case.f64s("scores");
    let want = want.chunks(tokens).flat_map(|row| {
        let max = row.iter().fold(f64::MIN, |max, z| max.max(*z));
        let sum: f64 = row.iter().map(|z| (z - max).exp()).sum();
        row.iter().map(move |z| (z - max).exp() / sum)
    });
    // A logit of 100 in f32 is off by 4e-6.
    assert_near(&p.iter().map(|&p| f64::from(p)).collect::<Vec<_>>(), &want.collect::<Vec<_>>(), 3e-5);
}

#[test]
fn cosine_attention_is_that_of_the_implementations() {
    check_golden("swin_v2_transformers_3x3", None);
    check_golden("swin_v2_timm_3x4_pretrained", None);
    check_golden("swin_v2_timm_2x3_masked", Some(-100.0));
    // Hugging Face adds the mask of -100 twice.
    check_golden("swin_v2_transformers_2x2_masked_pretrained", Some(-200.0));
}

#[test]
fn gradients_of_logit_scales_are_those_of_torch() {
    let case = &case("swin_v2_timm_3x4_pretrained");
    let (heads, tokens) = (case.size("heads"), 12);
    let (cosines, upstream) = (cosines(case, tokens), case.f64s("upstream"));
    let logit_scale = case.f32s("logit_scale");
    let want = case.f64s("logit_scale_gradient");
    for head in 0..heads {
        let own = head * tokens * tokens..(head + 1) * tokens * tokens;
        let by_scale: f64 = cosines[own.clone()].iter().zip(&upstream[own]).map(|(s, dz)| f64::from(*s) * dz).sum();
        let scale = swin2_logit_scale(logit_scale[head]);
        // d exp(min(x, ln 100)) / dx
        let factor = if scale < 100.0 { f64::from(scale) } else { 0.0 };
        assert!((by_scale * factor - want[head]).abs() < 1e-5 * (1.0 + want[head].abs()), "head {head}");
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn gradients_of_scales_are_those_of_finite_differences() {
    let shape = Logits::bhqk(2, 2, 3, 5);
    let slopes = Alibi::new(2).slopes().unwrap();
    let mut data = Data::new(3);
    let (logits, weights): (Vec<f32>, Vec<f32>) = (data.values(60), data.values(60));
    let scales = [0.8f32, -1.7];
    for softmax in all(Softmax::new(0.7)) {
        let of = |scales: &[f32]| {
            let inputs = HostInputs { bias: Bias::Slopes(&slopes), scales: Some(scales), ..HostInputs::default() };
            let output = softmax.expect(&logits, &shape, &inputs).unwrap();
            let grad = softmax.grad(&logits, &weights, &shape, &inputs).unwrap();
            (output.want.iter().zip(&weights).map(|(p, w)| p * f64::from(*w)).sum::<f64>(), grad)
        };
        let grad = of(&scales).1;
        for head in 0..2 {
            let moved = |step: f32| {
                let mut scales = scales;
                scales[head] += step;
                (of(&scales).0, f64::from(0.7f32 * scales[head]) / f64::from(0.7f32))
            };
            let ((up, a), (down, b)) = (moved(1.0 / 512.0), moved(-1.0 / 512.0));
            let want = (up - down) / (a - b);
            assert!((grad.scales[head] - want).abs() < 1e-5, "{softmax:?} {head}: {} and {want}", grad.scales[head]);
        }
        // The logits' own, from those of a spec with the head's scale.
        for (head, scale) in scales.iter().enumerate() {
            let own = Softmax { scale: softmax.scale * scale, ..softmax };
            let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::default() };
            let want = own.grad(&logits, &weights, &shape, &inputs).unwrap();
            for at in [head * 15..(head + 1) * 15, (2 + head) * 15..(3 + head) * 15] {
                assert_eq!(
                    (&grad.logits[at.clone()], &grad.bias[at.clone()]),
                    (&want.logits[at.clone()], &want.bias[at])
                );
            }
        }
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

fn check_each<T: Own>(gpu: &Gpu, shape: &Logits, bias: Bias, scales: &[f32], places: Host) {
    let mut data = Data::new(shape.keys as u64);
    let logits: Vec<T> = data.values(shape.span().unwrap());
    let mask: Vec<T> = data.values(shape.keys);
    for softmax in all(Softmax::new(0.7)) {
        let inputs = HostInputs { bias, scales: Some(scales), ..HostInputs::at(places) };
        check(gpu, &softmax, &logits, shape, &inputs, 0);
        check_grad(gpu, &softmax, shape, &inputs, 5, 0);
        let mask = Some((&mask[..], Logits::bhqk(1, 1, 1, shape.keys)));
        check(gpu, &softmax, &logits, shape, &HostInputs { mask, ..inputs }, 1);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_scales_of_heads() {
    let gpu = gpu();
    let scales = [1.5f32, -0.25, 8.0];
    let table: Vec<f32> = Data::new(2).values::<bf16>(25 * 3).into_iter().map(bf16::to_f32).collect();
    let read = [TermInputs::of((&table[..], Numbers::table(25, 3)))];
    let terms = Terms { terms: &[Term::table(Window::swin(3, 3))], inputs: &read };
    // Aligned rows, whose packs of one side are made apart, and others.
    for shape in [Logits::bhqk(2, 3, 3, 61).row(64), Logits::bhqk(1, 3, 2, 21)] {
        check_each::<f32>(&gpu, &shape, Bias::None, &scales, Host::counted(shape.keys as i64 - 9, 0));
        check_each::<bf16>(&gpu, &shape, Bias::None, &scales, Host::counted(5, 0));
    }
    check_each::<f32>(&gpu, &Logits::bhqk(2, 3, 9, 9), Bias::Terms(terms), &scales, Host::counted(0, 0));
    check_each::<bf16>(&gpu, &Logits::bhqk(2, 3, 9, 9), Bias::Terms(terms), &scales, Host::counted(0, 0));
    // Several blocks share a row.
    let shape = Logits::bhqk(1, 3, 1, 9000);
    check_each::<bf16>(&gpu, &shape, Bias::None, &scales, Host::bottom_right());
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), &Alibi::new(3)).unwrap();
    let (mut x, scales) = (gpu.stream().alloc_zeros(12).unwrap(), gpu.stream().clone_htod(&scales).unwrap());
    let inputs = DeviceInputs { scales: Some(&scales), ..DeviceInputs::default() };
    let error = plan.apply(Logits::bhqk(1, 3, 2, 2).of_mut(&mut x), &inputs).unwrap_err();
    assert_eq!(
        error.to_string(),
        "scales of heads go with a bias of terms or none on the device: a row of distances is a term too"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_scale_of_one_changes_no_bit_and_any_is_that_of_the_spec() {
    fn each<T: Own>(gpu: &Gpu) {
        let shape = Logits::bhqk(2, 2, 3, 100);
        let logits: Vec<T> = Data::new(8).values(shape.elements().unwrap());
        for softmax in all(Softmax::new(1.0)) {
            let got = |scale: f32, own: f32, scaled: bool| {
                let scales = [own; 2];
                let inputs = HostInputs { scales: scaled.then_some(&scales[..]), ..HostInputs::<T>::default() };
                let (p, lse) = run(gpu, &Softmax { scale, ..softmax }, &logits, &shape, &inputs, 0);
                (bits(&p), bits(&lse))
            };
            assert_eq!(got(0.3, 1.0, true), got(0.3, 0.0, false));
            assert_eq!(got(1.0, 0.3, true), got(0.3, 0.0, false));
        }
    }
    let gpu = gpu();
    each::<f32>(&gpu);
    each::<bf16>(&gpu);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn scales_that_do_not_fit_are_refused() {
    let shape = Logits::bhqk(1, 2, 1, 2);
    let text = |scales: &[f32]| {
        let mut logits = [7.0f32; 4];
        let inputs = HostInputs { scales: Some(scales), ..HostInputs::default() };
        let error = Softmax::new(0.5).apply(&mut logits, &shape, &inputs).unwrap_err().to_string();
        assert_eq!(logits, [7.0; 4]);
        assert_eq!(Softmax::new(0.5).grad(&logits, &logits, &shape, &inputs).unwrap_err().to_string(), error);
        error
    };
    assert_eq!(text(&[1.0]), "there are 1 scales for 2 heads");
    assert_eq!(text(&[1.0, f32::NAN]), "the scale of head 1 is NaN times 0.5, the product must be finite");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn short_scales_are_refused_on_the_device() {
    let gpu = gpu();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).unwrap();
    let (scales, mut x) = (gpu.stream().clone_htod(&[1.0f32]).unwrap(), gpu.stream().clone_htod(&[7.0f32; 4]).unwrap());
    let inputs = DeviceInputs { scales: Some(&scales as Read<f32>), ..DeviceInputs::default() };
    let error = plan.apply(Logits::bhqk(1, 2, 1, 2).of_mut(&mut x), &inputs).unwrap_err().to_string();
    assert_eq!(error, "scales holds 1 elements, the shape needs 2");
    assert_eq!(gpu.stream().clone_dtoh(&x).unwrap(), [7.0; 4]);
}

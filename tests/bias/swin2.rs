use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::bias::{LogCoordinates, Swin2Bias, Swin2GradOut, Swin2Plan, Swin2Weights, Term, TermInputs, Terms, Window};
use posenc::gpu::Read;
use posenc::{Bias, Device, Gpu, Logits, Places, Scalar};

use crate::biases::Context;
use crate::cases::{Case, assert_near, case};
use crate::support::{Data, Guarded, gpu};

// -------------------------------------------------------------------------------------------------------------- values

/// Weights in host memory.
#[derive(Clone)]
struct Net<T> {
    w1: Vec<T>,
    b1: Vec<T>,
    w2: Vec<T>,
    b2: Option<Vec<T>>,
}

impl<T: Scalar> Net<T> {
    fn random(spec: &Swin2Bias, seed: u64, b2: bool) -> Self {
        let mut data = Data::new(seed);
        // Outputs of a few units, on both sides of 0, so that no sigmoid is flat.
        let w2 = data.values::<f32>(spec.heads * spec.hidden);
        let shrunk = w2.iter().map(|w| T::from_f32(w / (spec.hidden as f32).sqrt())).collect();
        Self {
            w1: data.values(2 * spec.hidden),
            b1: data.values(spec.hidden),
            w2: shrunk,
            b2: b2.then(|| data.values(spec.heads)),
        }
    }

    fn host(&self) -> Swin2Weights<'_, T> {
        Swin2Weights { w1: &self.w1, b1: &self.b1, w2: &self.w2, b2: self.b2.as_deref() }
    }
}

fn golden_spec(case: &Case) -> (Swin2Bias, Net<f32>) {
    let b2 = case.has("b2").then(|| case.f32s("b2"));
    let net = Net { w1: case.f32s("w1"), b1: case.f32s("b1"), w2: case.f32s("w2"), b2 };
    let spec = Swin2Bias::new(case.pair("window"), case.size("hidden"), case.size("heads"));
    let spec = if case.pair("pretrained") == [0, 0] { spec } else { spec.pretrained(case.pair("pretrained")) };
    (spec, net)
}

#[test]
fn tables_are_those_of_the_implementations() {
    for name in [
        "swin_v2_transformers_3x3",
        "swin_v2_transformers_2x2_masked_pretrained",
        "swin_v2_timm_3x4_pretrained",
        "swin_v2_timm_2x3_masked",
        "log_mlp_swin",
        "log_mlp_cr",
    ] {
        let _context = Context(|| name.into());
        let case = &case(name);
        let (mut spec, net) = golden_spec(case);
        if name == "log_mlp_cr" {
            spec = Swin2Bias { coordinates: LogCoordinates::Absolute, limit: None, ..spec };
        }
        // They have coordinates in f32.
        assert_near(&spec.coordinates().unwrap().concat(), &case.f64s("coordinates"), 3e-7);
        let table = spec.table(&net.host()).unwrap();
        assert_near(&table, &case.f64s("table"), 3e-6);
        // And the bias of every pair of a window, through the term that reads the table.
        let [height, width] = spec.window;
        let table: Vec<f32> = table.iter().map(|&x| x as f32).collect();
        let numbers = posenc::bias::Numbers::table(spec.entries(), spec.heads);
        let terms = Terms {
            terms: &[Term::table(Window::swin(height, width))],
            inputs: &[TermInputs::of((&table[..], numbers))],
        };
        let tokens = height * width;
        let mut bias = vec![0.0f32; spec.heads * tokens * tokens];
        let shape = Logits::bhqk(1, spec.heads, tokens, tokens);
        Bias::Terms(terms).write(&mut bias, &shape, &Places::counted(0, 0)).unwrap();
        assert_near(&bias.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), &case.f64s("bias"), 3e-6);
    }
}

#[test]
fn gradients_are_those_of_torch() {
    let case = &case("swin_v2_timm_3x4_pretrained");
    let (spec, net) = golden_spec(case);
    let grad = spec.grad(&net.host(), &case.f32s("table_gradient")).unwrap();
    for (got, key) in [(grad.w1, "w1_gradient"), (grad.b1, "b1_gradient"), (grad.w2, "w2_gradient")] {
        let _context = Context(|| key.into());
        // The gradient of the table is rounded to f32 here, coordinates are there.
        assert_near(&got, &case.f64s(key), 1e-5);
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn coordinates_are_odd_and_1_at_the_edge_of_the_pretraining_window() {
    let spec = Swin2Bias::new([8, 12], 1, 1);
    assert_eq!([spec.coordinate(0, 0), spec.coordinate(1, -4)], [0.0, -spec.coordinate(1, 4)]);
    // log2(9) / 3 at the window's own edge: the factor 8 and the logarithm's base are the same number.
    assert!((spec.coordinate(0, 7) - 9f64.log2() / 3.0).abs() < 1e-15);
    assert!((spec.pretrained([12, 16]).coordinate(1, 15) - 9f64.log2() / 3.0).abs() < 1e-15);
    let cr = Swin2Bias { coordinates: LogCoordinates::Absolute, ..spec };
    assert_eq!(cr.coordinate(0, -3), -4f64.ln());
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for limit in [Some(16.0), None] {
        let spec = Swin2Bias { limit, ..Swin2Bias::new([3, 2], 5, 2).pretrained([4, 6]) };
        let net = Net::<f32>::random(&spec, 3, true);
        let upstream: Vec<f32> = Data::new(4).values(spec.entries() * spec.heads);
        let loss = |net: &Net<f32>| {
            let table = spec.table(&net.host()).unwrap();
            table.iter().zip(&upstream).map(|(t, u)| t * f64::from(*u)).sum::<f64>()
        };
        let grad = spec.grad(&net.host(), &upstream).unwrap();
        let step = 1.0f32 / 4096.0;
        let check = |got: &[f64], of: fn(&mut Net<f32>) -> &mut Vec<f32>| {
            for (index, got) in got.iter().enumerate() {
                let moved = |step: f32| {
                    let mut net = net.clone();
                    of(&mut net)[index] += step;
                    let at = f64::from(of(&mut net)[index]);
                    (loss(&net), at)
                };
                let ((up, a), (down, b)) = (moved(step), moved(-step));
                let want = (up - down) / (a - b);
                assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{limit:?} {index}: {got} and {want}");
            }
        };
        check(&grad.w1, |net| &mut net.w1);
        check(&grad.b1, |net| &mut net.b1);
        check(&grad.w2, |net| &mut net.w2);
        check(&grad.b2, |net| net.b2.as_mut().unwrap());
    }
}

#[test]
fn a_logit_scale_is_clamped_at_100() {
    use posenc::bias::swin2_logit_scale as scale;
    assert_eq!([scale(0.0), scale(100f32.ln() + 1e-3), scale(f32::INFINITY)], [1.0, 100.0, 100.0]);
    assert!(scale(f32::NAN).is_nan());
    assert_eq!(scale(f32::NEG_INFINITY), 0.0);
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// Weights on the device.
struct Buffers<T> {
    w1: CudaSlice<T>,
    b1: CudaSlice<T>,
    w2: CudaSlice<T>,
    b2: Option<CudaSlice<T>>,
}

impl<T: Scalar> Buffers<T> {
    fn new(gpu: &Gpu, net: &Net<T>) -> Self {
        let upload = |values: &Vec<T>| gpu.stream().clone_htod(values).unwrap();
        let (w1, b1, w2) = (upload(&net.w1), upload(&net.b1), upload(&net.w2));
        Self { w1, b1, w2, b2: net.b2.as_ref().map(upload) }
    }

    fn device(&self) -> Swin2Weights<'_, T, Device> {
        let b2 = self.b2.as_ref().map(|b2| b2 as Read<T>);
        Swin2Weights { w1: &self.w1, b1: &self.b1, w2: &self.w2, b2 }
    }
}

fn check<T: Scalar>(gpu: &Gpu, spec: &Swin2Bias, b2: bool) {
    let _context = Context(|| format!("{} {spec:?} {b2}", T::NAME));
    let net = Net::<T>::random(spec, spec.hidden as u64, b2);
    let (buffers, plan) = (Buffers::new(gpu, &net), Swin2Plan::<T>::new(gpu, spec).unwrap());
    let len = spec.entries() * spec.heads;
    let mut table = Guarded::<f32>::poisoned(gpu, len, 1);
    plan.write(buffers.device(), &mut table.view()).unwrap();
    let want = spec.expect(&net.host()).unwrap();
    assert_close(&table.read(gpu), &want.want, |i| want.bound[i]);

    let upstream: Vec<f32> = Data::new(9).values(len);
    let mut table_grad = Guarded::new(gpu, &upstream, 1);
    let (want, bound) = spec.expect_grad(&net.host(), &upstream).unwrap();
    let mut out = [2 * spec.hidden, spec.hidden, spec.heads * spec.hidden, spec.heads]
        .map(|len| Guarded::<f32>::poisoned(gpu, len, 1));
    {
        let [w1, b1, w2, b2_grad] = &mut out;
        let (mut w1, mut b1, mut w2, mut b2_grad) = (w1.view(), b1.view(), w2.view(), b2_grad.view());
        let out =
            Swin2GradOut { w1: &mut w1, b1: &mut b1, w2: &mut w2, b2: if b2 { Some(&mut b2_grad) } else { None } };
        plan.grad(buffers.device(), &table_grad.view(), out).unwrap();
    }
    assert_close(&out[0].read(gpu), &want.w1, |i| bound.w1[i]);
    assert_close(&out[1].read(gpu), &want.b1, |i| bound.b1[i]);
    assert_close(&out[2].read(gpu), &want.w2, |i| bound.w2[i]);
    if b2 {
        assert_close(&out[3].read(gpu), &want.b2, |i| bound.b2[i]);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tables_and_gradients_on_the_device_are_the_reference() {
    let gpu = gpu();
    // Around the ends of a warp's entries, a block's heads and its hidden units.
    for (window, hidden, heads) in
        [([2, 2], 1, 1), ([3, 4], 31, 8), ([2, 3], 32, 9), ([4, 2], 33, 7), ([2, 9], 64, 16), ([8, 8], 97, 3)]
    {
        let spec = Swin2Bias::new(window, hidden, heads);
        check::<f32>(&gpu, &spec, false);
        check::<bf16>(&gpu, &spec.pretrained([12, 6]), true);
        check::<f16>(&gpu, &Swin2Bias { coordinates: LogCoordinates::Absolute, limit: None, ..spec }, true);
    }
    check::<f32>(&gpu, &Swin2Bias::new([8, 8], 512, 4), false);
}

/// Sigmoids at both ends, and what is no number.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn far_outputs_reach_the_limits() {
    let gpu = gpu();
    let spec = Swin2Bias::new([2, 2], 1, 5);
    let b2 = vec![1000.0f32, -1000.0, 0.0, f32::NAN, -87.0];
    let net = Net { w1: vec![0.0f32; 2], b1: vec![0.0], w2: vec![0.0; 5], b2: Some(b2) };
    let (buffers, plan) = (Buffers::new(&gpu, &net), Swin2Plan::<f32>::new(&gpu, &spec).unwrap());
    let mut table = Guarded::<f32>::poisoned(&gpu, 45, 0);
    plan.write(buffers.device(), &mut table.view()).unwrap();
    let got = table.read(&gpu);
    assert_eq!(got[..3], [16.0, 0.0, 8.0]);
    assert!(got[3].is_nan() && (got[4] - 16.0 * (-87f32).exp()).abs() < 1e-43);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_table_is_one_launch_and_a_gradient_two() {
    let gpu = gpu();
    let spec = Swin2Bias::new([7, 7], 64, 3);
    let net = Net::<f32>::random(&spec, 1, false);
    let (buffers, plan) = (Buffers::new(&gpu, &net), Swin2Plan::<f32>::new(&gpu, &spec).unwrap());
    let mut table = Guarded::<f32>::poisoned(&gpu, 169 * 3, 0);
    let [mut w1, mut b1, mut w2] = [128, 64, 192].map(|n| Guarded::<f32>::poisoned(&gpu, n, 0));
    let Some(emulator) = crate::support::emulator() else { return };
    emulator.reset_counters();
    plan.write(buffers.device(), &mut table.view()).unwrap();
    assert_eq!(emulator.counters().launches, 1);
    emulator.reset_counters();
    let (mut w1, mut b1, mut w2) = (w1.view(), b1.view(), w2.view());
    let out = Swin2GradOut { w1: &mut w1, b1: &mut b1, w2: &mut w2, b2: None };
    plan.grad(buffers.device(), &table.view(), out).unwrap();
    assert_eq!(emulator.counters().launches, 2);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |spec: Swin2Bias| spec.check().unwrap_err().to_string();
    let good = Swin2Bias::new([7, 7], 512, 3);
    assert_eq!(
        text(Swin2Bias { window: [7, 1], ..good }),
        "distances are divided by the size less 1 of a window of 7 x 1 tokens, both must be at least 2"
    );
    assert_eq!(
        text(good.pretrained([1, 7])),
        "distances are divided by the size less 1 of a window of 1 x 7 tokens, both must be at least 2"
    );
    // A window of one row has the coordinate 0 where the pretraining window divides it.
    Swin2Bias { window: [7, 1], ..good }.pretrained([7, 7]).check().unwrap();
    assert_eq!(
        text(Swin2Bias { window: [0, 7], ..good }),
        "a window is 0 x 7 tokens with stride 1, all three must be at least 1"
    );
    assert_eq!(
        text(Swin2Bias { hidden: 0, ..good }),
        "a network of 0 hidden units and 3 heads for 169 entries: all must be at least 1, and each table within 2^30"
    );
    assert_eq!(
        text(Swin2Bias { heads: usize::MAX, ..good }),
        format!(
            "a network of 512 hidden units and {} heads for 169 entries: all must be at least 1, and each table within 2^30",
            usize::MAX
        )
    );
    assert_eq!(text(Swin2Bias { limit: Some(0.0), ..good }), "limit is 0, it must be finite and above 0");
    let net = Net::<f32>::random(&good, 1, false);
    let text = |weights: Swin2Weights<f32>| good.table(&weights).unwrap_err().to_string();
    assert_eq!(text(Swin2Weights { w1: &net.w1[1..], ..net.host() }), "w1 has 1023 elements, the network has 1024");
    assert_eq!(text(Swin2Weights { b2: Some(&[0.0]), ..net.host() }), "b2 has 1 elements, the network has 3");
    let error = good.grad(&net.host(), &[0.0; 3]).unwrap_err();
    assert_eq!(error.to_string(), "table_grad has 3 elements, the table has 507");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_a_call_is_refused() {
    let gpu = gpu();
    let spec = Swin2Bias::new([2, 2], 4, 2);
    let net = Net::<f32>::random(&spec, 1, false);
    let (buffers, plan) = (Buffers::new(&gpu, &net), Swin2Plan::<f32>::new(&gpu, &spec).unwrap());
    let mut table = gpu.stream().clone_htod(&[7.0f32; 17]).unwrap();
    let error = plan.write(buffers.device(), &mut table).unwrap_err().to_string();
    assert_eq!(error, "table holds 17 elements, the shape needs 18");
    let short = gpu.stream().clone_htod(&[0.0f32; 3]).unwrap();
    let weights: Swin2Weights<f32, Device> = Swin2Weights { b1: &short, ..buffers.device() };
    let mut table = gpu.stream().clone_htod(&[7.0f32; 18]).unwrap();
    let error = plan.write(weights, &mut table).unwrap_err().to_string();
    assert_eq!(error, "b1 holds 3 elements, the shape needs 4");
    assert!(gpu.stream().clone_dtoh(&table).unwrap().iter().all(|&x| x == 7.0));
    let (mut w1, mut b1) = (table.clone(), table.clone());
    let out =
        Swin2GradOut { w1: &mut w1, b1: &mut b1, w2: &mut gpu.stream().clone_htod(&[7.0f32; 7]).unwrap(), b2: None };
    let error = plan.grad(buffers.device(), &table, out).unwrap_err().to_string();
    assert_eq!(error, "w2_grad holds 7 elements, the shape needs 8");
    assert!(gpu.stream().clone_dtoh(&w1).unwrap().iter().all(|&x| x == 7.0));
}

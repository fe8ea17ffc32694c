//! What a softmax writes shares no memory with anything else that the call reads or writes.

use posenc::attend::{self, GradOptions, Inputs};
use posenc::{Alibi, Bias, Logits, Places, Softmax, SoftmaxPlan};

use crate::support::{alias, gpu, raw};

type DeviceInputs<'a> = attend::DeviceInputs<'a, f32>;

const SHAPE: Logits = Logits::bhqk(1, 2, 3, 8);

#[track_caller]
fn text(result: posenc::Result<()>) -> String {
    result.expect_err("memory that is shared").to_string()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_softmax_refuses_what_shares_memory_with_its_outputs() {
    let gpu = gpu();
    let mut plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0), &Alibi::new(2)).unwrap();
    let mut x = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    // From the last of the 48 logits on.
    let shared = alias::<f32, _>(&x, 47 * 4, 80);
    let [mut lse, mut slopes] = [alias::<f32, _>(&x, 47 * 4, 80), {
        let (left, _) = plan.bias_mut().slopes_mut().unwrap().unwrap();
        alias(&left, 4, 6)
    }];
    let lengths = alias::<i32, _>(&x, 47 * 4, 80);

    let none = DeviceInputs::default;
    let error = text(plan.apply_with_lse(SHAPE.of_mut(&mut x), &none(), &mut lse));
    assert_eq!(error, "lse is written and shares memory with logits");
    let error = text(plan.apply_with_lse(SHAPE.of_mut(&mut x), &none(), &mut slopes));
    assert_eq!(error, "lse is written and shares memory with slopes");
    let mut with = |inputs: &DeviceInputs| text(plan.apply(SHAPE.of_mut(&mut x), inputs));
    let error = with(&DeviceInputs { sinks: Some(&shared), ..none() });
    assert_eq!(error, "logits is written and shares memory with sinks");
    let error = with(&DeviceInputs { gates: Some(&shared), ..none() });
    assert_eq!(error, "logits is written and shares memory with gates");
    let places = Places::bottom_right().key_lengths(&lengths);
    assert_eq!(with(&DeviceInputs::at(places)), "logits is written and shares memory with key_lengths");
    let mask = Some(Logits::bhqk(1, 1, 1, 8).of(&shared));
    let error = with(&DeviceInputs { mask, ..none() });
    assert!(error.starts_with("logits (") && error.ends_with("may overlap in one buffer"), "{error}");
    // Elsewhere than in place.
    let mut y = alias::<f32, _>(&x, 47 * 4, 80);
    let error = text(plan.apply(SHAPE.of(&x).to(SHAPE.of_mut(&mut y)), &none()));
    assert!(error.starts_with("logits (") && error.ends_with("may overlap in one buffer"), "{error}");
    assert_eq!(gpu.stream().clone_dtoh(&x).unwrap(), [1.0; 128]);
    // One element further on it is nobody else's.
    let mut lse = alias::<f32, _>(&x, 48 * 4, 80);
    plan.apply_with_lse(SHAPE.of_mut(&mut x), &none(), &mut lse).unwrap();
}

/// Two rows as far apart as addresses go: somewhere between them lies the plan's memory.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_softmax_refuses_logits_that_share_memory_with_its_scratch_memory() {
    let gpu = gpu();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).unwrap();
    let mut everything = raw::<f32>(1 << 12, 1 << 60);
    let shape = Logits::bhqk(1, 1, 2, 16_384).row(1 << 46);
    let error = text(plan.apply(shape.of_mut(&mut everything), &Inputs::default()));
    assert_eq!(error, "scratch memory is written and shares memory with logits");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_gradient_refuses_what_shares_memory_with_its_outputs() {
    let gpu = gpu();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0), &Alibi::new(2)).unwrap();
    let p = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    let mut dx = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    let [mut of_p, mut of_dx] = [&p, &dx].map(|buffer| alias::<f32, _>(buffer, 47 * 4, 80));
    let logits = alias::<f32, _>(&dx, 47 * 4, 80);
    let none = DeviceInputs::default();
    macro_rules! grad {
        ($($field:ident: $value:expr)?) => {
            text(plan.grad(
                SHAPE.of(&p),
                SHAPE.of_mut(&mut dx),
                &none,
                GradOptions { $($field: Some($value),)? ..GradOptions::default() },
            ))
        };
    }

    let error = grad!(dots: &mut of_p);
    assert_eq!(error, "dots is written and shares memory with probabilities");
    let error = grad!(dots: &mut of_dx);
    assert_eq!(error, "dots is written and shares memory with grad");
    let error = grad!(bias: &mut of_p);
    assert!(error.starts_with("probabilities (") && error.ends_with("may overlap in one buffer"), "{error}");
    let error = grad!(logits: SHAPE.of(&logits));
    assert!(error.starts_with("grad (") && error.ends_with("may overlap in one buffer"), "{error}");
    let in_p = alias::<f32, _>(&dx, 47 * 4, 80);
    let error = text(plan.grad(SHAPE.of(&in_p), SHAPE.of_mut(&mut dx), &none, GradOptions::default()));
    assert!(error.starts_with("probabilities (") && error.ends_with("may overlap in one buffer"), "{error}");

    // Sinks, log-sum-exp and sums of rows, none of which may be the gradient's memory.
    let error = text(plan.sink_grad(&p, &dx, &p, SHAPE, &mut alias(&dx, 5 * 4, 64)));
    assert_eq!(error, "sinks_grad is written and shares memory with lse");
    let error = text(plan.sink_grad(&p, &p, &dx, SHAPE, &mut alias(&dx, 5 * 4, 64)));
    assert_eq!(error, "sinks_grad is written and shares memory with dots");
    for buffer in [&p, &dx] {
        assert_eq!(gpu.stream().clone_dtoh(buffer).unwrap(), [1.0; 128]);
    }
}

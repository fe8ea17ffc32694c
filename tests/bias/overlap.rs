//! What a bias or its gradient writes shares no memory with anything else that the call reads or writes.

use posenc::bias::{BiasInputs, DistanceGradPlan, FireGradPlan};
use posenc::{Alibi, BiasPlan, Logits, Places, T5Bias};

use crate::biases::fire;
use crate::support::{alias, gpu, raw};

const SHAPE: Logits = Logits::bhqk(1, 2, 3, 8);

#[track_caller]
fn text(result: posenc::Result<()>) -> String {
    result.expect_err("memory that is shared").to_string()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_bias_refuses_what_shares_memory_with_its_output() {
    let gpu = gpu();
    let mut plan = BiasPlan::<f32>::new(&gpu, &Alibi::new(2)).unwrap();
    let mut x = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    // From the last of the 48 elements on.
    let gates = alias::<f32, _>(&x, 47 * 4, 80);
    let ids = alias::<i32, _>(&x, 47 * 4, 80);
    let inputs = BiasInputs { gates: Some(&gates), ..Places::bottom_right().into() };
    let error = text(plan.write(SHAPE.of_mut(&mut x), inputs));
    assert_eq!(error, "out is written and shares memory with gates");
    let places = Places::counted(0, 0).key_positions(&ids);
    let error = text(plan.add(SHAPE.of_mut(&mut x), places));
    assert_eq!(error, "logits is written and shares memory with key positions");
    let error = text(plan.add(SHAPE.of_mut(&mut x), Places::packed(&ids, &ids, 2)));
    assert_eq!(error, "logits is written and shares memory with the packed queries");
    let (left, _) = plan.slopes_mut().unwrap().unwrap();
    let mut slopes = alias::<f32, f32>(&left, 4, 48);
    let error = text(plan.write(SHAPE.of_mut(&mut slopes), Places::bottom_right()));
    assert_eq!(error, "out is written and shares memory with slopes");
    assert_eq!(gpu.stream().clone_dtoh(&x).unwrap(), [1.0; 128]);

    let mut plan = BiasPlan::<f32>::t5(&gpu, T5Bias::new(4, 5, true), 1).unwrap();
    let table = alias::<f32, f32>(&plan.row_mut().unwrap().unwrap(), 0, 4);
    assert_eq!(text(plan.set_table(&table)), "row is written and shares memory with table");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_refuse_what_shares_memory_with_their_outputs() {
    let gpu = gpu();
    let distance = DistanceGradPlan::<f32>::slopes(&gpu, 2, SHAPE).unwrap();
    let fire = FireGradPlan::<f32>::new(&gpu, &fire(2, 3, 1), 100, SHAPE).unwrap();
    let grad = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    let mut out = alias::<f32, _>(&grad, 47 * 4, 80);
    let gates = alias::<f32, _>(&grad, 47 * 4, 80);
    let gated = BiasInputs { gates: Some(&gates), ..Places::bottom_right().into() };
    let none = Places::bottom_right();
    let of_grad = "out is written and shares memory with grad";
    assert_eq!(text(distance.apply(SHAPE.of(&grad), none, 1.0, &mut out)), of_grad);
    assert_eq!(text(fire.apply(SHAPE.of(&grad), none, 1.0, &mut out)), of_grad);
    // The gates are where the numbers go, behind the gradient's own.
    let elsewhere = gpu.stream().clone_htod(&[1.0f32; 128]).unwrap();
    let of_gates = "out is written and shares memory with gates";
    assert_eq!(text(distance.apply(SHAPE.of(&elsewhere), gated, 1.0, &mut out)), of_gates);
    assert_eq!(text(fire.apply(SHAPE.of(&elsewhere), gated, 1.0, &mut out)), of_gates);
    // Rows as far apart as addresses go: somewhere between them lies the plan's memory.
    let shape = SHAPE.row(1 << 44);
    let everything = raw::<f32>(1 << 16, 1 << 60);
    let mut out = raw::<f32>(1 << 12, 64);
    let of_scratch = "scratch memory is written and shares memory with grad";
    assert_eq!(text(distance.apply(shape.of(&everything), none, 1.0, &mut out)), of_scratch);
    assert_eq!(text(fire.apply(shape.of(&everything), none, 1.0, &mut out)), of_scratch);
    assert_eq!(gpu.stream().clone_dtoh(&grad).unwrap(), [1.0; 128]);
}

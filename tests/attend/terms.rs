use half::{bf16, f16};
use posenc::attend::HostInputs;
use posenc::{Logits, Place, Places, Softmax};

use crate::biases::{Context, Host};
use crate::softmax::{all, check, run};
use crate::softmax_grad::check_grad;
use crate::support::{Data, gpu};
use crate::terms_support::each_terms;

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_term() {
    let gpu = gpu();
    let mut data = Data::new(4);
    let shape = Logits::bhqk(2, 3, 12, 13).row(16);
    let len = shape.span().unwrap();
    let mut ids = |count: usize| (0..count).map(|_| data.below(15) as i32 - 1).collect::<Vec<_>>();
    let (queries, keys) = (ids(24), ids(26));
    let hosts = [
        Host::counted(1, 0),
        Places { query_lengths: Some(&[12, 7]), key_lengths: Some(&[5, 13]), ..Host::counted(1, 0) },
        Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) },
    ];
    let (logits, mask) = (data.values::<f32>(len), data.values::<f32>(2 * 12 * 16));
    let half: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
    for (i, case) in each_terms(&shape, 17).iter().enumerate() {
        let _context = Context(|| case.name.to_string());
        let inputs = case.inputs();
        let bias = case.bias(&inputs);
        for (j, softmax) in all(Softmax::new(0.7)).into_iter().enumerate().filter(|(j, _)| (i + j) % 3 == 0) {
            let inputs = HostInputs { bias, ..HostInputs::<f32>::at(hosts[(i + j / 3) % 3]) };
            let mask = Some((&mask[..], Logits::bhqk(2, 1, 12, 13).row(16)));
            check(&gpu, &softmax, &logits, &shape, &inputs, 0);
            check(&gpu, &softmax, &logits, &shape, &HostInputs { mask, ..inputs }, 1);
            let inputs = HostInputs { bias, ..HostInputs::<bf16>::at(hosts[j % 3]) };
            check(&gpu, &softmax, &half, &shape, &inputs, j % 2);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_gradient_behind_a_softcap_is_the_reference_for_every_term() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 2, 12, 13).row(16);
    for (seed, case) in each_terms(&shape, 29).iter().enumerate() {
        let _context = Context(|| case.name.to_string());
        let order = all(Softmax::new(0.7))[seed % 18].order;
        let capped = Softmax { softcap: Some(1.5), order, ..Softmax::new(0.7) };
        let inputs = case.inputs();
        let bias = case.bias(&inputs);
        let inputs = HostInputs { bias, ..HostInputs::<f32>::at(Host::counted(1, 0)) };
        check_grad(&gpu, &capped, &shape, &inputs, seed as u64, seed % 3);
        let inputs = HostInputs { bias, ..HostInputs::<f16>::at(Host::counted(1, 0)) };
        check_grad(&gpu, &Softmax { softcap: None, ..capped }, &shape, &inputs, seed as u64, seed % 2);
    }
}

/// Rows of several chunks, which blocks share, and rows in one block have the same bits.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_long_row_is_shared_like_any_other() {
    let gpu = gpu();
    let keys = 20_000;
    let shape = Logits::bhqk(1, 2, 2, keys);
    let logits: Vec<f16> = Data::new(3).values(shape.span().unwrap());
    let term = posenc::bias::Term::queries(posenc::bias::Distances::inkling(512));
    let numbers = posenc::bias::Numbers::rows(1, 2, 2, 512);
    let values = crate::terms_support::short(&mut Data::new(9), numbers.span().unwrap());
    let inputs = [posenc::bias::TermInputs::of((&values[..], numbers))];
    let bias = posenc::Bias::Terms(posenc::bias::Terms { terms: &[term], inputs: &inputs });
    let inputs = HostInputs { bias, ..HostInputs::<f16>::at(Places::bottom_right()) };
    let softmax = Softmax::causal(0.5);
    check(&gpu, &softmax, &logits, &shape, &inputs, 0);
    let (wide, lse) = run(&gpu, &softmax, &logits, &shape, &inputs, 0);
    let (narrow, other) = run(&gpu, &softmax, &logits, &shape, &inputs, 1);
    assert!(wide == narrow && lse == other);
}

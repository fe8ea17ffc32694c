//! The operations on the CPU as they are without the feature `cpu`: the plain reference, rounded once.

use posenc::attend::Inputs;
use posenc::bias::Bias;
use posenc::{Alibi, Direction, Heads, Logits, Places, Rope, Sinusoid, Softmax, Tokens};

#[test]
fn rope_turns_a_pair() {
    let mut x = [1.0f32, 0.0];
    Rope::new(2, 10_000.0).rotate(&mut x, &Heads::thd(1, 1, 2), &[1], Direction::Forward).expect("a call");
    assert_eq!(x, [1f64.cos() as f32, 1f64.sin() as f32]);
}

#[test]
fn a_sinusoid_is_added() {
    let mut x = [0.5f32, -1.0];
    Sinusoid::new(2).add(&mut x, &Tokens::new(1, 1, 2), &[1], 2.0).expect("a call");
    assert_eq!(x, [(1.0 + 1f64.sin()) as f32, (1f64.cos() - 2.0) as f32]);
}

#[test]
fn a_softmax_takes_a_bias() {
    let slopes = Alibi::new(1).slopes().expect("slopes");
    let inputs: Inputs<f32> = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Places::counted(1, 0)) };
    let mut p = [0.0f32; 2];
    let lse = Softmax::causal(1.0).apply(&mut p, &Logits::bhqk(1, 1, 1, 2), &inputs).expect("a call");
    let sum = 1.0 + (-1.0f64 / 256.0).exp();
    assert_eq!(p, [(1.0 - 1.0 / sum) as f32, (1.0 / sum) as f32]);
    assert_eq!(lse, [sum.ln() as f32]);
}

//! Every spec as JSON and back.

use posenc::attend::{Order, RelativeValues};
use posenc::bias::{GateSums, Kerple, KerpleKind, Sandwich, Slopes, Swin2Bias};
use posenc::embed::{Frequencies, GridSize, Norm, Rows};
use posenc::position::DualChunk;
use posenc::rotate::{Angles, Axes, QueryScale, Yarn};
use posenc::{
    Alibi, Fire, Grid, Heads, Learned, Logits, ModelRope, Pairing, Places, Resample, Rope, Scaling, Sinusoid, Softmax,
    T5Bias, Toeplitz, Tokens, XPos,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[track_caller]
fn round_trip<S: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(spec: &S) {
    let text = serde_json::to_string(spec).expect("a spec has a form in JSON");
    assert_eq!(&serde_json::from_str::<S>(&text).expect(&text), spec, "{text}");
}

#[test]
fn every_spec_survives_json() {
    round_trip(&Rope {
        pairing: Pairing::Interleaved,
        scaling: Scaling::Yarn(Yarn::new(4.0, 32_768.0)),
        axes: Axes::Sections(vec![16, 24, 24]),
        angles: Angles::HfCompat,
        ..Rope::new(128, 1e6)
    });
    round_trip(&XPos::new(Rope::new(64, 1e4)));
    round_trip(&QueryScale::default());
    round_trip(&DualChunk { chunk: 262_144, local: 8192 });
    round_trip(&Sinusoid { frequencies: Frequencies::default(), ..Sinusoid::timestep(321) });
    round_trip(&Grid::detr(256, 10_000.0));
    round_trip(&Resample::new(GridSize::image(14, 14), GridSize::image(24, 24)));
    let rows = Rows::Kept { padding: Some(1), first: 2, padded: 1 };
    round_trip(&Learned { rows, norm: Some(Norm::Layer { eps: 1e-12 }), ..Learned::new(768) });
    round_trip(&Alibi::new(12));
    round_trip::<Slopes>(&Alibi::new(12).slopes().expect("slopes"));
    round_trip(&T5Bias::new(32, 128, true));
    round_trip(&Kerple { kind: KerpleKind::Log, p: vec![0.5], a: vec![2.0] });
    round_trip(&Sandwich::new(8));
    round_trip(&Fire::new());
    round_trip(&Swin2Bias::new([16, 16], 512, 4).pretrained([12, 12]));
    round_trip(&Toeplitz::from_law(2, -2..=0, |head, distance| head as f64 + distance as f64).expect("a row"));
    round_trip(&GateSums::logits());
    round_trip(&RelativeValues::vits(4));
    round_trip(&Softmax { order: Order::BiasThenScale, softcap: Some(50.0), ..Softmax::causal(0.125) });
    round_trip(&Places::<Vec<i32>>::bottom_right());
    round_trip(&Heads::bthd(2, 3, 4, 64));
    round_trip(&Tokens::new(2, 3, 64));
    round_trip(&Logits::bhqk(1, 2, 3, 4));
    let config = r#"{"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}"#;
    round_trip(&ModelRope::from_hf(config).expect("a config"));
}

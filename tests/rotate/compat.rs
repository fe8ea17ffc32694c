//! Hugging Face's cosines and sines: frequencies bit for bit, angles to a unit in the last place.

use posenc::rotate::Angles;
use posenc::{Direction, Gpu, Heads, ModelRope, Positions, Rope, RopePlan};
use serde_json::Value;

use crate::support::gpu;

fn counts(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| usize::try_from(x.as_u64().unwrap()).unwrap()).collect()
}

fn floats(bits: &Value) -> Vec<f32> {
    counts(bits).into_iter().map(|bits| f32::from_bits(u32::try_from(bits).unwrap())).collect()
}

/// Floats between two of them, one included.
fn apart(a: f32, b: f32) -> u32 {
    let ordered =
        |x: f32| if x.is_sign_negative() { -((x.to_bits() & 0x7fff_ffff) as i64) } else { x.to_bits() as i64 };
    u32::try_from((ordered(a) - ordered(b)).unsigned_abs()).unwrap()
}

/// One case of the fixture: a spec, positions, pairs, and cosines and sines `[positions, pairs]`.
struct Golden {
    rope: Rope,
    positions: Vec<i64>,
    pairs: Vec<usize>,
    cos: Vec<Vec<f32>>,
    sin: Vec<Vec<f32>>,
}

/// transformers 5.23.0 under torch 2.15.0: bases 1e4, 5e5, 1e6, 1e7, heads of 64, 80, 96, 128, positions up to 131072.
fn golden() -> Vec<(Golden, Vec<f32>)> {
    let golden: Value = serde_json::from_str(include_str!("../golden/rope_compat_hf.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap().iter().map(|case| {
        let rope = Rope::new(counts(&Value::from(vec![case["dim"].clone()]))[0], case["base"].as_f64().unwrap());
        // The script looked at every position from 0 to 131072.
        assert_eq!(case["furthest_from_nearest"], 1);
        let rows = |key: &str| case[key].as_array().unwrap().iter().map(floats).collect();
        let golden = Golden {
            rope: Rope { angles: Angles::HfCompat, ..rope },
            positions: counts(&case["positions"]).into_iter().map(|position| position as i64).collect(),
            pairs: counts(&case["pairs"]),
            cos: rows("cos_f32_bits"),
            sin: rows("sin_f32_bits"),
        };
        (golden, floats(&case["inv_freq_f32_bits"]))
    });
    cases.collect()
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn frequencies_have_torchs_bits() {
    let cases = golden();
    assert_eq!(cases.len(), 16);
    for (golden, want) in cases {
        for (pair, want) in want.into_iter().enumerate() {
            let got = golden.rope.compat_frequency(pair);
            assert_eq!(got.to_bits(), want.to_bits(), "{:?}, pair {pair}: {got:e}, torch has {want:e}", golden.rope);
        }
    }
}

/// The nearest power would not do: 4 of these 736 frequencies have another one in torch.
#[test]
fn the_nearest_power_is_not_torchs() {
    let mut others = 0;
    for (golden, want) in golden() {
        for (pair, want) in want.into_iter().enumerate() {
            let exponent = (2 * pair) as f32 / golden.rope.rotary as f32;
            let nearest = 1.0 / golden.rope.base.powf(f64::from(exponent)) as f32;
            others += u32::from(nearest != want);
        }
    }
    assert_eq!(others, 4);
}

#[test]
fn cosines_and_sines_are_within_a_unit_of_transformers() {
    let (mut all, mut equal) = (0, 0);
    for (golden, _) in golden() {
        for (row, &position) in golden.positions.iter().enumerate() {
            for (column, &pair) in golden.pairs.iter().enumerate() {
                let angle = golden.rope.angle(position, pair);
                for (got, want) in
                    [(angle.cos() as f32, golden.cos[row][column]), (angle.sin() as f32, golden.sin[row][column])]
                {
                    let apart = apart(got, want);
                    assert!(apart <= 1, "{:?} at {position}, pair {pair}: {got:e}, {want:e}", golden.rope);
                    all += 1;
                    equal += u32::from(apart == 0);
                }
            }
        }
    }
    println!("{equal} of {all} cosines and sines have the bits of transformers, the others are neighbours");
}

/// Scaled models, whose cosines and sines transformers multiplies by their attention factor: Llama 3.1, Qwen 2.5 with YaRN,
/// GPT-OSS. Every pair at five positions, from their configs. A unit before the product may be two behind it.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn scaled_models_are_within_a_unit_before_their_factor() {
    let gpu = gpu();
    let golden: Value = serde_json::from_str(include_str!("../golden/rope_scaling_hf.json")).unwrap();
    let mut worst = 0;
    for table in golden["tables"].as_array().unwrap() {
        let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == table["name"]).unwrap();
        let mut config = case["config"].clone();
        config["model_type"] = "llama".into();
        let rope = ModelRope::from_hf(&config.to_string()).unwrap().rope().unwrap().clone();
        let rope = Rope { angles: Angles::HfCompat, ..rope };
        let positions: Vec<i64> = counts(&table["positions"]).into_iter().map(|position| position as i64).collect();
        let got = turned(&gpu, &rope, &positions);
        for (row, position) in positions.iter().enumerate() {
            let waves = [&table["cos_f32_bits"][row], &table["sin_f32_bits"][row]].map(floats);
            for (wave, want) in waves.iter().enumerate() {
                assert_eq!(want.len(), rope.pairs());
                for (pair, &want) in want.iter().enumerate() {
                    let got = got[row * rope.rotary + wave * rope.pairs() + pair];
                    let apart = apart(got, want);
                    let most = if rope.attention_factor == 1.0 { 1 } else { 2 };
                    assert!(apart <= most, "{} at {position}, pair {pair}: {got:e}, {want:e}", table["name"]);
                    worst = worst.max(apart);
                }
            }
        }
    }
    println!("at most {worst} units in the last place");
}

/// Cosine and sine that a device makes for every pair at each position: the pair (1, 0), rotated.
fn turned(gpu: &Gpu, rope: &Rope, positions: &[i64]) -> Vec<f32> {
    let plan = RopePlan::<f32>::new(gpu, rope).expect("a plan");
    let heads = Heads::thd(positions.len(), 1, rope.rotary);
    let one_zero: Vec<f32> =
        (0..positions.len() * rope.rotary).map(|i| f32::from(i % rope.rotary < rope.pairs())).collect();
    let mut x = gpu.stream().clone_htod(&one_zero).expect("a copy");
    let ids = gpu.stream().clone_htod(positions).expect("a copy");
    plan.rotate(heads.of_mut(&mut x), None, Positions::ids(&ids)).expect("a call");
    gpu.stream().clone_dtoh(&x).expect("a copy")
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernels_are_within_a_unit_of_transformers() {
    let gpu = gpu();
    for (golden, frequencies) in golden() {
        let own = turned(&gpu, &golden.rope, &golden.positions);
        // The same frequencies, given.
        let given = Rope { angles: Angles::Given(frequencies), ..Rope::new(golden.rope.rotary, 3.0) };
        assert_eq!(own, turned(&gpu, &given, &golden.positions));
        for (row, position) in golden.positions.iter().enumerate() {
            for (column, &pair) in golden.pairs.iter().enumerate() {
                let at = row * golden.rope.rotary + pair;
                for (got, want) in
                    [(own[at], golden.cos[row][column]), (own[at + golden.rope.pairs()], golden.sin[row][column])]
                {
                    assert!(apart(got, want) <= 1, "{:?} at {position}, pair {pair}: {got:e}, {want:e}", golden.rope);
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn frequencies_that_are_given_are_taken_as_they_are() {
    // Another base and scaling say nothing, a negative frequency turns back.
    let rope = Rope { angles: Angles::Given(vec![1.0, -0.25]), ..Rope::new(4, 77.0) };
    assert_eq!((rope.compat_frequency(0), rope.compat_frequency(1)), (1.0, -0.25));
    assert_eq!((rope.angle(100_003, 0), rope.angle(8, 1)), (100_003.0, -2.0));
    let mut x = [1.0f32, 1.0, 0.0, 0.0];
    rope.rotate(&mut x, &Heads::thd(1, 1, 4), &[8], Direction::Forward).unwrap();
    assert_eq!(x, [8f64.cos() as f32, 2f64.cos() as f32, 8f64.sin() as f32, -2f64.sin() as f32]);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn frequencies_that_do_not_fit_are_refused() {
    let message =
        |list: Vec<f32>| Rope { angles: Angles::Given(list), ..Rope::new(4, 1e4) }.check().unwrap_err().to_string();
    assert_eq!(message(vec![1.0]), "1 frequencies are given, the rotary part has 2 pairs");
    assert_eq!(message(vec![1.0, f32::NAN]), "the frequencies given hold NaN at 1, they must be finite");
}

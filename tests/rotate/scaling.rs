//! Scalings: published numbers, laws, refusals.

use posenc::rotate::{QueryScale, Ramp, Yarn, longrope_attention_factor, mla_logit_scale, yarn_mscale};
use posenc::{Rope, Scaling};
use serde_json::Value;

fn rope(rotary: usize, base: f64, scaling: Scaling) -> Rope {
    Rope { scaling, ..Rope::new(rotary, base) }
}

fn llama3(factor: f64, high: f64) -> Scaling {
    Scaling::Llama3 { factor, low: 1.0, high, original_context: 8192.0 }
}

#[track_caller]
fn near(got: f64, want: f64, relative: f64) {
    assert!((got - want).abs() <= relative * want.abs(), "{got:e} is not {want:e} within {relative:e}");
}

// -------------------------------------------------------------------------------------------------------------- values

/// The fixture's config as a spec, written out by hand: the loaders have their own test on the same fixture.
fn golden_rope(case: &Value) -> Rope {
    let config = &case["config"];
    let map = &config["rope_parameters"];
    let number = |key: &str| map[key].as_f64();
    let count = |key: &str| number(key).unwrap_or_else(|| panic!("{key} in {case}"));
    let list = |key: &str| map[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let head = config["head_dim"].as_f64().unwrap();
    let longest = config["max_position_embeddings"].as_f64().unwrap();
    let share = number("partial_rotary_factor").unwrap_or(1.0);
    let mut rotary = (head * share) as usize;
    let scaling = match map["rope_type"].as_str().unwrap() {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: count("factor") },
        "dynamic" => Scaling::DynamicNtk { factor: count("factor"), context: longest, length: None },
        "llama3" => llama3(count("factor"), count("high_freq_factor")),
        "yarn" => Scaling::Yarn(Yarn {
            beta_fast: number("beta_fast").filter(|&beta| beta > 0.0).unwrap_or(32.0),
            beta_slow: number("beta_slow").filter(|&beta| beta > 0.0).unwrap_or(1.0),
            truncate: map["truncate"].as_bool().unwrap_or(true),
            ..Yarn::new(count("factor"), count("original_max_position_embeddings"))
        }),
        "longrope" => Scaling::LongRope {
            short: list("short_factor"),
            long: list("long_factor"),
            original_context: count("original_max_position_embeddings"),
            length: None,
        },
        "proportional" => {
            let rotated = rotary / 2;
            rotary = head as usize;
            Scaling::Proportional { rotated, factor: number("factor").unwrap_or(1.0) }
        }
        other => panic!("{other}"),
    };
    let rope = rope(rotary, count("rope_theta"), scaling);
    // No length means the original context in transformers.
    rope.at_length(case["seq_len"].as_u64().unwrap_or(0))
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/rope_scaling_hf.json")).unwrap()
}

/// The inverse frequencies of transformers 5.23.0 under torch 2.15.0, in f32: rounding moves them by 3e-6 at most where
/// a ramp subtracts, 1e-6 elsewhere.
#[test]
fn frequencies_are_those_of_transformers() {
    let golden = golden();
    let mut worst: Vec<(String, f64)> = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let (name, kind) =
            (case["name"].as_str().unwrap(), case["config"]["rope_parameters"]["rope_type"].as_str().unwrap());
        let rope = golden_rope(case);
        rope.check().unwrap();
        let bits = case["inv_freq_f32_bits"].as_array().unwrap();
        assert_eq!(bits.len(), rope.pairs(), "{name}");
        let tolerance = if matches!(kind, "yarn" | "llama3") { 3e-6 } else { 1e-6 };
        for (pair, bits) in bits.iter().enumerate() {
            let want = f64::from(f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()));
            let got = rope.frequency(pair);
            let off = if want == 0.0 { got } else { (got / want - 1.0).abs() };
            assert!(off <= tolerance, "{name}, pair {pair}: {got:e}, transformers has {want:e}, {off:e} apart");
            match worst.iter_mut().find(|(other, _)| other == kind) {
                Some((_, worst)) => *worst = worst.max(off),
                None => worst.push((kind.into(), off)),
            }
        }
    }
    println!("worst relative difference to transformers: {worst:?}");
    assert_eq!(worst.len(), 7);
}

/// The same f32 operations give the same bits: 2196 frequencies of 41 configs, under torch 2.15.0 on a CPU with AVX2.
#[test]
fn compat_frequencies_have_the_bits_of_transformers() {
    let golden = golden();
    let mut all = 0;
    for case in golden["cases"].as_array().unwrap() {
        let rope = golden_rope(case);
        for (pair, bits) in case["inv_freq_f32_bits"].as_array().unwrap().iter().enumerate() {
            let got = rope.compat_frequency(pair).to_bits();
            assert_eq!(u64::from(got), bits.as_u64().unwrap(), "{}, pair {pair}", case["name"]);
            all += 1;
        }
    }
    assert_eq!(all, 2196);
}

#[test]
fn attention_factors_are_those_of_transformers() {
    for case in golden()["cases"].as_array().unwrap() {
        let map = &case["config"]["rope_parameters"];
        let number = |key: &str| map[key].as_f64();
        let factor = || number("factor").unwrap();
        let got = match map["rope_type"].as_str().unwrap() {
            _ if number("attention_factor").is_some() => continue,
            "yarn" => match (number("mscale"), number("mscale_all_dim")) {
                (Some(mscale), Some(all)) => yarn_mscale(factor(), mscale) / yarn_mscale(factor(), all),
                _ => Yarn::new(factor(), 4096.0).attention_factor(),
            },
            "longrope" => longrope_attention_factor(number("factor").unwrap_or(32.0), 4096.0),
            _ => 1.0,
        };
        near(got, case["attention_factor"].as_f64().unwrap(), 1e-12);
    }
}

/// base' = base * s^(d/(d-2)), base 1e4, d 128: the base at which vLLM and exllama build their tables.
#[test]
fn ntk_has_the_frequencies_of_the_larger_base() {
    for (alpha, base) in [(2.0, 20221.26), (4.0, 40889.94), (8.0, 82684.62), (16.0, 167198.74), (32.0, 338096.95)] {
        let ntk = rope(128, 1e4, Scaling::NtkStatic { alpha });
        for pair in [1, 31, 63] {
            near(ntk.frequency(pair), Rope::new(128, base).frequency(pair), 3e-7);
        }
    }
}

/// vLLM 0.32.0, NTKScalingRotaryEmbedding(rotary_dim=128, base=10000, scaling_factor=8), f32.
#[test]
fn mixed_ntk_is_that_of_vllm() {
    for (exponent, want) in [
        (1.0, [0.9680308699607849, 0.8114811182022095, 0.004082771018147469, 1.4434774129767902e-05]),
        (0.625, [0.8567960262298584, 0.6823118329048157, 0.0029986004810780287, 1.4434774129767902e-05]),
    ] {
        let ntk = rope(128, 1e4, Scaling::NtkMixed { factor: 8.0, exponent });
        for (pair, want) in [0, 1, 31, 63].into_iter().zip(want) {
            near(ntk.frequency(pair), want, 5e-7);
        }
    }
    // vLLM without mixed_b: the base times the factor, the frequencies over factor^(2/d).
    let fixed = rope(128, 8e4, Scaling::Linear { factor: 8f64.powf(2.0 / 128.0) });
    let mixed = rope(128, 1e4, Scaling::NtkMixed { factor: 8.0, exponent: 1.0 });
    for pair in 0..64 {
        near(mixed.frequency(pair), fixed.frequency(pair), 1e-15);
    }
}

/// InternLM2-chat-7b: transformers 5.23.0 has these bases at these lengths.
#[test]
fn dynamic_ntk_grows_the_base_with_the_length() {
    let dynamic = rope(128, 1e6, Scaling::DynamicNtk { factor: 2.0, context: 32768.0, length: None });
    for (length, base) in [(0, 1e6), (1, 1e6), (32768, 1e6), (65536, 3_052_773.675), (131072, 7_219_586.009)] {
        near(dynamic.at_length(length).frequency(63), Rope::new(128, base).frequency(63), 2e-10);
    }
}

/// Qwen's get_ntk_alpha: 2^ceil(log2(length / seq_length) + 1) - 1, at least 1.
#[test]
fn stepped_ntk_is_qwens() {
    let stepped = rope(128, 1e4, Scaling::SteppedNtk { context: 8192.0, length: None });
    for (length, alpha) in [(0, 1.0), (8192, 1.0), (8193, 3.0), (16384, 3.0), (16385, 7.0), (32768, 7.0), (32769, 15.0)]
    {
        let fixed = rope(128, 1e4, Scaling::NtkStatic { alpha });
        let stepped = stepped.at_length(length);
        for pair in [0, 1, 31, 63] {
            assert_eq!(stepped.rate(pair), fixed.rate(pair), "{length} tokens, pair {pair}");
            assert_eq!(stepped.compat_frequency(pair), fixed.compat_frequency(pair));
        }
    }
}

/// Raw ends, the ends used, and the factors of published models.
#[test]
fn yarn_has_the_constants_of_published_models() {
    let raw = |factor, original, fast, slow| Yarn {
        beta_fast: fast,
        beta_slow: slow,
        truncate: false,
        ..Yarn::new(factor, original)
    };
    let cases = [
        // model, base, d, L, s, betas, raw ends, ends used
        ("DeepSeek-V3", 1e4, 64, 4096.0, 40.0, (32.0, 1.0), (10.472241, 22.513441), (10.0, 23.0)),
        ("DeepSeek-V4 compress", 160000.0, 64, 65536.0, 16.0, (32.0, 1.0), (15.453295, 24.708424), (15.0, 25.0)),
        ("Kimi-K2", 5e4, 64, 4096.0, 32.0, (1.0, 1.0), (19.164575, 19.165575), (19.0, 20.0)),
        ("Kimi-K2.5", 5e4, 64, 4096.0, 64.0, (32.0, 1.0), (8.914499, 19.164575), (8.0, 20.0)),
        ("Qwen2.5", 1e6, 128, 32768.0, 4.0, (32.0, 1.0), (23.595948, 39.650881), (23.0, 40.0)),
        ("YaRN-Llama-2", 1e4, 128, 4096.0, 16.0, (32.0, 1.0), (20.944482, 45.026881), (20.0, 46.0)),
        ("Ministral-3", 1e6, 128, 16384.0, 16.0, (32.0, 1.0), (20.384961, 36.439894), (20.0, 37.0)),
        ("Mistral-Large-3", 1e4, 64, 8192.0, 36.0, (32.0, 1.0), (12.880481, 24.921681), (12.0, 25.0)),
    ];
    for (model, base, d, original, factor, (fast, slow), (low, high), used) in cases {
        let raw = raw(factor, original, fast, slow);
        let ends = raw.ramp_ends(base, d);
        near(ends.0, low, 1e-7);
        near(ends.1, high, 1e-7);
        assert_eq!(Yarn { truncate: true, ..raw }.ramp_ends(base, d), used, "{model}");
    }
    let (low, high) = raw(32.0, 4096.0, 32.0, 1.0).ramp_ends(150000.0, 64);
    near(low, 8.092779115512402, 1e-14); // GPT-OSS, which does not round
    near(high, 17.39802450158856, 1e-14);

    // sqrt(1/t) = 0.1 ln s + 1
    for (factor, want) in [
        (2.0, 1.069315),
        (4.0, 1.138629),
        (8.0, 1.207944),
        (16.0, 1.277259),
        (32.0, 1.346574),
        (40.0, 1.368888),
        (64.0, 1.415888),
    ] {
        near(yarn_mscale(factor, 1.0), want, 5e-7);
    }
    // what DeepSeek's attention multiplies logits by
    for (factor, mscale, want) in [
        (40.0, 0.707, 1.589626), // DeepSeek-V2
        (40.0, 1.0, 1.873854),   // DeepSeek-V3
        (32.0, 1.0, 1.813260),   // Kimi-K2
        (64.0, 1.0, 2.004740),   // Kimi-K2.5
        (128.0, 1.0, 2.205828),  // Mistral 4
    ] {
        near(mla_logit_scale(factor, mscale), want, 3e-7);
    }
    // Phi-3-mini-128k and two more
    for (factor, original, want) in [(32.0, 4096.0, 1.19023807), (64.0, 4096.0, 1.22474487), (16.0, 8192.0, 1.14354375)]
    {
        near(longrope_attention_factor(factor, original), want, 5e-9);
    }
    assert_eq!((yarn_mscale(0.5, 1.0), longrope_attention_factor(1.0, 4096.0)), (1.0, 1.0));
}

/// The paper's ramp against the implementations': ratios of frequencies at the pair where they differ most.
#[test]
fn the_papers_ramp_is_another_one() {
    for (base, d, original, factor, want) in [
        (1e4, 128, 4096.0, 16.0, 0.329), // Llama 2
        (1e4, 128, 4096.0, 32.0, 0.253),
        (1e4, 64, 4096.0, 40.0, 0.234),  // DeepSeek-V3
        (1e6, 128, 32768.0, 4.0, 0.584), // Qwen2.5
    ] {
        let code = Yarn::new(factor, original);
        let paper = Yarn { ramp: Ramp::Turns, ..code };
        let (code, paper) = (rope(d, base, Scaling::Yarn(code)), rope(d, base, Scaling::Yarn(paper)));
        let least = (0..d / 2).map(|pair| paper.frequency(pair) / code.frequency(pair)).fold(1.0, f64::min);
        near(least, want, 2e-3);
    }
    let paper = Yarn { ramp: Ramp::Turns, ..Yarn::new(16.0, 4096.0) };
    let code = Yarn::new(16.0, 4096.0);
    let pair38 = |yarn| rope(128, 1e4, Scaling::Yarn(yarn)).frequency(38);
    near(pair38(paper) / pair38(code), 0.329, 2e-3);
}

/// GPT-OSS with rounded ends: 9 of 32 pairs move by more than 0.1 %, one of them by a factor of 1.763.
#[test]
fn rounding_the_ramps_ends_changes_gpt_oss() {
    let gpt_oss = |truncate| rope(64, 150000.0, Scaling::Yarn(Yarn { truncate, ..Yarn::new(32.0, 4096.0) }));
    let (right, wrong) = (gpt_oss(false), gpt_oss(true));
    let ratios: Vec<f64> = (0..32).map(|pair| wrong.frequency(pair) / right.frequency(pair)).collect();
    assert_eq!(ratios.iter().filter(|&ratio| (ratio - 1.0).abs() > 1e-3).count(), 9);
    near(ratios.iter().copied().fold(0.0, f64::max), 1.763, 5e-4);
}

/// Entry 1, the middle one and the last of the models' inverse frequencies in transformers 5.23.0.
#[test]
fn published_models_have_their_frequencies() {
    let yarn = |factor, original| Yarn::new(factor, original);
    let deepseek = Scaling::Yarn(yarn(40.0, 4096.0));
    let kimi = Scaling::Yarn(Yarn { beta_fast: 1.0, ..yarn(32.0, 4096.0) });
    let gpt_oss = Scaling::Yarn(Yarn { truncate: false, ..yarn(32.0, 4096.0) });
    let qwen = Scaling::Yarn(yarn(4.0, 32768.0));
    let gemma4 = Scaling::Proportional { rotated: 64, factor: 1.0 };
    let internlm2 = |length| Scaling::DynamicNtk { factor: 2.0, context: 32768.0, length: Some(length) };
    for (rotary, base, scaling, [second, middle, last]) in [
        (128, 5e5, llama3(8.0, 4.0), [0.814617217, 5.24846022e-4, 3.06892588e-7]),
        (64, 5e5, llama3(32.0, 4.0), [0.663601279, 4.29556705e-4, 9.41830649e-8]),
        (128, 5e5, llama3(16.0, 1.0), [0.814617217, 1.41421345e-3, 1.53446294e-7]),
        (64, 1e4, deepseek, [0.749894202, 5.50000044e-3, 3.33380353e-6]),
        (64, 5e4, kimi, [0.713111103, 4.47213604e-3, 8.76441277e-7]),
        (64, 150000.0, gpt_oss, [0.689044297, 4.56483918e-4, 3.02351140e-7]),
        (128, 1e6, qwen, [0.805842221, 6.02941145e-4, 3.10234441e-7]),
        (256, 1e6, Scaling::Linear { factor: 8.0 }, [0.112210892, 1.25000006e-4, 1.39246737e-7]),
        (512, 1e6, gemma4, [0.947463512, 0.0, 0.0]),
        (64, 5e6, Scaling::None, [0.617528737, 4.47213621e-4, 3.23871546e-7]),
        (128, 1e6, internlm2(32768), [0.805842221, 1.00000005e-3, 1.24093776e-6]),
        (128, 1e6, internlm2(65536), [0.791911483, 5.72338118e-4, 4.13645921e-7]),
        (128, 1e6, internlm2(131072), [0.781332254, 3.72172130e-4, 1.77276817e-7]),
    ] {
        let rope = rope(rotary, base, scaling);
        near(rope.frequency(1), second, 3e-6);
        near(rope.frequency(rotary / 4), middle, 3e-6);
        near(rope.frequency(rotary / 2 - 1), last, 3e-6);
    }
}

/// Llama 4's and Mistral's formulas at their steps; log-n at the training length and its square.
#[test]
fn query_scales_have_their_published_steps() {
    let llama4 = QueryScale::Llama4 { scale: 0.1, floor: 8192.0 };
    for (position, want) in [
        (0, 1.0),
        (8190, 1.0),
        (8191, 1.069315),
        (16383, 1.109861),
        (131071, 1.283321),
        (1048575, 1.485981),
        (10485759, 1.715540),
    ] {
        near(llama4.at(position), want, 5e-7);
    }
    let mistral = |original_context| QueryScale::Mistral { beta: 0.1, original_context };
    for (original, position, want) in [
        (16384.0, 16383, 1.0),
        (16384.0, 16384, 1.069315),
        (16384.0, 131071, 1.207944),
        (8192.0, 8191, 1.0),
        (8192.0, 8192, 1.069315),
        (8192.0, 131071, 1.277259),
    ] {
        near(mistral(original).at(position), want, 5e-7);
    }
    let logn = QueryScale::LogN { train_length: 2048.0 };
    assert_eq!((logn.at(0), logn.at(2047), logn.at(2048 * 2048 - 1)), (1.0, 1.0, 2.0));
    assert_eq!(QueryScale::One.at(1 << 40), 1.0);
}

// ---------------------------------------------------------------------------------------------------------------- laws

fn all(factor: f64) -> Vec<Scaling> {
    let list = vec![factor; 64];
    vec![
        Scaling::Linear { factor },
        Scaling::NtkStatic { alpha: factor },
        Scaling::NtkMixed { factor, exponent: 0.625 },
        Scaling::DynamicNtk { factor, context: 4096.0, length: Some(if factor == 1.0 { 4096 } else { 65536 }) },
        Scaling::Yarn(Yarn::new(factor, 4096.0)),
        Scaling::Yarn(Yarn { ramp: Ramp::Turns, ..Yarn::new(factor, 4096.0) }),
        Scaling::Yarn(Yarn { truncate: false, ..Yarn::new(factor, 4096.0) }),
        Scaling::LongRope { short: list.clone(), long: list.clone(), original_context: 4096.0, length: Some(1) },
        llama3(factor, 4.0),
        Scaling::Proportional { rotated: 64, factor },
        Scaling::Divisors(list),
    ]
}

#[test]
fn a_factor_of_1_changes_no_bit() {
    let plain = Rope::new(128, 5e5);
    for scaling in all(1.0) {
        let scaled = rope(128, 5e5, scaling.clone());
        scaled.check().unwrap();
        for pair in 0..64 {
            assert_eq!(scaled.rate(pair), plain.rate(pair), "{scaling:?}, pair {pair}");
            // A blend of equal numbers in f32 may end a unit beside them, in transformers too.
            let apart = scaled.compat_frequency(pair).to_bits().abs_diff(plain.compat_frequency(pair).to_bits());
            assert!(apart <= 1, "{scaling:?}, pair {pair}");
        }
    }
}

#[test]
fn frequencies_fall_with_the_pair_and_stay_between_plain_and_divided() {
    let plain = Rope::new(128, 5e5);
    for scaling in all(16.0) {
        let scaled = rope(128, 5e5, scaling.clone());
        let factor = match scaling {
            // the lowest frequency is divided by alpha = 16 * 65536 / 4096 - 15
            Scaling::DynamicNtk { .. } => 241.0,
            _ => 16.0,
        };
        for pair in 0..64 {
            let (got, whole) = (scaled.frequency(pair), plain.frequency(pair));
            assert!(got <= whole && got >= whole / factor * (1.0 - 1e-15), "{scaling:?}, pair {pair}: {got:e}");
            if pair > 0 {
                assert!(got < scaled.frequency(pair - 1), "{scaling:?}, pair {pair}");
            }
        }
        near(scaled.frequency(63), plain.frequency(63) / factor, 1e-15);
    }
}

#[test]
fn pairs_outside_a_ramp_keep_their_bits() {
    let plain = Rope::new(128, 1e6);
    let divided = rope(128, 1e6, Scaling::Linear { factor: 4.0 });
    // Qwen2.5: the ramp rises from pair 23 to pair 40.
    let yarn = rope(128, 1e6, Scaling::Yarn(Yarn::new(4.0, 32768.0)));
    for pair in 0..64 {
        let (kept, over) = (yarn.rate(pair) == plain.rate(pair), yarn.rate(pair) == divided.rate(pair));
        assert_eq!((kept, over), (pair <= 23, pair >= 40), "pair {pair}");
    }
    // Llama 3.1: kept where a pair makes more than 4 turns of 8192 tokens, divided below 1.
    let (plain, divided) = (Rope::new(128, 5e5), rope(128, 5e5, Scaling::Linear { factor: 8.0 }));
    let llama = rope(128, 5e5, llama3(8.0, 4.0));
    for pair in 0..64 {
        let turns = 8192.0 * plain.frequency(pair) / std::f64::consts::TAU;
        let (kept, over) = (llama.rate(pair) == plain.rate(pair), llama.rate(pair) == divided.rate(pair));
        assert_eq!((kept, over), (turns > 4.0, turns < 1.0), "pair {pair}");
    }
    // Llama 4: nothing between.
    let llama4 = rope(128, 5e5, llama3(8.0, 1.0));
    assert!((0..64).all(|pair| llama4.rate(pair) == plain.rate(pair) || llama4.rate(pair) == divided.rate(pair)));
}

#[test]
fn extrapolation_0_divides_everything() {
    let yarn = Yarn { extrapolation: 0.0, ..Yarn::new(4.0, 32768.0) };
    let (none, linear) = (rope(128, 1e6, Scaling::Yarn(yarn)), rope(128, 1e6, Scaling::Linear { factor: 4.0 }));
    let half = rope(128, 1e6, Scaling::Yarn(Yarn { extrapolation: 0.5, ..yarn }));
    assert!((0..64).all(|pair| none.rate(pair) == linear.rate(pair)));
    near(half.frequency(0), 0.5 + 0.5 / 4.0, 1e-15);
}

#[test]
fn a_length_chooses_the_list_and_the_boundary_belongs_to_the_short_one() {
    let scaling =
        Scaling::LongRope { short: vec![1.5; 48], long: vec![20.0; 48], original_context: 4096.0, length: None };
    assert!(scaling.needs_length());
    let longrope = rope(96, 1e4, scaling);
    for (length, divisor) in [(0, 1.5), (1, 1.5), (4096, 1.5), (4097, 20.0), (131072, 20.0)] {
        let at = longrope.at_length(length);
        assert!(!at.scaling.needs_length());
        near(at.frequency(5), Rope::new(96, 1e4).frequency(5) / divisor, 1e-15);
    }
}

#[test]
fn an_infinite_divisor_stops_its_pair() {
    // llama.cpp writes 1e30 where a pair stands still, mlx infinity.
    let mut list = vec![1.0; 32];
    (list[3], list[4]) = (f64::INFINITY, 1e30);
    let stopped = rope(64, 1e4, Scaling::Divisors(list));
    stopped.check().unwrap();
    assert_eq!((stopped.rate(3), stopped.rate(4), stopped.rate(5)), (0, 0, Rope::new(64, 1e4).rate(5)));
}

#[test]
fn stopped_pairs_of_proportional_rope_have_no_angle() {
    let gemma = rope(512, 1e6, Scaling::Proportional { rotated: 64, factor: 1.0 });
    assert!((0..64).all(|pair| gemma.rate(pair) == Rope::new(512, 1e6).rate(pair)));
    assert!((64..256).all(|pair| gemma.rate(pair) == 0 && gemma.compat_frequency(pair) == 0.0));
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn parameters_outside_the_law_are_refused() {
    let yarn = Yarn::new(4.0, 4096.0);
    let longrope = |short: usize, long: usize, length| Scaling::LongRope {
        short: vec![1.0; short],
        long: vec![1.0; long],
        original_context: 4096.0,
        length,
    };
    let mut holed = vec![1.0; 32];
    holed[7] = 0.0;
    for (scaling, message) in [
        (Scaling::Linear { factor: 0.5 }, "the linear scaling's factor is 0.5, it must be finite and at least 1"),
        (Scaling::Linear { factor: f64::NAN }, "the linear scaling's factor is NaN, it must be finite and at least 1"),
        (Scaling::NtkStatic { alpha: 0.0 }, "the NTK scaling's alpha is 0, it must be finite and at least 1"),
        (
            Scaling::NtkMixed { factor: 0.9, exponent: 1.0 },
            "the mixed NTK scaling's factor is 0.9, it must be finite and at least 1",
        ),
        (
            Scaling::NtkMixed { factor: 2.0, exponent: 0.0 },
            "the mixed NTK scaling's exponent is 0, it must be finite and above 0",
        ),
        (
            Scaling::DynamicNtk { factor: 0.5, context: 4096.0, length: Some(1) },
            "the dynamic NTK scaling's factor is 0.5, it must be finite and at least 1",
        ),
        (
            Scaling::DynamicNtk { factor: 2.0, context: 0.0, length: Some(1) },
            "the dynamic NTK scaling's context is 0, it must be finite and above 0",
        ),
        (
            Scaling::DynamicNtk { factor: 2.0, context: 4096.0, length: None },
            "the dynamic NTK scaling depends on the length of the sequence, which at_length must set first",
        ),
        (
            Scaling::SteppedNtk { context: 4096.0, length: None },
            "the stepped NTK scaling depends on the length of the sequence, which at_length must set first",
        ),
        (
            Scaling::SteppedNtk { context: f64::NAN, length: Some(1) },
            "the stepped NTK scaling's context is NaN, it must be finite and above 0",
        ),
        (
            longrope(32, 32, None),
            "the LongRoPE scaling depends on the length of the sequence, which at_length must set first",
        ),
        (
            longrope(31, 32, Some(1)),
            "the LongRoPE scaling's short list holds 31 divisors, the rotary part has 32 pairs",
        ),
        (longrope(32, 48, Some(1)), "the LongRoPE scaling's long list holds 48 divisors, the rotary part has 32 pairs"),
        (Scaling::Divisors(vec![]), "the list of divisors holds 0 divisors, the rotary part has 32 pairs"),
        (Scaling::Divisors(holed), "the list of divisors holds 0 at 7, a divisor must be a number other than 0"),
        (
            Scaling::Yarn(Yarn { factor: 0.25, ..yarn }),
            "the YaRN scaling's factor is 0.25, it must be finite and at least 1",
        ),
        (
            Scaling::Yarn(Yarn { beta_fast: 1.0, beta_slow: 32.0, ..yarn }),
            "the YaRN scaling's beta_fast is 1 and its beta_slow is 32, beta_fast must not be the smaller",
        ),
        (
            Scaling::Yarn(Yarn { original_context: 6.0, ..yarn }),
            "the YaRN scaling's original_context is 6, it must exceed 2 pi * beta_slow = 6.28",
        ),
        (
            Scaling::Yarn(Yarn { extrapolation: 1.5, ..yarn }),
            "the YaRN scaling's extrapolation is 1.5, it must be between 0 and 1",
        ),
        (
            Scaling::Proportional { rotated: 33, factor: 1.0 },
            "the proportional scaling turns 33 pairs, the rotary part has 32",
        ),
        (llama3(0.5, 4.0), "the Llama-3 scaling's factor is 0.5, it must be finite and at least 1"),
        (
            Scaling::Llama3 { factor: 8.0, low: 4.0, high: 1.0, original_context: 8192.0 },
            "the Llama-3 scaling's low is 4 and its high is 1, low must not exceed high",
        ),
    ] {
        assert_eq!(rope(64, 1e4, scaling).check().unwrap_err().to_string(), message);
    }
    assert_eq!(
        rope(2, 1e4, Scaling::NtkStatic { alpha: 2.0 }).check().unwrap_err().to_string(),
        "the NTK scaling needs more than 2 rotated channels, there are 2"
    );
    assert_eq!(
        rope(64, 1.0, Scaling::Yarn(yarn)).check().unwrap_err().to_string(),
        "base is 1, the YaRN scaling needs one above 1"
    );
    for (scale, message) in [
        (
            QueryScale::Llama4 { scale: 0.1, floor: 0.0 },
            "the Llama-4 query scale's floor is 0, it must be finite and above 0",
        ),
        (
            QueryScale::Mistral { beta: f64::INFINITY, original_context: 1.0 },
            "the Mistral query scale's beta is inf, it must be finite and above 0",
        ),
        (
            QueryScale::LogN { train_length: 1.0 },
            "the log-n query scale's train_length is 1, it must be finite and above 1",
        ),
    ] {
        assert_eq!(scale.check().unwrap_err().to_string(), message);
    }
}

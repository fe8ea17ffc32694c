//! GGUF metadata and files.

use std::io::Cursor;

use posenc::rotate::{Axes, Gguf, GgufValue, QueryScale, Yarn};
use posenc::{ModelRope, Pairing, Rope, Scaling};

use Pairing::{Half, Interleaved};

use super::{half, llama3, near, spec};

fn gguf(architecture: &str, keys: &[(&str, GgufValue)]) -> Gguf {
    let mut gguf = Gguf::default();
    gguf.keys.insert("general.architecture".into(), GgufValue::Text(architecture.into()));
    for (key, value) in keys {
        gguf.keys.insert(format!("{architecture}.{key}"), value.clone());
    }
    gguf
}

fn int(value: i128) -> GgufValue {
    GgufValue::Integer(value)
}

fn float(value: f64) -> GgufValue {
    GgufValue::Float(value)
}

fn text(value: &str) -> GgufValue {
    GgufValue::Text(value.into())
}

#[test]
fn gguf_models_have_llama_cpps_pairs_and_factors() {
    // Llama 3.1: divisors in a tensor, interleaved there
    let mut llama = gguf(
        "llama",
        &[
            ("block_count", int(32)),
            ("embedding_length", int(4096)),
            ("attention.head_count", int(32)),
            ("rope.dimension_count", int(128)),
            ("rope.freq_base", float(5e5)),
        ],
    );
    let law = spec(128, 0, Half, 5e5, llama3(8.0, 4.0));
    let divisors: Vec<f64> = (0..64).map(|pair| half(128, 5e5).frequency(pair) / law.frequency(pair)).collect();
    llama.divisors.insert("rope_freqs.weight".into(), divisors.clone());
    let model = ModelRope::from_gguf(&llama).unwrap();
    let rope = model.rope().unwrap();
    assert_eq!((rope.pairing, &rope.scaling), (Interleaved, &Scaling::Divisors(divisors)));
    (0..64).for_each(|pair| near(rope.frequency(pair), law.frequency(pair)));
    // GPT-OSS: llama.cpp rounds the ramp's ends.
    let oss = gguf(
        "gpt-oss",
        &[
            ("attention.key_length", int(64)),
            ("rope.freq_base", float(150000.0)),
            ("rope.scaling.type", text("yarn")),
            ("rope.scaling.factor", float(32.0)),
            ("rope.scaling.original_context_length", int(4096)),
        ],
    );
    let model = ModelRope::from_gguf(&oss).unwrap();
    assert_eq!(model.rope().unwrap().scaling, Scaling::Yarn(Yarn::new(32.0, 4096.0)));
    near(model.rope().unwrap().attention_factor, 1.346573590);
    // DeepSeek-V3 and V2: a tenth of mscale_all_dim
    for (log_mul, logit) in [(0.1, 1.873854), (0.0707, 1.589626)] {
        let deepseek = gguf(
            "deepseek2",
            &[
                ("attention.key_length", int(576)),
                ("attention.key_length_mla", int(192)),
                ("rope.dimension_count", int(64)),
                ("rope.freq_base", float(1e4)),
                ("rope.scaling.type", text("yarn")),
                ("rope.scaling.factor", float(40.0)),
                ("rope.scaling.original_context_length", int(4096)),
                ("rope.scaling.yarn_log_multiplier", float(log_mul)),
            ],
        );
        let layer = ModelRope::from_gguf(&deepseek).unwrap().kinds()[0].clone();
        assert_eq!(layer.rope, Some(spec(64, 128, Interleaved, 1e4, Scaling::Yarn(Yarn::new(40.0, 4096.0)))));
        near(layer.logit_scale, logit);
    }
    // Gemma 3: windows with a base of their own and no scaling
    let gemma = gguf(
        "gemma3",
        &[
            ("block_count", int(34)),
            ("attention.sliding_window", int(1024)),
            ("attention.key_length", int(256)),
            ("rope.freq_base", float(1e6)),
            ("rope.scaling.type", text("linear")),
            ("rope.scaling.factor", float(8.0)),
        ],
    );
    let model = ModelRope::from_gguf(&gemma).unwrap();
    assert_eq!(model.layer(0).unwrap().rope, Some(half(256, 1e4)));
    assert_eq!(model.layer(5).unwrap().rope, Some(spec(256, 0, Half, 1e6, Scaling::Linear { factor: 8.0 })));
    // Qwen3-VL: four sections, the last empty
    let qwen = gguf(
        "qwen3vl",
        &[
            ("attention.key_length", int(128)),
            ("rope.freq_base", float(5e6)),
            ("rope.dimension_sections", GgufValue::List(vec![int(24), int(20), int(20), int(0)])),
        ],
    );
    assert_eq!(ModelRope::from_gguf(&qwen).unwrap().rope().unwrap().axes, Axes::Interleaved(vec![24, 20, 20]));
    // Phi-3 long: two lists and a factor
    let mut phi = gguf(
        "phi3",
        &[
            ("embedding_length", int(3072)),
            ("attention.head_count", int(32)),
            ("rope.dimension_count", int(96)),
            ("rope.scaling.attn_factor", float(1.19023807)),
            ("rope.scaling.original_context_length", int(4096)),
            ("context_length", int(131072)),
        ],
    );
    phi.divisors.insert("rope_factors_long.weight".into(), vec![2.0; 48]);
    phi.divisors.insert("rope_factors_short.weight".into(), vec![1.5; 48]);
    let model = ModelRope::from_gguf(&phi).unwrap().at_length(4097);
    near(model.rope().unwrap().frequency(0), 0.5);
    assert_eq!(model.rope().unwrap().attention_factor, 1.19023807);
    // Of a scaling by 2 as well, llama.cpp divides by both (get_rope_factors, rope_freq_scale).
    phi.keys.insert("phi3.rope.scaling.type".into(), text("longrope"));
    phi.keys.insert("phi3.rope.scaling.factor".into(), float(2.0));
    let model = ModelRope::from_gguf(&phi).unwrap().at_length(4096);
    near(model.rope().unwrap().frequency(0), 1.0 / 3.0);
    // Llama 4 and a model with ALiBi
    let llama4 = gguf("llama4", &[("block_count", int(8)), ("attention.key_length", int(128))]);
    let model = ModelRope::from_gguf(&llama4).unwrap();
    assert_eq!(model.layer(3).unwrap().query_scale, QueryScale::Llama4 { scale: 0.1, floor: 8192.0 });
    assert_eq!(model.layer(3).unwrap().rope, None);
    let mpt = gguf("mpt", &[("attention.max_alibi_bias", float(8.0))]);
    assert!(ModelRope::from_gguf(&mpt).unwrap().describe().contains("ALiBi"));
}

/// What llama.cpp makes of a scaling, in f64 from its own lines: `rope_yarn`, `rope_yarn_ramp` and `ggml_rope_yarn_corr_dims`
/// (ggml/src/ggml-cpu/ops.cpp, ggml/src/ggml.c), the constructor of `llama_context` (src/llama-context.cpp), `kq_scale`
/// (src/models/deepseek2.cpp). Frequencies by pair, the factor on cos and sin, the factor on logits.
struct LlamaCpp {
    deepseek2: bool,
    yarn: bool,
    factor: f64,
    attn_factor: f64,
    log_mul: f64,
    ext_factor: Option<f64>,
    betas: (f64, f64),
    base: f64,
    dims: usize,
    original: f64,
}

impl LlamaCpp {
    fn run(&self) -> (Vec<f64>, f64, f64) {
        let freq_scale = if self.factor == 0.0 { 1.0 } else { 1.0 / self.factor };
        let log_mul = if self.deepseek2 { self.log_mul / 0.1 } else { self.log_mul };
        let ext_factor = self.ext_factor.unwrap_or(f64::from(u8::from(self.yarn)));
        let mut attn_factor = 1.0;
        if ext_factor != 0.0 {
            let get_mscale = |scale: f64, mscale: f64| if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 };
            let factor = 1.0 / freq_scale;
            attn_factor = if log_mul != 0.0 {
                let mscale = if self.deepseek2 && log_mul != 1.0 { log_mul } else { 1.0 };
                get_mscale(factor, mscale) / get_mscale(factor, log_mul)
            } else {
                get_mscale(factor, 1.0)
            };
            attn_factor *= 1.0 / (1.0 + 0.1 * factor.ln());
        }
        attn_factor *= self.attn_factor;

        let corr_dim = |rotations: f64| {
            self.dims as f64 * (self.original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.base.ln())
        };
        let low = corr_dim(self.betas.0).floor().max(0.0);
        let high = corr_dim(self.betas.1).ceil().min(self.dims as f64 - 1.0);
        let mut mscale = attn_factor;
        if ext_factor != 0.0 {
            mscale *= 1.0 + 0.1 * (1.0 / freq_scale).ln();
        }
        let frequencies = (0..self.dims / 2).map(|pair| {
            let extrap = self.base.powf(-2.0 * pair as f64 / self.dims as f64);
            let interp = freq_scale * extrap;
            let ramp = 1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let mix = ramp * ext_factor;
            interp * (1.0 - mix) + extrap * mix
        });
        let attn_factor_org = attn_factor * (1.0 + 0.1 * (1.0 / freq_scale).ln());
        let kq = attn_factor_org * (1.0 + 0.1 * log_mul * (1.0 / freq_scale).ln());
        (frequencies.collect(), mscale, if self.deepseek2 { kq * kq } else { 1.0 })
    }
}

#[test]
fn gguf_scalings_are_what_llama_cpp_computes() {
    let mut checked = 0;
    for deepseek2 in [false, true] {
        for yarn in [false, true] {
            for factor in [0.0, 1.0, 4.0, 40.0] {
                for (attn_factor, log_mul) in [(1.0, 0.0), (1.19, 0.0), (1.0, 0.1), (1.0, 0.0707), (0.9, 1.0)] {
                    for (ext_factor, betas) in [(None, (32.0, 1.0)), (Some(0.0), (32.0, 1.0)), (Some(0.75), (8.0, 2.0))]
                    {
                        let law = LlamaCpp {
                            deepseek2,
                            yarn,
                            factor,
                            attn_factor,
                            log_mul,
                            ext_factor,
                            betas,
                            base: 10000.0,
                            dims: 64,
                            original: 4096.0,
                        };
                        // The others do not read the multiplier.
                        let architecture = if deepseek2 { "deepseek2" } else { "mistral3" };
                        let mut keys = vec![
                            ("attention.key_length", int(if deepseek2 { 192 } else { 64 })),
                            ("rope.dimension_count", int(64)),
                            ("rope.freq_base", float(10000.0)),
                            ("rope.scaling.type", text(if yarn { "yarn" } else { "linear" })),
                            ("rope.scaling.factor", float(factor)),
                            ("rope.scaling.attn_factor", float(attn_factor)),
                            ("rope.scaling.original_context_length", int(4096)),
                            ("rope.scaling.yarn_beta_fast", float(betas.0)),
                            ("rope.scaling.yarn_beta_slow", float(betas.1)),
                            ("rope.scaling.yarn_log_multiplier", float(log_mul)),
                        ];
                        keys.extend(ext_factor.map(|ext| ("rope.scaling.yarn_ext_factor", float(ext))));
                        let layer = ModelRope::from_gguf(&gguf(architecture, &keys)).unwrap().kinds()[0].clone();
                        let (frequencies, cos_sin, logits) = law.run();
                        let rope = layer.rope.unwrap();
                        for (pair, want) in frequencies.into_iter().enumerate() {
                            let got = rope.frequency(pair);
                            assert!((got / want - 1.0).abs() < 1e-12, "{keys:?}, pair {pair}: {got:e}, {want:e}");
                        }
                        assert!((rope.attention_factor / cos_sin - 1.0).abs() < 1e-12, "{keys:?}: {cos_sin}");
                        assert!((layer.logit_scale / logits - 1.0).abs() < 1e-12, "{keys:?}: {logits}");
                        checked += 1;
                    }
                }
            }
        }
    }
    assert_eq!(checked, 240);
}

/// Which layers rotate how, and which pairs: `load_arch_hparams` in llama.cpp's src/models, `llama_model_rope_type`.
#[test]
fn gguf_layers_are_llama_cpps() {
    let spec_of = |architecture: &str, keys: &[(&str, GgufValue)]| {
        let mut all = vec![("attention.key_length", int(128)), ("rope.freq_base", float(5e5))];
        all.extend(keys.iter().cloned());
        ModelRope::from_gguf(&gguf(architecture, &all)).unwrap()
    };
    let yarn = [
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", float(8.0)),
        ("rope.scaling.original_context_length", int(8192)),
    ];
    let with = |keys: &[(&'static str, GgufValue)]| [&yarn[..], keys].concat();
    let scaled = |rope: Rope| Rope {
        scaling: Scaling::Yarn(Yarn::new(8.0, 8192.0)),
        attention_factor: Yarn::new(8.0, 8192.0).attention_factor(),
        ..rope
    };
    let windows = |model: &ModelRope, window: Rope, full: Rope, which: &[bool]| {
        for (index, &is_window) in which.iter().enumerate() {
            let want = if is_window { &window } else { &full };
            assert_eq!(model.layer(index).unwrap().rope.as_ref(), Some(want), "layer {index} of {}", model.name());
        }
    };
    // OLMo 3 (olmo2.cpp): windows are not scaled and keep the base.
    let keys = with(&[("block_count", int(5)), ("attention.sliding_window", int(4096))]);
    windows(&spec_of("olmo2", &keys), half(128, 5e5), scaled(half(128, 5e5)), &[true, true, true, false, true]);
    // OLMo 2 has none, and Gemma 3 has none without a window (gemma3.cpp).
    assert_eq!(spec_of("olmo2", &with(&[("block_count", int(5))])).rope().unwrap(), &scaled(half(128, 5e5)));
    assert_eq!(spec_of("gemma3", &[("block_count", int(12))]).rope().unwrap(), &half(128, 5e5));
    // Mellum (mellum.cpp): not scaled, with the base of the full layers; Laguna (laguna.cpp): not scaled, layer 0 full.
    let keys = with(&[("block_count", int(4)), ("attention.sliding_window", int(1024))]);
    windows(&spec_of("mellum", &keys), half(128, 5e5), scaled(half(128, 5e5)), &[true, true, true, false]);
    let keys = with(&[
        ("block_count", int(4)),
        ("attention.sliding_window", int(512)),
        ("attention.sliding_window_pattern", int(3)),
    ]);
    windows(&spec_of("laguna", &keys), half(128, 5e5), scaled(half(128, 5e5)), &[false, true, true, false]);
    // ModernBERT (modern-bert.cpp): each third layer from the first; MiMo-V2 (mimo2.cpp): a list.
    let keys = [("block_count", int(4)), ("attention.sliding_window", int(128)), ("rope.freq_base_swa", float(2e4))];
    windows(&spec_of("modern-bert", &keys), half(128, 2e4), half(128, 5e5), &[false, true, true, false]);
    let list = GgufValue::List([0, 1, 1].map(int).to_vec());
    let keys = [("block_count", int(3)), ("attention.sliding_window_pattern", list)];
    windows(&spec_of("mimo2", &keys), half(128, 1e4), half(128, 5e5), &[false, true, true]);
    // GPT-OSS (openai-moe.cpp): windows are scaled too, so that all layers are one kind.
    let keys = with(&[("block_count", int(4)), ("attention.sliding_window", int(128))]);
    assert_eq!(spec_of("gpt-oss", &keys).rope().unwrap(), &scaled(half(128, 5e5)));

    // Layers without RoPE: Llama 4 (llama4.cpp; a window of 0 means none), EXAONE 4.0 32B alone (exaone4.cpp), Cohere 2.
    let without = |architecture: &str, keys: &[(&str, GgufValue)]| {
        let model = spec_of(architecture, keys);
        (0..model.layers().unwrap()).filter(|&layer| model.layer(layer).unwrap().rope.is_none()).collect::<Vec<_>>()
    };
    assert_eq!(without("llama4", &[("block_count", int(8))]), [3, 7]);
    assert!(without("llama4", &[("block_count", int(8)), ("attention.sliding_window", int(0))]).is_empty());
    assert_eq!(without("smollm3", &[("block_count", int(8))]), [3, 7]);
    assert_eq!(without("exaone4", &[("block_count", int(64))]).len(), 16);
    assert!(without("exaone4", &[("block_count", int(30)), ("attention.sliding_window", int(4096))]).is_empty());
    assert_eq!(
        without("cohere2", &[("block_count", int(8)), ("attention.sliding_window_pattern", int(2))]),
        [1, 3, 5, 7]
    );

    // Pairs: Orion in halves; GLM-4 interleaved, GLM-4V's text in halves by sections.
    assert_eq!(spec_of("orion", &[]).rope().unwrap().pairing, Half);
    assert_eq!(spec_of("glm4", &[("rope.dimension_count", int(64))]).rope().unwrap().pairing, Interleaved);
    let sections = GgufValue::List([8, 12, 12, 0].map(int).to_vec());
    let keys = [("rope.dimension_count", int(64)), ("rope.dimension_sections", sections)];
    let glm4v = Rope { axes: Axes::Sections(vec![8, 12, 12]), ..half(64, 5e5) };
    assert_eq!(spec_of("glm4", &keys).rope().unwrap(), &glm4v);
    assert_eq!(spec_of("glm4moe", &keys).rope().unwrap(), &glm4v);
    // MiniCPM3 (minicpm3.cpp): the last 32 of 96 channels, logits as they are
    let model = spec_of("minicpm3", &[("attention.key_length", int(96)), ("rope.dimension_count", int(32))]);
    assert_eq!((model.rope().unwrap(), model.kinds()[0].logit_scale), (&spec(32, 64, Half, 5e5, Scaling::None), 1.0));
    // Hunyuan (hunyuan-vl.cpp) rescales its base when it loads; four axes of its vision model
    let sections = GgufValue::List([16; 4].map(int).to_vec());
    let keys = [("rope.scaling.alpha", float(1000.0)), ("rope.dimension_sections", sections)];
    let ntk = spec(128, 0, Half, 5e5, Scaling::NtkStatic { alpha: 1000.0 });
    assert_eq!(spec_of("hunyuan-dense", &keys[..1]).rope().unwrap(), &ntk);
    assert_eq!(spec_of("hunyuan_vl", &keys).rope().unwrap(), &Rope { axes: Axes::Sections(vec![16; 4]), ..ntk });
    assert_eq!(spec_of("hunyuan-moe", &keys[..1]).rope().unwrap(), &half(128, 5e5));
}

/// A file as llama.cpp writes it, version 3: keys, a vocabulary to pass over, one tensor to read and one not to.
pub fn file() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(6u64.to_le_bytes());
    let string = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    string(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    string(&mut bytes, "llama");
    for (key, value) in [("llama.attention.key_length", 8u32), ("llama.block_count", 2)] {
        string(&mut bytes, key);
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    string(&mut bytes, "llama.rope.freq_base");
    bytes.extend(6u32.to_le_bytes());
    bytes.extend(500000f32.to_le_bytes());
    string(&mut bytes, "tokenizer.ggml.tokens");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    string(&mut bytes, "<s>");
    string(&mut bytes, "rope");
    string(&mut bytes, "tokenizer.ggml.scores");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(6u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(0.5f32.to_le_bytes());
    for (name, kind, offset) in [("token_embd.weight", 8u32, 0u64), ("rope_freqs.weight", 0, 32)] {
        string(&mut bytes, name);
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(4u64.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 32, 0xff);
    for divisor in [1.0f32, 1.0, 2.5, 8.0] {
        bytes.extend(divisor.to_le_bytes());
    }
    bytes
}

#[test]
fn a_gguf_file_is_read() {
    let gguf = Gguf::read(Cursor::new(file())).unwrap();
    assert_eq!(gguf.divisors["rope_freqs.weight"], [1.0, 1.0, 2.5, 8.0]);
    for passed_over in ["tokenizer.ggml.scores", "tokenizer.ggml.tokens"] {
        assert!(!gguf.keys.contains_key(passed_over), "{passed_over}");
    }
    let model = ModelRope::from_gguf(&gguf).unwrap();
    assert_eq!(model.rope().unwrap(), &spec(8, 0, Interleaved, 5e5, Scaling::Divisors(vec![1.0, 1.0, 2.5, 8.0])));
}

/// Every file that is cut short, and many with one byte changed: an error or a result, no panic and no great allocation.
#[test]
fn damaged_gguf_files_are_refused() {
    let whole = file();
    for length in 0..whole.len() - 32 {
        assert!(Gguf::read(Cursor::new(&whole[..length])).is_err(), "{length} bytes");
    }
    for at in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            if let Ok(gguf) = Gguf::read(Cursor::new(damaged)) {
                let _ = ModelRope::from_gguf(&gguf);
            }
        }
    }
    let message = |bytes: &[u8]| Gguf::read(Cursor::new(bytes.to_vec())).unwrap_err().to_string();
    assert_eq!(message(b"GGML...."), "the file starts with [71, 71, 77, 76], a GGUF file starts with \"GGUF\"");
    assert_eq!(
        message(b"GGUF\x01\0\0\0"),
        "the GGUF file has version 1, this crate reads little-endian versions 2 and 3"
    );
}

/// A file of keys (their type and bytes) and tensors (their elements), the data of all of them at one place.
fn file_of(keys: &[(&str, u32, Vec<u8>)], tensors: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    let name = |name: &str| [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    for (key, kind, value) in keys {
        bytes.extend([&name(key)[..], &kind.to_le_bytes(), value].concat());
    }
    for (tensor, elements) in tensors {
        bytes.extend([&name(tensor)[..], &1u32.to_le_bytes(), &elements.to_le_bytes(), &[0; 12]].concat());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let elements = tensors.iter().map(|&(_, elements)| elements).max().unwrap_or(0);
    bytes.extend(1f32.to_le_bytes().repeat(usize::try_from(elements).unwrap().min(1 << 20)));
    bytes
}

/// A list: the type of its values, how many it says it has, their bytes.
fn list(kind: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

fn llama_of(head: u32) -> [(&'static str, u32, Vec<u8>); 2] {
    let llama = [&5u64.to_le_bytes()[..], b"llama"].concat();
    [("general.architecture", 8, llama), ("llama.attention.key_length", 4, head.to_le_bytes().to_vec())]
}

fn refusal(bytes: Vec<u8>) -> String {
    Gguf::read(Cursor::new(bytes)).unwrap_err().to_string()
}

#[test]
fn what_a_gguf_file_names_twice_is_refused() {
    let scores = list(6, 1, &[0; 4]);
    for (name, kind, value) in [("llama.block_count", 4, vec![2, 0, 0, 0]), ("tokenizer.ggml.scores", 9, scores)] {
        let twice = [(name, kind, value.clone()), ("general.alignment", 4, vec![32, 0, 0, 0]), (name, kind, value)];
        assert_eq!(
            refusal(file_of(&twice, &[])),
            format!("the GGUF file holds the key {name} twice, each must be there once")
        );
    }
    for name in ["rope_freqs.weight", "token_embd.weight"] {
        assert_eq!(
            refusal(file_of(&llama_of(8), &[(name, 4), ("output.weight", 4), (name, 4)])),
            format!("the GGUF file holds the tensor {name} twice, each must be there once")
        );
    }
    // Each name used to read 4 MB once more.
    let file = file_of(&[], &[("rope_freqs.weight", 1 << 15); 1000]);
    assert_eq!(refusal(file), "the GGUF file holds the tensor rope_freqs.weight twice, each must be there once");
}

#[test]
fn divisors_longer_than_half_a_head_are_refused_before_they_are_read() {
    let whole = file_of(&llama_of(8), &[("rope_freqs.weight", 4)]);
    assert_eq!(Gguf::read(Cursor::new(whole)).unwrap().divisors["rope_freqs.weight"], [1.0; 4]);
    let (size, heads) = (512u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec());
    let [llama, _] = llama_of(0);
    let shared = [llama, ("llama.embedding_length", 4, size), ("llama.attention.head_count", 4, heads)];
    let longest = u32::MAX;
    for (keys, half) in [(&llama_of(8)[..], 4u64), (&shared[..], 32), (&llama_of(longest)[..], 1 << 15), (&[], 1 << 15)]
    {
        for elements in [half + 1, 1 << 20, 1 << 60] {
            let file = file_of(keys, &[("rope_freqs.weight", elements)]);
            assert_eq!(refusal(file), format!("rope_freqs.weight holds {elements} divisors, half a head has {half}"));
        }
    }
}

#[test]
fn lists_that_no_key_asks_for_are_passed_over() {
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    for (kind, size) in (0u32..).zip(sizes).filter(|&(_, size)| size > 0) {
        let count = 1u64 << 19;
        let values = list(kind, count, &vec![0; size << 19]);
        let after = ("llama.block_count", 4, vec![2, 0, 0, 0]);
        let gguf = file_of(&[("tokenizer.ggml.scores", 9, values.clone()), after], &[]);
        let gguf = Gguf::read(Cursor::new(gguf)).unwrap();
        assert_eq!(gguf.keys.into_iter().collect::<Vec<_>>(), [("llama.block_count".into(), int(2))], "type {kind}");
        // A list that is asked for is no shorter in the file: it is kept up to a length that no model has.
        assert_eq!(
            refusal(file_of(&[("llama.attention.head_count", 9, values)], &[])),
            "llama.attention.head_count holds a list of 524288 values after 0 in lists before it, they must be at most \
             262144 together"
        );
    }
    // Several lists, and lists in a list, count together.
    let short = list(0, 1 << 17, &[0; 1 << 17]);
    let nested = list(9, 2, &[&short[..], &short].concat());
    let keys = ["a.rope.x", "a.rope.y", "a.rope.z"].map(|key| (key, 9, short.clone()));
    let too_many = |key: &str, before: u64| {
        format!(
            "{key} holds a list of 131072 values after {before} in lists before it, they must be at most 262144 together"
        )
    };
    assert_eq!(refusal(file_of(&keys, &[])), too_many("a.rope.z", 1 << 18));
    assert_eq!(refusal(file_of(&[("a.rope.x", 9, nested)], &[])), too_many("a.rope.x", (1 << 17) + 2));
    for kind in [0, 12] {
        let endless = list(kind, 1 << 60, &[0; 8]);
        assert_eq!(
            refusal(file_of(&[("tokenizer.x", 9, endless)], &[])),
            format!(
                "the GGUF file ends or fails in a list of {} bytes at byte 59",
                if kind == 0 { 1u64 << 60 } else { 1 << 63 }
            )
        );
    }
}

#[test]
fn gguf_metadata_that_is_not_understood_is_refused() {
    let refused = |gguf: &Gguf| ModelRope::from_gguf(gguf).unwrap_err().to_string();
    assert_eq!(refused(&Gguf::default()), "general.architecture is missing");
    assert_eq!(refused(&gguf("newarch", &[])), "general.architecture is \"newarch\", which this crate does not know");
    let with = |keys: &[(&str, GgufValue)]| {
        let mut all = vec![("attention.key_length", int(128))];
        all.extend(keys.iter().cloned());
        refused(&gguf("llama", &all))
    };
    assert_eq!(
        with(&[("rope.fancy", float(1.0))]),
        "the metadata holds llama.rope.fancy, which this crate does not know"
    );
    assert_eq!(
        with(&[("rope.scaling.type", text("cubic"))]),
        "llama.rope.scaling.type is \"cubic\", this crate knows none, linear, yarn and longrope"
    );
    assert_eq!(
        with(&[("rope.dimension_count", int(129))]),
        "llama.rope.dimension_count is 129, it must be even and at most the head's 128"
    );
    assert_eq!(with(&[("rope.freq_base", text("big"))]), "llama.rope.freq_base is \"big\", it must be a number");
    assert_eq!(
        with(&[("rope.scaling.type", text("yarn")), ("rope.scaling.factor", float(4.0))]),
        "llama.rope.scaling.original_context_length is missing, the scaling yarn needs it"
    );
    assert_eq!(
        with(&[("rope.scaling.factor", float(0.5))]),
        "the linear scaling's factor is 0.5, it must be finite and at least 1"
    );
    assert_eq!(
        refused(&gguf(
            "hunyuan-dense",
            &[
                ("attention.key_length", int(128)),
                ("rope.scaling.alpha", float(1000.0)),
                ("rope.scaling.factor", float(2.0))
            ]
        )),
        "hunyuan-dense.rope.scaling.alpha stands beside the scaling \"linear\", one of them must be alone"
    );
    let mut both = gguf(
        "llama",
        &[
            ("attention.key_length", int(128)),
            ("rope.scaling.type", text("yarn")),
            ("rope.scaling.factor", float(4.0)),
            ("context_length", int(8192)),
        ],
    );
    both.divisors.insert("rope_freqs.weight".into(), vec![1.0; 64]);
    assert_eq!(refused(&both), "rope_freqs.weight stands beside YaRN's ramp, one of them must be alone");
    assert_eq!(
        refused(&gguf(
            "cohere2",
            &[
                ("attention.key_length", int(128)),
                ("block_count", int(2)),
                ("attention.sliding_window_pattern", int(0))
            ]
        )),
        "cohere2.attention.sliding_window_pattern is 0, it must be a list, or a whole number from 1 to 65535"
    );
    let mut short = gguf("llama", &[("attention.key_length", int(128))]);
    short.divisors.insert("rope_freqs.weight".into(), vec![1.0; 63]);
    assert_eq!(refused(&short), "rope_freqs.weight holds 63 divisors, the rotary part has 64 pairs");
    assert_eq!(
        refused(&gguf("gemma4", &[("attention.key_length", int(128)), ("block_count", int(2))])),
        "gemma4.attention.sliding_window_pattern is missing, the architecture \"gemma4\" needs it"
    );
    assert_eq!(
        refused(&gguf("llama", &[("embedding_length", int(100)), ("attention.head_count", int(3))])),
        "llama.embedding_length 100 does not divide into 3 heads"
    );
}

/// Every key about position with a value that is not one, for architectures of every kind: an error of one sentence or a spec
/// inside its law, never a panic.
#[test]
fn no_value_of_a_key_panics() {
    let odd = [
        int(0),
        int(-1),
        int(3),
        int(1 << 40),
        float(0.0),
        float(-2.5),
        float(f64::NAN),
        float(1e300),
        float(1e-300),
        text("x"),
        GgufValue::Bool(true),
        GgufValue::List(vec![]),
        GgufValue::List(vec![int(1), text("x")]),
        GgufValue::List(vec![int(8); 4]),
    ];
    let keys = [
        ("block_count", int(4)),
        ("context_length", int(8192)),
        ("embedding_length", int(512)),
        ("attention.head_count", int(4)),
        ("attention.head_count_kv", int(4)),
        ("attention.key_length", int(128)),
        ("attention.key_length_swa", int(64)),
        ("attention.sliding_window", int(1024)),
        ("attention.sliding_window_pattern", int(2)),
        ("attention.temperature_length", int(8192)),
        ("attention.temperature_scale", float(0.1)),
        ("full_attention_interval", int(4)),
        ("rope.dimension_count", int(64)),
        ("rope.dimension_sections", GgufValue::List(vec![int(16), int(8), int(8), int(0)])),
        ("rope.freq_base", float(1e6)),
        ("rope.freq_base_swa", float(1e4)),
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", float(4.0)),
        ("rope.scaling.alpha", float(0.0)),
        ("rope.scaling.attn_factor", float(1.0)),
        ("rope.scaling.original_context_length", int(4096)),
        ("rope.scaling.yarn_log_multiplier", float(0.1)),
        ("rope.scaling.yarn_ext_factor", float(1.0)),
        ("rope.scaling.yarn_beta_fast", float(32.0)),
        ("rope.scaling.yarn_beta_slow", float(1.0)),
    ];
    let (mut understood, mut refused) = (0, 0);
    for architecture in [
        "llama",
        "llama4",
        "deepseek2",
        "minicpm3",
        "gemma3",
        "gemma4",
        "olmo2",
        "modern-bert",
        "gpt-oss",
        "cohere2",
        "exaone4",
        "qwen2vl",
        "qwen35",
        "glm4",
        "hunyuan_vl",
        "lfm2",
        "mpt",
    ] {
        for index in 0..keys.len() {
            for value in &odd {
                let mut changed = keys.to_vec();
                changed[index].1 = value.clone();
                match ModelRope::from_gguf(&gguf(architecture, &changed)) {
                    Err(error) => {
                        let text = error.to_string();
                        assert!(!text.contains('\n') && text.len() < 600, "{text}");
                        refused += 1;
                    }
                    Ok(model) => {
                        assert!(!model.describe().is_empty());
                        model.layer(0).unwrap();
                        for kind in model.at_length(1 << 40).kinds() {
                            if let Some(rope) = &kind.rope {
                                rope.check().unwrap();
                                let _ = (rope.rate(rope.pairs() - 1), rope.angle(-5, 0));
                            }
                        }
                        understood += 1;
                    }
                }
            }
        }
    }
    println!("{understood} understood, {refused} refused");
    assert!(understood > 1000 && refused > 2000, "{understood} understood, {refused} refused");
}

//! `posenc plan`: the steps from a model's encoding to another one.

use std::f64::consts::{LN_2, TAU};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use posenc::model::LogitBias;
use posenc::rotate::{Layer, Yarn, longrope_attention_factor};
use posenc::{Alibi, ModelPositions, ModelRope, Rope, Scaling, T5Bias};
use serde_json::{Value, json};

use crate::Outcome;
use crate::inspect::{Sizes, first_negative, original_context};

/// Steps from a model's encoding to another one
///
/// What to replace in the config, the numbers of this model, what continued training and which temperature the literature used, what
/// breaks, and commands that check it. A scaling of RoPE is proposed as the lines of a config.json, which the crate reads back.
///
/// Examples:
///   posenc plan Llama-2-7b/ --to yarn --seq-len 16384
///   posenc plan config.json --to llama3 --seq-len 131072 --config new/config.json
///   posenc plan gpt2/ --to alibi
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// a model's config.json, params.json, GGUF file, or folder
    model: PathBuf,
    /// the encoding to go to
    #[arg(long)]
    to: To,
    /// tokens that the model shall read; default: four times its context
    #[arg(long, value_name = "TOKENS")]
    seq_len: Option<u64>,
    /// writes the new config here, where the model's is a config.json
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    /// position interpolation
    Linear,
    /// a larger base: NTK-aware
    Ntk,
    Yarn,
    /// Llama 3.1's scaling
    Llama3,
    /// lists of divisors, one for each pair; YaRN's as the search's start
    Longrope,
    /// RoPE in place of another encoding
    Rope,
    /// ALiBi in place of another encoding
    Alibi,
    /// T5's buckets in place of another encoding
    T5,
    /// no encoding at all: RoPE dropped after training
    Nope,
}

/// A plan, as it is printed.
struct Plan {
    headline: String,
    steps: Vec<(&'static str, Vec<String>)>,
}

impl Plan {
    fn step(&mut self, title: &'static str, lines: impl IntoIterator<Item = String>) {
        self.steps.push((title, lines.into_iter().collect()));
    }
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let of = || options.model.display().to_string();
    let model = ModelPositions::open(&options.model).with_context(of)?;
    let sizes = Sizes::open(&options.model).with_context(of)?;
    let context = model.rope().context();
    let length = match (options.seq_len, context) {
        (Some(length), _) => length,
        (None, Some(context)) => {
            context.checked_mul(4).with_context(|| format!("{}: its context is {context}", of()))?
        }
        (None, None) => bail!("{} states no context: say --seq-len", of()),
    };
    ensure!((2..=1 << 31).contains(&length), "{length} tokens, it must be between 2 and 2^31");
    let (plan, changed) = match options.to {
        To::Linear | To::Ntk | To::Yarn | To::Llama3 | To::Longrope => {
            let from = Turning::of(&model).with_context(of)?;
            let scaled = scaled(options.to, &from, length).with_context(of)?;
            let changed = changed_config(&options, &scaled, length)?;
            (scaling_plan(&options, &from, &scaled, length, changed.as_ref()), changed)
        }
        To::Rope => (rope_plan(&model, &sizes, &options, length).with_context(of)?, None),
        To::Alibi => (alibi_plan(&model, &sizes, length).with_context(of)?, None),
        To::T5 => (t5_plan(&model, &sizes, length).with_context(of)?, None),
        To::Nope => (nope_plan(&Turning::of(&model).with_context(of)?, length), None),
    };
    if let Some(path) = &options.config {
        let Some(changed) = &changed else {
            bail!("--config writes a scaling into a config.json, {} to {:?} has none", of(), options.to);
        };
        let same = path.canonicalize().ok().is_some_and(|path| options.model.canonicalize().is_ok_and(|it| it == path));
        ensure!(!same, "{} is the input: write to another file", path.display());
        crate::tensors::replace(path, |file| Ok(serde_json::to_writer_pretty(file, changed)?))?;
    }
    writeln!(out, "{}", plan.headline)?;
    for (index, (title, lines)) in plan.steps.iter().enumerate() {
        for (line, text) in lines.iter().enumerate() {
            let head = if line == 0 { format!("{}. {title}", index + 1) } else { String::new() };
            writeln!(out, "{head:15} {text}")?;
        }
    }
    Ok(Outcome::Same)
}

/// The rotation that a scaling changes, and the positions that it was trained on.
struct Turning {
    name: String,
    label: String,
    rope: Rope,
    trained: u64,
    /// layers of other kinds
    others: Vec<String>,
}

impl Turning {
    fn of(model: &ModelPositions) -> Result<Self> {
        let rope = model.rope();
        let kinds = rope.kinds();
        let turns: Vec<&Layer> = kinds.iter().filter(|kind| kind.rope.is_some()).collect();
        ensure!(
            !turns.is_empty(),
            "{} has no RoPE that could be scaled, position comes from {}",
            rope.name(),
            carriers(model)
        );
        // Of layers that differ, those that see the whole context: the largest base.
        let base = |layer: &Layer| layer.rope.as_ref().map_or(0.0, |rope| rope.base);
        let chosen = turns.iter().copied().max_by(|a, b| base(a).total_cmp(&base(b))).expect("one turns");
        let spec = chosen.rope.clone().expect("it turns");
        let trained = original_context(&spec.scaling).map(|it| it as u64).or(rope.context());
        let trained = trained
            .with_context(|| format!("{} states no context: nothing says what it was trained on", rope.name()))?;
        let others = kinds.iter().filter(|kind| !std::ptr::eq(*kind, chosen)).map(|kind| kind.label.clone()).collect();
        Ok(Self { name: rope.name().into(), label: chosen.label.clone(), rope: spec, trained, others })
    }

    fn plain(&self) -> Rope {
        Rope { scaling: Scaling::None, attention_factor: 1.0, ..self.rope.clone() }
    }
}

/// What takes position in, in a few words.
fn carriers(model: &ModelPositions) -> String {
    let mut parts = Vec::new();
    if model.rope().kinds().iter().any(|kind| kind.rope.is_some()) {
        parts.push("RoPE".to_string());
    }
    if model.embedding().is_some() {
        parts.push("a vector added to the token".into());
    }
    match model.layer(0).ok().and_then(|layer| layer.bias) {
        Some(LogitBias::Alibi(_)) => parts.push("ALiBi".into()),
        Some(LogitBias::T5 { .. }) => parts.push("T5's buckets".into()),
        Some(_) => parts.push("products with a table of relative positions".into()),
        None => {}
    }
    parts.extend(model.without().map(str::to_string));
    if parts.is_empty() { "nothing".into() } else { parts.join(" and ") }
}

/// The rotation with a scaling to this length, and the entries of a config.json that state it.
struct Scaled {
    rope: Rope,
    factor: f64,
    /// `rope_scaling`, or none: a base alone
    scaling: Option<Value>,
}

fn scaled(to: To, from: &Turning, length: u64) -> Result<Scaled> {
    let trained = from.trained;
    ensure!(
        length > trained,
        "{length} tokens are within the {trained} that {} was trained on: nothing is to be scaled",
        from.name
    );
    let factor = length as f64 / trained as f64;
    let rotary = from.rope.rotary as f64;
    let plain = from.plain();
    let (rope, scaling) = match to {
        To::Linear => (
            Rope { scaling: Scaling::Linear { factor }, ..plain },
            Some(json!({"rope_type": "linear", "factor": factor})),
        ),
        To::Ntk => {
            ensure!(rotary > 2.0, "a base alone does not stretch one pair");
            (Rope { base: plain.base * factor.powf(rotary / (rotary - 2.0)), ..plain }, None)
        }
        To::Yarn => {
            let yarn = Yarn::new(factor, trained as f64);
            let rope = Rope { scaling: Scaling::Yarn(yarn), attention_factor: yarn.attention_factor(), ..plain };
            let json = json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained});
            (rope, Some(json))
        }
        To::Llama3 => {
            let scaling = Scaling::Llama3 { factor, low: 1.0, high: 4.0, original_context: trained as f64 };
            let json = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": trained});
            (Rope { scaling, ..plain }, Some(json))
        }
        To::Longrope => {
            // Five digits, as the lists of published models have fewer still.
            let yarn = Rope { scaling: Scaling::Yarn(Yarn::new(factor, trained as f64)), ..plain.clone() };
            let divisor = |pair: usize| (plain.frequency(pair) / yarn.frequency(pair) * 1e5).round() / 1e5;
            let (short, long) = (vec![1.0; plain.pairs()], (0..plain.pairs()).map(divisor).collect::<Vec<f64>>());
            let attention_factor = longrope_attention_factor(factor, trained as f64);
            let json = json!({"rope_type": "longrope", "factor": factor, "short_factor": short, "long_factor": long,
                "original_max_position_embeddings": trained});
            let scaling = Scaling::LongRope { short, long, original_context: trained as f64, length: Some(length) };
            (Rope { scaling, attention_factor, ..plain }, Some(json))
        }
        To::Rope | To::Alibi | To::T5 | To::Nope => unreachable!("no scaling"),
    };
    rope.check()?;
    Ok(Scaled { rope, factor, scaling })
}

/// The model's config.json with the scaling, which the crate reads as the same rotation; none of another format.
fn changed_config(options: &Options, scaled: &Scaled, length: u64) -> Result<Option<Value>> {
    let path = if options.model.is_dir() { options.model.join("config.json") } else { options.model.clone() };
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    if !is_json || path.file_name().is_some_and(|name| name == "params.json") || !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // Python's NaN and Infinity are no JSON; such a config is read, and changed by hand.
    let Ok(mut whole) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
    let config = if whole.get("text_config").is_some() { &mut whole["text_config"] } else { &mut whole };
    let Some(config) = config.as_object_mut() else { return Ok(None) };
    config.insert("max_position_embeddings".into(), json!(length));
    let nested =
        config.get("rope_parameters").and_then(Value::as_object).is_some_and(|it| it.values().any(Value::is_object));
    if nested {
        return Ok(None);
    }
    let base = json!(scaled.rope.base);
    if config.contains_key("rope_parameters") {
        let mut parameters = scaled.scaling.clone().unwrap_or_else(|| json!({"rope_type": "default"}));
        parameters["rope_theta"] = base;
        if let Some(share) = config["rope_parameters"].get("partial_rotary_factor") {
            parameters["partial_rotary_factor"] = share.clone();
        }
        config.insert("rope_parameters".into(), parameters);
        config.remove("rope_scaling");
    } else {
        config.insert("rope_theta".into(), base);
        config.insert("rope_scaling".into(), scaled.scaling.clone().unwrap_or(Value::Null));
    }
    let read = ModelRope::from_hf(&whole.to_string()).context("the new config is not read")?.at_length(length);
    // Where another key decides, the plan is not made into a config that says something else.
    let same = |rope: &Rope| {
        rope.pairs() == scaled.rope.pairs()
            && rope.attention_factor == scaled.rope.attention_factor
            && (0..rope.pairs()).all(|pair| rope.frequency(pair) == scaled.rope.frequency(pair))
    };
    Ok(read.kinds().iter().filter_map(|kind| kind.rope.as_ref()).any(same).then_some(whole))
}

fn scaling_plan(options: &Options, from: &Turning, scaled: &Scaled, length: u64, changed: Option<&Value>) -> Plan {
    let Scaled { rope, factor, scaling } = scaled;
    let (trained, plain) = (from.trained, from.plain());
    let mut plan = Plan {
        headline: format!(
            "{}: from RoPE with base {} trained on {trained} positions to {} for {length}, {factor} times as many",
            from.name,
            plain.base,
            name(options.to)
        ),
        steps: Vec::new(),
    };
    let mut replace = vec![match scaling {
        Some(_) if options.to == To::Longrope => format!(
            "\"rope_scaling\": {{\"rope_type\": \"longrope\", \"factor\": {factor}, \"short_factor\": {0} ones, \"long_factor\": {0} of YaRN's \
             divisors}}, \"original_max_position_embeddings\": {trained}, \"max_position_embeddings\": {length}; --config FILE \
             writes the lists",
            plain.pairs()
        ),
        Some(scaling) => format!("\"rope_scaling\": {scaling}, \"max_position_embeddings\": {length}"),
        None => format!("\"rope_theta\": {}, \"max_position_embeddings\": {length}", rope.base),
    }];
    if from.rope.scaling != Scaling::None {
        replace.push("in place of the scaling that the config has: the factor counts from the first training".into());
    }
    if !from.others.is_empty() {
        replace.push(format!("in the layers {}; {} keep theirs", from.label, from.others.join(", ")));
    }
    replace.push(match changed {
        Some(_) => "checked: the crate reads the changed config.json as this rotation".into(),
        None => "not checked: the model's config is not a config.json whose one rotation this changes".to_string(),
    });
    plan.step("replace", replace);

    let ratio = |pair: usize| plain.frequency(pair) / rope.frequency(pair);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
    let kept = (0..rope.pairs()).filter(|&pair| near(ratio(pair), 1.0)).count();
    let divided = (0..rope.pairs()).filter(|&pair| near(ratio(pair), *factor)).count();
    let mut numbers = vec![format!(
        "of {} pairs {kept} keep their frequency, {} are divided by less, {divided} are divided by {factor}",
        rope.pairs(),
        rope.pairs() - kept - divided
    )];
    let unseen = |rope: &Rope| {
        let turns = |rope: &Rope, length: u64, pair: usize| rope.frequency(pair).abs() * length as f64 / TAU;
        let is_unseen = |&pair: &usize| {
            let before = turns(&plain, trained, pair);
            before < 1.0 && turns(rope, length, pair) > before * (1.0 + 1e-9)
        };
        (0..rope.pairs()).filter(is_unseen).count()
    };
    numbers.push(format!(
        "pairs in angles that training did not have, at {length}: {} before, {} then",
        unseen(&plain),
        unseen(rope)
    ));
    let first = |rope: &Rope| {
        let rates: Vec<f64> = (0..rope.pairs()).map(|pair| rope.frequency(pair)).collect();
        first_negative(&rates, length.min(1 << 22)).map_or("none".to_string(), |distance| distance.to_string())
    };
    numbers.push(format!("first distance with a negative mean cosine: {} before, {} then", first(&plain), first(rope)));
    plan.step("numbers", numbers);
    plan.step("train", training(options.to).iter().map(|line| line.to_string()));
    let temperature = match options.to {
        To::Yarn => format!(
            "cos and sin times {:.6} = 0.1 ln {factor} + 1, so rotated scores times {:.6} (arXiv 2309.00071, eq. 22)",
            rope.attention_factor,
            rope.attention_factor.powi(2)
        ),
        To::Longrope => format!(
            "cos and sin times {:.6} = sqrt(1 + ln {factor} / ln {trained}), as the published models of the method have it (Phi-3)",
            rope.attention_factor
        ),
        _ => "none".into(),
    };
    plan.step("temperature", [temperature]);
    plan.step("breaks", breaks(options.to).iter().map(|line| line.to_string()));
    plan.step("check", checks(options, length));
    plan
}

const fn name(to: To) -> &'static str {
    match to {
        To::Linear => "linear interpolation",
        To::Ntk => "a larger base (NTK-aware)",
        To::Yarn => "YaRN",
        To::Llama3 => "Llama 3's scaling",
        To::Longrope => "LongRoPE",
        To::Rope => "RoPE",
        To::Alibi => "ALiBi",
        To::T5 => "T5's buckets",
        To::Nope => "no encoding",
    }
}

/// What continued training the literature used.
const fn training(to: To) -> &'static [&'static str] {
    match to {
        To::Linear => &[
            "LLaMA 7B from 2048 to 8192: perplexity on PG19 16.10 without training, 6.95 after it (arXiv 2306.15595)",
            "LLaMA 7B to 65B up to 32768: within 1000 steps (abstract there)",
        ],
        To::Ntk => &[
            "none is needed for a little: at 2 times Llama 2 7B has 3.50 on Proof-pile with the dynamic form, at 4 times 3.87 (arXiv \
             2402.13753, table 1)",
            "Code Llama, from Llama 2 by a larger base: trained on sequences of 16k tokens, better on inputs of up to 100k (arXiv \
             2308.12950, abstract)",
        ],
        To::Yarn => &[
            "Llama 2 by 16: 400 steps of 64 sequences of 65536 tokens of PG19; by 32: 200 more steps from there (arXiv 2309.00071)",
            "without training Llama 2 7B has 3.49 on Proof-pile at 2 times, 3.25 at 4 times (arXiv 2402.13753, table 1)",
        ],
        To::Llama3 => &[
            "Llama 3 from 8192 to 131072: LongRoPE2 reaches that length with 10 billion tokens and calls it 80 times fewer than Meta's \
             (arXiv 2502.20082, abstract)",
        ],
        To::Longrope => &[
            "the lists are searched for this model and length; linear, NTK and YaRN divisors are the search's first candidates (arXiv \
             2402.13753)",
            "Llama 2 and Mistral to 2048k: up to 1000 steps at lengths within 256k (arXiv 2402.13753, abstract)",
            "Llama 3 8B to 128k: 10 billion tokens, with 98.5 % of its quality on short ones kept (LongRoPE2, arXiv 2502.20082, abstract)",
        ],
        To::Rope | To::Alibi | To::T5 => {
            &["no published recipe turns a trained model; the papers train from the start"]
        }
        To::Nope => &["a short recalibration at the trained length (arXiv 2512.12167)"],
    }
}

/// What no longer works as before.
const fn breaks(to: To) -> &'static [&'static str] {
    match to {
        To::Linear => &[
            "neighbouring tokens differ less in every pair, at every length: short prompts get worse",
            "keys that are cached or stored are rotated otherwise: drop them",
        ],
        To::Ntk => &[
            "pairs between the first and the last are divided by less than the factor and leave the angles of training before the end",
            "keys that are cached or stored are rotated otherwise: drop them",
        ],
        To::Yarn => &[
            "short prompts change as well: the factor on cos and sin acts at every length",
            "engines that drop the factor, or round the ramp's ends otherwise, compute another model: compare with posenc diff",
            "keys that are cached or stored are rotated otherwise: drop them",
        ],
        To::Llama3 => &[
            "pairs of less than one turn in training are divided at every length, short prompts included",
            "keys that are cached or stored are rotated otherwise: drop them",
        ],
        To::Longrope => &[
            "a sequence that grows past the first training's length changes lists: keys cached before were rotated by the other one",
            "a config without its lists, or an engine that reads the short list alone, computes another model: compare with posenc explain",
        ],
        To::T5 => &[
            "queries and keys are not rotated any more, which every layer has learned to expect",
            "distances beyond the last bucket share one number: nothing far is told from anything farther",
            "T5 has no 1 / sqrt(head) on its logits: a bias learned for one scale is another for the other",
        ],
        To::Rope => &[
            "learned tables and biases of the old encoding have no use; every layer's queries and keys must be trained anew",
        ],
        To::Alibi => &[
            "queries and keys are not rotated any more, which every layer has learned to expect",
            "far keys lose their weight by construction: recall over the whole context is not to be had",
            "attention kernels must take a bias; log-sum-exps of the forms `slope * key` and `slope * distance` differ",
        ],
        To::Nope => &["order is left to the causal mask and to what the layers infer: encoders lose it altogether"],
    }
}

fn checks(options: &Options, length: u64) -> Vec<String> {
    let model = options.model.display();
    let shown = options.config.as_ref().map_or_else(|| "NEW.json".to_string(), |path| path.display().to_string());
    vec![
        format!("posenc inspect {model} {shown}"),
        format!("posenc plot coverage {shown} --seq-len {length} -o coverage.svg"),
        "posenc plot loss loss.npy -o loss.svg, before and after (docs/diagnosing.md)".into(),
    ]
}

fn rope_plan(model: &ModelPositions, sizes: &Sizes, options: &Options, length: u64) -> Result<Plan> {
    let rope = model.rope();
    ensure!(
        rope.kinds().iter().any(|kind| kind.rope.is_none()),
        "every layer of {} has RoPE: go to linear, ntk, yarn, llama3 or longrope for another length",
        rope.name()
    );
    // Where nothing rotates, nothing has said how wide a head is.
    let head = match (sizes.head, sizes.hidden, sizes.query_heads) {
        (Some(head), ..) => usize::try_from(head)?,
        (None, Some(hidden), Some(heads)) if heads > 0 => usize::try_from(hidden / heads)?,
        _ => bail!("{} does not state its channels and heads, RoPE needs the channels of a head", rope.name()),
    };
    ensure!(head >= 2 && head.is_multiple_of(2), "a head has {head} channels, RoPE needs an even number");
    let base = BASES.into_iter().find(|&base| {
        let spec = Rope::new(head, base);
        let rates: Vec<f64> = (0..spec.pairs()).map(|pair| spec.frequency(pair)).collect();
        first_negative(&rates, length.min(1 << 22)).is_none()
    });
    let base = base.with_context(|| {
        format!("no base up to {} keeps the mean cosine above 0 for {length} tokens", BASES[BASES.len() - 1])
    })?;
    let mut plan = Plan {
        headline: format!("{}: from {} to RoPE for {length} tokens", rope.name(), carriers(model)),
        steps: Vec::new(),
    };
    let mut replace = vec![format!("rotate queries and keys in every layer: Rope::new({head}, {base:?})")];
    if model.embedding().is_some() {
        replace.push("add no vector of positions to the token any more".into());
    }
    if model.layer(0)?.bias.is_some() {
        replace.push("add no bias to the logit any more".into());
    }
    plan.step("replace", replace);
    plan.step(
        "numbers",
        [format!(
            "base {base}: the least of {BASES:?} whose mean cosine over {} pairs stays above 0 up to {length} (arXiv 2405.14591)",
            head / 2
        )],
    );
    plan.step("train", training(To::Rope).iter().map(|line| line.to_string()));
    plan.step("temperature", ["none".to_string()]);
    plan.step("breaks", breaks(To::Rope).iter().map(|line| line.to_string()));
    plan.step(
        "check",
        [
            format!("posenc plot decay {head},{base} --seq-len {length} -o decay.svg"),
            format!("posenc inspect {}", options.model.display()),
        ],
    );
    Ok(plan)
}

/// Bases of published models.
const BASES: [f64; 8] = [1e4, 5e4, 1e5, 5e5, 1e6, 5e6, 1e7, 5e7];

fn alibi_plan(model: &ModelPositions, sizes: &Sizes, length: u64) -> Result<Plan> {
    let rope = model.rope();
    let is_alibi = matches!(model.layer(0)?.bias, Some(LogitBias::Alibi(_)));
    ensure!(!is_alibi, "{} has ALiBi already", rope.name());
    let heads = sizes
        .query_heads
        .with_context(|| format!("{} does not state its heads, ALiBi's slopes need their number", rope.name()))?;
    let alibi = Alibi::new(usize::try_from(heads)?);
    alibi.check()?;
    let mut plan = Plan { headline: format!("{}: from {} to ALiBi", rope.name(), carriers(model)), steps: Vec::new() };
    let mut replace = vec![format!(
        "add -slope * distance to every logit, behind the scale: Alibi::new({heads}) with Softmax::causal"
    )];
    if rope.kinds().iter().any(|kind| kind.rope.is_some()) {
        replace.push("rotate no queries and keys any more".into());
    }
    if model.embedding().is_some() {
        replace.push("add no vector of positions to the token any more".into());
    }
    if model.layer(0)?.bias.is_some() {
        replace.push("add no other bias to the logit any more".into());
    }
    plan.step("replace", replace);
    let slopes: Vec<f64> = (0..alibi.heads).map(|head| alibi.slope(head)).collect();
    let (steepest, flattest) =
        (slopes.iter().copied().fold(0.0, f64::max), slopes.iter().copied().fold(f64::INFINITY, f64::min));
    plan.step(
        "numbers",
        [
            format!("slopes from {steepest} to {flattest:.6}, in f32: f16 and bf16 do not tell far distances apart"),
            format!(
                "a key's weight halves every {:.1} tokens in the steepest head, every {:.0} in the flattest",
                LN_2 / steepest,
                LN_2 / flattest
            ),
            format!("at {length} tokens the flattest head adds {:.1} to the logit", -flattest * length as f64),
        ],
    );
    let mut train: Vec<String> = training(To::Alibi).iter().map(|line| line.to_string()).collect();
    train.push("trained on 512 tokens, perplexity on WikiText-103 is 19.73 at 512 and 18.31 at 15512 (arXiv 2108.12409, table 2)".into());
    plan.step("train", train);
    plan.step("temperature", ["none".to_string()]);
    plan.step("breaks", breaks(To::Alibi).iter().map(|line| line.to_string()));
    plan.step(
        "check",
        [
            format!("posenc plot bias alibi={heads} -o bias.svg"),
            "posenc plot attention FILE -o attention.svg (docs/diagnosing.md)".into(),
        ],
    );
    Ok(plan)
}

fn t5_plan(model: &ModelPositions, sizes: &Sizes, length: u64) -> Result<Plan> {
    let rope = model.rope();
    let has = |index: usize| model.layer(index).is_ok_and(|layer| matches!(layer.bias, Some(LogitBias::T5 { .. })));
    ensure!(!has(0), "{} has T5's buckets already", rope.name());
    let heads = sizes
        .query_heads
        .with_context(|| format!("{} does not state its heads, a table of T5 has a column for each", rope.name()))?;
    let mut plan =
        Plan { headline: format!("{}: from {} to T5's buckets", rope.name(), carriers(model)), steps: Vec::new() };
    let mut replace = vec![
        "add table[bucket(distance)] to every logit: T5Bias::new(32, 128, false) in a decoder, true in an encoder; one table for all layers"
            .to_string(),
    ];
    if rope.kinds().iter().any(|kind| kind.rope.is_some()) {
        replace.push("rotate no queries and keys any more".into());
    }
    if model.embedding().is_some() {
        replace.push("add no vector of positions to the token any more".into());
    }
    if model.layer(0)?.bias.is_some() {
        replace.push("add no other bias to the logit any more".into());
    }
    plan.step("replace", replace);
    let last =
        |both: bool| -> Result<usize> { Ok(T5Bias::new(32, 128, both).thresholds()?.last().copied().unwrap_or(0)) };
    let (decoder, encoder) = (last(false)?, last(true)?);
    let share = 100.0 * (1.0 - decoder as f64 / length as f64).max(0.0);
    plan.step(
        "numbers",
        [
            format!("a table of 32 buckets and {heads} heads: {} numbers", 32 * heads),
            format!("distances from {decoder} on share one number in a decoder, from {encoder} on in an encoder"),
            format!("of the distances at {length} tokens that is {share:.1} %: give more buckets and a larger distance, in the training"),
        ],
    );
    let mut train: Vec<String> = training(To::T5).iter().map(|line| line.to_string()).collect();
    train.push("trained on 512 tokens, perplexity on WikiText-103 is 19.65 at 512 and 22.91 at 3512 (arXiv 2108.12409, table 2)".into());
    plan.step("train", train);
    plan.step("temperature", ["none".to_string()]);
    plan.step("breaks", breaks(To::T5).iter().map(|line| line.to_string()));
    plan.step(
        "check",
        [
            "posenc plot bias t5-causal=32,128 -o bias.svg".to_string(),
            "posenc plot attention FILE -o attention.svg (docs/diagnosing.md)".into(),
        ],
    );
    Ok(plan)
}

fn nope_plan(from: &Turning, length: u64) -> Plan {
    let factor = length as f64 / from.trained as f64;
    let mut plan = Plan {
        headline: format!(
            "{}: from RoPE trained on {} positions to no encoding, for {length}",
            from.name, from.trained
        ),
        steps: Vec::new(),
    };
    plan.step("replace", ["rotate no queries and keys any more, in no layer".to_string()]);
    plan.step("numbers", [format!("{factor} times the trained length")]);
    plan.step("train", training(To::Nope).iter().map(|line| line.to_string()));
    let (small, large) = (1.0 + 0.412 * factor.max(1.0).ln(), 1.0 + 0.103 * factor.max(1.0).ln());
    plan.step(
        "temperature",
        [format!("logits times {small:.4} = 1 + 0.412 ln {factor} (models of the paper), {large:.4} = 1 + 0.103 ln {factor} (SmolLM); arXiv 2512.12167")],
    );
    plan.step("breaks", breaks(To::Nope).iter().map(|line| line.to_string()));
    plan.step("check", ["posenc plot loss loss.npy -o loss.svg, before and after (docs/diagnosing.md)".to_string()]);
    plan
}

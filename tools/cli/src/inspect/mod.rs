//! `posenc inspect`: what every layer of a model does with positions, and what follows for a context.

mod cost;
mod differences;
mod sizes;
mod verdicts;

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use posenc::model::{LogitBias, PositionEmbedding};
use posenc::rotate::Layer;
use posenc::{ModelPositions, ModelRope, Rope, Scaling};
use serde::Serialize;

use crate::Outcome;
use cost::Cost;
pub use sizes::Sizes;
use verdicts::Verdict;
pub use verdicts::first_negative;

/// What every layer of a model does with positions, with a verdict on each number
///
/// CONFIG is a config.json of Hugging Face, a params.json of Mistral, a .gguf file, or a folder that holds one. For each kind of
/// layer: the rotation or bias in words, frequencies and wavelengths, then verdicts, each with its number, rule and source; at the
/// end what each way to take position in costs. A line begins with `ok`, `note` or `WARN`. Of two configs, every layer's
/// differences are printed line by line, and the exit status is 1 if there are any.
///
/// Examples:
///   posenc inspect Llama-3.1-8B/config.json
///   posenc inspect model.gguf --seq-len 131072 --layer 5
///   posenc inspect Qwen3-8B/ --pairs --json
///   posenc inspect ours/config.json theirs/config.json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// a model's file or folder
    config: PathBuf,
    /// another one, to compare with
    other: Option<PathBuf>,
    /// this layer alone, counted from 0
    #[arg(long)]
    layer: Option<usize>,
    /// tokens of a sequence; the config's context if not given
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u64).range(1..=1 << 31))]
    seq_len: Option<u64>,
    /// print every pair, not a selection
    #[arg(long)]
    pairs: bool,
    /// print JSON, every pair in it
    #[arg(long)]
    json: bool,
}

/// Everything that is said of a model.
#[derive(Serialize)]
struct Report {
    file: String,
    model: String,
    layers: Option<usize>,
    context: Option<u64>,
    /// tokens of a sequence that the numbers are for
    length: u64,
    /// what is added to the token
    embedding: Option<String>,
    embedding_verdicts: Vec<Verdict>,
    kinds: Vec<Kind>,
    notes: Vec<String>,
    cost: Vec<Cost>,
}

/// Layers that are alike.
#[derive(Serialize)]
struct Kind {
    label: String,
    /// their indices; empty where the config does not count layers
    layers: Vec<usize>,
    /// in words
    says: String,
    /// keys that a query sees, where they are fewer than the sequence has
    window: Option<u64>,
    bias: Option<String>,
    rope: Option<Rope>,
    /// positions of the training that the frequencies come from
    trained: Option<f64>,
    pairs: Vec<Pair>,
    verdicts: Vec<Verdict>,
}

/// One pair of channels.
#[derive(Clone, Serialize)]
struct Pair {
    pair: usize,
    /// radians per position
    frequency: f64,
    /// positions of one turn; none if it stands still
    wavelength: Option<f64>,
    /// over the trained positions
    turns_trained: Option<f64>,
    /// over the length asked for
    turns: f64,
    /// the frequency without scaling over this one
    divided_by: Option<f64>,
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let report = Report::new(&options.config, &options)?;
    if let Some(other) = &options.other {
        let other = Report::new(other, &options)?;
        return differences::print(&report, &other, options.json, out);
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, options.pairs, out)?;
    }
    Ok(Outcome::Same)
}

impl Report {
    fn new(path: &PathBuf, options: &Options) -> Result<Self> {
        let of = || path.display().to_string();
        let model = ModelPositions::open(path).with_context(of)?;
        let sizes = Sizes::open(path).with_context(of)?;
        let rope = model.rope();
        let length = options.seq_len.or(rope.context());
        let length = length.with_context(|| format!("{} states no context: give --seq-len", of()))?;
        ensure!((1..=1 << 31).contains(&length), "{}: {length} tokens, it must be between 1 and 2^31", of());
        let at_length = rope.at_length(length);
        // One line of the summary for each kind, behind the model's own.
        let summary = at_length.describe();
        let lines: Vec<_> = summary.lines().skip(1).collect();
        let chosen = match options.layer {
            Some(index) => Some(rope.layer(index).with_context(of)?),
            None => None,
        };
        let mut kinds = Vec::new();
        for (index, (layer, original)) in at_length.kinds().iter().zip(rope.kinds()).enumerate() {
            if chosen.is_some_and(|it| !std::ptr::eq(it, original)) {
                continue;
            }
            let says = lines.get(index).copied().unwrap_or_default();
            for (window, layers) in by_window(layers_of(rope, original), layer, &sizes) {
                if options.layer.is_some_and(|index| !layers.is_empty() && !layers.contains(&index)) {
                    continue;
                }
                let bias = model.layer(layers.first().copied().unwrap_or(0))?.bias;
                kinds.push(Kind::new(layer, layers, window, says, bias, rope.context(), length)?);
            }
        }
        let mut notes: Vec<_> =
            lines.iter().filter_map(|line| line.strip_prefix("note: ")).map(str::to_owned).collect();
        notes.extend(model.without().map(|text| format!("order comes from {text}")));
        notes.extend(model.beside().map(|text| format!("beside: {text}")));
        let (embedding, embedding_verdicts) = match model.embedding() {
            None => (None, Vec::new()),
            Some(embedding) => (Some(words_of(embedding)), verdicts::of_embedding(embedding, length)),
        };
        let cost = cost::table(&model, &at_length, &sizes, length);
        Ok(Self {
            file: of(),
            model: rope.name().into(),
            layers: rope.layers(),
            context: rope.context(),
            length,
            embedding,
            embedding_verdicts,
            kinds,
            notes,
            cost,
        })
    }
}

impl Kind {
    fn new(
        layer: &Layer,
        layers: Vec<usize>,
        window: Option<u64>,
        says: &str,
        bias: Option<&LogitBias>,
        context: Option<u64>,
        length: u64,
    ) -> Result<Self> {
        // Scores depend on distances, which end with the window.
        let window = window.filter(|&window| window < length);
        let reach = window.unwrap_or(length);
        let trained = layer.rope.as_ref().and_then(|rope| trained(rope, context));
        let trained = trained.map(|trained| window.map_or(trained, |window| trained.min(window as f64)));
        let pairs = layer.rope.as_ref().map_or_else(Vec::new, |rope| pairs(rope, trained, reach));
        let mut verdicts = match &layer.rope {
            Some(rope) => verdicts::of_rope(rope, &pairs, trained, [reach, length]),
            None => Vec::new(),
        };
        verdicts.extend(verdicts::of_layer(layer, length));
        if let Some(bias) = bias {
            verdicts.extend(verdicts::of_bias(bias, reach)?);
        }
        Ok(Self {
            label: layer.label.clone(),
            layers,
            says: says.into(),
            window,
            bias: bias.map(bias_in_words),
            rope: layer.rope.clone(),
            trained,
            pairs,
            verdicts,
        })
    }
}

/// Indices of the layers that are this kind.
fn layers_of(rope: &ModelRope, kind: &Layer) -> Vec<usize> {
    let count = rope.layers().unwrap_or(0);
    (0..count).filter(|&index| rope.layer(index).is_ok_and(|layer| std::ptr::eq(layer, kind))).collect()
}

/// Layers that are alike, apart by their windows; one without layers where the config does not count them.
fn by_window(layers: Vec<usize>, layer: &Layer, sizes: &Sizes) -> Vec<(Option<u64>, Vec<usize>)> {
    let window = |index: usize| sizes.windows.of(index, &layer.label, layer.rope.is_some());
    let mut groups: Vec<(Option<u64>, Vec<usize>)> = Vec::new();
    for index in layers {
        match groups.iter_mut().find(|(of, _)| *of == window(index)) {
            Some((_, group)) => group.push(index),
            None => groups.push((window(index), vec![index])),
        }
    }
    if groups.is_empty() {
        groups.push((window(0), Vec::new()));
    }
    groups
}

/// Positions of the training before a scaling that knows them.
pub fn original_context(scaling: &Scaling) -> Option<f64> {
    match scaling {
        Scaling::Yarn(yarn) => Some(yarn.original_context),
        Scaling::Llama3 { original_context, .. } | Scaling::LongRope { original_context, .. } => {
            Some(*original_context)
        }
        Scaling::DynamicNtk { context, .. } | Scaling::SteppedNtk { context, .. } => Some(*context),
        _ => None,
    }
}

/// Positions of the training whose frequencies the scaling stretches; without one those of the config.
fn trained(rope: &Rope, context: Option<u64>) -> Option<f64> {
    let of_config = || match &rope.scaling {
        Scaling::Linear { factor } => context.map(|context| context as f64 / factor),
        _ => context.map(|context| context as f64),
    };
    original_context(&rope.scaling).or_else(of_config)
}

fn pairs(rope: &Rope, trained: Option<f64>, length: u64) -> Vec<Pair> {
    let plain = Rope { scaling: Scaling::None, ..rope.clone() };
    (0..rope.pairs())
        .map(|pair| {
            let frequency = rope.frequency(pair);
            let turns = |positions: f64| positions * frequency.abs() / std::f64::consts::TAU;
            Pair {
                pair,
                frequency,
                wavelength: (frequency != 0.0).then(|| std::f64::consts::TAU / frequency.abs()),
                turns_trained: trained.map(turns),
                turns: turns(length as f64),
                divided_by: (frequency != 0.0).then(|| plain.frequency(pair) / frequency),
            }
        })
        .collect()
}

fn words_of(embedding: &PositionEmbedding) -> String {
    match embedding {
        PositionEmbedding::Learned { spec, rows } => {
            let rows = rows.map_or_else(|| "a table".into(), |rows| format!("a table of {rows} rows"));
            format!("{rows} of {} learned channels is added to the token: {:?}", spec.dim, spec.rows)
        }
        PositionEmbedding::Sinusoid(spec) => format!(
            "{} channels of sinusoids are added to the token, wavelengths up to 2 pi {}, positions from {} on",
            spec.dim, spec.max_period, spec.offset
        ),
        other => format!("{other:?} is added to the token"),
    }
}

fn bias_in_words(bias: &LogitBias) -> String {
    match bias {
        LogitBias::Alibi(alibi) => {
            format!("ALiBi, {} heads, slopes down to 2^-{}", alibi.total_heads, alibi.max_bias)
        }
        LogitBias::T5 { encoder, decoder } => {
            let each = [("encoder", encoder), ("decoder", decoder)].into_iter().filter_map(|(side, spec)| {
                spec.map(|spec| format!("{side} {} buckets up to distance {}", spec.buckets, spec.max_distance))
            });
            format!("T5's buckets, {}", each.collect::<Vec<_>>().join("; "))
        }
        LogitBias::Relative { queries, keys, states } => {
            let mut text = match states {
                Some(channels) => format!("products of {channels} channels of states with a table"),
                None => "products with a table".to_string(),
            };
            for (side, distances) in [("queries", queries), ("keys", keys)] {
                if let Some(it) = distances {
                    let _ = write!(text, ", {side}: {} distances from {} on", it.count, it.first);
                }
            }
            text
        }
        other => format!("{other:?}"),
    }
}

fn print(report: &Report, every: bool, out: &mut dyn Write) -> Result<()> {
    write!(out, "{}", report.model)?;
    if let Some(layers) = report.layers {
        write!(out, ", {layers} layers")?;
    }
    if let Some(context) = report.context {
        write!(out, ", {context} positions")?;
    }
    writeln!(out, "; numbers for {} tokens", report.length)?;
    if let Some(embedding) = &report.embedding {
        writeln!(out, "\n{embedding}")?;
        print_verdicts(&report.embedding_verdicts, out)?;
    }
    for kind in &report.kinds {
        writeln!(out, "\n{}", kind.says)?;
        if let Some(window) = kind.window {
            let which = differences::ranges(&kind.layers);
            let which = if kind.layers.is_empty() { "all of them" } else { &which };
            writeln!(out, "  a window of {window} tokens in {which}: numbers are for its distances")?;
        } else if report.kinds.iter().any(|other| other.window.is_some() && other.says == kind.says) {
            writeln!(out, "  no window in {}", differences::ranges(&kind.layers))?;
        }
        if let Some(bias) = &kind.bias {
            writeln!(out, "  added to the logit: {bias}")?;
        }
        print_pairs(kind, every, out)?;
        print_verdicts(&kind.verdicts, out)?;
    }
    if !report.cost.is_empty() {
        writeln!(out, "\nwhat taking position in costs at {} tokens, elements of 2 bytes", report.length)?;
        writeln!(out, "  {:<52} {:>12} {:>26}", "", "memory", "bytes per token and layer")?;
        for cost in &report.cost {
            let mark = if cost.own { "*" } else { " " };
            let (memory, traffic) = (bytes(cost.memory), bytes(cost.per_token));
            writeln!(out, "{mark} {:<52} {memory:>12} {traffic:>26}", cost.way)?;
        }
        writeln!(out, "  * the model's own")?;
    }
    for note in &report.notes {
        writeln!(out, "\nnote  {note}")?;
    }
    Ok(())
}

/// Rows of the table in which a few pairs stand for all.
const SHOWN: usize = 9;

fn print_pairs(kind: &Kind, every: bool, out: &mut dyn Write) -> Result<()> {
    if kind.pairs.is_empty() {
        return Ok(());
    }
    let last = kind.pairs.len() - 1;
    let rows = if every { kind.pairs.len() } else { SHOWN.min(kind.pairs.len()) };
    let trained = kind.trained.map_or_else(String::new, |n| format!("turns in {n}"));
    writeln!(
        out,
        "  {:>4} {:>12} {:>12} {:>18} {:>12} {:>11}",
        "pair", "frequency", "wavelength", trained, "turns", "divided by"
    )?;
    for row in 0..rows {
        let pair = &kind.pairs[if rows > 1 { row * last / (rows - 1) } else { 0 }];
        let shown = |value: Option<f64>| value.map_or_else(String::new, short);
        writeln!(
            out,
            "  {:>4} {:>12} {:>12} {:>18} {:>12} {:>11}",
            pair.pair,
            short(pair.frequency),
            shown(pair.wavelength),
            shown(pair.turns_trained),
            short(pair.turns),
            shown(pair.divided_by)
        )?;
    }
    Ok(())
}

fn print_verdicts(verdicts: &[Verdict], out: &mut dyn Write) -> Result<()> {
    for verdict in verdicts {
        writeln!(out, "  {:<5} {} ({})", verdict.level.word(), verdict.text, verdict.source)?;
    }
    Ok(())
}

/// Five digits, as a decimal where that is short.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e7).contains(&size) {
        let digits = if size >= 1e4 {
            0
        } else if size >= 100.0 {
            1
        } else if size >= 1.0 {
            3
        } else {
            5
        };
        format!("{value:.digits$}")
    } else {
        format!("{value:.4e}")
    }
}

fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value:.1} {}", units[unit]) }
}

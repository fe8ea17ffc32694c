//! `posenc explain`: which convention made a tensor.

mod bias;
mod convention;
mod geometry;
mod heads;
mod law;
mod mixed;
#[cfg(test)]
mod mutations;
mod places;
mod rates;
mod repairs;
mod sample;
mod search;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use posenc::{Direction, ModelRope, Rope};
use serde::Serialize;

use crate::Outcome;
use crate::diff::rounded;
use crate::tensors::{Tensor, Tensors};
use convention::{Arithmetic, Convention, Residual};
use geometry::Geometry;
use law::Law;
use places::Places;
use sample::{Layout, Sample};
use search::{Fit, Found};

/// Which convention made a tensor: from queries or keys before and after another engine's rotation
///
/// BEFORE and AFTER are .safetensors or .npy; tensors of the same name are explained one by one and then compared, so that a file
/// with q and k says where they disagree. Found are pairing in and out, direction, base, rotary channels, scaling and its numbers,
/// the factor on cosine and sine, the positions that were really used, the order of heads, the axis of each pair, and how cosines and
/// sines were made. With --config every difference to the model's own config is named. With --bias the tensors are attention
/// logits without and with a bias: found are the scale, the law, slopes or buckets, sign, distance and order of scale and bias.
///
/// The exit status is 1 if nothing explains a tensor within --bound, or if what does is not what the config says.
///
/// Examples:
///   posenc explain before.safetensors after.safetensors
///   posenc explain q.npy q_rotated.npy --start 4096 --config Llama-3.1-8B/config.json
///   posenc explain x.safetensors:q y.safetensors:q --positions positions.npy --layout bhtd --json
///   posenc explain --bias logits.npy logits_with_bias.npy
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// tensors before
    before: String,
    /// tensors after
    after: String,
    /// order of dimensions; if not given, the one that explains more
    #[arg(long)]
    layout: Option<Layout>,
    /// integers, [tokens], [batch, tokens] or with an axis before: [axes, ...]
    #[arg(long, conflicts_with = "start")]
    positions: Option<String>,
    /// position of the first token of each sequence, 0 if not given; of logits that of the first query, whose last is at the last key
    /// if not given
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    start: Option<i64>,
    /// the model's config, to compare with
    #[arg(long)]
    config: Option<PathBuf>,
    /// layer of the config, counted from 0; if not given, the first that rotates
    #[arg(long, requires = "config")]
    layer: Option<usize>,
    /// how many times the rotation's own error bound a tensor may be off
    #[arg(long, default_value_t = 1.0)]
    bound: f64,
    /// the tensors are logits, [heads, queries, keys] or [batch, heads, queries, keys]
    #[arg(long, conflicts_with_all = ["layout", "positions", "config"])]
    bias: bool,
    /// print JSON
    #[arg(long)]
    json: bool,
}

/// A property of a convention: what it is, and its value in words.
type Property = (&'static str, String);

/// What was found of one tensor.
#[derive(Serialize)]
struct Explained {
    name: String,
    shape: Vec<usize>,
    layout: &'static str,
    not_finite: [usize; 2],
    /// within the bound
    explained: bool,
    /// the same as the config says; none without a config
    as_config: Option<bool>,
    /// the mistakes, in words
    says: Vec<String>,
    best: Vec<Property>,
    residual: Option<Shown>,
    second: Vec<Property>,
    second_residual: Option<Shown>,
}

/// A residual as it is printed.
#[derive(Clone, Copy, Serialize)]
struct Shown {
    rms_ulps: f64,
    worst_ulps: f64,
    share_of_bound: f64,
}

impl Shown {
    /// In words; `unit` is what differences are counted in.
    fn words(&self, unit: &str) -> String {
        format!(
            "{} {unit} at the most, {} in the mean, {} of the bound",
            rounded(self.worst_ulps),
            rounded(self.rms_ulps),
            rounded(self.share_of_bound)
        )
    }
}

/// What explains best, and by how much it is off.
fn print_best(says: &[String], best: &[Property], residual: Option<String>, out: &mut dyn Write) -> Result<()> {
    for sentence in says {
        writeln!(out, "  {sentence}")?;
    }
    for (property, value) in best {
        writeln!(out, "    {property:<22} {value}")?;
    }
    if let Some(residual) = residual {
        writeln!(out, "    {:<22} {residual}", "residual")?;
    }
    Ok(())
}

impl From<Residual> for Shown {
    fn from(it: Residual) -> Self {
        Self { rms_ulps: it.rms, worst_ulps: it.worst, share_of_bound: it.share }
    }
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let (mut before, mut after) = (Tensors::open(&options.before)?, Tensors::open(&options.after)?);
    let names = names(&before, &after, &options)?;
    if options.bias {
        let each = names.into_iter().map(|(left, right)| {
            let name = if left == right { left.clone() } else { format!("{left} and {right}") };
            Ok((name, before.read(&left)?, after.read(&right)?))
        });
        return bias::run(&each.collect::<Result<Vec<_>>>()?, options.start, options.bound, options.json, out);
    }
    let expected = expected(&options)?;
    let mut all = Vec::new();
    for (left, right) in names {
        let name = if left == right { left.clone() } else { format!("{left} and {right}") };
        let (x, y) = (before.read(&left)?, after.read(&right)?);
        all.push(explain(&name, &x, &y, expected.as_ref(), &options).with_context(|| format!("tensor {name}"))?);
    }
    let between = between(&all);
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "tensors": all, "between": between }))?;
        writeln!(out)?;
    } else {
        for it in &all {
            print(it, options.bound, out)?;
        }
        for sentence in &between {
            writeln!(out, "{sentence}")?;
        }
    }
    let is_right = all.iter().all(|it| it.explained && it.as_config.unwrap_or(true));
    Ok(if is_right { Outcome::Same } else { Outcome::Differs })
}

/// Tensors of floats that both files hold, or the only one of each.
fn names(before: &Tensors, after: &Tensors, options: &Options) -> Result<Vec<(String, String)>> {
    let (left, right) = (before.names(), after.names());
    if let ([left], [right]) = (&left[..], &right[..]) {
        return Ok(vec![((*left).into(), (*right).into())]);
    }
    let both: Vec<_> =
        left.iter().filter(|name| right.contains(name)).map(|name| (name.to_string(), name.to_string())).collect();
    ensure!(
        !both.is_empty(),
        "{} and {} have no tensor of the same name: name one of each, as in FILE.safetensors:NAME",
        options.before,
        options.after
    );
    Ok(both)
}

/// The rotation that the config states.
fn expected(options: &Options) -> Result<Option<Rope>> {
    let Some(path) = &options.config else { return Ok(None) };
    let of = || path.display().to_string();
    let model = ModelRope::open(path).with_context(of)?;
    let model = match model.context() {
        Some(context) => model.at_length(context),
        None => model,
    };
    let layer = match options.layer {
        Some(index) => Some(model.layer(index).with_context(of)?),
        None => model.kinds().iter().find(|kind| kind.rope.is_some()),
    };
    let rope = layer.and_then(|layer| layer.rope.clone());
    let rope =
        rope.with_context(|| format!("{}: this layer has no RoPE, so that the config explains nothing", of()))?;
    if !rope.axes.one_ladder() {
        bail!("{}: its axes have frequencies of their own, explain knows one ladder of frequencies", of());
    }
    Ok(Some(rope))
}

/// Positions of all tokens, a list for each axis.
fn positions(options: &Options, batch: usize, row: usize) -> Result<Vec<Vec<i64>>> {
    let Some(path) = &options.positions else {
        let one = (0..batch * row).map(|token| options.start.unwrap_or(0).saturating_add((token % row) as i64));
        return Ok(vec![one.collect()]);
    };
    let tensor = Tensors::open(path)?.only()?;
    let list =
        tensor.to_i64().with_context(|| format!("{path} holds {}, positions are i32 or i64", tensor.dtype.name()))?;
    let tokens = batch * row;
    let is_of_row = |size: usize| size > 0 && list.len() == size;
    let axes = match tensor.shape[..] {
        [n] if is_of_row(n) && (n == row || n == tokens) => 1,
        [a, n] if a == batch && n == row && batch > 1 => 1,
        [axes, n] if n == row || n == tokens => axes,
        [axes, b, n] if b == batch && n == row => axes,
        _ => bail!("{path} has the shape {:?}, the tensors have {batch} sequences of {row} tokens", tensor.shape),
    };
    ensure!((1..=8).contains(&axes), "{path} has the shape {:?}: {axes} axes, there are 1 to 8", tensor.shape);
    let each = list.len() / axes;
    let axis = |axis: usize| {
        let of_axis = &list[axis * each..(axis + 1) * each];
        // A row of positions serves every sequence.
        (0..tokens).map(|token| of_axis[token % each]).collect()
    };
    Ok((0..axes).map(axis).collect())
}

fn explain(name: &str, x: &Tensor, y: &Tensor, expected: Option<&Rope>, options: &Options) -> Result<Explained> {
    ensure!(x.shape == y.shape, "the shape before is {:?} and after {:?}", x.shape, y.shape);
    for tensor in [x, y] {
        ensure!(tensor.dtype.is_float(), "its type is {}, queries and keys are floats", tensor.dtype.name());
    }
    let layouts = match options.layout {
        Some(layout) => {
            ensure!(
                Layout::of(x.shape.len()).contains(&layout),
                "its shape is {:?}, --layout is {}",
                x.shape,
                layout.name()
            );
            vec![layout]
        }
        None => Layout::of(x.shape.len()).to_vec(),
    };
    ensure!(!layouts.is_empty(), "its shape is {:?}, queries and keys have 2 to 4 dimensions", x.shape);
    let (mut best, mut error) = (None::<Explained>, None);
    for layout in layouts {
        let [batch, row, _, _] = Sample::sizes(&x.shape, layout);
        let sample = positions(options, batch, row).and_then(|positions| Sample::new(x, y, layout, positions));
        let sample = match sample {
            Ok(sample) => sample,
            Err(other) => {
                error = error.or(Some(other));
                continue;
            }
        };
        let it = explain_sample(name, &x.shape, layout, &sample, expected, options.bound);
        // A layout that explains; of those that do not, the nearest.
        let rank = |it: &Explained| (!it.explained, it.residual.map_or(f64::INFINITY, |it| it.share_of_bound));
        if best.as_ref().is_none_or(|best| rank(&it) < rank(best)) {
            best = Some(it);
        }
        if best.as_ref().is_some_and(|best| best.explained) {
            break;
        }
    }
    match (best, error) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error),
        (None, None) => bail!("its shape is {:?}, there is nothing to look at", x.shape),
    }
}

fn explain_sample(
    name: &str,
    shape: &[usize],
    layout: Layout,
    sample: &Sample,
    expected: Option<&Rope>,
    bound: f64,
) -> Explained {
    let of = |sample: &Sample| explain_rotation(name, shape, layout, sample, expected, bound);
    // What is as it was although the rest is rotated is told apart first.
    if let Some(repaired) = repairs::left_out(sample) {
        return with_repair(of(&repaired.sample), repaired);
    }
    let it = of(sample);
    // A factor on everything is a proportional scaling with a factor as well, of interleaved pairs: the sentence with fewer parts is said.
    let is_proportional =
        it.best.iter().any(|(property, value)| *property == "scaling" && value.starts_with("proportional"));
    if it.explained && !(is_proportional && repairs::scaled(sample).is_some()) {
        return it;
    }
    for repair in [repairs::scaled, repairs::decay, repairs::overwritten] {
        let Some(repaired) = repair(sample) else { continue };
        let other = of(&repaired.sample);
        if other.explained {
            return with_repair(other, repaired);
        }
    }
    if it.explained {
        return it;
    }
    let halves = switched(name, shape, layout, sample, expected, bound);
    halves.or_else(|| by_head(sample, bound, &it)).unwrap_or(it)
}

/// An explanation of what is left behind a mistake that was undone.
fn with_repair(mut it: Explained, repaired: repairs::Repaired) -> Explained {
    it.says.retain(|says| says != "as the config says");
    it.says.insert(0, repaired.says.clone());
    it.best.push((repaired.property, repaired.says));
    it.as_config = it.as_config.map(|_| false);
    it
}

/// Two conventions, one from a token on: a scaling that changed on the way, as LongRoPE's and dynamic NTK's do.
fn switched(
    name: &str,
    shape: &[usize],
    layout: Layout,
    sample: &Sample,
    expected: Option<&Rope>,
    bound: f64,
) -> Option<Explained> {
    let count = sample.used.len();
    if sample.batch > 1 || count < 32 {
        return None;
    }
    let part = |used: &[usize]| {
        let part = sample.of_tokens(used.to_vec());
        let Found::Fits(fits) = search::search(&part, expected) else { return None };
        fits.into_iter().next().filter(|fit| fit.residual.share <= bound && fit.convention.places == Places::Same)
    };
    let (first, last) = (part(&sample.used[..count / 4])?, part(&sample.used[count - count / 4..])?);
    let holds = |fit: &Fit, token: usize| fit.convention.residual(sample, &[token]).share <= bound;
    let at = sample.used.iter().position(|&token| !holds(&first, token))?;
    if !sample.used[at..].iter().all(|&token| holds(&last, token)) {
        return None;
    }
    let position = sample.positions[0][sample.used[at]];
    let before = sample.of_tokens(sample.used[..at].to_vec());
    let mut it = explain_rotation(name, shape, layout, &before, expected, bound);
    let other = last.convention.properties(sample);
    let changed: Vec<String> = other
        .iter()
        .filter(|property| !first.convention.properties(sample).contains(property))
        .filter(|(property, _)| !matches!(*property, "angles" | "table" | "products"))
        .map(|(property, value)| format!("{property} {value}"))
        .collect();
    let says = format!("another law from position {position} on: {}", changed.join(", "));
    it.says.retain(|says| says != "as the config says");
    it.says.insert(0, says.clone());
    it.best.push(("changes", says));
    it.as_config = it.as_config.map(|_| false);
    Some(it)
}

/// Frequencies of each head's own.
fn by_head(sample: &Sample, bound: f64, nearest: &Explained) -> Option<Explained> {
    let found = mixed::mixed(sample, search::rounding(sample) + 1e-7)?;
    if found.residual.share > bound {
        return None;
    }
    let axes = sample.positions.len();
    let says = match axes {
        1 => "each head has frequencies of its own".to_string(),
        _ => format!("each head has frequencies of its own, whose turns on {axes} axes are added (RoPE-Mixed)"),
    };
    let Geometry { offset, rotary, input, .. } = found.geometry;
    let first: Vec<String> = found
        .frequencies
        .iter()
        .take(4)
        .map(|pairs| {
            let rates: Vec<_> = pairs[0].iter().map(|rate| format!("{rate:.6}")).collect();
            rates.join(" and ")
        })
        .collect();
    let best = vec![
        ("pairing", if input == posenc::Pairing::Half { "halves".into() } else { "interleaved".to_string() }),
        ("channels", format!("{offset}..{} of {}", offset + rotary, sample.dim)),
        ("frequencies", says.clone()),
        ("of pair 0", format!("{} radians per position in the heads from 0 on", first.join(", "))),
        ("factor on cos and sin", convention::number(found.factor)),
    ];
    Some(Explained {
        name: nearest.name.clone(),
        shape: nearest.shape.clone(),
        layout: nearest.layout,
        not_finite: nearest.not_finite,
        explained: true,
        as_config: nearest.as_config.map(|_| false),
        says: vec![says],
        best,
        residual: Some(found.residual.into()),
        second: Vec::new(),
        second_residual: None,
    })
}

fn explain_rotation(
    name: &str,
    shape: &[usize],
    layout: Layout,
    sample: &Sample,
    expected: Option<&Rope>,
    bound: f64,
) -> Explained {
    let mut it = Explained {
        name: name.into(),
        shape: shape.to_vec(),
        layout: layout.name(),
        not_finite: sample.not_finite,
        explained: true,
        as_config: None,
        says: Vec::new(),
        best: Vec::new(),
        residual: None,
        second: Vec::new(),
        second_residual: None,
    };
    // What the config says, first: if it fits, however cosines and sines are made, it is the answer.
    if let Some(wanted) = expected.and_then(|rope| as_expected(sample, rope)) {
        for arithmetic in Arithmetic::all(sample.dtype) {
            let convention = Convention { arithmetic, ..wanted.clone() };
            let residual = convention.residual(sample, &sample.used);
            if residual.share <= bound {
                let fit = Fit { convention, residual };
                it.as_config = Some(true);
                it.says.push("as the config says".into());
                it.says.extend(mistakes(&fit, sample));
                it.best = fit.convention.properties(sample);
                it.residual = Some(residual.into());
                return it;
            }
        }
    }
    let fits = match search::search(sample, expected) {
        Found::Unchanged(heads) => {
            it.says.push(match heads::words(&heads) {
                Some(words) => format!("not rotated at all; {words}"),
                None => "not rotated at all: the tensors are equal".into(),
            });
            it.as_config = expected.map(|_| false);
            return it;
        }
        Found::Fits(fits) => fits,
    };
    let Some(best) = fits.first() else {
        it.explained = false;
        it.as_config = expected.map(|_| false);
        it.says.push(
            "no channels form pairs whose lengths are kept: this is no rotation of pairs by a known geometry".into(),
        );
        return it;
    };
    it.explained = best.residual.share <= bound;
    it.best = best.convention.properties(sample);
    it.residual = Some(best.residual.into());
    it.says = mistakes(best, sample);
    if let Some(wanted) = expected.and_then(|rope| as_expected(sample, rope)) {
        let wanted = wanted.properties(sample);
        for (property, value) in &it.best {
            let said = wanted.iter().find(|(other, _)| other == property);
            let is_in_words = matches!(*property, "positions" | "heads" | "applied" | "table" | "angles" | "products");
            if let Some((_, said)) = said.filter(|(_, said)| said != value && !is_in_words) {
                it.says.push(format!("{property}: {value}, the config says {said}"));
            }
        }
        it.as_config = Some(false);
    }
    // The second best is another convention, not the same one with other roundings.
    let other = fits.iter().find(|fit| differs(&fit.convention, &best.convention));
    if let Some(other) = other.or(fits.get(1)) {
        it.second = other.convention.properties(sample).into_iter().filter(|it_| !it.best.contains(it_)).collect();
        it.second_residual = Some(other.residual.into());
    }
    it
}

fn differs(a: &Convention, b: &Convention) -> bool {
    a.law != b.law || a.geometry != b.geometry || a.places != b.places || a.factor != b.factor || a.axes != b.axes
}

/// The convention of a config, if its channels fit the head.
fn as_expected(sample: &Sample, rope: &Rope) -> Option<Convention> {
    let offset = if rope.offset + rope.rotary > sample.dim { 0 } else { rope.offset };
    let axes = sample.positions.len();
    (offset + rope.rotary <= sample.dim).then(|| Convention {
        heads: (0..sample.heads).collect(),
        geometry: Geometry { offset, rotary: rope.rotary, input: rope.pairing, output: rope.written() },
        law: Law {
            base: rope.base,
            scaling: rope.scaling.clone(),
            direction: Direction::Forward,
            times: 1,
            name: None,
        },
        factor: rope.attention_factor,
        places: Places::Same,
        // Of a text all axes are the same.
        axes: (0..rope.pairs()).map(|pair| rope.axes.axis(pair, rope.pairs()).min(axes - 1) as u8).collect(),
        arithmetic: Arithmetic::EXACT,
    })
}

/// What is unusual whatever the config says.
fn mistakes(fit: &Fit, sample: &Sample) -> Vec<String> {
    let it = &fit.convention;
    let mut says = Vec::new();
    if it.law.times == 2 {
        says.push("rotated twice".into());
    } else if it.law.times > 2 {
        says.push(format!("rotated {} times", it.law.times));
    }
    if it.law.direction == Direction::Inverse {
        says.push("rotated backwards".into());
    }
    says.extend(it.places.words(&sample.positions[0]));
    if sample.positions.len() > 1 && it.axes.iter().all(|axis| *axis == it.axes[0]) {
        says.push(format!("every pair turns by axis {}, the other axes are dropped", it.axes[0]));
    }
    says.extend(
        it.law.name.as_ref().filter(|name| name.starts_with("none; ")).map(|name| name["none; ".len()..].into()),
    );
    says.extend(heads::words(&it.heads));
    if let Some(dtype) = it.arithmetic.table {
        says.push(format!("cosines and sines come from a table in {}", dtype.name()));
    }
    if it.arithmetic.f32_angles {
        says.push("angles are products in f32, as transformers makes them".into());
    }
    says
}

/// Where tensors of one file disagree.
fn between(all: &[Explained]) -> Vec<String> {
    let mut sentences = Vec::new();
    let Some((first, others)) = all.split_first() else { return sentences };
    for other in others {
        for (property, value) in &other.best {
            if let Some((_, of_first)) = first.best.iter().find(|(it, _)| it == property).filter(|(_, it)| it != value)
            {
                sentences.push(format!("{property}: {} used {value}, {} {of_first}", other.name, first.name));
            }
        }
    }
    sentences
}

fn print(it: &Explained, bound: f64, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{} {:?}, {}", it.name, it.shape, it.layout)?;
    if it.not_finite != [0, 0] {
        writeln!(
            out,
            "  {} elements before and {} after are not finite, their tokens are left out",
            it.not_finite[0], it.not_finite[1]
        )?;
    }
    let residual = |it: &Shown| it.words("ulps of a pair's length");
    print_best(&it.says, &it.best, it.residual.as_ref().map(residual), out)?;
    if !it.explained {
        writeln!(
            out,
            "  not explained: nothing fits within {bound} of the bound; the nearest is above. Tried were pairs in halves and interleaved, both directions, every rotary size, a solved base, linear, NTK, YaRN, Llama 3, proportional scaling and a divisor for each pair, frequencies in bf16 and f16 and of each head, xPos, shifted, restarted and rounded positions, orders of heads, heads and tokens that are left out, a factor on everything, a law that changes at a token, pairs that overwrite themselves, tables in f32, bf16 and f16"
        )?;
    }
    if let Some(shown) = &it.second_residual {
        let one = |(property, value): &Property| match value.starts_with(property) {
            true => value.clone(),
            false => format!("{property} {value}"),
        };
        let differs: Vec<_> = it.second.iter().map(one).collect();
        let differs = if differs.is_empty() { "other roundings".into() } else { differs.join(", ") };
        writeln!(out, "  second best: {differs}; {}", residual(shown))?;
    }
    Ok(())
}

//! Pictures of measurements: attention distance, loss against position, length sweeps.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::picture::{Axis, Content, Heat, Panel, Picture, Series};
use crate::progress::Progress;
use crate::tensors::Tensors;

/// How far attention looks, by layer and head
#[derive(Args)]
pub struct AttentionOptions {
    /// probabilities after the softmax, a tensor for each layer: [heads, queries, keys] or [batch, heads, queries, keys]; the last
    /// query sits at the last key
    #[arg(value_name = "FILE")]
    file: String,
    /// tensors whose name contains this
    #[arg(long, value_name = "PART", default_value = "")]
    tensors: String,
    /// positions of the training: what is looked at farther away is counted
    #[arg(long, value_name = "TOKENS")]
    trained: Option<u64>,
}

/// Loss against position
#[derive(Args)]
pub struct LossOptions {
    /// a loss for each token: a tensor [sequences, positions] or [positions], NaN where there is none, or a CSV file with the columns
    /// position and loss; a line for each FILE
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<String>,
    /// positions of the training
    #[arg(long, value_name = "TOKENS")]
    trained: Option<u64>,
    /// positions are averaged in so many groups of equal width
    #[arg(long, default_value_t = 64)]
    groups: usize,
}

/// A measure of several runs against the length of the call
#[derive(Args)]
pub struct SweepOptions {
    /// CSV files with the columns length and another one, such as loss or accuracy, and optionally run; without it a file is a run
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<String>,
    /// the column that is shown; default: the first that is neither length nor run
    #[arg(long, value_name = "COLUMN")]
    column: Option<String>,
    /// positions of the training
    #[arg(long, value_name = "TOKENS")]
    trained: Option<u64>,
    /// a logarithmic axis for the measure
    #[arg(long)]
    log: bool,
}

fn trained_mark(trained: Option<u64>) -> Vec<(f64, String)> {
    trained.map(|trained| (trained as f64, "trained".to_string())).into_iter().collect()
}

/// The share of attention in each octave of distance, of one head.
#[derive(Clone)]
struct Looks {
    octaves: Vec<f64>,
    /// sum of probability times distance, and of probability
    moment: f64,
    total: f64,
    beyond: f64,
}

pub fn attention(options: &AttentionOptions) -> Result<(Picture, Vec<String>)> {
    let mut file = Tensors::open(&options.file)?;
    let names: Vec<String> =
        file.names().into_iter().filter(|name| name.contains(&options.tensors)).map(String::from).collect();
    ensure!(!names.is_empty(), "{} has no tensor whose name contains {:?}", options.file, options.tensors);
    let mut progress = Progress::new(names.len() as u64, "attention of layers");
    let mut layers = Vec::new();
    for name in &names {
        let of = || format!("{}: tensor {name:?}", options.file);
        let tensor = file.read(name)?;
        let sizes = match tensor.shape[..] {
            [heads, queries, keys] => [1, heads, queries, keys],
            [batch, heads, queries, keys] => [batch, heads, queries, keys],
            _ => bail!(
                "{} is {:?}, it must be [heads, queries, keys] or [batch, heads, queries, keys]",
                of(),
                tensor.shape
            ),
        };
        layers.push(looks(&tensor.to_f64(), sizes, options.trained).with_context(of)?);
        progress.step(1);
    }
    let heads = layers[0].len();
    for (name, layer) in names.iter().zip(&layers) {
        ensure!(
            layer.len() == heads,
            "{}: tensor {name:?} has {} heads, the first has {heads}",
            options.file,
            layer.len()
        );
    }
    let mean = |looks: &Looks| looks.moment / looks.total;
    let map = Heat {
        columns: (0..heads).map(|head| head as f64).collect(),
        rows: (0..layers.len()).map(|layer| layer as f64).collect(),
        values: layers.iter().flatten().map(mean).collect(),
        unit: "mean distance (tokens)".into(),
    };
    let octaves = layers.iter().flatten().map(|looks| looks.octaves.len()).max().unwrap_or(1);
    let series = super::chosen(&[], layers.len(), 10)?.into_iter().map(|index| (&names[index], &layers[index])).map(
        |(name, layer)| {
            let total: f64 = layer.iter().map(|looks| looks.total).sum();
            let share = |octave: usize| layer.iter().filter_map(|looks| looks.octaves.get(octave)).sum::<f64>() / total;
            // Bars start at distance 0 (drawn at 1/2), 1, 2, 4, ..., and the last one ends where the next would begin.
            let edge = |octave: usize| ((octave as f64) - 1.0).exp2();
            let bars = (0..octaves).map(|octave| (edge(octave), share(octave)));
            Series::new(name, bars.chain([(edge(octaves), share(octaves - 1))]))
        },
    );
    let series = series.collect();
    let mut text = Vec::new();
    for (name, layer) in names.iter().zip(&layers) {
        let total: f64 = layer.iter().map(|looks| looks.total).sum();
        let distance = layer.iter().map(|looks| looks.moment).sum::<f64>() / total;
        let mut line = format!("{name}: mean distance {distance:.1} tokens");
        if let Some(trained) = options.trained {
            let beyond = layer.iter().map(|looks| looks.beyond).sum::<f64>() / total;
            line += &format!(", {:.1} % of attention {trained} tokens away or more", 100.0 * beyond);
        }
        text.push(line);
    }
    let map = Panel {
        title: "mean distance".into(),
        x: Axis::linear("head"),
        y: Axis::linear("layer"),
        content: Content::Heat(map),
    };
    let marks = trained_mark(options.trained);
    let bars = Panel {
        title: "share of attention by octave of distance, the query's own token left of 1".into(),
        x: Axis::log("distance (tokens)"),
        y: Axis::linear("share of attention"),
        content: Content::Lines { series, marks, stepped: true },
    };
    Ok((Picture { title: "attention distance".into(), panels: vec![map, bars] }, text))
}

/// What each head of a layer looks at.
fn looks(p: &[f64], [batch, heads, queries, keys]: [usize; 4], trained: Option<u64>) -> Result<Vec<Looks>> {
    ensure!(
        batch * heads * queries * keys > 0,
        "it is empty: {batch} x {heads} heads, {queries} queries and {keys} keys"
    );
    ensure!(
        queries <= keys,
        "{queries} queries and {keys} keys: the last query sits at the last key, so that there are at least as many keys"
    );
    let most = usize::try_from(keys.ilog2()).unwrap_or(0) + 2;
    let mut all = vec![Looks { octaves: vec![0.0; most], moment: 0.0, total: 0.0, beyond: 0.0 }; heads];
    for (row, p) in p.chunks_exact(keys).enumerate() {
        let (query, head) = (row % queries + keys - queries, row / queries % heads);
        let sum: f64 = p.iter().sum();
        if !(sum == 0.0 || (0.98..=1.02).contains(&sum)) || p.iter().any(|p| *p < 0.0) {
            bail!(
                "query {} of head {head} has attention that sums to {sum:.4}: probabilities after the softmax sum to 1",
                row % queries
            );
        }
        let looks = &mut all[head];
        for (key, &p) in p.iter().enumerate() {
            let distance = query.abs_diff(key);
            looks.octaves[if distance == 0 { 0 } else { distance.ilog2() as usize + 1 }] += p;
            looks.moment += p * distance as f64;
            looks.total += p;
            if trained.is_some_and(|trained| distance as u64 >= trained) {
                looks.beyond += p;
            }
        }
    }
    match all.iter().position(|looks| looks.total == 0.0) {
        Some(head) => bail!("head {head} looks at nothing"),
        None => Ok(all),
    }
}

pub fn loss(options: &LossOptions) -> Result<(Picture, Vec<String>)> {
    ensure!(options.groups >= 1, "--groups is 0, it must be at least 1");
    let (mut series, mut text) = (Vec::new(), Vec::new());
    for file in &options.files {
        let (points, absent) = if has_ending(file, "csv") { (table(file)?, 0) } else { tokens(file)? };
        ensure!(!points.is_empty(), "{file} holds no loss");
        let name = stem(file);
        if absent > 0 {
            text.push(format!("{name}: {absent} tokens without a loss (NaN) are left out"));
        }
        if let Some(trained) = options.trained {
            let side = |beyond: bool| {
                let mut some = points
                    .iter()
                    .filter(|(position, _)| (*position >= trained as f64) == beyond)
                    .map(|point| point.1)
                    .peekable();
                some.peek().is_some().then(|| average(some))
            };
            if let (Some(within), Some(beyond)) = (side(false), side(true)) {
                text.push(format!("{name}: mean loss {within:.4} within {trained} positions, {beyond:.4} beyond them"));
            }
        }
        series.push(Series::new(name, grouped(&points, options.groups)));
    }
    let content = Content::Lines { series, marks: trained_mark(options.trained), stepped: false };
    Ok((
        Picture::one("loss against position", Axis::linear("position (tokens)"), Axis::linear("loss (nats)"), content),
        text,
    ))
}

fn average(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// The mean of every position's losses in a tensor, and how many tokens have none.
fn tokens(file: &str) -> Result<(Vec<(f64, f64)>, usize)> {
    let tensor = Tensors::open(file)?.only()?;
    let positions = match tensor.shape[..] {
        [positions] | [_, positions] => positions,
        _ => bail!("{file} is {:?}, it must be [sequences, positions] or [positions]", tensor.shape),
    };
    let (mut sums, mut absent) = (vec![(0.0, 0u64); positions], 0);
    for row in tensor.to_f64().chunks_exact(positions.max(1)) {
        for (&value, (sum, count)) in row.iter().zip(&mut sums) {
            if value.is_nan() {
                absent += 1;
            } else {
                *sum += value;
                *count += 1;
            }
        }
    }
    let points = sums.into_iter().enumerate().filter(|(_, (_, count))| *count > 0);
    Ok((points.map(|(position, (sum, count))| (position as f64, sum / count as f64)).collect(), absent))
}

/// Means of groups of equal width, each at its middle.
fn grouped(points: &[(f64, f64)], groups: usize) -> Vec<(f64, f64)> {
    let last = points.iter().map(|point| point.0).fold(0.0, f64::max);
    let width = ((last + 1.0) / groups as f64).max(1.0);
    let mut sums = vec![(0.0, 0.0, 0.0); groups];
    for (position, value) in points {
        let (at, sum, count) = &mut sums[((position / width) as usize).min(groups - 1)];
        *at += position;
        *sum += value;
        *count += 1.0;
    }
    sums.into_iter().filter(|(.., count)| *count > 0.0).map(|(at, sum, count)| (at / count, sum / count)).collect()
}

pub fn sweep(options: &SweepOptions) -> Result<(Picture, Vec<String>)> {
    let mut series: Vec<Series> = Vec::new();
    let mut shown = options.column.clone();
    for file in &options.files {
        let rows = Rows::read(file)?;
        let column = match &shown {
            Some(column) => column.clone(),
            None => {
                let free = rows.names.iter().find(|name| !["length", "run"].contains(&name.as_str()));
                free.with_context(|| format!("{file} has no column beside length and run"))?.clone()
            }
        };
        let (length, value) = (rows.column("length")?, rows.column(&column)?);
        let run = rows.names.iter().position(|name| name == "run");
        for (line, row) in &rows.rows {
            let name = run.map_or_else(|| stem(file), |run| row[run].clone());
            let point = (number(file, *line, "length", &row[length])?, number(file, *line, &column, &row[value])?);
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                None => series.push(Series::new(name, [point])),
            }
        }
        shown = Some(column);
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let column = shown.unwrap_or_default();
    let mut text = Vec::new();
    if let Some(trained) = options.trained {
        for series in &series {
            let at = series.points.iter().rev().find(|point| point.0 <= trained as f64);
            if let (Some(within), Some(last)) = (at, series.points.last()) {
                text.push(format!("{}: {column} {} at {}, {} at {}", series.name, within.1, within.0, last.1, last.0));
            }
        }
    }
    let content = Content::Lines { series, marks: trained_mark(options.trained), stepped: false };
    let y = if options.log { Axis::log(&column) } else { Axis::linear(&column) };
    Ok((Picture::one(format!("{column} against length"), Axis::log("length of the call (tokens)"), y, content), text))
}

/// A CSV file with a header.
struct Rows {
    file: String,
    names: Vec<String>,
    /// with the line of the file
    rows: Vec<(u64, Vec<String>)>,
}

impl Rows {
    fn read(file: &str) -> Result<Self> {
        let of = || format!("cannot read {file}");
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).with_context(of)?;
        let names = reader.headers().with_context(of)?.iter().map(String::from).collect();
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.with_context(of)?;
            let line = record.position().map_or(0, csv::Position::line);
            rows.push((line, record.iter().map(String::from).collect()));
        }
        ensure!(!rows.is_empty(), "{file} has no rows below its header");
        Ok(Self { file: file.into(), names, rows })
    }

    fn column(&self, name: &str) -> Result<usize> {
        let at = self.names.iter().position(|column| column == name);
        at.with_context(|| format!("{} has no column {name:?}, only {}", self.file, self.names.join(", ")))
    }
}

fn number(file: &str, line: u64, column: &str, text: &str) -> Result<f64> {
    text.parse().with_context(|| format!("{file}, line {line}: {column} is {text:?}, which is no number"))
}

/// Position and loss of a CSV file.
fn table(file: &str) -> Result<Vec<(f64, f64)>> {
    let rows = Rows::read(file)?;
    let (position, loss) = (rows.column("position")?, rows.column("loss")?);
    let point = |(line, row): &(u64, Vec<String>)| {
        Ok((number(file, *line, "position", &row[position])?, number(file, *line, "loss", &row[loss])?))
    };
    rows.rows.iter().map(point).collect()
}

fn has_ending(file: &str, ending: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == ending)
}

/// The name of a run: its file's, without folder and ending.
fn stem(file: &str) -> String {
    Path::new(file).file_stem().map_or_else(|| file.to_string(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_counted_by_distance() {
        // Two queries at positions 2 and 3 of four keys.
        let p = [0.25, 0.0, 0.75, 0.0, 0.5, 0.0, 0.0, 0.5];
        let looks = &looks(&p, [1, 1, 2, 4], Some(3)).expect("counts")[0];
        assert_eq!(looks.octaves, [0.75 + 0.5, 0.0, 0.25 + 0.5, 0.0]);
        assert_eq!((looks.moment, looks.total, looks.beyond), (0.25 * 2.0 + 0.5 * 3.0, 2.0, 0.5));
    }

    #[test]
    fn logits_are_no_probabilities() {
        let error = looks(&[0.5, 1.0, -3.0, 4.0], [1, 1, 2, 2], None).err().expect("a refusal");
        assert_eq!(
            error.to_string(),
            "query 0 of head 0 has attention that sums to 1.5000: probabilities after the softmax sum to 1"
        );
    }

    #[test]
    fn groups_have_equal_width() {
        let points: Vec<_> = (0..6).map(|position| (f64::from(position), f64::from(position * position))).collect();
        assert_eq!(grouped(&points, 3), [(0.5, 0.5), (2.5, 6.5), (4.5, 20.5)]);
        assert_eq!(grouped(&points[..2], 5), [(0.0, 0.0), (1.0, 1.0)]);
    }
}

//! Pictures of biases: against distance, as matrices, and tables of windows.

use anyhow::{Result, ensure};
use clap::Args;

use super::chosen;
use super::picture::{Axis, Content, Heat, Panel, Picture, Series};
use crate::law::Law;
use crate::tensors::Tensors;

/// Biases by distance
#[derive(Args)]
pub struct BiasOptions {
    /// alibi=HEADS, sandwich=HEADS, kerple-log=P,A, kerple-power=P,A, t5=BUCKETS,MAX, t5-causal=BUCKETS,MAX or a JSON file of a spec
    #[arg(value_name = "BIAS", required = true)]
    laws: Vec<String>,
    /// heads that are shown, such as 0,3,7; default: at most five of each BIAS
    #[arg(long, value_delimiter = ',')]
    heads: Vec<usize>,
    /// tokens back, at most
    #[arg(long, default_value_t = 128)]
    distance: u32,
    /// position of the query, on which FIRE depends; default: the largest distance
    #[arg(long)]
    query: Option<u32>,
}

/// A bias as a matrix of queries and keys
#[derive(Args)]
pub struct MatrixOptions {
    /// one BIAS, as of `plot bias`
    #[arg(value_name = "BIAS")]
    law: String,
    /// heads that are shown; default: the first
    #[arg(long, value_delimiter = ',')]
    heads: Vec<usize>,
    #[arg(long, default_value_t = 64)]
    queries: u32,
    /// the last query sits at the last key
    #[arg(long, default_value_t = 64)]
    keys: u32,
}

/// A window's table of relative positions
#[derive(Args)]
pub struct TableOptions {
    /// FILE.npy or FILE.safetensors:NAME, [(2 H - 1) (2 W - 1), heads], as Swin stores it
    #[arg(value_name = "TABLE")]
    table: String,
    /// rows and columns of the window, such as 7,7
    #[arg(long, value_delimiter = ',', required = true, num_args = 1..=2)]
    window: Vec<usize>,
    /// heads that are shown; default: the first four
    #[arg(long, value_delimiter = ',')]
    heads: Vec<usize>,
}

pub fn bias(options: &BiasOptions) -> Result<(Picture, Vec<String>)> {
    let reach = i64::from(options.distance);
    ensure!(reach >= 1, "--distance is 0, a picture needs at least 1");
    let query = options.query.map_or(reach, i64::from);
    let mut series = Vec::new();
    for text in &options.laws {
        let law = Law::parse(text)?;
        let made = law.made(reach)?;
        let bias = made.bias();
        for head in chosen(&options.heads, law.heads(), 5)? {
            let points = distances(reach).map(|distance| (distance as f64, bias.at(0, head, query, query - distance)));
            let name = if law.heads() == 1 { law.name().to_string() } else { format!("{} head {head}", law.name()) };
            series.push(Series::new(name, points));
        }
    }
    let content = Content::Lines { series, marks: Vec::new(), stepped: false };
    let x = Axis::log("distance of the key (tokens back)");
    Ok((Picture::one("bias against distance", x, Axis::linear("added to the logit"), content), Vec::new()))
}

/// All distances up to 256, then 48 an octave.
fn distances(reach: i64) -> impl Iterator<Item = i64> {
    let mut list: Vec<i64> = (1..=reach.min(256)).collect();
    let more = (0..).map(|step| (256.0 * (f64::from(step) / 48.0).exp2()).round() as i64);
    list.extend(more.take_while(|distance| *distance < reach));
    list.push(reach);
    list.dedup();
    list.into_iter()
}

pub fn matrix(options: &MatrixOptions) -> Result<(Picture, Vec<String>)> {
    let (queries, keys) = (i64::from(options.queries), i64::from(options.keys));
    ensure!(
        (1..=1024).contains(&queries) && (1..=1024).contains(&keys),
        "{queries} queries and {keys} keys, a heat map shows 1 to 1024 of both"
    );
    let law = Law::parse(&options.law)?;
    let made = law.made(queries.max(keys))?;
    let first = keys - queries;
    let panels = chosen(&options.heads, law.heads(), 1)?.into_iter().map(|head| {
        let row = |query: i64| (0..keys).map(move |key| (query, key));
        let rows: Vec<i64> = (first..keys).collect();
        let values =
            rows.iter().flat_map(|query| row(*query)).map(|(query, key)| made.bias().at(0, head, query, key)).collect();
        let heat = Heat {
            columns: (0..keys).map(|key| key as f64).collect(),
            rows: rows.iter().map(|query| *query as f64).collect(),
            values,
            unit: "added to the logit".into(),
        };
        Panel {
            title: format!("head {head}"),
            x: Axis::linear("position of the key (tokens)"),
            y: Axis::linear("position of the query (tokens)"),
            content: Content::Heat(heat),
        }
    });
    Ok((Picture { title: format!("{} for every query and key", law.name()), panels: panels.collect() }, Vec::new()))
}

pub fn table(options: &TableOptions) -> Result<(Picture, Vec<String>)> {
    let (height, width) = match options.window[..] {
        [size] => (size, size),
        [height, width] => (height, width),
        _ => anyhow::bail!("--window has {} numbers, say rows and columns", options.window.len()),
    };
    ensure!(
        (1..=512).contains(&height) && (1..=512).contains(&width),
        "a window of {height} x {width}, it must have 1 to 512 of both"
    );
    let (rows, columns) = (2 * height - 1, 2 * width - 1);
    let tensor = Tensors::open(&options.table)?.only()?;
    let heads = match tensor.shape[..] {
        [entries, heads] if entries == rows * columns && heads > 0 => heads,
        _ => anyhow::bail!(
            "{} is {:?}, a window of {height} x {width} has [{}, heads]",
            options.table,
            tensor.shape,
            rows * columns
        ),
    };
    let values = tensor.to_f64();
    let centred = |count: usize| (0..count).map(|index| index as f64 - (count / 2) as f64).collect::<Vec<_>>();
    let panels = chosen(&options.heads, heads, 4)?.into_iter().map(|head| Panel {
        title: format!("head {head}"),
        x: Axis::linear("column of the query less that of the key (tokens)"),
        y: Axis::linear("row of the query less that of the key (tokens)"),
        content: Content::Heat(Heat {
            columns: centred(columns),
            rows: centred(rows),
            values: values.iter().skip(head).step_by(heads).copied().collect(),
            unit: "added to the logit".into(),
        }),
    });
    let title = format!("table of a window of {height} x {width}");
    Ok((Picture { title, panels: panels.collect() }, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_end_at_the_reach() {
        assert_eq!(distances(3).collect::<Vec<_>>(), [1, 2, 3]);
        let far: Vec<_> = distances(4096).collect();
        assert!(far.windows(2).all(|pair| pair[0] < pair[1]) && far[far.len() - 1] == 4096 && far.len() < 512);
    }
}

//! `posenc diff`: two tensors, element by element.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use posenc::accuracy::Expected;
use serde::Serialize;

use crate::Outcome;
use crate::judge::Reference;
use crate::shares::{Shares, share};
use crate::tensors::{self, Tensor, Tensors};
use crate::ulp::{coarser, ulp};

/// Compare tensors: how many elements differ, and the worst by distance and by ulps
///
/// FILE is .safetensors or .npy, FILE.safetensors:NAME one tensor of it. Of two files with several tensors each, those of the same
/// name are compared. An element is outside if |a - b| > atol + rtol |b| + ulps ulp(b); without these options if it differs at
/// all. NaN equals NaN alone, an infinity itself alone; both are counted. The exit status is 1 if any element is outside.
///
/// With --bound the tolerance is that of the operation which made both: its reference is computed from the inputs of --in, and an
/// element is outside if A or B is farther from the reference than the operation's documentation allows.
///
/// Examples:
///   posenc diff ours.safetensors theirs.safetensors
///   posenc diff a.npy b.npy --rtol 1e-3 --atol 1e-5
///   posenc diff run.safetensors:q_out golden.safetensors:q --ulps 1 --json
///   posenc diff ours.safetensors theirs.safetensors --bound rope.json --in qk.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// a tensor, or a file of them
    a: String,
    /// what it should be
    b: String,
    /// distance that is allowed
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    atol: f64,
    /// share of |b| that is allowed
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    rtol: f64,
    /// units in the last place of b that are allowed, in the coarser type of the two
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    ulps: f64,
    /// the operation that made both, a JSON file as `posenc apply` reads it: the error that it allows is the tolerance
    #[arg(long, value_name = "OP", conflicts_with_all = ["atol", "rtol", "ulps"])]
    bound: Option<PathBuf>,
    /// what that operation read: a .safetensors or .npy file; an operation that reads none needs no file
    #[arg(long = "in", value_name = "FILE", requires = "bound")]
    input: Option<String>,
    /// write a - b as f64 to this file, .safetensors or .npy
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// print JSON
    #[arg(long)]
    json: bool,
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("a tolerance is a finite number from 0 on".into()),
    }
}

/// An element, and how far apart its two values are.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Element {
    index: Vec<usize>,
    a: f64,
    b: f64,
    /// |a - b|
    distance: f64,
    ulps: f64,
}

/// Two tensors compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Comparison {
    name: String,
    shape: Vec<usize>,
    types: [&'static str; 2],
    elements: usize,
    /// whose numbers differ
    different: usize,
    /// beyond the tolerance
    outside: usize,
    nan: [usize; 2],
    infinite: [usize; 2],
    /// of each, how much of the operation's bound its elements use, where there is one
    bound: Option<[Shares; 2]>,
    /// farthest apart; none if there are no two finite numbers that differ
    farthest: Option<Element>,
    /// most ulps apart
    most_ulps: Option<Element>,
    /// the first element where one of them is not finite and the other is not the same
    first_not_finite: Option<Element>,
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let (mut a, mut b) = (Tensors::open(&options.a)?, Tensors::open(&options.b)?);
    let reference = options.bound.as_ref().map(|op| Reference::open(op, options.input.as_deref())).transpose()?;
    let (mut comparisons, mut differences) = (Vec::new(), Vec::new());
    let pairs = pairs(&options, &a, &b)?;
    let alone = pairs.len() == 1;
    for (left, right) in pairs {
        let name = if left == right { left.clone() } else { format!("{left} and {right}") };
        let (x, y) = (a.read(&left)?, b.read(&right)?);
        let mut comparison = compare(name, &x, &y, &options)?;
        if let Some(reference) = &reference {
            let names = [left.as_str(), right.as_str()];
            let (_, expected) = reference.expected(&options.a, &names, &x, alone)?;
            reference.expected(&options.b, &names, &y, alone)?;
            comparison.judge(&x, &y, expected);
        }
        comparisons.push(comparison);
        if options.out.is_some() {
            let difference: Vec<f64> = x.to_f64().iter().zip(y.to_f64()).map(|(x, y)| x - y).collect();
            differences.push((left, Tensor::new(&x.shape, &difference)));
        }
    }
    if let Some(path) = &options.out {
        let named: Vec<_> = differences.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        tensors::write(path, &named, &[&a, &b])?;
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &comparisons)?;
        writeln!(out)?;
    } else {
        for comparison in &comparisons {
            print(comparison, out)?;
        }
    }
    let is_same = comparisons.iter().all(|it| it.outside == 0);
    Ok(if is_same { Outcome::Same } else { Outcome::Differs })
}

/// Names of what is compared: the only tensor of each, or all, which must have the same names.
fn pairs(options: &Options, a: &Tensors, b: &Tensors) -> Result<Vec<(String, String)>> {
    let (left, right) = (a.names(), b.names());
    for (names, file) in [(&left, &options.a), (&right, &options.b)] {
        ensure!(!names.is_empty(), "{file} holds no tensor");
    }
    if let ([left], [right]) = (&left[..], &right[..]) {
        return Ok(vec![((*left).into(), (*right).into())]);
    }
    let alone =
        |these: &[&str], those: &[&str]| these.iter().find(|name| !those.contains(name)).map(|it| it.to_string());
    for (missing, from) in [(alone(&left, &right), &options.b), (alone(&right, &left), &options.a)] {
        if let Some(name) = missing {
            bail!("{from} has no tensor {name:?}: name one of each file, as in FILE.safetensors:NAME");
        }
    }
    Ok(left.iter().map(|name| (name.to_string(), name.to_string())).collect())
}

fn compare(name: String, a: &Tensor, b: &Tensor, options: &Options) -> Result<Comparison> {
    ensure!(
        a.shape == b.shape,
        "tensor {name} has the shape {:?} in {} and {:?} in {}",
        a.shape,
        options.a,
        b.shape,
        options.b
    );
    let dtype = coarser(a.dtype, b.dtype);
    let mut result = Comparison {
        name,
        shape: a.shape.clone(),
        types: [a.dtype.name(), b.dtype.name()],
        elements: a.len(),
        different: 0,
        outside: 0,
        nan: [0; 2],
        infinite: [0; 2],
        farthest: None,
        most_ulps: None,
        first_not_finite: None,
        bound: None,
    };
    let element = |at: usize, a: f64, b: f64| {
        let distance = (a - b).abs();
        Element { index: index(at, &result.shape), a, b, distance, ulps: distance / ulp(dtype, b) }
    };
    let (mut farthest, mut most_ulps, mut first_not_finite) = (None::<Element>, None::<Element>, None);
    for (at, (a, b)) in a.to_f64().into_iter().zip(b.to_f64()).enumerate() {
        for (side, x) in [a, b].into_iter().enumerate() {
            result.nan[side] += usize::from(x.is_nan());
            result.infinite[side] += usize::from(x.is_infinite());
        }
        if a == b || a.is_nan() && b.is_nan() {
            continue;
        }
        result.different += 1;
        if !(a.is_finite() && b.is_finite()) {
            result.outside += 1;
            first_not_finite = first_not_finite.or_else(|| Some(element(at, a, b)));
            continue;
        }
        let (distance, step) = ((a - b).abs(), ulp(dtype, b));
        result.outside += usize::from(distance > options.atol + options.rtol * b.abs() + options.ulps * step);
        if farthest.as_ref().is_none_or(|it| distance > it.distance) {
            farthest = Some(element(at, a, b));
        }
        if most_ulps.as_ref().is_none_or(|it| distance / step > it.ulps) {
            most_ulps = Some(element(at, a, b));
        }
    }
    Ok(Comparison { farthest, most_ulps, first_not_finite, ..result })
}

impl Comparison {
    /// Takes the operation's bound for the tolerance: outside is an element that either of them has outside.
    fn judge(&mut self, a: &Tensor, b: &Tensor, expected: &Expected) {
        self.bound = Some([Shares::new(a, expected), Shares::new(b, expected)]);
        let both = a.to_f64().into_iter().zip(b.to_f64()).zip(expected.want.iter().zip(&expected.bound));
        let is_outside = |((a, b), (want, bound)): &((f64, f64), (&f64, &f64))| {
            share(*a, **want, **bound) > 1.0 || share(*b, **want, **bound) > 1.0
        };
        self.outside = both.filter(is_outside).count();
    }
}

/// The index on each axis.
fn index(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, n) in index.iter_mut().zip(shape).rev() {
        *i = at % n;
        at /= n;
    }
    index
}

fn print(it: &Comparison, out: &mut dyn Write) -> Result<()> {
    let types = if it.types[0] == it.types[1] { it.types[0].to_string() } else { it.types.join(" and ") };
    let share_of = |n: usize| format!("{n} ({:.3} %)", 100.0 * n as f64 / it.elements.max(1) as f64);
    write!(out, "{} {:?} {types}: {} elements, ", it.name, it.shape, it.elements)?;
    match (it.different, it.outside) {
        (0, 0) => writeln!(out, "equal")?,
        (0, outside) => writeln!(out, "equal, {} outside", share_of(outside))?,
        (different, 0) => writeln!(out, "{} differ, none outside", share_of(different))?,
        (different, outside) => writeln!(out, "{} differ, {} outside", share_of(different), share_of(outside))?,
    }
    let shown = |element: &Element| {
        format!(
            "{:?}: {:e} and {:e}, {:.3e} apart, {} ulps",
            element.index,
            element.a,
            element.b,
            element.distance,
            rounded(element.ulps)
        )
    };
    match (&it.farthest, &it.most_ulps) {
        (Some(one), Some(other)) if one == other => writeln!(out, "  worst          {}", shown(one))?,
        (Some(one), Some(other)) => {
            writeln!(out, "  farthest       {}", shown(one))?;
            writeln!(out, "  most ulps      {}", shown(other))?;
        }
        _ => {}
    }
    if let Some([a, b]) = &it.bound {
        writeln!(out, "  the first      {a}")?;
        writeln!(out, "  the second     {b}")?;
    }
    for (what, [a, b]) in [("NaN", it.nan), ("infinite", it.infinite)] {
        if a + b > 0 {
            writeln!(out, "  {what:<14} {a} in the first, {b} in the second")?;
        }
    }
    if let Some(Element { index, a, b, .. }) = &it.first_not_finite {
        writeln!(out, "  not the same   from {index:?} on: {a} and {b}")?;
    }
    Ok(())
}

/// Ulps with as many digits as tell something.
pub fn rounded(ulps: f64) -> String {
    if ulps < 1e6 {
        format!("{:.3}", ulps).trim_end_matches('0').trim_end_matches('.').into()
    } else {
        format!("{ulps:.2e}")
    }
}

//! `posenc apply`: an operation on the tensors of a file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::judge::{Reference, inputs};
use crate::op::{Device, Name, Op};
use crate::shares::Shares;
use crate::tensors::{Tensors, write};

/// Apply an operation of the crate to the tensors of a file
///
/// The operation is JSON: --schema lists them all, --schema OP says what one reads and writes, with examples.
///
/// Examples:
///   posenc apply --schema
///   posenc apply --schema rope
///   posenc apply rope.json --in qk.safetensors --out rotated.safetensors
///   posenc apply softmax.json --in logits.npy --out p.safetensors --device cpu --check
///   posenc apply rope.json --in before.safetensors --against after.safetensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// the operation: a JSON file
    #[arg(required_unless_present = "schema")]
    op: Option<PathBuf>,
    /// tensors that are read: a .safetensors or .npy file; an operation that reads none needs no file
    #[arg(long = "in", value_name = "FILE")]
    input: Option<String>,
    /// tensors that are written: a .safetensors or .npy file
    #[arg(long, value_name = "FILE", required_unless_present_any = ["schema", "against"])]
    out: Option<PathBuf>,
    /// auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// compare with the reference, within the error that the operation's documentation allows; status 1 if outside
    #[arg(long)]
    check: bool,
    /// compare another engine's results with the reference, within the same error: tensors of the results' names; status 1 if outside
    #[arg(long, value_name = "FILE")]
    against: Option<String>,
    /// print what an operation reads and writes, with examples; without a name, list the operations
    #[arg(long, value_name = "OP", num_args = 0..=1, conflicts_with_all = ["op", "input", "out"])]
    schema: Option<Option<Name>>,
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    match options.schema {
        Some(Some(name)) => return schema(name, out),
        Some(None) => {
            for name in Name::value_variants() {
                writeln!(out, "{:20} {}", name.name(), name.form().about)?;
            }
            return Ok(Outcome::Same);
        }
        None => {}
    }
    let Some(path) = options.op else { unreachable!("clap asks for it") };
    let op = Op::open(&path)?;
    let mut file = options.input.as_deref().map(Tensors::open).transpose()?;
    let inputs = inputs(&mut file)?;
    let device = Device::parse(&options.device)?;
    let compares = options.check || options.against.is_some();
    let of = || format!("{} on {}", path.display(), options.input.as_deref().unwrap_or("no input"));
    let results = op.apply(&inputs, &device, compares).with_context(of)?;
    if let Some(to) = &options.out {
        let named: Vec<_> = results.iter().map(|result| (result.name.as_str(), &result.tensor)).collect();
        // A file of one tensor takes the result that the operation is for: one of more axes than what comes beside it.
        let is_npy = to.extension().is_some_and(|ending| ending == "npy");
        let axes = |at: usize| named.get(at).map_or(0, |(_, tensor)| tensor.shape.len());
        write(to, if is_npy && axes(0) > axes(1) { &named[..1] } else { &named }, &file.iter().collect::<Vec<_>>())?;
    }
    let mut lines = Vec::new();
    if let Some(other) = &options.against {
        let mut theirs = Tensors::open(other)?;
        let reference = Reference::of(results);
        let names: Vec<String> = theirs.names().into_iter().map(String::from).collect();
        for name in &names {
            let tensor = theirs.read(name)?;
            let (name, expected) = reference.expected(other, &[name], &tensor, names.len() == 1)?;
            lines.push((
                format!("{name} {:?} {}", tensor.shape, tensor.dtype.name()),
                Some(Shares::new(&tensor, expected)),
            ));
        }
        writeln!(out, "{other}, compared with the reference")?;
    } else {
        for result in &results {
            let shares = result.expected.as_ref().map(|expected| Shares::new(&result.tensor, expected));
            lines.push((format!("{} {:?} {}", result.name, result.tensor.shape, result.tensor.dtype.name()), shares));
        }
        writeln!(out, "on {}", device.name()?)?;
    }
    let mut outcome = Outcome::Same;
    for (name, shares) in lines {
        match shares {
            Some(shares) => {
                writeln!(out, "{name}: {shares}")?;
                if shares.outside > 0 {
                    outcome = Outcome::Differs;
                }
            }
            None => writeln!(out, "{name}")?,
        }
    }
    Ok(outcome)
}

fn schema(name: Name, out: &mut dyn Write) -> Result<Outcome> {
    let form = name.form();
    writeln!(out, "{}: {}\n", name.name(), form.about)?;
    for (title, rows) in [("reads", form.reads), ("writes", form.writes)] {
        for (index, (name, what)) in rows.iter().enumerate() {
            writeln!(out, "{:7} {name}: {what}", if index == 0 { title } else { "" })?;
        }
    }
    for (index, example) in form.examples.iter().enumerate() {
        writeln!(out, "\nexample {}\n{}", index + 1, serde_json::to_string_pretty(example)?)?;
    }
    Ok(Outcome::Same)
}

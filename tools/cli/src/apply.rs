//! `posenc apply`: an operation on the tensors of a file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::op::{Device, Inputs, Name, Op};
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
    /// tensors that are read: a .safetensors or .npy file
    #[arg(long = "in", value_name = "FILE", required_unless_present = "schema")]
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
                writeln!(out, "{:16} {}", name.name(), name.form().about)?;
            }
            return Ok(Outcome::Same);
        }
        None => {}
    }
    let (Some(path), Some(input)) = (options.op, options.input) else { unreachable!("clap asks for them") };
    let op = Op::open(&path)?;
    let mut file = Tensors::open(&input)?;
    let inputs = Inputs::read(&mut file)?;
    let device = Device::parse(&options.device)?;
    let compares = options.check || options.against.is_some();
    let of = || format!("{} on {input}", path.display());
    let mut results = op.apply(&inputs, &device, compares).with_context(of)?;
    if let Some(to) = &options.out {
        let named: Vec<_> = results.iter().map(|result| (result.name.as_str(), &result.tensor)).collect();
        // A file of one tensor takes the result that the operation is for.
        let is_npy = to.extension().is_some_and(|ending| ending == "npy");
        write(to, if is_npy { &named[..1] } else { &named }, &[&file])?;
    }
    match &options.against {
        Some(other) => {
            let theirs = Inputs::read(&mut Tensors::open(other)?)?;
            for result in &mut results {
                let tensor = theirs.main(&result.name).with_context(|| other.clone())?;
                let (shape, wanted) = (&tensor.shape, &result.tensor.shape);
                ensure!(shape == wanted, "{other}: {} is {shape:?}, the operation gives {wanted:?}", result.name);
                // Rounding is part of the bound, so that the types must be the same.
                let (dtype, wanted) = (tensor.dtype.name(), result.tensor.dtype.name());
                ensure!(dtype == wanted, "{other}: {} is {dtype}, the operation gives {wanted}", result.name);
                result.tensor = tensor.clone();
            }
            writeln!(out, "{other}, compared with the reference")?;
        }
        None => writeln!(out, "on {}", device.name()?)?,
    }
    let mut outcome = Outcome::Same;
    for result in &results {
        write!(out, "{} {:?} {}", result.name, result.tensor.shape, result.tensor.dtype.name())?;
        if let Some(expected) = &result.expected {
            let shares = Shares::new(&result.tensor, expected);
            write!(out, ": {shares}")?;
            if shares.outside > 0 {
                outcome = Outcome::Differs;
            }
        }
        writeln!(out)?;
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
    for example in form.examples {
        writeln!(out, "\n{}", serde_json::to_string_pretty(&example)?)?;
    }
    Ok(Outcome::Same)
}

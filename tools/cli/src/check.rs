//! `posenc check`: operations on this device against the reference.

use std::io::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::op::{Device, Name, Op};
use crate::progress::Progress;
use crate::shares::Shares;
use crate::tensors::Dtype;

/// Compare operations on this device with the reference
///
/// What to run after an update of the driver: every operation of `posenc apply --schema`, in f32, f16 and bf16 and in several sizes,
/// within the error that its documentation allows. Without a device the CPU's vectorised paths are compared.
///
/// Examples:
///   posenc check --quick
///   posenc check --device cuda:1
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// small calls alone
    #[arg(long)]
    quick: bool,
    /// auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// operations whose name contains this
    #[arg(default_value = "")]
    filter: String,
}

/// Sizes of calls, as multiples of the least: single rows, rows in registers, rows of several blocks.
const SCALES: [usize; 4] = [1, 7, 40, 250];

/// What became of the calls of one operation in one type.
#[derive(Default)]
struct Tally {
    calls: usize,
    elements: usize,
    outside: usize,
    worst: f64,
    /// the first call that did not run
    error: Option<String>,
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    let names: Vec<Name> =
        Name::value_variants().iter().copied().filter(|name| name.name().contains(&options.filter)).collect();
    anyhow::ensure!(!names.is_empty(), "no operation is named like {:?}", options.filter);
    let device = Device::parse(&options.device)?;
    writeln!(out, "on {}", device.name()?)?;
    let scales = if options.quick { &SCALES[..1] } else { &SCALES[..] };
    let types = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let mut progress = Progress::new((names.len() * types.len()) as u64, "operations");
    writeln!(
        out,
        "{:20} {:5} {:>6} {:>10} {:>22}  result",
        "operation", "type", "calls", "elements", "most of the bound used"
    )?;
    let mut wrong = 0;
    for name in names {
        let examples = name.form().examples;
        for dtype in types {
            let tally = tally(&examples, dtype, scales, &device);
            progress.step(1);
            let result = match &tally {
                Tally { error: Some(error), .. } => error.clone(),
                Tally { outside: 0, .. } => "ok".into(),
                Tally { outside, .. } => format!("{outside} elements OUTSIDE the bound"),
            };
            wrong += usize::from(result != "ok");
            let Tally { calls, elements, worst, .. } = tally;
            let used = format!("{:.1} %", 100.0 * worst);
            writeln!(out, "{:20} {:5} {calls:6} {elements:10} {used:>22}  {result}", name.name(), dtype.name())?;
        }
    }
    match wrong {
        0 => writeln!(out, "all within their bounds")?,
        n => writeln!(out, "{n} rows are wrong")?,
    }
    Ok(if wrong == 0 { Outcome::Same } else { Outcome::Differs })
}

fn tally(examples: &[Op], dtype: Dtype, scales: &[usize], device: &Device) -> Tally {
    let mut tally = Tally::default();
    for (op, &scale) in examples.iter().flat_map(|op| scales.iter().map(move |scale| (op, scale))) {
        let results = match op.written_as(dtype).apply(&op.sample(dtype, scale), device, true) {
            Ok(results) => results,
            Err(error) => {
                tally.error.get_or_insert(format!("error: {error:#}"));
                continue;
            }
        };
        tally.calls += 1;
        for result in results {
            let Some(expected) = &result.expected else { continue };
            let shares = Shares::new(&result.tensor, expected);
            tally.elements += shares.elements;
            tally.outside += shares.outside;
            tally.worst = tally.worst.max(shares.worst);
        }
    }
    tally
}

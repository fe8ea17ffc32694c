//! `posenc bench`: what the benches' cases cost.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::Outcome;

/// What the benches' cases cost: counts, and times on a GPU
///
/// A program of the default features prints the counts that the repository's tests guard: bytes that a call must move, bytes of the
/// 32-byte sectors that it touches, and PTX and machine instructions for each element, of the emulator at compute capability 9.0. No
/// time is among them. A program built with the feature `bench` (cargo install --path tools/cli --features bench) checks and runs the
/// cases itself: on a GPU it prints times, on the emulator counts and predicted times, each under its name.
///
/// Examples:
///   posenc bench rope/llama-3-8b
///   posenc bench attend/
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// cases whose name contains this
    #[arg(default_value = "")]
    filter: String,
    /// print the committed counts, although this program could run the cases
    #[cfg(feature = "bench")]
    #[arg(long)]
    committed: bool,
}

/// The counts of every case, which `benches/tests/counts.rs` compares with what the emulator counts.
const COUNTS: &str = include_str!("../../../benches/tests/counts.csv");

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    #[cfg(feature = "bench")]
    if !options.committed {
        return cases(&options.filter, out);
    }
    committed(&options.filter, out)
}

fn committed(filter: &str, out: &mut dyn Write) -> Result<Outcome> {
    let mut reader = csv::Reader::from_reader(COUNTS.as_bytes());
    let names: Vec<String> = reader.headers()?.iter().map(String::from).collect();
    let column = |name: &str| {
        names.iter().position(|column| column == name).with_context(|| format!("the counts have no {name}"))
    };
    const SHOWN: [(&str, &str); 6] = [
        ("bytes_to_move", "bytes to move"),
        ("sector_bytes_read", "sectors read"),
        ("sector_bytes_written", "written"),
        ("ptx_instructions_per_element", "PTX/elem"),
        ("sass_instructions_per_element", "SASS/elem"),
        ("bank_conflicts", "conflicts"),
    ];
    let columns = SHOWN.iter().map(|(name, _)| column(name)).collect::<Result<Vec<_>>>()?;
    let rows = reader.records().collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<_> = rows.into_iter().filter(|row| row[0].contains(filter)).collect();
    ensure!(!rows.is_empty(), "no case is named like {filter:?}");
    writeln!(
        out,
        "counted on the emulator at compute capability 9.0, sectors in bytes; no times: none of these ran on a GPU"
    )?;
    write!(out, "{:55}", "case")?;
    SHOWN.iter().try_for_each(|(_, name)| write!(out, " {name:>14}"))?;
    writeln!(out)?;
    for row in &rows {
        write!(out, "{:55}", &row[0])?;
        columns.iter().try_for_each(|&column| write!(out, " {:>14}", &row[column]))?;
        writeln!(out)?;
    }
    Ok(Outcome::Same)
}

/// Checks and times the cases on a GPU, or checks and counts them on the emulator.
#[cfg(feature = "bench")]
fn cases(filter: &str, out: &mut dyn Write) -> Result<Outcome> {
    use posenc_benches::support::Bench;
    let mut ran = 0;
    for room in posenc_benches::ROOMS {
        let mut cases = posenc_benches::cases(room);
        cases.retain(|case| format!("{room}/{}", case.name).contains(filter));
        if cases.is_empty() {
            continue;
        }
        ran += cases.len();
        out.flush()?;
        Bench::new(room, None)?.run(cases)?;
    }
    ensure!(ran > 0, "no case is named like {filter:?}");
    Ok(Outcome::Same)
}

//! Benches on a GPU, or their counts on the emulator.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cargo, cuda, device, plot, run};

pub const RECORDS: &str = "benches/record";
/// Rows of a run that is not yet whole.
const PARTIAL: &str = "target/bench-record";

/// The commit that is checked out, with `-dirty` where files differ from it.
pub fn commit() -> String {
    let output =
        Command::new("git").args(["describe", "--always", "--abbrev=12", "--dirty", "--exclude", "*"]).output();
    let text =
        output.ok().filter(|output| output.status.success()).and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| "unknown".into(), |text| text.trim().into())
}

/// Runs the benches of one room, or of all.
pub fn run_all(record: bool, emulator: bool, room: Option<&str>, filter: Option<&str>) -> Result<()> {
    cuda::fetch_for_tests()?;
    let device = device::Device::find(emulator)?;
    println!("benches run on {device}");
    let mut command = cargo();
    command.args(["bench", "--package", "posenc-benches"]);
    match room {
        Some(room) => command.args(["--bench", room]),
        None => command.arg("--benches"),
    };
    device.prepare(&mut command)?;
    if record {
        ensure!(filter.is_none() && room.is_none(), "a record holds every case, so --record goes with no filter");
        prepare_record(&mut command)?;
    }
    command.arg("--").args(filter);
    run(&mut command)?;
    if record { keep_record() } else { Ok(()) }
}

/// Makes a bench write its rows. A day's file is replaced by a whole run, never by a part of one.
pub fn prepare_record(command: &mut Command) -> Result<()> {
    let partial = std::path::absolute(PARTIAL)?;
    let _ = fs::remove_dir_all(&partial);
    command.env("POSENC_RECORD", &partial).env("POSENC_COMMIT", commit());
    Ok(())
}

/// Takes over what a bench wrote, and draws it.
pub fn keep_record() -> Result<()> {
    for entry in fs::read_dir(PARTIAL).with_context(|| format!("no bench wrote to {PARTIAL}"))? {
        let entry = entry?;
        let to = Path::new(RECORDS).join(entry.file_name());
        fs::copy(entry.path(), &to)?;
        println!("{}", to.display());
        // A part of a record may hold no family whose growth could be seen: then the rows are the record.
        if to.extension().is_some_and(|extension| extension == "csv") {
            match plot::draw(&to) {
                Ok(picture) => println!("{}", picture.display()),
                Err(error) => println!("no picture: {error:#}"),
            }
        }
    }
    Ok(())
}

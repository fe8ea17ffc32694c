//! `benches/record/<date>-<device>.csv`, and the machine's text beside it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use posenc::Gpu;

/// The device in words.
pub fn device(gpu: &Gpu) -> Result<String> {
    let context = gpu.stream().context();
    let (major, minor) = gpu.capability();
    let attribute = |attribute| context.attribute(attribute);
    Ok(format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, L2 cache {} KiB, {} GiB, memory clock {} MHz, \
         bus {} bits, clock {} MHz",
        context.name()?,
        gpu.multiprocessors(),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? / 1024,
        context.total_mem()? >> 30,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? / 1000,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000,
    ))
}

/// What a record's rows are.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// times on a GPU
    Times,
    /// the same rows without their times, from the emulator
    Rehearsal,
    /// counts of the emulator, of cases of so many elements at most
    Counts(u64),
    /// the same of other implementations' kernels
    Peers,
}

/// The day's record, which takes a row at a time: a run that is ended leaves the rows that it came to.
pub struct Record(Option<PathBuf>);

/// Opens the day's record in the folder `POSENC_RECORD`; without it, nothing is written. What is no time of a GPU says so in its
/// file's name.
pub fn open(gpu: &Gpu, kind: Kind, header: &str) -> Result<Record> {
    let Some(folder) = std::env::var_os("POSENC_RECORD").map(PathBuf::from) else { return Ok(Record(None)) };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (major, minor) = gpu.capability();
    let name = match kind {
        Kind::Counts(_) => format!("emulator-{major}.{minor}"),
        Kind::Peers => format!("peers-emulator-{major}.{minor}"),
        Kind::Rehearsal => format!("rehearsal-{major}.{minor}"),
        Kind::Times => {
            let name = gpu.stream().context().name()?.to_lowercase();
            let parts = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
            parts.collect::<Vec<_>>().join("-")
        }
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?.as_secs();
    let date = date(seconds / 86400);
    let path = folder.join(format!("{date}-{name}.csv"));
    if !path.exists() {
        fs::write(&path, format!("{header}\n"))?;
    }
    let mut machine = format!("date: {date}\n");
    match kind {
        Kind::Counts(most) => writeln!(
            machine,
            "device: the emulator; counts, no times; cases of more than {most} elements are left to a GPU"
        )?,
        Kind::Peers => writeln!(machine, "device: the emulator; counts, and times that are predicted of them")?,
        Kind::Rehearsal => writeln!(machine, "device: the emulator; a rehearsal, without times")?,
        Kind::Times => writeln!(machine, "device: {}", device(gpu)?)?,
    }
    writeln!(machine, "crate: posenc {}", env!("CARGO_PKG_VERSION"))?;
    // Set by cargo xtask bench, and by a bundle's run.sh.
    if let Ok(commit) = std::env::var("POSENC_COMMIT") {
        writeln!(machine, "commit: {commit}")?;
    }
    if let Ok(cpu) = fs::read_to_string("/proc/cpuinfo")
        && let Some(model) = cpu.lines().find(|line| line.starts_with("model name"))
    {
        writeln!(machine, "host: {}", model.split(':').nth(1).unwrap_or_default().trim())?;
    }
    fs::write(path.with_extension("csv").with_extension("txt"), machine)?;
    println!("recorded in {}", path.display());
    Ok(Record(Some(path)))
}

impl Record {
    /// Appends a row.
    pub fn row(&self, row: &str) -> Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.write_all(format!("{row}\n").as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The date of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    format!("{:04}-{month:02}-{day:02}", year_of_era + 400 * era + u64::from(month <= 2))
}

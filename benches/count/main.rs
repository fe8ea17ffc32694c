//! Other implementations' kernels beside posenc's on the emulator: `cargo xtask peers --count` compiles them and runs this.
//!
//! POSENC_PEERS is a folder that holds, for each peer, its PTX (`NAME.ptx`), its version (`NAME.version`) and, where the PTX is newer
//! than the pinned ptxas, the path of another (`NAME.ptxas`); or why it is missing (`NAME.missing`). Launches are those that the
//! peers' host code chooses on the claimed number of multiprocessors. Every result is compared with f64 before it is counted.

mod driver;
mod published;
mod rope;
mod softmax;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::driver::{CudaContext, CudaStream};
use emulator::Emulator;
use posenc::Gpu;
use posenc_benches::support::machine::{self, Entry, Machine};
use posenc_benches::support::model::{self, H200};
use posenc_benches::support::{measure, record};

use driver::Module;

/// Columns of the record, behind the case.
const COLUMNS: &str = "peer,version,launches,distinct_bytes,bytes_asked,sector_bytes_read,sector_bytes_written,\
                       ptx_instructions_per_element,sass_instructions_per_element,predicted_us,bound_by,times_ours";

/// What a run has: the device, and what makes machine code.
pub struct Bench {
    /// the device that posenc's plans are made for
    pub gpu: Gpu,
    /// its stream
    pub stream: Arc<CudaStream>,
    emulator: Emulator,
    machine: Machine,
    folder: PathBuf,
    /// PTX and machine code of modules that were asked for
    known: RefCell<BTreeMap<String, (String, BTreeMap<String, Entry>)>>,
}

/// A peer of one case: calls, and compares its result.
pub type Call<'a> = Box<dyn Fn(&Bench) -> Result<()> + 'a>;

/// One case with everybody who takes part in it, posenc first.
pub struct Case<'a> {
    /// such as `rope/llama-3-8b/512`
    pub name: String,
    /// elements that are worked on
    pub elements: u64,
    /// of its tensors, read and written: decides whether data comes from memory
    pub bytes: u64,
    /// name, the module's name (none: posenc's own kernels), the call
    pub peers: Vec<(&'static str, Option<&'static str>, Call<'a>)>,
}

/// Why a peer takes no part in a case; nothing has failed.
#[derive(Debug)]
pub enum Absent {
    /// it could not be fetched or compiled
    Missing(String),
    /// it has no kernel for this shape
    None(&'static str),
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(why) => write!(f, "missing: {why}"),
            Self::None(why) => write!(f, "no kernel: {why}"),
        }
    }
}

impl std::error::Error for Absent {}

/// A call that was counted.
struct Counted {
    /// what stands behind the case's name in the record
    row: Vec<String>,
    /// predicted microseconds
    time: f64,
    /// predicted over published time, where there is one
    published: Option<f64>,
}

impl Bench {
    fn open() -> Result<Self> {
        let folder =
            std::env::var_os("POSENC_PEERS").context("POSENC_PEERS names no folder: cargo xtask peers --count")?;
        Gpu::open(0)?;
        let stream = CudaContext::new(0)?.per_thread_stream();
        Ok(Self {
            gpu: Gpu::new(&stream)?,
            stream,
            emulator: emulator::attach().context("kernels are counted on the emulator")?,
            machine: Machine::find().context("POSENC_PTXAS and POSENC_NVDISASM name no tools: cargo xtask fetch")?,
            folder: folder.into(),
            known: RefCell::default(),
        })
    }

    fn text(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(file)).ok().map(|text| text.trim().to_string())
    }

    /// A peer's kernels, or why they are missing.
    pub fn module(&self, name: &str) -> Result<Module> {
        // A peer of several modules gives one reason, under the name that theirs begin with.
        let names = std::iter::successors(Some(name), |name| name.rsplit_once('_').map(|(stem, _)| stem));
        let missing = || {
            let why = names.clone().find_map(|name| self.text(&format!("{name}.missing")));
            Absent::Missing(why.unwrap_or_else(|| format!("there is no {name}.ptx")))
        };
        if let Some((ptx, entries)) = self.known.borrow().get(name) {
            return Module::load(ptx.clone(), entries.clone());
        }
        let ptx = std::fs::read_to_string(self.folder.join(format!("{name}.ptx"))).map_err(|_| missing())?;
        let entries = match self.text(&format!("{name}.ptxas")) {
            Some(path) => self.machine.with_ptxas(path.into()).entries(&ptx),
            None => self.machine.entries(&ptx),
        };
        let entries = entries.with_context(|| format!("the PTX of {name}"))?;
        self.known.borrow_mut().insert(name.into(), (ptx.clone(), entries.clone()));
        Module::load(ptx, entries)
    }

    /// Runs and counts one peer of a case.
    fn count(&mut self, case: &Case<'_>, peer: &str, module: Option<&str>, call: &Call<'_>) -> Result<Counted> {
        driver::forget();
        self.emulator.set_unique(true);
        let called = call(self);
        self.emulator.set_unique(false);
        called?;
        let (launches, counters) = (self.emulator.launches(), self.emulator.counters());
        ensure!(launches.len() as u64 == counters.launches && !launches.is_empty(), "{} launches", counters.launches);
        let cost = match module {
            Some(_) => machine::cost(&self.emulator, &launches, &driver::entries_of(&launches)?),
            None => self.machine.cost(&self.emulator)?.context("posenc's machine code is unknown")?,
        };
        let predicted = model::predict(&cost.works, &H200, case.bytes < measure::COLD);
        let version = match module.map(|module| self.text(&format!("{module}.version"))) {
            Some(version) => version.unwrap_or_default(),
            None => env!("CARGO_PKG_VERSION").into(),
        };
        let per_element = |instructions: f64| format!("{:.3}", instructions / case.elements as f64);
        let row = vec![
            peer.into(),
            version,
            launches.len().to_string(),
            (counters.unique_bytes_read + counters.unique_bytes_written).to_string(),
            (counters.bytes_read + counters.bytes_written).to_string(),
            (32 * counters.sectors_read).to_string(),
            (32 * counters.sectors_written).to_string(),
            per_element(counters.instructions() as f64),
            per_element(cost.instructions),
            format!("{:.2}", predicted.time),
            predicted.limit.name().into(),
        ];
        Ok(Counted { row, time: predicted.time, published: published::ratio(&case.name, peer, &cost.works) })
    }

    /// Counts start with the next launch.
    pub fn begin(&self) {
        self.emulator.reset_counters();
    }
}

fn main() -> Result<()> {
    let mut bench = Bench::open()?;
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!(
        "on the emulator: counted; times are predicted for an {}, {}, and named where they differ by 15 %",
        H200.name,
        model::ERROR
    );
    println!(
        "{:28} {:22} {:>8} {:>11} {:>13} {:>13} {:>9} {:>9} {:>12} {:>8} {:>10}",
        "case",
        "peer",
        "launches",
        "bytes",
        "asked/bytes",
        "sectors/bytes",
        "PTX/elem",
        "SASS/elem",
        "predicted us",
        "bound by",
        "peer/ours"
    );
    let record = record::open(&bench.gpu, record::Kind::Peers, &format!("case,{COLUMNS}"))?;
    let (mut missing, mut failed, mut errors) = (BTreeSet::new(), Vec::new(), Vec::new());
    for case in rope::cases().chain(softmax::cases()).filter(|case| case.name.contains(&filter)) {
        let mut ours = None;
        for (peer, module, call) in &case.peers {
            match bench.count(&case, peer, *module, call) {
                Ok(Counted { row, time, published }) => {
                    errors.extend(published);
                    let times = time / *ours.get_or_insert(time);
                    let number = |i: usize| row[i].parse::<f64>().unwrap_or(0.0);
                    let bytes = number(3);
                    println!(
                        "{:28} {:22} {:>8} {:>11} {:13.2} {:13.2} {:>9} {:>9} {:>12} {:>8} {:>10}",
                        case.name,
                        peer,
                        row[2],
                        row[3],
                        number(4) / bytes,
                        (number(5) + number(6)) / bytes,
                        row[7],
                        row[8],
                        row[9],
                        row[10],
                        model::ratio(times)
                    );
                    record.row(&format!("{},{},{times:.3}", case.name, row.join(",")))?;
                }
                Err(error) => match error.downcast_ref::<Absent>() {
                    Some(absent) => {
                        println!("{:28} {peer:22} {absent}", case.name);
                        missing.extend(matches!(absent, Absent::Missing(_)).then_some(*peer));
                    }
                    None => {
                        println!("{:28} {peer:22} failed: {error:#}", case.name);
                        failed.push(format!("{} of {peer}", case.name));
                    }
                },
            }
        }
    }
    if !errors.is_empty() {
        println!("{}", published::summary(errors));
    }
    let missing: Vec<&str> = missing.into_iter().collect();
    println!("missing: {}", if missing.is_empty() { "nobody".into() } else { missing.join(", ") });
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

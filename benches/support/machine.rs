//! The machine code that ptxas makes of the PTX which the emulator runs, with the PTX's lines, so that what is counted in one is
//! known of the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use emulator::{Emulator, LaunchReport};

use super::model::{Work, resident};
use super::sass::{self, Code};

/// One entry: its machine code and what it takes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub code: Code,
    pub registers: u32,
    /// bytes of static shared memory
    pub shared: u32,
    /// instructions of its PTX
    ptx: u32,
}

impl Entry {
    /// Machine instructions for one of the PTX, over the whole of the code.
    fn ratio(&self) -> f64 {
        f64::from(self.code.instructions) / f64::from(self.ptx.max(1))
    }
}

/// ptxas and nvdisasm, where `cargo xtask fetch` has put them, and what they said of modules that were asked for.
pub struct Machine {
    ptxas: PathBuf,
    nvdisasm: PathBuf,
    posenc: BTreeMap<String, Option<Entry>>,
}

/// What the machine code and the counters say of a call.
pub struct Cost {
    /// one for each launch
    pub works: Vec<Work>,
    /// machine instructions of all threads
    pub instructions: f64,
    /// the most bytes that a thread has on their way from global memory, in the launch with the most instructions
    pub in_flight: u32,
}

impl Machine {
    /// The tools that POSENC_PTXAS and POSENC_NVDISASM name; `None` without them.
    pub fn find() -> Option<Self> {
        let [ptxas, nvdisasm] =
            ["POSENC_PTXAS", "POSENC_NVDISASM"].map(|name| std::env::var_os(name).map(PathBuf::from));
        Some(Self { ptxas: ptxas?, nvdisasm: nvdisasm?, posenc: BTreeMap::new() })
    }

    /// The same with another assembler: PTX of a newer version needs a newer one.
    pub fn with_ptxas(&self, ptxas: PathBuf) -> Self {
        Self { ptxas, nvdisasm: self.nvdisasm.clone(), posenc: BTreeMap::new() }
    }

    /// Assembles a PTX text for compute capability 9.0 and reads the machine code.
    pub fn entries(&self, ptx: &str) -> Result<BTreeMap<String, Entry>> {
        let folder = std::env::temp_dir().join(format!("posenc-machine-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let result = self.entries_in(ptx, &folder);
        std::fs::remove_dir_all(&folder)?;
        result
    }

    fn entries_in(&self, ptx: &str, folder: &Path) -> Result<BTreeMap<String, Entry>> {
        let [text, cubin] = ["module.ptx", "module.cubin"].map(|name| folder.join(name));
        std::fs::write(&text, with_lines(ptx))?;
        let mut command = Command::new(&self.ptxas);
        // A warning of line information and a debugger's section is none of the code.
        command.args(["--gpu-name", if ptx.contains("sm_90a") { "sm_90a" } else { "sm_90" }, "--verbose"]);
        command.args(["--generate-line-info", "--output-file"]).arg(&cubin).arg(&text);
        let output = command.output().with_context(|| format!("cannot start {}", self.ptxas.display()))?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ptxas: {}", words.trim());
        let code = sass::disassemble(&self.nvdisasm, &std::fs::read(&cubin)?).context("nvdisasm")?;
        let instructions = sass::ptx_instructions(ptx);
        let mut entries = BTreeMap::new();
        for (name, (registers, shared)) in resources(&words) {
            let code = code.get(&name).with_context(|| format!("nvdisasm shows no {name}"))?.clone();
            let ptx = *instructions.get(&name).with_context(|| format!("the PTX has no {name}"))?;
            entries.insert(name, Entry { code, registers, shared, ptx });
        }
        Ok(entries)
    }

    /// An entry of this crate.
    fn posenc(&mut self, name: &str) -> Result<Option<Entry>> {
        if let Some(known) = self.posenc.get(name) {
            return Ok(known.clone());
        }
        let (stem, dtype) = name.rsplit_once('_').context("an entry ends in its element type")?;
        let files = posenc::gpu::kernels().into_iter().filter(|kernel| kernel.entry == stem).map(|kernel| kernel.file);
        for file in files {
            let images = posenc::gpu::images().iter().find(|images| images.file == file && images.dtype == dtype);
            let Some(image) = images.and_then(|images| images.ptx.iter().find(|image| image.sm == 90)) else {
                continue;
            };
            let text = String::from_utf8(image.bytes()).context("PTX is text")?;
            let entries = self.entries(&text).with_context(|| format!("{file} for {dtype}"))?;
            self.posenc.extend(entries.into_iter().map(|(name, entry)| (name, Some(entry))));
        }
        Ok(self.posenc.entry(name.into()).or_default().clone())
    }

    /// What the launches since the counters' last reset cost; `None` of kernels that have no machine code here.
    pub fn cost(&mut self, emulator: &Emulator) -> Result<Option<Cost>> {
        let launches = emulator.launches();
        let mut entries = Vec::new();
        for launch in &launches {
            let Some(entry) = self.posenc(&launch.kernel)? else { return Ok(None) };
            entries.push(entry);
        }
        Ok(Some(cost(emulator, &launches, &entries)))
    }
}

/// What launches cost, of which each has its entry here.
pub fn cost(emulator: &Emulator, launches: &[LaunchReport], entries: &[Entry]) -> Cost {
    let mut cost = Cost { works: Vec::new(), instructions: 0.0, in_flight: 0 };
    let mut most = 0.0;
    for (i, (launch, entry)) in launches.iter().zip(entries).enumerate() {
        let blocks = launch.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        let threads = launch.block.iter().product::<u32>();
        let warps = blocks * u64::from(threads.div_ceil(32));
        let turns = entry.code.turns(&emulator.loads(i), warps);
        let counters = &launch.counters;
        let read = counters.unique_bytes_read;
        let work = Work {
            bytes: (read + counters.unique_bytes_written) as f64,
            l2_bytes: (read + 32 * counters.sectors_written) as f64,
            instructions: counters.warp_instructions as f64 * entry.ratio(),
            blocks,
            threads,
            resident: resident(entry.registers, entry.shared + launch.dynamic_shared, threads),
            turns: turns.turns,
        };
        cost.instructions += counters.instructions() as f64 * entry.ratio();
        if work.instructions > most {
            most = work.instructions;
            cost.in_flight = turns.in_flight;
        }
        cost.works.push(work);
    }
    cost
}

/// The text with the number of each of its lines as line information, and none but that.
fn with_lines(ptx: &str) -> String {
    let mut text = String::with_capacity(2 * ptx.len());
    let mut depth = 0;
    // a statement that goes on on the next line
    let mut goes_on = false;
    for (i, line) in ptx.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default().trim();
        match code.split_whitespace().next() {
            Some(".loc" | ".file") => {
                text.push('\n');
                continue;
            }
            // What follows is a debugger's.
            Some(".section") => break,
            _ => {}
        }
        if depth > 0 && !goes_on && sass::statements(line) > 0 {
            text += &format!(".loc 1 {} 0\n", i + 1);
        }
        depth += sass::nesting(code);
        goes_on = depth > 0 && !code.is_empty() && !code.ends_with([';', '{', '}', ':']);
        text += line;
        text.push('\n');
        if code.starts_with(".address_size") {
            text += ".file 1 \"k.ptx\"\n";
        }
    }
    // A debugger's sections are gone.
    text.replace(", debug", "")
}

/// Registers and static shared memory of each entry, out of what ptxas says.
fn resources(words: &str) -> BTreeMap<String, (u32, u32)> {
    let mut found = BTreeMap::new();
    let mut name = "";
    for line in words.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            name = rest.split('\'').next().unwrap_or_default();
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let number = |unit: &str| {
                let before = rest.split(unit).next().filter(|before| before.len() < rest.len())?;
                before.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
            };
            found.insert(name.to_string(), (number(" registers").unwrap_or(0), number(" bytes smem").unwrap_or(0)));
        }
    }
    found
}

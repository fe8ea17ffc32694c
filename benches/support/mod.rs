//! What the rooms' benches share: cases, their check, and their measurement on a GPU or their counts on the emulator.
//!
//! **On a GPU** each case is checked against its reference and then timed by CUDA events around replays of a graph that
//! holds many calls, so that no launch is seen. *Hot*: every call works on the same buffers, which fit in half of the L2
//! cache. *Cold*: the calls go round through sets of buffers that hold four times the L2 cache in all. Cases below 4 MiB
//! are hot alone: what made their data a moment ago left it in the cache. In the same run stand the two floors: a device
//! copy that moves the bytes which the case must move (a memset of them, where a call reads next to nothing), and an empty
//! kernel, both replayed from graphs likewise.
//!
//! **On the emulator** there is no time. Each case is checked, and its bytes, sectors and instructions are counted. With
//! `POSENC_REHEARSE=1` the way of a GPU is taken for a few small cases, floors and all, to see that it works; no number comes
//! out of it.

pub mod measure;
pub mod record;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cudarc::driver::CudaContext;
use emulator::Emulator;
use posenc::Gpu;

/// Makes a case's operation on a device, with as many sets of buffers as are wanted.
pub type Make = Box<dyn Fn(&Gpu, usize) -> Result<Box<dyn Operation>>>;

/// One call of an operation on real shapes.
pub struct Case {
    /// such as `rope/llama-3-8b/bf16/InPlace/8192`: the last part is the size that a family grows in
    pub name: String,
    /// elements that are worked on
    pub elements: u64,
    /// the least bytes that a call must read: each input once
    pub read: u64,
    /// the least bytes that a call must write: each output once
    pub written: u64,
    /// makes that many sets of buffers
    pub make: Make,
}

impl Case {
    /// The least bytes that a call must move.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

/// Buffers and a plan.
pub trait Operation {
    /// One call on one set of buffers.
    fn call(&mut self, set: usize) -> posenc::Result<()>;

    /// Calls once on fresh data in the first set and compares a part of the result with the reference.
    fn verify(&mut self) -> Result<()>;
}

/// Elements up to which a case is run on the emulator: ten seconds or so. `POSENC_MOST` says another number.
const MOST_ON_THE_EMULATOR: u64 = 1 << 25;

/// Cases that a rehearsal takes.
const REHEARSED: usize = 3;

/// The device, and which cases are wanted.
pub struct Bench {
    pub room: &'static str,
    pub gpu: Gpu,
    pub emulator: Option<Emulator>,
    /// when no further case begins
    pub end: Option<Instant>,
    filter: Option<String>,
}

impl Bench {
    /// Opens the device. The one positional argument is a part of the wanted cases' names; cargo's `--bench` is ignored.
    /// `POSENC_SECONDS` is how long cases may begin.
    pub fn open(room: &'static str) -> Result<Self> {
        Gpu::open(0).context("benches need a device, `cargo xtask bench` brings one")?;
        // A stream that can be captured, and that makes cudarc track no events: their waits cannot be captured.
        let stream = CudaContext::new(0)?.per_thread_stream();
        let gpu = Gpu::new(&stream)?;
        let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        let end = match std::env::var("POSENC_SECONDS") {
            Ok(text) => {
                let seconds = text.parse().with_context(|| format!("POSENC_SECONDS is {text}, it must be a number"))?;
                Some(Instant::now() + Duration::from_secs(seconds))
            }
            Err(_) => None,
        };
        Ok(Self { room, gpu, emulator: emulator::attach(), end, filter })
    }

    /// Checks and measures, or counts, every wanted case, and records the rows where `POSENC_RECORD` says.
    pub fn run(&self, cases: Vec<Case>) -> Result<()> {
        let wanted = |case: &Case| self.filter.as_ref().is_none_or(|part| case.name.contains(part.as_str()));
        let cases: Vec<Case> = cases.into_iter().filter(wanted).collect();
        ensure!(!cases.is_empty(), "no case of {} is named like {:?}", self.room, self.filter);
        let most = match std::env::var("POSENC_MOST") {
            Ok(text) => text.parse().with_context(|| format!("POSENC_MOST is {text}, it must be a number"))?,
            Err(_) => MOST_ON_THE_EMULATOR,
        };
        match &self.emulator {
            None => measure::run(self, &cases),
            Some(_) if std::env::var_os("POSENC_REHEARSE").is_some() => {
                let small = cases.into_iter().filter(|case| case.elements <= most);
                measure::run(self, &small.take(REHEARSED).collect::<Vec<_>>())
            }
            Some(emulator) => self.count(emulator, &cases, most),
        }
    }

    fn count(&self, emulator: &Emulator, cases: &[Case], most: u64) -> Result<()> {
        println!("{}: on the emulator: checked and counted, not timed", self.room);
        println!(
            "{:52} {:>14} {:>14} {:>14} {:>9}",
            "case", "bytes to move", "bytes asked", "sector bytes", "PTX/elem"
        );
        let header = "case,bytes_to_move,bytes_asked,sector_bytes,ptx_instructions_per_element";
        let record = record::open(&self.gpu, record::Kind::Counts(most), header)?;
        for case in cases {
            if case.elements > most {
                println!("{:52} left to a GPU: {} elements", case.name, case.elements);
                continue;
            }
            let count = count(&self.gpu, emulator, case)?;
            println!(
                "{:52} {:14} {:14} {:14} {:9.3}",
                case.name,
                case.bytes(),
                count.bytes,
                count.sector_bytes,
                count.instructions_per_element
            );
            record.row(&format!(
                "{}/{},{},{},{},{:.3}",
                self.room,
                case.name,
                case.bytes(),
                count.bytes,
                count.sector_bytes,
                count.instructions_per_element
            ))?;
        }
        Ok(())
    }
}

/// What the emulator counted in one call.
pub struct Count {
    /// bytes that threads asked for and stored
    pub bytes: u64,
    /// bytes of the 32-byte sectors that these accesses touch, each once for a warp's instruction
    pub sector_bytes: u64,
    pub instructions_per_element: f64,
}

/// Checks a case on the emulator and counts its call.
pub fn count(gpu: &Gpu, emulator: &Emulator, case: &Case) -> Result<Count> {
    let mut operation = (case.make)(gpu, 1).with_context(|| case.name.clone())?;
    operation.verify().with_context(|| format!("{} is wrong", case.name))?;
    // The sum: a call may be more than one kernel.
    emulator.reset_counters();
    operation.call(0)?;
    let counters = emulator.counters();
    ensure!(counters.launches > 0, "the emulator saw no launch");
    Ok(Count {
        bytes: counters.bytes_read + counters.bytes_written,
        sector_bytes: 32 * (counters.sectors_read + counters.sectors_written),
        instructions_per_element: counters.instructions() as f64 / case.elements as f64,
    })
}

/// Compares with the reference as tests do, but goes on with a sentence instead of a panic.
pub fn compare<T: posenc::Scalar>(got: &[T], want: &[f64], bound: impl Fn(usize) -> f64) -> Result<()> {
    let worst = posenc::accuracy::compare(got, want, bound);
    ensure!(worst.share <= 1.0, "element {} is {}, the truth is {}", worst.index, worst.got, worst.want);
    Ok(())
}

/// Values of magnitude 0.5 to 2 and either sign, by a counter: splitmix64. They repeat after 2^20 - 3, no multiple of any
/// size, so that a billion of them are made in a second.
pub fn values<T: posenc::Scalar>(seed: u64, n: usize) -> Vec<T> {
    let some: Vec<T> = (0..n.min((1 << 20) - 3) as u64).map(|i| T::from_f64(value(bits(seed, i)))).collect();
    some.iter().copied().cycle().take(n).collect()
}

/// The `i`-th 64 random bits of `seed`.
pub fn bits(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn value(bits: u64) -> f64 {
    let magnitude = 0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64;
    if bits & 1 == 0 { magnitude } else { -magnitude }
}

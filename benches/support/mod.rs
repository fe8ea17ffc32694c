//! What the rooms' benches share: cases, their check, and their measurement on a GPU or their counts on the emulator.
//!
//! **On a GPU** each case is checked against its reference and then timed by CUDA events around replays of a graph that
//! holds many calls, so that no launch is seen. *Hot*: every call works on the same buffers, which fit in half of the L2
//! cache. *Cold*: the calls go round through sets of buffers that hold four times the L2 cache in all. Cases below 4 MiB
//! are hot alone: what made their data a moment ago left it in the cache. In the same run stand the two floors: a device
//! copy that moves the bytes which the case must move (a memset of them, where a call reads next to nothing), and an empty
//! kernel, both replayed from graphs likewise.
//!
//! **On the emulator** there is no time. Each case is checked, and its bytes, sectors and instructions are counted; a model of a
//! device makes a *predicted* time of them (`docs/device-model.md`). With
//! `POSENC_REHEARSE=1` the way of a GPU is taken for a few small cases, floors and all, to see that it works; no number comes
//! out of it.

pub mod machine;
pub mod measure;
pub mod model;
pub mod record;
pub mod sass;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cudarc::driver::CudaContext;
use emulator::Emulator;
use posenc::Gpu;

use machine::Machine;
use model::{H200, Work};

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
    pub fn open(room: &'static str) -> Result<Self> {
        Self::new(room, std::env::args().skip(1).find(|argument| !argument.starts_with('-')))
    }

    /// Opens the device for cases whose name contains `filter`. `POSENC_SECONDS` is how long cases may begin.
    pub fn new(room: &'static str, filter: Option<String>) -> Result<Self> {
        Gpu::open(0).context("benches need a device, `cargo xtask bench` brings one")?;
        // A stream that can be captured, and that makes cudarc track no events: their waits cannot be captured.
        let stream = CudaContext::new(0)?.per_thread_stream();
        let gpu = Gpu::new(&stream)?;
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
        let mut machine = Machine::find();
        match machine {
            Some(_) => println!(
                "predicted for an {}, {}, data from memory where 4 MiB or more must move; share: of a copy, - where it is nearer than 15 %",
                H200.name,
                model::ERROR
            ),
            None => println!("nothing is predicted without the machine code: cargo xtask fetch"),
        }
        println!(
            "{:52} {:>14} {:>14} {:>14} {:>14} {:>9} {:>9} {:>13} {:>6} {:>8}",
            "case",
            "bytes to move",
            "bytes asked",
            "sectors read",
            "written",
            "PTX/elem",
            "SASS/elem",
            "predicted us",
            "share",
            "bound by"
        );
        let record =
            record::open(&self.gpu, record::Kind::Counts(most), &format!("case,{COLUMNS},predicted_us,bound_by"))?;
        for case in cases {
            if case.elements > most {
                println!("{:52} left to a GPU: {} elements", case.name, case.elements);
                continue;
            }
            let count = count(&self.gpu, emulator, machine.as_mut(), case)?;
            let hot = case.bytes() < measure::COLD;
            let predicted = count.works.as_deref().map(|works| model::predict(works, &H200, hot));
            let copy = model::predict(&[Work::copy(case.bytes() as f64)], &H200, hot);
            let [time, share, limit] = predicted.map_or(["", "", ""].map(String::from), |predicted| {
                let share = model::ratio(copy.time / predicted.time);
                [format!("{:.2}", predicted.time), share, predicted.limit.name().into()]
            });
            println!(
                "{:52} {:14} {:14} {:14} {:14} {:9.3} {:9.3} {time:>13} {share:>6} {limit:>8}",
                case.name,
                case.bytes(),
                count.bytes,
                count.read,
                count.written,
                count.ptx,
                count.sass
            );
            record.row(&format!("{}/{},{},{time},{limit}", self.room, case.name, count.row(case)))?;
        }
        Ok(())
    }
}

/// Columns of a case's counts, behind its name.
pub const COLUMNS: &str = "bytes_to_move,bytes_asked,sector_bytes_read,sector_bytes_written,ptx_instructions_per_element,\
                           sass_instructions_per_element,bytes_in_flight,bank_conflicts";

/// What the emulator counted in one call, and what the machine code says of it.
pub struct Count {
    /// bytes that threads asked for and stored
    pub bytes: u64,
    /// bytes of the 32-byte sectors that reads touch, each once for a warp's instruction
    pub read: u64,
    /// the same of writes
    pub written: u64,
    /// PTX instructions of an element
    pub ptx: f64,
    /// machine instructions of an element; 0 without the machine code
    pub sass: f64,
    /// the most bytes that a thread has on their way from global memory; 0 without the machine code
    pub in_flight: u32,
    /// passes over shared memory that bank conflicts cost
    pub bank_conflicts: u64,
    /// the launches, if their machine code is known
    pub works: Option<Vec<Work>>,
}

impl Count {
    /// The columns as text.
    pub fn row(&self, case: &Case) -> String {
        format!(
            "{},{},{},{},{:.3},{:.3},{},{}",
            case.bytes(),
            self.bytes,
            self.read,
            self.written,
            self.ptx,
            self.sass,
            self.in_flight,
            self.bank_conflicts
        )
    }
}

/// Checks a case on the emulator and counts its call.
pub fn count(gpu: &Gpu, emulator: &Emulator, machine: Option<&mut Machine>, case: &Case) -> Result<Count> {
    let mut operation = (case.make)(gpu, 1).with_context(|| case.name.clone())?;
    operation.verify().with_context(|| format!("{} is wrong", case.name))?;
    // The sum: a call may be more than one kernel.
    emulator.reset_counters();
    emulator.set_unique(machine.is_some());
    let called = operation.call(0);
    emulator.set_unique(false);
    called?;
    let counters = emulator.counters();
    ensure!(counters.launches > 0, "the emulator saw no launch");
    let cost = machine.map(|machine| machine.cost(emulator)).transpose()?.flatten();
    let per_element = |instructions: f64| instructions / case.elements as f64;
    Ok(Count {
        bytes: counters.bytes_read + counters.bytes_written,
        read: 32 * counters.sectors_read,
        written: 32 * counters.sectors_written,
        ptx: per_element(counters.instructions() as f64),
        sass: cost.as_ref().map_or(0.0, |cost| per_element(cost.instructions)),
        in_flight: cost.as_ref().map_or(0, |cost| cost.in_flight),
        bank_conflicts: counters.bank_conflicts,
        works: cost.map(|cost| cost.works),
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

//! Times on a GPU: criterion over CUDA events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};
use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaFunction, CudaGraph, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;

use super::{Bench, Case, record};
use crate::goal;

/// Time between two events of one stream.
#[derive(Clone)]
pub struct CudaEvents(Arc<CudaStream>);

impl CudaEvents {
    fn record(&self) -> CudaEvent {
        self.0.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("the driver records an event")
    }
}

impl Measurement for CudaEvents {
    type Intermediate = CudaEvent;
    type Value = Duration;

    fn start(&self) -> CudaEvent {
        self.record()
    }
    fn end(&self, start: CudaEvent) -> Duration {
        let end = self.record();
        end.synchronize().expect("the kernels before the event end");
        let ms = start.elapsed_ms(&end).expect("the events are timed (CUDA 12.8 or later)");
        Duration::from_secs_f64(f64::from(ms) / 1e3)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_secs_f64() * 1e9
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Nanoseconds
    }
}

struct Nanoseconds;

impl ValueFormatter for Nanoseconds {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (factor, unit) = if typical < 1e3 { (1.0, "ns") } else { (1e-3, "µs") };
        values.iter_mut().for_each(|value| *value *= factor);
        unit
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (Throughput::Bytes(n) | Throughput::BytesDecimal(n) | Throughput::Elements(n)) = *throughput else {
            return self.scale_for_machines(values);
        };
        values.iter_mut().for_each(|value| *value = n as f64 / *value);
        "GB/s"
    }
    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns"
    }
}

/// Median, and the 5th and 95th of 100, in nanoseconds a call.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples.get(((samples.len().checked_sub(1)?) as f64 * share).round() as usize).copied();
        Some(Self { median: at(0.5)?, low: at(0.05)?, high: at(0.95)? })
    }
}

const SAMPLES: usize = 30;
const MIB: u64 = 1 << 20;
/// Bytes from which on a case is timed from memory, too: what made less a moment ago left it in the cache.
pub const COLD: u64 = 4 * MIB;

struct Clock {
    criterion: Criterion<CudaEvents>,
    events: CudaEvents,
    stream: Arc<CudaStream>,
    l2: u64,
}

impl Clock {
    fn new(bench: &Bench) -> Result<Self> {
        let stream = bench.gpu.stream().clone();
        let l2 = stream.context().attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let events = CudaEvents(stream.clone());
        let criterion = Criterion::default()
            .with_measurement(events.clone())
            .sample_size(SAMPLES)
            .warm_up_time(Duration::from_millis(60))
            .measurement_time(Duration::from_millis(150))
            // Its own analysis is not used; with the usual 100000 it would take longer than the measurement.
            .nresamples(1000)
            .without_plots();
        Ok(Self { criterion, events, stream, l2: u64::try_from(l2)? })
    }

    /// Puts `calls` calls into one graph and times its replays.
    fn time(&mut self, name: &str, calls: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<Spread> {
        let graph = self.capture(calls, &mut call)?;
        graph.upload()?;
        let samples = Rc::new(RefCell::new(Vec::new()));
        let events = self.events.clone();
        let taken = samples.clone();
        self.criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|replays| {
                let start = events.start();
                (0..replays).for_each(|_| graph.launch().expect("the graph is replayed"));
                let time = events.end(start);
                taken.borrow_mut().push(events.to_f64(&time) / (replays as f64 * calls as f64));
                // One iteration is one replay; criterion's figures are then for one call.
                time / u32::try_from(calls).expect("few calls")
            });
        });
        // The samples of the measurement are the last; those before warmed up.
        let samples = samples.borrow();
        let measured = samples[samples.len().saturating_sub(SAMPLES)..].to_vec();
        Spread::of(measured).with_context(|| format!("{name} was not measured"))
    }

    fn capture(&self, calls: usize, call: &mut dyn FnMut(usize) -> Result<()>) -> Result<CudaGraph> {
        // Once without a graph: what is loaded lazily is loaded now.
        call(0)?;
        self.stream.synchronize()?;
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let result = (0..calls).try_for_each(call);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        result?;
        graph?.context("an empty graph")
    }

    /// What the driver itself takes to move as many bytes on `sets` sets of buffers: a copy, which reads half of them and
    /// writes the other half, or a memset, which writes all.
    fn floor(&mut self, bytes: u64, writes_alone: bool, sets: usize, calls: usize) -> Result<Spread> {
        let stream = self.stream.clone();
        if writes_alone {
            let n = usize::try_from(bytes)?.max(1);
            let mut to = (0..sets).map(|_| stream.alloc_zeros::<u8>(n)).collect::<Result<Vec<_>, _>>()?;
            return self.time(&format!("floor/memset of {bytes} bytes over {sets} sets"), calls, |i| {
                Ok(stream.memset_zeros(&mut to[i % sets])?)
            });
        }
        let half = usize::try_from(bytes / 2)?.max(1);
        let from = (0..sets).map(|_| self.stream.alloc_zeros::<u8>(half)).collect::<Result<Vec<_>, _>>()?;
        let mut to = (0..sets).map(|_| self.stream.alloc_zeros::<u8>(half)).collect::<Result<Vec<_>, _>>()?;
        self.time(&format!("floor/copy of {bytes} bytes over {sets} sets"), calls, |i| {
            Ok(stream.memcpy_dtod(&from[i % sets], &mut to[i % sets])?)
        })
    }

    /// A kernel that does nothing.
    fn empty(&mut self) -> Result<Spread> {
        const EMPTY: &str = ".version 6.3\n.target sm_75\n.address_size 64\n.visible .entry empty() { ret; }\n";
        let module = self.stream.context().load_module(Ptx::from_src(EMPTY))?;
        let function: CudaFunction = module.load_function("empty")?;
        let stream = self.stream.clone();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        self.time("floor/empty kernel", 64, |_| {
            // SAFETY: the kernel has no parameters and touches no memory.
            unsafe { stream.launch_builder(&function).launch(config) }?;
            Ok(())
        })
    }
}

/// Checks and times every case, prints a row for each, and records them; on the emulator, a rehearsal of that. A case that is
/// wrong ends the run with an error, behind all others.
pub fn run(bench: &Bench, cases: &[Case]) -> Result<()> {
    let clock = Clock::new(bench)?;
    println!("{}: {}", bench.room, record::device(&bench.gpu)?);
    let kind = if bench.emulator.is_some() {
        println!("a rehearsal on the emulator: what criterion says below are no times of a GPU, and none is recorded");
        record::Kind::Rehearsal
    } else {
        record::Kind::Times
    };
    let header = "case,cache,bytes_to_move,median_ns,p5_ns,p95_ns,floor,floor_ns,empty_kernel_ns";
    let record = record::open(&bench.gpu, kind, header)?;
    let mut timing = Timing::new(bench, clock, record)?;
    for case in cases {
        let bytes = case.bytes();
        // Cold: sets that hold four times the L2 cache. Hot: one set, where it fits in half of it.
        let cold = usize::try_from((4 * timing.clock.l2).div_ceil(bytes.max(1)))?.max(1);
        let regimes = [("cold", cold, bytes >= COLD), ("hot", 1, bytes <= timing.clock.l2 / 2)];
        for (regime, sets, _) in regimes.into_iter().filter(|(.., wanted)| *wanted) {
            let name = format!("{} {regime}", case.name);
            if bench.end.is_some_and(|end| Instant::now() >= end) {
                timing.not_run.push(name);
            } else if let Err(error) = timing.measure(case, regime, sets) {
                println!("{name} was not timed: {error:#}");
                timing.wrong.push(format!("{name}: {error:#}"));
            }
        }
    }
    timing.end()
}

/// The cases of a run so far.
struct Timing<'a> {
    bench: &'a Bench,
    clock: Clock,
    record: record::Record,
    /// an empty kernel
    empty: Spread,
    floors: BTreeMap<(u64, bool, usize), Spread>,
    measured: usize,
    /// shares of the floor that cases reached whose data came from memory
    shares: Vec<(f64, String)>,
    headlines: Vec<String>,
    not_run: Vec<String>,
    wrong: Vec<String>,
}

impl<'a> Timing<'a> {
    fn new(bench: &'a Bench, mut clock: Clock, record: record::Record) -> Result<Self> {
        let (empty, floors) = (clock.empty()?, BTreeMap::new());
        let (shares, headlines, not_run, wrong) = Default::default();
        Ok(Self { bench, clock, record, empty, floors, measured: 0, shares, headlines, not_run, wrong })
    }

    fn measure(&mut self, case: &Case, regime: &str, sets: usize) -> Result<()> {
        let (room, bytes) = (self.bench.room, case.bytes());
        // What comes from tables and positions is less than a hundredth.
        let writes_alone = case.read * 100 < case.written;
        let mut operation = (case.make)(&self.bench.gpu, sets)?;
        operation.verify().context("its result is wrong")?;
        // Small calls: enough of them that the graph's own start does not count.
        let calls = sets.max(if bytes < MIB { 64 } else { 16 });
        let key = (bytes, writes_alone, sets);
        let floor = match self.floors.get(&key) {
            Some(&floor) => floor,
            None => self.clock.floor(bytes, writes_alone, sets, calls)?,
        };
        self.floors.insert(key, floor);
        let name = format!("{room}/{}/{regime}", case.name);
        let time = self.clock.time(&name, calls, |i| Ok(operation.call(i % sets)?))?;
        self.measured += 1;
        if self.bench.emulator.is_some() {
            ensure!(time.median > 0.0 && floor.median > 0.0, "it took no time");
            println!("{:60} {regime:4} rehearsed", case.name);
            return self.record.row(&format!("{room}/{},{regime},{bytes},,,,,,", case.name));
        }
        let rate = bytes as f64 / time.median;
        let share = floor.median / time.median;
        let kernels = time.median / self.empty.median;
        let floor_name = if writes_alone { "memset" } else { "copy" };
        println!(
            "{:60} {regime:4} {:10.0} ns ({:.0}..{:.0}) {rate:7.0} GB/s, {:5.1} % of a {floor_name}, {kernels:.2} empty kernels",
            case.name,
            time.median,
            time.low,
            time.high,
            100.0 * share,
        );
        if regime == "cold" {
            self.shares.push((share, case.name.clone()));
        }
        if let Some(goal) = goal(room, &case.name) {
            let verdict = goal.verdict(share, kernels);
            let name = &case.name;
            let time = time.median;
            self.headlines.push(format!(
                "{name} {regime}: {time:.0} ns, {share:.2} of a {floor_name}, {kernels:.1} empty kernels{verdict}"
            ));
        }
        self.record.row(&format!(
            "{room}/{},{regime},{bytes},{:.1},{:.1},{:.1},{floor_name},{:.1},{:.1}",
            case.name, time.median, time.low, time.high, floor.median, self.empty.median
        ))
    }

    /// Prints what a page about this run takes over: the first line is about all cases.
    fn end(mut self) -> Result<()> {
        self.shares.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut first =
            format!("{} measured, {} not run, {} wrong", self.measured, self.not_run.len(), self.wrong.len());
        if let (Some((lowest, name)), Some((median, _))) = (self.shares.first(), self.shares.get(self.shares.len() / 2))
        {
            first += &format!("; from memory, share of a copy: median {median:.2}, lowest {lowest:.2} ({name})");
        }
        println!("summary: {first}");
        for line in self.headlines.iter().chain(&self.wrong) {
            println!("summary: {line}");
        }
        if !self.not_run.is_empty() {
            println!("summary: out of time before {} and what follows it", self.not_run[0]);
            println!("not run: {}", self.not_run.join(", "));
        }
        ensure!(self.wrong.is_empty(), "{} were not timed, first {}", self.wrong.len(), self.wrong[0]);
        ensure!(self.measured > 0 || !self.not_run.is_empty(), "nothing was measured");
        Ok(())
    }
}

//! Times on a GPU: criterion over CUDA events.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};
use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaFunction, CudaGraph, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;

use super::{Bench, Case, record};

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

/// Checks and times every case, prints a row for each, and records them; on the emulator, a rehearsal of that.
pub fn run(bench: &Bench, cases: &[Case]) -> Result<()> {
    let mut clock = Clock::new(bench)?;
    println!("{}: {}", bench.room, record::device(&bench.gpu)?);
    let rehearsal = bench.emulator.is_some();
    if rehearsal {
        println!(
            "a rehearsal on the emulator: what criterion says below are no times of a GPU, and nothing is recorded"
        );
    }
    let empty = clock.empty()?;
    let mut floors = BTreeMap::new();
    let mut rows = Vec::new();
    for case in cases {
        let bytes = case.bytes();
        // What comes from tables and positions is less than a hundredth.
        let writes_alone = case.read * 100 < case.written;
        // Cold: sets that hold four times the L2 cache. Hot: one set, where it fits in half of it.
        let cold = usize::try_from((4 * clock.l2).div_ceil(bytes.max(1)))?.max(1);
        let regimes = [("cold", cold, bytes >= 4 * MIB), ("hot", 1, bytes <= clock.l2 / 2)];
        for (regime, sets, wanted) in regimes {
            if !wanted {
                continue;
            }
            let mut operation = (case.make)(&bench.gpu, sets).with_context(|| case.name.clone())?;
            operation.verify().with_context(|| format!("{} is wrong and was not timed", case.name))?;
            // Small calls: enough of them that the graph's own start does not count.
            let calls = sets.max(if bytes < MIB { 64 } else { 16 });
            let key = (bytes, writes_alone, sets);
            let floor = match floors.get(&key) {
                Some(&floor) => floor,
                None => clock.floor(bytes, writes_alone, sets, calls)?,
            };
            floors.insert(key, floor);
            let time = clock
                .time(&format!("{}/{}/{regime}", bench.room, case.name), calls, |i| Ok(operation.call(i % sets)?))?;
            if rehearsal {
                ensure!(time.median > 0.0 && floor.median > 0.0, "{} took no time", case.name);
                println!("{:60} {regime:4} rehearsed", case.name);
                rows.push(String::new());
                continue;
            }
            let rate = bytes as f64 / time.median;
            let share = floor.median / time.median;
            let floor_name = if writes_alone { "memset" } else { "copy" };
            println!(
                "{:60} {regime:4} {:10.0} ns ({:.0}..{:.0}) {rate:7.0} GB/s, {:5.1} % of a {floor_name}, {:.2} empty kernels",
                case.name,
                time.median,
                time.low,
                time.high,
                100.0 * share,
                time.median / empty.median
            );
            rows.push(format!(
                "{}/{},{regime},{},{:.1},{:.1},{:.1},{floor_name},{:.1},{:.1}",
                bench.room, case.name, bytes, time.median, time.low, time.high, floor.median, empty.median
            ));
        }
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    if rehearsal {
        return Ok(());
    }
    record::write(
        &bench.gpu,
        None,
        "case,cache,bytes_to_move,median_ns,p5_ns,p95_ns,floor,floor_ns,empty_kernel_ns",
        &rows,
    )
}

//! A first-order model of a device: a time out of counts. What it says is *predicted*, never measured.
//!
//! `docs/device-model.md` has the formula, the constants with their sources, the error against published times, and what no
//! published time tests.

/// A device's data sheet.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub name: &'static str,
    pub multiprocessors: u32,
    /// boost clock, GHz
    pub clock: f64,
    /// memory, TB/s
    pub bandwidth: f64,
    /// second-level cache, MB
    pub l2: f64,
}

pub const H200: Device = Device { name: "H200", multiprocessors: 132, clock: 1.98, bandwidth: 4.8, l2: 50.0 };

// Fitted to 231 published times (docs/device-model.md).
/// Share of the bandwidth that a copy reaches.
const REACHED: f64 = 0.889;
/// Bytes from the second-level cache a clock and multiprocessor.
const L2_BYTES: f64 = 33.0;
/// Share of a multiprocessor's four issue slots a clock that is filled.
const ISSUED: f64 = 0.79;
/// Of the norm that joins limits which overlap, but not wholly.
const NORM: f64 = 2.3;
/// Latency of memory and of the second-level cache, microseconds.
const LATENCY: [f64; 2] = [0.54, 0.21];
/// Cycles of an instruction of one warp, alone.
const CYCLES: f64 = 0.97;
/// From one kernel of a graph to the next, where the first does nothing, microseconds.
const EMPTY: f64 = 1.24;

/// Times nearer to each other than this are not told apart.
pub const RESOLUTION: f64 = 1.15;
/// Error of a predicted time: nine of ten published times on this generation lie within it.
pub const ERROR: &str = "±30 %";

/// What one launch does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// distinct bytes that are read and written
    pub bytes: f64,
    /// bytes of sectors that pass the second-level cache
    pub l2_bytes: f64,
    /// machine instructions of all warps
    pub instructions: f64,
    pub blocks: u64,
    /// threads of a block
    pub threads: u32,
    /// blocks that a multiprocessor holds
    pub resident: u32,
    /// latencies that a warp waits for one after another
    pub turns: f64,
}

/// What takes the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Memory,
    L2,
    Issue,
    /// turns of resident blocks, each with its latencies and its instructions one after another
    Latency,
}

impl Limit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::L2 => "L2",
            Self::Issue => "issue",
            Self::Latency => "latency",
        }
    }
}

/// A predicted time.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// microseconds of all launches of a call, with what a graph's empty kernels take
    pub time: f64,
    /// of the launch that takes the longest
    pub limit: Limit,
}

impl Work {
    /// A copy of so many bytes in all, half of them read.
    pub fn copy(bytes: f64) -> Self {
        let blocks = (bytes / 2.0 / 16384.0).ceil().max(1.0) as u64;
        let instructions = bytes / 64.0;
        Self { bytes, l2_bytes: bytes, instructions, blocks, threads: 256, resident: 4, turns: 1.5 }
    }

    /// Microseconds by limit; `hot`: as often as it fits, data is in the second-level cache.
    fn limits(&self, device: &Device, hot: bool) -> [(Limit, f64); 4] {
        let multiprocessors = f64::from(device.multiprocessors);
        let clock = device.clock * 1e3;
        // All of it is found there below half of the cache, none above one and a half.
        let missed = if hot { (self.bytes / 1e6 / device.l2 - 0.5).clamp(0.0, 1.0) } else { 1.0 };
        let busy = multiprocessors.min(self.blocks as f64);
        let waves = (self.blocks as f64 / (multiprocessors * f64::from(self.resident))).max(1.0);
        let latency = missed * LATENCY[0] + (1.0 - missed) * LATENCY[1];
        let warps = self.blocks as f64 * f64::from(self.threads.div_ceil(32));
        [
            (Limit::Memory, missed * self.bytes / (device.bandwidth * REACHED * 1e6)),
            (Limit::L2, self.l2_bytes / (multiprocessors * L2_BYTES * clock)),
            (Limit::Issue, self.instructions / (busy * 4.0 * ISSUED * clock)),
            (Limit::Latency, waves * (self.turns * latency + self.instructions / warps * CYCLES / clock)),
        ]
    }
}

/// A call's predicted time on a device.
pub fn predict(launches: &[Work], device: &Device, hot: bool) -> Prediction {
    let mut prediction = Prediction { time: 0.0, limit: Limit::Latency };
    let mut longest = 0.0;
    for work in launches {
        let limits = work.limits(device, hot);
        let [memory, l2, issue, latency] = limits.map(|(_, time)| time);
        let time = (memory.max(l2).powf(NORM) + issue.powf(NORM) + latency.powf(NORM)).powf(1.0 / NORM);
        prediction.time += EMPTY + time;
        if time > longest {
            longest = time;
            let of_all = |a: &(Limit, f64), b: &(Limit, f64)| a.1.total_cmp(&b.1);
            prediction.limit = limits.into_iter().max_by(of_all).map_or(Limit::Latency, |(limit, _)| limit);
        }
    }
    prediction
}

/// A ratio of two predicted times in words: none where they are too near to each other.
pub fn ratio(ratio: f64) -> String {
    if (1.0 / RESOLUTION..=RESOLUTION).contains(&ratio) { "-".into() } else { format!("{ratio:.2}") }
}

/// Blocks of so many threads that a multiprocessor of compute capability 9.0 holds: registers go to warps in units of 256, shared
/// memory to blocks with 1 KiB for the system.
pub fn resident(registers: u32, shared: u32, threads: u32) -> u32 {
    let warps = threads.div_ceil(32).max(1);
    let by_registers = 65536 / (registers.max(1) * 32).next_multiple_of(256) / warps;
    let by_shared = (228 << 10) / (shared + 1024);
    by_registers.min(by_shared).min(2048 / (32 * warps)).clamp(1, 32)
}

//! Settings from the environment, read once.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

/// What is checked beyond what a device itself notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strict {
    /// Every address must lie in one allocation and be aligned.
    pub(crate) bounds: bool,
    /// Bytes that are read must have been written.
    pub(crate) uninitialised: bool,
    /// Accesses of different threads must be ordered.
    pub(crate) races: bool,
    /// Threads that have ended do not count as arrived at a barrier.
    pub(crate) barriers: bool,
}

/// Levels of strictness, as the environment and the client name them.
pub(crate) const NONE: u32 = 0;
/// Bounds and alignment.
pub(crate) const BOUNDS: u32 = 1;
/// Everything.
pub(crate) const ALL: u32 = 2;

impl Strict {
    /// The checks of a level.
    pub(crate) fn of(level: u32) -> Self {
        let all = level >= ALL;
        Self { bounds: level >= BOUNDS, uninitialised: all, races: all, barriers: all }
    }
}

/// The settings.
#[derive(Debug)]
pub(crate) struct Config {
    /// Claimed compute capability: 90 for 9.0.
    pub(crate) cc: u32,
    /// Claimed multiprocessors.
    pub(crate) sms: u32,
    /// Devices.
    pub(crate) devices: u32,
    /// Claimed bytes of a device.
    pub(crate) memory: u64,
    /// Warp instructions after which a warp is taken to be endless.
    pub(crate) budget: u64,
    /// Threads that run blocks, the launching one included.
    pub(crate) threads: usize,
    /// What goes to stderr: 0 nothing, 1 faults and refusals, 2 also images that are for other devices.
    verbose: u32,
    /// Calls that are to fail: `CALL:N:CODE[:sticky]`, with commas between.
    pub(crate) fail: String,
    /// Whether the process prints its counters at its end.
    pub(crate) counters: bool,
    /// Folder of PTX texts that are loaded in place of the program's own, each named by its first entry: `NAME.ptx`.
    pub(crate) images: Option<PathBuf>,
    strict: u32,
    noop: bool,
    unique: bool,
}

impl Config {
    fn read() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        fn number<T: std::str::FromStr>(name: &str, value: Option<String>, default: T) -> T {
            match value {
                None => default,
                Some(text) => text.trim().replace('_', "").parse().unwrap_or_else(|_| {
                    eprintln!("warpcheck: {name}={text} is not a number, the default is taken");
                    default
                }),
            }
        }
        let cc = get("EMULATOR_CC").map_or(90, |text| {
            let (major, minor) = text.split_once('.').unwrap_or((&text, "0"));
            match (major.trim().parse::<u32>(), minor.trim().parse::<u32>()) {
                (Ok(major), Ok(minor)) if major < 100 && minor < 10 => major * 10 + minor,
                _ => {
                    eprintln!("warpcheck: EMULATOR_CC={text} is not of the form 9.0, which is taken instead");
                    90
                }
            }
        });
        let strict = match get("EMULATOR_STRICT").as_deref() {
            None | Some("all") => ALL,
            Some("bounds") => BOUNDS,
            Some("none") => NONE,
            Some(text) => {
                eprintln!("warpcheck: EMULATOR_STRICT={text} is none of all, bounds, none; all is taken");
                ALL
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cc,
            sms: number("EMULATOR_SMS", get("EMULATOR_SMS"), 132).max(1),
            devices: number("EMULATOR_DEVICES", get("EMULATOR_DEVICES"), 2u32).min(16),
            memory: number("EMULATOR_MEMORY", get("EMULATOR_MEMORY"), 80 << 30),
            budget: number("EMULATOR_BUDGET", get("EMULATOR_BUDGET"), 200_000_000),
            threads: number("EMULATOR_THREADS", get("EMULATOR_THREADS"), cores).max(1),
            verbose: number("EMULATOR_VERBOSE", get("EMULATOR_VERBOSE"), 1),
            fail: get("EMULATOR_FAIL").unwrap_or_default(),
            images: get("EMULATOR_IMAGES").map(PathBuf::from),
            strict,
            noop: get("EMULATOR_NOOP").is_some_and(|v| v != "0"),
            counters: get("EMULATOR_COUNTERS").is_some_and(|v| v != "0"),
            unique: get("EMULATOR_UNIQUE").is_some_and(|v| v != "0"),
        }
    }
}

thread_local! {
    /// What the client set for launches of this thread.
    static STRICT: Cell<Option<u32>> = const { Cell::new(None) };
    static NOOP: Cell<Option<bool>> = const { Cell::new(None) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static UNIQUE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// The level of strictness for launches of this thread.
pub(crate) fn strict_level() -> u32 {
    STRICT.with(Cell::get).unwrap_or(config().strict)
}

/// The checks for launches of this thread.
pub(crate) fn strictness() -> Strict {
    Strict::of(strict_level())
}

/// Sets the level for launches of this thread.
pub(crate) fn set_strictness(level: u32) {
    STRICT.with(|s| s.set(Some(level.min(ALL))));
}

/// Whether launches of this thread check their arguments and run nothing.
pub(crate) fn noop() -> bool {
    NOOP.with(Cell::get).unwrap_or(config().noop)
}

/// Sets that for launches of this thread.
pub(crate) fn set_noop(on: bool) {
    NOOP.with(|n| n.set(Some(on)));
}

/// Whether launches of this thread count distinct bytes.
pub(crate) fn unique() -> bool {
    UNIQUE.with(Cell::get).unwrap_or(config().unique)
}

/// Sets that for launches of this thread.
pub(crate) fn set_unique(on: bool) {
    UNIQUE.with(|u| u.set(Some(on)));
}

/// How much goes to stderr for calls of this thread.
pub(crate) fn verbosity() -> u32 {
    if QUIET.with(Cell::get) { 0 } else { config().verbose }
}

/// Nothing goes to stderr for calls of this thread.
pub(crate) fn set_quiet(on: bool) {
    QUIET.with(|q| q.set(on));
}

/// The settings.
pub(crate) fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(Config::read)
}

/// Nanoseconds since the driver was first asked.
pub(crate) fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

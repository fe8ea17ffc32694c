//! What a bundle holds and the order in which it runs: the programs worth most come first.

use std::time::Duration;

use clap::ValueEnum;

/// One run on the machine with the GPU. Each ends before [`TIME`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Every test of the crate that runs kernels, and the emulator's instructions against the device's
    Tests,
    /// The same kernels under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
    Sanitizer,
    /// Times of every case, as shares of the measured copy bandwidth
    Benches,
    /// PyTorch and other libraries beside posenc, where python3 has PyTorch
    Peers,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Tests, Self::Sanitizer, Self::Benches, Self::Peers];

    /// As `run.sh` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tests => "tests",
            Self::Sanitizer => "sanitizer",
            Self::Benches => "benches",
            Self::Peers => "peers",
        }
    }
}

/// Bytes of the archive. A machine may take no more than 64 MiB.
pub const ARCHIVE: u64 = 32 << 20;
/// Bytes of an archive of results.
pub const RESULTS: u64 = 16 << 20;
/// Time of a part, with a minute to spare where a command may run for ten: nine minutes less the packing of results.
pub const TIME: Duration = Duration::from_secs(525);

/// Programs of `tests/` that run kernels: same bits as on the emulator first, then races between launches, then the rooms.
pub const TESTS: [&str; 11] =
    ["bits", "overlap", "streams", "examples", "rotate", "attend", "embed", "bias", "barrier", "loading", "host_cost"];
/// Programs of `tests/` that a device changes nothing of. They read sources, call a compiler, touch the CPU alone, or ask the
/// emulator for faults.
#[cfg(test)]
const NOT_PACKED: [&str; 6] = ["artifact", "dependent", "docs", "faults", "plain", "serde"];

/// Programs of the emulator whose `gpu::` tests run on the emulator and on the device and compare all bits.
pub const TWINS: [&str; 6] = ["conformance", "features", "control", "atomics", "matrix", "random"];

/// Tools of compute-sanitizer.
pub const TOOLS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];
/// The program that calls every operation once, and the test in it: each tool runs this before any runs a whole room.
pub const EVERY_OPERATION: (&str, &str) = ("overlap", "every_operation_that_overlaps_gives_the_same_bits");
/// Programs that every tool runs whole.
pub const SANITIZED: [&str; 5] = ["rotate", "attend", "embed", "bias", "streams"];

/// Benches, a room each.
pub const BENCHES: [&str; 4] = ["rotate", "attend", "embed", "bias"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::find;

    fn in_the_workspace() {
        std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).expect("the workspace");
    }

    #[test]
    fn every_program_of_tests_is_packed_or_has_no_kernels() {
        in_the_workspace();
        let named: BTreeSet<String> = TESTS.iter().chain(&NOT_PACKED).map(ToString::to_string).collect();
        let there: BTreeSet<String> = find::tests_of("posenc").expect("the sources").into_iter().collect();
        assert_eq!(named, there);
        assert_eq!(named.len(), TESTS.len() + NOT_PACKED.len());
        for room in find::rooms().expect("the sources") {
            assert!(TESTS.contains(&room.as_str()) && SANITIZED.contains(&room.as_str()), "{room}");
            assert!(BENCHES.contains(&room.as_str()), "{room}");
        }
    }

    #[test]
    fn every_program_with_twins_is_packed() {
        in_the_workspace();
        let found = find::programs("gpu::").expect("the sources");
        let found: BTreeSet<String> =
            found.into_iter().filter(|program| program.package == "warpcheck").filter_map(|p| p.test).collect();
        assert_eq!(found, TWINS.iter().map(ToString::to_string).collect());
    }

    #[test]
    fn what_every_tool_runs_first_is_a_test() {
        in_the_workspace();
        let (program, test) = EVERY_OPERATION;
        let found = find::programs(test).expect("the sources");
        assert!(found.iter().any(|found| found.test.as_deref() == Some(program)), "{found:?}");
    }

    /// What decides most runs first: bits before times, the whole set of operations before single rooms.
    #[test]
    fn the_order_is_that_of_worth() {
        let place = |name: &str| TESTS.iter().position(|test| *test == name).expect(name);
        assert!(place("bits") < place("rotate") && place("overlap") < place("rotate"));
        assert!(BENCHES.iter().all(|room| place(room) < place("loading") && place(room) < place("host_cost")));
        assert_eq!(TOOLS[0], "memcheck");
        assert_eq!(BENCHES[0], "rotate");
    }

    #[test]
    fn a_part_ends_within_nine_minutes() {
        const { assert!(TIME.as_secs() + super::super::run::GRACE.as_secs() <= 540) };
    }
}

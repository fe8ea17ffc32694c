//! What a call costs the host: no allocation, and little time. Needs a device; the emulator runs no kernel meanwhile. On a GPU
//! the driver's own time is in it, so that it is printed there and not judged.

use std::time::{Duration, Instant};

mod support;

use posenc::{Rope, RopePlan, Scaling};
use support::calls::{Visit, every_operation};

/// What a call may take. 0.1 to 0.7 microseconds are seen on the emulator, overflow checks included.
const LIMIT: Duration = Duration::from_micros(3);

/// What a plan of RoPE may take whose spec is known.
const PLAN: Duration = Duration::from_micros(10);

struct Cost {
    is_judged: bool,
}

impl Visit for Cost {
    /// Counts what a call allocates and takes the fastest of many rounds, so that other programs do not count.
    fn call(&mut self, name: &str, call: &mut dyn FnMut() -> posenc::Result<()>) {
        // The first call may load what the driver loads lazily.
        call().expect(name);
        let allocations = allocation_counter::measure(|| call().expect(name));
        assert_eq!(allocations.count_total, 0, "{name} allocates: {allocations:?}");

        const CALLS: u32 = 100;
        let fastest = (0..50).map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| call().expect(name));
            let time = start.elapsed() / CALLS;
            // No call may wait for kernels of the round before.
            cudarc::driver::result::ctx::synchronize().expect("the calls end");
            time
        });
        let fastest = fastest.min().expect("rounds");
        println!("{name}: {fastest:?} a call");
        assert!(fastest < LIMIT || !self.is_judged, "{name} takes {fastest:?}, at most {LIMIT:?} are allowed");
    }

    fn result(&mut self, _: &str, _: Vec<u8>) {}
}

/// A plan of a spec whose plans were made before evaluates no law.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_plan_of_a_known_spec_takes_microseconds() {
    let gpu = support::gpu();
    let is_judged = support::emulator().is_some();
    for rope in [Rope::new(128, 5e5), Rope { scaling: Scaling::Linear { factor: 8.0 }, ..Rope::new(128, 1e4) }] {
        let time = || {
            let start = Instant::now();
            let plan = RopePlan::<half::bf16>::new(&gpu, &rope).expect("a plan");
            (start.elapsed(), plan)
        };
        let (first, _plan) = time();
        // Some tens of milliseconds: the other test runs beside this one.
        let fastest = (0..5000).map(|_| time().0).min().expect("rounds");
        println!("first {first:?}, then {fastest:?}");
        assert!(fastest < PLAN || !is_judged, "a plan of a known spec takes {fastest:?}, at most {PLAN:?} are allowed");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_call_allocates_nothing_and_is_short() {
    let gpu = support::gpu();
    let emulator = support::emulator();
    if let Some(emulator) = emulator {
        emulator.set_noop(true);
    }
    for gpu in [gpu.clone(), gpu.overlapping(true)] {
        every_operation(&gpu, &mut Cost { is_judged: emulator.is_some() });
    }
}

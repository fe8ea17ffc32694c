//! What a call costs the host: no allocation, and little time. Needs a device; the emulator runs no kernel meanwhile. On a GPU
//! the driver's own time is in it, so that it is printed there and not judged.

use std::time::{Duration, Instant};

mod support;

use support::calls::{Visit, every_operation};

/// What a call may take. 0.1 to 0.7 microseconds are seen on the emulator, overflow checks included.
const LIMIT: Duration = Duration::from_micros(3);

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

//! Every driver call of every operation fails once, in passing and for good: an error each time, no panic, nothing lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use emulator::Emulator;
use posenc::Gpu;

mod support;

use support::calls::{Visit, every_operation};

/// Codes that pass: invalid value, out of memory, unknown.
const PASSING: [u32; 3] = [1, 2, 999];
/// Codes that every later call gives too: illegal address, launch failure, invalid context, device unavailable.
const STICKY: [u32; 4] = [700, 719, 201, 46];
/// More calls than all operations make.
const MOST: u64 = 4000;

fn every_code() -> impl Iterator<Item = (u32, bool)> {
    PASSING.map(|code| (code, false)).into_iter().chain(STICKY.map(|code| (code, true)))
}

/// A call that fails is an error of the crate; this test's panic says so.
struct Calls;

impl Visit for Calls {
    fn call(&mut self, name: &str, call: &mut dyn FnMut() -> posenc::Result<()>) {
        call().expect(name);
    }

    fn result(&mut self, _: &str, _: Vec<u8>) {}
}

/// The place and text of the last panic.
static PANIC: Mutex<String> = Mutex::new(String::new());
static IN_A_RUN: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Default)]
struct Figures {
    failed: usize,
    errors: usize,
    went_on: usize,
}

/// Both in one test: what one allocates would be lost to the other.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn no_fault_of_the_driver_is_a_panic_or_loses_memory() {
    let Some(emulator) = Gpu::open(0).ok().and_then(|_| emulator::attach()) else {
        return; // a real driver fails when it likes
    };
    emulator.set_noop(true);
    emulator.set_quiet(true);
    operations(&emulator);
    opening(&emulator);
}

fn operations(emulator: &Emulator) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if IN_A_RUN.load(Ordering::Relaxed) {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
        } else {
            usual(info);
        }
    }));
    let gpu = support::gpu();
    let context = gpu.stream().context().clone();
    // cudarc 0.19 loses an allocation where the event that it makes behind it fails: here it makes none.
    // SAFETY: every buffer is used on one stream.
    unsafe { context.disable_event_tracking() };
    let free = || context.mem_get_info().expect("the device's memory").0;
    // Loads every kernel, so that the runs are short.
    every_operation(&gpu, &mut Calls);
    let mut figures = Figures::default();
    for (code, sticky) in every_code() {
        let before = figures.failed;
        for nth in 1.. {
            assert!(nth < MOST, "the operations never end");
            let all = free();
            emulator.fail("*", nth, code, sticky);
            IN_A_RUN.store(true, Ordering::Relaxed);
            let result = catch_unwind(AssertUnwindSafe(|| every_operation(&gpu, &mut Calls)));
            IN_A_RUN.store(false, Ordering::Relaxed);
            let said = emulator.last_error().unwrap_or_default();
            let due = emulator.forget_failures();
            emulator.clear_error();
            // Errors of what has no result, such as the end of an event, wait in cudarc's context.
            let _ = context.check_err();
            if due {
                assert!(result.is_ok(), "a run without a failure: {}", PANIC.lock().expect("a panic of this thread"));
                break;
            }
            figures.failed += 1;
            match result {
                Ok(()) => figures.went_on += 1,
                Err(_) => {
                    figures.errors += 1;
                    let place = PANIC.lock().expect("a panic of this thread").clone();
                    assert!(place.contains("panicked at tests/"), "call {nth} fails with {code}: {place}");
                }
            }
            let frees = ["cuMemFree", "cuEventDestroy"].iter().any(|call| said.starts_with(call));
            assert!(sticky || frees || free() == all, "call {nth}, {said}: {} bytes are lost", all - free());
        }
        assert!(figures.failed > before + 100, "{} calls failed with {code}", figures.failed - before);
    }
    println!("{figures:?}");
}

/// Opening a device, its kernels and a plan, call by call.
fn opening(emulator: &Emulator) {
    let open = || {
        let gpu = Gpu::open(0)?;
        posenc::RopePlan::<f32>::new(&gpu, &posenc::Rope::new(8, 10_000.0)).map(drop)
    };
    let mut errors = 0;
    for (code, sticky) in every_code() {
        for nth in 1.. {
            assert!(nth < MOST, "opening never ends");
            emulator.fail("*", nth, code, sticky);
            let result = open();
            let due = emulator.forget_failures();
            emulator.clear_error();
            if due {
                result.expect("a run without a failure");
                break;
            }
            errors += usize::from(result.is_err());
        }
    }
    assert!(errors > 50, "{errors} errors");
    println!("{errors} errors of opening");
}

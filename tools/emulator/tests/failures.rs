//! Faults on demand: a call that is to fail does, that one alone or it and all after it.

mod support;

use cudarc::driver::sys::CUresult;
use support::Device;

const OUT_OF_MEMORY: CUresult = CUresult::CUDA_ERROR_OUT_OF_MEMORY;

/// A device without events between streams, so that the calls of a test are those that it makes.
fn device() -> Device {
    let d = Device::new();
    d.emulator.set_quiet(true);
    d
}

#[test]
fn the_second_allocation_fails_and_the_third_does_not() {
    let d = device();
    for name in ["cuMemAllocAsync", "cuMemAlloc", "cuMemAlloc_v2"] {
        d.emulator.fail(name, 2, 2, false);
    }
    let made: Vec<_> = (0..3).map(|_| d.stream.alloc_zeros::<u32>(8).map_err(|e| e.0)).collect();
    assert!(made[0].is_ok() && made[2].is_ok());
    assert_eq!(made[1].as_ref().err(), Some(&OUT_OF_MEMORY));
    let said = d.emulator.last_error().unwrap();
    assert!(said.ends_with("fails with 2, CUDA_ERROR_OUT_OF_MEMORY, because it was asked to"), "{said}");
    d.emulator.forget_failures();
}

#[test]
fn every_later_allocation_fails_and_nothing_else_does() {
    let d = device();
    let x = d.stream.clone_htod(&[1u32, 2, 3]).unwrap();
    for name in ["cuMemAllocAsync", "cuMemAlloc"] {
        d.emulator.fail(name, 1, 2, true);
    }
    for _ in 0..3 {
        assert_eq!(d.stream.alloc_zeros::<u32>(8).map_err(|e| e.0).err(), Some(OUT_OF_MEMORY));
        assert_eq!(d.stream.clone_dtoh(&x).unwrap(), [1, 2, 3]);
    }
    d.emulator.forget_failures();
    assert!(d.stream.alloc_zeros::<u32>(8).is_ok());
}

#[test]
fn the_fault_of_a_kernel_stays_with_its_context() {
    let d = device();
    d.emulator.fail("cuStreamSynchronize", 1, 700, true);
    let illegal = Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(d.stream.synchronize().map_err(|e| e.0), illegal);
    d.emulator.forget_failures();
    // as if a kernel had faulted: nothing works until the context ends
    d.emulator.fail("cuStreamSynchronize", 1, 700, true);
    assert_eq!(d.stream.synchronize().map_err(|e| e.0), illegal);
    assert_eq!(d.stream.alloc_zeros::<u32>(8).map(|_| ()).map_err(|e| e.0), illegal);
    d.emulator.forget_failures();
    d.emulator.clear_error();
    assert!(d.stream.synchronize().is_ok());
}

#[test]
fn another_thread_is_not_hit() {
    let d = device();
    d.emulator.fail("cuStreamSynchronize", 1, 999, true);
    std::thread::scope(|s| {
        s.spawn(|| device().stream.synchronize().unwrap());
    });
    assert_eq!(d.stream.synchronize().map_err(|e| e.0), Err(CUresult::CUDA_ERROR_UNKNOWN));
    d.emulator.forget_failures();
}

/// What the environment asks for, in a process of its own.
#[test]
fn the_environment_asks_for_a_failure() {
    const NAME: &str = "the_environment_asks_for_a_failure";
    if std::env::var_os("EMULATOR_FAIL").is_none() {
        for (ask, results) in [
            ("cuStreamQuery:2:CUDA_ERROR_NOT_FOUND", "[0, 500, 0]"),
            ("cuStreamQuery:2:500:sticky", "[0, 500, 500]"),
            ("cuCtxGetId:1:1,cuStreamQuery:1:1", "[1, 0, 0]"),
            ("cuStreamQuery:0:1", "[0, 0, 0]"),
        ] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args([NAME, "--exact", "--nocapture"])
                .env("EMULATOR_FAIL", ask)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&format!("results {results}")), "{ask}: {text}");
            let complains = String::from_utf8_lossy(&output.stderr).contains("is not of the form CALL:N:CODE");
            assert_eq!(complains, ask.contains(":0:"), "{ask}");
        }
        return;
    }
    let d = device();
    // SAFETY: a stream of the current context.
    let results: Vec<u32> =
        (0..3).map(|_| unsafe { cudarc::driver::sys::cuStreamQuery(d.stream.cu_stream()) } as u32).collect();
    println!("results {results:?}");
}

//! What a user is told when kernels cannot be had: no driver, no image for the device.

use std::process::Command;

use posenc::{Error, Gpu, Rope, RopePlan};

/// Runs the test `name` of this binary alone, in a process with these variables, and gives what it printed.
fn run(name: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", name, "--include-ignored", "--nocapture"]).env("POSENC_LOADING_INNER", "1");
    command.envs(variables.iter().copied());
    let output = command.output().expect("a process");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// Whether this process is one that [`run`] started.
fn is_inner() -> bool {
    std::env::var_os("POSENC_LOADING_INNER").is_some()
}

#[test]
fn without_a_driver_there_is_an_error_and_no_panic() {
    if !is_inner() {
        // Where the machine has a driver of its own, hiding the emulator hides nothing.
        let text = run("without_a_driver_there_is_an_error_and_no_panic", &[("LD_LIBRARY_PATH", "")]);
        assert!(text.contains("opened: no CUDA device: ") || text.contains("a driver of its own"), "{text}");
        return;
    }
    match Gpu::open(0) {
        Ok(_) => println!("opened: a driver of its own"),
        Err(Error::NoKernels) => println!("opened: no CUDA device: not asked for, without kernels"),
        Err(error @ Error::NoDevice(_)) => println!("opened: {error}"),
        Err(error) => panic!("{error}"),
    }
}

/// A library of these C functions by the names of the driver's, in a folder; `None` where there is no compiler.
#[cfg(unix)]
fn library_of(name: &str, functions: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("posenc-loading-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("driver.c"), folder.join("libcuda.so.1"));
    std::fs::write(&source, functions).expect("a source");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().ok()?;
    assert!(status.success(), "{functions} is not compiled");
    std::fs::copy(&library, folder.join("libcuda.so")).expect("a copy");
    Some(folder)
}

#[cfg(unix)]
#[test]
fn a_library_that_is_no_driver_is_an_error_and_no_panic() {
    if is_inner() {
        match Gpu::open(0) {
            Ok(_) => println!("opened"),
            Err(error) => println!("refused: {error}"),
        }
        return;
    }
    for (name, functions, lacks) in [
        ("empty", "int nothing;", "cuInit"),
        ("init", "int cuInit(unsigned flags) { return (int)flags; }", "cuDriverGetVersion"),
    ] {
        let Some(folder) = library_of(name, functions) else {
            println!("not run: there is no C compiler");
            return;
        };
        let path = folder.to_str().expect("a path");
        let text = run("a_library_that_is_no_driver_is_an_error_and_no_panic", &[("LD_LIBRARY_PATH", path)]);
        std::fs::remove_dir_all(&folder).expect("the folder goes");
        let refusal = format!(
            "refused: no CUDA device: the library libcuda.so has no function {lacks}, the NVIDIA driver's must have it\n"
        );
        assert!(text.contains(&refusal) || text.contains(&format!("refused: {}\n", Error::NoKernels)), "{text}");
    }
}

/// The crate touches no driver before a `Gpu` is asked for: not when it is loaded, not for work on the CPU.
#[test]
fn the_driver_is_loaded_when_a_gpu_is_asked_for_and_not_before() {
    if !is_inner() {
        let text = run("the_driver_is_loaded_when_a_gpu_is_asked_for_and_not_before", &[]);
        assert!(text.contains("rotated without a driver"), "{text}");
        return;
    }
    let loaded = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("what this process has loaded");
        maps.lines().any(|line| line.contains("libcuda"))
    };
    let mut x = [1.0f32, 0.0];
    let heads = posenc::Heads::thd(1, 1, 2);
    Rope::new(2, 10_000.0).rotate(&mut x, &heads, &[1], posenc::Direction::Forward).expect("a rotation");
    assert!(!loaded(), "the CPU's rotation loaded a driver");
    println!("rotated without a driver");
    // Where there is one, asking for a device loads it: the check above can fail.
    assert!(Gpu::open(0).is_err() || loaded());
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_device_older_than_every_image_is_told_so() {
    if Gpu::open(0).is_ok() && emulator::attach().is_none() {
        println!("not run: a real device does not change its generation");
        return;
    }
    if !is_inner() {
        let text = run("a_device_older_than_every_image_is_told_so", &[("EMULATOR_CC", "7.0")]);
        // Of the plan's two modules the one that is loaded first.
        let first = ["rope", "rope_sources"].iter().any(|module| {
            text.contains(&format!(
                "no image of rotate/{module} for f32 loads on this device of compute capability 7.0 with a driver for CUDA "
            ))
        });
        assert!(first, "{text}");
        let oldest = posenc::gpu::images().iter().flat_map(|images| images.ptx).map(|image| image.sm).min();
        let oldest = oldest.expect("an image");
        assert!(text.contains(&format!(": the oldest image is for sm_{oldest}")), "{text}");
        return;
    }
    let gpu = Gpu::open(0).expect("a device");
    match RopePlan::<f32>::new(&gpu, &Rope::new(8, 10_000.0)) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => println!("{error}"),
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_device_that_does_not_exist_is_named() {
    let error = Gpu::open(1000).expect_err("a refusal").to_string();
    assert!(
        error.starts_with("no CUDA device: the driver does not give device 1000 (CUDA_ERROR_INVALID_DEVICE"),
        "{error}"
    );
}

/// A device of a generation that has no cubin runs the newest PTX that it has the instructions of.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_device_newer_than_every_image_runs_the_newest_ptx() {
    if Gpu::open(0).is_ok() && emulator::attach().is_none() {
        println!("not run: a real device does not change its generation");
        return;
    }
    if !is_inner() {
        for capability in ["11.0", "13.0"] {
            let text = run("a_device_newer_than_every_image_runs_the_newest_ptx", &[("EMULATOR_CC", capability)]);
            assert!(text.contains(&format!("rotated at {capability}")), "{text}");
        }
        return;
    }
    let gpu = Gpu::open(0).expect("a device");
    let (major, minor) = gpu.capability();
    let heads = posenc::Heads::thd(3, 2, 64);
    let rope = Rope::new(64, 10_000.0);
    let start: Vec<f32> = (0..3 * 2 * 64).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
    let mut x = gpu.stream().clone_htod(&start).expect("a buffer");
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    plan.rotate(heads.of_mut(&mut x), None, posenc::Positions::counted()).expect("a rotation");
    let got = gpu.stream().clone_dtoh(&x).expect("a copy");
    let mut want = start;
    rope.rotate(&mut want, &heads, &[0, 1, 2], posenc::Direction::Forward).expect("a rotation");
    assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-6));
    println!("rotated at {major}.{minor}");
}

//! C programs, one for each room, one for the prologue, one for biases of terms, one for their gradients and what goes with them, one with threads; compiled
//! by the machine's compiler and linked to the library, run on the device.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::library;

const ROOMS: [&str; 7] = ["embed", "rope", "prologue", "bias", "terms", "relative", "threads"];

fn compile(room: &str, kind: &str, link: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = std::env::temp_dir().join(format!("posenc-c-{room}-{kind}-{}", std::process::id()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let output = Command::new(&compiler)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root)
        .arg(root.join("tests").join(room).with_extension("c"))
        .arg("-o")
        .arg(&program)
        .args(link)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} does not start: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

#[track_caller]
fn run(program: &Path, on_cpu: bool) {
    // What a program writes, it writes where it lies.
    let mut command = Command::new(program);
    if on_cpu {
        command.env("POSENC_ON_CPU", "1");
    }
    command.env("LD_LIBRARY_PATH", library_path()).current_dir(std::env::temp_dir());
    let output = command.output().expect("the program starts");
    std::fs::remove_file(program).expect("the program goes");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.ends_with("all is well\n"), "{out}\n{err}");
}

/// Where the program finds the library, and the driver as this test found it.
fn library_path() -> std::ffi::OsString {
    let mut path = library().into_os_string();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(others);
    }
    path
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_operation_works_through_the_shared_library() {
    let folder = library();
    let folder = folder.to_str().expect("a path");
    for room in ROOMS {
        run(&compile(room, "shared", &["-L", folder, "-lposenc_c", "-ldl", "-lm", "-lpthread"]), false);
    }
}

/// The same programs, with the CPU in the device's place.
#[test]
fn every_operation_works_on_the_cpu() {
    let folder = library();
    let folder = folder.to_str().expect("a path");
    // Threads share a stream.
    for room in ROOMS.into_iter().filter(|room| *room != "threads") {
        run(&compile(room, "cpu", &["-L", folder, "-lposenc_c", "-ldl", "-lm", "-lpthread"]), true);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_operation_works_through_the_static_library() {
    let archive = library().join("libposenc_c.a");
    let archive = archive.to_str().expect("a path");
    for room in ROOMS {
        run(&compile(room, "static", &[archive, "-ldl", "-lm", "-lpthread"]), false);
    }
}

/// The programs call every function of the header, so that none is left out of them.
#[test]
fn the_programs_call_every_function() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut programs = read(root.join("tests/device.h"));
    ROOMS.iter().for_each(|room| programs += &read(root.join("tests").join(room).with_extension("c")));
    let mut count = 0;
    for item in posenc_c::items() {
        let posenc_c::Kind::Function { name, .. } = &item.kind else { continue };
        let called = [format!("{name}("), format!(", {name},")].iter().any(|call| programs.contains(call));
        assert!(called, "no program calls {name}");
        count += 1;
    }
    assert!(count > 50, "the header has {count} functions");
}

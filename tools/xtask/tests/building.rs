//! The build script, run as cargo runs it, in environments of its own: where it finds NVRTC, and what it refuses.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// An NVRTC in C: it compiles the one line that it is tried with, and refuses every kernel in the word `LABEL`.
const FAKE: &str = r#"
#include <stddef.h>
#include <string.h>
#ifndef COUNT
#define COUNT 1
#endif
#ifndef SIZE
#define SIZE 4
#endif
#ifndef VERSION
#define VERSION 12
#endif
static int kernel;
int nvrtcVersion(int* major, int* minor) { *major = VERSION; *minor = 9; return 0; }
int nvrtcGetNumSupportedArchs(int* count) { *count = COUNT; return 0; }
int nvrtcGetSupportedArchs(int* architectures) { *architectures = 90; return 0; }
int nvrtcCreateProgram(void** program, const char* text, const char* name, int n, void* texts, void* names) {
    kernel = strcmp(name, "kernels/") != 0;
    *program = &kernel;
    return 0;
}
int nvrtcDestroyProgram(void** program) { return 0; }
int nvrtcCompileProgram(void* program, int n, void* options) { return kernel; }
int nvrtcGetPTXSize(void* program, size_t* size) { *size = SIZE; return 0; }
int nvrtcGetPTX(void* program, char* text) { if (SIZE) memset(text, 0, 4); return 0; }
int nvrtcGetCUBINSize(void* program, size_t* size) { return 1; }
int nvrtcGetCUBIN(void* program, char* text) { return 1; }
int nvrtcGetProgramLogSize(void* program, size_t* size) { *size = sizeof LABEL; return 0; }
int nvrtcGetProgramLog(void* program, char* text) { memcpy(text, LABEL, sizeof LABEL); return 0; }
"#;

/// Below `site-packages`, where the wheel of CUDA 12 puts it.
const WHEEL: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a root")
}

/// The build script, compiled.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["check", "--package", "posenc", "--no-default-features", "--message-format=json"]);
        let output = cargo.current_dir(root()).stderr(Stdio::inherit()).output().expect("cargo starts");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let scripts = text.lines().filter(|line| line.contains("\"kind\":[\"custom-build\"]"));
        let own = format!("{}/build.rs\"", root().display());
        let mut own = scripts.filter(|line| line.contains(&own)).filter_map(|line| {
            line.split('"').rfind(|word| word.ends_with("build-script-build") && word.starts_with('/'))
        });
        own.next_back().expect("posenc has a build script").into()
    })
}

/// A folder for one test, removed when it goes: a project with posenc's kernels, a home, a folder of programs.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a run ended.
struct Ended {
    succeeded: bool,
    text: String,
    instructions: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("building-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for below in ["home", "bin", "project/target/build/out"] {
            fs::create_dir_all(folder.join(below)).expect("a folder");
        }
        symlink(root().join("kernels"), folder.join("kernels")).expect("a link");
        Self(folder)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }

    fn run(&self, variables: &[(&str, &Path)]) -> Ended {
        let mut command = Command::new(script());
        command.env_clear().current_dir(&self.0).env("PATH", self.path("bin")).env("HOME", self.path("home"));
        command
            .env("OUT_DIR", self.path("project/target/build/out"))
            .env("CARGO_FEATURE_CUDA", "1")
            .env("RUST_BACKTRACE", "1");
        command.envs(variables.iter().copied());
        let output = command.output().expect("the build script starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some(), "ended by a signal: {}, {text}", output.status);
        let instructions = String::from_utf8_lossy(&output.stdout).into_owned();
        Ended { succeeded: output.status.success(), text, instructions }
    }

    fn refused(&self, variables: &[(&str, &Path)], what: &str) {
        let ended = self.run(variables);
        assert!(!ended.succeeded && ended.text.contains(what), "{what:?} is not said: {}", ended.text);
        assert!(!ended.text.contains("panicked") && !ended.text.contains("backtrace"), "{}", ended.text);
    }

    /// Compiles a fake NVRTC to this path.
    fn fake(&self, to: &str, label: &str, options: &[&str]) -> PathBuf {
        let (source, library) = (self.path("fake.c"), self.path(to));
        fs::create_dir_all(library.parent().expect("a folder")).expect("a folder");
        fs::write(&source, FAKE).expect("a source");
        let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-DLABEL=\"{label}\"")).args(options);
        assert!(compiler.arg(&source).status().expect("a C compiler").success());
        library
    }
}

/// Whether this machine has an NVRTC of its own, which every search finds in the end.
fn machine_has_nvrtc() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| !Place::new("machine").run(&[]).text.contains("posenc finds no NVRTC"))
}

#[test]
fn a_build_without_kernels_is_asked_for() {
    let place = Place::new("none");
    let images = place.path("project/target/build/out/images.rs");
    for (name, value) in [("POSENC_KERNELS", "none"), ("DOCS_RS", "1")] {
        let _ = fs::remove_file(&images);
        let ended = place.run(&[(name, Path::new(value))]);
        assert!(ended.succeeded, "{}", ended.text);
        assert_eq!(fs::read_to_string(&images).expect("the list of images"), "&[]");
    }
    if machine_has_nvrtc() {
        println!("not run: this machine has an NVRTC");
        return;
    }
    let ended = place.run(&[]);
    assert!(!ended.succeeded);
    for part in [
        "posenc finds no NVRTC",
        "pip install nvidia-cuda-nvrtc-cu12==12.9.86",
        "POSENC_NVRTC",
        "POSENC_KERNELS=none",
        "\n  /usr/local\n",
        "/home/.local\n",
    ] {
        assert!(ended.text.contains(part), "{part:?} is not said: {}", ended.text);
    }
    assert!(!ended.text.contains("cargo xtask"), "there is no xtask here: {}", ended.text);
}

#[test]
fn settings_that_are_wrong_are_refused_with_and_without_nvrtc() {
    let place = Place::new("settings");
    let none = ("POSENC_KERNELS", Path::new("none"));
    for value in ["", "91", "90,", "9.0", "90;80", "sm_90"] {
        let said = format!("POSENC_ARCHS is {value:?}, it must list some of [75, 80, 90, 100, 120]");
        place.refused(&[none, ("POSENC_ARCHS", Path::new(value))], &said);
    }
    assert!(place.run(&[none, ("POSENC_ARCHS", Path::new("80, 120"))]).succeeded);
    for value in ["", "None", "cpu", "rotate;bias", "rotate,"] {
        place.refused(&[("POSENC_KERNELS", Path::new(value))], &format!("POSENC_KERNELS is {value:?}, it may be none"));
    }
    // The CPU's build asks for nothing.
    let mut command = Command::new(script());
    command.env_clear().current_dir(&place.0).env("OUT_DIR", place.path("project/target/build/out"));
    assert!(command.output().expect("the build script starts").status.success());
}

#[test]
fn a_named_nvrtc_that_does_not_work_is_refused_in_words() {
    let place = Place::new("named");
    let name = "POSENC_NVRTC";
    let refused = |path: &Path, what: &str| place.refused(&[(name, path)], what);
    refused(Path::new(""), "POSENC_NVRTC is \"\": it must name the file or folder of libnvrtc");
    refused(Path::new("/nowhere"), "there is no such file or folder");
    refused(&place.path("home"), "no libnvrtc is in that folder");
    let garbage = place.path("garbage/libnvrtc.so.12");
    fs::create_dir_all(garbage.parent().expect("a folder")).expect("a folder");
    fs::write(&garbage, [0x5a; 5000]).expect("a file");
    refused(&garbage, "invalid ELF header");
    refused(&place.path("garbage"), "invalid ELF header");
    fs::write(&garbage, "").expect("a file");
    refused(&garbage, "file too short");

    let whole = place.fake("whole/libnvrtc.so.12", "the fake compiles nothing", &[]);
    refused(&whole, "NVRTC refuses kernels/");
    refused(&place.path("whole"), "the fake compiles nothing");
    // Of the rooms that are wanted alone.
    for room in ["embed", "rotate", "bias", "attend"] {
        let variables = [("POSENC_KERNELS", Path::new(room)), (name, &whole)];
        place.refused(&variables, &format!("NVRTC refuses kernels/{room}/"));
    }
    // Cut to every length, in steps: the loader would end the process by SIGBUS for some of them.
    let bytes = fs::read(&whole).expect("the fake");
    let cut = place.path("cut.so");
    for length in (1..bytes.len()).step_by(bytes.len() / 16).chain([63, 64, 65, bytes.len() - 1]) {
        fs::write(&cut, &bytes[..length]).expect("a file");
        let what = if length < 64 { "cut.so" } else { "the file is cut short: its headers name" };
        refused(&cut, what);
    }
    // So is what NVRTC loads itself.
    fs::write(place.path("whole/libnvrtc-builtins.so.12.9"), &bytes[..bytes.len() / 2]).expect("a file");
    refused(&whole, "libnvrtc-builtins.so.12.9: the file is cut short");
    refused(&place.path("whole"), "libnvrtc-builtins.so.12.9: the file is cut short");

    for (options, what) in [
        ("-DCOUNT=-1", "it says that it knows -1 architectures"),
        ("-DCOUNT=2147483647", "it says that it knows 2147483647 architectures"),
        ("-DSIZE=(1ul<<62)", "NVRTC says that its output has 4611686018427387904 bytes"),
        ("-DSIZE=0", "NVRTC made no code"),
        ("-DVERSION=11", "NVRTC 11.9 is older than 12.0"),
        ("-DnvrtcVersion=other", "undefined symbol: nvrtcVersion"),
        ("-DnvrtcCompileProgram=other", "undefined symbol: nvrtcCompileProgram"),
    ] {
        refused(&place.fake("wrong/libnvrtc.so.12", "wrong", &[options]), what);
    }
}

/// Where people have it: each place is looked at, and the file in it is used.
#[test]
fn nvrtc_is_found_where_it_is_installed() {
    let place = Place::new("found");
    let fake = place.fake("libnvrtc.so.12", "found it", &[]);
    let packages = "lib/python3.12/site-packages";
    for (at, variable) in [
        (format!("cuda/lib64/{}", "libnvrtc.so.12"), Some(("CUDA_HOME", "cuda"))),
        ("cuda/targets/sbsa-linux/lib/libnvrtc.so.13".into(), Some(("CUDA_PATH", "cuda"))),
        (format!("venv/{packages}/{WHEEL}"), Some(("VIRTUAL_ENV", "venv"))),
        (format!("venv/{packages}/nvidia/cu13/lib/libnvrtc.so.13"), Some(("VIRTUAL_ENV", "venv"))),
        ("conda/lib/libnvrtc.so.12".into(), Some(("CONDA_PREFIX", "conda"))),
        (format!("conda/{packages}/{WHEEL}"), Some(("CONDA_PREFIX", "conda"))),
        (format!("project/.venv/{packages}/{WHEEL}"), None),
        (format!("home/.local/{packages}/{WHEEL}"), None),
        (format!("base/{packages}/{WHEEL}"), Some(("PYTHONUSERBASE", "base"))),
        (format!("home/.pyenv/versions/3.12.4/{packages}/{WHEEL}"), None),
        (format!("pyenv/versions/3.12.4/{packages}/{WHEEL}"), Some(("PYENV_ROOT", "pyenv"))),
        (format!("home/.local/share/uv/python/cpython-3.12.4-linux-x86_64-gnu/{packages}/{WHEEL}"), None),
        (format!("uv/cpython-3.12.4-linux-x86_64-gnu/{packages}/{WHEEL}"), Some(("UV_PYTHON_INSTALL_DIR", "uv"))),
        ("home/miniconda3/envs/ml/lib/libnvrtc.so.12".into(), None),
        ("anywhere/libnvrtc.so.12".into(), Some(("LD_LIBRARY_PATH", "anywhere"))),
    ] {
        let path = place.path(&at);
        let variable = variable.map(|(name, below)| (name, place.path(below)));
        let variables: Vec<_> = variable.iter().map(|(name, path)| (*name, path.as_path())).collect();
        // Nothing is there, and then it is: the script that failed runs again.
        assert!(!place.run(&variables).text.contains("found it"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::copy(&fake, &path).expect("a copy");
        place.refused(&variables, "found it");
        fs::remove_file(&path).expect("it goes");
    }
}

/// A Python on PATH names its packages, and those of the Python behind it; none is started.
#[test]
fn nvrtc_is_found_beside_the_pythons_on_path() {
    let place = Place::new("path");
    let fake = place.fake("libnvrtc.so.12", "found it", &[]);
    let is_found = |at: &str| {
        let path = place.path(at);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::copy(&fake, &path).expect("a copy");
        let ended = place.run(&[]);
        fs::remove_file(&path).expect("it goes");
        ended.text.contains("found it")
    };
    let python = |at: &str| {
        let path = place.path(at);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        // Whoever starts it is told so by a file.
        fs::write(&path, format!("#!/bin/sh\ntouch {}\n", place.path("started").display())).expect("a program");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it may run");
    };
    let of = |prefix: &str| format!("{prefix}/lib/python3.11/site-packages/{WHEEL}");
    // bin/python3 -> venv/bin/python3 -> python3.11 of an installation
    python("real/bin/python3.11");
    fs::create_dir_all(place.path("venv/bin")).expect("a folder");
    symlink("../../real/bin/python3.11", place.path("venv/bin/python3")).expect("a link");
    symlink(place.path("venv/bin/python3"), place.path("bin/python3")).expect("a link");
    assert!(is_found(&of("venv")) && is_found(&of("real")));
    assert!(is_found(&format!("real/local/lib/python3.11/dist-packages/{WHEEL}")), "Debian's pip");
    assert!(is_found(&format!("real/lib64/python3.11/site-packages/{WHEEL}")), "Fedora's");
    // Programs that are called alike are no Python.
    fs::remove_file(place.path("bin/python3")).expect("it goes");
    symlink(place.path("real/bin/python3.11"), place.path("bin/python3-config")).expect("a link");
    assert!(!is_found(&of("real")));
    // A virtual environment of copies, whose file names the installation.
    python("bin/python3.11");
    fs::write(place.path("pyvenv.cfg"), format!("home = {}\nversion = 3.11\n", place.path("real/bin").display()))
        .expect("a file");
    assert!(is_found(&of("real")));
    // A link to itself ends.
    symlink("python3.12", place.path("bin/python3.12")).expect("a link");
    assert!(is_found(&of("real")));
    assert!(!place.path("started").exists(), "a Python was started");
}

/// The first that works is used; what was passed over and why is said if none does.
#[test]
fn a_broken_nvrtc_is_passed_over() {
    let place = Place::new("broken");
    let wheel = |prefix: &str| format!("{prefix}/lib/python3.12/site-packages/{WHEEL}");
    place.fake(&wheel("venv"), "too old", &["-DVERSION=11"]);
    let venv = place.path("venv");
    let variables = [("VIRTUAL_ENV", venv.as_path())];
    if !machine_has_nvrtc() {
        place.refused(&variables, "libnvrtc.so.12: NVRTC 11.9 is older than 12.0");
    }
    // One that is cut short in the loader's path: the loader is not asked for it.
    let bytes = fs::read(place.fake("loader/libnvrtc.so.12", "the loader's", &[])).expect("the fake");
    fs::write(place.path("loader/libnvrtc.so.12"), &bytes[..bytes.len() / 2]).expect("a file");
    if !machine_has_nvrtc() {
        place.refused(&[("LD_LIBRARY_PATH", &place.path("loader"))], "libnvrtc.so.12: the file is cut short");
    }
    place.fake(&wheel("home/.local"), "the user's", &[]);
    place.refused(&variables, "the user's");
    // A change of what is named builds again; PATH, which differs from shell to shell, does not.
    let instructions = place.run(&variables).instructions;
    for name in ["POSENC_NVRTC", "POSENC_KERNELS", "POSENC_ARCHS", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        assert!(instructions.contains(&format!("cargo::rerun-if-env-changed={name}\n")), "{name}");
    }
    assert!(!instructions.contains("env-changed=PATH") && !instructions.contains("env-changed=HOME"));
}

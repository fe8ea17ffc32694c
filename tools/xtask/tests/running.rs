//! `tools/run-on-device`, through which cargo starts programs of the workspace.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A clone with the script and a program that prints its arguments and the loader's path, one a line.
struct Clone(PathBuf);

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Clone {
    fn new(name: &str) -> Self {
        let clone = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("running-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&clone.0);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../run-on-device");
        clone.write("tools/run-on-device", &fs::read_to_string(script).expect("the script"));
        // What libtest answers to stands in the file of a test.
        let program = "#!/bin/sh\n# include-ignored\necho \"$*\"\necho \"$LD_LIBRARY_PATH\"\necho \"$POSENC_PTXAS\"\necho \"$POSENC_NVDISASM\"\n";
        for path in ["target/debug/deps/rotate-0123", "target/debug/examples/demo"] {
            clone.write(path, program);
        }
        clone
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }

    /// A file that may be run.
    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it may run");
    }

    fn fetch(&self) {
        self.write("target/emulator/libcuda.so.1", "old");
        self.write("target/cuda/nvidia-cuda-nvrtc-cu12-12.9.86/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "");
        self.write("target/cuda/nvidia-cuda-nvcc-cu12-12.9.86/nvidia/cuda_nvcc/bin/ptxas", "");
        self.write("target/cuda/nvidia-cuda-nvdisasm-13.5.37/nvidia/cu13/bin/nvdisasm", "");
    }

    /// What the program printed: arguments, the loader's path, ptxas, nvdisasm.
    fn run(&self, package: &str, program: &str, arguments: &[&str]) -> [String; 4] {
        let mut command = Command::new(self.path("tools/run-on-device"));
        command.arg(self.path(program)).args(arguments).env("CARGO_PKG_NAME", package).env("LD_LIBRARY_PATH", "/own");
        for name in ["CARGO_TARGET_DIR", "POSENC_PTXAS", "POSENC_NVDISASM"] {
            command.env_remove(name);
        }
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines = text.lines().map(str::to_owned);
        [(); 4].map(|()| lines.next().expect("four lines"))
    }
}

const TEST: &str = "target/debug/deps/rotate-0123";

#[test]
fn before_anything_is_fetched_programs_are_started_as_they_are() {
    let clone = Clone::new("bare");
    let [arguments, path, ptxas, nvdisasm] = clone.run("posenc", TEST, &["rope::", "--nocapture"]);
    assert_eq!([arguments, ptxas, nvdisasm], ["rope:: --nocapture", "", ""]);
    assert!(path.starts_with("/own"), "{path}");
}

#[test]
fn what_was_fetched_is_found_and_tests_that_need_it_are_run() {
    let clone = Clone::new("fetched");
    clone.fetch();
    let [arguments, path, ptxas, nvdisasm] = clone.run("posenc", TEST, &["rope::"]);
    assert_eq!(arguments, "rope:: --include-ignored");
    assert!(Path::new(&ptxas).exists() && Path::new(&nvdisasm).exists(), "{ptxas} {nvdisasm}");
    let folders: Vec<&str> = path.split(':').collect();
    let emulator = clone.path("target/emulator");
    // A GPU is preferred.
    if !["/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl-gpu"].iter().any(|device| Path::new(device).exists()) {
        assert_eq!(Path::new(folders[0]), emulator);
    }
    assert_eq!(folders[folders.len() - 2], "/own");
    assert!(Path::new(folders[folders.len() - 1]).join("libnvrtc.so.12").exists(), "{path}");
    // What the command line says stays; benches and examples have no ignored tests.
    for given in ["--ignored", "--include-ignored", "--bench"] {
        assert_eq!(clone.run("posenc", TEST, &[given])[0], given);
    }
    assert_eq!(clone.run("posenc", "target/debug/examples/demo", &["128"])[0], "128");
    // These see to the emulator themselves.
    for package in ["warpcheck", "xtask"] {
        assert_eq!(clone.run(package, TEST, &[]), ["", "/own", "", ""]);
    }
}

#[test]
fn an_emulator_that_cargo_has_just_built_is_the_one_that_is_loaded() {
    let clone = Clone::new("newer");
    clone.fetch();
    let loaded = clone.path("target/emulator/libcuda.so.1");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::open(&loaded).and_then(|file| file.set_modified(hour_ago)).expect("a time");
    clone.write("target/debug/deps/libwarpcheck.so", "new");
    let path = &clone.run("posenc", TEST, &[])[1];
    if path.starts_with(clone.0.to_str().expect("a path")) {
        assert_eq!(fs::read_to_string(&loaded).expect("the emulator"), "new");
        assert_eq!(fs::read_to_string(clone.path("target/emulator/libcuda.so")).expect("its other name"), "new");
        assert_eq!(fs::read_dir(clone.path("target/emulator")).expect("a folder").count(), 2);
    }
}

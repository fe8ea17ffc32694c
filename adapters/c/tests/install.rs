//! What `cargo xtask c-install` puts into a folder is found by pkg-config and CMake, and programs built against it run.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{library, run};

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: {program} is not installed (apt-get install cmake pkg-config)");
    }
    there
}

/// An install of the libraries that the tests were built with.
struct Prefix(PathBuf);

impl Prefix {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("posenc-c-{name}-{}", std::process::id()));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut install = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        install.current_dir(root).args(["xtask", "c-install", "--prefix"]).arg(folder.join("prefix"));
        run(install.arg("--from").arg(library()));
        Self(folder)
    }

    /// Where the dynamic linker looks for this install before the builds of this tree, which a test run names first.
    fn library_path(&self) -> std::ffi::OsString {
        let mut path = self.0.join("prefix/lib").into_os_string();
        path.push(":");
        path.push(std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
        path
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_cmake_project_builds_and_runs() {
    if !is_there("cmake") {
        return;
    }
    let prefix = Prefix::new("cmake");
    let build = prefix.0.join("build");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cmake");
    run(Command::new("cmake")
        .arg("-S")
        .arg(source)
        .arg("-B")
        .arg(&build)
        .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.0.join("prefix").display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    let mut ctest = Command::new("ctest");
    ctest.current_dir(&build).arg("--output-on-failure").env("LD_LIBRARY_PATH", prefix.library_path());
    let tests = run(&mut ctest);
    assert!(tests.contains("100% tests passed"), "{tests}");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn pkg_config_gives_the_flags_of_both_libraries() {
    if !is_there("pkg-config") {
        return;
    }
    let prefix = Prefix::new("pkg-config");
    let flags = |arguments: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", prefix.0.join("prefix/lib/pkgconfig"));
        run(command.args(arguments).arg("posenc")).split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(flags(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    assert!(flags(&["--static", "--libs"]).contains(&"-lpthread".to_string()));
    let program = prefix.0.join("rotate");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cmake/rotate.c");
    run(Command::new("cc")
        .arg("-I")
        .arg(source.with_file_name(".."))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .args(flags(&["--cflags", "--libs"]))
        .args(["-ldl", "-lm"]));
    // The program asks for the library of its header's structs.
    let needed = run(Command::new("readelf").arg("-d").arg(&program));
    assert!(needed.contains(&format!("[libposenc_c.so.{}]", posenc_c::POSENC_ABI)), "{needed}");
    run(Command::new(program).env("LD_LIBRARY_PATH", prefix.library_path()));
}

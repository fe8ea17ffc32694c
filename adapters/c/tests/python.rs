//! Python reaches the library through ctypes: the layer that `benches/peers` measures through.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn python_calls_through_ctypes() {
    let own = std::env::current_exe().expect("the test's path");
    let mut libraries = own.ancestors().skip(1).take(2).map(|folder| folder.join("libposenc_c.so"));
    let library: PathBuf = libraries.find(|library| library.exists()).expect("libposenc_c.so beside the test");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/peers/test_posenc.py");
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("posenc.h");
    let output =
        Command::new("python3").arg("-B").arg(script).arg(library).arg(header).output().expect("python3 starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out == "all is well\n", "{out}\n{err}");
}

//! Python reaches the library through ctypes: the layer that `benches/peers` measures through.

mod support;

use std::process::Command;

use support::{library, root, run};

fn python(device: &str) {
    let (script, library) = (root().join("../../benches/peers/test_posenc.py"), library().join("libposenc_c.so"));
    let mut python = Command::new("python3");
    assert_eq!(
        run(python.arg("-B").arg(script).arg(library).arg(root().join("posenc.h")).arg(device)),
        "all is well\n"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn python_calls_through_ctypes() {
    python("gpu");
}

#[test]
fn python_computes_on_the_cpu() {
    python("cpu");
}

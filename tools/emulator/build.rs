//! Gives the shared library the SONAME of the CUDA driver, so that a process that has opened it under any path gets
//! this very copy when it asks the loader for `libcuda.so.1` later (cudarc does).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    }
}

//! Names the shared library for the dynamic linker by the version of its structs: libposenc_c.so.1.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let name = "libposenc_c.so.1";
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{name}");
    // A program that is linked to the library where cargo puts it finds it there by this name.
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    for folder in std::path::Path::new(&out).ancestors().skip(3).take(1) {
        for folder in [folder.to_path_buf(), folder.join("deps")] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            // Where it cannot be made, the library is still built.
            #[cfg(unix)]
            let _ = std::os::unix::fs::symlink("libposenc_c.so", link);
        }
    }
}

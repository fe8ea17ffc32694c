//! A crate that depends on this one, built by cargo; apart from the tests that run where there is a driver and no cargo.

/// A crate that depends on this one gets the header's folder into its build script, as `DEP_POSENC_INCLUDE`.
#[test]
#[ignore = "builds a crate of its own: cargo xtask test"]
fn a_dependents_build_script_finds_the_header() {
    let root = env!("CARGO_MANIFEST_DIR");
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("dependent");
    std::fs::create_dir_all(folder.join("src")).expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file");
    write(
        "Cargo.toml",
        &format!(
            "[package]\nname = \"dependent\"\nedition = \"2024\"\n\n[dependencies]\nposenc.path = {root:?}\n\n[workspace]\n"
        ),
    );
    write(
        "build.rs",
        r#"fn main() {
            let folder = std::env::var("DEP_POSENC_INCLUDE").expect("posenc's build script gives its folder");
            println!("cargo::rustc-env=HEADERS={folder}");
        }"#,
    );
    write(
        "src/main.rs",
        r#"const HEADER: &str = include_str!(concat!(env!("HEADERS"), "/bias/bias.cuh"));
        fn main() {
            assert_eq!(HEADER, posenc::bias::DEVICE_HEADER);
        }"#,
    );
    std::fs::copy(std::path::Path::new(root).join("Cargo.lock"), folder.join("Cargo.lock")).expect("a copy");
    // Without kernels: the build is short, and the header is there all the same.
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["run", "--offline", "--quiet"]).current_dir(&folder);
    cargo.env("POSENC_KERNELS", "none").env("CARGO_TARGET_DIR", folder.join("target"));
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

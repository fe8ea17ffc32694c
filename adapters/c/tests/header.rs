//! The committed header is what cbindgen writes today. With POSENC_BLESS=1 it is written.

use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("the configuration");
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/lib.rs"));
    let mut text = Vec::new();
    builder.generate().expect("the header").write(&mut text);
    let text = String::from_utf8(text).expect("the header is text");
    let path = root.join("posenc.h");
    if std::env::var_os("POSENC_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the header is written");
    }
    let committed = std::fs::read_to_string(&path).expect("adapters/c/posenc.h");
    assert!(
        committed == text,
        "adapters/c/posenc.h is not current: POSENC_BLESS=1 cargo test -p posenc-c --test header"
    );
}

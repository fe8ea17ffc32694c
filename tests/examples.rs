//! Each example of the folder `examples` checks itself; here they all run, on one device.

use std::fs;
use std::path::Path;

macro_rules! examples {
    ($($name:ident in $file:literal;)*) => {
        $(
            #[path = $file]
            #[allow(dead_code, reason = "a program of its own")]
            mod $name;

            #[test]
            #[ignore = "needs a device: cargo xtask test"]
            fn $name() {
                $name::main().expect(concat!($file, " ends well"));
            }
        )*
        const FILES: &[&str] = &[$($file),*];
    };
}

examples! {
    rope in "../examples/01_rope.rs";
    embeddings in "../examples/03_embeddings.rs";
    alibi_t5 in "../examples/04_alibi_t5.rs";
    decode in "../examples/05_decode.rs";
    swin in "../examples/06_swin.rs";
    deberta in "../examples/07_deberta.rs";
    inkling in "../examples/08_inkling.rs";
}

/// The one that is missing above reads its command line.
#[test]
fn every_example_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for entry in fs::read_dir(folder).expect("examples") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(name == "02_describe.rs" || FILES.contains(&format!("../examples/{name}").as_str()), "{name}");
    }
}

//! Each example of the folder `examples` checks itself; here they all run, on one device.
#![allow(dead_code, reason = "an example is a program of its own")]

#[path = "../examples/04_alibi_t5.rs"]
mod alibi_t5;
#[path = "../examples/07_deberta.rs"]
mod deberta;
#[path = "../examples/05_decode.rs"]
mod decode;
#[path = "../examples/03_embeddings.rs"]
mod embeddings;
#[path = "../examples/08_inkling.rs"]
mod inkling;
#[path = "../examples/09_prologue.rs"]
mod prologue;
#[path = "../examples/01_rope.rs"]
mod rope;
#[path = "../examples/06_swin.rs"]
mod swin;

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn rope_checks_itself() {
    rope::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn embeddings_checks_itself() {
    embeddings::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn alibi_t5_checks_itself() {
    alibi_t5::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn decode_checks_itself() {
    decode::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn swin_checks_itself() {
    swin::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn deberta_checks_itself() {
    deberta::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn inkling_checks_itself() {
    inkling::main().expect("it ends well");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn prologue_checks_itself() {
    prologue::main().expect("it ends well");
}

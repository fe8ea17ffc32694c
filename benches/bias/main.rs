//! Benches of the bias room: `cargo xtask bench bias`.

mod softmax;
#[path = "../support/mod.rs"]
mod support;

fn main() -> anyhow::Result<()> {
    support::Bench::open("bias")?.run(softmax::cases())
}

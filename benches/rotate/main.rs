//! Benches of the rotate room: `cargo xtask bench --room rotate`.

mod rope;
#[path = "../support/mod.rs"]
mod support;

fn main() -> anyhow::Result<()> {
    support::Bench::open("rotate")?.run(rope::cases())
}

//! Benches of the embed room: `cargo xtask bench --room embed`.

mod learned;
mod sinusoid;
#[path = "../support/mod.rs"]
mod support;

fn main() -> anyhow::Result<()> {
    let mut cases = sinusoid::cases();
    cases.extend(learned::cases());
    support::Bench::open("embed")?.run(cases)
}

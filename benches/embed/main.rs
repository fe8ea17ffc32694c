//! Benches of the embed room: `cargo xtask bench --room embed`.

mod grid;
mod learned;
mod learned_grad;
mod resample;
mod sinusoid;
#[path = "../support/mod.rs"]
mod support;
mod timestep;

fn main() -> anyhow::Result<()> {
    let rooms = [
        sinusoid::cases(),
        timestep::cases(),
        grid::cases(),
        learned::cases(),
        learned_grad::cases(),
        resample::cases(),
    ];
    support::Bench::open("embed")?.run(rooms.into_iter().flatten().collect())
}

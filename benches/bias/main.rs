//! Benches of the bias room: `cargo xtask bench --room bias`.

mod distance_grad;
mod softmax;
#[path = "../support/mod.rs"]
mod support;
mod toeplitz;

fn main() -> anyhow::Result<()> {
    let rooms = [softmax::cases(), toeplitz::cases(), distance_grad::cases()];
    support::Bench::open("bias")?.run(rooms.into_iter().flatten().collect())
}

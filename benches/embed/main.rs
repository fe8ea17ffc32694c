//! Benches of the embed room: `cargo xtask bench --room embed`.

fn main() -> anyhow::Result<()> {
    posenc_benches::support::Bench::open("embed")?.run(posenc_benches::cases("embed"))
}

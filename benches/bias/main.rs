//! Benches of the bias room: `cargo xtask bench --room bias`.

fn main() -> anyhow::Result<()> {
    posenc_benches::support::Bench::open("bias")?.run(posenc_benches::cases("bias"))
}

//! Benches of the attend room: `cargo xtask bench --room attend`.

fn main() -> anyhow::Result<()> {
    posenc_benches::support::Bench::open("attend")?.run(posenc_benches::cases("attend"))
}

//! Benches of the rotate room: `cargo xtask bench --room rotate`.

fn main() -> anyhow::Result<()> {
    posenc_benches::support::Bench::open("rotate")?.run(posenc_benches::cases("rotate"))
}

//! The same bits on every device: results of every operation against a table that the emulator wrote.

use std::collections::BTreeMap;
use std::fmt::Write as _;

mod support;

use support::calls::{Visit, every_operation};

/// A line of each operation: its name, a semicolon, a hash of the bytes of its result.
const TABLE: &str = include_str!("golden/bits.csv");
/// Operations on tensor cores, whose order of sums no law states: within their bound, not to the last bit.
const TENSOR_CORES: [&str; 1] = ["products of states and a table added"];

#[derive(Default)]
struct Hashes(BTreeMap<String, u64>);

impl Visit for Hashes {
    fn call(&mut self, name: &str, call: &mut dyn FnMut() -> posenc::Result<()>) {
        call().expect(name);
    }

    /// FNV-1a.
    fn result(&mut self, name: &str, result: Vec<u8>) {
        let hash = result
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        self.0.insert(name.into(), hash);
    }
}

/// With POSENC_BLESS=1 the table is written instead.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_operation_gives_the_bits_of_the_table() {
    let gpu = support::gpu();
    let mut hashes = Hashes::default();
    every_operation(&gpu, &mut hashes);
    if std::env::var_os("POSENC_BLESS").is_some() {
        let mut text = String::new();
        for (name, hash) in &hashes.0 {
            writeln!(text, "{name};{hash:016x}").expect("a string");
        }
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/bits.csv");
        std::fs::write(table, text).expect("the table is written");
        return;
    }
    let listed: BTreeMap<&str, &str> = TABLE.lines().filter_map(|line| line.rsplit_once(';')).collect();
    assert!(hashes.0.keys().map(String::as_str).eq(listed.keys().copied()), "the table has other operations");
    let differs = |(name, hash): &(&String, &u64)| listed[name.as_str()] != format!("{hash:016x}");
    let (loose, strict): (Vec<_>, Vec<_>) =
        hashes.0.iter().filter(differs).map(|(name, _)| name.as_str()).partition(|name| TENSOR_CORES.contains(name));
    println!("other bits from tensor cores: {loose:?}");
    assert!(strict.is_empty(), "{} of {} give other bits: {strict:?}", strict.len(), listed.len());
    // On the emulator nothing is left to a tensor core.
    assert!(loose.is_empty() || emulator::attach().is_none(), "{loose:?} give other bits");
}

//! Bytes, sectors and instructions of each kernel on real models' shapes, as the emulator counts them, against a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use posenc::Gpu;
use posenc_benches::{ROOMS, cases, support};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/counts.csv");
const HEADER: &str = "case,bytes_to_move,bytes_asked,sector_bytes,ptx_instructions_per_element";
/// Elements of the largest case that is run here, but for those that need many rows to be what they are.
const MOST: u64 = 1 << 19;
/// The architecture whose PTX the table counts.
const CAPABILITY: (i32, i32) = (9, 0);

/// No call asks for more bytes, touches more sectors or needs more instructions than the committed table says.
///
/// With POSENC_BLESS=1 the table is written instead. It holds for the pinned NVRTC.
#[test]
#[ignore = "needs the emulator and the pinned NVRTC: cargo xtask test"]
fn no_call_costs_more_than_the_table() {
    let gpu = Gpu::open(0).unwrap_or_else(|error| panic!("this test needs a device: {error}"));
    let Some(emulator) = emulator::attach() else { return };
    if gpu.capability() != CAPABILITY {
        return;
    }
    let mut rows = BTreeMap::new();
    for room in ROOMS {
        for case in cases(room)
            .into_iter()
            .filter(|case| case.elements <= MOST || ["/rows/", "/kept/"].iter().any(|part| case.name.contains(part)))
        {
            let count = support::count(&gpu, &emulator, &case).unwrap_or_else(|error| panic!("{error:#}"));
            // What is touched for a table or a stride counts a sector's bytes; nothing may count less than must move.
            assert!(count.bytes >= case.bytes(), "{} moves {} bytes, it says {}", case.name, count.bytes, case.bytes());
            let numbers = [case.bytes() as f64, count.bytes as f64, count.sector_bytes as f64];
            let [least, bytes, sectors] = numbers;
            rows.insert(format!("{room}/{}", case.name), [least, bytes, sectors, count.instructions_per_element]);
        }
    }
    if std::env::var_os("POSENC_BLESS").is_some() {
        let mut text = format!("{HEADER}\n");
        for (name, [least, bytes, sectors, instructions]) in &rows {
            writeln!(text, "{name},{least},{bytes},{sectors},{instructions:.3}").expect("a string");
        }
        std::fs::write(TABLE, text).expect("the table is written");
    }
    let text = std::fs::read_to_string(TABLE).expect("the table");
    assert_eq!(text.lines().next(), Some(HEADER));
    let mut listed = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (name, numbers) = line.split_once(',').expect("a name and numbers");
        let numbers: Vec<f64> = numbers.split(',').map(|number| number.parse().expect("a number")).collect();
        listed.insert(name.to_string(), numbers);
    }
    let columns: Vec<&str> = HEADER.split(',').skip(1).collect();
    for (name, row) in &rows {
        let want = listed.get(name).unwrap_or_else(|| panic!("{name} is not in benches/tests/counts.csv"));
        for ((got, want), column) in row.iter().zip(want).zip(&columns) {
            // The table keeps three digits.
            assert!(*got <= want + 0.0006, "{name}: {column} is {got}, the table says {want}");
        }
    }
    cost_grows_no_faster_than_size(&rows);
    let gone: Vec<_> = listed.keys().filter(|name| !rows.contains_key(*name)).collect();
    assert!(gone.is_empty(), "benches/tests/counts.csv lists cases that are gone: {gone:?}");
}

/// Rows of the families that grow in tokens, heads or keys: bytes, sectors and instructions grow with it, and no faster.
fn cost_grows_no_faster_than_size(rows: &BTreeMap<String, [f64; 4]>) {
    let mut families = BTreeMap::<&str, Vec<(f64, [f64; 4])>>::new();
    for (name, row) in rows {
        let (family, size) = name.rsplit_once('/').expect("a size");
        let grows = ["/scale/", "/heads/", "/keys/", "/kept/"].iter().any(|part| family.contains(part));
        if let (true, Ok(size)) = (grows, size.parse()) {
            families.entry(family).or_default().push((size, *row));
        }
    }
    let mut pairs = 0;
    for (family, mut sizes) in families {
        sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in sizes.windows(2) {
            let [(small, before), (large, after)] = [pair[0], pair[1]];
            for column in [1, 2] {
                let growth = after[column] / before[column];
                let most = large / small * 1.7;
                assert!(growth <= most, "{family}: {small} to {large} costs {growth} times as much, at most {most}");
            }
            let [small, large] = [before[3], after[3]];
            assert!(large <= small * 1.7, "{family}: an element needs {small} instructions, then {large}");
            pairs += 1;
        }
    }
    assert!(pairs > 15, "only {pairs} pairs of sizes were compared");
}

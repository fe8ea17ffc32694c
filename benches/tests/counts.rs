//! Bytes, sectors, instructions, loads on their way and bank conflicts of each kernel on real models' shapes, as the emulator counts
//! them and the machine code says, against a table.

use std::collections::BTreeMap;

use posenc::Gpu;
use posenc_benches::support::machine::Machine;
use posenc_benches::{ROOMS, cases, support};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/counts.csv");
/// A case's numbers. Of [`IN_FLIGHT`] more is better, of all others less.
type Row = [f64; 8];
const IN_FLIGHT: usize = 6;
/// Elements of the largest case that is run here, but for those that need many rows to be what they are.
const MOST: u64 = 1 << 19;
/// The architecture whose PTX the table counts.
const CAPABILITY: (i32, i32) = (9, 0);

/// No call asks for more bytes, touches more sectors, needs more instructions, meets in more banks or has less on its way from memory
/// than the committed table says.
///
/// With POSENC_BLESS=1 the table is written instead. It holds for the pinned NVRTC and ptxas.
#[test]
#[ignore = "needs the emulator, the pinned NVRTC, ptxas and nvdisasm: cargo xtask test"]
fn no_call_costs_more_than_the_table() {
    let gpu = Gpu::open(0).unwrap_or_else(|error| panic!("this test needs a device: {error}"));
    let Some(emulator) = emulator::attach() else { return };
    if gpu.capability() != CAPABILITY {
        return;
    }
    let mut machine = Machine::find().expect("POSENC_PTXAS and POSENC_NVDISASM are set by cargo xtask test");
    let header = format!("case,{}", support::COLUMNS);
    let (mut rows, mut text) = (BTreeMap::new(), BTreeMap::new());
    for room in ROOMS {
        for case in cases(room)
            .into_iter()
            .filter(|case| case.elements <= MOST || ["/rows/", "/kept/"].iter().any(|part| case.name.contains(part)))
        {
            let count = support::count(&gpu, &emulator, Some(&mut machine), &case);
            let count = count.unwrap_or_else(|error| panic!("{error:#}"));
            // What is touched for a table or a stride counts a sector's bytes; nothing may count less than must move.
            assert!(count.bytes >= case.bytes(), "{} moves {} bytes, it says {}", case.name, count.bytes, case.bytes());
            assert!(count.sass > 0.0, "{} has no machine code", case.name);
            let name = format!("{room}/{}", case.name);
            let row = count.row(&case);
            rows.insert(name.clone(), numbers(&row));
            text.insert(name, row);
        }
    }
    if std::env::var_os("POSENC_BLESS").is_some() {
        let lines = text.iter().fold(format!("{header}\n"), |text, (name, row)| text + name + "," + row + "\n");
        std::fs::write(TABLE, lines).expect("the table is written");
    }
    let text = std::fs::read_to_string(TABLE).expect("the table");
    assert_eq!(text.lines().next(), Some(header.as_str()));
    let mut listed = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (name, row) = line.split_once(',').expect("a name and numbers");
        listed.insert(name.to_string(), numbers(row));
    }
    let columns: Vec<&str> = support::COLUMNS.split(',').collect();
    for (name, row) in &rows {
        let want = listed.get(name).unwrap_or_else(|| panic!("{name} is not in benches/tests/counts.csv"));
        for (i, ((got, want), column)) in row.iter().zip(want).zip(&columns).enumerate() {
            // The table keeps three digits.
            let is_as_good = if i == IN_FLIGHT { got >= want } else { *got <= want + 0.0006 };
            assert!(is_as_good, "{name}: {column} is {got}, the table says {want}");
        }
    }
    cost_grows_no_faster_than_size(&rows);
    let gone: Vec<_> = listed.keys().filter(|name| !rows.contains_key(*name)).collect();
    assert!(gone.is_empty(), "benches/tests/counts.csv lists cases that are gone: {gone:?}");
}

fn numbers(row: &str) -> Row {
    let numbers: Vec<f64> = row.split(',').map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("a number for each column")
}

/// Rows of the families that grow in tokens, heads or keys: bytes, sectors and instructions grow with it, and no faster.
fn cost_grows_no_faster_than_size(rows: &BTreeMap<String, Row>) {
    let mut families = BTreeMap::<&str, Vec<(f64, Row)>>::new();
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
            for column in [1, 2, 3] {
                let growth = after[column] / before[column];
                let most = large / small * 1.7;
                assert!(growth <= most, "{family}: {small} to {large} costs {growth} times as much, at most {most}");
            }
            let [small, large] = [before[4], after[4]];
            assert!(large <= small * 1.7, "{family}: an element needs {small} instructions, then {large}");
            pairs += 1;
        }
    }
    assert!(pairs > 15, "only {pairs} pairs of sizes were compared");
}

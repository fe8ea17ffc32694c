//! The table of counters that a process prints at its end, if it is asked to.

use crate::counters::Counters;
use std::collections::BTreeMap;
use std::sync::{Mutex, Once, PoisonError};

static KERNELS: Mutex<BTreeMap<String, Counters>> = Mutex::new(BTreeMap::new());

/// Notes a launch of any thread.
pub(crate) fn note(kernel: &str, counters: &Counters) {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: the function takes nothing, and this library is never unloaded.
        unsafe { libc::atexit(print) };
    });
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    kernels.entry(kernel.to_owned()).or_default().add(counters);
}

extern "C" fn print() {
    let kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    // a closed stderr is no reason to fail at the very end
    let _ = std::io::Write::write_all(&mut std::io::stderr(), table(&kernels).as_bytes());
}

type Column = (&'static str, fn(&Counters) -> u64);

/// Columns and what they count; those of distinct bytes only where somebody counted them.
const COLUMNS: [Column; 14] = [
    ("launches", |c| c.launches),
    ("blocks", |c| c.blocks),
    ("instructions", Counters::instructions),
    ("bytes read", |c| c.bytes_read),
    ("distinct", |c| c.unique_bytes_read),
    ("sectors read", |c| c.sectors_read),
    ("bytes written", |c| c.bytes_written),
    ("distinct", |c| c.unique_bytes_written),
    ("sectors written", |c| c.sectors_written),
    ("global passes", |c| c.global_wavefronts),
    ("shared passes", |c| c.shared_wavefronts),
    ("bank conflicts", |c| c.bank_conflicts),
    ("barriers", |c| c.barriers),
    ("divergent", |c| c.divergent_branches),
];

fn table(kernels: &BTreeMap<String, Counters>) -> String {
    let columns = COLUMNS.iter().filter(|(name, count)| *name != "distinct" || kernels.values().any(|c| count(c) > 0));
    let columns: Vec<&Column> = columns.collect();
    let row = |cell: &dyn Fn(&Column) -> String, name: &str| {
        let cells = columns.iter().map(|column| format!("{:>15}  ", cell(column)));
        // names are long: they come last
        cells.chain([format!("{name}\n")]).collect::<String>()
    };
    let mut text = row(&|(name, _)| name.to_string(), "kernel");
    for (kernel, counters) in kernels {
        text += &row(&|(_, count)| count(counters).to_string(), kernel);
    }
    text
}

//! What a call costs the host: no allocation, and little time. Needs a device; the emulator runs no kernel meanwhile.

use std::time::{Duration, Instant};

use half::bf16;
use posenc::rotate::{Beyond, Operand, Table, TableValues};
use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};

/// What a call may take. About 1 microsecond is seen on the emulator, overflow checks included.
const LIMIT: Duration = Duration::from_micros(3);

/// Counts what `call` allocates and takes the fastest of many rounds, so that other programs do not count.
#[track_caller]
fn check(name: &str, mut call: impl FnMut() -> posenc::Result<()>) {
    // The first call may load what the driver loads lazily.
    call().expect(name);
    let allocations = allocation_counter::measure(|| call().expect(name));
    assert_eq!(allocations.count_total, 0, "{name} allocates: {allocations:?}");

    const CALLS: u32 = 100;
    let fastest = (0..50).map(|_| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call().expect(name));
        start.elapsed() / CALLS
    });
    let fastest = fastest.min().expect("rounds");
    println!("{name}: {fastest:?} a call");
    assert!(fastest < LIMIT, "{name} takes {fastest:?}, at most {LIMIT:?} are allowed");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_call_allocates_nothing_and_is_short() {
    let gpu = Gpu::open(0).unwrap_or_else(|error| panic!("this test needs a device: {error}"));
    // On a GPU the time is that of the real driver, with kernels of one token behind it.
    if let Some(emulator) = emulator::attach() {
        emulator.set_noop(true);
    }
    for gpu in [gpu.clone(), gpu.overlapping(true)] {
        rope(&gpu);
    }
}

fn rope(gpu: &Gpu) {
    let stream = gpu.stream();
    let plan = RopePlan::<bf16>::new(gpu, &Rope::new(128, 10_000.0)).expect("a plan");
    let (q, k) = (Heads::thd(1, 32, 128), Heads::thd(1, 8, 128));
    let zeros = |heads: &Heads| stream.alloc_zeros::<bf16>(heads.span().expect("small")).expect("a buffer");
    let (mut q_x, mut k_x, mut q_y) = (zeros(&q), zeros(&k), zeros(&q));
    let ids = stream.clone_htod(&[131_071i64]).expect("a copy");
    let indptr = stream.clone_htod(&[0, 1]).expect("a copy");
    check("rope in place", || {
        let (q, k) = (Operand::in_place(&mut q_x, q), Operand::in_place(&mut k_x, k));
        plan.rotate(q, Some(k), Positions::ids(&ids), Direction::Forward)
    });
    check("rope copied, packed sequences", || {
        let q = Operand::copy(&q_x, q, &mut q_y, q);
        plan.rotate(q, None, Positions::packed(&indptr, 1), Direction::Inverse)
    });
    let row = 48 * 128;
    let mut qkv = stream.alloc_zeros::<bf16>(row).expect("a buffer");
    check("rope of packed queries, keys and values", || {
        let k = k.row(row).at(32 * 128);
        plan.rotate_packed(&mut qkv, q.row(row), k, Positions::starts(&ids), Direction::Forward)
    });
    let table = stream.alloc_zeros::<f32>(4 * 128).expect("a buffer");
    check("rope by a table", || {
        let values = TableValues::F32 { cos: &table, sin: None };
        let table = Table { values, rows: 4, stride: 128, beyond: Beyond::Clamp };
        plan.rotate_by_table(table, Operand::in_place(&mut q_x, q), None, Positions::ids(&ids), Direction::Forward)
    });
}

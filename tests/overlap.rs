//! Programmatic dependent launch: kernels that may start before their predecessor's end.

use std::collections::BTreeMap;

use half::bf16;
use posenc::gpu::images;
use posenc::{Gpu, Heads, Positions, Rope, RopePlan};

mod support;

use support::calls::{Visit, every_operation};

/// Every kernel, from compute capability 9.0 on, waits before it stores anything, and then lets the next one start.
#[test]
fn every_kernel_waits_before_its_first_store() {
    for images in images() {
        for image in images.ptx.iter().filter(|image| image.sm >= 90) {
            let text = String::from_utf8(image.bytes()).expect("PTX is text");
            for body in text.split(".visible .entry ").skip(1) {
                let (name, _) = body.split_once('(').expect("parameters");
                let at = |opcode: &str| body.find(opcode).unwrap_or(usize::MAX);
                let wait = at("griddepcontrol.wait");
                assert!(wait < usize::MAX, "{name} for sm_{} does not wait", image.sm);
                for write in ["st.global", "red.global", "atom.global", "griddepcontrol.launch_dependents"] {
                    assert!(wait < at(write), "{name} for sm_{}: {write} stands before the wait", image.sm);
                }
                let released = body.contains("griddepcontrol.launch_dependents");
                assert!(released, "{name} for sm_{} lets no successor start", image.sm);
            }
        }
    }
}

/// Results by name, of calls that follow one another without a wait of the host.
#[derive(Default)]
struct Results(BTreeMap<String, Vec<u8>>);

impl Visit for Results {
    fn call(&mut self, name: &str, call: &mut dyn FnMut() -> posenc::Result<()>) {
        (0..3).for_each(|_| call().expect(name));
    }

    fn result(&mut self, name: &str, result: Vec<u8>) {
        assert!(result.iter().any(|byte| *byte != 0), "{name} gives zeros alone");
        assert!(self.0.insert(name.into(), result).is_none(), "two operations are called {name}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_operation_that_overlaps_gives_the_same_bits() {
    let gpu = support::gpu();
    let [apart, overlapping] = [false, true].map(|overlap| {
        let mut results = Results::default();
        every_operation(&gpu.clone().overlapping(overlap), &mut results);
        results.0
    });
    assert!(apart.len() > 25, "{} operations", apart.len());
    for (name, result) in &apart {
        assert!(overlapping[name] == *result, "{name} gives other bits where calls overlap");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_chain_of_overlapping_calls_gives_the_same_bits() {
    let gpu = support::gpu();
    let heads = Heads::thd(37, 5, 64);
    let x: Vec<bf16> =
        (0..heads.span().expect("small")).map(|i| bf16::from_f32((i % 251) as f32 / 64.0 - 2.0)).collect();
    let ids: Vec<i64> = (0..37).map(|t| t * t * 97).collect();
    let ids = gpu.stream().clone_htod(&ids).expect("a copy");
    // Each call reads what the one before it wrote: in place, then copied to and fro.
    let chain = |gpu: &Gpu| {
        let plan = RopePlan::<bf16>::new(gpu, &Rope::new(64, 10_000.0)).expect("a plan");
        let mut one = gpu.stream().clone_htod(&x).expect("a copy");
        let mut two = gpu.stream().alloc_zeros::<bf16>(x.len()).expect("a buffer");
        for _ in 0..20 {
            plan.rotate(heads.of_mut(&mut one), None, Positions::ids(&ids)).expect("a call");
            plan.rotate(heads.of(&one).to(heads.of_mut(&mut two)), None, Positions::ids(&ids)).expect("a call");
            plan.rotate(heads.of(&two).to(heads.of_mut(&mut one)), None, Positions::ids(&ids)).expect("a call");
        }
        gpu.stream().clone_dtoh(&one).expect("a copy")
    };
    let apart = chain(&gpu);
    assert_ne!(apart, x);
    assert_eq!(chain(&gpu.overlapping(true)), apart);
}

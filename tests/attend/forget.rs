//! Forgetting attention end to end: gates, their prefix sums, and a softmax that reads these as endpoints.

use posenc::accuracy::assert_close;
use posenc::attend::{DeviceBias, DeviceInputs};
use posenc::bias::{DeviceTermInputs, GateSums, GateSumsPlan, Numbers, Term};
use posenc::{Logits, Places, Softmax, SoftmaxPlan};

use crate::support::{Data, gpu};

/// arXiv 2503.02130, section 3: `softmax(s_ij + sum over j < l <= i of g_l)`, in f64.
fn forgetting(logits: &[f32], gates: &[f32], shape: &Logits, first: usize) -> Vec<f64> {
    let Logits { batch, heads, queries, keys, .. } = *shape;
    let mut out = Vec::with_capacity(logits.len());
    for [row, i] in (0..batch * heads * queries).map(|n| [n / queries, first + n % queries]) {
        let gate = |l: usize| f64::from(gates[row * keys + l]);
        let s = |j: usize| f64::from(logits[(row * queries + i - first) * keys + j]);
        let z: Vec<f64> = (0..=i).map(|j| s(j) + (j + 1..=i).map(gate).sum::<f64>()).collect();
        let max = z.iter().fold(f64::NEG_INFINITY, |max, z| max.max(*z));
        let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
        out.extend((0..keys).map(|j| z.get(j).map_or(0.0, |z| (z - max).exp() / sum)));
    }
    out
}

/// A prefill, a chunk and a decode step, at the start of a sequence and behind a million gates.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_softmax_with_endpoints_is_forgetting_attention() {
    let gpu = gpu();
    let (batch, heads, keys) = (2, 2, 60);
    let mut data = Data::new(7);
    let gates: Vec<f32> = (0..batch * heads * keys).map(|_| -(data.value().abs() / 3.0) as f32).collect();
    let device = gpu.stream().clone_htod(&gates).unwrap();
    let earlier = vec![-0.7f32; 1_000_000];
    let mut far = vec![0u64; 2];
    let (long, pairs) = (Numbers::rows(1, 1, earlier.len(), 1), Numbers::rows(1, 1, earlier.len(), 2));
    GateSums::logs().write((&earlier, long), (&mut vec![0.0; 2_000_000], pairs), Some(&mut far)).unwrap();
    for start in [vec![0, 0], far] {
        let mut state = gpu.stream().clone_htod(&start.repeat(batch * heads)).unwrap();
        let (shape, pairs) = (Numbers::rows(batch, heads, keys, 1), Numbers::rows(batch, heads, keys, 2));
        let mut sums = gpu.stream().alloc_zeros::<f32>(batch * heads * keys * 2).unwrap();
        let plan = GateSumsPlan::<f32>::new(&gpu, GateSums::logs()).unwrap();
        plan.write(shape.of(&device), pairs.of_mut(&mut sums), Some(&mut state)).unwrap();
        for queries in [keys, 7, 1] {
            let first = keys - queries;
            let shape = Logits::bhqk(batch, heads, queries, keys);
            let logits: Vec<f32> = data.values(shape.elements().unwrap());
            // The queries' own sums are the cache's last ones.
            let own = Numbers { rows: queries, offset: 2 * first, ..pairs };
            let inputs = [DeviceTermInputs {
                numbers: Some(own.of(&sums).into()),
                key_numbers: Some(pairs.of(&sums).into()),
                ..DeviceTermInputs::default()
            }];
            let softmax = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0), &Term::endpoints()).unwrap();
            let inputs = DeviceInputs { bias: DeviceBias::terms(&inputs), ..DeviceInputs::at(Places::bottom_right()) };
            let mut p = gpu.stream().clone_htod(&logits).unwrap();
            softmax.apply(shape.of_mut(&mut p), &inputs).unwrap();
            let got = gpu.stream().clone_dtoh(&p).unwrap();
            let want = forgetting(&logits, &gates, &shape, first);
            assert_close(&got, &want, |i| 1e-5 * want[i] + 1e-12);
        }
    }
}

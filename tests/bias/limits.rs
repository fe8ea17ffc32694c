//! Numbers that no call can have end at once, in a sentence that names them.

use posenc::bias::{
    Alibi, DistanceGrad, DistanceGradPlan, FireGradPlan, Kerple, KerpleKind, KeyOnly, Slopes, TermGradPlan,
};
use posenc::bias::{
    Bias, Distances, Fire, GateSums, LogCoordinates, Numbers, Sandwich, Swin2Bias, Swin2Plan, TableResize, Term,
};
use posenc::bias::{Toeplitz, Window, decomposed_axis};
use posenc::{BiasPlan, Logits, Places, Result};

use crate::support::gpu;

fn refused<V>(got: Result<V>, want: &str) {
    assert_eq!(got.map(|_| ()).unwrap_err().to_string(), want);
}

fn fire() -> Fire {
    Fire { in_weight: vec![1.0], in_bias: vec![0.0], out_weight: vec![3.0], out_bias: vec![0.5], ..Fire::new() }
}

fn kerple(heads: usize) -> Kerple {
    Kerple { kind: KerpleKind::Log, p: vec![1.0; heads], a: vec![1.0; heads] }
}

#[test]
fn heads_beyond_a_grid_are_refused() {
    for heads in [65536, 1 << 31, 1 << 40, 1 << 62, usize::MAX] {
        let want = format!("ALiBi has {heads} heads, it must have at most 65535");
        refused::<Slopes>(Alibi::new(heads).slopes(), &want);
        refused(KeyOnly::Mpt.row::<f32>(&Alibi::new(heads), &[0]), &want);
        let want = format!("Sandwich has {heads} heads, it must have at most 65535");
        refused(Sandwich::new(heads).row(-1..=0), &want);
    }
    assert_eq!(Alibi::new(65535).slopes().unwrap().left.len(), 65535);
}

#[test]
fn rows_beyond_their_reach_are_refused() {
    let far = 1i64 << 40;
    refused(
        Toeplitz::from_law(1 << 20, 0..=far, |_, _| 0.0),
        "a Toeplitz row of 1152921504607895552 numbers from distance 0, both must lie within 2^30",
    );
    refused(
        Toeplitz::from_law(1, 0..=1 << 30, |_, _| 0.0),
        "a Toeplitz row of 1073741825 numbers from distance 0, both must lie within 2^30",
    );
    refused(
        Toeplitz::from_law(1 << 40, 0..=far, |_, _| 0.0),
        "heads x distances (1099511627776 x 1099511627777) does not fit into 63 bits",
    );
    refused(
        kerple(64).row(-far..=0),
        "a Toeplitz row of 70368744177728 numbers from distance -1099511627776, both must lie within 2^30",
    );
    refused(
        Sandwich::new(1).row(-far..=0),
        "a Sandwich row of 1099511627777 distances and 128 channels is made of 70368744177728 cosines, it may be of 2^30",
    );
    refused(
        Sandwich { width: 1 << 40, ..Sandwich::new(1) }.row(-1..=0),
        "width is 1099511627776, it must be at most 65536",
    );
    refused(
        DistanceGrad::new(&[0.0f32], &Logits::bhqk(1, 1, 1, 1), &Places::counted(0, 0), 0..=far),
        "1099511627777 sums by head and distance take 8796093022216 bytes on the host, at most 4294967296 are possible",
    );
    for reach in [(1 << 24) + 1, 1 << 40, usize::MAX] {
        refused(fire().logs(reach), &format!("FIRE's reach is {reach}, its tables hold positions up to 16777216"));
    }
}

#[test]
fn keys_beyond_a_row_are_refused() {
    refused(
        KeyOnly::Mpt.bias(&Alibi::new(2), 1 << 30),
        "a Toeplitz row of 2147483648 numbers from distance 0, both must lie within 2^30",
    );
    refused(KeyOnly::Mpt.bias(&Alibi::new(2), usize::MAX), "18446744073709551615 keys does not fit into 63 bits");
}

#[test]
fn tables_beyond_the_host_are_refused() {
    let many = Numbers { heads: 1 << 24, strides: [0, 0, 0, 1], ..Numbers::table(1, 1) };
    refused(
        Window::swin(1, 1).resize(&[1.0f32], &many, [16, 16], TableResize::Bilinear),
        "16122904576 numbers of a resized table take 128983236608 bytes on the host, at most 4294967296 are possible",
    );
    refused(
        Window::swin(1, 1).resize(&[1.0f32], &Numbers::table(1, 1), [1, 1 << 28], TableResize::Bilinear),
        "a table with 536870911 entries on an axis is resized, 65536 are possible",
    );
    refused(
        decomposed_axis(&[1.0f32], 1, 1 << 40, 1),
        "a table with 1099511627776 entries on an axis is resized, 65536 are possible",
    );
    refused(
        decomposed_axis(&[1.0f32], 1, 1 << 16, 1 << 16),
        "4294967296 elements of an axis take 17179869184 bytes on the host, at most 4294967296 are possible",
    );
    let wide = Swin2Bias { coordinates: LogCoordinates::Absolute, ..Swin2Bias::new([1, 1 << 29], 1, 1) };
    refused(
        wide.coordinates(),
        "1073741823 coordinates take 8589934584 bytes on the host, at most 4294967296 are possible",
    );
    refused(
        Swin2Bias::new([7, 7], 512, 1 << 40).coordinates(),
        "a network of 512 hidden units and 1099511627776 heads for 169 entries: all must be at least 1, and each table within 2^30",
    );
    // No token, whatever the rows: nothing is walked.
    let none = Numbers::rows(1 << 30, 1 << 30, 0, 1);
    assert_eq!(GateSums::logs().grad((&[], none), (&[], none), (&[], none)).unwrap(), (vec![], vec![]));
    let slopes = Alibi::new(1).slopes().unwrap();
    let keyless = Logits::bhqk(1 << 30, 1, 1 << 30, 0);
    assert!(Bias::Slopes(&slopes).expect(&keyless, &Places::counted(0, 0)).unwrap().want.is_empty());
    let got = DistanceGrad::new::<f32>(&[], &keyless, &Places::counted(0, 0), 0..=1).unwrap();
    assert_eq!(got.values, [0.0; 2]);
    let strided = Logits { strides: [1 << 40, 1, 1], ..Logits::bhqk(2, 1, 1, 1) };
    refused(
        Bias::Slopes(&slopes).expect(&strided, &Places::counted(0, 0)),
        "1099511627777 numbers of a bias take 8796093022216 bytes on the host, at most 4294967296 are possible",
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients_of_calls_that_cannot_be_are_refused() {
    let gpu = gpu();
    let (far, small) = (1i64 << 30, Logits::bhqk(1, 64, 8, 8));
    let many = Logits::bhqk(1, 1 << 40, 1, 1);
    refused(
        DistanceGradPlan::<f32>::slopes(&gpu, 2, Logits::bhqk(1 << 20, 2, 1 << 20, 1 << 20)),
        "the call has 2199023255552 rows (batch x heads x queries), one takes 2147483647",
    );
    refused(
        DistanceGradPlan::<f32>::slopes(&gpu, 2, Logits::bhqk(0, 2, usize::MAX, usize::MAX)),
        "max_shape has 18446744073709551615 queries, there may be 2147483647",
    );
    refused(
        DistanceGradPlan::<f32>::slopes(&gpu, 1 << 17, Logits::bhqk(1, 1 << 17, 1, 1)),
        "the logits have 131072 heads, a gradient takes 65535",
    );
    refused(
        DistanceGradPlan::<f32>::row(&gpu, 64, -far..=0, small),
        "a row of 1073741825 distances from -1073741824, both must lie within 2^30",
    );
    refused(
        DistanceGradPlan::<f32>::row(&gpu, 64, 0..=(1 << 24), small),
        "a Toeplitz row of 1073741888 numbers from distance 0, both must lie within 2^30",
    );
    refused(
        DistanceGradPlan::<f32>::kerple(&gpu, &kerple(64), -far + 1..=0, small),
        "a Toeplitz row of 68719476736 numbers from distance -1073741823, both must lie within 2^30",
    );
    refused(
        DistanceGradPlan::<f32>::kerple(&gpu, &kerple(1), -far + 1..=0, Logits::bhqk(1, 1, 8, 8)),
        "2147483648 weights by head and distance take 8589934592 bytes on the host, at most 4294967296 are possible",
    );
    refused(
        FireGradPlan::<f32>::new(&gpu, &fire(), 100, many),
        "max_shape has 1099511627776 heads, there may be 2147483647",
    );
    let want = "FIRE's reach is 33554432, its tables hold positions up to 16777216";
    refused(BiasPlan::<f32>::fire(&gpu, &fire(), 1 << 25), want);
    refused(FireGradPlan::<f32>::new(&gpu, &fire(), 1 << 25, Logits::bhqk(1, 1, 8, 8)), want);
    refused(BiasPlan::<f32>::fire(&gpu, &fire(), 1 << 40), "FIRE's reach is 1099511627776, it must be below 2^30");
    refused(
        BiasPlan::<f32>::t5(&gpu, posenc::T5Bias::new(32, 128, true), 1 << 40),
        "a Toeplitz row of 282574488338432 numbers from distance -128, both must lie within 2^30",
    );
    let wide = Swin2Bias { coordinates: LogCoordinates::Absolute, ..Swin2Bias::new([1, 1 << 29], 1, 1) };
    refused(
        Swin2Plan::<f32>::new(&gpu, &wide),
        "1073741823 coordinates take 8589934584 bytes on the host, at most 4294967296 are possible",
    );
    // Whatever the largest call, a term's blocks leave few numbers.
    let largest = Logits::bhqk(1 << 20, 1 << 10, 1 << 16, 1 << 16);
    TermGradPlan::<f32>::new(&gpu, &Term::queries(Distances::shaw(64, 8)), largest).unwrap();
    TermGradPlan::<f32>::new(&gpu, &Term::keys(Distances::bert(512)), largest).unwrap();
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn scratch_memory_that_the_device_lacks_is_an_error() {
    let gpu = gpu();
    // A training shape of a long context. Along diagonals its sums are few; bins for 128 heads and 262143 distances are taken when a
    // call gives positions one by one.
    let shape = Logits::bhqk(64, 128, 131_072, 131_072);
    let plan = DistanceGradPlan::<f32>::row(&gpu, 128, -131_071..=131_071, shape).unwrap();
    let positions = gpu.stream().clone_htod(&[0i32; 2]).unwrap();
    let grad = gpu.stream().alloc_zeros::<f32>(128 * 4).unwrap();
    let mut out = gpu.stream().alloc_zeros::<f32>(plan.len()).unwrap();
    let small = Logits::bhqk(1, 128, 2, 2);
    plan.apply(small.of(&grad), Places::counted(0, 0), 1.0, &mut out).unwrap();
    let places = Places::counted(0, 0).query_positions(&positions);
    let want = "cuMemAllocAsync failed: CUDA_ERROR_OUT_OF_MEMORY: out of memory, for 549753717376 bytes";
    assert_eq!(plan.apply(small.of(&grad), places, 1.0, &mut out).unwrap_err().to_string(), want);
}

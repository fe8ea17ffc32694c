use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::attend::{DeviceBias, DeviceInputs, GradOptions, HostInputs, Inputs, Order};
use posenc::bias::{DeviceTermInputs, Sides, Slopes};
use posenc::gpu::Read;
use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Place, Places, Scalar, Softmax, SoftmaxPlan, T5Bias};

use crate::biases::{Buffers, Context, Host, Numbers, double, each_form, every_place_of_a_pack, fire, plan};
use crate::softmax_grad::check_grad;
use crate::support::{Data, Guarded, gpu, last_launch};
use crate::terms_support::{Own, TermBuffers, buffers as term_buffers};

/// Every order, softcap and window.
pub fn all(softmax: Softmax) -> Vec<Softmax> {
    let mut all = Vec::new();
    for order in [Order::SoftcapThenBias, Order::BiasThenSoftcap, Order::BiasThenScale] {
        for softcap in [None, Some(1.5)] {
            for (left, right) in [(None, None), (None, Some(0)), (Some(2), Some(1))] {
                all.push(Softmax { order, softcap, left, right, ..softmax });
            }
        }
    }
    all
}

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn orders_are_those_of_their_libraries() {
    let at = |order, softcap| Softmax { order, softcap, ..Softmax::new(0.5) }.logit(3.0, -2.0);
    assert_eq!(at(Order::SoftcapThenBias, None), 1.5 - 2.0);
    assert_eq!(at(Order::BiasThenSoftcap, None), 1.5 - 2.0);
    assert_eq!(at(Order::BiasThenScale, None), 0.5);
    assert_eq!(at(Order::SoftcapThenBias, Some(2.0)), 2.0 * 0.75f64.tanh() - 2.0);
    assert_eq!(at(Order::BiasThenSoftcap, Some(2.0)), 2.0 * (-0.25f64).tanh());
    assert_eq!(at(Order::BiasThenScale, Some(2.0)), 2.0 * 0.25f64.tanh());
}

#[test]
fn a_sink_takes_its_share() {
    let shape = Logits::bhqk(1, 2, 1, 2);
    let mut logits = [0.0f32; 4];
    let inputs = HostInputs { sinks: Some(&[0.0, f32::NEG_INFINITY]), ..HostInputs::at(Places::bottom_right()) };
    let lse = Softmax::new(1.0).apply(&mut logits, &shape, &inputs).unwrap();
    let third = 1.0f32 / 3.0;
    assert_eq!(logits, [third, third, 0.5, 0.5]);
    assert_eq!(lse, [3f32.ln(), 2f32.ln()]);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn rows_sum_to_one_and_rows_without_keys_are_zero() {
    let shape = Logits::bhqk(2, 3, 5, 7);
    let slopes = Alibi::new(3).slopes().unwrap();
    let start: Vec<f32> = Numbers(6).take(shape.elements().unwrap(), 3.0);
    // Queries from -2: the first two see no key when causal.
    let positions =
        Places { query_lengths: Some(&[5, 3][..]), key_lengths: Some(&[7, 0][..]), ..Places::counted(-2, 0) };
    for softmax in all(Softmax::new(0.7)) {
        let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::at(positions) };
        let mut p = start.clone();
        let lse = softmax.apply(&mut p, &shape, &inputs).unwrap();
        for batch in 0..2 {
            for head in 0..3 {
                for query in 0..5 {
                    let row = shape.index(batch, head, query, 0);
                    let sum: f32 = p[row..row + 7].iter().sum();
                    let seen = batch == 0 && (0..7).any(|key| softmax.sees(key - (query as i64 - 2)));
                    let _context = Context(|| format!("{softmax:?} {batch} {head} {query}"));
                    assert_close(&[sum], &[f64::from(u8::from(seen))], |_| 1e-6);
                    let lse = lse[(batch * 3 + head) * 5 + query];
                    assert_eq!(lse == f32::NEG_INFINITY, !seen);
                    for key in 0..7 {
                        if !softmax.sees(key - (query as i64 - 2)) {
                            assert_eq!(p[row + key as usize], 0.0);
                        }
                    }
                }
            }
        }
    }
}

// -------------------------------------------------------------------------------------------- kernel against reference

/// Probabilities and log-sum-exp of one call on the device.
pub fn run<T: Own>(
    gpu: &Gpu,
    softmax: &Softmax,
    logits: &[T],
    shape: &Logits,
    inputs: &HostInputs<T>,
    shift: usize,
) -> (Vec<T>, Vec<f32>) {
    let buffers = Buffers::new(gpu, &inputs.places);
    let terms = term_buffers::<T>(gpu, inputs.bias, shift % 2 == 1);
    let terms: Vec<DeviceTermInputs> = terms.iter().map(TermBuffers::device).collect();
    let upload = |values: Option<&[f32]>| gpu.stream().clone_htod(values.unwrap_or(&[0.0])).unwrap();
    let (sinks, gates, scales) = (upload(inputs.sinks), upload(inputs.gates), upload(inputs.scales));
    let mask = inputs.mask.map(|(mask, shape)| (gpu.stream().clone_htod(mask).unwrap(), shape));
    let call = DeviceInputs::<T> {
        mask: mask.as_ref().map(|(mask, shape)| shape.of(mask)),
        sinks: inputs.sinks.map(|_| &sinks as Read<f32>),
        gates: inputs.gates.map(|_| &gates as Read<f32>),
        scales: inputs.scales.map(|_| &scales as Read<f32>),
        bias: DeviceBias::terms(&terms),
        ..DeviceInputs::at(buffers.places(&inputs.places))
    };
    let mut x = Guarded::new(gpu, logits, shift);
    let mut lse = Guarded::<f32>::poisoned(gpu, shape.rows().unwrap(), 1);
    let plan = SoftmaxPlan::<T>::new(gpu, softmax, plan::<T>(gpu, inputs.bias)).unwrap();
    plan.apply_with_lse(shape.of_mut(&mut x.view()), &call, &mut lse.view()).unwrap();
    (x.read(gpu), lse.read(gpu))
}

#[track_caller]
pub fn check<T: Own>(gpu: &Gpu, softmax: &Softmax, logits: &[T], shape: &Logits, inputs: &HostInputs<T>, shift: usize) {
    let want = softmax.expect(logits, shape, inputs).unwrap();
    let (got, lse) = run(gpu, softmax, logits, shape, inputs, shift);
    let _context = Context(|| format!("{} {softmax:?} {shape:?} {:?}", T::NAME, inputs.places));
    assert_close(&got, &want.want, |i| want.bound[i]);
    assert_close(&lse, &want.lse, |i| want.lse_bound[i]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_spec_form_and_place() {
    let gpu = gpu();
    let mut data = Data::new(2);
    for heads in [1, 6] {
        let shape = Logits::bhqk(2, heads, 3, 21);
        let len = shape.elements().unwrap();
        let queries: Vec<i32> = (0..6).map(|_| data.below(40) as i32 - 5).collect();
        let keys: Vec<i32> = (0..42).map(|_| data.below(40) as i32 - 5).collect();
        let hosts = [
            Host::counted(7, 0),
            Host::counted(-2, 0),
            Places { query_lengths: Some(&[2, 3]), key_lengths: Some(&[17, 0]), ..Host::bottom_right() },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) },
        ];
        let logits: Vec<f32> = data.values(len);
        let half: Vec<bf16> = logits.iter().map(|&x| bf16::from_f32(x)).collect();
        let mask: Vec<f32> =
            (0..21 * 3).map(|i| if i % 5 == 0 { f32::NEG_INFINITY } else { data.value() as f32 }).collect();
        // Positive: an infinite slope masks a side, and times a negative gate would do the contrary.
        let gates: Vec<f32> = (0..6 * heads).map(|_| data.value().abs() as f32).collect();
        let sinks: Vec<f32> = data.values(heads);
        let mut turn = 0;
        each_form(heads, |_, bias| {
            for softmax in all(Softmax::new(0.7)) {
                turn += 1;
                let positions = hosts[turn % 4];
                let inputs = HostInputs {
                    bias,
                    mask: (turn % 3 == 0).then_some((&mask[..], Logits::bhqk(1, 1, 3, 21))),
                    sinks: (turn % 2 == 0).then_some(&sinks[..]),
                    gates: (turn % 5 == 0 && !matches!(bias, Bias::None)).then_some(&gates[..]),
                    ..HostInputs::at(positions)
                };
                check(&gpu, &softmax, &logits, &shape, &inputs, turn % 3);
                if heads == 6 {
                    let inputs = HostInputs { bias, ..HostInputs::<bf16>::at(positions) };
                    check(&gpu, &softmax, &half, &shape, &inputs, 0);
                }
            }
        });
    }
}

/// Rows that are read 16 bytes at a time: packs of eight keys that need their scale and one side's bias alone, and those that
/// need more.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_aligned_rows_of_every_spec() {
    fn each_call<T: Own>(gpu: &Gpu) {
        let mut data = Data::new(4);
        let shape = Logits::bhqk(2, 2, 3, 61).row(64);
        let slopes = Alibi { sides: Sides::Signed, ..Alibi::new(2) }.slopes().unwrap();
        let row = T5Bias::new(8, 12, true).row(&data.values::<f32>(16), 2).unwrap();
        let logits: Vec<T> = data.values(shape.span().unwrap());
        // Begins at a multiple of 16 bytes, or one element behind.
        let masks = [Logits::bhqk(1, 2, 3, 61).row(64), Logits::bhqk(1, 2, 3, 61).row(64).at(1)];
        let mask: Vec<T> = data.values(masks[1].span().unwrap());
        let gates: Vec<f32> = data.values(shape.rows().unwrap());
        // Every distance from 20 before a query to 40 behind it.
        let (queries, keys) = ([20; 6], [0, 1].map(|_| (0..61).collect::<Vec<i32>>()).concat());
        let hosts = [
            Host::counted(29, 0),
            Places { key_lengths: Some(&[61, 44]), ..Host::counted(3, -20) },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&keys), ..Host::counted(0, 0) },
        ];
        for bias in [Bias::None, Bias::Slopes(&slopes), Bias::Toeplitz(&row)] {
            // At 90 the exponential of a logit alone is infinite.
            for softmax in all(Softmax::new(0.7)).into_iter().chain([Softmax::new(90.0)]) {
                for positions in hosts {
                    let inputs = HostInputs { bias, ..HostInputs::at(positions) };
                    check(gpu, &softmax, &logits, &shape, &inputs, 0);
                    if !matches!(bias, Bias::None) {
                        check(gpu, &softmax, &logits, &shape, &HostInputs { gates: Some(&gates), ..inputs }, 0);
                    }
                    for shape_of_mask in masks {
                        let mask = Some((&mask[..], shape_of_mask));
                        check(gpu, &softmax, &logits, &shape, &HostInputs { mask, ..inputs }, 0);
                    }
                }
            }
        }
    }
    let gpu = gpu();
    each_call::<f32>(&gpu);
    each_call::<bf16>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_the_head_counts_of_models() {
    let gpu = gpu();
    for heads in [12, 40, 71, 112] {
        let shape = Logits::bhqk(1, heads, 2, 11);
        let logits: Vec<f16> = Data::new(heads as u64).values(shape.elements().unwrap());
        let sinks: Vec<f32> = Data::new(1).values(heads);
        each_form(heads, |_, bias| {
            let inputs = HostInputs { bias, sinks: Some(&sinks), ..HostInputs::at(Host::bottom_right()) };
            check(&gpu, &Softmax::causal(0.7), &logits, &shape, &inputs, 0);
            let inputs = HostInputs { bias, ..HostInputs::at(Host::counted(20, 3)) };
            check_grad(&gpu, &Softmax::new(0.7), &shape, &inputs as &HostInputs<f16>, heads as u64, 0);
        });
        // One set of slopes for each sequence.
        let slopes: Vec<f32> = Data::new(2).values::<f32>(3 * heads).iter().map(|slope| slope.abs()).collect();
        let slopes = Slopes::symmetric(heads, &slopes).unwrap();
        let shape = Logits::bhqk(3, heads, 2, 11);
        let logits: Vec<f32> = Data::new(heads as u64).values(shape.elements().unwrap());
        let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::at(Host::bottom_right()) };
        check(&gpu, &Softmax::new(0.7), &logits, &shape, &inputs, 0);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_at_every_width_of_row() {
    let gpu = gpu();
    let slopes = Alibi::new(2).slopes().unwrap();
    let row = T5Bias::new(32, 128, true).row(&Data::new(4).values::<f32>(64), 2).unwrap();
    for keys in (1..=34).chain([255, 256, 257, 1023, 1024, 1025, 2049, 8191, 8192, 8193, 20_001, 40_001]) {
        let shape = Logits::bhqk(1, 2, 1, keys).row(keys.next_multiple_of(8));
        let len = shape.span().unwrap();
        for bias in [Bias::Slopes(&slopes), Bias::Toeplitz(&row)] {
            let logits: Vec<f32> = Data::new(keys as u64).values(len);
            check(
                &gpu,
                &Softmax::new(1.3),
                &logits,
                &shape,
                &HostInputs { bias, ..HostInputs::at(Host::bottom_right()) },
                0,
            );
            let logits: Vec<f16> = Data::new(keys as u64).values(len);
            check(
                &gpu,
                &Softmax::causal(1.3),
                &logits,
                &shape,
                &HostInputs { bias, ..HostInputs::at(Host::bottom_right()) },
                1,
            );
        }
    }
    // FIRE has a kernel of its own.
    let fire = fire(2, 8, 3);
    for keys in [9, 1030, 8200] {
        let shape = Logits::bhqk(1, 2, 1, keys);
        let logits: Vec<f32> = Data::new(3).values(2 * keys);
        let inputs = HostInputs { bias: Bias::Fire(&fire), ..HostInputs::at(Host::bottom_right()) };
        check(&gpu, &Softmax::new(1.0), &logits, &shape, &inputs, 0);
    }
}

/// The bits of each number.
pub fn bits<T: Scalar>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| x.to_f64().to_bits()).collect()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_row_has_the_same_bits_however_it_is_read() {
    let gpu = gpu();
    let slopes = Alibi::new(1).slopes().unwrap();
    let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::at(Host::counted(30, 0)) };
    let softmax = Softmax { left: Some(20_000), right: Some(60), ..Softmax::new(0.9) };
    // One row of 100 keys, in rows of one warp, one block, held chunks and split chunks; more keys than it sees.
    let first: Vec<f32> = Data::new(5).values(100);
    let mut want = None;
    for (keys, rows) in
        [(100, 1), (1000, 1), (1024, 3), (1025, 1), (8192, 2), (8193, 1), (40_000, 1), (8193, 140), (33_000, 140)]
    {
        let shape = Logits::bhqk(rows, 1, 1, keys);
        let mut logits: Vec<f32> = vec![f32::NAN; shape.elements().unwrap()];
        for row in 0..rows {
            logits[row * keys..row * keys + 100].copy_from_slice(&first);
        }
        let (got, lse) = run(&gpu, &softmax, &logits, &shape, &inputs, 0);
        let last = (rows - 1) * keys;
        let got = (bits(&got[last..last + 91]), lse[rows - 1].to_bits());
        assert_eq!(want.get_or_insert_with(|| got.clone()), &got, "{keys} keys in {rows} rows");
    }
    // Packs that are one thread's, three or two with few rows and five with many; the others have no weight, so that every
    // rounding of the thread's own sums is seen.
    let (keys, live, many) = (4100, 8, 8 * gpu.multiprocessors() as usize);
    let mut numbers = Data::new(6);
    let logits: Vec<f32> = (0..live * keys)
        .map(|i| if i % keys / 8 % 128 == 0 { numbers.value() as f32 } else { f32::NEG_INFINITY })
        .collect();
    let mut lengths = vec![0; many - live];
    lengths.resize(many, keys as i32);
    let all = [vec![f32::NAN; (many - live) * keys], logits].concat();
    let [few, many] = [live, many].map(|rows| {
        let first = many - rows;
        let places = Places { key_lengths: Some(&lengths[first..]), ..Host::counted(30, 0) };
        let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::at(places) };
        let shape = Logits::bhqk(rows, 1, 1, keys);
        let (p, _) = run(&gpu, &Softmax::new(0.9), &all[first * keys..], &shape, &inputs, 0);
        bits(&p[p.len() - live * keys..])
    });
    assert_eq!(few, many);
}

/// Every entry whose rows stay in registers, against the kernel that takes every row, which rows at an odd address get: numbers of
/// every size and none, edges at every place, sinks, and a slope that masks a side.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn rows_in_registers_have_the_bits_of_all_others() {
    fn each_shape<T: Own>(gpu: &Gpu) {
        let packs = 16 / size_of::<T>();
        let per = |threads: usize, lanes: usize| (gpu.multiprocessors() as usize * threads).div_ceil(lanes) + 7;
        // Keys, rows, and the shape; one shape has all of its places filled, and one not.
        let shapes = [
            (1024, per(512, 16), "16x8"),
            (1024, per(128, 32), "32x4"),
            (1024, 8, "128x1"),
            (2048, per(128, 32), "32x8"),
            (4096, per(128, 64), "64x8"),
            (8192, per(128, 128), "128x8"),
            (256 + packs, per(512, 16), "16x8"),
            (512 + packs, 9, "128x1"),
            (1024 + packs, 9, "256x1"),
            (2048, 8, "256x1"),
            (1024 - packs, per(128, 32), "32x4"),
            (2048 - packs, per(128, 32), "32x8"),
            (8192 - packs, per(128, 128), "128x8"),
        ];
        for (keys, rows, name) in shapes {
            let mut eight: Vec<f32> = Data::new(keys as u64).values(8 * keys);
            let large = |x: &mut [f32], by: f32| x.iter_mut().for_each(|x| *x *= by);
            for (row, x) in eight.chunks_mut(keys).enumerate() {
                match row {
                    1 => large(x, 300.0),
                    2 => large(x, 1e8),
                    3 => x[keys / 3] = f32::NAN,
                    4 => x[keys / 2 - 1] = f32::INFINITY,
                    5 => x[..keys - 3].fill(f32::NEG_INFINITY),
                    6 => x.fill(f32::MIN),
                    _ => {}
                }
            }
            let eight: Vec<T> = eight.into_iter().map(T::from_f32).collect();
            let x = eight.repeat(rows.div_ceil(8));
            let ends = [keys, 1, 0, keys / 2 + 3, keys - 1, 9, keys / 3, keys - packs];
            let lengths: Vec<i32> = (0..rows).map(|row| ends[row % 8] as i32).collect();
            let queries: Vec<i32> = (0..rows).map(|row| i32::from(row % 8 != 4)).collect();
            let at: Vec<i32> = (0..rows).map(|row| ((row % 8) * keys / 7 + row % 3) as i32).collect();
            let far = [1 << 22, 1 << 26, 5, 1 << 29, 0, 7, 1 << 25, 3].repeat(rows.div_ceil(8));
            let slopes = [(0.25, 0.25), (0.0625, 0.5), (f32::INFINITY, 0.125), (0.75, f32::INFINITY)]
                .map(|(left, right)| Slopes::new(1, &[left], &[right]).unwrap());
            let places = Host::counted(keys as i64 / 2 - 3, 0);
            let window = Softmax { left: Some(keys as u32 / 4), right: Some(5), ..Softmax::new(1.1) };
            let plain = HostInputs::<T>::at(places);
            let calls = [
                (Softmax::new(0.7), HostInputs { bias: Bias::Slopes(&slopes[1]), ..plain }),
                (Softmax::new(1.0), HostInputs { sinks: Some(&[0.3]), ..HostInputs::at(Host::counted(0, 0)) }),
                (Softmax::new(0.7), HostInputs { bias: Bias::Slopes(&slopes[2]), ..plain }),
                (Softmax::new(0.7), HostInputs { bias: Bias::Slopes(&slopes[3]), ..plain }),
                (
                    Softmax::new(0.7),
                    HostInputs {
                        bias: Bias::Slopes(&slopes[0]),
                        ..HostInputs::at(Places { queries: Place::Ids(&far[..rows]), ..places })
                    },
                ),
                (
                    Softmax::causal(0.7),
                    HostInputs {
                        bias: Bias::Slopes(&slopes[0]),
                        sinks: Some(&[-1.0]),
                        ..HostInputs::at(Places {
                            key_lengths: Some(&lengths),
                            query_lengths: Some(&queries),
                            ..Host::bottom_right()
                        })
                    },
                ),
                (
                    window,
                    HostInputs {
                        bias: Bias::Slopes(&slopes[1]),
                        ..HostInputs::at(Places { queries: Place::Ids(&at), ..places })
                    },
                ),
            ];
            // Many rows are seen in whole and in part; few in each way.
            let calls = calls.iter().step_by(if rows > 1000 { 5 } else { 1 });
            for (softmax, inputs) in calls {
                let shape = |rows| Logits::bhqk(rows, 1, 1, keys);
                let (got, lse) = run(gpu, softmax, &x[..rows * keys], &shape(rows), inputs, 0);
                if let Some(report) = last_launch() {
                    let some = softmax.right.is_some() || inputs.places.key_lengths.is_some();
                    let filled = keys == 1024 && name != "16x8" && !some;
                    let want = format!("{}_{name}_{}", if filled { "whole" } else { "rows" }, T::NAME);
                    assert_eq!(report.kernel, want, "{rows} rows of {keys}: {softmax:?}");
                }
                let own = HostInputs {
                    places: Places {
                        key_lengths: inputs.places.key_lengths.map(|lengths| &lengths[..8]),
                        query_lengths: inputs.places.query_lengths.map(|lengths| &lengths[..8]),
                        queries: match inputs.places.queries {
                            Place::Ids(ids) => Place::Ids(&ids[..8]),
                            other => other,
                        },
                        ..inputs.places
                    },
                    ..*inputs
                };
                let (want, want_lse) = run(gpu, softmax, &eight, &shape(8), &own, 1);
                for first in [0, rows / 8 * 8 - 8] {
                    let context = || format!("{name} {} {softmax:?} {:?} row {first}", T::NAME, inputs.bias);
                    for row in 0..8 {
                        let [got, want] = [&got[(first + row) * keys..][..keys], &want[row * keys..][..keys]];
                        // Positions that are not the same in each eight rows.
                        if first > 0 && matches!(inputs.places.queries, Place::Ids(ids) if ids[first + row] != ids[row])
                        {
                            continue;
                        }
                        let same = got.iter().zip(want).all(|(&got, &want)| {
                            let (got, want) = (got.to_f64(), want.to_f64());
                            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
                        });
                        assert!(same, "row {row}: {}", context());
                        let (got, want) = (lse[first + row], want_lse[row]);
                        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                        assert!(same, "row {row}: lse {got}, not {want}: {}", context());
                    }
                }
            }
        }
    }
    let gpu = gpu();
    each_shape::<bf16>(&gpu);
    each_shape::<f32>(&gpu);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn long_rows_have_the_same_bits_held_shared_and_read_twice() {
    let gpu = gpu();
    let many = gpu.multiprocessors() as usize;
    let row = T5Bias::new(32, 128, false).row(&Data::new(4).values::<f32>(32), 1).unwrap();
    // Rows of one block, of blocks that hold them, and of blocks that read them twice; but for the last all are empty.
    for (keys, rows) in [(8200, many), (30_000, 4), (60_000, many), (66_000, many - 1)] {
        let logits: Vec<bf16> = Data::new(6).values(keys);
        let bias = Bias::Toeplitz(&row);
        let inputs = HostInputs { bias, sinks: Some(&[0.5]), ..HostInputs::at(Host::counted(keys as i64 - 1, 0)) };
        let (want, want_lse) = run(&gpu, &Softmax::new(3.0), &logits, &Logits::bhqk(1, 1, 1, keys), &inputs, 0);
        let mut lengths = vec![0; rows];
        lengths[rows - 1] = keys as i32;
        let places = Places { key_lengths: Some(&lengths[..]), ..inputs.places };
        let inputs = HostInputs { places, ..inputs };
        let shape = Logits::bhqk(rows, 1, 1, keys);
        let mut all = vec![bf16::NAN; shape.elements().unwrap()];
        let last = (rows - 1) * keys;
        all[last..].copy_from_slice(&logits);
        let (got, lse) = run(&gpu, &Softmax::new(3.0), &all, &shape, &inputs, 1);
        assert_eq!(bits(&got[last..]), bits(&want), "{keys}");
        assert_eq!(lse[rows - 1].to_bits(), want_lse[0].to_bits());
        assert!(got[..last].iter().all(|&p| p == bf16::ZERO) && lse[..rows - 1].iter().all(|&lse| lse == 0.5));
    }
}

/// A green context has fewer multiprocessors than its device: what fits on the device is refused there.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_refused_cooperative_launch_gives_the_same_bits_from_a_block_a_row() {
    const TOO_LARGE: u32 = 720;
    let Some(emulator) = crate::support::emulator() else { return };
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 1, 40_000);
    let logits: Vec<bf16> = Data::new(16).values(shape.elements().unwrap());
    let stream = gpu.stream();
    let (x, scales) = (stream.clone_htod(&logits).unwrap(), stream.clone_htod(&[1f32, 2.0]).unwrap());
    let alibi = SoftmaxPlan::<bf16>::new(&gpu, &Softmax::causal(2.0), &Alibi::new(2)).unwrap();
    let none = SoftmaxPlan::<bf16>::new(&gpu, &Softmax::causal(2.0), Bias::None).unwrap();
    // With scales, the kernels of terms run.
    for (plan, scales) in [(&alibi, None), (&none, Some(&scales))] {
        let inputs = Inputs { scales: scales.map(|scales| scales as _), ..Inputs::default() };
        let results = [false, true].map(|refused| {
            let (mut p, mut dx) = (stream.alloc_zeros::<bf16>(80_000).unwrap(), stream.alloc_zeros(80_000).unwrap());
            emulator.reset_counters();
            if refused {
                emulator.fail("cuLaunchKernelEx", 1, TOO_LARGE, false);
            }
            plan.apply(shape.of(&x).to(shape.of_mut(&mut p)), &inputs).unwrap();
            if refused {
                emulator.fail("cuLaunchKernelEx", 1, TOO_LARGE, false);
            }
            plan.grad(shape.of(&p), shape.of(&x).to(shape.of_mut(&mut dx)), &inputs, GradOptions::default()).unwrap();
            emulator.forget_failures();
            let counters = emulator.counters();
            assert_eq!(counters.launches, 2);
            (bits(&stream.clone_dtoh(&p).unwrap()), bits(&stream.clone_dtoh(&dx).unwrap()), counters.blocks)
        });
        assert!(results[0].2 > results[1].2, "blocks share the rows, {} and {}", results[0].2, results[1].2);
        assert_eq!(results[0].0, results[1].0);
        assert_eq!(results[0].1, results[1].1);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_row_of_a_million_keys_is_the_reference() {
    let gpu = gpu();
    let keys = 1 << 20;
    let logits: Vec<bf16> = Data::new(2).values(keys);
    // The smallest slope of the paper, and one for which the first key still counts.
    for slope in [1.0 / 256.0, 5e-5] {
        let slopes = Slopes::symmetric(1, &[slope]).unwrap();
        let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::at(Host::bottom_right()) };
        check(&gpu, &Softmax::causal(3.0), &logits, &Logits::bhqk(1, 1, 1, keys), &inputs, 0);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_decode_step_is_one_kernel_and_a_graph_of_it_runs_again() {
    use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    // SAFETY: this stream alone is used, so that no events are needed between streams.
    unsafe { context.disable_event_tracking() };
    let gpu = Gpu::new(&context.new_stream().unwrap()).unwrap();
    let shape = Logits::bhqk(1, 6, 1, 40_000);
    let logits: Vec<f16> = Data::new(9).values(shape.elements().unwrap());
    let plan = SoftmaxPlan::<f16>::new(&gpu, &Softmax::causal(2.0), &Alibi::new(6)).unwrap();
    let stream = gpu.stream();
    let x = stream.clone_htod(&logits).unwrap();
    let mut y = stream.clone_htod(&logits).unwrap();
    let call = |y: &mut cudarc::driver::CudaSlice<f16>| {
        plan.apply(shape.of(&x).to(shape.of_mut(y)), &Inputs::default()).unwrap();
    };
    if let Some(emulator) = crate::support::emulator() {
        emulator.reset_counters();
        call(&mut y);
        assert_eq!(emulator.counters().launches, 1);
    }
    call(&mut y);
    let want = stream.clone_dtoh(&y).unwrap();
    stream.memcpy_htod(&logits, &mut y).unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    call(&mut y);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a graph");
    // Nothing ran yet; then it runs twice, and blocks find their counters as at first.
    assert_eq!(bits(&stream.clone_dtoh(&y).unwrap()), bits(&logits));
    for _ in 0..2 {
        stream.memcpy_htod(&logits, &mut y).unwrap();
        graph.launch().unwrap();
        assert_eq!(bits(&stream.clone_dtoh(&y).unwrap()), bits(&want));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_are_each_alone() {
    let gpu = gpu();
    let (shape, places) = every_place_of_a_pack();
    let logits: Vec<f32> = Data::new(2).values(shape.span().unwrap());
    each_form(2, |_, bias| {
        check(&gpu, &Softmax::new(0.7), &logits, &shape, &HostInputs { bias, ..HostInputs::at(places) }, 0);
    });
    let heads = 3;
    // An empty sequence, one that a warp takes, a short one, and one without queries; padding at both ends.
    let (firsts, key_firsts) = ([1, 1, 40, 45, 45], [2, 2, 102, 112, 119]);
    let shape = Logits::bhqk(1, heads, 47, 120).row(128);
    let logits: Vec<f32> = Data::new(3).values(shape.span().unwrap());
    let places = Places::packed(&firsts[..], &key_firsts[..], 4);
    // Positive, as an infinite slope masks a side.
    let gates: Vec<f32> = Data::new(4).values::<f32>(heads * 47).iter().map(|gate| gate.abs()).collect();
    each_form(heads, |name, bias| {
        for softmax in [Softmax::causal(0.7), Softmax { left: Some(30), right: Some(3), ..Softmax::new(1.1) }] {
            for host in [places, Places { queries: Place::Counted(5), ..places }] {
                check(&gpu, &softmax, &logits, &shape, &HostInputs { bias, ..HostInputs::at(host) }, 0);
                if !matches!(bias, Bias::None) {
                    let gates = Some(&gates[..]);
                    check(&gpu, &softmax, &logits, &shape, &HostInputs { bias, gates, ..HostInputs::at(host) }, 0);
                }
                let (all, all_lse) =
                    run(&gpu, &softmax, &logits, &shape, &HostInputs { bias, ..HostInputs::at(host) }, 0);
                for sequence in 0..4 {
                    let [first, end] = [firsts[sequence] as usize, firsts[sequence + 1] as usize];
                    let [key, key_end] = [key_firsts[sequence] as usize, key_firsts[sequence + 1] as usize];
                    let alone = Logits::bhqk(1, heads, end - first, key_end - key);
                    let rows = || (0..heads).flat_map(|h| (first..end).map(move |i| (h, i)));
                    let own = |x: &[f32]| -> Vec<f32> {
                        rows().flat_map(|(h, i)| x[shape.index(0, h, i, key)..][..alone.keys].to_vec()).collect()
                    };
                    let host =
                        if host.queries == Place::BottomRight { Host::bottom_right() } else { Host::counted(5, 0) };
                    let inputs = HostInputs { bias, ..HostInputs::at(host) };
                    if alone.is_empty() {
                        continue;
                    }
                    let (got, lse) = run(&gpu, &softmax, &own(&logits), &alone, &inputs, 0);
                    // Sums are in the order of the places in the row: the bits are those of the same places.
                    let _context = Context(|| format!("{name} {sequence}"));
                    let want = double(&own(&all));
                    // A slope's distance is counted from the first of 16 bytes of keys: roundings of a logit differ.
                    let bound =
                        |p: f64| if p == 0.0 { 0.0 } else { f64::from(f32::EPSILON) * (4.0 - 3.0 * p.ln()) * p };
                    assert_close(&got, &want, |i| bound(want[i]));
                    let want: Vec<f64> = rows().map(|(h, i)| f64::from(all_lse[h * 47 + i])).collect();
                    assert_close(&lse, &want, |_| 1e-5);
                }
                // Nobody sees another sequence, and padding is zero.
                for (h, i, j) in (0..heads).flat_map(|h| (0..47).flat_map(move |i| (0..120).map(move |j| (h, i, j)))) {
                    let of = |firsts: &[i32], n: i32| (0..4).find(|&s| firsts[s] <= n && n < firsts[s + 1]);
                    let (query, key) = (of(&firsts, i), of(&key_firsts, j));
                    if query.is_none() || query != key {
                        assert_eq!(all[shape.index(0, h, i as usize, j as usize)], 0.0, "{name} {h} {i} {j}");
                    }
                }
            }
        }
    });
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shards_and_chunks_have_the_bits_of_the_whole() {
    let gpu = gpu();
    let (heads, queries, keys) = (12, 9, 70);
    let whole = Logits::bhqk(1, heads, queries, keys);
    let logits: Vec<f32> = Data::new(8).values(whole.elements().unwrap());
    let slopes = Alibi::new(heads).slopes().unwrap();
    let inputs = |bias, host| HostInputs { bias, ..HostInputs::<f32>::at(host) };
    let all =
        run(&gpu, &Softmax::causal(1.0), &logits, &whole, &inputs(Bias::Slopes(&slopes), Host::bottom_right()), 0).0;
    // Heads 4..8 and queries 3..5 of a prefill whose later keys are not there yet.
    let shard = Alibi::new(heads).shard(4, 4).slopes().unwrap();
    let part = Logits::bhqk(1, 4, 2, 66);
    let mut own = Vec::new();
    for (h, i) in (4..8).flat_map(|h| [(h, 3), (h, 4)]) {
        let from = whole.index(0, h, i, 0);
        own.extend_from_slice(&logits[from..from + 66]);
    }
    let host = Host::counted((keys - queries + 3) as i64, 0);
    let got = run(&gpu, &Softmax::causal(1.0), &own, &part, &inputs(Bias::Slopes(&shard), host), 0).0;
    for (row, (h, i)) in (4..8).flat_map(|h| [(h, 3), (h, 4)]).enumerate() {
        let from = whole.index(0, h, i, 0);
        assert_eq!(bits(&got[row * 66..(row + 1) * 66]), bits(&all[from..from + 66]), "head {h} query {i}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn hostile_numbers_give_what_the_field_expects() {
    let gpu = gpu();
    let none = HostInputs::<f32>::at(Host::bottom_right());
    let apply = |x: &[f32], softmax: Softmax| run(&gpu, &softmax, x, &Logits::bhqk(1, 1, 1, x.len()), &none, 0);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    assert_eq!(apply(&[-inf, -inf, -inf], Softmax::new(1.0)), (vec![0.0; 3], vec![-inf]));
    // Hugging Face's mask value: a row of nothing else is uniform, as there.
    assert_eq!(apply(&[f32::MIN, f32::MIN], Softmax::new(1.0)).0, [0.5, 0.5]);
    assert_eq!(apply(&[f32::MIN, 3.0], Softmax::new(1.0)).0, [0.0, 1.0]);
    assert_eq!(apply(&[-1e30, 1e30], Softmax::new(1.0)).0, [0.0, 1.0]);
    for x in [[nan, 1.0], [nan, nan], [inf, 1.0]] {
        assert!(apply(&x, Softmax::new(1.0)).0.iter().all(|p| p.is_nan()), "{x:?}");
        assert!(apply(&x, Softmax::new(1.0)).1[0].is_nan(), "{x:?}");
    }
    // A row without keys has nothing but its sink, however far below 0 that is.
    let alone = Places { key_lengths: Some(&[0][..]), ..Host::bottom_right() };
    let inputs = HostInputs { sinks: Some(&[-200.0]), ..HostInputs::at(alone) };
    let got = run(&gpu, &Softmax::new(1.0), &[1.0f32, 2.0], &Logits::bhqk(1, 1, 1, 2), &inputs, 0);
    assert_eq!(got, (vec![0.0; 2], vec![-200.0]));
    // A key alone has everything, whatever its logit.
    for i in 0..200 {
        assert_eq!(apply(&[0.013 * i as f32], Softmax::new(1.0)).0, [1.0], "{i}");
    }
    // Weights near the end of what f32 holds: 0 below 2^-128.
    let p = apply(&[0.0, -85.0, -89.0], Softmax::new(1.0)).0;
    let want = [1.0, (-85f64).exp(), 0.0];
    assert_close(&p, &want, |i| if i == 1 { 1e-5 * want[i] } else { 0.0 });
}

/// Logits that are no numbers, or beyond f32 once they are scaled, have the CPU's answer from every kernel and every way through
/// it: a masked key is 0, a row with NaN or inf is NaN at all others, and what is below the range is all alike.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_is_no_number_has_one_answer() {
    fn each_way<T: Own>(gpu: &Gpu, tolerance: f64) {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let slopes = Alibi::new(2).slopes().unwrap();
        let row = T5Bias::new(8, 12, true).row(&Data::new(1).values::<f32>(16), 2).unwrap();
        let many = 4 * gpu.multiprocessors() as usize;
        // A team of lanes, of a warp and of a block; many rows; chunks that are held, shared, and read twice.
        for (queries, keys) in [(2, 10), (3, 96), (2, 520), (2, 2056), (many, 512), (2, 20_000), (1, 500_000)] {
            for special in [&[nan][..], &[inf], &[-inf], &[f32::MAX], &[f32::MIN], &[f32::MIN, nan], &[inf, -inf]] {
                // Row after row: one place, every place, and every place but one.
                for fill in [false, true] {
                    let shape = Logits::bhqk(1, 2, queries, keys).row(keys.next_multiple_of(8));
                    let mut x: Vec<f32> = Data::new(keys as u64).values(shape.span().unwrap());
                    for (row, x) in x.chunks_mut(shape.strides[2]).take(8).enumerate() {
                        let end = x.len().min(keys);
                        if fill {
                            x[..end].fill(special[0]);
                        }
                        for (i, &special) in special.iter().enumerate() {
                            x[(7 * row + 3 * i) % end] = special;
                        }
                    }
                    let x: Vec<T> = x.into_iter().map(T::from_f32).collect();
                    let mask: Vec<T> =
                        (0..keys).map(|key| T::from_f32([0.0, -inf, f32::MIN, 0.0, 0.5][key % 5])).collect();
                    let at = HostInputs::<T>::at(Host::bottom_right());
                    let uncovered = Softmax { left: Some(keys as u32 / 2), ..Softmax::causal(2.0) };
                    let calls = [
                        (Softmax::new(2.0), HostInputs { bias: Bias::Slopes(&slopes), ..at }, 0),
                        (uncovered, HostInputs { bias: Bias::Slopes(&slopes), sinks: Some(&[0.5, -1.0]), ..at }, 0),
                        (uncovered, HostInputs { bias: Bias::Toeplitz(&row), ..at }, 1),
                        (Softmax::new(2.0), HostInputs { mask: Some((&mask, Logits::bhqk(1, 1, 1, keys))), ..at }, 0),
                        (
                            Softmax { order: Order::BiasThenScale, ..uncovered },
                            HostInputs { bias: Bias::Slopes(&slopes), ..at },
                            0,
                        ),
                        (
                            Softmax { softcap: Some(3.0), ..uncovered },
                            HostInputs { bias: Bias::Slopes(&slopes), ..at },
                            0,
                        ),
                        (Softmax::causal(1.0), HostInputs { scales: Some(&[2.0, 1.5]), ..at }, 0),
                    ];
                    // The reference takes its time.
                    let few = queries * keys > 10_000;
                    if few && (special != [if fill { f32::MIN } else { f32::INFINITY }] || size_of::<T>() == 4) {
                        continue;
                    }
                    for (softmax, inputs, shift) in calls.into_iter().take(if few { 2 } else { 7 }) {
                        let mut want = x.clone();
                        let want_lse = softmax.apply(&mut want, &shape, &inputs).unwrap();
                        let (got, lse) = run(gpu, &softmax, &x, &shape, &inputs, shift);
                        let same = |got: f64, want: f64, tolerance: f64| {
                            got.is_nan() && want.is_nan() || (got - want).abs() <= tolerance
                        };
                        let context = || format!("{} {special:?} {fill} {softmax:?} {shape:?}", T::NAME);
                        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                            let (got, want) = (got.to_f64(), want.to_f64());
                            assert!(same(got, want, tolerance), "{i}: {got}, on the CPU {want}: {}", context());
                        }
                        for (i, (&got, &want)) in lse.iter().zip(&want_lse).enumerate() {
                            let tolerance = 1e-4 + 1e-6 * f64::from(want).abs();
                            let same = got == want || same(got.into(), want.into(), tolerance);
                            assert!(same, "row {i}: lse {got}, on the CPU {want}: {}", context());
                        }
                    }
                }
            }
        }
    }
    let gpu = gpu();
    each_way::<f32>(&gpu, 1e-5);
    each_way::<bf16>(&gpu, 8e-3);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn each_logit_is_read_once_and_written_once() {
    let gpu = gpu();
    let plan = SoftmaxPlan::<bf16>::new(&gpu, &Softmax::new(1.0), &Alibi::new(4)).unwrap();
    let rows = [(16, 1024), (8, 8192), (gpu.multiprocessors() as usize / 4 + 1, 16_384)];
    // A block of compute capability 7.5 has room for 8192 keys, longer rows are read twice there.
    let most = if gpu.capability() == (7, 5) { 8192 } else { 49_152 };
    for (queries, keys) in rows.into_iter().filter(|&(_, keys)| keys <= most) {
        let shape = Logits::bhqk(1, 4, queries, keys);
        let len = shape.elements().unwrap();
        let mut x = Guarded::<bf16>::new(&gpu, &vec![bf16::ONE; len], 0);
        plan.apply(shape.of_mut(&mut x.view()), &Inputs::default()).unwrap();
        if let Some(report) = last_launch() {
            assert_eq!(report.counters.bytes_written, 2 * len as u64, "{keys}");
            assert_eq!(report.counters.global_accesses[4], 2 * (len / 8) as u64, "{keys}");
            let threads = u64::from(report.grid[0] * report.block[0]);
            // Beside the logits each thread reads two slopes, and blocks that share a row meet.
            assert!(report.counters.bytes_read <= 2 * len as u64 + 8 * threads, "{keys} {report:?}");
        }
    }
    // Few long rows, which blocks share: the same, but that they meet. 16 bytes are what logits and probabilities take.
    let shape = Logits::bhqk(1, 4, 1, 65_536);
    let len = shape.elements().unwrap();
    let mut x = Guarded::<bf16>::new(&gpu, &vec![bf16::ONE; len], 0);
    plan.apply(shape.of_mut(&mut x.view()), &Inputs::default()).unwrap();
    if let Some(report) = last_launch() {
        assert_eq!(report.grid[0], 4 * 8);
        assert_eq!(report.counters.global_accesses[4], 2 * (len / 8) as u64, "{report:?}");
    }
    // A causal mask: what is masked is not read.
    let plan = SoftmaxPlan::<bf16>::new(&gpu, &Softmax::causal(1.0), &Alibi::new(4)).unwrap();
    let shape = Logits::bhqk(1, 4, 1024, 1024);
    let len = shape.elements().unwrap();
    let mut x = Guarded::<bf16>::new(&gpu, &vec![bf16::ONE; len], 0);
    plan.apply(shape.of_mut(&mut x.view()), &Inputs::default()).unwrap();
    if let Some(report) = last_launch() {
        let threads = u64::from(report.grid[0] * report.block[0]);
        assert!(report.counters.bytes_read < (len as u64) * 102 / 100 + 8 * threads, "{report:?}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn rows_of_no_keys_have_their_sink_and_no_gradient() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 3, 0);
    let inputs = HostInputs { sinks: Some(&[0.5, -1.0]), ..HostInputs::<f32>::at(Host::counted(0, 0)) };
    let (_, lse) = run(&gpu, &Softmax::new(1.0), &[], &shape, &inputs, 0);
    assert_eq!(lse, [0.5, 0.5, 0.5, -1.0, -1.0, -1.0]);
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).unwrap();
    let [mut p, mut dx] = [(); 2].map(|()| Guarded::<f32>::new(&gpu, &[], 0));
    let mut dots = Guarded::<f32>::poisoned(&gpu, 6, 1);
    let (mut view, p) = (dots.view(), p.view());
    let options = GradOptions { dots: Some(&mut view), ..GradOptions::default() };
    let inputs = Inputs::at(Places::counted(0, 0));
    plan.grad(shape.of(&p), shape.of_mut(&mut dx.view()), &inputs, options).unwrap();
    // An offset into an empty tensor is no place.
    plan.apply(shape.at(5).of_mut(&mut dx.view()), &inputs).unwrap();
    assert_eq!(dots.read(&gpu), [0.0; 6]);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_a_call_is_refused() {
    let shape = Logits::bhqk(2, 3, 2, 4);
    let text = |softmax: Softmax, inputs: HostInputs<f32>| {
        let mut logits = [1.0f32; 48];
        let error = softmax.apply(&mut logits, &shape, &inputs).unwrap_err().to_string();
        assert_eq!(logits, [1.0; 48]);
        error
    };
    let plain = HostInputs::at(Places::bottom_right());
    assert_eq!(text(Softmax::new(f32::NAN), plain), "scale is NaN, it must be finite");
    assert_eq!(
        text(Softmax { softcap: Some(0.0), ..Softmax::new(1.0) }, plain),
        "softcap is 0, it must be finite and above 0"
    );
    assert_eq!(
        text(Softmax::new(1.0), HostInputs { sinks: Some(&[0.0; 2]), ..plain }),
        "there are 2 sinks for 3 heads"
    );
    assert_eq!(
        text(Softmax::new(1.0), HostInputs { gates: Some(&[1.0; 12]), ..plain }),
        "gates multiply a bias, and there is none"
    );
    assert_eq!(
        text(Softmax::new(1.0), HostInputs { sinks: Some(&[0.0, f32::NAN, 0.0]), ..plain }),
        "the sink of head 1 is NaN, it must be below inf"
    );
    assert_eq!(
        text(Softmax::new(1.0), HostInputs { mask: Some((&[0.0; 12], Logits::bhqk(1, 1, 3, 4))), ..plain }),
        "the mask is [1, 1, 3, 4] and the logits [2, 3, 2, 4]: each of the first three must be equal or 1, \
         and the keys equal"
    );
    assert_eq!(
        text(Softmax::new(1.0), HostInputs { mask: Some((&[0.0; 7], Logits::bhqk(1, 1, 2, 4))), ..plain }),
        "mask holds 7 elements, the shape needs 8"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_a_call_on_the_device_is_refused() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 2, 4);
    let other = BiasPlan::<f32>::new(&gpu, &Alibi::new(3)).unwrap();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::new(1.0), Bias::None).unwrap();
    let mut x = gpu.stream().clone_htod(&[1.0f32; 16]).unwrap();
    let sinks = gpu.stream().clone_htod(&[1.0f32; 1]).unwrap();
    let mask = gpu.stream().clone_htod(&[1.0f32; 4]).unwrap();
    let mut text = |inputs: DeviceInputs<f32>, shape: Logits| {
        let error = plan.apply(shape.of_mut(&mut x), &inputs).unwrap_err().to_string();
        assert_eq!(gpu.stream().clone_dtoh(&x).unwrap(), [1.0; 16]);
        error
    };
    let plain = DeviceInputs::<f32>::default;
    assert_eq!(text(plain(), Logits::bhqk(1, 2, 3, 4)), "logits holds 16 elements, the shape needs 24");
    assert_eq!(
        text(DeviceInputs { bias: (&other).into(), ..plain() }, shape),
        "the bias has 3 heads, the logits have 2"
    );
    assert_eq!(
        text(DeviceInputs { sinks: Some(&sinks), ..plain() }, shape),
        "sinks holds 1 elements, the shape needs 2"
    );
    assert_eq!(text(DeviceInputs { gates: Some(&mask), ..plain() }, shape), "gates multiply a bias, and there is none");
    assert_eq!(
        text(DeviceInputs { mask: Some(Logits::bhqk(1, 1, 1, 3).of(&mask)), ..plain() }, shape),
        "the mask is [1, 1, 1, 3] and the logits [1, 2, 2, 4]: each of the first three must be equal or 1, and the keys equal"
    );
    assert_eq!(
        text(plain(), Logits::bhqk(1, 2, 2, 4).row(3)),
        "logits is written and its elements overlap: a dimension of 2 has stride 3, and 4 elements lie below it"
    );
    let capped = Softmax { softcap: Some(2.0), ..Softmax::new(1.0) };
    let capped = SoftmaxPlan::<f32>::new(&gpu, &capped, Bias::None).unwrap();
    let p = gpu.stream().clone_htod(&[1.0f32; 16]).unwrap();
    let error = capped.grad(shape.of(&p), shape.of_mut(&mut x), &plain(), GradOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the gradient of a softcap needs the logits before the softmax");
    let error = BiasPlan::<f32>::new(&gpu, Bias::Fire(&fire(2, 3, 1))).err().unwrap();
    assert_eq!(error.to_string(), "FIRE needs its largest position: use BiasPlan::fire");

    if let Ok(elsewhere) = Gpu::open(1) {
        // Its bias has numbers in the other device's memory, or none at all.
        let slopes = Alibi::new(2).slopes().unwrap();
        for bias in [Bias::Slopes(&slopes), Bias::None] {
            let bias = BiasPlan::<f32>::new(&elsewhere, bias).unwrap();
            let inputs = DeviceInputs { bias: (&bias).into(), ..plain() };
            for error in [
                plan.apply(shape.of_mut(&mut x), &inputs).unwrap_err(),
                plan.grad(shape.of(&p), shape.of_mut(&mut x), &inputs, GradOptions::default()).unwrap_err(),
            ] {
                let wanted = "the bias lies in another CUDA context than the one this plan was made for";
                assert_eq!(error.to_string(), wanted);
            }
        }
    }
}

/// Streams of one context may share a bias: its numbers are ordered before the stream that reads them.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_bias_of_another_stream_serves() {
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    let [first, second] = [0, 1].map(|_| Gpu::new(&context.new_stream().unwrap()).unwrap());
    let slopes = Alibi::new(2).slopes().unwrap();
    let bias = BiasPlan::<f32>::new(&first, &slopes).unwrap();
    let plan = SoftmaxPlan::<f32>::new(&second, &Softmax::new(1.0), bias).unwrap();
    let shape = Logits::bhqk(1, 2, 2, 4);
    let mut x = second.stream().clone_htod(&[1.0f32; 16]).unwrap();
    plan.apply(shape.of_mut(&mut x), &Inputs::default()).unwrap();
    let inputs = HostInputs { bias: Bias::Slopes(&slopes), ..HostInputs::default() };
    let want = Softmax::new(1.0).expect(&[1.0f32; 16], &shape, &inputs).unwrap();
    assert_close(&second.stream().clone_dtoh(&x).unwrap(), &want.want, |i| want.bound[i]);
}

/// The plan's own bias, trained in place, and another in its place for one call.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_plan_owns_its_bias_and_a_call_may_bring_another() {
    let gpu = gpu();
    let (shape, none) = (Logits::bhqk(1, 2, 3, 9), BiasPlan::<f32>::new(&gpu, Bias::None).unwrap());
    let mut plan = SoftmaxPlan::<f32>::new(&gpu, &Softmax::causal(1.0), &Alibi::new(2)).unwrap();
    let logits: Vec<f32> = Data::new(1).values(shape.elements().unwrap());
    let check = |plan: &SoftmaxPlan<f32>, call: Option<&BiasPlan<f32>>, bias: Bias| {
        let mut x = gpu.stream().clone_htod(&logits).unwrap();
        plan.apply(shape.of_mut(&mut x), &Inputs { bias: DeviceBias { plan: call, terms: &[] }, ..Inputs::default() })
            .unwrap();
        let inputs = HostInputs { bias, ..HostInputs::default() };
        let want = plan.softmax().expect(&logits, &shape, &inputs).unwrap();
        assert_close(&gpu.stream().clone_dtoh(&x).unwrap(), &want.want, |i| want.bound[i]);
    };
    let slopes = Alibi::new(2).slopes().unwrap();
    check(&plan, None, Bias::Slopes(&slopes));
    check(&plan, Some(&none), Bias::None);
    let trained = Slopes::symmetric(2, &[0.75, 0.125]).unwrap();
    let (mut left, mut right) = plan.bias_mut().slopes_mut().unwrap().unwrap();
    gpu.stream().memcpy_htod(&trained.left, &mut left).unwrap();
    gpu.stream().memcpy_htod(&trained.right, &mut right).unwrap();
    check(&plan, None, Bias::Slopes(&trained));
    check(&plan, Some(plan.bias()), Bias::Slopes(&trained));
}

#[test]
fn rows_beyond_the_host_are_refused() {
    let shape = Logits::bhqk(1 << 20, 1 << 10, 1 << 10, 0);
    let want = "1099511627776 rows take 4398046511104 bytes on the host, at most 4294967296 are possible";
    let error = Softmax::new(1.0).apply::<f32>(&mut [], &shape, &Inputs::default()).unwrap_err();
    assert_eq!(error.to_string(), want);
    let error = Softmax::new(1.0).expect::<f32>(&[], &shape, &Inputs::default()).unwrap_err();
    assert_eq!(error.to_string(), want.replace("4398046511104", "8796093022208"));
}

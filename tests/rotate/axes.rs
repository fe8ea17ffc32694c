//! Several axes: the published layouts, laws, refusals.

use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::rotate::{Angles, Axes, OutOfRange, Rotation, Table, TableValues};
use posenc::{Direction, Gpu, Heads, Ids, ModelRope, Pairing, Positions, Rope, RopePlan, Scalar, Scaling};
use serde_json::Value;

use super::rope::{Case, table};
use crate::support::{Data, Guarded, gpu};

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/rope_axes_hf.json")).unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| usize::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

fn floats(bits: &Value) -> Vec<f64> {
    let float = |bits: &Value| f64::from(f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap()));
    bits.as_array().unwrap().iter().map(float).collect()
}

fn axes_of(form: &Value) -> Axes {
    let (name, value) = form.as_object().unwrap().iter().next().unwrap();
    match name.as_str() {
        "sections" => Axes::Sections(sizes(value)),
        "interleaved" => Axes::Interleaved(sizes(value)),
        "height_width_first" => Axes::HeightWidthFirst(sizes(value).try_into().unwrap()),
        "ladders" => Axes::Ladders(sizes(value)),
        "dealt" => Axes::Dealt(usize::try_from(value.as_u64().unwrap()).unwrap()),
        other => panic!("{other}"),
    }
}

// -------------------------------------------------------------------------------------------------------------- values

/// transformers 5.23.0 with position 1 on one axis and 0 on the others: a pair's angle is its frequency on its own axis and
/// 0 on the others.
#[test]
fn axes_and_frequencies_are_those_of_transformers() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 23);
    for case in cases {
        let rows: Vec<_> = case["angles_f32_bits"].as_array().unwrap().iter().map(floats).collect();
        let pairs = rows[0].len();
        let rope = Rope { axes: axes_of(&case["form"]), ..Rope::new(2 * pairs, case["theta"].as_f64().unwrap()) };
        rope.check().unwrap();
        assert_eq!(rope.axes.count(), rows.len(), "{}", case["name"]);
        // A vision tower's own config says the same.
        if !case["config"].is_null() {
            let model = ModelRope::from_hf(&case["config"].to_string()).unwrap();
            assert_eq!(model.rope().unwrap(), &rope, "{}", case["config"]);
        }
        for (axis, row) in rows.iter().enumerate() {
            for (pair, &angle) in row.iter().enumerate() {
                let want = if rope.axes.axis(pair, pairs) == axis { rope.frequency(pair) } else { 0.0 };
                assert!((angle - want).abs() <= 1e-6 * want, "{}, axis {axis}, pair {pair}: {angle:e}", case["name"]);
            }
        }
    }
}

/// transformers 5.23.0, heads through Gemma 4's own `apply_multidimensional_rope`, in f32.
#[test]
fn gemma_4s_vision_tower_has_blocks() {
    let golden = golden();
    let case = &golden["gemma4"];
    let dim = usize::try_from(case["dim"].as_u64().unwrap()).unwrap();
    let patches: Vec<Vec<usize>> = case["patches"].as_array().unwrap().iter().map(sizes).collect();
    let positions: Vec<i64> = [0, 1].iter().flat_map(|&axis| patches.iter().map(move |at| at[axis] as i64)).collect();
    let rope = Rope { axes: Axes::Blocks(2), ..Rope::new(dim, case["theta"].as_f64().unwrap()) };
    let mut x: Vec<f32> = floats(&case["x_f32_bits"]).into_iter().map(|x| x as f32).collect();
    rope.rotate(&mut x, &Heads::thd(patches.len(), 1, dim), &positions, Direction::Forward).unwrap();
    for (i, (got, want)) in x.iter().zip(floats(&case["y_f32_bits"])).enumerate() {
        // Angles up to 47 in f32.
        assert!((f64::from(*got) - want).abs() < 1e-5, "patch {}, channel {}: {got}, {want}", i / dim, i % dim);
    }
}

/// transformers 5.23.0: a patch's middle on -1..1, times 2 pi. Patch i of n stands at 2i + 1 - n, and its pairs turn by
/// 2 pi / n of the ladder for each unit.
#[test]
fn dinov3_is_a_grid_of_odd_positions() {
    let golden = golden();
    let case = &golden["dinov3"];
    let grid = sizes(&case["grid"]);
    let rows = case["angles"].as_array().unwrap();
    let pairs = floats(&rows[0][0]).len();
    let axes = Axes::Ladders(vec![pairs / 2; 2]);
    let divisors = (0..pairs).map(|pair| grid[axes.axis(pair, pairs)] as f64 / std::f64::consts::TAU).collect();
    let rope = Rope {
        axes: axes.clone(),
        scaling: Scaling::Divisors(divisors),
        ..Rope::new(2 * pairs, case["theta"].as_f64().unwrap())
    };
    for (patch, row) in case["patches"].as_array().unwrap().iter().zip(rows) {
        let patch = sizes(patch);
        let (cos, sin) = (floats(&row[0]), floats(&row[1]));
        for pair in 0..pairs {
            let axis = axes.axis(pair, pairs);
            let at = 2 * i64::try_from(patch[axis]).unwrap() + 1 - i64::try_from(grid[axis]).unwrap();
            let angle = rope.angle(at, pair);
            assert!(
                (angle.cos() - cos[pair]).abs() < 1e-6 && (angle.sin() - sin[pair]).abs() < 1e-6,
                "{patch:?} {pair}"
            );
        }
    }
}

/// timm 1.0.31, build_rotary_pos_embed with in_pixels=False: a grid, plain and stretched to the grid of the training
/// (position * reference / grid, so the rates are stretched and the positions stay whole).
#[test]
fn eva_02_is_a_grid_with_stretched_rates() {
    for case in golden()["eva02"].as_array().unwrap() {
        let (grid, patch) = (sizes(&case["grid"]), sizes(&case["patch"]));
        let (cos, sin) = (floats(&case["cos_f32_bits"]), floats(&case["sin_f32_bits"]));
        let pairs = cos.len();
        let axes = Axes::Ladders(vec![pairs / 2; 2]);
        let scaling = match case["reference"].as_array() {
            None => Scaling::None,
            Some(_) => {
                let reference = sizes(&case["reference"]);
                let stretch = |pair| grid[axes.axis(pair, pairs)] as f64 / reference[axes.axis(pair, pairs)] as f64;
                Scaling::Divisors((0..pairs).map(stretch).collect())
            }
        };
        let rope =
            Rope { pairing: Pairing::Interleaved, axes: axes.clone(), scaling, ..Rope::new(2 * pairs, 10_000.0) };
        for pair in 0..pairs {
            let angle = rope.angle(i64::try_from(patch[axes.axis(pair, pairs)]).unwrap(), pair);
            assert!((angle.cos() - cos[pair]).abs() < 4e-6 && (angle.sin() - sin[pair]).abs() < 4e-6, "{case} {pair}");
        }
    }
}

/// Wan 2.1 splits 64 pairs of a head into 22 for time and 21 for height and width, each with a ladder of its own.
#[test]
fn a_volume_has_a_ladder_for_each_axis() {
    let wan = Rope { axes: Axes::Ladders(vec![22, 21, 21]), ..Rope::new(128, 10_000.0) };
    wan.check().unwrap();
    for (pair, axis, rung, size) in [(0, 0, 0, 44), (21, 0, 21, 44), (22, 1, 0, 42), (43, 2, 0, 42), (63, 2, 20, 42)] {
        assert_eq!(wan.axes.axis(pair, 64), axis);
        assert_eq!(wan.rate(pair), Rope::new(size, 10_000.0).rate(rung));
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

fn forms() -> Vec<Axes> {
    vec![
        Axes::Sections(vec![8, 4, 4]),
        Axes::Interleaved(vec![6, 5, 5]),
        Axes::HeightWidthFirst([4, 6, 6]),
        Axes::Table((0..16).map(|pair| pair % 5).collect()),
        Axes::Ladders(vec![8, 8]),
        Axes::Dealt(4),
        Axes::Blocks(4),
        Axes::Alternating(2),
    ]
}

#[test]
fn every_axis_has_its_size_in_pairs() {
    for (axes, sizes) in forms().iter().zip([
        vec![8, 4, 4],
        vec![6, 5, 5],
        vec![4, 6, 6],
        vec![4, 3, 3, 3, 3],
        vec![8, 8],
        vec![4; 4],
        vec![4; 4],
        vec![8; 2],
    ]) {
        let mut count = vec![0; axes.count()];
        (0..16).for_each(|pair| count[axes.axis(pair, 16)] += 1);
        assert_eq!(count, sizes, "{axes:?}");
    }
}

fn data(n: usize) -> Vec<f32> {
    (0..n).map(|i| (if i % 3 == 0 { -1.0 } else { 1.0 }) * (0.5 + (i * 37 % 64) as f32 / 64.0)).collect()
}

#[test]
fn equal_axes_are_plain_rope_bit_for_bit() {
    let heads = Heads::bthd(2, 3, 2, 40);
    let row = [0i64, 131071, -1, 16777217, 5, 2147483647];
    for axes in forms().into_iter().filter(Axes::one_ladder) {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let plain = Rope { pairing, offset: 4, ..Rope::new(32, 10_000.0) };
            let rope = Rope { axes: axes.clone(), ..plain.clone() };
            let (mut got, mut want) = (data(heads.span().unwrap()), data(heads.span().unwrap()));
            let positions = row.repeat(axes.count());
            rope.rotate(&mut got, &heads, &positions, Direction::Forward).unwrap();
            plain.rotate(&mut want, &heads, &row, Direction::Forward).unwrap();
            assert_eq!(got, want, "{axes:?}");
        }
    }
}

#[test]
fn a_pair_turns_by_its_own_axis_alone() {
    let heads = Heads::thd(1, 1, 32);
    for axes in forms() {
        let rope = Rope { axes: axes.clone(), ..Rope::new(32, 10_000.0) };
        for axis in 0..axes.count() {
            let mut positions = vec![0i64; axes.count()];
            positions[axis] = 7;
            let mut x = data(32);
            rope.rotate(&mut x, &heads, &positions, Direction::Forward).unwrap();
            for pair in 0..16 {
                // Four blocks of eight channels, each in halves of its own.
                let (a, b) = if axes == Axes::Blocks(4) {
                    (pair / 4 * 4 + pair, pair / 4 * 4 + pair + 4)
                } else {
                    (pair, pair + 16)
                };
                let moved = x[a] != data(32)[a] || x[b] != data(32)[b];
                assert_eq!(moved, axes.axis(pair, 16) == axis, "{axes:?}, axis {axis}, pair {pair}");
            }
        }
    }
}

/// Blocks are rotary parts of their own, one behind the other, each with its axis.
#[test]
fn blocks_are_rotated_each_for_itself() {
    let heads = Heads::bthd(1, 3, 2, 40);
    let positions = [5i64, 131_071, -3, 0, 9, 1 << 30];
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let rope = Rope { axes: Axes::Blocks(2), pairing, offset: 4, ..Rope::new(32, 100.0) };
        let mut got = data(heads.span().unwrap());
        let mut want = got.clone();
        rope.rotate(&mut got, &heads, &positions, Direction::Forward).unwrap();
        for (axis, offset) in [(0, 4), (1, 20)] {
            let block = Rope { pairing, offset, ..Rope::new(16, 100.0) };
            block.rotate(&mut want, &heads, &positions[3 * axis..3 * axis + 3], Direction::Forward).unwrap();
        }
        assert_eq!(got, want);
    }
}

#[test]
fn interleaved_in_and_halves_out_is_a_permutation_of_the_result() {
    let heads = Heads::thd(2, 2, 24);
    let inside = Rope { pairing: Pairing::Interleaved, offset: 4, ..Rope::new(16, 10_000.0) };
    for (pairing, out) in [(Pairing::Interleaved, Pairing::Half), (Pairing::Half, Pairing::Interleaved)] {
        let same = Rope { pairing, ..inside.clone() };
        let moved = Rope { pairing_out: Some(out), ..same.clone() };
        let (mut x, mut y) = (data(96), data(96));
        same.rotate(&mut x, &heads, &[3, 9], Direction::Forward).unwrap();
        moved.rotate(&mut y, &heads, &[3, 9], Direction::Forward).unwrap();
        for head in 0..4 {
            for pair in 0..8 {
                let (a, b) = pairing.channels(pair, 16);
                let (a_out, b_out) = out.channels(pair, 16);
                let at = head * 24 + 4;
                assert_eq!((y[at + a_out], y[at + b_out]), (x[at + a], x[at + b]));
            }
            assert_eq!(
                (&y[head * 24..head * 24 + 4], &y[head * 24 + 20..head * 24 + 24]),
                (&x[head * 24..head * 24 + 4], &x[head * 24 + 20..head * 24 + 24])
            );
        }
        let want = moved.expect(&data(96), &heads, &[3, 9], Direction::Forward).unwrap();
        posenc::accuracy::assert_close(&y, &want.want, |i| want.bound[i]);
        // Scores do not see the order of channels.
        let dot = |x: &[f32]| (0..24).map(|i| x[i] * x[48 + i]).sum::<f32>();
        assert!((dot(&x) - dot(&y)).abs() < 1e-5);
    }
}

// ------------------------------------------------------------------------------------------- kernel against reference

/// Layouts of real models, and those of `forms` for heads of every width of access.
fn models() -> Vec<(Axes, usize)> {
    vec![
        (Axes::Sections(vec![16, 24, 24]), 128),
        (Axes::Interleaved(vec![24, 20, 20]), 128),
        (Axes::Interleaved(vec![11, 11, 10]), 64),
        (Axes::HeightWidthFirst([20, 22, 22]), 128),
        (Axes::Ladders(vec![20, 20]), 80),
        (Axes::Ladders(vec![22, 21, 21]), 128),
        (Axes::Dealt(2), 64),
        (Axes::Blocks(2), 64),
        (Axes::Blocks(2), 72),
        (Axes::Blocks(3), 48),
        (Axes::Alternating(2), 72),
        (Axes::Alternating(3), 48),
        (Axes::Table(vec![3, 1, 0, 2, 1]), 10),
        (Axes::Sections(vec![1, 0, 2]), 6),
    ]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_layout_of_axes() {
    let (gpu, mut data) = (gpu(), Data::new(31));
    for (axes, rotary) in models().into_iter().chain(forms().into_iter().map(|axes| (axes, 32))) {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let offset = data.pick(&[0, 2, 8]);
            let dim = offset + rotary + data.pick(&[0, 1, 8]);
            let rope = Rope { axes: axes.clone(), pairing, offset, ..Rope::new(rotary, 10_000.0) };
            let (batch, tokens) = data.pick(&[(1, 5), (2, 3), (3, 1)]);
            let (q, k) = (Heads::bthd(batch, tokens, 3, dim), Heads::bthd(batch, tokens, 1, dim));
            let mut case = Case::in_place(&rope, q, Some(k), &mut data);
            case.check::<bf16>(&gpu, &mut data);
            case.check::<f32>(&gpu, &mut data);
            case.out = Some((q, Some(k)));
            case.shift = data.below(3);
            case.check::<f16>(&gpu, &mut data);
        }
    }
}

/// One token's two heads of q, rotated on the device.
fn rotated<T: Scalar>(gpu: &Gpu, rope: &Rope, heads: Heads, x: &[T], positions: Positions<Ids<'_>>) -> Vec<T> {
    let plan = RopePlan::<T>::new(gpu, rope).expect("a plan");
    let mut buffer = Guarded::new(gpu, x, 0);
    plan.rotate(heads.of_mut(&mut buffer.view()), None, positions).expect("a call");
    buffer.read(gpu)
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn equal_axes_are_plain_rope_on_the_device_too() {
    let (gpu, mut data) = (gpu(), Data::new(32));
    let heads = Heads::bthd(2, 4, 2, 136);
    let x = data.values::<bf16>(heads.span().expect("small"));
    let row: Vec<i64> = (0..8).map(|_| data.position()).collect();
    let ids = gpu.stream().clone_htod(&row).expect("a copy");
    for (axes, rotary) in models().into_iter().filter(|(axes, _)| axes.one_ladder()) {
        for angles in [Angles::Exact, Angles::HfCompat] {
            let plain = Rope { angles, ..Rope::new(rotary, 5e5) };
            let several = Rope { axes: axes.clone(), ..plain.clone() };
            let repeated = gpu.stream().clone_htod(&row.repeat(axes.count())).expect("a copy");
            let want = rotated(&gpu, &plain, heads, &x, Positions::ids(&ids));
            assert_eq!(want, rotated(&gpu, &several, heads, &x, Positions::ids(&repeated)), "{axes:?}");
        }
    }
}

/// Rows of a longer buffer, starts, and one row of ids for every sequence.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_kind_of_position_has_axes() {
    let (gpu, mut data) = (gpu(), Data::new(33));
    let rope = Rope { axes: Axes::Sections(vec![3, 2, 3]), ..Rope::new(16, 10_000.0) };
    let (batch, tokens) = (2, 5);
    let heads = Heads::bthd(batch, tokens, 2, 16);
    let x = data.values::<f32>(heads.span().expect("small"));
    let starts = [7i64, 131_000, 40, 0, 1 << 24, 99];
    let ids: Vec<i64> = starts.iter().flat_map(|&start| (0..5).map(move |token| start + token)).collect();
    let stream = gpu.stream();
    let upload = |ids: &[i64]| stream.clone_htod(ids).expect("a copy");
    let want = rope.expect(&x, &heads, &ids, Direction::Forward).expect("reference");
    let whole = rotated(&gpu, &rope, heads, &x, Positions::ids(&upload(&ids)));
    assert_close(&whole, &want.want, |i| want.bound[i]);
    assert_eq!(whole, rotated(&gpu, &rope, heads, &x, Positions::starts(&upload(&starts))));
    // A buffer made for 13 tokens of each axis, of which this call uses 10.
    let mut longer = vec![i64::MAX; 3 * 13];
    for axis in 0..3 {
        longer[axis * 13..axis * 13 + 10].copy_from_slice(&ids[axis * 10..(axis + 1) * 10]);
    }
    assert_eq!(whole, rotated(&gpu, &rope, heads, &x, Positions::ids(&upload(&longer)).axis_stride(13)));
    let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let narrow = stream.clone_htod(&narrow).expect("a copy");
    assert_eq!(whole, rotated(&gpu, &rope, heads, &x, Positions::ids(&narrow)));
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn pairs_move_out_of_place() {
    let (gpu, mut data) = (gpu(), Data::new(34));
    for (pairing, out) in [(Pairing::Interleaved, Pairing::Half), (Pairing::Half, Pairing::Interleaved)] {
        for (rotary, offset, dim) in [(64, 0, 64), (64, 128, 192), (24, 4, 32), (10, 1, 13), (2, 0, 2), (32, 0, 40)] {
            for axes in [Axes::One, Axes::Sections(vec![1, rotary / 2 - 1])] {
                let rope = Rope { pairing, pairing_out: Some(out), offset, axes, ..Rope::new(rotary, 10_000.0) };
                let (q, k) = (Heads::thd(4, 3, dim), Heads::thd(4, 2, dim));
                let mut case = Case::in_place(&rope, q, Some(k), &mut data);
                case.out = Some((q, Some(k)));
                case.check_all(&gpu, &mut data);
                case.shift = 1;
                case.check::<bf16>(&gpu, &mut data);
            }
        }
    }
    let rope = Rope { pairing_out: Some(Pairing::Interleaved), ..Rope::new(8, 1e4) };
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let mut x = gpu.stream().clone_htod(&[1f32; 8]).expect("a copy");
    let ids = gpu.stream().clone_htod(&[1i64]).expect("a copy");
    let call = plan.rotate(Heads::thd(1, 1, 8).of_mut(&mut x), None, Positions::ids(&ids));
    assert_eq!(
        call.expect_err("refused").to_string(),
        "pairing is Half and pairing_out Interleaved: pairs move, so the rotation cannot be in place"
    );
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn compat_angles_and_tables_have_axes() {
    let (gpu, mut data) = (gpu(), Data::new(35));
    for (axes, rotary) in models() {
        let rope = Rope { axes, angles: Angles::HfCompat, ..Rope::new(rotary, 10_000.0) };
        Case::in_place(&rope, Heads::thd(3, 2, rotary), None, &mut data).check::<f32>(&gpu, &mut data);

        let rope = Rope { angles: Angles::Exact, ..rope };
        let (rows, pairs, heads) = (11, rotary / 2, Heads::thd(4, 2, rotary));
        let (cos, sin) = table(&mut data, rows, pairs);
        let positions: Vec<i64> = (0..4 * rope.axes.count()).map(|_| data.below(rows) as i64).collect();
        let x = data.values::<f32>(heads.span().expect("small"));
        let expected =
            rope.expect_by_table(&x, &heads, &positions, Direction::Forward, (&cos, &sin)).expect("reference");
        let stream = gpu.stream();
        let upload = |x: &[f64]| stream.clone_htod(&x.iter().map(|&x| x as f32).collect::<Vec<_>>()).expect("a copy");
        let (cos, sin) = (upload(&cos), upload(&sin));
        let values = TableValues::F32 { cos: &cos, sin: Some(&sin) };
        let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
        let ids = stream.clone_htod(&positions).expect("a copy");
        let mut buffer = Guarded::new(&gpu, &x, 0);
        let mut view = buffer.view();
        let q = heads.of_mut(&mut view);
        let table = Table { values, rows, stride: pairs, out_of_range: OutOfRange::Clamp };
        plan.rotate(q, None, Rotation { table: Some(table), ..Rotation::at(Positions::ids(&ids)) }).expect("a call");
        // The reference's bound is for cosines and sines up to 1, these go to 2.
        assert_close(&buffer.read(&gpu), &expected.want, |i| 2.0 * expected.bound[i]);
    }
}

/// A position beyond the table on one axis makes NaN of that axis's pairs alone.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn an_axis_beyond_the_table_is_nan_for_its_own_pairs() {
    let (gpu, mut data) = (gpu(), Data::new(37));
    let rope = Rope { axes: Axes::Sections(vec![1, 7]), ..Rope::new(16, 1e4) };
    let heads = Heads::thd(2, 1, 16);
    let (cos, sin) = table(&mut data, 4, 8);
    let stream = gpu.stream();
    let upload = |x: &[f64]| stream.clone_htod(&x.iter().map(|&x| x as f32).collect::<Vec<_>>()).expect("a copy");
    let (cos, sin) = (upload(&cos), upload(&sin));
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let x = data.values::<f32>(32);
    // Of both tokens on the first axis, then on the second one.
    for (ids, nan) in [([1i64, 1, 2, 4], 1..8), ([1, 1, 2, -1], 1..8), ([1, 4, 2, 0], 0..1), ([1, 1, 2, 3], 8..8)] {
        let ids = stream.clone_htod(&ids).expect("a copy");
        let mut flag = stream.clone_htod(&[0u32]).expect("a copy");
        let mut buffer = Guarded::new(&gpu, &x, 0);
        let values = TableValues::F32 { cos: &cos, sin: Some(&sin) };
        let table = Table { values, rows: 4, stride: 8, out_of_range: OutOfRange::Nan(Some(&mut flag)) };
        let rotation = Rotation { table: Some(table), ..Rotation::at(Positions::ids(&ids)) };
        plan.rotate(heads.of_mut(&mut buffer.view()), None, rotation).expect("a call");
        let got: Vec<bool> = buffer.read(&gpu).iter().map(|x| x.is_nan()).collect();
        let want: Vec<bool> = (0..32).map(|i| i >= 16 && nan.contains(&(i % 8))).collect();
        assert_eq!(got, want);
        assert_eq!(stream.clone_dtoh(&flag).expect("a copy"), [u32::from(!nan.is_empty())]);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn too_few_rows_of_positions_are_refused_on_the_device() {
    let gpu = gpu();
    let rope = Rope { axes: Axes::Sections(vec![2, 1, 1]), ..Rope::new(8, 1e4) };
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let stream = gpu.stream();
    let (row, indptr) =
        (stream.clone_htod(&[0i64; 5]).expect("a copy"), stream.clone_htod(&[0i32, 5]).expect("a copy"));
    let x = Data::new(36).values::<f32>(40);
    for (positions, message) in [
        (Positions::ids(&row), "positions holds 5 elements, 3 axes of 5 positions need 15"),
        (Positions::ids(&row).axis_stride(4), "positions have an axis stride of 4, a row of one axis holds 5"),
        (Positions::packed(&indptr, 1), "the spec has 3 axes, positions without ids have one"),
    ] {
        let mut buffer = Guarded::new(&gpu, &x, 0);
        let call = plan.rotate(Heads::thd(5, 1, 8).of_mut(&mut buffer.view()), None, positions);
        assert_eq!(call.expect_err(message).to_string(), message);
        assert_eq!(buffer.read(&gpu), x);
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn axes_that_do_not_fit_are_refused() {
    let refused =
        |axes: Axes, scaling: Scaling| Rope { axes, scaling, ..Rope::new(128, 1e6) }.check().unwrap_err().to_string();
    for (axes, message) in [
        (Axes::Sections(vec![16, 24, 23]), "the sections [16, 24, 23] sum to 63, the rotary part has 64 pairs"),
        (
            Axes::Interleaved(vec![24, 20, 19]),
            "the interleaved sections [24, 20, 19] sum to 63, the rotary part has 64 pairs",
        ),
        (
            Axes::Interleaved(vec![14, 26, 24]),
            "the interleaved sections [14, 26, 24] reach beyond 64 pairs, 3 apart as they are",
        ),
        (Axes::Ladders(vec![]), "the ladders [] sum to 0, the rotary part has 64 pairs"),
        (
            Axes::Sections(vec![usize::MAX, 2]),
            "the sections [18446744073709551615, 2] sum to more than fits 64 bits, the rotary part has 64 pairs",
        ),
        (Axes::HeightWidthFirst([20, 24, 20]), "height has 24 pairs and width 20, they alternate and must be as many"),
        (Axes::Table(vec![0; 63]), "the table of axes holds 63 pairs, the rotary part has 64"),
        (Axes::Dealt(3), "the rotary part has 64 pairs, which 3 axes do not share equally"),
        (Axes::Dealt(0), "the ladder is dealt to 0 axes, there must be at least 1"),
        (Axes::Blocks(5), "the rotary part has 64 pairs, which 5 axes do not share equally"),
        (Axes::Alternating(5), "the rotary part has 64 pairs, which 5 axes do not share equally"),
        (Axes::Alternating(0), "0 axes take turns, there must be at least 1"),
        (Axes::Blocks(0), "there are 0 blocks of channels, there must be at least 1"),
    ] {
        assert_eq!(refused(axes, Scaling::None), message);
    }
    assert_eq!(
        refused(Axes::Ladders(vec![32, 32]), Scaling::NtkStatic { alpha: 2.0 }),
        "axes with ladders of their own go with no scaling, a linear one or divisors"
    );
}

#[test]
fn one_row_of_positions_for_three_axes_is_refused() {
    let rope = Rope { axes: Axes::Sections(vec![2, 1, 1]), ..Rope::new(8, 1e4) };
    let mut x = data(40);
    let error = rope.rotate(&mut x, &Heads::thd(5, 1, 8), &[0, 1, 2, 3, 4], Direction::Forward).unwrap_err();
    assert_eq!(error.to_string(), "positions holds 5 elements, 3 axes of 5 positions need 15");
    assert_eq!(x, data(40));
}

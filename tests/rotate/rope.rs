//! RoPE: values, laws, the kernel against the reference, refusals.

use std::fmt::Debug;

use astro_float::{BigFloat, Consts, RoundingMode};
use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaContext, CudaSlice};
use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::gpu::Update;
use posenc::rotate::{Angles, Axes, OutOfRange, Rotation, Table, TableValues};
use posenc::{Direction, Gpu, Heads, Ids, Pairing, Positions, Rope, RopePlan, RopePlans, Scalar, Scaling};

use crate::support::{Data, Guarded, POSITIONS, alias, gpu, last_launch, poison};

const BITS: usize = 256;
const NEAREST: RoundingMode = RoundingMode::ToEven;

/// Llama-3.1-8B, config.json of meta-llama/Meta-Llama-3.1-8B.
fn llama3() -> Rope {
    let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
    Rope { scaling, ..Rope::new(128, 500_000.0) }
}

// -------------------------------------------------------------------------------------------------------------- values

/// Cosine and sine of `position * base^(-2 pair / rotary)` from 256-bit arithmetic that shares nothing with the crate.
fn truth(base: f64, rotary: usize, pair: usize, position: i64, consts: &mut Consts) -> (f64, f64) {
    let big = |x: f64| BigFloat::from_f64(x, BITS);
    let exponent = big(2.0 * pair as f64).div(&big(rotary as f64), BITS, NEAREST);
    let wavelength = big(base).pow(&exponent, BITS, NEAREST, consts);
    let angle = BigFloat::from_i64(position, BITS).div(&wavelength, BITS, NEAREST);
    let value = |x: BigFloat| x.to_string().parse::<f64>().expect("a decimal number");
    (value(angle.cos(BITS, NEAREST, consts)), value(angle.sin(BITS, NEAREST, consts)))
}

#[test]
fn the_reference_is_true_at_every_position() {
    let mut consts = Consts::new().expect("constants");
    for (base, rotary) in [(10_000.0, 128), (500_000.0, 128), (1e7, 64), (10_000.0, 24)] {
        let rope = Rope::new(rotary, base);
        for position in POSITIONS {
            for pair in (0..rotary / 2).step_by(5) {
                let (cos, sin) = truth(base, rotary, pair, position, &mut consts);
                let mut x = vec![0.0f32; rotary];
                x[pair] = 1.0;
                rope.rotate(&mut x, &Heads::thd(1, 1, rotary), &[position], Direction::Forward).expect("rotates");
                let angle = rope.angle(position, pair);
                for (got, want) in [(angle.cos(), cos), (angle.sin(), sin)] {
                    let off = (got - want).abs();
                    assert!(off < 8e-10, "pair {pair} of base {base} at {position}: {got} for {want}");
                }
                assert_close(&[x[pair], x[pair + rotary / 2]], &[cos, sin], |_| 3e-8 + 8e-10);
            }
        }
    }
}

#[test]
fn an_f32_angle_is_wrong_where_ours_is_not() {
    // What every engine computes: f32 frequency times f32 position. 9.3e-3 at 131072 for base 5e5, measured on a CPU.
    let mut consts = Consts::new().expect("constants");
    let mut worst = 0f64;
    for position in (131_072 - 256)..131_072i64 {
        for pair in [0, 1, 2, 3] {
            let (cos, _) = truth(500_000.0, 128, pair, position, &mut consts);
            let frequency = 1.0 / 500_000f32.powf(2.0 * pair as f32 / 128.0);
            worst = worst.max((f64::from(position as f32 * frequency).cos() - cos).abs());
        }
    }
    assert!(worst > 1e-3, "{worst}");
}

// ---------------------------------------------------------------------------------------------------------------- laws

fn ropes() -> Vec<Rope> {
    let yarn_like = Rope { attention_factor: 1.138629436, ..Rope::new(16, 1e6) };
    vec![
        Rope::new(16, 10_000.0),
        Rope { pairing: Pairing::Interleaved, ..Rope::new(16, 10_000.0) },
        Rope { offset: 4, ..yarn_like },
    ]
}

#[test]
fn a_rotation_keeps_the_norm_and_the_angle_between_tokens() {
    let mut data = Data::new(1);
    for rope in ropes() {
        let heads = Heads::thd(1, 1, 20);
        let rotated = |x: &[f32], position: i64| {
            let expected = rope.expect(x, &heads, &[position], Direction::Forward).expect("rotates");
            expected.want[rope.offset..rope.offset + rope.rotary].to_vec()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (q, k) = (data.values::<f32>(20), data.values::<f32>(20));
        let plain = |x: &[f32]| rotated(x, 0);
        let norm = dot(&plain(&q), &plain(&q));
        for (m, n) in [(5, 3), (131_071, 131_000), (-7, 9), ((1 << 31) - 1, (1 << 31) - 100)] {
            assert!((dot(&rotated(&q, m), &rotated(&q, m)) - norm).abs() < 1e-12 * norm);
            let here = dot(&rotated(&q, m), &rotated(&k, n));
            let at_zero = dot(&rotated(&q, m - n), &plain(&k));
            assert!((here - at_zero).abs() < 1e-11, "{rope:?}: q at {m} and k at {n}");
        }
    }
}

#[test]
fn position_zero_is_the_identity_and_back_undoes_forward() {
    let mut data = Data::new(2);
    for rope in ropes().into_iter().filter(|rope| rope.attention_factor == 1.0) {
        let heads = Heads::bthd(2, 3, 2, 20);
        let x = data.values::<f32>(heads.elements().expect("small"));
        let mut y = x.clone();
        rope.rotate(&mut y, &heads, &[0; 6], Direction::Forward).expect("rotates");
        assert_eq!(x, y);
        let positions: Vec<i64> = (0..6).map(|_| data.position()).collect();
        let forward = rope.expect(&x, &heads, &positions, Direction::Forward).expect("rotates");
        let back: Vec<f32> = forward.want.iter().map(|&x| x as f32).collect();
        let back = rope.expect(&back, &heads, &positions, Direction::Inverse).expect("rotates");
        assert_close(&x, &back.want, |_| 4e-7);
    }
}

// ------------------------------------------------------------------------------------------- kernel against reference

/// One call: shapes of q and k in their buffers, and of the outputs if it is out of place.
#[derive(Clone, Debug)]
pub struct Case {
    pub rope: Rope,
    pub q: Heads,
    pub k: Option<Heads>,
    pub out: Option<(Heads, Option<Heads>)>,
    /// `[axes, batch, tokens]`
    pub positions: Vec<i64>,
    pub direction: Direction,
    /// elements that each buffer begins past a 64-byte boundary
    pub shift: usize,
}

/// Values and bounds of a buffer of `len` poisoned elements into which `from` is rotated, or copied, as `to`.
fn expected_copy<T: Scalar>(case: &Case, x: &[T], from: &Heads, to: &Heads) -> (Vec<f64>, Vec<f64>) {
    let expected = case.rope.expect(x, from, &case.positions, case.direction).expect("the reference takes the case");
    let len = to.span().expect("small");
    let (mut want, mut bound) = (vec![poison::<T>().to_f64(); len], vec![0.0; len]);
    for b in 0..from.batch {
        for t in 0..from.tokens {
            for h in 0..from.heads {
                for c in 0..from.dim {
                    let (i, o) = (from.index(b, t, h, c), to.index(b, t, h, c));
                    (want[o], bound[o]) = (expected.want[i], expected.bound[i]);
                }
            }
        }
    }
    (want, bound)
}

impl Case {
    pub fn in_place(rope: &Rope, q: Heads, k: Option<Heads>, data: &mut Data) -> Self {
        let positions = (0..rope.position_axes() * q.batch * q.tokens).map(|_| data.position()).collect();
        let direction = data.pick(&[Direction::Forward, Direction::Inverse]);
        Self { rope: rope.clone(), q, k, out: None, positions, direction, shift: 0 }
    }

    /// The tensors, with their outputs if there are any.
    fn tensors(&self) -> Vec<(Heads, Option<Heads>)> {
        match self.out {
            None => [Some(self.q), self.k].into_iter().flatten().map(|heads| (heads, None)).collect(),
            Some((q_out, k_out)) => {
                [Some((self.q, Some(q_out))), self.k.map(|k| (k, k_out))].into_iter().flatten().collect()
            }
        }
    }

    /// Rotates `inputs`: what is in every buffer afterwards, outputs behind the tensors.
    #[track_caller]
    fn run<T: Scalar>(&self, gpu: &Gpu, inputs: &[Vec<T>]) -> Vec<Vec<T>> {
        let plan = RopePlan::<T>::new(gpu, &self.rope).expect("the plan is made");
        let tensors = self.tensors();
        let mut buffers: Vec<Guarded<T>> = inputs.iter().map(|x| Guarded::new(gpu, x, self.shift)).collect();
        let mut outputs: Vec<Guarded<T>> = tensors
            .iter()
            .filter_map(|(_, out)| *out)
            .map(|out| Guarded::poisoned(gpu, out.span().expect("small"), self.shift))
            .collect();
        let ids = gpu.stream().clone_htod(&self.positions).expect("a copy");
        {
            let mut views: Vec<_> = buffers.iter_mut().map(Guarded::view).collect();
            let mut out_views: Vec<_> = outputs.iter_mut().map(Guarded::view).collect();
            let mut operands: Vec<Update<T, Heads>> = Vec::new();
            let mut outs = out_views.iter_mut();
            for (x, (heads, out)) in views.iter_mut().zip(&tensors) {
                operands.push(match out {
                    None => heads.of_mut(x).into(),
                    Some(out) => heads.of(x).to(out.of_mut(outs.next().expect("an output"))),
                });
            }
            let mut operands = operands.into_iter();
            let q = operands.next().expect("q");
            plan.rotate(
                q,
                operands.next(),
                Rotation { direction: self.direction, ..Rotation::at(Positions::ids(&ids)) },
            )
            .expect("the call is made");
        }
        buffers.iter().chain(&outputs).map(|buffer| buffer.read(gpu)).collect()
    }

    /// Values for the tensors.
    fn inputs<T: Scalar>(&self, data: &mut Data) -> Vec<Vec<T>> {
        self.tensors().iter().map(|(heads, _)| data.values(heads.span().expect("small"))).collect()
    }

    /// Runs the case for `T` and compares every element of every buffer.
    #[track_caller]
    pub fn check<T: Scalar>(&self, gpu: &Gpu, data: &mut Data) {
        let inputs = self.inputs::<T>(data);
        self.compare(&inputs, &self.run(gpu, &inputs));
    }

    /// Compares what `run` gave with the reference.
    #[track_caller]
    fn compare<T: Scalar>(&self, inputs: &[Vec<T>], results: &[Vec<T>]) {
        let tensors = self.tensors();
        let (buffers, mut outputs) = (&results[..tensors.len()], results[tensors.len()..].iter());
        for (((heads, out), x), buffer) in tensors.iter().zip(inputs).zip(buffers) {
            match out {
                None => {
                    let expected = self.rope.expect(x, heads, &self.positions, self.direction).expect("reference");
                    assert_close(buffer, &expected.want, |i| expected.bound[i]);
                }
                Some(out) => {
                    let (want, bound) = expected_copy(self, x, heads, out);
                    assert_close(outputs.next().expect("an output"), &want, |i| bound[i]);
                    assert_eq!(bytemuck::cast_slice::<T, u8>(buffer), bytemuck::cast_slice::<T, u8>(x));
                }
            }
        }
    }

    /// Runs the case by the kernel whose name begins with `kernel`, compares every element with the reference, and every bit
    /// with what accesses of one element give, whose threads make angles of their own.
    #[track_caller]
    pub fn check_bits<T: Scalar>(&self, gpu: &Gpu, data: &mut Data, kernel: &str) {
        let inputs = self.inputs::<T>(data);
        let results = self.run(gpu, &inputs);
        let ran = |wanted: &str| {
            let report = last_launch();
            assert!(report.is_none_or(|report| report.kernel.starts_with(wanted)), "{:?}: {self:?}", last_launch());
        };
        ran(kernel);
        self.compare(&inputs, &results);
        let one = Self { shift: 1, ..self.clone() }.run(gpu, &inputs);
        ran(if matches!(self.rope.angles, Angles::Mixed(_)) { "rope_mixed_one" } else { "rope_one" });
        for (got, want) in results.iter().zip(&one) {
            assert_eq!(bytemuck::cast_slice::<T, u8>(got), bytemuck::cast_slice::<T, u8>(want), "{self:?}");
        }
    }

    #[track_caller]
    pub fn check_all(&self, gpu: &Gpu, data: &mut Data) {
        self.check::<f32>(gpu, data);
        self.check::<f16>(gpu, data);
        self.check::<bf16>(gpu, data);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn small_shapes_all_of_them() {
    let (gpu, mut data) = (gpu(), Data::new(3));
    for dim in [2, 3, 8, 12, 16, 18, 24, 32] {
        for rotary in (2..=dim).step_by(2) {
            // Heads and tokens turn over with the sizes, so that every pair of values meets over the loop.
            let pairing = data.pick(&[Pairing::Half, Pairing::Interleaved]);
            let offset = data.pick(&[0, dim - rotary]);
            let rope = Rope { pairing, offset, ..Rope::new(rotary, 10_000.0) };
            let tokens = data.pick(&[1, 2, 3, 5]);
            let q = Heads::thd(tokens, data.pick(&[1, 2, 3]), dim);
            let k = data.pick(&[None, Some(Heads::thd(tokens, 1, dim)), Some(Heads::thd(tokens, 2, dim))]);
            let mut case = Case::in_place(&rope, q, k, &mut data);
            case.check_all(&gpu, &mut data);
            case.out = Some((q, k));
            case.check_all(&gpu, &mut data);
            case.shift = 1;
            case.check_all(&gpu, &mut data);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn sizes_of_real_models() {
    let (gpu, mut data) = (gpu(), Data::new(4));
    let half = |dim, rotary| (dim, Rope::new(rotary, 10_000.0));
    let interleaved =
        |dim, rotary, offset| (dim, Rope { pairing: Pairing::Interleaved, offset, ..Rope::new(rotary, 10_000.0) });
    for (dim, rope) in [
        (128, llama3()),
        half(64, 64),
        half(80, 32),
        half(96, 24),
        half(112, 112),
        half(192, 64),
        half(256, 64),
        half(576, 576),
        interleaved(64, 64, 0),
        interleaved(128, 64, 0),
        interleaved(512, 64, 448),
        interleaved(192, 64, 128),
    ] {
        for (q_heads, k_heads) in [(1, 1), (6, 2), (12, 0), (71, 1)] {
            let q = Heads::thd(3, q_heads, dim);
            let k = (k_heads > 0).then_some(Heads::thd(3, k_heads, dim));
            let mut case = Case::in_place(&rope, q, k, &mut data);
            case.check::<bf16>(&gpu, &mut data);
            case.out = Some((q, k));
            case.check::<bf16>(&gpu, &mut data);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn layouts_and_strides() {
    let (gpu, mut data) = (gpu(), Data::new(5));
    let (batch, tokens, dim) = (3, 5, 16);
    let layouts = |heads: usize| {
        let row = heads * dim + 24;
        [
            Heads::bthd(batch, tokens, heads, dim),
            Heads::bhtd(batch, heads, tokens, dim),
            Heads::bthd(batch, tokens, heads, dim).row(row).at(8),
            Heads { strides: [1000, 150, 17], ..Heads::bthd(batch, tokens, heads, dim) }.at(3),
        ]
    };
    for rope in ropes().into_iter().map(|rope| Rope { rotary: 8, ..rope }) {
        for q in layouts(6) {
            for k in layouts(2) {
                let mut case = Case::in_place(&rope, q, Some(k), &mut data);
                case.check::<bf16>(&gpu, &mut data);
                let (q_out, k_out) = (data.pick(&layouts(6)), data.pick(&layouts(2)));
                case.out = Some((q_out, Some(k_out)));
                case.check::<f32>(&gpu, &mut data);
                case.check::<f16>(&gpu, &mut data);
            }
        }
    }
}

/// Layers without RoPE: nothing is touched in place, all is copied elsewhere, in wide and in narrow accesses.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn no_rope_is_a_rope_that_copies() {
    let (gpu, mut data) = (gpu(), Data::new(31));
    for dim in [1, 7, 16, 128] {
        let wide = |heads: usize| Heads::bthd(2, 5, heads, dim);
        let odd = |heads: usize| Heads::bhtd(2, heads, 5, dim).at(3);
        for (q, k) in [(wide(6), Some(wide(2))), (odd(3), Some(wide(3))), (wide(1), None)] {
            let mut case = Case::in_place(&Rope::none(), q, k, &mut data);
            case.check::<bf16>(&gpu, &mut data);
            case.out = Some((odd(q.heads), k.map(|k| wide(k.heads))));
            case.check::<f32>(&gpu, &mut data);
            case.out = Some((wide(q.heads), k.map(|k| wide(k.heads))));
            case.check::<bf16>(&gpu, &mut data);
        }
    }
    let refused = Rope { offset: 1, ..Rope::none() }.check().unwrap_err().to_string();
    assert_eq!(refused, "rotary is 0, it must be even and at least 2");
}

/// Keys of latent attention: the rotary part of a longer head, as a tensor of its own.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_rotary_part_alone_is_rotated_whole() {
    let (gpu, mut data) = (gpu(), Data::new(32));
    for rope in pairings(Rope { offset: 128, ..Rope::new(64, 10_000.0) }) {
        let alone = Rope { offset: 0, ..rope.clone() };
        for heads in [Heads::thd(5, 1, 64), Heads::thd(5, 3, 64).row(200).at(8)] {
            let mut case = Case::in_place(&rope, heads, None, &mut data);
            if rope.pairing == rope.written() {
                case.check::<bf16>(&gpu, &mut data);
            }
            case.out = Some((Heads::thd(5, heads.heads, 64), None));
            case.check::<f32>(&gpu, &mut data);
            let x: Vec<f32> = data.values(heads.span().unwrap());
            let [part, whole] = [&rope, &alone]
                .map(|rope| rope.expect(&x, &heads, Positions::counted(), Direction::Forward).unwrap().want);
            assert_eq!(part, whole);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn random_calls() {
    let gpu = gpu();
    for seed in 0..150 {
        let mut data = Data::new(1000 + seed);
        let dim = 2 * (1 + data.below(40)) + data.below(2);
        let rotary = 2 * (1 + data.below(dim / 2));
        let rope = Rope {
            pairing: data.pick(&[Pairing::Half, Pairing::Interleaved]),
            offset: data.below(dim - rotary + 1),
            attention_factor: data.pick(&[1.0, 1.2079]),
            ..Rope::new(rotary, data.pick(&[100.0, 10_000.0, 5e6]))
        };
        let (batch, tokens) = (1 + data.below(3), 1 + data.below(40));
        let mut heads = |heads: usize| {
            let any = data.pick(&[Heads::bthd(batch, tokens, heads, dim), Heads::bhtd(batch, heads, tokens, dim)]);
            any.at(data.below(9))
        };
        let (q, k, q_out, k_out) = (heads(5), heads(2), heads(5), heads(2));
        let mut case = Case::in_place(&rope, q, data.pick(&[None, Some(k)]), &mut data);
        if data.below(2) == 0 {
            case.out = Some((q_out, case.k.map(|_| k_out)));
        }
        case.shift = data.below(5);
        eprintln!("seed {seed}: {case:?}");
        match data.below(3) {
            0 => case.check::<f32>(&gpu, &mut data),
            1 => case.check::<f16>(&gpu, &mut data),
            _ => case.check::<bf16>(&gpu, &mut data),
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_queries_and_keys() {
    let (gpu, mut data) = (gpu(), Data::new(6));
    let (tokens, hq, hk, dim) = (7, 4, 2, 32);
    let row = (hq + 2 * hk) * dim;
    let q = Heads::thd(tokens, hq, dim).row(row);
    let k = Heads::thd(tokens, hk, dim).row(row).at(hq * dim);
    let rope = Rope::new(32, 10_000.0);
    let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
    let x = data.values::<bf16>(tokens * row);
    let starts = gpu.stream().clone_htod(&[131_000i32]).expect("a copy");
    let mut buffer = Guarded::new(&gpu, &x, 0);
    plan.rotate(q.of_mut(&mut buffer.view()), k, Positions::starts(&starts)).expect("a call");

    let positions: Vec<i64> = (0..tokens as i64).map(|t| 131_000 + t).collect();
    let mut want = rope.expect(&x, &q, &positions, Direction::Forward).expect("reference");
    let keys = rope.expect(&x, &k, &positions, Direction::Forward).expect("reference");
    for i in (0..x.len()).filter(|&i| keys.bound[i] > 0.0) {
        (want.want[i], want.bound[i]) = (keys.want[i], keys.bound[i]);
    }
    assert_close(&buffer.read(&gpu), &want.want, |i| want.bound[i]);
    if let Some(report) = last_launch() {
        assert_eq!(report.counters.bytes_written, (tokens * (hq + hk) * dim * 2) as u64);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn no_tokens_are_nothing_to_do_wherever_they_lie() {
    let gpu = gpu();
    let plan = RopePlan::<f32>::new(&gpu, &Rope::new(8, 10_000.0)).expect("a plan");
    let mut x = gpu.stream().clone_htod(&[3f32; 8]).expect("a copy");
    for heads in [Heads::thd(0, 2, 8), Heads::bthd(0, 3, 2, 8)] {
        for offset in [0, 5, 1 << 40, usize::MAX] {
            let heads = heads.at(offset);
            plan.rotate(heads.of_mut(&mut x), heads, Positions::counted()).expect("nothing");
        }
    }
    assert_eq!(gpu.stream().clone_dtoh(&x).expect("a copy"), [3f32; 8]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_kind_of_position_gives_the_same_bits() {
    let (gpu, mut data) = (gpu(), Data::new(7));
    let heads = Heads::bthd(3, 6, 2, 16);
    let plan = RopePlan::<f32>::new(&gpu, &Rope::new(16, 10_000.0)).expect("a plan");
    let x = data.values::<f32>(heads.span().expect("small"));
    let stream = gpu.stream();
    let starts = [5i64, 131_071, 40];
    let ids: Vec<i64> = (0..18).map(|i| starts[i / 6] + (i % 6) as i64).collect();
    let rotated = |heads: Heads, positions: Positions<Ids>| {
        let mut buffer = Guarded::new(&gpu, &x, 0);
        plan.rotate(heads.of_mut(&mut buffer.view()), None, positions).expect("a call");
        buffer.read(&gpu)
    };
    let want = rotated(heads, Positions::ids(&stream.clone_htod(&ids).expect("a copy")));
    let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let unsigned: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    assert_eq!(want, rotated(heads, Positions::ids(&stream.clone_htod(&narrow).expect("a copy"))));
    assert_eq!(want, rotated(heads, Positions::ids(&stream.clone_htod(&unsigned).expect("a copy"))));
    // Those that are negative as i32, which are not beyond any end here.
    let far: Vec<i64> = ids.iter().map(|&id| (1 << 32) - 1 - id * (1 << 14)).collect();
    let unsigned: Vec<u32> = far.iter().map(|&id| u32::try_from(id).expect("32 bits")).collect();
    assert_eq!(
        rotated(heads, Positions::ids(&stream.clone_htod(&far).expect("a copy"))),
        rotated(heads, Positions::ids(&stream.clone_htod(&unsigned).expect("a copy")))
    );
    let starts_i64 = stream.clone_htod(&starts).expect("a copy");
    assert_eq!(want, rotated(heads, Positions::starts(&starts_i64)));
    let starts_i32 = stream.clone_htod(&starts.map(|start| start as i32)).expect("a copy");
    assert_eq!(want, rotated(heads, Positions::starts(&starts_i32)));
    // The same tokens as one packed batch.
    let packed = Heads::thd(18, 2, 16);
    let indptr = stream.clone_htod(&[0, 6, 12, 18]).expect("a copy");
    assert_eq!(want, rotated(packed, Positions::packed(&indptr, 3).starting_at(&starts_i64)));
    // One row for all sequences.
    let row = stream.clone_htod(&ids[..6]).expect("a copy");
    let shared = rotated(heads, Positions::ids(&row).shared());
    assert_eq!(shared[..192], want[..192]);
    let start = stream.clone_htod(&starts[..1]).expect("a copy");
    assert_eq!(shared, rotated(heads, Positions::starts(&start).shared()));
    let tripled: Vec<i64> = ids[..6].repeat(3);
    assert_eq!(shared, rotated(heads, Positions::ids(&stream.clone_htod(&tripled).expect("a copy"))));
    // Packed sequences of uneven lengths, an empty one among them, that begin at 0.
    let indptr = stream.clone_htod(&[0, 1, 1, 14, 18]).expect("a copy");
    let uneven: Vec<i64> = (0..1).chain(0..13).chain(0..4).collect();
    let uneven = rotated(packed, Positions::ids(&stream.clone_htod(&uneven).expect("a copy")));
    assert_eq!(uneven, rotated(packed, Positions::packed(&indptr, 4)));
}

#[test]
fn every_kind_of_position_gives_the_same_on_the_cpu() {
    let mut data = Data::new(8);
    let heads = Heads::bthd(3, 6, 2, 16);
    let rope = Rope::new(16, 10_000.0);
    let x = data.values::<f32>(heads.span().expect("small"));
    let starts = [5i64, 131_071, 40];
    let ids: Vec<i64> = (0..18).map(|i| starts[i / 6] + (i % 6) as i64).collect();
    let rotated = |heads: Heads, positions: Positions<&[i64]>| {
        let mut x = x.clone();
        rope.rotate(&mut x, &heads, positions, Direction::Forward).expect("a call");
        x
    };
    let want = rotated(heads, Positions::ids(&ids));
    assert_eq!(want, rotated(heads, Positions::starts(&starts)));
    let packed = Heads::thd(18, 2, 16);
    assert_eq!(want, rotated(packed, Positions::packed(&[0, 6, 12, 18], 3).starting_at(&starts)));
    let shared = rotated(heads, Positions::ids(&ids[..6]).shared());
    assert_eq!(shared[..192], want[..192]);
    assert_eq!(shared, rotated(heads, Positions::starts(&starts[..1]).shared()));
    assert_eq!(shared, rotated(heads, Positions::ids(&ids[..6].repeat(3))));
    let uneven: Vec<i64> = (0..1).chain(0..13).chain(0..4).collect();
    assert_eq!(rotated(packed, Positions::ids(&uneven)), rotated(packed, Positions::packed(&[0, 1, 1, 14, 18], 4)));
    let counted: Vec<i64> = (0..6).collect::<Vec<_>>().repeat(3);
    assert_eq!(rotated(heads, Positions::ids(&counted)), rotated(heads, Positions::counted()));
}

#[test]
fn modifiers_that_do_nothing_are_refused() {
    let (rope, heads, row) = (Rope::new(8, 1e4), Heads::bthd(2, 3, 1, 8), [0i64; 6]);
    let refused = |positions: Positions<&[i64]>, want: &str| {
        let call = rope.rotate(&mut [0f32; 48], &heads, positions, Direction::Forward);
        assert_eq!(call.expect_err(want).to_string(), want);
    };
    refused(Positions::counted().shared(), "counted positions are those of every sequence, `shared` says nothing");
    refused(Positions::packed(&[0, 6], 1).shared(), "packed positions have a batch of one, `shared` says nothing");
    refused(Positions::ids(&row).starting_at(&[1]), "`starting_at` is for packed positions, these are not packed");
    refused(Positions::ids(&row).axis_stride(6), "positions have an axis stride of 6, the spec has one axis");
    refused(Positions::packed(&[0, 6], 1), "packed positions need a batch of 1, the shape has 2");
    let call = rope.rotate(&mut [0f32; 24], &Heads::thd(3, 1, 8), Positions::packed(&[0, 4], 1), Direction::Forward);
    assert_eq!(call.expect_err("beyond").to_string(), "indptr is [0, 4], it must ascend from 0 to at most 3");
    let call = rope.rotate(&mut [0f32; 24], &Heads::thd(3, 1, 8), Positions::packed(&[0], 1), Direction::Forward);
    assert_eq!(call.expect_err("short").to_string(), "indptr holds 1 elements, the shape needs 2");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn queries_in_place_and_keys_copied_in_one_call() {
    let gpu = gpu();
    // By single elements and by 16 bytes with channels beside the rotated ones, and whole heads, which share their angles.
    for (rotary, offset, dim) in [(16, 3, 24), (16, 8, 24), (32, 0, 32)] {
        check_one_in_place(&gpu, &Rope { offset, ..Rope::new(rotary, 10_000.0) }, dim);
    }
}

fn check_one_in_place(gpu: &Gpu, rope: &Rope, dim: usize) {
    let (mut data, tokens) = (Data::new(9), 5);
    let (q, k) = (Heads::thd(tokens, 3, dim), Heads::thd(tokens, 2, dim));
    // A cache of keys, [heads, tokens, dim].
    let cache = Heads { strides: [0, dim, 32 * dim], ..k }.at(4 * dim);
    let plan = RopePlan::<bf16>::new(gpu, rope).expect("a plan");
    let ids: Vec<i64> = (0..tokens as i64).map(|t| 131_071 + t).collect();
    let positions = gpu.stream().clone_htod(&ids).expect("a copy");
    for q_copied in [false, true] {
        let [q_x, k_x] = [&q, &k].map(|heads| data.values::<bf16>(heads.span().expect("small")));
        let (mut q_in, mut k_in) = (Guarded::new(gpu, &q_x, 0), Guarded::new(gpu, &k_x, 0));
        let mut q_out = Guarded::<bf16>::poisoned(gpu, q_x.len(), 0);
        let mut k_out = Guarded::<bf16>::poisoned(gpu, cache.span().expect("small"), 0);
        let (mut q_view, mut k_view) = (q_in.view(), k_in.view());
        let (mut q_to, mut k_to) = (q_out.view(), k_out.view());
        // One in place, the other elsewhere, both ways round.
        let (q_operand, k_operand): (Update<_, _>, Update<_, _>) = match q_copied {
            false => (q.of_mut(&mut q_view).into(), k.of(&k_view).to(cache.of_mut(&mut k_to))),
            true => (q.of(&q_view).to(q.of_mut(&mut q_to)), k.of_mut(&mut k_view).into()),
        };
        plan.rotate(q_operand, k_operand, Positions::ids(&positions)).expect("a call");
        let [q_want, k_want] = [(&q_x, &q), (&k_x, &k)]
            .map(|(x, heads)| rope.expect(x, heads, &ids, Direction::Forward).expect("reference"));
        let q_got = if q_copied { q_out.read(gpu) } else { q_in.read(gpu) };
        // Copied channels have no error; nor have those that are left alone in place.
        assert_close(&q_got, &q_want.want, |i| q_want.bound[i]);
        if q_copied {
            assert_close(&k_in.read(gpu), &k_want.want, |i| k_want.bound[i]);
            continue;
        }
        let got = k_out.read(gpu);
        let mut written = vec![false; got.len()];
        for index in 0..tokens * 2 * dim {
            let (token, head, channel) = (index / dim / 2, index / dim % 2, index % dim);
            let (from, to) = (k.index(0, token, head, channel), cache.index(0, token, head, channel));
            written[to] = true;
            assert_close(&[got[to]], &[k_want.want[from]], |_| k_want.bound[from]);
        }
        let rest = got.iter().zip(&written).filter(|(_, written)| !**written);
        assert!(rest.clone().count() > 0 && rest.clone().all(|(x, _)| x.to_bits() == poison::<bf16>().to_bits()));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn one_object_has_a_plan_for_every_element_type() {
    fn check<T: Scalar>(gpu: &Gpu, plans: &RopePlans, rope: &Rope) {
        let (heads, x) = (Heads::thd(3, 2, 8), Data::new(5).values::<T>(48));
        let mut y = gpu.stream().clone_htod(&x).expect("a copy");
        let plan = plans.of::<T>().expect("a plan");
        plan.rotate(heads.of_mut(&mut y), None, Positions::counted()).expect("a call");
        let want = rope.expect(&x, &heads, Positions::counted(), Direction::Forward).expect("reference");
        assert_close(&gpu.stream().clone_dtoh(&y).expect("a copy"), &want.want, |i| want.bound[i]);
        assert!(std::ptr::eq(plan, plans.of::<T>().expect("the same plan")));
    }
    let (gpu, rope) = (gpu(), Rope::new(8, 10_000.0));
    let plans = RopePlans::new(&gpu, &rope).expect("a spec");
    check::<f32>(&gpu, &plans, &rope);
    check::<f16>(&gpu, &plans, &rope);
    check::<bf16>(&gpu, &plans, &rope);
    let error = RopePlans::new(&gpu, &Rope::new(7, 10_000.0)).expect_err("an odd number");
    assert_eq!(error.to_string(), "rotary is 7, it must be even and at least 2");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_copy_to_its_own_address_is_in_place() {
    let gpu = gpu();
    // With a head twice as wide as its rotary part: in place the rest is not touched, and would be copied.
    let (rope, q, k) = (Rope::new(8, 10_000.0), Heads::bthd(2, 3, 4, 16), Heads::bthd(2, 3, 1, 16));
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let mut data = Data::new(21);
    let [q_x, k_x] = [&q, &k].map(|heads| data.values::<f32>(heads.span().expect("small")));
    let [q_in, k_in, k_out] = [&q_x, &k_x, &k_x].map(|x| gpu.stream().clone_htod(x).expect("a copy"));
    // An engine gives one address twice, and the cache's for the keys.
    let (from, mut to) = (alias::<f32, _>(&q_in, 0, q_x.len()), alias::<f32, _>(&q_in, 0, q_x.len()));
    let (k_from, mut k_to) = (alias::<f32, _>(&k_in, 0, k_x.len()), alias::<f32, _>(&k_out, 0, k_x.len()));
    let (q_same, k_copy) = (q.of(&from).to(q.of_mut(&mut to)), k.of(&k_from).to(k.of_mut(&mut k_to)));
    plan.rotate(q_same, k_copy, Positions::counted()).expect("a call");
    for (got, x, heads) in [(&q_in, &q_x, &q), (&k_out, &k_x, &k)] {
        let want = rope.expect(x, heads, Positions::counted(), Direction::Forward).expect("reference");
        assert_close(&gpu.stream().clone_dtoh(got).expect("a copy"), &want.want, |i| want.bound[i]);
    }
    assert_eq!(gpu.stream().clone_dtoh(&k_in).expect("a copy"), k_x);
    // The same memory in other strides is no copy to itself.
    let turned = Heads { strides: [192, 16, 48], ..q };
    let (from, mut to) = (alias::<f32, _>(&q_in, 0, q_x.len()), alias::<f32, _>(&q_in, 0, q_x.len()));
    let error = plan.rotate(q.of(&from).to(turned.of_mut(&mut to)), None, Positions::counted()).expect_err("overlap");
    assert!(error.to_string().ends_with("may overlap in one buffer"), "{error}");
    // Packed queries, keys beside them.
    let both = Heads::bthd(2, 3, 2, 16).row(64);
    let (from, mut to) = (alias::<f32, _>(&q_in, 0, q_x.len()), alias::<f32, _>(&q_in, 0, q_x.len()));
    plan.rotate(both.of(&from).to(both.of_mut(&mut to)), both.at(32), Positions::counted()).expect("packed");
    // Pairs that move are not moved in place, whatever its name.
    let moved = Rope { pairing_out: Some(Pairing::Interleaved), ..rope };
    let plan = RopePlan::<f32>::new(&gpu, &moved).expect("a plan");
    let (from, mut to) = (alias::<f32, _>(&q_in, 0, q_x.len()), alias::<f32, _>(&q_in, 0, q_x.len()));
    let error = plan.rotate(q.of(&from).to(q.of_mut(&mut to)), None, Positions::counted()).expect_err("in place");
    assert!(error.to_string().ends_with("the rotation cannot be in place"), "{error}");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_is_written_shares_memory_with_nothing_else() {
    let gpu = gpu();
    let plan = RopePlan::<f32>::new(&gpu, &Rope::new(8, 10_000.0)).expect("a plan");
    let heads = Heads::thd(2, 2, 8);
    let x = Data::new(12).values::<f32>(64);
    let buffer = gpu.stream().clone_htod(&x).expect("a copy");
    let refused = |call: posenc::Result<()>, want: &str| assert_eq!(call.expect_err(want).to_string(), want);
    let [mut q, mut k] = [0, 64].map(|bytes| alias::<f32, _>(&buffer, bytes, 48));
    refused(
        plan.rotate(heads.of_mut(&mut q), heads.of_mut(&mut k), Positions::counted()),
        "q (offset 0, strides [32, 16, 8]) and k (offset 16, strides [32, 16, 8]) may overlap in one buffer",
    );
    // Apart by their strides: keys behind the queries of each token.
    let row = heads.row(32);
    let [mut q, mut k] = [0, 64].map(|bytes| alias::<f32, _>(&buffer, bytes, 48));
    plan.rotate(row.of_mut(&mut q), row.of_mut(&mut k), Positions::counted()).expect("packed by addresses");
    // An output on an input, by some elements.
    let (from, mut to) = (alias::<f32, _>(&buffer, 0, 32), alias::<f32, _>(&buffer, 32, 32));
    refused(
        plan.rotate(heads.of(&from).to(heads.of_mut(&mut to)), None, Positions::counted()),
        "q (offset 0, strides [32, 16, 8]) and q_out (offset 8, strides [32, 16, 8]) may overlap in one buffer",
    );
    // Ids, a table and its flag in the tensor.
    let ids = alias::<i32, _>(&buffer, 124, 2);
    let mut q = alias::<f32, _>(&buffer, 0, 32);
    refused(
        plan.rotate(heads.of_mut(&mut q), None, Positions::ids(posenc::Ids::I32(&ids))),
        "q is written and shares memory with positions",
    );
    let (table, mut flag) = (alias::<f32, _>(&buffer, 128, 32), alias::<u32, _>(&buffer, 252, 1));
    let values = TableValues::F32 { cos: &table, sin: None };
    let table = Table { values, rows: 4, stride: 8, out_of_range: OutOfRange::Nan(Some(&mut flag)) };
    let mut q = alias::<f32, _>(&buffer, 0, 32);
    refused(
        plan.rotate(heads.of_mut(&mut q), None, Rotation { table: Some(table), ..Rotation::at(Positions::counted()) }),
        "the flag is written and shares memory with cos",
    );
}

/// The kernel's polynomial, in the same operations: f32 and fused multiply-adds have one meaning everywhere.
pub fn sincos_phase(phase: u64) -> (f32, f32) {
    let turn = ((phase >> 32) as u32).wrapping_add(0x2000_0000);
    let hex = |mantissa: u32, exponent: i32| mantissa as f32 * 2f32.powi(exponent - 24);
    let x = ((turn & 0x3fff_ffff) as i32 - 0x2000_0000) as f32 * 2f32.powi(-29);
    let z = x * x;
    let horner = |coefficients: &[f32]| {
        let (last, rest) = coefficients.split_last().expect("coefficients");
        rest.iter().rev().fold(*last, |sum, &c| z.mul_add(sum, c))
    };
    let s = x * horner(&[hex(0x1921fb4, -1), -hex(0x14abba2, -4), hex(0x1465a9e, -9), -hex(0x12cf654, -15)]);
    let c = horner(&[1.0, -hex(0x13bd3cc, -2), hex(0x103c1d4, -6), -hex(0x155c654, -12), hex(0x1d9f9bc, -19)]);
    match turn >> 30 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn cosine_and_sine_are_within_1e_7_and_equal_bit_for_bit() {
    let (gpu, mut data) = (gpu(), Data::new(8));
    let mut consts = Consts::new().expect("constants");
    for (rotary, base) in [(128, 10_000.0), (128, 500_000.0), (64, 1e7)] {
        let rope = Rope::new(rotary, base);
        let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
        let mut positions = POSITIONS.to_vec();
        positions.extend((0..91).map(|_| i64::from(data.bits() as i32)));
        let heads = Heads::thd(positions.len(), 1, rotary);
        // The pair (1, 0) becomes (cos, sin).
        let one_zero: Vec<f32> =
            (0..heads.span().expect("small")).map(|i| f32::from(i % rotary < rotary / 2)).collect();
        let mut x = gpu.stream().clone_htod(&one_zero).expect("a copy");
        let ids = gpu.stream().clone_htod(&positions).expect("a copy");
        plan.rotate(heads.of_mut(&mut x), None, Positions::ids(&ids)).expect("a call");
        let got = gpu.stream().clone_dtoh(&x).expect("a copy");
        for (t, &position) in positions.iter().enumerate() {
            for pair in 0..rotary / 2 {
                let (cos, sin) = (got[heads.index(0, t, 0, pair)], got[heads.index(0, t, 0, pair + rotary / 2)]);
                let phase = rope.rate(pair).wrapping_mul(position as u64);
                let want = sincos_phase(phase);
                assert_eq!((sin.to_bits(), cos.to_bits()), (want.0.to_bits(), want.1.to_bits()), "{position} {pair}");
                if t < POSITIONS.len() || pair % 8 == t % 8 {
                    let (true_cos, true_sin) = truth(base, rotary, pair, position, &mut consts);
                    for (got, want) in [(cos, true_cos), (sin, true_sin)] {
                        assert!((f64::from(got) - want).abs() < 1e-7, "{got} for {want} at {position}, pair {pair}");
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn widths_give_the_same_bits() {
    let (gpu, mut data) = (gpu(), Data::new(9));
    fn check<T: Scalar + PartialEq + Debug>(gpu: &Gpu, data: &mut Data, wide: usize) {
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let plan = RopePlan::<T>::new(gpu, &Rope { pairing, ..Rope::new(32, 10_000.0) }).expect("a plan");
            let heads = Heads::thd(3, 5, 32);
            let x = data.values::<T>(heads.span().expect("small"));
            let ids = gpu.stream().clone_htod(&[3i32, 131_071, -5]).expect("a copy");
            let mut results = Vec::new();
            for shift in [0, wide / 2, 1] {
                let mut buffer = Guarded::new(gpu, &x, shift);
                let mut view = buffer.view();
                let q = heads.of_mut(&mut view);
                plan.rotate(q, None, Positions::ids(&ids)).expect("a call");
                results.push(buffer.read(gpu));
                if let Some(report) = last_launch() {
                    // Of f32, the narrowest access of the three is an element; of 16-bit types it is half a word.
                    let stores = (heads.span().expect("small")
                        / if shift == 1 { 1 } else { wide >> (shift > 0) as usize })
                        as u64;
                    let width = [16, 8, size_of::<T>()][results.len() - 1];
                    assert!(report.counters.global_accesses[width.ilog2() as usize] >= 2 * stores, "{report:?}");
                }
            }
            assert_eq!(results[0], results[1]);
            assert_eq!(results[0], results[2]);
        }
    }
    check::<f32>(&gpu, &mut data, 4);
    check::<f16>(&gpu, &mut data, 8);
    check::<bf16>(&gpu, &mut data, 8);
}

// ------------------------------------------------------------------------------------------------------- shared angles

/// Both pairings of a head.
fn pairings(rope: Rope) -> [Rope; 2] {
    [Rope { pairing: Pairing::Half, ..rope.clone() }, Rope { pairing: Pairing::Interleaved, ..rope }]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn heads_that_share_angles_are_rotated_as_if_each_made_its_own() {
    let (gpu, mut data) = (gpu(), Data::new(60));
    for q_heads in (1..=9).chain([71]) {
        for k_heads in [0, 1, 2, q_heads] {
            for rope in pairings(Rope { attention_factor: 1.25, ..Rope::new(64, 1e4) }) {
                let tokens = data.pick(&[1, 2, 3]);
                let (q, k) = (Heads::thd(tokens, q_heads, 64), Heads::thd(tokens, k_heads, 64));
                let case = Case::in_place(&rope, q, (k_heads > 0).then_some(k), &mut data);
                case.check_bits::<bf16>(&gpu, &mut data, "rope_shared");
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tokens_that_share_a_block_have_angles_of_their_own() {
    let (gpu, mut data) = (gpu(), Data::new(61));
    for tokens in [1, 2, 3, 7, 63, 64, 65, 511, 512, 513] {
        for rope in pairings(Rope::new(32, 1e4)) {
            // Three heads of 4 lanes leave a warp with threads of several tokens; of one head, a thread makes all angles.
            for (q_heads, k_heads) in [(2, 1), (1, 0), (9, 2)] {
                let (q, k) = (Heads::thd(tokens, q_heads, 32), Heads::thd(tokens, k_heads, 32));
                let case = Case::in_place(&rope, q, (k_heads > 0).then_some(k), &mut data);
                case.check_bits::<f32>(&gpu, &mut data, "rope_shared");
            }
            let case = Case::in_place(&rope, Heads::thd(tokens, 5, 32), None, &mut data);
            case.check_bits::<f16>(&gpu, &mut data, "rope_shared");
        }
    }
}

/// So many tokens that a thread rotates two heads, in a model's sizes.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn two_heads_of_a_thread_are_of_one_tensor() {
    let (gpu, mut data) = (gpu(), Data::new(62));
    for rope in pairings(Rope::new(64, 1e4)) {
        let name = if rope.pairing == Pairing::Half { "rope_shared_half_two" } else { "rope_shared_interleaved_two" };
        for (q_heads, k_heads) in [(32, 8), (33, 7), (40, 1), (39, 0)] {
            let (q, k) = (Heads::thd(400, q_heads, 64), Heads::thd(400, k_heads, 64));
            let case = Case::in_place(&rope, q, (k_heads > 0).then_some(k), &mut data);
            case.check_bits::<bf16>(&gpu, &mut data, name);
        }
        // Elsewhere, heads first, with the channels beside the rotated ones.
        let wider = Rope { offset: 16, ..rope.clone() };
        let (q, k) = (Heads::thd(400, 33, 96), Heads::thd(400, 7, 96));
        let mut case = Case::in_place(&wider, q, Some(k), &mut data);
        case.out = Some((Heads::bhtd(1, 33, 400, 96), Some(Heads::bhtd(1, 7, 400, 96).at(8))));
        case.check_bits::<bf16>(&gpu, &mut data, name);
        let (q, k) = (Heads::thd(400, 19, 64), Heads::thd(400, 3, 64));
        Case::in_place(&rope, q, Some(k), &mut data).check_bits::<f32>(&gpu, &mut data, name);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn heads_that_share_angles_lie_anywhere() {
    let (gpu, mut data) = (gpu(), Data::new(63));
    let (batch, tokens) = (3, 5);
    // 24 pairs: three lanes, which divide no warp. 512 pairs: as many angles as a block has.
    for (dim, rotary, offset) in [(96, 48, 16), (64, 16, 0), (1024, 1024, 0), (128, 64, 64)] {
        let layouts = |heads: usize| {
            [
                Heads::bthd(batch, tokens, heads, dim),
                Heads::bhtd(batch, heads, tokens, dim),
                Heads::bthd(batch, tokens, heads, dim).row(heads * dim + 24).at(8),
                // Sequences and tokens in the other order, heads with room between them.
                Heads { strides: [7 * dim, 80 * dim, dim + 8], ..Heads::bthd(batch, tokens, heads, dim) }.at(16),
            ]
        };
        for rope in pairings(Rope { offset, ..Rope::new(rotary, 1e4) }) {
            for (q, k) in layouts(5).into_iter().zip(layouts(2).into_iter().rev()) {
                let mut case = Case::in_place(&rope, q, Some(k), &mut data);
                case.check_bits::<bf16>(&gpu, &mut data, "rope_shared");
                // Elsewhere, with strides of its own, and the channels beside the rotated ones.
                case.out = Some((data.pick(&layouts(5)), Some(data.pick(&layouts(2)))));
                case.check_bits::<bf16>(&gpu, &mut data, "rope_shared");
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shared_angles_are_those_of_every_kind_of_position() {
    let (gpu, mut data) = (gpu(), Data::new(64));
    let stream = gpu.stream();
    for rope in pairings(Rope::new(64, 1e4)) {
        let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
        let (batch, tokens) = (3, 70);
        let q = Heads::bthd(batch, tokens, 3, 64);
        let x = data.values::<bf16>(q.span().expect("small"));
        let starts = [5i64, -3, (1 << 33) + 7];
        let ids: Vec<i64> = (0..210).map(|i| starts[i / 70] + (i % 70) as i64).collect();
        let rotated = |heads: Heads, positions: Positions<Ids>| {
            let mut buffer = Guarded::new(&gpu, &x, 0);
            plan.rotate(heads.of_mut(&mut buffer.view()), None, positions).expect("a call");
            let report = last_launch();
            assert!(report.is_none_or(|report| report.kernel.starts_with("rope_shared")));
            buffer.read(&gpu)
        };
        let want = rotated(q, Positions::ids(&stream.clone_htod(&ids).expect("a copy")));
        let expected = rope.expect(&x, &q, &ids, Direction::Forward).expect("reference");
        assert_close(&want, &expected.want, |i| expected.bound[i]);
        let starts = stream.clone_htod(&starts).expect("a copy");
        assert_eq!(want, rotated(q, Positions::starts(&starts)));
        let indptr = stream.clone_htod(&[0, 70, 140, 210]).expect("a copy");
        let packed = Heads::thd(210, 3, 64);
        assert_eq!(want, rotated(packed, Positions::packed(&indptr, 3).starting_at(&starts)));
        let unsigned: Vec<u32> = (0..210u32).map(|i| (1 << 31) + 3 * i).collect();
        let wide: Vec<i64> = unsigned.iter().map(|&id| i64::from(id)).collect();
        let narrow: Vec<i32> = unsigned.iter().map(|&id| id as i32).collect();
        let low: Vec<i64> = narrow.iter().map(|&id| i64::from(id)).collect();
        let [wide, low] = [wide, low].map(|ids| stream.clone_htod(&ids).expect("a copy"));
        assert_eq!(
            rotated(q, Positions::ids(&wide)),
            rotated(q, Positions::ids(&stream.clone_htod(&unsigned).expect("a copy")))
        );
        assert_eq!(
            rotated(q, Positions::ids(&low)),
            rotated(q, Positions::ids(&stream.clone_htod(&narrow).expect("a copy")))
        );
        let counted: Vec<i64> = (0..70).collect::<Vec<_>>().repeat(3);
        let counted = stream.clone_htod(&counted).expect("a copy");
        assert_eq!(rotated(q, Positions::ids(&counted)), rotated(q, Positions::counted()));
        let indptr = stream.clone_htod(&[0, 1, 1, 140, 210]).expect("a copy");
        let uneven: Vec<i64> = (0..1).chain(0..139).chain(0..70).collect();
        let uneven = stream.clone_htod(&uneven).expect("a copy");
        assert_eq!(rotated(packed, Positions::ids(&uneven)), rotated(packed, Positions::packed(&indptr, 4)));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shared_angles_are_of_each_pairs_own_axis() {
    let (gpu, mut data) = (gpu(), Data::new(65));
    for axes in [Axes::Sections(vec![5, 11, 16]), Axes::Interleaved(vec![12, 10, 10]), Axes::Ladders(vec![12, 10, 10])]
    {
        for rope in pairings(Rope { axes: axes.clone(), ..Rope::new(64, 1e4) }) {
            for tokens in [1, 3, 40] {
                let (q, k) = (Heads::bthd(2, tokens, 6, 64), Heads::bthd(2, tokens, 1, 64));
                let case = Case::in_place(&rope, q, Some(k), &mut data);
                case.check_bits::<bf16>(&gpu, &mut data, "rope_shared");
                case.check_bits::<f32>(&gpu, &mut data, "rope_shared");
            }
        }
    }
}

/// More angles than a block shares, more lanes than a block has threads, and more sequences than a grid is deep: each thread
/// makes its own.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_beyond_shared_angles_are_walked() {
    let (gpu, mut data) = (gpu(), Data::new(66));
    for rotary in [1040, 2080] {
        for rope in pairings(Rope::new(rotary, 1e4)) {
            let (q, k) = (Heads::thd(2, 3, rotary), Heads::thd(2, 1, rotary));
            Case::in_place(&rope, q, Some(k), &mut data).check_bits::<bf16>(&gpu, &mut data, "rope_wide");
        }
    }
    for rope in pairings(Rope::new(16, 1e4)) {
        let q = Heads::bthd(65_536, 1, 1, 16);
        Case::in_place(&rope, q, None, &mut data).check_bits::<bf16>(&gpu, &mut data, "rope_wide");
    }
    // Half as wide: 12 pairs are three accesses of 8 bytes.
    for rope in pairings(Rope::new(24, 1e4)) {
        let q = Heads::thd(5, 3, 24);
        Case::in_place(&rope, q, None, &mut data).check_bits::<f16>(&gpu, &mut data, "rope_mid");
    }
}

/// Interleaved pairs in models' sizes: every sector is read and written once, in whole, whatever makes the angles.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn interleaved_pairs_touch_no_sector_twice() {
    let gpu = gpu();
    if last_launch_is_real() {
        return;
    }
    let stream = gpu.stream();
    for (q_heads, k_heads, dim, rotary, offset) in
        [(32, 2, 128, 64, 0), (128, 1, 192, 64, 128), (32, 8, 128, 128, 0), (8, 1, 1088, 1088, 0)]
    {
        for angles in [Angles::Exact, Angles::HfCompat] {
            let rope = Rope { pairing: Pairing::Interleaved, offset, angles, ..Rope::new(rotary, 1e4) };
            let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
            for tokens in [1, 64] {
                let (q, k) = (Heads::thd(tokens, q_heads, dim), Heads::thd(tokens, k_heads, dim));
                let alloc = |heads: Heads| stream.clone_htod(&vec![bf16::ONE; heads.span().expect("small")]);
                let (mut q_x, mut k_x) = (alloc(q).expect("a copy"), alloc(k).expect("a copy"));
                plan.rotate(q.of_mut(&mut q_x), k.of_mut(&mut k_x), Positions::counted()).expect("a call");
                let report = last_launch().expect("the emulator counts");
                let tensor = (tokens * (q_heads + k_heads) * rotary * 2) as u64;
                assert_eq!(32 * report.counters.sectors_written, tensor, "{rope:?}, {tokens} tokens: {report:?}");
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------- other sources of angles

/// Cosine and sine that the device makes for every pair at each position: the pair (1, 0), rotated.
fn turned(gpu: &Gpu, rope: &Rope, positions: &[i64]) -> Vec<(f32, f32)> {
    let plan = RopePlan::<f32>::new(gpu, rope).expect("a plan");
    let heads = Heads::thd(positions.len(), 1, rope.rotary);
    let pairs = rope.pairs();
    let one_zero: Vec<f32> = (0..positions.len() * 2 * pairs).map(|i| f32::from(i % (2 * pairs) < pairs)).collect();
    let mut x = gpu.stream().clone_htod(&one_zero).expect("a copy");
    let ids = gpu.stream().clone_htod(positions).expect("a copy");
    plan.rotate(heads.of_mut(&mut x), None, Positions::ids(&ids)).expect("a call");
    let x = gpu.stream().clone_dtoh(&x).expect("a copy");
    (0..positions.len() * pairs)
        .map(|i| {
            let at = i / pairs * 2 * pairs + i % pairs;
            (x[at], x[at + pairs])
        })
        .collect()
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn compat_angles_are_the_nearest_cosine_and_sine_of_the_f32_product() {
    let (gpu, mut data) = (gpu(), Data::new(20));
    let rope = Rope { angles: Angles::HfCompat, ..llama3() };
    let mut positions: Vec<i64> = vec![0, 1, 2, 3, 8190, 8191, 131_071, 131_072, (1 << 24) + 1, -5, (1 << 31) - 1];
    positions.extend((0..40).map(|_| data.below(131_073) as i64));
    for (i, (cos, sin)) in turned(&gpu, &rope, &positions).into_iter().enumerate() {
        let (position, pair) = (positions[i / 64], i % 64);
        let angle = f64::from(position as f32 * rope.compat_frequency(pair));
        for (got, want) in [(cos, angle.cos()), (sin, angle.sin())] {
            // Half an ulp of f32, and the last bits of f64.
            let half_ulp =
                (f64::from(f32::from_bits((want as f32).abs().to_bits() + 1)) - f64::from((want as f32).abs())) / 2.0;
            assert!(
                (f64::from(got) - want).abs() <= half_ulp * 1.00001,
                "{got:e} for {want:e}: {position}, pair {pair}"
            );
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn compat_angles_rotate_like_their_reference() {
    let (gpu, mut data) = (gpu(), Data::new(21));
    for (dim, rotary) in [(16, 16), (24, 12), (13, 10)] {
        let rope = Rope { angles: Angles::HfCompat, pairing: Pairing::Interleaved, ..Rope::new(rotary, 10_000.0) };
        let case = Case::in_place(&rope, Heads::thd(5, 3, dim), Some(Heads::thd(5, 2, dim)), &mut data);
        case.check_all(&gpu, &mut data);
    }
}

/// Rows of cosines and sines that are no rotation at all: a kernel cannot guess them.
pub fn table(data: &mut Data, rows: usize, pairs: usize) -> (Vec<f64>, Vec<f64>) {
    let mut column = || (0..rows * pairs).map(|_| bf16::from_f64(data.value()).to_f64()).collect();
    (column(), column())
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tables_of_either_type_and_layout() {
    let (gpu, mut data) = (gpu(), Data::new(22));
    fn check<T: Scalar>(gpu: &Gpu, data: &mut Data, dim: usize, rotary: usize, packed: bool, same: bool) {
        for rope in pairings(Rope { attention_factor: 1.25, ..Rope::new(rotary, 10_000.0) }) {
            check_one::<T>(gpu, data, rope, dim, packed, same);
        }
    }
    fn check_one<T: Scalar>(gpu: &Gpu, data: &mut Data, rope: Rope, dim: usize, packed: bool, same: bool) {
        let rotary = rope.rotary;
        let (rows, pairs, heads) = (9, rotary / 2, Heads::thd(6, 3, dim));
        let (cos, sin) = table(data, rows, pairs);
        let positions = [0i64, 8, 3, 9, 1 << 40, -1];
        let x = data.values::<T>(heads.span().expect("small"));
        // The reference's bound is for cosines and sines up to 1, these go to 2.
        let expected =
            rope.expect_by_table(&x, &heads, &positions, Direction::Inverse, (&cos, &sin)).expect("reference");
        let cache: Vec<f64> = if packed {
            (0..rows)
                .flat_map(|r| [&cos[r * pairs..(r + 1) * pairs], &sin[r * pairs..(r + 1) * pairs]].concat())
                .collect()
        } else {
            cos.clone()
        };
        let stream = gpu.stream();
        let upload = |x: &[f64]| stream.clone_htod(&x.iter().map(|&x| x as f32).collect::<Vec<_>>()).expect("a copy");
        let upload_same =
            |x: &[f64]| stream.clone_htod(&x.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>()).expect("a copy");
        let (cos_f32, sin_f32) = (upload(&cache), upload(&sin));
        let (cos_same, sin_same) = (upload_same(&cache), upload_same(&sin));
        let values = match (same, packed) {
            (false, true) => TableValues::F32 { cos: &cos_f32, sin: None },
            (false, false) => TableValues::F32 { cos: &cos_f32, sin: Some(&sin_f32) },
            (true, true) => TableValues::Same { cos: &cos_same, sin: None },
            (true, false) => TableValues::Same { cos: &cos_same, sin: Some(&sin_same) },
        };
        let stride = if packed { 2 * pairs } else { pairs };
        let table = Table { values, rows, stride, out_of_range: OutOfRange::Clamp };
        let plan = RopePlan::<T>::new(gpu, &rope).expect("a plan");
        let ids = stream.clone_htod(&positions).expect("a copy");
        let mut buffer = Guarded::new(gpu, &x, 0);
        let mut view = buffer.view();
        let q = heads.of_mut(&mut view);
        plan.rotate(
            q,
            None,
            Rotation { direction: Direction::Inverse, table: Some(table), ..Rotation::at(Positions::ids(&ids)) },
        )
        .expect("a call");
        assert_close(&buffer.read(gpu), &expected.want, |i| 2.0 * expected.bound[i]);
    }
    for (dim, rotary) in [(32, 32), (32, 16), (24, 12), (10, 6), (128, 128)] {
        for packed in [false, true] {
            for same in [false, true] {
                check::<f32>(&gpu, &mut data, dim, rotary, packed, same);
                check::<bf16>(&gpu, &mut data, dim, rotary, packed, same);
                check::<f16>(&gpu, &mut data, dim, rotary, packed, same);
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_position_beyond_the_table_is_clamped_or_nan_and_reported() {
    let (gpu, mut data) = (gpu(), Data::new(23));
    let (rope, heads) = (Rope::new(16, 10_000.0), Heads::thd(2, 1, 16));
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let (cos, sin) = table(&mut data, 4, 8);
    let stream = gpu.stream();
    let upload = |x: &[f64]| stream.clone_htod(&x.iter().map(|&x| x as f32).collect::<Vec<_>>()).expect("a copy");
    let (cos_gpu, sin_gpu) = (upload(&cos), upload(&sin));
    let values = || TableValues::F32 { cos: &cos_gpu, sin: Some(&sin_gpu) };
    let x = data.values::<f32>(32);
    for (positions, beyond) in [([3i64, 1], false), ([3, 4], true), ([3, -1], true)] {
        let ids = stream.clone_htod(&positions).expect("a copy");
        let mut flag = stream.clone_htod(&[0u32]).expect("a copy");
        let mut buffer = Guarded::new(&gpu, &x, 0);
        let table = Table { values: values(), rows: 4, stride: 8, out_of_range: OutOfRange::Nan(Some(&mut flag)) };
        let mut view = buffer.view();
        let q = heads.of_mut(&mut view);
        plan.rotate(q, None, Rotation { table: Some(table), ..Rotation::at(Positions::ids(&ids)) }).expect("a call");
        let got = buffer.read(&gpu);
        let expected =
            rope.expect_by_table(&x, &heads, &positions, Direction::Forward, (&cos, &sin)).expect("reference");
        assert_close(&got[..16], &expected.want[..16], |i| 2.0 * expected.bound[i]);
        assert_eq!(got[16..].iter().all(|x| x.is_nan()), beyond, "{got:?}");
        assert_eq!(stream.clone_dtoh(&flag).expect("a copy"), [u32::from(beyond)]);
    }
    let mut buffer = Guarded::new(&gpu, &x, 0);
    let ids = stream.clone_htod(&[0i64, 0]).expect("a copy");
    let mut refuse = |rows: usize, stride: usize, want: &str| {
        let table = Table { values: values(), rows, stride, out_of_range: OutOfRange::Clamp };
        let mut view = buffer.view();
        let q = heads.of_mut(&mut view);
        let result = plan.rotate(q, None, Rotation { table: Some(table), ..Rotation::at(Positions::ids(&ids)) });
        assert_eq!(result.expect_err(want).to_string(), want);
    };
    refuse(5, 8, "cos holds 32 elements, the shape needs 40");
    refuse(4, 7, "the table has 4 rows 7 elements apart, it needs 1 to 2147483647 rows of at least 8");
    refuse(0, 8, "the table has 0 rows 8 elements apart, it needs 1 to 2147483647 rows of at least 8");
}

/// Elements on both sides of 2^31, in q and k and their outputs; the buffers are reserved, and touched only there.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn offsets_beyond_31_bits() {
    let (gpu, mut data) = (gpu(), Data::new(51));
    // The last token's elements lie beyond 32 bits too.
    let (tokens, dim, stride) = (3, 16, (1usize << 31) + 8);
    let heads = Heads { strides: [0, stride, 24], ..Heads::thd(tokens, 2, dim) };
    let stream = gpu.stream();
    let reserve = || {
        // SAFETY: every element that is read has been written before: the inputs by the loop below, the outputs by the kernel.
        unsafe { stream.alloc::<bf16>(heads.span().expect("fits 63 bits")).expect("room, reserved") }
    };
    let (mut x, mut out) = (reserve(), reserve());
    let small = Heads { strides: [0, 40, 24], ..heads };
    let values = data.values::<bf16>(small.span().expect("small"));
    let rows: Vec<_> =
        (0..tokens).map(|token| (token * stride..token * stride + 40, token * 40..token * 40 + 40)).collect();
    for (far, near) in &rows {
        stream.memcpy_htod(&values[near.clone()], &mut x.slice_mut(far.clone())).expect("a copy");
    }
    let positions = [5i64, 131_071, -9];
    let ids = stream.clone_htod(&positions).expect("a copy");
    let rope = Rope { offset: 2, ..Rope::new(12, 10_000.0) };
    let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
    let want = rope.expect(&values, &small, &positions, Direction::Forward).expect("reference");
    let check = |y: &CudaSlice<bf16>| {
        for (far, near) in &rows {
            let got = stream.clone_dtoh(&y.slice(far.start..far.start + 16)).expect("a copy");
            assert_close(&got, &want.want[near.start..near.start + 16], |i| want.bound[near.start + i]);
            let got = stream.clone_dtoh(&y.slice(far.start + 24..far.end)).expect("a copy");
            assert_close(&got, &want.want[near.start + 24..near.end], |i| want.bound[near.start + 24 + i]);
        }
    };
    plan.rotate(heads.of(&x).to(heads.of_mut(&mut out)), None, Positions::ids(&ids)).expect("a call");
    check(&out);
    plan.rotate(heads.of_mut(&mut x), None, Positions::ids(&ids)).expect("a call");
    check(&x);
}

/// More sequences, and more heads, than a grid has blocks on its second and third axis.
/// So many tokens of 128 pairs that a thread walks four or three of seven heads.
pub fn tokens_with_uneven_walks(gpu: &Gpu) -> usize {
    // A block of 128 threads has one token: two for each token are what the emulator's device has at once.
    let threads = match gpu.capability() {
        (7, _) => 1024,
        (12, _) => 1536,
        _ => 2048,
    };
    threads / 128 / 2 * gpu.multiprocessors() as usize
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_thread_walks_heads_of_both_tensors_and_none_behind_the_last() {
    let (gpu, mut data) = (gpu(), Data::new(53));
    let tokens = tokens_with_uneven_walks(&gpu);
    let (q, k) = (Heads::thd(tokens, 5, 256), Heads::thd(tokens, 2, 256));
    let case = Case { shift: 1, ..Case::in_place(&Rope::new(256, 10_000.0), q, Some(k), &mut data) };
    case.check::<f16>(&gpu, &mut data);
    if let Some(report) = last_launch() {
        assert_eq!(report.grid[1] * report.block[2], 2, "{report:?}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn grids_at_their_limits() {
    let (gpu, mut data) = (gpu(), Data::new(52));
    for heads in [Heads::bthd(65_537, 1, 1, 2), Heads::bthd(1, 1, 70_001, 4), Heads::bthd(1, 70_001, 1, 2)] {
        let rope = Rope::new(heads.dim, 10_000.0);
        Case::in_place(&rope, heads, None, &mut data).check::<bf16>(&gpu, &mut data);
    }
}

// --------------------------------------------------------------------------------------------------------------- bytes

/// Bytes that are read for angles of 4-byte ids: for each walk over heads `of_a_pair` for each pair and an id for each 8 of
/// them, or, where a token's heads share them, for each of its blocks, with an id for each thread that makes angles.
fn bytes_of_angles(report: &emulator::LaunchReport, tokens: usize, pairs: usize, of_a_pair: usize) -> u64 {
    let [x, y, z] = report.block.map(|n| n as usize);
    let splits = report.grid[1] as usize;
    let bytes = if report.kernel.starts_with("rope_shared") {
        splits * (pairs * of_a_pair + 4 * (x * y).min(pairs / 2))
    } else {
        splits * z * (pairs * of_a_pair + pairs / 8 * 4)
    };
    (tokens * bytes) as u64
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn each_element_is_read_once_and_written_once() {
    let gpu = gpu();
    if last_launch_is_real() {
        return;
    }
    let count = |rope: &Rope, q: Heads, k: Heads, in_place: bool| {
        let plan = RopePlan::<bf16>::new(&gpu, rope).expect("a plan");
        let stream = gpu.stream();
        let alloc = |heads: &Heads| stream.clone_htod(&vec![bf16::ONE; heads.span().expect("small")]).expect("a copy");
        let (mut q_x, mut k_x, mut q_y, mut k_y) = (alloc(&q), alloc(&k), alloc(&q), alloc(&k));
        let ids = stream.clone_htod(&(0..q.tokens as i32).collect::<Vec<_>>()).expect("a copy");
        if in_place {
            let (q, k) = (q.of_mut(&mut q_x), k.of_mut(&mut k_x));
            plan.rotate(q, k, Positions::ids(&ids)).expect("a call");
        } else {
            let (q, k) = (q.of(&q_x).to(q.of_mut(&mut q_y)), k.of(&k_x).to(k.of_mut(&mut k_y)));
            plan.rotate(q, k, Positions::ids(&ids)).expect("a call");
        }
        last_launch().expect("the emulator counts")
    };
    for (rope, dim) in [(llama3(), 128), (Rope::new(32, 10_000.0), 128)] {
        let (q, k) = (Heads::thd(64, 32, dim), Heads::thd(64, 8, dim));
        for in_place in [true, false] {
            let report = count(&rope, q, k, in_place);
            let channels = if in_place { rope.rotary } else { dim };
            let tensor = (64 * 40 * channels * 2) as u64;
            assert_eq!(report.counters.bytes_written, tensor, "each element once");
            let tables = bytes_of_angles(&report, 64, rope.pairs(), 8);
            assert_eq!(report.counters.bytes_read, tensor + tables, "each element once, and the tables: {report:?}");
            // Everything in 16-byte accesses, but the ids.
            let wide = report.counters.global_accesses[4] * 16;
            assert!(wide >= 2 * tensor, "{report:?}");
            assert_eq!(report.counters.local_bytes_read, 0);
        }
    }
}

/// In place, each source of angles adds its own bytes to the tensors' and nothing else: 8 a pair for rates, 4 for frequencies,
/// a cosine and a sine of its type for a table's rows.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_source_of_angles_adds_exactly_its_own_bytes() {
    let gpu = gpu();
    if last_launch_is_real() {
        return;
    }
    let stream = gpu.stream();
    let tokens = 48;
    let ids = stream.clone_htod(&(0..tokens as i32).collect::<Vec<_>>()).expect("a copy");
    for (rotary, dim) in [(128, 128), (32, 128), (64, 192)] {
        let pairs = rotary / 2;
        let (q, k) = (Heads::thd(tokens, 32, dim), Heads::thd(tokens, 8, dim));
        let alloc = |heads: &Heads| stream.clone_htod(&vec![bf16::ONE; heads.span().expect("small")]).expect("a copy");
        let (mut q_x, mut k_x) = (alloc(&q), alloc(&k));
        let in_f32 = stream.clone_htod(&vec![0.5f32; 64 * pairs]).expect("a copy");
        let packed = stream.clone_htod(&vec![bf16::ONE; 64 * 2 * pairs]).expect("a copy");
        for (source, of_a_pair) in [("exact", 8), ("compat", 4), ("table in f32", 8), ("packed table in bf16", 4)] {
            let angles = if source == "compat" { Angles::HfCompat } else { Angles::Exact };
            let plan = RopePlan::<bf16>::new(&gpu, &Rope { angles, ..Rope::new(rotary, 1e4) }).expect("a plan");
            let table = match source {
                "table in f32" => Some((TableValues::F32 { cos: &in_f32, sin: Some(&in_f32) }, pairs)),
                "packed table in bf16" => Some((TableValues::Same { cos: &packed, sin: None }, 2 * pairs)),
                _ => None,
            };
            let (q, k) = (q.of_mut(&mut q_x), k.of_mut(&mut k_x));
            let positions = Positions::ids(&ids);
            match table {
                None => plan.rotate(q, k, positions),
                Some((values, stride)) => {
                    let table = Table { values, rows: 64, stride, out_of_range: OutOfRange::Clamp };
                    plan.rotate(q, k, Rotation { table: Some(table), ..Rotation::at(positions) })
                }
            }
            .expect("a call");
            let report = last_launch().expect("the emulator counts");
            let tensor = (tokens * 40 * rotary * 2) as u64;
            assert_eq!(report.counters.bytes_written, tensor, "{source}, {rotary} of {dim}");
            let added = bytes_of_angles(&report, tokens, pairs, of_a_pair);
            assert_eq!(report.counters.bytes_read, tensor + added, "{source}, {rotary} of {dim}: {report:?}");
        }
    }
}

/// In the code of every entry there is no integer division: the quotients of a kernel's arithmetic are the host's.
#[test]
fn no_entry_divides_whole_numbers() {
    let mut entries = 0;
    for images in posenc::gpu::images().iter().filter(|images| images.file.starts_with("rotate/")) {
        for image in images.ptx {
            let text = String::from_utf8(image.bytes()).expect("PTX is text");
            entries += text.matches(".visible .entry rope_").count();
            for word in ["div.s", "div.u", "rem.s", "rem.u"] {
                assert!(!text.contains(word), "{} in {} for sm_{} has {word}", images.file, images.dtype, image.sm);
            }
        }
    }
    assert!(entries.is_multiple_of(14 * 3), "{entries} entries");
}

fn last_launch_is_real() -> bool {
    crate::support::emulator().is_none()
}

// -------------------------------------------------------------------------------------------------------------- graphs

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_call_can_be_captured_and_replayed() {
    // A context of its own settings: events recorded outside a capture cannot be waited for inside it.
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    // SAFETY: every buffer of this test is used on this one stream.
    unsafe { context.disable_event_tracking() };
    let gpu = Gpu::new(&stream).expect("a device");
    let rope = Rope::new(64, 10_000.0);
    let plan = RopePlan::<f32>::new(&gpu, &rope).expect("a plan");
    let heads = Heads::thd(4, 3, 64);
    let x = Data::new(10).values::<f32>(heads.span().expect("small"));
    let mut buffer = stream.clone_htod(&x).expect("a copy");
    let mut ids = stream.clone_htod(&[1i32, 2, 3, 4]).expect("a copy");
    stream.synchronize().expect("a stream");

    stream.begin_capture(CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    let q = heads.of_mut(&mut buffer);
    plan.rotate(q, None, Positions::ids(&ids)).expect("a call");
    let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).expect("a graph").expect("a graph that is not empty");

    graph.launch().expect("a replay");
    let once = stream.clone_dtoh(&buffer).expect("a copy");
    let expected = rope.expect(&x, &heads, &[1, 2, 3, 4], Direction::Forward).expect("reference");
    assert_close(&once, &expected.want, |i| expected.bound[i]);
    // Positions are read when the graph runs.
    stream.memcpy_htod(&[7i32, -8, 9, 100_000], &mut ids).expect("a copy");
    graph.launch().expect("a replay");
    let twice = stream.clone_dtoh(&buffer).expect("a copy");
    let expected = rope.expect(&once, &heads, &[7, -8, 9, 100_000], Direction::Forward).expect("reference");
    assert_close(&twice, &expected.want, |i| expected.bound[i]);
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn specs_outside_the_law_are_refused() {
    let message = |rope: Rope| rope.check().expect_err("a refusal").to_string();
    assert_eq!(message(Rope::new(7, 1e4)), "rotary is 7, it must be even and at least 2");
    assert_eq!(message(Rope::new(0, 1e4)), "rotary is 0, it must be even and at least 2");
    assert_eq!(message(Rope::new(8, -1.0)), "base is -1, it must be finite and above 0");
    assert_eq!(message(Rope::new(8, f64::NAN)), "base is NaN, it must be finite and above 0");
    assert_eq!(
        message(Rope { attention_factor: f64::INFINITY, ..Rope::new(8, 1e4) }),
        "attention_factor is inf, it must be finite and above 0 in f32"
    );
    assert!(message(Rope { attention_factor: 1e39, ..Rope::new(8, 1e4) }).starts_with("attention_factor is 1000000"));
    for rotary in [65538, 1 << 22, u32::MAX as usize - 1] {
        assert_eq!(message(Rope::new(rotary, 1e4)), format!("rotary is {rotary}, it must be at most 65536"));
    }
    let mut x = [0.0f32; 9];
    let error = Rope { offset: 2, ..Rope::new(8, 1e4) }
        .rotate(&mut x, &Heads::thd(1, 1, 9).row(9), &[0], Direction::Forward)
        .expect_err("a refusal");
    assert_eq!(error.to_string(), "the rotary part ends at channel 10 (8 from 2), a head has 9");
    let error = Rope::new(8, 1e4).rotate(&mut x, &Heads::thd(1, 1, 8), &[], Direction::Forward).expect_err("a refusal");
    assert_eq!(error.to_string(), "positions holds 0 elements, the shape needs 1");
}

#[test]
fn laws_whose_frequencies_are_no_numbers_are_refused() {
    let of = |base| Rope::new(8, base);
    let scaled = |scaling| Rope { scaling, ..of(1e4) };
    let context = Scaling::DynamicNtk { factor: 2.0, context: 1e-320, length: Some(9) };
    let divisors = Scaling::Divisors(vec![1.0, 1e-320, 1.0, 1.0]);
    let single = Rope { angles: Angles::HfCompat, ..of(1e-60) };
    let ladders = Rope { axes: Axes::Ladders(vec![3, 1]), ..single.clone() };
    for (rope, want) in [
        (of(1e-320), "the frequency of pair 0 is NaN with base 1e-320, it must be finite"),
        (scaled(context), "the frequency of pair 0 is NaN with base 10000.0, it must be finite"),
        (scaled(divisors), "the frequency of pair 1 is NaN with base 10000.0, it must be finite"),
        (single, "the frequency of pair 3 is inf with base 1e-60, it must be finite"),
        (ladders, "the frequency of pair 1 is inf with base 1e-60, it must be finite"),
    ] {
        assert_eq!(rope.check().expect_err(want).to_string(), want);
    }
    of(1e-280).check().unwrap();
    of(1e280).check().unwrap();
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_that_do_not_fit_are_refused_and_write_nothing() {
    let gpu = gpu();
    let plan = RopePlan::<f32>::new(&gpu, &Rope::new(8, 10_000.0)).expect("a plan");
    let stream = gpu.stream();
    let x = Data::new(11).values::<f32>(64);
    let mut q = Guarded::new(&gpu, &x, 0);
    let mut k = Guarded::new(&gpu, &x, 0);
    let ids = stream.clone_htod(&[1i32, 2]).expect("a copy");
    let heads = Heads::thd(2, 2, 8);
    let mut refuse = |q_heads: Heads, k_heads: Option<Heads>, want: &str| {
        let (mut q, mut k) = (q.view(), k.view());
        let k = k_heads.map(|heads| Update::from(heads.of_mut(&mut k)));
        let q = q_heads.of_mut(&mut q);
        let error = plan.rotate(q, k, Positions::ids(&ids)).expect_err(want);
        assert_eq!(error.to_string(), want);
    };
    refuse(Heads::thd(2, 5, 8), None, "q holds 64 elements, the shape needs 80");
    refuse(heads, Some(Heads::thd(2, 5, 8)), "k holds 64 elements, the shape needs 80");
    refuse(heads, Some(Heads::thd(1, 2, 8)), "q has 2 tokens and k 1, they must be equal");
    refuse(Heads::thd(4, 1, 8), None, "positions holds 2 elements, the shape needs 4");
    refuse(Heads::thd(2, 0, 8), None, "q has 0 heads of 8 channels, both must be at least 1");
    refuse(Heads::thd(2, 2, 7), None, "the rotary part ends at channel 8 (8 from 0), a head has 7");
    refuse(
        Heads { strides: [0, 8, 4], ..heads },
        None,
        "q is written and its elements overlap: a dimension of 2 has stride 4, and 8 elements lie below it",
    );
    refuse(
        Heads::thd(1 << 33, 1 << 30, 8),
        None,
        "batch x tokens x heads x dim (1 x 8589934592 x 1073741824 x 8) does not fit into 63 bits",
    );

    let mut view = q.view();
    let error = plan.rotate(heads.of_mut(&mut view), heads.at(4), Positions::ids(&ids)).expect_err("an overlap");
    assert_eq!(
        error.to_string(),
        "q (offset 0, strides [32, 16, 8]) and k (offset 4, strides [32, 16, 8]) may overlap in one buffer"
    );
    let mut out = stream.alloc_zeros::<f32>(64).expect("memory");
    let error = plan
        .rotate(heads.of(&k.view()).to(Heads::thd(2, 1, 8).of_mut(&mut out)), None, Positions::ids(&ids))
        .expect_err("other sizes");
    assert_eq!(
        error.to_string(),
        "q has the sizes [1, 2, 2, 8] and q_out [1, 2, 1, 8] (batch, tokens, heads, dim), they must be equal"
    );

    if let Ok(other) = Gpu::open(1) {
        let mut elsewhere = other.stream().alloc_zeros::<f32>(64).expect("memory");
        let q = heads.of_mut(&mut elsewhere);
        let error = plan.rotate(q, None, Positions::ids(&ids)).expect_err("another context");
        assert_eq!(error.to_string(), "q lies in another CUDA context than the one this plan was made for");
    }
    // Nothing to do is nothing wrong.
    let none = Heads::thd(0, 2, 8).of_mut(&mut view);
    plan.rotate(none, None, Positions::ids(&ids)).expect("no tokens");
    assert_eq!(q.read(&gpu), x);
    assert_eq!(k.read(&gpu), x);
}

//! The prologue of attention: values, laws, the kernel against the reference, caches, refusals.

use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::gpu::Update;
use posenc::position::AsIds;
use posenc::rotate::{
    Angles, Axes, Branch, Cache, CacheRows, Code8, CodeScale, Codes, HeadNorm, HostCache, HostScale, HostStored,
    NormKind, NormOver, NormWeight, Projected, Prologue, PrologueCall, ProloguePlan, Qkv, QueryScale, Rounding, Stored,
    Vectors,
};
use posenc::{Gpu, Heads, Id, Pairing, Positions, Rope, RopePlan, Scalar};

use crate::support::{Data, Guarded, alias, gpu, last_launch, poison};

const ALL: [Qkv; 3] = [Qkv::Query, Qkv::Key, Qkv::Value];

// ---------------------------------------------------------------------------------------------------------------- cases

fn rms(weight: NormWeight) -> Option<HeadNorm> {
    Some(HeadNorm { weight, ..HeadNorm::rms(1e-6) })
}

fn branch(norm: Option<HeadNorm>) -> Branch {
    Branch { norm, ..Branch::rotated() }
}

/// Specs that people run, and every option.
fn specs() -> Vec<(Prologue, usize)> {
    let plain = |rotary: usize| Prologue::new(Rope::new(rotary, 1e4));
    let normed = |norm: Option<HeadNorm>, rotary: usize| Prologue { q: branch(norm), k: branch(norm), ..plain(rotary) };
    let interleaved = |rotary| Rope { pairing: Pairing::Interleaved, ..Rope::new(rotary, 1e4) };
    let weightless = Branch { norm: rms(NormWeight::None), ..Branch::plain() };
    let all = Some(HeadNorm { over: NormOver::AllHeads, ..HeadNorm::rms(1e-6) });
    let biased = Branch { bias: true, ..Branch::rotated() };
    let steps = |rounding| Branch { rounding, bias: true, ..branch(rms(NormWeight::Weight)) };
    vec![
        // Llama, Qwen2, Qwen3, Gemma 3 and 4, OLMo 2.
        (plain(64), 64),
        (Prologue { q: biased, k: biased, v: Branch { bias: true, ..Branch::plain() }, ..plain(32) }, 32),
        (normed(rms(NormWeight::Weight), 128), 128),
        (Prologue { v: weightless, ..normed(rms(NormWeight::OnePlusWeight), 256) }, 256),
        (normed(all, 16), 16),
        // Partial, at the end, interleaved; the order of squares is that of the channels.
        (normed(rms(NormWeight::Weight), 24), 96),
        (normed(rms(NormWeight::Weight), 32), 80),
        (Prologue { rope: Some(Rope { offset: 128, ..Rope::new(64, 1e4) }), ..normed(rms(NormWeight::None), 64) }, 192),
        (Prologue { rope: Some(interleaved(64)), ..normed(rms(NormWeight::Weight), 64) }, 64),
        (Prologue { rope: Some(Rope { offset: 16, ..interleaved(48) }), ..normed(rms(NormWeight::Weight), 48) }, 96),
        // Pairs that move, blocks of channels, sections, angles in f32.
        (Prologue { rope: Some(Rope { pairing_out: Some(Pairing::Half), ..interleaved(16) }), ..normed(all, 16) }, 24),
        (Prologue { rope: Some(Rope { axes: Axes::Blocks(2), ..Rope::new(32, 100.0) }), ..normed(all, 32) }, 40),
        (
            Prologue { rope: Some(Rope { axes: Axes::Interleaved(vec![3, 3, 2]), ..Rope::new(16, 1e4) }), ..plain(16) },
            16,
        ),
        (Prologue { rope: Some(Rope { angles: Angles::HfCompat, ..Rope::new(16, 1e4) }), ..plain(16) }, 16),
        // Keys that are kept before their rotation, no rotation at all, the rotation first, L2.
        (Prologue { k: Branch::plain(), ..plain(16) }, 20),
        (Prologue { rope: None, q: weightless, k: weightless, ..Prologue::plain() }, 104),
        (Prologue { rope_first: true, ..normed(rms(NormWeight::Weight), 16) }, 24),
        (Prologue { rope_first: true, ..normed(all, 12) }, 20),
        (normed(Some(HeadNorm { kind: NormKind::L2, weight: NormWeight::None, ..HeadNorm::rms(1e-6) }), 6), 6),
        (normed(Some(HeadNorm { kind: NormKind::L2, over: NormOver::AllHeads, ..HeadNorm::rms(1e-6) }), 8), 14),
        // Roundings in between.
        (Prologue { q: steps(Rounding::Steps), k: steps(Rounding::BeforeWeight), ..plain(32) }, 40),
        (Prologue { q: steps(Rounding::BeforeWeight), k: steps(Rounding::Steps), rope_first: true, ..plain(12) }, 12),
        // Factors of the position.
        (Prologue { query_scale: QueryScale::Llama4 { scale: 0.1, floor: 8192.0 }, ..plain(8) }, 8),
        (Prologue { query_scale: QueryScale::LogN { train_length: 512.0 }, ..normed(all, 8) }, 8),
        // A rope that is none.
        (Prologue::new(Rope::none()), 16),
        // The widest heads of 16-byte accesses, and those that are wider.
        (normed(rms(NormWeight::Weight), 64), 512),
        (Prologue { rope: Some(Rope { offset: 512, ..Rope::new(64, 1e4) }), ..normed(all, 64) }, 576),
        (normed(rms(NormWeight::Weight), 2), 1024),
    ]
}

/// Where tokens go in a cache.
#[derive(Clone, Debug)]
enum Place {
    Slots(Vec<i64>),
    /// table, pages of a sequence, row of each sequence's first token
    Pages(Vec<i64>, usize, Vec<i64>),
    Rows(Vec<i64>),
}

impl Place {
    fn host(&self) -> CacheRows<&[i64]> {
        match self {
            Self::Slots(slots) => CacheRows::Slots(slots),
            Self::Pages(table, width, starts) => {
                CacheRows::Pages { table, width: *width, rows: Positions::starts(starts) }
            }
            Self::Rows(starts) => CacheRows::Rows(Positions::starts(starts)),
        }
    }
}

/// One call: tensors `[batch, tokens, heads, dim]` and their sizes.
#[derive(Clone, Debug)]
struct Case {
    prologue: Prologue,
    batch: usize,
    tokens: usize,
    heads: [usize; 3],
    dim: usize,
    /// `[axes, batch, tokens]`
    positions: Vec<i64>,
    /// shapes of the caches of keys and values in one buffer, and the place of each token
    cache: Option<([Heads; 2], Place)>,
    /// elements that each buffer begins past a 64-byte boundary
    shift: usize,
}

/// What a call reads.
#[derive(Clone)]
struct Inputs<T> {
    x: [Vec<T>; 3],
    weights: [Option<Vec<T>>; 3],
    biases: [Option<Vec<T>>; 3],
}

/// What a call left: queries, keys, values, and the buffer of the caches.
#[derive(Clone, PartialEq, Debug)]
struct Results<T> {
    out: [Vec<T>; 3],
    cache: Vec<T>,
    flag: u32,
}

fn bits<T: Scalar>(x: &[T]) -> &[u8] {
    bytemuck::cast_slice(x)
}

impl<T: Scalar> Results<T> {
    #[track_caller]
    fn same_bits(&self, other: &Self, what: &dyn std::fmt::Debug) {
        for (a, b) in self.out.iter().chain([&self.cache]).zip(other.out.iter().chain([&other.cache])) {
            assert_eq!(bits(a), bits(b), "{what:?}");
        }
        assert_eq!(self.flag, other.flag);
    }
}

impl Case {
    fn new(prologue: &Prologue, sizes: [usize; 2], heads: [usize; 3], dim: usize, data: &mut Data) -> Self {
        let axes = prologue.rope.as_ref().map_or(1, Rope::position_axes);
        let positions = (0..axes * sizes[0] * sizes[1]).map(|_| data.position()).collect();
        let (prologue, [batch, tokens]) = (prologue.clone(), sizes);
        Self { prologue, batch, tokens, heads, dim, positions, cache: None, shift: 0 }
    }

    fn shape(&self, which: usize) -> Heads {
        Heads::bthd(self.batch, self.tokens, self.heads[which], self.dim)
    }

    fn inputs<T: Scalar>(&self, data: &mut Data) -> Inputs<T> {
        let all = |which: usize| self.heads[which] * self.dim;
        let norm = |which: usize| self.prologue.branch(ALL[which]).norm.filter(|norm| norm.weight != NormWeight::None);
        let weight =
            |which: usize| norm(which).map(|norm| if norm.over == NormOver::AllHeads { all(which) } else { self.dim });
        let bias = |which: usize| self.prologue.branch(ALL[which]).bias.then(|| all(which));
        Inputs {
            x: [0, 1, 2].map(|which| data.values(self.batch * self.tokens * all(which))),
            weights: [0, 1, 2].map(|which| weight(which).map(|n| data.values(n))),
            biases: [0, 1, 2].map(|which| bias(which).map(|n| data.values(n))),
        }
    }

    /// Runs the case into tensors of their own and the cache.
    #[track_caller]
    fn run<T: Scalar>(&self, gpu: &Gpu, inputs: &Inputs<T>) -> Results<T> {
        let plan = ProloguePlan::<T>::new(gpu, &self.prologue).expect("the plan is made");
        let there = |x: &Vec<T>| Guarded::new(gpu, x, self.shift);
        let mut x = inputs.x.each_ref().map(there);
        let mut weights = inputs.weights.each_ref().map(|x| x.as_ref().map(there));
        let mut biases = inputs.biases.each_ref().map(|x| x.as_ref().map(there));
        let mut out = inputs.x.each_ref().map(|x| Guarded::<T>::poisoned(gpu, x.len(), self.shift));
        let span = |shapes: &[Heads; 2]| shapes.iter().map(|shape| shape.span().expect("small")).max();
        let cache_len = self.cache.as_ref().and_then(|(shapes, _)| span(shapes)).unwrap_or(0);
        let mut cache = Guarded::<T>::poisoned(gpu, cache_len, self.shift);
        let ids = gpu.stream().clone_htod(&self.positions).expect("a copy");
        let mut flag = gpu.stream().clone_htod(&[0u32]).expect("a copy");
        {
            let views = x.each_mut().map(Guarded::view);
            let weights = weights.each_mut().map(|x| x.as_mut().map(Guarded::view));
            let biases = biases.each_mut().map(|x| x.as_mut().map(Guarded::view));
            let mut outs = out.each_mut().map(Guarded::view);
            let vectors = |which: usize| Vectors {
                weight: weights[which].as_ref().map(|x| x as _),
                bias: biases[which].as_ref().map(|x| x as _),
            };
            let mut call =
                PrologueCall { q: vectors(0), k: vectors(1), v: vectors(2), ..PrologueCall::at(Positions::ids(&ids)) };
            let mut cache_view = cache.view();
            let held = self.cache.as_ref().map(|(shapes, place)| {
                let up = |x: &[i64]| gpu.stream().clone_htod(x).expect("a copy");
                match place {
                    Place::Slots(slots) => (shapes, up(slots), None, 0),
                    Place::Pages(table, width, starts) => (shapes, up(starts), Some(up(table)), *width),
                    Place::Rows(starts) => (shapes, up(starts), None, usize::MAX),
                }
            });
            if let Some((shapes, first, table, width)) = &held {
                let rows = match (table, *width) {
                    (Some(table), width) => {
                        CacheRows::Pages { table: i64::ids(table), width, rows: Positions::starts(first) }
                    }
                    (None, 0) => CacheRows::Slots(i64::ids(first)),
                    (None, _) => CacheRows::Rows(Positions::starts(first)),
                };
                call.cache = Some(Cache {
                    k: shapes[0].of_mut(&mut cache_view).into(),
                    v: Some(Stored::Beside(shapes[1])),
                    rows,
                    flag: Some(&mut flag),
                });
            }
            let [q_out, k_out, v_out] = &mut outs;
            let to = |which: usize, out| {
                if self.heads[which] == 0 {
                    return Projected::None;
                }
                Projected::Update(self.shape(which).of(&views[which]).to(self.shape(which).of_mut(out)))
            };
            plan.apply(to(0, q_out), to(1, k_out), to(2, v_out), call).expect("the call is made");
        }
        let flag = gpu.stream().clone_dtoh(&flag).expect("a copy")[0];
        Results { out: out.each_ref().map(|out| out.read(gpu)), cache: cache.read(gpu), flag }
    }

    /// Compares every element with the reference.
    #[track_caller]
    fn compare<T: Scalar>(&self, inputs: &Inputs<T>, results: &Results<T>) {
        let mut cache = vec![(poison::<T>().to_f64(), 0.0); results.cache.len()];
        for (i, which) in ALL.into_iter().enumerate().filter(|&(i, _)| self.heads[i] > 0) {
            let vectors = Vectors { weight: inputs.weights[i].as_deref(), bias: inputs.biases[i].as_deref() };
            let from = (&inputs.x[i][..], &self.shape(i));
            let expected = self.prologue.expect(which, from, vectors, &self.positions).expect("the reference");
            assert_close(&results.out[i], &expected.want, |at| expected.bound[at]);
            let Some((shapes, place)) = self.cache.as_ref().filter(|_| i > 0) else { continue };
            let shape = shapes[i - 1];
            for at in 0..self.batch * self.tokens {
                let Some([page, row]) = place_of(place, &shape, [at / self.tokens, at % self.tokens, at]) else {
                    continue;
                };
                for c in 0..self.heads[i] * self.dim {
                    let from = at * self.heads[i] * self.dim + c;
                    let to = shape.index(page, row, c / self.dim, c % self.dim);
                    cache[to] = (expected.want[from], expected.bound[from]);
                    assert_eq!(bits(&results.cache[to..=to]), bits(&results.out[i][from..=from]), "{self:?}");
                }
            }
        }
        let want: Vec<f64> = cache.iter().map(|cache| cache.0).collect();
        assert_close(&results.cache, &want, |at| cache[at].1);
    }

    /// Compares with the reference, and the bits of accesses of one element with those of 16 bytes.
    #[track_caller]
    fn check<T: Scalar>(&self, gpu: &Gpu, data: &mut Data) {
        let inputs = self.inputs::<T>(data);
        let results = self.run(gpu, &inputs);
        self.compare(&inputs, &results);
        let one = Self { shift: 1, ..self.clone() }.run(gpu, &inputs);
        assert!(last_launch().is_none_or(|report| report.kernel.starts_with("prologue_one")), "{self:?}");
        results.same_bits(&one, self);
    }
}

/// Page and row of a token, found in other words than the crate's.
fn place_of(place: &Place, cache: &Heads, [sequence, token, at]: [usize; 3]) -> Option<[usize; 2]> {
    let (page, row) = match place {
        Place::Slots(slots) => {
            let slot = usize::try_from(slots[at]).ok()?;
            (slot / cache.tokens, slot % cache.tokens)
        }
        Place::Pages(table, width, starts) => {
            let row = usize::try_from(starts[sequence] + token as i64).ok()?;
            let place = row / cache.tokens;
            let page = if place < *width { table[sequence * width + place] } else { -1 };
            (usize::try_from(page).ok()?, row % cache.tokens)
        }
        Place::Rows(starts) => (sequence, usize::try_from(starts[sequence] + token as i64).ok()?),
    };
    (page < cache.batch && row < cache.tokens).then_some([page, row])
}

// --------------------------------------------------------------------------------------------------------------- values

/// The norm and the rotation written out once more, without a step of the crate's.
#[test]
fn the_reference_is_the_formula() {
    let mut data = Data::new(1);
    let (dim, heads) = (6, Heads::thd(1, 2, 6));
    let (x, weight, bias): (Vec<f32>, Vec<f32>, Vec<f32>) = (data.values(12), data.values(12), data.values(12));
    for (over, kind, one) in [
        (NormOver::Head, NormKind::Rms, NormWeight::Weight),
        (NormOver::AllHeads, NormKind::Rms, NormWeight::OnePlusWeight),
        (NormOver::Head, NormKind::L2, NormWeight::OnePlusWeight),
        (NormOver::AllHeads, NormKind::L2, NormWeight::Weight),
    ] {
        let norm = Some(HeadNorm { kind, weight: one, eps: 0.25, over });
        let rope = Rope { attention_factor: 1.5, offset: 1, ..Rope::new(4, 100.0) };
        let scale = QueryScale::Mistral { beta: 0.5, original_context: 3.0 };
        let prologue =
            Prologue { q: Branch { norm, bias: true, ..Branch::rotated() }, query_scale: scale, ..Prologue::new(rope) };
        let vectors = Vectors { weight: Some(&weight[..]), bias: Some(&bias[..]) };
        let expected = prologue.expect(Qkv::Query, (&x, &heads), vectors, &[7]).expect("a reference");
        let z: Vec<f64> = x.iter().zip(&bias).map(|(x, bias)| f64::from(*x) + f64::from(*bias)).collect();
        for head in 0..2 {
            let group = if over == NormOver::Head { &z[head * dim..][..dim] } else { &z[..] };
            let sum: f64 = group.iter().map(|z| z * z).sum();
            let mean = if kind == NormKind::Rms { sum / group.len() as f64 } else { sum };
            let n = |c: usize| {
                let w = f64::from(weight[if over == NormOver::Head { c } else { head * dim + c }]);
                let w = if one == NormWeight::OnePlusWeight { 1.0 + w } else { w };
                z[head * dim + c] / (mean + 0.25).sqrt() * w
            };
            let tau = 1.0 + 0.5 * 3f64.ln();
            // Pairs (1, 3) and (2, 4); frequencies 1 and 1 / 10.
            for (a, b, angle) in [(1, 3, 7.0f64), (2, 4, 0.7)] {
                let turned = [n(a) * angle.cos() - n(b) * angle.sin(), n(a) * angle.sin() + n(b) * angle.cos()];
                for (c, want) in [(a, turned[0]), (b, turned[1])] {
                    assert!((expected.want[head * dim + c] - 1.5 * tau * want).abs() < 1e-9);
                }
            }
            for c in [0, 5] {
                assert!((expected.want[head * dim + c] - tau * n(c)).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn the_cpu_is_its_reference_and_rounds_where_the_spec_says() {
    let mut data = Data::new(2);
    for (prologue, dim) in specs() {
        for which in ALL {
            let heads = Heads::bthd(2, 3, 2, dim).row(2 * dim + 3).at(5);
            let case = Case::new(&prologue, [2, 3], [2; 3], dim, &mut data);
            let inputs = case.inputs::<bf16>(&mut data);
            let x = data.values::<bf16>(heads.span().expect("small"));
            let vectors = Vectors {
                weight: inputs.weights[which as usize].as_deref(),
                bias: inputs.biases[which as usize].as_deref(),
            };
            let expected = prologue.expect(which, (&x, &heads), vectors, &case.positions).expect("a reference");
            let mut out = vec![bf16::ZERO; 12 * dim];
            let own = Heads::bthd(2, 3, 2, dim);
            let mut cache = vec![poison::<bf16>(); 8 * 2 * dim];
            let rows = CacheRows::Slots(&[7, -1, 0, 2, 3, 1][..]);
            let kept = HostCache { x: HostStored::Same(&mut cache), shape: Heads::bhtd(2, 2, 4, dim), rows };
            let to = Some((&mut out[..], &own));
            prologue.apply_to(which, (&x, &heads), to, vectors, &case.positions, Some(kept)).expect("applies");
            assert_close(&out, &expected.want, |at| expected.bound[at].max(1e-30));
            let mut in_place = x.clone();
            prologue.apply(which, &mut in_place, &heads, vectors, &case.positions, None).expect("applies");
            for at in 0..12 * dim {
                let (token, head, c) = (at / dim / 2, at / dim % 2, at % dim);
                let place = heads.index(token / 3, token % 3, head, c);
                assert_eq!(out[at].to_bits(), in_place[place].to_bits());
                if let Some(slot) = [Some(7), None, Some(0), Some(2), Some(3), Some(1)][token] {
                    let place = Heads::bhtd(2, 2, 4, dim).index(slot / 4, slot % 4, head, c);
                    assert_eq!(out[at].to_bits(), cache[place].to_bits());
                    cache[place] = poison();
                }
            }
            assert_eq!(bits(&cache), bits(&vec![poison::<bf16>(); cache.len()]), "another slot was written");
        }
    }
}

#[test]
fn roundings_are_where_the_spec_says() {
    // 3 / sqrt(mean) is rounded to bf16 before its weight, or its product with it alone.
    let x = [3.0, 1.0, 2.0, 0.5].map(bf16::from_f32);
    let weight = [1.3, 0.7, 1.1, 0.9].map(bf16::from_f32);
    let mean = (9.0 + 1.0 + 4.0 + 0.25) / 4.0f64;
    for (rounding, before) in [(Rounding::Once, false), (Rounding::Steps, false), (Rounding::BeforeWeight, true)] {
        let norm = Some(HeadNorm::rms(0.0));
        let q = Branch { norm, rounding, ..Branch::plain() };
        let prologue =
            Prologue { q, query_scale: QueryScale::Mistral { beta: 1.0, original_context: 1.0 }, ..Prologue::plain() };
        let mut y = x;
        let vectors = Vectors::weight(&weight[..]);
        prologue.apply(Qkv::Query, &mut y, &Heads::thd(1, 1, 4), vectors, &[2], None).expect("applies");
        let round = |value: f64| bf16::from_f32(value as f32).to_f64();
        for i in 0..4 {
            let n = x[i].to_f64() / mean.sqrt();
            let n = if before { round(n) } else { n } * weight[i].to_f64();
            let n = if rounding == Rounding::Once { n } else { round(n) };
            assert_eq!(y[i].to_f64(), round(n * (1.0 + 3f64.ln())), "{rounding:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------- kernel against reference

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn small_shapes() {
    let (gpu, mut data) = (gpu(), Data::new(3));
    for (prologue, dim) in specs() {
        for ([batch, tokens], heads) in [([1, 1], [3, 1, 1]), ([2, 5], [4, 2, 2]), ([1, 9], [7, 1, 3])] {
            let mut case = Case::new(&prologue, [batch, tokens], heads, dim, &mut data);
            case.check::<bf16>(&gpu, &mut data);
            case.heads[2] = 0;
            case.check::<f16>(&gpu, &mut data);
            case.heads = [heads[0], 0, heads[2]];
            case.check::<f32>(&gpu, &mut data);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn many_tokens_and_heads() {
    let (gpu, mut data) = (gpu(), Data::new(4));
    let all = specs();
    for (spec, [batch, tokens], heads) in [
        (0, [1, 300], [71, 1, 1]),
        (2, [3, 70], [32, 8, 8]),
        (4, [1, 130], [40, 40, 40]),
        (3, [1, 40], [16, 1, 1]),
        (16, [1, 200], [8, 8, 8]),
    ] {
        let (prologue, dim) = &all[spec];
        let case = Case::new(prologue, [batch, tokens], heads, *dim, &mut data);
        let inputs = case.inputs::<bf16>(&mut data);
        case.compare(&inputs, &case.run(&gpu, &inputs));
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn more_sequences_than_a_grid_is_deep() {
    let (gpu, mut data) = (gpu(), Data::new(14));
    let prologue = Prologue::new(Rope::new(16, 1e4));
    Case::new(&prologue, [65_600, 1], [1, 0, 0], 16, &mut data).check::<bf16>(&gpu, &mut data);
}

/// A call with weights and no cache.
fn weighed<'a>(weights: &'a [CudaSlice<bf16>; 3], ids: &'a CudaSlice<i64>) -> PrologueCall<'a, bf16> {
    let [q, k, v] = weights.each_ref().map(|weight| Vectors::weight(weight as _));
    PrologueCall { q, k, v, ..PrologueCall::at(Positions::ids(ids)) }
}

/// Queries, keys and values in one buffer, all kinds of destinations.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_buffers_in_place_and_elsewhere() {
    let (gpu, mut data) = (gpu(), Data::new(5));
    let normed = branch(rms(NormWeight::Weight));
    let prologue = Prologue { q: normed, k: normed, v: normed, ..Prologue::new(Rope::new(16, 1e4)) };
    let prologue = Prologue { v: Branch { rope: false, ..normed }, ..prologue };
    let case = Case::new(&prologue, [1, 4], [5, 2, 2], 16, &mut data);
    let inputs = case.inputs::<bf16>(&mut data);
    let want = case.run(&gpu, &inputs);
    let row = 9 * 16;
    let shapes = [0, 1, 2].map(|i| Heads::thd(4, case.heads[i], 16).row(row).at([0, 5, 7][i] * 16));
    let mut packed = vec![bf16::ZERO; 4 * row];
    for i in 0..3 {
        for at in 0..inputs.x[i].len() {
            let (token, head) = (at / 16 / case.heads[i], at / 16 % case.heads[i]);
            packed[shapes[i].index(0, token, head, at % 16)] = inputs.x[i][at];
        }
    }
    let plan = ProloguePlan::<bf16>::new(&gpu, &prologue).expect("a plan");
    let ids = gpu.stream().clone_htod(&case.positions).expect("a copy");
    let weights =
        inputs.weights.each_ref().map(|x| gpu.stream().clone_htod(x.as_ref().expect("weights")).expect("a copy"));
    let dense = |of: &[bf16], i: usize| -> Vec<bf16> {
        let of_token = |token| (0..case.heads[i] * 16).map(move |c| (token, c / 16, c % 16));
        (0..4).flat_map(of_token).map(|(t, h, c)| of[shapes[i].index(0, t, h, c)]).collect()
    };
    // In place, all three.
    let mut buffer = Guarded::new(&gpu, &packed, 0);
    let mut view = buffer.view();
    let [k, v] = [1, 2].map(|i| Projected::BesideInPlace(shapes[i]));
    plan.apply(shapes[0].of_mut(&mut view), k, v, weighed(&weights, &ids)).expect("in place");
    let got = buffer.read(&gpu);
    for i in 0..3 {
        assert_eq!(bits(&dense(&got, i)), bits(&want.out[i]));
    }
    // Queries in place, keys elsewhere, values into a cache alone.
    let mut buffer = Guarded::new(&gpu, &packed, 0);
    let mut keys = Guarded::<bf16>::poisoned(&gpu, 4 * 2 * 16, 0);
    let (mut k_cache, mut v_cache) = (Guarded::<bf16>::poisoned(&gpu, 128, 0), Guarded::<bf16>::poisoned(&gpu, 128, 0));
    let slots = gpu.stream().clone_htod(&[3i32, 2, 1, 0]).expect("a copy");
    let (mut view, mut key_view, mut k_view, mut v_view) = (buffer.view(), keys.view(), k_cache.view(), v_cache.view());
    let shape = Heads::bthd(1, 4, 2, 16);
    let cache = Cache {
        k: shape.of_mut(&mut k_view).into(),
        v: Some(shape.of_mut(&mut v_view).into()),
        rows: CacheRows::Slots(i32::ids(&slots)),
        flag: None,
    };
    let k = Projected::BesideTo(shapes[1], shape.of_mut(&mut key_view));
    let call = PrologueCall { cache: Some(cache), ..weighed(&weights, &ids) };
    plan.apply(shapes[0].of_mut(&mut view), k, shapes[2], call).expect("queries in place");
    let got = buffer.read(&gpu);
    assert_eq!(bits(&dense(&got, 0)), bits(&want.out[0]));
    for i in [1, 2] {
        assert_eq!(bits(&dense(&got, i)), bits(&dense(&packed, i)), "what is read beside stays");
    }
    assert_eq!(bits(&keys.read(&gpu)), bits(&want.out[1]));
    for (cache, want) in [(&k_cache, &want.out[1]), (&v_cache, &want.out[2])] {
        let got = cache.read(&gpu);
        for token in 0..4 {
            assert_eq!(bits(&got[(3 - token) * 32..][..32]), bits(&want[token * 32..][..32]));
        }
    }
}

// ----------------------------------------------------------------------------------------------------------------- laws

/// Without norm, bias and factor: the bits of [`RopePlan`].
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_rotation_alone_is_that_of_rope() {
    let (gpu, mut data) = (gpu(), Data::new(6));
    let moved = Rope { pairing: Pairing::Interleaved, pairing_out: Some(Pairing::Half), ..Rope::new(32, 1e4) };
    for (rope, dim) in [
        (Rope::new(128, 1e4), 128),
        (Rope { pairing: Pairing::Interleaved, attention_factor: 1.25, ..Rope::new(64, 5e5) }, 64),
        (Rope { offset: 32, ..Rope::new(64, 1e4) }, 96),
        (Rope { angles: Angles::HfCompat, ..Rope::new(64, 1e4) }, 64),
        (Rope { axes: Axes::Blocks(2), ..Rope::new(64, 100.0) }, 64),
        (Rope { axes: Axes::Sections(vec![4, 2, 2]), ..Rope::new(16, 1e4) }, 20),
        (moved, 32),
    ] {
        for tokens in [1, 6, 90] {
            let case = Case::new(&Prologue::new(rope.clone()), [1, tokens], [8, 2, 2], dim, &mut data);
            let inputs = case.inputs::<bf16>(&mut data);
            let results = case.run(&gpu, &inputs);
            let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
            let ids = gpu.stream().clone_htod(&case.positions).expect("a copy");
            let up = |x: &[bf16]| gpu.stream().clone_htod(x).expect("a copy");
            let (q, k) = (up(&inputs.x[0]), up(&inputs.x[1]));
            let (mut q_out, mut k_out) = (up(&inputs.x[0]), up(&inputs.x[1]));
            let k_to: Update<'_, bf16, Heads> = case.shape(1).of(&k).to(case.shape(1).of_mut(&mut k_out));
            plan.rotate(case.shape(0).of(&q).to(case.shape(0).of_mut(&mut q_out)), k_to, Positions::ids(&ids))
                .expect("rotates");
            let down = |x| gpu.stream().clone_dtoh(x).expect("a copy");
            assert_eq!(bits(&results.out[0]), bits(&down(&q_out)), "{rope:?}");
            assert_eq!(bits(&results.out[1]), bits(&down(&k_out)), "{rope:?}");
            assert_eq!(bits(&results.out[2]), bits(&inputs.x[2]));
        }
    }
}

/// With a rounding after each step: the bits of a bias, a norm, a rotation and a factor one after another.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn steps_are_separate_operations() {
    let (gpu, mut data) = (gpu(), Data::new(7));
    for (rope, dim) in
        [(Rope::new(64, 1e4), 64), (Rope { offset: 8, ..Rope::new(48, 1e4) }, 104), (Rope::new(6, 1e4), 10)]
    {
        for rounding in [Rounding::Steps, Rounding::BeforeWeight] {
            for rope_first in [false, true] {
                let of = |bias, norm, rope| Branch { bias, norm, rope, rounding };
                let norm = rms(NormWeight::OnePlusWeight);
                let query_scale = QueryScale::Inkling { scale: 0.1, floor: 100.0 };
                let whole = Prologue { rope: Some(rope.clone()), ..Prologue::plain() };
                let whole = Prologue { q: of(true, norm, true), query_scale, rope_first, ..whole };
                let case = Case::new(&whole, [1, 5], [3, 0, 0], dim, &mut data);
                let inputs = case.inputs::<bf16>(&mut data);
                let fused = case.run(&gpu, &inputs);
                let one = QueryScale::One;
                let mut steps = vec![
                    (of(true, None, false), one),
                    (of(false, norm, false), one),
                    (of(false, None, true), one),
                    (of(false, None, false), query_scale),
                ];
                if rope_first {
                    steps.swap(1, 2);
                }
                let mut x = inputs.x.clone();
                for (q, query_scale) in steps {
                    let step = Case { prologue: Prologue { q, query_scale, ..whole.clone() }, ..case.clone() };
                    let weights = [inputs.weights[0].clone().filter(|_| q.norm.is_some()), None, None];
                    let biases = [inputs.biases[0].clone().filter(|_| q.bias), None, None];
                    x = step.run(&gpu, &Inputs { x, weights, biases }).out;
                }
                assert_eq!(bits(&fused.out[0]), bits(&x[0]), "{whole:?}");
            }
        }
    }
}

/// The same bits alone, in a batch, and in chunks of any size.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_token_is_the_same_in_every_company() {
    let (gpu, mut data) = (gpu(), Data::new(8));
    for (prologue, dim) in [2, 4, 5, 17].map(|i| specs()[i].clone()) {
        let heads = [6, 2, 2];
        let whole = Case::new(&prologue, [1, 67], heads, dim, &mut data);
        let inputs = whole.inputs::<bf16>(&mut data);
        let want = whole.run(&gpu, &inputs);
        for chunk in [1, 3, 32] {
            let mut out: [Vec<bf16>; 3] = Default::default();
            for first in (0..67).step_by(chunk) {
                let last = (first + chunk).min(67);
                let part =
                    Case { tokens: last - first, positions: whole.positions[first..last].to_vec(), ..whole.clone() };
                let own = |i: usize| inputs.x[i][first * heads[i] * dim..last * heads[i] * dim].to_vec();
                let results = part.run(&gpu, &Inputs { x: [0, 1, 2].map(own), ..inputs.clone() });
                for (out, results) in out.iter_mut().zip(results.out) {
                    out.extend(results);
                }
            }
            for i in 0..3 {
                assert_eq!(bits(&out[i]), bits(&want.out[i]), "{chunk} tokens at a time: {prologue:?}");
            }
        }
        // 66 of them as 3 sequences.
        let batch = Case { batch: 3, tokens: 22, positions: whole.positions[..66].to_vec(), ..whole.clone() };
        let own = |i: usize| inputs.x[i][..66 * heads[i] * dim].to_vec();
        let results = batch.run(&gpu, &Inputs { x: [0, 1, 2].map(own), ..inputs.clone() });
        for i in 0..3 {
            assert_eq!(bits(&results.out[i]), bits(&want.out[i][..66 * heads[i] * dim]));
        }
    }
}

/// What a norm does not see: the order of squares is that of channels, wherever the rotary part is.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_rotary_part_does_not_change_a_norm() {
    let (gpu, mut data) = (gpu(), Data::new(9));
    let norm = rms(NormWeight::None);
    let plain = Prologue { q: Branch { norm, ..Branch::plain() }, ..Prologue::plain() };
    let interleaved = Rope { pairing: Pairing::Interleaved, ..Rope::new(32, 1e4) };
    let blocks = Rope { axes: Axes::Blocks(2), ..Rope::new(64, 1e4) };
    for dim in [96, 112, 128, 176] {
        let case = Case::new(&plain, [1, 40], [3, 0, 0], dim, &mut data);
        let case = Case { positions: vec![0; 80], ..case };
        let inputs = case.inputs::<bf16>(&mut data);
        let want = case.run(&gpu, &inputs);
        for rope in
            [Rope::new(32, 1e4), Rope { offset: 16, ..interleaved.clone() }, blocks.clone(), Rope::new(dim, 1e4)]
        {
            // At position 0 a rotation changes nothing.
            let rope = Some(rope);
            let turned = Case { prologue: Prologue { rope, q: branch(norm), ..plain.clone() }, ..case.clone() };
            turned.run(&gpu, &inputs).same_bits(&want, &turned);
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn query_scales_at_the_edges_of_their_steps() {
    let (gpu, mut data) = (gpu(), Data::new(10));
    let positions =
        [-5, 0, 8190, 8191, 8192, 16383, (1 << 31) - 1, 1 << 40, 99, 100, 101, 699, 700, 701, 127_999, 128_001];
    for query_scale in [
        QueryScale::Llama4 { scale: 0.1, floor: 8192.0 },
        QueryScale::Llama4 { scale: 0.1, floor: 700.0 },
        QueryScale::Llama4 { scale: 0.1, floor: 0.1 },
        QueryScale::Mistral { beta: 0.25, original_context: 100.0 },
        QueryScale::LogN { train_length: 700.0 },
        QueryScale::Inkling { scale: 0.1, floor: 128_000.0 },
    ] {
        let prologue = Prologue { query_scale, ..Prologue::plain() };
        let case = Case::new(&prologue, [1, positions.len()], [2, 1, 1], 8, &mut data);
        let case = Case { positions: positions.to_vec(), ..case };
        case.check::<f32>(&gpu, &mut data);
        case.check::<bf16>(&gpu, &mut data);
    }
}

// --------------------------------------------------------------------------------------------------------------- caches

/// The caches of keys and values in one buffer, by the orders that engines use; and the rows of each token.
fn layouts(pages: usize, size: usize, heads: usize, dim: usize) -> Vec<[Heads; 2]> {
    let page = size * heads * dim;
    let nhd = Heads::bthd(pages, size, heads, dim);
    let hnd = Heads::bhtd(pages, heads, size, dim);
    // Keys and values of a page side by side, and of a row.
    let paired = |of: Heads| Heads { strides: [2 * page, of.strides[1], of.strides[2]], ..of };
    let row = Heads { strides: [2 * page, 2 * heads * dim, dim], ..nhd };
    vec![
        [nhd, nhd.at(pages * page)],
        [hnd, hnd.at(pages * page)],
        [paired(nhd), paired(nhd).at(page)],
        [paired(hnd), paired(hnd).at(page)],
        [row, row.at(heads * dim)],
    ]
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn every_layout_of_a_cache() {
    let (gpu, mut data) = (gpu(), Data::new(11));
    let (prologue, _) = specs()[2].clone();
    let places = [
        Place::Slots(vec![13, -1, 0, 7, -9, 2]),
        Place::Pages(vec![2, 0, 1, 3], 2, vec![3, -1]),
        Place::Rows(vec![1, -2]),
    ];
    for (i, shapes) in layouts(4, 4, 2, 128).into_iter().enumerate() {
        for place in &places {
            let case = Case::new(&prologue, [2, 3], [4, 2, 2], 128, &mut data);
            let case = Case { cache: Some((shapes, place.clone())), ..case };
            case.check::<bf16>(&gpu, &mut data);
            if i == 1 {
                case.check::<f32>(&gpu, &mut data);
            }
            let inputs = case.inputs::<bf16>(&mut data);
            assert_eq!(case.run(&gpu, &inputs).flag, 0);
        }
    }
    // Pages of one row and of an odd number.
    for (pages, size) in [(9, 1), (3, 5)] {
        for shapes in layouts(pages, size, 2, 24) {
            let prologue = Prologue::new(Rope::new(24, 1e4));
            let case = Case::new(&prologue, [1, 6], [2, 2, 2], 24, &mut data);
            let case = Case { cache: Some((shapes, Place::Slots(vec![8, 1, 2, 3, 5, 4]))), ..case };
            case.check::<f16>(&gpu, &mut data);
        }
    }
}

/// Latent attention: queries rotated behind their other channels, the latent normed, the keys' rotary part behind it in the cache.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_latent_and_its_rotary_keys_in_one_row() {
    let (gpu, mut data) = (gpu(), Data::new(18));
    let rope = Rope { pairing: Pairing::Interleaved, offset: 32, ..Rope::new(16, 1e4) };
    for pairing_out in [None, Some(Pairing::Half)] {
        let prologue = Prologue {
            v: Branch { norm: rms(NormWeight::Weight), ..Branch::plain() },
            ..Prologue::new(Rope { pairing_out, ..rope.clone() })
        };
        let (q, kv) = (Heads::thd(3, 5, 48), Heads::thd(3, 1, 64).row(80));
        let (x, joined) = (data.values::<bf16>(3 * 5 * 48), data.values::<bf16>(3 * 80));
        let weight = data.values::<bf16>(64);
        let positions = [data.position(), data.position(), data.position()];
        let up = |x: &[bf16]| gpu.stream().clone_htod(x).expect("a copy");
        let (q_x, kv_x, w) = (up(&x), up(&joined), up(&weight));
        let mut q_out = up(&x);
        let k = Heads { dim: 16, ..kv }.at(64);
        let rows = Heads { strides: [4 * 80, 80, 80], ..Heads::bthd(2, 4, 1, 64) };
        let mut cache = Guarded::<bf16>::poisoned(&gpu, 8 * 80, 0);
        let slots = gpu.stream().clone_htod(&[6i32, 1, 3]).expect("a copy");
        let ids = gpu.stream().clone_htod(&positions).expect("a copy");
        let mut view = cache.view();
        let plan = ProloguePlan::<bf16>::new(&gpu, &prologue).expect("a plan");
        let call = PrologueCall {
            v: Vectors::weight(&w),
            cache: Some(Cache {
                k: Heads { dim: 16, ..rows }.at(64).of_mut(&mut view).into(),
                v: Some(Stored::Beside(rows)),
                rows: CacheRows::Slots(i32::ids(&slots)),
                flag: None,
            }),
            ..PrologueCall::at(Positions::ids(&ids))
        };
        plan.apply(q.of(&q_x).to(q.of_mut(&mut q_out)), k.of(&kv_x), kv.of(&kv_x), call).expect("applies");
        let q_out = gpu.stream().clone_dtoh(&q_out).expect("a copy");
        let expected = prologue.expect(Qkv::Query, (&x, &q), Vectors::none(), &positions).expect("a reference");
        assert_close(&q_out, &expected.want, |at| expected.bound[at]);
        let latent = prologue.expect(Qkv::Value, (&joined, &kv), Vectors::weight(&weight[..]), &positions);
        let keys = prologue.expect(Qkv::Key, (&joined, &k), Vectors::none(), &positions).expect("a reference");
        let (latent, got) = (latent.expect("a reference"), cache.read(&gpu));
        let (mut want, mut bound) = (vec![poison::<bf16>().to_f64(); 8 * 80], vec![0.0; 8 * 80]);
        for (token, slot) in [6, 1, 3].into_iter().enumerate() {
            for (of, dim, first) in [(&latent, 64, 0), (&keys, 16, 64)] {
                want[slot * 80 + first..][..dim].copy_from_slice(&of.want[token * dim..][..dim]);
                bound[slot * 80 + first..][..dim].copy_from_slice(&of.bound[token * dim..][..dim]);
            }
        }
        assert_close(&got, &want, |at| bound[at]);
    }
}

/// A row outside the cache raises the flag and is not written; every other row is, and nothing else.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn rows_outside_the_cache() {
    let (gpu, mut data) = (gpu(), Data::new(12));
    let (prologue, dim) = specs()[2].clone();
    let shapes = layouts(4, 4, 2, dim)[0];
    for (place, flag) in [
        (Place::Slots(vec![15, 1, 2, 3, 4, 5]), 0),
        (Place::Slots(vec![16, 1, 2, 3, 4, 5]), 1),
        (Place::Slots(vec![0, 1 << 31, 2, (1 << 32) + 3, 1 << 40, i64::MAX]), 1),
        (Place::Slots(vec![0, i64::MIN, 2, -(1 << 32), -1, -2]), 0),
        (Place::Pages(vec![0, 1, 2, 3], 2, vec![5, 0]), 0),
        (Place::Pages(vec![0, 1, 2, 3], 2, vec![6, 0]), 1),
        (Place::Pages(vec![0, 4, 2, 3], 2, vec![5, 0]), 1),
        (Place::Pages(vec![0, -1, 2, 1 << 32], 2, vec![4, 3]), 1),
        (Place::Pages(vec![0, 1, 2, 3], 2, vec![1 << 33, 0]), 1),
        (Place::Rows(vec![1, 0]), 0),
        (Place::Rows(vec![2, 0]), 1),
        (Place::Rows(vec![1 << 40, 1]), 1),
    ] {
        let case = Case::new(&prologue, [2, 3], [2, 2, 2], dim, &mut data);
        let case = Case { cache: Some((shapes, place.clone())), ..case };
        let inputs = case.inputs::<bf16>(&mut data);
        let results = case.run(&gpu, &inputs);
        assert_eq!(results.flag, flag, "{place:?}");
        case.compare(&inputs, &results);
        let one = Case { shift: 1, ..case.clone() };
        one.run(&gpu, &inputs).same_bits(&results, &one);
        // The CPU refuses it, and takes what is inside.
        let mut cache = vec![bf16::ZERO; shapes[0].span().expect("small")];
        let host = HostCache { x: HostStored::Same(&mut cache), shape: shapes[0], rows: place.host() };
        let weight = inputs.weights[1].as_deref().map_or(Vectors::none(), Vectors::weight);
        let done =
            prologue.apply_to(Qkv::Key, (&inputs.x[1], &case.shape(1)), None, weight, &case.positions, Some(host));
        assert_eq!(done.is_err(), flag == 1, "{done:?}");
        if flag == 1 {
            assert!(done.expect_err("refused").to_string().contains("lies outside the cache"));
        }
    }
}

/// Sequences packed into one batch, whose rows go to pages.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_into_pages() {
    let (gpu, mut data) = (gpu(), Data::new(13));
    let (prologue, dim) = specs()[0].clone();
    let plan = ProloguePlan::<bf16>::new(&gpu, &prologue).expect("a plan");
    let heads = Heads::thd(7, 2, dim);
    let x = data.values::<bf16>(7 * 2 * dim);
    let up = |x: &[i32]| gpu.stream().clone_htod(x).expect("a copy");
    // Sequences of 3, 0 and 4 tokens behind 2, 9 and 3 that are cached.
    let (indptr, first, table) = (up(&[0, 3, 3, 7]), up(&[2, 9, 3]), up(&[5, 1, 0, 2, 4, 3]));
    let k = gpu.stream().clone_htod(&x).expect("a copy");
    let pages = Heads::bthd(6, 4, 2, dim);
    let mut cache = Guarded::<bf16>::poisoned(&gpu, pages.span().expect("small"), 0);
    let packed = Positions::packed(&indptr, 3).starting_at(&first);
    let mut view = cache.view();
    let call = PrologueCall {
        cache: Some(Cache {
            k: pages.of_mut(&mut view).into(),
            v: None,
            rows: CacheRows::Pages { table: i32::ids(&table), width: 2, rows: packed },
            flag: None,
        }),
        ..PrologueCall::at(packed)
    };
    plan.apply(Projected::None, heads.of(&k), Projected::None, call).expect("applies");
    let got = cache.read(&gpu);
    let at = [2i64, 3, 4, 3, 4, 5, 6];
    let expected = prologue.expect(Qkv::Key, (&x, &heads), Vectors::none(), &at).expect("a reference");
    let mut want: Vec<(f64, f64)> = vec![(poison::<bf16>().to_f64(), 0.0); got.len()];
    for (token, slot) in [5 * 4 + 2, 5 * 4 + 3, 4, 4 * 4 + 3, 3 * 4, 3 * 4 + 1, 3 * 4 + 2].into_iter().enumerate() {
        for c in 0..2 * dim {
            want[slot * 2 * dim + c] = (expected.want[token * 2 * dim + c], expected.bound[token * 2 * dim + c]);
        }
    }
    let values: Vec<f64> = want.iter().map(|want| want.0).collect();
    assert_close(&got, &values, |i| want[i].1);
    // On the CPU.
    let mut host = vec![poison::<bf16>(); got.len()];
    let (indptr, first, table) = ([0i64, 3, 3, 7], [2i64, 9, 3], [5i64, 1, 0, 2, 4, 3]);
    let packed = Positions::packed(&indptr, 3).starting_at(&first);
    let rows = CacheRows::Pages { table: AsIds::<&[i64]>::into_ids(&table), width: 2, rows: packed };
    let cache = HostCache { x: HostStored::Same(&mut host), shape: pages, rows };
    prologue.apply_to(Qkv::Key, (&x, &heads), None, Vectors::none(), packed, Some(cache)).expect("applies");
    assert_close(&host, &values, |i| want[i].1);
}

// ---------------------------------------------------------------------------------------------------------------- codes

/// What codes of a test are multiplied by.
#[derive(Clone, Debug)]
enum Scales {
    Given(Vec<f32>),
    Dynamic,
    Inline,
}

/// Codes of keys in pages, and of queries, with their scales.
struct Coded {
    k: Vec<u8>,
    k_scales: Vec<f32>,
    q: Vec<u8>,
    flag: u32,
}

/// Pages of 3 rows, heads before rows, and the slots of 4 tokens.
fn coded_cache(case: &Case, tail: usize) -> (Heads, [i64; 4]) {
    (Heads::bhtd(2, case.heads[1], 3, case.dim + tail), [4, 0, -1, 3])
}

/// Runs a case of 4 tokens into codes of keys, and of queries by one scale.
#[track_caller]
fn run_coded<T: Scalar>(
    gpu: &Gpu,
    case: &Case,
    inputs: &Inputs<T>,
    code: Code8,
    scales: &Scales,
    shift: usize,
) -> Coded {
    let plan = ProloguePlan::<T>::new(gpu, &case.prologue).expect("a plan");
    let stream = gpu.stream();
    let up = |x: &Vec<T>| stream.clone_htod(x).expect("a copy");
    let x = [0, 1].map(|i| if inputs.x[i].is_empty() { up(&inputs.x[1]) } else { up(&inputs.x[i]) });
    let weights = inputs.weights.each_ref().map(|x| x.as_ref().map(up));
    let ids = stream.clone_htod(&case.positions).expect("a copy");
    let (shape, slots) = coded_cache(case, if matches!(scales, Scales::Inline) { 16 } else { 0 });
    let slots = stream.clone_htod(&slots).expect("a copy");
    let scale_shape = Heads { strides: [7 * case.heads[1], case.heads[1], 1], ..Heads::bthd(2, 3, case.heads[1], 1) };
    let mut k = stream.clone_htod(&vec![0xa5u8; shape.span().expect("small") + shift]).expect("a copy");
    let mut q = stream.clone_htod(&vec![0xa5u8; inputs.x[0].len().max(1)]).expect("a copy");
    let mut k_scales = stream.clone_htod(&vec![-1f32; scale_shape.span().expect("small")]).expect("a copy");
    let given = match scales {
        Scales::Given(given) => stream.clone_htod(given).expect("a copy"),
        _ => stream.clone_htod(&[0.5f32]).expect("a copy"),
    };
    let mut flag = stream.clone_htod(&[0u32]).expect("a copy");
    {
        let scale = match scales {
            Scales::Given(_) => CodeScale::Given(&given),
            Scales::Dynamic => CodeScale::Dynamic(scale_shape.of_mut(&mut k_scales)),
            Scales::Inline => CodeScale::Inline,
        };
        let vectors = |i: usize| Vectors { weight: weights[i].as_ref().map(|x| x as _), bias: None };
        let call = PrologueCall {
            q: vectors(0),
            k: vectors(1),
            cache: Some(Cache {
                k: Codes { x: shape.at(shift).of_mut(&mut k), code, scale }.into(),
                v: None,
                rows: CacheRows::Slots(i64::ids(&slots)),
                flag: Some(&mut flag),
            }),
            q_codes: (case.heads[0] > 0).then(|| Codes {
                x: case.shape(0).of_mut(&mut q),
                code,
                scale: CodeScale::Given(&given),
            }),
            ..PrologueCall::at(Positions::ids(&ids))
        };
        let queries = if case.heads[0] > 0 { case.shape(0).of(&x[0]).into() } else { Projected::None };
        plan.apply(queries, case.shape(1).of(&x[1]), Projected::None, call).expect("the call is made");
    }
    let flag = stream.clone_dtoh(&flag).expect("a copy")[0];
    let k = stream.clone_dtoh(&k).expect("a copy");
    assert!(k[..shift].iter().all(|&byte| byte == 0xa5));
    let k_scales = stream.clone_dtoh(&k_scales).expect("a copy");
    Coded { k: k[shift..].to_vec(), k_scales, q: stream.clone_dtoh(&q).expect("a copy"), flag }
}

/// Every code, its neighbours and ties, NaN and infinities: the device's are those of the CPU.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn all_codes_are_those_of_the_cpu() {
    let gpu = gpu();
    for code in [Code8::E4m3, Code8::E5m2, Code8::Int8] {
        let mut values =
            vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 464.0, 465.0, 61_440.0, 1e-45, -1e-39];
        let mut codes: Vec<f32> = (0..=255).map(|bits| code.decode(bits)).filter(|x| x.is_finite()).collect();
        codes.sort_by(f32::total_cmp);
        for pair in codes.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            values.extend([pair[0], pair[0].next_up(), middle.next_down(), middle, middle.next_up(), pair[1]]);
        }
        values.resize(values.len().next_multiple_of(4 * 64), 0.0);
        let (dim, heads) = (64, values.len() / 256);
        let case = Case::new(&Prologue::plain(), [1, 4], [0, heads, 0], dim, &mut Data::new(1));
        let inputs =
            Inputs { x: [vec![], values.clone(), vec![]], weights: [None, None, None], biases: [None, None, None] };
        for shift in [0, 1] {
            let got = run_coded(&gpu, &case, &inputs, code, &Scales::Given(vec![1.0]), shift);
            let (shape, slots) = coded_cache(&case, 0);
            for (at, &value) in values.iter().enumerate() {
                let Ok(slot) = usize::try_from(slots[at / dim / heads]) else { continue };
                let to = shape.index(slot / 3, slot % 3, at / dim % heads, at % dim);
                assert_eq!(got.k[to], code.encode(value), "{code:?} of {value:e}");
            }
        }
    }
}

/// Scales of all kinds: codes, scales and untouched bytes are those of the CPU, where nothing else is computed.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn scales_are_those_of_the_cpu() {
    let (gpu, mut data) = (gpu(), Data::new(15));
    for (dim, heads) in [(64, 2), (24, 3), (20, 2), (576, 1)] {
        let case = Case::new(&Prologue::plain(), [1, 4], [heads, heads, 0], dim, &mut data);
        let mut inputs = case.inputs::<bf16>(&mut data);
        // A row of zeros, one of tiny numbers, and one huge element.
        inputs.x[1][..dim].fill(bf16::ZERO);
        inputs.x[1][heads * dim..][..dim].fill(bf16::from_f32(1e-38));
        inputs.x[1][3 * heads * dim + 5] = bf16::from_f32(-1e30);
        let per_head: Vec<f32> = (0..heads).map(|head| 0.01 * (head + 1) as f32).collect();
        for code in [Code8::E4m3, Code8::E5m2, Code8::Int8] {
            for scales in [Scales::Given(vec![0.3]), Scales::Given(per_head.clone()), Scales::Dynamic, Scales::Inline] {
                let tail = if matches!(scales, Scales::Inline) { 16 } else { 0 };
                let (shape, slots) = coded_cache(&case, tail);
                let scale_shape = Heads { strides: [7 * heads, heads, 1], ..Heads::bthd(2, 3, heads, 1) };
                let mut want = vec![0xa5u8; shape.span().expect("small")];
                let mut want_scales = vec![-1f32; scale_shape.span().expect("small")];
                let scale = match &scales {
                    Scales::Given(given) => HostScale::Given(given),
                    Scales::Dynamic => HostScale::Dynamic(&mut want_scales, scale_shape),
                    Scales::Inline => HostScale::Inline,
                };
                let x = HostStored::Codes { x: &mut want, code, scale };
                let cache = Some(HostCache { x, shape, rows: CacheRows::Slots(&slots[..]) });
                let from = (&inputs.x[1][..], &case.shape(1));
                case.prologue.apply_to(Qkv::Key, from, None, Vectors::none(), &case.positions, cache).expect("applies");
                let shifts: &[usize] = if tail == 0 { &[0, 1] } else { &[0, 4] };
                for &shift in shifts {
                    let got = run_coded(&gpu, &case, &inputs, code, &scales, shift);
                    assert_eq!(got.k, want, "{code:?} {scales:?} of {dim}");
                    assert_eq!(bits(&got.k_scales), bits(&want_scales), "{code:?} {scales:?} of {dim}");
                    assert_eq!(got.flag, 0);
                    let given = if let Scales::Given(given) = &scales { given.clone() } else { vec![0.5] };
                    for (at, &byte) in got.q.iter().enumerate() {
                        let scale = given[if given.len() == 1 { 0 } else { at / dim % heads }];
                        let value = inputs.x[0][at].to_f64() as f32;
                        assert_eq!(byte, code.encode(value * (1.0 / scale)), "{code:?} {scales:?} of queries");
                    }
                }
            }
        }
    }
}

/// Codes of normed and rotated heads are within half a step and the error before them.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn codes_are_within_their_bound() {
    let (gpu, mut data) = (gpu(), Data::new(16));
    for (prologue, dim) in [0, 2, 5, 8, 10, 14].map(|spec| specs()[spec].clone()) {
        for rounding in [Rounding::Once, Rounding::Steps] {
            let k = Branch { rounding, ..prologue.k };
            let prologue = Prologue { q: Branch::plain(), k, ..prologue.clone() };
            let case = Case::new(&prologue, [1, 4], [1, 2, 0], dim, &mut data);
            let inputs = case.inputs::<bf16>(&mut data);
            let vectors = inputs.weights[1].as_deref().map_or(Vectors::none(), Vectors::weight);
            let from = (&inputs.x[1][..], &case.shape(1));
            let expected = prologue.expect(Qkv::Key, from, vectors, &case.positions).expect("a reference");
            let (shape, slots) = coded_cache(&case, 0);
            for code in [Code8::E4m3, Code8::E5m2, Code8::Int8] {
                let got = run_coded(&gpu, &case, &inputs, code, &Scales::Dynamic, 0);
                for (at, (want, bound)) in expected.want.iter().zip(&expected.bound).enumerate() {
                    let Ok(slot) = usize::try_from(slots[at / dim / 2]) else { continue };
                    let head = at / dim % 2;
                    let scale = f64::from(got.k_scales[slot / 3 * 14 + slot % 3 * 2 + head]);
                    let largest = expected.want[at / dim * dim..][..dim].iter().fold(0f64, |most, x| most.max(x.abs()));
                    assert!((scale * f64::from(code.most()) - largest).abs() <= 0.01 * largest);
                    let byte = got.k[shape.index(slot / 3, slot % 3, head, at % dim)];
                    let off = (scale * f64::from(code.decode(byte)) - want).abs();
                    let error = bound / scale + (want / scale).abs() * 2f64.powi(-22);
                    assert!(off <= scale * code.error_bound(want / scale, error), "{off} at {at}: {prologue:?}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn scales_that_are_none_raise_the_flag() {
    let (gpu, mut data) = (gpu(), Data::new(17));
    let case = Case::new(&Prologue::plain(), [1, 4], [1, 2, 0], 16, &mut data);
    let inputs = case.inputs::<bf16>(&mut data);
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45, 3e38] {
        for shift in [0, 1] {
            let got = run_coded(&gpu, &case, &inputs, Code8::E4m3, &Scales::Given(vec![bad]), shift);
            // The inverse of 3e38 is below the normal range, and yet a number.
            assert_eq!(got.flag, u32::from(bad != 3e38), "{bad}");
            assert!(got.k.iter().all(|&byte| byte & 0x7f == 0 || byte == 0xa5));
        }
        let mut codes = vec![0u8; 64];
        let x = HostStored::Codes { x: &mut codes, code: Code8::E4m3, scale: HostScale::Given(&[bad]) };
        let cache = HostCache { x, shape: Heads::bthd(1, 4, 2, 8), rows: CacheRows::Slots(&[0]) };
        let done = Prologue::plain().apply_to(
            Qkv::Key,
            (&[1f32; 16], &Heads::thd(1, 2, 8)),
            None,
            Vectors::none(),
            Positions::counted(),
            Some(cache),
        );
        assert_eq!(done.is_err(), bad != 3e38, "{bad}");
    }
}

// ------------------------------------------------------------------------------------------------------------- refusals

fn call<'a, T>(cache: Cache<'a, T>) -> PrologueCall<'a, T> {
    PrologueCall { cache: Some(cache), ..PrologueCall::at(Positions::counted()) }
}

#[track_caller]
fn refused(result: posenc::Result<()>, message: &str) {
    assert_eq!(result.expect_err("refused").to_string(), message);
}

#[test]
fn specs_outside_the_law_are_refused() {
    let plain = Prologue::new(Rope::new(16, 1e4));
    refused(Prologue { rope: None, ..plain.clone() }.check(), "q is to be rotated, the prologue has no rope");
    let k = Branch { norm: Some(HeadNorm::rms(-1e-6)), ..Branch::rotated() };
    refused(Prologue { k, ..plain.clone() }.check(), "eps of k is -0.000001, it must be finite and at least 0");
    refused(Prologue::new(Rope::new(3, 1e4)).check(), "rotary is 3, it must be even and at least 2");
    refused(Prologue::new(Rope::new(1026, 1e4)).check(), "rotary is 1026, a prologue rotates at most 1024 channels");
    let mixed = posenc::rotate::Mixed { axes: 1, heads: 1, frequencies: vec![1.0; 8] };
    let rope = Some(Rope { angles: Angles::Mixed(mixed), ..Rope::new(16, 1e4) });
    refused(
        Prologue { rope, ..plain.clone() }.check(),
        "mixed angles have frequencies of their own for each head, a prologue has one set",
    );
    let query_scale = QueryScale::Llama4 { scale: 0.1, floor: 0.0 };
    refused(
        Prologue { query_scale, ..plain }.check(),
        "the Llama-4 query scale's floor is 0, it must be finite and above 0",
    );
}

#[test]
fn calls_that_do_not_go_together_are_refused_on_the_cpu() {
    let norm = branch(Some(HeadNorm::rms(1e-6)));
    let prologue = Prologue { q: norm, ..Prologue::new(Rope::new(16, 1e4)) };
    let (mut x, weight) = (vec![1f32; 2 * 32], vec![1f32; 16]);
    let heads = Heads::thd(2, 2, 16);
    let mut call =
        |heads: &Heads, which, vectors| prologue.apply(which, &mut x, heads, vectors, Positions::counted(), None);
    let weights = Vectors::weight(&weight[..]);
    refused(call(&heads, Qkv::Query, Vectors::none()), "q needs a weight of 16 elements, there is none");
    refused(
        call(&heads, Qkv::Query, Vectors::weight(&weight[..15])),
        "the weight of q holds 15 elements, 16 are needed",
    );
    refused(call(&heads, Qkv::Key, weights), "there is a weight of k, the prologue has none");
    let bias = Vectors { bias: Some(&weight[..]), ..weights };
    refused(call(&heads, Qkv::Query, bias), "there is a bias of q, the prologue has none");
    refused(
        call(&Heads::thd(2, 2, 14), Qkv::Key, Vectors::none()),
        "the rotary part ends at channel 16 (16 from 0), a head has 14",
    );
    refused(call(&Heads::thd(3, 2, 16), Qkv::Key, Vectors::none()), "k holds 64 elements, the shape needs 96");
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn calls_that_do_not_go_together_are_refused() {
    let gpu = gpu();
    let plan = ProloguePlan::<bf16>::new(&gpu, &Prologue::new(Rope::new(16, 1e4))).expect("a plan");
    let mut q = gpu.stream().alloc_zeros::<bf16>(256).expect("memory");
    let k = gpu.stream().alloc_zeros::<bf16>(256).expect("memory");
    let mut cache = gpu.stream().alloc_zeros::<bf16>(256).expect("memory");
    let heads = Heads::thd(2, 2, 16);
    refused(
        plan.apply(Projected::None, Projected::None, Projected::None, Positions::counted()),
        "there are no queries, keys or values",
    );
    refused(
        plan.apply(Projected::None, heads.of(&k), Projected::None, Positions::counted()),
        "k is read and goes nowhere",
    );
    refused(
        plan.apply(Projected::None, heads, Projected::None, Positions::counted()),
        "k lies in the buffer of q, which then is changed in place",
    );
    refused(
        plan.apply(heads.of_mut(&mut q), Heads::thd(3, 2, 16).of(&k), Projected::None, Positions::counted()),
        "q has 2 tokens and k 3, they must be equal",
    );
    refused(
        plan.apply(heads.of_mut(&mut q), Projected::BesideInPlace(heads.at(32)), Projected::None, Positions::counted()),
        "q (offset 0, strides [64, 32, 16]) and k (offset 32, strides [64, 32, 16]) may overlap in one buffer",
    );
    let same = alias::<bf16, bf16>(&q, 0, 256);
    refused(
        plan.apply(
            heads.of(&same).to(heads.at(16).of_mut(&mut q)),
            Projected::None,
            Projected::None,
            Positions::counted(),
        ),
        "q (offset 0, strides [64, 32, 16]) and q_out (offset 16, strides [64, 32, 16]) may overlap in one buffer",
    );
    let slots = gpu.stream().clone_htod(&[0i32, 1]).expect("a copy");
    let mut with = |shape: Heads, rows| {
        let cache = Cache { k: shape.of_mut(&mut cache).into(), v: None, rows, flag: None };
        plan.apply(
            Projected::None,
            heads.of(&k),
            Projected::None,
            PrologueCall { cache: Some(cache), ..PrologueCall::at(Positions::counted()) },
        )
    };
    refused(
        with(Heads::bthd(2, 2, 1, 16), CacheRows::Slots(i32::ids(&slots))),
        "the cache of k has 1 heads and k 2, they must be equal",
    );
    refused(
        with(Heads::bthd(2, 2, 2, 8), CacheRows::Slots(i32::ids(&slots))),
        "the cache of k has 8 channels and k 16, they must be equal",
    );
    refused(
        with(Heads::bthd(2, 0, 2, 16), CacheRows::Slots(i32::ids(&slots))),
        "the cache has 2 pages of 0 rows, both must be at least 1",
    );
    refused(
        with(Heads::bthd(5, 2, 2, 16), CacheRows::Slots(i32::ids(&slots))),
        "the cache of keys holds 256 elements, the shape needs 320",
    );
    let crossed = Heads { strides: [64, 16, 16], ..Heads::bthd(2, 2, 2, 16) };
    refused(
        with(crossed, CacheRows::Slots(i32::ids(&slots))),
        "the cache of keys is written and its elements overlap: a dimension of 2 has stride 16, and 32 elements lie below it",
    );
    let three = Heads::thd(3, 1, 16);
    let mut own = gpu.stream().alloc_zeros::<bf16>(256).expect("memory");
    let short = Cache {
        k: Heads::bthd(2, 2, 1, 16).of_mut(&mut own).into(),
        v: None,
        rows: CacheRows::Slots(i32::ids(&slots)),
        flag: None,
    };
    refused(
        plan.apply(Projected::None, three.of(&k), Projected::None, call(short)),
        "slots holds 2 elements, the shape needs 3",
    );
    let pages = CacheRows::Pages { table: i32::ids(&slots), width: 3, rows: Positions::counted() };
    let short = Cache { k: Heads::bthd(2, 2, 1, 16).of_mut(&mut own).into(), v: None, rows: pages, flag: None };
    refused(
        plan.apply(Projected::None, three.of(&k), Projected::None, call(short)),
        "the table of pages holds 2 elements, the shape needs 3",
    );
    let rows = Cache {
        k: Heads::bthd(1, 2, 1, 16).of_mut(&mut own).into(),
        v: None,
        rows: CacheRows::Rows(Positions::counted()),
        flag: None,
    };
    refused(
        plan.apply(Projected::None, Heads::bthd(2, 2, 1, 16).of(&k), Projected::None, call(rows)),
        "the cache has 1 pages, one is needed for each of 2 sequences",
    );
    let mut codes = gpu.stream().alloc_zeros::<u8>(256).expect("memory");
    let coded = Codes { x: Heads::bthd(2, 2, 2, 16).of_mut(&mut codes), code: Code8::E4m3, scale: CodeScale::Inline };
    let inline = Cache { k: coded.into(), v: None, rows: CacheRows::Slots(i32::ids(&slots)), flag: None };
    refused(
        plan.apply(Projected::None, heads.of(&k), Projected::None, call(inline)),
        "the cache of k has 16 bytes a head, 16 codes and 16 for their scale are needed",
    );
    let given = gpu.stream().alloc_zeros::<f32>(3).expect("memory");
    let scale = CodeScale::Given(&given);
    let coded = Codes { x: Heads::bthd(2, 2, 2, 16).of_mut(&mut codes), code: Code8::E4m3, scale };
    let three = Cache { k: coded.into(), v: None, rows: CacheRows::Slots(i32::ids(&slots)), flag: None };
    refused(
        plan.apply(Projected::None, heads.of(&k), Projected::None, call(three)),
        "there are 3 scales of k, there must be 1 or one for each of 2 heads",
    );
    let one = gpu.stream().alloc_zeros::<f32>(1).expect("memory");
    let scale = CodeScale::Given(&one);
    let coded = Codes { x: Heads::bthd(2, 2, 2, 16).of_mut(&mut codes), code: Code8::E4m3, scale };
    let v = Some(Stored::Beside(Heads::bthd(2, 2, 2, 16)));
    let beside = Cache { k: coded.into(), v, rows: CacheRows::Slots(i32::ids(&slots)), flag: None };
    refused(
        plan.apply(Projected::None, heads.of(&k), heads.of(&k), call(beside)),
        "the cache of values lies in the buffer of a cache of keys, which holds no elements",
    );
    let other = Cache {
        k: Heads::bthd(2, 2, 2, 16).of_mut(&mut own).into(),
        v: None,
        rows: CacheRows::Slots(i32::ids(&slots)),
        flag: None,
    };
    refused(
        plan.apply(heads.of_mut(&mut q), Projected::None, Projected::None, call(other)),
        "there is a cache of k and no k",
    );
}

//! Mistakes that engines made, made here by the crate and by loops of this file, and found by name.

use posenc::half::{bf16, f16};
use posenc::rotate::{Angles, Axes, Mixed, Side, Yarn};
use posenc::{Direction, Heads, Pairing, Rope, Scalar, Scaling, XPos};

use super::sample::{Layout, Sample};
use super::{Explained, explain_sample};
use crate::tensors::{Dtype, Element, Tensor};

/// Numbers of one case.
struct Setting {
    batch: usize,
    row: usize,
    heads: usize,
    dim: usize,
    rope: Rope,
    /// the positions that `explain` is told
    given: Vec<Vec<i64>>,
    dtype: Dtype,
}

/// What is done instead of the setting's rotation.
struct Mutation {
    name: &'static str,
    rope: Rope,
    positions: Vec<Vec<i64>>,
    heads: Vec<usize>,
    times: usize,
    direction: Direction,
    /// cosines and sines are rounded to it, by loops of this file
    table: Option<Dtype>,
    /// what is done beside the crate's rotation
    twist: Twist,
    /// a property and its value, or a sentence
    want: Vec<(&'static str, String)>,
}

/// What the crate's rotation does not do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Twist {
    None,
    /// these heads stay as they were, from the first given on
    HeadsFrom(usize),
    /// tokens from this one on stay as they were
    TokensFrom(usize),
    /// everything is multiplied
    Times(f64),
    /// lengths by xPos
    XPos(Side),
    /// the second channel reads what the first has become
    InPlace,
    /// frequencies are rounded to bf16
    NarrowRates,
    /// tokens from this one on are rotated by another base
    BaseFrom(usize, f64),
}

impl Mutation {
    fn new(name: &'static str, setting: &Setting) -> Self {
        Self {
            name,
            rope: setting.rope.clone(),
            positions: setting.given.clone(),
            heads: (0..setting.heads).collect(),
            times: 1,
            direction: Direction::Forward,
            table: None,
            twist: Twist::None,
            want: Vec::new(),
        }
    }

    fn wants(mut self, property: &'static str, value: impl Into<String>) -> Self {
        self.want.push((property, value.into()));
        self
    }
}

fn random(rng: &mut fastrand::Rng) -> f64 {
    // A sum of uniform numbers is near enough to a normal one.
    (0..4).map(|_| rng.f64() - 0.5).sum::<f64>() * 1.7
}

/// Rotates with the crate.
fn rotated<T: Scalar>(x: &[T], setting: &Setting, mutation: &Mutation) -> Vec<T> {
    let &Setting { batch, row, heads, dim, .. } = setting;
    let shape = Heads::bthd(batch, row, heads, dim);
    let mut from: Vec<T> = Vec::with_capacity(x.len());
    for token in 0..batch * row {
        for &head in &mutation.heads {
            let begin = (token * heads + head) * dim;
            from.extend_from_slice(&x[begin..begin + dim]);
        }
    }
    let positions = mutation.positions.concat();
    for _ in 0..mutation.times {
        let mut out = vec![T::from_f64(0.0); x.len()];
        match mutation.table {
            None => {
                let (from, to) = ((&from[..], &shape), (&mut out[..], &shape));
                mutation.rope.rotate_to(from, to, &positions[..], mutation.direction).expect("a valid case");
            }
            Some(table) => {
                let rope = &mutation.rope;
                let (n, rotary) = (rope.pairs(), rope.rotary);
                let round = |value: f64| match table {
                    Dtype::Bf16 => f64::from(bf16::from_f64(value)),
                    _ => f64::from(f16::from_f64(value)),
                };
                out.copy_from_slice(&from);
                for (token, &at) in positions.iter().enumerate() {
                    for pair in 0..n {
                        let angle = rope.angle(at, pair);
                        let (sin, cos) = (round(angle.sin()), round(angle.cos()));
                        for head in 0..heads {
                            let begin = (token * heads + head) * dim + rope.offset;
                            let (a, b) = rope.pairing.channels(pair, rotary);
                            let (p, q) = (from[begin + a].to_f64(), from[begin + b].to_f64());
                            out[begin + a] = T::from_f64(p * cos - q * sin);
                            out[begin + b] = T::from_f64(p * sin + q * cos);
                        }
                    }
                }
            }
        }
        from = out;
    }
    twisted(x, from, setting, mutation)
}

/// What the mutation does to the rotated tensor, by loops of this file.
fn twisted<T: Scalar>(x: &[T], mut y: Vec<T>, setting: &Setting, mutation: &Mutation) -> Vec<T> {
    let &Setting { row, heads, dim, .. } = setting;
    let rope = &mutation.rope;
    let shape = Heads::bthd(setting.batch, row, heads, dim);
    match mutation.twist {
        Twist::None => {}
        Twist::HeadsFrom(first) => {
            for at in (0..x.len()).filter(|at| at / dim % heads >= first) {
                y[at] = x[at];
            }
        }
        Twist::TokensFrom(first) => {
            for at in (0..x.len()).filter(|at| at / dim / heads >= first) {
                y[at] = x[at];
            }
        }
        Twist::Times(by) => y.iter_mut().for_each(|y| *y = T::from_f64(y.to_f64() * by)),
        Twist::XPos(side) => {
            let xpos = XPos::new(rope.clone());
            y = x.to_vec();
            xpos.rotate(&mut y, &shape, &mutation.positions[0], side, mutation.direction).expect("a valid case");
        }
        Twist::InPlace => {
            for (token, &at) in mutation.positions[0].iter().enumerate() {
                for (head, pair) in (0..heads).flat_map(|head| (0..rope.pairs()).map(move |pair| (head, pair))) {
                    let begin = (token * heads + head) * dim + rope.offset;
                    let (a, b) = rope.pairing.channels(pair, rope.rotary);
                    let (sin, cos) = rope.angle(at, pair).sin_cos();
                    let first = T::from_f64(x[begin + a].to_f64() * cos - x[begin + b].to_f64() * sin);
                    let second = T::from_f64(x[begin + b].to_f64() * cos + first.to_f64() * sin);
                    (y[begin + a], y[begin + b]) = (first, second);
                }
            }
        }
        Twist::NarrowRates => {
            let narrow = |pair: usize| f64::from(bf16::from_f64(rope.frequency(pair)));
            let divisors = (0..rope.pairs()).map(|pair| rope.frequency(pair) / narrow(pair)).collect();
            let rope = Rope { scaling: Scaling::Divisors(divisors), ..rope.clone() };
            y = x.to_vec();
            rope.rotate(&mut y, &shape, &mutation.positions[0], mutation.direction).expect("a valid case");
        }
        Twist::BaseFrom(first, base) => {
            let mut other = x.to_vec();
            let rope = Rope { base, ..rope.clone() };
            rope.rotate(&mut other, &shape, &mutation.positions[0], mutation.direction).expect("a valid case");
            for at in (0..x.len()).filter(|at| at / dim / heads >= first) {
                y[at] = other[at];
            }
        }
    }
    y
}

/// Explains one case, and says how visible the mutation was: elements that it changed.
fn explained<T: Scalar + Element>(
    setting: &Setting,
    mutation: &Mutation,
    rng: &mut fastrand::Rng,
) -> (Explained, usize) {
    let &Setting { batch, row, heads, dim, .. } = setting;
    let x: Vec<T> = (0..batch * row * heads * dim).map(|_| T::from_f64(random(rng))).collect();
    let y = rotated(&x, setting, mutation);
    let plain = rotated(&x, setting, &Mutation::new("none", setting));
    let changed = y
        .iter()
        .zip(&plain)
        .filter(|(a, b)| (a.to_f64() - b.to_f64()).abs() > 8.0 * T::ROUNDOFF * (a.to_f64().abs() + 0.1))
        .count();
    let shape = [batch, row, heads, dim];
    let (x, y) = (Tensor::new(&shape, &x), Tensor::new(&shape, &y));
    let sample = Sample::new(&x, &y, Layout::Bthd, setting.given.clone()).expect("a sample");
    (explain_sample("q", &shape, Layout::Bthd, &sample, None, 1.0), changed)
}

fn pick<T: Clone>(rng: &mut fastrand::Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())].clone()
}

const PAIRINGS: [(Pairing, &str); 2] = [(Pairing::Half, "halves"), (Pairing::Interleaved, "interleaved")];

fn setting(rng: &mut fastrand::Rng) -> Setting {
    let dim = pick(rng, &[64, 128, 80, 96]);
    let rotary = pick(rng, &[dim, dim, dim / 2]);
    let (batch, row) = (pick(rng, &[1, 1, 2]), pick(rng, &[48, 100, 160]));
    let start = pick(rng, &[0, 0, 1, 300, 5000]);
    let rope = Rope {
        pairing: pick(rng, &PAIRINGS).0,
        offset: if rotary < dim && rng.bool() { dim - rotary } else { 0 },
        ..Rope::new(rotary, pick(rng, &[1e4, 5e5, 1e6, 5e6]))
    };
    let given = vec![(0..batch * row).map(|token| start + (token % row) as i64).collect()];
    let dtype = pick(rng, &[Dtype::F32, Dtype::F32, Dtype::Bf16, Dtype::F16]);
    Setting { batch, row, heads: pick(rng, &[2, 4, 6]), dim, rope, given, dtype }
}

/// One case of each kind, by its number.
fn mutation(kind: usize, setting: &mut Setting, rng: &mut fastrand::Rng) -> Mutation {
    let each = |list: &[i64], f: &dyn Fn(i64) -> i64| vec![list.iter().map(|&it| f(it)).collect::<Vec<i64>>()];
    let heads = setting.heads;
    match kind {
        0 => Mutation { direction: Direction::Inverse, ..Mutation::new("inverse", setting) }
            .wants("direction", "inverse"),
        1 => {
            let mut it = Mutation::new("other pairing", setting);
            let (pairing, name) = PAIRINGS[usize::from(it.rope.pairing == Pairing::Half)];
            it.rope.pairing = pairing;
            it.wants("pairing", name)
        }
        2 => {
            let mut it = Mutation::new("other base", setting);
            it.rope.base = pick(rng, &[1.5e5, 8e6, 5e4, 1e7]);
            let base = super::convention::number(it.rope.base);
            it.wants("base", base)
        }
        3 => {
            setting.dtype = Dtype::F32;
            let mut it = Mutation::new("any base", setting);
            it.rope.base = (1000 + rng.u32(..90_000)) as f64;
            let base = super::convention::number(it.rope.base);
            it.wants("base", base)
        }
        4 => {
            let dim = setting.dim;
            let mut it = Mutation::new("rotary size dropped", setting);
            setting.rope.rotary = dim / 2;
            setting.rope.offset = 0;
            (it.rope.rotary, it.rope.offset) = (dim, 0);
            it.wants("channels", format!("0..{dim} of {dim}"))
        }
        5 => {
            let by = pick(rng, &[1, -1, 7, -30, 1000]);
            let mut it = Mutation::new("shifted", setting);
            it.positions = each(&setting.given[0], &|at| at + by);
            let words = match by {
                1 => "positions are one too high".into(),
                -1 => "positions are one too low".into(),
                by => format!("positions are shifted by {by}"),
            };
            it.wants("positions", words)
        }
        6 => {
            let at = setting.given[0][0] + setting.row as i64 / 2 + 3;
            let mut it = Mutation::new("restart", setting);
            it.positions = each(&setting.given[0], &|position| position % at);
            it.wants("positions", format!("positions restart at {at}"))
        }
        7 => {
            let at = pick(rng, &[1, 7, 300]);
            let mut it = Mutation::new("one position", setting);
            it.positions = each(&setting.given[0], &|_| at);
            it.wants("positions", format!("every token is at position {at}"))
        }
        8 => Mutation { times: 2, ..Mutation::new("twice", setting) }.wants("applied", "rotated twice"),
        9 => {
            let map = (0..heads).rev().collect();
            Mutation { heads: map, ..Mutation::new("heads reversed", setting) }
                .wants("heads", "heads are in reverse order")
        }
        10 => {
            setting.heads = 6;
            let map = (0..6).map(|written| written % 2 * 3 + written / 2).collect();
            Mutation { heads: map, ..Mutation::new("heads interleaved", setting) }
                .wants("heads", "heads are interleaved: 2 groups of 3 heads are dealt out in turn")
        }
        11 => {
            let map = vec![1; heads];
            Mutation { heads: map, ..Mutation::new("wrong head", setting) }
                .wants("heads", "every head is made from head 1")
        }
        12 => {
            setting.dtype = Dtype::F32;
            let dtype = pick(rng, &[Dtype::Bf16, Dtype::F16]);
            Mutation { table: Some(dtype), ..Mutation::new("narrow table", setting) }.wants("table", dtype.name())
        }
        13 => {
            setting.dtype = Dtype::F32;
            setting.given[0].iter_mut().for_each(|at| *at += 3000);
            let mut it = Mutation::new("f32 angles", setting);
            it.rope.angles = Angles::HfCompat;
            it.wants("angles", "in f32, as transformers makes them")
        }
        14 => {
            setting.rope.pairing = Pairing::Interleaved;
            let mut it = Mutation::new("interleaved in, halves out", setting);
            it.rope.pairing_out = Some(Pairing::Half);
            it.wants("pairing", "interleaved in, halves out")
        }
        15 => {
            setting.dtype = Dtype::F32;
            let factor = pick(rng, &[2.0, 4.0, 8.0]);
            let mut it = Mutation::new("linear", setting);
            it.rope.scaling = Scaling::Linear { factor };
            it.wants("scaling", format!("linear by {factor}"))
        }
        16 => {
            setting.dtype = Dtype::F32;
            setting.row = 400;
            setting.given = vec![(0..setting.batch * 400).map(|token| (token % 400) as i64 + 2000).collect()];
            let factor = pick(rng, &[8.0, 32.0]);
            let mut it = Mutation::new("Llama 3", setting);
            it.rope.scaling = Scaling::Llama3 { factor, low: 1.0, high: 4.0, original_context: 8192.0 };
            it.wants("scaling", format!("Llama 3 by {factor} of 8192, low 1, high 4"))
        }
        17 => {
            setting.dtype = Dtype::F32;
            setting.row = 400;
            setting.given = vec![(0..setting.batch * 400).map(|token| (token % 400) as i64).collect()];
            let factor = pick(rng, &[4.0, 40.0]);
            let yarn = Yarn::new(factor, 4096.0);
            let mut it = Mutation::new("YaRN", setting);
            it.rope.scaling = Scaling::Yarn(yarn);
            it.rope.attention_factor = yarn.attention_factor();
            it.wants("scaling", format!("YaRN by {factor} of 4096"))
        }
        18 => {
            setting.rope.pairing = Pairing::Half;
            setting.dtype = Dtype::F32;
            let mut it = Mutation::new("proportional", setting);
            let rotated = it.rope.pairs() / 4;
            it.rope.scaling = Scaling::Proportional { rotated, factor: 1.0 };
            it.wants("scaling", format!("proportional: {rotated} pairs turn"))
        }
        19 => {
            let mut it = Mutation::new("factor", setting);
            it.rope.attention_factor = pick(rng, &[1.138_629_436_111_989, 1.368_887_945_411_394, 1.19, 0.5]);
            let dtype = setting.dtype;
            let text = super::convention::number(it.rope.attention_factor);
            if dtype == Dtype::F32 || it.rope.attention_factor != 1.19 {
                it.wants("factor on cos and sin", text)
            } else {
                it
            }
        }
        20 => {
            setting.given[0].iter_mut().for_each(|at| *at += 400);
            let mut it = Mutation::new("bf16 positions", setting);
            it.positions = each(&setting.given[0], &|at| f64::from(bf16::from_f64(at as f64)) as i64);
            it.wants("positions", "positions are rounded to bf16")
        }
        21 => {
            setting.batch = 2;
            setting.given = vec![(0..2 * setting.row).map(|token| (token % setting.row) as i64).collect()];
            let mut it = Mutation::new("batch counted on", setting);
            it.positions = vec![(0..2 * setting.row as i64).collect()];
            it.wants("positions", "positions count on through the batch, from 0 on")
        }
        22 => {
            // Three axes, of which only the first is used.
            let tokens = setting.batch * setting.row;
            setting.rope.offset = 0;
            let axis = |axis: usize| {
                (0..tokens).map(|token| [token, token / 7 + 2, token % 7][axis] as i64).collect::<Vec<i64>>()
            };
            setting.given = (0..3).map(axis).collect();
            let third = setting.rope.pairs() / 4;
            setting.rope.axes = Axes::Sections(vec![setting.rope.pairs() - 2 * third, third, third]);
            let mut it = Mutation::new("axis dropped", setting);
            it.positions = vec![setting.given[0].clone(); 3];
            it.wants("axes", "every pair turns by axis 0, the others are dropped")
        }
        23 => Mutation { twist: Twist::HeadsFrom(1), ..Mutation::new("heads after the first", setting) }.wants(
            "left out",
            if heads == 2 {
                "head 1 is not rotated".into()
            } else {
                format!("heads 1 to {} are not rotated", heads - 1)
            },
        ),
        24 => {
            setting.batch = 1;
            setting.given[0].truncate(setting.row);
            let (first, last) = (setting.row / 2, setting.row - 1);
            Mutation { twist: Twist::TokensFrom(first), ..Mutation::new("padded rows", setting) }
                .wants("left out", format!("tokens {first} to {last} are not rotated"))
        }
        25 => {
            setting.rope.rotary = setting.dim / 2;
            setting.rope.offset = 0;
            Mutation { twist: Twist::Times(2.0), ..Mutation::new("codes of another form", setting) }.wants(
                "scale",
                "every value is multiplied by 2, as codes of e4m3 are that are read in the other of its two forms, fn and fnuz",
            )
        }
        26 => {
            setting.dtype = pick(rng, &[Dtype::F32, Dtype::Bf16]);
            let side = pick(rng, &[Side::Query, Side::Key]);
            let words = match side {
                Side::Query => {
                    "xPos: lengths of pairs shrink with the position, as of queries: gamma 0.4, 512 positions"
                }
                Side::Key => "xPos: lengths of pairs grow with the position, as of keys: gamma 0.4, 512 positions",
            };
            Mutation { twist: Twist::XPos(side), ..Mutation::new("xPos", setting) }.wants("decay", words)
        }
        27 => {
            setting.dtype = Dtype::F32;
            Mutation { twist: Twist::InPlace, ..Mutation::new("in place", setting) }.wants(
                "order",
                "rotated in place: the second channel of a pair was made from the first after it had been written",
            )
        }
        28 => {
            setting.dtype = Dtype::F32;
            Mutation { twist: Twist::NarrowRates, ..Mutation::new("bf16 frequencies", setting) }
                .wants("scaling", "none; frequencies are rounded to bf16")
        }
        29 => {
            setting.dtype = Dtype::F32;
            setting.batch = 1;
            setting.row = 160;
            let start = setting.given[0][0];
            setting.given = vec![(start..start + 160).collect()];
            let words = format!("another law from position {} on: base 40000", start + 90);
            setting.rope.base = 1e4;
            Mutation { twist: Twist::BaseFrom(90, 4e4), ..Mutation::new("changes on the way", setting) }
                .wants("changes", words)
        }
        30 => {
            // Patches of an image, frequencies of each head on two axes.
            setting.dtype = Dtype::F32;
            (setting.batch, setting.row) = (1, 12 * 12);
            let axis = |axis: usize| (0..144).map(|token| [token / 12, token % 12][axis] as i64).collect::<Vec<i64>>();
            setting.given = vec![axis(0), axis(1)];
            setting.rope.offset = 0;
            let count = 2 * setting.heads * setting.rope.pairs();
            let frequencies = (0..count).map(|_| random(rng) * 0.5).collect();
            setting.rope.angles = Angles::Mixed(Mixed { axes: 2, heads: setting.heads, frequencies });
            let it = Mutation::new("frequencies of heads", setting);
            setting.rope = Rope { pairing: setting.rope.pairing, ..Rope::new(setting.rope.rotary, 1e4) };
            setting.rope.axes = Axes::Sections(vec![setting.rope.pairs() / 2; 2]);
            it.wants(
                "frequencies",
                "each head has frequencies of its own, whose turns on 2 axes are added (RoPE-Mixed)",
            )
        }
        31 => {
            // Two of three axes in each other's place, so far out that slow pairs show it.
            setting.dtype = Dtype::F32;
            let tokens = setting.batch * setting.row;
            setting.rope.offset = 0;
            setting.rope.base = 1e4;
            let axis = |axis: usize| {
                (0..tokens).map(|token| [token, token / 7 * 40, token % 7 * 300][axis] as i64).collect::<Vec<i64>>()
            };
            setting.given = (0..3).map(axis).collect();
            let third = setting.rope.pairs() / 4;
            let first = setting.rope.pairs() - 2 * third;
            setting.rope.axes = Axes::Sections(vec![first, third, third]);
            let mut it = Mutation::new("axes exchanged", setting);
            it.positions = [0, 2, 1].map(|axis| setting.given[axis as usize].clone()).to_vec();
            it.wants(
                "axes",
                format!("sections of [{first}, {third}, {third}] pairs by the axes 0, 2, 1: axes are exchanged"),
            )
        }
        _ => {
            let mut it = Mutation::new("nothing", setting);
            let (offset, rotary) = (it.rope.offset, it.rope.rotary);
            let base = super::convention::number(it.rope.base);
            it.want.push(("base", base));
            it.wants("channels", format!("{offset}..{} of {}", offset + rotary, setting.dim))
                .wants("positions", "as given")
        }
    }
}

/// Kinds of mutations above.
const KINDS: usize = 33;
/// Cases of each kind, in all four tests.
const ROUNDS: usize = 12;

/// A quarter of the kinds: `cargo test` runs the quarters side by side.
fn quarter(which: usize) {
    let (mut found, mut cases, mut unseen) = (0, 0, 0);
    let (mut missed, mut wrong) = (Vec::new(), Vec::new());
    for seed in (0..ROUNDS * KINDS).filter(|seed| seed % 4 == which) {
        let mut rng = fastrand::Rng::with_seed(seed as u64);
        let mut setting = setting(&mut rng);
        let mutation = mutation(seed % KINDS, &mut setting, &mut rng);
        let (it, changed) = match setting.dtype {
            Dtype::Bf16 => explained::<bf16>(&setting, &mutation, &mut rng),
            Dtype::F16 => explained::<f16>(&setting, &mutation, &mut rng),
            _ => explained::<f32>(&setting, &mutation, &mut rng),
        };
        let elements = setting.batch * setting.row * setting.heads * setting.dim;
        if mutation.name != "nothing" && changed * 500 < elements {
            unseen += 1;
            continue;
        }
        cases += 1;
        let lacks: Vec<_> = mutation.want.iter().filter(|want| !it.best.contains(want)).collect();
        let text = || {
            let has: Vec<_> = it.best.iter().map(|(property, value)| format!("{property}: {value}")).collect();
            let &Setting { batch, row, heads, dim, dtype, ref given, .. } = &setting;
            let share = it.residual.map_or(f64::NAN, |it| it.share_of_bound);
            format!(
                "seed {seed}, {}: {dtype:?} [{batch}, {row}, {heads}, {dim}] from {} on, {:?} lacks {lacks:?}; has {has:?}, {share} \
                 of the bound",
                mutation.name, given[0][0], mutation.rope
            )
        };
        match (lacks.is_empty() && it.explained, it.explained) {
            (true, _) => found += 1,
            (false, true) => wrong.push(text()),
            (false, false) => missed.push(text()),
        }
    }
    // More than 300 in all four quarters.
    assert!(cases >= 80, "{cases} visible cases, {unseen} that nothing shows");
    let all = || format!("named wrongly inside the bound:\n{}\nmissed:\n{}", wrong.join("\n"), missed.join("\n"));
    assert!(wrong.is_empty(), "{found} of {cases} found; {}", all());
    assert!(found * 100 >= cases * 95, "{found} of {cases} found:\n{}", missed.join("\n"));
}

#[test]
fn mutations_are_found_by_name_and_none_by_a_wrong_one_1() {
    quarter(0);
}

#[test]
fn mutations_are_found_by_name_and_none_by_a_wrong_one_2() {
    quarter(1);
}

#[test]
fn mutations_are_found_by_name_and_none_by_a_wrong_one_3() {
    quarter(2);
}

#[test]
fn mutations_are_found_by_name_and_none_by_a_wrong_one_4() {
    quarter(3);
}

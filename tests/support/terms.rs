//! Every kind of term with data, on the host and on the device.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use cudarc::driver::CudaSlice;
use posenc::bias::{
    AnyNumbers, DeviceTermInputs, Distances, Index, Indices, Numbers, Outside, ShiftedWindows, Sign, Term, TermInputs,
    Terms, Window, WindowAxes,
};
use posenc::{Bias, Gpu, Logits, Scalar, T5Bias};

use crate::support::Data;

/// What a term of a test reads, in host memory.
#[derive(Clone, Debug, Default)]
pub struct TermValues {
    pub numbers: Option<(Vec<f32>, Numbers)>,
    pub key_numbers: Option<(Vec<f32>, Numbers)>,
    pub indices: Option<GivenData>,
    pub query_at: Option<Vec<i32>>,
    pub key_at: Option<Vec<i32>>,
}

#[derive(Clone, Debug)]
pub enum GivenData {
    U8(Vec<u8>),
    U16(Vec<u16>),
    I32(Vec<i32>),
}

impl TermValues {
    /// An array of values that f16 and bf16 hold.
    pub fn of(data: &mut Data, numbers: Numbers) -> Self {
        Self { numbers: Some((short(data, numbers.span().unwrap()), numbers)), ..Self::default() }
    }

    pub fn host(&self) -> TermInputs<'_> {
        TermInputs {
            numbers: self.numbers.as_ref().map(|(values, shape)| (&values[..], *shape)),
            key_numbers: self.key_numbers.as_ref().map(|(values, shape)| (&values[..], *shape)),
            indices: self.indices.as_ref().map(|indices| match indices {
                GivenData::U8(indices) => Indices::U8(&indices[..]),
                GivenData::U16(indices) => Indices::U16(&indices[..]),
                GivenData::I32(indices) => Indices::I32(&indices[..]),
            }),
            query_at: self.query_at.as_deref(),
            key_at: self.key_at.as_deref(),
        }
    }
}

/// Values of magnitude 0.5 to 2 that f16 and bf16 hold exactly.
pub fn short(data: &mut Data, count: usize) -> Vec<f32> {
    data.values::<half::bf16>(count).into_iter().map(half::bf16::to_f32).collect()
}

/// The same on the device: numbers of f32, or of `T`.
pub struct TermBuffers<T> {
    f32s: [Option<(CudaSlice<f32>, Numbers)>; 2],
    own: [Option<(CudaSlice<T>, Numbers)>; 2],
    indices: Option<GivenBuffer>,
    at: [Option<CudaSlice<i32>>; 2],
}

enum GivenBuffer {
    U8(CudaSlice<u8>),
    U16(CudaSlice<u16>),
    I32(CudaSlice<i32>),
}

/// The element types of logits as numbers of terms.
pub trait Own: Scalar {
    fn numbers<'a>(buffer: &'a CudaSlice<Self>, shape: Numbers) -> AnyNumbers<'a>;
}

macro_rules! own {
    ($($Type:ty),*) => {$(
        impl Own for $Type {
            fn numbers<'a>(buffer: &'a CudaSlice<Self>, shape: Numbers) -> AnyNumbers<'a> {
                shape.of(buffer).into()
            }
        }
    )*};
}

own!(f32, half::f16, half::bf16);

impl<T: Own> TermBuffers<T> {
    /// `own`: as `T`, which must hold the values.
    pub fn new(gpu: &Gpu, data: &TermInputs, own: bool) -> Self {
        let stream = gpu.stream();
        let both = [data.numbers, data.key_numbers];
        let upload = |of: Option<(&[f32], Numbers)>| {
            of.filter(|_| !own).map(|(values, shape)| (stream.clone_htod(values).unwrap(), shape))
        };
        let upload_own = |of: Option<(&[f32], Numbers)>| {
            of.filter(|_| own).map(|(values, shape)| {
                let values: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
                (stream.clone_htod(&values).unwrap(), shape)
            })
        };
        Self {
            f32s: both.map(upload),
            own: both.map(upload_own),
            indices: data.indices.map(|indices| match indices {
                Indices::U8(indices) => GivenBuffer::U8(stream.clone_htod(indices).unwrap()),
                Indices::U16(indices) => GivenBuffer::U16(stream.clone_htod(indices).unwrap()),
                Indices::I32(indices) => GivenBuffer::I32(stream.clone_htod(indices).unwrap()),
            }),
            at: [data.query_at, data.key_at].map(|at| at.map(|at| stream.clone_htod(at).unwrap())),
        }
    }

    pub fn device(&self) -> DeviceTermInputs<'_> {
        let numbers = |i: usize| {
            let own = self.own[i].as_ref().map(|(buffer, shape)| T::numbers(buffer, *shape));
            own.or_else(|| self.f32s[i].as_ref().map(|(buffer, shape)| shape.of(buffer).into()))
        };
        DeviceTermInputs {
            numbers: numbers(0),
            key_numbers: numbers(1),
            indices: self.indices.as_ref().map(|indices| match indices {
                GivenBuffer::U8(indices) => Indices::U8(indices as _),
                GivenBuffer::U16(indices) => Indices::U16(indices as _),
                GivenBuffer::I32(indices) => Indices::I32(indices as _),
            }),
            query_at: self.at[0].as_ref().map(|at| at as _),
            key_at: self.at[1].as_ref().map(|at| at as _),
        }
    }
}

/// What the terms of a bias read, as `T` or f32; nothing for other biases.
pub fn buffers<T: Own>(gpu: &Gpu, bias: Bias, own: bool) -> Vec<TermBuffers<T>> {
    let Bias::Terms(terms) = bias else { return Vec::new() };
    terms.inputs.iter().map(|inputs| TermBuffers::new(gpu, inputs, own)).collect()
}

/// A bias of terms with its data.
#[derive(Clone, Debug)]
pub struct TermCase {
    pub name: &'static str,
    pub terms: Vec<Term>,
    pub data: Vec<TermValues>,
}

impl TermCase {
    /// What the terms read.
    pub fn inputs(&self) -> Vec<TermInputs<'_>> {
        self.data.iter().map(TermValues::host).collect()
    }

    /// The bias of [`TermCase::inputs`].
    pub fn bias<'a>(&'a self, inputs: &'a [TermInputs<'a>]) -> Bias<'a> {
        Bias::Terms(Terms { terms: &self.terms, inputs })
    }
}

/// Entries that fall and rise with the distance.
fn t5() -> Distances {
    let spec = T5Bias::new(32, 128, true);
    let (first, lookup) = (*spec.distances().start(), spec.lookup().unwrap());
    let distances = Distances::new(Sign::KeyMinusQuery, first, lookup.len());
    Distances { entries: spec.buckets, lookup, ..distances }
}

/// Entries whose ends are seven apart and which do not follow one another.
fn scrambled() -> Distances {
    let swapped = |n: u16| {
        if n % 8 == 3 {
            n + 1
        } else if n % 8 == 4 {
            n - 1
        } else {
            n
        }
    };
    Distances { lookup: (0..32).map(swapped).collect(), ..Distances::new(Sign::QueryMinusKey, -16, 32) }
}

/// Every kind of term, for a call of this shape whose positions lie within those of its windows: 12 queries and keys of a window
/// of 3 x 4, two of them before it.
pub fn each_terms(shape: &Logits, seed: u64) -> Vec<TermCase> {
    let Logits { batch, heads, queries, keys, .. } = *shape;
    let mut data = Data::new(seed);
    let mut cases = Vec::new();
    let mut case = |name, terms: Vec<Term>, data: Vec<TermValues>| cases.push(TermCase { name, terms, data });
    let deberta = Distances::deberta(4, 9).unwrap();
    let all_entries = |term: &Term| match &term.index {
        Index::Distance(distances) => distances.entries,
        Index::Window(window) => window.entries(),
        _ => unreachable!("only these have entries"),
    };

    let distances = [
        ("shaw", Distances::shaw(3, 2)),
        ("bert", Distances::bert(16)),
        ("transformer-xl", Distances::transformer_xl(keys)),
        ("conformer", Distances::conformer(16)),
        ("inkling", Distances::inkling(4)),
        ("band", Distances { outside: Outside::Zero, ..Distances::new(Sign::KeyMinusQuery, -2, 5) }),
        ("deberta", deberta.clone()),
        ("deberta's band", Distances { outside: Outside::Zero, ..deberta.clone() }),
        // Packs whose entries follow one another, and others that skip or repeat some.
        ("deberta of 32", Distances::deberta(16, 40).unwrap()),
        ("t5", t5()),
        ("scrambled", scrambled()),
    ];
    for (name, distances) in distances {
        let by_query = Term::queries(distances.clone());
        let rows = Numbers::rows(batch, heads, queries, distances.entries);
        let of = TermValues::of(&mut data, rows);
        case(name, vec![by_query], vec![of]);
        let by_key = Term { factor: -0.75, ..Term::keys(distances.clone()) };
        // Rows of a wider tensor, shared by all heads.
        let rows =
            Numbers { strides: [keys * 64, 0, 64, 1], offset: 3, ..Numbers::rows(batch, 1, keys, distances.entries) };
        let of = TermValues::of(&mut data, rows);
        case(name, vec![by_key], vec![of]);
    }

    let windows = [
        ("swin", Window { prefix: 2, ..Window::swin(3, 4) }),
        ("beit", Window { prefix: 2, ..Window::beit(3, 4) }),
        ("maxvit", Window::maxvit(4, 4)),
        ("levit", Window::levit(5, 4, 1)),
        ("levit strided", Window { prefix: 1, ..Window::levit(7, 8, 2) }),
        ("rows", Window { axes: WindowAxes::Rows, ..Window::swin(4, 4) }),
    ];
    for (name, window) in windows {
        let table = Numbers::table(window.entries(), heads);
        let of = TermValues::of(&mut data, table);
        case(name, vec![Term::table(window)], vec![of]);
    }
    let decomposed = [WindowAxes::Rows, WindowAxes::Columns].map(|axes| Term::queries(Window::decomposed(3, 5, axes)));
    let of = decomposed
        .each_ref()
        .map(|term| TermValues::of(&mut data, Numbers::rows(batch, heads, queries, all_entries(term))));
    case("decomposed", decomposed.to_vec(), of.to_vec());

    let shifted = ShiftedWindows { height: 8, width: 4, window: [4, 4], shift: [2, 1] };
    if batch % 2 == 0 {
        let swin = Window::swin(4, 4);
        let table = TermValues::of(&mut data, Numbers::by_head(heads, swin.entries()));
        let terms = |masked| vec![Term::table(swin), Term::shifted(shifted, masked)];
        case("shifted", terms(-100.0), vec![table.clone(), TermValues::default()]);
        case("shifted out", terms(f32::NEG_INFINITY), vec![table, TermValues::default()]);
    }

    // Positions one by one reach beyond both.
    let (rows, columns, entries) = (14, 14, 9);
    let given = Index::Given { rows, columns, entries };
    let mut ids = |count: usize, most: usize| (0..count).map(|_| data.below(most) as i32).collect::<Vec<_>>();
    let (shared, own) = (ids(rows * columns, entries), ids(batch * rows * columns, entries + 2));
    let indices = [
        GivenData::U8(shared.iter().map(|&id| id as u8).collect()),
        GivenData::U16(own.iter().map(|&id| id as u16).collect()),
        // Beyond the table on both sides.
        GivenData::I32(own.iter().map(|&id| id - 1).collect()),
    ];
    for indices in indices {
        let table = TermValues::of(&mut data, Numbers::table(entries, heads));
        case("given", vec![Term::table(given.clone())], vec![TermValues { indices: Some(indices), ..table }]);
    }

    for (numbers, factor) in [
        (Numbers::rows(batch, heads, queries, keys), 1.0),
        (Numbers::rows(1, heads, queries, keys), 0.5),
        (Numbers::rows(batch, 1, 1, keys), 1.0),
        (Numbers::rows(1, 1, queries, 1), 1.0),
        (Numbers { strides: [0, 1, heads * keys, heads], ..Numbers::rows(1, heads, queries, keys) }, 1.0),
    ] {
        let of = TermValues::of(&mut data, numbers);
        case("whole", vec![Term { factor, ..Term::whole() }], vec![of]);
    }

    for floats in [1, 2] {
        let ends = |data: &mut Data, rows: usize| {
            let numbers = Numbers {
                strides: [heads * rows, rows, 1, batch * heads * rows],
                ..Numbers::rows(batch, heads, rows, floats)
            };
            Some((short(data, numbers.span().unwrap()), numbers))
        };
        let numbers = ends(&mut data, queries);
        let of = TermValues { numbers, key_numbers: ends(&mut data, keys), ..TermValues::default() };
        case("endpoints", vec![Term { factor: 0.5, ..Term::endpoints() }], vec![of]);
    }

    // Boxes of words: buckets of differences of coordinates, one table for each axis, and one of positions. Coordinates beyond 2^30
    // count as 2^30: their difference would have 33 bits.
    let axis = |data: &mut Data, own: bool| {
        let mut of = TermValues::of(data, Numbers::table(deberta.entries, heads));
        if own {
            let coordinate = |data: &mut Data| [i32::MIN, i32::MAX, data.below(30) as i32][data.below(20).min(2)];
            of.query_at = Some((0..batch * queries).map(|_| coordinate(data)).collect());
            of.key_at = Some((0..batch * keys).map(|_| coordinate(data)).collect());
        }
        of
    };
    let of = [axis(&mut data, false), axis(&mut data, true), axis(&mut data, true)];
    case("boxes", vec![Term::table(deberta.clone()), Term::table(deberta.clone()), Term::table(deberta)], of.to_vec());
    // Coordinates that do not follow one another, of distances that do.
    let clipped = Distances::shaw(12, 12);
    let of = TermValues {
        query_at: Some((0..batch * queries).map(|_| data.below(20) as i32).collect()),
        key_at: Some((0..batch * keys).map(|_| data.below(20) as i32).collect()),
        ..TermValues::of(&mut data, Numbers::by_head(heads, clipped.entries))
    };
    case("boxes", vec![Term::table(clipped)], vec![of]);
    cases
}

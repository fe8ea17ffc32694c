//! A bias as a sum of terms: what each is, and what it reads.

use posenc::Memory;
use posenc::bias::{
    By, Coordinates, Distances, Index, Indices, Outside, ShiftedWindows, Sign, Term, TermData, Window, WindowAxes,
};

use crate::header::{Coded, header};
use crate::memory::{Scope, Space, TermOf};
use crate::{
    Failure, POSENC_I32, POSENC_U8, POSENC_U16, PosencBuffer, PosencIds, PosencNumbers, PosencStatus, borrow, factor,
    give, list, slice, switch, unknown,
};

header! {{}
    kinds Index {
        POSENC_TERM_WHOLE = 0 => Whole: "Kinds of terms, by what chooses the number: query and key themselves (a dense bias).",
        POSENC_TERM_DISTANCE = 1 => Distance: "the distance: `distances`",
        POSENC_TERM_WINDOW = 2 => Window: "coordinates in a window: `window`",
        POSENC_TERM_SHIFTED = 3 => Shifted: "the mask of shifted windows: `shifted`; reads no numbers, adds `factor` between regions",
        POSENC_TERM_GIVEN = 4 => Given: "an index for each pair of positions: `given`",
        POSENC_TERM_ENDPOINTS = 5 => Endpoints: "a number of the query less one of the key",
        POSENC_TERM_DEBERTA = 6: "DeBERTa v2's and v3's logarithmic buckets of the distance: `deberta`",
    }
    codes By {
        POSENC_BY_TABLE = 0 => Table: "Rows of a term's numbers: none, a table that all queries and keys read.",
        POSENC_BY_QUERIES = 1 => Queries: "a row for each query: products of the queries' states and a table",
        POSENC_BY_KEYS = 2 => Keys: "a row for each key",
    }
    codes Sign {
        POSENC_KEY_MINUS_QUERY = 0 => KeyMinusQuery: "Signs of a term's distance: `key - query`.",
        POSENC_QUERY_MINUS_KEY = 1 => QueryMinusKey: "`query - key`",
    }
    codes Outside {
        POSENC_OUTSIDE_CLAMP = 0 => Clamp: "Distances without an entry: the number of the nearest distance that has one.",
        POSENC_OUTSIDE_ZERO = 1 => Zero: "nothing is added",
    }
    codes Coordinates {
        POSENC_COORDINATES_QUERY_MINUS_KEY = 0 => QueryMinusKey: "Coordinates that choose an entry of a window: `query - key` \
            (Swin, BEiT).",
        POSENC_COORDINATES_KEY_MINUS_QUERY = 1 => KeyMinusQuery: "`key - query`: MaxViT",
        POSENC_COORDINATES_ABSOLUTE = 2 => Absolute: "`|query - key|`: LeViT, TinyViT",
        POSENC_COORDINATES_KEY = 3 => Key: "the key's own: SAM's and ViTDet's products with resized tables",
    }
    codes WindowAxes {
        POSENC_WINDOW_BOTH = 0 => Both: "Axes of a window that choose an entry: rows and columns.",
        POSENC_WINDOW_ROWS = 1 => Rows: "rows alone",
        POSENC_WINDOW_COLUMNS = 2 => Columns: "columns alone",
    }

    /// Entries by distance: entry `lookup[clamp(distance - first, 0, count - 1)]`.
    struct PosencDistances {
        sign: u32 => "which difference is the distance: `POSENC_KEY_MINUS_QUERY` or `POSENC_QUERY_MINUS_KEY`",
        outside: u32 => "what other distances get: `POSENC_OUTSIDE_...`",
        first: i64 => "the distance of the first entry",
        count: u64 => "distances that have an entry",
        entries: u64 => "numbers of a row; without a lookup as many as distances",
        lookup: *const u16 => "the entry of each distance, `[count]` in host memory; null: each has its own",
    }
    /// DeBERTa v2's and v3's logarithmic buckets of `query - key`: `2 * buckets` entries.
    struct PosencDeberta {
        buckets: u64 => "256 in deberta-v3-base",
        max_positions: u64 => "512 in deberta-v3-base",
    }
    /// Entries by coordinates in a window of tokens, row after row. Positions are tokens of the window.
    struct PosencWindow {
        height: u64 => "rows of keys",
        width: u64 => "keys of a row",
        stride: u64 => "a step of the queries' window on the keys': 2 where LeViT halves a grid, else 1",
        prefix: u64 => "class and register tokens before the window",
        coordinates: u32 => "`POSENC_COORDINATES_...`",
        axes: u32 => "`POSENC_WINDOW_...`",
        prefix_entries: u32 => "1: three more entries, for a token before the window against one in it, the reverse, and \
            both before it (BEiT)",
        reserved: u32 => "0",
    }
    /// The mask of shifted windows: sequence `b` is window `b % windows` of its image.
    struct PosencShiftedWindows {
        height: u64 => "rows of the image",
        width: u64 => "tokens of a row",
        window: [u64; 2] => "rows and columns of a window",
        shift: [u64; 2] => "rows and columns of the shift; 0: an axis is not shifted",
    }
    /// Sizes of given indices, and of the table that they read.
    struct PosencGiven {
        rows: u64 => "positions of queries that have a row",
        columns: u64 => "positions of keys that have a column",
        entries: u64 => "numbers of a table",
    }
    /// One term of a bias, filled in by `posenc_term_...` or field by field; `kind` says which of its structs is read.
    struct PosencTerm {
        kind: u32 => "`POSENC_TERM_...`",
        by: u32 => "rows of the numbers: `POSENC_BY_...`",
        factor: f32 => "multiplies the number: 1. The mask of shifted windows: -100 or -inf",
        reserved: u32 => "0",
        distances: PosencDistances => "of `POSENC_TERM_DISTANCE`",
        deberta: PosencDeberta => "of `POSENC_TERM_DEBERTA`",
        window: PosencWindow => "of `POSENC_TERM_WINDOW`",
        shifted: PosencShiftedWindows => "of `POSENC_TERM_SHIFTED`",
        given: PosencGiven => "of `POSENC_TERM_GIVEN`",
    }
    /// What one term of a call reads.
    struct PosencTermInputs {
        element: u32 => "type of `numbers` and `key_numbers`: `POSENC_F32`, or the logits' type",
        reserved: u32 => "0",
        numbers: PosencBuffer => "the array; of endpoints the queries' numbers, `[batch or 1, heads or 1, queries, 1 or 2]`",
        numbers_shape: PosencNumbers => "its shape",
        key_numbers: PosencBuffer => "the keys' numbers, of `POSENC_TERM_ENDPOINTS` alone",
        key_numbers_shape: PosencNumbers => "their shape",
        indices: PosencIds => "`[batch or 1, rows, columns]` of `POSENC_U8`, `POSENC_U16` or `POSENC_I32`, of \
            `POSENC_TERM_GIVEN` alone",
        query_at: PosencBuffer => "coordinates in place of the queries' positions, `[batch, queries]`, 32 bits; or none",
        key_at: PosencBuffer => "coordinates in place of the keys' positions, `[batch, keys]`, 32 bits; or none",
    }

    /// Swin: a table by `query - key` in a window.
    fn posenc_term_swin(height: u64, width: u64, out: *mut PosencTerm) -> PosencStatus as Window::swin {
        give(out, || filled(&Term::table(Window::swin(height as usize, width as usize))))
    }
    /// BEiT: Swin's entries, one class token and three entries for it.
    fn posenc_term_beit(height: u64, width: u64, out: *mut PosencTerm) -> PosencStatus as Window::beit {
        give(out, || filled(&Term::table(Window::beit(height as usize, width as usize))))
    }
    /// MaxViT and CoAtNet: a table by `key - query` in a window.
    fn posenc_term_maxvit(height: u64, width: u64, out: *mut PosencTerm) -> PosencStatus as Window::maxvit {
        give(out, || filled(&Term::table(Window::maxvit(height as usize, width as usize))))
    }
    /// LeViT and TinyViT: a table by `|query - key|` in a window; `stride` is 2 where LeViT halves the grid, else 1.
    fn posenc_term_levit(height: u64, width: u64, stride: u64, out: *mut PosencTerm) -> PosencStatus as Window::levit {
        give(out, || filled(&Term::table(Window::levit(height as usize, width as usize, stride as usize))))
    }
    /// One axis of decomposed positions (SAM, ViTDet, MViTv2), `POSENC_WINDOW_ROWS` or `POSENC_WINDOW_COLUMNS`: the queries'
    /// products, by the key's coordinate.
    fn posenc_term_decomposed(height: u64, width: u64, axes: u32, out: *mut PosencTerm) -> PosencStatus as Window::decomposed {
        give(out, || {
            let axes = WindowAxes::of("axes", axes)?;
            filled(&Term::queries(Window::decomposed(height as usize, width as usize, axes)))
        })
    }
    /// Shaw's clipped distances, `clip(key - query, -left, right) + left`, of the queries' products.
    fn posenc_term_shaw(left: u64, right: u64, out: *mut PosencTerm) -> PosencStatus as Distances::shaw {
        give(out, || filled(&Term::queries(Distances::shaw(left as usize, right as usize))))
    }
    /// VITS: Shaw's entries up to `window` on both sides, nothing beyond, of the queries' products.
    fn posenc_term_vits(window: u64, out: *mut PosencTerm) -> PosencStatus as Distances::vits {
        give(out, || filled(&Term::queries(Distances::vits(window as usize))))
    }
    /// SpeechT5: `clamp(query - key, -max_length, max_length - 1) + max_length`, of the queries' products.
    fn posenc_term_speecht5(max_length: u64, out: *mut PosencTerm) -> PosencStatus as Distances::speecht5 {
        give(out, || filled(&Term::queries(Distances::speecht5(max_length as usize))))
    }
    /// The audio encoders of Gemma 3n and Gemma 4: row `past - (query - key)`, nothing beyond `past` keys before the query and
    /// `right` after it, of the queries' products.
    fn posenc_term_gemma_audio(past: u64, right: u64, out: *mut PosencTerm) -> PosencStatus as Distances::gemma_audio {
        give(out, || filled(&Term::queries(Distances::gemma_audio(past as usize, right as usize))))
    }
    /// BERT's `relative_key`: `query - key + max_positions - 1`, of the queries' products.
    fn posenc_term_bert(max_positions: u64, out: *mut PosencTerm) -> PosencStatus as Distances::bert {
        give(out, || filled(&Term::queries(Distances::bert(max_positions as usize))))
    }
    /// Transformer-XL: `keys` rows, from the distance `keys - 1` into the past on, of the queries' products.
    fn posenc_term_transformer_xl(keys: u64, out: *mut PosencTerm) -> PosencStatus as Distances::transformer_xl {
        give(out, || filled(&Term::queries(Distances::transformer_xl(keys as usize))))
    }
    /// XLNet: `keys + queries` rows, from the distance `keys` into the past on, of the queries' products.
    fn posenc_term_xlnet(queries: u64, keys: u64, out: *mut PosencTerm) -> PosencStatus as Distances::xlnet {
        give(out, || filled(&Term::queries(Distances::xlnet(queries as usize, keys as usize))))
    }
    /// Conformer: `2 * tokens - 1` rows, from the distance `tokens - 1` into the past on, of the queries' products.
    fn posenc_term_conformer(tokens: u64, out: *mut PosencTerm) -> PosencStatus as Distances::conformer {
        give(out, || filled(&Term::queries(Distances::conformer(tokens as usize))))
    }
    /// Inkling's band: `query - key` from 0 to below `extent`, nothing outside, of the queries' products.
    fn posenc_term_inkling(extent: u64, out: *mut PosencTerm) -> PosencStatus as Distances::inkling {
        give(out, || filled(&Term::queries(Distances::inkling(extent as usize))))
    }
    /// DeBERTa v1: `clamp(query - key + span, 0, 2 * span - 1)`, of the queries' products; `by = POSENC_BY_KEYS` makes the
    /// keys' term of it.
    fn posenc_term_deberta_v1(span: u64, out: *mut PosencTerm) -> PosencStatus as Distances::deberta_v1 {
        give(out, || filled(&Term::queries(Distances::deberta_v1(span as usize))))
    }
    /// DeBERTa v2 and v3: logarithmic buckets of `query - key`, `2 * buckets` entries, of the queries' products;
    /// `by = POSENC_BY_KEYS` makes the keys' term of it.
    fn posenc_term_deberta(buckets: u64, max_positions: u64, out: *mut PosencTerm) -> PosencStatus as Distances::deberta {
        give(out, || deberta(PosencDeberta { buckets, max_positions }))
    }
    /// Gives how many numbers a row of the term has, `entries` of its shape; 0 for a dense bias, a mask and endpoints.
    fn posenc_term_entries(term: *const PosencTerm, out: *mut u64) -> PosencStatus as Window::entries {
        give(out, || Ok(entries(&borrow("term", term)?.term()?.index) as u64))
    }
}

/// A term of zeros, for its kind's struct to be filled in.
const ZERO: PosencTerm = PosencTerm {
    kind: POSENC_TERM_WHOLE,
    by: POSENC_BY_TABLE,
    factor: 0.0,
    reserved: 0,
    distances: PosencDistances { sign: 0, outside: 0, first: 0, count: 0, entries: 0, lookup: std::ptr::null() },
    deberta: PosencDeberta { buckets: 0, max_positions: 0 },
    window: PosencWindow {
        height: 0,
        width: 0,
        stride: 0,
        prefix: 0,
        coordinates: 0,
        axes: 0,
        prefix_entries: 0,
        reserved: 0,
    },
    shifted: PosencShiftedWindows { height: 0, width: 0, window: [0; 2], shift: [0; 2] },
    given: PosencGiven { rows: 0, columns: 0, entries: 0 },
};

/// A named encoding as the header has it: distances without a lookup, or a window.
fn filled(term: &Term) -> Result<PosencTerm, Failure> {
    term.check()?;
    let zero = PosencTerm { by: term.by.code(), factor: term.factor, ..ZERO };
    Ok(match &term.index {
        Index::Distance(distances) => {
            PosencTerm { kind: POSENC_TERM_DISTANCE, distances: PosencDistances::from(distances), ..zero }
        }
        Index::Window(window) => PosencTerm { kind: POSENC_TERM_WINDOW, window: PosencWindow::from(window), ..zero },
        _ => zero,
    })
}

/// DeBERTa's lookup is made with the plan, so that no caller owns it.
fn deberta(deberta: PosencDeberta) -> Result<PosencTerm, Failure> {
    deberta.distances()?;
    Ok(PosencTerm { kind: POSENC_TERM_DEBERTA, by: POSENC_BY_QUERIES, factor: 1.0, deberta, ..ZERO })
}

fn entries(index: &Index) -> usize {
    match index {
        Index::Distance(distances) => distances.entries,
        Index::Window(window) => window.entries(),
        Index::Given { entries, .. } => *entries,
        _ => 0,
    }
}

impl From<&Distances> for PosencDistances {
    fn from(distances: &Distances) -> Self {
        Self {
            sign: distances.sign.code(),
            outside: distances.outside.code(),
            first: distances.first,
            count: distances.count as u64,
            entries: distances.entries as u64,
            lookup: std::ptr::null(),
        }
    }
}

impl From<&Window> for PosencWindow {
    fn from(window: &Window) -> Self {
        Self {
            height: window.height as u64,
            width: window.width as u64,
            stride: window.stride as u64,
            prefix: window.prefix as u64,
            coordinates: window.coordinates.code(),
            axes: window.axes.code(),
            prefix_entries: window.prefix_entries.into(),
            reserved: 0,
        }
    }
}

impl PosencDistances {
    /// # Safety
    /// `lookup` is null or points to `count` entries.
    pub(crate) unsafe fn distances(&self) -> Result<Distances, Failure> {
        // SAFETY: as the caller promises.
        let lookup = |count| unsafe { list("lookup", self.lookup, count) };
        Ok(Distances {
            sign: Sign::of("sign", self.sign)?,
            first: self.first,
            count: self.count as usize,
            outside: Outside::of("outside", self.outside)?,
            lookup: lookup(if self.lookup.is_null() { 0 } else { self.count })?,
            entries: self.entries as usize,
        })
    }
}

impl PosencDeberta {
    fn distances(&self) -> Result<Distances, Failure> {
        Ok(Distances::deberta(self.buckets as usize, self.max_positions as usize)?)
    }
}

impl PosencWindow {
    pub(crate) fn window(&self) -> Result<Window, Failure> {
        Ok(Window {
            height: self.height as usize,
            width: self.width as usize,
            stride: self.stride as usize,
            coordinates: Coordinates::of("coordinates", self.coordinates)?,
            axes: WindowAxes::of("axes", self.axes)?,
            prefix: self.prefix as usize,
            prefix_entries: switch("prefix_entries", self.prefix_entries)?,
        })
    }
}

impl PosencShiftedWindows {
    fn windows(&self) -> ShiftedWindows {
        ShiftedWindows {
            height: self.height as usize,
            width: self.width as usize,
            window: self.window.map(|size| size as usize),
            shift: self.shift.map(|size| size as usize),
        }
    }
}

impl PosencTerm {
    /// # Safety
    /// `distances.lookup` is null or points to as many entries as there are distances.
    pub(crate) unsafe fn term(&self) -> Result<Term, Failure> {
        let PosencGiven { rows, columns, entries } = self.given;
        let index = match self.kind {
            POSENC_TERM_WHOLE => Index::Whole,
            // SAFETY: as the caller promises.
            POSENC_TERM_DISTANCE => Index::Distance(unsafe { self.distances.distances() }?),
            POSENC_TERM_WINDOW => Index::Window(self.window.window()?),
            POSENC_TERM_SHIFTED => Index::Shifted(self.shifted.windows()),
            POSENC_TERM_GIVEN => {
                Index::Given { rows: rows as usize, columns: columns as usize, entries: entries as usize }
            }
            POSENC_TERM_ENDPOINTS => Index::Endpoints,
            POSENC_TERM_DEBERTA => Index::Distance(self.deberta.distances()?),
            other => return Err(unknown("the kind of a term", other)),
        };
        if self.kind == POSENC_TERM_SHIFTED && self.factor == 0.0 {
            let text = "factor is 0, it must be set: the mask of shifted windows is -100 or -inf";
            return Err(Failure::argument(text.into()));
        }
        Ok(Term { index, by: By::of("by", self.by)?, factor: factor("factor", self.factor)? })
    }
}

impl PosencTermInputs {
    fn get<'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<TermOf<'a, M>, Failure> {
        let numbers = |x: &PosencBuffer, shape: &PosencNumbers, name: &'static str| {
            // An empty tensor of other libraries has no address, but a shape.
            let none = x.data == 0 && shape.entries == 0;
            if none { Ok(None) } else { M::numbers(scope, name, self.element, x, shape).map(Some) }
        };
        Ok(TermData {
            numbers: numbers(&self.numbers, &self.numbers_shape, "numbers")?,
            key_numbers: numbers(&self.key_numbers, &self.key_numbers_shape, "key_numbers")?,
            indices: if self.indices.data == 0 { None } else { Some(indices(&self.indices, scope)?) },
            query_at: self.query_at.read_some(scope, "query_at")?,
            key_at: self.key_at.read_some(scope, "key_at")?,
        })
    }
}

type IndicesOf<'a, M> =
    Indices<<M as Memory>::Slice<'a, u8>, <M as Memory>::Slice<'a, u16>, <M as Memory>::Slice<'a, i32>>;

fn indices<'a, M: Space>(ids: &PosencIds, scope: &Scope<'a, M>) -> Result<IndicesOf<'a, M>, Failure> {
    let buffer = PosencBuffer { data: ids.data, len: ids.len };
    Ok(match ids.element {
        POSENC_U8 => Indices::U8(buffer.read(scope, "indices")?),
        POSENC_U16 => Indices::U16(buffer.read(scope, "indices")?),
        POSENC_I32 => Indices::I32(buffer.read(scope, "indices")?),
        other => return Err(unknown("the type of indices", other)),
    })
}

/// What the terms of a call read.
///
/// # Safety
/// `terms` is null or points to `count` of them.
pub(crate) unsafe fn term_inputs<'a, M: Space>(
    terms: *const PosencTermInputs,
    count: u64,
    scope: &Scope<'a, M>,
) -> Result<&'a [TermOf<'a, M>], Failure> {
    let held = scope.terms(count)?;
    // SAFETY: as the caller promises.
    let terms = unsafe { slice("terms", terms, count) }?;
    for (held, inputs) in held.iter_mut().zip(terms) {
        *held = inputs.get(scope)?;
    }
    Ok(held)
}

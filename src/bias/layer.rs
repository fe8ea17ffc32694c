//! Scores of attention layers with relative positions, written out: Shaw, BERT, Transformer-XL, XLNet, Conformer, DeBERTa,
//! Inkling, the audio encoders of Gemma and Granite-Speech.
//!
//! ```text
//! score(i, j) = softcap(tau_i * (scale * ((q_i + u) . k_j + (q_i + w) . S[differs(i, j)]) + terms))
//! terms       = scale_q * (a_i + v) . R[entry(i, j)] + scale_k * k_j . P[entry(i, j)]        a = q, or states of their own
//! ```

use crate::bias::Distances;
use crate::bias::terms::Pair;
use crate::memory::reserved;
use crate::position::Places;
use crate::shape::{Numbers, Shape, product};
use crate::{Error, Logits, Result};

/// One term of products with a table of relative positions.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `index` | | the row of the table for a query and a key |
/// | `table` | `[batch or 1, entries, heads or 1, width]` | embeddings or projections of relative positions |
/// | `batch`, `heads` | | of the table, 1 or all |
/// | `bias` | `[heads, width]` | added to the states: Transformer-XL's `v` |
/// | `states` | `[batch, heads, queries, width]` | states in place of the queries or keys: Inkling's |
/// | `scale` | | multiplies the product |
#[derive(Clone, Debug)]
pub struct Relative<'a> {
    /// the row
    pub index: Distances,
    /// embeddings of relative positions
    pub table: &'a [f32],
    /// sequences of the table, 1 or all
    pub batch: usize,
    /// heads of the table, 1 or all
    pub heads: usize,
    /// added to the states
    pub bias: Option<&'a [f32]>,
    /// in place of queries or keys
    pub states: Option<&'a [f32]>,
    /// multiplies the product
    pub scale: f64,
}

/// Segments of XLNet and Funnel.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    /// `[2, heads, dim]`: the first for tokens of one segment, the second for tokens of two
    pub table: &'a [f32],
    /// `[heads, dim]`, added to the queries
    pub bias: &'a [f32],
    /// `[batch, queries]`
    pub queries: &'a [i32],
    /// `[batch, keys]`
    pub keys: &'a [i32],
}

/// An attention layer with relative positions: what its scores are made of.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#content).
///
/// | layer | fields |
/// |---|---|
/// | Shaw, SpeechT5, VITS, Wav2Vec2-BERT, Granite-Speech | `queries` with `scale`; the table is shared by the heads |
/// | BERT `relative_key`, `relative_key_query` | `queries`; and `keys` with the same table |
/// | Transformer-XL, XLNet, Conformer, Parakeet | `content_bias` (u), `queries` with `bias` (v); XLNet `segments` |
/// | DeBERTa | `queries` and `keys`, all scales `1 / sqrt(dim * (1 + terms))` |
/// | Inkling | `queries` with `states`, a table shared by the heads and a scale of 1; `query_scale` is tau |
/// | Gemma's audio encoders | `queries`, `softcap`; the caller has scaled `q` and `k` by channel |
///
/// # Example
/// ```
/// use posenc::bias::{Distances, Relative, RelativeLayer};
/// use posenc::{Logits, Places};
/// // One head of one channel, two tokens; Shaw's table for the distances -1, 0 and 1.
/// let table = [0.25f32, 0.5, 1.0];
/// let layer = RelativeLayer {
///     queries: Some(Relative::new(Distances::shaw(1, 1), &table, 1.0)),
///     ..RelativeLayer::new(1, 1.0)
/// };
/// let scores = layer.scores(&[2.0, 4.0], &[1.0, 3.0], &Logits::bhqk(1, 1, 2, 2), &Places::counted(0, 0))?;
/// assert_eq!(scores, [2.0 * (1.0 + 0.5), 2.0 * (3.0 + 1.0), 4.0 * (1.0 + 0.25), 4.0 * (3.0 + 0.5)]);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RelativeLayer<'a> {
    /// channels of a head
    pub dim: usize,
    /// multiplies the product of queries and keys
    pub scale: f64,
    /// `[heads, dim]`, added to the queries where they meet keys
    pub content_bias: Option<&'a [f32]>,
    /// products of the queries
    pub queries: Option<Relative<'a>>,
    /// products of the keys
    pub keys: Option<Relative<'a>>,
    /// whether tokens are of one segment
    pub segments: Option<Segments<'a>>,
    /// `[batch, queries]`, multiplies every score of a query
    pub query_scale: Option<&'a [f32]>,
    /// `cap * tanh(x / cap)` of the result
    pub softcap: Option<f64>,
}

impl<'a> Relative<'a> {
    /// A table that all heads share.
    pub const fn new(index: Distances, table: &'a [f32], scale: f64) -> Self {
        Self { index, table, batch: 1, heads: 1, bias: None, states: None, scale }
    }

    /// Sizes of the table, where `width` is that of the states.
    fn shape(&self, width: usize) -> Numbers {
        let row = self.heads * width;
        let strides = [self.index.entries * row, width, row, 1];
        Numbers { strides, ..Numbers::rows(self.batch, self.heads, self.index.entries, width) }
    }

    /// The products of every state with every row of the table, `[batch, heads, rows, entries]`: the numbers of a
    /// [`Term`](crate::bias::Term), without `scale`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `states` | `[batch, heads, rows, width]` | queries or keys; not read where the term has states of its own |
    /// | `sizes` | | batch, heads, rows, and the width of the states |
    ///
    /// # Errors
    /// If an array is of another length.
    pub fn products(&self, states: &[f32], sizes: [usize; 4]) -> Result<Vec<f64>> {
        let [batch, heads, rows, width] = sizes;
        let states = self.states.unwrap_or(states);
        check("states", states.len(), &sizes)?;
        self.check(sizes)?;
        let need = product("batch x heads x rows x entries", &[batch, heads, rows, self.index.entries])?;
        let mut out = reserved("products", need)?;
        for (b, h, row) in each(batch, heads, rows) {
            for entry in 0..self.index.entries {
                out.push(self.dot(&states[((b * heads + h) * rows + row) * width..][..width], b, h, entry));
            }
        }
        Ok(out)
    }

    fn check(&self, [batch, heads, _, width]: [usize; 4]) -> Result<()> {
        self.index.check()?;
        let fits = |size: usize, of: usize| size == 1 || size == of;
        if !fits(self.batch, batch) || !fits(self.heads, heads) {
            return Err(Error::Value(format!(
                "a table of relative positions has {} sequences and {} heads, they must be {batch} or 1 and {heads} or 1",
                self.batch, self.heads
            )));
        }
        self.shape(width).check("table", self.table.len())?;
        self.bias.map_or(Ok(()), |bias| check("bias", bias.len(), &[heads, width]))
    }

    /// `(state + bias) . table[entry]`
    fn dot(&self, state: &[f32], batch: usize, head: usize, entry: usize) -> f64 {
        let width = state.len();
        let table = &self.table[self.shape(width).shared_index(batch, head, entry, 0)..];
        let bias = |c: usize| self.bias.map_or(0.0, |bias| f64::from(bias[head * width + c]));
        (0..width).map(|c| (f64::from(state[c]) + bias(c)) * f64::from(table[c])).sum()
    }
}

impl RelativeLayer<'_> {
    /// Products of queries and keys alone.
    pub const fn new(dim: usize, scale: f64) -> Self {
        Self {
            dim,
            scale,
            content_bias: None,
            queries: None,
            keys: None,
            segments: None,
            query_scale: None,
            softcap: None,
        }
    }

    /// The score of every query and key in f64, `[batch, heads, queries, keys]`, before mask and softmax.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q` | `[batch, heads, queries, dim]` | queries |
    /// | `k` | `[batch, key heads, keys, dim]` | keys; several heads may share a key head |
    /// | `shape` | | sizes of the result |
    /// | `places` | | positions of queries and keys |
    ///
    /// # Errors
    /// If an array is of another length, or positions are refused.
    pub fn scores(&self, q: &[f32], k: &[f32], shape: &Logits, places: &Places<&[i32]>) -> Result<Vec<f64>> {
        let Logits { batch, heads, queries, keys, .. } = *shape;
        places.check(shape)?;
        let dim = self.dim;
        check("q", q.len(), &[batch, heads, queries, dim])?;
        let key_heads = k.len().checked_div(product("batch x keys x dim", &[batch, keys, dim])?).unwrap_or(heads);
        if key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(Error::Value(format!("k has {key_heads} heads, they must divide the {heads} of q")));
        }
        check("k", k.len(), &[batch, key_heads, keys, dim])?;
        self.check([batch, heads, queries, keys])?;
        let own_width = |relative: &Relative, rows: usize| match relative.states {
            None => dim,
            Some(states) => states.len().checked_div(batch * heads * rows).unwrap_or(0),
        };
        let mut scores = reserved("scores", shape.elements()?)?;
        for at @ [b, h, i] in shape.each_row() {
            let query = &q[((b * heads + h) * queries + i) * dim..][..dim];
            for j in 0..keys {
                let pair = Pair::of(shape, places, at, j);
                let key = &k[((b * key_heads + h / (heads / key_heads)) * keys + j) * dim..][..dim];
                let bias = |of: Option<&[f32]>, c: usize| of.map_or(0.0, |of| f64::from(of[h * dim + c]));
                let content: f64 =
                    (0..dim).map(|c| (f64::from(query[c]) + bias(self.content_bias, c)) * f64::from(key[c])).sum();
                let mut score = self.scale * (content + self.segment(query, &pair, [queries, keys]));
                if let Some(relative) = &self.queries {
                    let width = own_width(relative, queries);
                    let state = relative
                        .states
                        .map_or(query, |states| &states[((b * heads + h) * queries + i) * width..][..width]);
                    score += relative.of(state, &pair);
                }
                if let Some(relative) = &self.keys {
                    score += relative.of(key, &pair);
                }
                score *= self.query_scale.map_or(1.0, |tau| f64::from(tau[b * queries + i]));
                scores.push(self.softcap.map_or(score, |cap| cap * (score / cap).tanh()));
            }
        }
        Ok(scores)
    }
}

impl Relative<'_> {
    /// The term of a pair.
    fn of(&self, state: &[f32], pair: &Pair) -> f64 {
        let [query, key] = pair.at;
        let entry = self.index.entry(query, key);
        entry.map_or(0.0, |entry| self.scale * self.dot(state, pair.batch, pair.head, entry))
    }
}

impl RelativeLayer<'_> {
    /// Refuses arrays of other lengths.
    fn check(&self, [batch, heads, queries, keys]: [usize; 4]) -> Result<()> {
        let dim = self.dim;
        if let Some(bias) = self.content_bias {
            check("content_bias", bias.len(), &[heads, dim])?;
        }
        if let Some(tau) = self.query_scale {
            check("query_scale", tau.len(), &[batch, queries])?;
        }
        for (relative, rows) in [(&self.queries, queries), (&self.keys, keys)] {
            let Some(relative) = relative else { continue };
            let width = match relative.states {
                None => dim,
                Some(states) => states.len() / (batch * heads * rows).max(1),
            };
            if let Some(states) = relative.states {
                check("states", states.len(), &[batch, heads, rows, width])?;
            }
            relative.check([batch, heads, rows, width])?;
        }
        let Some(segments) = &self.segments else { return Ok(()) };
        check("the table of segments", segments.table.len(), &[2, heads, dim])?;
        check("the bias of segments", segments.bias.len(), &[heads, dim])?;
        check("segments of queries", segments.queries.len(), &[batch, queries])?;
        check("segments of keys", segments.keys.len(), &[batch, keys])
    }

    /// `(q + w) . S[differs]`
    fn segment(&self, query: &[f32], pair: &Pair, [queries, keys]: [usize; 2]) -> f64 {
        let Some(segments) = &self.segments else { return 0.0 };
        let (dim, head) = (self.dim, pair.head);
        let heads = segments.bias.len() / dim;
        let apart = segments.queries[pair.batch * queries + pair.query] != segments.keys[pair.batch * keys + pair.key];
        let table = &segments.table[(usize::from(apart) * heads + head) * dim..][..dim];
        let bias = &segments.bias[head * dim..][..dim];
        (0..dim).map(|c| (f64::from(query[c]) + f64::from(bias[c])) * f64::from(table[c])).sum()
    }
}

/// Refuses an array of another length than the product of `sizes`.
fn check(name: &'static str, got: usize, sizes: &[usize]) -> Result<()> {
    let need = product(name, sizes)?;
    if got == need { Ok(()) } else { Err(Error::Value(format!("{name} holds {got} numbers, {sizes:?} are {need}"))) }
}

fn each(batch: usize, heads: usize, rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..rows).map(move |row| (b, h, row))))
}

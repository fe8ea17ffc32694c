//! Biases that read the content, from states and a table: the products are made where they are added.
//!
//! ```text
//! bias(b, h, i, j) = factor * (a + v[h]) . R[b, h, entry(i, j)]          a: the state of query i, or of key j
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::RelativeProductsPlan;

use crate::accuracy::rounded;
use crate::bias::form::ExpectedBias;
use crate::bias::{By, Distances};
use crate::memory::zeros;
use crate::position::Places;
use crate::shape::{Numbers, Shape, product};
use crate::{Error, Heads, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// The widest state.
const MOST_WIDTH: usize = 1 << 16;

/// Products of queries' or keys' states with a table of relative positions, added to logits: Shaw, Transformer-XL, Conformer,
/// DeBERTa, Inkling.
///
/// More: [docs](crate::docs::bias#products).
///
/// ```text
/// bias(b, h, i, j) = factor * (a[b, i, h] + v[h]) . R[b, h, entry(i, j)]          by queries
/// bias(b, h, i, j) = factor * (a[b, j, h] + v[h]) . R[b, h, entry(i, j)]          by keys
/// ```
///
/// | field | meaning |
/// |---|---|
/// | `index` | the row of the table for a query and a key; where it has none, nothing is added |
/// | `by` | whose states are multiplied: [`By::Queries`] or [`By::Keys`] |
/// | `factor` | multiplies the product |
///
/// A [`Term`](crate::bias::Term) by queries or keys adds the same numbers from products that the caller has stored, `[batch, heads,
/// tokens, entries]`. [`RelativeProductsPlan`] needs states and table alone.
///
/// | model | states | v | `RelativeProducts` |
/// |---|---|---|---|
/// | Shaw, BERT, SpeechT5 | queries | | `queries(Distances::shaw(left, right))` |
/// | Transformer-XL, XLNet, Conformer | queries | yes | `queries(Distances::conformer(tokens))` |
/// | DeBERTa | queries, then keys | | `queries(deberta.clone())` and `keys(deberta)` |
/// | Inkling | of their own, width 16 | | `queries(Distances::inkling(extent))` |
///
/// # Example
/// ```
/// use posenc::bias::{Distances, Numbers, ProductInputs, RelativeProducts};
/// use posenc::{Heads, Logits, Places};
/// // One head of one channel, two tokens; Shaw's table for the distances -1, 0 and 1.
/// let products = RelativeProducts::queries(Distances::shaw(1, 1));
/// let inputs = ProductInputs {
///     states: (&[2.0f32, 4.0], Heads::thd(2, 1, 1)),
///     bias: None,
///     table: (&[0.25, 0.5, 1.0], Numbers::rows(1, 1, 3, 1)),
/// };
/// let mut logits = [1.0f32; 4];
/// products.add(&mut logits, &Logits::bhqk(1, 1, 2, 2), &inputs, &Places::counted(0, 0))?;
/// assert_eq!(logits, [1.0 + 2.0 * 0.5, 1.0 + 2.0 * 1.0, 1.0 + 4.0 * 0.25, 1.0 + 4.0 * 0.5]);
/// # Ok::<(), posenc::Error>(())
/// ```
///
/// # Source
/// Shaw (arXiv 1803.02155), equation 4; Transformer-XL (arXiv 1901.02860), section 3.3; DeBERTa (arXiv 2006.03654), section 3.1.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RelativeProducts {
    /// the row of the table
    pub index: Distances,
    /// whose states
    pub by: By,
    /// multiplies the product
    pub factor: f32,
}

/// States and table on the CPU, each with its shape.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `states` | `[batch, tokens, heads, width]` | of the queries or of the keys |
/// | `bias` | `[heads, width]` | `v`, added to the states: Transformer-XL's |
/// | `table` | `[batch or 1, heads or 1, entries, width]` | [`Numbers`] whose rows are the table's entries and whose entries are channels |
#[derive(Clone, Copy, Debug)]
pub struct ProductInputs<'a, T> {
    /// states
    pub states: (&'a [T], Heads),
    /// added to the states
    pub bias: Option<&'a [f32]>,
    /// embeddings of relative positions
    pub table: (&'a [T], Numbers),
}

impl RelativeProducts {
    /// Products of the queries' states.
    pub const fn queries(index: Distances) -> Self {
        Self { index, by: By::Queries, factor: 1.0 }
    }

    /// Products of the keys' states.
    pub const fn keys(index: Distances) -> Self {
        Self { index, by: By::Keys, factor: 1.0 }
    }

    /// Refuses an index of its own rules, products of no states, and a factor that is not finite.
    ///
    /// # Errors
    /// [`Error::Value`] with the rule and the numbers.
    pub fn check(&self) -> Result<()> {
        self.index.check()?;
        if self.by == By::Table {
            return Err(Error::Value("products are by Table, they must be by Queries or Keys".into()));
        }
        if !self.factor.is_finite() {
            return Err(Error::Value(format!("the factor of products is {}, it must be finite", self.factor)));
        }
        Ok(())
    }

    /// Refuses states and tables of other sizes than the call has.
    fn check_shapes(&self, shape: &Logits, states: &Heads, table: &Numbers) -> Result<()> {
        let tokens = if self.by == By::Keys { shape.keys } else { shape.queries };
        let Heads { batch, tokens: own, heads, dim: width, .. } = *states;
        if [batch, own, heads] != [shape.batch, tokens, shape.heads] || width > MOST_WIDTH {
            return Err(Error::Value(format!(
                "states are [{batch}, {own}, {heads}, {width}], they must be [{}, {tokens}, {}, at most {MOST_WIDTH}]",
                shape.batch, shape.heads
            )));
        }
        let fits = |size: usize, of: usize| size == 1 || size == of;
        let entries = self.index.entries;
        if fits(table.batch, shape.batch)
            && fits(table.heads, shape.heads)
            && [table.rows, table.entries] == [entries, width]
        {
            return Ok(());
        }
        Err(Error::Value(format!(
            "the table is [{}, {}, {}, {}], it must be [{} or 1, {} or 1, {entries}, {width}]",
            table.batch, table.heads, table.rows, table.entries, shape.batch, shape.heads
        )))
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

/// A product in f64, and what bounds its error.
#[derive(Clone, Copy, Debug, Default)]
struct Dot {
    product: f64,
    /// products by their sizes, those of the rounded states
    sizes: f64,
    /// products of the states' rounding errors
    rounding: f64,
}

impl RelativeProducts {
    /// The largest error of a product when a kernel computes it in f32, before it is rounded to an element type; `sizes` is the sum
    /// of `|(a_c + v_c) R_c|` over channels, `rounding` that of the states' rounding errors by `|R_c|`, 0 without `v`.
    ///
    /// ```text
    /// |factor| * (rounding + steps * 2^-24 * sizes)
    /// steps = width + 2           f32, and the half types where there are no tensor cores for them: a rounding for each fmaf
    ///         3 * width + 10      f16 and bf16: tensor cores may cut, not round, each of the five numbers of a partial sum
    /// ```
    pub fn error_bound<T: Scalar>(&self, width: usize, sizes: f64, rounding: f64) -> f64 {
        let width = width as f64;
        let steps = if T::NAME == f32::NAME { width + 2.0 } else { 3.0 * width + 10.0 };
        f64::from(self.factor).abs() * (rounding + steps * f32::ROUNDOFF * sizes)
    }

    /// The product of a state and an entry.
    fn dot<T: Scalar>(&self, inputs: &ProductInputs<T>, [batch, head, token]: [usize; 3], entry: usize) -> Dot {
        let ((states, heads), (table, numbers)) = (inputs.states, inputs.table);
        let mut dot = Dot::default();
        for channel in 0..heads.dim {
            let own = states[heads.index(batch, token, head, channel)].to_f64();
            let bias = inputs.bias.map_or(0.0, |bias| f64::from(bias[head * heads.dim + channel]));
            let number = table[numbers.shared_index(batch, head, entry, channel)].to_f64();
            let state = own + bias;
            // The sum is rounded to f32, then to T.
            let error = if inputs.bias.is_some() { rounded::<T>(state, state.abs() * f32::ROUNDOFF) } else { 0.0 };
            dot.product += state * number;
            dot.sizes += (state.abs() + error) * number.abs();
            dot.rounding += error * number.abs();
        }
        dot
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl RelativeProducts {
    fn check_inputs<T: Scalar>(&self, shape: &Logits, inputs: &ProductInputs<T>) -> Result<()> {
        let ((states, heads), (table, numbers)) = (inputs.states, inputs.table);
        self.check()?;
        heads.check("states", states.len())?;
        numbers.check("table", table.len())?;
        self.check_shapes(shape, &heads, &numbers)?;
        let need = product("heads x width", &[heads.heads, heads.dim])?;
        match inputs.bias {
            Some(bias) if bias.len() < need => Err(Error::Length { name: "bias", got: bias.len(), need }),
            _ => Ok(()),
        }
    }

    /// The products of every query and key in f64, and the error allowed at each before it is rounded to an element type, both laid
    /// out as `shape`; 0 in between. Across packed sequences the product is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `shape` | | sizes and strides of the logits |
    /// | `inputs` | | states and table |
    /// | `places` | | positions of queries and keys |
    ///
    /// # Errors
    /// If the spec, a shape, a length or positions are refused.
    pub fn expect<T: Scalar>(
        &self,
        shape: &Logits,
        inputs: &ProductInputs<T>,
        places: &Places<&[i32]>,
    ) -> Result<ExpectedBias> {
        let len = shape.span()?;
        shape.check_written("out", len)?;
        places.check(shape)?;
        self.check_inputs(shape, inputs)?;
        let mut out = ExpectedBias { want: zeros("numbers of a bias", len)?, bound: zeros("numbers of a bias", len)? };
        for [batch, head, query] in shape.each_full_row() {
            for key in 0..shape.keys {
                let index = shape.index(batch, head, query, key);
                if places.packed.is_some() && !places.meet(shape, batch, query, key) {
                    out.want[index] = f64::NEG_INFINITY;
                    continue;
                }
                let entry = self.index.entry(places.query(shape, batch, query), places.key(shape, batch, key));
                let token = if self.by == By::Keys { key } else { query };
                let dot = entry.map_or_else(Dot::default, |entry| self.dot(inputs, [batch, head, token], entry));
                out.want[index] = f64::from(self.factor) * dot.product;
                out.bound[index] = self.error_bound::<T>(inputs.states.1.dim, dot.sizes, dot.rounding);
            }
        }
        Ok(out)
    }

    /// Writes the products of every query and key on the CPU. Across packed sequences the product is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `shape` | written |
    /// | `shape`, `inputs`, `places` | | as [`RelativeProducts::expect`] |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu).
    ///
    /// # Errors
    /// As [`RelativeProducts::expect`], or if `out` is too short. Nothing is written then.
    pub fn write<T: Scalar>(
        &self,
        out: &mut [T],
        shape: &Logits,
        inputs: &ProductInputs<T>,
        places: &Places<&[i32]>,
    ) -> Result<()> {
        shape.check("out", out.len())?;
        self.put(out, shape, inputs, places, |_, product| product)
    }

    /// Adds the products to logits in place on the CPU. Arguments, accuracy of the sum and errors as [`RelativeProducts::write`].
    ///
    /// # Errors
    /// As [`RelativeProducts::write`].
    pub fn add<T: Scalar>(
        &self,
        logits: &mut [T],
        shape: &Logits,
        inputs: &ProductInputs<T>,
        places: &Places<&[i32]>,
    ) -> Result<()> {
        shape.check("logits", logits.len())?;
        self.put(logits, shape, inputs, places, |logit, product| logit + product)
    }

    fn put<T: Scalar>(
        &self,
        x: &mut [T],
        shape: &Logits,
        inputs: &ProductInputs<T>,
        places: &Places<&[i32]>,
        sum: impl Fn(f64, f64) -> f64,
    ) -> Result<()> {
        let products = self.expect(shape, inputs, places)?.want;
        for [batch, head, query] in shape.each_full_row() {
            for key in 0..shape.keys {
                let index = shape.index(batch, head, query, key);
                x[index] = T::from_f64(sum(x[index].to_f64(), products[index]));
            }
        }
        Ok(())
    }
}

//! Any bias: its number for a query and a key, and its reference.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::{AsBias, BiasInputs, BiasPlan};
#[cfg(feature = "cuda")]
pub(crate) use plan::{Held, hold_places, rows};

#[cfg(feature = "cpu")]
use crate::bias::cpu;
use crate::bias::terms::Pair;
use crate::bias::{Fire, Slopes, Terms, Toeplitz};
use crate::memory::zeros;
use crate::position::Places;
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Any bias of this room.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Bias<'a> {
    /// nothing is added
    None,
    /// ALiBi
    Slopes(&'a Slopes),
    /// T5, KERPLE, Sandwich, or any law of distance
    Toeplitz(&'a Toeplitz),
    /// FIRE
    Fire(&'a Fire),
    /// a sum of terms: windows, products of states and a table, given indices, endpoints
    Terms(Terms<'a>),
}

/// ExpectedBias result of a bias: [`Bias::expect`].
#[derive(Clone, Debug)]
pub struct ExpectedBias {
    /// the true numbers
    pub want: Vec<f64>,
    /// the error allowed at each in f32, before it is rounded to an element type
    pub bound: Vec<f64>,
}

/// A window without ends.
pub(crate) const ALL: (i64, i64) = (i64::MIN, i64::MAX);

impl Bias<'_> {
    /// Refuses a bias for another number of heads or sequences, and a row that lacks a distance of the call.
    pub(crate) fn check(&self, shape: &Logits, places: &Places<&[i32]>, window: (i64, i64)) -> Result<()> {
        let heads = match self {
            Self::None => return Ok(()),
            Self::Terms(terms) => return terms.check(shape, places),
            Self::Slopes(slopes) => {
                slopes.check()?;
                check_sequences(slopes.batch, shape)?;
                slopes.heads
            }
            Self::Toeplitz(row) => {
                row.check()?;
                if !row.saturates {
                    let last = row.first + row.distances() as i64 - 1;
                    places.check_reach(shape, window, row.first, last)?;
                }
                row.heads
            }
            Self::Fire(fire) => {
                fire.check()?;
                fire.heads()
            }
        };
        check_heads(heads, shape)
    }
}

/// Refuses logits of other heads than the bias has.
pub(crate) fn check_heads(heads: usize, shape: &Logits) -> Result<()> {
    if heads == shape.heads {
        return Ok(());
    }
    Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", shape.heads)))
}

/// Refuses slopes of each sequence for another number of sequences.
fn check_sequences(batch: usize, shape: &Logits) -> Result<()> {
    if batch == 1 || batch == shape.batch {
        return Ok(());
    }
    Err(Error::Value(format!("slopes are for {batch} sequences, the logits have {}", shape.batch)))
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Bias<'_> {
    /// The bias of `head` of sequence `batch` for a query and a key at these positions. Terms take them for the places in the
    /// tensor too.
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn at(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        self.of(&Self::shape(batch, head, query, key), &pair(batch, head, query, key))
    }

    /// The largest error of [`Bias::at`] when an f32 kernel computes it, before it is rounded to an element type.
    ///
    /// | form | bound |
    /// |---|---|
    /// | `None`, `Toeplitz` | 0: the number itself is added |
    /// | `Slopes` | `\|bias\| * 2 * 2^-24` |
    /// | `Fire` | [`Fire::error_bound`] |
    /// | `Terms` | `(terms + 3) * 2^-24` of the sum of the terms' sizes; 0 for one that is a number itself |
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn error_bound(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        self.error_of(&Self::shape(batch, head, query, key), &pair(batch, head, query, key))
    }

    /// The least tensor that has a pair.
    fn shape(batch: usize, head: usize, query: i64, key: i64) -> Logits {
        let size = |at: i64| usize::try_from(at).map_or(1, |at| at + 1);
        Logits::bhqk(batch + 1, head + 1, size(query), size(key))
    }

    /// The bias of a pair of a call.
    pub(crate) fn of(&self, shape: &Logits, pair: &Pair) -> f64 {
        let Pair { batch, head, at: [query, key], .. } = *pair;
        match self {
            Self::None => 0.0,
            Self::Slopes(slopes) => slopes.bias(batch, head, key - query),
            Self::Toeplitz(row) => row.bias(head, key - query),
            Self::Fire(fire) => fire.bias(head, query, key),
            Self::Terms(terms) => terms.value(shape, pair),
        }
    }

    /// [`Bias::error_bound`] of a pair of a call.
    pub(crate) fn error_of(&self, shape: &Logits, pair: &Pair) -> f64 {
        let Pair { batch, head, at: [query, key], .. } = *pair;
        match self {
            Self::None | Self::Toeplitz(_) => 0.0,
            Self::Slopes(slopes) => Slopes::error_bound(slopes.bias(batch, head, key - query)),
            Self::Fire(fire) => fire.error_bound(head, fire.input(query, key)).unwrap_or(f64::INFINITY),
            Self::Terms(terms) => terms.error_bound(shape, pair),
        }
    }

    /// What a softmax's kernel adds to the error: its slopes are multiplied by the distance of the first of eight keys, and by
    /// the steps to the others.
    pub(crate) fn error_of_pack(&self, pair: &Pair) -> f64 {
        let Self::Slopes(slopes) = self else { return 0.0 };
        let Pair { batch, head, at: [query, key], .. } = *pair;
        // A key is 7 behind its pack's first at most, and takes the slope of its own side.
        let side = if key > query { 1 } else { -1 };
        let [own, step] = [key - query, side].map(|distance| slopes.bias(batch, head, distance).abs());
        if own.is_finite() && step.is_finite() { f32::ROUNDOFF * (own + 7.0 * step) } else { 0.0 }
    }
}

/// A pair that lies where it sits.
fn pair(batch: usize, head: usize, query: i64, key: i64) -> Pair {
    let index = |at: i64| usize::try_from(at).unwrap_or(0);
    Pair { batch, head, query: index(query), key: index(key), at: [query, key] }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Bias<'_> {
    /// Writes the bias of every query and key on the CPU. Across packed sequences the bias is -inf.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `shape` | written |
    /// | `shape` | | sizes and strides of `out`; a batch of more than 1 gets one bias per sequence |
    /// | `places` | | positions of queries and keys |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu).
    ///
    /// # Errors
    /// If the shape, the positions or the count of heads is refused. Nothing is written then.
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// let slopes = Alibi::new(1).slopes()?;
    /// let mut out = [0.0f32; 3];
    /// // One query at position 2 of a cache of three keys.
    /// Bias::Slopes(&slopes).write(&mut out, &Logits::bhqk(1, 1, 1, 3), &Places::counted(2, 0))?;
    /// assert_eq!(out, [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], shape: &Logits, places: &Places<&[i32]>) -> Result<()> {
        self.put("out", out, false, shape, places)
    }

    /// Adds the bias to logits in place on the CPU.
    ///
    /// Arguments, accuracy of the sum and errors as [`Bias::write`].
    ///
    /// # Errors
    /// As [`Bias::write`].
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// let slopes = Alibi::new(1).slopes()?;
    /// let mut logits = [1.0f32; 3];
    /// Bias::Slopes(&slopes).add(&mut logits, &Logits::bhqk(1, 1, 1, 3), &Places::counted(2, 0))?;
    /// assert_eq!(logits, [1.0 - 2.0 / 256.0, 1.0 - 1.0 / 256.0, 1.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn add<T: Scalar>(&self, logits: &mut [T], shape: &Logits, places: &Places<&[i32]>) -> Result<()> {
        self.put("logits", logits, true, shape, places)
    }

    /// The bias in f64 and the error allowed at each element when an f32 kernel computes it, both laid out as `shape`; 0 in between.
    /// Across packed sequences the bias is -inf.
    ///
    /// # Errors
    /// As [`Bias::write`].
    pub fn expect(&self, shape: &Logits, places: &Places<&[i32]>) -> Result<ExpectedBias> {
        let len = shape.span()?;
        shape.check_written("out", len)?;
        places.check(shape)?;
        self.check(shape, places, ALL)?;
        let mut out = ExpectedBias { want: zeros("numbers of a bias", len)?, bound: zeros("numbers of a bias", len)? };
        for (index, pair) in pairs(shape, places) {
            out.want[index] = pair.map_or(f64::NEG_INFINITY, |pair| self.of(shape, &pair));
            out.bound[index] = pair.map_or(0.0, |pair| self.error_of(shape, &pair));
        }
        Ok(out)
    }

    fn put<T: Scalar>(
        &self,
        name: &'static str,
        x: &mut [T],
        add: bool,
        shape: &Logits,
        places: &Places<&[i32]>,
    ) -> Result<()> {
        shape.check_written(name, x.len())?;
        places.check(shape)?;
        self.check(shape, places, ALL)?;
        #[cfg(feature = "cpu")]
        cpu::put(*self, x, add, shape, places);
        #[cfg(not(feature = "cpu"))]
        for (index, value) in self.plain(shape, places) {
            x[index] = T::from_f64(if add { x[index].to_f64() + value } else { value });
        }
        Ok(())
    }

    /// Index and bias of every query and key of a checked call, one after another.
    #[cfg(any(test, not(feature = "cpu")))]
    pub(super) fn plain<'a>(
        &'a self,
        shape: &'a Logits,
        places: &'a Places<&[i32]>,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        pairs(shape, places)
            .map(move |(index, pair)| (index, pair.map_or(f64::NEG_INFINITY, |pair| self.of(shape, &pair))))
    }
}

/// Index of every query and key, and where they are; `None` across packed sequences.
fn pairs<'a>(shape: &'a Logits, places: &'a Places<&[i32]>) -> impl Iterator<Item = (usize, Option<Pair>)> + 'a {
    shape.each_full_row().flat_map(move |[batch, head, query]| {
        (0..shape.keys).map(move |key| {
            let apart = places.packed.is_some() && !places.meet(shape, batch, query, key);
            let pair = (!apart).then(|| Pair::of(shape, places, [batch, head, query], key));
            (shape.index(batch, head, query, key), pair)
        })
    })
}

//! Any bias: its number for a query and a key, and its reference.

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::{AsBias, BiasInputs, BiasPlan};
#[cfg(feature = "cuda")]
pub(crate) use plan::{hold_places, rows};

#[cfg(feature = "cpu")]
use crate::bias::cpu;
use crate::bias::{Fire, Slopes, Toeplitz};
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
}

/// A window without ends.
pub(crate) const ALL: (i64, i64) = (i64::MIN, i64::MAX);

impl Bias<'_> {
    /// Refuses a bias for another number of heads or sequences, and a row that lacks a distance of the call.
    pub(crate) fn check<A>(&self, shape: &Logits, places: &Places<A>, window: (i64, i64)) -> Result<()> {
        let heads = match self {
            Self::None => return Ok(()),
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
    /// The bias of `head` of sequence `batch` for a query and a key at these positions.
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn at(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Slopes(slopes) => slopes.bias(batch, head, key - query),
            Self::Toeplitz(row) => row.bias(head, key - query),
            Self::Fire(fire) => fire.bias(head, query, key),
        }
    }

    /// The largest error of [`Bias::at`] when an f32 kernel computes it, before it is rounded to an element type.
    ///
    /// | form | bound |
    /// |---|---|
    /// | `None`, `Toeplitz` | 0: the number itself is added |
    /// | `Slopes` | `\|bias\| * 2 * 2^-24` |
    /// | `Fire` | [`Fire::error_bound`] |
    ///
    /// # Panics
    /// If there is no such head or sequence.
    pub fn error_bound(&self, batch: usize, head: usize, query: i64, key: i64) -> f64 {
        match self {
            Self::None | Self::Toeplitz(_) => 0.0,
            Self::Slopes(slopes) => Slopes::error_bound(slopes.bias(batch, head, key - query)),
            Self::Fire(fire) => fire.error_bound(head, fire.input(query, key)).unwrap_or(f64::INFINITY),
        }
    }
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
        shape.each_row().flat_map(move |[batch, head, query]| {
            (0..shape.keys).map(move |key| {
                let value = if places.packed.is_some() && !places.meet(shape, batch, query, key) {
                    f64::NEG_INFINITY
                } else {
                    self.at(batch, head, places.query(shape, batch, query), places.key(shape, batch, key))
                };
                (shape.index(batch, head, query, key), value)
            })
        })
    }
}

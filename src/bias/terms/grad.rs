//! Gradients of the numbers that a term reads.
//!
//! ```text
//! dvalues[b, h, row, entry] = factor * sum over the pairs (b, h, i, j) that read the number of grad[b, h, i, j]
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::TermGradPlan;

use super::{By, Index, Pair, Term, TermData, TermInputs};
use crate::memory::zeros;
use crate::position::Places;
use crate::shape::{Numbers, Shape};
use crate::{Error, Logits, Result, Scalar};

// ----------------------------------------------------------------------------------------------------------- reference

/// The gradient of a term's numbers, in f64.
///
/// More: [docs](crate::docs::bias#gradients-of-terms).
#[derive(Clone, Debug, PartialEq)]
pub struct TermGrad {
    /// laid out as the numbers, 0 in between
    pub values: Vec<f64>,
    /// the sum of the sizes of each value's addends, for [`TermGrad::error_bound`]
    pub sizes: Vec<f64>,
}

/// Which numbers of a term have the gradient: [`Index::Endpoints`] has two arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// the numbers; of endpoints those of the queries
    Numbers,
    /// of endpoints those of the keys
    KeyNumbers,
}

impl Term {
    /// The gradient of the numbers, summed over every pair that reads one; of [`Index::Endpoints`] of the queries' ends.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `grad` | `shape` | the gradient of every logit after the bias |
    /// | `places` | | positions of queries and keys |
    /// | `inputs` | | given indices and coordinates; no numbers |
    /// | `numbers` | | layout of the result; a size of 1 sums over that dimension. Endpoints have one entry: a second float has the same gradient |
    ///
    /// # Errors
    /// If the shape, the positions, the inputs or the layout is refused, or the term has no numbers.
    ///
    /// # Example
    /// ```
    /// use posenc::bias::{Numbers, Term, TermInputs, Window};
    /// use posenc::{Logits, Places};
    /// // A window of 1 x 2 tokens: the differences -1, 0 and 1 of query and key.
    /// let (term, inputs) = (Term::table(Window::swin(1, 2)), TermInputs::default());
    /// let (shape, places) = (Logits::bhqk(1, 1, 2, 2), Places::counted(0, 0));
    /// let grad = term.grad(&[1.0f32, 2.0, 4.0, 8.0], &shape, &places, &inputs, &Numbers::table(3, 1))?;
    /// assert_eq!(grad.values, [2.0, 9.0, 4.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn grad<T: Scalar>(
        &self,
        grad: &[T],
        shape: &Logits,
        places: &Places<&[i32]>,
        inputs: &TermInputs,
        numbers: &Numbers,
    ) -> Result<TermGrad> {
        self.grad_of(Of::Numbers, grad, shape, (places, inputs), numbers)
    }

    /// [`Term::grad`] of the keys' ends of [`Index::Endpoints`].
    ///
    /// # Errors
    /// As [`Term::grad`]; and if the term is no difference of endpoints.
    pub fn key_grad<T: Scalar>(
        &self,
        grad: &[T],
        shape: &Logits,
        places: &Places<&[i32]>,
        inputs: &TermInputs,
        numbers: &Numbers,
    ) -> Result<TermGrad> {
        self.grad_of(Of::KeyNumbers, grad, shape, (places, inputs), numbers)
    }

    fn grad_of<T: Scalar>(
        &self,
        of: Of,
        grad: &[T],
        shape: &Logits,
        (places, inputs): (&Places<&[i32]>, &TermInputs),
        numbers: &Numbers,
    ) -> Result<TermGrad> {
        shape.check("grad", grad.len())?;
        places.check(shape)?;
        self.check()?;
        self.check_grad_inputs(inputs)?;
        inputs.check_index(self, shape, places)?;
        self.check_grad_numbers(of, numbers, shape)?;
        let len = numbers.span()?;
        numbers.check_written("out", len)?;
        let factor = self.grad_factor(of);
        let mut out =
            TermGrad { values: zeros("gradients of a term", len)?, sizes: zeros("gradients of a term", len)? };
        for [batch, head, query] in shape.each_full_row() {
            for key in (0..shape.keys).filter(|&key| places.meet(shape, batch, query, key)) {
                let pair = Pair::of(shape, places, [batch, head, query], key);
                let Some(entry) = inputs.entry(self, shape, &pair) else { continue };
                let row = match (of, &self.index, self.by) {
                    (Of::KeyNumbers, ..) | (_, _, By::Keys) => key,
                    (_, Index::Whole | Index::Endpoints, _) | (_, _, By::Queries) => query,
                    (_, _, By::Table) => 0,
                };
                let index = numbers.shared_index(batch, head, row, entry);
                let addend = factor * grad[shape.index(batch, head, query, key)].to_f64();
                out.values[index] += addend;
                out.sizes[index] += addend.abs();
            }
        }
        Ok(out)
    }

    /// What multiplies the sum of a number: a key's end is subtracted.
    fn grad_factor(&self, of: Of) -> f64 {
        f64::from(self.factor) * if of == Of::KeyNumbers { -1.0 } else { 1.0 }
    }

    /// Refuses a term that reads no numbers.
    #[doc(hidden)]
    pub fn check_has_numbers(&self) -> Result<()> {
        if matches!(self.index, Index::Shifted(_)) {
            return Err(Error::Value("a term by shifted windows reads no numbers, there is no gradient".into()));
        }
        Ok(())
    }

    /// Refuses numbers, which a gradient does not read, and indices or coordinates that the term does not have.
    fn check_grad_inputs<N, U8, U16, I32>(&self, inputs: &TermData<N, U8, U16, I32>) -> Result<()> {
        self.check_has_numbers()?;
        if inputs.numbers.is_some() || inputs.key_numbers.is_some() {
            return Err(Error::Value("the gradient of a term does not depend on its numbers: leave them out".into()));
        }
        self.check_other_inputs(inputs)
    }

    /// Refuses a layout of other sizes than the numbers have.
    fn check_grad_numbers(&self, of: Of, numbers: &Numbers, shape: &Logits) -> Result<()> {
        let (name, rows) = match (&self.index, of) {
            (Index::Endpoints, Of::Numbers) => ("the gradients of the queries' ends", shape.queries),
            (Index::Endpoints, Of::KeyNumbers) => ("the gradients of the keys' ends", shape.keys),
            (_, Of::KeyNumbers) => {
                return Err(Error::Value(format!("a term by {} has no numbers of the keys' ends", self.name())));
            }
            (_, Of::Numbers) => return self.check_numbers(numbers, shape),
        };
        Self::check_ends(name, numbers, shape, [rows, 1])
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl TermGrad {
    /// The largest error of a kernel's value, for `size`, the sum of the sizes of its addends: `24 * 2^-24 * size`.
    ///
    /// A compensated sum is within `2 * 2^-24` of it, and there are at most three: of a warp, of a block and of all blocks. Before
    /// the first come up to eight additions, three of a lane's keys and five of a warp, and beside them a gate, and a factor with
    /// its own rounding.
    pub fn error_bound(size: f64) -> f64 {
        24.0 * f32::ROUNDOFF * size
    }
}

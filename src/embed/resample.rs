//! A learned table of a grid at another size: what a vision transformer does at another resolution.
//!
//! ```text
//! out[y, x] = sum over i, j of weight(rows, y, i) * weight(columns, x, j) * table[i, j]
//! ```

#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::ResamplePlan;

use crate::embed::{Along, GridSize, at_least, cpu};
use crate::filter::{Filter, Stand, Taps, taps};
use crate::shape::product;
use crate::{Error, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Arithmetic of the interpolation weights.
///
/// torch makes them in the table's type. In f32 a place among 64 inputs is off by up to 2e-6, and so are the weights, times
/// the filter's slope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Weighting {
    /// In f64; a kernel rounds them once, to f32.
    #[default]
    Exact,
    /// In f32, every operation in torch's order, with the multiplications and additions fused that its compiler fuses: the
    /// weights of torch 2.15 on a CPU with AVX2, to the bit. For parity with tables that torch resampled. An axis whose size stays
    /// is copied there, bicubic without antialiasing apart, even where a factor is not 1.
    TorchF32,
}

/// Resampling of a learned table: what to compute, without element type or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::embed#resample).
///
/// | field | meaning |
/// |---|---|
/// | `from`, `to` | the grids, one frame each |
/// | `filter` | interpolation filter |
/// | `antialias` | widens the filter where the grid shrinks, cuts it at the border and makes its weights sum to 1 |
/// | `factors` | rows and columns: new over old, where code gives factors in place of sizes; the step is their inverse |
/// | `align_corners` | the first and last outputs stand on the first and last inputs, in place of edges on edges |
/// | `prefix` | class and register tokens before the grid, copied |
/// | `weighting` | exact weights, or torch's in f32 |
///
/// | model | |
/// |---|---|
/// | Hugging Face's ViT, CLIP, SigLIP, DINOv2 | [`Resample::new`] |
/// | timm, Hugging Face's DINOv2 with registers | `antialias: true` |
/// | SigLIP 2, NaFlex | `filter: Bilinear, antialias: true` |
/// | Depth Anything's and DPT's heads, code with `align_corners=True` | `align_corners: true` |
/// | the original DINO and DINOv2 at n patches a side, from m | `factors: Some([(n + 0.1) / m, (n + 0.1) / m])` |
///
/// # Source
/// R. Keys, "Cubic convolution interpolation", 1981, equation 15; torch 2.15's `interpolate`.
///
/// # Example
/// ```
/// use posenc::embed::{Along, GridSize, Resample};
/// let resample = Resample::new(GridSize::image(14, 14), GridSize::image(16, 16));
/// let taps = resample.taps(Along::Rows, 8);
/// assert_eq!((taps.first, taps.weights.len()), (5, 4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Resample {
    /// the table's grid
    pub from: GridSize,
    /// the grid that is made
    pub to: GridSize,
    /// interpolation filter
    pub filter: Filter,
    /// widens the filter where the grid shrinks
    pub antialias: bool,
    /// new over old of rows and columns, where it is not the quotient of the sizes
    pub factors: Option<[f64; 2]>,
    /// the first and last outputs stand on the first and last inputs
    #[cfg_attr(feature = "serde", serde(default))]
    pub align_corners: bool,
    /// tokens before the grid
    pub prefix: usize,
    /// what the weights are made in
    pub weighting: Weighting,
}

/// Rows or columns of a grid, at most: each has weights of its own.
const MOST_SIDE: usize = 1 << 16;

impl Resample {
    /// Bicubic without antialiasing, from size to size, without prefix.
    pub const fn new(from: GridSize, to: GridSize) -> Self {
        Self {
            from,
            to,
            filter: Filter::Bicubic,
            antialias: false,
            factors: None,
            align_corners: false,
            prefix: 0,
            weighting: Weighting::Exact,
        }
    }

    /// Refuses a size of 0 or above 65536, frames, factors that are not finite and above 0 or that step outside the table, and
    /// aligned corners with factors, which torch passes over, or with antialiasing, where torch keeps the place of centres.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        for size in [self.from, self.to] {
            size.tokens()?;
            if size.rows.max(size.columns) > MOST_SIDE {
                return Err(Error::Value(format!(
                    "the grid has {} rows and {} columns, a resampling takes at most {MOST_SIDE} of both",
                    size.rows, size.columns
                )));
            }
            if size.frames != 1 {
                return Err(Error::Value(format!("the grid has {} frames, a table of images has 1", size.frames)));
            }
        }
        for (other, there) in [("factors", self.factors.is_some()), ("antialias", self.antialias)] {
            if self.align_corners && there {
                return Err(Error::Value(format!(
                    "align_corners and {other} are both given: the steps of aligned corners are made of the sizes alone, one of both is to be left out"
                )));
            }
        }
        for (along, factor) in [Along::Rows, Along::Columns].into_iter().zip(self.factors.into_iter().flatten()) {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(Error::Value(format!("a factor is {factor}, it must be finite and above 0")));
            }
            let (from, to) = self.sizes(along);
            let last = (to as f64 - 0.5) / factor;
            if last > from as f64 {
                return Err(Error::Value(format!(
                    "a factor is {factor:?}, the last of {to} outputs would stand at {last:?} of {from}"
                )));
            }
        }
        product("prefix + rows x columns", &[self.prefix.saturating_add(self.from.rows * self.from.columns)])?;
        Ok(())
    }

    fn sizes(&self, along: Along) -> (usize, usize) {
        match along {
            Along::Columns => (self.from.columns, self.to.columns),
            Along::Frames | Along::Rows => (self.from.rows, self.to.rows),
        }
    }

    fn tokens(&self, size: GridSize) -> usize {
        self.prefix + size.rows * size.columns
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Resample {
    /// The weights of output `index` along one axis.
    ///
    /// The output stands at `step * (index + 0.5)` with inputs at 0.5, 1.5 ...; `step` is the quotient of the sizes, or the
    /// inverse of the factor. With aligned corners it stands at `index * (from - 1) / (to - 1)` with inputs at 0, 1 ..., and one
    /// output alone at the first input. Without antialiasing, neighbours outside the table are its border. With it, the filter is
    /// widened by `step` where that is above 1, inputs outside are left out, and weights are divided by their sum.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn taps(&self, along: Along, index: usize) -> Taps {
        let (from, to) = self.sizes(along);
        assert!(index < to, "output {index} of {to}");
        let factor = self.factors.map(|[rows, columns]| if along == Along::Columns { columns } else { rows });
        let stand = match (self.align_corners, self.antialias) {
            (true, _) => Stand::Corners,
            (false, true) => Stand::Antialiased,
            (false, false) => Stand::Centres,
        };
        // Sizes that are counted from corner to corner.
        let (long, wide) = if self.align_corners { (from - 1, (to - 1).max(1)) } else { (from, to) };
        match self.weighting {
            Weighting::Exact => {
                let step = factor.map_or(long as f64 / wide as f64, |factor| 1.0 / factor);
                taps(from, step, index, self.filter, stand)
            }
            // Whatever the factor.
            Weighting::TorchF32 if from == to && (self.antialias || self.filter == Filter::Bilinear) => {
                Taps { first: index, weights: vec![1.0] }
            }
            Weighting::TorchF32 => {
                let step = factor.map_or(long as f32 / wide as f32, |factor| (1.0 / factor) as f32);
                taps(from, step, index, self.filter, stand)
            }
        }
    }

    /// The weights of input `index` in every output along one axis: the transpose.
    fn all_taps(&self, along: Along, transposed: bool) -> Vec<Taps> {
        let (from, to) = self.sizes(along);
        let taps: Vec<Taps> = (0..to).map(|index| self.taps(along, index)).collect();
        if !transposed {
            return taps;
        }
        let mut transpose = vec![Taps { first: 0, weights: Vec::new() }; from];
        for (output, Taps { first, weights }) in taps.iter().enumerate() {
            for (input, &weight) in transpose.iter_mut().skip(*first).zip(weights) {
                if input.weights.is_empty() {
                    input.first = output;
                }
                // An output between two readers that does not read it has the weight 0.
                input.weights.resize(output - input.first, 0.0);
                input.weights.push(weight);
            }
        }
        transpose
    }

    /// The largest error of an element before it is rounded to its type, from the sum of the magnitudes of its terms,
    /// `sum |row weight * column weight * value|`: `(taps + 4) * 2^-24` of it, `taps` the most taps of a row and of a
    /// column together. The transpose has its own.
    pub fn error_bound(taps: usize, magnitude: f64) -> f64 {
        (taps as f64 + 4.0) * f32::ROUNDOFF * magnitude + 4.0 * f32::TINY
    }

    /// The most taps of a row and of a column together, of the resampling or of its transpose.
    pub fn most_taps(&self, transposed: bool) -> usize {
        let most = |along| self.all_taps(along, transposed).iter().map(|taps| taps.weights.len()).max().unwrap_or(0);
        most(Along::Rows) + most(Along::Columns)
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Resample {
    /// Resamples a table on the CPU: f64 arithmetic, one rounding at the end.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[prefix + to.rows * to.columns, dim]` | written |
    /// | `table` | `[prefix + from.rows * from.columns, dim]` | read |
    ///
    /// # Accuracy
    /// [Half an ulp of `T`](Scalar#on-the-cpu), and 1e-15 of the terms.
    ///
    /// # Errors
    /// If the spec is refused, `dim` is 0, or a buffer is too short. Nothing is written then.
    ///
    /// # Source
    /// torch 2.15, `interpolate`.
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Filter, GridSize, Resample};
    /// let (from, to) = (GridSize::image(1, 2), GridSize::image(1, 4));
    /// let resample = Resample { filter: Filter::Bilinear, prefix: 1, ..Resample::new(from, to) };
    /// let mut out = [0.0f32; 5];
    /// resample.write(&mut out, &[9.0, 0.0, 4.0], 1)?;
    /// assert_eq!(out, [9.0, 0.0, 1.0, 3.0, 4.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write<T: Scalar>(&self, out: &mut [T], table: &[T], dim: usize) -> Result<()> {
        self.apply(out, table, dim, false)
    }

    /// The gradient of the table from the gradient of the resampled one, on the CPU: the transpose.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[prefix + from.rows * from.columns, dim]` | written |
    /// | `grad` | `[prefix + to.rows * to.columns, dim]` | read |
    ///
    /// # Errors
    /// As [`Resample::write`].
    ///
    /// # Example
    /// ```
    /// use posenc::embed::{Filter, GridSize, Resample};
    /// let (from, to) = (GridSize::image(1, 2), GridSize::image(1, 4));
    /// let resample = Resample { filter: Filter::Bilinear, ..Resample::new(from, to) };
    /// // The second of four lies at a quarter of the way from the first of two to the second.
    /// let mut table = [0.0f32; 2];
    /// resample.write_grad(&mut table, &[0.0, 1.0, 0.0, 0.0], 1)?;
    /// assert_eq!(table, [0.75, 0.25]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn write_grad<T: Scalar>(&self, table: &mut [T], grad: &[T], dim: usize) -> Result<()> {
        self.apply(table, grad, dim, true)
    }

    fn apply<T: Scalar>(&self, out: &mut [T], table: &[T], dim: usize, transposed: bool) -> Result<()> {
        self.check()?;
        if dim == 0 {
            return Err(Error::Value("dim is 0, it must be at least 1".into()));
        }
        let (from, to) = self.grids(transposed);
        at_least("table", table.len(), product("tokens x dim", &[self.tokens(from), dim])?)?;
        at_least("out", out.len(), product("tokens x dim", &[self.tokens(to), dim])?)?;
        let (rows, columns) = (self.all_taps(Along::Rows, transposed), self.all_taps(Along::Columns, transposed));
        out[..self.prefix * dim].copy_from_slice(&table[..self.prefix * dim]);
        let skip = self.prefix * dim;
        cpu::resample(&mut out[skip..], &table[skip..], dim, (from, to), (&rows, &columns));
        Ok(())
    }

    /// The grids that are read and written.
    const fn grids(&self, transposed: bool) -> (GridSize, GridSize) {
        if transposed { (self.to, self.from) } else { (self.from, self.to) }
    }
}

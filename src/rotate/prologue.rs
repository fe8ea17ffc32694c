//! Between a projection and attention: bias, norm and rotation of queries, keys and values, out to tensors and a cache.

mod codes;
#[cfg(feature = "cuda")]
mod plan;

#[cfg(feature = "cuda")]
pub use plan::{Cache, CodeScale, Codes, Projected, PrologueCall, ProloguePlan, Stored};

pub use codes::Code8;

use crate::accuracy::{Expected, rounded};
use crate::position::Positions;
use crate::rotate::{Angles, QueryScale, Rope};
use crate::shape::{Shape, product};
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// What happens to queries, keys and values between their projection and attention: what to compute, without shape, element
/// type or device.
///
/// Formulas, sources and disagreements: [docs](crate::docs::prologue#formula).
///
/// ```text
/// z = x + bias
/// n = z / sqrt(mean(z^2) + eps) * weight
/// y = rotated(n) * scale(position)
/// ```
///
/// Each step is optional, for queries, keys and values apart.
///
/// | field | meaning |
/// |---|---|
/// | `rope` | the rotation; `None`: nothing is rotated |
/// | `q`, `k`, `v` | what is done with queries, keys and values |
/// | `rope_first` | the rotation comes before the norm |
/// | `query_scale` | factor on queries by their position |
///
/// # Example
/// ```
/// use posenc::rotate::{Branch, HeadNorm};
/// use posenc::{Prologue, Rope};
/// // Qwen3: an RMS norm of each head of queries and keys, then RoPE; values as they are.
/// let normed = Branch { norm: Some(HeadNorm::rms(1e-6)), ..Branch::rotated() };
/// let qwen3 = Prologue { q: normed, k: normed, ..Prologue::new(Rope::new(128, 1e6)) };
/// qwen3.check()?;
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Prologue {
    /// the rotation
    pub rope: Option<Rope>,
    /// what is done with queries
    pub q: Branch,
    /// what is done with keys
    pub k: Branch,
    /// what is done with values
    pub v: Branch,
    /// The rotation comes before the norm: Hunyuan, Llama 4's keys and queries.
    pub rope_first: bool,
    /// factor on queries by their position on the first axis, those below 0 as 0
    pub query_scale: QueryScale,
}

/// What is done with one of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Branch {
    /// a bias `[heads, dim]` is added
    pub bias: bool,
    /// each head is divided by its root mean square or its norm
    pub norm: Option<HeadNorm>,
    /// pairs are rotated
    pub rope: bool,
    /// where values are rounded to the element type
    pub rounding: Rounding,
}

impl Branch {
    /// Rotated, and nothing else.
    pub const fn rotated() -> Self {
        Self { rope: true, ..Self::plain() }
    }

    /// Left as it is.
    pub const fn plain() -> Self {
        Self { bias: false, norm: None, rope: false, rounding: Rounding::Once }
    }
}

/// The norm of a head.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `kind` | | what divides |
/// | `weight` | | what multiplies afterwards |
/// | `eps` | squared | added under the root |
/// | `over` | | channels of one norm |
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HeadNorm {
    /// what divides
    pub kind: NormKind,
    /// what multiplies afterwards
    pub weight: NormWeight,
    /// added under the root
    pub eps: f64,
    /// channels of one norm
    pub over: NormOver,
}

impl HeadNorm {
    /// An RMS norm of each head with a weight: Qwen3.
    pub const fn rms(eps: f64) -> Self {
        Self { kind: NormKind::Rms, weight: NormWeight::Weight, eps, over: NormOver::Head }
    }
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NormKind {
    /// `sqrt(mean(x^2) + eps)`. Llama 4's norm of that name is this one without a weight.
    #[default]
    Rms,
    /// `sqrt(sum(x^2) + eps)`
    L2,
}

/// What a norm multiplies by afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NormWeight {
    /// nothing: Gemma 4's values, Llama 4
    None,
    /// the weight
    #[default]
    Weight,
    /// 1 + the weight: Gemma 3, Qwen3-Next
    OnePlusWeight,
}

/// Channels of one norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NormOver {
    /// Those of a head, with a weight `[dim]` for all heads.
    #[default]
    Head,
    /// Those of all heads of a token, with a weight `[heads, dim]`: OLMo 2, MiniMax, Wan.
    AllHeads,
}

/// Where values are rounded to the element type, beside the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rounding {
    /// Nowhere: closest to the formula.
    #[default]
    Once,
    /// After each step that changes a value: the bits of separate operations.
    Steps,
    /// After each step, and before the norm's weight: Hugging Face's Llama-type norms, whose weight multiplies what was rounded.
    BeforeWeight,
}

/// One of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qkv {
    /// queries
    Query,
    /// keys
    Key,
    /// values
    Value,
}

/// Vectors that one branch reads: `S` is `&[T]` on the CPU and a device buffer on a device.
#[derive(Clone, Copy)]
pub struct Vectors<S> {
    /// of the norm: `[dim]`, or `[heads, dim]` over all heads
    pub weight: Option<S>,
    /// `[heads, dim]`
    pub bias: Option<S>,
}

impl<S> std::fmt::Debug for Vectors<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [weight, bias] = [self.weight.is_some(), self.bias.is_some()];
        f.debug_struct("Vectors").field("weight", &weight).field("bias", &bias).finish()
    }
}

impl<S> Vectors<S> {
    /// There are none.
    pub const fn none() -> Self {
        Self { weight: None, bias: None }
    }

    /// The weight of a norm alone.
    pub const fn weight(weight: S) -> Self {
        Self { weight: Some(weight), bias: None }
    }
}

/// The row of a cache that each token takes. A cache is `[pages, rows of a page, heads, dim]` in any order of memory, which
/// [`Heads`] describes: its `batch` counts pages and its `tokens` the rows of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheRows<A> {
    /// A slot for each token, `[batch, tokens]`: `page * rows of a page + row`. A token whose slot is below 0 is not cached. Slots
    /// of different tokens differ.
    Slots(A),
    /// Row `n` of a sequence is row `n % rows of a page` of page `table[sequence, n / rows of a page]`.
    Pages {
        /// `[sequences, width]`
        table: A,
        /// pages of a sequence
        width: usize,
        /// the row in its sequence that each token takes, given like positions; a token whose row is below 0 is not cached
        rows: Positions<A>,
    },
    /// A page for each sequence: a contiguous cache. Rows as in [`CacheRows::Pages`].
    Rows(Positions<A>),
}

/// A cache on the CPU.
#[derive(Debug)]
pub struct HostCache<'a, T> {
    /// elements, or codes
    pub x: HostStored<'a, T>,
    /// pages, rows of a page, heads and channels, with their strides
    pub shape: Heads,
    /// the row of each token
    pub rows: CacheRows<&'a [i64]>,
}

/// What a cache on the CPU holds.
#[derive(Debug)]
pub enum HostStored<'a, T> {
    /// the element type
    Same(&'a mut [T]),
    /// eight bits
    Codes {
        /// codes; with [`HostScale::Inline`] their scales too
        x: &'a mut [u8],
        /// which
        code: Code8,
        /// what codes are multiplied by
        scale: HostScale<'a>,
    },
}

/// What codes on the CPU are multiplied by.
#[derive(Debug)]
pub enum HostScale<'a> {
    /// one for all, or one for each head
    Given(&'a [f32]),
    /// of each token and head, by its largest magnitude: written in the shape `[pages, rows of a page, heads, 1]`
    Dynamic(&'a mut [f32], Heads),
    /// the same, in the four bytes behind the channels of a head, of which the cache has 16 more
    Inline,
}

/// Bytes behind the channels of a head that its scale is kept in.
const TAIL: usize = 16;

/// Channels of a head, at most.
const MOST_DIM: usize = 1024;
/// Pairs of a head, at most.
const MOST_PAIRS: usize = 512;

impl Prologue {
    /// Queries and keys rotated, values as they are.
    pub const fn new(rope: Rope) -> Self {
        Self {
            rope: Some(rope),
            q: Branch::rotated(),
            k: Branch::rotated(),
            v: Branch::plain(),
            rope_first: false,
            query_scale: QueryScale::One,
        }
    }

    /// Nothing is done: a write into the cache.
    pub const fn plain() -> Self {
        let plain = Branch::plain();
        Self { rope: None, q: plain, k: plain, v: plain, rope_first: false, query_scale: QueryScale::One }
    }

    /// What is done with one of queries, keys and values.
    pub const fn branch(&self, which: Qkv) -> &Branch {
        match which {
            Qkv::Query => &self.q,
            Qkv::Key => &self.k,
            Qkv::Value => &self.v,
        }
    }

    /// The rotation of a branch, if it has one.
    fn rope_of(&self, which: Qkv) -> Option<&Rope> {
        self.rope.as_ref().filter(|rope| self.branch(which).rope && !rope.is_none())
    }

    /// Axes of a token's position.
    pub(crate) fn position_axes(&self) -> usize {
        self.rope.as_ref().map_or(1, Rope::position_axes)
    }

    /// Refuses a spec outside the law.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        for which in [Qkv::Query, Qkv::Key, Qkv::Value] {
            let branch = self.branch(which);
            if branch.rope && self.rope.is_none() {
                return wrong(format!("{} is to be rotated, the prologue has no rope", which.name()));
            }
            if let Some(HeadNorm { eps, .. }) = branch.norm
                && !(eps >= 0.0 && (eps as f32).is_finite())
            {
                return wrong(format!("eps of {} is {eps}, it must be finite and at least 0", which.name()));
            }
        }
        if let Some(rope) = &self.rope {
            rope.check()?;
            if matches!(rope.angles, Angles::Mixed(_)) {
                return wrong(
                    "mixed angles have frequencies of their own for each head, a prologue has one set".into(),
                );
            }
            if rope.pairs() > MOST_PAIRS {
                return wrong(format!(
                    "rotary is {}, a prologue rotates at most {} channels",
                    rope.rotary,
                    2 * MOST_PAIRS
                ));
            }
        }
        self.query_scale.check()
    }

    /// Refuses heads, vectors and their lengths that do not go with a branch.
    fn check_branch(&self, which: Qkv, heads: &Heads, lengths: Vectors<usize>) -> Result<()> {
        let (branch, name) = (self.branch(which), which.name());
        let wrong = |text: String| Err(Error::Value(text));
        if heads.dim > MOST_DIM {
            return wrong(format!("{name} has heads of {} channels, a prologue takes at most {MOST_DIM}", heads.dim));
        }
        if let Some(rope) = self.rope_of(which) {
            rope.check_fits(heads.dim)?;
        }
        let all = product("heads x channels", &[heads.heads, heads.dim])?;
        let weight = branch.norm.filter(|norm| norm.weight != NormWeight::None).map(|norm| match norm.over {
            NormOver::Head => heads.dim,
            NormOver::AllHeads => all,
        });
        let bias = branch.bias.then_some(all);
        for (what, need, got) in [("weight", weight, lengths.weight), ("bias", bias, lengths.bias)] {
            match (need, got) {
                (None, None) => {}
                (Some(need), Some(got)) if got >= need => {}
                (Some(need), Some(got)) => {
                    return wrong(format!("the {what} of {name} holds {got} elements, {need} are needed"));
                }
                (Some(need), None) => return wrong(format!("{name} needs a {what} of {need} elements, there is none")),
                (None, Some(_)) => return wrong(format!("there is a {what} of {name}, the prologue has none")),
            }
        }
        Ok(())
    }
}

impl Qkv {
    /// `q`, `k` or `v`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Query => "q",
            Self::Key => "k",
            Self::Value => "v",
        }
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

/// A value, and the largest error of a device's.
#[derive(Clone, Copy)]
struct Value {
    x: f64,
    error: f64,
}

const EPS: f64 = f32::ROUNDOFF;

impl Value {
    const fn exact(x: f64) -> Self {
        Self { x, error: 0.0 }
    }

    /// One more rounding to f32.
    fn rounded(self) -> Self {
        Self { error: self.error + (self.x.abs() + self.error) * EPS + f32::TINY, ..self }
    }

    fn times(self, by: Self) -> Self {
        let error = self.error * (by.x.abs() + by.error) + self.x.abs() * by.error;
        Self { x: self.x * by.x, error }.rounded()
    }
}

impl QueryScale {
    /// The factor at a position, as a device has it.
    fn value(&self, position: i64) -> Value {
        let x = self.at(position.max(0) as u64);
        let by = match *self {
            Self::One => return Value::exact(1.0),
            Self::Llama4 { scale, .. } | Self::Inkling { scale, .. } => scale,
            Self::Mistral { beta, .. } => beta,
            Self::LogN { train_length } => 1.0 / train_length.ln(),
        };
        // The logarithm is within 1.3e-7 of itself, its argument and its factor are rounded.
        Value { x, error: x * (1.3e-7 + 3.0 * EPS) + by * 2.0 * EPS }
    }
}

impl HeadNorm {
    /// `1 / sqrt(mean(z^2) + eps)` of the channels of one norm, those of `heads` heads.
    fn inverse(&self, z: &[Value], heads: usize) -> Value {
        let share = if self.kind == NormKind::Rms { 1.0 / z.len() as f64 } else { 1.0 };
        let squares: f64 = z.iter().map(|z| z.x * z.x).sum();
        let under = squares * share + self.eps;
        // Squares and a tree of ten levels, heads in eight runs, the share and the sum with eps.
        let depth = 15.0 + if self.over == NormOver::AllHeads { heads as f64 / 8.0 + 4.0 } else { 0.0 };
        let spread: f64 = z.iter().map(|z| (2.0 * z.x.abs() + z.error) * z.error + 2.0 * f32::TINY).sum();
        let relative = depth * EPS + if under > 0.0 { spread * share / under } else { 0.0 };
        let x = 1.0 / under.sqrt();
        Value { x, error: x * (0.51 * relative + 2.0 * EPS) }
    }

    /// One channel after the norm.
    fn apply(&self, z: Value, inverse: Value, weight: Option<f64>, before_weight: impl Fn(Value) -> Value) -> Value {
        let n = z.times(inverse);
        match (weight, self.weight) {
            (Some(weight), NormWeight::OnePlusWeight) => before_weight(n).times(Value::exact(1.0 + weight).rounded()),
            (Some(weight), _) => before_weight(n).times(Value::exact(weight)),
            (None, _) => n,
        }
    }
}

/// What writes one element of a tensor.
type Put<'a, T> = &'a dyn Fn(usize, T);

/// A rounding to the element type: of a value that is computed, or of the error of one that is not rounded.
type Step<'a> = &'a dyn Fn(Value) -> Value;

impl Prologue {
    /// All steps for one token: `z` holds the channels of all heads, `turns` sine and cosine of each pair.
    fn token(
        &self,
        which: Qkv,
        z: &mut [Value],
        dim: usize,
        vectors: Vectors<&dyn Fn(usize) -> f64>,
        (turns, position): (&[(f64, f64)], i64),
        step: Step<'_>,
    ) {
        let branch = self.branch(which);
        let heads = z.len() / dim;
        let rounds = branch.rounding != Rounding::Once;
        let after = |value| if rounds { step(value) } else { value };
        if let Some(bias) = vectors.bias {
            for (i, z) in z.iter_mut().enumerate() {
                *z = after(Value { x: z.x + bias(i), error: z.error }.rounded());
            }
        }
        let norm = |z: &mut [Value]| {
            let Some(norm) = branch.norm else { return };
            let all = norm.over == NormOver::AllHeads;
            for group in z.chunks_exact_mut(if all { heads * dim } else { dim }) {
                let inverse = norm.inverse(group, heads);
                for (i, z) in group.iter_mut().enumerate() {
                    let before = |n| if branch.rounding == Rounding::BeforeWeight { step(n) } else { n };
                    *z = after(norm.apply(*z, inverse, vectors.weight.map(|weight| weight(i)), before));
                }
            }
        };
        let turn = |z: &mut [Value]| {
            let Some(rope) = self.rope_of(which) else { return };
            let mut rotated = Vec::new();
            for head in z.chunks_exact_mut(dim) {
                let head = &mut head[rope.first_channel(dim)..][..rope.rotary];
                rotated.clear();
                for (pair, &(sin, cos)) in turns.iter().enumerate() {
                    let (a, b) = rope.channels(rope.pairing, pair);
                    let (a, b) = (head[a], head[b]);
                    let own = rope.error_bound(a.x.abs() + a.error, b.x.abs() + b.error);
                    let spread = |s: f64, c: f64| a.error * c.abs() + b.error * s.abs() + own;
                    rotated.push([
                        Value { x: a.x * cos - b.x * sin, error: spread(sin, cos) },
                        Value { x: a.x * sin + b.x * cos, error: spread(cos, sin) },
                    ]);
                }
                for (pair, values) in rotated.iter().enumerate() {
                    let (a, b) = rope.channels(rope.written(), pair);
                    (head[a], head[b]) = (after(values[0]), after(values[1]));
                }
            }
        };
        if self.rope_first {
            turn(z);
            norm(z);
        } else {
            norm(z);
            turn(z);
        }
        if which == Qkv::Query && self.query_scale != QueryScale::One {
            let scale = self.query_scale.value(position);
            z.iter_mut().for_each(|z| *z = z.times(scale));
        }
    }

    /// Goes through all tokens; `put` gets batch, token and the values of all its heads.
    fn each_token<T: Scalar>(
        &self,
        which: Qkv,
        (x, heads): (&dyn Fn(usize) -> T, &Heads),
        vectors: Vectors<&[T]>,
        positions: Positions<&[i64]>,
        step: Step<'_>,
        mut put: impl FnMut(usize, usize, &[Value]),
    ) -> Result<()> {
        self.check()?;
        self.check_branch(which, heads, vectors.lengths())?;
        let axes = self.position_axes();
        let positions = positions.resolve(axes, heads.batch, heads.tokens)?;
        let row = heads.batch * heads.tokens;
        let sin_cos = self.rope.as_ref().map(Rope::sin_cos);
        let (pairs, factor) = self.rope.as_ref().map_or((0, 1.0), |rope| (rope.pairs(), rope.attention_factor));
        let bias = vectors.bias.map(|bias| move |i: usize| bias[i].to_f64());
        let weight = vectors.weight.map(|weight| move |i: usize| weight[i].to_f64());
        let vectors = Vectors {
            weight: weight.as_ref().map(|weight| weight as &dyn Fn(usize) -> f64),
            bias: bias.as_ref().map(|bias| bias as &dyn Fn(usize) -> f64),
        };
        let mut z = vec![Value::exact(0.0); product("heads x channels", &[heads.heads, heads.dim])?];
        for batch in 0..if heads.is_empty() { 0 } else { heads.batch } {
            for token in 0..heads.tokens {
                let at: Vec<i64> = (0..axes).map(|axis| positions[axis * row + batch * heads.tokens + token]).collect();
                let turns: Vec<_> = (0..pairs)
                    .filter_map(|pair| sin_cos.as_ref().map(|sin_cos| sin_cos(0, pair, &at)))
                    .map(|(sin, cos)| (sin * factor, cos * factor))
                    .collect();
                for (i, z) in z.iter_mut().enumerate() {
                    *z = Value::exact(x(heads.index(batch, token, i / heads.dim, i % heads.dim)).to_f64());
                }
                self.token(which, &mut z, heads.dim, vectors, (&turns, at[0]), step);
                put(batch, token, &z);
            }
        }
        Ok(())
    }
}

impl<T> Vectors<&[T]> {
    fn lengths(&self) -> Vectors<usize> {
        Vectors { weight: self.weight.map(<[T]>::len), bias: self.bias.map(<[T]>::len) }
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Prologue {
    /// The wanted values of a device in f64 and the error allowed at each, `[batch, tokens, heads, dim]` contiguous.
    ///
    /// The error, before it is rounded to the element type, is that of [`Rope::error_bound`] for the rotation of what came before
    /// it, and relative to the value `16 * 2^-24` for a norm of each head, `2^-24` for a bias, and `1.3e-7 + 5 * 2^-24` for a
    /// factor of the position; [`Rounding::Steps`] adds a rounding for each step. It holds where squares and their sum stay in
    /// the normal range of f32. A channel that no step changes is exact.
    ///
    /// # Errors
    /// As [`Prologue::apply`].
    pub fn expect<'a, T: Scalar>(
        &self,
        which: Qkv,
        (x, heads): (&[T], &Heads),
        vectors: Vectors<&[T]>,
        positions: impl Into<Positions<&'a [i64]>>,
    ) -> Result<Expected> {
        heads.check(which.name(), x.len())?;
        let (mut want, mut bound) = (Vec::new(), Vec::new());
        let step = |z: Value| Value { error: rounded::<T>(z.x, z.error), ..z };
        self.each_token(which, (&|at| x[at], heads), vectors, positions.into(), &step, |_, _, z| {
            want.extend(z.iter().map(|z| z.x));
            bound.extend(z.iter().map(|z| if z.error == 0.0 { 0.0 } else { rounded::<T>(z.x, z.error) }));
        })?;
        Ok(Expected { want, bound })
    }

    /// Applies the prologue to queries, keys or values on the CPU, in place.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `x` | `heads` | changed in place |
    /// | `vectors` | [`Vectors`] | what the branch reads beside |
    /// | `positions` | see [`Positions`] | any integers; a slice holds `[axes, batch, tokens]` |
    /// | `cache` | [`HostCache`] | written too; `None`: there is none |
    ///
    /// # Accuracy
    /// Each step in f64, its result rounded to f32 and from there to `T` where the spec rounds.
    ///
    /// # Errors
    /// If the spec or a shape is refused, a vector is missing or too short, or a row lies outside the cache. Nothing is written
    /// then.
    ///
    /// # Example
    /// ```
    /// use posenc::rotate::{Branch, HeadNorm, Qkv, Vectors};
    /// use posenc::{Heads, Positions, Prologue};
    /// let norm = Some(HeadNorm::rms(0.0));
    /// let prologue = Prologue { q: Branch { norm, ..Branch::plain() }, ..Prologue::plain() };
    /// let mut q = [3.0f32, 4.0, 0.0, 0.0];
    /// let weight = Vectors::weight(&[1.0f32, 1.0, 1.0, 1.0][..]);
    /// prologue.apply(Qkv::Query, &mut q, &Heads::thd(1, 1, 4), weight, Positions::counted(), None)?;
    /// assert_eq!(q, [1.2, 1.6, 0.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn apply<'a, T: Scalar>(
        &self,
        which: Qkv,
        x: &mut [T],
        heads: &Heads,
        vectors: Vectors<&[T]>,
        positions: impl Into<Positions<&'a [i64]>>,
        cache: Option<HostCache<'_, T>>,
    ) -> Result<()> {
        heads.check_written(which.name(), x.len())?;
        // Each token is read before it is written.
        let x = std::cell::Cell::from_mut(x).as_slice_of_cells();
        let to = |at: usize, value: T| x[at].set(value);
        self.run(which, (&|at| x[at].get(), heads), vectors, positions.into(), Some((&to, heads)), cache)
    }

    /// [`Prologue::apply`] of what stays as it is: into another tensor of the same sizes, into a cache, or both.
    ///
    /// # Errors
    /// As [`Prologue::apply`], and if sizes differ.
    pub fn apply_to<'a, T: Scalar>(
        &self,
        which: Qkv,
        (x, heads): (&[T], &Heads),
        out: Option<(&mut [T], &Heads)>,
        vectors: Vectors<&[T]>,
        positions: impl Into<Positions<&'a [i64]>>,
        cache: Option<HostCache<'_, T>>,
    ) -> Result<()> {
        heads.check(which.name(), x.len())?;
        let x = |at: usize| x[at];
        let Some((out, out_heads)) = out else {
            return self.run(which, (&x, heads), vectors, positions.into(), None, cache);
        };
        out_heads.check_written("out", out.len())?;
        heads.check_same(which.name(), out_heads, "out")?;
        let out = std::cell::Cell::from_mut(out).as_slice_of_cells();
        let to = |at: usize, value: T| out[at].set(value);
        self.run(which, (&x, heads), vectors, positions.into(), Some((&to, out_heads)), cache)
    }

    /// Refuses what [`Prologue::apply`] does, but for the lengths of tensors.
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    pub fn check_call<T>(
        &self,
        which: Qkv,
        heads: &Heads,
        vectors: Vectors<&[T]>,
        positions: Positions<&[i64]>,
        cache: Option<&HostCache<'_, T>>,
    ) -> Result<()> {
        self.check()?;
        self.check_branch(which, heads, vectors.lengths())?;
        positions.resolve(self.position_axes(), heads.batch, heads.tokens)?;
        let Some(cache) = cache else { return Ok(()) };
        cache.x.check(which, heads, &cache.shape)?;
        cache.rows.resolve(heads.batch, heads.tokens, &cache.shape).map(|_| ())
    }

    /// One branch of checked tensors.
    fn run<T: Scalar>(
        &self,
        which: Qkv,
        x: (&dyn Fn(usize) -> T, &Heads),
        vectors: Vectors<&[T]>,
        positions: Positions<&[i64]>,
        out: Option<(Put<'_, T>, &Heads)>,
        mut cache: Option<HostCache<'_, T>>,
    ) -> Result<()> {
        let heads = x.1;
        let rows = match &cache {
            None => Vec::new(),
            Some(cache) => {
                cache.x.check(which, heads, &cache.shape)?;
                cache.rows.resolve(heads.batch, heads.tokens, &cache.shape)?
            }
        };
        let narrow = |z: f64| T::from_f32(z as f32);
        let step = |z: Value| Value::exact(narrow(z.x).to_f64());
        let rounds = self.branch(which).rounding != Rounding::Once;
        self.each_token(which, x, vectors, positions, &step, |batch, token, z| {
            for (head, z) in z.chunks_exact(heads.dim).enumerate() {
                for (channel, z) in z.iter().enumerate() {
                    let value = narrow(z.x);
                    if let Some((to, shape)) = out {
                        to(shape.index(batch, token, head, channel), value);
                    }
                    if let Some(HostCache { x: HostStored::Same(x), shape, .. }) = &mut cache
                        && let Some([page, row]) = rows[batch * heads.tokens + token]
                    {
                        x[shape.index(page, row, head, channel)] = value;
                    }
                }
                if let Some(HostCache { x: HostStored::Codes { x, code, scale }, shape, .. }) = &mut cache
                    && let Some([page, row]) = rows[batch * heads.tokens + token]
                {
                    let value = |z: &Value| if rounds { narrow(z.x).to_f64() as f32 } else { z.x as f32 };
                    let values: Vec<f32> = z.iter().map(value).collect();
                    let at = shape.index(page, row, head, 0);
                    let scale = scale.of(&values, *code, [page, row, head], &mut x[at + heads.dim..]);
                    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    for (x, value) in x[at..].iter_mut().zip(values) {
                        *x = code.encode(value * factor);
                    }
                }
            }
        })
    }
}

impl<T> HostStored<'_, T> {
    /// Refuses lengths and shapes that do not go with the heads that are stored.
    fn check(&self, which: Qkv, heads: &Heads, shape: &Heads) -> Result<()> {
        match self {
            Self::Same(x) => {
                shape.check_written("the cache", x.len())?;
                check_cache(which, heads, shape, 0)
            }
            Self::Codes { x, scale, .. } => {
                shape.check_written("the cache", x.len())?;
                check_cache(which, heads, shape, if matches!(scale, HostScale::Inline) { TAIL } else { 0 })?;
                match scale {
                    HostScale::Given(scales) => {
                        check_scales(which, heads, scales.len())?;
                        let usable = |scale: f32| [scale, 1.0 / scale].iter().all(|x| *x > 0.0 && x.is_finite());
                        match scales.iter().find(|&&scale| !usable(scale)) {
                            None => Ok(()),
                            Some(scale) => Err(Error::Value(format!(
                                "a scale of {} is {scale}, it must be above 0 and finite, and so its inverse",
                                which.name()
                            ))),
                        }
                    }
                    HostScale::Dynamic(scales, of) => {
                        of.check_written("the scales", scales.len())?;
                        check_scale_shape(which, of, shape)
                    }
                    HostScale::Inline => Ok(()),
                }
            }
        }
    }
}

impl HostScale<'_> {
    /// The scale of one head, which is kept where it is made.
    fn of(&mut self, values: &[f32], code: Code8, [page, row, head]: [usize; 3], tail: &mut [u8]) -> f32 {
        let dynamic = || {
            let scale = values.iter().fold(0f32, |most, value| most.max(value.abs())) / code.most();
            if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
        };
        match self {
            Self::Given(scales) => scales[if scales.len() == 1 { 0 } else { head }],
            Self::Dynamic(scales, shape) => {
                let scale = dynamic();
                scales[shape.index(page, row, head, 0)] = scale;
                scale
            }
            Self::Inline => {
                let scale = dynamic();
                tail[..4].copy_from_slice(&scale.to_ne_bytes());
                scale
            }
        }
    }
}

/// Refuses a number of given scales that is neither one nor one for each head.
fn check_scales(which: Qkv, heads: &Heads, got: usize) -> Result<()> {
    if got == 1 || got == heads.heads {
        return Ok(());
    }
    let name = which.name();
    Err(Error::Value(format!(
        "there are {got} scales of {name}, there must be 1 or one for each of {} heads",
        heads.heads
    )))
}

/// Refuses scales of each token and head whose shape is not that of the cache.
fn check_scale_shape(which: Qkv, scales: &Heads, cache: &Heads) -> Result<()> {
    let (got, need) =
        ([scales.batch, scales.tokens, scales.heads, scales.dim], [cache.batch, cache.tokens, cache.heads, 1]);
    if got == need {
        return Ok(());
    }
    Err(Error::Value(format!("the scales of {} are {got:?}, they must be {need:?}", which.name())))
}

/// Refuses a cache of other heads; each head has `tail` channels more there.
fn check_cache(which: Qkv, heads: &Heads, cache: &Heads, tail: usize) -> Result<()> {
    if tail > 0 && cache.dim != heads.dim + tail {
        let (name, dim) = (which.name(), heads.dim);
        return Err(Error::Value(format!(
            "the cache of {name} has {} bytes a head, {dim} codes and {tail} for their scale are needed",
            cache.dim
        )));
    }
    for (what, got, need) in [("heads", cache.heads, heads.heads), ("channels", cache.dim - tail, heads.dim)] {
        if got != need {
            let name = which.name();
            return Err(Error::Value(format!(
                "the cache of {name} has {got} {what} and {name} {need}, they must be equal"
            )));
        }
    }
    Ok(())
}

impl CacheRows<&[i64]> {
    /// Page and row in it of each token; `None`: it is not cached.
    fn resolve(&self, batch: usize, tokens: usize, cache: &Heads) -> Result<Vec<Option<[usize; 2]>>> {
        let all = product("batch x tokens", &[batch, tokens])?;
        let outside = |what: &str, n: i64, most: usize| {
            Err(Error::Value(format!("{what} {n} lies outside the cache, which has {most}")))
        };
        let (size, pages) = (cache.tokens, cache.batch);
        let sized = |row: i64| {
            if row < 0 { None } else { Some([row as usize / size.max(1), row as usize % size.max(1)]) }
        };
        match self {
            Self::Slots(slots) => {
                let places = product("pages x rows", &[pages, size])?;
                if slots.len() < all {
                    return Err(Error::Length { name: "slots", got: slots.len(), need: all });
                }
                let place = |&slot: &i64| match sized(slot) {
                    Some([page, _]) if page >= pages || size == 0 => outside("slot", slot, places),
                    place => Ok(place),
                };
                slots[..all].iter().map(place).collect()
            }
            Self::Pages { rows, .. } | Self::Rows(rows) => {
                let of = rows.resolve(1, batch, tokens)?;
                let sequences = rows.sequences(batch, tokens);
                // Rows of a sequence.
                let mut most = size;
                if let Self::Pages { table, width, .. } = self {
                    most = product("pages of a sequence x rows", &[*width, size])?;
                    let need = product("sequences x pages", &[rows.sequence_count(batch), *width])?;
                    if table.len() < need {
                        return Err(Error::Length { name: "the table of pages", got: table.len(), need });
                    }
                }
                let place = |(&row, &sequence): (&i64, &usize)| match (self, sized(row)) {
                    (_, None) => Ok(None),
                    (Self::Pages { table, width, .. }, Some([page, in_page])) => {
                        if page >= *width {
                            return outside("row", row, most);
                        }
                        match table[sequence * width + page] {
                            page if (0..pages as i64).contains(&page) => Ok(Some([page as usize, in_page])),
                            page => outside("page", page, pages),
                        }
                    }
                    (_, Some(_)) if row as usize >= size => outside("row", row, most),
                    (_, Some(_)) if sequence >= pages => outside("sequence", sequence as i64, pages),
                    (_, Some(_)) => Ok(Some([sequence, row as usize])),
                };
                of.iter().zip(&sequences).map(place).collect()
            }
        }
    }
}

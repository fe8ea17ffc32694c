//! RoPE: pairs of channels of a query or key are rotated by an angle that is proportional to the token's position.
//!
//! Pair `i` at position `p` turns by `p * frequency(i)`:
//!
//! ```text
//! a' = a * cos - b * sin
//! b' = a * sin + b * cos
//! ```

use bytemuck::Zeroable;
use cudarc::driver::CudaSlice;

use crate::accuracy::{Expected, rounded};
use crate::double::Double;
use crate::gpu::args::{In, Out, RopeArgs};
use crate::gpu::{Function, Gpu, Held, Launch, Read, Write};
use crate::positions::{Positions, Resolved, check_positions};
use crate::rotate::{Axes, Scaling};
use crate::{Error, Heads, Result, Scalar};

// ---------------------------------------------------------------------------------------------------------------- spec

/// Which two channels form a pair, counted from the first rotated one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pairing {
    /// Pair `i` is `(i, i + rotary / 2)`:
    /// ```text
    /// a0 a1 a2 a3 b0 b1 b2 b3
    /// ```
    /// GPT-NeoX, and Llama, Qwen, Mistral, Gemma, Phi as Hugging Face stores them.
    #[default]
    Half,
    /// Pair `i` is `(2i, 2i + 1)`:
    /// ```text
    /// a0 b0 a1 b1 a2 b2 a3 b3
    /// ```
    /// RoFormer, GPT-J, GLM, Cohere, DeepSeek, and Llama as Meta and GGUF store it.
    Interleaved,
}

impl Pairing {
    /// The two channels of `pair`, counted from the first rotated channel.
    pub const fn channels(self, pair: usize, rotary: usize) -> (usize, usize) {
        match self {
            Self::Half => (pair, pair + rotary / 2),
            Self::Interleaved => (2 * pair, 2 * pair + 1),
        }
    }
}

/// Forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    /// by `+angle`
    #[default]
    Forward,
    /// By `-angle`: undoes a forward rotation (up to [`Rope::attention_factor`], which multiplies again), and is its
    /// gradient.
    Inverse,
}

/// How a position becomes an angle.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Angles {
    /// The exact phase, `position * frequency` modulo one turn in 64-bit integers: cos and sin within 1e-7 of the truth at
    /// every position from -2^31 to 2^31 - 1.
    #[default]
    Exact,
    /// What Hugging Face's models compute: the frequency in f32 ([`Rope::compat_frequency`]), the position in f32, their
    /// product rounded to f32, and the nearest cosine and sine of that, which Hugging Face's are within a unit in the last
    /// place of. For parity with a checkpoint's reference code; off by 9e-3 at position 131072 and by 8e-2 at a million.
    HfCompat,
    /// As [`Angles::HfCompat`] with the caller's own frequencies, one for each pair: a model's `inv_freq` buffer, made on
    /// another machine. Base, scaling and ladders then say nothing.
    Given(Vec<f32>),
}

impl Angles {
    /// Whether angles are products in f32.
    const fn in_f32(&self) -> bool {
        !matches!(self, Self::Exact)
    }
}

/// Rotary position embedding: what to compute, without shape, element type or device.
///
/// `angle(position, pair) = position * frequency(pair)`, and `attention_factor` multiplies cosine and sine.
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `rotary` | channels | rotated channels of a head, even; the others pass through |
/// | `offset` | channels | first rotated channel |
/// | `pairing` | | which channels form a pair |
/// | `base` | | theta of the paper, 10000 there |
/// | `scaling` | | what stretches the frequencies |
/// | `attention_factor` | | multiplies cos and sin; YaRN's and LongRoPE's `mscale`, else 1 |
/// | `axes` | | which axis of the position turns a pair; one for text |
/// | `pairing_out` | | where a pair is written, if not where it was read; only out of place |
/// | `angles` | | how a position becomes an angle |
///
/// # Source
/// RoFormer (arXiv 2104.09864), section 3.2.2, equations 15 and 34.
///
/// # Example
/// ```
/// use posenc::{Pairing, Rope};
/// let rope = Rope { pairing: Pairing::Interleaved, ..Rope::new(128, 10_000.0) };
/// assert_eq!(rope.frequency(0), 1.0);
/// assert_eq!(rope.frequency(32), 0.01);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// rotated channels of a head
    pub rotary: usize,
    /// first rotated channel
    pub offset: usize,
    /// which channels form a pair
    pub pairing: Pairing,
    /// theta
    pub base: f64,
    /// what stretches the frequencies
    pub scaling: Scaling,
    /// multiplies cos and sin
    pub attention_factor: f64,
    /// which axis of the position turns a pair
    pub axes: Axes,
    /// Where a pair is written; `None` where it was read. Hugging Face's DeepSeek-V3 reads interleaved pairs and writes
    /// halves, which scores do not show and a cache of keys does.
    pub pairing_out: Option<Pairing>,
    /// how a position becomes an angle
    pub angles: Angles,
}

impl Rope {
    /// RoPE over the first `rotary` channels, in halves, without scaling.
    pub const fn new(rotary: usize, base: f64) -> Self {
        Self {
            rotary,
            offset: 0,
            pairing: Pairing::Half,
            base,
            scaling: Scaling::None,
            attention_factor: 1.0,
            axes: Axes::One,
            pairing_out: None,
            angles: Angles::Exact,
        }
    }

    /// Pairs that are rotated, `rotary / 2`.
    pub const fn pairs(&self) -> usize {
        self.rotary / 2
    }

    /// The two channels of `pair` in `pairing`, counted from the first rotated channel.
    pub(crate) const fn channels(&self, pairing: Pairing, pair: usize) -> (usize, usize) {
        let size = self.pairs() / self.axes.blocks();
        let (a, b) = pairing.channels(pair % size, 2 * size);
        let block = pair / size * 2 * size;
        (block + a, block + b)
    }

    /// Which channels a pair is written to.
    pub fn written(&self) -> Pairing {
        self.pairing_out.unwrap_or(self.pairing)
    }

    /// Refuses a spec outside the law: odd or zero `rotary`, a base that is not finite and above 0, a scaling's
    /// parameters outside its own law, axes that do not fit the pairs.
    ///
    /// # Errors
    /// [`Error::Value`] with the field, the rule and the value.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        if self.rotary == 0 || self.rotary % 2 == 1 {
            return wrong(format!("rotary is {}, it must be even and at least 2", self.rotary));
        }
        if self.rotary > u32::MAX as usize || self.offset > u32::MAX as usize {
            return wrong(format!("rotary is {} and offset {}, both must be below 2^32", self.rotary, self.offset));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return wrong(format!("base is {}, it must be finite and above 0", self.base));
        }
        let factor = self.attention_factor as f32;
        if !(factor.is_finite() && factor > 0.0) {
            return wrong(format!(
                "attention_factor is {}, it must be finite and above 0 in f32",
                self.attention_factor
            ));
        }
        if let Angles::Given(list) = &self.angles {
            if list.len() != self.pairs() {
                return wrong(format!(
                    "{} frequencies are given, the rotary part has {} pairs",
                    list.len(),
                    self.pairs()
                ));
            }
            if let Some(at) = list.iter().position(|frequency| !frequency.is_finite()) {
                return wrong(format!("the frequencies given hold {} at {at}, they must be finite", list[at]));
            }
        }
        self.axes.check(self.pairs())?;
        if !self.axes.one_ladder()
            && !matches!(self.scaling, Scaling::None | Scaling::Linear { .. } | Scaling::Divisors(_))
        {
            return wrong("axes with ladders of their own go with no scaling, a linear one or divisors".into());
        }
        self.scaling.check(self.base, self.rotary)
    }

    /// [`Rope::check`], and that the rotated channels lie inside a head of `dim` channels.
    pub(crate) fn check_head(&self, dim: usize) -> Result<()> {
        self.check()?;
        if self.offset + self.rotary > dim {
            return Err(Error::Value(format!(
                "the rotary part ends at channel {} ({} from {}), a head has {dim}",
                self.offset + self.rotary,
                self.rotary,
                self.offset
            )));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

impl Rope {
    /// Radians per position of `pair`, the nearest `f64`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn frequency(&self, pair: usize) -> f64 {
        self.exact_frequency(pair).hi
    }

    /// Turns per position of `pair` in units of 2^-64, rounded to the nearest: what a kernel multiplies positions by.
    ///
    /// The law is evaluated in 106 bits, so that the phase at position `p` is `|p| * 2^-65` turns from the truth at
    /// most: 7.3e-10 rad at 2^31.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn rate(&self, pair: usize) -> u64 {
        self.exact_frequency(pair).rate()
    }

    fn exact_frequency(&self, pair: usize) -> Double {
        assert!(pair < self.pairs(), "pair {pair} of {}", self.pairs());
        let (rung, size) = self.axes.rung(pair, self.pairs());
        self.scaling.frequency(self.base, size, rung, pair)
    }

    /// The angle of `pair` at `position` in radians; exact ones lie within half a turn of zero.
    pub fn angle(&self, position: i64, pair: usize) -> f64 {
        self.turner(pair)(position)
    }

    /// [`Rope::angle`] of one pair, its law evaluated once.
    fn turner(&self, pair: usize) -> impl Fn(i64) -> f64 {
        let (rate, frequency) =
            if self.angles.in_f32() { (0, Some(self.compat_frequency(pair))) } else { (self.rate(pair), None) };
        move |position| match frequency {
            // Exact modulo one turn; as a signed number it is the turn nearest to zero.
            None => rate.wrapping_mul(position as u64) as i64 as f64 * (std::f64::consts::TAU / 18446744073709551616.0),
            Some(frequency) => f64::from(position as f32 * frequency),
        }
    }

    /// The largest error of a rotated element before it is rounded to its type, for the pair `(a, b)` that it came
    /// from: `attention_factor * (|a| + |b|) * (1e-7 + 4 * 2^-24) + 2^-148`.
    ///
    /// 1e-7 is the error of cosine and sine; four roundings follow: of `attention_factor` to f32, of its product with
    /// the cosine, of one product and of the sum. 2^-148 is what products below the normal range lose.
    pub fn error_bound(&self, a: f64, b: f64) -> f64 {
        self.attention_factor * (a.abs() + b.abs()) * (1e-7 + 4.0 * f32::ROUNDOFF) + 4.0 * f32::TINY
    }
}

// ----------------------------------------------------------------------------------------------------------- reference

impl Rope {
    /// The wanted values in f64 and the error allowed at each element, for comparison with a rotation of `x`.
    ///
    /// # Errors
    /// As [`Rope::rotate`].
    pub fn expect<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
    ) -> Result<Expected> {
        self.check()?;
        self.expect_f64(x, heads, positions, direction, self.sin_cos())
    }

    /// [`Rope::expect`] for a rotation by a table: row `position` of `cos` and `sin`, each `[rows, pairs]`; positions beyond
    /// them take the nearest row.
    ///
    /// # Errors
    /// As [`Rope::rotate`], and if the tables are empty, ragged or of different sizes.
    pub fn expect_by_table<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
        (cos, sin): (&[f64], &[f64]),
    ) -> Result<Expected> {
        let pairs = self.pairs().max(1);
        if cos.is_empty() || cos.len() % pairs != 0 || cos.len() != sin.len() {
            return Err(Error::Value(format!(
                "cos holds {} values and sin {}, both must hold the same number of rows of {pairs}",
                cos.len(),
                sin.len()
            )));
        }
        let last = (cos.len() / pairs - 1) as i64;
        self.expect_f64(x, heads, positions, direction, |pair, position| {
            let at = position.clamp(0, last) as usize * pairs + pair;
            (sin[at], cos[at])
        })
    }

    /// Sine and cosine by pair and position.
    fn sin_cos(&self) -> impl Fn(usize, i64) -> (f64, f64) {
        let turners: Vec<_> = (0..self.pairs()).map(|pair| self.turner(pair)).collect();
        move |pair, position| turners[pair](position).sin_cos()
    }

    fn expect_f64<T: Scalar>(
        &self,
        x: &[T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
        sin_cos: impl Fn(usize, i64) -> (f64, f64),
    ) -> Result<Expected> {
        let mut want: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
        let mut bound = vec![0.0; x.len()];
        let mut source = x.to_vec();
        self.rotate_f64(&mut source, heads, positions, direction, sin_cos, |_, [a, b], outputs, values| {
            let error = self.error_bound(x[a].to_f64(), x[b].to_f64());
            for (index, value) in outputs.into_iter().zip(values) {
                want[index] = value;
                bound[index] = rounded::<T>(value, error);
            }
        })?;
        Ok(Expected { want, bound })
    }

    fn rotate_f64<T: Scalar>(
        &self,
        x: &mut [T],
        heads: &Heads,
        positions: &[i64],
        direction: Direction,
        sin_cos: impl Fn(usize, i64) -> (f64, f64),
        mut put: impl FnMut(&mut [T], [usize; 2], [usize; 2], [f64; 2]),
    ) -> Result<()> {
        self.check_head(heads.dim)?;
        heads.check_written("x", x.len())?;
        let row = heads.batch * heads.tokens;
        check_positions(positions.len(), self.axes.count(), row, row)?;
        let pairs: Vec<_> = (0..self.pairs())
            .map(|pair| {
                let (a, b) = self.channels(self.pairing, pair);
                let (a_out, b_out) = self.channels(self.written(), pair);
                (self.axes.axis(pair, self.pairs()), [a, b], [a_out, b_out])
            })
            .collect();
        let mut inputs = vec![[0.0; 2]; pairs.len()];
        let mut turns = vec![(0.0, 0.0); pairs.len()];
        for batch in 0..if heads.is_empty() { 0 } else { heads.batch } {
            for token in 0..heads.tokens {
                for (pair, (turn, (axis, _, _))) in turns.iter_mut().zip(&pairs).enumerate() {
                    let (sin, cos) = sin_cos(pair, positions[axis * row + batch * heads.tokens + token]);
                    let sin = if direction == Direction::Forward { sin } else { -sin };
                    *turn = (sin * self.attention_factor, cos * self.attention_factor);
                }
                for head in 0..heads.heads {
                    let place = |channels: [usize; 2]| {
                        channels.map(|channel| heads.index(batch, token, head, self.offset + channel))
                    };
                    // All pairs of a head are read before one is written: they may move.
                    for (input, &(_, channels, _)) in inputs.iter_mut().zip(&pairs) {
                        *input = place(channels).map(|index| x[index].to_f64());
                    }
                    for ((&[a, b], &(sin, cos)), &(_, from, to)) in inputs.iter().zip(&turns).zip(&pairs) {
                        put(x, place(from), place(to), [a * cos - b * sin, a * sin + b * cos]);
                    }
                }
            }
        }
        Ok(())
    }
}

// -------------------------------------------------------------------------------------------------------------- launch

/// What a launch is decided from, beside the spec.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    q: Heads,
    q_out: Heads,
    k: Option<(Heads, Heads)>,
    in_place: bool,
    /// the largest power of two that divides every address, in bytes
    alignment: usize,
    element: usize,
    multiprocessors: u32,
    /// entries of the source of angles
    names: Names,
}

/// Threads of a block; the kernel's launch bounds allow 256.
const THREADS: usize = 128;
/// Threads that one multiprocessor holds at the kernel's register count.
const RESIDENT_THREADS: usize = 1280;
/// Cost of making a pair's angles, in units of rotating it in one head.
const ANGLE_COST: usize = 1;

impl Rope {
    /// The variant, the grid and the arguments that shapes decide; addresses, tables and positions are still missing.
    pub(crate) fn launch(&self, call: &Call) -> Result<Launch<RopeArgs>> {
        let Call { q, q_out, k, .. } = *call;
        let (k, k_out) = k.unwrap_or((Heads { heads: 0, ..q }, Heads { heads: 0, ..q_out }));
        let small = |what: &str, n: usize| {
            let small = u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32);
            small.ok_or_else(|| Error::Value(format!("{n} {what} in one call, a kernel counts to {}", i32::MAX)))
        };
        let strides = |heads: &Heads| heads.strides.map(|stride| stride as i64);

        // The widest access that every element group of a thread is aligned to.
        let copied = if call.in_place { 0 } else { q.dim - self.rotary };
        let block = self.pairs() / self.axes.blocks();
        let mut sizes = block | self.offset | if copied > 0 { q.dim } else { 0 };
        for heads in [&q, &q_out, &k, &k_out].into_iter().filter(|heads| heads.heads > 0) {
            sizes |= heads.offset;
            for (size, stride) in heads.dims().into_iter().take(3) {
                sizes |= if size > 1 { stride } else { 0 };
            }
        }
        // Widths are powers of two: one divides all sizes where it divides their union.
        let fits = |bytes: usize| call.alignment.is_multiple_of(bytes) && sizes.is_multiple_of(bytes / call.element);
        let Names { file, wide, mid } = call.names;
        let (file, entry, width) = [(Some(wide), 16), (mid, 8)]
            .into_iter()
            .find_map(|(entry, bytes)| Some((file, entry.filter(|_| fits(bytes))?, bytes / call.element)))
            .unwrap_or((SOURCES, ONE, 1));

        // Lanes of a token, tokens of a block, and how many threads share a token's heads.
        let lanes = (self.pairs() / width).clamp(1, THREADS);
        let rows = (THREADS / lanes).min(q.tokens.next_power_of_two()).max(1);
        let heads = q.heads + k.heads;
        let blocks_of = |per_thread: usize| {
            let walkers = heads.div_ceil(per_thread);
            let groups = (THREADS / (lanes * rows)).clamp(1, walkers).min(64);
            (walkers.div_ceil(groups), groups)
        };
        // Few heads a thread spread a short call over the device; many make angles once for all of them. The cheapest
        // is the one whose waves of blocks, times the work of one thread, come out least.
        let resident = call.multiprocessors as usize * (RESIDENT_THREADS / THREADS);
        let cost = |per_thread: usize| {
            let (splits, _) = blocks_of(per_thread);
            let blocks = q.tokens.div_ceil(rows).saturating_mul(splits).saturating_mul(q.batch);
            blocks.div_ceil(resident).saturating_mul(per_thread + ANGLE_COST)
        };
        let per_thread = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
            .into_iter()
            .filter(|&walkers| walkers <= heads)
            .map(|walkers| heads.div_ceil(walkers))
            .chain([1])
            .filter(|&n| blocks_of(n).0 <= 65535)
            .min_by_key(|&n| cost(n))
            .unwrap_or(heads);
        let (splits, groups) = blocks_of(per_thread);

        let args = RopeArgs {
            q_strides: strides(&q),
            q_out_strides: strides(&q_out),
            k_strides: strides(&k),
            k_out_strides: strides(&k_out),
            tokens: small("tokens", q.tokens)?,
            batch: small("sequences", q.batch)?,
            q_heads: small("query heads", q.heads)?,
            k_heads: small("key heads", k.heads)?,
            heads_per_thread: small("heads of a thread", per_thread)?,
            pairs: small("pairs", self.pairs())?,
            block: small("pairs of a block", block)?,
            offset: small("channels before the rotary part", self.offset)?,
            copied: small("channels", copied)?,
            interleaved: u32::from(self.pairing == Pairing::Interleaved),
            interleaved_out: u32::from(self.written() == Pairing::Interleaved),
            factor: self.attention_factor as f32,
            ..RopeArgs::zeroed()
        };
        let grid = [
            small("blocks of tokens", q.tokens.div_ceil(rows))?,
            small("blocks of heads", splits)?,
            small("sequences", q.batch.min(65535))?,
        ];
        let block = [small("lanes", lanes)?, small("rows", rows)?, small("groups", groups)?];
        Ok(Launch { file, entry, grid, block, args })
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// Queries or keys of one call: the buffer, and its sizes and strides.
pub struct Operand<'a, T> {
    buffers: Buffers<'a, T>,
}

enum Buffers<'a, T> {
    InPlace { x: Write<'a, T>, heads: Heads },
    Copy { x: Read<'a, T>, heads: Heads, out: Write<'a, T>, out_heads: Heads },
}

impl<'a, T: Scalar> Operand<'a, T> {
    /// `x` is rotated where it lies; channels outside the rotary part are not touched.
    pub fn in_place(x: Write<'a, T>, heads: Heads) -> Self {
        Self { buffers: Buffers::InPlace { x, heads } }
    }

    /// `x` is read and `out` is written, channels outside the rotary part copied.
    pub fn copy(x: Read<'a, T>, heads: Heads, out: Write<'a, T>, out_heads: Heads) -> Self {
        Self { buffers: Buffers::Copy { x, heads, out, out_heads } }
    }

    fn shapes(&self) -> (Heads, Heads, bool) {
        match &self.buffers {
            Buffers::InPlace { heads, .. } => (*heads, *heads, true),
            Buffers::Copy { heads, out_heads, .. } => (*heads, *out_heads, false),
        }
    }

    /// Every rule about one tensor that needs no device.
    fn check(&self, rope: &Rope, name: &'static str, out_name: &'static str) -> Result<()> {
        let dim = self.shapes().0.dim;
        rope.check_head(dim)?;
        match &self.buffers {
            Buffers::InPlace { x, heads } => {
                check_in_place(rope)?;
                heads.check_written(name, x.len())
            }
            Buffers::Copy { x, heads, out, out_heads } => {
                heads.check(name, x.len())?;
                out_heads.check_written(out_name, out.len())?;
                let sizes = |heads: &Heads| [heads.batch, heads.tokens, heads.heads, heads.dim];
                if sizes(heads) != sizes(out_heads) {
                    return Err(Error::Value(format!(
                        "{name} has the sizes {:?} and {out_name} {:?} (batch, tokens, heads, dim), they must be equal",
                        sizes(heads),
                        sizes(out_heads)
                    )));
                }
                Ok(())
            }
        }
    }

    fn hold<'b>(
        &'b mut self,
        gpu: &'b Gpu,
        name: &'static str,
        out_name: &'static str,
    ) -> Result<(Option<Held<'b, In>>, Held<'b, Out>)> {
        match &mut self.buffers {
            Buffers::InPlace { x, heads } => Ok((None, gpu.write(name, &mut **x, heads.span()?)?)),
            Buffers::Copy { x, heads, out, out_heads } => {
                let x = gpu.read(name, *x, heads.span()?)?;
                let out = gpu.write(out_name, &mut **out, out_heads.span()?)?;
                out.apart_from(out_name, &x, name)?;
                Ok((Some(x), out))
            }
        }
    }
}

/// Cosines and sines of the caller, by position: row `p` holds those of position `p` for every pair.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `values` | `[rows, pairs]` twice, or `[rows, 2 * pairs]` | f32 or the tensors' type |
/// | `rows` | | positions from 0 on |
/// | `stride` | elements | from one row to the next |
/// | `beyond` | | what a position without a row gives |
pub struct Table<'a, T> {
    /// the buffers
    pub values: TableValues<'a, T>,
    /// positions that have a row
    pub rows: usize,
    /// elements from one row to the next
    pub stride: usize,
    /// what a position without a row gives
    pub beyond: Beyond<'a>,
}

/// Buffers of a [`Table`]. Without `sin`, a row of `cos` holds the cosines and then the sines, as vLLM's cache does.
pub enum TableValues<'a, T> {
    /// in f32
    F32 {
        /// cosines
        cos: Read<'a, f32>,
        /// sines
        sin: Option<Read<'a, f32>>,
    },
    /// in the tensors' own type, whose rounding then limits the result: 2e-3 in bf16
    Same {
        /// cosines
        cos: Read<'a, T>,
        /// sines
        sin: Option<Read<'a, T>>,
    },
}

/// What a position without a row in a [`Table`] gives. The table is never read out of bounds.
pub enum Beyond<'a> {
    /// the nearest row
    Clamp,
    /// NaN in every rotated channel of the token, and 1 in this word if there is one
    Nan(Option<Write<'a, u32>>),
}

impl<T> Source<'_, T> {
    /// What messages call the first tensor and its output.
    const fn first_tensor(&self) -> (&'static str, &'static str) {
        match self {
            Self::XPos { first, .. } if *first > 0 => ("k", "k_out"),
            _ => ("q", "q_out"),
        }
    }
}

/// [`Rope`] on a [`Gpu`], for one element type: its rates are uploaded, its kernels loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel; token counts may change from call
/// to call. It can be captured in a CUDA graph ([`Gpu::new`] shows how), which reads the plan's tables: the plan must outlive
/// it.
pub struct RopePlan<T> {
    gpu: Gpu,
    rope: Rope,
    rates: Rates,
    axes: Option<CudaSlice<u8>>,
    /// of the spec's own angles, and by a table
    functions: [Entries; 2],
    element: std::marker::PhantomData<T>,
}

enum Rates {
    Exact(CudaSlice<u64>),
    Compat(CudaSlice<f32>),
}

/// A source's entries, by their accesses: 16 bytes, and 8 bytes where odd sizes are common enough. With accesses of one
/// element, [`ONE`] serves every source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    file: &'static str,
    wide: &'static str,
    mid: Option<&'static str>,
}

/// The kernel file of every entry but the plain ones.
const SOURCES: &str = "rotate/rope_sources";
const ONE: &str = "rope_one";

impl Names {
    const EXACT: Self = Self { file: "rotate/rope", wide: "rope_wide", mid: Some("rope_mid") };
    const BLOCKS: Self = Self { file: SOURCES, wide: "rope_blocks_wide", mid: None };
    const COMPAT: Self = Self { file: SOURCES, wide: "rope_compat_wide", mid: None };
    const TABLE: Self = Self { file: SOURCES, wide: "rope_table_wide", mid: Some("rope_table_mid") };
    pub(super) const XPOS: Self = Self { file: SOURCES, wide: "rope_xpos_wide", mid: None };
}

/// [`Names`], loaded.
pub(super) struct Entries {
    names: Names,
    wide: Function,
    mid: Option<Function>,
    one: Function,
}

impl Entries {
    pub(super) fn load<T: Scalar>(gpu: &Gpu, names: Names) -> Result<Self> {
        let load = |name| gpu.function(names.file, T::NAME, name);
        Ok(Self {
            names,
            wide: load(names.wide)?,
            mid: names.mid.map(load).transpose()?,
            one: gpu.function(SOURCES, T::NAME, ONE)?,
        })
    }

    /// An entry that a launch names, and the elements of an access.
    fn named<T>(&self, entry: &str) -> (&Function, usize) {
        match &self.mid {
            _ if entry == self.names.wide => (&self.wide, 16 / size_of::<T>()),
            Some(mid) if entry != ONE => (mid, 8 / size_of::<T>()),
            _ => (&self.one, 1),
        }
    }
}

/// Where a call's cosines and sines come from.
pub(super) enum Source<'a, T> {
    /// the spec's own angles
    Own,
    /// the caller's table
    Table(Table<'a, T>),
    /// the spec's own angles, and xPos's factors
    XPos {
        functions: &'a Entries,
        /// of the queries' factors, and of the keys'
        exponents: &'a CudaSlice<i64>,
        /// where the first tensor's begin
        first: usize,
        /// the position where nothing is scaled
        center: i64,
        /// the largest distance from it
        reach: i64,
    },
}

/// A table's addresses, held for one launch.
struct HeldTable<'a> {
    cos: Held<'a, In>,
    /// `None`: behind the cosines of the same row
    sin: Option<Held<'a, In>>,
    flag: Option<Held<'a, Out>>,
    nan: bool,
    is_f32: bool,
}

impl<T: Scalar> Table<'_, T> {
    fn hold<'a>(&'a mut self, gpu: &'a Gpu, rope: &Rope) -> Result<HeldTable<'a>> {
        let pairs = rope.pairs();
        let packed = match &self.values {
            TableValues::F32 { sin, .. } => sin.is_none(),
            TableValues::Same { sin, .. } => sin.is_none(),
        };
        let row = if packed { 2 * pairs } else { pairs };
        if self.rows == 0 || self.stride < row || self.rows > i32::MAX as usize {
            return Err(Error::Value(format!(
                "the table has {} rows {} elements apart, it needs 1 to {} rows of at least {row}",
                self.rows,
                self.stride,
                i32::MAX
            )));
        }
        let need = crate::shape::span("the table", 0, &[(self.rows, self.stride), (row, 1)])?;
        let (cos, sin, is_f32) = match &self.values {
            TableValues::F32 { cos, sin } => {
                (gpu.read("cos", *cos, need)?, sin.map(|sin| gpu.read("sin", sin, need)).transpose()?, true)
            }
            TableValues::Same { cos, sin } => {
                (gpu.read("cos", *cos, need)?, sin.map(|sin| gpu.read("sin", sin, need)).transpose()?, false)
            }
        };
        let (flag, nan) = match &mut self.beyond {
            Beyond::Clamp => (None, false),
            Beyond::Nan(flag) => (flag.as_mut().map(|flag| gpu.write("the flag", &mut **flag, 1)).transpose()?, true),
        };
        Ok(HeldTable { cos, sin, flag, nan, is_f32 })
    }
}

impl HeldTable<'_> {
    /// Fills in the table for rows of `pairs` values `stride` apart, read by threads of `width` values.
    fn apply<T: Scalar>(&self, args: &mut RopeArgs, (rows, stride, width): (usize, usize, usize)) {
        let element = if self.is_f32 { size_of::<f32>() } else { size_of::<T>() };
        args.rates = self.cos.address;
        args.sines = match &self.sin {
            Some(sin) => sin.address,
            None => self.cos.address.offset(u64::from(args.pairs) * element as u64),
        };
        args.flag = self.flag.as_ref().map_or(Out::NULL, |flag| flag.address);
        args.beyond = u32::from(self.nan);
        args.table_rows = rows as i64;
        args.table_stride = stride as i64;
        args.table_is_f32 = u32::from(self.is_f32);
        // One access takes the thread's values, 16 bytes at most.
        let bytes = (width * element).min(16) as u64;
        let places = args.rates.address() | args.sines.address() | stride.wrapping_mul(element) as u64;
        args.table_aligned = u32::from(places.is_multiple_of(bytes));
    }
}

impl<T: Scalar> RopePlan<T> {
    /// Uploads the rates and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, rope: &Rope) -> Result<Self> {
        rope.check()?;
        let pairs = 0..rope.pairs();
        let (rates, own) = match rope.angles {
            Angles::Exact => {
                let rates: Vec<u64> = pairs.map(|pair| rope.rate(pair)).collect();
                let own = if rope.axes.blocks() > 1 { Names::BLOCKS } else { Names::EXACT };
                (Rates::Exact(gpu.upload(&rates)?), own)
            }
            Angles::HfCompat | Angles::Given(_) => {
                let rates: Vec<f32> = pairs.map(|pair| rope.compat_frequency(pair)).collect();
                (Rates::Compat(gpu.upload(&rates)?), Names::COMPAT)
            }
        };
        Ok(Self {
            gpu: gpu.clone(),
            rope: rope.clone(),
            rates,
            axes: rope.axes.table(rope.pairs()).map(|table| gpu.upload(&table)).transpose()?,
            functions: [Entries::load::<T>(gpu, own)?, Entries::load::<T>(gpu, Names::TABLE)?],
            element: std::marker::PhantomData,
        })
    }

    /// The spec.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Rotates queries, and keys if they are given, in one kernel.
    ///
    /// `a' = a cos - b sin`, `b' = a sin + b cos` for every pair `(a, b)`, cos and sin of `position * frequency(pair)`.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `q` | `[batch, tokens, heads, dim]` in any order | queries, in place or copied |
    /// | `k` | the same batch, tokens and dim | keys, with heads and strides of their own |
    /// | `positions` | see [`Positions`] | where the tokens stand, any integers |
    /// | `direction` | | forward, or back: the inverse, which is also the gradient |
    ///
    /// # Accuracy
    /// [`Rope::error_bound`] and the rounding to `T`, at every position from -2^31 to 2^31 - 1. The same bits on every
    /// device, for every layout and alignment.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with an output, if shapes do not go
    /// together or written elements overlap. Nothing is written then.
    ///
    /// # Source
    /// RoFormer (arXiv 2104.09864), equation 34.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::rotate::Operand;
    /// use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &Rope::new(128, 10_000.0))?;
    /// let stream = gpu.stream();
    /// let mut q = stream.alloc_zeros(7 * 32 * 128)?;
    /// let mut k = stream.alloc_zeros(7 * 8 * 128)?;
    /// let positions = stream.clone_htod(&[0, 1, 2, 3, 4, 5, 6])?;
    /// plan.rotate(
    ///     Operand::in_place(&mut q, Heads::thd(7, 32, 128)),
    ///     Some(Operand::in_place(&mut k, Heads::thd(7, 8, 128))),
    ///     Positions::ids(&positions),
    ///     Direction::Forward,
    /// )?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rotate(
        &self,
        q: Operand<'_, T>,
        k: Option<Operand<'_, T>>,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        self.rotate_from(Source::Own, q, k, positions, direction)
    }

    /// [`RopePlan::rotate`] with cosines and sines from `table` in place of the spec's own; `attention_factor` multiplies
    /// them too.
    ///
    /// # Accuracy
    /// [`Rope::error_bound`] around the table's values, and the rounding to `T`.
    ///
    /// # Errors
    /// As [`RopePlan::rotate`], and if the table is empty, shorter than its rows, or its rows overlap.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::rotate::{Beyond, Operand, Table, TableValues};
    /// use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &Rope::new(128, 10_000.0))?;
    /// let stream = gpu.stream();
    /// // vLLM's cache: a row has 64 cosines, then 64 sines.
    /// let cache = stream.alloc_zeros(4096 * 128)?;
    /// let values = TableValues::F32 { cos: &cache, sin: None };
    /// let table = Table { values, rows: 4096, stride: 128, beyond: Beyond::Clamp };
    /// let mut q = stream.alloc_zeros(7 * 32 * 128)?;
    /// let q = Operand::in_place(&mut q, Heads::thd(7, 32, 128));
    /// plan.rotate_by_table(table, q, None, Positions::counted(), Direction::Forward)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rotate_by_table(
        &self,
        table: Table<'_, T>,
        q: Operand<'_, T>,
        k: Option<Operand<'_, T>>,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        self.rotate_from(Source::Table(table), q, k, positions, direction)
    }

    pub(super) fn rotate_from(
        &self,
        source: Source<'_, T>,
        mut q: Operand<'_, T>,
        mut k: Option<Operand<'_, T>>,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        let (name, out_name) = source.first_tensor();
        q.check(&self.rope, name, out_name)?;
        let (q_heads, q_out_heads, in_place) = q.shapes();
        let k_shapes = match &k {
            None => None,
            Some(k) => {
                k.check(&self.rope, "k", "k_out")?;
                let (heads, out_heads, k_in_place) = k.shapes();
                check_pair(&q_heads, &heads)?;
                if k_in_place != in_place {
                    return Err(Error::Value("one of q and k is rotated in place and the other copied".into()));
                }
                Some((heads, out_heads))
            }
        };
        if q_heads.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        let positions = positions.resolve(gpu, self.rope.axes.count(), q_heads.batch, q_heads.tokens)?;
        let (q, q_out) = q.hold(gpu, name, out_name)?;
        let k = k.as_mut().map(|k| k.hold(gpu, "k", "k_out")).transpose()?;
        let (k, k_out) = k.map_or((None, None), |(k, k_out)| (k, Some(k_out)));
        if let (Some(q), Some(k_out)) = (&q, &k_out) {
            k_out.apart_from("k_out", q, "q")?;
        }
        if let (Some(k), Some(_)) = (&k, &k_out) {
            q_out.apart_from("q_out", k, "k")?;
        }
        let address = |x: &Option<Held<'_, In>>, out: Out| x.as_ref().map_or(out.as_in(), |x| x.address);
        let k_out = k_out.as_ref().map_or(Out::NULL, |k_out| k_out.address);
        self.run(
            source,
            Tensors {
                q: address(&q, q_out.address),
                q_out: q_out.address,
                k: address(&k, k_out),
                k_out,
                q_heads: (q_heads, q_out_heads),
                k_heads: k_shapes,
                in_place,
            },
            &positions,
            direction,
        )
    }

    /// Rotates queries and keys that lie in one buffer, in place, in one kernel: packed QKV.
    ///
    /// As [`RopePlan::rotate`], with `q` and `k` as shapes in `x`; values between them are not touched.
    ///
    /// | layout of `x` | `q` | `k` |
    /// |---|---|---|
    /// | `[tokens, (hq + 2 hk) * dim]` | `Heads::thd(tokens, hq, dim).row(row)` | `Heads::thd(tokens, hk, dim).row(row).at(hq * dim)` |
    ///
    /// # Errors
    /// As [`RopePlan::rotate`], and if `q` and `k` cannot be shown to lie apart.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Direction, Gpu, Heads, Positions, Rope, RopePlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let plan = RopePlan::<half::bf16>::new(&gpu, &Rope::new(128, 10_000.0))?;
    /// // 7 tokens of 32 queries, 8 keys and 8 values.
    /// let (row, mut qkv) = (48 * 128, gpu.stream().alloc_zeros(7 * 48 * 128)?);
    /// let (q, k) = (Heads::thd(7, 32, 128).row(row), Heads::thd(7, 8, 128).row(row).at(32 * 128));
    /// plan.rotate_packed(&mut qkv, q, k, Positions::counted(), Direction::Forward)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rotate_packed(
        &self,
        x: Write<'_, T>,
        q: Heads,
        k: Heads,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        self.rotate_packed_from(Source::Own, x, q, k, positions, direction)
    }

    /// [`RopePlan::rotate_packed`] with cosines and sines from `table`.
    ///
    /// # Errors
    /// As [`RopePlan::rotate_packed`] and [`RopePlan::rotate_by_table`].
    pub fn rotate_packed_by_table(
        &self,
        table: Table<'_, T>,
        x: Write<'_, T>,
        q: Heads,
        k: Heads,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        self.rotate_packed_from(Source::Table(table), x, q, k, positions, direction)
    }

    pub(super) fn rotate_packed_from(
        &self,
        source: Source<'_, T>,
        x: Write<'_, T>,
        q: Heads,
        k: Heads,
        positions: Positions<'_>,
        direction: Direction,
    ) -> Result<()> {
        check_in_place(&self.rope)?;
        for (name, heads) in [("q", &q), ("k", &k)] {
            self.rope.check_head(heads.dim)?;
            heads.check_written(name, x.len())?;
        }
        check_pair(&q, &k)?;
        if q.is_empty() {
            return Ok(());
        }
        q.check_apart("q", &k, "k")?;
        let gpu = &self.gpu;
        let positions = positions.resolve(gpu, self.rope.axes.count(), q.batch, q.tokens)?;
        let x = gpu.write("x", x, q.span()?.max(k.span()?))?;
        let (x, out) = (x.address.as_in(), x.address);
        let (q_heads, k_heads) = ((q, q), Some((k, k)));
        let tensors = Tensors { q: x, q_out: out, k: x, k_out: out, q_heads, k_heads, in_place: true };
        self.run(source, tensors, &positions, direction)
    }

    fn run(
        &self,
        source: Source<'_, T>,
        tensors: Tensors,
        positions: &Resolved<'_>,
        direction: Direction,
    ) -> Result<()> {
        let gpu = &self.gpu;
        let Tensors { q_heads: (q, q_out), k_heads: k, in_place, .. } = tensors;
        let all = tensors.q.address() | tensors.q_out.address() | tensors.k.address() | tensors.k_out.address();
        let alignment = 1 << all.trailing_zeros().min(4);
        let entries = match &source {
            Source::Own => &self.functions[0],
            Source::Table(_) => &self.functions[1],
            Source::XPos { functions, .. } => functions,
        };
        let (element, multiprocessors, names) = (size_of::<T>(), gpu.multiprocessors(), entries.names);
        let call = Call { q, q_out, k, in_place, alignment, element, multiprocessors, names };
        let mut launch = self.rope.launch(&call)?;
        // Kernels get the address of each tensor's first element, so that an offset costs nothing there.
        let at = |heads: &Heads| (heads.offset * size_of::<T>()) as u64;
        let (k, k_out) = k.unwrap_or((Heads::thd(0, 0, 0), Heads::thd(0, 0, 0)));
        let axes = self.axes.as_ref().map(|axes| gpu.read("axes", axes, self.rope.pairs())).transpose()?;
        launch.args = RopeArgs {
            q: tensors.q.offset(at(&q)),
            q_out: tensors.q_out.offset(at(&q_out)),
            k: tensors.k.offset(at(&k)),
            k_out: tensors.k_out.offset(at(&k_out)),
            positions: positions.ids(),
            indptr: positions.indptr(),
            axes: axes.as_ref().map_or(In::NULL, |axes| axes.address),
            axis_stride: positions.axis_stride,
            sequence_stride: positions.sequence_stride,
            position_kind: positions.kind,
            position_type: positions.id_type,
            sequences: positions.sequences,
            sign: if direction == Direction::Forward { 1.0 } else { -1.0 },
            compat: u32::from(matches!(self.rates, Rates::Compat(_))),
            ..launch.args
        };
        let (function, width) = entries.named::<T>(launch.entry);
        let rates = || match &self.rates {
            Rates::Exact(rates) => gpu.read("rates", rates, self.rope.pairs()),
            Rates::Compat(rates) => gpu.read("rates", rates, self.rope.pairs()),
        };
        match source {
            Source::Own => {
                let rates = rates()?;
                launch.args.rates = rates.address;
                gpu.launch(function, &launch)
            }
            Source::Table(mut table) => {
                let (rows, stride) = (table.rows, table.stride);
                let held = table.hold(gpu, &self.rope)?;
                held.apply::<T>(&mut launch.args, (rows, stride, width));
                gpu.launch(function, &launch)
            }
            Source::XPos { exponents, first, center, reach, .. } => {
                let (rates, exponents) = (rates()?, gpu.read("exponents", exponents, 2 * self.rope.pairs())?);
                launch.args.rates = rates.address;
                launch.args.exponents = exponents.address.offset((first * size_of::<i64>()) as u64);
                launch.args.center = center;
                launch.args.reach = reach;
                gpu.launch(function, &launch)
            }
        }
    }
}

/// Tensors of one call: addresses of their buffers, shapes of input and output.
struct Tensors {
    q: In,
    q_out: Out,
    k: In,
    k_out: Out,
    q_heads: (Heads, Heads),
    k_heads: Option<(Heads, Heads)>,
    in_place: bool,
}

/// Refuses pairs that move: in place, one thread's store would fall on another thread's load.
fn check_in_place(rope: &Rope) -> Result<()> {
    if rope.written() == rope.pairing {
        return Ok(());
    }
    Err(Error::Value(format!(
        "pairing is {:?} and pairing_out {:?}: pairs move, so the rotation cannot be in place",
        rope.pairing,
        rope.written()
    )))
}

/// Refuses keys that do not go with the queries.
fn check_pair(q: &Heads, k: &Heads) -> Result<()> {
    let differ = |what: &str, q: usize, k: usize| {
        if q == k { Ok(()) } else { Err(Error::Value(format!("q has {q} {what} and k {k}, they must be equal"))) }
    };
    differ("sequences", q.batch, k.batch)?;
    differ("tokens", q.tokens, k.tokens)?;
    differ("channels", q.dim, k.dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(q: Heads, k: Option<Heads>, in_place: bool, element: usize) -> Call {
        Call {
            q,
            q_out: q,
            k: k.map(|k| (k, k)),
            in_place,
            alignment: 16,
            element,
            multiprocessors: 132,
            names: Names::EXACT,
        }
    }

    /// How often the kernel's index arithmetic reaches each of `n` things from threads that begin at `starts` and take `step`
    /// of them.
    fn reached(n: usize, starts: impl Iterator<Item = usize>, step: usize) -> bool {
        let mut count = vec![0u8; n];
        for start in starts.filter(|&start| start < n) {
            count[start..(start + step).min(n)].iter_mut().for_each(|count| *count += 1);
        }
        count.iter().all(|&count| count == 1)
    }

    /// Whether each (token, head, first pair) is reached once. A thread's token, its heads and its pairs depend on coordinates
    /// of their own, so that each is reached once where each token, each head and each group of pairs is.
    fn covered(launch: &Launch<RopeArgs>, width: usize) -> bool {
        let a = &launch.args;
        let [grid_x, grid_y, _] = launch.grid.map(|n| n as usize);
        let [lanes, rows, groups] = launch.block.map(|n| n as usize);
        let (heads, per_thread) = ((a.q_heads + a.k_heads) as usize, a.heads_per_thread as usize);
        let pair_groups = a.pairs as usize / width;
        let tokens = (0..grid_x).flat_map(|x| (0..rows).map(move |y| x * rows + y));
        let firsts = (0..grid_y).flat_map(|y| (0..groups).map(move |z| (y * groups + z) * per_thread));
        let pairs = (0..lanes).flat_map(|lane| (lane..pair_groups).step_by(lanes));
        reached(a.tokens as usize, tokens, 1) && reached(heads, firsts, per_thread) && reached(pair_groups, pairs, 1)
    }

    #[test]
    fn every_token_count_is_covered_once_without_idle_blocks() {
        for (rotary, dim, hq, hk, in_place) in [
            (128, 128, 32, 8, true),
            (128, 128, 8, 1, true),
            (64, 64, 71, 1, true),
            (24, 96, 64, 64, true),
            (64, 256, 16, 2, false),
            (576, 576, 128, 0, true),
        ] {
            let rope = Rope::new(rotary, 10_000.0);
            for tokens in 1..=4096 {
                let (q, k) = (Heads::thd(tokens, hq, dim), Heads::thd(tokens, hk, dim));
                let launch = rope.launch(&call(q, (hk > 0).then_some(k), in_place, 2)).unwrap();
                launch.check().unwrap();
                let width = [("rope_wide", 8), ("rope_mid", 4), ("rope_one", 1)];
                let width = width.into_iter().find(|(entry, _)| *entry == launch.entry).unwrap().1;
                assert!(covered(&launch, width), "{tokens} tokens, {hq} and {hk} heads: {launch:?}");
                // Threads without a token or a head: at most as many as those with.
                let threads: u64 = launch.grid.iter().chain(&launch.block).map(|&n| u64::from(n)).product();
                let walks = (hq + hk).div_ceil(launch.args.heads_per_thread as usize);
                let busy = (tokens * walks * (rotary / 2 / width).min(THREADS)) as u64;
                assert!(threads <= 2 * busy, "{tokens} tokens: {threads} threads for {busy}, {launch:?}");
            }
        }
    }

    #[test]
    fn few_tokens_spread_their_heads_and_many_walk_them() {
        let rope = Rope::new(128, 10_000.0);
        let launch = |tokens| {
            let (q, k) = (Heads::thd(tokens, 32, 128), Heads::thd(tokens, 8, 128));
            rope.launch(&call(q, Some(k), true, 2)).unwrap()
        };
        assert_eq!(launch(1).args.heads_per_thread, 1);
        assert_eq!(launch(1 << 20).args.heads_per_thread, 40);
        // Half a million blocks of one sequence, and more sequences than a grid is deep.
        let deep = Heads::bthd(70_000, 1, 4, 128);
        assert_eq!(rope.launch(&call(deep, None, true, 2)).unwrap().grid[2], 65535);
    }

    #[test]
    fn width_follows_sizes_strides_and_addresses() {
        let entry = |rope: &Rope, q: Heads, in_place: bool, alignment: usize, element: usize| {
            rope.launch(&Call { alignment, ..call(q, None, in_place, element) }).unwrap().entry
        };
        let rope = Rope::new(64, 10_000.0);
        let q = Heads::thd(3, 2, 64);
        assert_eq!(entry(&rope, q, true, 16, 2), "rope_wide");
        assert_eq!(entry(&rope, q, true, 8, 2), "rope_mid");
        assert_eq!(entry(&rope, q, true, 4, 2), "rope_one");
        assert_eq!(entry(&rope, q.row(132), true, 16, 2), "rope_mid");
        assert_eq!(entry(&rope, q.row(132), true, 16, 4), "rope_wide");
        assert_eq!(entry(&rope, q.at(1), true, 16, 4), "rope_one");
        // 24 of 96 channels, GPT-NeoX-20B: 12 pairs are three accesses of 8 bytes.
        assert_eq!(entry(&Rope::new(24, 10_000.0), Heads::thd(3, 64, 96), true, 16, 2), "rope_mid");
        // What is copied beside the rotary part counts out of place alone.
        assert_eq!(entry(&rope, Heads::thd(3, 1, 70), false, 16, 2), "rope_one");
        // A stride that is never taken does not count.
        assert_eq!(entry(&rope, Heads { strides: [1, 1, 64], ..Heads::thd(1, 2, 64) }, true, 16, 2), "rope_wide");
    }

    #[test]
    fn more_tokens_than_a_kernel_counts_are_refused() {
        let error = Rope::new(2, 1e4).launch(&call(Heads::thd(1 << 31, 1, 2), None, true, 2)).unwrap_err();
        assert_eq!(error.to_string(), "2147483648 tokens in one call, a kernel counts to 2147483647");
    }
}

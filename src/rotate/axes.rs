//! Which axis of a token's position turns a pair: text with images and video, grids, volumes.

use crate::{Error, Result};

// ---------------------------------------------------------------------------------------------------------------- spec

/// The axis of each pair, and which frequency of which ladder it has.
///
/// Formulas, sources and disagreements: [docs](crate::docs::rotate#axes).
///
/// A ladder of size `d` is `base^(-2i/d)` for `i = 0, 1, ...`. Positions are `[axes, tokens]`; where all axes of a token have
/// the same position, the forms with one ladder are plain RoPE, bit for bit.
///
/// | form | pairs of `[2, 1, 1]`, axis by axis | ladder |
/// |---|---|---|
/// | `One` | `0 0 0 0` | one |
/// | `Sections` | `0 0 1 2` | one |
/// | `Interleaved` | `0 1 2 0` | one |
/// | `HeightWidthFirst` | `1 2 0 0` | one |
/// | `Table` | any | one |
/// | `Ladders` | `0 0 1 2` | one for each axis, of its own size |
/// | `Dealt` | `0 0 1 1` for 2 axes | one, dealt to the axes in turn |
/// | `Blocks` | `0 0 1 1` for 2 axes | one for each axis, and channels of its own |
/// | `Alternating` | `0 1 0 1` for 2 axes | one for each axis |
///
/// # Example
/// ```
/// use posenc::rotate::Axes;
/// let qwen3_vl = Axes::Interleaved(vec![24, 20, 20]);
/// assert_eq!(qwen3_vl.axis(1, 64), 1);
/// assert_eq!(qwen3_vl.axis(60, 64), 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Axes {
    /// One position for each token.
    #[default]
    One,
    /// Runs of pairs, one for each axis: axis `a` has the next `sizes[a]` pairs.
    ///
    /// M-RoPE of Qwen2-VL and Qwen2.5-VL (time, height, width: 16, 24, 24), GLM-4V, PaddleOCR-VL.
    ///
    /// Source: Wang et al. 2024 (arXiv 2409.12191), section 2.1; transformers 5.23.0, `modeling_qwen2_vl.py`.
    Sections(Vec<usize>),
    /// Axes take turns: of `n` axes, axis `a > 0` has the pairs `a, a + n, ...` below `n * sizes[a]`, axis 0 the others.
    ///
    /// Qwen3-VL (24, 20, 20), Qwen3.5 (11, 11, 10).
    ///
    /// Source: transformers 5.23.0, `modeling_qwen3_vl.py`. llama.cpp gives the pairs that no axis reaches (61 and 62 of
    /// 24, 20, 20) a fourth position, which is 0 for text; [`Axes::Table`] can.
    Interleaved(Vec<usize>),
    /// Height and width alternate over the first `sizes[1] + sizes[2]` pairs, time has the rest; axis 0 is time.
    ///
    /// ERNIE 4.5-VL: `[20, 22, 22]`, which its config lists as 22, 22, 20.
    ///
    /// Source: transformers 5.23.0, `modeling_ernie4_5_vl_moe.py`.
    HeightWidthFirst([usize; 3]),
    /// The axis of each pair, written out.
    Table(Vec<u8>),
    /// Runs of pairs as in [`Axes::Sections`], each with a ladder of its own, of size `2 * sizes[a]`.
    ///
    /// Grids: Qwen2-VL's vision tower, EVA-02, SAM 2, DINOv3, each with the halves' sizes `[d/4, d/4]`. Volumes: Wan
    /// `[22, 21, 21]`, HunyuanVideo `[8, 28, 28]`.
    ///
    /// Source: transformers 5.23.0, `modeling_qwen2_vl.py`, `modeling_sam2_video.py`, `modeling_dinov3_vit.py`; timm 1.0.31,
    /// `pos_embed_sincos.py`.
    Ladders(Vec<usize>),
    /// As many runs of equal size as axes; the ladder of the whole size is dealt out: pair `j` of axis `a` has the frequency
    /// `j * axes + a`.
    ///
    /// Pixtral, with 2 axes.
    ///
    /// Source: transformers 5.23.0, `modeling_pixtral.py`.
    Dealt(usize),
    /// As many blocks of channels of equal size as axes, each rotated as a rotary part of its own: in halves, the pairs of axis
    /// `a` lie within the block `a`, where [`Axes::Ladders`] has the first halves of all axes before the second ones.
    ///
    /// ```text
    /// a0 a1 b0 b1  a2 a3 b2 b3        two axes
    /// ```
    /// Gemma 4's vision tower, with 2 axes.
    ///
    /// Source: transformers 5.23.0, `modeling_gemma4.py`, `apply_multidimensional_rope`.
    Blocks(usize),
    /// Axes take turns, each with a ladder of its own: pair `j * axes + a` has frequency `j` of axis `a`.
    ///
    /// Kimi K2.5's vision tower and EfficientLoFTR, with 2 axes.
    ///
    /// Source: transformers 5.24.0, `modeling_kimi_k25.py`, `modeling_efficientloftr.py`.
    Alternating(usize),
}

impl Axes {
    /// Axes that a token's position has.
    pub fn count(&self) -> usize {
        match self {
            Self::One => 1,
            Self::Sections(sizes) | Self::Interleaved(sizes) | Self::Ladders(sizes) => sizes.len(),
            Self::HeightWidthFirst(sizes) => sizes.len(),
            Self::Table(table) => table.iter().max().map_or(1, |&axis| usize::from(axis) + 1),
            Self::Dealt(axes) | Self::Blocks(axes) | Self::Alternating(axes) => *axes,
        }
    }

    /// Blocks of channels that are rotated each for itself.
    pub(crate) const fn blocks(&self) -> usize {
        match self {
            Self::Blocks(axes) => *axes,
            _ => 1,
        }
    }

    /// True if all axes share one ladder of frequencies, so that equal positions give plain RoPE.
    pub const fn one_ladder(&self) -> bool {
        !matches!(self, Self::Ladders(_) | Self::Dealt(_) | Self::Blocks(_) | Self::Alternating(_))
    }

    /// Refuses sizes that do not fit `pairs`.
    pub(crate) fn check(&self, pairs: usize) -> Result<()> {
        let wrong = |text: String| Err(Error::Value(text));
        let (name, sizes): (_, &[usize]) = match self {
            Self::One => return Ok(()),
            Self::Sections(sizes) => ("sections", sizes),
            Self::Interleaved(sizes) => ("interleaved sections", sizes),
            Self::HeightWidthFirst(sizes) => ("sections", sizes),
            Self::Ladders(sizes) => ("ladders", sizes),
            Self::Table(table) if table.len() == pairs => return Ok(()),
            Self::Table(table) => {
                return wrong(format!("the table of axes holds {} pairs, the rotary part has {pairs}", table.len()));
            }
            Self::Dealt(0) => return wrong("the ladder is dealt to 0 axes, there must be at least 1".into()),
            Self::Blocks(0) => return wrong("there are 0 blocks of channels, there must be at least 1".into()),
            Self::Alternating(0) => return wrong("0 axes take turns, there must be at least 1".into()),
            Self::Dealt(axes) | Self::Blocks(axes) | Self::Alternating(axes)
                if pairs.is_multiple_of(*axes) && *axes <= 256 =>
            {
                return Ok(());
            }
            Self::Dealt(axes) | Self::Blocks(axes) | Self::Alternating(axes) => {
                return wrong(format!("the rotary part has {pairs} pairs, which {axes} axes do not share equally"));
            }
        };
        let sum = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if sum != Some(pairs) {
            let sum = sum.map_or("more than fits 64 bits".into(), |sum| sum.to_string());
            return wrong(format!("the {name} {sizes:?} sum to {sum}, the rotary part has {pairs} pairs"));
        }
        if sizes.len() > 256 {
            return wrong(format!("there are {} axes, at most 256 are possible", sizes.len()));
        }
        if let Self::Interleaved(sizes) = self {
            let reach = |(axis, &size): (usize, &usize)| if size > 0 { axis + sizes.len() * (size - 1) } else { 0 };
            if sizes.iter().enumerate().skip(1).any(|section| reach(section) >= pairs) {
                return wrong(format!(
                    "the interleaved sections {sizes:?} reach beyond {pairs} pairs, {} apart as they are",
                    sizes.len()
                ));
            }
        }
        if let Self::HeightWidthFirst([_, height, width]) = self
            && height != width
        {
            return wrong(format!("height has {height} pairs and width {width}, they alternate and must be as many"));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------------------------------------------------- law

/// The run that `pair` falls into, and its number there.
fn run(sizes: &[usize], pair: usize) -> (usize, usize) {
    let mut first = 0;
    for (axis, &size) in sizes.iter().enumerate() {
        if pair < first + size {
            return (axis, pair - first);
        }
        first += size;
    }
    unreachable!("sizes sum to the pairs")
}

impl Axes {
    /// The axis whose position turns `pair` of `pairs`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn axis(&self, pair: usize, pairs: usize) -> usize {
        assert!(pair < pairs, "pair {pair} of {pairs}");
        match self {
            Self::One => 0,
            Self::Sections(sizes) | Self::Ladders(sizes) => run(sizes, pair).0,
            Self::Interleaved(sizes) => {
                let axis = pair % sizes.len();
                if pair < sizes.len() * sizes[axis] { axis } else { 0 }
            }
            Self::HeightWidthFirst([_, height, width]) => {
                if pair < height + width {
                    1 + pair % 2
                } else {
                    0
                }
            }
            Self::Table(table) => usize::from(table[pair]),
            Self::Dealt(axes) | Self::Blocks(axes) => pair / (pairs / axes),
            Self::Alternating(axes) => pair % axes,
        }
    }

    /// The frequency that `pair` has: its number in a ladder, and that ladder's size in channels.
    pub(crate) fn rung(&self, pair: usize, pairs: usize) -> (usize, usize) {
        match self {
            Self::Ladders(sizes) => {
                let (axis, number) = run(sizes, pair);
                (number, 2 * sizes[axis])
            }
            Self::Dealt(axes) => {
                let each = pairs / axes;
                (pair % each * axes + pair / each, 2 * pairs)
            }
            Self::Blocks(axes) => (pair % (pairs / axes), 2 * pairs / axes),
            Self::Alternating(axes) => (pair / axes, 2 * pairs / axes),
            _ => (pair, 2 * pairs),
        }
    }

    /// The axis of every pair as a kernel reads it; `None` where there is one axis.
    pub(crate) fn table(&self, pairs: usize) -> Option<Vec<u8>> {
        // `check` allows 256 axes at most.
        (self.count() > 1).then(|| (0..pairs).map(|pair| self.axis(pair, pairs) as u8).collect())
    }
}

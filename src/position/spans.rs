//! Positions on several axes, made from what a sequence holds: text, images, videos, audio.

use crate::memory::reserved;
use crate::{Error, Result};

fn wrong<T>(text: String) -> Result<T> {
    Err(Error::Value(text))
}

/// A grid of patches as an encoder hands it to a language model: an image, a video, or one frame of it.
///
/// Token `(t, y, x)` of `times * rows * columns`, row by row, has the positions
///
/// ```text
/// start + floor(t * interval), start + y, start + x        times = grid[0] / temporal_merge, rows = grid[1] / merge, ...
/// ```
///
/// | model | `temporal_merge` | `interval` |
/// |---|---|---|
/// | Qwen2-VL, Qwen3-VL, Qwen3.5, GLM-4V | 1 | 1 |
/// | Qwen2.5-VL | 1 | videos: `tokens_per_second * second_per_grid`; images: 1 |
/// | ERNIE 4.5-VL | videos: `temporal_merge_size`, 2; images: 1 | 1 |
/// | Qwen2.5-Omni, Qwen3-Omni | 1 | videos: `position_id_per_seconds * second_per_grid` |
///
/// # Example
/// ```
/// use posenc::position::Patches;
/// // A second lasts 25 positions, a step of time two frames at one frame a second.
/// let video = Patches { interval: 50.0, ..Patches::new([3, 4, 4], 2) };
/// assert_eq!(video.tokens()?, 12);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Patches {
    /// patches of time, height and width, before merging
    pub grid: [usize; 3],
    /// patches of a token along height and along width
    pub merge: usize,
    /// patches of a token along time
    pub temporal_merge: usize,
    /// positions from one token of time to the next, rounded down after multiplication
    pub interval: f64,
}

impl Patches {
    /// A grid with `merge` patches of a token along height and width, and one position for each step of time.
    pub const fn new(grid: [usize; 3], merge: usize) -> Self {
        Self { grid, merge, temporal_merge: 1, interval: 1.0 }
    }

    /// The frames of a video, each a grid of one step of time: Qwen3-VL's and GLM-4V's videos, which have text between frames.
    pub fn frames(self) -> impl Iterator<Item = Self> {
        let [times, rows, columns] = self.grid;
        (0..times).map(move |_| Self { grid: [1, rows, columns], ..self })
    }

    /// Tokens along time, height and width.
    ///
    /// # Errors
    /// [`Error::Value`] if a size is 0, does not divide by its merge size, or the interval is not finite or below 0.
    pub fn sizes(&self) -> Result<[usize; 3]> {
        let names = ["time", "height", "width"];
        let merges = [self.temporal_merge, self.merge, self.merge];
        for axis in 0..3 {
            let (name, size, merge) = (names[axis], self.grid[axis], merges[axis]);
            if merge == 0 || size == 0 || size % merge != 0 {
                return wrong(format!(
                    "the grid's {name} is {size}, it must be a multiple of the merge size {merge}, and both at least 1"
                ));
            }
        }
        if !(self.interval.is_finite() && self.interval >= 0.0) {
            return wrong(format!("the interval is {}, it must be finite and at least 0", self.interval));
        }
        Ok([self.grid[0] / merges[0], self.grid[1] / merges[1], self.grid[2] / merges[2]])
    }

    /// Tokens of the grid.
    ///
    /// # Errors
    /// As [`Patches::sizes`], and [`Error::Overflow`] if their number does not fit.
    pub fn tokens(&self) -> Result<usize> {
        let sizes = self.sizes()?;
        let tokens = sizes.into_iter().try_fold(1usize, usize::checked_mul).filter(|&tokens| tokens <= MOST);
        tokens.ok_or_else(|| Error::Overflow(format!("the grid's tokens {} x {} x {}", sizes[0], sizes[1], sizes[2])))
    }
}

/// Tokens of a call, at most: a damaged grid must not ask for memory.
const MOST: usize = 1 << 31;

/// A stretch of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Span {
    /// So many tokens with the same position on all axes, one after the other: text, and audio by itself.
    Text(usize),
    /// So many tokens at one position: both marks around a video with sound of Qwen2.5-Omni.
    Together(usize),
    /// Tokens of an image or a video.
    Patches(Patches),
    /// A video with its sound: both start at one position, and their tokens are mixed.
    Sounding {
        /// tokens of the video
        video: Patches,
        /// tokens of the sound, one position each
        audio: usize,
        /// how they are mixed
        mix: Mix,
    },
}

/// How the tokens of a video and of its sound are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Mix {
    /// By chunks of so many positions, in each the video first: Qwen2.5-Omni, `position_id_per_seconds * seconds_per_chunk`.
    ///
    /// As there, a token that starts a chunk ends one chunk alone, however many it passes.
    Chunks(usize),
    /// By time, the video first where both have the same: Qwen3-Omni.
    Time,
}

/// Where a sequence goes on after a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum After {
    /// Behind the largest position so far in the last stretch: the models' own code, vLLM, transformers 4, and the Omni models.
    #[default]
    Largest,
    /// The larger of height and width further on, however long the video is: transformers 5 for the models that are not Omni.
    ///
    /// Both agree unless time reaches further than height and width.
    Space,
}

/// Positions of one or several sequences on three axes: time, height, width.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpanPositions {
    /// `[3, tokens]`, sequence after sequence
    pub ids: Vec<i64>,
    /// first token of each sequence, and the number of tokens
    pub indptr: Vec<usize>,
    /// the position of the first token that follows each sequence, one above its largest
    pub next: Vec<i64>,
}

impl SpanPositions {
    /// Makes the positions of sequences, each given by its stretches: what a RoPE with [`Axes`](crate::rotate::Axes) takes for a
    /// packed batch.
    ///
    /// A sequence generates on at `next`: transformers' `rope_deltas` is `next` minus the sequence's tokens.
    ///
    /// # Errors
    /// [`Error::Value`] if a grid does not divide by its merge size, a chunk is 0 positions long, or a position leaves 32 bits;
    /// [`Error::Overflow`] if there are more than 2^31 tokens.
    ///
    /// # Source
    /// Qwen2-VL (arXiv 2409.12191), section 2.1; `get_rope_index` of transformers 5.24.0.
    ///
    /// # Example
    /// ```
    /// use posenc::position::{After, Patches, Span, SpanPositions};
    /// // Two words, an image of 2 x 2 tokens, a word.
    /// let spans = [Span::Text(2), Span::Patches(Patches::new([1, 4, 4], 2)), Span::Text(1)];
    /// let made = SpanPositions::new(&[&spans], After::Largest)?;
    /// assert_eq!(made.ids[..7], [0, 1, 2, 2, 2, 2, 4]);
    /// assert_eq!(made.ids[7..14], [0, 1, 2, 2, 3, 3, 4]);
    /// assert_eq!(made.ids[14..], [0, 1, 2, 3, 2, 3, 4]);
    /// assert_eq!(made.next, [5]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn new(sequences: &[&[Span]], after: After) -> Result<Self> {
        let mut indptr = vec![0];
        let mut tokens = 0usize;
        for spans in sequences {
            for span in *spans {
                tokens = span
                    .tokens()?
                    .checked_add(tokens)
                    .filter(|&tokens| tokens <= MOST)
                    .ok_or_else(|| Error::Overflow("the number of tokens of all spans".into()))?;
            }
            indptr.push(tokens);
        }
        let mut rows: Vec<[i64; 3]> = reserved("positions", tokens)?;
        let mut next = Vec::new();
        for spans in sequences {
            let first = rows.len();
            let mut at = 0i64;
            for span in *spans {
                at = span.place(at, after, &mut rows)?;
            }
            let largest = rows[first..].iter().flatten().max();
            next.push(largest.map_or(0, |largest| largest + 1));
        }
        if let Some(largest) = rows.iter().flatten().max().filter(|&&largest| largest > i64::from(i32::MAX)) {
            return wrong(format!("a position is {largest}, it must be below 2^31"));
        }
        let mut ids = reserved("positions", 3 * tokens)?;
        (0..3).for_each(|axis| ids.extend(rows.iter().map(|row| row[axis])));
        Ok(Self { ids, indptr, next })
    }

    /// Finds the stretches of a sequence from the kind of each token (0 text, 1 image, 2 video) and the grids in their order:
    /// transformers' `mm_token_type_ids`.
    ///
    /// # Errors
    /// [`Error::Value`] if a kind is none of these, a run of tokens is not covered by the next grids, or a grid is left over.
    pub fn spans(kinds: &[u8], images: &[Patches], videos: &[Patches]) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        let mut grids = [images.iter(), videos.iter()];
        let mut at = 0;
        while let Some(&kind) = kinds.get(at) {
            let run = kinds[at..].iter().take_while(|&&other| other == kind).count();
            let name = match kind {
                0 => {
                    spans.push(Span::Text(run));
                    at += run;
                    continue;
                }
                1 => "image",
                2 => "video",
                other => return wrong(format!("the kind of token {at} is {other}, it must be 0, 1 or 2")),
            };
            // Images without text between them are one run.
            let mut covered = 0;
            while covered < run {
                let Some(grid) = grids[usize::from(kind) - 1].next() else {
                    return wrong(format!(
                        "{} {name} tokens from token {} on have no grid, each run must be covered",
                        run - covered,
                        at + covered
                    ));
                };
                let tokens = grid.tokens()?;
                if tokens > run - covered {
                    return wrong(format!(
                        "the grid {:?} has {tokens} tokens, the run of {name} tokens has {} from token {} on",
                        grid.grid,
                        run - covered,
                        at + covered
                    ));
                }
                spans.push(Span::Patches(*grid));
                covered += tokens;
            }
            at += run;
        }
        for (grids, name) in grids.iter().zip(["image", "video"]) {
            if grids.len() > 0 {
                return wrong(format!(
                    "{} {name} grids are left over, the sequence has no tokens of them",
                    grids.len()
                ));
            }
        }
        Ok(spans)
    }
}

impl Span {
    /// Tokens of the stretch.
    ///
    /// # Errors
    /// As [`Patches::tokens`].
    pub fn tokens(&self) -> Result<usize> {
        match self {
            Self::Text(tokens) | Self::Together(tokens) => Ok(*tokens),
            Self::Patches(patches) => patches.tokens(),
            Self::Sounding { video, audio, .. } => match video.tokens()?.checked_add(*audio) {
                Some(tokens) => Ok(tokens),
                None => Err(Error::Overflow("a video's tokens and its sound's".into())),
            },
        }
    }

    /// Appends the positions from `start` on; where the next stretch starts.
    fn place(&self, start: i64, after: After, rows: &mut Vec<[i64; 3]>) -> Result<i64> {
        let text = |tokens: usize| (0..tokens as i64).map(move |token| [start + token; 3]);
        let behind = |rows: &[[i64; 3]]| rows.iter().flatten().max().map_or(start, |largest| largest + 1);
        let from = rows.len();
        match *self {
            Self::Text(tokens) => {
                rows.extend(text(tokens));
                Ok(start + tokens as i64)
            }
            Self::Together(tokens) => {
                rows.extend(std::iter::repeat_n([start; 3], tokens));
                Ok(start + i64::from(tokens > 0))
            }
            Self::Patches(patches) => {
                let [_, height, width] = patches.sizes()?;
                patches.place(start, rows)?;
                Ok(match after {
                    After::Largest => behind(&rows[from..]),
                    After::Space => start + height.max(width) as i64,
                })
            }
            Self::Sounding { video, audio, mix } => {
                let mut seen = reserved("positions", video.tokens()?)?;
                video.place(start, &mut seen)?;
                let heard: Vec<[i64; 3]> = text(audio).collect();
                let parts = match mix {
                    Mix::Chunks(0) => return wrong("a chunk is 0 positions long, it must be at least 1".into()),
                    Mix::Chunks(length) => by_chunks(&seen, &heard, start, length as i64),
                    Mix::Time => by_time(&seen, &heard),
                };
                let mut last = from;
                for part in parts {
                    last = rows.len();
                    rows.extend(part);
                }
                // As both implementations do: behind the last part, which need not hold the largest position.
                Ok(behind(&rows[last..]))
            }
        }
    }
}

impl Patches {
    fn place(&self, start: i64, rows: &mut Vec<[i64; 3]>) -> Result<()> {
        let [times, height, width] = self.sizes()?;
        for time in 0..times {
            // In f32, as torch multiplies whole numbers by a number.
            let time = (time as f32 * self.interval as f32).floor();
            if time >= 2147483648.0 {
                return wrong(format!("a position in time is {time}, it must be below 2^31"));
            }
            let time = start + time as i64;
            rows.extend((0..height * width).map(|at| [time, start + (at / width) as i64, start + (at % width) as i64]));
        }
        Ok(())
    }
}

/// Chunks of the video and of the sound in turn.
fn by_chunks<'a>(seen: &'a [[i64; 3]], heard: &'a [[i64; 3]], start: i64, length: i64) -> Vec<&'a [[i64; 3]]> {
    let chunks = |mut rest: &'a [[i64; 3]]| {
        let (mut parts, mut limit) = (Vec::new(), length);
        // The token that starts a chunk is not asked again.
        while let Some(at) = rest.iter().skip(1).position(|row| row[0] - start >= limit) {
            let (chunk, other) = rest.split_at(at + 1);
            parts.push(chunk);
            (rest, limit) = (other, limit + length);
        }
        parts.push(rest);
        parts
    };
    let (seen, heard) = (chunks(seen), chunks(heard));
    let turns = 0..seen.len().max(heard.len());
    let parts = turns.flat_map(|turn| [seen.get(turn), heard.get(turn)].into_iter().flatten().copied());
    parts.filter(|part| !part.is_empty()).collect()
}

/// Tokens one by one in the order of their time, then what is left of one of the two.
fn by_time<'a>(mut seen: &'a [[i64; 3]], mut heard: &'a [[i64; 3]]) -> Vec<&'a [[i64; 3]]> {
    let mut parts = Vec::new();
    while let (Some(image), Some(sound)) = (seen.first(), heard.first()) {
        let one = if image[0] <= sound[0] { &mut seen } else { &mut heard };
        let (token, rest) = one.split_at(1);
        parts.push(token);
        *one = rest;
    }
    parts.extend([seen, heard].into_iter().filter(|part| !part.is_empty()));
    parts
}

//! Entries by coordinates in a window: Swin, BEiT, MaxViT, LeViT, TinyViT, and the axes of SAM and MViTv2; masks of shifted windows.

use crate::{Error, Result};

/// Which difference of coordinates chooses the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Coordinates {
    /// `query - key`, `2 * size - 1` of each axis: Swin, BEiT
    #[default]
    QueryMinusKey,
    /// `key - query`: MaxViT
    KeyMinusQuery,
    /// `|query - key|`, `size` of each axis: LeViT, TinyViT
    Absolute,
    /// the key's own coordinate, `size` of each axis: what SAM's and ViTDet's products of queries and resized tables have
    Key,
}

/// The axes whose differences choose the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum WindowAxes {
    /// rows and columns: `row * columns + column`
    #[default]
    Both,
    /// rows alone
    Rows,
    /// columns alone
    Columns,
}

/// Entries by coordinates in a window of tokens, row after row.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#windows).
///
/// ```text
/// token -> (y, x) = ((token - prefix) / width, (token - prefix) % width)
/// entry = (dy + height - 1) * (2 * width - 1) + dx + width - 1        dy = yq - yk, dx = xq - xk
/// ```
///
/// | field | unit | meaning |
/// |---|---|---|
/// | `height`, `width` | tokens | size of the window of keys |
/// | `stride` | tokens | a step of the queries' window on the keys': 2 where LeViT halves a grid, else 1 |
/// | `coordinates` | | which difference |
/// | `axes` | | rows, columns or both |
/// | `prefix` | tokens | class and register tokens before the window |
/// | `prefix_entries` | | three more entries: a token before the window against one in it, the reverse, both before it (BEiT). Without them such pairs get nothing |
///
/// Positions are tokens of the window, so that [`Places`](crate::Places) say which part of it a shard has. A position beyond the
/// window gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Window {
    /// rows of keys
    pub height: usize,
    /// keys of a row
    pub width: usize,
    /// a step of the queries' window
    pub stride: usize,
    /// which difference
    pub coordinates: Coordinates,
    /// rows, columns or both
    pub axes: WindowAxes,
    /// tokens before the window
    pub prefix: usize,
    /// three more entries for them
    pub prefix_entries: bool,
}

impl Window {
    /// Swin v1 and v2, and timm's `gen_relative_position_index`: signed differences of query and key.
    ///
    /// ```
    /// use posenc::bias::Window;
    /// let swin = Window::swin(7, 7);
    /// assert_eq!(swin.entries(), 169);
    /// // The first token sees itself in the middle of the table, the last one at its first entry.
    /// assert_eq!([0, 48].map(|key| swin.entry(0, key)), [Some(84), Some(0)]);
    /// ```
    pub const fn swin(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            stride: 1,
            coordinates: Coordinates::QueryMinusKey,
            axes: WindowAxes::Both,
            prefix: 0,
            prefix_entries: false,
        }
    }

    /// BEiT and Data2VecVision: Swin's entries, one class token and three entries for it.
    pub const fn beit(height: usize, width: usize) -> Self {
        Self { prefix: 1, prefix_entries: true, ..Self::swin(height, width) }
    }

    /// MaxViT and CoAtNet in timm (`RelPosBiasTf`): the sign is the key's. The table is `[heads, 2 * height - 1, 2 * width - 1]`.
    pub const fn maxvit(height: usize, width: usize) -> Self {
        Self { coordinates: Coordinates::KeyMinusQuery, ..Self::swin(height, width) }
    }

    /// LeViT and TinyViT: sizes of differences. `stride` is 2 where LeViT's attention halves the grid.
    pub const fn levit(height: usize, width: usize, stride: usize) -> Self {
        Self { coordinates: Coordinates::Absolute, stride, ..Self::swin(height, width) }
    }

    /// One axis of decomposed positions (SAM, ViTDet, MViTv2): the number lies by query and by the key's coordinate on that axis.
    pub const fn decomposed(height: usize, width: usize, axes: WindowAxes) -> Self {
        Self { coordinates: Coordinates::Key, axes, ..Self::swin(height, width) }
    }

    /// Keys of the window, those before it included.
    pub const fn keys(&self) -> usize {
        self.height.saturating_mul(self.width).saturating_add(self.prefix)
    }

    /// Queries of the window, those before it included; any number where the key's coordinate alone counts.
    pub const fn queries(&self) -> usize {
        if matches!(self.coordinates, Coordinates::Key) {
            return i32::MAX as usize;
        }
        self.query_side(self.height).saturating_mul(self.query_side(self.width)).saturating_add(self.prefix)
    }

    /// Queries along a side of `keys` keys.
    pub(super) const fn query_side(&self, keys: usize) -> usize {
        if self.stride == 0 { 0 } else { keys.div_ceil(self.stride) }
    }

    /// Entries along rows and along columns; 1 where an axis plays no part.
    pub(in crate::bias) fn sides(&self) -> [usize; 2] {
        let side = |keys: usize| match self.coordinates {
            Coordinates::QueryMinusKey | Coordinates::KeyMinusQuery => keys.saturating_mul(2).saturating_sub(1),
            Coordinates::Absolute | Coordinates::Key => keys,
        };
        match self.axes {
            WindowAxes::Both => [side(self.height), side(self.width)],
            WindowAxes::Rows => [side(self.height), 1],
            WindowAxes::Columns => [1, side(self.width)],
        }
    }

    /// Entries of a table.
    pub fn entries(&self) -> usize {
        let [rows, columns] = self.sides();
        rows.saturating_mul(columns).saturating_add(if self.prefix_entries { 3 } else { 0 })
    }

    /// The entry of a difference of coordinates, as a kernel computes it: what a step of each axis is worth, and the entry of the
    /// difference 0.
    pub(super) fn steps(&self) -> ([usize; 2], usize) {
        let [_, columns] = self.sides();
        let steps = match self.axes {
            WindowAxes::Both => [columns, 1],
            WindowAxes::Rows => [1, 0],
            WindowAxes::Columns => [0, 1],
        };
        let origin = match self.coordinates {
            Coordinates::QueryMinusKey | Coordinates::KeyMinusQuery => {
                (self.height - 1) * steps[0] + (self.width - 1) * steps[1]
            }
            Coordinates::Absolute | Coordinates::Key => 0,
        };
        (steps, origin)
    }

    /// What the coordinates of queries and of keys are multiplied by.
    pub(super) fn scales(&self) -> [i64; 2] {
        let stride = self.stride as i64;
        match self.coordinates {
            Coordinates::QueryMinusKey | Coordinates::Absolute => [stride, -1],
            Coordinates::KeyMinusQuery => [-stride, 1],
            Coordinates::Key => [0, 1],
        }
    }

    /// Refuses sizes and strides of 0, windows of 2^30 entries and more, and strides where they have no use.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        let Self { height, width, stride, .. } = *self;
        if height == 0 || width == 0 || stride == 0 {
            return Err(Error::Value(format!(
                "a window is {height} x {width} tokens with stride {stride}, all three must be at least 1"
            )));
        }
        if self.entries() > 1 << 30 || self.keys() > 1 << 30 || stride > 1 << 15 {
            return Err(Error::Value(format!(
                "a window is {height} x {width} tokens with stride {stride} behind {} more, tokens and entries must lie within \
                 2^30 and the stride within 32768",
                self.prefix
            )));
        }
        if self.prefix_entries && (self.prefix == 0 || self.coordinates == Coordinates::Key) {
            return Err(Error::Value(
                "a window has entries for the tokens before it: there must be such tokens, and a difference of coordinates".into(),
            ));
        }
        Ok(())
    }

    /// Row and column of a token, or `None` before the window; the outer `None` is outside of it.
    fn place(&self, token: i64, keys: bool) -> Option<Option<[i64; 2]>> {
        let (width, tokens) =
            if keys { (self.width, self.keys()) } else { (self.query_side(self.width), self.queries()) };
        let token = usize::try_from(token).ok().filter(|&token| token < tokens)?;
        let own = token.checked_sub(self.prefix);
        Some(own.map(|own| [(own / width) as i64, (own % width) as i64]))
    }

    /// The entry of a query and a key at these tokens; `None`: nothing is added.
    pub fn entry(&self, query: i64, key: i64) -> Option<usize> {
        let (query, key) = (self.place(query, false)?, self.place(key, true)?);
        let [rows, columns] = self.sides();
        let (Some(query), Some(key)) = (query, key) else {
            let which = match (query, key) {
                (None, Some(_)) => 0,
                (Some(_), None) => 1,
                _ => 2,
            };
            return self.prefix_entries.then_some(rows * columns + which);
        };
        let along = |axis: usize| {
            let size = [self.height, self.width][axis] as i64;
            let (query, key) = (query[axis] * self.stride as i64, key[axis]);
            match self.coordinates {
                Coordinates::QueryMinusKey => query - key + size - 1,
                Coordinates::KeyMinusQuery => key - query + size - 1,
                Coordinates::Absolute => (query - key).abs(),
                Coordinates::Key => key,
            }
        };
        let entry = match self.axes {
            WindowAxes::Both => along(0) * columns as i64 + along(1),
            WindowAxes::Rows => along(0),
            WindowAxes::Columns => along(1),
        };
        usize::try_from(entry).ok()
    }
}

/// The mask of shifted windows: a number between tokens that a cyclic shift brought together from different regions of the
/// image.
///
/// Formulas, sources and disagreements: [docs](crate::docs::bias#windows).
///
/// An image of `height` x `width` tokens is shifted up and left by `shift` and cut into windows of `window`, row after row;
/// sequence `b` of a call is window `b % windows` of image `b / windows`. Regions are bounded by the last window and by what was
/// shifted around, on each axis:
///
/// ```text
/// region(i) = 0   i < size - window,   1   i < size - shift,   2   else
/// ```
///
/// | implementation | between regions |
/// |---|---|
/// | Swin, Swin v2 (timm, Hugging Face) | -100; Hugging Face's Swin v2 adds it twice, which is a fault of that port |
/// | others | -inf |
///
/// ```
/// use posenc::bias::ShiftedWindows;
/// let shifted = ShiftedWindows { height: 8, width: 8, window: [4, 4], shift: [2, 2] };
/// assert_eq!(shifted.windows(), 4);
/// // In the last window the first token and the last come from opposite corners.
/// assert!(shifted.apart(3, 0, 15) && !shifted.apart(0, 0, 15));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShiftedWindows {
    /// rows of the image
    pub height: usize,
    /// tokens of a row
    pub width: usize,
    /// rows and columns of a window
    pub window: [usize; 2],
    /// rows and columns of the shift; 0: an axis is not shifted
    pub shift: [usize; 2],
}

impl ShiftedWindows {
    /// Windows of an image.
    pub const fn windows(&self) -> usize {
        let [height, width] = self.window;
        if height == 0 || width == 0 { 0 } else { (self.height / height) * (self.width / width) }
    }

    /// Tokens of a window.
    pub const fn tokens(&self) -> usize {
        self.window[0].saturating_mul(self.window[1])
    }

    /// The first row, and column, of the last window and of what was shifted around.
    pub(super) fn bounds(&self) -> ([usize; 2], [usize; 2]) {
        let sizes = [self.height, self.width];
        let last = [0, 1].map(|axis| sizes[axis] - self.window[axis]);
        // An axis that is not shifted has one region.
        let bound = |axis: usize, at: usize| if self.shift[axis] == 0 { sizes[axis] } else { at };
        ([0, 1].map(|axis| bound(axis, last[axis])), [0, 1].map(|axis| bound(axis, sizes[axis] - self.shift[axis])))
    }

    /// Refuses windows of 0, images that are no multiple of the window, and shifts that reach a window.
    ///
    /// # Errors
    /// [`Error::Value`] with the numbers.
    pub fn check(&self) -> Result<()> {
        let Self { height, width, window, shift } = *self;
        let fits =
            |size: usize, window: usize| window > 0 && size > 0 && size.is_multiple_of(window) && size <= 1 << 15;
        if !fits(height, window[0]) || !fits(width, window[1]) {
            return Err(Error::Value(format!(
                "an image of {height} x {width} tokens in windows of {} x {}: each size must be a multiple of the window's, and at \
                 most 32768",
                window[0], window[1]
            )));
        }
        if shift[0] >= window[0] || shift[1] >= window[1] {
            return Err(Error::Value(format!(
                "windows of {} x {} are shifted by {} x {}, which must be less",
                window[0], window[1], shift[0], shift[1]
            )));
        }
        Ok(())
    }

    /// The region of a token of a window, by axis.
    fn region(&self, window: usize, token: i64) -> Option<[u8; 2]> {
        let token = usize::try_from(token).ok().filter(|&token| token < self.tokens())?;
        let columns = self.width / self.window[1];
        let at = [
            window / columns * self.window[0] + token / self.window[1],
            window % columns * self.window[1] + token % self.window[1],
        ];
        let (last, wrapped) = self.bounds();
        Some([0, 1].map(|axis| u8::from(at[axis] >= last[axis]) + u8::from(at[axis] >= wrapped[axis])))
    }

    /// True if window `batch % windows` has the tokens `query` and `key` in two regions.
    ///
    /// # Panics
    /// If there are no windows.
    pub fn apart(&self, batch: usize, query: i64, key: i64) -> bool {
        let window = batch % self.windows();
        match (self.region(window, query), self.region(window, key)) {
            (Some(query), Some(key)) => query != key,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_one_token_has_one_entry() {
        let one = Window::swin(1, 1);
        one.check().unwrap();
        assert_eq!((one.entries(), one.entry(0, 0), one.entry(0, 1)), (1, Some(0), None));
    }

    #[test]
    fn broken_windows_are_refused() {
        assert_eq!(
            Window::swin(0, 7).check().unwrap_err().to_string(),
            "a window is 0 x 7 tokens with stride 1, all three must be at least 1"
        );
        assert_eq!(
            Window { prefix: 0, ..Window::beit(2, 2) }.check().unwrap_err().to_string(),
            "a window has entries for the tokens before it: there must be such tokens, and a difference of coordinates"
        );
        let shifted = ShiftedWindows { height: 8, width: 9, window: [4, 4], shift: [2, 2] };
        assert_eq!(
            shifted.check().unwrap_err().to_string(),
            "an image of 8 x 9 tokens in windows of 4 x 4: each size must be a multiple of the window's, and at most 32768"
        );
        let shifted = ShiftedWindows { width: 8, shift: [4, 0], ..shifted };
        assert_eq!(
            shifted.check().unwrap_err().to_string(),
            "windows of 4 x 4 are shifted by 4 x 0, which must be less"
        );
    }
}

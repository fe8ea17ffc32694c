//! Positions of the patches of images and videos, as their own encoder counts them.

use crate::memory::reserved;
use crate::{Error, Result};

fn wrong<T>(text: String) -> Result<T> {
    Err(Error::Value(text))
}

/// A coordinate of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GridAxis {
    /// step of time
    Time,
    /// row, counted from the top
    Row,
    /// column, counted from the left
    Column,
}

/// Length that a patch's centre is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GridExtent {
    /// rows for a row, columns for a column: `separate` of DINOv3's code, and the one that transformers has
    Own,
    /// the larger of rows and columns: `max`
    Longer,
    /// the smaller of rows and columns: `min`
    Shorter,
}

/// How the index of a row, column or step of time becomes a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum GridCoordinate {
    /// The index, counted from `first`.
    Index {
        /// position of the first row and column
        first: i64,
    },
    /// The centre of the patch: `(2 index + 1) / extent - 1`, between -1 and 1, rounded to units of `2^-bits`.
    Center {
        /// what it is divided by
        extent: GridExtent,
        /// fraction bits of the rope
        bits: u32,
    },
}

/// How an image encoder counts patches: the positions of a [`Rope`](crate::Rope) with several axes.
///
/// Patches follow one another step of time by step of time, each row by row, or in blocks of `merge` times `merge` patches.
/// Tokens before and after them (class and register tokens) have position 0 on every axis: they are not rotated.
///
/// [`ModelRope::grid`](crate::ModelRope::grid) gives it for a vision tower.
///
/// # Example
/// ```
/// use posenc::position::{GridAxis, GridCoordinate, GridExtent, GridPositions};
/// // Llama 4: columns first, counted from 1, the class token last.
/// let coordinate = GridCoordinate::Index { first: 1 };
/// let llama4 = GridPositions { coordinate, after: 1, ..GridPositions::new(&[GridAxis::Column, GridAxis::Row]) };
/// assert_eq!(llama4.ids(&[[1, 2, 2]])?, [1, 2, 1, 2, 0, 1, 1, 2, 2, 0]);
/// // DINOv3: a class token, and centres of two rows and one column.
/// let coordinate = GridCoordinate::Center { extent: GridExtent::Own, bits: 2 };
/// let dinov3 = GridPositions { coordinate, before: 1, ..GridPositions::new(&[GridAxis::Row, GridAxis::Column]) };
/// assert_eq!(dinov3.ids(&[[1, 2, 1]])?, [0, -2, 2, 0, 0, 0]);
/// # Ok::<(), posenc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GridPositions {
    /// the coordinate on each axis of the rope
    pub axes: Vec<GridAxis>,
    /// how an index becomes a position
    pub coordinate: GridCoordinate,
    /// rows and columns of a block of patches that follow one another; 1: patches are in rows
    pub merge: usize,
    /// tokens before the patches of each grid
    pub before: usize,
    /// tokens after the patches of each grid
    pub after: usize,
}

impl GridPositions {
    /// Indices counted from 0 on these axes, patches row by row, no other tokens.
    pub fn new(axes: &[GridAxis]) -> Self {
        let coordinate = GridCoordinate::Index { first: 0 };
        Self { axes: axes.to_vec(), coordinate, merge: 1, before: 0, after: 0 }
    }

    /// Tokens of grids of `[times, rows, columns]` patches, those before and after the patches included.
    ///
    /// # Errors
    /// [`Error::Value`] if `merge` does not divide rows and columns, [`Error::Overflow`] if the number does not fit.
    pub fn tokens(&self, grids: &[[usize; 3]]) -> Result<usize> {
        let mut sum = 0usize;
        for &[times, rows, columns] in grids {
            let merge = self.merge;
            if merge == 0 || !rows.is_multiple_of(merge) || !columns.is_multiple_of(merge) {
                return wrong(format!(
                    "the grid has {rows} rows and {columns} columns, blocks of {merge} do not fill it"
                ));
            }
            let patches = times.checked_mul(rows).and_then(|patches| patches.checked_mul(columns));
            let tokens = patches.and_then(|patches| patches.checked_add(self.before)?.checked_add(self.after));
            sum = match tokens.and_then(|tokens| tokens.checked_add(sum)) {
                Some(sum) => sum,
                None => return Err(Error::Overflow(format!("{times} x {rows} x {columns} patches"))),
            };
        }
        Ok(sum)
    }

    /// Positions `[axes, tokens]` of grids of `[times, rows, columns]` patches, one after the other.
    ///
    /// # Errors
    /// As [`GridPositions::tokens`], and [`Error::Value`] if there are more than 62 fraction bits, a step of time is asked for its
    /// centre, or a position does not fit into 64 bits.
    pub fn ids(&self, grids: &[[usize; 3]]) -> Result<Vec<i64>> {
        let tokens = self.tokens(grids)?;
        let all = tokens.checked_mul(self.axes.len());
        let all = all.ok_or_else(|| Error::Overflow(format!("{tokens} tokens on {} axes", self.axes.len())))?;
        let mut ids = reserved("positions", all)?;
        for &axis in &self.axes {
            for &grid in grids {
                ids.extend(std::iter::repeat_n(0, self.before));
                self.patches(axis, grid, &mut ids)?;
                ids.extend(std::iter::repeat_n(0, self.after));
            }
        }
        Ok(ids)
    }

    fn patches(&self, axis: GridAxis, grid: [usize; 3], ids: &mut Vec<i64>) -> Result<()> {
        let [times, rows, columns] = grid;
        if grid.contains(&0) {
            return Ok(());
        }
        let count = grid[axis as usize];
        let at: Vec<i64> = (0..count).map(|index| self.position(axis, index, grid)).collect::<Result<_>>()?;
        let merge = self.merge;
        for time in 0..times {
            for top in (0..rows).step_by(merge) {
                for left in (0..columns).step_by(merge) {
                    for row in top..top + merge {
                        ids.extend((left..left + merge).map(|column| at[[time, row, column][axis as usize]]));
                    }
                }
            }
        }
        Ok(())
    }

    fn position(&self, axis: GridAxis, index: usize, [_, rows, columns]: [usize; 3]) -> Result<i64> {
        let position = match self.coordinate {
            GridCoordinate::Index { first } => i64::try_from(index).ok().and_then(|index| index.checked_add(first)),
            GridCoordinate::Center { bits, .. } if bits > 62 => {
                return wrong(format!("positions have {bits} fraction bits, at most 62 are possible"));
            }
            GridCoordinate::Center { extent, bits } => {
                let extent = match (extent, axis) {
                    (_, GridAxis::Time) => return wrong("a step of time has no centre".into()),
                    (GridExtent::Own, GridAxis::Row) => rows,
                    (GridExtent::Own, GridAxis::Column) => columns,
                    (GridExtent::Longer, _) => rows.max(columns),
                    (GridExtent::Shorter, _) => rows.min(columns),
                } as i128;
                // Indices and lengths of what is in memory are far below 2^62.
                let units = (2 * index as i128 + 1 - extent) << bits;
                // The nearest unit, ties to even.
                let (floor, twice_rest) = (units.div_euclid(extent), 2 * units.rem_euclid(extent));
                let up = twice_rest > extent || twice_rest == extent && floor % 2 != 0;
                i64::try_from(floor + i128::from(up)).ok()
            }
        };
        match position {
            Some(position) => Ok(position),
            None => wrong(format!("position {index} of a grid does not fit into 64 bits")),
        }
    }
}

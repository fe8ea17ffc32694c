//! Tables and token ids of one call, on the CPU or on a device.

use std::fmt;

use super::{Learned, Norm, Rows};
#[cfg(feature = "cuda")]
use crate::Device;
use crate::{Error, Host, Memory, Positions, Result};

/// Tables of one call, each `[rows, dim]` by its length; `None` where there is none.
///
/// `M` is [`Host`] for slices or [`Device`](crate::Device) for device buffers; [`HostTables`] and [`DeviceTables`] name both.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `token` | `[rows, dim]` | by token id; without it the rows of `x` take its place |
/// | `position` | `[rows, dim]` | by the row that [`Rows`] gives |
/// | `types` | `[rows, dim]` | by token type |
/// | `gain` | `[dim]` | of the norm; ones without it |
/// | `bias` | `[dim]` | of the norm; zeros without it |
pub struct Tables<'a, T: 'a, M: Memory> {
    /// by token id
    pub token: Option<M::Slice<'a, T>>,
    /// by the row that [`Rows`] gives
    pub position: Option<M::Slice<'a, T>>,
    /// by token type
    pub types: Option<M::Slice<'a, T>>,
    /// of the norm
    pub gain: Option<M::Slice<'a, T>>,
    /// of the norm
    pub bias: Option<M::Slice<'a, T>>,
}

/// Ids, types, mask and positions of the tokens of one call, each `[batch, tokens]`; `None` where nothing asks for it.
///
/// | field | meaning |
/// |---|---|
/// | `ids` | token ids, `i32`, `i64` or `u32` on a device |
/// | `types` | token types |
/// | `mask` | 1 for a token, 0 for padding |
/// | `positions` | token positions, for [`Rows::Offset`]. For [`Rows::Kept`]: [`Positions::counted`], or the number of tokens of earlier calls that were no padding as [`Positions::starts`] |
pub struct Lookup<'a, M: Memory> {
    /// token ids
    pub ids: Option<M::Ids<'a>>,
    /// token types
    pub types: Option<M::Ids<'a>>,
    /// 1 for a token, 0 for padding
    pub mask: Option<M::Slice<'a, u8>>,
    /// token positions, or kept tokens of earlier calls
    pub positions: Positions<M::Ids<'a>>,
}

/// [`Tables`] on the CPU.
pub type HostTables<'a, T> = Tables<'a, T, Host>;
/// [`Lookup`] on the CPU.
pub type HostLookup<'a> = Lookup<'a, Host>;
/// [`Tables`] on a device.
#[cfg(feature = "cuda")]
pub type DeviceTables<'a, T> = Tables<'a, T, Device>;
/// [`Lookup`] on a device.
#[cfg(feature = "cuda")]
pub type DeviceLookup<'a> = Lookup<'a, Device>;

impl<'a, T: 'a, M: Memory> Tables<'a, T, M> {
    fn all(&self) -> [Option<M::Slice<'a, T>>; 5] {
        [self.token, self.position, self.types, self.gain, self.bias]
    }

    /// All of them with their names.
    #[cfg(feature = "cuda")]
    pub(super) fn named(&self) -> impl Iterator<Item = (Option<M::Slice<'a, T>>, &'static str)> {
        let names = ["the token table", "the position table", "the type table", "the norm's gain", "the norm's bias"];
        self.all().into_iter().zip(names)
    }
}

/// What a call reads of its [`Lookup`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    pub ids: bool,
    pub types: bool,
    pub mask: bool,
    pub positions: bool,
    /// a row of the position table is a number of kept tokens
    pub counted: bool,
}

impl Learned {
    /// Refuses tables that are no whole number of rows, and a norm's vectors without a norm or of another length. Rows of the
    /// token, position and type table.
    pub(super) fn check_tables<T, M: Memory>(&self, tables: &Tables<'_, T, M>) -> Result<[Option<usize>; 3]> {
        self.check()?;
        let lens = tables.all().map(|table| table.map(M::len));
        let mut rows = [None; 3];
        for ((rows, len), name) in rows.iter_mut().zip(lens).zip(["token", "position", "type"]) {
            let Some(len) = len else { continue };
            if !len.is_multiple_of(self.dim) {
                return Err(Error::Value(format!("the {name} table holds {len} elements, its rows hold {}", self.dim)));
            }
            *rows = Some(len / self.dim);
        }
        let layer = matches!(self.norm, Some(Norm::Layer { .. }));
        for (name, len, allowed) in [("gain", lens[3], self.norm.is_some()), ("bias", lens[4], layer)] {
            match len {
                Some(_) if !allowed => {
                    return Err(Error::Value(format!("there is a {name} and the spec has no norm that uses it")));
                }
                Some(len) if len != self.dim => {
                    return Err(Error::Value(format!("{name} holds {len} elements, dim is {}", self.dim)));
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// What the rule of rows reads.
    pub(super) const fn row_needs(&self) -> Needs {
        let by_id = matches!(self.rows, Rows::Kept { padding: Some(_), .. });
        let by_mask = matches!(self.rows, Rows::Kept { padding: None, .. });
        Needs { ids: by_id, types: false, mask: by_mask, positions: true, counted: by_id || by_mask }
    }

    /// What a call with these tables reads.
    pub(super) const fn needs<T, M: Memory>(&self, tables: &Tables<'_, T, M>) -> Needs {
        const NOTHING: Needs = Needs { ids: false, types: false, mask: false, positions: false, counted: false };
        let rows = if tables.position.is_some() { self.row_needs() } else { NOTHING };
        Needs { ids: tables.token.is_some() || rows.ids, types: tables.types.is_some(), ..rows }
    }
}

impl<M: Memory> Lookup<'_, M> {
    /// Refuses a call that needs what is missing.
    pub(super) fn check(&self, needs: &Needs) -> Result<()> {
        let wrong = |text: &str| Err(Error::Value(text.into()));
        if needs.counted && !self.positions.follow() {
            return wrong("tokens are counted by the spec, positions must be counted() or starts");
        }
        if needs.mask && self.mask.is_none() {
            return wrong("mask is missing, the spec counts tokens over it");
        }
        for (name, there, needed) in
            [("ids", self.ids.is_some(), needs.ids), ("types", self.types.is_some(), needs.types)]
        {
            if needed && !there {
                return Err(Error::Value(format!("{name} are missing, a table is read by them")));
            }
        }
        Ok(())
    }
}

impl<'a, T: 'a, M: Memory> Default for Tables<'a, T, M> {
    fn default() -> Self {
        Self { token: None, position: None, types: None, gain: None, bias: None }
    }
}

impl<'a, T: 'a, M: Memory> Clone for Tables<'a, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, T: 'a, M: Memory> Copy for Tables<'a, T, M> {}

impl<'a, T: 'a, M: Memory> fmt::Debug for Tables<'a, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [token, position, types, gain, bias] = self.all().map(|table| table.map(M::len));
        write!(
            f,
            "Tables {{ token: {token:?}, position: {position:?}, types: {types:?}, gain: {gain:?}, bias: {bias:?} }}"
        )
    }
}

impl<M: Memory> Default for Lookup<'_, M> {
    fn default() -> Self {
        Self { ids: None, types: None, mask: None, positions: Positions::counted() }
    }
}

impl<M: Memory> Clone for Lookup<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory> Copy for Lookup<'_, M> {}

impl<M: Memory> fmt::Debug for Lookup<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup")
            .field("ids", &self.ids)
            .field("types", &self.types)
            .field("mask", &self.mask.map(M::len))
            .field("positions", &self.positions)
            .finish()
    }
}

//! Where queries and keys sit.

#[cfg(feature = "cuda")]
use crate::gpu::Read;
use crate::{Error, Logits, Result};

/// Positions of the queries, or of the keys, of every sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Place<A> {
    /// Element `i` sits at `start + i`. A chunk of a prefill, a shard of context parallelism, a step of a decode.
    Counted(i64),
    /// The last element of a sequence sits where its last key sits: element `i` at `keys - queries + i`, counted with
    /// the sequence's own lengths. For queries alone, with keys from 0.
    BottomRight,
    /// A position for each, `[batch, n]`. Packed sequences, trees, anything.
    Ids(A),
}

/// Sequences of any lengths, packed one after another into a batch of one. A query sees the keys of its own sequence alone,
/// and positions start again with each sequence.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `queries` | `[sequences + 1]` | the first query of each sequence, ascending, and the end of the last |
/// | `keys` | `[sequences + 1]` | the first key of each sequence, and the end of the last |
/// | `sequences` | | how many, at least 1 |
///
/// Queries before the first and behind the last sequence are padding: their rows are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Packed<A> {
    /// first queries
    pub queries: A,
    /// first keys
    pub keys: A,
    /// how many
    pub sequences: usize,
}

/// Positions of queries and keys, and how many of them each sequence has. They are data: nothing is derived from the
/// shape of a tensor that may be a shard.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `queries` | | positions of the queries |
/// | `keys` | | positions of the keys |
/// | `query_lengths` | `[batch]` | queries of each sequence; rows beyond are zero. `None`: all |
/// | `key_lengths` | `[batch]` | keys of each sequence; keys beyond are masked. `None`: all |
/// | `packed` | | sequences of a batch of one, instead of lengths; [`Place::Counted`] and [`Place::BottomRight`] count in each of them |
///
/// `A` is a slice on the CPU and a device buffer on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Places<A> {
    /// of the queries
    pub queries: Place<A>,
    /// of the keys
    pub keys: Place<A>,
    /// queries of each sequence
    pub query_lengths: Option<A>,
    /// keys of each sequence
    pub key_lengths: Option<A>,
    /// sequences of a batch of one
    pub packed: Option<Packed<A>>,
}

impl<A> Places<A> {
    /// Queries from position `query`, keys from position `key`.
    pub const fn counted(query: i64, key: i64) -> Self {
        let (queries, keys) = (Place::Counted(query), Place::Counted(key));
        Self { queries, keys, query_lengths: None, key_lengths: None, packed: None }
    }

    /// Keys from 0, and the last query at the last key: what flash-attention calls bottom-right alignment.
    pub const fn bottom_right() -> Self {
        let (queries, keys) = (Place::BottomRight, Place::Counted(0));
        Self { queries, keys, query_lengths: None, key_lengths: None, packed: None }
    }

    /// Sequences packed into a batch of one, each from position 0, the last query of each at its last key.
    pub fn packed(queries: impl AsIndices<Indices = A>, keys: impl AsIndices<Indices = A>, sequences: usize) -> Self {
        let packed = Packed { queries: queries.into_indices(), keys: keys.into_indices(), sequences };
        Self { packed: Some(packed), ..Self::bottom_right() }
    }
}

/// What positions, lengths and first elements of sequences may be made of: a slice of `i32` on the CPU, a buffer of `i32` on the
/// device.
#[diagnostic::on_unimplemented(
    message = "positions and lengths of sequences cannot be made of `{Self}`",
    note = "they are a slice of i32 on the CPU, a device buffer of i32 on a GPU"
)]
pub trait AsIndices {
    /// `&[i32]` on the CPU, [`Read`](crate::gpu::Read) on the device.
    type Indices;

    #[doc(hidden)]
    fn into_indices(self) -> Self::Indices;
}

macro_rules! indices {
    ($($(#[$attribute:meta])* [$($generics:tt)*] $Type:ty => $Indices:ty),* $(,)?) => {$(
        $(#[$attribute])*
        impl<'a, $($generics)*> AsIndices for $Type {
            type Indices = $Indices;

            fn into_indices(self) -> $Indices {
                self
            }
        }
    )*};
}

indices! {
    [] &'a [i32] => &'a [i32],
    [] &'a Vec<i32> => &'a [i32],
    [const N: usize] &'a [i32; N] => &'a [i32],
    #[cfg(feature = "cuda")] [] Read<'a, i32> => Read<'a, i32>,
    #[cfg(feature = "cuda")] [] &'a cudarc::driver::CudaSlice<i32> => Read<'a, i32>,
    #[cfg(feature = "cuda")] [] &'a cudarc::driver::CudaView<'_, i32> => Read<'a, i32>,
    #[cfg(feature = "cuda")] [] &'a crate::gpu::Raw<i32> => Read<'a, i32>,
}

impl<A> Places<A> {
    /// A position for each query, `[batch, queries]`.
    #[must_use]
    pub fn query_positions(self, positions: impl AsIndices<Indices = A>) -> Self {
        Self { queries: Place::Ids(positions.into_indices()), ..self }
    }

    /// A position for each key, `[batch, keys]`.
    #[must_use]
    pub fn key_positions(self, positions: impl AsIndices<Indices = A>) -> Self {
        Self { keys: Place::Ids(positions.into_indices()), ..self }
    }

    /// The lengths of the sequences in queries, `[batch]`: rows beyond are zero.
    #[must_use]
    pub fn query_lengths(self, lengths: impl AsIndices<Indices = A>) -> Self {
        Self { query_lengths: Some(lengths.into_indices()), ..self }
    }

    /// The lengths of the sequences in keys, `[batch]`: keys beyond are masked. A decode batch brings these.
    ///
    /// # Example
    /// ```
    /// use posenc::{Alibi, Bias, Logits, Places};
    /// // One query for each of two sequences of 3 and 2 keys, at its last key.
    /// let places = Places::bottom_right().key_lengths(&[3, 2]);
    /// let (slopes, mut bias) = (Alibi::new(1).slopes()?, [0.0f32; 6]);
    /// Bias::Slopes(&slopes).write(&mut bias, &Logits::bhqk(2, 1, 1, 3), &places)?;
    /// assert_eq!(bias[..3], [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    /// assert_eq!(bias[3..5], [-1.0 / 256.0, 0.0]);
    /// # Ok::<(), posenc::Error>(())
    /// ```
    #[must_use]
    pub fn key_lengths(self, lengths: impl AsIndices<Indices = A>) -> Self {
        Self { key_lengths: Some(lengths.into_indices()), ..self }
    }
}

impl Packed<&[i32]> {
    /// The sequence of a query or key, by the first ones of all; `None` for padding.
    fn of(&self, firsts: &[i32], index: usize) -> Option<usize> {
        let next = firsts[..=self.sequences].partition_point(|&first| i64::from(first) <= index as i64);
        (1..=self.sequences).contains(&next).then(|| next - 1)
    }

    /// Where a sequence begins, and how long it is.
    fn span(firsts: &[i32], sequence: usize) -> (usize, usize) {
        // Ascending from 0 on, as `check` says.
        let (first, end) = (firsts[sequence] as usize, firsts[sequence + 1] as usize);
        (first, end - first)
    }
}

/// The largest distance of a position from zero: the difference of two fits into 32 bits.
pub(crate) const LIMIT: i64 = 1 << 30;

impl Places<&[i32]> {
    /// The position of query `query` of sequence `batch`, for places that [`Places::check`] accepts.
    ///
    /// # Panics
    /// If there is no such query.
    pub fn query(&self, shape: &Logits, batch: usize, query: usize) -> i64 {
        let (queries, keys, first) = match self.packed {
            None => (self.queries_of(shape, batch), self.keys_of(shape, batch), 0),
            Some(packed) => packed.of(packed.queries, query).map_or((0, 0, 0), |sequence| {
                let (first, queries) = Packed::span(packed.queries, sequence);
                (queries, Packed::span(packed.keys, sequence).1, first)
            }),
        };
        let own = query as i64 - first as i64;
        match self.queries {
            Place::Counted(start) => start + own,
            Place::BottomRight => keys as i64 - queries as i64 + own,
            Place::Ids(positions) => i64::from(positions[batch * shape.queries + query]),
        }
    }

    /// The position of key `key` of sequence `batch`, for places that [`Places::check`] accepts.
    ///
    /// # Panics
    /// If there is no such key, or keys are placed by [`Place::BottomRight`].
    pub fn key(&self, shape: &Logits, batch: usize, key: usize) -> i64 {
        match (self.keys, self.packed) {
            (Place::Ids(positions), _) => i64::from(positions[batch * shape.keys + key]),
            (Place::Counted(start), None) => start + key as i64,
            (Place::Counted(start), Some(packed)) => {
                let first = packed.of(packed.keys, key).map_or(0, |sequence| Packed::span(packed.keys, sequence).0);
                start + key as i64 - first as i64
            }
            (Place::BottomRight, _) => unreachable!("refused by check"),
        }
    }

    /// Whether a query and a key are there, and of one sequence.
    pub(crate) fn meet(&self, shape: &Logits, batch: usize, query: usize, key: usize) -> bool {
        match self.packed {
            None => query < self.queries_of(shape, batch) && key < self.keys_of(shape, batch),
            Some(packed) => {
                let sequence = packed.of(packed.queries, query);
                sequence.is_some() && sequence == packed.of(packed.keys, key)
            }
        }
    }

    /// Whether a query is there.
    pub(crate) fn has(&self, shape: &Logits, batch: usize, query: usize) -> bool {
        match self.packed {
            None => query < self.queries_of(shape, batch),
            Some(packed) => packed.of(packed.queries, query).is_some(),
        }
    }

    /// The queries of a sequence.
    fn queries_of(&self, shape: &Logits, batch: usize) -> usize {
        self.query_lengths.map_or(shape.queries, |lengths| lengths[batch] as usize)
    }

    /// The keys of a sequence.
    fn keys_of(&self, shape: &Logits, batch: usize) -> usize {
        self.key_lengths.map_or(shape.keys, |lengths| lengths[batch] as usize)
    }

    /// Refuses arrays that are too short, lengths outside the tensor, and starts outside 2^30.
    ///
    /// # Errors
    /// With the field and the numbers.
    pub fn check(&self, shape: &Logits) -> Result<()> {
        self.check_starts(shape)?;
        for (name, place, size) in
            [("query positions", self.queries, shape.queries), ("key positions", self.keys, shape.keys)]
        {
            if let Place::Ids(positions) = place {
                let need = shape.batch * size;
                if positions.len() < need {
                    return Err(Error::Length { name, got: positions.len(), need });
                }
                if let Some(wrong) = positions[..need].iter().find(|p| !(-LIMIT..LIMIT).contains(&i64::from(**p))) {
                    return Err(Error::Value(format!("{name} hold {wrong}, they must lie within 2^30 of 0")));
                }
            }
        }
        for (name, lengths, size) in
            [("query_lengths", self.query_lengths, shape.queries), ("key_lengths", self.key_lengths, shape.keys)]
        {
            let Some(lengths) = lengths else { continue };
            if lengths.len() < shape.batch {
                return Err(Error::Length { name, got: lengths.len(), need: shape.batch });
            }
            for (batch, &length) in lengths[..shape.batch].iter().enumerate() {
                if usize::try_from(length).map_or(true, |length| length > size) {
                    return Err(Error::Value(format!("{name} of sequence {batch} is {length}, the tensor has {size}")));
                }
            }
        }
        let Some(packed) = self.packed else { return Ok(()) };
        for (name, firsts, size) in [("queries", packed.queries, shape.queries), ("keys", packed.keys, shape.keys)] {
            let firsts = firsts.get(..=packed.sequences).ok_or(Error::Length {
                name: if name == "keys" { "the packed keys" } else { "the packed queries" },
                got: firsts.len(),
                need: packed.sequences + 1,
            })?;
            let inside = firsts.iter().all(|&first| usize::try_from(first).is_ok_and(|first| first <= size));
            if !inside || firsts.windows(2).any(|pair| pair[0] > pair[1]) {
                return Err(Error::Value(format!(
                    "packed sequences begin at the {name} {firsts:?}, they must ascend from 0 to at most {size}"
                )));
            }
        }
        Ok(())
    }
}

impl<A> Places<A> {
    /// Refuses starts outside 2^30, keys that are placed by their own end, and packed sequences of several batches or with
    /// other lengths.
    pub(crate) fn check_starts(&self, shape: &Logits) -> Result<()> {
        if let Some(packed) = &self.packed {
            if shape.batch != 1 || packed.sequences == 0 || packed.sequences > i32::MAX as usize {
                return Err(Error::Value(format!(
                    "{} sequences are packed into a batch of {}, there must be at least 1 in a batch of 1",
                    packed.sequences, shape.batch
                )));
            }
            if self.query_lengths.is_some() || self.key_lengths.is_some() {
                return Err(Error::Value(
                    "packed sequences have the lengths that their first tokens say, no others".into(),
                ));
            }
        }
        if matches!(self.keys, Place::BottomRight) {
            return Err(Error::Value("keys are placed by Place::BottomRight, which is for queries alone".into()));
        }
        if matches!((&self.queries, &self.keys), (Place::BottomRight, keys) if !matches!(keys, Place::Counted(0))) {
            return Err(Error::Value("queries are placed by Place::BottomRight, the keys must then start at 0".into()));
        }
        for (name, place, size) in [("queries", &self.queries, shape.queries), ("keys", &self.keys, shape.keys)] {
            if let Place::Counted(start) = *place {
                let end = start.checked_add(size as i64);
                if start < -LIMIT || end.is_none_or(|end| end > LIMIT) {
                    return Err(Error::Value(format!(
                        "{size} {name} from position {start}, they must lie within 2^30 of 0"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Refuses distances inside the window that lie outside `first ..= last`, as far as the host can tell: positions of
    /// their own, and the lengths of sequences, may lie on the device.
    pub(crate) fn check_reach(&self, shape: &Logits, window: (i64, i64), first: i64, last: i64) -> Result<()> {
        let (Place::Counted(key), false) = (&self.keys, shape.is_empty() || self.packed.is_some()) else {
            return Ok(());
        };
        let (queries, keys) = (shape.queries as i64, shape.keys as i64);
        let query = match self.queries {
            Place::Counted(start) => start,
            Place::BottomRight if self.query_lengths.is_none() && self.key_lengths.is_none() => keys - queries,
            _ => return Ok(()),
        };
        let low = (key - (query + queries - 1)).max(window.0);
        let high = (key + keys - 1 - query).min(window.1);
        if low < first || high > last {
            return Err(Error::Value(format!(
                "the call has distances from {low} to {high}, the row of the bias holds {first} to {last}"
            )));
        }
        Ok(())
    }
}

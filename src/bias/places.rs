//! Where queries and keys sit.

use crate::{Error, Logits, Result};

/// Where the queries, or the keys, of every sequence sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<A> {
    /// Element `i` sits at `start + i`. A chunk of a prefill, a shard of context parallelism, a step of a decode.
    From(i64),
    /// The last element of a sequence sits where its last key sits: element `i` at `keys - queries + i`, counted with
    /// the sequence's own lengths. For queries alone, with keys from 0.
    Last,
    /// A position for each, `[batch, n]`. Packed sequences, trees, anything.
    Each(A),
}

/// Where queries and keys sit, and how many of them each sequence has. Places are data: nothing is derived from the
/// shape of a tensor that may be a shard.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `queries` | | positions of the queries |
/// | `keys` | | positions of the keys |
/// | `query_lengths` | `[batch]` | queries of each sequence; rows beyond are zero. `None`: all |
/// | `key_lengths` | `[batch]` | keys of each sequence; keys beyond are masked. `None`: all |
///
/// `A` is a slice on the CPU and a device buffer on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places<A> {
    /// of the queries
    pub queries: Place<A>,
    /// of the keys
    pub keys: Place<A>,
    /// queries of each sequence
    pub query_lengths: Option<A>,
    /// keys of each sequence
    pub key_lengths: Option<A>,
}

impl<A> Places<A> {
    /// Queries from position `query`, keys from position `key`.
    pub const fn from(query: i64, key: i64) -> Self {
        Self { queries: Place::From(query), keys: Place::From(key), query_lengths: None, key_lengths: None }
    }

    /// Keys from 0, and the last query at the last key: what flash-attention calls bottom-right alignment.
    pub const fn last() -> Self {
        Self { queries: Place::Last, keys: Place::From(0), query_lengths: None, key_lengths: None }
    }
}

/// The largest distance of a position from zero: the difference of two fits into 32 bits.
pub(crate) const LIMIT: i64 = 1 << 30;

impl Places<&[i32]> {
    /// The position of a query.
    pub(crate) fn query(&self, shape: &Logits, batch: usize, query: usize) -> i64 {
        match self.queries {
            Place::From(start) => start + query as i64,
            Place::Last => self.keys_of(shape, batch) as i64 - self.queries_of(shape, batch) as i64 + query as i64,
            Place::Each(positions) => i64::from(positions[batch * shape.queries + query]),
        }
    }

    /// The position of a key.
    pub(crate) fn key(&self, shape: &Logits, batch: usize, key: usize) -> i64 {
        match self.keys {
            Place::From(start) => start + key as i64,
            Place::Last => unreachable!("refused by check"),
            Place::Each(positions) => i64::from(positions[batch * shape.keys + key]),
        }
    }

    /// The queries of a sequence.
    pub(crate) fn queries_of(&self, shape: &Logits, batch: usize) -> usize {
        self.query_lengths.map_or(shape.queries, |lengths| lengths[batch] as usize)
    }

    /// The keys of a sequence.
    pub(crate) fn keys_of(&self, shape: &Logits, batch: usize) -> usize {
        self.key_lengths.map_or(shape.keys, |lengths| lengths[batch] as usize)
    }

    /// Refuses arrays that are too short, lengths outside the tensor, and starts outside 2^30.
    pub(crate) fn check(&self, shape: &Logits) -> Result<()> {
        self.check_starts(shape)?;
        for (name, place, size) in
            [("query positions", self.queries, shape.queries), ("key positions", self.keys, shape.keys)]
        {
            if let Place::Each(positions) = place {
                let need = shape.batch * size;
                if positions.len() < need {
                    return Err(Error::Length { name, got: positions.len(), need });
                }
                if let Some(wrong) = positions[..need].iter().find(|p| i64::from(**p).abs() > LIMIT) {
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
        Ok(())
    }
}

impl<A> Places<A> {
    /// Refuses starts outside 2^30, and keys that are placed by their own end.
    pub(crate) fn check_starts(&self, shape: &Logits) -> Result<()> {
        if matches!(self.keys, Place::Last) {
            return Err(Error::Value("keys are placed by Place::Last, which is for queries alone".into()));
        }
        if matches!((&self.queries, &self.keys), (Place::Last, keys) if !matches!(keys, Place::From(0))) {
            return Err(Error::Value("queries are placed by Place::Last, the keys must then start at 0".into()));
        }
        for (name, place, size) in [("queries", &self.queries, shape.queries), ("keys", &self.keys, shape.keys)] {
            if let Place::From(start) = *place {
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
        let (Place::From(key), false) = (&self.keys, shape.is_empty()) else { return Ok(()) };
        let (queries, keys) = (shape.queries as i64, shape.keys as i64);
        let query = match self.queries {
            Place::From(start) => start,
            Place::Last if self.query_lengths.is_none() && self.key_lengths.is_none() => keys - queries,
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

//! Decisions that the launches of this room share.

use crate::embed::Tokens;
use crate::gpu::widest;
use crate::{Error, Result};

/// Threads of a block; the kernels' launch bounds allow 256.
pub(crate) const THREADS: usize = 128;

pub(crate) use crate::gpu::small;

/// The kernel of 16-byte accesses if they divide `steps`, in bytes, else the one of single elements; and the elements of one.
pub(crate) fn fitting<T, K>([wide, one]: &[K; 2], steps: u64) -> (&K, usize) {
    if widest(steps) == 16 { (wide, 16 / size_of::<T>()) } else { (one, 1) }
}

/// Tokens of all sequences, and the elements from one to the next; refuses a tensor where those differ.
pub(crate) fn even_rows(name: &str, x: &Tokens) -> Result<(usize, usize)> {
    let Tokens { batch, tokens, strides: [sequence, token], .. } = *x;
    let row = match (batch, tokens) {
        (_, 1) => sequence,
        (0 | 1, _) => token,
        _ if Some(sequence) == tokens.checked_mul(token) => token,
        _ => {
            return Err(Error::Value(format!(
                "{name} has {batch} sequences {sequence} elements apart and {tokens} tokens {token} apart, its rows must be evenly spaced"
            )));
        }
    };
    // Below 2^63, as the shape's check has seen.
    Ok((batch * tokens, row))
}

/// Refuses a tensor that is not contiguous.
pub(crate) fn check_contiguous(name: &str, x: &Tokens) -> Result<()> {
    match even_rows(name, x)? {
        (2.., row) if row != x.dim => Err(Error::Value(format!(
            "{name} has rows of {} channels {row} elements apart, it must be contiguous",
            x.dim
        ))),
        _ => Ok(()),
    }
}

/// Blocks over `tokens`, and the threads of one: a row for each of its tokens, of one for each of `units` as far as they go.
pub(crate) fn blocks(units: usize, tokens: usize) -> Result<(u32, [u32; 3])> {
    let lanes = units.clamp(1, THREADS);
    let rows = (THREADS / lanes).min(tokens.next_power_of_two());
    Ok((small("blocks of tokens", tokens.div_ceil(rows))?, [small("lanes", lanes)?, small("rows", rows)?, 1]))
}

/// Blocks over tokens and groups of sequences that walk together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub batches_per_thread: u32,
    pub groups: u32,
}

/// Spreads `tokens` over blocks; `units` is the work of a token, one for each thread. `shared`: what is computed for one
/// sequence holds for all, so that one thread may walk several.
pub(crate) fn spread(units: usize, batch: usize, tokens: usize, shared: bool, multiprocessors: u32) -> Result<Spread> {
    let (blocks, block) = blocks(units, tokens)?;
    // Every multiprocessor holds 8 blocks of 128 threads at 64 registers. Sequences are split until all are busy twice
    // over; beyond that a thread that walks more of them saves angles.
    let wanted = (16 * multiprocessors as usize).div_ceil(blocks as usize).clamp(1, batch);
    let per_thread = if shared { batch.div_ceil(wanted) } else { 1 };
    let groups = batch.div_ceil(per_thread);
    Ok(Spread {
        grid: [blocks, small("groups", groups.min(65535))?, 1],
        block,
        batches_per_thread: small("sequences of a thread", per_thread)?,
        groups: small("groups", groups)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_wide_where_every_step_allows_16_bytes() {
        let fits = |steps| fitting::<half::bf16, _>(&["wide", "one"], steps);
        assert_eq!(fits(256 | (768 * 2)), (&"wide", 8));
        assert_eq!(fits(256 | ((768 | 4) * 2)), (&"one", 1));
        assert_eq!(fits(8 | (768 * 2)), (&"one", 1));
        assert_eq!(fitting::<f32, _>(&["wide", "one"], 256 | (12 * 4)), (&"wide", 4));
        assert_eq!(fitting::<f32, _>(&["wide", "one"], 256 | (7 * 4)), (&"one", 1));
    }

    #[test]
    fn rows_are_evenly_spaced_or_refused() {
        let of = |batch, tokens, strides| even_rows("out", &Tokens { strides, ..Tokens::new(batch, tokens, 4) });
        assert_eq!(of(1, 6, [0, 9]).unwrap(), (6, 9));
        assert_eq!(of(6, 1, [9, 0]).unwrap(), (6, 9));
        assert_eq!(of(2, 3, [27, 9]).unwrap(), (6, 9));
        assert_eq!(of(0, 3, [5, 9]).unwrap(), (0, 9));
        assert_eq!(
            of(2, 3, [28, 9]).unwrap_err().to_string(),
            "out has 2 sequences 28 elements apart and 3 tokens 9 apart, its rows must be evenly spaced"
        );
    }

    #[test]
    fn every_token_has_a_thread() {
        for units in [1, 3, 96, 128, 1000] {
            for (batch, tokens) in [(1, 1), (1, 1000), (7, 3), (100_000, 2), (64, 4096)] {
                for shared in [false, true] {
                    let Spread { grid, block, batches_per_thread, groups } =
                        spread(units, batch, tokens, shared, 108).unwrap();
                    assert!(grid[0] as usize * block[1] as usize >= tokens);
                    assert!(groups as usize * batches_per_thread as usize >= batch);
                    assert!((groups as usize - 1) * (batches_per_thread as usize) < batch);
                    assert!(shared || batches_per_thread == 1);
                    assert!(block.iter().product::<u32>() <= 256 && grid[1] <= 65535);
                }
            }
        }
    }
}

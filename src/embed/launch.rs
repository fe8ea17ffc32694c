//! Decisions that the launches of this room share.

use crate::embed::Tokens;
use crate::gpu::Function;
use crate::{Error, Gpu, Result};

/// Threads of a block; the kernels' launch bounds allow 256.
pub(crate) const THREADS: usize = 128;

/// `n` as a kernel's argument.
pub(crate) fn small(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32).ok_or_else(|| Error::Overflow(format!("{n} {what}")))
}

/// Bytes of shared memory that a block of `function` may have beside the kernel's own few; asked for here, once.
pub(crate) fn held_room(gpu: &Gpu, function: &Function) -> Result<usize> {
    let room = gpu.shared_memory()?.saturating_sub(1024);
    function.reserve(room)?;
    Ok(room as usize)
}

/// The widest access, in elements, that every address and size allows: 16 bytes or one element.
///
/// `sizes` is the union of all sizes and offsets in elements (a power of two divides all where it divides their union),
/// `alignment` the largest power of two that divides every address, in bytes.
pub(crate) fn width(element: usize, alignment: usize, sizes: usize) -> Width {
    let fits = |bytes: usize| alignment.is_multiple_of(bytes) && sizes.is_multiple_of(bytes / element);
    if fits(16) { Width { index: 0, elements: 16 / element } } else { Width { index: 1, elements: 1 } }
}

/// How many elements one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    /// of the entries `_wide` and `_one`
    pub index: usize,
    pub elements: usize,
}

/// The largest power of two up to 16 that divides all addresses.
pub(crate) fn alignment(addresses: &[u64]) -> usize {
    1 << addresses.iter().fold(0, |all, address| all | address).trailing_zeros().min(4)
}

impl Tokens {
    /// The union of the sizes that decide how wide its accesses may be.
    pub(crate) fn sizes(&self) -> usize {
        let stride = |size: usize, stride: usize| if size > 1 { stride } else { 0 };
        self.offset | stride(self.batch, self.strides[0]) | stride(self.tokens, self.strides[1])
    }

    pub(crate) fn strides(&self) -> [i64; 2] {
        self.strides.map(|stride| stride as i64)
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
    fn accesses_are_as_wide_as_every_size_allows() {
        assert_eq!(width(2, 16, 768), Width { index: 0, elements: 8 });
        assert_eq!(width(2, 16, 768 | 4), Width { index: 1, elements: 1 });
        assert_eq!(width(2, 8, 768), Width { index: 1, elements: 1 });
        assert_eq!(width(4, 16, 12), Width { index: 0, elements: 4 });
        assert_eq!(width(4, 16, 7), Width { index: 1, elements: 1 });
        assert_eq!(width(4, 4, 8), Width { index: 1, elements: 1 });
        assert_eq!(alignment(&[256, 24]), 8);
        assert_eq!(alignment(&[512]), 16);
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

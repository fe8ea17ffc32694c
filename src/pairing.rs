//! Which two channels form a pair.

/// The two channels of a pair, counted from the first rotated one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

/// How a kernel's threads divide the pairs of a head or a token among them, each with two accesses of `width` elements.
///
/// In halves a thread's `width` pairs are in a row. Interleaved, they are two runs of half as many, half of all pairs apart, so
/// that accesses of neighbouring threads are neighbours in memory.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    /// pairs of a run
    pub run: usize,
    /// pairs of all first runs
    pub first: usize,
    /// pairs between a thread's two runs; 0 where they are in a row
    pub apart: usize,
}

#[cfg(feature = "cuda")]
impl Runs {
    /// Of `pairs`, which are a multiple of `width`.
    pub const fn new(pairing: Pairing, pairs: usize, width: usize) -> Self {
        match pairing {
            Pairing::Interleaved if width > 1 && pairs > width => {
                Self { run: width / 2, first: pairs / 2, apart: (pairs - width) / 2 }
            }
            _ => Self { run: width, first: pairs, apart: 0 },
        }
    }

    /// Elements from a thread's first access to its second, in tensors of `pairing` whose halves are `half` elements apart.
    pub const fn second(&self, pairing: Pairing, width: usize, half: usize) -> usize {
        match pairing {
            Pairing::Half => half,
            Pairing::Interleaved => width + 2 * self.apart,
        }
    }
}

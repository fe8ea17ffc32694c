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

//! What launches did, in numbers that tests can compare.

/// Counts of one launch, or of all launches of a host thread since [`crate::Emulator::reset_counters`].
///
/// Instructions are counted per thread: one instruction of a full warp counts 32. Instructions whose guard is false
/// are not counted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Integer and bit operations, comparisons included.
    pub integer: u64,
    /// Single-precision arithmetic.
    pub float32: u64,
    /// Double-precision arithmetic.
    pub float64: u64,
    /// Arithmetic of f16 and bf16.
    pub half: u64,
    /// Reciprocals, roots, exponentials, logarithms, sines.
    pub special: u64,
    /// `cvt`.
    pub convert: u64,
    /// Moves and selections.
    pub moves: u64,
    /// Loads and stores of every space.
    pub memory: u64,
    /// Branches, calls, returns, barriers.
    pub control: u64,
    /// Shuffles, votes and other exchanges inside a warp.
    pub warp: u64,
    /// `atom` and `red`.
    pub atomic: u64,
    /// Matrix instructions.
    pub matrix: u64,
    /// Bytes that threads asked for from global memory; constants count too, kernel parameters do not.
    pub bytes_read: u64,
    /// Bytes that threads stored to global memory.
    pub bytes_written: u64,
    /// 32-byte sectors that those reads touch, each once per warp instruction.
    pub sectors_read: u64,
    /// 32-byte sectors that those writes touch, each once per warp instruction.
    pub sectors_written: u64,
    /// Distinct bytes of global memory that each launch reads; 0 unless [`crate::Emulator::set_unique`] asks for it.
    pub unique_bytes_read: u64,
    /// Distinct bytes of global memory that each launch writes; 0 unless [`crate::Emulator::set_unique`] asks for it.
    pub unique_bytes_written: u64,
    /// Passes of global accesses through the L1 cache: 128-byte lines that the lanes of a warp instruction touch. Accesses
    /// of 8 bytes go in halves of the warp, of 16 bytes in quarters, of 32 bytes in eighths.
    pub global_wavefronts: u64,
    /// Global accesses of a thread by width: 1, 2, 4, 8, 16 and 32 bytes.
    pub global_accesses: [u64; 6],
    /// Bytes read from shared memory.
    pub shared_bytes_read: u64,
    /// Bytes written to shared memory.
    pub shared_bytes_written: u64,
    /// Passes over shared memory, those of [`Counters::bank_conflicts`] included: one where no two lanes meet in a bank
    /// with different words. Accesses of 8 bytes go in halves of the warp, of 16 bytes in quarters.
    pub shared_wavefronts: u64,
    /// Passes over shared memory beyond the first that bank conflicts cost.
    pub bank_conflicts: u64,
    /// Block-wide barriers, counted once per warp that arrives.
    pub barriers: u64,
    /// Branches at which a warp split.
    pub divergent_branches: u64,
    /// Bytes read from local memory (spills, arrays and stacks).
    pub local_bytes_read: u64,
    /// Bytes written to local memory.
    pub local_bytes_written: u64,
    /// Instructions of warps, whatever the number of active threads.
    pub warp_instructions: u64,
    /// Blocks that ran.
    pub blocks: u64,
    /// Launches.
    pub launches: u64,
}

const FIELDS: usize = size_of::<Counters>() / 8;

impl Counters {
    /// Instructions of all classes.
    pub fn instructions(&self) -> u64 {
        self.integer
            + self.float32
            + self.float64
            + self.half
            + self.special
            + self.convert
            + self.moves
            + self.memory
            + self.control
            + self.warp
            + self.atomic
            + self.matrix
    }

    /// Passes through the L1 cache and shared memory, which are one unit of the device.
    pub fn l1_wavefronts(&self) -> u64 {
        self.global_wavefronts + self.shared_wavefronts
    }

    /// Share of the global bytes that moved in accesses of 16 bytes or more; 1 where nothing moved.
    pub fn share_of_wide_bytes(&self) -> f64 {
        let bytes = |i: usize| self.global_accesses[i] << i;
        let all: u64 = (0..6).map(bytes).sum();
        if all == 0 { 1.0 } else { (bytes(4) + bytes(5)) as f64 / all as f64 }
    }

    fn words(&self) -> [u64; FIELDS] {
        // SAFETY: the struct is repr(C) and made of u64 alone, so it has no padding and any bits are valid.
        unsafe { std::mem::transmute(*self) }
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Counters) {
        let mut words = self.words();
        for (word, more) in words.iter_mut().zip(other.words()) {
            *word = word.wrapping_add(more);
        }
        // SAFETY: as above.
        *self = unsafe { std::mem::transmute::<[u64; FIELDS], Counters>(words) };
    }
}

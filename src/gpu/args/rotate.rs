//! Arguments of `kernels/rotate`.

use super::{Divisor, IdType, In, Out, PositionArgs, args, codes, words};

codes! {
    /// Policy for positions outside the cos/sin table.
    OutOfRange {
        /// the nearest row
        CLAMP = 0,
        /// NaN
        NAN = 1,
    }

    /// What divides a head.
    HeadNormKind {
        /// nothing
        NONE = 0,
        /// the root of the mean of its squares
        RMS = 1,
        /// the root of the sum of its squares
        L2 = 2,
    }

    /// Where values are rounded to the element type before the last step.
    StepRounding {
        /// nowhere
        ONCE = 0,
        /// after each step
        STEPS = 1,
        /// after each step, and before the norm's weight
        BEFORE_WEIGHT = 2,
    }

    /// What a cache holds.
    StoreKind {
        /// the element type
        SAME = 0,
        /// eight bits
        E4M3 = 1,
        /// eight bits
        E5M2 = 2,
        /// whole numbers of eight bits
        INT8 = 3,
    }

    /// The scale of codes.
    CodeScaleKind {
        /// one
        TENSOR = 0,
        /// one for each head
        HEAD = 1,
        /// of each token and head, written
        TOKEN = 2,
        /// the same, behind the channels of a head
        INLINE = 3,
    }

    /// How the row of a token in a cache is found.
    CachePlace {
        /// by its slot
        SLOTS = 0,
        /// by its row in its sequence, and the page of that
        PAGES = 1,
        /// by its row in its sequence, which is a page
        ROWS = 2,
    }

    /// What multiplies queries by their position.
    QueryScaleKind {
        /// 1
        ONE = 0,
        /// 1 + by ln(1 + floor((position + shift) / floor))
        STEPS = 1,
        /// max(1, by ln(position + 1))
        LOG = 2,
        /// 1 + by ln(max(1, (position + 1) / floor))
        ABOVE = 3,
    }
}

args! {
    /// Queries or keys, before and after their rotation. A part of other arguments.
    HeadsArgs {
        /// read
        x: In,
        /// written; `x` itself in place
        y: Out,
        /// elements from one batch, token and head to the next in `x`
        x_strides: [i64; 3],
        /// the same of `y`
        y_strides: [i64; 3],
    }

    /// `rotate/rope`.
    RopeArgs {
        /// queries
        q: HeadsArgs,
        /// keys
        k: HeadsArgs,
        /// token positions
        at: PositionArgs,
        /// turns per position of each pair in units of 2^-64; frequencies in f32; or cosines by row
        rates: In,
        /// sines by row
        sines: In,
        /// set to 1 if a position lies outside the table; null: no report
        flag: Out,
        /// axis of each pair; null with one axis
        axes: In,
        /// xPos: exponents of two per position of each pair in units of 2^-56, the queries' and then the keys'
        exponents: In,
        /// elements from one row to the next in a table
        table_stride: i64,
        /// rows of a table
        table_rows: i64,
        /// xPos: the position where nothing is scaled
        center: i64,
        /// xPos: the largest distance from it at which every factor is in range
        reach: i64,
        /// tokens of each sequence, or of the packed batch
        tokens: u32,
        /// sequences
        batch: u32,
        /// query heads
        q_heads: u32,
        /// key heads; 0: there are no keys
        k_heads: u32,
        /// heads that one thread walks
        heads_per_thread: u32,
        /// pairs of a head
        pairs: u32,
        /// pairs of a block of channels that is rotated for itself; `pairs` if there is one
        block: u32,
        /// pairs between the two runs of one thread's pairs; 0: they are in a row
        apart: u32,
        /// pairs of a run
        run: u32,
        /// pairs of all first runs
        runs: u32,
        /// elements from a thread's first access to its second, in the input and in the output
        x_second: u32,
        y_second: u32,
        /// first rotated channel
        offset: u32,
        /// channels beside the rotated ones that queries or keys copy; 0 where both are in place
        copied: u32,
        /// 1: pairs lie side by side in the input
        interleaved: u32,
        /// multiplies cosine and sine
        factor: f32,
        /// multiplies the sine: 1 forward, -1 inverse
        sign: f32,
        /// 1: pairs lie side by side in the output
        interleaved_out: u32,
        /// 1: queries copy them
        q_copied: u32,
        /// 1: keys copy them
        k_copied: u32,
        /// 1: a table holds f32, 0: the tensors' type
        table_is_f32: u32,
        /// 1: rows of a table allow the accesses of the tensors' width
        table_aligned: u32,
        /// what a position outside the table gives
        out_of_range: OutOfRange,
        /// 1: `rates` holds frequencies
        compat: u32,
        /// mixed angles: axes, and sets of frequencies on each
        axis_count: u32,
        sets: u32,
        /// heads of queries that share a set, and of keys
        q_sharing: u32,
        k_sharing: u32,
        by_q_sharing: Divisor,
        by_k_sharing: Divisor,
    }

    /// Queries, keys or values in a prologue. A part of other arguments.
    BranchArgs {
        /// read
        x: In,
        /// written; `x` itself in place; null: nowhere
        y: Out,
        /// written too; null: there is no cache. Codes of queries are one with a page for each sequence
        cache: Out,
        /// f32 scales of codes, read or written
        scales: Out,
        /// of the norm, `[dim]` or `[heads, dim]`; null: none
        weight: In,
        /// added, `[heads, dim]`; null: none
        bias: In,
        /// elements from one batch, token and head to the next in `x`
        x_strides: [i64; 3],
        /// the same of `y`
        y_strides: [i64; 3],
        /// elements from one page, row of a page and head to the next in `cache`
        cache_strides: [i64; 3],
        /// the same of `scales`
        scale_strides: [i64; 3],
        /// heads, and channels of each
        heads: u32,
        dim: u32,
        /// threads that share the heads of a token, in groups of lanes
        walks: u32,
        /// what divides a head
        norm: HeadNormKind,
        /// where values are rounded
        rounding: StepRounding,
        /// what the cache holds, and its scale
        store: StoreKind,
        scale: CodeScaleKind,
        /// added to the mean or the sum of squares
        eps: f32,
        /// 1 / channels of the mean; 1 for a sum
        share: f32,
        /// 1: a weight w multiplies by 1 + w
        one_plus: u32,
        /// 1: one norm for all heads of a token
        all_heads: u32,
        /// 1: pairs are rotated, from this channel on
        turned: u32,
        offset: u32,
        /// 1: the factor of the position multiplies
        scaled: u32,
        /// half of the units of 8 channels, a power of two: distance of the first sum of squares
        tree: u32,
        /// units from a thread's first to its second, of those that are not rotated
        rest_apart: u32,
        /// 1: a thread's units are `tree` apart
        natural: u32,
    }

    /// `rotate/prologue`.
    PrologueArgs {
        /// queries, keys and values
        of: [BranchArgs; 3],
        /// token positions
        at: PositionArgs,
        /// turns per position of each pair in units of 2^-64, or frequencies in f32
        rates: In,
        /// axis of each pair; null with one axis
        axes: In,
        /// slot of each token, `[batch, tokens]`, or pages of each sequence, `[sequences, table_width]`
        slots: In,
        /// rows of a sequence that its tokens take
        rows: PositionArgs,
        /// set to 1 by a slot beyond the cache; null: no report
        flag: Out,
        /// positions of a step of the query's factor
        floor: f64,
        /// what `slots` holds, and its type
        place: CachePlace,
        slot_type: IdType,
        /// pages of the cache, and rows of each; 0 rows: there is no cache
        pages: u32,
        page_size: u32,
        /// pages of a sequence
        table_width: u32,
        by_page: Divisor,
        /// tokens of each sequence, or of the packed batch
        tokens: u32,
        /// sequences
        batch: u32,
        /// heads that one group of lanes walks
        per_thread: u32,
        /// pairs of a head; 0: nothing is rotated
        pairs: u32,
        /// pairs of a block of channels that is rotated for itself; `pairs` if there is one
        block: u32,
        by_block: Divisor,
        /// 1: pairs lie side by side in the input, in the output
        interleaved: u32,
        interleaved_out: u32,
        /// multiplies cosine and sine
        factor: f32,
        /// 1: `rates` holds frequencies
        compat: u32,
        /// 1: the rotation comes before the norm
        rope_first: u32,
        /// what multiplies queries
        scale: QueryScaleKind,
        /// its factor, and what is added to the position
        scale_by: f32,
        scale_shift: u32,
    }

    /// `rotate/fixed`, of frequencies.
    MixedRatesArgs {
        /// f32, radians per position
        frequencies: In,
        /// fraction bits of each axis; null: none
        bits: In,
        /// turns per unit of the position in units of 2^-64
        rates: Out,
        /// set to 1 if a frequency is too large or not finite; null: no report
        flag: Out,
        /// frequencies of all axes
        count: u32,
        /// frequencies of one axis
        by_axis: Divisor,
    }

    /// `rotate/fixed`, of positions.
    PositionUnitsArgs {
        /// f32 or f64
        positions: In,
        /// i64, in units of `2^-bits`
        units: Out,
        /// set to 1 if a position does not fit; null: no report
        flag: Out,
        /// positions
        count: u32,
        /// fraction bits
        bits: u32,
        /// 1: positions are f64
        is_f64: u32,
    }

    /// A tensor and its gradient, both before the rotation or both after it. A part of other arguments.
    TensorGradArgs {
        /// elements
        x: In,
        /// their gradient
        grad: In,
        /// elements from one batch, token and head to the next in `x`
        x_strides: [i64; 3],
        /// the same of `grad`
        grad_strides: [i64; 3],
        /// heads, and how many share a set of frequencies
        heads: u32,
        sharing: u32,
        by_sharing: Divisor,
    }

    /// `rotate/rope_grad`.
    RopeGradArgs {
        /// queries
        q: TensorGradArgs,
        /// keys; without heads there are none
        k: TensorGradArgs,
        /// token positions
        at: PositionArgs,
        /// f32 `[axes, sets, pairs]`, radians per unit: for the gradient of positions
        frequencies: In,
        /// f32 `[chunks, axes, sets, pairs]` partial sums
        parts: Out,
        /// f32 `[axes, sets, pairs]`, or `[axes, batch, tokens]`
        out: Out,
        /// of each axis: what a unit of positions is, f32
        units: In,
        /// tokens of each sequence, sequences, and their product
        tokens: u32,
        batch: u32,
        rows: u32,
        /// pairs of a head, sets and axes
        pairs: u32,
        sets: u32,
        axis_count: u32,
        by_tokens: Divisor,
        /// threads for the pairs of a head
        groups: u32,
        by_groups: Divisor,
        /// rows of a chunk, and chunks
        chunk: u32,
        chunks: u32,
        /// first rotated channel
        offset: u32,
        /// 1: pairs lie side by side
        interleaved: u32,
    }
}

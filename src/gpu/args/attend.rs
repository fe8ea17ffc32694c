//! Arguments of `kernels/attend`.

use super::{BiasArgs, Divisor, In, Out, TermArgs, TermsArgs, args, codes, sizes, words};

codes! {
    /// In which order scale, softcap and bias act.
    LogitOrder {
        /// `softcap(scale * s) + bias`
        SOFTCAP_THEN_BIAS = 0,
        /// `softcap(scale * s + bias)`
        BIAS_THEN_SOFTCAP = 1,
        /// `softcap(scale * (s + bias))`
        BIAS_THEN_SCALE = 2,
    }
}

sizes! {
    /// keys of a chunk, the unit of a row's sums
    CHUNK: int = 8192,
    /// rows of a warp, in sums of relative values
    VALUE_ROWS: int = 4,
    /// channels of a warp
    VALUE_CHANNELS: int = 128,
    /// entries of a block, in the gradient of a table of relative values
    VALUE_ENTRIES: int = 32,
}

args! {
    /// `attend/merge`.
    MergeArgs {
        /// attention over some of the keys, and over others
        a: In,
        b: In,
        /// written; `a` itself in place
        out: Out,
        /// f32
        a_lse: In,
        b_lse: In,
        /// f32; null: not wanted; `a_lse` itself in place
        lse: Out,
        /// elements from one batch, token and head to the next
        a_strides: [i64; 3],
        b_strides: [i64; 3],
        out_strides: [i64; 3],
        /// elements from one batch, head and token to the next
        a_lse_strides: [i64; 3],
        b_lse_strides: [i64; 3],
        lse_strides: [i64; 3],
        /// batch x tokens x heads
        rows: u32,
        tokens: u32,
        heads: u32,
        /// channels of a head
        dim: u32,
    }

    /// `attend/merge`, of the gradient.
    MergeGradArgs {
        /// attention over some of the keys, and over others
        a: In,
        b: In,
        /// gradient of the result
        grad: In,
        /// written
        a_grad: Out,
        b_grad: Out,
        /// f32
        a_lse: In,
        b_lse: In,
        /// f32 gradient of the result's log-sum-exp; null: 0
        lse_grad: In,
        /// f32, written
        a_lse_grad: Out,
        b_lse_grad: Out,
        /// elements from one batch, token and head to the next
        a_strides: [i64; 3],
        b_strides: [i64; 3],
        grad_strides: [i64; 3],
        a_grad_strides: [i64; 3],
        b_grad_strides: [i64; 3],
        /// elements from one batch, head and token to the next
        a_lse_strides: [i64; 3],
        b_lse_strides: [i64; 3],
        lse_grad_strides: [i64; 3],
        a_lse_grad_strides: [i64; 3],
        b_lse_grad_strides: [i64; 3],
        /// batch x tokens x heads
        rows: u32,
        tokens: u32,
        heads: u32,
        /// channels of a head
        dim: u32,
    }

    /// Scale, softcap, order and window: a part of the arguments of `attend/softmax` and `attend/softmax_grad`.
    SoftmaxLaw {
        /// multiplies the logit
        scale: f32,
        /// the softcap, 0 for none
        cap: f32,
        /// 1 / cap
        inverse_cap: f32,
        /// in which order they act
        order: LogitOrder,
        /// a key may lie this far before its query; 2^31 - 1: any distance
        left: i32,
        /// a key may lie this far after its query; 2^31 - 1: any distance
        right: i32,
    }

    /// How rows are cut among threads and blocks: a part of the arguments of `attend/softmax` and `attend/softmax_grad`.
    TeamArgs {
        /// f32 `[rows, chunks, 2]`: m and sum of each chunk of a shared row; in the gradient `[rows, chunks]`, the sum
        parts: Out,
        /// u32 `[rows]`: blocks that have met; 0 between calls
        counters: Out,
        /// rows, `batch * heads * queries`
        rows: u32,
        /// chunks of 8192 keys of a row
        chunks: u32,
        /// 1: the rows of all tensors, but for a mask, begin at a multiple of 16 bytes; 2: those of the mask too
        aligned: u32,
        /// chunks that a block's shared memory holds
        held: u32,
        /// threads of a row are 2^lanes_log
        lanes_log: u32,
        /// packs of eight keys that a thread has of a chunk, 1 to 8
        packs: u32,
        /// blocks that share a row
        share: u32,
    }

    /// `attend/softmax`.
    SoftmaxArgs {
        /// the bias
        bias: BiasArgs,
        /// scale, softcap, order, window
        law: SoftmaxLaw,
        /// logits
        x: In,
        /// probabilities; `x` itself in place
        y: Out,
        /// added last, of the logits' type; null: nothing
        mask: In,
        /// f32 `[heads]`; null: none
        sinks: In,
        /// f32 `[rows]`; null: not wanted
        lse: Out,
        /// elements from one batch, head and query to the next
        x_strides: [i64; 3],
        /// the same of `y`
        y_strides: [i64; 3],
        /// the same of `mask`; 0 shares it
        mask_strides: [i64; 3],
        /// how rows are cut
        team: TeamArgs,
    }

    /// `attend/softmax_grad`.
    SoftmaxGradArgs {
        /// positions and lengths; with a softcap the bias too
        bias: BiasArgs,
        /// scale, softcap, order, window
        law: SoftmaxLaw,
        /// probabilities
        p: In,
        /// gradient of the probabilities
        dp: In,
        /// logits before the softmax; null without a softcap
        x: In,
        /// gradient of the logits; `dp` itself in place
        dx: Out,
        /// gradient of the bias, laid out as `dx`; null: not wanted
        dbias: Out,
        /// f32 `[rows]`, the sum of p * dp; null: not wanted
        dots: Out,
        /// elements from one batch, head and query to the next
        p_strides: [i64; 3],
        /// the same of `dp`
        dp_strides: [i64; 3],
        /// the same of `x`
        x_strides: [i64; 3],
        /// the same of `dx` and `dbias`
        dx_strides: [i64; 3],
        /// how rows are cut
        team: TeamArgs,
    }

    /// `attend/softmax_terms`.
    SoftmaxTermsArgs {
        /// all but what is added
        call: SoftmaxArgs,
        /// what is added
        terms: TermsArgs,
    }

    /// `attend/softmax_grad_terms`.
    SoftmaxGradTermsArgs {
        /// all but what is added
        call: SoftmaxGradArgs,
        /// with a softcap: what is added
        terms: TermsArgs,
    }

    /// `attend/softmax_grad`: `sink_grad`.
    SinkGradArgs {
        /// f32 `[heads]`
        sinks: In,
        /// f32 `[batch, heads, queries]`
        lse: In,
        /// f32 `[batch, heads, queries]`
        dots: In,
        /// f32 `[heads]`
        grad: Out,
        /// sequences
        batch: u32,
        /// heads
        heads: u32,
        /// rows of a head
        queries: u32,
    }

    /// `attend/relative_values`.
    RelativeValuesArgs {
        /// positions and lengths
        bias: BiasArgs,
        /// which entry, and the table
        term: TermArgs,
        /// probabilities; null: their gradient is made
        p: In,
        /// gradient of the probabilities
        dp: Out,
        /// values
        z: Out,
        /// gradient of the values
        dz: In,
        /// of `p` or `dp`: elements from one batch, head and query to the next
        p_strides: [i64; 3],
        /// of `z` or `dz`: elements from one batch, query and head to the next
        z_strides: [i64; 3],
        /// of the table: elements from one channel to the next
        channel_stride: i64,
        /// channels
        dim: u32,
        /// 1: all rows of `p` or `dp` begin at a multiple of 16 bytes
        aligned: u32,
        /// 1: the gradient is added to what is there
        add: u32,
        /// 1: a lookup, or positions of keys given one by one
        bins: u32,
        /// rows of a warp, at most
        rows: u32,
        /// rows that follow one another and share a table
        group_rows: u32,
        /// warps of such rows
        group_warps: u32,
        /// warps of the call
        warps: u32,
        /// entries that shared memory holds for a warp
        tile: u32,
        /// divides by `group_warps`
        by_group: Divisor,
    }

    /// `attend/relative_table_grad`.
    RelativeTableGradArgs {
        /// positions and lengths
        bias: BiasArgs,
        /// which entry; no table
        term: TermArgs,
        /// probabilities
        p: In,
        /// gradient of the values
        dz: In,
        /// f32 `[heads or 1, splits, entries, dim]`; unused with one split
        sums: Out,
        /// u32 of each tile of entries and channels: blocks that are done; 0 between calls
        counters: Out,
        /// f32 `[heads or 1, entries, dim]`
        out: Out,
        /// of `p`: elements from one batch, head and query to the next
        p_strides: [i64; 3],
        /// of `dz`: elements from one batch, query and head to the next
        z_strides: [i64; 3],
        /// channels
        dim: u32,
        /// 1: all rows of `p` begin at a multiple of 16 bytes
        aligned: u32,
        /// 1: a lookup, or positions of keys given one by one
        bins: u32,
        /// 1: each head has a table
        by_head: u32,
        /// rows of a table
        group_rows: u32,
        /// rows of a split
        split_rows: u32,
        /// splits
        splits: u32,
        /// tiles of entries
        tiles: u32,
        /// tiles of channels
        channel_tiles: u32,
    }
}

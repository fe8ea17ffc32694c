//! Arguments of `kernels/embed`.

use super::{Divisor, IdType, In, Out, PositionArgs, args, codes, sizes, words};

codes! {
    /// The last channel of a sinusoid of odd size.
    LastChannel {
        /// the size is even
        NONE = 0,
        /// one more channel of the first wave
        WAVE = 1,
        /// zero
        ZERO = 2,
    }

    /// Row of the position table that a token reads.
    RowRule {
        /// its position and an offset
        OFFSET = 0,
        /// the number of tokens before it whose id is not padding
        KEPT_BY_ID = 1,
        /// the number of tokens before it that a mask keeps
        KEPT_BY_MASK = 2,
    }

    /// Norm behind the sum of a learned embedding.
    NormKind {
        /// nothing
        NONE = 0,
        /// layer norm
        LAYER = 1,
        /// RMS norm
        RMS = 2,
    }
}

sizes! {
    /// places of the order that one thread walks in a table's gradient
    ORDER_CHUNK: unsigned = 16,
    /// ids that one block sorts
    ORDER_TILE: unsigned = 1024,
    /// runs of sorted ids that one launch merges
    ORDER_WAYS: unsigned = 8,
}

args! {
    /// `embed/sinusoid`: the waves of integer positions, added or written.
    SinusoidArgs {
        /// embeddings
        x: Out,
        /// token positions
        at: PositionArgs,
        /// turns per position of each pair in units of 2^-64
        rates: In,
        /// elements from one sequence and one token to the next
        strides: [i64; 2],
        /// added to every position
        offset: i64,
        /// the row of zeros, if `padded`
        padding: i64,
        /// tokens of each sequence, or of the packed batch
        tokens: u32,
        /// sequences
        batch: u32,
        /// sequences that one thread walks; 1 unless they share their positions
        batches_per_thread: u32,
        /// `batch` over `batches_per_thread`, rounded up
        groups: u32,
        /// pairs of which both waves are there
        pairs: u32,
        /// channels from a thread's first access to its second
        second: u32,
        /// pairs between the two runs of one thread's pairs; 0: they are in a row
        apart: u32,
        /// pairs of a run
        run: u32,
        /// pairs of all first runs
        runs: u32,
        /// the last channel of an odd size
        last: LastChannel,
        /// its index
        last_channel: u32,
        /// 1: a pair's waves lie side by side
        interleaved: u32,
        /// 1: the first wave is the cosine
        cosine_first: u32,
        /// 1: there is a row of zeros
        padded: u32,
        /// multiplies `x`
        scale: f32,
        /// 1: added to `x`, 0: written over it
        add: u32,
    }

    /// `embed/timestep`: the waves of fractional positions.
    TimestepArgs {
        /// embeddings
        x: Out,
        /// timesteps
        t: In,
        /// turns per unit of time of each pair, a sum of two f64
        turns: In,
        /// added to every timestep
        offset: f64,
        /// the row of zeros, if `padded`
        padding: f64,
        /// rows
        times: u32,
        /// elements from one row to the next
        stride: u32,
        /// pairs of which both waves are there
        pairs: u32,
        /// first channel of the second wave, in halves
        second: u32,
        /// the last channel of an odd size
        last: LastChannel,
        /// its index
        last_channel: u32,
        /// 1: a pair's waves lie side by side
        interleaved: u32,
        /// 1: the first wave is the cosine
        cosine_first: u32,
        /// 1: there is a row of zeros
        padded: u32,
        /// 1: timesteps are f64
        double_time: u32,
    }

    /// `embed/learned` and `embed/norm_grad`: rows of tables, added and normalised.
    LearnedArgs {
        /// embeddings, or the gradient of the sum; the rows of the position table for `learned_rows`
        x: Out,
        /// rows that stand in for the token table's, with the strides of `x`
        source: In,
        /// gradient of the result, with the strides of `x`
        grad: In,
        /// partial sums of the gradients of gain and bias
        partials: Out,
        /// the token table; null without it
        token: In,
        /// the position table; null without it
        position: In,
        /// the type table; null without it
        types: In,
        /// the norm's gain; null without it
        gain: In,
        /// the norm's bias; null without it
        bias: In,
        /// token ids
        ids: In,
        /// token types
        type_ids: In,
        /// 1 for a token, 0 for padding, in bytes
        mask: In,
        /// token positions; starts hold the kept tokens of earlier calls where tokens are counted
        at: PositionArgs,
        /// the smallest of `4 * token + table` over all ids outside their table; null: no report
        flag: Out,
        /// type of `ids`
        id_type: IdType,
        /// type of `type_ids`
        type_id_type: IdType,
        /// elements from one sequence and one token to the next in `x`
        strides: [i64; 2],
        /// rows of the token table
        token_rows: i64,
        /// rows of the position table
        position_rows: i64,
        /// rows of the type table
        type_rows: i64,
        /// added to every position, or the row of a sequence's first kept token
        first: i64,
        /// the row of padding
        padded: i64,
        /// the id that is padding
        padding: i64,
        /// tokens of each sequence, or of the packed batch
        tokens: u32,
        /// sequences
        batch: u32,
        /// tokens of a sequence that a block works on, group after group
        tokens_per_block: u32,
        /// channels
        dim: u32,
        /// which row of the position table a token reads
        rule: RowRule,
        /// what follows the sum
        norm: NormKind,
        /// added to the variance or the mean square
        eps: f32,
        /// 1 / dim
        share: f32,
        /// multiplies token rows
        scale: f32,
    }

    /// `embed/table_grad`: gradients of tables, and of a norm's vectors.
    TableGradArgs {
        /// gradient of the table, or of the gain; the order for `order_tile` and `order_merge`
        table: Out,
        /// gradient of the bias; null without it
        second: Out,
        /// gradient of the result, or partial sums
        grad: In,
        /// ids of the tokens
        ids: In,
        /// the tokens in the order of their ids; for `order_merge` in runs that are so
        order: In,
        /// partial sums of ids that several threads meet
        partials: Out,
        /// elements from one sequence and one token to the next in `grad`
        strides: [i64; 2],
        /// rows of the table
        rows: i64,
        /// row of the first position
        first: i64,
        /// the id whose row has no gradient
        skipped: i64,
        /// tokens of each sequence
        tokens: u32,
        /// to divide by `tokens`
        by_tokens: Divisor,
        /// sequences, or rows of partial sums
        batch: u32,
        /// channels
        dim: u32,
        /// type of `ids`
        id_type: IdType,
        /// 1: one id has no gradient
        skips: u32,
        /// 1: add to what is there
        accumulate: u32,
        /// multiplies the sum
        scale: f32,
        /// tokens of a run for `order_merge`
        run: u32,
    }

    /// `embed/grid`: the waves of a grid's indices, added or written.
    GridArgs {
        /// embeddings
        x: Out,
        /// rate and phase of each channel in units of 2^-64 turn, `[W, dim / W]` for accesses of W channels
        channels: In,
        /// axis of each channel in bytes: 0 frame, 1 row, 2 column, 3 always zero
        axes: In,
        /// elements from one sequence and one token to the next
        strides: [i64; 2],
        /// tokens of each sequence
        tokens: u32,
        /// rows of a frame
        rows: u32,
        /// columns of a row
        columns: u32,
        /// to divide by `rows`
        by_rows: Divisor,
        /// to divide by `columns`
        by_columns: Divisor,
        /// to divide by `run`
        by_run: Divisor,
        /// tokens with one index that one thread walks
        run: u32,
        /// sequences
        batch: u32,
        /// sequences that one thread walks
        batches_per_thread: u32,
        /// `batch` over `batches_per_thread`, rounded up
        groups: u32,
        /// channels
        dim: u32,
        /// multiplies `x`
        scale: f32,
        /// 1: added to `x`, 0: written over it
        add: u32,
    }

    /// `embed/grid_masked`: waves of coordinates counted over a mask.
    MaskedArgs {
        /// embeddings
        x: Out,
        /// 1 for a token of the image, 0 for padding, in bytes
        mask: In,
        /// turns of each channel, a sum of two f64, and its axis's offset
        channels: In,
        /// axis of each channel in bytes: 1 row, 2 column, 3 always zero, plus 4 for a cosine, plus 8 for the angle
        /// of the channel before it
        axes: In,
        /// subtracted from counts
        centre: f64,
        /// multiplies normalised counts
        scale: f64,
        /// rows of an image
        rows: u32,
        /// columns of a row
        columns: u32,
        /// images
        batch: u32,
        /// channels
        dim: u32,
        /// 1: counts are divided by the last count
        normalize: u32,
    }

    /// `embed/resample`: a table of positions at another size, or the transpose of that.
    ResampleArgs {
        /// the table at the new size, `[prefix + out_rows * out_columns, dim]`
        out: Out,
        /// the table, `[prefix + in_rows * in_columns, dim]`
        table: In,
        /// first tap and number of taps of each output row, in pairs
        row_spans: In,
        /// weights of each output row, `row_taps` apart
        row_weights: In,
        /// first tap and number of taps of each output column, in pairs
        column_spans: In,
        /// weights of each output column, `column_taps` apart
        column_weights: In,
        /// rows that are copied before the grid: class and register tokens
        prefix: u32,
        /// columns of the table's grid
        in_columns: u32,
        /// rows of the output's grid
        out_rows: u32,
        /// columns of the output's grid
        out_columns: u32,
        /// most taps of an output row
        row_taps: u32,
        /// most taps of an output column
        column_taps: u32,
        /// channels
        dim: u32,
        /// 1: add to what is there
        accumulate: u32,
        /// tiles of outputs
        tiles: u32,
        /// those side by side
        column_tiles: u32,
        /// most inputs of a tile
        tile_inputs: u32,
        /// most rows of inputs of a tile
        tile_rows: u32,
    }
}

//! Arguments of `kernels/bias`.

use super::{Divisor, In, Out, args, codes, sizes, words};

codes! {
    /// The form of a bias.
    BiasKind {
        /// nothing is added
        NONE = 0,
        /// a slope for each side of the query
        SLOPES = 1,
        /// a number for each distance
        ROW = 2,
        /// FIRE's network of the normalised distance
        FIRE = 3,
    }

    /// What decides which number a term reads.
    TermKind {
        /// query and key themselves
        WHOLE = 0,
        /// their distance
        DISTANCE = 1,
        /// their coordinates in a window
        GRID = 2,
        /// whether a shifted window has them in two regions
        SHIFTED = 3,
        /// an index for each pair
        GIVEN = 4,
        /// a number of the query less one of the key
        ENDPOINTS = 5,
    }

    /// The type of given indices.
    IndexType {
        /// 8 bits
        U8 = 0,
        /// 16 bits
        U16 = 1,
        /// 32 bits, signed
        I32 = 2,
    }
}

sizes! {
    /// keys that a thread takes at once
    KEYS: int = 8,
    /// queries of a tile that shares the numbers of its distances
    TILE_ROWS: int = 16,
    /// its keys
    TILE_KEYS: int = 1024,
    /// terms of a bias
    TERMS: int = 4,
    /// keys of a row that a warp stages in shared memory for the gradient of a term
    GRAD_STEP: int = 256,
    /// numbers of a tile that a block transposes for the gradient of a term
    GRAD_TILE: unsigned = 1024,
    /// shared memory of such a tile, in numbers: at most 128 rows, each with one more
    GRAD_TILE_SPACE: unsigned = 1152,
    /// tokens that a thread takes at once in sums of gates
    GATE_ITEMS: int = 4,
    /// states of a tile of products, and columns
    PRODUCT_TILE: int = 64,
    /// rows of a table that a tile of products meets: distances, rounded up to a power of two
    PRODUCT_BAND: int = 128,
    /// floats of shared memory that a warp of a tile has for its products: 16 rows of 48, and 8 more against bank conflicts
    PRODUCT_STAGED: int = 896,
}

args! {
    /// A bias of the room `bias`, and where queries and keys sit: a part of the arguments of its kernels.
    BiasArgs {
        /// i32 positions `[batch, queries]`, or null: queries follow `query_start`
        query_positions: In,
        /// i32 positions `[batch, keys]`, or null: keys follow `key_start`
        key_positions: In,
        /// i32 queries of each sequence, or null: all; of packed sequences the first query of each, and the end
        query_lengths: In,
        /// i32 keys of each sequence, or null: all; of packed sequences the first key of each, and the end
        key_lengths: In,
        /// slopes of the past, a row, or FIRE's logarithms of distances
        values: In,
        /// slopes of the future, or FIRE's slopes
        more: In,
        /// FIRE's intercepts
        intercepts: In,
        /// FIRE's breaks
        breaks: In,
        /// f32 `[batch, heads, queries]` that multiply the bias, or null
        gates: In,
        /// heads from one sequence's slopes to the next; 0 shares them
        slopes_stride: i64,
        /// position of query 0
        query_start: i32,
        /// position of key 0
        key_start: i32,
        /// distance of the row's first number
        first: i32,
        /// numbers of the row, or of FIRE's logarithms
        count: i32,
        /// breaks of FIRE's lines
        break_count: u32,
        /// its form
        kind: BiasKind,
        /// 1: the last query of a sequence sits at its last key
        last: u32,
        /// 1: slopes and rows take the key's position instead of its distance
        key_only: u32,
        /// FIRE's least normaliser
        least_norm: f32,
        /// FIRE's addition to the normaliser
        eps: f32,
        /// sequences
        batch: u32,
        /// heads
        heads: u32,
        /// rows of a head
        queries: u32,
        /// keys of a row
        keys: u32,
        /// packed sequences; 0: none are
        sequences: u32,
        /// divides by `queries`
        by_queries: Divisor,
        /// divides by `heads`
        by_heads: Divisor,
    }

    /// `bias/toeplitz`: `apply`.
    ToeplitzArgs {
        /// the bias
        bias: BiasArgs,
        /// written
        x: Out,
        /// elements from one batch, head and query to the next
        strides: [i64; 3],
        /// rows, `batch * heads * queries`
        rows: u32,
        /// 1: all rows begin at a multiple of 16 bytes
        aligned: u32,
        /// 1: the bias is added to what is there
        add: u32,
    }

    /// Queries or keys of a window: a part of [`TermArgs`].
    WindowArgs {
        /// tokens of the window, those before it included
        tokens: u32,
        /// tokens of a row of the window
        width: u32,
        /// divides by `width`
        by_width: Divisor,
        /// multiplies the coordinates: a step of strided queries, 0 where they play no part
        scale: i32,
    }

    /// One term of a bias: a number of an array, chosen by query and key. A part of other arguments.
    TermArgs {
        /// the array; endpoints: of the queries
        values: In,
        /// entries by distance, as u16; given indices; or endpoints of the keys
        more: In,
        /// i32 coordinates `[batch, queries]` in place of positions, or null
        query_at: In,
        /// i32 coordinates `[batch, keys]` in place of positions, or null
        key_at: In,
        /// elements of `values` from one batch, head, query, key and entry to the next
        strides: [i64; 5],
        /// of given indices from one batch and row to the next; of the keys' endpoints from one batch, head and key
        more_strides: [i64; 3],
        /// of endpoints: elements to the second float of the queries' and the keys'; 0: there is none
        second: [i64; 2],
        /// what decides
        kind: TermKind,
        /// 1: `values` holds f32, 0: the logits' type
        values_f32: u32,
        /// type of given indices
        index_type: IndexType,
        /// multiplies the number; the number itself between two regions
        factor: f32,
        /// the first distance
        first: i32,
        /// distances; columns of given indices
        count: i32,
        /// rows of given indices
        rows: i32,
        /// entries of `values`
        entries: i32,
        /// 1: distances are query - key
        reversed: u32,
        /// 1: nothing is added outside the distances, 0: the nearest entry
        zero_outside: u32,
        /// 1: entries by distance never fall and never skip one
        smooth: u32,
        /// queries
        query: WindowArgs,
        /// keys
        key: WindowArgs,
        /// tokens before a window
        prefix: u32,
        /// entry of a pair of a token before the window and one in it, of the reverse, and of two before it; -1: nothing
        prefix_entry: i32,
        /// entries from one row, and one column, of a difference of coordinates to the next
        steps: [i32; 2],
        /// the entry of the difference 0
        origin: i32,
        /// 1: differences count by their size
        absolute: u32,
        /// windows of an image, and in a row of it
        windows: [u32; 2],
        /// divides by the windows of an image
        by_image: Divisor,
        /// divides by the windows in a row of it
        by_row: Divisor,
        /// rows and columns of a window
        window: [i32; 2],
        /// the first row, and column, of the image's last window
        last: [i32; 2],
        /// the first row, and column, of what was shifted around
        wrapped: [i32; 2],
    }

    /// A bias as a sum of terms. A part of other arguments.
    TermsArgs {
        /// the terms
        terms: [TermArgs; TERMS],
        /// f32 `[heads]` that multiply the softmax's scale; null: 1
        scales: In,
        /// how many
        count: u32,
    }

    /// `bias/terms`: `apply_terms`.
    ApplyTermsArgs {
        /// positions, and the tensor
        call: ToeplitzArgs,
        /// what is added
        terms: TermsArgs,
    }

    /// `bias/products`.
    ProductsArgs {
        /// positions, and the tensor
        call: ToeplitzArgs,
        /// `[batch, tokens, heads, width]`, of queries or keys
        states: In,
        /// f32 `[heads, width]`, added to the states, or null
        state_bias: In,
        /// `[batch or 1, heads or 1, entries, width]`
        table: In,
        /// u16, the entry of each distance, or null
        lookup: In,
        /// elements of `states` from one batch, token and head to the next
        state_strides: [i64; 3],
        /// elements of `table` from one batch, head, entry and channel to the next
        table_strides: [i64; 4],
        /// channels
        width: u32,
        /// 16-byte packs of a row that shared memory holds at once
        packs: u32,
        /// tiles of 64 columns that a block walks
        walk: u32,
        /// walks of a row of tiles
        walks: u32,
        /// divides by `walks`
        by_walks: Divisor,
        /// tiles of 64 states
        row_tiles: u32,
        /// divides by `row_tiles`
        by_row_tiles: Divisor,
        /// multiplies the product
        factor: f32,
        /// the first distance
        first: i32,
        /// distances
        count: i32,
        /// 1: distances are query - key
        reversed: u32,
        /// 1: nothing is added outside the distances, 0: the nearest entry
        zero_outside: u32,
        /// 1: states lie side by side at multiples of 16 bytes
        wide_states: u32,
        /// 1: rows of the table do so too
        wide_table: u32,
    }

    /// `bias/toeplitz`: `row`, from a T5 table.
    ToeplitzRowArgs {
        /// f32 `[buckets, heads]`
        table: In,
        /// u16 bucket of each distance
        lookup: In,
        /// f32 `[heads, distances]`
        row: Out,
        /// heads
        heads: u32,
        /// distances
        count: u32,
    }

    /// Arguments that gradients of a bias's parameters share: a part of the arguments of `bias/distance_grad` and `bias/fire_grad`.
    BiasGradArgs {
        /// the bias where the gradient needs it, positions, lengths, gates
        bias: BiasArgs,
        /// gradient of the bias
        grad: In,
        /// f32, what blocks leave to the last one
        sums: Out,
        /// u32 `[heads + 1]`: blocks of each head that are done, and heads; 0 between calls
        counters: Out,
        /// f32, the parameters' gradients
        out: Out,
        /// elements from one batch, head and query to the next
        strides: [i64; 3],
        /// rows that one split sums, counted over sequences
        rows: u32,
        /// splits
        splits: u32,
        /// 1: all rows begin at a multiple of 16 bytes
        aligned: u32,
        /// multiplies every output
        factor: f32,
    }

    /// twice that, the second half for compensation.
    DistanceGradArgs {
        /// the gradient, its sums and the outputs
        call: BiasGradArgs,
        /// i32 `[outputs, 2]`, the first and last distance of each output
        intervals: In,
        /// f32 `[outputs, heads, weighted]`, or null: 1, or the distance
        weights: In,
        /// elements from one output to the next
        output_stride: i64,
        /// elements from one head to the next
        head_stride: i64,
        /// the least distance of the call, or of the bins
        first: i32,
        /// distances of the call, or bins
        distances: u32,
        /// the least distance of `weights`
        weights_first: i32,
        /// distances of `weights`
        weighted: u32,
        /// numbers per head
        outputs: u32,
        /// 1: each sum is multiplied by minus its distance's size
        by_distance: u32,
        /// 1: sums are of outputs, 0: of distances
        of_outputs: u32,
    }

    /// `bias/fire_grad`. Sums are f32 `[2, splits, heads, lines, 4]`, the second half for compensation.
    FireGradArgs {
        /// FIRE, the gradient, its sums and the outputs
        call: BiasGradArgs,
        /// f32 `[reach + 1]`, `n / (1 + c n)`
        bends: In,
        /// i32 `[width, 2]`, the first and last line on which each ramp is up
        ramps: In,
        /// f32 `[width]`
        in_weight: In,
        /// f32 `[width]`
        in_bias: In,
        /// f32 `[heads, width]`
        out_weight: In,
        /// ramps
        width: u32,
        /// the first position that is not before the threshold
        threshold: i32,
        /// the bend at the threshold
        least_bend: f32,
        /// turns a sum of slope times x before the threshold into the threshold's gradient
        threshold_factor: f32,
    }

    /// Network of Swin v2's continuous position bias: a part of the arguments of `bias/swin2`.
    Swin2Net {
        /// `[hidden, 2]`
        w1: In,
        /// `[hidden]`
        b1: In,
        /// `[heads, hidden]`
        w2: In,
        /// `[heads]`, or null
        b2: In,
        /// f32 `[entries, 2]`
        coordinates: In,
        /// rows of the table
        entries: u32,
        /// outputs
        heads: u32,
        /// hidden units
        hidden: u32,
        /// multiplies the sigmoid; 0: there is none
        limit: f32,
    }

    /// `bias/swin2`: `swin2`.
    Swin2Args {
        /// the network
        net: Swin2Net,
        /// f32 `[entries, heads]`, gradient of the table; null: the table is written
        grad: In,
        /// f32 `[entries, heads]`: the table, or the gradient of the network's outputs
        out: Out,
    }

    /// `bias/swin2`: `swin2_grad`.
    Swin2GradArgs {
        /// the network
        net: Swin2Net,
        /// f32 `[entries, heads]`, gradient of the network's outputs
        outer: In,
        /// f32 `[hidden, 2]`
        w1_grad: Out,
        /// f32 `[hidden]`
        b1_grad: Out,
        /// f32 `[heads, hidden]`
        w2_grad: Out,
        /// f32 `[heads]`; null: not wanted
        b2_grad: Out,
    }

    /// `bias/terms_grad`. Sums are f32 `[items, parts, left]`; counters one for each item.
    TermGradArgs {
        /// positions, the gradient, partial sums and the output; `rows` of a warp's, or a block's, part; `splits`: parts of an item
        call: BiasGradArgs,
        /// what decides the entry
        term: TermArgs,
        /// elements from one batch, head, row and entry of the output to the next
        out_strides: [i64; 4],
        /// divides by the parts
        by_parts: Divisor,
        /// heads of the output
        heads: u32,
        /// sequences times heads that one batch and head of the output is the sum of
        members: u32,
        /// heads of them
        head_members: u32,
        /// entries of a row of the output
        entries: u32,
        /// entries that a warp or a block has bins for
        chunk: u32,
        /// chunks of a row
        chunks: u32,
        /// rows of the output that have a warp, or lanes, of their own
        items: u32,
        /// keys of a block, a power of two
        keys: u32,
        /// blocks of a row's keys
        key_blocks: u32,
        /// numbers of a warp's shared memory
        space: u32,
        /// numbers that a block leaves
        left: u32,
        /// 1: rows of the output begin at a multiple of 16 bytes, and entries are neighbours
        out_aligned: u32,
    }

    /// `bias/gate_sums`: `gate_sums`.
    GateSumsArgs {
        /// logarithms or logits of gates, f32 or of the module's type
        gates: In,
        /// f32 pairs
        out: Out,
        /// u64 `[batch, heads, 2]`; null: the tokens are a whole sequence
        state: Out,
        /// elements from one batch, head and token to the next
        gates_strides: [i64; 3],
        /// the same of `out`
        out_strides: [i64; 3],
        /// elements to the second float of a pair
        second: i64,
        /// heads
        heads: u32,
        /// tokens of a row
        tokens: u32,
        /// 1: `gates` holds f32, 0: the module's type
        gates_f32: u32,
        /// 1: `gates` holds logits, 0: logarithms
        logits: u32,
    }

    /// `bias/gate_sums`: `gate_sums_grad`.
    GateGradArgs {
        /// as in [`GateSumsArgs`]
        gates: In,
        /// f32, gradient of the sums as ends of queries
        query_grad: In,
        /// f32, gradient of the sums as ends of keys
        key_grad: In,
        /// f32, gradient of what `gates` holds
        out: Out,
        /// elements from one batch, head and token to the next
        gates_strides: [i64; 3],
        /// the same of `query_grad`
        query_strides: [i64; 3],
        /// the same of `key_grad`
        key_strides: [i64; 3],
        /// the same of `out`
        out_strides: [i64; 3],
        /// heads
        heads: u32,
        /// tokens of a row
        tokens: u32,
        /// 1: `gates` holds f32, 0: the module's type
        gates_f32: u32,
        /// 1: `gates` holds logits, 0: logarithms
        logits: u32,
    }
}

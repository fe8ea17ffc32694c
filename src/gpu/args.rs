//! The arguments of every kernel: one struct each, declared here and nowhere else.
//!
//! build.rs includes this file, prints the structs as C++ and hands them to NVRTC as `args.cuh`; so a kernel and its
//! caller cannot disagree about the order, type or place of a field.

use bytemuck::{Pod, Zeroable};

/// A device address that a kernel reads.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct In(u64);

/// A device address that a kernel writes; it may read it too.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Out(u64);

#[allow(dead_code, reason = "build.rs compiles this file too, and makes no addresses")]
impl In {
    pub(super) const fn new(address: u64) -> Self {
        Self(address)
    }
    /// The address `bytes` further on.
    pub(crate) const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
    /// No buffer; the kernel does not follow it.
    pub const NULL: Self = Self(0);
    /// The address, for alignment and overlap.
    pub const fn address(self) -> u64 {
        self.0
    }
}

#[allow(dead_code, reason = "build.rs compiles this file too, and makes no addresses")]
impl Out {
    pub(super) const fn new(address: u64) -> Self {
        Self(address)
    }
    /// The address `bytes` further on.
    pub(crate) const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
    /// No buffer; the kernel does not follow it.
    pub const NULL: Self = Self(0);
    /// The address, for alignment and overlap.
    pub const fn address(self) -> u64 {
        self.0
    }
    /// The same address, to be read.
    pub const fn as_in(self) -> In {
        In(self.0)
    }
}

/// How a field is declared in C++.
pub trait Field {
    /// The declaration of a member `name`.
    fn declare(name: &str) -> String;
}

macro_rules! fields {
    ($($rust:ty => $cxx:literal),* $(,)?) => {$(
        impl Field for $rust {
            fn declare(name: &str) -> String {
                format!(concat!($cxx, " {}"), name)
            }
        }
    )*};
}

fields! {
    u32 => "unsigned",
    i32 => "int",
    u64 => "unsigned long long",
    i64 => "long long",
    f32 => "float",
    f64 => "double",
    In => "const void*",
    Out => "void*",
    Divisor => "Divisor",
    BiasArgs => "BiasArgs",
    BiasGradArgs => "BiasGradArgs",
    SoftmaxLaw => "SoftmaxLaw",
}

impl<F: Field, const N: usize> Field for [F; N] {
    fn declare(name: &str) -> String {
        F::declare(&format!("{name}[{N}]"))
    }
}

/// One field of one struct.
#[derive(Clone, Debug)]
pub struct FieldLayout {
    /// its name
    pub name: &'static str,
    /// its declaration in C++
    pub declaration: String,
    /// bytes from the start of the struct
    pub offset: usize,
    /// bytes
    pub size: usize,
}

/// The arguments of a kernel.
pub trait Args: Pod {
    /// The struct's name in C++.
    const NAME: &'static str;
    /// Its fields in order.
    fn layout() -> Vec<FieldLayout>;
}

/// The C++ twin of `A`, with its size and offsets asserted.
#[allow(dead_code, reason = "used by build.rs alone")]
pub fn declare<A: Args>() -> String {
    let name = A::NAME;
    let mut text = format!("struct {name} {{\n");
    for field in A::layout() {
        text += &format!("    {};\n", field.declaration);
    }
    text += "};\n";
    text += &format!("static_assert(sizeof({name}) == {}, \"{name}\");\n", size_of::<A>());
    for field in A::layout() {
        text += &format!(
            "static_assert(__INTADDR__(&(({name}*)0)->{0}) == {1}, \"{name}.{0}\");\n",
            field.name, field.offset
        );
    }
    text
}

macro_rules! args {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type),* }

            impl Args for $name {
                const NAME: &'static str = stringify!($name);
                fn layout() -> Vec<FieldLayout> {
                    vec![$(FieldLayout {
                        name: stringify!($field),
                        declaration: <$type as Field>::declare(stringify!($field)),
                        offset: std::mem::offset_of!($name, $field),
                        size: size_of::<$type>(),
                    }),*]
                }
            }
        )*

        /// Every struct: its name in C++, its size and its fields.
        pub fn all() -> Vec<(&'static str, usize, Vec<FieldLayout>)> {
            vec![$(($name::NAME, size_of::<$name>(), $name::layout())),*]
        }

        /// Every struct as C++: the text of `args.cuh`.
        #[allow(dead_code, reason = "used by build.rs alone")]
        pub fn header() -> String {
            ["#pragma once\n".to_string(), $(declare::<$name>()),*].concat()
        }
    };
}

impl Divisor {
    /// For dividends below 2^31; `by` is 1 to 2^31.
    #[allow(dead_code, reason = "build.rs compiles this file too, and divides nothing")]
    pub(crate) const fn new(by: u32) -> Self {
        let shift = by.next_power_of_two().ilog2();
        // At most 2^31, and too large by less than 1: the quotient is too large by less than 1 / by.
        let multiplier = (1u64 << (31 + shift)).div_ceil(by as u64) as u32;
        Self { multiplier, shift }
    }
}

args! {
    /// A number to divide by, made ready: `n / by` is `(n * multiplier) >> (31 + shift)`. A part of other arguments.
    Divisor {
        /// 2^(31 + shift) / by, rounded up
        multiplier: u32,
        /// log2 of by, rounded up
        shift: u32,
    }

    /// `rotate/rope`: queries, and keys if `k_heads` is not 0.
    RopeArgs {
        /// queries
        q: In,
        /// rotated queries; `q` itself in place
        q_out: Out,
        /// keys
        k: In,
        /// rotated keys; `k` itself in place
        k_out: Out,
        /// positions: a row of ids for each axis, or one start for each sequence
        positions: In,
        /// where each sequence begins in a packed batch, `sequences + 1` of them
        indptr: In,
        /// turns per position of each pair in units of 2^-64; frequencies in f32; or cosines by row
        rates: In,
        /// sines by row
        sines: In,
        /// set to 1 if a position lies beyond the table's rows; null for no report
        flag: Out,
        /// axis of each pair; null with one axis
        axes: In,
        /// xPos: exponents of two per position of each pair in units of 2^-56, the queries' and then the keys'
        exponents: In,
        /// elements from one batch, token and head to the next
        q_strides: [i64; 3],
        /// the same of `q_out`
        q_out_strides: [i64; 3],
        /// the same of `k`
        k_strides: [i64; 3],
        /// the same of `k_out`
        k_out_strides: [i64; 3],
        /// elements from one axis to the next in `positions`
        axis_stride: i64,
        /// elements from one sequence to the next in `positions`; 0 shares a row
        sequence_stride: i64,
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
        /// key heads
        k_heads: u32,
        /// heads that one thread walks
        heads_per_thread: u32,
        /// pairs of a head
        pairs: u32,
        /// pairs of a block of channels that is rotated for itself; `pairs` if there is one
        block: u32,
        /// first rotated channel
        offset: u32,
        /// channels beside the rotated ones that must be copied; 0 in place
        copied: u32,
        /// 1: pairs lie side by side in the input
        interleaved: u32,
        /// 1: pairs lie side by side in the output
        interleaved_out: u32,
        /// how `positions` is read: 0 an id for each token, 1 a start for each sequence, 2 packed by `indptr`
        position_kind: u32,
        /// type of `positions`: 0 i32, 1 i64, 2 u32
        position_type: u32,
        /// sequences of a packed batch
        sequences: u32,
        /// multiplies cosine and sine
        factor: f32,
        /// multiplies the sine: 1 forward, -1 back
        sign: f32,
        /// 1: a table holds f32, 0: the tensors' type
        table_is_f32: u32,
        /// 1: rows of a table allow the accesses of the tensors' width
        table_aligned: u32,
        /// what a position beyond the table gives: 0 the nearest row, 1 NaN
        beyond: u32,
        /// 1: `rates` holds frequencies
        compat: u32,
    }

    /// `embed/sinusoid`: the waves of integer positions, added or written.
    SinusoidArgs {
        /// embeddings
        x: Out,
        /// positions: an id for each token, or one start for each sequence; null counts from 0
        positions: In,
        /// where each sequence begins in a packed batch, `sequences + 1` of them
        indptr: In,
        /// turns per position of each pair in units of 2^-64
        rates: In,
        /// elements from one sequence and one token to the next
        strides: [i64; 2],
        /// elements from one sequence to the next in `positions`; 0 shares a row
        sequence_stride: i64,
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
        /// first channel of the second wave, in halves
        second: u32,
        /// the last channel of an odd dim: 0 none, 1 one more of the first wave, 2 a zero
        rest: u32,
        /// where it lies
        rest_channel: u32,
        /// 1: a pair's waves lie side by side
        interleaved: u32,
        /// 1: the first wave is the cosine
        cosine_first: u32,
        /// 1: there is a row of zeros
        padded: u32,
        /// how `positions` is read: 0 an id for each token, 1 a start for each sequence, 2 packed by `indptr`
        position_kind: u32,
        /// type of `positions`: 0 i32, 1 i64, 2 u32
        position_type: u32,
        /// sequences of a packed batch
        sequences: u32,
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
        /// channels
        dim: u32,
        /// pairs of which both waves are there
        pairs: u32,
        /// first channel of the second wave, in halves
        second: u32,
        /// the last channel of an odd dim: 0 none, 1 one more of the first wave, 2 a zero
        rest: u32,
        /// where it lies
        rest_channel: u32,
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
        /// positions or starts; the kept tokens of earlier calls where tokens are counted
        positions: In,
        /// where each sequence begins in a packed batch, `sequences + 1` of them
        indptr: In,
        /// the smallest of `4 * token + table` over all ids outside their table
        fault: Out,
        /// elements from one sequence and one token to the next in `x`
        strides: [i64; 2],
        /// elements from one sequence to the next in `positions`; 0 shares a row
        sequence_stride: i64,
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
        /// type of `ids`: 0 i32, 1 i64, 2 u32
        id_type: u32,
        /// type of `type_ids`
        type_id_type: u32,
        /// how `positions` is read: 0 an id for each token, 1 a start for each sequence, 2 packed by `indptr`
        position_kind: u32,
        /// type of `positions`
        position_type: u32,
        /// sequences of a packed batch
        sequences: u32,
        /// which position row: 0 position + first, 1 counted without the padding id, 2 counted over the mask
        rule: u32,
        /// 0 none, 1 layer norm, 2 RMS norm
        norm: u32,
        /// multiplies token rows
        scale: f32,
        /// added to the variance or the mean square
        eps: f32,
        /// 1 / dim
        share: f32,
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
        /// type of `ids`: 0 i32, 1 i64, 2 u32
        id_type: u32,
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
        /// rate and phase of each channel in units of 2^-64 turn
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
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
    }

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
        /// 0 none, 1 slopes, 2 row, 3 FIRE
        kind: u32,
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
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

    /// Scale, softcap, order and window: a part of the arguments of `bias/softmax` and `bias/softmax_grad`.
    SoftmaxLaw {
        /// multiplies the logit
        scale: f32,
        /// the softcap, 0 for none
        cap: f32,
        /// 1 / cap
        inverse_cap: f32,
        /// 0 softcap then bias, 1 bias then softcap, 2 bias then scale
        order: u32,
        /// a key may lie this far before its query; 2^31 - 1: any distance
        left: i32,
        /// a key may lie this far after its query; 2^31 - 1: any distance
        right: i32,
    }

    /// `bias/softmax`.
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
        /// f32 `[rows, chunks, 2]`: maximum and sum of each chunk of a shared row
        parts: Out,
        /// elements from one batch, head and query to the next
        x_strides: [i64; 3],
        /// the same of `y`
        y_strides: [i64; 3],
        /// the same of `mask`; 0 shares it
        mask_strides: [i64; 3],
        /// u32 `[rows]`: blocks that have met; 0 between calls
        counters: Out,
        /// rows, `batch * heads * queries`
        rows: u32,
        /// chunks of 8192 keys of a row
        chunks: u32,
        /// 1: all rows of `x` and `y` begin at a multiple of 16 bytes; 2: those of `mask` too
        aligned: u32,
        /// chunks that a block's shared memory holds
        held: u32,
        /// threads of a row are 2^lanes_log
        lanes_log: u32,
        /// packs of eight keys that a thread has of a chunk, 1 to 8
        packs: u32,
        /// blocks that share a row
        share: u32,
        /// keeps the struct's size a multiple of 8
        unused: u32,
    }

    /// `bias/softmax_grad`.
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
        /// f32 `[rows, chunks]`: the sum of each chunk of a shared row
        parts: Out,
        /// u32 `[rows]`: blocks that have met; 0 between calls
        counters: Out,
        /// rows, `batch * heads * queries`
        rows: u32,
        /// chunks of 8192 keys of a row
        chunks: u32,
        /// 1: all rows begin at a multiple of 16 bytes
        aligned: u32,
        /// chunks that a block's shared memory holds
        held: u32,
        /// threads of a row are 2^lanes_log
        lanes_log: u32,
        /// packs of eight keys that a thread has of a chunk, 1 to 8
        packs: u32,
        /// blocks that share a row
        share: u32,
        /// keeps the struct's size a multiple of 8
        unused: u32,
    }

    /// `bias/softmax_grad`: `sink_grad`.
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
    }

    /// What gradients of a bias's parameters share: a part of the arguments of `bias/distance_grad` and `bias/fire_grad`.
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

    /// `bias/distance_grad`. Sums are f32 `[heads, blocks, outputs]` or `[heads, splits, distances]`; for `distance_grad_bins`
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
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
}

#[cfg(test)]
mod tests {
    use super::Divisor;

    #[test]
    fn a_divisor_divides_every_number_below_2_31() {
        let most = (1u64 << 31) - 1;
        let near = |n: u64| n.saturating_sub(2)..=(n + 2).min(most);
        let divisors = (1..=300).chain((1..31).flat_map(|n| near(1 << n))).chain(near(most)).filter(|&by| by > 0);
        for by in divisors {
            let Divisor { multiplier, shift } = Divisor::new(by as u32);
            // Exactness can only fail where the quotient changes.
            let steps =
                (0..300).map(|i| i * by).chain((0..64).map(|i| most / by * by / 64 * i)).chain([most / by * by]);
            for n in steps.chain([most]).flat_map(near) {
                let quotient = ((2 * n * u64::from(multiplier)) >> 32) >> shift;
                assert_eq!(quotient, n / by, "{n} / {by}");
            }
        }
    }
}

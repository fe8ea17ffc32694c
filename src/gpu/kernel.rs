//! The list of kernels: file, entry and argument struct meet here and nowhere else.
//!
//! build.rs reads it too: an entry that its file does not define, an entry that is missing here, or one whose struct differs
//! from the source's ends the build.

use std::marker::PhantomData;

use super::args::{
    ApplyTermsArgs, Args, DistanceGradArgs, FieldLayout, FireGradArgs, GateGradArgs, GateSumsArgs, GridArgs,
    LearnedArgs, MaskedArgs, MergeArgs, MergeGradArgs, MixedRatesArgs, PositionUnitsArgs, ProductsArgs, PrologueArgs,
    RelativeTableGradArgs, RelativeValuesArgs, ResampleArgs, RopeArgs, RopeGradArgs, SinkGradArgs, SinusoidArgs,
    SoftmaxArgs, SoftmaxGradArgs, SoftmaxGradTermsArgs, SoftmaxTermsArgs, Swin2Args, Swin2GradArgs, TableGradArgs,
    TermGradArgs, TimestepArgs, ToeplitzArgs, ToeplitzRowArgs,
};

/// An entry of a kernel file, which takes one `A`.
#[derive(Debug)]
pub struct Entry<A> {
    /// the kernel file, such as `rotate/rope`
    pub file: &'static str,
    /// its name there, such as `rope_wide`; in the module it ends in the element type
    pub name: &'static str,
    takes: PhantomData<fn(A)>,
}

impl<A> Clone for Entry<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Entry<A> {}

/// One kernel of the list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// the kernel file
    pub file: &'static str,
    /// the entry
    pub entry: &'static str,
    /// the struct that it takes, by its name in C++
    pub args: &'static str,
    /// bytes of that struct
    pub size: usize,
    /// its fields
    pub fields: Vec<FieldLayout>,
}

macro_rules! entries {
    ($($(#[$doc:meta])* $list:ident: $args:ty = $file:literal [$($name:literal),+ $(,)?];)*) => {
        $(
            $(#[$doc])*
            #[allow(dead_code, reason = "build.rs compiles this file too")]
            pub const $list: [Entry<$args>; [$($name),+].len()] =
                [$(Entry { file: $file, name: $name, takes: PhantomData }),+];
        )*

        /// Every kernel of the crate.
        pub fn kernels() -> Vec<Listed> {
            vec![$($(Listed {
                file: $file,
                entry: $name,
                args: <$args>::NAME,
                size: size_of::<$args>(),
                fields: <$args>::layout(),
            }),+),*]
        }
    };
}

entries! {
    /// 16-byte and 8-byte accesses.
    ROPE: RopeArgs = "rotate/rope" ["rope_wide", "rope_mid"];
    /// 16-byte accesses, angles shared by the heads of a block: one head a thread, and two.
    ROPE_SHARED_HALF: RopeArgs = "rotate/rope_shared" ["rope_shared_half", "rope_shared_half_two"];
    ROPE_SHARED_INTERLEAVED: RopeArgs = "rotate/rope_shared"
        ["rope_shared_interleaved", "rope_shared_interleaved_two"];
    /// 16-byte accesses, pairs in blocks of channels.
    ROPE_BLOCKS: RopeArgs = "rotate/rope_sources" ["rope_blocks_wide"];
    /// 16-byte accesses, angles as products in f32.
    ROPE_COMPAT: RopeArgs = "rotate/rope_sources" ["rope_compat_wide"];
    /// 16-byte and 8-byte accesses, cosines and sines from a table.
    ROPE_TABLE: RopeArgs = "rotate/rope_sources" ["rope_table_wide", "rope_table_mid"];
    /// 16-byte accesses, xPos.
    ROPE_XPOS: RopeArgs = "rotate/rope_sources" ["rope_xpos_wide"];
    /// Accesses of one element, for every source of angles.
    ROPE_ONE: RopeArgs = "rotate/rope_sources" ["rope_one"];
    /// 16-byte accesses, and of one element: sums over axes, frequencies of sets of heads.
    ROPE_MIXED: RopeArgs = "rotate/rope_mixed" ["rope_mixed_wide", "rope_mixed_one"];
    /// Units of 8 channels by 16-byte accesses, and by single elements.
    PROLOGUE: PrologueArgs = "rotate/prologue" ["prologue_wide", "prologue_one"];
    MIXED_RATES: MixedRatesArgs = "rotate/fixed" ["mixed_rates"];
    POSITION_UNITS: PositionUnitsArgs = "rotate/fixed" ["position_units"];
    /// Of frequencies: partial sums by 16-byte accesses and by single elements, and their sum.
    FREQUENCY_GRAD: RopeGradArgs = "rotate/rope_grad"
        ["frequency_grad_wide", "frequency_grad_one", "frequency_grad_sum"];
    POSITION_GRAD: RopeGradArgs = "rotate/rope_grad" ["position_grad_wide", "position_grad_one"];

    SINUSOID: SinusoidArgs = "embed/sinusoid" ["sinusoid_wide", "sinusoid_one"];
    TIMESTEP: TimestepArgs = "embed/timestep" ["timestep_wide", "timestep_one"];
    GRID: GridArgs = "embed/grid" ["grid_wide", "grid_one"];
    GRID_MASKED: MaskedArgs = "embed/grid_masked" ["grid_masked_wide", "grid_masked_one"];
    RESAMPLE: ResampleArgs = "embed/resample" ["resample_tiles", "resample_wide", "resample_one"];
    /// Wide accesses without a norm; with one, for rows that shared memory holds; narrow accesses for all.
    LEARNED: LearnedArgs = "embed/learned" ["learned_wide", "learned_norm", "learned_narrow"];
    LEARNED_ROWS: LearnedArgs = "embed/learned" ["learned_rows"];
    NORM_GRAD: LearnedArgs = "embed/norm_grad" ["norm_grad_wide", "norm_grad_narrow"];
    VECTORS_GRAD: TableGradArgs = "embed/table_grad" ["vectors_grad"];
    COUNTED_GRAD: TableGradArgs = "embed/table_grad" ["counted_grad_wide", "counted_grad_narrow"];
    SORTED_GRAD: TableGradArgs = "embed/table_grad" ["sorted_grad_wide", "sorted_grad_narrow"];
    SORTED_REST: TableGradArgs = "embed/table_grad" ["sorted_rest_wide", "sorted_rest_narrow"];
    ORDER: TableGradArgs = "embed/table_grad" ["order_tile", "order_merge"];

    BIAS: ToeplitzArgs = "bias/toeplitz" ["apply", "apply_numbers"];
    BIAS_ROW: ToeplitzRowArgs = "bias/toeplitz" ["row"];
    BIAS_TERMS: ApplyTermsArgs = "bias/terms" ["apply_terms"];
    /// Of the queries' states, and of the keys'.
    PRODUCTS: ProductsArgs = "bias/products" ["products_queries", "products_keys"];
    /// Sums along diagonals, and in bins where positions are given one by one.
    DISTANCE_GRAD: DistanceGradArgs = "bias/distance_grad" ["distance_grad", "distance_grad_bins"];
    /// One for each form of the numbers.
    TERM_GRAD: TermGradArgs = "bias/terms_grad"
        ["term_grad_table", "term_grad_queries", "term_grad_keys", "term_grad_columns", "term_grad_whole"];
    FIRE_GRAD: FireGradArgs = "bias/fire_grad" ["fire_grad"];
    SWIN2: Swin2Args = "bias/swin2" ["swin2"];
    SWIN2_GRAD: Swin2GradArgs = "bias/swin2" ["swin2_grad"];
    GATE_SUMS: GateSumsArgs = "bias/gate_sums" ["gate_sums"];
    GATE_SUMS_GRAD: GateGradArgs = "bias/gate_sums" ["gate_sums_grad"];

    SOFTMAX: SoftmaxArgs = "attend/softmax" ["softmax"];
    /// Rows in registers, in the order of `SHAPES` in `src/attend/work.rs`; and those of which every key is seen.
    SOFTMAX_ROWS: SoftmaxArgs = "attend/softmax_rows"
        ["rows_16x8", "rows_32x8", "rows_64x8", "rows_128x8", "rows_32x4", "rows_128x1", "rows_256x1"];
    SOFTMAX_WHOLE: SoftmaxArgs = "attend/softmax_rows" ["whole_32x4", "whole_128x1"];
    SOFTMAX_GRAD: SoftmaxGradArgs = "attend/softmax_grad" ["grad"];
    SOFTMAX_TERMS: SoftmaxTermsArgs = "attend/softmax_terms" ["softmax_terms"];
    SOFTMAX_GRAD_TERMS: SoftmaxGradTermsArgs = "attend/softmax_grad_terms" ["grad_terms"];
    /// Values, and the gradient of the probabilities.
    RELATIVE_VALUES: RelativeValuesArgs = "attend/relative_values" ["relative_values", "relative_values_grad"];
    RELATIVE_TABLE_GRAD: RelativeTableGradArgs = "attend/relative_table_grad" ["relative_table_grad"];
    /// Attention outputs put together: 16-byte accesses, single elements.
    MERGE: MergeArgs = "attend/merge" ["merge_wide", "merge_one"];
    MERGE_GRAD: MergeGradArgs = "attend/merge" ["merge_grad_wide", "merge_grad_one"];
    SINK_GRAD: SinkGradArgs = "attend/softmax_grad" ["sink_grad"];
}

/// The structs of all kernels by their names, for the macro `KERNEL` of `kernels/common/index.cuh`.
#[allow(dead_code, reason = "used by build.rs alone")]
pub fn header() -> String {
    kernels().iter().map(|kernel| format!("using {}_args = {};\n", kernel.entry, kernel.args)).collect()
}

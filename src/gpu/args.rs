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

        /// Every struct as C++: the text of `args.cuh`.
        #[allow(dead_code, reason = "used by build.rs alone")]
        pub fn header() -> String {
            ["#pragma once\n".to_string(), $(declare::<$name>()),*].concat()
        }
    };
}

args! {
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
        /// turns per position of each pair in units of 2^-64
        rates: In,
        /// axis of each pair; null with one axis
        axes: In,
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
        /// keeps the struct's size a multiple of 8
        unused: u32,
    }
}

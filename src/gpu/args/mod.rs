//! Kernel arguments: one struct for each kernel, declared here and nowhere else.
//!
//! build.rs includes this module, prints structs, codes and constants as C++ and hands them to NVRTC as `args.cuh`. A kernel
//! and its caller cannot disagree about a field's order, type or offset, about the meaning of a code, or about a size.

use bytemuck::{Pod, Zeroable};

mod attend;
mod bias;
mod common;
mod embed;
mod rotate;

pub use attend::*;
pub use bias::*;
pub use common::*;
pub use embed::*;
pub use rotate::*;

/// A device address that a kernel reads.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct In(u64);

/// A device address that a kernel writes; it may read it too.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Out(u64);

macro_rules! address {
    ($($Address:ident),*) => {$(
        #[allow(dead_code, reason = "build.rs compiles this file too, and makes no addresses")]
        impl $Address {
            #[inline]
            pub(super) const fn new(address: u64) -> Self {
                Self(address)
            }
            /// The address `bytes` further on.
            #[inline]
            pub(crate) const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
            /// No buffer; the kernel does not follow it.
            pub const NULL: Self = Self(0);
            /// The address, for alignment and overlap.
            #[inline]
            pub const fn address(self) -> u64 {
                self.0
            }
        }
    )*};
}

address!(In, Out);

#[allow(dead_code, reason = "build.rs compiles this file too, and makes no addresses")]
impl Out {
    /// An address that a kernel reads alone.
    #[inline]
    pub const fn read_only(at: In) -> Self {
        Self(at.0)
    }

    /// The same address, to be read.
    #[inline]
    pub const fn as_in(self) -> In {
        In(self.0)
    }
}

/// A type that a field may have.
pub trait Field {
    /// The declaration of a member `name` in C++.
    fn declare(name: &str) -> String;

    /// Shows every device address in it.
    #[inline]
    fn addresses(&self, _: &mut impl FnMut(u64)) {}
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
}

macro_rules! address_fields {
    ($($rust:ty => $cxx:literal),* $(,)?) => {$(
        impl Field for $rust {
            fn declare(name: &str) -> String {
                format!(concat!($cxx, " {}"), name)
            }
            #[inline]
            fn addresses(&self, show: &mut impl FnMut(u64)) {
                show(self.0);
            }
        }
    )*};
}

address_fields! {
    In => "const void*",
    Out => "void*",
}

impl<F: Field, const N: usize> Field for [F; N] {
    fn declare(name: &str) -> String {
        F::declare(&format!("{name}[{N}]"))
    }
    fn addresses(&self, show: &mut impl FnMut(u64)) {
        self.iter().for_each(|field| field.addresses(show));
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
pub trait Args: Pod + Field {
    /// The struct's name in C++.
    const NAME: &'static str;
    /// Its fields in order.
    fn layout() -> Vec<FieldLayout>;
}

/// The C++ twin of `A`, with its size and offsets asserted.
#[allow(dead_code, reason = "used by build.rs alone")]
fn declare<A: Args>() -> String {
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

/// Words behind fields of these sizes and alignments that make the struct's size a multiple of its alignment.
const fn padding(fields: &[(usize, usize)]) -> usize {
    let (mut size, mut most, mut i) = (0, 4, 0);
    while i < fields.len() {
        let (bytes, align) = fields[i];
        size += bytes;
        most = if align > most { align } else { most };
        i += 1;
    }
    (size.next_multiple_of(most) - size) / 4
}

/// The words of padding behind fields of these types.
macro_rules! words {
    ($($type:ty),*) => {
        super::padding(&[$((size_of::<$type>(), align_of::<$type>())),*])
    };
}

/// Declares structs, each with its padding; a module says it once.
macro_rules! args {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
                #[doc(hidden)]
                pub pad: [u32; words!($($type),*)],
            }

            impl super::Args for $name {
                const NAME: &'static str = stringify!($name);
                fn layout() -> Vec<super::FieldLayout> {
                    vec![$(super::FieldLayout {
                        name: stringify!($field),
                        declaration: <$type as super::Field>::declare(stringify!($field)),
                        offset: std::mem::offset_of!($name, $field),
                        size: size_of::<$type>(),
                    }),*]
                }
            }

            impl super::Field for $name {
                fn declare(name: &str) -> String {
                    format!(concat!(stringify!($name), " {}"), name)
                }
                #[inline]
                fn addresses(&self, show: &mut impl FnMut(u64)) {
                    $(super::Field::addresses(&self.$field, show);)*
                }
            }
        )*

        /// The structs of this module as C++.
        #[allow(dead_code, reason = "used by build.rs alone")]
        pub(super) fn cxx_structs() -> String {
            [$(super::declare::<$name>()),*].concat()
        }
    };
}

/// Declares codes, whose names kernels use too; a module says it once.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$code_doc:meta])* $code:ident = $value:literal),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
            pub struct $name(u32);

            #[allow(dead_code, reason = "build.rs compiles this file too")]
            impl $name {
                $($(#[$code_doc])* pub const $code: Self = Self($value);)*
            }

            impl super::Field for $name {
                fn declare(name: &str) -> String {
                    format!(concat!(stringify!($name), " {}"), name)
                }
            }
        )*

        /// The codes of this module as C++.
        #[allow(dead_code, reason = "used by build.rs alone")]
        pub(super) fn cxx_codes() -> String {
            [$(concat!("enum class ", stringify!($name), " : unsigned {", $(stringify!($code = $value,)),*, "};\n")),*].concat()
        }
    };
}

/// Declares sizes that kernels use too; a module says it once.
macro_rules! sizes {
    ($($(#[$doc:meta])* $name:ident: $cxx:ident = $value:expr),* $(,)?) => {
        $($(#[$doc])* #[allow(dead_code, reason = "build.rs compiles this file too")] pub const $name: usize = $value;)*

        /// The sizes of this module as C++.
        #[allow(dead_code, reason = "used by build.rs alone")]
        pub(super) fn cxx_sizes() -> String {
            [$(format!(concat!("constexpr ", stringify!($cxx), " ", stringify!($name), " = {};\n"), $name)),*].concat()
        }
    };
}

use {args, codes, sizes, words};

/// Codes, sizes and structs as C++: the text of `args.cuh`.
#[allow(dead_code, reason = "used by build.rs alone")]
pub fn header() -> String {
    [
        "#pragma once\n".to_string(),
        common::cxx_codes(),
        rotate::cxx_codes(),
        embed::cxx_codes(),
        bias::cxx_codes(),
        attend::cxx_codes(),
        embed::cxx_sizes(),
        bias::cxx_sizes(),
        attend::cxx_sizes(),
        common::cxx_structs(),
        rotate::cxx_structs(),
        embed::cxx_structs(),
        bias::cxx_structs(),
        attend::cxx_structs(),
    ]
    .concat()
}

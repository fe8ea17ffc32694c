//! The macro that states the header: each item once, as Rust for the library and as data for the test that writes
//! `posenc.h`.

/// One item of the header.
pub struct Item {
    /// what it is, a line each
    pub docs: &'static [&'static str],
    /// what C sees
    pub kind: Kind,
}

/// What C sees of an item.
pub enum Kind {
    /// constants: docs, name, value, and the variant of `of` that each stands for
    Codes {
        /// the Rust enum; empty if there is none
        of: &'static str,
        /// docs, name, value, variant
        codes: &'static [(&'static str, &'static str, u32, &'static str)],
    },
    /// a struct
    Struct {
        /// its name
        name: &'static str,
        /// docs, name, type
        fields: &'static [(&'static str, &'static str, &'static str)],
    },
    /// a struct that C sees behind a pointer alone
    Opaque {
        /// its name
        name: &'static str,
    },
    /// a function
    Function {
        /// its name
        name: &'static str,
        /// name, type
        arguments: &'static [(&'static str, &'static str)],
        /// the type of its result
        result: &'static str,
        /// the methods of the crate that it stands for, as `RopePlan::rotate`
        mirrors: &'static [&'static str],
    },
}

/// A Rust enum without data, whose variants have codes in the header.
pub(crate) trait Coded: Copy + PartialEq + 'static {
    /// Every code with its variant.
    const CODES: &'static [(u32, Self)];

    /// The variant of a code; `field` is the argument that holds it.
    fn of(field: &str, code: u32) -> Result<Self, crate::Failure> {
        let found = Self::CODES.iter().find(|(own, _)| *own == code);
        found.map(|(_, variant)| *variant).ok_or_else(|| crate::unknown(field, code))
    }

    /// The code of a variant; one that no variant has if the header has none for it.
    fn code(self) -> u32 {
        Self::CODES.iter().find(|(_, variant)| *variant == self).map_or(u32::MAX, |(code, _)| *code)
    }
}

/// States a part of the header. Afterwards `ITEMS` lists it, in order.
///
/// | item | becomes |
/// |---|---|
/// | `constants u32 { A = 0: "doc", .. }` | constants |
/// | `codes Enum { A = 0 => Variant: "doc", .. }` | constants, and [`Coded`] for the enum |
/// | `kinds Enum { A = 0 => Variant: "doc", .. }` | constants of an enum with data; `tests/complete.rs` asks for every variant of both |
/// | `struct Name { field: type => "doc", .. }` | a `repr(C)` struct |
/// | `versioned struct Name { .. }` | the same behind `version` and `size`, [`Versioned`](crate::Versioned) |
/// | `plan Name(RopePlan, Rope)` | an opaque handle: a plan of one of three element types, or the spec that the CPU computes |
/// | `new f(spec: Spec, extra: Type) -> Name as RopePlan::new where rope = spec.rope()?, \|gpu\| body` | its constructor; `body` makes the plan of any element type from the spec |
/// | `verb f(name: Name, call: Call) as RopePlan::rotate where cpu = rotate, \|plan, scope\| body` | a call of its plan; on the CPU `call.rotate::<T>(spec, scope)` |
/// | `on f(name: Name) as RopePlan::on` | makes the same plan for another stream |
/// | `free f(name: Name)` | frees a handle |
/// | `opaque Name { field: type, .. }` | any other handle |
/// | `fn f(..) -> type { .. }` | any other function |
///
/// Bodies run inside the function's `unsafe`, under the promise at the top of the header.
macro_rules! header {
    ({$($items:expr,)*}) => {
        /// This part of the header, in order.
        pub(crate) const ITEMS: &[$crate::header::Item] = &[$($items),*];
    };

    ({$($items:expr,)*} constants $ty:ident {$($CODE:ident = $code:literal: $doc:literal,)*} $($rest:tt)*) => {
        $(#[doc = $doc] pub const $CODE: $ty = $code;)*
        header! {{$($items,)* $crate::header::Item { docs: &[], kind: $crate::header::Kind::Codes {
            of: "",
            codes: &[$(($doc, stringify!($CODE), $code, "")),*],
        } },} $($rest)*}
    };
    ({$($items:expr,)*} codes $Enum:ident {$($CODE:ident = $code:literal => $Variant:ident: $doc:literal,)*} $($rest:tt)*) => {
        impl $crate::header::Coded for $Enum {
            const CODES: &'static [(u32, Self)] = &[$(($CODE, Self::$Variant)),*];
        }
        header! {{$($items,)*} kinds $Enum {$($CODE = $code => $Variant: $doc,)*} $($rest)*}
    };
    ({$($items:expr,)*} kinds $Enum:ident {$($CODE:ident = $code:literal $(=> $Variant:ident)?: $doc:literal,)*} $($rest:tt)*) => {
        $(#[doc = $doc] pub const $CODE: u32 = $code;)*
        header! {{$($items,)* $crate::header::Item { docs: &[], kind: $crate::header::Kind::Codes {
            of: stringify!($Enum),
            codes: &[$(($doc, stringify!($CODE), $code, concat!($(stringify!($Variant))?))),*],
        } },} $($rest)*}
    };

    ({$($items:expr,)*} $(#[doc = $doc:literal])+ versioned struct $Name:ident {$($fields:tt)*} $($rest:tt)*) => {
        // SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers and structs of them.
        unsafe impl $crate::Versioned for $Name {}
        header! {
            {$($items,)*}
            $(#[doc = $doc])+
            struct $Name {
                version: u32 => "`POSENC_ABI`",
                size: u32 => concat!("`sizeof(", stringify!($Name), ")`"),
                $($fields)*
            }
            $($rest)*
        }
    };
    ({$($items:expr,)*} $(#[doc = $doc:literal])+ struct $Name:ident {$($field:ident: $ty:ty => $field_doc:expr,)*} $($rest:tt)*) => {
        $(#[doc = $doc])+
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $Name {
            $(#[doc = $field_doc] pub $field: $ty,)*
        }
        header! {{$($items,)* $crate::header::Item { docs: &[$($doc),+], kind: $crate::header::Kind::Struct {
            name: stringify!($Name),
            fields: &[$(($field_doc, stringify!($field), stringify!($ty))),*],
        } },} $($rest)*}
    };

    ({$($items:expr,)*} $(#[doc = $doc:literal])+ plan $Name:ident($Plan:ident, $Spec:ty); $($rest:tt)*) => {
        header! {
            {$($items,)*}
            $(#[doc = $doc])+
            opaque $Name { plan: $crate::Plan<$crate::OfElement<$Plan<f32>, $Plan<half::f16>, $Plan<half::bf16>>, $Spec> }
            $($rest)*
        }
    };
    ({$($items:expr,)*} $(#[doc = $doc:literal])+ opaque $Name:ident {$($field:ident: $ty:ty),*} $($rest:tt)*) => {
        $(#[doc = $doc])+
        pub struct $Name {
            $(pub(crate) $field: $ty,)*
        }
        header! {{$($items,)* $crate::header::Item { docs: &[$($doc),+], kind: $crate::header::Kind::Opaque {
            name: stringify!($Name),
        } },} $($rest)*}
    };

    ({$($items:expr,)*} $(#[doc = $doc:literal])+ new $name:ident($spec:ident: $Spec:ident $(, $more:ident: $More:ident)*) -> $Name:ident
        as $($Plan:ident::$method:ident),+ where $made:ident = $value:expr, |$gpu:ident| $body:expr; $($rest:tt)*) => {
        header! {
            {$($items,)*}
            $(#[doc = $doc])+
            fn $name(gpu: *const PosencGpu, spec: *const $Spec, $($more: *const $More,)* element: u32, out: *mut *mut $Name) -> PosencStatus
            as $($Plan::$method),+ {
                $crate::make(gpu, out, |gpu| {
                    let $spec = $crate::versioned("spec", spec)?;
                    $(let $more = $crate::borrow(stringify!($more), $more)?;)*
                    let ($made, element) = ($value, $crate::Element::of("element", element)?);
                    let Some($gpu) = gpu else {
                        $crate::Spec::checked(&$made)?;
                        return Ok($Name { plan: $crate::Plan::Cpu { spec: $made, element } });
                    };
                    Ok($Name { plan: $crate::Plan::Gpu($crate::plan_of!(element, $body?)) })
                })
            }
            $($rest)*
        }
    };
    ({$($items:expr,)*} $(#[doc = $doc:literal])+ verb $name:ident($handle:ident: $Name:ident, $call:ident: $Call:ident)
        as $($Plan:ident::$method:ident),+ where cpu = $cpu:ident, |$plan:ident, $scope:ident| $body:expr; $($rest:tt)*) => {
        header! {
            {$($items,)*}
            $(#[doc = $doc])+
            fn $name($handle: *const $Name, call: *const $Call) -> PosencStatus as $($Plan::$method),+ {
                $crate::verb(
                    stringify!($handle),
                    $handle,
                    call,
                    |handle| &handle.plan,
                    |plan, $call, $scope| $crate::each!(plan, $plan => Ok($body?)),
                    |spec, element, call, scope| $crate::with_element!(element, T => call.$cpu::<T>(spec, scope)),
                )
            }
            $($rest)*
        }
    };
    ({$($items:expr,)*} on $name:ident($handle:ident: $Name:ident) as $Plan:ident::$method:ident; $($rest:tt)*) => {
        header! {
            {$($items,)*}
            #[doc = " Makes the same plan for the stream of `gpu`, a handle of the same context: kernels and tables are shared. That"]
            #[doc = " stream waits for what the plan's own has been given so far."]
            fn $name($handle: *const $Name, gpu: *const PosencGpu, out: *mut *mut $Name) -> PosencStatus as $Plan::$method {
                $crate::make(gpu, out, |gpu| {
                    let plan = match ($crate::borrow(stringify!($handle), $handle).map(|handle| &handle.plan)?, gpu) {
                        ($crate::Plan::Gpu(old), Some(gpu)) => {
                            $crate::Plan::Gpu($crate::map_each!(old, plan => plan.$method(gpu.stream())?))
                        }
                        ($crate::Plan::Cpu { spec, element }, None) => {
                            $crate::Plan::Cpu { spec: spec.clone(), element: *element }
                        }
                        _ => return Err($crate::Failure::argument(concat!("one of gpu and ", stringify!($handle), " is the CPU's").into())),
                    };
                    Ok($Name { plan })
                })
            }
            $($rest)*
        }
    };
    ({$($items:expr,)*} free $name:ident($handle:ident: $Name:ident); $($rest:tt)*) => {
        header! {
            {$($items,)*}
            #[doc = " Frees it; null is allowed."]
            fn $name($handle: *mut $Name) -> PosencStatus { $crate::free($handle) }
            $($rest)*
        }
    };
    ({$($items:expr,)*} $(#[doc = $doc:literal])+ fn $name:ident($($argument:ident: $ty:ty),* $(,)?) -> $result:ty
        $(as $($Plan:ident::$method:ident),+)? {$($body:tt)*} $($rest:tt)*) => {
        $(#[doc = $doc])+
        ///
        /// # Safety
        /// The rules at the top of the header.
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe, reason = "a few bodies need no promise")]
        pub unsafe extern "C" fn $name($($argument: $ty),*) -> $result {
            // SAFETY: what the rules at the top of the header promise is what the functions in the body ask for.
            unsafe {
                $($body)*
            }
        }
        header! {{$($items,)* $crate::header::Item { docs: &[$($doc),+], kind: $crate::header::Kind::Function {
            name: stringify!($name),
            arguments: &[$((stringify!($argument), stringify!($ty))),*],
            result: stringify!($result),
            mirrors: &[$($(concat!(stringify!($Plan), "::", stringify!($method))),+)?],
        } },} $($rest)*}
    };
}

pub(crate) use header;

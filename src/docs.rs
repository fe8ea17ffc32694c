//! Pages: formulas, sources, accuracy, and where implementations disagree; safety, architecture and decisions.
//!
//! The build script makes them of `docs/*.md`, with links that lead to these pages.

/// A module for each page.
macro_rules! pages {
    ($($name:ident)*) => {$(
        #[doc = include_str!(concat!(env!("OUT_DIR"), "/pages/", stringify!($name), ".md"))]
        pub mod $name {}
    )*};
}

pages! { encodings embed rotate prologue bias attend safety architecture decisions }

//! The rotate room's tests, one file for each of its encodings.

mod accuracy;
mod axes;
mod compat;
mod grid;
mod mixed;
mod model;
mod positions;
#[allow(clippy::needless_range_loop, reason = "queries, keys and values are walked side by side")]
mod prologue;
mod rope;
mod scaling;
mod spans;
#[path = "../support/mod.rs"]
mod support;
mod xpos;

//! The rotate room's tests, one file for each of its encodings.

mod scaling;
mod xpos;

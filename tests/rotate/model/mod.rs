//! Models: the published configs, their position-encoding keys alone, and what must come of them; refusals.

mod cases;
mod gguf;
mod hf;
mod mistral;
mod open;
mod positions;
mod prologue;
mod table;
mod towers;

use posenc::{Pairing, Rope, Scaling};

/// A spec by its numbers: rotary, offset, pairing, base.
pub fn spec(rotary: usize, offset: usize, pairing: Pairing, base: f64, scaling: Scaling) -> Rope {
    Rope { offset, pairing, scaling, ..Rope::new(rotary, base) }
}

pub fn half(rotary: usize, base: f64) -> Rope {
    Rope::new(rotary, base)
}

pub fn llama3(factor: f64, high: f64) -> Scaling {
    Scaling::Llama3 { factor, low: 1.0, high, original_context: 8192.0 }
}

#[track_caller]
pub fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6 * want.abs(), "{got} is not {want}");
}

//! Cases of every room, and their measurement on a GPU or their counts on the emulator.
#![allow(missing_docs, reason = "what its programs and its test share, and nobody else")]

pub mod support;

#[path = "bias/distance_grad.rs"]
mod distance_grad;
#[path = "embed/grid.rs"]
mod grid;
#[path = "embed/learned.rs"]
mod learned;
#[path = "embed/learned_grad.rs"]
mod learned_grad;
#[path = "embed/resample.rs"]
mod resample;
#[path = "rotate/rope.rs"]
mod rope;
#[path = "embed/sinusoid.rs"]
mod sinusoid;
#[path = "attend/softmax.rs"]
mod softmax;
#[path = "attend/terms.rs"]
mod terms;
#[path = "bias/terms_grad.rs"]
mod terms_grad;
#[path = "embed/timestep.rs"]
mod timestep;
#[path = "bias/toeplitz.rs"]
mod toeplitz;

use support::Case;

/// The rooms, a bench each.
pub const ROOMS: [&str; 4] = ["embed", "rotate", "bias", "attend"];

/// Every case of a room.
///
/// # Panics
///
/// Of a room that is none of [`ROOMS`].
pub fn cases(room: &str) -> Vec<Case> {
    let operations = match room {
        "embed" => vec![
            sinusoid::cases(),
            timestep::cases(),
            grid::cases(),
            learned::cases(),
            learned_grad::cases(),
            resample::cases(),
        ],
        "rotate" => vec![rope::cases()],
        "bias" => vec![toeplitz::cases(), distance_grad::cases(), terms_grad::cases()],
        "attend" => vec![softmax::cases(), terms::cases()],
        _ => panic!("{room} is none of {ROOMS:?}"),
    };
    operations.into_iter().flatten().collect()
}

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
#[path = "attend/merge.rs"]
mod merge;
#[path = "rotate/prologue.rs"]
mod prologue;
#[path = "embed/resample.rs"]
mod resample;
#[path = "rotate/rope.rs"]
mod rope;
#[path = "rotate/rope_grad.rs"]
mod rope_grad;
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

/// What a headline case should reach on a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// at least this share of a copy of the same bytes (of a memset, where a call reads next to nothing)
    Share(f64),
    /// at most so many times an empty kernel
    EmptyKernels(f64),
    /// no goal: the number decides what is worked on next
    Seen,
}

impl Goal {
    /// Words for a case that reached this share and took as long as so many empty kernels; none where it has no goal.
    pub fn verdict(self, share: f64, kernels: f64) -> String {
        let (wanted, is_reached) = match self {
            Self::Share(least) => (format!("{least}"), share >= least),
            Self::EmptyKernels(most) => (format!("{most} empty kernels"), kernels <= most),
            Self::Seen => return String::new(),
        };
        format!(", wanted {wanted}: {}", if is_reached { "reached" } else { "MISSED" })
    }
}

/// The cases that a run on a GPU is for, with their rooms: measured first. `docs/first-gpu-run.md` says what each one decides.
pub const HEADLINES: [(&str, &str, Goal); 23] = [
    ("rotate", "rope/llama-3-8b/bf16/InPlace/8192", Goal::Share(0.95)),
    ("rotate", "rope/llama-3-8b/bf16/Copy/8192", Goal::Share(0.95)),
    ("rotate", "rope/llama-3-8b/bf16/InPlace/1", Goal::EmptyKernels(1.2)),
    ("rotate", "rope/llama-3-8b/bf16/InPlace/64", Goal::EmptyKernels(1.2)),
    ("rotate", "rope/llama-3-8b/bf16/InPlace/512", Goal::Seen),
    ("rotate", "rope/llama-3-8b/bf16/Overlap/64", Goal::Seen),
    ("rotate", "rope/glm-4-9b/bf16/InPlace/8192", Goal::Seen),
    ("attend", "Softmax/rows/bf16/264x1024", Goal::Share(0.9)),
    ("attend", "Softmax/rows/bf16/33x8192", Goal::Share(0.9)),
    ("attend", "SoftmaxGrad/rows/bf16/33x8192", Goal::Seen),
    ("attend", "Softmax/bloom-7b1/bf16/1x131072", Goal::Seen),
    ("attend", "Softmax/bloom-7b1/bf16/1x8192", Goal::Seen),
    ("attend", "Softmax/bloom-7b1/f32/2048x2048", Goal::Seen),
    ("embed", "sinusoid/transformer-big/bf16/Write/64x512x1024", Goal::Share(0.95)),
    ("embed", "sinusoid/transformer-big/bf16/Add/64x512x1024", Goal::Share(0.95)),
    ("embed", "learned/bert-base/bf16/32x512x768", Goal::Share(0.9)),
    ("embed", "learned_grad/bert-base/bf16/Norm/32x512x768", Goal::Seen),
    ("embed", "grid/sd3/bf16/Write/1x4096x1536", Goal::Seen),
    ("bias", "DistanceGrad/T5/t5-large/bf16/512x512", Goal::Share(0.8)),
    ("bias", "DistanceGrad/T5/t5-large/bf16/2048x2048", Goal::Share(0.8)),
    ("bias", "Add/T5/bf16/16x2048x2048", Goal::Seen),
    ("bias", "Add/Alibi/bf16/32x2048x2048", Goal::Seen),
    ("bias", "TermGrad/swin-tiny/bf16/4096x3x49x49", Goal::Seen),
];

/// What a case should reach; `None` of one that is no headline.
pub fn goal(room: &str, case: &str) -> Option<Goal> {
    HEADLINES.iter().find(|(of, name, _)| *of == room && *name == case).map(|(.., goal)| *goal)
}

/// Every case of a room: its headlines first, what is larger than a gibibyte and takes seconds to fill last.
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
        "rotate" => vec![rope::cases(), rope_grad::cases(), prologue::cases()],
        "bias" => vec![toeplitz::cases(), distance_grad::cases(), terms_grad::cases()],
        "attend" => vec![softmax::cases(), terms::cases(), merge::cases()],
        _ => panic!("{room} is none of {ROOMS:?}"),
    };
    let mut cases: Vec<Case> = operations.into_iter().flatten().collect();
    cases.sort_by_key(|case| (goal(room, &case.name).is_none(), case.bytes() >= 1 << 30));
    cases
}

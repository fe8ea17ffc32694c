//! Runs lowered kernels: a warp at a time, 32 lanes in lockstep under a mask.
//!
//! A warp that diverges becomes several *splits*, each a mask and a program counter. The split with the lowest counter
//! runs first; lowering lays blocks out so that a join comes after everything that leads to it, hence splits meet
//! again at the join (thread frontiers, Diamos et al. 2011). A split that waits for others (`shfl.sync`, `bar.sync`)
//! steps aside, so lanes make progress independently, as they do since Volta.
//!
//! The groups below are layers: each uses its own and those before it (`tests/layers.rs` has the whole order).

// values: what an operation is made of
pub(crate) mod float;
pub(crate) mod mods;
pub(crate) mod operand;
// state: what runs
pub(crate) mod causal;
pub(crate) mod machine;
pub(crate) mod stamp;
pub(crate) mod state;
pub(crate) mod unique;
// lanes: instructions that are functions of scalars
pub(crate) mod convert;
pub(crate) mod lane;
pub(crate) mod table;
// memory
pub(crate) mod atomic;
pub(crate) mod init;
pub(crate) mod memory;
pub(crate) mod print;
pub(crate) mod race;
pub(crate) mod reach;
// control: the program counter, and lanes that wait for one another
pub(crate) mod barrier;
pub(crate) mod control;
pub(crate) mod copy;
pub(crate) mod frame;
pub(crate) mod matrix;
pub(crate) mod warp;
// blocks and grids
pub(crate) mod block;
pub(crate) mod grid;

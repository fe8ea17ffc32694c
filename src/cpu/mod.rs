//! What the rooms' versions for the CPU share: vectors, threads, and laws that are kept from one call to the next.

mod ahead;
pub(crate) mod f16;
mod kept;
mod lines;
mod share;
pub(crate) mod vector;

pub(crate) use ahead::ask_for;
pub(crate) use kept::Kept;
pub(crate) use lines::Lines;
pub(crate) use share::Part;

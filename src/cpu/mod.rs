//! What the rooms' versions for the CPU share: vectors, threads, and laws that are kept from one call to the next.

mod kept;
mod share;
pub(crate) mod vector;

pub(crate) use kept::Kept;
pub(crate) use share::Part;

//! What the rooms' versions for the CPU share: vectors, threads, and laws that are kept from one call to the next.

#[cfg(feature = "cpu")]
mod ahead;
pub(crate) mod f16;
#[cfg(feature = "cpu")]
mod kept;
#[cfg(feature = "cpu")]
mod lines;
#[cfg(feature = "cpu")]
mod share;
#[cfg(feature = "cpu")]
pub(crate) mod vector;

#[cfg(feature = "cpu")]
pub(crate) use ahead::ask_for;
#[cfg(feature = "cpu")]
pub(crate) use kept::Kept;
#[cfg(feature = "cpu")]
pub(crate) use lines::Lines;
#[cfg(feature = "cpu")]
pub(crate) use share::Part;

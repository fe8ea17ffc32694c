//! What the rooms' versions for the CPU share: vectors, threads, and laws that are kept from one call to the next.

#[cfg(feature = "cpu")]
mod ahead;
pub(crate) mod f16;
#[cfg(any(feature = "cpu", feature = "cuda"))]
mod kept;
#[cfg(feature = "cpu")]
mod lines;
#[cfg(feature = "cpu")]
mod share;
#[cfg(feature = "cpu")]
pub(crate) mod vector;
mod width;

#[cfg(feature = "cpu")]
pub(crate) use ahead::ask_for;
#[cfg(any(feature = "cpu", feature = "cuda"))]
pub(crate) use kept::Kept;
#[cfg(feature = "cpu")]
pub(crate) use lines::Lines;
#[cfg(feature = "cpu")]
pub(crate) use share::Part;
pub use width::Width;

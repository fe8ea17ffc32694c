//! What a kernel can do wrong, and the driver's code for it.

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// An address outside every allocation.
    Bounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Two accesses without order, one of them a write.
    Race,
    /// A write to memory that the same launch reads as read-only.
    ReadOnly,
    /// A barrier that not all threads reach, or lanes that wait for each other.
    Barrier,
    /// An exchange with a lane that does not take part.
    Lane,
    /// The stack of a thread is full.
    Stack,
    /// The kernel does not end.
    Budget,
    /// `trap`.
    Trap,
    /// A device-side assertion.
    Assert,
    /// An address of the wrong state space.
    Space,
    /// A call of what is not a function.
    Target,
    /// The emulator's own failure.
    Internal,
}

impl FaultKind {
    /// The driver's error code.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Bounds => 700,
            Self::Misaligned => 716,
            Self::Stack => 714,
            Self::Budget => 702,
            Self::Assert => 710,
            Self::Space => 717,
            Self::Target => 718,
            // there is no code for what a device does not notice
            Self::Uninitialised | Self::Race | Self::ReadOnly | Self::Barrier | Self::Lane | Self::Trap => 719,
            Self::Internal => 999,
        }
    }
}

/// A fault with its place.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// What kind.
    pub(crate) kind: FaultKind,
    /// The full sentence.
    pub(crate) message: String,
}

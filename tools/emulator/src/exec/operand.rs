//! What stands in an operation: kinds of registers, places in memory, and operands too many for one word.

use crate::ptx::ast::Space;

/// No register.
pub(crate) const NONE: u32 = u32::MAX;
/// Generic addresses of shared memory start here.
pub(crate) const SHARED_WINDOW: u64 = 1 << 32;
/// Generic addresses of local memory start here.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 32;
/// Addresses of kernel parameters start here.
pub(crate) const PARAM_WINDOW: u64 = 3 << 32;
/// Addresses of functions, as `mov` gives them: recognisable, and never an address of memory.
pub(crate) const FUNCTION_WINDOW: u64 = 4 << 32;
/// Threads of a warp.
pub(crate) const LANES: usize = 32;
/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// What a register of an instruction's operand must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Kind {
    W16,
    W32,
    W64,
    W128,
    /// 32 bits that hold a single, so that `1.0` as a literal means the single
    F32,
    /// 64 bits that hold a double
    F64,
    Pred,
}

impl Kind {
    /// Bytes per lane in the register file; a predicate is one word for all lanes.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::W16 => 2,
            Self::W32 | Self::F32 => 4,
            Self::W64 | Self::F64 => 8,
            Self::W128 => 16,
            Self::Pred => 0,
        }
    }
}

/// What an instruction is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub(crate) enum Class {
    Integer,
    Float32,
    Float64,
    Half,
    Special,
    Convert,
    Move,
    Memory,
    Control,
    Warp,
    Atomic,
    Matrix,
    /// Made by lowering, not in the text.
    Silent,
}

/// Number of classes, the silent one included.
pub(crate) const CLASSES: usize = Class::Silent as usize + 1;

/// What fills a register when a frame is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fill {
    /// A constant.
    Const(u64),
    /// `%tid`
    Tid(u8),
    /// `%ntid`
    Ntid(u8),
    /// `%ctaid`
    Ctaid(u8),
    /// `%nctaid`
    Nctaid(u8),
    /// `%laneid`
    Lane,
    /// `%warpid`
    Warp,
    /// `%nwarpid`
    Warps,
    /// `%smid`
    Sm,
    /// `%nsmid`
    Sms,
    /// `%gridid`
    Grid,
    /// `%lanemask_eq`, `le`, `lt`, `ge`, `gt`
    LaneMask(u8),
    /// `%dynamic_smem_size`
    DynamicShared,
    /// `%total_smem_size`
    TotalShared,
    /// Offset of the frame's part of local memory.
    LocalBase,
    /// Offset of dynamic shared memory.
    DynamicStart,
}

/// Why memory is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
}

impl Touch {
    /// What a thread does, in a sentence.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Atomic => "updates",
        }
    }
}

/// How an access is ordered, for the race detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// An ordinary access.
    Weak,
    /// `ld.global.nc`: memory that must not change.
    ReadOnly,
    /// `.volatile`, `.relaxed`: never a race with its like.
    Relaxed,
    /// `.acquire`: what comes behind it is ordered.
    Acquire,
    /// `.release`: what came before it is ordered.
    Release,
    /// `.acq_rel`
    Both,
}

impl Order {
    /// Whether accesses of two threads may meet.
    pub(crate) fn strong(self) -> bool {
        !matches!(self, Self::Weak | Self::ReadOnly)
    }

    /// Whether it orders what comes behind it.
    pub(crate) fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::Both)
    }

    /// Whether it orders what came before it.
    pub(crate) fn releases(self) -> bool {
        matches!(self, Self::Release | Self::Both)
    }
}

/// Everything about a load or store.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of an element.
    pub(crate) size: u8,
    /// Elements.
    pub(crate) count: u8,
    pub(crate) signed: bool,
    /// The address register has 64 bits.
    pub(crate) wide: bool,
    pub(crate) order: Order,
    /// It is strong for the threads of its own block only.
    pub(crate) narrow: bool,
    /// Registers of the elements; [`NONE`] drops one.
    pub(crate) slots: [u32; 8],
    pub(crate) kind: Kind,
}

impl Access {
    /// Bytes of all elements.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.size) * u64::from(self.count)
    }
}

/// A call.
pub(crate) struct Call {
    /// The function's number, or `None` where a register says it.
    pub(crate) target: Option<u32>,
    /// Register with the address, for an indirect call.
    pub(crate) register: u32,
    /// Local memory of the arguments in the caller.
    pub(crate) arguments: Vec<(u32, u32)>,
    /// Local memory of the results in the caller.
    pub(crate) results: Vec<(u32, u32)>,
    /// Register parameters: the caller's registers are copied bytewise through local memory by lowering; this is the
    /// built-in, where the callee is one.
    pub(crate) builtin: Option<Builtin>,
}

/// Functions that the driver brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// `vprintf(format, arguments)`
    Print,
    /// `__assertfail(message, file, line, function, char size)`
    Assert,
}

/// What a barrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A barrier instruction.
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// All threads of a warp must run it together.
    pub(crate) aligned: bool,
    /// Register of the barrier's number.
    pub(crate) id: u32,
    /// Register of the thread count, or [`NONE`].
    pub(crate) count: u32,
    /// Predicate of a reduction.
    pub(crate) pred: u32,
    pub(crate) pred_flip: u32,
    /// Result of a reduction.
    pub(crate) dst: u32,
}

//! Where the tokens of a call stand.

use posenc::Positions;

use crate::{Failure, Foreign, POSENC_I32, POSENC_I64, POSENC_U32, size, unknown};

/// Position kinds: an id for each token, `[axes, batch, tokens]`.
pub const POSENC_IDS: u32 = 0;
/// One start for each sequence, `[axes, batch]`.
pub const POSENC_STARTS: u32 = 1;
/// Sequences packed into a batch of one; `indptr` holds `sequences + 1` first tokens, `ids` (or 0) their first positions.
pub const POSENC_PACKED: u32 = 2;
/// Every sequence counts from 0; no ids are read.
pub const POSENC_COUNTED: u32 = 3;

/// Where the tokens of a call stand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencPositions {
    /// `POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED`
    pub kind: u32,
    /// `POSENC_I32`, `POSENC_I64` or `POSENC_U32`
    pub element: u32,
    /// device address of the ids, or of the starts
    pub ids: u64,
    /// elements there
    pub ids_len: u64,
    /// elements from one axis to the next; 0: they follow one another
    pub axis_stride: u64,
    /// not 0: one row of ids for every sequence
    pub shared: u32,
    /// 0
    pub reserved: u32,
    /// device address of `sequences + 1` 32-bit integers
    pub indptr: u64,
    /// sequences of a packed batch
    pub sequences: u64,
}

/// Buffers of positions live for one call, so what they are used for comes as a function.
pub(crate) fn with_positions(
    gpu: &posenc::Gpu,
    call: &PosencPositions,
    then: impl FnOnce(Positions<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    fn typed<I: posenc::Id>(
        gpu: &posenc::Gpu,
        call: &PosencPositions,
        then: impl FnOnce(Positions<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let ids = || Foreign::<I>::new(gpu, "ids", call.ids, call.ids_len);
        let finish = |mut positions: Positions<'_>| {
            if call.axis_stride != 0 {
                positions = positions.axis_stride(size("axis_stride", call.axis_stride)?);
            }
            if call.shared != 0 {
                positions = positions.shared();
            }
            then(positions)
        };
        match call.kind {
            POSENC_IDS => finish(Positions::ids(&ids()?)),
            POSENC_STARTS => finish(Positions::starts(&ids()?)),
            POSENC_PACKED => {
                let sequences = size("sequences", call.sequences)?;
                let indptr = Foreign::<i32>::new(gpu, "indptr", call.indptr, call.sequences.saturating_add(1))?;
                let packed = Positions::packed(&indptr, sequences);
                if call.ids == 0 { finish(packed) } else { finish(packed.from(&ids()?)) }
            }
            POSENC_COUNTED => finish(Positions::counted()),
            other => Err(unknown("the kind of positions", other)),
        }
    }
    match call.element {
        POSENC_I32 => typed::<i32>(gpu, call, then),
        POSENC_I64 => typed::<i64>(gpu, call, then),
        POSENC_U32 => typed::<u32>(gpu, call, then),
        other => Err(unknown("the type of positions", other)),
    }
}

//! Memory of the caller on the device, and what lies there: buffers, ids, positions.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys};
use posenc::gpu::Read;
use posenc::{Gpu, Ids, Positions};

use crate::{Failure, size, switch, unknown};

/// Integer types of positions and ids: 32 bits.
pub const POSENC_I32: u32 = 0;
/// 64 bits
pub const POSENC_I64: u32 = 1;
/// 32 bits without sign
pub const POSENC_U32: u32 = 2;

/// Position kinds: an id for each token, `[axes, batch, tokens]`.
pub const POSENC_IDS: u32 = 0;
/// One start for each sequence, `[axes, batch]`.
pub const POSENC_STARTS: u32 = 1;
/// Sequences packed into a batch of one; `indptr` holds `sequences + 1` first tokens, `ids` (or none) their first positions.
pub const POSENC_PACKED: u32 = 2;
/// Every sequence counts from 0; no ids are read.
pub const POSENC_COUNTED: u32 = 3;

/// Memory on the device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencBuffer {
    /// address; 0: there is none, or it is empty
    pub data: u64,
    /// elements there
    pub len: u64,
}

/// Integers on the device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencIds {
    /// address; 0: there are none
    pub data: u64,
    /// elements there
    pub len: u64,
    /// `POSENC_I32`, `POSENC_I64` or `POSENC_U32`
    pub element: u32,
    /// 0
    pub reserved: u32,
}

/// Where the tokens of a call stand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencPositions {
    /// `POSENC_IDS`, `POSENC_STARTS`, `POSENC_PACKED` or `POSENC_COUNTED`
    pub kind: u32,
    /// 1: one row of ids for every sequence
    pub shared: u32,
    /// the ids, or the starts
    pub ids: PosencIds,
    /// elements from one axis to the next; 0: they follow one another
    pub axis_stride: u64,
    /// `sequences + 1` 32-bit integers, of a packed batch
    pub indptr: PosencBuffer,
    /// sequences of a packed batch
    pub sequences: u64,
}

/// Memory of the caller on the device: an address and how many elements it holds.
///
/// The caller's stream orders its use, so that there is no event to wait for or to record.
pub(crate) struct Foreign<T> {
    address: sys::CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    element: std::marker::PhantomData<T>,
}

impl<T> Foreign<T> {
    fn new(gpu: &Gpu, name: &str, address: u64, len: u64) -> Result<Self, Failure> {
        // An empty tensor of other libraries has no address.
        if address == 0 && len > 0 {
            return Err(Failure::argument(format!("{name} is null")));
        }
        if !address.is_multiple_of(align_of::<T>() as u64) {
            let align = align_of::<T>();
            return Err(Failure::argument(format!(
                "{name} lies at {address:#x}, its elements need multiples of {align}"
            )));
        }
        let element = std::marker::PhantomData;
        Ok(Self { address, len: size(name, len)?, stream: gpu.stream().clone(), element })
    }
}

impl<T> DeviceSlice<T> for Foreign<T> {
    fn len(&self) -> usize {
        self.len
    }
    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for Foreign<T> {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}

impl<T> DevicePtrMut<T> for Foreign<T> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        (self.address, SyncOnDrop::Sync(None))
    }
}

impl PosencBuffer {
    /// The memory, which must be there.
    pub(crate) fn get<T>(&self, gpu: &Gpu, name: &str) -> Result<Foreign<T>, Failure> {
        Foreign::new(gpu, name, self.data, self.len)
    }

    /// The memory, if there is any.
    pub(crate) fn optional<T>(&self, gpu: &Gpu, name: &str) -> Result<Option<Foreign<T>>, Failure> {
        if self.data == 0 { Ok(None) } else { self.get(gpu, name).map(Some) }
    }
}

/// As an argument of the crate.
pub(crate) fn read<T>(buffer: &Option<Foreign<T>>) -> Option<Read<'_, T>> {
    buffer.as_ref().map(|buffer| buffer as Read<'_, T>)
}

/// As an argument of the crate that is written.
pub(crate) fn write<T>(buffer: &mut Option<Foreign<T>>) -> Option<posenc::gpu::Write<'_, T>> {
    buffer.as_mut().map(|buffer| buffer as posenc::gpu::Write<'_, T>)
}

/// Integers of one of their types.
pub(crate) enum ForeignIds {
    I32(Foreign<i32>),
    I64(Foreign<i64>),
    U32(Foreign<u32>),
}

impl PosencIds {
    pub(crate) fn get(&self, gpu: &Gpu, name: &str) -> Result<ForeignIds, Failure> {
        Ok(match self.element {
            POSENC_I32 => ForeignIds::I32(Foreign::new(gpu, name, self.data, self.len)?),
            POSENC_I64 => ForeignIds::I64(Foreign::new(gpu, name, self.data, self.len)?),
            POSENC_U32 => ForeignIds::U32(Foreign::new(gpu, name, self.data, self.len)?),
            other => return Err(unknown("the type of integers", other)),
        })
    }

    pub(crate) fn optional(&self, gpu: &Gpu, name: &str) -> Result<Option<ForeignIds>, Failure> {
        if self.data == 0 { Ok(None) } else { self.get(gpu, name).map(Some) }
    }
}

impl ForeignIds {
    pub(crate) fn ids(&self) -> Ids<'_> {
        match self {
            Self::I32(ids) => Ids::I32(ids),
            Self::I64(ids) => Ids::I64(ids),
            Self::U32(ids) => Ids::U32(ids),
        }
    }
}

/// Buffers of positions, for as long as a call.
pub(crate) struct ForeignPositions {
    call: PosencPositions,
    ids: Option<ForeignIds>,
    indptr: Option<Foreign<i32>>,
}

impl PosencPositions {
    pub(crate) fn get(&self, gpu: &Gpu) -> Result<ForeignPositions, Failure> {
        let ids = match self.kind {
            POSENC_IDS | POSENC_STARTS => Some(self.ids.get(gpu, "ids")?),
            POSENC_PACKED => self.ids.optional(gpu, "ids")?,
            POSENC_COUNTED => None,
            other => return Err(unknown("the kind of positions", other)),
        };
        let indptr = if self.kind == POSENC_PACKED { Some(self.indptr.get(gpu, "indptr")?) } else { None };
        Ok(ForeignPositions { call: *self, ids, indptr })
    }
}

impl ForeignPositions {
    pub(crate) fn positions(&self) -> Result<Positions<'_>, Failure> {
        let mut positions = match (&self.indptr, &self.ids) {
            (Some(indptr), ids) => {
                let packed = Positions::packed(indptr, size("sequences", self.call.sequences)?);
                match ids {
                    None => packed,
                    Some(ForeignIds::I32(ids)) => packed.from(ids),
                    Some(ForeignIds::I64(ids)) => packed.from(ids),
                    Some(ForeignIds::U32(ids)) => packed.from(ids),
                }
            }
            (None, None) => Positions::counted(),
            (None, Some(ids)) => {
                let starts = self.call.kind == POSENC_STARTS;
                match ids {
                    ForeignIds::I32(ids) if starts => Positions::starts(ids),
                    ForeignIds::I64(ids) if starts => Positions::starts(ids),
                    ForeignIds::U32(ids) if starts => Positions::starts(ids),
                    ForeignIds::I32(ids) => Positions::ids(ids),
                    ForeignIds::I64(ids) => Positions::ids(ids),
                    ForeignIds::U32(ids) => Positions::ids(ids),
                }
            }
        };
        if self.call.axis_stride != 0 {
            positions = positions.axis_stride(size("axis_stride", self.call.axis_stride)?);
        }
        if switch("shared", self.call.shared)? {
            positions = positions.shared();
        }
        Ok(positions)
    }
}

//! Graphs that are being captured: what their calls read lives as long as they do.

use std::any::Any;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaStream, sys};

use super::driver;
use crate::{Error, Result};

/// What a graph keeps for as long as it may run.
pub(super) type Kept = Arc<dyn Any + Send + Sync>;

/// Something that a graph can keep.
pub(super) trait Keep {
    fn kept(&self) -> Kept;
}

/// `cuStreamGetCaptureInfo_v2`: cudarc's bindings of CUDA 13 have its third version alone, which a driver for CUDA 12 lacks.
type CaptureInfo = unsafe extern "C" fn(
    sys::CUstream,
    *mut sys::CUstreamCaptureStatus,
    *mut u64,
    *mut sys::CUgraph,
    *mut *const sys::CUgraphNode,
    *mut usize,
) -> sys::CUresult;

/// The graph into which a stream is being captured, if it is.
#[inline]
pub(super) fn captured_into(stream: &CudaStream) -> Result<Option<sys::CUgraph>> {
    static FUNCTION: OnceLock<Option<CaptureInfo>> = OnceLock::new();
    if stream.cu_stream().is_null() {
        // The legacy default stream cannot be captured.
        return Ok(None);
    }
    // SAFETY: the driver's function by that name has this signature since CUDA 11.3.
    let function = FUNCTION.get_or_init(|| unsafe { driver::function(b"cuStreamGetCaptureInfo_v2\0") });
    let Some(function) = function else {
        return Err(Error::Driver {
            call: "cuStreamGetCaptureInfo_v2",
            reason: "the driver does not have it, CUDA's since 11.3 do".into(),
        });
    };
    stream.context().bind_to_thread().map_err(driver::error("cuCtxSetCurrent"))?;
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut id, mut graph) = (0, std::ptr::null_mut());
    let none = std::ptr::null_mut();
    // SAFETY: the stream is alive, the pointers are to live locals, and the last two may be null.
    unsafe { function(stream.cu_stream(), &mut status, &mut id, &mut graph, none, std::ptr::null_mut()) }
        .result()
        .map_err(driver::error("cuStreamGetCaptureInfo_v2"))?;
    Ok((status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE).then_some(graph))
}

/// Gives a graph under capture what its launches need. It, and what is instantiated from it, drops that when the last of them
/// is destroyed.
#[cold]
pub(super) fn keep(graph: sys::CUgraph, all: Vec<Kept>) -> Result<()> {
    let all = Box::into_raw(Box::new(all));
    let mut object = std::ptr::null_mut();
    let flags = sys::CUuserObject_flags::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as u32;
    // SAFETY: `release` takes the box that the pointer came from, and the driver calls it once.
    let created = unsafe { sys::cuUserObjectCreate(&mut object, all.cast(), Some(release), 1, flags) }.result();
    if let Err(error) = created {
        // SAFETY: no one else has the pointer: the object was not made.
        drop(unsafe { Box::from_raw(all) });
        return Err(driver::error("cuUserObjectCreate")(error));
    }
    let flags = sys::CUuserObjectRetain_flags::CU_GRAPH_USER_OBJECT_MOVE as u32;
    // SAFETY: the graph is being captured; the one reference to the object becomes the graph's.
    unsafe { sys::cuGraphRetainUserObject(graph, object, 1, flags) }.result().map_err(|error| {
        // SAFETY: the reference is still here, and is given up once.
        let _ = unsafe { sys::cuUserObjectRelease(object, 1) };
        driver::error("cuGraphRetainUserObject")(error)
    })
}

/// Drops what a graph kept, in a thread of its own: the driver calls this where it may not be called itself, and freeing
/// memory calls it.
unsafe extern "C" fn release(all: *mut c_void) {
    // SAFETY: `keep` made the pointer from a box, and the driver gives it back once.
    let all = ManuallyDrop::new(unsafe { Box::from_raw(all.cast::<Vec<Kept>>()) });
    // Without a thread the memory stays allocated until the context ends.
    let _ = std::thread::Builder::new().name("posenc graph".into()).spawn(move || drop(ManuallyDrop::into_inner(all)));
}

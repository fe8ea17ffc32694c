//! What bindings other than cudarc ask of the driver: functions by version, links, kernels of libraries, objects that
//! graphs keep. tests/clients has programs that use them.

// pointers are to places of these tests, handles are the driver's
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use support::Device;

fn function(name: &str, version: i32, flags: u64) -> (CUresult, *mut c_void, u32) {
    let name = CString::new(name).unwrap();
    let (mut found, mut status) = (null_mut(), sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
    let code = unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut found, version, flags, &mut status) };
    (code, found, status as u32)
}

#[test]
fn a_function_is_the_variant_of_the_version_asked_for() {
    let d = Device::new();
    for (name, versions) in [
        ("cuCtxGetDevice", [12090, 13000]),
        ("cuEventElapsedTime", [12000, 12080]),
        ("cuGraphExecUpdate", [11080, 12000]),
        ("cuStreamGetCaptureInfo", [11030, 12030]),
    ] {
        let found = versions.map(|version| function(name, version, 0));
        assert!(found.iter().all(|(code, _, status)| (*code, *status) == (CUresult::CUDA_SUCCESS, 0)), "{name}");
        assert_ne!(found[0].1, found[1].1, "{name}");
    }
    // each with its own arguments
    let mut device = -1;
    let first: unsafe extern "C" fn(*mut i32) -> u32 =
        unsafe { std::mem::transmute(function("cuCtxGetDevice", 12090, 0).1) };
    assert_eq!((unsafe { first(&mut device) }, device), (0, 0));
    let second: unsafe extern "C" fn(*mut i32, sys::CUcontext) -> u32 =
        unsafe { std::mem::transmute(function("cuCtxGetDevice", 13000, 0).1) };
    device = -1;
    assert_eq!((unsafe { second(&mut device, d.context.cu_ctx()) }, device), (0, 0));
    // what never changed since, whatever the version
    assert_eq!(function("cuMemAlloc", 11000, 0).1, function("cuMemAlloc", 13000, 0).1);
    // too new a function, none of that name, and streams of threads
    assert_eq!(function("cuGraphAddNode", 12010, 0), (CUresult::CUDA_ERROR_NOT_FOUND, null_mut(), 2));
    assert_eq!(function("cuNothing", 13000, 0), (CUresult::CUDA_ERROR_NOT_FOUND, null_mut(), 1));
    assert_eq!(function("cuLaunchKernel", 13000, 2), (CUresult::CUDA_ERROR_NOT_FOUND, null_mut(), 1));
    assert!(d.emulator.last_error().unwrap().contains("per-thread default streams"));
}

#[test]
fn the_runtime_library_is_told_that_it_does_not_run() {
    let d = Device::new();
    d.emulator.set_quiet(true);
    let mut table = null();
    let mut ask = |id: u128| {
        let id = sys::CUuuid { bytes: id.to_be_bytes().map(|byte| byte as _) };
        unsafe { sys::cuGetExportTable(&mut table, &id) }
    };
    assert_eq!(ask(0x6bd5fb6c_5bf4_e74a_8987_d93912fd9df9), CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert!(d.emulator.last_error().unwrap().contains("the CUDA runtime library (cudart)"));
    assert_eq!(ask(5), CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert!(d.emulator.last_error().unwrap().contains("table 00000000000000000000000000000005"));
}

const APPLY: &str = "
.version 7.8
.target sm_75
.address_size 64
.extern .func (.param .b32 y) twice(.param .b32 x);
.visible .entry apply(.param .u64 a) {
    .reg .b32 v;
    .reg .b64 p;
    ld.param.u64 p, [a];
    ld.global.u32 v, [p];
    {
        .param .b32 x;
        .param .b32 y;
        st.param.b32 [x], v;
        call.uni (y), twice, (x);
        ld.param.b32 v, [y];
    }
    st.global.u32 [p], v;
    ret;
}
";
const TWICE: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .func (.param .b32 y) twice(.param .b32 x) {
    .reg .b32 v;
    ld.param.b32 v, [x];
    add.u32 v, v, v;
    st.param.b32 [y], v;
    ret;
}
.global .align 4 .u32 counter = 7;
";

struct Link(sys::CUlinkState);

impl Link {
    fn new() -> Self {
        let mut state = null_mut();
        unsafe { sys::cuLinkCreate_v2(0, null_mut(), null_mut(), &mut state) }.result().unwrap();
        Self(state)
    }

    fn add(&self, kind: sys::CUjitInputType, text: &str) -> CUresult {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        let name = c"part";
        unsafe {
            let data = bytes.as_mut_ptr().cast();
            sys::cuLinkAddData_v2(self.0, kind, data, bytes.len(), name.as_ptr(), 0, null_mut(), null_mut())
        }
    }

    fn complete(&self) -> Result<(*mut c_void, usize), CUresult> {
        let (mut image, mut size) = (null_mut(), 0);
        match unsafe { sys::cuLinkComplete(self.0, &mut image, &mut size) } {
            CUresult::CUDA_SUCCESS => Ok((image, size)),
            code => Err(code),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        unsafe { sys::cuLinkDestroy(self.0) };
    }
}

/// Both texts, linked and loaded.
fn library() -> sys::CUlibrary {
    let link = Link::new();
    for text in [APPLY, TWICE] {
        assert_eq!(link.add(sys::CUjitInputType::CU_JIT_INPUT_PTX, text), CUresult::CUDA_SUCCESS);
    }
    let (image, size) = link.complete().unwrap();
    assert_eq!(unsafe { CStr::from_ptr(image.cast()) }.to_bytes_with_nul().len(), size);
    let mut library = null_mut();
    unsafe { sys::cuLibraryLoadData(&mut library, image, null_mut(), null_mut(), 0, null_mut(), null_mut(), 0) }
        .result()
        .unwrap();
    library
}

#[test]
fn texts_are_linked_and_nothing_else_is() {
    let d = Device::new();
    let library = library();
    let mut kernel = null_mut();
    unsafe { sys::cuLibraryGetKernel(&mut kernel, library, c"apply".as_ptr()) }.result().unwrap();
    let mut value = d.stream.clone_htod(&[21u32]).unwrap();
    {
        use cudarc::driver::DevicePtrMut;
        let (mut at, _guard) = value.device_ptr_mut(&d.stream);
        let mut params = [(&raw mut at).cast::<c_void>()];
        let none = null_mut();
        unsafe { sys::cuLaunchKernel(kernel.cast(), 1, 1, 1, 1, 1, 1, 0, none, params.as_mut_ptr(), null_mut()) }
            .result()
            .unwrap();
    }
    assert_eq!(d.stream.clone_dtoh(&value).unwrap(), [42]);

    let link = Link::new();
    d.emulator.set_quiet(true);
    for (kind, what) in
        [(sys::CUjitInputType::CU_JIT_INPUT_CUBIN, "a cubin"), (sys::CUjitInputType::CU_JIT_INPUT_LIBRARY, "a library")]
    {
        assert_eq!(link.add(kind, TWICE), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert_eq!(
            d.emulator.last_error().unwrap(),
            format!("the linker is given `part`, {what}: only PTX can be linked")
        );
    }
    assert_eq!(link.complete(), Err(CUresult::CUDA_ERROR_INVALID_PTX), "nothing was given");
    assert_eq!(link.add(sys::CUjitInputType::CU_JIT_INPUT_PTX, TWICE), CUresult::CUDA_SUCCESS);
    assert_eq!(link.add(sys::CUjitInputType::CU_JIT_INPUT_PTX, "no PTX"), CUresult::CUDA_SUCCESS);
    assert_eq!(link.complete(), Err(CUresult::CUDA_ERROR_INVALID_PTX));
}

#[test]
fn a_library_names_its_kernels_and_variables() {
    let _d = Device::new();
    let library = library();
    let mut count = 0;
    unsafe { sys::cuLibraryGetKernelCount(&mut count, library) }.result().unwrap();
    assert_eq!(count, 1);
    let mut kernel = null_mut();
    unsafe { sys::cuLibraryEnumerateKernels(&mut kernel, 1, library) }.result().unwrap();
    let mut name = null();
    unsafe { sys::cuKernelGetName(&mut name, kernel) }.result().unwrap();
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"apply");
    let (mut offset, mut size) = (9, 9);
    unsafe { sys::cuKernelGetParamInfo(kernel, 0, &mut offset, &mut size) }.result().unwrap();
    assert_eq!((offset, size), (0, 8));
    assert_eq!(
        unsafe { sys::cuKernelGetParamInfo(kernel, 1, &mut offset, &mut size) },
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    let dynamic = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    unsafe { sys::cuKernelSetAttribute(dynamic, 100_000, kernel, 0) }.result().unwrap();
    let mut value = 0;
    unsafe { sys::cuKernelGetAttribute(&mut value, dynamic, kernel, 0) }.result().unwrap();
    assert_eq!(value, 100_000);
    assert_eq!(
        unsafe { sys::cuKernelGetAttribute(&mut value, dynamic, kernel, 99) },
        CUresult::CUDA_ERROR_INVALID_DEVICE
    );
    let (mut at, mut bytes) = (0, 0);
    unsafe { sys::cuLibraryGetGlobal(&mut at, &mut bytes, library, c"counter".as_ptr()) }.result().unwrap();
    let mut counter = 0u32;
    unsafe { sys::cuMemcpyDtoH_v2((&raw mut counter).cast(), at, bytes) }.result().unwrap();
    assert_eq!((bytes, counter), (4, 7));
}

#[test]
fn a_capture_says_which_graph_grows() {
    let d = Device::new();
    let stream = d.context.new_stream().unwrap();
    let info = || {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut graph) = (0, null_mut());
        let (on, none, no_edges) = (stream.cu_stream(), null_mut(), null_mut());
        unsafe { sys::cuStreamGetCaptureInfo_v3(on, &mut status, &mut id, &mut graph, none, no_edges, null_mut()) }
            .result()
            .unwrap();
        (status, id, graph)
    };
    assert_eq!(info().0, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    let mut ids = Vec::new();
    for _ in 0..2 {
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let (status, id, graph) = info();
        assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        let mut ended = null_mut();
        unsafe { sys::cuStreamEndCapture(stream.cu_stream(), &mut ended) }.result().unwrap();
        assert_eq!(ended, graph);
        unsafe { sys::cuGraphDestroy(graph) }.result().unwrap();
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}

static DESTROYED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn destroyed(what: *mut c_void) {
    DESTROYED.fetch_add(what as usize as u32, Ordering::Relaxed);
}

#[test]
fn an_object_lives_until_the_last_graph_that_keeps_it_is_gone() {
    let _d = Device::new();
    let (mut object, mut graph, mut exec) = (null_mut(), null_mut(), null_mut());
    let create = |object: *mut sys::CUuserObject, count, flags| unsafe {
        sys::cuUserObjectCreate(object, 5 as *mut c_void, Some(destroyed), count, flags)
    };
    assert_eq!(create(&mut object, 1, 0), CUresult::CUDA_ERROR_INVALID_VALUE, "a destructor is not waited for");
    assert_eq!(create(&mut object, 0, 1), CUresult::CUDA_ERROR_INVALID_VALUE);
    create(&mut object, 2, 1).result().unwrap();
    unsafe {
        sys::cuGraphCreate(&mut graph, 0).result().unwrap();
        // one reference moves, one more is made
        sys::cuGraphRetainUserObject(graph, object, 1, 1).result().unwrap();
        sys::cuGraphRetainUserObject(graph, object, 1, 0).result().unwrap();
        assert_eq!(sys::cuUserObjectRelease(object, 2), CUresult::CUDA_ERROR_INVALID_VALUE, "one is left");
        sys::cuUserObjectRelease(object, 1).result().unwrap();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result().unwrap();
        sys::cuGraphReleaseUserObject(graph, object, 2).result().unwrap();
        assert_eq!(sys::cuGraphReleaseUserObject(graph, object, 1), CUresult::CUDA_ERROR_INVALID_VALUE);
        sys::cuGraphDestroy(graph).result().unwrap();
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 0, "the instance keeps it");
        sys::cuGraphExecDestroy(exec).result().unwrap();
        assert_eq!(DESTROYED.load(Ordering::Relaxed), 5);
        assert_eq!(sys::cuUserObjectRelease(object, 1), CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
}

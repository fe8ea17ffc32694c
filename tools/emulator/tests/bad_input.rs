//! What an application does wrong: always the code that a real driver gives, with the reason, and never a crash.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use support::{Device, Text};

static PTX: Text = Text("first.sm_80");

fn load(image: &[u8]) -> (CUresult, String) {
    let mut module = null_mut();
    let mut log = [0u8; 512];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let code = unsafe {
        sys::cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    let length = values[1] as usize;
    (code, String::from_utf8_lossy(&log[..length]).into_owned())
}

#[test]
fn images_that_are_not_ptx_of_this_device() {
    let _d = Device::new();
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0x33];
    elf.resize(64, 0);
    let (code, log) = load(&elf);
    assert_eq!(code, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert!(log.contains("cubin"), "{log}");
    assert_eq!(load(&[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]).0, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(load(&[0xff, 0xfe, 0xfd, 0]).0, CUresult::CUDA_ERROR_INVALID_IMAGE);
    for text in ["\0", "x\0", "hello\0", ".version 8.0\0", ".version 8.0\n.target sm_80\n.visible .entry k( {\0"] {
        let (code, log) = load(text.as_bytes());
        assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX, "{text:?}");
        assert!(log.starts_with("PTX line "), "{log}");
    }
    let (code, log) = load(b".version 9.9\n.target sm_80\n\0");
    assert_eq!(code, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert!(log.contains("the text is PTX ISA 9.9"), "{log}");
    let (code, log) = load(b".version 8.8\n.target sm_120\n.address_size 64\n\0");
    assert_eq!(code, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(log, "the PTX is for sm_120, this device is sm_90 (EMULATOR_CC)");
    // that of this device and of an older one are fine, an unknown instruction is not, wherever it stands
    assert_eq!(load(b".version 8.8\n.target sm_75\n.address_size 64\n\0").0, CUresult::CUDA_SUCCESS);
    let text = PTX.replacen("\tret;", "\ttcgen05.fence;\n\tret;", 1) + "\0";
    let (code, log) = load(text.as_bytes());
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("`tcgen05.fence`: this instruction is not known"), "{log}");
    let mut module = null_mut();
    assert_eq!(unsafe { sys::cuModuleLoadData(&mut module, null()) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(unsafe { sys::cuModuleLoadData(null_mut(), PTX.as_ptr().cast()) }, CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn names_that_do_not_exist() {
    let d = Device::new();
    let module = d.module(&PTX);
    let error = module.load_function("missing").unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_NOT_FOUND);
    let said = d.emulator.last_error().unwrap();
    assert!(said.contains("no kernel `missing`; it has: scale, block_sum, steps, count"), "{said}");
    // a device function is not a kernel
    assert!(module.load_function("collatz").is_err());
    assert_eq!(module.get_global("missing", &d.stream).err().map(|e| e.0), Some(CUresult::CUDA_ERROR_NOT_FOUND));
}

#[test]
fn handles_that_were_never_given() {
    let d = Device::new();
    unsafe {
        for bogus in [1usize << 20, 0xdead_beef, usize::MAX] {
            assert_eq!(sys::cuModuleUnload(bogus as _), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuStreamDestroy_v2(bogus as _), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuStreamSynchronize(bogus as _), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuEventRecord(bogus as _, null_mut()), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuEventDestroy_v2(bogus as _), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuGraphLaunch(bogus as _, null_mut()), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuCtxSetCurrent(bogus as _), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            let launched = sys::cuLaunchKernel(bogus as _, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut());
            assert_eq!(launched, CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        assert_eq!(sys::cuMemFree_v2(0x1234), CUresult::CUDA_ERROR_INVALID_VALUE);
        let mut at = 0;
        assert_eq!(sys::cuMemAlloc_v2(&mut at, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(null_mut(), 16), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemAlloc_v2(&mut at, usize::MAX / 2), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(sys::cuMemAlloc_v2(&mut at, 100), CUresult::CUDA_SUCCESS);
        // the middle of an allocation, and twice
        assert_eq!(sys::cuMemFree_v2(at + 4), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemsetD8_v2(at + 90, 0, 11), CUresult::CUDA_ERROR_INVALID_VALUE);
        let said = d.emulator.last_error().unwrap();
        assert!(said.contains("1 bytes past the end of an allocation of 100 bytes"), "{said}");
        assert_eq!(sys::cuMemcpyHtoD_v2(at, [0u8; 200].as_ptr().cast(), 200), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemcpyHtoD_v2(0, [0u8; 4].as_ptr().cast(), 4), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemFree_v2(at), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuMemFree_v2(at), CUresult::CUDA_ERROR_INVALID_VALUE);
        let mut device = 0;
        assert_eq!(sys::cuDeviceGet(&mut device, 7), CUresult::CUDA_ERROR_INVALID_DEVICE);
        assert_eq!(sys::cuDeviceGet(&mut device, -1), CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
}

#[test]
fn launches_that_no_device_takes() {
    let d = Device::new();
    let f = d.kernel(&PTX, "steps");
    let f = f.cu_function();
    let x = d.stream.alloc_zeros::<u32>(32).unwrap();
    let address = {
        use cudarc::driver::DevicePtr;
        x.device_ptr(&d.stream).0
    };
    let n = 32u32;
    let mut params = [std::ptr::from_ref(&address) as *mut c_void, std::ptr::from_ref(&n) as *mut c_void];
    let launch = |grid: [u32; 3], block: [u32; 3], shared: u32, params: *mut *mut c_void| unsafe {
        let ([x, y, z], [a, b, c]) = (grid, block);
        sys::cuLaunchKernel(f, x, y, z, a, b, c, shared, null_mut(), params, null_mut())
    };
    let p = params.as_mut_ptr();
    assert_eq!(launch([1, 1, 1], [32, 1, 1], 0, p), CUresult::CUDA_SUCCESS);
    for (grid, block, shared, part) in [
        ([0, 1, 1], [32, 1, 1], 0, "a grid of (0,1,1) blocks"),
        ([1, 65536, 1], [32, 1, 1], 0, "a grid of (1,65536,1) blocks"),
        ([1, 1, 1], [0, 1, 1], 0, "blocks of (0,1,1) threads"),
        ([1, 1, 1], [1025, 1, 1], 0, "blocks of (1025,1,1) threads"),
        ([1, 1, 1], [1, 1, 65], 0, "blocks of (1,1,65) threads"),
        ([1, 1, 1], [32, 32, 2], 0, "2048 threads in a block; there can be 1024"),
        ([1, 1, 1], [32, 1, 1], 49153, "49153 bytes of dynamic shared memory; it may have 49152"),
    ] {
        assert_eq!(launch(grid, block, shared, p), CUresult::CUDA_ERROR_INVALID_VALUE);
        let said = d.emulator.last_error().unwrap();
        assert!(said.starts_with("kernel `steps`: ") && said.contains(part), "{said}");
    }
    assert_eq!(launch([1, 1, 1], [32, 1, 1], 0, null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
    let mut holes = [null_mut::<c_void>(); 2];
    assert_eq!(launch([1, 1, 1], [32, 1, 1], 0, holes.as_mut_ptr()), CUresult::CUDA_ERROR_INVALID_VALUE);
    // arguments in one buffer of the wrong size
    let buffer = [0u8; 16];
    for (size, want) in [(12usize, CUresult::CUDA_SUCCESS), (16, CUresult::CUDA_ERROR_INVALID_VALUE)] {
        let mut bytes = buffer;
        bytes[..8].copy_from_slice(&address.to_ne_bytes());
        bytes[8..12].copy_from_slice(&n.to_ne_bytes());
        let mut extra = [
            std::ptr::without_provenance_mut(1),
            bytes.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            std::ptr::from_ref(&size) as *mut c_void,
            null_mut(),
        ];
        let code = unsafe { sys::cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()) };
        assert_eq!(code, want, "{size}");
    }
    // more shared memory, once it is asked for, up to what the device has
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    unsafe {
        assert_eq!(sys::cuFuncSetAttribute(f, attribute, 232449), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuFuncSetAttribute(f, attribute, 232448), CUresult::CUDA_SUCCESS);
    }
    assert_eq!(launch([1, 1, 1], [32, 1, 1], 232448, p), CUresult::CUDA_SUCCESS);
    d.stream.synchronize().unwrap();
}

#[test]
fn an_error_stays_until_the_context_ends() {
    let d = Device::new();
    let f = d.kernel(&PTX, "steps");
    use cudarc::driver::{LaunchConfig, PushKernelArg};
    unsafe { d.stream.launch_builder(&f).arg(&0u64).arg(&1u32).launch(LaunchConfig::for_num_elems(1)) }.unwrap();
    let wrong = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(d.stream.synchronize().unwrap_err().0, wrong);
    assert_eq!(d.stream.alloc_zeros::<u8>(1).unwrap_err().0, wrong);
    assert_eq!(d.context.new_stream().unwrap_err().0, wrong);
    let code = unsafe { d.stream.launch_builder(&f).arg(&0u64).arg(&1u32).launch(LaunchConfig::for_num_elems(1)) };
    assert_eq!(code.unwrap_err().0, wrong);
    // another context of the same device is not concerned
    let other = support::private_context(0);
    assert!(other.default_stream().alloc_zeros::<u8>(1).is_ok());
}

#[test]
fn what_is_not_implemented_says_so() {
    let d = Device::new();
    let mut texture = 0;
    let code = unsafe { sys::cuTexObjectCreate(&mut texture, null(), null(), null()) };
    assert_eq!(code, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    assert_eq!(d.emulator.last_error().unwrap(), "cuTexObjectCreate is not implemented");
    let name = CString::new("cuLaunchKernel").unwrap();
    let mut found = null_mut();
    let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut found, 12000, 0, &mut status) }.result().unwrap();
    assert!(!found.is_null());
    assert!(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS.result().unwrap_err().to_string().contains("illegal memory access"));
}

#[test]
fn handles_are_addresses_of_the_process_that_nothing_can_be_read_at_and_none_comes_twice() {
    let d = Device::new();
    let module = d.module(&PTX);
    let mut handles = vec![d.context.cu_ctx() as u64];
    for _ in 0..100 {
        let (mut stream, mut event) = (null_mut(), null_mut());
        unsafe {
            sys::cuStreamCreate(&mut stream, 0).result().unwrap();
            sys::cuEventCreate(&mut event, 0).result().unwrap();
            sys::cuStreamDestroy_v2(stream).result().unwrap();
            sys::cuEventDestroy_v2(event).result().unwrap();
        }
        handles.extend([stream as u64, event as u64]);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let inaccessible: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with("---")))
        .filter_map(|line| line.split_whitespace().next()?.split_once('-'))
        .map(|(start, end)| (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap()))
        .collect();
    for handle in &handles {
        // what a signed integer holds, aligned like an object of the heap
        assert!(*handle > 4096 && i64::try_from(*handle).is_ok() && handle % 16 == 0, "{handle:#x}");
        assert!(inaccessible.iter().any(|(start, end)| (*start..*end).contains(handle)), "{handle:#x}\n{maps}");
    }
    let count = handles.len();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), count, "a dead handle came back");
    drop(module);
}

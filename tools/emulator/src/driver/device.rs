//! What a device says about itself.

use super::call::{export, give, refuse, remark};
use super::code::*;
use super::context::{device, devices, initialised};
use crate::config::config;
use std::ffi::{c_char, c_void};

/// Limits that depend on the compute capability (CUDA C++ Programming Guide, table of technical specifications).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) threads_per_sm: u32,
    pub(crate) blocks_per_sm: u32,
    pub(crate) shared_per_sm: u32,
    /// The most a block can ask for.
    pub(crate) shared_optin: u32,
}

/// Shared memory of a block without asking for more.
pub(crate) const SHARED_DEFAULT: u32 = 48 << 10;
/// Shared memory that the system takes of each block since 8.0.
pub(crate) const SHARED_RESERVED: u32 = 1 << 10;
/// 32-bit registers of a multiprocessor.
pub(crate) const REGISTERS: u32 = 64 << 10;

/// The limits of the claimed compute capability.
pub(crate) fn limits() -> Limits {
    let (threads, blocks, shared, optin) = match config().cc {
        ..=75 => (1024, 16, 64, 64),
        80 => (2048, 32, 164, 163),
        86 => (1536, 16, 100, 99),
        87 => (1536, 16, 164, 163),
        88..=89 => (1536, 24, 100, 99),
        90..=109 => (2048, 32, 228, 227),
        110 => (1536, 24, 228, 227),
        _ => (1536, 24, 100, 99),
    };
    Limits { threads_per_sm: threads, blocks_per_sm: blocks, shared_per_sm: shared << 10, shared_optin: optin << 10 }
}

fn attribute(number: i32) -> Option<i64> {
    let l = limits();
    let cc = config().cc;
    Some(match number {
        1 => 1024,     // threads of a block
        2 | 3 => 1024, // block extents
        4 => 64,
        5 => 0x7fff_ffff, // grid extents
        6 | 7 => 65535,
        8 => SHARED_DEFAULT.into(),
        9 => 64 << 10, // constant memory
        10 => 32,
        11 => 0x7fff_ffff, // pitch
        12 => REGISTERS.into(),
        13 => 1_755_000, // clock in kHz
        14 => 512,       // texture alignment
        15 => 1,
        16 => config().sms.into(),
        17 => 0, // kernel timeout
        18 => 0, // integrated
        19 => 1, // map host memory
        20 => 0, // compute mode
        21..=29 => 16384,
        30 => 0x2000_0000,
        31 => 1, // concurrent kernels
        32 => 1, // ECC
        33 => 1, // bus
        34 => 0,
        35 => 0,         // TCC
        36 => 2_619_000, // memory clock in kHz
        37 => 5120,      // bus width
        38 => 50 << 20,  // L2
        39 => l.threads_per_sm.into(),
        40 => 3, // copy engines
        41 => 1, // unified addressing
        50 => 0, // PCI domain
        75 => (cc / 10).into(),
        76 => (cc % 10).into(),
        78 => 1,      // stream priorities
        79 | 80 => 1, // L1 for globals and locals
        81 => l.shared_per_sm.into(),
        82 => REGISTERS.into(),
        83 => 1, // managed memory
        84 => 0,
        85 => 0,
        86 => 0, // native atomics with the host
        87 => {
            if cc >= 90 {
                2
            } else {
                32
            }
        }
        88 => 1, // pageable access
        89 => 0,
        90 => 1, // compute preemption
        91 => 0, // the host uses other pointers
        95 => 1, // cooperative launch
        96 => 0,
        97 => l.shared_optin.into(),
        99 => 0,
        100..=105 => 0,
        106 => l.blocks_per_sm.into(),
        108 => 0,
        109 => 128 << 20,
        111 => {
            if cc >= 80 {
                SHARED_RESERVED.into()
            } else {
                0
            }
        }
        112..=114 => 0,
        115 => 1, // pools
        116..=119 => 0,
        120 => i64::from(cc >= 90), // clusters
        121..=149 => 0,
        92 | 93 | 94 | 98 | 107 | 110 | 51..=74 | 77 | 42..=49 => 0,
        _ => return None,
    })
}

/// The table without which the CUDA runtime library does not start.
const RUNTIME_TABLE: u128 = 0x6bd5fb6c_5bf4_e74a_8987_d93912fd9df9;

export! {
    fn cuDeviceGet(out: *mut i32, ordinal: i32) {
        device(ordinal)?;
        give(out, ordinal)
    }

    fn cuDeviceGetCount(out: *mut i32) {
        initialised()?;
        give(out, devices().len() as i32)
    }

    fn cuDeviceGetName(out: *mut c_char, room: i32, dev: i32) {
        device(dev)?;
        if out.is_null() || room <= 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        let cc = config().cc;
        let name = format!("Emulator sm_{cc} ({} multiprocessors)", config().sms);
        let bytes = name.as_bytes();
        let n = bytes.len().min(room as usize - 1);
        // SAFETY: the caller gives `room` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast::<u8>(), n);
            out.add(n).write(0);
        }
        Ok(())
    }

    fn cuDeviceGetUuid(out: *mut [u8; 16], dev: i32) {
        device(dev)?;
        let mut uuid = *b"warpcheck-device";
        uuid[15] = b'0' + dev as u8;
        give(out, uuid)
    }

    fn cuDeviceGetUuid_v2(out: *mut [u8; 16], dev: i32) {
        // SAFETY: the same contract.
        match unsafe { cuDeviceGetUuid(out, dev) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuDeviceTotalMem_v2(out: *mut usize, dev: i32) {
        give(out, device(dev)?.memory.claimed as usize)
    }

    fn cuDeviceGetAttribute(out: *mut i32, number: i32, dev: i32) {
        device(dev)?;
        match attribute(number) {
            Some(value) => give(out, value.clamp(i32::MIN.into(), i32::MAX.into()) as i32),
            None => Err(ERROR_INVALID_VALUE),
        }
    }

    fn cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, dev: i32) {
        device(dev)?;
        give(major, (config().cc / 10) as i32)?;
        give(minor, (config().cc % 10) as i32)
    }

    fn cuDeviceCanAccessPeer(out: *mut i32, dev: i32, peer: i32) {
        device(dev)?;
        device(peer)?;
        give(out, i32::from(dev != peer))
    }

    fn cuDeviceGetPCIBusId(out: *mut c_char, room: i32, dev: i32) {
        device(dev)?;
        let text = format!("0000:{:02X}:00.0\0", dev + 1);
        if out.is_null() || room < text.len() as i32 {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller gives `room` bytes, enough for the text.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast::<u8>(), text.len()) };
        Ok(())
    }

    fn cuGetErrorName(error: u32, out: *mut *const c_char) {
        match describe(error) {
            Some((name, _)) => give(out, name.as_ptr().cast()),
            None => {
                give(out, std::ptr::null())?;
                Err(ERROR_INVALID_VALUE)
            }
        }
    }

    fn cuGetErrorString(error: u32, out: *mut *const c_char) {
        match describe(error) {
            Some((_, text)) => give(out, text.as_ptr().cast()),
            None => {
                give(out, std::ptr::null())?;
                Err(ERROR_INVALID_VALUE)
            }
        }
    }

    fn cuDeviceGetExecAffinitySupport(out: *mut i32, _kind: u32, dev: i32) {
        device(dev)?;
        give(out, 0)
    }

    fn cuFlushGPUDirectRDMAWrites(_target: u32, _scope: u32) {
        Ok(())
    }

    fn cuGetExportTable(_out: *mut *const c_void, id: *const [u8; 16]) {
        if id.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller gives an identifier of 16 bytes.
        let id = u128::from_be_bytes(unsafe { id.read() });
        if id == RUNTIME_TABLE {
            return refuse(
                ERROR_NOT_SUPPORTED,
                "a program of the CUDA runtime library (cudart) asks for a private table of NVIDIA's driver: only programs \
                 of the driver API run",
            );
        }
        // others, such as NVRTC, go on without
        remark(&format!("the private table {id:032x} of NVIDIA's driver is not implemented"));
        Err(ERROR_NOT_SUPPORTED)
    }
}

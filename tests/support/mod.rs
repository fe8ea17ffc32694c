//! What the rooms' tests share: a device, data, guarded buffers, the emulator's counters.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod calls;

use cudarc::driver::{CudaSlice, CudaViewMut, DevicePtr};
use posenc::gpu::Raw;
use posenc::{Gpu, Scalar};

/// The device under test: a GPU, or the emulator.
///
/// # Panics
/// If there is none: such tests are ignored unless `cargo xtask test` runs them.
pub fn gpu() -> Gpu {
    match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => panic!("this test needs a device, `cargo xtask test` brings one: {error}"),
    }
}

/// A generator of test data: splitmix64, so that a seed on a failing line replays it.
pub struct Data(u64);

impl Data {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of `choices`.
    pub fn pick<C: Copy>(&mut self, choices: &[C]) -> C {
        choices[self.below(choices.len())]
    }

    /// A value of magnitude 0.5 to 2 and either sign: in a sum of a few such terms, none hides behind another.
    pub fn value(&mut self) -> f64 {
        let bits = self.bits();
        let magnitude = 0.5 + 1.5 * (bits >> 11) as f64 / (1u64 << 53) as f64;
        if bits & 1 == 0 { magnitude } else { -magnitude }
    }

    pub fn values<T: Scalar>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::from_f64(self.value())).collect()
    }

    /// A position that formulas break at, or any of 32 bits.
    pub fn position(&mut self) -> i64 {
        match self.below(3) {
            0 => self.pick(&POSITIONS),
            1 => self.below(4096) as i64,
            _ => i64::from(self.bits() as i32),
        }
    }
}

/// Positions where implementations go wrong: the ends of i32, the first that f32 does not hold, one past common tables.
pub const POSITIONS: [i64; 9] = [0, 1, -1, 2, 131_071, (1 << 24) + 1, -(1 << 24) - 1, (1 << 31) - 1, -(1 << 31)];

/// Bytes of the bands on both sides of a guarded buffer: a multiple of every access.
const BAND: usize = 64;

/// A device buffer with poisoned bands on both sides, and, if nothing is put in, poisoned itself. The emulator sees every access
/// beyond an allocation, reads too: there the buffer has its ends.
pub struct Guarded<T> {
    all: CudaSlice<T>,
    front: usize,
    len: usize,
}

impl<T: Scalar> Guarded<T> {
    /// `values`, beginning `shift` elements past a 64-byte boundary.
    pub fn new(gpu: &Gpu, values: &[T], shift: usize) -> Self {
        let is_whole = emulator::attach().is_some() && !values.is_empty();
        let band = if is_whole { 0 } else { BAND / size_of::<T>() };
        let mut all = vec![poison::<T>(); band + shift];
        all.extend_from_slice(values);
        all.resize(all.len() + band, poison());
        let all = gpu.stream().clone_htod(&all).expect("the device takes a copy");
        Self { all, front: band + shift, len: values.len() }
    }

    /// `len` poisoned elements.
    pub fn poisoned(gpu: &Gpu, len: usize, shift: usize) -> Self {
        Self::new(gpu, &vec![poison::<T>(); len], shift)
    }

    pub fn view(&mut self) -> CudaViewMut<'_, T> {
        self.all.slice_mut(self.front..self.front + self.len)
    }

    /// The content, after the bands are found as they were.
    #[track_caller]
    pub fn read(&self, gpu: &Gpu) -> Vec<T> {
        let all = gpu.stream().clone_dtoh(&self.all).expect("the device gives a copy");
        let untouched = bytemuck::bytes_of(&poison::<T>()).to_vec();
        for (i, value) in all.iter().enumerate() {
            let inside = (self.front..self.front + self.len).contains(&i);
            assert!(
                inside || bytemuck::bytes_of(value) == untouched,
                "element {} of a buffer of {} was written",
                i as i64 - self.front as i64,
                self.len
            );
        }
        all[self.front..self.front + self.len].to_vec()
    }
}

/// `len` elements from byte `bytes` of a buffer on, as a foreign pointer may name them: to be refused beside that buffer.
pub fn alias<V, O>(buffer: &impl DevicePtr<O>, bytes: u64, len: usize) -> Raw<V> {
    let (address, _order) = buffer.device_ptr(buffer.stream());
    raw(address + bytes, len)
}

/// `len` elements at an address, wherever that is.
pub fn raw<V>(address: u64, len: usize) -> Raw<V> {
    // SAFETY: the tests hand in memory of their own, or see the call refused.
    unsafe { Raw::new(address, len) }
}

/// Opens POSENC_NVRTC's library or the loader's, so that it is there when cudarc asks for it by another name.
pub fn nvrtc() -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let folder = std::path::PathBuf::from(std::env::var_os("POSENC_NVRTC").unwrap_or_default());
    let path = folder.join("libnvrtc.so.12");
    // SAFETY: NVRTC's initialisers have no preconditions; it is never closed.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget).is_ok()
}

/// A NaN that no kernel makes.
pub fn poison<T: Scalar>() -> T {
    let bytes = [0xa5, 0xff, 0xa5, 0xff];
    bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()])
}

/// The emulator, which counts; `None` on a real GPU. Then a line says so: a report of the run tells how many tests have one.
pub fn emulator() -> Option<emulator::Emulator> {
    let emulator = emulator::attach();
    if emulator.is_none() {
        println!("left to the emulator: counters");
    }
    emulator
}

/// The driver's counters of the last launch from this thread; `None` on a real GPU.
pub fn last_launch() -> Option<emulator::LaunchReport> {
    emulator()?.last_launch()
}

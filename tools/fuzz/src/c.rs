//! The C library: its functions by name, with structs at random from the header's own description.
//!
//! What the header asks of a caller is kept: a buffer has the length that it says and no two share memory, a pointer to host
//! memory points to enough of it, handles are alive. All else is random.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use libloading::Library;
use posenc_c::{Item, Kind, items};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::Run;

/// Bytes of a buffer, and of the host memory that a pointer points to.
const ROOM: usize = 1 << 16;
/// Buffers of one call.
const BUFFERS: usize = 96;

/// Every function, as one of up to eight integers and pointers: they all go in the same registers and stack slots.
type Function = unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize) -> i32;

/// What random numbers become.
struct Dice<'a>(std::slice::Iter<'a, u32>);

impl Dice<'_> {
    fn roll(&mut self) -> u32 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, n: usize) -> usize {
        self.roll() as usize % n
    }
}

struct World {
    structs: HashMap<&'static str, &'static [(&'static str, &'static str, &'static str)]>,
    functions: Vec<(&'static str, Vec<String>)>,
    library: Library,
    /// the device's stream and memory; none: plans are the CPU's
    device: Option<(Arc<CudaStream>, Vec<CudaSlice<u8>>)>,
    /// addresses of the buffers of a call
    buffers: Vec<u64>,
    /// what pointers of structs point to, and the CPU's buffers behind it
    host: Vec<u64>,
    gpu: usize,
    /// live handles by type
    handles: RefCell<HashMap<String, Vec<usize>>>,
}

/// The size and alignment of a type of the header.
fn layout(world: &World, ty: &str) -> Result<(usize, usize)> {
    Ok(match ty {
        "u8" => (1, 1),
        "u16" => (2, 2),
        "u32" | "i32" | "f32" => (4, 4),
        "u64" | "i64" | "f64" | "usize" => (8, 8),
        _ if ty.starts_with('*') => (8, 8),
        _ if ty.starts_with('[') => {
            let (element, n) = ty.trim_matches(['[', ']']).split_once(';').context("an array")?;
            let (size, align) = layout(world, element.trim())?;
            (size * n.trim().parse::<usize>()?, align)
        }
        _ => {
            let fields = world.structs.get(ty).with_context(|| format!("the header has no struct {ty}"))?;
            let (mut size, mut most) = (0usize, 1);
            for (_, _, field) in *fields {
                let (bytes, align) = layout(world, field)?;
                size = size.next_multiple_of(align) + bytes;
                most = most.max(align);
            }
            (size.next_multiple_of(most), most)
        }
    })
}

/// One call's memory: structs that pointers name live until it is over.
struct Scene<'a> {
    world: &'a World,
    dice: Dice<'a>,
    made: Vec<Box<[u64]>>,
    next: usize,
}

impl Scene<'_> {
    /// An integer: small where it may count what a pointer points to.
    fn integer(&mut self, small: bool) -> u64 {
        const WILD: [u64; 10] = [0, u64::MAX, 1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, 65_535, 65_536, 4096];
        match self.dice.below(8) {
            0 if !small => WILD[self.dice.below(WILD.len())],
            1 => 16,
            2 => 64,
            _ => self.dice.below(9) as u64,
        }
    }

    fn real(&mut self) -> f64 {
        const REALS: [f64; 10] = [0.0, 1.0, 0.5, -1.0, 10_000.0, 1e308, 1e-320, f64::NAN, f64::INFINITY, 8.0];
        REALS[self.dice.below(REALS.len())]
    }

    /// A pointer: null, or to as much as any type needs.
    fn pointer(&mut self, ty: &str) -> Result<usize> {
        let of = ty.trim_start_matches("*const ").trim_start_matches("*mut ");
        if of == "PosencGpu" {
            return Ok(if self.dice.below(40) == 0 { 0 } else { self.world.gpu });
        }
        if self.dice.below(24) == 0 {
            return Ok(0);
        }
        if self.world.structs.contains_key(of) {
            return self.structure(of);
        }
        if of.starts_with("Posenc") {
            let handles = self.world.handles.borrow();
            let list = handles.get(of).filter(|list| !list.is_empty());
            return Ok(list.map_or(0, |list| list[self.dice.below(list.len())]));
        }
        if of == "c_char" {
            return Ok(
                c"{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_attention_heads\": 4}".as_ptr() as usize
            );
        }
        Ok(self.world.host.as_ptr() as usize)
    }

    fn structure(&mut self, name: &str) -> Result<usize> {
        let (size, _) = layout(self.world, name)?;
        let mut bytes = vec![0u8; size.next_multiple_of(8)];
        self.fill(name, &mut bytes)?;
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
        self.made.push(words.into_boxed_slice());
        Ok(self.made.last().map_or(0, |made| made.as_ptr() as usize))
    }

    fn fill(&mut self, name: &str, bytes: &mut [u8]) -> Result<()> {
        let fields = self.world.structs[name];
        let small = fields.iter().any(|(_, _, ty)| ty.starts_with('*'));
        let mut at = 0usize;
        for (_, field, ty) in fields {
            let (size, align) = layout(self.world, ty)?;
            at = at.next_multiple_of(align);
            let place = &mut bytes[at..at + size];
            at += size;
            match (name, *field) {
                // Nearly always right: wrong ones are refused before all else.
                (_, "version") if self.dice.below(50) > 0 => place.copy_from_slice(&1u32.to_le_bytes()),
                (_, "size") if self.dice.below(50) > 0 => {
                    place.copy_from_slice(&(layout(self.world, name)?.0 as u32).to_le_bytes());
                }
                ("PosencBuffer" | "PosencIds", "data") => {
                    let address = self.world.buffers[self.next % BUFFERS];
                    self.next += 1;
                    let address = match self.dice.below(16) {
                        0 => 0,
                        1 => address + 2,
                        _ => address,
                    };
                    place.copy_from_slice(&address.to_le_bytes());
                }
                // As many of any type as fit behind the address.
                ("PosencBuffer" | "PosencIds", "len") => {
                    let most = (ROOM - 16) / 8;
                    let len = if self.dice.below(8) == 0 { self.dice.below(64) } else { most };
                    place.copy_from_slice(&(len as u64).to_le_bytes());
                }
                _ => self.value(ty, place, small)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, ty: &str, place: &mut [u8], small: bool) -> Result<()> {
        match ty {
            "u8" | "u16" | "u32" | "i32" => {
                let value =
                    if self.dice.below(12) == 0 && !small { self.dice.roll() } else { self.dice.below(4) as u32 };
                place.copy_from_slice(&value.to_le_bytes()[..place.len()]);
            }
            "u64" | "i64" => place.copy_from_slice(&self.integer(small).to_le_bytes()),
            "f32" => place.copy_from_slice(&(self.real() as f32).to_le_bytes()),
            "f64" => place.copy_from_slice(&self.real().to_le_bytes()),
            _ if ty.starts_with('*') => place.copy_from_slice(&(self.pointer(ty)? as u64).to_le_bytes()),
            _ if ty.starts_with('[') => {
                let (element, _) = ty.trim_matches(['[', ']']).split_once(';').context("an array")?;
                let (size, _) = layout(self.world, element.trim())?;
                for part in place.chunks_exact_mut(size) {
                    self.value(element.trim(), part, small)?;
                }
            }
            _ => self.fill(ty, place)?,
        }
        Ok(())
    }
}

impl World {
    fn new(library: &Path, on_cpu: bool) -> Result<Self> {
        // SAFETY: the library's initialisers have no preconditions.
        let library = unsafe { Library::new(library) }
            .with_context(|| format!("{} is built by cargo xtask fuzz", library.display()))?;
        let (mut structs, mut functions) = (HashMap::new(), Vec::new());
        for Item { kind, .. } in items() {
            match *kind {
                Kind::Struct { name, fields } => drop(structs.insert(name, fields)),
                Kind::Function { name, arguments, .. } => {
                    // A macro's tokens may stand apart.
                    functions.push((name, arguments.iter().map(|(_, ty)| ty.replace("* ", "*")).collect()));
                }
                Kind::Codes { .. } | Kind::Opaque { .. } => {}
            }
        }
        let host = vec![0x3f80_0000_3f80_0000; (1 + BUFFERS) * ROOM / 8];
        let mut buffers = (1..=BUFFERS).map(|i| host[i * ROOM / 8..].as_ptr() as u64).collect::<Vec<_>>();
        let mut device = None;
        if !on_cpu {
            let stream = CudaContext::new(0)?.default_stream();
            let memory = (0..BUFFERS).map(|_| stream.alloc_zeros(ROOM)).collect::<Result<Vec<CudaSlice<u8>>, _>>()?;
            buffers = memory.iter().map(|buffer| buffer.device_ptr(&stream).0).collect();
            device = Some((stream, memory));
        }
        let mut world =
            Self { structs, functions, library, device, buffers, host, gpu: 0, handles: RefCell::default() };
        let mut gpu = 0usize;
        let place = (&raw mut gpu) as usize;
        let (name, arguments) =
            if on_cpu { ("posenc_cpu_new", vec![place]) } else { ("posenc_gpu_new", vec![0, 0, 0, place]) };
        // SAFETY: ordinal, the null stream, no overlap, and a place for the handle.
        let status = unsafe { world.call(name, &arguments)? };
        world.gpu = gpu;
        if status != 0 {
            bail!("{name} gives {status}");
        }
        Ok(world)
    }

    /// # Safety
    /// The arguments are what the header asks for.
    unsafe fn call(&self, name: &str, arguments: &[usize]) -> Result<i32> {
        // SAFETY: every function of the header takes up to eight integers and pointers and gives a 32-bit number, a pointer or
        // nothing of use here.
        let function = unsafe { self.library.get::<Function>(name.as_bytes()) }?;
        let argument = |i: usize| arguments.get(i).copied().unwrap_or(0);
        // SAFETY: the caller's promise; registers beyond a function's arguments are not read.
        Ok(unsafe {
            function(
                argument(0),
                argument(1),
                argument(2),
                argument(3),
                argument(4),
                argument(5),
                argument(6),
                argument(7),
            )
        })
    }

    /// One call with random arguments; whether it was done.
    fn play(&self, numbers: &[u32]) -> Result<bool, String> {
        let mut scene = Scene { world: self, dice: Dice(numbers.iter()), made: Vec::new(), next: 0 };
        let (name, types) = &self.functions[scene.dice.below(self.functions.len())];
        // Floating-point numbers go in other registers; handles of streams and devices are the caller's own.
        let skipped = types.iter().any(|ty| ["f32", "f64", "PosencStream"].contains(&ty.as_str())) || types.len() > 8;
        if skipped || name.starts_with("posenc_gpu_") || name.starts_with("posenc_cpu_") {
            return Ok(false);
        }
        let mut out: usize = 0;
        let mut arguments = Vec::new();
        for ty in types {
            arguments.push(match ty.as_str() {
                "u32" | "i32" => scene.dice.below(5),
                "u64" | "i64" => scene.integer(true) as usize,
                ty if ty.starts_with("*mut *mut ") => (&raw mut out) as usize,
                ty => scene.pointer(ty).map_err(|error| error.to_string())?,
            });
        }
        // What an abort leaves behind.
        let call = format!(
            "{name}({arguments:x?})\n{}",
            scene.made.iter().map(|made| format!("{made:x?}\n")).collect::<String>()
        );
        std::fs::write("target/fuzz/c.call", call).map_err(|error| error.to_string())?;
        // SAFETY: structs are whole, buffers have their lengths and lie apart, handles are alive.
        let status = unsafe { self.call(name, &arguments) }.map_err(|error| error.to_string())?;
        let mut handles = self.handles.borrow_mut();
        if name.ends_with("_free") {
            let freed = arguments[0];
            handles.values_mut().for_each(|list| list.retain(|handle| *handle != freed));
        }
        if status == 0
            && let Some(ty) = types.iter().find(|ty| ty.starts_with("*mut *mut "))
        {
            handles.entry(ty.trim_start_matches("*mut *mut ").to_string()).or_default().push(out);
        }
        drop(handles);
        // SAFETY: it takes nothing, and gives a text of the library's own.
        let said = unsafe {
            let last = self
                .library
                .get::<unsafe extern "C" fn() -> *const std::ffi::c_char>(b"posenc_last_error")
                .map_err(|e| e.to_string())?;
            std::ffi::CStr::from_ptr(last()).to_string_lossy().into_owned()
        };
        // What a panic becomes.
        if status == posenc_c::POSENC_INTERNAL {
            return Err(format!("{name}: {said}"));
        }
        // A kernel that reached outside, or that did not end, is an error of everything behind it.
        if let Some((stream, _)) = &self.device {
            stream.synchronize().map_err(|error| format!("{name} left {error}, and said {said:?}"))?;
        }
        Ok(status == 0)
    }
}

pub(crate) fn fuzz(run: &Run, library: &Path, on_cpu: bool) -> Result<()> {
    let world = World::new(library, on_cpu)?;
    run.of(&vec(any::<u32>(), 1..700), |numbers| world.play(numbers))
}

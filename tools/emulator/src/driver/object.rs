//! Handles and what they stand for.

use super::code;
use crate::device::Memory;
use crate::lower::Kernel;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A handle as the application sees it.
pub(crate) type Handle = *mut c_void;

/// A context.
pub(crate) struct Context {
    pub(crate) id: u64,
    pub(crate) device: usize,
    pub(crate) memory: Arc<Memory>,
    /// The sticky error, or 0.
    pub(crate) error: AtomicU32,
    pub(crate) stack_limit: AtomicU64,
    pub(crate) limits: Mutex<HashMap<u32, u64>>,
    pub(crate) flags: AtomicU32,
    pub(crate) default_stream: Stream,
}

/// A loaded module.
pub(crate) struct Module {
    pub(crate) context: Arc<Context>,
    pub(crate) program: Arc<crate::exec::Program>,
    pub(crate) kernels: Vec<Kernel>,
    /// Variables: address and size.
    pub(crate) globals: HashMap<String, (u64, u64)>,
    /// PTX version and target.
    pub(crate) versions: (i32, i32),
    pub(crate) functions: Mutex<HashMap<String, u64>>,
}

impl Drop for Module {
    fn drop(&mut self) {
        for (at, _) in self.globals.values() {
            self.context.memory.release_of(*at, self.context.id);
        }
    }
}

/// A kernel of a module.
pub(crate) struct Function {
    pub(crate) module: Arc<Module>,
    pub(crate) kernel: usize,
    pub(crate) max_dynamic: AtomicI32,
    pub(crate) carveout: AtomicI32,
    pub(crate) cluster: Mutex<HashMap<u32, i32>>,
}

impl Function {
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.module.kernels[self.kernel]
    }
}

/// A stream.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) number: u64,
    pub(crate) capture: Mutex<Option<Arc<super::graph::Capture>>>,
    /// Whether a capture is under way: read on every launch without a lock.
    pub(crate) capturing: AtomicBool,
}

/// An event.
pub(crate) struct Event {
    pub(crate) flags: u32,
    pub(crate) recorded: Mutex<Recorded>,
}

/// What an event marks.
#[derive(Clone, Default)]
pub(crate) struct Recorded {
    /// Nanoseconds, if it was recorded.
    pub(crate) at: Option<u64>,
    /// The capture in which it was recorded.
    pub(crate) capture: Option<Arc<super::graph::Capture>>,
    /// What comes before it there.
    pub(crate) before: super::graph::Before,
}

/// Anything with a handle.
#[derive(Clone)]
pub(crate) enum Object {
    Context(Arc<Context>),
    Module(Arc<Module>),
    Function(Arc<Function>),
    Stream(Arc<Stream>),
    Event(Arc<Event>),
    Graph(Arc<super::graph::Graph>),
    Exec(Arc<super::graph::Exec>),
    Pool(Arc<super::memory::Pool>),
    Library(Arc<Module>),
}

static OBJECTS: RwLock<Option<HashMap<u64, Object>>> = RwLock::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Advances whenever a handle dies, so that threads may keep what they looked up.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// A number that no other object has.
pub(crate) fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Gives an object a handle.
pub(crate) fn insert(object: Object) -> Handle {
    // handles look like pointers, and are never ones that the application owns
    let handle = 0xe000_0000_0000_0000 | number() << 8;
    OBJECTS.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(handle, object);
    handle as Handle
}

fn find(handle: Handle) -> Option<Object> {
    OBJECTS.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(&(handle as u64)).cloned()
}

/// Forgets a handle.
pub(crate) fn remove(handle: Handle) -> Option<Object> {
    GENERATION.fetch_add(1, Ordering::Release);
    OBJECTS.write().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&(handle as u64))
}

/// Forgets every handle that `dead` says.
pub(crate) fn remove_where(dead: impl Fn(&Object) -> bool) -> Vec<Object> {
    GENERATION.fetch_add(1, Ordering::Release);
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let Some(map) = objects.as_mut() else { return Vec::new() };
    let keys: Vec<u64> = map.iter().filter(|(_, o)| dead(o)).map(|(k, _)| *k).collect();
    keys.iter().filter_map(|k| map.remove(k)).collect()
}

/// The age of handles: what was looked up at another age must be looked up again.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

macro_rules! getters {
    ($($name:ident, $variant:ident, $ty:ty;)*) => { $(
        /// The object behind a handle, or `INVALID_HANDLE`.
        pub(crate) fn $name(handle: Handle) -> Result<Arc<$ty>, u32> {
            match find(handle) {
                Some(Object::$variant(object)) => Ok(object),
                _ => Err(code::ERROR_INVALID_HANDLE),
            }
        }
    )* };
}
getters! {
    module, Module, Module;
    function, Function, Function;
    stream_object, Stream, Stream;
    event, Event, Event;
    graph, Graph, super::graph::Graph;
    exec, Exec, super::graph::Exec;
    pool, Pool, super::memory::Pool;
    library, Library, Module;
}

/// The context behind a handle, or `INVALID_CONTEXT`.
pub(crate) fn context(handle: Handle) -> Result<Arc<Context>, u32> {
    match find(handle) {
        Some(Object::Context(object)) => Ok(object),
        _ => Err(code::ERROR_INVALID_CONTEXT),
    }
}

//! Handles and what they stand for.

use super::code;
use crate::device::reserve_inaccessible;
use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// A handle as the application sees it.
pub(crate) type Handle = *mut c_void;

/// Anything with a handle.
pub(crate) trait Object: Any + Send + Sync {
    /// The context with which its handle dies.
    fn context(&self) -> Option<u64> {
        None
    }
}

static OBJECTS: RwLock<Option<HashMap<u64, Arc<dyn Object>>>> = RwLock::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Advances whenever a handle dies, so that threads may keep what they looked up.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// A number that no other object has.
pub(crate) fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Bytes of address space from one handle to the next: handles are aligned like what they stand for in a real driver.
const STEP: u64 = 16;
/// Address space for handles: enough for four billion, none of which is used again.
const SPACE: u64 = STEP << 32;

/// An address that no other handle had. Applications keep handles in signed integers and test their alignment, so a
/// handle is an address of the process; nothing is ever mapped there that could be read.
fn address() -> Result<u64, u32> {
    static START: OnceLock<Option<u64>> = OnceLock::new();
    static USED: AtomicU64 = AtomicU64::new(0);
    let start = START.get_or_init(|| reserve_inaccessible(SPACE)).ok_or(code::ERROR_OUT_OF_MEMORY)?;
    let offset = USED.fetch_add(STEP, Ordering::Relaxed);
    if offset < SPACE { Ok(start + offset) } else { Err(code::ERROR_OUT_OF_MEMORY) }
}

/// Gives an object a handle.
pub(crate) fn insert(object: Arc<dyn Object>) -> Result<Handle, u32> {
    let handle = address()?;
    OBJECTS.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(handle, object);
    Ok(handle as Handle)
}

fn find(handle: Handle) -> Option<Arc<dyn Object>> {
    OBJECTS.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(&(handle as u64)).cloned()
}

/// The object of a kind behind a handle, or `INVALID_HANDLE`.
pub(crate) fn get<T: Object>(handle: Handle) -> Result<Arc<T>, u32> {
    let object: Arc<dyn Any + Send + Sync> = find(handle).ok_or(code::ERROR_INVALID_HANDLE)?;
    object.downcast().map_err(|_| code::ERROR_INVALID_HANDLE)
}

/// Forgets a handle.
pub(crate) fn remove(handle: Handle) {
    GENERATION.fetch_add(1, Ordering::Release);
    let object =
        OBJECTS.write().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|all| all.remove(&(handle as u64)));
    // its end may need the table
    drop(object);
}

/// Forgets every handle of a context.
pub(crate) fn remove_of(context: u64) {
    GENERATION.fetch_add(1, Ordering::Release);
    let mut objects = OBJECTS.write().unwrap_or_else(PoisonError::into_inner);
    let Some(map) = objects.as_mut() else { return };
    let keys: Vec<u64> = map.iter().filter(|(_, o)| o.context() == Some(context)).map(|(k, _)| *k).collect();
    let dead: Vec<_> = keys.iter().filter_map(|k| map.remove(k)).collect();
    drop(objects);
    // as above
    drop(dead);
}

/// The age of handles: what was looked up at another age must be looked up again.
#[inline]
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

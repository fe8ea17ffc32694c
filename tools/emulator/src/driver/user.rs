//! Objects of the application that live as long as a graph refers to them.

use super::call::{export, give};
use super::code::*;
use super::handle::{self, Handle, Object};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Destroy = unsafe extern "C" fn(*mut c_void);

/// What the application gave, destroyed when nothing refers to it any more.
pub(crate) struct Owned {
    data: u64,
    destroy: Destroy,
    handle: AtomicU64,
}

impl Drop for Owned {
    fn drop(&mut self) {
        handle::remove(self.handle.load(Ordering::Relaxed) as Handle);
        // SAFETY: the application gave the function for this very value, and the last reference ends here.
        unsafe { (self.destroy)(self.data as *mut c_void) };
    }
}

/// The references that the application holds itself.
pub(crate) struct UserObject(Mutex<Vec<Arc<Owned>>>);

impl Object for UserObject {}

impl UserObject {
    fn references(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Owned>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes more references.
    pub(crate) fn retain(&self, count: u32) -> Result<Vec<Arc<Owned>>, u32> {
        let one = self.references().first().cloned().ok_or(ERROR_INVALID_VALUE)?;
        Ok(vec![one; count as usize])
    }

    /// Takes references away from the application.
    pub(crate) fn take(&self, count: u32) -> Result<Vec<Arc<Owned>>, u32> {
        let mut all = self.references();
        let rest = all.len().checked_sub(count as usize).ok_or(ERROR_INVALID_VALUE)?;
        Ok(all.split_off(rest))
    }

    /// Whether a reference is one to this object.
    pub(crate) fn is(on: Handle, owned: &Owned) -> bool {
        owned.handle.load(Ordering::Relaxed) == on as u64
    }
}

/// `CU_USER_OBJECT_NO_DESTRUCTOR_SYNC`, which has to be asked for
const NO_SYNC: u32 = 1;

export! {
    fn cuUserObjectCreate(out: *mut Handle, data: *mut c_void, destroy: Option<Destroy>, count: u32, flags: u32) {
        let Some(destroy) = destroy.filter(|_| count > 0 && flags == NO_SYNC && !out.is_null()) else {
            return Err(ERROR_INVALID_VALUE);
        };
        let owned = Arc::new(Owned { data: data as u64, destroy, handle: AtomicU64::new(0) });
        let object = handle::insert(Arc::new(UserObject(Mutex::new(vec![owned.clone(); count as usize]))))?;
        owned.handle.store(object as u64, Ordering::Relaxed);
        give(out, object)
    }

    fn cuUserObjectRetain(on: Handle, count: u32) {
        let object = handle::get::<UserObject>(on)?;
        let more = object.retain(count)?;
        object.references().extend(more);
        Ok(())
    }

    fn cuUserObjectRelease(on: Handle, count: u32) {
        let object = handle::get::<UserObject>(on)?;
        let released: Vec<_> = object.take(count)?;
        drop(released);
        Ok(())
    }
}

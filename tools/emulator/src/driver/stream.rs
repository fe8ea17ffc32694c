//! Streams. Work runs when it is given, so a stream is always done.

use super::call::{Call, export, give, refuse};
use super::capture::{Kind, Stream, Work, capture, not_captured};
use super::code::*;
use super::context::{Context, current};
use super::handle::{self, Handle};
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

/// Handles that stand for the default streams.
pub(crate) const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A stream of the current context.
pub(crate) enum Which {
    /// The context's own, which all threads share.
    Default(Arc<Context>),
    /// One that was made.
    Made(Arc<Stream>),
}

impl std::ops::Deref for Which {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        match self {
            Self::Default(context) => &context.default_stream,
            Self::Made(stream) => stream,
        }
    }
}

/// The stream behind a handle.
pub(crate) fn stream(context: &Arc<Context>, on: Handle) -> Result<Which, u32> {
    if on as usize <= LEGACY {
        return Ok(Which::Default(context.clone()));
    }
    if on as usize == PER_THREAD {
        return Ok(Which::Made(of_thread(context)));
    }
    // the stream that the thread used last, unless a handle has died since
    let age = handle::generation();
    let known = KNOWN.with(|k| match &*k.borrow() {
        Some((h, g, s)) if *h == on as u64 && *g == age && s.context == context.id => Some(s.clone()),
        _ => None,
    });
    if let Some(stream) = known {
        return Ok(Which::Made(stream));
    }
    let stream = handle::get::<Stream>(on)?;
    if stream.context != context.id {
        return refuse(ERROR_INVALID_HANDLE, "the stream belongs to another context than the current one");
    }
    KNOWN.with(|k| *k.borrow_mut() = Some((on as u64, age, stream.clone())));
    Ok(Which::Made(stream))
}

/// The calling thread's default stream of a context.
fn of_thread(context: &Context) -> Arc<Stream> {
    OWN.with(|own| {
        let mut own = own.borrow_mut();
        if let Some(stream) = own.iter().find(|stream| stream.context == context.id) {
            return stream.clone();
        }
        let stream = Arc::new(Stream {
            context: context.id,
            number: handle::number(),
            timeline: context.default_stream.timeline.clone(),
            ..Default::default()
        });
        own.push(stream.clone());
        stream
    })
}

/// A handle, the age of handles when it was looked up, and its stream.
type Known = Option<(u64, u64, Arc<Stream>)>;

thread_local! {
    static KNOWN: RefCell<Known> = const { RefCell::new(None) };
    /// Its default streams, one for each context that it used.
    static OWN: RefCell<Vec<Arc<Stream>>> = const { RefCell::new(Vec::new()) };
}

/// A function of the host, and what it wants.
struct Callback(unsafe extern "C" fn(*mut c_void), usize);

impl Work for Callback {
    fn perform(&self, _on: &Stream) -> Call {
        // SAFETY: the application gave a function and what it wants.
        unsafe { (self.0)(self.1 as *mut c_void) };
        Ok(())
    }

    fn kind(&self) -> Kind {
        Kind::Host
    }
}

export! {
    fn cuStreamCreate(out: *mut Handle, flags: u32) {
        // SAFETY: the same contract.
        match unsafe { cuStreamCreateWithPriority(out, flags, 0) } { 0 => Ok(()), code => Err(code) }
    }

    fn cuStreamCreateWithPriority(out: *mut Handle, flags: u32, priority: i32) {
        let context = current()?;
        if flags > 1 || out.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let stream = Stream {
            context: context.id,
            flags,
            priority: priority.clamp(-5, 0),
            number: handle::number(),
            timeline: context.default_stream.timeline.clone(),
            ..Default::default()
        };
        give(out, handle::insert(Arc::new(stream))?)
    }

    fn cuStreamDestroy_v2(on: Handle) {
        super::context::initialised()?;
        if on as usize <= PER_THREAD {
            return Err(ERROR_INVALID_HANDLE);
        }
        handle::get::<Stream>(on)?;
        handle::remove(on);
        Ok(())
    }

    fn cuStreamSynchronize(on: Handle) {
        let context = current()?;
        let stream = stream(&context, on)?;
        not_captured(&stream, "a synchronisation")?;
        stream.awaited();
        Ok(())
    }

    fn cuStreamQuery(on: Handle) {
        let context = current()?;
        let stream = stream(&context, on)?;
        not_captured(&stream, "a query")?;
        stream.awaited();
        Ok(())
    }

    fn cuStreamGetFlags(on: Handle, out: *mut u32) {
        let context = current()?;
        give(out, stream(&context, on)?.flags)
    }

    fn cuStreamGetPriority(on: Handle, out: *mut i32) {
        let context = current()?;
        give(out, stream(&context, on)?.priority)
    }

    fn cuStreamGetId(on: Handle, out: *mut u64) {
        let context = current()?;
        give(out, stream(&context, on)?.number)
    }

    fn cuStreamGetCtx(on: Handle, out: *mut Handle) {
        let context = current()?;
        stream(&context, on)?;
        let mut now: Handle = std::ptr::null_mut();
        // SAFETY: a place of our own.
        let code = unsafe { super::context::cuCtxGetCurrent(&mut now) };
        if code != 0 {
            return Err(code);
        }
        give(out, now)
    }

    fn cuStreamAttachMemAsync(on: Handle, _at: u64, _length: usize, _flags: u32) {
        let context = current()?;
        stream(&context, on)?;
        Ok(())
    }

    fn cuStreamAddCallback(on: Handle, callback: Option<unsafe extern "C" fn(Handle, u32, *mut c_void)>, data: *mut c_void, _flags: u32) {
        let context = current()?;
        not_captured(&*stream(&context, on)?, "a callback")?;
        let Some(callback) = callback else { return Err(ERROR_INVALID_VALUE) };
        // SAFETY: the application gives a function and what it wants.
        unsafe { callback(on, 0, data) };
        Ok(())
    }

    fn cuLaunchHostFunc(on: Handle, callback: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let context = current()?;
        let stream = stream(&context, on)?;
        let Some(callback) = callback else { return Err(ERROR_INVALID_VALUE) };
        if let Some(capture) = capture(&stream) {
            return capture.add(&stream, Arc::new(Callback(callback, data as usize)));
        }
        // SAFETY: the application gives a function and what it wants.
        unsafe { callback(data) };
        Ok(())
    }
}

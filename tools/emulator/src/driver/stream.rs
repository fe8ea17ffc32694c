//! Streams. Work runs when it is given, so a stream is always done; what it records is a capture.

use super::code::*;
use super::context::current;
use super::object::{self, Context, Handle, Object, Stream};
use super::{export, give, graph, refuse};
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Handles that stand for the default streams.
const LEGACY: usize = 1;
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
pub(crate) fn stream(context: &Arc<Context>, handle: Handle) -> Result<Which, u32> {
    if handle as usize <= LEGACY {
        return Ok(Which::Default(context.clone()));
    }
    if handle as usize == PER_THREAD {
        return Ok(Which::Made(of_thread(context)));
    }
    // the stream that the thread used last, unless a handle has died since
    let age = object::generation();
    let known = KNOWN.with(|k| match &*k.borrow() {
        Some((h, g, s)) if *h == handle as u64 && *g == age && s.context == context.id => Some(s.clone()),
        _ => None,
    });
    if let Some(stream) = known {
        return Ok(Which::Made(stream));
    }
    let stream = object::stream_object(handle)?;
    if stream.context != context.id {
        return refuse(ERROR_INVALID_HANDLE, "the stream belongs to another context than the current one");
    }
    KNOWN.with(|k| *k.borrow_mut() = Some((handle as u64, age, stream.clone())));
    Ok(Which::Made(stream))
}

/// The calling thread's default stream of a context.
fn of_thread(context: &Context) -> Arc<Stream> {
    OWN.with(|own| {
        let mut own = own.borrow_mut();
        if let Some(stream) = own.iter().find(|stream| stream.context == context.id) {
            return stream.clone();
        }
        let stream = Arc::new(Stream { context: context.id, number: object::number(), ..Default::default() });
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

/// Whether the stream records. If so, the capture to which work goes.
pub(crate) fn capture(stream: &Stream) -> Option<Arc<graph::Capture>> {
    if !stream.capturing.load(Ordering::Acquire) {
        return None;
    }
    let mut known = stream.capture.lock().unwrap_or_else(PoisonError::into_inner);
    // a stream that joined is let go when the capture has ended elsewhere
    if known.as_ref().is_some_and(|c| !c.open()) {
        *known = None;
        stream.capturing.store(false, Ordering::Release);
    }
    known.clone()
}

/// Work that cannot be captured.
pub(crate) fn not_captured(stream: &Stream, what: &str) -> Result<(), u32> {
    match capture(stream) {
        None => Ok(()),
        Some(capture) => {
            capture.invalidate();
            refuse(ERROR_STREAM_CAPTURE_UNSUPPORTED, format!("{what} on a stream that is captured"))
        }
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
            number: object::number(),
            ..Default::default()
        };
        give(out, object::insert(Object::Stream(Arc::new(stream))))
    }

    fn cuStreamDestroy_v2(handle: Handle) {
        super::context::initialised()?;
        if handle as usize <= PER_THREAD {
            return Err(ERROR_INVALID_HANDLE);
        }
        object::stream_object(handle)?;
        object::remove(handle);
        Ok(())
    }

    fn cuStreamSynchronize(handle: Handle) {
        let context = current()?;
        not_captured(&*stream(&context, handle)?, "a synchronisation")
    }

    fn cuStreamQuery(handle: Handle) {
        let context = current()?;
        not_captured(&*stream(&context, handle)?, "a query")
    }

    fn cuStreamGetFlags(handle: Handle, out: *mut u32) {
        let context = current()?;
        give(out, stream(&context, handle)?.flags)
    }

    fn cuStreamGetPriority(handle: Handle, out: *mut i32) {
        let context = current()?;
        give(out, stream(&context, handle)?.priority)
    }

    fn cuStreamGetId(handle: Handle, out: *mut u64) {
        let context = current()?;
        give(out, stream(&context, handle)?.number)
    }

    fn cuStreamGetCtx(handle: Handle, out: *mut Handle) {
        let context = current()?;
        stream(&context, handle)?;
        let mut now: Handle = std::ptr::null_mut();
        // SAFETY: a place of our own.
        let code = unsafe { super::context::cuCtxGetCurrent(&mut now) };
        if code != 0 {
            return Err(code);
        }
        give(out, now)
    }

    fn cuStreamWaitEvent(handle: Handle, event: Handle, _flags: u32) {
        let context = current()?;
        let stream = stream(&context, handle)?;
        let event = object::event(event)?;
        let recorded = event.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (capture(&stream), recorded.capture) {
            (None, None) => Ok(()),
            (None, Some(other)) => {
                // the stream joins the capture
                if !other.open() {
                    return Ok(());
                }
                other.join(&stream);
                other.wait(&stream, &recorded.before);
                Ok(())
            }
            (Some(own), None) if recorded.at.is_some() => {
                own.invalidate();
                refuse(
                    ERROR_STREAM_CAPTURE_ISOLATION,
                    "a stream that is captured waits for an event recorded outside the capture",
                )
            }
            (Some(_), None) => Ok(()),
            (Some(own), Some(other)) if Arc::ptr_eq(&own, &other) => {
                own.wait(&stream, &recorded.before);
                Ok(())
            }
            (Some(own), Some(_)) => {
                own.invalidate();
                refuse(ERROR_STREAM_CAPTURE_MERGE, "two captures would become one")
            }
        }
    }

    fn cuStreamAttachMemAsync(handle: Handle, _at: u64, _length: usize, _flags: u32) {
        let context = current()?;
        stream(&context, handle)?;
        Ok(())
    }

    fn cuStreamAddCallback(handle: Handle, callback: Option<unsafe extern "C" fn(Handle, u32, *mut c_void)>, data: *mut c_void, _flags: u32) {
        let context = current()?;
        not_captured(&*stream(&context, handle)?, "a callback")?;
        let Some(callback) = callback else { return Err(ERROR_INVALID_VALUE) };
        // SAFETY: the application gives a function and what it wants.
        unsafe { callback(handle, 0, data) };
        Ok(())
    }

    fn cuLaunchHostFunc(handle: Handle, callback: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let context = current()?;
        let stream = stream(&context, handle)?;
        let Some(callback) = callback else { return Err(ERROR_INVALID_VALUE) };
        if let Some(capture) = capture(&stream) {
            return capture.add(&stream, graph::Node::Host(callback, data as usize));
        }
        // SAFETY: the application gives a function and what it wants.
        unsafe { callback(data) };
        Ok(())
    }

    fn cuStreamIsCapturing(handle: Handle, out: *mut u32) {
        let context = current()?;
        give(out, capture(&*stream(&context, handle)?).map_or(0, |c| c.status()))
    }

    fn cuStreamBeginCapture_v2(handle: Handle, mode: u32) {
        let context = current()?;
        if handle as usize <= LEGACY {
            return refuse(ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
        }
        if mode > 2 {
            return Err(ERROR_INVALID_VALUE);
        }
        let stream = stream(&context, handle)?;
        if capture(&stream).is_some() {
            return refuse(ERROR_ILLEGAL_STATE, "the stream is captured already");
        }
        graph::begin(&stream, mode);
        Ok(())
    }

    fn cuStreamEndCapture(handle: Handle, out: *mut Handle) {
        let context = current()?;
        let stream = stream(&context, handle)?;
        let Some(found) = capture(&stream) else {
            return refuse(ERROR_ILLEGAL_STATE, "the stream is not captured");
        };
        let graph = graph::end(&found, &stream)?;
        give(out, object::insert(Object::Graph(graph)))
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        if mode.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: a place of the caller's.
        let new = unsafe { mode.read() };
        give(mode, graph::exchange_mode(new))
    }
}

//! Streams and what they record: a capture takes work instead of doing it.

use super::call::{Call, refuse};
use super::code::*;
use super::handle::{self, Handle, Object};
use super::timeline::{Begun, Timeline};
use super::user::Owned;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Work of a stream, which can be done again.
pub(crate) trait Work: Send + Sync {
    /// Does it in a stream.
    fn perform(&self, on: &Stream) -> Call;

    /// What it is.
    fn kind(&self) -> Kind;

    /// The context in which it must stay.
    fn context(&self) -> Option<u64> {
        None
    }
}

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A kernel with its arguments.
    Kernel,
    /// A copy or a fill.
    Memory,
    /// A function of the host.
    Host,
}

/// Work as a capture or a graph holds it.
pub(crate) type Node = Arc<dyn Work>;

/// A stream.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) number: u64,
    pub(crate) capture: Mutex<Option<Arc<Capture>>>,
    /// Whether a capture is under way: read on every launch without a lock.
    pub(crate) capturing: AtomicBool,
    /// The order of work in the streams of its context.
    pub(crate) timeline: Arc<Timeline>,
}

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: u32 = 1;

impl Stream {
    /// Whether its work and the default stream's are in order.
    pub(crate) fn blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    /// Work begins in it.
    pub(crate) fn begin(&self, overlaps: bool) -> Begun {
        self.timeline.begin(self.number, self.blocking(), overlaps)
    }

    /// The host has waited for it.
    pub(crate) fn awaited(&self) {
        self.timeline.host_waits_for(self.number, self.blocking());
    }
}

impl Object for Stream {
    fn context(&self) -> Option<u64> {
        Some(self.context)
    }
}

/// A graph: work in the order in which the host gave it.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Mutex<Vec<Node>>,
    /// What it keeps for the application.
    owned: Mutex<Vec<Arc<Owned>>>,
}

impl Graph {
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn owned(&self) -> MutexGuard<'_, Vec<Arc<Owned>>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object for Graph {}

/// A capture under way.
pub(crate) struct Capture {
    pub(crate) id: u64,
    graph: Arc<Graph>,
    handle: u64,
    /// What each stream has given and knows to be done before its next work.
    streams: Mutex<HashMap<u64, Progress>>,
    origin: u64,
    invalid: AtomicBool,
    open: AtomicBool,
    mode: u32,
    thread: std::thread::ThreadId,
}

/// How many nodes of each stream come before something.
pub(crate) type Before = HashMap<u64, u64>;

/// A stream's part in a capture.
#[derive(Default)]
struct Progress {
    given: u64,
    before: Before,
}

thread_local! {
    /// Captures of this thread in a mode that forbids unsafe calls.
    static FORBIDDEN: Cell<u32> = const { Cell::new(0) };
    static MODE: Cell<u32> = const { Cell::new(0) };
}

impl Capture {
    /// Whether it has not ended.
    pub(crate) fn open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Spoils it: its end will be an error.
    pub(crate) fn invalidate(&self) {
        self.invalid.store(true, Ordering::Release);
    }

    /// The graph that grows.
    pub(crate) fn handle(&self) -> Handle {
        self.handle as Handle
    }

    /// As `cuStreamIsCapturing` says it.
    pub(crate) fn status(&self) -> u32 {
        if self.invalid.load(Ordering::Acquire) { 2 } else { 1 }
    }

    /// Adds work of a stream.
    pub(crate) fn add(&self, stream: &Stream, node: Node) -> Call {
        if self.invalid.load(Ordering::Acquire) {
            return Err(ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        self.graph.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).entry(stream.number).or_default().given += 1;
        Ok(())
    }

    /// What comes before an event that a stream records now.
    pub(crate) fn before(&self, stream: &Stream) -> Before {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = streams.entry(stream.number).or_default();
        let mut before = progress.before.clone();
        before.insert(stream.number, progress.given);
        before
    }

    /// A stream waits for an event.
    pub(crate) fn wait(&self, stream: &Stream, before: &Before) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let own = &mut streams.entry(stream.number).or_default().before;
        for (&other, &given) in before {
            let known = own.entry(other).or_default();
            *known = given.max(*known);
        }
    }

    /// Whether some stream's work does not come before the end of the origin.
    fn unjoined(&self) -> bool {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = streams.get(&self.origin).map(|p| &p.before);
        streams.iter().any(|(number, progress)| {
            let known = joined.and_then(|b| b.get(number)).copied().unwrap_or(0);
            *number != self.origin && progress.given > known
        })
    }

    /// Another stream takes part.
    pub(crate) fn join(self: &Arc<Self>, stream: &Stream) {
        *stream.capture.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clone());
        stream.capturing.store(true, Ordering::Release);
    }
}

/// Whether the stream records. If so, the capture to which work goes.
#[inline]
pub(crate) fn capture(stream: &Stream) -> Option<Arc<Capture>> {
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

/// Begins a capture.
pub(crate) fn begin(stream: &Stream, mode: u32) -> Call {
    let graph = Arc::<Graph>::default();
    let capture = Arc::new(Capture {
        id: handle::number(),
        handle: handle::insert(graph.clone())? as u64,
        graph,
        streams: Mutex::default(),
        origin: stream.number,
        invalid: AtomicBool::new(false),
        open: AtomicBool::new(true),
        mode,
        thread: std::thread::current().id(),
    });
    capture.join(stream);
    if mode != 2 {
        FORBIDDEN.with(|f| f.set(f.get() + 1));
    }
    Ok(())
}

/// Ends a capture, and gives its graph.
pub(crate) fn end(capture: &Arc<Capture>, stream: &Stream) -> Result<Handle, u32> {
    if stream.number != capture.origin {
        capture.invalidate();
        return refuse(ERROR_STREAM_CAPTURE_UNMATCHED, "a capture ends in the stream in which it began");
    }
    if capture.mode != 2 && capture.thread != std::thread::current().id() {
        return refuse(ERROR_STREAM_CAPTURE_WRONG_THREAD, "a capture ends in the thread in which it began");
    }
    if capture.mode != 2 {
        FORBIDDEN.with(|f| f.set(f.get().saturating_sub(1)));
    }
    capture.open.store(false, Ordering::Release);
    *stream.capture.lock().unwrap_or_else(PoisonError::into_inner) = None;
    stream.capturing.store(false, Ordering::Release);
    if capture.invalid.load(Ordering::Acquire) {
        handle::remove(capture.handle());
        return refuse(ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was spoilt by an earlier call");
    }
    if capture.unjoined() {
        handle::remove(capture.handle());
        return refuse(
            ERROR_STREAM_CAPTURE_UNJOINED,
            "another stream has given work to the capture, and the stream in which it began does not wait for it",
        );
    }
    Ok(capture.handle())
}

/// The calling thread's mode of captures.
pub(crate) fn exchange_mode(new: u32) -> u32 {
    MODE.with(|m| m.replace(new))
}

/// A call that may not be made while this thread captures: allocations, synchronous copies, synchronisation.
pub(crate) fn unsafe_call() -> Call {
    if FORBIDDEN.with(Cell::get) > 0 && MODE.with(Cell::get) != 2 {
        return refuse(
            ERROR_STREAM_CAPTURE_UNSUPPORTED,
            "an allocation, a synchronous copy or a synchronisation while the thread captures a stream",
        );
    }
    Ok(())
}

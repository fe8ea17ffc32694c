//! Capture of streams, and graphs: a list of nodes in the order in which the host gave them, which is an order that
//! keeps every dependency.

use super::code::*;
use super::context::current;
use super::object::{self, Handle, Object, Stream};
use super::stream::{capture, stream};
use super::{Call, export, give, launch, memory, refuse};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Work that can be done again.
#[derive(Clone)]
pub(crate) enum Node {
    /// A kernel with its arguments.
    Kernel(Arc<launch::Prepared>),
    /// A copy or a fill.
    Memory(memory::Work),
    /// A function of the host, and what it wants.
    Host(unsafe extern "C" fn(*mut c_void), usize),
}

/// A capture under way.
pub(crate) struct Capture {
    nodes: Mutex<Vec<Node>>,
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

/// A graph.
pub(crate) struct Graph {
    nodes: Vec<Node>,
}

/// A graph ready to run.
pub(crate) struct Exec {
    nodes: Mutex<Vec<Node>>,
}

impl Exec {
    fn nodes(&self) -> Vec<Node> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
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

    /// As `cuStreamIsCapturing` says it.
    pub(crate) fn status(&self) -> u32 {
        if self.invalid.load(Ordering::Acquire) { 2 } else { 1 }
    }

    /// Adds work of a stream.
    pub(crate) fn add(&self, stream: &Stream, node: Node) -> Call {
        if self.invalid.load(Ordering::Acquire) {
            return Err(ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
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

/// Begins a capture.
pub(crate) fn begin(stream: &Stream, mode: u32) {
    let capture = Arc::new(Capture {
        nodes: Mutex::default(),
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
}

/// Ends a capture.
pub(crate) fn end(capture: &Arc<Capture>, stream: &Stream) -> Result<Arc<Graph>, u32> {
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
        return refuse(ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was spoilt by an earlier call");
    }
    if capture.unjoined() {
        return refuse(
            ERROR_STREAM_CAPTURE_UNJOINED,
            "another stream has given work to the capture, and the stream in which it began does not wait for it",
        );
    }
    let nodes = std::mem::take(&mut *capture.nodes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Arc::new(Graph { nodes }))
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

fn run(nodes: &[Node]) -> Call {
    for node in nodes {
        match node {
            Node::Kernel(prepared) => launch::execute(prepared)?,
            Node::Memory(work) => memory::perform(work)?,
            // SAFETY: the application gave a function and what it wants.
            Node::Host(callback, data) => unsafe { callback(*data as *mut c_void) },
        }
    }
    Ok(())
}

/// `AUTO_FREE_ON_LAUNCH`, `UPLOAD`, `DEVICE_LAUNCH`, `USE_NODE_PRIORITY`
const KNOWN_FLAGS: u64 = 15;

fn instantiate(out: *mut Handle, graph: Handle, flags: u64) -> Call {
    current()?;
    let graph = object::graph(graph)?;
    // a graph launched from the device can neither free memory nor hold other than kernels and copies
    if flags & !KNOWN_FLAGS != 0 || flags & 4 != 0 && flags & 1 != 0 {
        return Err(ERROR_INVALID_VALUE);
    }
    give(out, object::insert(Object::Exec(Arc::new(Exec { nodes: Mutex::new(graph.nodes.clone()) }))))
}

/// `CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED`
const TOPOLOGY_CHANGED: u32 = 2;
/// `CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED`
const NODE_TYPE_CHANGED: u32 = 3;
/// `CU_GRAPH_EXEC_UPDATE_ERROR_UNSUPPORTED_FUNCTION_CHANGE`
const FUNCTION_CHANGED: u32 = 7;

/// Gives a graph that is ready to run the nodes of another one like it; the result is what the driver calls it, 0 where
/// it was done.
fn update(exec: Handle, graph: Handle) -> Result<u32, u32> {
    current()?;
    let (exec, graph) = (object::exec(exec)?, object::graph(graph)?);
    let mut nodes = exec.nodes.lock().unwrap_or_else(PoisonError::into_inner);
    if nodes.len() != graph.nodes.len() {
        return Ok(TOPOLOGY_CHANGED);
    }
    for (old, new) in nodes.iter().zip(&graph.nodes) {
        match (old, new) {
            (Node::Kernel(old), Node::Kernel(new)) if !old.same_context(new) => return Ok(FUNCTION_CHANGED),
            (Node::Kernel(_), Node::Kernel(_))
            | (Node::Memory(_), Node::Memory(_))
            | (Node::Host(..), Node::Host(..)) => {}
            _ => return Ok(NODE_TYPE_CHANGED),
        }
    }
    nodes.clone_from(&graph.nodes);
    Ok(0)
}

fn updated(result: u32) -> Call {
    if result == 0 {
        return Ok(());
    }
    let what = match result {
        TOPOLOGY_CHANGED => "it has another number of nodes",
        NODE_TYPE_CHANGED => "a node is of another kind",
        _ => "a kernel is of another context",
    };
    refuse(ERROR_GRAPH_EXEC_UPDATE_FAILURE, format!("a graph is updated with one that is not like it: {what}"))
}

/// `CUgraphExecUpdateResultInfo`
#[repr(C)]
pub(crate) struct UpdateInfo {
    result: u32,
    node: Handle,
    from: Handle,
}

export! {
    fn cuGraphExecUpdate_v2(exec: Handle, graph: Handle, info: *mut UpdateInfo) {
        let result = update(exec, graph)?;
        let none = std::ptr::null_mut();
        give(info, UpdateInfo { result, node: none, from: none })?;
        updated(result)
    }

    fn cuGraphExecUpdate(exec: Handle, graph: Handle, node: *mut Handle, out: *mut u32) {
        let result = update(exec, graph)?;
        if !node.is_null() {
            give(node, std::ptr::null_mut())?;
        }
        give(out, result)?;
        updated(result)
    }

    fn cuGraphCreate(out: *mut Handle, flags: u32) {
        if flags != 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        give(out, object::insert(Object::Graph(Arc::new(Graph { nodes: Vec::new() }))))
    }

    fn cuGraphDestroy(graph: Handle) {
        object::graph(graph)?;
        object::remove(graph);
        Ok(())
    }

    fn cuGraphInstantiateWithFlags(out: *mut Handle, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }

    fn cuGraphInstantiate_v2(out: *mut Handle, graph: Handle, _node: *mut Handle, _log: *mut c_char, _room: usize) {
        instantiate(out, graph, 0)
    }

    fn cuGraphExecDestroy(exec: Handle) {
        object::exec(exec)?;
        object::remove(exec);
        Ok(())
    }

    fn cuGraphUpload(exec: Handle, on: Handle) {
        let context = current()?;
        object::exec(exec)?;
        stream(&context, on)?;
        Ok(())
    }

    fn cuGraphLaunch(exec: Handle, on: Handle) {
        let context = current()?;
        let exec = object::exec(exec)?;
        let stream = stream(&context, on)?;
        if let Some(capture) = capture(&stream) {
            for node in exec.nodes() {
                capture.add(&stream, node)?;
            }
            return Ok(());
        }
        run(&exec.nodes())
    }

    fn cuGraphGetNodes(graph: Handle, _nodes: *mut Handle, count: *mut usize) {
        // only the number: nodes have no handles here
        give(count, object::graph(graph)?.nodes.len())
    }
}

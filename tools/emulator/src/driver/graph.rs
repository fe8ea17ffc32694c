//! Graphs: a list of nodes in the order in which the host gave them, which is an order that keeps every dependency.

use super::call::{Call, export, give, refuse};
use super::capture::{self, Capture, Graph, Node, capture as recorded};
use super::code::*;
use super::context::current;
use super::handle::{self, Handle, Object};
use super::stream::{LEGACY, stream};
use super::user::{Owned, UserObject};
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// A graph ready to run.
pub(crate) struct Exec {
    nodes: Mutex<Vec<Node>>,
    /// What the graphs that it was made of keep for the application.
    owned: Mutex<Vec<Arc<Owned>>>,
}

impl Object for Exec {}

impl Exec {
    fn nodes(&self) -> Vec<Node> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `AUTO_FREE_ON_LAUNCH`, `UPLOAD`, `DEVICE_LAUNCH`, `USE_NODE_PRIORITY`
const KNOWN_FLAGS: u64 = 15;

fn instantiate(out: *mut Handle, graph: Handle, flags: u64) -> Call {
    current()?;
    let graph = handle::get::<Graph>(graph)?;
    // a graph launched from the device can neither free memory nor hold other than kernels and copies
    if flags & !KNOWN_FLAGS != 0 || flags & 4 != 0 && flags & 1 != 0 {
        return Err(ERROR_INVALID_VALUE);
    }
    give(
        out,
        handle::insert(Arc::new(Exec { nodes: Mutex::new(graph.nodes()), owned: Mutex::new(graph.owned().clone()) }))?,
    )
}

/// `CU_GRAPH_USER_OBJECT_MOVE`
const MOVE: u32 = 1;
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
    let (exec, graph) = (handle::get::<Exec>(exec)?, handle::get::<Graph>(graph)?);
    let mut nodes = exec.nodes.lock().unwrap_or_else(PoisonError::into_inner);
    let new_nodes = graph.nodes();
    if nodes.len() != new_nodes.len() {
        return Ok(TOPOLOGY_CHANGED);
    }
    for (old, new) in nodes.iter().zip(&new_nodes) {
        if old.kind() != new.kind() {
            return Ok(NODE_TYPE_CHANGED);
        }
        if old.context() != new.context() {
            return Ok(FUNCTION_CHANGED);
        }
    }
    *nodes = new_nodes;
    *exec.owned.lock().unwrap_or_else(PoisonError::into_inner) = graph.owned().clone();
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

fn capture_of(on: Handle) -> Result<Option<Arc<Capture>>, u32> {
    let context = current()?;
    Ok(recorded(&*stream(&context, on)?))
}

fn give_info(found: Option<&Capture>, status: *mut u32, id: *mut u64, graph: *mut Handle) -> Call {
    give(status, found.map_or(0, Capture::status))?;
    let Some(found) = found else { return Ok(()) };
    if !id.is_null() {
        give(id, found.id)?;
    }
    if graph.is_null() { Ok(()) } else { give(graph, found.handle()) }
}

/// Nodes have no handles here, and every function that takes one says that it is not implemented.
fn no_nodes(nodes: *mut *const Handle, count: *mut usize) -> Call {
    if !nodes.is_null() {
        give(nodes, std::ptr::null())?;
    }
    if count.is_null() { Ok(()) } else { give(count, 0) }
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`
#[repr(C)]
pub(crate) struct InstantiateParams {
    flags: u64,
    stream: Handle,
    node: Handle,
    result: u32,
}

export! {
    fn cuStreamIsCapturing(on: Handle, out: *mut u32) {
        let context = current()?;
        give(out, recorded(&*stream(&context, on)?).map_or(0, |c| c.status()))
    }

    fn cuStreamGetCaptureInfo(on: Handle, status: *mut u32, id: *mut u64) {
        let found = capture_of(on)?;
        give_info(found.as_deref(), status, id, std::ptr::null_mut())
    }

    fn cuStreamGetCaptureInfo_v2(
        on: Handle, status: *mut u32, id: *mut u64, graph: *mut Handle, nodes: *mut *const Handle, count: *mut usize,
    ) {
        let found = capture_of(on)?;
        give_info(found.as_deref(), status, id, graph)?;
        no_nodes(nodes, count)
    }

    fn cuStreamGetCaptureInfo_v3(
        on: Handle, status: *mut u32, id: *mut u64, graph: *mut Handle, nodes: *mut *const Handle,
        edges: *mut *const c_void, count: *mut usize,
    ) {
        let found = capture_of(on)?;
        give_info(found.as_deref(), status, id, graph)?;
        if !edges.is_null() {
            give(edges, std::ptr::null())?;
        }
        no_nodes(nodes, count)
    }

    fn cuStreamBeginCapture_v2(on: Handle, mode: u32) {
        let context = current()?;
        if on as usize <= LEGACY {
            return refuse(ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
        }
        if mode > 2 {
            return Err(ERROR_INVALID_VALUE);
        }
        let stream = stream(&context, on)?;
        if recorded(&stream).is_some() {
            return refuse(ERROR_ILLEGAL_STATE, "the stream is captured already");
        }
        capture::begin(&stream, mode)
    }

    fn cuStreamEndCapture(on: Handle, out: *mut Handle) {
        let context = current()?;
        let stream = stream(&context, on)?;
        let Some(found) = recorded(&stream) else {
            return refuse(ERROR_ILLEGAL_STATE, "the stream is not captured");
        };
        give(out, capture::end(&found, &stream)?)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        if mode.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: a place of the caller's.
        let new = unsafe { mode.read() };
        give(mode, capture::exchange_mode(new))
    }

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
        give(out, handle::insert(Arc::<Graph>::default())?)
    }

    fn cuGraphDestroy(graph: Handle) {
        handle::get::<Graph>(graph)?;
        handle::remove(graph);
        Ok(())
    }

    fn cuGraphRetainUserObject(graph: Handle, object: Handle, count: u32, flags: u32) {
        let (graph, object) = (handle::get::<Graph>(graph)?, handle::get::<UserObject>(object)?);
        let given = match flags {
            0 => object.retain(count)?,
            MOVE => object.take(count)?,
            _ => return Err(ERROR_INVALID_VALUE),
        };
        graph.owned().extend(given);
        Ok(())
    }

    fn cuGraphReleaseUserObject(graph: Handle, object: Handle, count: u32) {
        let graph = handle::get::<Graph>(graph)?;
        let mut released = Vec::new();
        let mut owned = graph.owned();
        for _ in 0..count {
            let at = owned.iter().position(|o| UserObject::is(object, o)).ok_or(ERROR_INVALID_VALUE)?;
            released.push(owned.swap_remove(at));
        }
        // their end may call the application
        drop(owned);
        Ok(())
    }

    fn cuGraphInstantiateWithParams(out: *mut Handle, graph: Handle, params: *mut InstantiateParams) {
        if params.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: the application gives them, and a place for what comes back in them.
        let params = unsafe { &mut *params };
        instantiate(out, graph, params.flags)?;
        (params.node, params.result) = (std::ptr::null_mut(), 0);
        Ok(())
    }

    fn cuGraphInstantiateWithFlags(out: *mut Handle, graph: Handle, flags: u64) {
        instantiate(out, graph, flags)
    }

    fn cuGraphInstantiate_v2(out: *mut Handle, graph: Handle, _node: *mut Handle, _log: *mut c_char, _room: usize) {
        instantiate(out, graph, 0)
    }

    fn cuGraphExecDestroy(exec: Handle) {
        handle::get::<Exec>(exec)?;
        handle::remove(exec);
        Ok(())
    }

    fn cuGraphUpload(exec: Handle, on: Handle) {
        let context = current()?;
        handle::get::<Exec>(exec)?;
        stream(&context, on)?;
        Ok(())
    }

    fn cuGraphLaunch(exec: Handle, on: Handle) {
        let context = current()?;
        let exec = handle::get::<Exec>(exec)?;
        let stream = stream(&context, on)?;
        if let Some(capture) = recorded(&stream) {
            for node in exec.nodes() {
                capture.add(&stream, node)?;
            }
            return Ok(());
        }
        exec.nodes().iter().try_for_each(|node| node.perform(&stream))
    }

    fn cuGraphGetNodes(graph: Handle, _nodes: *mut Handle, count: *mut usize) {
        // only the number: nodes have no handles here
        give(count, handle::get::<Graph>(graph)?.nodes().len())
    }
}

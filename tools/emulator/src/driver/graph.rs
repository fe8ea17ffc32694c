//! Graphs: a list of nodes in the order in which the host gave them, which is an order that keeps every dependency.

use super::call::{Call, export, give, refuse};
use super::capture::{self, Node, capture as recorded};
use super::code::*;
use super::context::current;
use super::handle::{self, Handle, Object};
use super::stream::{LEGACY, stream};
use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};

/// A graph.
pub(crate) struct Graph {
    nodes: Vec<Node>,
}

impl Object for Graph {}

/// A graph ready to run.
pub(crate) struct Exec {
    nodes: Mutex<Vec<Node>>,
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
    give(out, handle::insert(Arc::new(Exec { nodes: Mutex::new(graph.nodes.clone()) }))?)
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
    let (exec, graph) = (handle::get::<Exec>(exec)?, handle::get::<Graph>(graph)?);
    let mut nodes = exec.nodes.lock().unwrap_or_else(PoisonError::into_inner);
    if nodes.len() != graph.nodes.len() {
        return Ok(TOPOLOGY_CHANGED);
    }
    for (old, new) in nodes.iter().zip(&graph.nodes) {
        if old.kind() != new.kind() {
            return Ok(NODE_TYPE_CHANGED);
        }
        if old.context() != new.context() {
            return Ok(FUNCTION_CHANGED);
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
    fn cuStreamIsCapturing(on: Handle, out: *mut u32) {
        let context = current()?;
        give(out, recorded(&*stream(&context, on)?).map_or(0, |c| c.status()))
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
        capture::begin(&stream, mode);
        Ok(())
    }

    fn cuStreamEndCapture(on: Handle, out: *mut Handle) {
        let context = current()?;
        let stream = stream(&context, on)?;
        let Some(found) = recorded(&stream) else {
            return refuse(ERROR_ILLEGAL_STATE, "the stream is not captured");
        };
        let nodes = capture::end(&found, &stream)?;
        give(out, handle::insert(Arc::new(Graph { nodes }))?)
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
        give(out, handle::insert(Arc::new(Graph { nodes: Vec::new() }))?)
    }

    fn cuGraphDestroy(graph: Handle) {
        handle::get::<Graph>(graph)?;
        handle::remove(graph);
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
        give(count, handle::get::<Graph>(graph)?.nodes.len())
    }
}

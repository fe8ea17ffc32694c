//! Events: moments of the host's clock, because work runs when it is given.

use super::call::{Call, export, give, refuse};
use super::capture::{Before, Capture, capture};
use super::code::*;
use super::context::{current, initialised};
use super::handle::{self, Handle, Object};
use super::stream::stream;
use super::timeline::Clock;
use crate::config::nanoseconds;
use std::sync::{Arc, Mutex, PoisonError};

/// An event.
pub(crate) struct Event {
    pub(crate) flags: u32,
    pub(crate) recorded: Mutex<Recorded>,
}

impl Object for Event {}

/// What an event marks.
#[derive(Clone, Default)]
pub(crate) struct Recorded {
    /// Nanoseconds, if it was recorded.
    pub(crate) at: Option<u64>,
    /// The capture in which it was recorded.
    pub(crate) capture: Option<Arc<Capture>>,
    /// What comes before it there.
    pub(crate) before: Before,
    /// The context, and what came before it in its streams.
    pub(crate) done: (u64, Clock),
}

/// `CU_EVENT_DISABLE_TIMING`
const NO_TIMING: u32 = 2;

fn recorded(event: &Event) -> Recorded {
    event.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn outside_capture(event: &Event) -> Call {
    match recorded(event).capture {
        Some(capture) if capture.open() => {
            capture.invalidate();
            refuse(ERROR_CAPTURED_EVENT, "the event was last recorded in a stream that is captured")
        }
        _ => Ok(()),
    }
}

/// The host waits for an event.
fn awaited(event: Handle) -> Call {
    let context = current()?;
    let event = handle::get::<Event>(event)?;
    outside_capture(&event)?;
    let done = recorded(&event).done;
    if done.0 == context.id {
        context.default_stream.timeline.host_waits(&done.1);
    }
    Ok(())
}

/// Records an event in a stream.
pub(crate) fn record(event: Handle, on: Handle) -> Call {
    let context = current()?;
    let event = handle::get::<Event>(event)?;
    let stream = stream(&context, on)?;
    let capture = capture(&stream);
    let at = if capture.is_some() { None } else { Some(nanoseconds()) };
    let done = match &capture {
        None => (stream.context, stream.timeline.record(stream.number, stream.blocking())),
        Some(_) => Default::default(),
    };
    let before = capture.as_ref().map(|c| c.before(&stream)).unwrap_or_default();
    *event.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Recorded { at, capture, before, done };
    Ok(())
}

fn elapsed(out: *mut f32, start: Handle, end: Handle) -> Call {
    current()?;
    let (start, end) = (handle::get::<Event>(start)?, handle::get::<Event>(end)?);
    if (start.flags | end.flags) & NO_TIMING != 0 {
        return refuse(ERROR_INVALID_HANDLE, "an event without timing has no time");
    }
    match (recorded(&start).at, recorded(&end).at) {
        (Some(a), Some(b)) => give(out, (b as f64 - a as f64) as f32 / 1e6),
        _ => refuse(ERROR_INVALID_HANDLE, "an event was never recorded"),
    }
}

export! {
    fn cuEventCreate(out: *mut Handle, flags: u32) {
        current()?;
        if flags > 7 || out.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        give(out, handle::insert(Arc::new(Event { flags, recorded: Mutex::default() }))?)
    }

    fn cuEventDestroy_v2(event: Handle) {
        initialised()?;
        handle::get::<Event>(event)?;
        handle::remove(event);
        Ok(())
    }

    fn cuEventRecord(event: Handle, on: Handle) {
        record(event, on)
    }

    fn cuEventRecordWithFlags(event: Handle, on: Handle, _flags: u32) {
        record(event, on)
    }

    fn cuEventQuery(event: Handle) {
        awaited(event)
    }

    fn cuEventSynchronize(event: Handle) {
        awaited(event)
    }

    fn cuEventElapsedTime(out: *mut f32, start: Handle, end: Handle) {
        elapsed(out, start, end)
    }

    fn cuEventElapsedTime_v2(out: *mut f32, start: Handle, end: Handle) {
        elapsed(out, start, end)
    }

    fn cuStreamWaitEvent(on: Handle, event: Handle, _flags: u32) {
        let context = current()?;
        let stream = stream(&context, on)?;
        let event = handle::get::<Event>(event)?;
        let recorded = event.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (capture(&stream), recorded.capture) {
            (None, None) => {
                if recorded.done.0 == stream.context {
                    stream.timeline.wait(stream.number, &recorded.done.1);
                }
                Ok(())
            }
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
}

//! Events: moments of the host's clock, because work runs when it is given.

use super::code::*;
use super::context::current;
use super::object::{self, Event, Handle, Object, Recorded};
use super::stream::{capture, stream};
use super::{Call, export, give, refuse};
use crate::config::nanoseconds;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Records an event in a stream.
pub(crate) fn record(handle: Handle, on: Handle) -> Call {
    let context = current()?;
    let event = object::event(handle)?;
    let stream = stream(&context, on)?;
    let capture = capture(&stream);
    let at = if capture.is_some() { None } else { Some(nanoseconds()) };
    let before = capture.as_ref().map(|c| c.before(&stream)).unwrap_or_default();
    *event.recorded.lock().unwrap_or_else(PoisonError::into_inner) = Recorded { at, capture, before };
    Ok(())
}

fn elapsed(out: *mut f32, start: Handle, end: Handle) -> Call {
    current()?;
    let (start, end) = (object::event(start)?, object::event(end)?);
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
        give(out, object::insert(Object::Event(Arc::new(Event { flags, recorded: Mutex::default() }))))
    }

    fn cuEventDestroy_v2(handle: Handle) {
        super::context::initialised()?;
        object::event(handle)?;
        object::remove(handle);
        Ok(())
    }

    fn cuEventRecord(handle: Handle, on: Handle) {
        record(handle, on)
    }

    fn cuEventRecordWithFlags(handle: Handle, on: Handle, _flags: u32) {
        record(handle, on)
    }

    fn cuEventQuery(handle: Handle) {
        current()?;
        outside_capture(&*object::event(handle)?)
    }

    fn cuEventSynchronize(handle: Handle) {
        current()?;
        outside_capture(&*object::event(handle)?)
    }

    fn cuEventElapsedTime(out: *mut f32, start: Handle, end: Handle) {
        elapsed(out, start, end)
    }

    fn cuEventElapsedTime_v2(out: *mut f32, start: Handle, end: Handle) {
        elapsed(out, start, end)
    }
}

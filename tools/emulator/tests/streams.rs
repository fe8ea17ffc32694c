//! Order between launches: of one stream, where a launch may overlap the one before it, and of several streams.

// launches are unsafe; here every kernel gets the buffers that it was written for, or its fault is the test
#![allow(clippy::undocumented_unsafe_blocks)]

mod support;

use cudarc::driver::{CudaFunction, CudaStream, result, sys};
use std::sync::Arc;
use support::{Device, launch_with, overlap};

/// Kernels over 32 words at `p`: one that reads, one that writes, and those that do it before and behind their wait.
const PTX: &str = "
.version 7.8
.target sm_90
.address_size 64
.visible .entry reads(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
ld.global.u32 %r2, [%x2]; ret; }
.visible .entry writes(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
st.global.u32 [%x2], %r1; ret; }
.visible .entry reads_early(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
ld.global.u32 %r2, [%x2]; griddepcontrol.wait; griddepcontrol.launch_dependents; ret; }
.visible .entry reads_late(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
griddepcontrol.wait; ld.global.u32 %r2, [%x2]; griddepcontrol.launch_dependents; ret; }
.visible .entry writes_early(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
st.global.u32 [%x2], %r1; griddepcontrol.wait; ret; }
.visible .entry writes_late(.param .u64 p)
{ .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %x2, %r1, 4, %x1;
griddepcontrol.wait; griddepcontrol.launch_dependents; st.global.u32 [%x2], %r1; ret; }
.visible .entry one_thread_waits(.param .u64 p)
{ .reg .pred %q1; .reg .b32 %r<4>; .reg .b64 %x<4>; ld.param.u64 %x1, [p]; mov.u32 %r1, %tid.x;
mad.wide.u32 %x2, %r1, 4, %x1; setp.eq.u32 %q1, %r1, 0; @!%q1 bra ON; griddepcontrol.wait; ON: bar.sync 0;
ld.global.u32 %r2, [%x2]; ret; }
";

/// A stream, as cudarc or the driver has it.
trait Handle {
    fn handle(&self) -> sys::CUstream;
}

impl Handle for Arc<CudaStream> {
    fn handle(&self) -> sys::CUstream {
        self.cu_stream()
    }
}

impl Handle for sys::CUstream {
    fn handle(&self) -> sys::CUstream {
        *self
    }
}

struct Place {
    d: Device,
    at: u64,
}

impl Place {
    /// 128 bytes that the host wrote.
    fn new() -> Self {
        let d = Device::new();
        d.emulator.set_quiet(true);
        d.context.bind_to_thread().unwrap();
        let at = unsafe { result::malloc_sync(128) }.unwrap();
        unsafe { result::memcpy_htod_sync(at, &[7u8; 128]) }.unwrap();
        Self { d, at }
    }

    fn kernel(&self, name: &str) -> CudaFunction {
        self.d.kernel(PTX, name)
    }

    /// One block of 32 threads; `overlaps`: with the attribute of programmatic stream serialization.
    fn launch(&self, f: &CudaFunction, on: &impl Handle, overlaps: bool) {
        let attributes = &mut [overlap()][..usize::from(overlaps)];
        unsafe { launch_with(f, self.at, on.handle(), attributes) }.result().unwrap();
    }

    /// What is wrong with all that ran.
    fn said(&self) -> Option<String> {
        let failed = self.d.context.synchronize().is_err();
        failed.then(|| self.d.emulator.last_error().unwrap())
    }

    fn fine(&self) {
        assert_eq!(self.said(), None);
    }

    fn caught(&self, parts: &[&str]) {
        let said = self.said().expect("nothing was seen");
        for part in parts.iter().chain(&["a race"]) {
            assert!(said.contains(part), "{part:?} is missing:\n{said}");
        }
        self.d.emulator.clear_error();
    }

    fn stream(&self) -> Arc<CudaStream> {
        self.d.context.new_stream().unwrap()
    }
}

// ---- a launch that may begin before its predecessor's end ------------------------------------------------------------

/// Two launches one after the other, the second of which may overlap the first.
fn overlapping(first: &str, second: &str, between: impl Fn(&Place, &CudaStream)) -> Place {
    let p = Place::new();
    let stream = p.stream();
    p.launch(&p.kernel(first), &stream, false);
    between(&p, &stream);
    p.launch(&p.kernel(second), &stream, true);
    p
}

#[test]
fn what_comes_before_the_wait_may_not_meet_the_predecessor() {
    let until = "may overlap it until the thread has run griddepcontrol.wait";
    overlapping("writes", "reads_early", |_, _| {}).caught(&[
        "`reads_early`",
        "kernel `writes` in stream",
        "wrote",
        until,
    ]);
    overlapping("writes", "writes_early", |_, _| {}).caught(&["wrote", until]);
    overlapping("reads", "writes_early", |_, _| {}).caught(&["kernel `reads` in stream", "read, and", until]);
    // no wait at all, as in PTX for older architectures
    overlapping("writes", "reads", |_, _| {}).caught(&["kernel `reads`", "wrote", until]);
    overlapping("writes", "writes", |_, _| {}).caught(&[until]);
}

#[test]
fn what_comes_behind_the_wait_may() {
    overlapping("writes", "reads_late", |_, _| {}).fine();
    overlapping("reads", "writes_late", |_, _| {}).fine();
    overlapping("reads", "reads_early", |_, _| {}).fine();
    overlapping("writes", "one_thread_waits", |_, _| {}).fine();
}

#[test]
fn other_work_between_ends_the_overlap() {
    overlapping("writes", "reads_early", |_, s| s.synchronize().unwrap()).fine();
    overlapping("writes", "reads_early", |p, _| p.d.context.synchronize().unwrap()).fine();
    overlapping("writes", "reads_early", |p, s| {
        unsafe { result::memset_d8_async(p.at + 64, 0, 64, s.cu_stream()) }.unwrap();
    })
    .fine();
    // without the attribute there is none
    let p = Place::new();
    let stream = p.stream();
    p.launch(&p.kernel("writes"), &stream, false);
    p.launch(&p.kernel("reads_early"), &stream, false);
    p.fine();
}

#[test]
fn a_launch_overlaps_the_one_before_the_one_before() {
    let p = Place::new();
    let stream = p.stream();
    p.launch(&p.kernel("writes_late"), &stream, true);
    // which lets the next one begin before it has waited itself
    p.launch(&p.kernel("reads_late"), &stream, true);
    p.launch(&p.kernel("reads_early"), &stream, true);
    p.caught(&["kernel `writes_late` in stream"]);
}

#[test]
fn a_graph_keeps_the_overlap() {
    let p = Place::new();
    let stream = p.stream();
    let (first, second) = (p.kernel("writes"), p.kernel("reads_early"));
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    p.launch(&first, &stream, false);
    p.launch(&second, &stream, true);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    p.fine();
    graph.launch().unwrap();
    p.caught(&["`reads_early`", "kernel `writes` in stream"]);
}

// ---- streams ---------------------------------------------------------------------------------------------------------

const UNORDERED: &str = "neither an event nor a synchronisation orders it before";

/// Two launches in two streams.
fn two(first: &str, second: &str, between: impl Fn(&Place, &CudaStream, &CudaStream)) -> Place {
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    p.launch(&p.kernel(first), &a, false);
    between(&p, &a, &b);
    p.launch(&p.kernel(second), &b, false);
    p
}

#[test]
fn an_event_is_missing() {
    two("writes", "reads", |_, _, _| {}).caught(&["kernel `reads`", "kernel `writes` in stream", "wrote", UNORDERED]);
    two("writes", "writes", |_, _, _| {}).caught(&["wrote", UNORDERED]);
    two("reads", "writes", |_, _, _| {}).caught(&["kernel `writes`", "kernel `reads` in stream", "read", UNORDERED]);
    two("reads", "reads", |_, _, _| {}).fine();
    // an event that is recorded too early, or that the wrong stream waits for
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    let event = a.record_event(None).unwrap();
    p.launch(&p.kernel("writes"), &a, false);
    b.wait(&event).unwrap();
    p.launch(&p.kernel("reads"), &b, false);
    p.caught(&[UNORDERED]);
    two("writes", "reads", |p, a, _| p.stream().wait(&a.record_event(None).unwrap()).unwrap()).caught(&[UNORDERED]);
}

#[test]
fn an_event_or_a_synchronisation_orders() {
    two("writes", "reads", |_, a, b| b.wait(&a.record_event(None).unwrap()).unwrap()).fine();
    two("writes", "reads", |_, a, _| a.synchronize().unwrap()).fine();
    two("writes", "reads", |_, a, _| a.record_event(None).unwrap().synchronize().unwrap()).fine();
    two("writes", "reads", |p, _, _| p.d.context.synchronize().unwrap()).fine();
    // by way of a third stream
    two("writes", "reads", |p, a, b| {
        let c = p.stream();
        c.wait(&a.record_event(None).unwrap()).unwrap();
        b.wait(&c.record_event(None).unwrap()).unwrap();
    })
    .fine();
}

#[test]
fn the_default_stream_waits_for_blocking_streams_and_they_for_it() {
    let made = |p: &Place, flags: u32| {
        let mut s = std::ptr::null_mut();
        p.d.context.bind_to_thread().unwrap();
        unsafe { sys::cuStreamCreate(&mut s, flags) }.result().unwrap();
        s
    };
    for (flags, fine) in [(0, true), (1, false)] {
        for default_first in [true, false] {
            let p = Place::new();
            let stream = made(&p, flags);
            let default = p.d.stream.cu_stream();
            let (a, b) = if default_first { (default, stream) } else { (stream, default) };
            p.launch(&p.kernel("writes"), &a, false);
            p.launch(&p.kernel("reads"), &b, false);
            let name = if default_first { "in the default stream" } else { "in stream" };
            if fine { p.fine() } else { p.caught(&[name, UNORDERED]) }
        }
    }
}

#[test]
fn copies_and_fills_are_in_order_too() {
    let fill = |p: &Place, s: &CudaStream| unsafe { result::memset_d8_async(p.at, 1, 128, s.cu_stream()) };
    // a kernel beside a fill
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    fill(&p, &a).unwrap();
    p.launch(&p.kernel("reads"), &b, false);
    p.caught(&["kernel `reads`", "a fill in stream", UNORDERED]);
    // a fill beside a kernel
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    p.launch(&p.kernel("reads"), &a, false);
    assert!(fill(&p, &b).is_err());
    p.caught(&["a fill in stream", "writes 128 bytes", "kernel `reads` in stream", UNORDERED]);
    // a copy to the host beside a kernel that writes, and the other half of the allocation
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    p.launch(&p.kernel("writes"), &a, false);
    let mut host = [0u8; 64];
    assert!(unsafe { result::memcpy_dtoh_async(&mut host, p.at, b.cu_stream()) }.is_err());
    p.caught(&["a copy in stream", "reads 64 bytes", "kernel `writes` in stream", UNORDERED]);
    let p = Place::new();
    let (a, b) = (p.stream(), p.stream());
    unsafe { result::memset_d8_async(p.at, 1, 64, a.cu_stream()) }.unwrap();
    unsafe { result::memset_d8_async(p.at + 64, 1, 64, b.cu_stream()) }.unwrap();
    p.fine();
}

#[test]
fn memory_is_freed_while_another_stream_reads_it() {
    let free = |wait: bool| {
        let p = Place::new();
        let (a, b) = (p.stream(), p.stream());
        let at = unsafe { result::malloc_async(a.cu_stream(), 128) }.unwrap();
        unsafe { result::memset_d8_async(at, 1, 128, a.cu_stream()) }.unwrap();
        b.wait(&a.record_event(None).unwrap()).unwrap();
        let p = Place { at, d: p.d };
        p.launch(&p.kernel("reads"), &b, false);
        if wait {
            a.wait(&b.record_event(None).unwrap()).unwrap();
        }
        let freed = unsafe { result::free_async(at, a.cu_stream()) };
        assert_eq!(freed.is_ok(), wait);
        p
    };
    free(false).caught(&["frees 128 bytes", "kernel `reads` in stream", "read", UNORDERED]);
    free(true).fine();
}

#[test]
fn memory_that_is_used_again_is_another() {
    // The first free place is taken, unless a test beside this one was faster.
    let found = (0..1000).any(|_| {
        let p = Place::new();
        let (a, b) = (p.stream(), p.stream());
        let at = unsafe { result::malloc_async(a.cu_stream(), 4096) }.unwrap();
        let first = Place { at, d: p.d };
        first.launch(&first.kernel("writes"), &a, false);
        unsafe { result::free_async(at, a.cu_stream()) }.unwrap();
        let again = unsafe { result::malloc_async(b.cu_stream(), 4096) }.unwrap();
        if at == again {
            first.launch(&first.kernel("writes"), &b, false);
        }
        unsafe { result::free_async(again, b.cu_stream()) }.unwrap();
        first.fine();
        at == again
    });
    assert!(found, "no place was used twice");
}

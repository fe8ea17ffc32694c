//! The order of work in the streams of a context. Work runs when it is given, but a device promises less: here each stream
//! has a vector clock, which events, synchronisations and the rules of the default stream advance, and work that nothing
//! orders is handed to whoever runs next, to see whether both touch the same memory.

use crate::device::moment;
use crate::exec::machine::{Loose, LooseKernel, LooseRange};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many works of each stream come before something.
pub(crate) type Clock = HashMap<u64, u64>;

/// The number of a context's own stream.
pub(crate) const DEFAULT: u64 = 1;
/// Works that are remembered.
const MOST: usize = 512;
/// Launches that one may overlap at once, each having begun before its predecessor's end.
const LONGEST_CHAIN: usize = 8;

/// The streams of a context.
#[derive(Default)]
pub(crate) struct Timeline(Mutex<State>);

#[derive(Default)]
struct State {
    lines: HashMap<u64, Line>,
    /// What the host knows to be done.
    host: Clock,
    /// Work that some stream may not know, oldest first.
    works: VecDeque<Done>,
    /// Times that the host has synchronised.
    synced: u64,
    /// The stream that was given work last.
    last: u64,
    /// The highest number of a launch's stamps.
    serial: u32,
}

/// A stream.
#[derive(Default)]
struct Line {
    given: u64,
    known: Clock,
    /// It orders its work with the default stream's.
    blocking: bool,
    /// Launches that a launch which asks to overlap would overlap, and how often the host had synchronised then.
    chain: (u64, Vec<Arc<LooseKernel>>),
}

/// Work that was done.
struct Done {
    stream: u64,
    number: u64,
    what: What,
}

enum What {
    Kernel(Arc<LooseKernel>),
    Range(Arc<LooseRange>),
}

/// Work that begins.
pub(crate) struct Begun {
    stream: u64,
    number: u64,
    moment: u64,
    overlaps: bool,
    /// What nothing orders before it.
    pub(crate) loose: Loose,
}

/// A stream, in a message.
pub(crate) fn name(stream: u64) -> String {
    if stream == DEFAULT { "the default stream".into() } else { format!("stream {stream}") }
}

fn merge(into: &mut Clock, from: &Clock) {
    for (&stream, &number) in from {
        let known = into.entry(stream).or_default();
        *known = number.max(*known);
    }
}

impl State {
    /// What comes before the next work of a stream.
    fn before(&mut self, stream: u64, blocking: bool) -> Clock {
        let mut known = self.host.clone();
        if stream == DEFAULT {
            for (&other, line) in self.lines.iter().filter(|(_, line)| line.blocking) {
                merge(&mut known, &line.known);
                merge(&mut known, &Clock::from([(other, line.given)]));
            }
        } else if blocking && let Some(line) = self.lines.get(&DEFAULT) {
            merge(&mut known, &line.known);
            merge(&mut known, &Clock::from([(DEFAULT, line.given)]));
        }
        let line = self.lines.entry(stream).or_default();
        line.blocking = blocking;
        merge(&mut line.known, &known);
        let given = line.given;
        line.known.insert(stream, given);
        line.known.clone()
    }

    fn host_knows(&mut self, clock: &Clock) {
        merge(&mut self.host, clock);
        self.synced += 1;
        let host = &self.host;
        self.works.retain(|w| w.number > host.get(&w.stream).copied().unwrap_or(0));
    }
}

impl Timeline {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream begins work; `overlaps`: a launch that asks to begin before its predecessor's end.
    pub(crate) fn begin(&self, stream: u64, blocking: bool, overlaps: bool) -> Begun {
        let mut state = self.state();
        let known = state.before(stream, blocking);
        let mut loose = Loose::default();
        let unknown = |w: &&Done| w.stream != stream && w.number > known.get(&w.stream).copied().unwrap_or(0);
        for work in state.works.iter().filter(unknown) {
            match &work.what {
                What::Kernel(kernel) => loose.kernels.push(kernel.clone()),
                What::Range(range) => loose.ranges.push(range.clone()),
            }
        }
        let (synced, alone) = (state.synced, state.last == stream);
        state.last = stream;
        let line = state.lines.entry(stream).or_default();
        line.given += 1;
        let number = line.given;
        if overlaps && alone && line.chain.0 == synced {
            loose.ahead.clone_from(&line.chain.1);
        }
        if !overlaps {
            line.chain = (synced, Vec::new());
        }
        Begun { stream, number, moment: moment(), overlaps, loose }
    }

    /// A launch is done; its accesses bear the number `serial`.
    pub(crate) fn launched(&self, begun: &Begun, serial: u32, kernel: &str) {
        let mut state = self.state();
        let name = format!("kernel `{kernel}` in {}", name(begun.stream));
        let done = Arc::new(LooseKernel { serial, moment: begun.moment, name });
        if serial < state.serial {
            // numbers began anew, and the stamps of earlier launches are gone
            state.works.retain(|w| !matches!(w.what, What::Kernel(_)));
            state.lines.values_mut().for_each(|line| line.chain.1.clear());
        }
        state.serial = serial;
        let synced = state.synced;
        let line = state.lines.entry(begun.stream).or_default();
        let mut chain = if begun.overlaps { begun.loose.ahead.clone() } else { Vec::new() };
        chain.push(done.clone());
        if chain.len() > LONGEST_CHAIN {
            chain.remove(0);
        }
        line.chain = (synced, chain);
        state.remember(begun, What::Kernel(done));
    }

    /// A copy or a fill has read or written a range.
    pub(crate) fn touched(&self, begun: &Begun, at: u64, bytes: u64, writes: bool, what: &str) {
        let name = format!("{what} in {}", name(begun.stream));
        let range = Arc::new(LooseRange { at, end: at + bytes, writes, moment: begun.moment, name });
        self.state().remember(begun, What::Range(range));
    }

    /// What comes before an event that a stream records now.
    pub(crate) fn record(&self, stream: u64, blocking: bool) -> Clock {
        self.state().before(stream, blocking)
    }

    /// A stream waits for an event.
    pub(crate) fn wait(&self, stream: u64, clock: &Clock) {
        let mut state = self.state();
        let line = state.lines.entry(stream).or_default();
        merge(&mut line.known, clock);
        line.chain.1.clear();
    }

    /// The host has waited for a stream.
    pub(crate) fn host_waits_for(&self, stream: u64, blocking: bool) {
        let mut state = self.state();
        let known = state.before(stream, blocking);
        state.host_knows(&known);
    }

    /// The host has waited for an event.
    pub(crate) fn host_waits(&self, clock: &Clock) {
        self.state().host_knows(clock);
    }

    /// The host has waited for all streams.
    pub(crate) fn host_waits_for_all(&self) {
        let mut state = self.state();
        let all: Clock = state.lines.iter().map(|(&stream, line)| (stream, line.given)).collect();
        state.host_knows(&all);
    }
}

impl State {
    fn remember(&mut self, begun: &Begun, what: What) {
        if self.works.len() >= MOST {
            self.works.pop_front();
        }
        self.works.push_back(Done { stream: begun.stream, number: begun.number, what });
    }
}

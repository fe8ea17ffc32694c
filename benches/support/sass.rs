//! What the machine code of a kernel says: instructions, loads on their way together, turns of latency one after another.
//!
//! nvdisasm prints instructions and their encodings. Bits 105 to 121 of an encoding are the scheduling of compute capability
//! 7.0 and later (Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", arXiv 1804.06826, section 2):
//! which of six barriers an instruction with an unknown latency releases when its result is there, and for which of them an
//! instruction waits. A load is on its way from its issue to the first instruction that waits for its barrier.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;

/// One entry of a cubin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Code {
    /// machine instructions, without the padding behind the last exit
    pub instructions: u32,
    /// the most bytes that a thread's global loads have on their way at a time, whichever branch a launch takes
    pub in_flight: u32,
    /// global accesses of 16 bytes or more, asynchronous copies among them: loads and stores
    pub wide: [u32; 2],
    /// loads, waits and branches back, in their order
    steps: Vec<Step>,
}

/// What a walk through the code stops at.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// waits for these barriers, a bit each
    Wait(u8),
    /// loads so many bytes of a thread, and releases this barrier
    Load { barrier: usize, bytes: u32, line: u32 },
    /// goes to this step, which may be an earlier one, or not
    Branch(usize),
    /// never comes to the next step
    End,
}

/// What a walk knows at a place.
#[derive(Clone, Default)]
struct State {
    /// latencies that were waited for
    turn: usize,
    /// of each barrier, loads on their way with the turn in which they arrive
    flying: [Vec<(usize, usize)>; BARRIERS],
}

impl State {
    /// Of two ways to a place: what both have on their way, and the later turn.
    fn join(&mut self, other: &Self) {
        self.turn = self.turn.max(other.turn);
        for (own, others) in self.flying.iter_mut().zip(&other.flying) {
            let new: Vec<_> = others.iter().filter(|load| !own.contains(load)).copied().collect();
            own.extend(new);
        }
    }
}

/// Barriers of an instruction, and one for asynchronous copies, which `DEPBAR` waits for.
const BARRIERS: usize = 7;
const COPIES: usize = 6;

/// What the loads of a launch do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turns {
    /// latencies to memory that a warp waits for one after another, on average
    pub turns: f64,
    /// the most bytes that a thread has on their way at a time
    pub in_flight: u32,
}

impl Code {
    /// The loads of a launch of so many warps, which executed the loads of each line of the PTX so often. The code must have been
    /// read with the PTX's lines.
    ///
    /// A walk from the first instruction to the last that takes each branch back once, and knows no load that was not executed.
    /// Loads that are issued before the first of them is waited for are one turn, which counts as often as it was executed. Ways
    /// that exclude each other begin at the same turn, and the one that was taken more often counts.
    pub fn turns(&self, executed: &[(u32, u64)], warps: u64) -> Turns {
        let mut copies = BTreeMap::<u32, u32>::new();
        for step in &self.steps {
            if let Step::Load { line, .. } = step {
                *copies.entry(*line).or_default() += 1;
            }
        }
        // One load of the PTX may be several of the machine's, where a loop was unrolled.
        let weight = |line: u32| {
            let count = executed.iter().find(|(other, _)| *other == line).map_or(0, |(_, count)| *count);
            count as f64 / warps as f64 / f64::from(copies[&line])
        };
        self.walk(weight)
    }

    fn walk(&self, weight: impl Fn(u32) -> f64) -> Turns {
        let mut result = Turns { turns: 0.0, in_flight: 0 };
        let mut state = State::default();
        // Where branches lead, with what was known there; whether the step before leads here.
        let (mut ahead, mut follows) = (BTreeMap::<usize, State>::new(), true);
        let (mut counted, mut paid) = (HashSet::new(), BTreeMap::<usize, f64>::new());
        let mut taken = HashSet::new();
        let mut at = 0;
        while let Some(step) = self.steps.get(at) {
            if let Some(other) = ahead.remove(&at) {
                if follows { state.join(&other) } else { state = other }
            }
            follows = true;
            match *step {
                Step::Wait(barriers) => {
                    let State { turn, flying } = &mut state;
                    for (_, loads) in flying.iter_mut().enumerate().filter(|(i, _)| barriers >> i & 1 != 0) {
                        for (load, arrives) in loads.drain(..) {
                            *turn = arrives.max(*turn);
                            let Step::Load { line, .. } = self.steps[load] else { continue };
                            let paid = paid.entry(arrives).or_default();
                            if counted.insert(load) && weight(line) > *paid {
                                result.turns += weight(line) - *paid;
                                *paid = weight(line);
                            }
                        }
                    }
                }
                Step::Load { barrier, line, .. } if weight(line) > 0.0 => {
                    state.flying[barrier].push((at, state.turn + 1));
                    let bytes = |(load, _): &(usize, usize)| match self.steps[*load] {
                        Step::Load { bytes, .. } => bytes,
                        _ => 0,
                    };
                    result.in_flight = result.in_flight.max(state.flying.iter().flatten().map(bytes).sum());
                }
                Step::Branch(to) if to > at => match ahead.entry(to) {
                    Entry::Vacant(place) => drop(place.insert(state.clone())),
                    Entry::Occupied(mut place) => place.get_mut().join(&state),
                },
                Step::Branch(to) if taken.insert(at) => {
                    at = to;
                    continue;
                }
                Step::End => follows = false,
                Step::Load { .. } | Step::Branch(_) => {}
            }
            at += 1;
        }
        result
    }
}

/// One machine instruction.
#[derive(Clone, Debug, PartialEq)]
struct Instruction<'a> {
    /// its address in its entry
    at: u64,
    /// such as `LDG.E.128`
    opcode: &'a str,
    /// under a predicate
    guarded: bool,
    /// the label that it names
    target: Option<&'a str>,
    /// bits 64 to 127 of the encoding
    high: u64,
    /// of the PTX; 0 where nvdisasm was not asked
    line: u32,
}

impl Instruction<'_> {
    /// The barrier that is released when the result is there; 7 is none.
    fn sets(&self) -> u64 {
        self.high >> 46 & 7
    }

    /// A bit for each barrier that must have been released.
    fn waits(&self) -> u8 {
        (self.high >> 52 & 0x3f) as u8
    }

    fn is(&self, name: &str) -> bool {
        self.opcode.split('.').next() == Some(name)
    }

    /// Bytes of a thread's access.
    fn bytes(&self) -> u32 {
        let width = |part: &str| match part {
            "U8" | "S8" => Some(1),
            "U16" | "S16" => Some(2),
            "64" => Some(8),
            "128" => Some(16),
            "256" => Some(32),
            _ => None,
        };
        self.opcode.split('.').find_map(width).unwrap_or(4)
    }
}

/// Every entry of a cubin's disassembly, by name.
pub fn read(text: &str) -> BTreeMap<String, Code> {
    sections(text).into_iter().map(|(name, section)| (name.to_string(), section.code())).collect()
}

/// The instructions of an entry, and where its labels stand.
#[derive(Default)]
struct Section<'a> {
    instructions: Vec<Instruction<'a>>,
    labels: BTreeMap<&'a str, usize>,
}

fn sections(text: &str) -> BTreeMap<&str, Section<'_>> {
    let mut found = BTreeMap::<&str, Section<'_>>::new();
    let mut name = None;
    let mut number = 0;
    for line in text.lines() {
        if let Some(entry) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            name = Some(entry);
            found.entry(entry).or_default();
            continue;
        }
        let Some(section) = name.and_then(|name| found.get_mut(name)) else { continue };
        if let Some(source) = line.trim_start().strip_prefix("//## File ") {
            // //## File "k.ptx", line 988
            number = source.rsplit("line ").next().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        } else if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L")) {
            section.labels.insert(label, section.instructions.len());
        } else if line.starts_with(".section") || line.trim_start().starts_with(".section") {
            name = None;
        } else if let Some(instruction) = instruction(line) {
            section.instructions.push(Instruction { line: number, ..instruction });
        } else if let (Some(encoding), Some(last)) = (encoding(line), section.instructions.last_mut()) {
            last.high = encoding;
        }
    }
    found
}

/// `        /*0100*/               @P0 BRA `(.L_x_1) ;     /* 0x000000000000094d */`
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let at = u64::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    let mut words = text.split_whitespace().filter(|word| !word.starts_with('@') && !word.starts_with('{'));
    let opcode = words.next()?;
    let target = text.split_once("`(").and_then(|(_, rest)| rest.split(')').next());
    let guarded = text.trim_start().starts_with('@');
    Some(Instruction { at, opcode, guarded, target, high: 0, line: 0 })
}

/// The second line of an instruction: its upper half alone.
fn encoding(line: &str) -> Option<u64> {
    let text = line.trim().strip_prefix("/* 0x")?.strip_suffix(" */")?;
    u64::from_str_radix(text, 16).ok()
}

impl Section<'_> {
    fn code(&self) -> Code {
        let mut code = Code::default();
        // Steps by the instruction that they begin at: where branches go back to.
        let mut first = Vec::with_capacity(self.instructions.len() + 1);
        let mut branches = Vec::new();
        for (i, instruction) in self.instructions.iter().enumerate() {
            first.push(code.steps.len());
            let target = instruction.target.and_then(|label| self.labels.get(label)).copied();
            let trap = instruction.is("BRA") && target == Some(i);
            code.instructions += u32::from(!instruction.is("NOP") && !trap);
            let wide = u32::from(instruction.bytes() >= 16);
            code.wide[0] += if instruction.is("LDG") || instruction.is("LDGSTS") { wide } else { 0 };
            code.wide[1] += if instruction.is("STG") { wide } else { 0 };
            let copies = u8::from(instruction.is("DEPBAR")) << COPIES;
            if instruction.waits() | copies != 0 {
                code.steps.push(Step::Wait(instruction.waits() | copies));
            }
            let (bytes, line) = (instruction.bytes(), instruction.line);
            match instruction.sets() as usize {
                _ if instruction.is("LDGSTS") => code.steps.push(Step::Load { barrier: COPIES, bytes, line }),
                barrier if barrier < COPIES && LOADS.iter().any(|name| instruction.is(name)) => {
                    code.steps.push(Step::Load { barrier, bytes, line });
                }
                _ => {}
            }
            if instruction.is("BRA")
                && let Some(target) = target.filter(|_| !trap)
            {
                branches.push((code.steps.len(), target));
                code.steps.push(Step::Branch(0));
            }
            if !instruction.guarded && ["BRA", "EXIT", "RET"].iter().any(|name| instruction.is(name)) {
                code.steps.push(Step::End);
            }
        }
        first.push(code.steps.len());
        for (step, target) in branches {
            code.steps[step] = Step::Branch(first[target]);
        }
        code.in_flight = code.walk(|_| 1.0).in_flight;
        code
    }
}

/// Instructions that bring something from global memory to a register.
const LOADS: [&str; 4] = ["LDG", "LD", "ATOMG", "ATOM"];

/// Runs nvdisasm on a cubin. Lines of the PTX are read where the cubin has them.
pub fn disassemble(nvdisasm: &Path, cubin: &[u8]) -> std::io::Result<BTreeMap<String, Code>> {
    let name = format!("posenc-{}-{:?}.cubin", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    std::fs::write(&path, cubin)?;
    let output = Command::new(nvdisasm).args(["-hex", "-c", "-g"]).arg(&path).output();
    std::fs::remove_file(&path)?;
    let output = output?;
    if !output.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    Ok(read(&String::from_utf8_lossy(&output.stdout)))
}

/// Instructions of each entry of a PTX text.
pub fn ptx_instructions(text: &str) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for body in text.split(".entry ").skip(1) {
        let Some(name) = body.split(['(', ' ', '\n']).next() else { continue };
        let body = body.split_once('{').map_or("", |(_, rest)| rest);
        let mut depth = 1;
        let (mut count, mut lines) = (0, body.lines());
        while let Some(line) = lines.next().filter(|_| depth > 0) {
            depth += nesting(line.split("//").next().unwrap_or_default());
            count += statements(line);
        }
        found.insert(name.to_string(), count);
    }
    found
}

/// Braces that a line of PTX opens, less those that it closes.
pub fn nesting(line: &str) -> i32 {
    line.chars().map(|c| i32::from(c == '{') - i32::from(c == '}')).sum()
}

/// Instructions on a line of PTX.
pub fn statements(line: &str) -> u32 {
    let code = line.split("//").next().unwrap_or_default();
    let ended = code.rsplit_once(';').map_or("", |(ended, _)| ended).split(';');
    ended
        .map(|text| text.trim().trim_start_matches(['{', '}']).trim())
        .filter(|s| !s.is_empty() && !s.starts_with('.'))
        .count() as u32
}

//! From the syntax tree to operations: names become places, registers become offsets, blocks are put in order. What is
//! not understood here is an error at module load, with its line.

mod emit;
mod order;

use crate::exec::machine::{Code, Program};
use crate::exec::operand::Kind;
use crate::ptx::PtxError;
use crate::ptx::ast::{Function, Module, Space, Ty};
use std::collections::{HashMap, HashSet};

/// Where a module's variables are in the memory of a device.
pub(crate) type Addresses = HashMap<String, u64>;

/// What a launch needs to know of a kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Number of its code.
    pub(crate) function: u32,
    /// Parameters: offset and size.
    pub(crate) params: Vec<(usize, usize)>,
    /// Bytes of all parameters.
    pub(crate) param_bytes: usize,
    pub(crate) static_shared: usize,
    pub(crate) local: usize,
    pub(crate) constants: usize,
    pub(crate) registers: u32,
    pub(crate) max_threads: Option<u32>,
    pub(crate) exact_threads: Option<[u32; 3]>,
    pub(crate) cluster: Option<[u32; 3]>,
}

/// What a kernel is said to need at most. The real number is ptxas's to decide; with this one registers never limit the
/// occupancy, which is an upper bound anyway.
const MOST_REGISTERS: u32 = 32;

/// A module ready to run.
pub(crate) struct Lowered {
    pub(crate) program: Program,
    pub(crate) kernels: Vec<Kernel>,
}

/// Shared variables with places, and whether a name is dynamic shared memory.
#[derive(Default)]
struct SharedLayout {
    offsets: HashMap<String, u64>,
    bytes: u64,
}

impl SharedLayout {
    fn place(&mut self, name: &str, size: usize, align: usize) {
        if !self.offsets.contains_key(name) {
            self.bytes = self.bytes.next_multiple_of(align.max(1) as u64);
            self.offsets.insert(name.to_owned(), self.bytes);
            self.bytes += size as u64;
        }
    }
}

/// Offsets of parameters, each aligned as it asks.
fn layout(params: &[crate::ptx::ast::Param]) -> (Vec<(usize, usize)>, usize) {
    let mut at = 0usize;
    let places = params
        .iter()
        .map(|p| {
            at = at.next_multiple_of(p.align.max(1));
            let place = (at, p.size);
            at += p.size;
            place
        })
        .collect();
    (places, at)
}

/// Lowers a module whose variables stand at `addresses`.
pub(crate) fn lower(module: Module, addresses: &Addresses) -> Result<Lowered, PtxError> {
    // shared variables that device functions use have one place for all kernels; a kernel's own come after them
    let mut common = SharedLayout::default();
    let uses: Vec<HashSet<&str>> = module.functions.iter().map(names_used).collect();
    let shared: Vec<_> = module.vars.iter().filter(|v| v.space == Space::Shared).collect();
    for (f, used) in module.functions.iter().zip(&uses) {
        if f.entry {
            continue;
        }
        for var in shared.iter().filter(|v| !dynamic(v) && used.contains(v.name.as_str())) {
            common.place(&var.name, var.size, var.align);
        }
        for var in f.vars.iter().filter(|v| v.space == Space::Shared) {
            common.place(&format!("{}::{}", f.name, var.name), var.size, var.align);
        }
    }
    let mut codes: Vec<Code> = Vec::new();
    let mut kernels = Vec::new();
    for (number, f) in module.functions.iter().enumerate() {
        let calls = f.entry && uses[number].iter().any(|n| module.functions.iter().any(|g| !g.entry && g.name == *n));
        let indirect = module.functions.iter().any(|g| !g.entry && g.defined);
        let mut own = SharedLayout::default();
        if !f.entry || calls || indirect {
            own.offsets.clone_from(&common.offsets);
            own.bytes = common.bytes;
        }
        for var in shared.iter().filter(|v| !dynamic(v) && uses[number].contains(v.name.as_str())) {
            own.place(&var.name, var.size, var.align);
        }
        for var in f.vars.iter().filter(|v| v.space == Space::Shared) {
            own.place(&format!("{}::{}", f.name, var.name), var.size, var.align);
        }
        let mut code = emit::function(&module, f, addresses, &own.offsets)?;
        if f.entry && f.defined {
            let (params, param_bytes) = layout(&f.params);
            let widths = f.regs.iter().map(|r| if r.size() == 8 { 2 } else { u32::from(*r != Ty::Pred) }).sum::<u32>();
            let align = shared.iter().filter(|v| dynamic(v)).map(|v| v.align).max().unwrap_or(1).max(16);
            let has_dynamic = shared.iter().any(|v| dynamic(v) && uses[number].contains(v.name.as_str()));
            let static_shared =
                if has_dynamic { (own.bytes as usize).next_multiple_of(align) } else { own.bytes as usize };
            code.calls_any |= calls;
            kernels.push(Kernel {
                name: f.name.clone(),
                function: number as u32,
                params,
                param_bytes,
                static_shared,
                local: code.local,
                constants: module.vars.iter().filter(|v| v.space == Space::Const).map(|v| v.size).sum(),
                registers: widths.clamp(8, MOST_REGISTERS),
                max_threads: f.max_threads,
                exact_threads: f.exact_threads,
                cluster: f.cluster,
            });
        }
        codes.push(code);
    }
    Ok(Lowered { program: Program { codes, text: module.lines }, kernels })
}

/// Dynamic shared memory: `.extern .shared` without a size.
fn dynamic(var: &crate::ptx::ast::Var) -> bool {
    var.space == Space::Shared && (var.external || var.size == 0)
}

/// Every name that stands in a function's operands.
fn names_used(f: &Function) -> HashSet<&str> {
    use crate::ptx::ast::{Operand, Stmt};
    fn walk<'a>(o: &'a Operand, out: &mut HashSet<&'a str>) {
        match o {
            Operand::Name(name, _) => {
                out.insert(name);
            }
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| walk(o, out)),
            Operand::Address(base, _) | Operand::Sum(base, _) => walk(base, out),
            Operand::Pair(a, b) => {
                walk(a, out);
                walk(b, out);
            }
            _ => {}
        }
    }
    let mut out = HashSet::new();
    for stmt in &f.body {
        if let Stmt::Inst(inst) = stmt {
            inst.operands.iter().for_each(|o| walk(o, &mut out));
        }
    }
    out
}

/// What a register of a type is.
fn kind_of(ty: Ty) -> Kind {
    match ty {
        Ty::Pred => Kind::Pred,
        _ => match ty.size() {
            1 | 2 => Kind::W16,
            4 => Kind::W32,
            8 => Kind::W64,
            _ => Kind::W128,
        },
    }
}

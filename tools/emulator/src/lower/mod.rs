//! From the syntax tree to operations: names become places, registers become offsets, blocks are put in order. What is
//! not understood here is an error at module load, with its line.

mod emit;
mod order;

use crate::exec::lane::Kind;
use crate::exec::{Code, Program};
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

#[cfg(test)]
mod tests {
    use super::{Addresses, lower};
    use crate::ptx::ast::Module;
    use crate::ptx::{PtxError, parser};
    use proptest::prelude::*;

    const TEXTS: [&str; 4] = [
        include_str!("../../tests/ptx/first.sm_75.ptx"),
        include_str!("../../tests/ptx/first.sm_90.ptx"),
        include_str!("../../tests/ptx/mutants.ptx"),
        include_str!("../../tests/ptx/bench.ptx"),
    ];

    fn compile(text: &str) -> Result<usize, PtxError> {
        let module: Module = parser::parse(text)?;
        let addresses: Addresses = module.vars.iter().map(|v| (v.name.clone(), 0x7000_0000_0000)).collect();
        Ok(lower(module, &addresses)?.kernels.len())
    }

    fn refused(body: &str) -> String {
        let head = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n";
        compile(&format!("{head}{body}\nret;\n}}\n")).expect_err("this is not PTX").to_string()
    }

    #[test]
    fn what_nvrtc_made_compiles() {
        for text in TEXTS {
            assert!(compile(text).unwrap() > 0);
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        for (body, part) in [
            ("add.u32 %r1, 2, 1;", "the destination must be a register"),
            (
                ".reg .b32 %r<3>;\nfrobnicate.u32 %r1, %r2;",
                "PTX line 7: `frobnicate.u32`: this instruction is not known",
            ),
            (".reg .b32 %r<3>;\nadd.fast.u32 %r1, %r2, 1;", "`add.fast.u32`: the modifier `.fast` is not known here"),
            (".reg .b32 %r<3>;\nadd.u32 %r1, %r2;", "takes 3 operands, 2 stand there"),
            (
                ".reg .b32 %r<3>;\n.reg .b64 %d<3>;\nadd.u32 %r1, %d2, 1;",
                "the register `%d2` is 64 bits, 32 bits are needed",
            ),
            (".reg .pred %p<3>;\n@%p1 bra NOWHERE;", "the label `NOWHERE` does not exist"),
            (".reg .b32 %r<3>;\n@%r1 bra X;\nX:", "the guard `%r1` is not a predicate"),
            (".reg .b32 %r<3>;\nadd.u32 %r1, %r7, 1;", "neither a register that is declared nor a special one"),
            (".reg .b32 %r<3>;\nld.global.u32 %r1, [nothing];", "`nothing` is not declared"),
            (".reg .b32 %r<3>;\nld.param.u32 %r1, [p+8];", "reads past the 8 bytes of parameters"),
            (".reg .b32 %r<3>;\n.reg .b32 %r<2>;", "the register `%r0` is declared twice"),
            ("add.u32 3, 4", "`,` or `;` expected after an operand, found `ret`"),
            ("call missing;", "`missing` is not declared"),
            (".reg .f32 %f<3>;\nadd.f32 %f1, %f2, 1;", "an integer stands where a float is needed"),
            ("mov.u32", "takes 2 operands"),
            (".reg .b32 %r<3>;\nmov.u32 %r1, 0f3F8;", "a 0f literal needs 8 hexadecimal digits"),
            (".local .align 3 .b8 x[4];", "an alignment of 3 is not a power of two"),
            (".local .b8 x[99999999999];", "`x` would take 99999999999 bytes"),
            (".reg .b32 %r<4000000000>;", "4000000000 registers are too many"),
        ] {
            let said = refused(body);
            assert!(said.contains(part), "{body}: {said}");
        }
        assert!(compile("").unwrap_err().to_string().contains("a module starts with `.version`"));
        assert!(compile(".version 99.0\n.target sm_80").unwrap_err().newer_isa);
        assert!(compile(".version 8.0\n.target compute_80").unwrap_err().to_string().contains("is not one of PTX"));
        let deep = format!(".version 8.0\n.target sm_80\n.visible .entry k()\n{}", "{".repeat(100_000));
        assert!(compile(&deep).unwrap_err().to_string().contains("nested too deeply"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_is_a_panic(text in "\\PC*") {
            let _ = compile(&text);
            let _ = compile(&format!(".version 8.0\n.target sm_80\n{text}"));
        }

        #[test]
        fn no_damage_to_a_text_is_a_panic(
            which in 0..TEXTS.len(),
            cuts in prop::collection::vec((any::<u32>(), 0..4u8, "[ -~]{0,12}"), 1..6),
        ) {
            let mut words: Vec<String> =
                TEXTS[which].split_inclusive(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect();
            for (at, what, text) in cuts {
                let Some(at) = (at as usize).checked_rem(words.len()) else { break };
                match what {
                    0 => { words.remove(at); }
                    1 => words.insert(at, text),
                    2 => words.swap(at, 0),
                    _ => words.truncate(at.max(1)),
                }
            }
            let _ = compile(&words.concat());
        }
    }
}

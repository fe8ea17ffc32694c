//! One function to operations.

use super::{Addresses, kind_of, layout, order};
use crate::exec::atomic::{self, Atom};
use crate::exec::lane::{self, Sem};
use crate::exec::machine::{Code, Cx, Exec, Flow, Op};
use crate::exec::matrix::{self, Factor, Shape};
use crate::exec::mods::Mods;
use crate::exec::operand::{
    Access, Bar, BarKind, Builtin, Call, Class, FUNCTION_WINDOW, Fill, Kind, LANES, LOCAL_WINDOW, NONE, Order,
    PARAM_WINDOW, SHARED_WINDOW,
};
use crate::exec::{barrier, control, copy, memory, table, warp};
use crate::ptx::PtxError;
use crate::ptx::ast::{Function, Inst, Module, Operand, RegId, Space, Stmt, Ty};
use std::collections::HashMap;

type Emitted<T> = Result<T, String>;

/// Lowers a function; one without a body gives code without operations.
pub(crate) fn function(
    module: &Module,
    f: &Function,
    addresses: &Addresses,
    shared: &HashMap<String, u64>,
) -> Result<Code, PtxError> {
    let mut e = Emit {
        module,
        f,
        addresses,
        shared,
        slots: vec![NONE; f.regs.len()],
        fills: HashMap::new(),
        carry: NONE,
        locals: HashMap::new(),
        code: Code {
            name: f.name.clone(),
            entry: f.entry,
            ops: Vec::new(),
            lines: Vec::new(),
            frame: 0,
            fills: Vec::new(),
            mems: Vec::new(),
            calls: Vec::new(),
            bars: Vec::new(),
            tables: Vec::new(),
            lists: Vec::new(),
            local: 0,
            params: Vec::new(),
            results: Vec::new(),
            calls_any: false,
        },
        line: f.line,
        guard: (NONE, 0),
        pending: Vec::new(),
        pending_tables: Vec::new(),
    };
    e.run().map_err(|what| PtxError::new(e.line, what))?;
    Ok(e.code)
}

/// Where a name is.
enum Place {
    /// A fixed address in a space.
    Fixed(Space, u64),
    /// An offset in the frame's local memory.
    Local(u64),
    /// An offset into dynamic shared memory.
    Dynamic,
    /// An offset into the kernel's parameters.
    Param(u64),
    /// A function.
    Function(u32),
}

struct Emit<'a> {
    module: &'a Module,
    f: &'a Function,
    addresses: &'a Addresses,
    shared: &'a HashMap<String, u64>,
    slots: Vec<u32>,
    fills: HashMap<(Kind, Fill), u32>,
    carry: u32,
    /// Local memory of variables: name and scope to offset and size.
    locals: HashMap<(String, u32), (u32, u32)>,
    code: Code,
    line: u32,
    guard: (u32, u32),
    /// Operations whose target is a block.
    pending: Vec<(usize, usize)>,
    pending_tables: Vec<(usize, Vec<usize>)>,
}

/// A straight piece of the body.
struct Piece<'a> {
    insts: Vec<&'a Inst>,
    /// Where it goes when it runs off its end.
    falls: Option<usize>,
}

impl<'a> Emit<'a> {
    fn run(&mut self) -> Emitted<()> {
        let f = self.f;
        if !f.defined {
            let (params, bytes) = layout(&f.params);
            self.code.params = params.iter().map(|&(a, s)| (a as u32, s as u32)).collect();
            self.code.local = bytes;
            return Ok(());
        }
        self.place_locals()?;
        // pieces
        let mut pieces: Vec<Piece<'a>> = vec![Piece { insts: Vec::new(), falls: None }];
        let mut label_piece = vec![usize::MAX; f.labels.len()];
        let mut open = true;
        for stmt in &f.body {
            match stmt {
                Stmt::Label(id) => {
                    let next = pieces.len();
                    if open && let Some(last) = pieces.last_mut() {
                        last.falls = Some(next);
                    }
                    pieces.push(Piece { insts: Vec::new(), falls: None });
                    label_piece[*id as usize] = next;
                    open = true;
                }
                Stmt::Inst(inst) => {
                    if !open {
                        pieces.push(Piece { insts: Vec::new(), falls: None });
                        open = true;
                    }
                    let number = pieces.len();
                    let Some(last) = pieces.last_mut() else { continue };
                    last.insts.push(inst);
                    match inst.opcode.as_str() {
                        "bra" | "brx" | "ret" | "exit" if inst.guard.is_none() => open = false,
                        "bra" | "brx" => {
                            last.falls = Some(number);
                            pieces.push(Piece { insts: Vec::new(), falls: None });
                        }
                        _ => {}
                    }
                }
            }
        }
        // successors
        let mut successors = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let mut list = Vec::new();
            if let Some(inst) = piece.insts.last() {
                self.line = inst.line;
                match inst.opcode.as_str() {
                    "bra" => list.push(self.target(inst, inst.operands.first(), &label_piece)?),
                    "brx" => list.extend(self.targets(inst, &label_piece)?),
                    _ => {}
                }
            }
            list.extend(piece.falls);
            successors.push(list);
        }
        let mut entries = vec![0u32; pieces.len()];
        entries[0] = 1;
        for list in &successors {
            for &s in list {
                entries[s] += 1;
            }
        }
        let sequence = order::order(&successors);
        let mut start = vec![0u32; pieces.len()];
        for (i, &number) in sequence.iter().enumerate() {
            let piece = &pieces[number];
            start[number] = self.code.ops.len() as u32;
            self.line = piece.insts.first().map_or(self.line, |inst| inst.line);
            if entries[number] > 1 {
                self.silent(control::join, 0);
            }
            for inst in &piece.insts {
                self.line = inst.line;
                self.guard = match inst.guard {
                    None => (NONE, 0),
                    Some((reg, negated)) => (self.slot(reg), if negated { u32::MAX } else { 0 }),
                };
                match inst.opcode.as_str() {
                    "bra" => self.bra(inst, &successors[number])?,
                    "brx" => self.brx(inst, &label_piece)?,
                    _ => self.inst(inst).map_err(|what| format!("`{}`: {what}", text(inst)))?,
                }
            }
            self.guard = (NONE, 0);
            match piece.falls {
                Some(next) if sequence.get(i + 1) != Some(&next) => {
                    self.pending.push((self.code.ops.len(), next));
                    self.silent(control::jump, 0);
                }
                None if !ends(piece) => self.silent(if f.entry { control::exit } else { control::ret }, 0),
                _ => {}
            }
        }
        for (op, piece) in std::mem::take(&mut self.pending) {
            self.code.ops[op].imm = u64::from(start[piece]);
        }
        for (table, list) in std::mem::take(&mut self.pending_tables) {
            self.code.tables[table] = list.iter().map(|&p| start[p]).collect();
        }
        Ok(())
    }

    /// Gives every variable of local and parameter space its place.
    fn place_locals(&mut self) -> Emitted<()> {
        let f = self.f;
        let mut at = 0usize;
        if !f.entry {
            let (params, bytes) = layout(&f.params);
            for (param, &(offset, size)) in f.params.iter().zip(&params) {
                if param.reg.is_some() {
                    return Err(format!("`{}` takes `{}` in a register, which is not supported", f.name, param.name));
                }
                self.locals.insert((param.name.clone(), 0), (offset as u32, size as u32));
            }
            self.code.params = params.iter().map(|&(a, s)| (a as u32, s as u32)).collect();
            at = bytes;
            for result in &f.results {
                if result.reg.is_some() {
                    return Err(format!("`{}` returns in a register, which is not supported", f.name));
                }
                at = at.next_multiple_of(result.align.max(1));
                self.locals.insert((result.name.clone(), 0), (at as u32, result.size as u32));
                self.code.results.push((at as u32, result.size as u32));
                at += result.size;
            }
        }
        for var in &f.vars {
            self.line = var.line;
            match var.space {
                Space::Local | Space::Param => {
                    at = at.next_multiple_of(var.align.max(1));
                    self.locals.insert((var.name.clone(), var.scope), (at as u32, var.size as u32));
                    at += var.size;
                }
                Space::Shared => {}
                _ => return Err(format!("`{}`: a variable of this space stands outside functions", var.name)),
            }
            if at > 512 << 10 {
                return Err(format!("`{}` needs {at} bytes of local memory, a thread has 512 KiB", f.name));
            }
        }
        self.code.local = at.next_multiple_of(16);
        Ok(())
    }

    // ---- names and registers -----------------------------------------------------------------------------------------

    fn scopes(&self, scope: u32) -> Vec<u32> {
        let mut list = vec![scope];
        let mut at = scope;
        while at != 0 {
            at = self.f.scopes[at as usize];
            list.push(at);
        }
        list
    }

    fn label(&self, name: &str, scope: u32) -> Option<usize> {
        self.scopes(scope).into_iter().find_map(|s| self.f.labels.iter().position(|(n, t)| n == name && *t == s))
    }

    fn target(&self, inst: &Inst, operand: Option<&Operand>, pieces: &[usize]) -> Emitted<usize> {
        match operand {
            Some(Operand::Name(name, scope)) => match self.label(name, *scope) {
                Some(label) => Ok(pieces[label]),
                None => Err(format!("the label `{name}` does not exist")),
            },
            _ => Err(format!("`{}` needs a label", text(inst))),
        }
    }

    fn targets(&self, inst: &Inst, pieces: &[usize]) -> Emitted<Vec<usize>> {
        let Some(Operand::Name(name, scope)) = inst.operands.get(1) else {
            return Err("`brx.idx` needs an index and a list of targets".into());
        };
        let scopes = self.scopes(*scope);
        let Some((_, s, list)) = self.f.tables.iter().find(|(n, s, _)| n == name && scopes.contains(s)) else {
            return Err(format!("the list of targets `{name}` does not exist"));
        };
        list.iter().map(|label| self.target(inst, Some(&Operand::Name(label.clone(), *s)), pieces)).collect()
    }

    fn room(&mut self, kind: Kind) -> u32 {
        if kind == Kind::Pred {
            // predicates are single words, but live among lines
            let at = self.code.frame.next_multiple_of(4);
            self.code.frame = at + 4;
            return at as u32;
        }
        let at = self.code.frame.next_multiple_of(64);
        self.code.frame = at + kind.width() * LANES;
        at as u32
    }

    fn slot(&mut self, reg: RegId) -> u32 {
        let known = self.slots[reg as usize];
        if known != NONE {
            return known;
        }
        let at = self.room(kind_of(self.f.regs[reg as usize]));
        self.slots[reg as usize] = at;
        at
    }

    fn fill(&mut self, kind: Kind, fill: Fill) -> u32 {
        let kind = match kind {
            Kind::F32 => Kind::W32,
            Kind::F64 => Kind::W64,
            other => other,
        };
        if let Some(&at) = self.fills.get(&(kind, fill)) {
            return at;
        }
        let at = self.room(kind);
        self.fills.insert((kind, fill), at);
        self.code.fills.push((at, kind, fill));
        at
    }

    fn constant(&mut self, kind: Kind, value: u64) -> u32 {
        self.fill(kind, Fill::Const(value))
    }

    fn place(&self, name: &str, scope: u32) -> Emitted<Place> {
        for s in self.scopes(scope) {
            if let Some(&(at, _)) = self.locals.get(&(name.to_owned(), s)) {
                return Ok(Place::Local(u64::from(at)));
            }
            if self.f.vars.iter().any(|v| v.space == Space::Shared && v.name == name && v.scope == s) {
                return match self.shared.get(&format!("{}::{name}", self.f.name)) {
                    Some(&at) => Ok(Place::Fixed(Space::Shared, at)),
                    None => Err(format!("`{name}` has no place in shared memory")),
                };
            }
        }
        if self.f.entry {
            let (places, _) = layout(&self.f.params);
            if let Some(i) = self.f.params.iter().position(|p| p.name == name) {
                return Ok(Place::Param(places[i].0 as u64));
            }
        }
        if let Some(var) = self.module.vars.iter().find(|v| v.name == name) {
            if var.space == Space::Shared {
                return Ok(match self.shared.get(name) {
                    Some(&at) => Place::Fixed(Space::Shared, at),
                    None => Place::Dynamic,
                });
            }
            return match self.addresses.get(name) {
                Some(&at) => Ok(Place::Fixed(var.space, at)),
                None => Err(format!("`{name}` is declared elsewhere and not defined")),
            };
        }
        if let Some(i) = self.module.functions.iter().position(|g| g.name == name) {
            return Ok(Place::Function(i as u32));
        }
        Err(format!("`{name}` is not declared"))
    }

    /// A name as a number, and the register to which it must be added.
    fn address(&mut self, name: &str, scope: u32, kind: Kind) -> Emitted<(Option<u32>, u64)> {
        Ok(match self.place(name, scope)? {
            Place::Fixed(_, at) => (None, at),
            Place::Local(at) => (Some(self.fill(kind, Fill::LocalBase)), at),
            Place::Dynamic => (Some(self.fill(kind, Fill::DynamicStart)), 0),
            Place::Param(at) => (None, at),
            Place::Function(i) => (None, FUNCTION_WINDOW + u64::from(i) * 16),
        })
    }

    /// The register of a source operand.
    fn src(&mut self, operand: &Operand, kind: Kind) -> Emitted<u32> {
        match operand {
            Operand::Reg(reg) => {
                let have = kind_of(self.f.regs[*reg as usize]);
                if have.width() != kind.width() {
                    let name = &self.f.reg_names[*reg as usize];
                    let bits = |k: Kind| {
                        if k == Kind::Pred { "a predicate".into() } else { format!("{} bits", 8 * k.width()) }
                    };
                    return Err(format!("the register `{name}` is {}, {} are needed", bits(have), bits(kind)));
                }
                Ok(self.slot(*reg))
            }
            Operand::Int(value) => match kind {
                Kind::Pred => Ok(self.constant(Kind::Pred, u64::from(*value != 0))),
                Kind::F32 | Kind::F64 if *value != 0 => Err("an integer stands where a float is needed".into()),
                _ => Ok(self.constant(kind, *value)),
            },
            Operand::F32(bits) if matches!(kind, Kind::F32 | Kind::W32) => Ok(self.constant(kind, u64::from(*bits))),
            Operand::F64(bits) => match kind {
                Kind::F64 | Kind::W64 => Ok(self.constant(kind, *bits)),
                Kind::F32 => Ok(self.constant(kind, u64::from((f64::from_bits(*bits) as f32).to_bits()))),
                _ => Err("a double stands where another type is needed".into()),
            },
            Operand::Special(name) => self.special(name, kind),
            Operand::Name(..) | Operand::Sum(..) => {
                let (base, offset) = match operand {
                    Operand::Sum(base, offset) => (base.as_ref(), *offset),
                    other => (other, 0),
                };
                let Operand::Name(name, scope) = base else {
                    return Err("a sum stands where one value is needed".into());
                };
                if !matches!(kind, Kind::W64 | Kind::W32) {
                    return Err(format!("the address of `{name}` does not fit"));
                }
                let (base, at) = self.address(name, *scope, kind)?;
                let at = at.wrapping_add(offset as u64);
                match base {
                    None => Ok(self.constant(kind, at)),
                    Some(base) => {
                        let number = self.constant(kind, at);
                        let to = self.room(kind);
                        let sem = if kind == Kind::W64 {
                            lane::bin(|a: u64, b: u64| a.wrapping_add(b))
                        } else {
                            lane::bin(|a: u32, b: u32| a.wrapping_add(b))
                        };
                        self.silent_op(Op { d: to, a: base, b: number, ..blank(sem.exec()) });
                        Ok(to)
                    }
                }
            }
            _ => Err("an operand of another kind is needed".into()),
        }
    }

    fn special(&mut self, name: &str, kind: Kind) -> Emitted<u32> {
        let axis = |rest: &str| match rest {
            ".x" => Some(0u8),
            ".y" => Some(1),
            ".z" => Some(2),
            _ => None,
        };
        let (stem, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
        let one = Fill::Const(1);
        let zero = Fill::Const(0);
        let fill = match (stem, axis(rest)) {
            ("%tid", Some(a)) => Fill::Tid(a),
            ("%ntid", Some(a)) => Fill::Ntid(a),
            ("%ctaid", Some(a)) => Fill::Ctaid(a),
            ("%nctaid", Some(a)) => Fill::Nctaid(a),
            ("%clusterid", Some(a)) => Fill::Ctaid(a),
            ("%nclusterid", Some(a)) => Fill::Nctaid(a),
            ("%cluster_ctaid", Some(_)) => zero,
            ("%cluster_nctaid", Some(_)) => one,
            ("%cluster_ctarank", None) => zero,
            ("%cluster_nctarank", None) => one,
            ("%is_explicit_cluster", None) => zero,
            ("%laneid", None) => Fill::Lane,
            ("%warpid", None) => Fill::Warp,
            ("%nwarpid", None) => Fill::Warps,
            ("%smid", None) => Fill::Sm,
            ("%nsmid", None) => Fill::Sms,
            ("%gridid", None) => Fill::Grid,
            ("%lanemask_eq", None) => Fill::LaneMask(0),
            ("%lanemask_le", None) => Fill::LaneMask(1),
            ("%lanemask_lt", None) => Fill::LaneMask(2),
            ("%lanemask_ge", None) => Fill::LaneMask(3),
            ("%lanemask_gt", None) => Fill::LaneMask(4),
            ("%dynamic_smem_size", None) => Fill::DynamicShared,
            ("%total_smem_size", None) => Fill::TotalShared,
            // what a driver may leave there for its own kernels
            (name, None) if name.strip_prefix("%envreg").is_some_and(|n| n.parse().is_ok_and(|n: u8| n < 32)) => zero,
            _ => {
                return Err(format!("`{name}` is neither a register that is declared nor a special one that is known"));
            }
        };
        Ok(self.fill(kind, fill))
    }

    /// The register of a destination.
    fn dst(&mut self, operand: &Operand, kind: Kind) -> Emitted<u32> {
        match operand {
            Operand::Reg(_) => self.src(operand, kind),
            Operand::Sink => Ok(self.room(kind)),
            _ => Err("the destination must be a register".into()),
        }
    }

    /// The type of a register operand, or of what a literal would be.
    fn reg_ty(&self, operand: &Operand) -> Option<Ty> {
        match operand {
            Operand::Reg(reg) | Operand::Not(reg) => Some(self.f.regs[*reg as usize]),
            _ => None,
        }
    }

    // ---- emission ----------------------------------------------------------------------------------------------------

    fn silent(&mut self, exec: Exec, imm: u64) {
        self.code.ops.push(Op { imm, class: Class::Silent as u8, ..blank(exec) });
        self.code.lines.push(self.line);
    }

    /// An operation that stands for no instruction, under the instruction's guard.
    fn silent_op(&mut self, op: Op) {
        self.code.ops.push(Op { class: Class::Silent as u8, guard: self.guard.0, guard_flip: self.guard.1, ..op });
        self.code.lines.push(self.line);
    }

    fn op(&mut self, class: Class, op: Op) {
        self.code.ops.push(Op { class: class as u8, guard: self.guard.0, guard_flip: self.guard.1, ..op });
        self.code.lines.push(self.line);
    }

    fn bra(&mut self, inst: &Inst, successors: &[usize]) -> Emitted<()> {
        let mut mods = Mods::new(&inst.mods);
        mods.has("uni");
        mods.finish()?;
        self.pending.push((self.code.ops.len(), successors[0]));
        self.op(Class::Control, blank(control::bra));
        Ok(())
    }

    fn brx(&mut self, inst: &Inst, pieces: &[usize]) -> Emitted<()> {
        let mut mods = Mods::new(&inst.mods);
        mods.has("idx");
        mods.has("uni");
        mods.finish()?;
        let list = self.targets(inst, pieces)?;
        let a = self.src(&inst.operands[0], Kind::W32)?;
        self.pending_tables.push((self.code.tables.len(), list));
        let imm = self.code.tables.len() as u64;
        self.code.tables.push(Vec::new());
        self.op(Class::Control, Op { a, imm, ..blank(control::brx) });
        Ok(())
    }

    /// A lane-wise instruction from the table.
    fn lanewise(&mut self, inst: &Inst, sem: &Sem, class: Class, relaxed: bool) -> Emitted<()> {
        let o = &inst.operands;
        let extra = usize::from(sem.literal);
        let mut wanted = sem.run.src.len();
        if matches!(inst.opcode.as_str(), "not" | "mov") && sem.run.dst == Kind::Pred {
            wanted = 1;
        }
        if o.len() != 1 + wanted + extra {
            return Err(format!("takes {} operands, {} stand there", 1 + wanted + extra, o.len()));
        }
        let mut places = [NONE; 4];
        for (i, kind) in sem.run.src.iter().take(wanted).enumerate() {
            places[i] = if relaxed { self.src_resized(&o[1 + i], *kind)? } else { self.src(&o[1 + i], *kind)? };
        }
        let mut imm = sem.imm;
        if sem.literal {
            match o.last() {
                Some(Operand::Int(value)) => imm = *value,
                _ => return Err("its last operand is a literal".into()),
            }
        }
        let mut op = Op { a: places[0], b: places[1], c: places[2], imm, ..blank(sem.exec()) };
        if sem.run.src.len() == 4 {
            op.imm = u64::from(places[3]);
        }
        if matches!(inst.opcode.as_str(), "addc" | "subc" | "madc") || inst.mods.iter().any(|m| m == "cc") {
            if self.carry == NONE {
                // its own place, which no constant shares
                self.carry = self.room(Kind::Pred);
                self.code.fills.push((self.carry, Kind::Pred, Fill::Const(0)));
            }
            op.e = self.carry;
        }
        let kind = sem.run.dst;
        let resized =
            relaxed && matches!(&o[0], Operand::Reg(r) if kind_of(self.f.regs[*r as usize]).width() != kind.width());
        if resized {
            op.d = self.room(kind);
            let from = op.d;
            self.op(class, op);
            let Operand::Reg(reg) = &o[0] else { return Ok(()) };
            let to = kind_of(self.f.regs[*reg as usize]);
            let signed = relaxed_sign(inst);
            let d = self.slot(*reg);
            let exec = resize(kind, to, signed)?;
            self.silent_op(Op { d, a: from, ..blank(exec) });
            return Ok(());
        }
        op.d = self.dst(&o[0], kind)?;
        self.op(class, op);
        Ok(())
    }

    /// A source whose register may be wider than the type.
    fn src_resized(&mut self, operand: &Operand, kind: Kind) -> Emitted<u32> {
        if let Operand::Reg(reg) = operand {
            let have = kind_of(self.f.regs[*reg as usize]);
            if have.width() > kind.width() && kind != Kind::Pred {
                let a = self.slot(*reg);
                let d = self.room(kind);
                let exec = resize(have, kind, false)?;
                self.silent_op(Op { d, a, ..blank(exec) });
                return Ok(d);
            }
        }
        self.src(operand, kind)
    }

    fn inst(&mut self, inst: &Inst) -> Emitted<()> {
        let mut mods = Mods::new(&inst.mods);
        let o = &inst.operands;
        match inst.opcode.as_str() {
            "mov" if matches!(o.as_slice(), [Operand::Vector(_), _] | [_, Operand::Vector(_)]) => {
                let ty = mods.ty()?;
                mods.finish()?;
                self.pack(o, ty)
            }
            "mov" if matches!(o.get(1), Some(Operand::Special(_))) && self.clock(inst)? => Ok(()),
            "setp" | "set" => self.compare(inst, mods),
            "testp" => {
                let Some((sem, class)) = table::select_sem("testp", &mut mods)? else { return unknown() };
                mods.finish()?;
                let [d, a] = o.as_slice() else { return count(2, o) };
                let a = self.src(a, sem.run.src[0])?;
                let d = self.dst(d, Kind::Pred)?;
                self.op(class, Op { d, a, b: a, ..blank(sem.exec()) });
                Ok(())
            }
            "cvta" => self.cvta(o, mods),
            "isspacep" => {
                let space = mods.first(|_| true).unwrap_or("");
                let window = match space {
                    "global" | "const" => 0,
                    "shared" | "shared::cta" | "shared::cluster" => SHARED_WINDOW,
                    "local" => LOCAL_WINDOW,
                    "param" | "param::entry" => PARAM_WINDOW,
                    _ => return Err(format!("`.{space}` is not a space")),
                };
                mods.finish()?;
                let [d, a] = o.as_slice() else { return count(2, o) };
                let (d, a) = (self.dst(d, Kind::Pred)?, self.src(a, Kind::W64)?);
                self.op(Class::Integer, Op { d, a, imm: window, ..blank(memory::isspacep) });
                Ok(())
            }
            "ld" | "ldu" => self.load(o, mods),
            "st" => self.store(o, mods),
            "atom" | "red" => self.atomic(inst, mods),
            "shfl" => self.shfl(o, mods),
            "vote" => self.vote(o, mods),
            "match" => self.matches(o, mods),
            "redux" => self.redux(o, mods),
            "activemask" => {
                mods.ty()?;
                mods.finish()?;
                let [d] = o.as_slice() else { return count(1, o) };
                let d = self.dst(d, Kind::W32)?;
                self.op(Class::Warp, Op { d, ..blank(warp::activemask) });
                Ok(())
            }
            "elect" => {
                mods.has("sync");
                mods.finish()?;
                let [Operand::Pair(d, p), m] = o.as_slice() else {
                    return Err("takes a pair and a member mask".into());
                };
                let d = if **d == Operand::Sink { NONE } else { self.dst(d, Kind::W32)? };
                let (e, a) = (self.dst(p, Kind::Pred)?, self.src(m, Kind::W32)?);
                self.op(Class::Warp, Op { d, e, a, ..blank(warp::elect) });
                Ok(())
            }
            "bar" | "barrier" => self.barrier(inst, mods),
            "membar" | "fence" => {
                let words = [
                    "cta",
                    "gl",
                    "sys",
                    "gpu",
                    "cluster",
                    "sc",
                    "acq_rel",
                    "acquire",
                    "release",
                    "proxy",
                    "alias",
                    "async",
                    "level",
                    "async::generic",
                    "sync_restrict::shared::cta",
                    "sync_restrict::shared::cluster",
                    "global",
                    "shared::cta",
                    "shared::cluster",
                    "mbarrier_init",
                ];
                let (mut narrow, mut proxy) = (false, false);
                while let Some(word) = mods.one(&words) {
                    narrow |= word == "cta";
                    proxy |= word == "proxy";
                }
                mods.finish()?;
                if proxy {
                    self.op(Class::Control, blank(control::nothing));
                } else {
                    self.op(Class::Control, Op { imm: u64::from(!narrow), ..blank(atomic::fence) });
                }
                Ok(())
            }
            "griddepcontrol" => {
                let exec: Exec = match mods.one(&["launch_dependents", "wait"]) {
                    Some("wait") => control::wait_for_launches,
                    Some(_) => control::nothing,
                    None => return Err("needs `.launch_dependents` or `.wait`".into()),
                };
                mods.finish()?;
                self.op(Class::Control, blank(exec));
                Ok(())
            }
            "nanosleep" => {
                self.op(Class::Control, blank(control::sleep));
                Ok(())
            }
            "prefetch" | "prefetchu" | "pmevent" | "discard" | "applypriority" | "setmaxnreg" => {
                self.op(Class::Control, blank(control::nothing));
                Ok(())
            }
            "trap" | "brkpt" => {
                mods.finish()?;
                self.op(Class::Control, blank(control::trap));
                Ok(())
            }
            "exit" => {
                mods.finish()?;
                self.op(Class::Control, blank(control::exit));
                Ok(())
            }
            "ret" => {
                mods.has("uni");
                mods.finish()?;
                self.op(Class::Control, blank(if self.f.entry { control::exit } else { control::ret }));
                Ok(())
            }
            "call" => self.call(o, mods),
            "cp" => self.copy(o, mods),
            "ldmatrix" | "stmatrix" => self.move_matrix(inst, mods),
            "movmatrix" => {
                for word in ["sync", "aligned", "m8n8", "trans"] {
                    if !mods.has(word) {
                        return Err(format!("needs `.{word}`"));
                    }
                }
                mods.ty()?;
                mods.finish()?;
                let [d, a] = o.as_slice() else { return count(2, o) };
                let (d, a) = (self.dst(d, Kind::W32)?, self.src(a, Kind::W32)?);
                self.op(Class::Matrix, Op { d, a, ..blank(matrix::transpose) });
                Ok(())
            }
            "mma" => self.mma(o, mods),
            "createpolicy" => {
                // cache policies change no result
                let Some(d) = o.first() else { return count(1, o) };
                let (d, a) = (self.dst(d, Kind::W64)?, self.constant(Kind::W64, 0));
                self.op(Class::Move, Op { d, a, ..blank(lane::un(|a: u64| a).exec()) });
                Ok(())
            }
            opcode => match table::select_sem(opcode, &mut mods)? {
                Some((sem, class)) => {
                    mods.finish()?;
                    self.lanewise(inst, &sem, class, opcode == "cvt")
                }
                None => super::emit::unknown(),
            },
        }
    }

    /// `mov` from `%clock` and its like; `false`: another special register.
    fn clock(&mut self, inst: &Inst) -> Emitted<bool> {
        let [d, Operand::Special(name)] = inst.operands.as_slice() else { return Ok(false) };
        let (imm, kind) = match name.as_str() {
            "%clock" => (0, Kind::W32),
            "%clock_hi" => (1, Kind::W32),
            "%clock64" => (2, Kind::W64),
            "%globaltimer" => (3, Kind::W64),
            "%globaltimer_lo" => (4, Kind::W32),
            "%globaltimer_hi" => (5, Kind::W32),
            _ => return Ok(false),
        };
        let d = self.dst(d, kind)?;
        self.op(Class::Move, Op { d, imm, ..blank(warp::clock) });
        Ok(true)
    }

    /// `mov` between a register and a vector of narrower ones.
    fn pack(&mut self, o: &[Operand], ty: Ty) -> Emitted<()> {
        let whole = kind_of(ty);
        let (vector, scalar, packing) = match o {
            [Operand::Vector(v), s] => (v, s, false),
            [d, Operand::Vector(v)] => (v, d, true),
            _ => return Err("one side must be a vector".into()),
        };
        let part = match (ty.size(), vector.len()) {
            (4, 2) => Kind::W16,
            (8, 2) => Kind::W32,
            (8, 4) => Kind::W16,
            (16, 2) => Kind::W64,
            (16, 4) => Kind::W32,
            (size, n) => return Err(format!("{n} parts do not make {size} bytes")),
        };
        let mut list = Vec::new();
        for item in vector {
            list.push(match item {
                Operand::Sink if !packing => NONE,
                _ => self.src(item, part)?,
            });
        }
        let imm = self.code.lists.len() as u64;
        self.code.lists.push(list);
        let op = if packing {
            let exec: Exec = match (whole, part) {
                (Kind::W32, _) => pack_op::<u16, u32>,
                (Kind::W64, Kind::W32) => pack_op::<u32, u64>,
                (Kind::W64, _) => pack_op::<u16, u64>,
                (_, Kind::W64) => pack_op::<u64, u128>,
                _ => pack_op::<u32, u128>,
            };
            let d = self.dst(scalar, whole)?;
            Op { d, imm, ..blank(exec) }
        } else {
            let exec: Exec = match (whole, part) {
                (Kind::W32, _) => unpack_op::<u16, u32>,
                (Kind::W64, Kind::W32) => unpack_op::<u32, u64>,
                (Kind::W64, _) => unpack_op::<u16, u64>,
                (_, Kind::W64) => unpack_op::<u64, u128>,
                _ => unpack_op::<u32, u128>,
            };
            let a = self.src(scalar, whole)?;
            Op { a, imm, ..blank(exec) }
        };
        self.op(Class::Move, op);
        Ok(())
    }

    fn compare(&mut self, inst: &Inst, mut mods: Mods<'_>) -> Emitted<()> {
        let set = inst.opcode == "set";
        let ty = mods.ty()?;
        let to = if set { Some(mods.ty()?) } else { None };
        let ftz = mods.has("ftz");
        let Some(relation) = mods.first(|_| true) else { return Err("a relation is missing".into()) };
        let code = match mods.one(&["and", "or", "xor"]) {
            None => 0,
            Some("and") => 1,
            Some("or") => 2,
            Some(_) => 3,
        };
        mods.finish()?;
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            return self.compare_pairs(inst, relation, (ty, to), ftz, code);
        }
        let table::Relation { sem, swap } = table::comparison(relation, ty, ftz)?;
        let o = &inst.operands;
        if o.len() != 3 + usize::from(code != 0) {
            return count(3 + usize::from(code != 0), o);
        }
        // a float compared with a literal
        let kind = match ty {
            Ty::F32 => Kind::F32,
            Ty::F64 => Kind::F64,
            other => kind_of(other),
        };
        let (a, b) = (self.src(&o[1], kind)?, self.src(&o[2], kind)?);
        let (a, b) = if swap { (b, a) } else { (a, b) };
        let (c, flip) = match o.get(3) {
            None => (NONE, 0),
            Some(Operand::Not(reg)) => (self.slot(*reg), 4),
            Some(other) => (self.src(other, Kind::Pred)?, 0),
        };
        let imm = code | flip | sem.imm;
        let class = if ty.float() { Class::Float32 } else { Class::Integer };
        let class = if ty == Ty::F64 { Class::Float64 } else { class };
        if let Some(to) = to {
            let p = self.room(Kind::Pred);
            self.op(class, Op { d: p, e: NONE, a, b, c, imm, ..blank(sem.exec()) });
            let (ones, kind) = match to {
                Ty::F32 => (u64::from(1f32.to_bits()), Kind::W32),
                Ty::U32 | Ty::S32 => (u64::from(u32::MAX), Kind::W32),
                Ty::F16 => (0x3c00, Kind::W16),
                Ty::Bf16 => (0x3f80, Kind::W16),
                _ => return Err(format!("`set` has no result of {to:?}")),
            };
            let (one, zero) = (self.constant(kind, ones), self.constant(kind, 0));
            let d = self.dst(&o[0], kind)?;
            let select = if kind == Kind::W32 { lane::select::<u32>() } else { lane::select::<u16>() };
            self.silent_op(Op { d, a: one, b: zero, c: p, ..blank(select.exec()) });
            return Ok(());
        }
        let (d, e) = match &o[0] {
            Operand::Pair(p, q) => {
                let q = if **q == Operand::Sink { NONE } else { self.dst(q, Kind::Pred)? };
                (self.dst(p, Kind::Pred)?, q)
            }
            other => (self.dst(other, Kind::Pred)?, NONE),
        };
        self.op(class, Op { d, e, a, b, c, imm, ..blank(sem.exec()) });
        Ok(())
    }

    /// `setp` and `set` of two halves at once, as two comparisons.
    fn compare_pairs(
        &mut self,
        inst: &Inst,
        relation: &str,
        (ty, to): (Ty, Option<Ty>),
        ftz: bool,
        code: u64,
    ) -> Emitted<()> {
        let o = &inst.operands;
        if o.len() != 3 + usize::from(code != 0) {
            return count(3 + usize::from(code != 0), o);
        }
        let half = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
        let table::Relation { sem, swap } = table::comparison(relation, half, ftz)?;
        let mut parts = [[0; 2]; 2];
        for (part, operand) in parts.iter_mut().zip(&o[1..3]) {
            let a = self.src(operand, Kind::W32)?;
            *part = [self.room(Kind::W16), self.room(Kind::W16)];
            let imm = self.code.lists.len() as u64;
            self.code.lists.push(part.to_vec());
            self.silent_op(Op { a, imm, ..blank(unpack_op::<u16, u32>) });
        }
        let (c, flip) = match o.get(3) {
            None => (NONE, 0),
            Some(Operand::Not(reg)) => (self.slot(*reg), 4),
            Some(other) => (self.src(other, Kind::Pred)?, 0),
        };
        let imm = code | flip | sem.imm;
        let pair = |i: usize| if swap { (parts[1][i], parts[0][i]) } else { (parts[0][i], parts[1][i]) };
        if to.is_none() {
            let Operand::Pair(p, q) = &o[0] else { return Err("the result is a pair of predicates".into()) };
            for (i, operand) in [p, q].into_iter().enumerate() {
                let (d, (a, b)) = (self.dst(operand, Kind::Pred)?, pair(i));
                let class = if i == 0 { Class::Half } else { Class::Silent };
                self.op(class, Op { d, a, b, c, imm, ..blank(sem.exec()) });
            }
            return Ok(());
        }
        let one = match to {
            Some(Ty::F16x2) => 0x3c00,
            Some(Ty::Bf16x2) => 0x3f80,
            Some(Ty::U32 | Ty::S32) => 0xffff,
            other => return Err(format!("`set` has no result of {other:?}")),
        };
        let (one, zero) = (self.constant(Kind::W16, one), self.constant(Kind::W16, 0));
        let mut halves = Vec::new();
        for i in 0..2 {
            let (p, h, (a, b)) = (self.room(Kind::Pred), self.room(Kind::W16), pair(i));
            let class = if i == 0 { Class::Half } else { Class::Silent };
            self.op(class, Op { d: p, a, b, c, imm, ..blank(sem.exec()) });
            self.silent_op(Op { d: h, a: one, b: zero, c: p, ..blank(lane::select::<u16>().exec()) });
            halves.push(h);
        }
        let imm = self.code.lists.len() as u64;
        self.code.lists.push(halves);
        let d = self.dst(&o[0], Kind::W32)?;
        self.silent_op(Op { d, imm, ..blank(pack_op::<u16, u32>) });
        Ok(())
    }

    fn cvta(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        let to = mods.has("to");
        let space = mods.first(|w| Ty::parse(w).is_none()).unwrap_or("");
        if mods.ty()? != Ty::U64 {
            return Err("addresses have 64 bits".into());
        }
        mods.finish()?;
        let window = match space {
            "global" | "const" => 0,
            "shared" | "shared::cta" | "shared::cluster" => SHARED_WINDOW,
            "local" => LOCAL_WINDOW,
            "param" | "param::entry" => PARAM_WINDOW,
            _ => return Err(format!("`.{space}` is not a space")),
        };
        let [d, a] = o else { return count(2, o) };
        // a device function's parameters are in local memory
        let window = if window == PARAM_WINDOW && !self.f.entry { LOCAL_WINDOW } else { window };
        let a = self.src(a, Kind::W64)?;
        let d = self.dst(d, Kind::W64)?;
        let b = self.constant(Kind::W64, if to { window.wrapping_neg() } else { window });
        let sem = lane::bin(|a: u64, b: u64| a.wrapping_add(b));
        self.op(Class::Move, Op { d, a, b, ..blank(sem.exec()) });
        Ok(())
    }

    /// Modifiers that loads, stores and atomics share: space, order, whether the scope is the block, and hints without
    /// meaning.
    fn space(&mut self, mods: &mut Mods<'_>) -> Emitted<(Space, Order, bool)> {
        let (mut order, mut narrow) = (Order::Weak, false);
        let mut space = None;
        while let Some(word) = mods.find(|w| {
            matches!(
                w,
                "global"
                    | "shared"
                    | "shared::cta"
                    | "shared::cluster"
                    | "local"
                    | "const"
                    | "param"
                    | "param::entry"
                    | "param::func"
                    | "weak"
                    | "relaxed"
                    | "acquire"
                    | "release"
                    | "acq_rel"
                    | "volatile"
                    | "mmio"
                    | "cta"
                    | "gpu"
                    | "sys"
                    | "cluster"
                    | "nc"
                    | "ca"
                    | "cg"
                    | "cs"
                    | "lu"
                    | "cv"
                    | "wb"
                    | "wt"
                    | "noftz"
            ) || w.starts_with("L1::")
                || w.starts_with("L2::")
        }) {
            match word {
                "global" => space = Some(Space::Global),
                "const" => space = Some(Space::Const),
                "local" => space = Some(Space::Local),
                "shared" | "shared::cta" | "shared::cluster" => space = Some(Space::Shared),
                "param" | "param::entry" | "param::func" => space = Some(Space::Param),
                "nc" => order = Order::ReadOnly,
                "relaxed" | "volatile" | "mmio" => order = Order::Relaxed,
                "acquire" => order = Order::Acquire,
                "release" => order = Order::Release,
                "acq_rel" => order = Order::Both,
                "cta" => narrow = true,
                _ => {}
            }
        }
        Ok((space.unwrap_or(Space::Generic), order, narrow))
    }

    /// The address register of `[...]`, the offset, and the space in which it is.
    fn base(&mut self, operand: &Operand, space: Space) -> Emitted<(u32, u64, bool, Space)> {
        let Operand::Address(base, offset) = operand else {
            return Err("an address in brackets is needed".into());
        };
        let offset = *offset as u64;
        Ok(match base.as_ref() {
            Operand::Reg(reg) => {
                let wide = match kind_of(self.f.regs[*reg as usize]) {
                    Kind::W64 => true,
                    Kind::W32 => false,
                    _ => return Err("an address has 32 or 64 bits".into()),
                };
                let space = if space == Space::Param && !self.f.entry { Space::Local } else { space };
                (self.slot(*reg), offset, wide, space)
            }
            Operand::Int(at) => (self.constant(Kind::W64, 0), at.wrapping_add(offset), true, space),
            Operand::Name(name, scope) => {
                let found = self.place(name, *scope)?;
                let (base, at) = self.address(name, *scope, Kind::W64)?;
                let inside = match found {
                    Place::Fixed(s, _) => s,
                    Place::Local(_) => Space::Local,
                    Place::Dynamic => Space::Shared,
                    Place::Param(_) => Space::Param,
                    Place::Function(_) => return Err(format!("`{name}` is a function")),
                };
                let matches = match space {
                    Space::Generic => true,
                    // parameters of calls are local memory here
                    Space::Param => matches!(inside, Space::Param | Space::Local),
                    Space::Global | Space::Const => matches!(inside, Space::Global | Space::Const),
                    other => other == inside,
                };
                if !matches {
                    return Err(format!("`{name}` is not in this space"));
                }
                let base = match base {
                    Some(base) => base,
                    None => self.constant(Kind::W64, 0),
                };
                (base, at.wrapping_add(offset), true, inside)
            }
            _ => return Err("an address is a register, a name or a number".into()),
        })
    }

    fn elements(&mut self, operand: &Operand, count: u8, ty: Ty, loading: bool) -> Emitted<([u32; 8], Kind)> {
        let single = [operand.clone()];
        let list: &[Operand] = match operand {
            Operand::Vector(list) => list,
            _ => &single,
        };
        if list.len() != count as usize {
            return Err(format!("{count} registers are needed, {} stand there", list.len()));
        }
        // registers may be wider than what is loaded or stored
        let own = match ty {
            Ty::F32 => Kind::F32,
            Ty::F64 => Kind::F64,
            other => kind_of(other),
        };
        let kind = list
            .iter()
            .find_map(|item| self.reg_ty(item))
            .map_or(own, |reg| if kind_of(reg).width() == own.width() { own } else { kind_of(reg) });
        if kind.width() < ty.size() {
            return Err(format!("a register of {} bits does not hold {ty:?}", kind.width() * 8));
        }
        let mut slots = [NONE; 8];
        for (slot, item) in slots.iter_mut().zip(list) {
            *slot = match item {
                Operand::Sink if loading => NONE,
                _ if loading => self.dst(item, kind)?,
                _ => self.src(item, kind)?,
            };
        }
        Ok((slots, kind))
    }

    fn vector(mods: &mut Mods<'_>) -> u8 {
        match mods.one(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        }
    }

    fn load(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        let ty = mods.ty()?;
        let (space, order, narrow) = self.space(&mut mods)?;
        let n = Self::vector(&mut mods);
        mods.finish()?;
        let (d, from) = match o {
            [d, from] | [d, from, _] => (d, from),
            _ => return count(2, o),
        };
        let (a, imm, wide, space) = self.base(from, space)?;
        let (slots, kind) = self.elements(d, n, ty, true)?;
        let fixed = space == Space::Param && matches!(from, Operand::Address(b, _) if matches!(**b, Operand::Name(..)));
        let access =
            Access { space, size: ty.size() as u8, count: n, signed: ty.signed(), wide, order, narrow, slots, kind };
        let e = self.code.mems.len() as u32;
        self.code.mems.push(access);
        if ty.size() * n as usize > 32 {
            return Err(format!("{} bytes are more than one access has", ty.size() * n as usize));
        }
        let exec: Exec = if fixed && ty.size() <= 8 {
            let (_, bytes) = layout(&self.f.params);
            if imm.saturating_add((ty.size() * n as usize) as u64) > bytes as u64 {
                return Err(format!("reads past the {bytes} bytes of parameters"));
            }
            match ty.size() {
                1 => memory::ld_param::<u8>,
                2 => memory::ld_param::<u16>,
                4 => memory::ld_param::<u32>,
                _ => memory::ld_param::<u64>,
            }
        } else {
            match ty.size() {
                1 => memory::ld::<u8>,
                2 => memory::ld::<u16>,
                4 => memory::ld::<u32>,
                8 => memory::ld::<u64>,
                _ => memory::ld128,
            }
        };
        self.op(Class::Memory, Op { a, imm, e, ..blank(exec) });
        Ok(())
    }

    fn store(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        let ty = mods.ty()?;
        let (space, order, narrow) = self.space(&mut mods)?;
        let n = Self::vector(&mut mods);
        mods.finish()?;
        let (to, value) = match o {
            [to, value] | [to, value, _] => (to, value),
            _ => return count(2, o),
        };
        let (a, imm, wide, space) = self.base(to, space)?;
        let (slots, kind) = self.elements(value, n, ty, false)?;
        if ty.size() * n as usize > 32 {
            return Err(format!("{} bytes are more than one access has", ty.size() * n as usize));
        }
        let access = Access { space, size: ty.size() as u8, count: n, signed: false, wide, order, narrow, slots, kind };
        let e = self.code.mems.len() as u32;
        self.code.mems.push(access);
        let exec: Exec = match ty.size() {
            1 => memory::st::<u8>,
            2 => memory::st::<u16>,
            4 => memory::st::<u32>,
            8 => memory::st::<u64>,
            _ => memory::st128,
        };
        self.op(Class::Memory, Op { a, imm, e, ..blank(exec) });
        Ok(())
    }

    fn atomic(&mut self, inst: &Inst, mut mods: Mods<'_>) -> Emitted<()> {
        let red = inst.opcode == "red";
        // the type of a vector may stand before the operation
        let Some(ty) = mods.find(|w| Ty::parse(w).is_some()).and_then(Ty::parse) else {
            return Err("a type is missing".into());
        };
        let n = match mods.one(&["v2", "v4", "v8"]) {
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
            None => 1,
        };
        let Some(word) = mods.one(&["and", "or", "xor", "cas", "exch", "add", "inc", "dec", "min", "max"]) else {
            return Err("the operation is missing".into());
        };
        let atom = match word {
            "and" => Atom::And,
            "or" => Atom::Or,
            "xor" => Atom::Xor,
            "cas" => Atom::Cas,
            "exch" => Atom::Exch,
            "add" => Atom::Add,
            "inc" => Atom::Inc,
            "dec" => Atom::Dec,
            "min" => Atom::Min,
            _ => Atom::Max,
        };
        let (space, order, narrow) = self.space(&mut mods)?;
        mods.finish()?;
        let valid = match atom {
            Atom::And | Atom::Or | Atom::Xor => matches!(ty, Ty::B32 | Ty::B64),
            Atom::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
            Atom::Exch => matches!(ty, Ty::B32 | Ty::B64),
            Atom::Inc | Atom::Dec => ty == Ty::U32,
            Atom::Add => matches!(
                ty,
                Ty::U32 | Ty::S32 | Ty::U64 | Ty::F32 | Ty::F64 | Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2
            ),
            Atom::Min | Atom::Max => {
                matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2)
            }
        };
        let Some(code) = atomic::encode(atom, ty).filter(|_| valid) else {
            return Err(format!("`.{word}` has no type {ty:?}"));
        };
        if order == Order::ReadOnly || !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return Err("atomics are for global and shared memory".into());
        }
        let o = &inst.operands;
        let (d, rest) = match (red, o.as_slice()) {
            (true, rest) => (None, rest),
            (false, [d, rest @ ..]) => (Some(d), rest),
            _ => return count(3, o),
        };
        let needed = if atom == Atom::Cas { 3 } else { 2 };
        // a cache policy may follow
        if rest.len() != needed && rest.len() != needed + 1 {
            return count(needed + usize::from(!red), o);
        }
        let kind = match ty {
            Ty::F32 => Kind::F32,
            Ty::F64 => Kind::F64,
            other => kind_of(other),
        };
        let (a, imm, wide, space) = self.base(&rest[0], space)?;
        let mut slots = [NONE; 8];
        slots[0] = code as u32;
        let order = if order == Order::Weak { Order::Relaxed } else { order };
        let access = Access { space, size: ty.size() as u8, count: n, signed: false, wide, order, narrow, slots, kind };
        let e = self.code.mems.len() as u32;
        self.code.mems.push(access);
        if n == 1 {
            let b = self.src(&rest[1], kind)?;
            let c = if needed == 3 { self.src(&rest[2], kind)? } else { NONE };
            let d = match d {
                Some(Operand::Sink) | None => NONE,
                Some(d) => self.dst(d, kind)?,
            };
            self.op(Class::Atomic, Op { d, a, b, c, imm, e, ..blank(atomic::atom) });
            return Ok(());
        }
        let (values, _) = self.elements(&rest[1], n, ty, false)?;
        let mut list = values[..n as usize].to_vec();
        let d = match d {
            Some(Operand::Sink) | None => NONE,
            Some(d) => {
                let (slots, _) = self.elements(d, n, ty, true)?;
                list.extend_from_slice(&slots[..n as usize]);
                0
            }
        };
        let c = self.code.lists.len() as u32;
        self.code.lists.push(list);
        self.op(Class::Atomic, Op { d, a, b: NONE, c, imm, e, ..blank(atomic::atom) });
        Ok(())
    }

    fn shfl(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        if !mods.has("sync") {
            return Err("only `shfl.sync` exists since sm_70".into());
        }
        let way = match mods.one(&["up", "down", "bfly", "idx"]) {
            Some("up") => warp::UP,
            Some("down") => warp::DOWN,
            Some("bfly") => warp::XOR,
            Some(_) => warp::IDX,
            None => return Err("the way is missing".into()),
        };
        if mods.ty()? != Ty::B32 {
            return Err("its type is b32".into());
        }
        mods.finish()?;
        let [d, a, b, c, m] = o else { return count(5, o) };
        let (d, e) = match d {
            Operand::Pair(d, p) => {
                let p = if **p == Operand::Sink { NONE } else { self.dst(p, Kind::Pred)? };
                (self.dst(d, Kind::W32)?, p)
            }
            d => (self.dst(d, Kind::W32)?, NONE),
        };
        let (a, b, c) = (self.src(a, Kind::W32)?, self.src(b, Kind::W32)?, self.src(c, Kind::W32)?);
        let m = self.src(m, Kind::W32)?;
        self.op(Class::Warp, Op { d, e, a, b, c, imm: way | u64::from(m) << 32, ..blank(warp::shfl) });
        Ok(())
    }

    fn vote(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        if !mods.has("sync") {
            return Err("only `vote.sync` exists since sm_70".into());
        }
        let way = match mods.one(&["all", "any", "uni", "ballot"]) {
            Some("all") => warp::ALL,
            Some("any") => warp::ANY,
            Some("uni") => warp::UNI,
            Some(_) => warp::BALLOT,
            None => return Err("the way is missing".into()),
        };
        let ty = mods.ty()?;
        mods.finish()?;
        let kind = if way == warp::BALLOT { Kind::W32 } else { Kind::Pred };
        if kind_of(ty) != kind {
            return Err(format!("has no result of {ty:?}"));
        }
        let [d, a, m] = o else { return count(3, o) };
        let (a, flip) = match a {
            Operand::Not(reg) => (self.slot(*reg), warp::FLIP),
            a => (self.src(a, Kind::Pred)?, 0),
        };
        let (d, b) = (self.dst(d, kind)?, self.src(m, Kind::W32)?);
        self.op(Class::Warp, Op { d, a, b, imm: way | flip, ..blank(warp::vote) });
        Ok(())
    }

    fn matches(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        let all = match mods.one(&["any", "all"]) {
            Some("any") => 0,
            Some(_) => 1,
            None => return Err("needs `.any` or `.all`".into()),
        };
        mods.has("sync");
        let ty = mods.ty()?;
        mods.finish()?;
        let [d, a, m] = o else { return count(3, o) };
        let (d, e) = match d {
            Operand::Pair(d, p) => (self.dst(d, Kind::W32)?, self.dst(p, Kind::Pred)?),
            d => (self.dst(d, Kind::W32)?, NONE),
        };
        let wide = match ty {
            Ty::B32 => 0,
            Ty::B64 => 2,
            _ => return Err(format!("has no type {ty:?}")),
        };
        let (a, b) = (self.src(a, kind_of(ty))?, self.src(m, Kind::W32)?);
        self.op(Class::Warp, Op { d, e, a, b, imm: all | wide, ..blank(warp::matches) });
        Ok(())
    }

    fn redux(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        use warp::Redux;
        mods.has("sync");
        let ty = mods.ty()?;
        let (abs, nan) = (mods.has("abs"), mods.has("NaN"));
        let way = match (mods.one(&["add", "min", "max", "and", "or", "xor"]), ty) {
            (Some("add"), Ty::U32 | Ty::S32) => Redux::Add,
            (Some("min"), Ty::U32) => Redux::MinU,
            (Some("max"), Ty::U32) => Redux::MaxU,
            (Some("min"), Ty::S32) => Redux::MinS,
            (Some("max"), Ty::S32) => Redux::MaxS,
            (Some("and"), Ty::B32) => Redux::And,
            (Some("or"), Ty::B32) => Redux::Or,
            (Some("xor"), Ty::B32) => Redux::Xor,
            (Some("min"), Ty::F32) => match (abs, nan) {
                (false, false) => Redux::MinF,
                (false, true) => Redux::MinFNan,
                (true, false) => Redux::MinFAbs,
                (true, true) => Redux::MinFAbsNan,
            },
            (Some("max"), Ty::F32) => match (abs, nan) {
                (false, false) => Redux::MaxF,
                (false, true) => Redux::MaxFNan,
                (true, false) => Redux::MaxFAbs,
                (true, true) => Redux::MaxFAbsNan,
            },
            _ => return Err(format!("has no such operation of {ty:?}")),
        };
        mods.finish()?;
        let [d, a, m] = o else { return count(3, o) };
        let (d, a, b) = (self.dst(d, Kind::W32)?, self.src(a, Kind::W32)?, self.src(m, Kind::W32)?);
        self.op(Class::Warp, Op { d, a, b, imm: way as u64, ..blank(warp::redux) });
        Ok(())
    }

    fn barrier(&mut self, inst: &Inst, mut mods: Mods<'_>) -> Emitted<()> {
        let o = &inst.operands;
        if mods.has("cluster") {
            if mods.one(&["arrive", "wait"]).is_none() {
                return Err("needs `.arrive` or `.wait`".into());
            }
            for word in ["release", "relaxed", "acquire", "aligned"] {
                mods.has(word);
            }
            mods.finish()?;
            return Err("barriers of clusters are not supported".into());
        }
        mods.has("cta");
        if mods.has("warp") {
            mods.has("sync");
            mods.finish()?;
            let [m] = o.as_slice() else { return count(1, o) };
            let a = self.src(m, Kind::W32)?;
            self.op(Class::Warp, Op { a, ..blank(barrier::warp_sync) });
            return Ok(());
        }
        let kind = match mods.one(&["sync", "arrive", "red"]) {
            Some("sync") => BarKind::Sync,
            Some("arrive") => BarKind::Arrive,
            Some(_) => match mods.one(&["popc", "and", "or"]) {
                Some("popc") => BarKind::Popc,
                Some("and") => BarKind::And,
                Some(_) => BarKind::Or,
                None => return Err("the reduction is missing".into()),
            },
            None => return Err("needs `.sync`, `.arrive` or `.red`".into()),
        };
        // bar is barrier with .aligned
        let aligned = mods.has("aligned") || inst.opcode == "bar";
        let reduces = matches!(kind, BarKind::Popc | BarKind::And | BarKind::Or);
        if reduces {
            mods.ty()?;
        }
        mods.finish()?;
        let (d, mut rest) = match (reduces, o.as_slice()) {
            (true, [d, rest @ ..]) => (Some(d), rest),
            (false, rest) => (None, rest),
            _ => return count(3, o),
        };
        let (mut pred, mut pred_flip) = (NONE, 0);
        if reduces {
            let Some((last, front)) = rest.split_last() else { return count(3, o) };
            (pred, pred_flip) = match last {
                Operand::Not(reg) => (self.slot(*reg), u32::MAX),
                other => (self.src(other, Kind::Pred)?, 0),
            };
            rest = front;
        }
        let (id, count_reg) = match rest {
            [id] => (self.src(id, Kind::W32)?, NONE),
            [id, n] => (self.src(id, Kind::W32)?, self.src(n, Kind::W32)?),
            _ => return count(2, o),
        };
        if kind == BarKind::Arrive && count_reg == NONE {
            return Err("`.arrive` needs the number of threads".into());
        }
        let dst = match (kind, d) {
            (BarKind::Popc, Some(d)) => self.dst(d, Kind::W32)?,
            (_, Some(d)) => self.dst(d, Kind::Pred)?,
            _ => NONE,
        };
        let imm = self.code.bars.len() as u64;
        self.code.bars.push(Bar { kind, aligned, id, count: count_reg, pred, pred_flip, dst });
        self.op(Class::Control, Op { imm, ..blank(barrier::bar) });
        Ok(())
    }

    fn copy(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        if !mods.has("async") {
            return Err("only `cp.async` is known".into());
        }
        if mods.has("commit_group") {
            mods.finish()?;
            self.op(Class::Memory, blank(copy::commit));
            return Ok(());
        }
        if mods.has("wait_all") {
            mods.finish()?;
            self.op(Class::Memory, Op { imm: u64::MAX, ..blank(copy::wait) });
            return Ok(());
        }
        if mods.has("wait_group") {
            mods.finish()?;
            let [Operand::Int(n)] = o else { return Err("needs a number of groups".into()) };
            self.op(Class::Memory, Op { imm: *n, ..blank(copy::wait) });
            return Ok(());
        }
        let wide = mods.has("cg");
        if !wide && !mods.has("ca") {
            return Err("needs `.ca` or `.cg`".into());
        }
        while mods.find(|w| w.starts_with("L2::") || matches!(w, "shared" | "shared::cta" | "global")).is_some() {}
        mods.finish()?;
        let (to, from, bytes, rest) = match o {
            [to, from, Operand::Int(bytes), rest @ ..] => (to, from, *bytes, rest),
            _ => return Err("takes a target, a source and a size".into()),
        };
        if !(bytes == 16 || !wide && matches!(bytes, 4 | 8)) {
            return Err(format!("does not copy {bytes} bytes"));
        }
        let (a, to_offset, to_wide, to_space) = self.base(to, Space::Shared)?;
        let (b, from_offset, from_wide, from_space) = self.base(from, Space::Global)?;
        if to_space != Space::Shared || from_space != Space::Global || !from_wide {
            return Err("copies from global to shared memory".into());
        }
        let (mut c, mut e) = (NONE, NONE);
        for item in rest {
            match (self.reg_ty(item), item) {
                (Some(Ty::Pred), item) => e = self.src(item, Kind::Pred)?,
                (Some(ty), _) if ty.size() == 8 => {}
                (_, item) => c = self.src(item, Kind::W32)?,
            }
        }
        let d = bytes as u32 | u32::from(!to_wide) << 31;
        let imm = u64::from(to_offset as u32) | from_offset << 32;
        self.op(Class::Memory, Op { d, a, b, c, e, imm, ..blank(copy::start) });
        Ok(())
    }

    fn move_matrix(&mut self, inst: &Inst, mut mods: Mods<'_>) -> Emitted<()> {
        let store = inst.opcode == "stmatrix";
        for word in ["sync", "aligned", "m8n8"] {
            if !mods.has(word) {
                return Err(format!("needs `.{word}`"));
            }
        }
        let n = match mods.one(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("the number of matrices is missing".into()),
        };
        let trans = mods.has("trans");
        let (space, order, narrow) = self.space(&mut mods)?;
        if mods.ty()? != Ty::B16 {
            return Err("moves matrices of b16".into());
        }
        mods.finish()?;
        let [first, second] = inst.operands.as_slice() else { return count(2, &inst.operands) };
        let (address, registers) = if store { (first, second) } else { (second, first) };
        let (a, imm, wide, space) = self.base(address, space)?;
        if !matches!(space, Space::Shared | Space::Generic) {
            return Err("matrices are in shared memory".into());
        }
        let (slots, kind) = self.elements(registers, n, Ty::B32, !store)?;
        let e = self.code.mems.len() as u32;
        self.code.mems.push(Access { space, size: 4, count: n, signed: false, wide, order, narrow, slots, kind });
        let c = u32::from(trans) | u32::from(store) << 1;
        self.op(Class::Matrix, Op { a, c, e, imm, ..blank(matrix::move_matrix) });
        Ok(())
    }

    fn mma(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        for word in ["sync", "aligned", "row", "col"] {
            if !mods.has(word) {
                return Err(format!("needs `.{word}`"));
            }
        }
        let inner = match mods.one(&["m16n8k4", "m16n8k8", "m16n8k16"]) {
            Some("m16n8k4") => 4,
            Some("m16n8k8") => 8,
            Some(_) => 16,
            None => return Err("this shape is not supported".into()),
        };
        let (c, b, a, d) = (mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?);
        mods.finish()?;
        let factor = match (a, b) {
            (Ty::F16, Ty::F16) => Factor::F16,
            (Ty::Bf16, Ty::Bf16) => Factor::Bf16,
            (Ty::Tf32, Ty::Tf32) => Factor::Tf32,
            _ => return Err(format!("products of {a:?} and {b:?} are not supported")),
        };
        let half_sum = match (d, c) {
            (Ty::F32, Ty::F32) => false,
            (Ty::F16, Ty::F16) if factor == Factor::F16 => true,
            _ => return Err(format!("sums of {d:?} are not supported")),
        };
        if (factor == Factor::Tf32) != (inner == 4) && inner != 8 {
            return Err(format!("has no inner extent {inner} for {a:?}"));
        }
        let shape = Shape { factor, inner, half_sum };
        let (na, nb, nd) = shape.registers();
        let [d, a, b, c] = o else { return count(4, o) };
        let mut list = Vec::new();
        for (operand, n, loading) in [(d, nd, true), (a, na, false), (b, nb, false), (c, nd, false)] {
            let (slots, _) = self.elements(operand, n as u8, Ty::B32, loading)?;
            list.extend_from_slice(&slots[..n]);
        }
        let e = self.code.lists.len() as u32;
        self.code.lists.push(list);
        self.op(Class::Matrix, Op { e, imm: shape.encode(), ..blank(matrix::mma) });
        Ok(())
    }

    fn call(&mut self, o: &[Operand], mut mods: Mods<'_>) -> Emitted<()> {
        mods.has("uni");
        mods.finish()?;
        self.code.calls_any = true;
        let empty: &[Operand] = &[];
        let (results, rest) = match o {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (empty, rest),
        };
        let (callee, arguments) = match rest {
            [callee, Operand::List(arguments), ..] => (callee, arguments.as_slice()),
            [callee, ..] => (callee, empty),
            [] => return Err("the function is missing".into()),
        };
        let local = |e: &Self, item: &Operand| -> Emitted<(u32, u32)> {
            let Operand::Name(name, scope) = item else {
                return Err("arguments and results are variables of `.param` space".into());
            };
            e.scopes(*scope)
                .into_iter()
                .find_map(|s| e.locals.get(&(name.clone(), s)).copied())
                .ok_or_else(|| format!("`{name}` is not declared"))
        };
        let arguments = arguments.iter().map(|a| local(self, a)).collect::<Emitted<Vec<_>>>()?;
        let results = results.iter().map(|a| local(self, a)).collect::<Emitted<Vec<_>>>()?;
        let mut call = Call { target: None, register: NONE, arguments, results, builtin: None };
        match callee {
            Operand::Name(name, scope) => match self.place(name, *scope)? {
                Place::Function(i) => {
                    let g = &self.module.functions[i as usize];
                    call.builtin = match name.as_str() {
                        "vprintf" => Some(Builtin::Print),
                        "__assertfail" => Some(Builtin::Assert),
                        _ if g.defined && !g.entry => None,
                        _ => return Err(format!("`{name}` is not a function that is defined")),
                    };
                    if call.builtin.is_none() && g.params.len() != call.arguments.len() {
                        return Err(format!("`{name}` takes {} arguments", g.params.len()));
                    }
                    call.target = Some(i);
                }
                _ => return Err(format!("`{name}` is not a function")),
            },
            Operand::Reg(_) => call.register = self.src(callee, Kind::W64)?,
            _ => return Err("the function is a name or a register".into()),
        }
        let imm = self.code.calls.len() as u64;
        self.code.calls.push(call);
        self.op(Class::Control, Op { imm, ..blank(control::call) });
        Ok(())
    }
}

/// An operation without operands.
fn blank(exec: Exec) -> Op {
    Op {
        exec,
        imm: 0,
        d: NONE,
        a: NONE,
        b: NONE,
        c: NONE,
        e: NONE,
        guard: NONE,
        guard_flip: 0,
        class: Class::Silent as u8,
    }
}

fn ends(piece: &Piece<'_>) -> bool {
    piece
        .insts
        .last()
        .is_some_and(|inst| inst.guard.is_none() && matches!(inst.opcode.as_str(), "bra" | "brx" | "ret" | "exit"))
}

fn unknown<T>() -> Emitted<T> {
    Err("this instruction is not known".into())
}

fn count<T>(wanted: usize, o: &[Operand]) -> Emitted<T> {
    Err(format!("takes {wanted} operands, {} stand there", o.len()))
}

/// The opcode with its modifiers.
fn text(inst: &Inst) -> String {
    let mut out = inst.opcode.clone();
    for word in &inst.mods {
        out.push('.');
        out.push_str(word);
    }
    out
}

/// Whether a conversion's result is extended with its sign.
fn relaxed_sign(inst: &Inst) -> bool {
    let types: Vec<Ty> = inst.mods.iter().filter_map(|m| Ty::parse(m)).collect();
    types.first().is_some_and(|t| t.signed())
}

/// Copies between registers of different widths.
fn resize(from: Kind, to: Kind, signed: bool) -> Emitted<Exec> {
    let sem = match (from.width(), to.width(), signed) {
        (2, 4, false) => lane::un(|a: u16| u32::from(a)),
        (2, 4, true) => lane::un(|a: i16| i32::from(a)),
        (2, 8, false) => lane::un(|a: u16| u64::from(a)),
        (2, 8, true) => lane::un(|a: i16| i64::from(a)),
        (4, 8, false) => lane::un(|a: u32| u64::from(a)),
        (4, 8, true) => lane::un(|a: i32| i64::from(a)),
        (4, 2, _) => lane::un(|a: u32| a as u16),
        (8, 2, _) => lane::un(|a: u64| a as u16),
        (8, 4, _) => lane::un(|a: u64| a as u32),
        _ => return Err("a register of another width is needed".into()),
    };
    Ok(sem.exec())
}

/// Parts to a whole.
trait Part<W>: lane::Lane {
    fn shift(self, i: u32) -> W;
    fn cut(whole: W, i: u32) -> Self;
}

macro_rules! parts {
    ($($p:ty, $w:ty);*) => { $(impl Part<$w> for $p {
        fn shift(self, i: u32) -> $w {
            <$w>::from(self) << (i * <$p>::BITS)
        }
        fn cut(whole: $w, i: u32) -> Self {
            (whole >> (i * <$p>::BITS)) as $p
        }
    })* };
}
parts!(u16, u32; u32, u64; u16, u64; u64, u128; u32, u128);

unsafe fn pack_op<P: Part<W>, W: lane::Lane + std::ops::BitOr<Output = W>>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let list = &code.lists[op.imm as usize];
    let mut d = [W::default(); LANES];
    // SAFETY: lowering gave registers of these kinds.
    unsafe {
        for (i, &part) in list.iter().enumerate() {
            let p = lane::get::<P>(cx, part);
            for l in 0..LANES {
                d[l] = d[l] | p[l].shift(i as u32);
            }
        }
        lane::put(cx, op.d, &d, mask);
    }
    Flow::Next
}

unsafe fn unpack_op<P: Part<W>, W: lane::Lane>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let list = &code.lists[op.imm as usize];
    // SAFETY: lowering gave registers of these kinds.
    unsafe {
        let whole = lane::get::<W>(cx, op.a);
        for (i, &part) in list.iter().enumerate() {
            if part == NONE {
                continue;
            }
            let p: [P; LANES] = std::array::from_fn(|l| P::cut(whole[l], i as u32));
            lane::put(cx, part, &p, mask);
        }
    }
    Flow::Next
}

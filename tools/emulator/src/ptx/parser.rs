//! Tokens to a syntax tree. Registers are resolved here, because only the parser sees the scopes of inline assembly;
//! names of variables, functions and labels may be used before they are declared and are resolved when lowering.

use super::PtxError;
use super::ast::*;
use super::lexer::{Spot, Token, tokens};
use std::collections::HashMap;

/// Newest PTX ISA whose meaning is known here: that of CUDA 13.5.
pub(crate) const NEWEST_ISA: (u32, u32) = (9, 5);
/// A function with more registers than this is refused; NVRTC's largest have some ten thousand.
const MOST_REGISTERS: usize = 1 << 18;
/// A variable larger than this is refused.
const MOST_BYTES: u64 = 1 << 32;
/// Braces and brackets nested deeper than this are refused, so that no text can exhaust the host's stack.
const MOST_NESTED: u32 = 64;

type Parsed<T> = Result<T, PtxError>;

/// Parses a module.
pub(crate) fn parse(text: &str) -> Parsed<Module> {
    let tokens = tokens(text)?;
    let mut module = Module { lines: text.lines().map(str::to_owned).collect(), ..Module::default() };
    let mut parser = Parser { tokens: &tokens, at: 0, nested: 0 };
    parser.module(&mut module)?;
    Ok(module)
}

struct Parser<'a> {
    tokens: &'a [Spot<'a>],
    at: usize,
    nested: u32,
}

/// What a function's body needs while it is read.
struct Body {
    function: Function,
    /// Registers of each open scope, innermost last.
    registers: Vec<HashMap<String, RegId>>,
    /// Numbers of the open scopes.
    open: Vec<u32>,
}

impl Body {
    fn register(&self, name: &str) -> Option<RegId> {
        self.registers.iter().rev().find_map(|scope| scope.get(name).copied())
    }

    fn scope(&self) -> u32 {
        self.open.last().copied().unwrap_or(0)
    }
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |spot| spot.line)
    }

    fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(PtxError::new(self.line(), what))
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|spot| &spot.token)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token<'a>> {
        self.tokens.get(self.at + ahead).map(|spot| &spot.token)
    }

    fn next(&mut self) -> Parsed<Token<'a>> {
        match self.tokens.get(self.at) {
            Some(spot) => {
                self.at += 1;
                Ok(spot.token.clone())
            }
            None => self.fail("the text ends too early"),
        }
    }

    fn is(&self, sign: char) -> bool {
        self.peek() == Some(&Token::Sign(sign))
    }

    fn take(&mut self, sign: char) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Parsed<()> {
        if self.take(sign) {
            return Ok(());
        }
        let found = self.found();
        self.fail(format!("`{sign}` expected, found {found}"))
    }

    fn found(&self) -> String {
        match self.peek() {
            None => "the end of the text".into(),
            Some(Token::Word(word)) => format!("`{word}`"),
            Some(Token::Int(value)) => format!("`{value}`"),
            Some(Token::F32(bits)) => format!("`0f{bits:08X}`"),
            Some(Token::F64(bits)) => format!("`0d{bits:016X}`"),
            Some(Token::Text(text)) => format!("\"{text}\""),
            Some(Token::Sign(sign)) => format!("`{sign}`"),
        }
    }

    fn word(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Some(&Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => {
                let found = self.found();
                self.fail(format!("a name expected, found {found}"))
            }
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(found)) if *found == word)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn integer(&mut self) -> Parsed<u64> {
        let negative = self.take('-');
        match self.peek() {
            Some(&Token::Int(value)) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => {
                let found = self.found();
                self.fail(format!("an integer expected, found {found}"))
            }
        }
    }

    fn small(&mut self) -> Parsed<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.fail(format!("{value} is too large here")))
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.nested += 1;
        if self.nested > MOST_NESTED {
            return self.fail("brackets are nested too deeply");
        }
        Ok(())
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|spot| spot.line == line) {
            self.at += 1;
        }
    }

    fn skip_past(&mut self, sign: char) -> Parsed<()> {
        while self.next()? != Token::Sign(sign) {}
        Ok(())
    }

    fn skip_braces(&mut self) -> Parsed<()> {
        while !self.is('{') {
            self.next()?;
        }
        let mut depth = 0;
        loop {
            match self.next()? {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn module(&mut self, module: &mut Module) -> Parsed<()> {
        if !self.take_word(".version") {
            let found = self.found();
            return self.fail(format!("a module starts with `.version`, found {found}"));
        }
        module.version = match self.next()? {
            // 8.8 reads as a fraction; its decimal text gives the two numbers back
            Token::F64(bits) => {
                let text = format!("{:.1}", f64::from_bits(bits));
                let (major, minor) = text.split_once('.').unwrap_or((&text, "0"));
                (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
            }
            _ => return self.fail("`.version` needs a number such as 8.8"),
        };
        if module.version > NEWEST_ISA {
            let ((a, b), (c, d)) = (module.version, NEWEST_ISA);
            let what = format!("the text is PTX ISA {a}.{b}, this driver understands up to {c}.{d}");
            return Err(PtxError { newer_isa: true, ..PtxError::new(self.line(), what) });
        }
        while self.peek().is_some() {
            self.module_item(module)?;
        }
        if module.target.is_empty() {
            return self.fail("the module has no `.target`");
        }
        Ok(())
    }

    fn module_item(&mut self, module: &mut Module) -> Parsed<()> {
        let mut external = false;
        loop {
            if self.take(';') {
                return Ok(());
            }
            let word = self.word()?;
            match word {
                ".target" => {
                    let target = self.word()?;
                    let number = target.strip_prefix("sm_").unwrap_or("");
                    let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
                    module.sm = match digits.parse() {
                        Ok(sm) => sm,
                        Err(_) => return self.fail(format!("the target `{target}` is not one of PTX")),
                    };
                    module.target = target.to_owned();
                    while self.take(',') {
                        self.word()?;
                    }
                    return Ok(());
                }
                ".address_size" => {
                    if self.integer()? != 64 {
                        return self.fail("only 64-bit addresses are supported");
                    }
                    return Ok(());
                }
                ".file" | ".loc" => {
                    self.at -= 1;
                    self.skip_line();
                    return Ok(());
                }
                ".pragma" | ".alias" => return self.skip_past(';'),
                ".section" => return self.skip_braces(),
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                ".entry" | ".func" => {
                    let function = self.function(word == ".entry")?;
                    if let Some(known) = module.functions.iter_mut().find(|f| f.name == function.name) {
                        if known.defined && function.defined {
                            return self.fail(format!("`{}` is defined twice", function.name));
                        }
                        if function.defined {
                            *known = function;
                        }
                    } else {
                        module.functions.push(function);
                    }
                    return Ok(());
                }
                ".global" | ".const" | ".shared" => {
                    let space = space_of(word);
                    let vars = self.variables(space, external, 0)?;
                    for var in vars {
                        match module.vars.iter_mut().find(|v| v.name == var.name) {
                            Some(known) if known.external => *known = var,
                            Some(_) if var.external => {}
                            Some(_) => return self.fail(format!("`{}` is declared twice", var.name)),
                            None => module.vars.push(var),
                        }
                    }
                    return Ok(());
                }
                _ => return self.fail(format!("`{word}` is not known at module scope")),
            }
        }
    }

    /// After the space: `.align 4 .b8 name[16] = {...}, other;`
    fn variables(&mut self, space: Space, external: bool, scope: u32) -> Parsed<Vec<Var>> {
        let mut align = None;
        let mut ty = None;
        let mut lanes = 1;
        while let Some(&Token::Word(word)) = self.peek() {
            let Some(name) = word.strip_prefix('.') else { break };
            self.at += 1;
            match name {
                "align" => align = Some(self.small()?),
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                "attribute" => {
                    self.expect('(')?;
                    self.skip_past(')')?;
                }
                "ptr" => {}
                _ => match Ty::parse(name) {
                    Some(found) if found != Ty::Pred => ty = Some(found),
                    _ => return self.fail(format!("a variable cannot be declared with `{word}`")),
                },
            }
        }
        let Some(ty) = ty else { return self.fail("a variable needs a type") };
        let element = ty.size() * lanes;
        let align = align.map_or(element, |a| a as usize);
        if !align.is_power_of_two() {
            return self.fail(format!("an alignment of {align} is not a power of two"));
        }
        let mut vars = Vec::new();
        loop {
            let line = self.line();
            let name = self.word()?.to_owned();
            let mut count = 1u64;
            let mut open = false;
            while self.take('[') {
                if self.take(']') {
                    open = true;
                    continue;
                }
                let extent = self.integer()?;
                count = count.saturating_mul(extent);
                self.expect(']')?;
            }
            let bytes = count.saturating_mul(element as u64);
            if bytes > MOST_BYTES {
                return self.fail(format!("`{name}` would take {bytes} bytes"));
            }
            let init = if self.take('=') { Some(self.initial(ty)?) } else { None };
            let mut size = if open { 0 } else { bytes as usize };
            if let Some(init) = &init {
                if open {
                    size = init.bytes.len();
                }
                if init.bytes.len() > size {
                    return self.fail(format!("`{name}` has {size} bytes and {} initial ones", init.bytes.len()));
                }
            }
            vars.push(Var { name, space, align, size, init, external, scope, line });
            if self.take(',') {
                continue;
            }
            self.expect(';')?;
            return Ok(vars);
        }
    }

    fn initial(&mut self, ty: Ty) -> Parsed<Init> {
        let mut init = Init::default();
        self.initial_item(ty, &mut init)?;
        Ok(init)
    }

    fn initial_item(&mut self, ty: Ty, init: &mut Init) -> Parsed<()> {
        if self.take('{') {
            self.deeper()?;
            while !self.take('}') {
                self.initial_item(ty, init)?;
                if !self.take(',') && !self.is('}') {
                    return self.fail("an initial value is followed by `,` or `}`");
                }
            }
            self.nested -= 1;
            return Ok(());
        }
        let size = ty.size();
        let negative = self.take('-');
        let bits = match self.next()? {
            Token::Int(value) if ty == Ty::F32 => u64::from((value as f32).to_bits()),
            Token::Int(value) if ty == Ty::F64 => (value as f64).to_bits(),
            Token::Int(value) => {
                if negative {
                    value.wrapping_neg()
                } else {
                    value
                }
            }
            Token::F32(bits) => u64::from(bits ^ (u32::from(negative) << 31)),
            Token::F64(bits) if ty == Ty::F32 => {
                u64::from((f64::from_bits(bits) as f32).to_bits() ^ (u32::from(negative) << 31))
            }
            Token::F64(bits) => bits ^ (u64::from(negative) << 63),
            Token::Word(word) => {
                let generic = word == "generic";
                let name = if generic {
                    self.expect('(')?;
                    let name = self.word()?;
                    self.expect(')')?;
                    name
                } else {
                    word
                };
                let minus = self.is('-');
                let offset = if minus || self.take('+') { self.integer()? as i64 } else { 0 };
                if size != 8 {
                    return self.fail("an address fits only into 64 bits");
                }
                init.relocations.push((init.bytes.len(), name.to_owned(), offset));
                0
            }
            _ => return self.fail("an initial value is a number or a name"),
        };
        init.bytes.extend_from_slice(&u128::from(bits).to_le_bytes()[..size]);
        Ok(())
    }

    fn function(&mut self, entry: bool) -> Parsed<Function> {
        let mut body = Body {
            function: Function { entry, line: self.line(), scopes: vec![0], ..Function::default() },
            registers: vec![HashMap::new()],
            open: vec![0],
        };
        while self.is_word(".attribute") {
            self.at += 1;
            self.expect('(')?;
            self.skip_past(')')?;
        }
        if self.is('(') {
            body.function.results = self.parameters(&mut body)?;
        }
        body.function.name = self.word()?.to_owned();
        if self.is('(') {
            body.function.params = self.parameters(&mut body)?;
        }
        loop {
            if self.take(';') {
                return Ok(body.function);
            }
            if self.is('{') {
                break;
            }
            let word = self.word()?;
            match word {
                ".maxntid" | ".reqntid" | ".reqnctapercluster" => {
                    let mut extents = [self.small()?, 1, 1];
                    for extent in &mut extents[1..] {
                        if self.take(',') {
                            *extent = self.small()?;
                        }
                    }
                    match word {
                        ".maxntid" => {
                            body.function.max_threads = Some(extents.iter().fold(1, |a: u32, &b| a.saturating_mul(b)));
                        }
                        ".reqntid" => body.function.exact_threads = Some(extents),
                        _ => body.function.cluster = Some(extents),
                    }
                }
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" | ".maxnctapersm" => {
                    self.small()?;
                }
                ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {}
                ".pragma" => self.skip_past(';')?,
                _ => return self.fail(format!("`{word}` is not known in a function's head")),
            }
        }
        self.expect('{')?;
        body.function.defined = true;
        let mut depth = 1;
        while depth > 0 {
            if self.take('{') {
                depth += 1;
                self.deeper()?;
                let scope = body.function.scopes.len() as u32;
                let parent = body.scope();
                body.function.scopes.push(parent);
                body.open.push(scope);
                body.registers.push(HashMap::new());
            } else if self.take('}') {
                depth -= 1;
                if depth > 0 {
                    self.nested -= 1;
                    body.open.pop();
                    body.registers.pop();
                }
            } else {
                self.statement(&mut body)?;
            }
        }
        Ok(body.function)
    }

    fn parameters(&mut self, body: &mut Body) -> Parsed<Vec<Param>> {
        let mut params = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            let head = self.word()?;
            if head != ".param" && head != ".reg" {
                return self.fail(format!("a parameter starts with `.param`, found `{head}`"));
            }
            let (mut align, mut ty) = (None, None);
            while let Some(&Token::Word(word)) = self.peek() {
                let Some(name) = word.strip_prefix('.') else { break };
                self.at += 1;
                match name {
                    // the alignment after .ptr is that of the memory pointed to
                    "align" if ty.is_none() => align = Some(self.small()? as usize),
                    "align" => {
                        self.small()?;
                    }
                    "ptr" | "global" | "const" | "local" | "shared" => {}
                    _ => match Ty::parse(name) {
                        Some(found) => ty = Some(found),
                        None => return self.fail(format!("a parameter cannot be declared with `{word}`")),
                    },
                }
            }
            let Some(ty) = ty else { return self.fail("a parameter needs a type") };
            let name = self.word()?.to_owned();
            let mut size = ty.size() as u64;
            while self.take('[') {
                let extent = if self.is(']') { 0 } else { self.integer()? };
                size = size.saturating_mul(extent);
                self.expect(']')?;
            }
            if size > MOST_BYTES {
                return self.fail(format!("the parameter `{name}` would take {size} bytes"));
            }
            let align = align.unwrap_or(ty.size());
            if !align.is_power_of_two() {
                return self.fail(format!("an alignment of {align} is not a power of two"));
            }
            let reg = if head == ".reg" { Some(self.declare(body, name.clone(), ty)?) } else { None };
            params.push(Param { name, align, size: size as usize, reg });
            if !self.take(',') && !self.is(')') {
                return self.fail("parameters are separated by `,`");
            }
        }
        Ok(params)
    }

    fn declare(&mut self, body: &mut Body, name: String, ty: Ty) -> Parsed<RegId> {
        let id = body.function.regs.len() as RegId;
        if body.function.regs.len() >= MOST_REGISTERS {
            return self.fail(format!("the function declares more than {MOST_REGISTERS} registers"));
        }
        body.function.regs.push(ty);
        body.function.reg_names.push(name.clone());
        if let Some(scope) = body.registers.last_mut()
            && scope.insert(name.clone(), id).is_some()
        {
            return self.fail(format!("the register `{name}` is declared twice"));
        }
        Ok(id)
    }

    fn registers(&mut self, body: &mut Body) -> Parsed<()> {
        let word = self.word()?;
        let Some(ty) = word.strip_prefix('.').and_then(Ty::parse) else {
            return self.fail(format!("`{word}` is not a type of registers"));
        };
        loop {
            let name = self.word()?;
            if self.take('<') {
                let count = self.integer()?;
                self.expect('>')?;
                if count > MOST_REGISTERS as u64 {
                    return self.fail(format!("{count} registers are too many"));
                }
                for i in 0..count {
                    self.declare(body, format!("{name}{i}"), ty)?;
                }
            } else {
                self.declare(body, name.to_owned(), ty)?;
            }
            if !self.take(',') {
                return self.expect(';');
            }
        }
    }

    fn statement(&mut self, body: &mut Body) -> Parsed<()> {
        if self.take(';') {
            return Ok(());
        }
        if let (Some(&Token::Word(name)), Some(Token::Sign(':'))) = (self.peek(), self.peek_at(1)) {
            return self.label(name, body);
        }
        if let Some(&Token::Word(word)) = self.peek()
            && word.starts_with('.')
        {
            self.at += 1;
            return match word {
                ".reg" => self.registers(body),
                ".local" | ".shared" | ".param" | ".const" | ".global" => {
                    let vars = self.variables(space_of(word), false, body.scope())?;
                    body.function.vars.extend(vars);
                    Ok(())
                }
                ".loc" | ".file" => {
                    self.at -= 1;
                    self.skip_line();
                    Ok(())
                }
                ".pragma" => self.skip_past(';'),
                _ => self.fail(format!("`{word}` is not known inside a function")),
            };
        }
        self.instruction(body)
    }

    fn label(&mut self, name: &str, body: &mut Body) -> Parsed<()> {
        self.at += 2;
        let scope = body.scope();
        match self.peek() {
            Some(Token::Word(".branchtargets")) => {
                self.at += 1;
                let mut targets = Vec::new();
                loop {
                    targets.push(self.word()?.to_owned());
                    if !self.take(',') {
                        break;
                    }
                }
                self.expect(';')?;
                body.function.tables.push((name.to_owned(), scope, targets));
            }
            // what an indirect call reaches is known when it runs
            Some(Token::Word(".callprototype" | ".calltargets")) => self.skip_past(';')?,
            _ => {
                if body.function.labels.iter().any(|(known, s)| known == name && *s == scope) {
                    return self.fail(format!("the label `{name}` stands twice"));
                }
                body.function.body.push(Stmt::Label(body.function.labels.len() as u32));
                body.function.labels.push((name.to_owned(), scope));
            }
        }
        Ok(())
    }

    fn instruction(&mut self, body: &mut Body) -> Parsed<()> {
        let line = self.line();
        let mut guard = None;
        if self.take('@') {
            let negated = self.take('!');
            let name = self.word()?;
            match body.register(name) {
                Some(reg) if body.function.regs[reg as usize] == Ty::Pred => guard = Some((reg, negated)),
                Some(_) => return self.fail(format!("the guard `{name}` is not a predicate")),
                None => return self.fail(format!("`{name}` is not declared")),
            }
        }
        let word = self.word()?;
        let mut parts = word.split('.');
        let opcode = parts.next().unwrap_or("").to_owned();
        let mods: Vec<String> = parts.map(str::to_owned).collect();
        if opcode.is_empty() || mods.iter().any(String::is_empty) {
            return self.fail(format!("`{word}` is not an instruction"));
        }
        let mut operands = Vec::new();
        while !self.take(';') {
            operands.push(self.operand(body)?);
            if !self.take(',') && !self.is(';') {
                let found = self.found();
                return self.fail(format!("`,` or `;` expected after an operand, found {found}"));
            }
        }
        body.function.body.push(Stmt::Inst(Inst { guard, opcode, mods, operands, line }));
        Ok(())
    }

    fn operand(&mut self, body: &mut Body) -> Parsed<Operand> {
        let first = self.single(body)?;
        if self.take('|') {
            let second = self.single(body)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn sequence(&mut self, body: &mut Body, end: char) -> Parsed<Vec<Operand>> {
        self.deeper()?;
        let mut items = Vec::new();
        while !self.take(end) {
            items.push(self.operand(body)?);
            if !self.take(',') && !self.is(end) {
                return self.fail(format!("`,` or `{end}` expected"));
            }
        }
        self.nested -= 1;
        Ok(items)
    }

    fn single(&mut self, body: &mut Body) -> Parsed<Operand> {
        match self.next()? {
            Token::Sign('[') => {
                self.deeper()?;
                let base = self.single(body)?;
                let (base, mut offset) = match base {
                    Operand::Sum(base, offset) => (*base, offset),
                    other => (other, 0),
                };
                while self.is('+') || self.is('-') {
                    self.take('+');
                    offset = offset.wrapping_add(self.integer()? as i64);
                }
                self.expect(']')?;
                self.nested -= 1;
                Ok(Operand::Address(Box::new(base), offset))
            }
            Token::Sign('{') => Ok(Operand::Vector(self.sequence(body, '}')?)),
            Token::Sign('(') => Ok(Operand::List(self.sequence(body, ')')?)),
            Token::Sign('!') => {
                let name = self.word()?;
                match body.register(name) {
                    Some(reg) => Ok(Operand::Not(reg)),
                    None => self.fail(format!("`{name}` is not declared")),
                }
            }
            Token::Sign('-') => match self.next()? {
                Token::Int(value) => Ok(Operand::Int(value.wrapping_neg())),
                Token::F32(bits) => Ok(Operand::F32(bits ^ 1 << 31)),
                Token::F64(bits) => Ok(Operand::F64(bits ^ 1 << 63)),
                _ => self.fail("a number expected after `-`"),
            },
            Token::Sign('~') => match self.next()? {
                Token::Int(value) => Ok(Operand::Int(!value)),
                _ => self.fail("an integer expected after `~`"),
            },
            Token::Int(value) => Ok(Operand::Int(value)),
            Token::F32(bits) => Ok(Operand::F32(bits)),
            Token::F64(bits) => Ok(Operand::F64(bits)),
            Token::Word("_") => Ok(Operand::Sink),
            Token::Word("WARP_SZ") => Ok(Operand::Int(32)),
            Token::Word(word) => {
                let base = if let Some(reg) = body.register(word) {
                    Operand::Reg(reg)
                } else if word.starts_with('%') {
                    Operand::Special(word.to_owned())
                } else {
                    Operand::Name(word.to_owned(), body.scope())
                };
                if self.is('+') || (self.is('-') && matches!(base, Operand::Name(..))) {
                    self.take('+');
                    let offset = self.integer()? as i64;
                    return Ok(Operand::Sum(Box::new(base), offset));
                }
                Ok(base)
            }
            other => {
                self.at -= 1;
                let _ = other;
                let found = self.found();
                self.fail(format!("an operand expected, found {found}"))
            }
        }
    }
}

fn space_of(word: &str) -> Space {
    match word {
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        ".const" => Space::Const,
        ".param" => Space::Param,
        _ => Space::Global,
    }
}

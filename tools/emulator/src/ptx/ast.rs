//! The syntax tree of a PTX module.

/// A fundamental or packed type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F32x2,
    F64,
    Tf32,
    E4m3x2,
    E5m2x2,
    U16x2,
    S16x2,
    Pred,
}

impl Ty {
    /// The type of a suffix such as `u32`.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f32x2" => Self::F32x2,
            "f64" => Self::F64,
            "tf32" => Self::Tf32,
            "e4m3x2" => Self::E4m3x2,
            "e5m2x2" => Self::E5m2x2,
            "u16x2" => Self::U16x2,
            "s16x2" => Self::S16x2,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate has none in memory.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 | Self::E4m3x2 | Self::E5m2x2 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 => 4,
            Self::U16x2 | Self::S16x2 | Self::Pred => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 | Self::F32x2 => 8,
            Self::B128 => 16,
        }
    }

    /// Whether widening copies the sign.
    pub(crate) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Whether it is one of the floating-point types that are not packed.
    pub(crate) fn float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64 | Self::Tf32)
    }
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// A register, by its place in [`Function::regs`].
pub(crate) type RegId = u32;

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// A register.
    Reg(RegId),
    /// A negated predicate, `!%p1`.
    Not(RegId),
    /// A special register, `%tid.x`.
    Special(String),
    /// An integer, in two's complement.
    Int(u64),
    /// Bits of a single.
    F32(u32),
    /// Bits of a double.
    F64(u64),
    /// A variable, parameter, function or label, with the scope in which it is named.
    Name(String, u32),
    /// `{a, b, ...}`
    Vector(Vec<Operand>),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `sym + offset` as a value
    Sum(Box<Operand>, i64),
    /// `a | b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`: arguments or results of a call
    List(Vec<Operand>),
    /// `_`
    Sink,
}

/// An instruction as written.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    /// `@%p` or `@!%p`: the register and whether it is negated.
    pub(crate) guard: Option<(RegId, bool)>,
    /// The word before the first dot.
    pub(crate) opcode: String,
    /// The words after it.
    pub(crate) mods: Vec<String>,
    /// The operands.
    pub(crate) operands: Vec<Operand>,
    /// Line in the text.
    pub(crate) line: u32,
}

/// A part of a function's body.
#[derive(Debug, Clone)]
pub(crate) enum Stmt {
    /// A label, by its place in [`Function::labels`].
    Label(u32),
    /// An instruction.
    Inst(Inst),
}

/// Initial value of a variable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Init {
    /// Its first bytes; the rest is zero.
    pub(crate) bytes: Vec<u8>,
    /// Places that hold the address of another symbol plus an offset.
    pub(crate) relocations: Vec<(usize, String, i64)>,
}

/// A variable.
#[derive(Debug, Clone)]
pub(crate) struct Var {
    /// Its name.
    pub(crate) name: String,
    /// Where it lives.
    pub(crate) space: Space,
    /// Alignment in bytes.
    pub(crate) align: usize,
    /// Size in bytes; zero for `.extern .shared` arrays without a length.
    pub(crate) size: usize,
    /// Initial value, where it has one.
    pub(crate) init: Option<Init>,
    /// Declared elsewhere.
    pub(crate) external: bool,
    /// Scope it is declared in; 0 is the module or the function's outermost.
    pub(crate) scope: u32,
    /// Line in the text.
    pub(crate) line: u32,
}

/// A parameter or result of a function.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    /// Its name.
    pub(crate) name: String,
    /// Alignment in bytes.
    pub(crate) align: usize,
    /// Size in bytes.
    pub(crate) size: usize,
    /// The register, where an old `.func` passes in registers.
    pub(crate) reg: Option<RegId>,
}

/// A kernel or a device function.
#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// `.entry`
    pub(crate) entry: bool,
    /// Whether a body stands in this module.
    pub(crate) defined: bool,
    /// Parameters.
    pub(crate) params: Vec<Param>,
    /// Results.
    pub(crate) results: Vec<Param>,
    /// Types of the registers.
    pub(crate) regs: Vec<Ty>,
    /// Names of the registers, for messages.
    pub(crate) reg_names: Vec<String>,
    /// Variables declared inside.
    pub(crate) vars: Vec<Var>,
    /// Label names and scopes.
    pub(crate) labels: Vec<(String, u32)>,
    /// `.branchtargets` lists by their label.
    pub(crate) tables: Vec<(String, u32, Vec<String>)>,
    /// Parent of each scope; scope 0 is its own.
    pub(crate) scopes: Vec<u32>,
    /// The body.
    pub(crate) body: Vec<Stmt>,
    /// `.maxntid`, product of its extents.
    pub(crate) max_threads: Option<u32>,
    /// `.reqntid`
    pub(crate) exact_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`
    pub(crate) cluster: Option<[u32; 3]>,
    /// Line of its head.
    pub(crate) line: u32,
}

/// A PTX module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Module {
    /// `.version`
    pub(crate) version: (u32, u32),
    /// `.target`, first word
    pub(crate) target: String,
    /// The number in the target: 80 for `sm_80`.
    pub(crate) sm: u32,
    /// Variables at module scope.
    pub(crate) vars: Vec<Var>,
    /// Functions.
    pub(crate) functions: Vec<Function>,
    /// The text's lines, for messages.
    pub(crate) lines: Vec<String>,
}

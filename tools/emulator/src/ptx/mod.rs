//! PTX text to a syntax tree: [`lexer`] makes tokens, [`parser`] makes a [`ast::Module`].

pub(crate) mod ast;
pub(crate) mod lexer;
pub(crate) mod parser;

/// A sentence about a line of PTX that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PtxError {
    /// Line, counted from 1.
    pub(crate) line: u32,
    /// What is wrong, a sentence without its end.
    pub(crate) what: String,
    /// True when the text asks for a newer PTX ISA than is understood; the driver has a code of its own for that.
    pub(crate) newer_isa: bool,
}

impl PtxError {
    /// An error about `line`.
    pub(crate) fn new(line: u32, what: impl Into<String>) -> Self {
        Self { line, what: what.into(), newer_isa: false }
    }
}

impl std::fmt::Display for PtxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.what)
    }
}

//! The modifiers of an instruction, taken one by one; what nobody took is an error, so no modifier is ever ignored.

use super::float::{RM, RN, RP, RZ};
use crate::ptx::ast::Ty;

/// Modifiers not yet taken.
#[derive(Debug, Clone)]
pub(crate) struct Mods<'a> {
    rest: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    /// All modifiers of an instruction.
    pub(crate) fn new(mods: &'a [String]) -> Self {
        Self { rest: mods.iter().map(String::as_str).collect() }
    }

    /// Takes `word` if it is there.
    pub(crate) fn has(&mut self, word: &str) -> bool {
        let found = self.rest.iter().position(|w| *w == word);
        if let Some(at) = found {
            self.rest.remove(at);
        }
        found.is_some()
    }

    /// Takes the first of `words` that is there.
    pub(crate) fn one(&mut self, words: &[&'static str]) -> Option<&'static str> {
        words.iter().copied().find(|word| self.has(word))
    }

    /// Takes the first modifier, if `ok`.
    pub(crate) fn first(&mut self, ok: impl Fn(&str) -> bool) -> Option<&'a str> {
        if self.rest.first().is_some_and(|w| ok(w)) { Some(self.rest.remove(0)) } else { None }
    }

    /// Takes any modifier that is `ok`.
    pub(crate) fn find(&mut self, ok: impl Fn(&str) -> bool) -> Option<&'a str> {
        let at = self.rest.iter().position(|w| ok(w))?;
        Some(self.rest.remove(at))
    }

    /// Takes the type, the last modifier.
    pub(crate) fn ty(&mut self) -> Result<Ty, String> {
        match self.rest.last().and_then(|w| Ty::parse(w)) {
            Some(ty) => {
                self.rest.pop();
                Ok(ty)
            }
            None => Err("a type is missing at its end".into()),
        }
    }

    /// Takes a rounding of results.
    pub(crate) fn rounding(&mut self) -> Option<u8> {
        match self.one(&["rn", "rz", "rm", "rp"])? {
            "rn" => Some(RN),
            "rz" => Some(RZ),
            "rm" => Some(RM),
            _ => Some(RP),
        }
    }

    /// Everything must have been taken.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self.rest.first() {
            None => Ok(()),
            Some(word) => Err(format!("the modifier `.{word}` is not known here")),
        }
    }
}

//! Reading JSON objects: typed values, and which keys were asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{Error, Result};

pub(super) fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Config(text.into()))
}

/// A text that is no JSON, with what the parser says; the text may be the file's path.
pub(super) fn not_json<T>(name: &str, text: &str, error: &serde_json::Error) -> Result<T> {
    let text = text.trim();
    let names_a_file = [".json", ".gguf"].iter().any(|ending| text.ends_with(ending)) || text.contains(['/', '\\']);
    if names_a_file && !text.contains(['{', '\n']) {
        return wrong(format!("{name} is {text:?}, which looks like a path; ModelRope::open reads a file"));
    }
    wrong(format!("{name} is not JSON: {error}"))
}

/// A JSON object that remembers which of its keys were asked for.
pub(super) struct Keys<'a> {
    /// what the messages call it
    name: String,
    pub map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub fn new(name: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        Self { name: name.into(), map, asked: RefCell::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a key; `None` where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_string());
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => wrong(format!("{key} is {value}, it must be a number")),
            },
        }
    }

    pub fn needed(&self, key: &str, because: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => wrong(format!("{key} is missing, {because} needs it")),
        }
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.number(key)? {
            None => Ok(None),
            Some(number) if number >= 0.0 && number.fract() == 0.0 && number < 4294967296.0 => {
                Ok(Some(number as usize))
            }
            Some(number) => wrong(format!("{key} is {number}, it must be a whole number below 2^32")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => wrong(format!("{key} is {value}, it must be true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => wrong(format!("{key} is {value}, it must be a string")),
        }
    }

    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(value) => wrong(format!("{key} is {value}, it must be an object or null")),
        }
    }

    fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => wrong(format!("{key} is {value}, it must be a list")),
        }
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let number = |(at, value): (usize, &Value)| match value.as_f64() {
            Some(number) if number.is_finite() => Ok(number),
            _ => wrong(format!("{key} holds {value} at {at}, it must hold numbers")),
        };
        list.iter().enumerate().map(number).collect::<Result<_>>().map(Some)
    }

    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(numbers) = self.numbers(key)? else { return Ok(None) };
        let count = |(at, &number): (usize, &f64)| {
            if number >= 0.0 && number.fract() == 0.0 && number < 4294967296.0 {
                return Ok(number as usize);
            }
            wrong(format!("{key} holds {number} at {at}, it must hold whole numbers below 2^32"))
        };
        numbers.iter().enumerate().map(count).collect::<Result<_>>().map(Some)
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let text = |(at, value): (usize, &Value)| match value {
            Value::String(text) => Ok(text.clone()),
            value => wrong(format!("{key} holds {value} at {at}, it must hold strings")),
        };
        list.iter().enumerate().map(text).collect::<Result<_>>().map(Some)
    }

    pub fn asked(&self, key: &str) -> bool {
        self.asked.borrow().contains(key)
    }

    /// The keys that say something and were never asked for; a flag that says no says something about RoPE itself.
    pub fn unasked(&self) -> Vec<&'a str> {
        let asked = self.asked.borrow();
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        let kept = self.map.iter().filter(|(key, value)| says(value) && !asked.contains(*key));
        kept.map(|(key, _)| key.as_str()).collect()
    }
}

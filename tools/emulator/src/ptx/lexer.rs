//! Tokens of PTX.

use super::PtxError;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token<'a> {
    /// An identifier, opcode, register or directive, dots included: `%r1`, `ld.global.v4.u32`, `.reg`, `%tid.x`.
    Word(&'a str),
    /// An integer literal.
    Int(u64),
    /// `0f3F800000`, as bits.
    F32(u32),
    /// `0d3FF0000000000000` or a decimal fraction, as bits.
    F64(u64),
    /// A quoted string, without its quotes.
    Text(&'a str),
    /// Any other character.
    Sign(char),
}

/// A token and its line.
#[derive(Debug, Clone)]
pub(crate) struct Spot<'a> {
    /// What stands there.
    pub(crate) token: Token<'a>,
    /// Line, counted from 1.
    pub(crate) line: u32,
}

fn word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn word_part(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.')
}

/// Splits PTX into tokens.
pub(crate) fn tokens(text: &str) -> Result<Vec<Spot<'_>>, PtxError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 5);
    let (mut at, mut line) = (0, 1u32);
    while at < bytes.len() {
        let c = bytes[at];
        let start = at;
        let token = if c == b'\n' {
            line += 1;
            at += 1;
            continue;
        } else if c.is_ascii_whitespace() || c == 0 {
            // cudarc and C callers pass the text with its final zero
            at += 1;
            continue;
        } else if bytes[at..].starts_with(b"//") {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
            continue;
        } else if bytes[at..].starts_with(b"/*") {
            let end = text[at..].find("*/").ok_or_else(|| PtxError::new(line, "a comment has no end"))?;
            line += bytes[at..at + end].iter().filter(|&&b| b == b'\n').count() as u32;
            at += end + 2;
            continue;
        } else if c == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' && bytes[at] != b'\n' {
                at += 1;
            }
            if bytes.get(at) != Some(&b'"') {
                return Err(PtxError::new(line, "a string has no end"));
            }
            at += 1;
            Token::Text(&text[start + 1..at - 1])
        } else if word_start(c) && !(c == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            at += 1;
            while at < bytes.len() {
                if c == b'.' && bytes[at] == b'.' {
                    // `.reg.b32` is `.reg .b32`
                    break;
                } else if word_part(bytes[at]) {
                    at += 1;
                } else if bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(u8::is_ascii_alphanumeric) {
                    at += 2;
                } else {
                    break;
                }
            }
            Token::Word(&text[start..at])
        } else if c.is_ascii_digit() || c == b'.' {
            number(text, &mut at, line)?
        } else if c.is_ascii() {
            at += 1;
            Token::Sign(c as char)
        } else {
            return Err(PtxError::new(line, "a character outside ASCII"));
        };
        out.push(Spot { token, line });
    }
    Ok(out)
}

fn number<'a>(text: &'a str, at: &mut usize, line: u32) -> Result<Token<'a>, PtxError> {
    let bytes = text.as_bytes();
    let start = *at;
    let digits = |from: usize, ok: fn(&u8) -> bool| from + bytes[from..].iter().take_while(|b| ok(b)).count();
    let bad = || PtxError::new(line, "a number that PTX does not have");
    let hex = |a: usize, b: usize| u64::from_str_radix(&text[a..b], 16).map_err(|_| bad());
    if bytes[start] == b'0' && start + 1 < bytes.len() {
        match bytes[start + 1] {
            b'f' | b'F' => {
                *at = digits(start + 2, u8::is_ascii_hexdigit);
                if *at != start + 10 {
                    return Err(PtxError::new(line, "a 0f literal needs 8 hexadecimal digits"));
                }
                return Ok(Token::F32(hex(start + 2, *at)? as u32));
            }
            b'd' | b'D' => {
                *at = digits(start + 2, u8::is_ascii_hexdigit);
                if *at != start + 18 {
                    return Err(PtxError::new(line, "a 0d literal needs 16 hexadecimal digits"));
                }
                return Ok(Token::F64(hex(start + 2, *at)?));
            }
            b'x' | b'X' => {
                *at = digits(start + 2, u8::is_ascii_hexdigit);
                let value = hex(start + 2, *at)?;
                *at += usize::from(bytes.get(*at) == Some(&b'U'));
                return Ok(Token::Int(value));
            }
            b'b' | b'B' => {
                *at = digits(start + 2, |b| matches!(b, b'0' | b'1'));
                let value = u64::from_str_radix(&text[start + 2..*at], 2).map_err(|_| bad())?;
                *at += usize::from(bytes.get(*at) == Some(&b'U'));
                return Ok(Token::Int(value));
            }
            _ => {}
        }
    }
    let whole = digits(start, u8::is_ascii_digit);
    *at = whole;
    let fraction = bytes.get(*at) == Some(&b'.');
    let exponent = |p: usize| matches!(bytes.get(p), Some(b'e' | b'E'));
    if fraction || exponent(*at) {
        if fraction {
            *at = digits(*at + 1, u8::is_ascii_digit);
        }
        if exponent(*at) {
            let sign = usize::from(matches!(bytes.get(*at + 1), Some(b'+' | b'-')));
            *at = digits(*at + 1 + sign, u8::is_ascii_digit);
        }
        let value: f64 = text[start..*at].parse().map_err(|_| bad())?;
        return Ok(Token::F64(value.to_bits()));
    }
    let radix = if bytes[start] == b'0' && whole > start + 1 { 8 } else { 10 };
    let value = u64::from_str_radix(&text[start..whole], radix).map_err(|_| bad())?;
    *at += usize::from(bytes.get(*at) == Some(&b'U'));
    Ok(Token::Int(value))
}

//! Functions that the driver brings: `vprintf` and `__assertfail`.

use super::machine::{Cx, Flow};
use super::operand::{Access, Builtin, Call, Kind, LANES, NONE, Order, Touch};
use super::reach::{lanes_of, reach};
use crate::fault::FaultKind;
use crate::ptx::ast::Space;

/// Reads a byte of memory at a generic address; the launch fails if there is none.
fn byte_at(cx: &mut Cx, lane: usize, at: u64) -> Option<u8> {
    let access = Access {
        space: Space::Generic,
        size: 1,
        count: 1,
        signed: false,
        wide: true,
        order: Order::Weak,
        narrow: false,
        slots: [NONE; 8],
        kind: Kind::W16,
    };
    let mut addr = [at; LANES];
    // SAFETY: `reach` made a pointer to one byte.
    reach(cx, &access, &mut addr, 1 << lane, Touch::Read).then(|| unsafe { *(addr[lane] as *const u8) })
}

fn text_at(cx: &mut Cx, lane: usize, mut at: u64) -> Option<String> {
    let mut bytes = Vec::new();
    while bytes.len() < 4096 {
        match byte_at(cx, lane, at)? {
            0 => break,
            byte => bytes.push(byte),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A call of `vprintf` or `__assertfail`.
pub(crate) fn builtin(cx: &mut Cx, what: Builtin, call: &Call, mask: u32) -> Flow {
    let stack = cx.grid.stack;
    let frame = cx.frame as usize;
    let base = cx.warp().frames[frame].local;
    let argument = |cx: &mut Cx, lane: usize, i: usize| -> u64 {
        let Some(&(at, size)) = call.arguments.get(i) else { return 0 };
        let from = lane * stack + (base + at) as usize;
        let mut bytes = [0u8; 8];
        let size = (size as usize).min(8);
        bytes[..size].copy_from_slice(&cx.warp().local[from..from + size]);
        u64::from_le_bytes(bytes)
    };
    for lane in lanes_of(mask) {
        let first = argument(cx, lane, 0);
        let Some(text) = text_at(cx, lane, first) else { return Flow::Fault };
        match what {
            Builtin::Print => {
                let list = argument(cx, lane, 1);
                let Some(line) = print(cx, lane, &text, list) else { return Flow::Fault };
                use std::io::Write;
                let _ = std::io::stdout().write_all(line.as_bytes());
                if let Some(&(to, size)) = call.results.first() {
                    let to = lane * stack + (base + to) as usize;
                    let size = (size as usize).min(4);
                    cx.warp().local[to..to + size].copy_from_slice(&1u32.to_le_bytes()[..size]);
                }
            }
            Builtin::Assert => {
                let (file, line) = (argument(cx, lane, 1), argument(cx, lane, 2));
                let file = text_at(cx, lane, file).unwrap_or_default();
                return cx.fail(
                    FaultKind::Assert,
                    1 << lane,
                    &format!("the assertion `{text}` of {file}:{} does not hold", line as u32),
                );
            }
        }
    }
    Flow::Next
}

/// `printf`: arguments lie one after another, aligned to their size.
fn print(cx: &mut Cx, lane: usize, format: &str, list: u64) -> Option<String> {
    let mut out = String::new();
    let mut at = list;
    let mut take = |cx: &mut Cx, size: u64| -> Option<u64> {
        at = at.next_multiple_of(size);
        let mut value = 0;
        for i in 0..size {
            value |= u64::from(byte_at(cx, lane, at + i)?) << (8 * i);
        }
        at += size;
        Some(value)
    };
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut flags, mut long) = (String::new(), 0);
        loop {
            match chars.next() {
                None => break,
                Some('%') => {
                    out.push('%');
                    break;
                }
                Some('l' | 'z' | 'j' | 't') => long += 1,
                Some('h') => {}
                Some(c @ ('d' | 'i')) => {
                    let _ = c;
                    let v = if long > 0 { take(cx, 8)? as i64 } else { i64::from(take(cx, 4)? as i32) };
                    out.push_str(&padded(&flags, &v.to_string()));
                    break;
                }
                Some(c @ ('u' | 'x' | 'X' | 'o')) => {
                    let v = if long > 0 { take(cx, 8)? } else { take(cx, 4)? };
                    let text = match c {
                        'x' => format!("{v:x}"),
                        'X' => format!("{v:X}"),
                        'o' => format!("{v:o}"),
                        _ => v.to_string(),
                    };
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some('p') => {
                    let v = take(cx, 8)?;
                    out.push_str(&format!("{v:#x}"));
                    break;
                }
                Some('c') => {
                    let v = take(cx, 4)?;
                    out.push(v as u8 as char);
                    break;
                }
                Some('s') => {
                    let p = take(cx, 8)?;
                    let text = text_at(cx, lane, p)?;
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some(c @ ('f' | 'F' | 'g' | 'G' | 'e' | 'E' | 'a')) => {
                    let v = f64::from_bits(take(cx, 8)?);
                    let places = flags.split('.').nth(1).and_then(|p| p.parse().ok());
                    let text = match c {
                        'e' | 'E' => format!("{v:.*e}", places.unwrap_or(6)),
                        'g' | 'G' => format!("{v}"),
                        _ => format!("{v:.*}", places.unwrap_or(6)),
                    };
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some(other) => flags.push(other),
            }
        }
    }
    Some(out)
}

fn padded(flags: &str, text: &str) -> String {
    let left = flags.starts_with('-');
    let zero = flags.starts_with('0');
    let width: usize =
        flags.trim_start_matches(['-', '+', ' ', '#']).split('.').next().unwrap_or("").parse().unwrap_or(0);
    match () {
        () if left => format!("{text:<width$}"),
        () if zero && text.starts_with('-') => format!("-{:0>1$}", &text[1..], width.saturating_sub(1)),
        () if zero => format!("{text:0>width$}"),
        () => format!("{text:>width$}"),
    }
}

//! PTX: the crate's own kernels, mutated by words, numbers and lines, loaded into the emulator.

use anyhow::{Context, Result};
use cudarc::driver::CudaContext;
use cudarc::driver::sys;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::Run;

#[derive(Clone, Debug)]
enum Edit {
    /// a word of another place
    Word(Index, Index),
    /// a number
    Number(Index, &'static str),
    /// a line twice, or not at all
    Line(Index, bool),
    Byte(Index, u8),
    /// the same character many times
    Nest(Index, char, usize),
    Cut(Index),
}

const NUMBERS: [&str; 9] =
    ["0", "1", "7", "-1", "65536", "4294967295", "4294967296", "18446744073709551616", "0xffffffffffffffff"];

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        5 => (at(), at()).prop_map(|(at, from)| Edit::Word(at, from)),
        3 => (at(), select(NUMBERS.to_vec())).prop_map(|(at, number)| Edit::Number(at, number)),
        2 => (at(), any::<bool>()).prop_map(|(at, twice)| Edit::Line(at, twice)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        1 => (at(), select(vec!['{', '(', '[', '-', '!']), select(vec![1usize, 10, 1000, 100_000]))
            .prop_map(|(at, c, n)| Edit::Nest(at, c, n)),
        1 => at().prop_map(Edit::Cut),
    ]
}

fn apply(text: &mut String, edit: &Edit) {
    let spans = |text: &str, of: fn(char) -> bool| -> Vec<(usize, usize)> {
        let mut spans = Vec::new();
        let mut start = None;
        for (i, c) in text.char_indices().chain([(text.len(), ' ')]) {
            match (of(c) && i < text.len(), start) {
                (true, None) => start = Some(i),
                (false, Some(begin)) => {
                    spans.push((begin, i));
                    start = None;
                }
                _ => {}
            }
        }
        spans
    };
    let place =
        |text: &str, at: &Index| (0..=at.index(text.len() + 1)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    match edit {
        Edit::Word(at, from) => {
            let words = spans(text, |c| !c.is_whitespace());
            if !words.is_empty() {
                let ((a, b), (c, d)) = (words[at.index(words.len())], words[from.index(words.len())]);
                let word = text[c..d].to_string();
                text.replace_range(a..b, &word);
            }
        }
        Edit::Number(at, number) => {
            let digits = spans(text, |c| c.is_ascii_digit());
            if !digits.is_empty() {
                let (a, b) = digits[at.index(digits.len())];
                text.replace_range(a..b, number);
            }
        }
        Edit::Line(at, twice) => {
            let lines: Vec<&str> = text.lines().collect();
            if !lines.is_empty() {
                let chosen = at.index(lines.len());
                let copies = |i: usize| if i == chosen { 2 * usize::from(*twice) } else { 1 };
                *text = lines
                    .iter()
                    .enumerate()
                    .flat_map(|(i, line)| vec![*line; copies(i)])
                    .collect::<Vec<_>>()
                    .join("\n");
            }
        }
        Edit::Byte(at, byte) => {
            let at = place(text, at);
            text.insert(at, char::from(*byte));
        }
        Edit::Nest(at, c, n) => {
            let at = place(text, at);
            text.insert_str(at, &c.to_string().repeat(*n));
        }
        Edit::Cut(at) => text.truncate(place(text, at)),
    }
}

pub(crate) fn fuzz(run: &Run) -> Result<()> {
    let context = CudaContext::new(0)?;
    context.bind_to_thread()?;
    let mut seeds: Vec<String> = posenc::gpu::images()
        .iter()
        .filter(|images| images.dtype == "bf16")
        .flat_map(|images| images.ptx)
        .filter_map(|image| String::from_utf8(image.bytes()).ok())
        .collect();
    seeds.sort_by_key(String::len);
    // The smaller half: long ones take the time that many short ones would have.
    seeds.truncate(seeds.len().div_ceil(2));
    seeds.first().context("the crate was built without kernels")?;
    let inputs = (select(seeds), vec(edit(), 0..5)).prop_map(|(mut text, edits)| {
        edits.iter().for_each(|edit| apply(&mut text, edit));
        text.retain(|c| c != '\0');
        text
    });
    run.of(&inputs, |text| {
        let mut bytes = text.clone().into_bytes();
        bytes.push(0);
        let mut module = std::ptr::null_mut();
        // SAFETY: a text that ends in a zero.
        let code = unsafe { sys::cuModuleLoadData(&mut module, bytes.as_ptr().cast()) };
        if code == sys::CUresult::CUDA_SUCCESS {
            // SAFETY: it was just loaded.
            let code = unsafe { sys::cuModuleUnload(module) };
            return if code == sys::CUresult::CUDA_SUCCESS {
                Ok(true)
            } else {
                Err(format!("unloading gives {code:?}"))
            };
        }
        // A panic inside the emulator is CUDA_ERROR_UNKNOWN.
        if code == sys::CUresult::CUDA_ERROR_UNKNOWN { Err("the emulator panics".into()) } else { Ok(false) }
    })
}

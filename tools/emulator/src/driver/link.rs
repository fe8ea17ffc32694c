//! The linker of the driver: texts become one text, since nothing here is machine code.

use super::call::{Call, export, give, refuse};
use super::code::*;
use super::context::current;
use super::handle::{self, Handle, Object};
use super::module::Logs;
use crate::ptx::parser;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, PoisonError};

/// A link under way.
#[derive(Default)]
struct Link {
    texts: Mutex<Vec<String>>,
    /// The linked text with a final zero, which lives as long as the link.
    image: Mutex<Option<Vec<u8>>>,
}

impl Object for Link {}

/// `CU_JIT_INPUT_PTX`
const PTX: u32 = 1;

fn add(link: Handle, kind: u32, bytes: &[u8], name: &str) -> Call {
    let link = handle::get::<Link>(link)?;
    if kind != PTX {
        let what = match kind {
            0 => "a cubin",
            2 => "a fatbin",
            3 => "an object file",
            4 => "a library",
            _ => "neither PTX nor machine code",
        };
        return refuse(
            ERROR_NO_BINARY_FOR_GPU,
            format!("the linker is given `{name}`, {what}: only PTX can be linked"),
        );
    }
    let bytes = bytes.split(|&b| b == 0).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(bytes) else {
        return refuse(ERROR_INVALID_PTX, format!("the linker is given `{name}`, which is no text"));
    };
    link.texts.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
    Ok(())
}

/// One text of several: the newest version and target, then what each declares.
fn merge(texts: &[String]) -> Result<String, String> {
    if let [text] = texts {
        return Ok(text.clone());
    }
    let parsed = texts.iter().map(|text| parser::parse(text)).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|e| e.to_string())?;
    let newest = parsed.iter().max_by_key(|ast| ast.sm).ok_or("the linker is given nothing")?;
    let version = parsed.iter().map(|ast| ast.version).max().unwrap_or(newest.version);
    let mut all = format!(".version {}.{}\n.target {}\n.address_size 64\n", version.0, version.1, newest.target);
    let is_head =
        |line: &str| [".version", ".target", ".address_size"].iter().any(|d| line.trim_start().starts_with(d));
    for line in texts.iter().flat_map(|text| text.lines()).filter(|line| !is_head(line)) {
        all.push_str(line);
        all.push('\n');
    }
    Ok(all)
}

/// A name that the application gives, for messages.
fn name(text: *const c_char) -> String {
    if text.is_null() {
        return "an image without a name".into();
    }
    // SAFETY: the application gives a text with a final zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

export! {
    fn cuLinkCreate_v2(count: u32, options: *const u32, values: *mut *mut c_void, out: *mut Handle) {
        current()?;
        // SAFETY: the application's promise. There is nothing to tell: errors are those of the calls that follow.
        let logs = unsafe { Logs::read(count, options, values) };
        logs.write(0, "");
        logs.write(1, "");
        give(out, handle::insert(std::sync::Arc::<Link>::default())?)
    }

    fn cuLinkAddData_v2(
        link: Handle, kind: u32, data: *const c_void, size: usize, text: *const c_char, _count: u32,
        _options: *const u32, _values: *mut *mut c_void,
    ) {
        if data.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: the application gives `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
        add(link, kind, bytes, &name(text))
    }

    fn cuLinkAddFile_v2(
        link: Handle, kind: u32, path: *const c_char, _count: u32, _options: *const u32, _values: *mut *mut c_void,
    ) {
        if path.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let path = name(path);
        match std::fs::read(&path) {
            Ok(bytes) => add(link, kind, &bytes, &path),
            Err(error) => refuse(ERROR_FILE_NOT_FOUND, format!("`{path}` cannot be read: {error}")),
        }
    }

    fn cuLinkComplete(link: Handle, out: *mut *const c_void, size: *mut usize) {
        let link = handle::get::<Link>(link)?;
        let merged = merge(&link.texts.lock().unwrap_or_else(PoisonError::into_inner));
        let text = merged.or_else(|reason| refuse(ERROR_INVALID_PTX, reason))?;
        let mut image = link.image.lock().unwrap_or_else(PoisonError::into_inner);
        let image = image.insert(text.into_bytes());
        image.push(0);
        give(out, image.as_ptr().cast())?;
        if size.is_null() { Ok(()) } else { give(size, image.len()) }
    }

    fn cuLinkDestroy(link: Handle) {
        handle::get::<Link>(link)?;
        handle::remove(link);
        Ok(())
    }
}

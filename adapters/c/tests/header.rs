//! `posenc.h` is what the adapter's `header!` blocks say. With POSENC_BLESS=1 it is written.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use posenc_c::{Item, Kind, items};

const START: &str = "\
/* posenc: positional encodings of transformers as CUDA kernels. Written by adapters/c/tests/header.rs; do not edit.

   One pattern for each operation: a Posenc...Spec says what to compute, posenc_..._new makes a plan of it for one element
   type (POSENC_F32, POSENC_F16, POSENC_BF16), posenc_..._free frees that, and each verb takes the plan and a Posenc...Call.
   The crate's documentation states formulas and accuracy; names are the same.

   - Functions return a status, 0 for success. posenc_last_error is the sentence to the thread's last other one.
   - A spec and a call begin with `version` and `size`: POSENC_INIT(PosencRopeCall) fills both in, and 0 everywhere else.
     Other versions and sizes are refused, so that a program and a library of different versions cannot misread each other.
     A `scale` or `factor` of 0 is refused too, where it was forgotten: 1 changes nothing.
   - A buffer is a device address and the elements there; a shape has an offset and strides in elements. Lengths are checked
     against shapes. The library cannot check the allocation: a wrong length is undefined behaviour.
   - Everything is checked before anything is launched. A call launches into the stream and returns; it allocates nothing
     and waits for nothing, and can be captured in a graph.
   - Pointers to host memory are null or point to what their types say, for as long as the call; handles come from their
     constructors and were not freed; memory on the device stays until the kernel has run. Several threads may use one
     handle at once unless a function says otherwise. A plan may be freed while its calls run: its memory is freed behind
     them, and a graph keeps what it captured of the plan. Your buffers must outlive the graph.
   - No panic leaves the library.

   C99 and later, C++11 and later. */
#ifndef POSENC_H
#define POSENC_H

#include <stdint.h>

#ifdef __cplusplus
extern \"C\" {
#endif

/* The driver's stream: CUstream of cuda.h, cudaStream_t of the runtime. NULL is the default stream. */
typedef struct CUstream_st *PosencStream;

/* 0 for success, else another of the statuses below. */
typedef int32_t PosencStatus;
";

const END: &str = "
#ifdef __cplusplus
} /* extern \"C\" */

template <class T> inline T posenc_init() {
    T t = T();
    t.version = POSENC_ABI;
    t.size = sizeof(T);
    return t;
}
#define POSENC_INIT(type) posenc_init<type>()
#else
/* Begins a spec or a call: PosencRopeCall call = POSENC_INIT(PosencRopeCall); */
#define POSENC_INIT(type) {.version = POSENC_ABI, .size = sizeof(type)}
#endif

#endif /* POSENC_H */
";

/// Columns of a line.
const WIDTH: usize = 120;

/// A type of Rust in C, ready for a name. What came through several macros has spaces behind its stars.
fn c_type(ty: &str) -> String {
    let ty = &ty.replace("* ", "*");
    let number = match ty.as_str() {
        "u8" | "u16" | "u32" | "u64" | "i32" | "i64" => {
            format!("{}int{}_t ", if ty.starts_with('u') { "u" } else { "" }, &ty[1..])
        }
        "f32" => "float ".into(),
        "f64" => "double ".into(),
        "c_char" => "char ".into(),
        "c_void" => "void ".into(),
        _ => String::new(),
    };
    if !number.is_empty() {
        return number;
    }
    match (ty.strip_prefix("*const "), ty.strip_prefix("*mut ")) {
        (Some(inner), _) if inner.starts_with('*') => format!("{}const *", c_type(inner)),
        (Some(inner), _) => format!("const {}*", c_type(inner)),
        (_, Some(inner)) => format!("{}*", c_type(inner)),
        _ => format!("{ty} "),
    }
}

fn declaration(name: &str, ty: &str) -> String {
    match ty.strip_prefix('[').and_then(|ty| ty.strip_suffix(']')).and_then(|ty| ty.split_once("; ")) {
        Some((element, count)) => format!("{}{name}[{count}]", c_type(element)),
        None => format!("{}{name}", c_type(ty)),
    }
}

/// A comment, each line behind `indent`.
fn comment(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for paragraph in text.split("\n\n") {
        if lines.len() > 1 || !lines[0].is_empty() {
            lines.extend([String::new(), String::new()]);
        }
        for word in paragraph.split_whitespace() {
            let last = lines.len() - 1;
            if !lines[last].is_empty() && indent.len() + 3 + lines[last].len() + 1 + word.len() + 3 > WIDTH {
                lines.push(word.into());
            } else {
                let space = if lines[last].is_empty() { "" } else { " " };
                lines[last] = format!("{}{space}{word}", lines[last]);
            }
        }
    }
    let text = lines.join(&format!("\n{indent}   "));
    let text: Vec<_> = text.lines().map(str::trim_end).collect();
    format!("{indent}/* {} */\n", text.join("\n"))
}

/// A line with its comment behind it, or before it where it is too long.
fn commented(line: &str, text: &str, indent: &str) -> String {
    let whole = format!("{indent}{line} /* {text} */\n");
    if whole.len() <= WIDTH + 1 { whole } else { format!("{}{indent}{line}\n", comment(text, indent)) }
}

fn print(item: &Item) -> String {
    let docs: Vec<_> = item.docs.iter().map(|line| line.trim()).collect();
    let mut out = String::from("\n");
    if !docs.is_empty() {
        let text: Vec<_> = docs.split(|line| line.is_empty()).map(|lines| lines.join(" ")).collect();
        out += &comment(&text.join("\n\n"), "");
    }
    match &item.kind {
        Kind::Codes { codes, .. } => {
            codes
                .iter()
                .for_each(|(doc, name, value, _)| out += &commented(&format!("#define {name} {value}"), doc, ""));
        }
        Kind::Struct { name, fields } => {
            let _ = writeln!(out, "typedef struct {name} {{");
            fields
                .iter()
                .for_each(|(doc, field, ty)| out += &commented(&format!("{};", declaration(field, ty)), doc, "    "));
            let _ = writeln!(out, "}} {name};");
        }
        Kind::Opaque { name } => {
            let _ = writeln!(out, "typedef struct {name} {name};");
        }
        Kind::Function { name, arguments, result, .. } => {
            let start = format!("{}(", declaration(name, result));
            let arguments: Vec<_> = arguments.iter().map(|(name, ty)| declaration(name, ty)).collect();
            let line =
                format!("{start}{});\n", if arguments.is_empty() { "void".into() } else { arguments.join(", ") });
            let lines = format!("{start}\n    {});\n", arguments.join(",\n    "));
            out += if line.len() <= WIDTH { &line } else { &lines };
        }
    }
    out
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_current() {
    let text = format!("{START}{}{END}", items().map(print).collect::<String>());
    let path = root().join("posenc.h");
    if std::env::var_os("POSENC_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the header is written");
    }
    let committed = std::fs::read_to_string(&path).expect("adapters/c/posenc.h");
    assert!(
        committed == text,
        "adapters/c/posenc.h is not current: POSENC_BLESS=1 cargo test -p posenc-c --test header"
    );
}

/// A program that begins a spec and a call in every way, and knows the sizes that Rust has.
fn program() -> PathBuf {
    let mut text = String::from("#include \"posenc.h\"\n");
    for item in items() {
        let Kind::Struct { name, fields } = &item.kind else { continue };
        // No struct has padding: its size is its fields'.
        let sizes: Vec<_> =
            fields.iter().map(|(_, field, _)| format!("sizeof(((struct {name} *)0)->{field})")).collect();
        let _ = writeln!(text, "typedef char size_of_{name}[sizeof({name}) == {} ? 1 : -1];", sizes.join(" + "));
        if fields[0].1 == "version" {
            let _ = writeln!(text, "{name} begin_{name}(void) {{ {name} it = POSENC_INIT({name}); return it; }}");
        }
    }
    let path = std::env::temp_dir().join(format!("posenc-header-{}.c", std::process::id()));
    std::fs::write(&path, text).expect("the program is written");
    path
}

#[test]
fn the_header_compiles_as_c_and_as_cpp_without_a_warning() {
    let program = program();
    for (compiler, variable, language, standards) in
        [("cc", "CC", "c", ["c99", "c11", "c17"]), ("c++", "CXX", "c++", ["c++11", "c++17", "c++20"])]
    {
        let compiler = std::env::var(variable).unwrap_or_else(|_| compiler.into());
        for standard in standards {
            let mut command = Command::new(&compiler);
            command.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Werror", "-pedantic-errors"]);
            command.args(["-fsyntax-only", "-x", language, "-I"]).arg(root()).arg(&program);
            let output = command.output().unwrap_or_else(|error| panic!("{compiler} does not start: {error}"));
            assert!(output.status.success(), "{standard}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    std::fs::remove_file(program).expect("the program goes");
}

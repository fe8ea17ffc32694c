//! `posenc.h`, and its structs and functions for Python, are what the adapter's `header!` blocks say. With POSENC_BLESS=1 they are
//! written.

mod support;

use std::fmt::Write;
use std::path::PathBuf;

use posenc_c::{Item, Kind, items};
use support::{WIDTH, check_current, comment, compiler, declaration, run};

const START: &str = "\
/* posenc: positional encodings of transformers as CUDA kernels. Written by adapters/c/tests/header.rs; do not edit.

   One pattern for each operation: a Posenc...Spec says what to compute, posenc_..._new makes a plan of it for one element
   type (POSENC_F32, POSENC_F16, POSENC_BF16), posenc_..._free frees that, and each verb takes the plan and a Posenc...Call.
   The crate's documentation states formulas and accuracy; names are the same.

   - Functions return a status, 0 for success. posenc_last_error is the sentence to the thread's last other one.
   - A spec and a call begin with `version` and `size`: POSENC_INIT(PosencRopeCall) fills both in, and 0 everywhere else.
     Other versions are refused. Later headers add fields at the end alone: of a shorter struct, as a program was compiled
     with, what is missing is 0; of a longer one, what this library does not know must be 0.
     A `scale` or `factor` of 0 is refused, where it was forgotten: 1 changes nothing.
   - A buffer is an address and the elements there; a shape has an offset and strides in elements. Lengths are checked
     against shapes. The library cannot check the allocation: a wrong length is undefined behaviour.
   - posenc_gpu_new gives a device: its plans take device addresses. posenc_cpu_new gives the CPU, which needs no driver: its
     plans take the same calls with host addresses, allocate as they like and are done when a call returns. Tensors that one
     such call writes lie in memory of their own; queries and keys alone may lie between each other.
   - Everything is checked before anything is written. On a device a call launches into the stream and returns; it allocates nothing
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

#[test]
fn the_header_is_current() {
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    let version = format!(
        "
/* The version of this header; posenc_version() is the library's. */
#define POSENC_VERSION_MAJOR {major}
#define POSENC_VERSION_MINOR {minor}
#define POSENC_VERSION_PATCH {patch}
#define POSENC_VERSION (POSENC_VERSION_MAJOR * 10000 + POSENC_VERSION_MINOR * 100 + POSENC_VERSION_PATCH)
"
    );
    check_current("posenc.h", &format!("{START}{version}{}{END}", items().map(print).collect::<String>()));
}

/// A type of Rust in ctypes. Pointers are addresses, whatever they point to.
fn ctypes(ty: &str) -> String {
    if let Some((element, count)) = ty.trim_matches(['[', ']']).split_once("; ") {
        return format!("{} * {count}", ctypes(element));
    }
    let number = match ty.as_bytes()[0] {
        b'*' => "void_p".into(),
        b'u' => format!("uint{}", &ty[1..]),
        b'i' => format!("int{}", &ty[1..]),
        b'f' if ty == "f32" => "float".into(),
        b'f' => "double".into(),
        _ if ty == "PosencStatus" => "int32".into(),
        _ if ty == "PosencStream" => "void_p".into(),
        _ => return ty.trim_start_matches("Posenc").into(),
    };
    format!("ctypes.c_{number}")
}

/// Structs of calls whose numbers the package for Python computes: setting one costs a tenth without a look at it.
const COMPUTED: [&str; 14] = [
    "Buffer",
    "Ids",
    "Positions",
    "Tokens",
    "Heads",
    "Logits",
    "Numbers",
    "Place",
    "Places",
    "Operand",
    "Table",
    "RopeCall",
    "Inputs",
    "SoftmaxCall",
];

const PYTHON: &str = "\
# posenc.h for ctypes. Written by adapters/c/tests/header.rs; do not edit.
# ruff: noqa
# fmt: off
import ctypes

from ._struct import PlainStruct, PlainVersioned, Struct, Versioned

";

fn python(item: &Item) -> String {
    let mut out = String::new();
    match &item.kind {
        Kind::Codes { codes, .. } => {
            codes
                .iter()
                .for_each(|(_, name, value, _)| _ = writeln!(out, "{} = {value}", name.trim_start_matches("POSENC_")));
        }
        Kind::Struct { name, fields } => {
            let (base, hidden) = if fields[0].1 == "version" { ("Versioned", 2) } else { ("Struct", 0) };
            let name = name.trim_start_matches("Posenc");
            let plain = if COMPUTED.contains(&name) { "Plain" } else { "" };
            let _ = writeln!(out, "\n\nclass {name}({plain}{base}):\n    _fields_ = [");
            for (_, field, ty) in fields.iter().skip(hidden) {
                let _ = writeln!(out, "        ({field:?}, {}),", ctypes(ty));
            }
            out += "    ]\n";
        }
        Kind::Opaque { .. } => {}
        Kind::Function { name, arguments, result, .. } => {
            let arguments: Vec<_> = arguments.iter().map(|(_, ty)| ctypes(ty)).collect();
            let _ = writeln!(out, "FUNCTIONS[{name:?}] = {}, [{}]", ctypes(result), arguments.join(", "));
        }
    }
    out
}

#[test]
fn the_structs_of_python_are_current() {
    let (functions, others): (Vec<_>, Vec<_>) = items().partition(|item| matches!(item.kind, Kind::Function { .. }));
    let text = others.into_iter().map(python).collect::<String>();
    let functions = functions.into_iter().map(python).collect::<String>();
    check_current("../python/posenc/_c.py", &format!("{PYTHON}{text}\n\nFUNCTIONS = {{}}\n{functions}"));
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
    for standard in ["c99", "c11", "c17", "c++11", "c++14", "c++17", "c++20"] {
        let language = if standard.starts_with("c++") { "c++" } else { "c" };
        run(compiler(standard).args(["-fsyntax-only", "-x", language]).arg(&program));
    }
    std::fs::remove_file(program).expect("the program goes");
}

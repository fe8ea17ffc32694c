//! `posenc.hpp` is made of the library's own items: a class for each handle, with every function of the header; programs in C++
//! build with it and run on the CPU.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use posenc_c::{Kind, items};
use support::{c_type, check_current, compiler, library, root, run};

const START: &str = "\
// posenc for C++11 and later: handles that free themselves, errors that are thrown. Written by adapters/c/tests/cpp.rs; do not
// edit. posenc.h says what each function does: posenc_rope_new is rope::make, posenc_rope_xpos_new rope::make_xpos,
// posenc_rope_rotate the method rope::rotate. Specs and calls are the header's structs.
#ifndef POSENC_HPP
#define POSENC_HPP

#include \"posenc.h\"

#include <memory>
#include <stdexcept>

namespace posenc {

// What a function refuses; what() is the library's sentence.
class error : public std::runtime_error {
    PosencStatus status_;

public:
    error(PosencStatus status, const char *sentence) : std::runtime_error(sentence), status_(status) {}
    // One of the header's statuses.
    PosencStatus status() const noexcept { return status_; }
};

// Throws unless `status` is POSENC_OK.
inline void check(PosencStatus status) {
    if (status != POSENC_OK) throw error(status, posenc_last_error());
}

// Owns what `Free` frees; it can be moved and not copied.
template <class T, PosencStatus (*Free)(T *)> class handle {
    struct deleter {
        void operator()(T *raw) const noexcept { Free(raw); }
    };
    std::unique_ptr<T, deleter> raw_;

public:
    // Owns nothing, or a handle of posenc.h.
    explicit handle(T *raw = nullptr) noexcept : raw_(raw) {}
    // The handle of posenc.h, still owned.
    T *get() const noexcept { return raw_.get(); }
    // The handle of posenc.h, which is the caller's to free.
    T *release() noexcept { return raw_.release(); }
    explicit operator bool() const noexcept { return static_cast<bool>(raw_); }
};
";

const END: &str = "
} // namespace posenc

#endif // POSENC_HPP
";

/// The class of a handle: `learned_grad` of `PosencLearnedGrad`.
fn class(handle: &str) -> String {
    let mut name = String::new();
    for c in handle.trim_start_matches("Posenc").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// What a pointer's type points to.
fn pointee(ty: &str) -> Option<&str> {
    ty.strip_prefix("*const ").or_else(|| ty.strip_prefix("*mut "))
}

/// A function of the header as C++ has it: the class that it is a part of, its declaration there, and its definition.
struct Wrapped {
    owner: Option<String>,
    declaration: String,
    definition: String,
}

fn wrap(name: &str, arguments: &[(&str, String)], result: &str, handles: &BTreeSet<&str>) -> Wrapped {
    let handle = |ty: &str| pointee(ty).filter(|of| handles.contains(of)).map(String::from);
    let out = arguments.last().filter(|(name, ty)| *name == "out" && ty.starts_with("*mut ")).map(|(_, ty)| &ty[5..]);
    let made = out.and_then(handle);
    let first = arguments.first().and_then(|(_, ty)| handle(ty));
    let owner = made.clone().or_else(|| first.clone());
    let method = first.is_some() && first == owner;
    let inputs = &arguments[usize::from(method)..arguments.len() - usize::from(out.is_some())];

    let own = name.trim_start_matches("posenc_");
    let stem = owner.as_deref().map(class);
    let short = match &stem {
        Some(stem) => own.strip_prefix(&format!("{stem}_")).unwrap_or(own),
        None => own,
    };
    let short = match short.strip_suffix("_new") {
        Some(kind) => format!("make_{kind}"),
        None if short == "new" => "make".into(),
        None => short.into(),
    };
    let (mut parameters, mut passed) = (Vec::new(), Vec::new());
    if method {
        passed.push("get()".to_string());
    }
    for (name, ty) in inputs {
        match (handle(ty), pointee(ty)) {
            (Some(of), _) => {
                let mutable = if ty.starts_with("*mut ") { "" } else { "const " };
                parameters.push(format!("{mutable}{} &{name}", class(&of)));
                passed.push(format!("{name}.get()"));
            }
            (None, Some(of)) if of.starts_with("Posenc") => {
                parameters.push(format!("const {of} &{name}"));
                passed.push(format!("&{name}"));
            }
            _ => {
                parameters.push(format!("{}{name}", c_type(ty)));
                passed.push((*name).into());
            }
        }
    }
    let checked = result == "PosencStatus";
    let gives = match (&made, out) {
        (Some(made), _) => class(made) + " ",
        (None, Some(ty)) => c_type(ty),
        _ if checked => "void ".into(),
        _ => c_type(result),
    };
    let body = match (&made, out) {
        (Some(made), _) => {
            passed.push("&raw".into());
            let (call, class) = (format!("posenc::check({name}({}));", passed.join(", ")), class(made));
            format!("    {made} *raw = nullptr;\n    {call}\n    return {class}(raw);\n")
        }
        (None, Some(ty)) => {
            passed.push("&value".into());
            let call = format!("posenc::check({name}({}));", passed.join(", "));
            format!("    {}value = {{}};\n    {call}\n    return value;\n", c_type(ty))
        }
        _ if checked => format!("    posenc::check({name}({}));\n", passed.join(", ")),
        _ => format!("    return {name}({});\n", passed.join(", ")),
    };
    // What a handle that the header takes as `const` is asked leaves it as it is.
    let constant = if method && arguments[0].1.starts_with("*const ") { " const" } else { "" };
    let stated = if stem.is_some() && !method { "static " } else { "" };
    let parameters = parameters.join(", ");
    let scope = stem.as_ref().map_or(String::new(), |stem| format!("{stem}::"));
    Wrapped {
        declaration: format!("    {stated}{gives}{short}({parameters}){constant};\n"),
        definition: format!("\ninline {gives}{scope}{short}({parameters}){constant} {{\n{body}}}\n"),
        owner: stem,
    }
}

fn text() -> String {
    let handles: BTreeSet<&str> =
        items().filter_map(|item| if let Kind::Opaque { name } = item.kind { Some(name) } else { None }).collect();
    let functions: Vec<Wrapped> = items()
        .filter_map(|item| match &item.kind {
            Kind::Function { name, .. } if name.ends_with("_free") => None,
            Kind::Function { name, arguments, result, .. } => {
                let arguments: Vec<_> = arguments.iter().map(|(name, ty)| (*name, ty.replace("* ", "*"))).collect();
                Some(wrap(name, &arguments, result, &handles))
            }
            _ => None,
        })
        .collect();
    let mut text = String::from("\n");
    for handle in &handles {
        let _ = writeln!(text, "class {};", class(handle));
    }
    for handle in &handles {
        let stem = class(handle);
        let _ = write!(
            text,
            "\nclass {stem} : public handle<{handle}, posenc_{stem}_free> {{\npublic:\n    using handle::handle;\n"
        );
        for function in functions.iter().filter(|function| function.owner.as_deref() == Some(&stem)) {
            text += &function.declaration;
        }
        text += "};\n";
    }
    functions.iter().for_each(|function| text += &function.definition);
    format!("{START}{text}{END}")
}

#[test]
fn the_cpp_header_is_current() {
    check_current("posenc.hpp", &text());
}

/// Every function of the header but those that free is called once.
#[test]
fn the_cpp_header_has_every_function() {
    let text = text();
    for item in items() {
        let Kind::Function { name, .. } = &item.kind else { continue };
        let uses = if name.ends_with("_free") { format!("{name}>") } else { format!("{name}(") };
        assert!(text.contains(&uses), "posenc.hpp lacks {name}");
    }
}

/// Compiles a program by each standard and runs it.
fn run_program(source: &str) {
    let (folder, source) = (library(), root().join(source));
    let name = source.file_stem().expect("a file").to_string_lossy();
    for standard in ["c++11", "c++14", "c++17", "c++20"] {
        let program = std::env::temp_dir().join(format!("posenc-cpp-{name}-{standard}-{}", std::process::id()));
        run(compiler(standard).arg(&source).arg("-o").arg(&program).arg("-L").arg(&folder).arg("-lposenc_c"));
        let out = run(Command::new(&program).env("LD_LIBRARY_PATH", load_path(&folder)));
        std::fs::remove_file(&program).expect("the program goes");
        assert_eq!(out, "all is well\n", "{standard}");
    }
}

#[test]
fn a_cpp_program_rotates_and_attends_on_the_cpu() {
    run_program("tests/cpu.cpp");
}

#[test]
fn a_cpp_example_makes_a_decode_step_on_the_cpu() {
    run_program("examples/decode.cpp");
}

fn load_path(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(others);
    }
    path
}

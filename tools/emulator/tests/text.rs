//! What is no PTX, or not PTX as it should be: an error with its line, and never a panic, whatever the text.

mod support;

/// The order of blocks is arithmetic on lists alone, so its file is tested as it is.
#[path = "../src/lower/order.rs"]
#[allow(dead_code)]
mod order;

use cudarc::driver::sys::{self, CUresult};
use proptest::prelude::*;
use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::Arc;
use support::{Device, Text};

static TEXTS: [Text; 4] = [Text("first.sm_75"), Text("first.sm_90"), Text("mutants"), Text("bench")];

/// A context for each thread of the test.
fn context() -> (warpcheck::Emulator, Arc<cudarc::driver::CudaContext>) {
    thread_local! {
        static DEVICE: Device = Device::new();
    }
    DEVICE.with(|d| {
        d.emulator.set_quiet(true);
        (d.emulator, d.context.clone())
    })
}

/// Kernels of a text, or the driver's code and reason.
fn load(text: &str) -> Result<u32, (CUresult, String)> {
    let (emulator, context) = context();
    context.bind_to_thread().unwrap();
    let text = CString::new(text.replace('\0', " ")).unwrap();
    let (mut module, mut kernels) = (null_mut(), 0);
    // SAFETY: the text ends in zero, and the places are ours.
    unsafe {
        match sys::cuModuleLoadData(&mut module, text.as_ptr().cast()) {
            CUresult::CUDA_SUCCESS => {}
            code => return Err((code, emulator.last_error().unwrap_or_default())),
        }
        sys::cuModuleGetFunctionCount(&mut kernels, module).result().unwrap();
        sys::cuModuleUnload(module).result().unwrap();
    }
    Ok(kernels)
}

/// Loads a text, which may be refused; a panic of the emulator would be an unknown error.
fn whatever(text: &str) {
    if let Err((code, said)) = load(text) {
        assert_ne!(code, CUresult::CUDA_ERROR_UNKNOWN, "{said}");
        assert!(!said.is_empty());
    }
}

fn refused(body: &str) -> String {
    let head = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n";
    load(&format!("{head}{body}\nret;\n}}\n")).expect_err("this is not PTX").1
}

#[test]
fn what_nvrtc_made_compiles() {
    for text in &TEXTS {
        assert!(load(text).unwrap() > 0);
    }
}

#[test]
fn directives_need_no_space_between_them() {
    let text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible.entry k(.param.u64.ptr.global.align 8 p)\n{\n\
                .reg.b32 %r<2>;\n.shared.align 16 .b8 x[32];\nmov.u32 %r1, %tid.x;\nret;\n}\n";
    assert_eq!(load(text).unwrap(), 1);
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    for (body, part) in [
        ("add.u32 %r1, 2, 1;", "the destination must be a register"),
        (".reg .b32 %r<3>;\nfrobnicate.u32 %r1, %r2;", "PTX line 7: `frobnicate.u32`: this instruction is not known"),
        (".reg .b32 %r<3>;\nadd.fast.u32 %r1, %r2, 1;", "`add.fast.u32`: the modifier `.fast` is not known here"),
        (".reg .b32 %r<3>;\nadd.u32 %r1, %r2;", "takes 3 operands, 2 stand there"),
        (
            ".reg .b32 %r<3>;\n.reg .b64 %d<3>;\nadd.u32 %r1, %d2, 1;",
            "the register `%d2` is 64 bits, 32 bits are needed",
        ),
        (".reg .pred %p<3>;\n@%p1 bra NOWHERE;", "the label `NOWHERE` does not exist"),
        (".reg .b32 %r<3>;\n@%r1 bra X;\nX:", "the guard `%r1` is not a predicate"),
        (".reg .b32 %r<3>;\nadd.u32 %r1, %r7, 1;", "neither a register that is declared nor a special one"),
        (".reg .b32 %r<3>;\nld.global.u32 %r1, [nothing];", "`nothing` is not declared"),
        (".reg .b32 %r<3>;\nld.param.u32 %r1, [p+8];", "reads past the 8 bytes of parameters"),
        (".reg .b32 %r<3>;\n.reg .b32 %r<2>;", "the register `%r0` is declared twice"),
        ("add.u32 3, 4", "`,` or `;` expected after an operand, found `ret`"),
        ("call missing;", "`missing` is not declared"),
        (".reg .f32 %f<3>;\nadd.f32 %f1, %f2, 1;", "an integer stands where a float is needed"),
        ("mov.u32", "takes 2 operands"),
        (".reg .b32 %r<3>;\nmov.u32 %r1, 0f3F8;", "a 0f literal needs 8 hexadecimal digits"),
        (".local .align 3 .b8 x[4];", "an alignment of 3 is not a power of two"),
        (".local .b8 x[99999999999];", "`x` would take 99999999999 bytes"),
        (".reg .b32 %r<4000000000>;", "4000000000 registers are too many"),
    ] {
        let said = refused(body);
        assert!(said.contains(part), "{body}: {said}");
    }
    assert!(load("x").unwrap_err().1.contains("a module starts with `.version`"));
    assert_eq!(load(".version 99.0\n.target sm_80").unwrap_err().0, CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert!(load(".version 8.0\n.target compute_80").unwrap_err().1.contains("is not one of PTX"));
    let deep = format!(".version 8.0\n.target sm_80\n.visible .entry k()\n{}", "{".repeat(100_000));
    assert!(load(&deep).unwrap_err().1.contains("nested too deeply"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_a_panic(text in "\\PC*") {
        whatever(&text);
        whatever(&format!(".version 8.0\n.target sm_80\n{text}"));
    }

    #[test]
    fn no_damage_to_a_text_is_a_panic(
        which in 0..TEXTS.len(),
        cuts in prop::collection::vec((any::<u32>(), 0..4u8, "[ -~]{0,12}"), 1..6),
    ) {
        let mut words: Vec<String> =
            TEXTS[which].split_inclusive(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect();
        for (at, what, text) in cuts {
            let Some(at) = (at as usize).checked_rem(words.len()) else { break };
            match what {
                0 => { words.remove(at); }
                1 => words.insert(at, text),
                2 => words.swap(at, 0),
                _ => words.truncate(at.max(1)),
            }
        }
        whatever(&words.concat());
    }
}

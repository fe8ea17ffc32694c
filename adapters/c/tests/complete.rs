//! What the crate has, C has: every variant of every enum, every method of every plan, every named encoding, and the functions of
//! the rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use posenc_c::{Kind, items};

/// Enums that the header has in other words than constants of their own.
const IN_OTHER_WORDS: [(&str, &str, &[&str]); 20] = [
    ("Reals", "`element` of PosencFixedCall", &["F32", "F64"]),
    ("Wave", "`cosine_first`", &["Sine", "Cosine"]),
    ("Direction", "`inverse`", &["Forward", "Inverse"]),
    ("Keys", "`k`, and `packed`", &["None", "Apart", "Beside"]),
    ("Update", "`out` with its shape", &["InPlace", "Copy"]),
    ("TableValues", "`element` of PosencTable", &["F32", "Same"]),
    ("Ids", "`element` of PosencIds", &["I32", "I64", "U32"]),
    ("Bias", "constructors of PosencBias", &["None", "Slopes", "Toeplitz", "Fire", "Terms"]),
    ("Indices", "`element` of PosencIds", &["U8", "U16", "I32"]),
    ("AnyNumbers", "`element` of PosencTermInputs", &["F32", "F16", "Bf16"]),
    (
        "Error",
        "statuses",
        &["Length", "Value", "Config", "Overflow", "Context", "NoDevice", "NoKernels", "Load", "Driver"],
    ),
    ("Pass", "integers that the caller computes", &["Near", "Far"]),
    ("Part", "integers that the caller computes", &["Intra", "Successive", "Inter"]),
    ("GgufValue", "a file, which posenc_model_from_gguf reads", &["Integer", "Float", "Bool", "Text", "List"]),
    ("Host", "`posenc_cpu_new`", &[]),
    (
        "Projected",
        "`x`, `to` and `packed` of PosencProjected",
        &["None", "Read", "Update", "Beside", "BesideInPlace", "BesideTo"],
    ),
    ("Stored", "`store` of PosencStored, and addresses", &["Same", "Beside", "Codes"]),
    ("HostStored", "`store` of PosencStored", &["Same", "Codes"]),
    ("HostScale", "`scale` of PosencStored", &["Given", "Dynamic", "Inline"]),
    ("Qkv", "`q`, `k` and `v` of PosencPrologueCall", &["Query", "Key", "Value"]),
];

/// Methods that the header has in other words, or needs not.
const METHODS_IN_OTHER_WORDS: [(&str, &[&str]); 9] = [
    (
        "posenc_merge_states and posenc_merge_grad of the CPU",
        &["attend::merge_states", "attend::merge_expect", "attend::merge_grad_expect"],
    ),
    (
        "gives back the spec, which the caller made",
        &[
            "RopePlan::rope",
            "RopeGradPlan::rope",
            "ProloguePlan::prologue",
            "SinusoidPlan::sinusoid",
            "TimestepPlan::sinusoid",
            "GridPlan::grid",
            "LearnedPlan::learned",
            "ResamplePlan::resample",
            "SoftmaxPlan::softmax",
            "Swin2Plan::spec",
            "GateSumsPlan::spec",
            "RelativeValuesPlan::spec",
        ],
    ),
    (
        "follows from another method",
        &["DistanceGradPlan::is_empty", "FireGradPlan::is_empty", "RelativeTableGradPlan::is_empty"],
    ),
    ("a struct that is filled in field by field", &["Distances::new"]),
    (
        "what a plan does on the device",
        &["Distances::check", "Distances::entry", "Window::check", "Window::entry", "Window::keys", "Window::queries"],
    ),
    ("posenc_decomposed_axis, and integers that the caller computes", &["bias::decomposed_row", "embed::order"]),
    ("posenc_learned_gather and posenc_error_flag_check", &["LearnedPlan::gather_checked"]),
    ("a call brings its bias", &["SoftmaxPlan::bias", "SoftmaxPlan::bias_mut"]),
    (
        "an argument, posenc_model_layer or posenc_rope_of_model",
        &["ModelRope::at_length", "ModelRope::kinds", "ModelRope::rope", "ModelPrologue::rope"],
    ),
];

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).expect("the crate's source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            found.push((path, text));
        }
    }
}

fn crate_sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
    sources(&root, &mut found);
    // Of a private module, whose instruction sets stand in a sealed trait.
    found.retain(|(path, _)| !path.starts_with(root.join("cpu")));
    found
}

/// The identifier that a line begins with.
fn word(line: &str) -> &str {
    let end = line.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(line.len());
    &line[..end]
}

/// The lines of a block that begins at the left margin, up to its closing brace.
fn block<'a>(lines: &mut impl Iterator<Item = &'a str>, first: &str) -> Vec<&'a str> {
    if first.ends_with('}') { Vec::new() } else { lines.take_while(|line| *line != "}").collect() }
}

#[test]
fn every_variant_has_a_constant() {
    let mut variants: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for item in items() {
        let Kind::Codes { of, codes } = &item.kind else { continue };
        let values: BTreeSet<_> = codes.iter().map(|code| code.2).collect();
        assert_eq!(values.len(), codes.len(), "two constants of {of} have one value");
        if !of.is_empty() {
            variants.insert(of, codes.iter().map(|code| code.3).filter(|variant| !variant.is_empty()).collect());
        }
    }
    for (name, _, list) in IN_OTHER_WORDS {
        assert!(variants.insert(name, list.iter().copied().collect()).is_none(), "{name} has constants of its own");
    }
    let mut seen = BTreeSet::new();
    for (path, text) in &crate_sources() {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(rest) = line.strip_prefix("pub enum ") else { continue };
            // Marks where memory is; they have no values.
            let name = if word(rest) == "Device" { "Host" } else { word(rest) };
            let own: BTreeSet<_> = block(&mut lines, line)
                .iter()
                .filter_map(|line| line.strip_prefix("    "))
                .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
                .map(word)
                .collect();
            let Some(there) = variants.get(name) else {
                panic!("{}: the header has no constants for {name}: {own:?}", path.display());
            };
            assert_eq!(there, &own, "the constants of {name} in the header, and its variants in {}", path.display());
            seen.insert(name.to_string());
        }
    }
    for name in variants.keys() {
        assert!(seen.contains(*name), "the header has constants for {name}, which is no enum of the crate");
    }
}

/// Types whose methods C has beside those of plans: models, and named encodings of distances and windows.
const OTHER_TYPES: [&str; 4] = ["ModelRope", "ModelPrologue", "Distances", "Window"];

/// The type that a block of methods is of, if C has them.
fn implemented(line: &str) -> Option<&str> {
    let plan = line.strip_prefix("impl<T: Scalar> ").filter(|rest| word(rest).ends_with("Plan"));
    let other = line.strip_prefix("impl ").filter(|rest| OTHER_TYPES.contains(&word(rest)));
    plan.or(other).map(word).filter(|_| !line.contains(" for "))
}

/// The room of a source file, for functions without a type.
fn room(path: &Path) -> Option<&str> {
    ["embed", "rotate", "bias", "attend"].into_iter().find(|room| path.iter().any(|part| part == *room))
}

fn public(line: &str) -> Option<&str> {
    line.strip_prefix("pub fn ").or_else(|| line.strip_prefix("pub const fn ")).map(word)
}

#[test]
fn every_method_of_a_plan_has_a_function() {
    let mut mirrored = BTreeSet::new();
    for item in items() {
        if let Kind::Function { mirrors, .. } = &item.kind {
            mirrored.extend(mirrors.iter().copied());
        }
    }
    let mut excused: BTreeSet<_> =
        METHODS_IN_OTHER_WORDS.iter().flat_map(|(_, methods)| methods.iter().copied()).collect();
    let mut methods = BTreeSet::new();
    for (path, text) in &crate_sources() {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let (Some(room), Some(function)) = (room(path), public(line)) {
                methods.insert(format!("{room}::{function}"));
            }
            if let Some(plan) = line.strip_prefix("on_stream! { ") {
                methods.insert(format!("{}::on", word(plan)));
            }
            let Some(of) = implemented(line) else { continue };
            for line in block(&mut lines, line) {
                let method = line.strip_prefix("    ").and_then(public);
                methods.extend(method.map(|method| format!("{of}::{method}")));
            }
        }
    }
    assert!(methods.len() > 40, "{methods:?}");
    for method in &methods {
        let excuse = excused.remove(method.as_str());
        assert!(
            mirrored.contains(method.as_str()) != excuse,
            "the header has no function for {method}, or a needless excuse"
        );
    }
    assert!(excused.is_empty(), "no methods of the crate: {excused:?}");
    for method in mirrored {
        assert!(methods.contains(method), "a function stands for {method}, which the crate does not have");
    }
}

/// A spec of the crate is written with all its fields, so that a new one does not compile until C has it.
#[test]
fn no_field_of_a_spec_is_left_to_a_default() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    for (path, text) in found {
        for line in text.lines() {
            let rest = line.split("..").nth(1).unwrap_or_default();
            let named = rest.starts_with(|c: char| c.is_ascii_uppercase()) && rest.contains("::");
            assert!(!named, "{}: {line}", path.display());
        }
    }
}

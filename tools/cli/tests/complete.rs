//! Every operation of the crate has its form in `posenc apply`, and so its rows in `posenc check`.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use support::posenc;

/// What the methods of the crate's plans are in the program.
const FORMS: &[(&str, &str)] = &[
    ("BiasPlan::add", "bias terms"),
    ("BiasPlan::write", "bias terms"),
    ("DistanceGradPlan::apply", "bias-grad"),
    ("FireGradPlan::apply", "bias-grad"),
    ("GateSumsPlan::grad", "gate-sums-grad"),
    ("GateSumsPlan::write", "gate-sums"),
    ("GridPlan::add", "grid"),
    ("GridPlan::write", "grid"),
    ("GridPlan::write_masked", "grid"),
    ("LearnedGradPlan::counted", "learned-grad"),
    ("LearnedGradPlan::norm", "learned-grad"),
    ("LearnedGradPlan::order", "learned-grad"),
    ("LearnedGradPlan::table", "learned-grad"),
    ("LearnedPlan::gather", "learned"),
    ("LearnedPlan::gather_checked", "learned"),
    ("MergePlan::grad", "merge-grad"),
    ("MergePlan::merge", "merge"),
    ("ProloguePlan::apply", "prologue"),
    ("RelativeProductsPlan::add", "products"),
    ("RelativeProductsPlan::write", "products"),
    ("RelativeTableGradPlan::apply", "relative-values-grad"),
    ("RelativeValuesPlan::add", "relative-values"),
    ("RelativeValuesPlan::grad", "relative-values-grad"),
    ("ResamplePlan::grad", "resample-grad"),
    ("ResamplePlan::write", "resample"),
    ("RopeGradPlan::frequencies", "rope-grad"),
    ("RopeGradPlan::positions", "rope-grad"),
    ("RopePlan::rotate", "rope xpos"),
    ("RopePlan::set_frequencies", "rope"),
    ("SinusoidPlan::add", "sinusoid"),
    ("SinusoidPlan::write", "sinusoid"),
    ("SoftmaxPlan::apply", "softmax"),
    ("SoftmaxPlan::apply_with_lse", "softmax"),
    ("SoftmaxPlan::grad", "softmax-grad"),
    ("SoftmaxPlan::sink_grad", "softmax-grad"),
    ("Swin2Plan::grad", "swin2-grad"),
    ("Swin2Plan::write", "swin2"),
    ("TermGradPlan::apply", "terms-grad"),
    ("TermGradPlan::apply_keys", "terms-grad"),
    ("TimestepPlan::write", "timestep"),
];

/// Methods that have no form, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("BiasPlan::set_table", "T5's table becomes a row in the plan; the form reads the table with the spec"),
    ("LearnedPlan::rows", "row numbers alone, which learned and learned-grad look up themselves"),
];

/// The public methods that a plan launches something by: those that take a buffer.
fn methods(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            methods(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source");
        let mut plan = None;
        for (at, line) in text.lines().enumerate() {
            if let Some(rest) = line.strip_prefix("impl<T: Scalar> ") {
                plan = rest.split('<').next().filter(|name| name.ends_with("Plan")).map(String::from);
            } else if line == "}" {
                plan = None;
            }
            let Some(name) = line.strip_prefix("    pub fn ").and_then(|rest| rest.split(['<', '(']).next()) else {
                continue;
            };
            let signature: String =
                text.lines().skip(at).take_while(|line| !line.starts_with("    }")).take(14).collect();
            let head = signature.split("->").next().unwrap_or_default();
            let reads = ["View<", "ViewMut<", "Write<", "Read<", "Update<", "Projected<"];
            if let Some(plan) = &plan
                && reads.iter().any(|what| head.contains(what))
            {
                found.insert(format!("{plan}::{name}"));
            }
        }
    }
}

#[test]
fn every_operation_of_the_crate_has_its_form() {
    let mut found = BTreeSet::new();
    methods(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src"), &mut found);
    let known: BTreeMap<&str, &str> = FORMS.iter().chain(WITHOUT).copied().collect();
    let missing: Vec<_> = found.iter().filter(|name| !known.contains_key(name.as_str())).collect();
    assert!(missing.is_empty(), "without a form in `posenc apply`: {missing:?}");
    let gone: Vec<_> = known.keys().filter(|name| !found.contains(**name)).collect();
    assert!(gone.is_empty(), "no longer in the crate: {gone:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let list = posenc(folder.path(), &["apply", "--schema"]).ends(0);
    let forms: BTreeSet<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let named: BTreeSet<&str> = FORMS.iter().flat_map(|(_, forms)| forms.split(' ')).collect();
    assert_eq!(forms, named, "forms that no operation of the crate has, or operations whose form is missing");
}

//! `posenc apply`.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::{example, npy, posenc, write_op};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Writes f32 tensors.
fn tensors(folder: &Path, name: &str, tensors: &[(&str, &[usize], Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., data)| data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, &folder.join(name)).expect("a file");
}

/// Reads f32 tensors.
fn read(folder: &Path, name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(folder.join(name)).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let all = file.tensors().into_iter().map(|(name, view)| {
        let data = view.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect();
        (name, (view.shape().to_vec(), data))
    });
    all.collect()
}

/// The examples of an operation.
fn examples(folder: &Path, op: &str) -> Vec<Value> {
    let text = posenc(folder, &["apply", "--schema", op]).ends(0);
    let json = text.split("\n{").skip(1).map(|rest| {
        let text = format!("{{{rest}");
        serde_json::Deserializer::from_str(&text).into_iter().next().expect("JSON").expect("JSON")
    });
    json.collect()
}

/// What is printed can be used: examples are read, and a field of another type or too many is refused.
#[test]
fn every_operation_has_examples() {
    let folder = folder();
    let list = posenc(folder.path(), &["apply", "--schema"]).ends(0);
    assert!(list.lines().count() >= 26, "{list}");
    for line in list.lines() {
        let name = line.split_whitespace().next().expect("a name");
        let text = posenc(folder.path(), &["apply", "--schema", name]).ends(0);
        assert!(text.contains("\nreads ") && text.contains("\nwrites "), "{text}");
        let examples = examples(folder.path(), name);
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            assert_eq!(example["op"], name);
            let read = |op: &Value| {
                write_op(folder.path(), "op.json", op);
                posenc(folder.path(), &["apply", "op.json", "--out", "y.npy", "--device", "cpu"])
            };
            // Read as an operation: what it lacks is tensors, or nothing.
            let run = read(&example);
            assert!(run.status == 0 || run.err.starts_with("error: op.json on no input: "), "{name}: {}", run.err);
            for (field, value) in example.as_object().expect("an object") {
                let mut other = example.clone();
                other[field] = if value.is_string() { 5.5.into() } else { "something".into() };
                assert_eq!(read(&other).status, 2, "{name}: {field}");
            }
            let mut more = example.clone();
            more["surplus"] = 1.into();
            assert_eq!(read(&more).status, 2, "{name}");
        }
    }
}

#[test]
fn rope_turns_pairs_and_turns_them_back() {
    let folder = folder();
    let mut op = example(folder.path(), "rope");
    op["spec"]["rotary"] = 4.into();
    op["start"] = 7.into();
    write_op(folder.path(), "rope.json", &op);
    npy(folder.path(), "x.npy", &[2, 1, 4], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let text = posenc(
        folder.path(),
        &["apply", "rope.json", "--in", "x.npy", "--out", "y.safetensors", "--device", "cpu", "--check"],
    )
    .ends(0);
    assert!(text.starts_with("on the CPU\nx [2, 1, 4] f32: 8 elements within the bound, the worst uses "), "{text}");
    let (shape, y) = &read(folder.path(), "y.safetensors")["x"];
    assert_eq!(shape, &[2, 1, 4]);
    // Halves: channels 0 and 2 are a pair.
    let want = [7f64.cos(), 0.0, 7f64.sin(), 0.0, 8f64.cos(), 0.0, 8f64.sin(), 0.0];
    y.iter().zip(want).for_each(|(got, want)| assert!((f64::from(*got) - want).abs() < 1e-7, "{got} {want}"));

    op["direction"] = "Inverse".into();
    write_op(folder.path(), "back.json", &op);
    posenc(folder.path(), &["apply", "back.json", "--in", "y.safetensors", "--out", "z.npy"]).ends(0);
    posenc(folder.path(), &["diff", "x.npy", "z.npy", "--atol", "1e-6"]).ends(0);
}

#[test]
fn layouts_and_positions_are_the_same_rotation() {
    let folder = folder();
    let x: Vec<f32> = (0..2 * 3 * 2 * 4).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut op = example(folder.path(), "rope");
    op["spec"]["rotary"] = 4.into();
    op["layout"] = "bthd".into();
    write_op(folder.path(), "bthd.json", &op);
    op["layout"] = "bhtd".into();
    write_op(folder.path(), "bhtd.json", &op);
    // [batch, tokens, heads, dim] and [batch, heads, tokens, dim]
    let turned: Vec<f32> = (0..x.len())
        .map(|i| {
            let (b, h, t, d) = (i / 24, i / 12 % 2, i / 4 % 3, i % 4);
            x[((b * 3 + t) * 2 + h) * 4 + d]
        })
        .collect();
    tensors(folder.path(), "bthd.safetensors", &[("q", &[2, 3, 2, 4], x.clone())]);
    tensors(folder.path(), "bhtd.safetensors", &[("q", &[2, 2, 3, 4], turned)]);
    for name in ["bthd", "bhtd"] {
        let (op, input, out) = (format!("{name}.json"), format!("{name}.safetensors"), format!("{name}-y.safetensors"));
        posenc(folder.path(), &["apply", &op, "--in", &input, "--out", &out, "--device", "cpu"]).ends(0);
    }
    let a = &read(folder.path(), "bthd-y.safetensors")["q"].1;
    let b = &read(folder.path(), "bhtd-y.safetensors")["q"].1;
    for (i, value) in a.iter().enumerate() {
        let (batch, t, h, d) = (i / 24, i / 8 % 3, i / 4 % 2, i % 4);
        assert_eq!(*value, b[((batch * 2 + h) * 3 + t) * 4 + d], "{i}");
    }
    assert_ne!(a, &x);
    let text =
        posenc(folder.path(), &["apply", "rope.json", "--in", "bthd.safetensors", "--out", "t.safetensors"]).fails();
    assert!(text.contains("cannot read rope.json"), "{text}");
}

#[test]
fn a_softmax_takes_bias_and_sinks() {
    let folder = folder();
    let op = serde_json::json!({"op": "softmax", "bias": {"alibi": {"total_heads": 1, "first": 0, "heads": 1, "max_bias": 1.0, "scale": 1.0, "sides": "Symmetric"}},
        "spec": {"scale": 1.0, "softcap": null, "order": "SoftcapThenBias", "left": null, "right": 0}});
    write_op(folder.path(), "softmax.json", &op);
    tensors(folder.path(), "x.safetensors", &[("logits", &[1, 1, 2, 2], vec![0.0; 4]), ("sinks", &[1], vec![0.0])]);
    let text =
        posenc(folder.path(), &["apply", "softmax.json", "--in", "x.safetensors", "--out", "p.safetensors", "--check"])
            .ends(0);
    assert_eq!(text.matches("within the bound").count(), 2, "{text}");
    let out = read(folder.path(), "p.safetensors");
    // Slope 1/2; a sink of logit 0.
    let far = (-0.5f64).exp();
    let want = [0.5, 0.0, far / (2.0 + far), 1.0 / (2.0 + far)];
    out["p"].1.iter().zip(want).for_each(|(got, want)| assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}"));
    assert!((f64::from(out["lse"].1[1]) - (2.0 + far).ln()).abs() < 1e-6);
}

/// Another engine's rotation: right, with angles in f32 far out, and of another shape.
#[test]
fn another_engines_result_is_judged_by_the_bound() {
    let folder = folder();
    let mut op = example(folder.path(), "rope");
    op["start"] = 1_000_000.into();
    write_op(folder.path(), "rope.json", &op);
    op["spec"]["angles"] = "HfCompat".into();
    write_op(folder.path(), "usual.json", &op);
    let x: Vec<f32> = (0..3 * 64).map(|i| (i as f32).cos()).collect();
    npy(folder.path(), "x.npy", &[3, 1, 64], &x);
    for name in ["rope", "usual"] {
        let (op, out) = (format!("{name}.json"), format!("{name}.npy"));
        posenc(folder.path(), &["apply", &op, "--in", "x.npy", "--out", &out, "--device", "cpu"]).ends(0);
    }
    let against = |file| posenc(folder.path(), &["apply", "rope.json", "--in", "x.npy", "--against", file]);
    let text = against("rope.npy").ends(0);
    assert!(
        text.starts_with("rope.npy, compared with the reference\nx [3, 1, 64] f32: 192 elements within the bound"),
        "{text}"
    );
    let text = against("usual.npy").ends(1);
    assert!(text.contains(" of 192 elements OUTSIDE the bound, the worst, "), "{text}");
    npy(folder.path(), "short.npy", &[2, 1, 64], &x[..128]);
    let text = against("short.npy").fails();
    assert_eq!(text, "error: short.npy: x is [2, 1, 64], the operation gives [3, 1, 64]\n");
}

#[test]
fn sinusoids_are_written_at_positions() {
    let folder = folder();
    let mut op = example(folder.path(), "sinusoid");
    op["spec"]["dim"] = 2.into();
    write_op(folder.path(), "sinusoid.json", &op);
    let positions: Vec<u8> = [3i64, -5].into_iter().flat_map(i64::to_le_bytes).collect();
    let view = TensorView::new(Dtype::I64, vec![2], &positions).expect("a tensor");
    safetensors::serialize_to_file([("positions", view)], None, &folder.path().join("p.safetensors")).expect("a file");
    posenc(folder.path(), &["apply", "sinusoid.json", "--in", "p.safetensors", "--out", "y.safetensors", "--check"])
        .ends(0);
    let (shape, y) = &read(folder.path(), "y.safetensors")["out"];
    assert_eq!(shape, &[2, 2]);
    let want = [3f64.sin(), 3f64.cos(), -(5f64.sin()), 5f64.cos()];
    y.iter().zip(want).for_each(|(got, want)| assert!((f64::from(*got) - want).abs() < 1e-7, "{got} {want}"));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let folder = folder();
    let rope = example(folder.path(), "rope");
    write_op(folder.path(), "rope.json", &rope);
    let mut unknown = rope.clone();
    unknown["stat"] = 3.into();
    write_op(folder.path(), "unknown.json", &unknown);
    let mut wrong = rope.clone();
    wrong["spec"]["base"] = "big".into();
    let text = format!("{{\n\"op\": \"rope\",\n\"spec\": {{\n\n{}}}", &wrong["spec"].to_string()[1..]);
    fs::write(folder.path().join("wrong.json"), text).expect("a file");
    write_op(folder.path(), "unnamed.json", &serde_json::json!({"spec": {}}));
    fs::write(folder.path().join("broken.json"), "{\n\"op\": \"rope\",\n").expect("a file");
    write_op(folder.path(), "other.json", &serde_json::json!({"op": "ropes"}));
    write_op(folder.path(), "merge.json", &example(folder.path(), "merge"));
    npy(folder.path(), "x.npy", &[2, 1, 64], &[0.5; 128]);
    npy(folder.path(), "narrow.npy", &[2, 1, 8], &[0.5; 16]);
    npy(folder.path(), "four.npy", &[1, 2, 1, 64], &[0.5; 128]);
    for (op, input, error) in [
        (
            "rope.json",
            "narrow.npy",
            "rope.json on narrow.npy: narrow: the rotary part ends at channel 64 (64 from 0), a head has 8",
        ),
        (
            "rope.json",
            "four.npy",
            "rope.json on four.npy: four: four is [1, 2, 1, 64]: say whether its layout is bthd or bhtd",
        ),
        ("merge.json", "x.npy", "merge.json on x.npy: the input has no tensor \"a\", only x"),
        ("unknown.json", "x.npy", "unknown.json: stat in line 1: unknown field `stat`"),
        ("wrong.json", "x.npy", "wrong.json: spec.base in line 5: invalid type: string \"big\", expected f64"),
        ("unnamed.json", "x.npy", "unnamed.json: an operation is an object with its name as \"op\""),
        ("broken.json", "x.npy", "broken.json: EOF while parsing"),
        ("other.json", "x.npy", "other.json: unknown variant `ropes`, expected one of `rope`, `rope-grad`"),
    ] {
        let got = posenc(folder.path(), &["apply", op, "--in", input, "--out", "y.npy", "--device", "cpu"]).fails();
        assert!(got.starts_with(&format!("error: {error}")), "{got}");
        assert!(!folder.path().join("y.npy").exists());
    }
    let got =
        posenc(folder.path(), &["apply", "rope.json", "--in", "x.npy", "--out", "x.npy", "--device", "cpu"]).fails();
    assert_eq!(got, "error: x.npy is the input: write to another file\n");
    let got =
        posenc(folder.path(), &["apply", "rope.json", "--in", "x.npy", "--out", "y.npy", "--device", "tpu"]).fails();
    assert_eq!(got, "error: --device is \"tpu\", it must be auto, cpu, cuda or cuda:N\n");
}

/// What is no number is counted, not taken for a result within the bound.
#[test]
fn numbers_that_are_not_finite_are_counted() {
    let folder = folder();
    write_op(folder.path(), "rope.json", &example(folder.path(), "rope"));
    let mut x = [0.5; 192];
    (x[7], x[70]) = (f32::NAN, f32::INFINITY);
    npy(folder.path(), "x.npy", &[3, 1, 64], &x);
    let apply = ["apply", "rope.json", "--in", "x.npy", "--out", "y.npy", "--device", "cpu", "--check"];
    let text = posenc(folder.path(), &apply).ends(0);
    // Both channels of a pair.
    assert!(text.ends_with("; 4 are NaN or infinite where 4 must be\n"), "{text}");
}

/// Files of every kind that hold no tensors which the commands can use: one line names the file, and nothing is written.
#[test]
fn files_that_cannot_be_used_are_named_and_nothing_is_written() {
    let folder = folder();
    write_op(folder.path(), "rope.json", &example(folder.path(), "rope"));
    npy(folder.path(), "x.npy", &[3, 1, 64], &[0.5; 192]);
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let of_npy = |descr: &str, shape: &str, data: usize| {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape})}}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let lie = r#"{"x":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,16]}}"#;
    let overlap = r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"y":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#;
    for (name, bytes, error) in [
        ("empty.npy", Vec::new(), "empty.npy: it is too short for the header of .npy"),
        (
            "huge.npy",
            of_npy("<f4", "1099511627776, 1048576", 16),
            "huge.npy: elements need 4611686018427387904 bytes by the header",
        ),
        (
            "more.npy",
            of_npy("<f4", "1099511627776, 1099511627776", 16),
            "more.npy: the shape [1099511627776, 1099511627776] has more elements",
        ),
        ("bytes.npy", of_npy("|u1", "4", 4), "bytes.npy: tensor \"bytes\" is of type |u1 in NumPy, read are F64"),
        (
            "whole.npy",
            of_npy("<i8", "3, 1, 64", 1536),
            "rope.json on whole.npy: the input has no tensor to rotate, only whole",
        ),
        ("empty.safetensors", Vec::new(), "empty.safetensors: the file has 0 bytes, safetensors begin with 8"),
        (
            "none.safetensors",
            header("{}", 0),
            "rope.json on none.safetensors: the input has no tensor to rotate, only none",
        ),
        (
            "lie.safetensors",
            header(lie, 16),
            "lie.safetensors: the header is not that of safetensors: overflow computing",
        ),
        (
            "overlap.safetensors",
            header(overlap, 24),
            "overlap.safetensors: the header is not that of safetensors: invalid offset",
        ),
    ] {
        fs::write(folder.path().join(name), bytes).expect("a file");
        let apply = ["apply", "rope.json", "--in", name, "--out", "y.safetensors", "--device", "cpu"];
        let got = posenc(folder.path(), &apply).fails();
        assert!(got.starts_with(&format!("error: {error}")) && got.lines().count() == 1, "{name}: {got}");
        assert!(!folder.path().join("y.safetensors").exists(), "{name}");
    }
    let error = posenc(folder.path(), &["diff", "none.safetensors", "none.safetensors"]).fails();
    assert_eq!(error, "error: none.safetensors holds no tensor\n");
    let before = fs::read_dir(folder.path()).expect("a folder").count();
    let apply = |out: &str| {
        posenc(folder.path(), &["apply", "rope.json", "--in", "x.npy", "--out", out, "--device", "cpu"]).fails()
    };
    assert_eq!(apply("y.txt"), "error: y.txt ends in neither .safetensors nor .npy\n");
    assert!(apply("nowhere/y.npy").starts_with("error: cannot write nowhere/y.npy: "));
    assert_eq!(apply("./x.npy"), "error: ./x.npy is the input: write to another file\n");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("x.npy"), folder.path().join("link.npy")).expect("a link");
        assert_eq!(apply("link.npy"), "error: link.npy is the input: write to another file\n");
        fs::remove_file(folder.path().join("link.npy")).expect("the link");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), before, "no partial file is left");
}

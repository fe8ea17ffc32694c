//! `posenc diff`.

mod support;

use support::{example, npy, posenc, write_op};

#[test]
fn equal_tensors_end_with_0_and_different_ones_with_1_and_the_worst_element() {
    let folder = tempfile::tempdir().expect("a folder");
    npy(folder.path(), "a.npy", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    npy(folder.path(), "b.npy", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.000_000_5]);
    let same = posenc(folder.path(), &["diff", "a.npy", "a.npy"]).ends(0);
    assert_eq!(same, "a [2, 3] f32: 6 elements, equal\n");
    let text = posenc(folder.path(), &["diff", "a.npy", "b.npy"]).ends(1);
    assert!(text.starts_with("a and b [2, 3] f32: 6 elements, 1 (16.667 %) differ, 1 (16.667 %) outside\n"), "{text}");
    assert!(text.contains("worst          [1, 2]: 6e0 and 6.000000476837158e0, 4.768e-7 apart, 1 ulps"), "{text}");
    for tolerance in [["--ulps", "1"], ["--atol", "1e-6"], ["--rtol", "1e-7"]] {
        let text = posenc(folder.path(), &["diff", "a.npy", "b.npy", tolerance[0], tolerance[1]]).ends(0);
        assert!(text.contains("differ, none outside"), "{text}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_counted_and_equal_themselves_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    npy(folder.path(), "a.npy", &[5], &[nan, inf, nan, -inf, 1.0]);
    npy(folder.path(), "b.npy", &[5], &[nan, inf, 2.0, inf, 1.0]);
    let text = posenc(folder.path(), &["diff", "a.npy", "b.npy", "--atol", "1e9"]).ends(1);
    assert!(text.contains("2 (40.000 %) outside"), "{text}");
    assert!(text.contains("NaN            2 in the first, 1 in the second"), "{text}");
    assert!(text.contains("infinite       2 in the first, 2 in the second"), "{text}");
    assert!(text.contains("not the same   from [2] on: NaN and 2"), "{text}");
    posenc(folder.path(), &["diff", "a.npy", "a.npy"]).ends(0);
}

#[test]
fn json_has_the_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    npy(folder.path(), "a.npy", &[2], &[1.0, 2.0]);
    npy(folder.path(), "b.npy", &[2], &[1.0, 2.5]);
    let text = posenc(folder.path(), &["diff", "a.npy", "b.npy", "--json"]).ends(1);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json[0]["outside"], 1);
    assert_eq!(json[0]["farthest"]["index"], serde_json::json!([1]));
    assert_eq!(json[0]["farthest"]["distance"], 0.5);
}

#[test]
fn the_difference_is_a_tensor_and_no_input_is_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    npy(folder.path(), "a.npy", &[2], &[1.0, 2.0]);
    npy(folder.path(), "b.npy", &[2], &[1.0, 2.5]);
    posenc(folder.path(), &["diff", "a.npy", "b.npy", "--out", "d.safetensors"]).ends(1);
    npy(folder.path(), "want.npy", &[2], &[0.0, -0.5]);
    posenc(folder.path(), &["diff", "d.safetensors", "want.npy"]).ends(0);
    let text = posenc(folder.path(), &["diff", "a.npy", "b.npy", "--out", "b.npy"]).fails();
    assert_eq!(text, "error: b.npy is the input: write to another file\n");
}

#[test]
fn bad_input_is_an_error_with_its_file_and_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = npy(folder.path(), "a.npy", &[2], &[1.0, 2.0]);
    npy(folder.path(), "b.npy", &[1, 2], &[1.0, 2.0]);
    let fails = |arguments: &[&str]| posenc(folder.path(), &[&["diff"], arguments].concat()).fails();
    assert_eq!(fails(&["a.npy", "b.npy"]), "error: tensor a and b has the shape [2] in a.npy and [1, 2] in b.npy\n");
    assert!(fails(&["a.npy", "c.npy"]).starts_with("error: cannot read c.npy: "));
    assert_eq!(fails(&["a.npy", "c.txt"]), "error: c.txt ends in neither .safetensors nor .npy\n");
    assert!(fails(&["a.npy", "a.npy", "--rtol=-1"]).contains("a tolerance is a finite number from 0 on"));
    let whole = std::fs::read(&path).expect("there");
    std::fs::write(&path, &whole[..whole.len() - 3]).expect("cut");
    let text = fails(&["a.npy", "b.npy"]);
    assert_eq!(text, "error: a.npy: elements need 8 bytes by the header, the file has 5: it is damaged or cut off\n");
}

/// The tolerance is the operation's own: two engines that are both right may differ, and each is judged by the reference.
#[test]
fn the_bound_of_an_operation_is_a_tolerance() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |arguments: &[&str]| posenc(folder.path(), arguments);
    let mut op = example(folder.path(), "rope");
    op["start"] = 1_000_000.into();
    write_op(folder.path(), "rope.json", &op);
    op["spec"]["angles"] = "HfCompat".into();
    write_op(folder.path(), "usual.json", &op);
    let x: Vec<f32> = (0..3 * 64).map(|i| (i as f32).cos()).collect();
    npy(folder.path(), "x.npy", &[3, 1, 64], &x);
    for name in ["rope", "usual"] {
        let (op, out) = (format!("{name}.json"), format!("{name}.npy"));
        of(&["apply", &op, "--in", "x.npy", "--out", &out, "--device", "cpu"]).ends(0);
    }
    let diff = |a: &str, b: &str| of(&["diff", a, b, "--bound", "rope.json", "--in", "x.npy"]);
    let text = diff("rope.npy", "rope.npy").ends(0);
    assert!(text.starts_with("rope [3, 1, 64] f32: 192 elements, equal\n"), "{text}");
    assert_eq!(text.matches("192 elements within the bound").count(), 2, "{text}");
    // Whichever of them is wrong, the same elements are outside, and `apply --against` counts as many.
    let [ours, theirs] = [diff("rope.npy", "usual.npy").ends(1), diff("usual.npy", "rope.npy").ends(1)];
    let outside = |text: &str| text.lines().next().and_then(|line| line.rsplit(", ").next().map(String::from));
    assert_eq!(outside(&ours), outside(&theirs));
    let against = of(&["apply", "rope.json", "--in", "x.npy", "--against", "usual.npy"]).ends(1);
    let count = |text: &str| {
        text.split(" of 192 elements OUTSIDE").next().and_then(|it| it.rsplit(' ').next().map(String::from))
    };
    assert_eq!(count(&against), count(&ours));
    assert!(
        outside(&ours).is_some_and(|it| it.starts_with(&format!("{} (", count(&ours).expect("a count")))),
        "{ours}"
    );
    // The same wrong numbers twice are equal and outside.
    let text = diff("usual.npy", "usual.npy").ends(1);
    assert!(text.contains("192 elements, equal, "), "{text}");

    let json = of(&["diff", "rope.npy", "usual.npy", "--bound", "rope.json", "--in", "x.npy", "--json"]).ends(1);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["bound"][0]["outside"], 0);
    assert_eq!(json[0]["bound"][1]["outside"], json[0]["outside"]);
    // Bounds depend on what the operation read.
    let error = of(&["diff", "rope.npy", "usual.npy", "--bound", "rope.json"]).fails();
    assert_eq!(error, "error: rope.json on no input: the input has no tensor to rotate, only none\n");
    let error = of(&["diff", "rope.npy", "usual.npy", "--bound", "rope.json", "--in", "x.npy", "--atol", "1"]).fails();
    assert!(error.contains("cannot be used with"), "{error}");
    // A grid that is written reads nothing.
    write_op(folder.path(), "grid.json", &example(folder.path(), "grid"));
    of(&["apply", "grid.json", "--out", "grid.npy", "--device", "cpu"]).ends(0);
    let text = of(&["diff", "grid.npy", "grid.npy", "--bound", "grid.json"]).ends(0);
    assert_eq!(text.matches("elements within the bound").count(), 2, "{text}");
}

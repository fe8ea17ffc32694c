//! `posenc plot`: pictures are checked by their data.

mod support;

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use support::{npy, posenc};

/// Rows of a picture's data: a value for each place.
type Rows = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws, and returns what was printed and the rows of the data.
#[track_caller]
fn plot(folder: &Path, arguments: &[&str]) -> (String, Rows) {
    let text = posenc(folder, &[&["plot"], arguments, &["-o", "p.svg", "--data", "p.csv"]].concat()).ends(0);
    let svg = fs::read_to_string(folder.join("p.svg")).expect("a picture");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains("<path ") && !svg.contains("NaN"), "{svg}");
    let mut reader = csv::Reader::from_path(folder.join("p.csv")).expect("data");
    assert_eq!(reader.headers().expect("a header"), ["panel", "row", "x", "value"].as_slice());
    let mut rows = Rows::new();
    for record in reader.records() {
        let record = record.expect("a row");
        let number = |cell: &str| cell.parse().unwrap_or_else(|_| panic!("{cell:?}"));
        let name = format!("{}/{}", &record[0], &record[1]);
        rows.entry(name).or_default().push((number(&record[2]), number(&record[3])));
    }
    (text, rows)
}

#[track_caller]
fn near(got: f64, want: f64, error: f64) {
    assert!((got - want).abs() <= error, "{got} is not {want}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Llama 2, and Llama 3.1 with the scaling that its config has.
fn configs(folder: &Path) {
    let llama2 = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "max_position_embeddings": 4096, "rope_theta": 10000.0}"#;
    let llama3 = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
    fs::write(folder.join("llama2.json"), llama2).expect("a config");
    fs::write(folder.join("llama3.json"), llama3).expect("a config");
}

#[test]
fn a_sinusoidal_table_has_its_values() {
    let folder = folder();
    let (_, rows) = plot(folder.path(), &["sinusoid", "--dim", "8", "--positions", "16"]);
    assert_eq!(rows.len(), 8);
    for (channel, wave) in [(0, f64::sin as fn(f64) -> f64), (1, f64::cos), (4, f64::sin), (7, f64::cos)] {
        let frequency = 1e4f64.powf(-f64::from(channel / 2) / 4.0);
        let row = &rows[&format!("1/{channel}")];
        assert_eq!(row.len(), 16);
        row.iter().for_each(|&(position, value)| near(value, wave(position * frequency), 1e-12));
    }
}

#[test]
fn rotations_are_those_of_numbers_and_of_a_config() {
    let folder = folder();
    configs(folder.path());
    let (_, rows) = plot(folder.path(), &["rope", "16,10000", "--positions", "32"]);
    assert_eq!((rows.len(), rows["1/3"].len()), (8, 32));
    near(rows["1/3"][17].1, (17.0 * 1e4f64.powf(-6.0 / 16.0)).cos(), 1e-12);

    let (text, rows) = plot(folder.path(), &["wavelengths", "llama2.json", "128,10000", "--seq-len", "8192"]);
    // As "Scaling laws of RoPE" and YaRN count the pairs whose wavelength exceeds the training.
    assert!(text.contains("llama: 18 of 64 pairs turn less than once in 4096 positions"), "{text}");
    assert_eq!(rows["1/llama"], rows["1/base 10000"]);
    near(rows["1/llama"][32].1, TAU * 100.0, 1e-9);
    assert_eq!(rows["1/trained: 4096"], [(0.0, 4096.0), (63.0, 4096.0)]);
    assert_eq!(rows["1/call: 8192"], [(0.0, 8192.0), (63.0, 8192.0)]);

    let (_, rows) = plot(folder.path(), &["wavelengths", "llama3.json", "--scaling", "none", "--scaling", "linear=8"]);
    let ratio = |pair: usize| rows["1/llama"][pair].1 / rows["1/none"][pair].1;
    near(ratio(0), 1.0, 1e-12);
    near(ratio(63), 8.0, 1e-12);
    rows["1/linear=8"].iter().zip(&rows["1/none"]).for_each(|(scaled, plain)| near(scaled.1 / plain.1, 8.0, 1e-12));
}

#[test]
fn decay_is_the_mean_cosine_and_says_where_it_turns_negative() {
    let folder = folder();
    configs(folder.path());
    let arguments = ["decay", "llama2.json", "--scaling", "linear=4", "--scaling", "yarn=4", "--seq-len", "8192"];
    let (text, rows) = plot(folder.path(), &arguments);
    assert!(text.contains("llama: the mean cosine is below 0 at distance 1707 first"), "{text}");
    near(rows["1/llama"][0].1, 0.97021, 1e-5);
    assert_eq!(rows["1/llama"][0].0, 1.0);
    // Far out YaRN's and linear's lowest frequencies are the same, and YaRN multiplies by its factor twice.
    let factor = (0.1 * 4f64.ln() + 1.0).powi(2);
    assert!(rows["1/yarn=4"][0].1 > factor * 0.9 && rows["1/linear=4"][0].1 < 1.0);
}

#[test]
fn coverage_counts_pairs_that_reach_unseen_angles() {
    let folder = folder();
    configs(folder.path());
    let arguments = ["coverage", "llama2.json", "--scaling", "linear=4", "--scaling", "yarn=4", "--seq-len", "16384"];
    let (text, rows) = plot(folder.path(), &arguments);
    assert!(text.contains("llama: at 16384 positions 18 of 64 pairs reach angles"), "{text}");
    assert!(text.contains("linear=4: at 16384 positions 0 of 64 pairs"), "{text}");
    let trained = &rows["1/in training: 4096 positions"];
    near(trained[0].1, 4096.0 / TAU, 1e-9);
    rows["1/linear=4, 16384 positions"]
        .iter()
        .zip(trained)
        .for_each(|(now, before)| near(now.1 / before.1, 1.0, 1e-12));
    rows["1/llama, 16384 positions"].iter().zip(trained).for_each(|(now, before)| near(now.1 / before.1, 4.0, 1e-12));
}

#[test]
fn accuracy_shows_what_the_readme_claims() {
    let folder = folder();
    let (text, rows) = plot(folder.path(), &["accuracy", "128,500000"]);
    assert!(text.contains("posenc: off by up to"), "{text}");
    assert!(rows["1/posenc"].iter().all(|row| row.1 <= 1e-7));
    let usual = |at: f64| rows["1/angles in f32"].iter().find(|row| row.0 == at).expect("a position").1;
    assert!((1e-3..2e-2).contains(&usual(131_072.0)) && usual((1u64 << 31) as f64) > 1.0);
    assert!(rows["1/a table in bf16"].iter().skip(8).all(|row| (1e-3..3e-3).contains(&row.1)));
}

#[test]
fn biases_have_their_laws() {
    let folder = folder();
    let kerple = r#"{"kerple": {"kind": "Power", "p": [0.5], "a": [2.0]}}"#;
    fs::write(folder.path().join("kerple.json"), kerple).expect("a spec");
    let fire = r#"{"fire": {"c": 0.1, "threshold": 512.0, "eps": 0.0, "in_weight": [1.0], "in_bias": [0.0],
        "out_weight": [-3.0], "out_bias": [0.5]}}"#;
    fs::write(folder.path().join("fire.json"), fire).expect("a spec");
    let laws = ["bias", "alibi=2", "t5-causal=32,128", "kerple.json", "kerple-log=1,0.5", "fire.json", "sandwich=1"];
    let (_, rows) = plot(folder.path(), &[&laws[..], &["--distance", "1024"]].concat());
    let at = |name: &str, distance: f64| {
        let row = rows[&format!("1/{name}")].iter().find(|row| row.0 == distance);
        row.unwrap_or_else(|| panic!("{name} at {distance}")).1
    };
    assert_eq!((at("ALiBi head 0", 8.0), at("ALiBi head 1", 8.0)), (-0.5, -8.0 / 256.0));
    // T5's buckets of a decoder: 16 distances alone, then 19, 21, 24, ... 113.
    assert_eq!(
        [15.0, 16.0, 18.0, 19.0, 112.0, 113.0, 1024.0].map(|at_| at("T5", at_)),
        [15.0, 16.0, 16.0, 17.0, 30.0, 31.0, 31.0]
    );
    near(at("KERPLE power", 9.0), -6.0, 1e-6);
    near(at("KERPLE log", 6.0), -(4f64.ln()), 1e-6);
    near(at("FIRE", 1024.0), 0.5 - 3.0, 1e-6);
    near(at("Sandwich", 1.0), (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0).cos()).sum::<f64>() / 8.0, 1e-5);

    let (_, rows) = plot(folder.path(), &["matrix", "alibi=2", "--queries", "3", "--keys", "5", "--heads", "1"]);
    assert_eq!(rows["head 1/2"], [0, 1, 2, 3, 4].map(|key| (f64::from(key), -f64::from((2i32 - key).abs()) / 256.0)));
    assert_eq!(rows.len(), 3);
}

#[test]
fn a_window_s_table_is_laid_out_by_rows_and_columns() {
    let folder = folder();
    let table: Vec<f32> = (0..15 * 2).map(|i| i as f32).collect();
    npy(folder.path(), "table.npy", &[15, 2], &table);
    let (_, rows) = plot(folder.path(), &["table", "table.npy", "--window", "2,3", "--heads", "1"]);
    // Entry (dy + 1) * 5 + dx + 2 of head 1.
    assert_eq!(rows["head 1/0"], [-2.0, -1.0, 0.0, 1.0, 2.0].map(|dx| (dx, 2.0 * (5.0 + dx + 2.0) + 1.0)));
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["head 1/-1", "head 1/0", "head 1/1"]);
    let error = posenc(folder.path(), &["plot", "table", "table.npy", "--window", "2", "-o", "t.svg"]).fails();
    assert_eq!(error, "error: table.npy is [15, 2], a window of 2 x 2 has [9, heads]\n");
    assert!(!folder.path().join("t.svg").exists());
}

#[test]
fn attention_distance_is_by_layer_head_and_octave() {
    let folder = folder();
    // Head 0 looks at itself, head 1 at token 0 alone.
    let mut p = vec![0f32; 2 * 8 * 8];
    for query in 0..8 {
        p[query * 8 + query] = 1.0;
        p[64 + query * 8] = 1.0;
    }
    npy(folder.path(), "p.npy", &[2, 8, 8], &p);
    let (text, rows) = plot(folder.path(), &["attention", "p.npy", "--trained", "4"]);
    assert_eq!(rows["mean distance/0"], [(0.0, 0.0), (1.0, 3.5)]);
    assert!(text.contains("mean distance 1.8 tokens, 25.0 % of attention 4 tokens away or more"), "{text}");
    let bars = rows.iter().find(|(name, _)| name.starts_with("share")).expect("a histogram").1;
    // Distances 0 (all of head 0 and one query of head 1), 1, 2 to 3, 4 to 7.
    assert_eq!(bars[..4], [(0.5, 9.0 / 16.0), (1.0, 1.0 / 16.0), (2.0, 2.0 / 16.0), (4.0, 4.0 / 16.0)]);
    npy(folder.path(), "logits.npy", &[1, 1, 2], &[3.0, -1.0]);
    let error = posenc(folder.path(), &["plot", "attention", "logits.npy", "-o", "t.svg"]).fails();
    assert!(
        error.contains("query 0 of head 0 has attention that sums to 2.0000: probabilities after the softmax sum to 1"),
        "{error}"
    );
}

#[test]
fn loss_is_averaged_by_position() {
    let folder = folder();
    let (nan, losses) = (f32::NAN, [3.0, 2.0, 1.0, 9.0]);
    let other = [nan, 4.0, 3.0, 11.0];
    npy(folder.path(), "loss.npy", &[2, 4], &[losses, other].concat());
    let (text, rows) = plot(folder.path(), &["loss", "loss.npy", "--groups", "4", "--trained", "3"]);
    assert_eq!(rows["1/loss"], [(0.0, 3.0), (1.0, 3.0), (2.0, 2.0), (3.0, 10.0)]);
    assert!(text.contains("loss: 1 tokens without a loss (NaN) are left out"), "{text}");
    assert!(text.contains("loss: mean loss 2.6667 within 3 positions, 10.0000 beyond them"), "{text}");
    fs::write(folder.path().join("b.csv"), "position,loss\n0,1\n1,3\n2,x\n").expect("a file");
    let error = posenc(folder.path(), &["plot", "loss", "b.csv", "-o", "t.svg"]).fails();
    assert!(error.contains("b.csv, line 4: loss is \"x\", which is no number"), "{error}");
}

#[test]
fn runs_of_a_sweep_share_an_axis() {
    let folder = folder();
    fs::write(
        folder.path().join("runs.csv"),
        "run,length,loss\nalibi,1024,2.0\nrope,512,2.5\nalibi,512,2.1\nrope,1024,7\n",
    )
    .expect("a file");
    fs::write(folder.path().join("t5.csv"), "length,loss\n512,2.2\n").expect("a file");
    let (text, rows) = plot(folder.path(), &["sweep", "runs.csv", "t5.csv", "--trained", "512", "--log"]);
    assert_eq!(rows["1/alibi"], [(512.0, 2.1), (1024.0, 2.0)]);
    assert_eq!(rows["1/t5"], [(512.0, 2.2)]);
    assert!(text.contains("rope: loss 2.5 at 512, 7 at 1024"), "{text}");
    let error = posenc(folder.path(), &["plot", "sweep", "t5.csv", "--column", "accuracy", "-o", "t.svg"]).fails();
    assert_eq!(error, "error: t5.csv has no column \"accuracy\", only length, loss\n");
    let error = posenc(folder.path(), &["plot", "sweep", "t5.csv", "--data", "t5.csv"]).fails();
    assert!(error.contains("is an input: write --data to another file"), "{error}");
}

/// Letters are in the picture although the program reads no font of the system.
#[test]
fn a_png_has_letters() {
    let folder = folder();
    posenc(folder.path(), &["plot", "bias", "alibi=4", "-o", "p.png"]).ends(0);
    let bytes = fs::read(folder.path().join("p.png")).expect("a picture");
    let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().expect("PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("pixels");
    assert_eq!((info.width, info.height), (860, 414));
    // The title: dark pixels above the chart.
    let dark = pixels[..860 * 3 * 30].chunks_exact(3).filter(|pixel| pixel[0] < 80).count();
    assert!((200..3000).contains(&dark), "{dark} dark pixels");
    // Grey alone.
    assert!(pixels.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
}

#[test]
fn what_cannot_be_drawn_is_refused_before_anything_is_written() {
    let folder = folder();
    configs(folder.path());
    for (arguments, error) in [
        (&["bias", "alibi=4"][..], "nothing to write: say -o FILE.svg, -o FILE.png or --data FILE.csv"),
        (&["bias", "alibi=4", "-o", "t.pdf"], "t.pdf ends in neither .svg nor .png"),
        (
            &["bias", "alibi=16", "kerple-log=1,1", "--heads", "0,1,2,3,4,5,6,7,8,9,10", "-o", "t.svg"],
            "head 1 is asked for, there are 1",
        ),
        (
            &["bias", "alibi=16", "--heads", "0,1,2,3,4,5,6,7,8,9,10", "-o", "t.svg"],
            "11 lines, a picture has dashes and greys for 10: choose fewer",
        ),
        (&["coverage", "128,10000", "-o", "t.svg"], "say --trained, the positions of the training"),
        (
            &["decay", "llama2.json", "--scaling", "warp=2", "-o", "t.svg"],
            "--scaling warp=2: not one of none, linear=F, ntk=F, dynamic=F, yarn=F, llama3=F",
        ),
        (&["rope", "7,10000", "-o", "t.svg"], "7,10000: rotary is 7, it must be even and at least 2"),
        (&["accuracy", "llama2.json", "llama3.json", "-o", "t.svg"], "this picture shows one rotation, 2 are given"),
    ] {
        let got = posenc(folder.path(), &[&["plot"], arguments].concat()).fails();
        assert_eq!(got, format!("error: {error}\n"), "{arguments:?}");
        assert!(!folder.path().join("t.svg").exists());
    }
}

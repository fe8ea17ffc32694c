//! Scores of whole layers against public implementations, tests/golden/content.json; and as a sum of terms.

use posenc::accuracy::assert_close;
use posenc::bias::{Distances, Numbers, Outside, Relative, RelativeLayer, Segments, Sign, Term, TermInputs, Terms};
use posenc::{Bias, Logits, Places};

use crate::biases::{Context, Host};
use crate::cases::{Case, content};

/// Scores of a layer, and the same by the softmax's law from products of queries and keys and a bias of terms.
fn check(
    case: &Case,
    layer: &RelativeLayer,
    q: &[f32],
    k: &[f32],
    shape: &Logits,
    places: &Host,
    wanted: impl Fn(usize) -> bool,
) {
    let _context = Context(|| case.name().to_string());
    let want = case.f64s("scores");
    let got = layer.scores(q, k, shape, places).unwrap();
    let largest = want.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    let (mut all, mut wants) = (Vec::new(), Vec::new());
    for (_, (got, want)) in got.iter().zip(&want).enumerate().filter(|(index, _)| wanted(*index)) {
        all.push(*got as f32);
        wants.push(*want);
    }
    assert!(!all.is_empty());
    assert_close(&all, &wants, |_| 2e-6 * largest);

    // Terms take the products that an engine makes.
    if layer.segments.is_some() || layer.softcap.is_some() || layer.query_scale.is_some() {
        return;
    }
    let plain = RelativeLayer { queries: None, keys: None, ..layer.clone() };
    let content = plain.scores(q, k, shape, places).unwrap();
    let mut terms = Vec::new();
    let mut products = Vec::new();
    let Logits { batch, heads, queries, keys, .. } = *shape;
    for (relative, rows, states) in [(&layer.queries, queries, q), (&layer.keys, keys, k)] {
        let Some(relative) = relative else { continue };
        let width = relative.states.map_or(layer.dim, |states| states.len() / (batch * heads * rows));
        let of = relative.products(states, [batch, heads, rows, width]).unwrap();
        products.push((
            of.iter().map(|x| *x as f32).collect::<Vec<_>>(),
            Numbers::rows(batch, heads, rows, relative.index.entries),
        ));
        let term = if terms.is_empty() && layer.queries.is_some() { Term::queries } else { Term::keys };
        terms.push(Term { factor: relative.scale as f32, ..term(relative.index.clone()) });
    }
    let inputs: Vec<TermInputs> =
        products.iter().map(|(values, shape)| TermInputs::of((&values[..], *shape))).collect();
    let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs }).expect(shape, places).unwrap();
    let inside = (0..got.len()).filter(|&index| wanted(index));
    let (sums, got): (Vec<f32>, Vec<f64>) = inside.map(|i| ((content[i] + bias.want[i]) as f32, got[i])).unzip();
    assert_close(&sums, &got, |_| 2e-6 * largest);
}

struct Sizes {
    shape: Logits,
    dim: usize,
    scale: f64,
}

fn sizes(case: &Case) -> Sizes {
    let of = |name: &str| if case.has(name) { case.size(name) } else { case.size("tokens") };
    let dim = case.size("dim");
    let shape = Logits::bhqk(case.size("batch"), case.size("heads"), of("queries"), of("keys"));
    Sizes { shape, dim, scale: 1.0 / (dim as f64).sqrt() }
}

fn all(_: usize) -> bool {
    true
}

#[test]
fn shaw_is_that_of_speecht5_wav2vec2_bert_vits_and_bert() {
    let mut seen = 0;
    for case in content() {
        let name = case.name();
        let index = match name {
            "speecht5" => Distances::speecht5(case.size("reach")),
            "wav2vec2_bert" => Distances::shaw(case.size("left"), case.size("right")),
            "vits_9" | "vits_3" => Distances::vits(case.size("window")),
            _ if name.starts_with("bert_relative") => Distances::bert(case.size("reach")),
            _ => continue,
        };
        seen += 1;
        let Sizes { shape, dim, scale } = sizes(&case);
        let table = case.f32s(if case.has("table") { "table" } else { "table_k" });
        let relative = Relative::new(index, &table, scale);
        let keys = (name == "bert_relative_key_query").then(|| relative.clone());
        let layer = RelativeLayer { queries: Some(relative), keys, ..RelativeLayer::new(dim, scale) };
        check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &Host::bottom_right(), all);
    }
    assert_eq!(seen, 7);
}

#[test]
fn granite_speech_is_shaw_in_blocks() {
    let case = content().into_iter().find(|case| case.name() == "granite_speech").unwrap();
    let Sizes { shape, dim, scale } = sizes(&case);
    let (table, reach, context) = (case.f32s("table"), case.size("reach"), case.size("context"));
    let index = Distances::new(Sign::QueryMinusKey, -(reach as i64), 2 * reach + 1);
    let layer = RelativeLayer { queries: Some(Relative::new(index, &table, scale)), ..RelativeLayer::new(dim, scale) };
    let firsts: Vec<i32> =
        (0..=shape.keys.div_ceil(context)).map(|block| (block * context).min(shape.keys) as i32).collect();
    let places = Places::packed(&firsts[..], &firsts, firsts.len() - 1);
    let allowed = case.ints("allowed");
    // Blocks are packed sequences: what they allow is what meets.
    let in_block = |i: usize| i / shape.keys % shape.queries / context == i % shape.keys / context;
    assert!((0..allowed.len()).all(|i| (allowed[i] == 1) == in_block(i)));
    check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &places, in_block);
}

#[test]
fn conformers_and_transformer_xl_shift_by_index() {
    let mut seen = 0;
    for case in content() {
        let name = case.name();
        if !case.has("u_bias") || case.has("segment_table") {
            continue;
        }
        seen += 1;
        let Sizes { shape, dim, scale } = sizes(&case);
        let index = if name.starts_with("transfo_xl") {
            Distances::transformer_xl(shape.keys)
        } else {
            Distances::conformer(shape.keys)
        };
        let (r, u, v) = (case.f32s("r"), case.f32s("u_bias"), case.f32s("v_bias"));
        let relative = Relative { heads: shape.heads, bias: Some(&v), ..Relative::new(index, &r, scale) };
        let layer = RelativeLayer { content_bias: Some(&u), queries: Some(relative), ..RelativeLayer::new(dim, scale) };
        let valid = case.has("valid").then(|| case.ints("valid"));
        let wanted = |i: usize| valid.as_ref().is_none_or(|valid| valid[i % valid.len()] == 1);
        check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &Host::bottom_right(), wanted);
    }
    assert_eq!(seen, 8);
}

#[test]
fn xlnet_has_both_directions_and_segments() {
    let mut seen = 0;
    for case in content().into_iter().filter(|case| case.name().starts_with("xlnet")) {
        seen += 1;
        let Sizes { shape, dim, scale } = sizes(&case);
        let index = if case.name() == "xlnet_uni" {
            Distances {
                outside: Outside::Zero,
                ..Distances::new(Sign::KeyMinusQuery, -(shape.keys as i64), shape.keys + 1)
            }
        } else {
            Distances::xlnet(shape.queries, shape.keys)
        };
        let (r, u, v) = (case.f32s("r"), case.f32s("u_bias"), case.f32s("v_bias"));
        let (table, bias, keys) = (case.f32s("segment_table"), case.f32s("w_bias"), case.i32s("segments"));
        let queries: Vec<i32> =
            keys.chunks(shape.keys).flat_map(|row| &row[shape.keys - shape.queries..]).copied().collect();
        // The table of the file has rows behind those of one direction.
        let rows = r.len() / (shape.batch * shape.heads * dim);
        let own: Vec<f32> = r
            .chunks(rows * shape.heads * dim)
            .flat_map(|table| &table[..index.entries * shape.heads * dim])
            .copied()
            .collect();
        let relative =
            Relative { batch: shape.batch, heads: shape.heads, bias: Some(&v), ..Relative::new(index, &own, scale) };
        let layer = RelativeLayer {
            content_bias: Some(&u),
            queries: Some(relative),
            segments: Some(Segments { table: &table, bias: &bias, queries: &queries, keys: &keys }),
            ..RelativeLayer::new(dim, scale)
        };
        let valid = case.ints("valid");
        let wanted = |i: usize| valid[i % valid.len()] == 1;
        check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &Host::bottom_right(), wanted);
    }
    assert_eq!(seen, 4);
}

#[test]
fn deberta_has_one_index_for_both_terms() {
    let mut seen = 0;
    for case in content().into_iter().filter(|case| case.name().starts_with("deberta")) {
        seen += 1;
        let Sizes { shape, dim, .. } = sizes(&case);
        let index = if case.has("buckets") && case.number("buckets") > 0.0 {
            Distances::deberta(case.size("buckets"), case.size("reach")).unwrap()
        } else {
            Distances::deberta_v1(case.size("span"))
        };
        let terms = ["kr", "qr"].iter().filter(|name| case.has(name)).count();
        let scale = 1.0 / (dim as f64 * (1 + terms) as f64).sqrt();
        let [kr, qr] = ["kr", "qr"].map(|name| case.has(name).then(|| case.f32s(name)));
        let relative =
            |table: &'static [f32]| Relative { heads: shape.heads, ..Relative::new(index.clone(), table, scale) };
        let layer = RelativeLayer {
            queries: kr.map(|table| relative(table.leak())),
            keys: qr.map(|table| relative(table.leak())),
            ..RelativeLayer::new(dim, scale)
        };
        check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &Host::counted(0, 0), all);
    }
    assert_eq!(seen, 7);
}

#[test]
fn log_buckets_are_those_of_deberta() {
    for case in content().into_iter().filter(|case| case.name().starts_with("log_buckets")) {
        let (buckets, reach) = (case.size("buckets"), case.size("reach"));
        let deberta = Distances::deberta(buckets, reach).unwrap();
        let mut distance = case.number("first") as i64;
        for run in case.ints("runs").chunks(2) {
            for _ in 0..run[1] {
                let want = (run[0] + buckets as i64).clamp(0, 2 * buckets as i64 - 1) as usize;
                assert_eq!(deberta.entry(distance, 0), Some(want), "{buckets} {reach} {distance}");
                distance += 1;
            }
        }
        assert_eq!(distance, 701);
    }
}

#[test]
fn inkling_is_a_band_of_states_of_its_own() {
    let mut seen = 0;
    for case in content().into_iter().filter(|case| case.name().starts_with("inkling") && case.has("scores")) {
        seen += 1;
        let Sizes { shape, dim, scale } = sizes(&case);
        let (width, extent, second) = (case.size("width"), case.size("extent"), case.name().starts_with("inkling2"));
        let states = case.swapped("r", [1, shape.queries, shape.heads, width]);
        let table = case.swapped("w", [1, width, extent, 1]);
        let relative = Relative { states: Some(&states), ..Relative::new(Distances::inkling(extent), &table, 1.0) };
        let tau = case.f32s("tau");
        let layer = RelativeLayer {
            queries: Some(relative),
            // Inkling 2 has tau in queries and states already.
            query_scale: (!second).then_some(&tau[..]),
            ..RelativeLayer::new(dim, if second { scale } else { 1.0 / dim as f64 })
        };
        let causal = |i: usize| i % shape.keys <= i / shape.keys % shape.queries;
        let wanted = |i: usize| !second || causal(i);
        check(&case, &layer, &case.f32s("q"), &case.f32s("k"), &shape, &Host::counted(0, 0), wanted);
    }
    assert_eq!(seen, 5);
    let case = content().into_iter().find(|case| case.name() == "inkling_cache").unwrap();
    let (heads, width, extent) = (case.size("heads"), case.size("width"), case.size("extent"));
    let (queries, keys) = (case.size("queries"), case.size("keys"));
    let states = case.swapped("r", [1, queries, heads, width]);
    let table = case.swapped("w", [1, width, extent, 1]);
    let relative = Relative::new(Distances::inkling(extent), &table, 1.0);
    let products: Vec<f32> =
        relative.products(&states, [1, heads, queries, width]).unwrap().iter().map(|x| *x as f32).collect();
    let inputs = [TermInputs::of((&products[..], Numbers::rows(1, heads, queries, extent)))];
    let terms = [Term::queries(Distances::inkling(extent))];
    let places = Host::counted(case.size("first_query") as i64, case.size("first_key") as i64);
    let mut got = vec![0.0f32; heads * queries * keys];
    let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs });
    bias.write(&mut got, &Logits::bhqk(1, heads, queries, keys), &places).unwrap();
    let want = case.f64s("bias");
    assert_close(&got, &want, |_| 1e-6);
}

#[test]
fn the_audio_encoders_of_gemma_are_a_band() {
    let mut seen = 0;
    for case in content().into_iter().filter(|case| case.name().starts_with("gemma")) {
        seen += 1;
        let Sizes { shape, dim, scale } = sizes(&case);
        let ln2 = std::f64::consts::LN_2;
        let by_channel: Vec<f64> = case.f64s("per_dim_scale").iter().map(|x| x.exp().ln_1p() / ln2 * scale).collect();
        let q: Vec<f32> = case.f64s("q").iter().enumerate().map(|(i, x)| (x * by_channel[i % dim]) as f32).collect();
        let by_key = if case.name() == "gemma4" { 1f64.exp().ln_1p() / ln2 } else { 1.0 };
        let k: Vec<f32> = case.f64s("k").iter().map(|x| (x * by_key) as f32).collect();
        let (r, cap) = (case.f32s("r"), case.number("cap"));
        let index = Distances::gemma_audio(case.size("past"), case.size("right"));
        let relative = Relative { heads: shape.heads, ..Relative::new(index, &r, 1.0) };
        let layer = RelativeLayer { queries: Some(relative), softcap: Some(cap), ..RelativeLayer::new(dim, 1.0) };
        let allowed = case.ints("allowed");
        check(&case, &layer, &q, &k, &shape, &Host::counted(0, 0), |i| allowed[i % allowed.len()] == 1);
    }
    assert_eq!(seen, 3);
}

#[test]
fn tables_by_distance_are_those_of_phi4_audio() {
    for case in content().into_iter().filter(|case| case.name().starts_with("phi4_audio")) {
        let (heads, tokens, reach) = (case.size("heads"), case.size("tokens"), case.size("reach"));
        let symmetric = case.name().ends_with("symmetric");
        let (first, count) = (-(reach as i64), 2 * reach);
        let lookup = if symmetric {
            (first..=-first).map(|d| d.unsigned_abs().min(reach as u64 - 1) as u16).collect()
        } else {
            Vec::new()
        };
        let entries = if symmetric { reach } else { count };
        let count = if symmetric { count + 1 } else { count };
        let index = Distances { lookup, entries, ..Distances::new(Sign::KeyMinusQuery, first, count) };
        let table = case.f32s("table");
        let inputs = [TermInputs::of((&table[..], Numbers::table(entries, heads)))];
        let mut got = vec![0.0f32; heads * tokens * tokens];
        let bias = Bias::Terms(Terms { terms: &[Term::table(index)], inputs: &inputs });
        bias.write(&mut got, &Logits::bhqk(1, heads, tokens, tokens), &Host::counted(0, 0)).unwrap();
        assert_eq!(got, case.f32s("bias"), "{}", case.name());
    }
}

#[test]
fn endpoints_are_those_of_the_forgetting_transformer() {
    let case = content().into_iter().find(|case| case.name() == "forget_causal").unwrap();
    let (batch, heads, tokens) = (case.size("batch"), case.size("heads"), case.size("tokens"));
    let f = case.f64s("f");
    // Sums of logarithms of gates as two floats, [2, batch, heads, tokens].
    let mut sums = vec![0.0f32; 2 * batch * heads * tokens];
    for row in 0..batch * heads {
        let mut sum = 0.0f64;
        for token in 0..tokens {
            let x = f[(row / heads * tokens + token) * heads + row % heads];
            sum -= (-x).exp().ln_1p();
            sums[row * tokens + token] = sum as f32;
            sums[batch * heads * tokens + row * tokens + token] = (sum - f64::from(sum as f32)) as f32;
        }
    }
    let numbers = Numbers {
        strides: [heads * tokens, tokens, 1, batch * heads * tokens],
        ..Numbers::rows(batch, heads, tokens, 2)
    };
    let inputs = [TermInputs { key_numbers: Some((&sums[..], numbers)), ..TermInputs::of((&sums[..], numbers)) }];
    let mut got = vec![0.0f32; batch * heads * tokens * tokens];
    let bias = Bias::Terms(Terms { terms: &[Term::endpoints()], inputs: &inputs });
    bias.write(&mut got, &Logits::bhqk(batch, heads, tokens, tokens), &Host::counted(0, 0)).unwrap();
    let want = case.f64s("bias");
    assert_close(&got, &want, |i| 2e-7 * (1.0 + want[i].abs()));
}

#[test]
fn arrays_of_other_lengths_are_refused() {
    let shape = Logits::bhqk(1, 2, 3, 3);
    let table = [0.0f32; 3 * 4];
    let layer = RelativeLayer {
        queries: Some(Relative::new(Distances::shaw(1, 1), &table, 1.0)),
        ..RelativeLayer::new(4, 1.0)
    };
    let refused = |layer: &RelativeLayer, q: usize, k: usize| {
        let (q, k) = (vec![0.0; q], vec![0.0; k]);
        layer.scores(&q, &k, &shape, &Host::counted(0, 0)).unwrap_err().to_string()
    };
    assert_eq!(refused(&layer, 23, 24), "q holds 23 numbers, [1, 2, 3, 4] are 24");
    assert_eq!(refused(&layer, 24, 36), "k has 3 heads, they must divide the 2 of q");
    let wide =
        RelativeLayer { queries: Some(Relative { heads: 2, ..layer.queries.clone().unwrap() }), ..layer.clone() };
    assert_eq!(refused(&wide, 24, 24), "table holds 12 elements, the shape needs 24");
    let three =
        RelativeLayer { queries: Some(Relative { heads: 3, ..layer.queries.clone().unwrap() }), ..layer.clone() };
    assert_eq!(
        refused(&three, 24, 24),
        "a table of relative positions has 1 sequences and 3 heads, they must be 1 or 1 and 2 or 1"
    );
    let biased = RelativeLayer { content_bias: Some(&table[..7]), ..layer };
    assert_eq!(refused(&biased, 24, 24), "content_bias holds 7 numbers, [2, 4] are 8");
}

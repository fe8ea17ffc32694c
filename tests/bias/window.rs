//! Windows against the tables, indices, masks and biases of public implementations: tests/golden/window.json.

use posenc::accuracy::assert_close;
use posenc::bias::{
    Distances, Index, Indices, Numbers, ShiftedWindows, Sign, Term, TermInputs, Terms, Window, WindowAxes,
    decomposed_axis,
};
use posenc::{Bias, Logits, Places, T5Bias};

use crate::biases::Context;
use crate::cases::{Case, content, window};

/// The bias of terms for a batch of one, or of windows.
fn bias(terms: &[Term], inputs: &[TermInputs], shape: &Logits) -> Vec<f32> {
    let mut out = vec![0.0f32; shape.elements().unwrap()];
    Bias::Terms(Terms { terms, inputs }).write(&mut out, shape, &Places::counted(0, 0)).unwrap();
    out
}

/// A table through a window is the library's bias, and its entries are the library's index.
fn check(case: &Case, window: Window, numbers: Numbers) {
    window.check().unwrap();
    let (queries, keys) = (window.queries(), window.keys());
    if case.has("index") {
        let index: Vec<i64> = (0..queries * keys)
            .map(|i| window.entry((i / keys) as i64, (i % keys) as i64).map_or(-1, |entry| entry as i64))
            .collect();
        assert_eq!(index, case.ints("index"));
    }
    assert_eq!(window.entries(), numbers.entries);
    let table = case.f32s("table");
    let shape = Logits::bhqk(1, numbers.heads, queries, keys);
    let got = bias(&[Term::table(window)], &[TermInputs::of((&table[..], numbers))], &shape);
    assert_eq!(got, case.f32s("bias"));
}

#[test]
fn windows_are_those_of_the_libraries() {
    let mut seen = 0;
    for case in window() {
        let _context = Context(|| case.name().to_string());
        let name = case.name();
        let heads = if case.has("heads") { case.size("heads") } else { 0 };
        let (spec, by_head) = if name.starts_with("swin_table") {
            (Window::swin(case.pair("window")[0], case.pair("window")[1]), false)
        } else if name == "maxvit_3x2" {
            (Window::swin(3, 2), false)
        } else if name.starts_with("beit_timm") || name == "beit_3x3" || name == "data2vec_3x3" {
            (Window::beit(case.pair("window")[0], case.pair("window")[1]), false)
        } else if name.starts_with("maxvit_tf") {
            (Window::maxvit(case.pair("window")[0], case.pair("window")[1]), true)
        } else if name.contains("subsample") {
            (Window::levit(case.pair("keys")[0], case.pair("keys")[1], case.size("stride")), true)
        } else if name.contains("levit_") && !name.starts_with("resize") || name.starts_with("tiny_vit") {
            (Window::levit(case.pair("window")[0], case.pair("window")[1], 1), true)
        } else {
            continue;
        };
        seen += 1;
        let entries = spec.entries();
        check(&case, spec, if by_head { Numbers::by_head(heads, entries) } else { Numbers::table(entries, heads) });
    }
    assert_eq!(seen, 19);
}

#[test]
fn masks_of_shifted_windows_are_those_of_the_libraries() {
    for case in window().into_iter().filter(|case| case.name().starts_with("mask_")) {
        let _context = Context(|| case.name().to_string());
        let [height, width] = case.pair("size");
        let windows = ShiftedWindows { height, width, window: case.pair("window"), shift: case.pair("shift") };
        windows.check().unwrap();
        let tokens = windows.tokens();
        let shape = Logits::bhqk(windows.windows(), 1, tokens, tokens);
        let got = bias(&[Term::shifted(windows, -100.0)], &[TermInputs::default()], &shape);
        assert_eq!(got, case.f32s("mask"));
    }
}

#[test]
fn decomposed_positions_are_those_of_sam() {
    for case in window().into_iter().filter(|case| case.has("rows_height")) {
        let _context = Context(|| case.name().to_string());
        let ([qh, qw], [kh, kw]) = (case.pair("queries"), case.pair("keys"));
        let (heads, dim) = (case.size("heads"), case.size("dim"));
        // The engine's products of each query with the positions of its own coordinate.
        let q = case.f64s("q");
        let products = |name: &str, [queries, keys]: [usize; 2], coordinate: &dyn Fn(usize) -> usize| -> Vec<f32> {
            let positions = decomposed_axis(&case.f32s(name), dim, queries, keys).unwrap();
            let product = |i: usize| {
                let (query, key) = (i / keys, i % keys);
                let at = (coordinate(query % (qh * qw)) * keys + key) * dim;
                (0..dim).map(|c| q[query * dim + c] * f64::from(positions[at + c])).sum::<f64>() as f32
            };
            (0..heads * qh * qw * keys).map(product).collect()
        };
        let by_row = products("table_height", [qh, kh], &|query| query / qw);
        let by_column = products("table_width", [qw, kw], &|query| query % qw);
        let numbers = |entries| Numbers::rows(1, heads, qh * qw, entries);
        let terms = [WindowAxes::Rows, WindowAxes::Columns].map(|axes| Term::queries(Window::decomposed(kh, kw, axes)));
        // Queries of a grid of their own: the window of keys says nothing of them.
        let shape = Logits::bhqk(1, heads, qh * qw, kh * kw);
        let inputs = [TermInputs::of((&by_row[..], numbers(kh))), TermInputs::of((&by_column[..], numbers(kw)))];
        let got = bias(&terms, &inputs, &shape);
        let want = case.f64s("bias");
        assert_close(&got, &want, |i| 2e-6 * (1.0 + want[i].abs()));
    }
}

#[test]
fn boxes_are_those_of_layoutlmv2() {
    let case = window().into_iter().find(|case| case.name() == "layoutlmv2").unwrap();
    let (heads, tokens) = (case.size("heads"), case.size("tokens"));
    let axis = |spec: T5Bias| {
        let lookup = spec.lookup().unwrap();
        let (first, count) = (*spec.distances().start(), lookup.len());
        Term::table(Distances { lookup, entries: spec.buckets, ..Distances::new(Sign::KeyMinusQuery, first, count) })
    };
    let (x, y, positions) = (case.i32s("x"), case.i32s("y"), case.i32s("positions"));
    let tables = ["table", "table_x", "table_y"].map(|name| case.f32s(name));
    let inputs = |i: usize, entries: usize, at: &'static [i32]| TermInputs {
        query_at: Some(at),
        key_at: Some(at),
        ..TermInputs::of((&*tables[i].clone().leak(), Numbers::table(entries, heads)))
    };
    let shape = Logits::bhqk(1, heads, tokens, tokens);
    let [one, two] = [T5Bias::new(32, 128, true), T5Bias::new(64, 256, true)];
    let got = bias(&[axis(one)], &[inputs(0, 32, positions.leak())], &shape);
    assert_eq!(got, case.f32s("bias_1d"));
    let got = bias(&[axis(two), axis(two)], &[inputs(1, 64, x.leak()), inputs(2, 64, y.leak())], &shape);
    let want = case.f64s("bias_2d");
    assert_close(&got, &want, |i| 2e-7 * want[i].abs());
}

#[test]
fn given_indices_are_those_of_graphormer() {
    let case = content().into_iter().find(|case| case.name() == "graphormer").unwrap();
    let (heads, nodes, graphs) = (case.size("heads"), case.size("nodes"), case.size("graphs"));
    let (spatial, table) = (case.ints("spatial"), case.f32s("spatial_table"));
    // The node before the graph has rows of its own in the library; here its pairs get nothing.
    let tokens = nodes + 1;
    let mut ids = vec![-1i32; graphs * tokens * tokens];
    for (i, &id) in spatial.iter().enumerate() {
        let (graph, row, column) = (i / (nodes * nodes), i / nodes % nodes, i % nodes);
        ids[(graph * tokens + row + 1) * tokens + column + 1] = id as i32;
    }
    let term = Term::table(Index::Given { rows: tokens, columns: tokens, entries: table.len() / heads });
    let inputs = TermInputs {
        indices: Some(Indices::I32(&ids[..])),
        ..TermInputs::of((&table[..], Numbers::table(table.len() / heads, heads)))
    };
    let got = bias(&[term], &[inputs], &Logits::bhqk(graphs, heads, tokens, tokens));
    // What else the library adds.
    let (base, virtual_node, want) = (case.f64s("base"), case.f64s("virtual"), case.f64s("bias"));
    let (edges, edge_table, weights) = (case.ints("edges"), case.f64s("edge_table"), case.f64s("edge_weights"));
    let rest: Vec<f64> = (0..got.len())
        .map(|i| {
            let (graph, head, row, column) =
                (i / (heads * tokens * tokens), i / (tokens * tokens) % heads, i / tokens % tokens, i % tokens);
            let twice = 2.0 * base[(graph * tokens + row) * tokens + column];
            if row == 0 || column == 0 {
                return want[i] - twice - virtual_node[head];
            }
            let pair = (graph * nodes + row - 1) * nodes + column - 1;
            let hops = (spatial[pair] - 1).max(1).clamp(0, 2) as f64;
            let edge: f64 = (0..2)
                .map(|hop| {
                    (0..heads)
                        .map(|from| {
                            let mean: f64 = (0..2)
                                .map(|feature| {
                                    edge_table[edges[(pair * 3 + hop) * 2 + feature] as usize * heads + from] / 2.0
                                })
                                .sum();
                            mean * weights[(hop * heads + from) * heads + head]
                        })
                        .sum::<f64>()
                })
                .sum();
            want[i] - twice - edge / hops
        })
        .collect();
    assert_close(&got, &rest, |_| 2e-6);
}

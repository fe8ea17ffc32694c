use posenc::bias::{Coordinates, Numbers, TableResize, Window, decomposed_axis, decomposed_row};

use crate::biases::Context;
use crate::cases::{assert_near, case};

// -------------------------------------------------------------------------------------------------------------- values

/// A table `[entries, heads]` of a case against the library's.
fn check(name: &str, window: fn(usize, usize) -> Window, resize: TableResize, error: f64) {
    let _context = Context(|| name.into());
    let case = &case(name);
    let [height, width] = case.pair("window");
    let (window, heads) = (window(height, width), case.size("heads"));
    // f32 tables: those of the cases are held by it.
    let table: Vec<f32> = case.f64s("table").into_iter().map(|x| x as f32).collect();
    let numbers = Numbers::table(window.entries(), heads);
    let got = window.resize(&table, &numbers, case.pair("to"), resize).unwrap();
    let got: Vec<f64> = got.into_iter().map(f64::from).collect();
    assert_near(&got, &case.f64s("resized"), error);
}

#[test]
fn tables_are_resized_as_the_implementations_do() {
    check("resize_geometric_2x2_to_3x3", Window::beit, TableResize::Geometric, 2e-7);
    check("resize_geometric_3x3_to_4x5", Window::swin, TableResize::Geometric, 2e-7);
    // The axis of 4 keeps its size and is moved all the same.
    check("resize_geometric_3x4_to_5x4", Window::swin, TableResize::Geometric, 2e-7);
    check("resize_geometric_4x4_to_2x3", Window::swin, TableResize::Geometric, 2e-7);
    check("resize_simple_2x2_to_3x4", Window::beit, TableResize::Bicubic, 2e-7);
    check("resize_simple_4x4_to_2x3", Window::swin, TableResize::Bicubic, 2e-7);
    check("beit_resized_3x3_to_4x5", Window::beit, TableResize::Bilinear, 2e-7);
    // torch's antialiased weights are f32.
    let levit = |height, width| Window::levit(height, width, 1);
    check("resize_levit_3_to_5", levit, TableResize::BicubicAntialias, 1e-6);
    check("resize_levit_5_to_3", levit, TableResize::BicubicAntialias, 1e-6);
}

#[test]
fn a_table_by_head_is_read_by_its_strides() {
    let case = &case("resize_geometric_maxvit_tf");
    let ([height, width], heads) = (case.pair("window"), case.size("heads"));
    let window = Window::maxvit(height, width);
    let table: Vec<f32> = case.f64s("table").into_iter().map(|x| x as f32).collect();
    let to = case.pair("to");
    let numbers = Numbers::by_head(heads, window.entries());
    let got = window.resize(&table, &numbers, to, TableResize::Geometric).unwrap();
    // The result is [entries, heads], the library's [heads, rows, columns].
    let entries = got.len() / heads;
    let by_head: Vec<f64> = (0..heads)
        .flat_map(|head| (0..entries).map(move |entry| entry * heads + head))
        .map(|at| got[at].into())
        .collect();
    assert_near(&by_head, &case.f64s("resized"), 2e-7);
}

#[test]
fn decomposed_positions_are_those_of_the_implementations() {
    for name in [
        "decomposed_3x3_to_3x3_tables_5_5",
        "decomposed_2x4_to_2x4_tables_3_7",
        "decomposed_4x4_to_2x2_tables_7_7",
        "decomposed_2x3_to_4x6_tables_7_11",
        "decomposed_3x4_to_3x4_tables_9_3",
        "decomposed_5x2_to_3x2_tables_7_3",
    ] {
        let _context = Context(|| name.into());
        let case = &case(name);
        let (queries, keys, dim) = (case.pair("queries"), case.pair("keys"), case.size("dim"));
        let mut axes = Vec::new();
        for (axis, side) in ["height", "width"].into_iter().enumerate() {
            let (queries, keys) = (queries[axis], keys[axis]);
            let rows: Vec<f64> = (0..queries)
                .flat_map(|query| (0..keys).map(move |key| decomposed_row(query, key, queries, keys) as f64))
                .collect();
            assert_eq!(rows, case.f64s(&format!("rows_{side}")));
            let table: Vec<f32> = case.f64s(&format!("table_{side}")).into_iter().map(|x| x as f32).collect();
            let got = decomposed_axis(&table, dim, queries, keys).unwrap();
            let resized = case.f64s(&format!("resized_{side}"));
            let want: Vec<f64> =
                rows.iter().flat_map(|row| resized[*row as usize * dim..][..dim].iter().copied()).collect();
            let got: Vec<f64> = got.into_iter().map(f64::from).collect();
            assert_near(&got, &want, 2e-7);
            axes.push(got);
        }
        // And the bias, from products of queries and positions.
        let (q, bias) = (case.f64s("q"), case.f64s("bias"));
        let (tokens, all_keys) = (queries[0] * queries[1], keys[0] * keys[1]);
        for (index, want) in bias.iter().enumerate() {
            let (token, key) = (index / all_keys % tokens, index % all_keys);
            let q = &q[(index / all_keys) * dim..][..dim];
            let product = |axis: usize, query: usize, key: usize| -> f64 {
                let at = (query * keys[axis] + key) * dim;
                q.iter().zip(&axes[axis][at..at + dim]).map(|(q, r)| q * r).sum()
            };
            let got = product(0, token / queries[1], key / keys[1]) + product(1, token % queries[1], key % keys[1]);
            assert!((got - want).abs() < 2e-6, "{index}: {got} and {want}");
        }
    }
}

#[test]
fn rows_of_decomposed_positions_are_the_f32_of_the_libraries() {
    let case = &case("decomposed_rounding");
    let rows: Vec<f64> = (0..48).map(|at| decomposed_row(at / 6, at % 6, 8, 6) as f64).collect();
    assert_eq!(rows, case.f64s("rows_8_6"));
    let mut differing = Vec::new();
    for (queries, keys) in (1..=32).flat_map(|queries| (1..=32).map(move |keys| (queries, keys))) {
        let exact = |query: usize, key: usize| {
            let back = keys - 1 - key;
            if keys >= queries { query * keys / queries + back } else { query + back * queries / keys }
        };
        let pairs = (0..queries).flat_map(|query| (0..keys).map(move |key| (query, key)));
        let differs =
            pairs.filter(|&(query, key)| exact(query, key) != decomposed_row(query, key, queries, keys)).count();
        if differs > 0 {
            differing.extend([queries as f64, keys as f64, differs as f64]);
        }
    }
    assert_eq!(differing, case.f64s("differs"));
}

// ---------------------------------------------------------------------------------------------------------------- laws

const METHODS: [TableResize; 4] =
    [TableResize::Bilinear, TableResize::Bicubic, TableResize::BicubicAntialias, TableResize::Geometric];

#[test]
fn a_constant_table_stays_and_a_window_of_its_own_size_is_copied() {
    for resize in METHODS {
        let window = Window::beit(3, 2);
        let numbers = Numbers::table(window.entries(), 2);
        let constant = window.resize(&[1.5f32; 36], &numbers, [5, 4], resize).unwrap();
        assert_eq!(constant.len(), (9 * 7 + 3) * 2);
        assert!(constant.iter().all(|x| (x - 1.5).abs() < 1e-6), "{resize:?} {constant:?}");
        let table: Vec<f32> = (0..36).map(|x| x as f32).collect();
        assert_eq!(window.resize(&table, &numbers, [3, 2], resize).unwrap(), table);
        // To a window of one token, and back: one entry and those of the class token.
        let one = window.resize(&table, &numbers, [1, 1], resize).unwrap();
        assert_eq!(one.len(), 8);
        assert_eq!(one[2..], table[30..]);
        let back = Window::beit(1, 1).resize(&one, &Numbers::table(4, 2), [2, 2], resize).unwrap();
        assert!(back[..18].chunks(2).all(|entry| (entry[0] - one[0]).abs() < 1e-5), "{resize:?} {back:?}");
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_has_no_table_is_refused() {
    let swin = Window::swin(2, 2);
    let text = |window: Window, numbers: Numbers, to, resize| {
        window.resize(&[0.0f32; 18], &numbers, to, resize).unwrap_err().to_string()
    };
    let (numbers, to) = (Numbers::table(9, 2), [3, 3]);
    assert_eq!(
        text(swin, numbers, [0, 3], TableResize::Bicubic),
        "a window is 0 x 3 tokens with stride 1, all three must be at least 1"
    );
    assert_eq!(
        text(swin, Numbers::table(8, 2), to, TableResize::Bicubic),
        "the table is [1, 2, 1, 8], that of the window is [1, heads, 1, 9]"
    );
    assert_eq!(
        text(swin, Numbers::table(9, 3), to, TableResize::Bicubic),
        "the table holds 18 elements, the shape needs 27"
    );
    let levit = Window::levit(3, 3, 1);
    assert_eq!(
        text(levit, numbers, to, TableResize::Geometric),
        "geometric distances lie on both sides of 0, a table by sizes has one"
    );
    let key = Window { coordinates: Coordinates::Key, ..levit };
    assert_eq!(
        text(key, numbers, to, TableResize::Bilinear),
        "keys' own coordinates have no table to resize, their products are made anew"
    );
    assert_eq!(
        decomposed_axis(&[0.0f32; 5], 2, 3, 3).unwrap_err().to_string(),
        "a table of 5 elements in rows of 2 for 3 queries and 3 keys: rows must be whole, and none of these 0"
    );
}

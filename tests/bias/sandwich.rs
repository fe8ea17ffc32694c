use posenc::bias::Sandwich;

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn the_bias_is_an_inner_product_of_sinusoids() {
    // arXiv 2212.10356, its listing: the product of two sinusoidal embeddings, divided by 8 (head + 1) / heads.
    let (heads, width) = (12, 128);
    let sandwich = Sandwich { width, ..Sandwich::new(heads) };
    let embed = |position: f64| -> Vec<f64> {
        let angle = |i: usize| position / 10_000f64.powf(2.0 * i as f64 / width as f64);
        (0..width / 2).flat_map(|i| [angle(i).sin(), angle(i).cos()]).collect()
    };
    for (query, key) in [(0, 0), (5, 3), (100, 7), (4000, 1), (3, 9)] {
        let product: f64 = embed(f64::from(query)).iter().zip(embed(f64::from(key))).map(|(a, b)| a * b).sum();
        for head in 0..heads {
            let ratio = (head + 1) as f64 * 8.0 / heads as f64;
            let got = sandwich.bias(head, i64::from(key - query));
            assert!((got - product / ratio).abs() < 1e-9, "{got} {}", product / ratio);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn symmetric_largest_at_zero_and_sharded() {
    let whole = Sandwich { width: 32, ..Sandwich::new(71) };
    let row = whole.row(-500..=500).unwrap();
    for head in 0..71 {
        let shard = Sandwich { first: head, heads: 1, ..whole };
        for distance in 1..500 {
            assert_eq!(whole.bias(head, distance), whole.bias(head, -distance));
            assert!(whole.bias(head, distance) < whole.bias(head, 0));
            assert_eq!(row.bias(head, distance), f64::from(shard.bias(0, distance) as f32));
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    // Heads beyond a product of 64 bits.
    let most = Sandwich { first: usize::MAX - 1, heads: 1, ..Sandwich::new(usize::MAX) };
    assert_eq!((most.check().is_ok(), most.bias(0, 0)), (true, 8.0));
    let text = |spec: Sandwich| spec.check().unwrap_err().to_string();
    assert_eq!(
        text(Sandwich { first: 8, heads: 8, ..Sandwich::new(12) }),
        "Sandwich's shard of 8 heads from head 8 lies outside a model of 12 heads"
    );
    assert_eq!(text(Sandwich::new(0)), "total_heads is 0, it must be at least 1");
    assert_eq!(text(Sandwich { heads: 0, ..Sandwich::new(4) }), "heads is 0, it must be at least 1");
    assert_eq!(text(Sandwich { width: 7, ..Sandwich::new(12) }), "width is 7, it must be even and at least 2");
}

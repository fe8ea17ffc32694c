use posenc::{Alibi, Bias, DistanceGrad, Logits, Place, Places, Slopes, Toeplitz};

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn a_shard_or_chunk_is_the_slice_of_the_whole() {
    let (batch, heads, queries, keys) = (2, 6, 9, 11);
    let slopes = Alibi::new(heads).slopes().unwrap();
    let whole = Logits::bhqk(batch, heads, queries, keys);
    let start: Vec<f32> = crate::Numbers(2).take(whole.elements().unwrap(), 3.0);
    let mut want = start.clone();
    Bias::Slopes(&slopes).add(&mut want, &whole, &Places::from(2, 0)).unwrap();
    // Heads 2..5, queries 3..7, keys 4..9, in place inside the same buffer.
    let part = Logits { heads: 3, queries: 4, keys: 5, ..whole };
    let part = part.at(whole.index(0, 2, 3, 4));
    let shard = Alibi::new(heads).shard(2, 3).slopes().unwrap();
    let mut got = start.clone();
    Bias::Slopes(&shard).add(&mut got, &part, &Places::from(2 + 3, 4)).unwrap();
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..queries {
                for j in 0..keys {
                    let index = whole.index(b, h, i, j);
                    let inside = (2..5).contains(&h) && (3..7).contains(&i) && (4..9).contains(&j);
                    assert_eq!(got[index], if inside { want[index] } else { start[index] });
                }
            }
        }
    }
}

#[test]
fn places_agree() {
    let shape = Logits::bhqk(2, 1, 3, 5);
    let slopes = Slopes::symmetric(1, &[1.0]).unwrap();
    let write = |positions: Places<&[i32]>| {
        let mut out = [0.0f32; 30];
        Bias::Slopes(&slopes).write(&mut out, &shape, &positions).unwrap();
        out
    };
    let each: Places<&[i32]> = Places {
        queries: Place::Each(&[2, 3, 4, 2, 3, 4]),
        keys: Place::Each(&[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
        ..Places::from(0, 0)
    };
    assert_eq!(write(Places::last()), write(Places::from(2, 0)));
    assert_eq!(write(each), write(Places::from(2, 0)));
    // Two of three queries, three of five keys: the second query sits at the third key.
    let short = Places { query_lengths: Some(&[2, 3][..]), key_lengths: Some(&[3, 5][..]), ..Places::last() };
    assert_eq!(write(short)[..5], [-1.0, 0.0, -1.0, -2.0, -3.0]);
}

#[test]
fn sums_by_distance_keep_every_number() {
    let shape = Logits::bhqk(3, 2, 7, 8).row(9).at(1);
    let grad: Vec<f32> = crate::Numbers(8).take(shape.span().unwrap(), 1.0);
    for range in [-10..=10, -3..=2, 0..=0] {
        let sums = DistanceGrad::new(&grad, &shape, &Places::from(0, 0), range).unwrap();
        for head in 0..2 {
            let mut want = 0.0;
            for (b, i, j) in (0..3).flat_map(|b| (0..7).flat_map(move |i| (0..8).map(move |j| (b, i, j)))) {
                want += f64::from(grad[shape.index(b, head, i, j)]);
            }
            let got: f64 = sums.of(head).map(|(_, value)| value).sum();
            assert!((got - want).abs() < 1e-9);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_a_call_is_refused_before_anything_is_written() {
    let shape = Logits::bhqk(2, 1, 3, 5);
    let slopes = Slopes::symmetric(1, &[1.0]).unwrap();
    let text = |bias: Bias, shape: Logits, positions: Places<&[i32]>| {
        let mut out = [7.0f32; 30];
        let error = bias.write(&mut out, &shape, &positions).unwrap_err().to_string();
        assert_eq!(out, [7.0; 30]);
        error
    };
    let bias = Bias::Slopes(&slopes);
    let from = Places::from(0, 0);
    assert_eq!(text(bias, Logits::bhqk(2, 2, 3, 2), from), "the bias has 1 heads, the logits have 2");
    assert_eq!(text(bias, Logits::bhqk(3, 1, 3, 5), from), "out holds 30 elements, the shape needs 45");
    assert_eq!(
        text(bias, shape, Places { key_lengths: Some(&[5, 6][..]), ..from }),
        "key_lengths of sequence 1 is 6, the tensor has 5"
    );
    assert_eq!(
        text(bias, shape, Places { query_lengths: Some(&[-1, 3][..]), ..from }),
        "query_lengths of sequence 0 is -1, the tensor has 3"
    );
    assert_eq!(
        text(bias, shape, Places { queries: Place::Each(&[0; 5][..]), ..from }),
        "query positions holds 5 elements, the shape needs 6"
    );
    assert_eq!(
        text(bias, shape, Places { keys: Place::Last, ..from }),
        "keys are placed by Place::Last, which is for queries alone"
    );
    assert_eq!(
        text(bias, shape, Places::from(1 << 31, 0)),
        "3 queries from position 2147483648, they must lie within 2^30 of 0"
    );
    let three = Slopes::new(1, &[1.0; 3], &[1.0; 3]).unwrap();
    assert_eq!(text(Bias::Slopes(&three), shape, from), "slopes are for 3 sequences, the logits have 2");
    let row = Toeplitz { heads: 2, first: 0, values: vec![0.0; 3], saturates: true };
    assert_eq!(
        text(Bias::Toeplitz(&row), shape, from),
        "a Toeplitz row of 3 numbers for 2 heads, it must hold the same count, at least 1, for each head"
    );
    let short = Toeplitz::from_law(1, -4..=1, |_, _| 0.0).unwrap();
    assert_eq!(
        text(Bias::Toeplitz(&short), shape, from),
        "the call has distances from -2 to 4, the row of the bias holds -4 to 1"
    );
    let error = Toeplitz::from_law(1, 0..=3, |_, d| if d == 2 { f64::NAN } else { 0.0 }).unwrap_err();
    assert_eq!(error.to_string(), "the bias of head 0 at distance 2 is NaN");
    let error = Toeplitz::from_law(1 << 40, 0..=(1 << 40), |_, _| 0.0).unwrap_err();
    assert_eq!(error.to_string(), "heads x distances (1099511627776 x 1099511627777) does not fit into 63 bits");
}

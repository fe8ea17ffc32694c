//! Positions of sequences with images, videos and sound.

use posenc::position::{After, Mix, Patches, Span, SpanPositions};
use serde_json::Value;

fn spans_of(case: &Value) -> Vec<Span> {
    let merge = case["merge"].as_u64().unwrap() as usize;
    let temporal = case["temporal_merge"].as_u64().unwrap() as usize;
    let count = |value: &Value| value.as_u64().unwrap() as usize;
    let patches = |span: &Value, temporal_merge| Patches {
        grid: [0, 1, 2].map(|axis| count(&span[1][axis])),
        merge,
        temporal_merge,
        interval: span[2].as_f64().unwrap(),
    };
    let mix = case["chunk"].as_u64().map_or(Mix::Time, |chunk| Mix::Chunks(chunk as usize));
    let span = |span: &Value| match span[0].as_str().unwrap() {
        "text" => Span::Text(count(&span[1])),
        "together" => Span::Together(count(&span[1])),
        "image" => Span::Patches(patches(span, 1)),
        "video" => Span::Patches(patches(span, temporal)),
        "sounding" => Span::Sounding { video: patches(span, temporal), audio: count(&span[3]), mix },
        other => panic!("{other}"),
    };
    case["spans"].as_array().unwrap().iter().map(span).collect()
}

/// `get_rope_index` of seven models in transformers 5.24.0, one sequence after the other and packed.
#[test]
fn positions_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("../golden/mrope_index.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let mut by_name = std::collections::BTreeMap::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let spans = spans_of(case);
        let after = if name.contains("omni") { After::Largest } else { After::Space };
        let made = SpanPositions::new(&[&spans], after).unwrap();
        let rows = case["positions"].as_array().unwrap();
        let want: Vec<i64> =
            rows.iter().flat_map(|row| row.as_array().unwrap().iter().map(|id| id.as_i64().unwrap())).collect();
        assert_eq!(made.ids, want, "{name}: {}", case["spans"]);
        let tokens = want.len() as i64 / 3;
        assert_eq!(made.next[0] - tokens, case["delta"].as_i64().unwrap(), "{name}");
        // The kinds of tokens and the grids come to the same stretches.
        if let Some(kinds) = case["kinds"].as_array() {
            let kinds: Vec<u8> = kinds.iter().map(|kind| kind.as_u64().unwrap() as u8).collect();
            let of = |kind: &str| {
                let found = case["spans"].as_array().unwrap().iter().zip(&spans).filter(|(span, _)| span[0] == kind);
                found
                    .map(|(_, span)| if let Span::Patches(patches) = span { *patches } else { panic!() })
                    .collect::<Vec<_>>()
            };
            assert_eq!(SpanPositions::spans(&kinds, &of("image"), &of("video")).unwrap(), spans, "{name}");
        }
        by_name.entry((name, after == After::Space)).or_insert_with(Vec::new).push((spans, want));
    }
    assert_eq!(by_name.len(), 7);
    for ((name, space), list) in by_name {
        let spans: Vec<&[Span]> = list.iter().map(|(spans, _)| &spans[..]).collect();
        let made = SpanPositions::new(&spans, if space { After::Space } else { After::Largest }).unwrap();
        let tokens = *made.indptr.last().unwrap();
        for (index, (_, want)) in list.iter().enumerate() {
            let (first, end) = (made.indptr[index], made.indptr[index + 1]);
            let got: Vec<i64> = (0..3).flat_map(|axis| &made.ids[axis * tokens..][first..end]).copied().collect();
            assert_eq!(&got, want, "{name}, sequence {index}");
        }
    }
}

#[test]
fn a_long_video_shows_where_the_two_laws_differ() {
    // Five steps of time, two rows and columns: 4.x went on behind the last step, transformers 5 behind the rows.
    let spans = [Span::Patches(Patches::new([5, 4, 4], 2)), Span::Text(1)];
    let last = |after| SpanPositions::new(&[&spans], after).unwrap().ids[20];
    assert_eq!((last(After::Largest), last(After::Space)), (5, 2));
    // A video by frames goes on alike.
    let frames: Vec<Span> = Patches::new([5, 4, 4], 2).frames().map(Span::Patches).collect();
    let ids = [After::Largest, After::Space].map(|after| SpanPositions::new(&[&frames], after).unwrap());
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0].next, [10]);
    // Nothing is nothing.
    let empty = SpanPositions::new(&[&[], &[Span::Text(0)]], After::Largest).unwrap();
    assert_eq!((empty.ids, empty.indptr, empty.next), (vec![], vec![0, 0, 0], vec![0, 0]));
}

#[test]
fn spans_that_do_not_fit_are_refused() {
    let refused = |span: Span| SpanPositions::new(&[&[span]], After::Largest).unwrap_err().to_string();
    let patches = |grid, merge| Span::Patches(Patches::new(grid, merge));
    assert_eq!(
        refused(patches([1, 5, 4], 2)),
        "the grid's height is 5, it must be a multiple of the merge size 2, and both at least 1"
    );
    assert_eq!(
        refused(patches([1, 4, 0], 2)),
        "the grid's width is 0, it must be a multiple of the merge size 2, and both at least 1"
    );
    assert_eq!(
        refused(Span::Patches(Patches { temporal_merge: 2, ..Patches::new([3, 4, 4], 2) })),
        "the grid's time is 3, it must be a multiple of the merge size 2, and both at least 1"
    );
    for interval in [f64::NAN, f64::INFINITY, -1.0] {
        assert_eq!(
            refused(Span::Patches(Patches { interval, ..Patches::new([1, 2, 2], 2) })),
            format!("the interval is {interval}, it must be finite and at least 0")
        );
    }
    assert_eq!(
        refused(Span::Patches(Patches { interval: 3e9, ..Patches::new([2, 2, 2], 2) })),
        "a position in time is 3000000000, it must be below 2^31"
    );
    assert_eq!(
        refused(patches([1 << 40, 1 << 40, 1], 1)),
        "the grid's tokens 1099511627776 x 1099511627776 x 1 does not fit into 63 bits"
    );
    assert_eq!(refused(Span::Text(usize::MAX)), "the number of tokens of all spans does not fit into 63 bits");
    assert_eq!(
        refused(Span::Sounding { video: Patches::new([1, 2, 2], 2), audio: 1, mix: Mix::Chunks(0) }),
        "a chunk is 0 positions long, it must be at least 1"
    );
    let spans = |kinds: &[u8], images: &[Patches]| SpanPositions::spans(kinds, images, &[]).unwrap_err().to_string();
    let image = Patches::new([1, 4, 4], 2);
    assert_eq!(
        spans(&[0, 1, 1, 1, 1, 1], &[image]),
        "1 image tokens from token 5 on have no grid, each run must be covered"
    );
    assert_eq!(
        spans(&[0, 1, 1, 1], &[image]),
        "the grid [1, 4, 4] has 4 tokens, the run of image tokens has 3 from token 1 on"
    );
    assert_eq!(spans(&[0], &[image]), "1 image grids are left over, the sequence has no tokens of them");
    assert_eq!(spans(&[0, 7], &[]), "the kind of token 1 is 7, it must be 0, 1 or 2");
    // Two images without text between them are one run.
    assert_eq!(SpanPositions::spans(&[1; 8], &[image, image], &[]).unwrap(), [Span::Patches(image); 2]);
}

//! Positions of patches, as their encoder counts them.

use posenc::position::{GridAxis, GridCoordinate, GridExtent, GridPositions, fixed};

const AXES: [GridAxis; 3] = [GridAxis::Time, GridAxis::Row, GridAxis::Column];

fn centers(extent: GridExtent, bits: u32) -> GridPositions {
    GridPositions { coordinate: GridCoordinate::Center { extent, bits }, ..GridPositions::new(&AXES[1..]) }
}

#[test]
fn patches_follow_one_another_in_rows_or_blocks() {
    let rows = GridPositions::new(&AXES);
    #[rustfmt::skip]
    assert_eq!(rows.ids(&[[2, 1, 2], [1, 2, 1]]).unwrap(), [
        0, 0, 1, 1,  0, 0,
        0, 0, 0, 0,  0, 1,
        0, 1, 0, 1,  0, 0,
    ]);
    let blocks = GridPositions { merge: 2, before: 1, after: 2, ..GridPositions::new(&AXES[1..]) };
    #[rustfmt::skip]
    assert_eq!(blocks.ids(&[[1, 2, 4]]).unwrap(), [
        0,  0, 0, 1, 1, 0, 0, 1, 1,  0, 0,
        0,  0, 1, 0, 1, 2, 3, 2, 3,  0, 0,
    ]);
    assert_eq!(blocks.ids(&[[1 << 60, 0, 2], [1, 0, 0]]).unwrap(), [0; 12]);
    assert!(blocks.ids(&[]).unwrap().is_empty());
}

/// DINOv3's `normalize_coords`: `2 (index + 0.5) / extent - 1`, as its authors' code has it for separate, max and min.
#[test]
fn centres_are_rounded_to_the_nearest_unit() {
    for (rows, columns) in [(1usize, 1usize), (3, 7), (14, 14), (5, 2), (37, 64)] {
        for (extent, of_row, of_column) in [
            (GridExtent::Own, rows, columns),
            (GridExtent::Longer, rows.max(columns), rows.max(columns)),
            (GridExtent::Shorter, rows.min(columns), rows.min(columns)),
        ] {
            for bits in [0, 1, 20, 32] {
                let got = centers(extent, bits).ids(&[[1, rows, columns]]).unwrap();
                // Exact enough below 2^32 units to round as the fraction does, ties (2^-1, 2^0) included.
                let center = |index: usize, extent: usize| (2 * index + 1) as f64 / extent as f64 - 1.0;
                let tokens = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
                let (row, column): (Vec<f64>, Vec<f64>) =
                    tokens.map(|(row, column)| (center(row, of_row), center(column, of_column))).unzip();
                let want = fixed(&[row, column].concat(), bits).unwrap();
                let far = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).max();
                assert_eq!(far, Some(0), "{rows} x {columns} by {extent:?} in 2^-{bits}");
            }
        }
    }
    // 2/3 of 2^62 units, which no f64 holds.
    let got = centers(GridExtent::Own, 62).ids(&[[1, 3, 1]]).unwrap();
    assert_eq!(got[..3], [-3_074_457_345_618_258_603, 0, 3_074_457_345_618_258_603]);
}

#[test]
fn grids_that_do_not_fit_are_refused() {
    let refused = |positions: &GridPositions, grid| positions.ids(&[grid]).unwrap_err().to_string();
    let blocks = |merge| GridPositions { merge, ..GridPositions::new(&AXES) };
    assert_eq!(refused(&blocks(2), [1, 3, 4]), "the grid has 3 rows and 4 columns, blocks of 2 do not fill it");
    assert_eq!(refused(&blocks(0), [1, 2, 4]), "the grid has 2 rows and 4 columns, blocks of 0 do not fill it");
    assert!(refused(&blocks(1), [usize::MAX, 2, 1]).contains("18446744073709551615 x 2 x 1 patches"));
    assert!(refused(&blocks(1), [1 << 40, 1 << 10, 1]).contains("positions take"));
    assert_eq!(
        refused(&centers(GridExtent::Own, 63), [1, 1, 1]),
        "positions have 63 fraction bits, at most 62 are possible"
    );
    let time = GridPositions { axes: AXES.to_vec(), ..centers(GridExtent::Own, 8) };
    assert_eq!(refused(&time, [1, 1, 1]), "a step of time has no centre");
    let far = centers(GridExtent::Shorter, 62);
    assert_eq!(refused(&far, [1, 1, 5]), "position 1 of a grid does not fit into 64 bits");
    let last = GridPositions { coordinate: GridCoordinate::Index { first: i64::MAX }, ..GridPositions::new(&AXES) };
    assert_eq!(refused(&last, [2, 1, 1]), "position 1 of a grid does not fit into 64 bits");
}

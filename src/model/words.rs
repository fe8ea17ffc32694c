//! Parts of a layer's summary.

use crate::position::{GridAxis, GridCoordinate, GridExtent, GridPositions};
use crate::rotate::{Axes, QueryScale};

/// The axes of a position, as the summary of a layer names them.
pub(super) fn axes(axes: &Axes) -> String {
    let list = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match axes {
        Axes::One => "one axis".into(),
        Axes::Sections(sizes) => format!("{} axes in sections of {} pairs", sizes.len(), list(sizes)),
        Axes::Interleaved(sizes) => format!("{} axes interleaved, with {} pairs", sizes.len(), list(sizes)),
        Axes::HeightWidthFirst([time, height, width]) => {
            format!("3 axes, {height} pairs of height and {width} of width in turn, then {time} of time")
        }
        Axes::Table(table) => format!("{} axes, listed for each of {} pairs", axes.count(), table.len()),
        Axes::Ladders(sizes) => {
            format!("{} axes of {} pairs, each with its own frequencies", sizes.len(), list(sizes))
        }
        Axes::Dealt(count) => format!("{count} axes that share out the frequencies in turn"),
        Axes::Blocks(count) => format!("{count} axes, each with its own block of channels"),
        Axes::Alternating(count) => format!("{count} axes in turn, each with its own frequencies"),
    }
}

/// A factor on the query, as the summary of a layer names it.
pub(super) fn query_scale(scale: &QueryScale) -> String {
    match scale {
        QueryScale::One => "queries as they are".into(),
        QueryScale::Llama4 { scale, floor } => {
            format!("queries times 1 + {scale} ln(1 + floor((position + 1) / {floor}))")
        }
        QueryScale::Mistral { beta, original_context } => {
            format!("queries times 1 + {beta} ln(1 + floor(position / {original_context}))")
        }
        QueryScale::Inkling { scale, floor } => {
            format!("queries and their products with the table times 1 + {scale} ln(max(1, (position + 1) / {floor}))")
        }
        QueryScale::LogN { train_length } => {
            format!("queries times ln(position + 1) / ln({train_length}), at least 1")
        }
    }
}

/// How a tower counts patches.
pub(super) fn grid(grid: &GridPositions) -> String {
    let axis = |axis: &GridAxis| match axis {
        GridAxis::Time => "time",
        GridAxis::Row => "row",
        GridAxis::Column => "column",
    };
    let mut text = grid.axes.iter().map(axis).collect::<Vec<_>>().join(", ");
    match grid.coordinate {
        GridCoordinate::Index { first } => text += &format!(" from {first}"),
        GridCoordinate::Center { extent, bits } => {
            let extent = match extent {
                GridExtent::Own => "each by its own length",
                GridExtent::Longer => "by the longer side",
                GridExtent::Shorter => "by the shorter side",
            };
            text += &format!(", centres from -1 to 1, {extent}, in units of 2^-{bits}");
        }
    }
    if grid.merge != 1 {
        text += &format!("; in blocks of {0} x {0} patches", grid.merge);
    }
    for (tokens, place) in [(grid.before, "before"), (grid.after, "after")] {
        if tokens > 0 {
            text += &format!("; {tokens} tokens {place} the patches are not rotated");
        }
    }
    text
}

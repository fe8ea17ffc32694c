//! Where a picture is drawn: SVG, and PNG with a font that is part of the program, so that no font of the system is needed.

mod png;
mod svg;

pub use png::Png;
pub use svg::Svg;

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use plotters_backend::BackendTextStyle;

/// DejaVu Sans: the letters of a PNG, and the widths that both formats are laid out by.
static FONT: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::regular()).expect("the crate's font is a font"));

/// A text's glyphs at this size: each with its place from the left, and the width of all.
fn glyphs(text: &str, size: f64) -> (Vec<ab_glyph::Glyph>, f32) {
    let em = FONT.units_per_em().expect("a font has an em");
    let scale = PxScale::from(size as f32 * FONT.height_unscaled() / em);
    let font = FONT.as_scaled(scale);
    let mut at = 0.0;
    let glyphs = text.chars().map(|c| {
        let id = font.glyph_id(c);
        let glyph = id.with_scale_and_position(scale, ab_glyph::point(at, font.ascent()));
        at += font.h_advance(id);
        glyph
    });
    (glyphs.collect(), at)
}

/// Width and height of a text in pixels.
fn text_size(text: &str, style: &impl BackendTextStyle) -> (u32, u32) {
    (glyphs(text, style.size()).1.ceil() as u32, style.size().ceil() as u32)
}

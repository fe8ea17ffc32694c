//! PNG: plotters' bitmap, and letters of the program's own font.

use ab_glyph::Font as _;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};
use plotters_bitmap::{BitMapBackend, BitMapBackendError};

type Result<T = ()> = std::result::Result<T, DrawingErrorKind<BitMapBackendError>>;

/// Draws into a bitmap of RGB.
pub struct Png<'a>(BitMapBackend<'a>);

impl<'a> Png<'a> {
    pub fn new(pixels: &'a mut [u8], size: (u32, u32)) -> Self {
        Self(BitMapBackend::with_buffer(pixels, size))
    }

    /// The bytes of a file of these pixels.
    pub fn encode(pixels: &[u8], (width, height): (u32, u32)) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

impl DrawingBackend for Png<'_> {
    type ErrorType = BitMapBackendError;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Result {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Result {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Result {
        self.0.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Result {
        self.0.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Result {
        self.0.draw_rect(from, to, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Result {
        let (glyphs, width) = super::glyphs(text, style.size());
        let height = style.size() as f32;
        let left = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        // An ascender takes a little more than the em, and a line's foot lies a little above its descender.
        let top = match style.anchor().v_pos {
            VPos::Top => -0.1 * height,
            VPos::Center => -0.6 * height,
            VPos::Bottom => -1.1 * height,
        };
        let (color, turn) = (style.color(), style.transform());
        for glyph in glyphs {
            let Some(outline) = super::FONT.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut drawn = Ok(());
            outline.draw(|dx, dy, coverage| {
                let at = |from: f32, step: u32| (from + step as f32).round() as i32;
                let (dx, dy) = turn.transform(at(left + corner.x, dx), at(top + corner.y, dy));
                if coverage > 0.0 && drawn.is_ok() {
                    drawn = self.0.draw_pixel((x + dx, y + dy), color.mix(f64::from(coverage.min(1.0))));
                }
            });
            drawn?;
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, style: &S) -> Result<(u32, u32)> {
        Ok(super::text_size(text, style))
    }
}

//! SVG in few bytes: neighbouring shapes of one style are one path, so that a heat map is a path for each shade.

use std::convert::Infallible;
use std::fmt::Write as _;

use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontTransform,
};

type Result<T = ()> = std::result::Result<T, DrawingErrorKind<Infallible>>;

/// Draws into a text.
pub struct Svg<'a> {
    out: &'a mut String,
    size: (u32, u32),
    /// attributes of the path that is being written, and its steps
    path: (String, String),
    done: bool,
}

impl<'a> Svg<'a> {
    pub fn new(out: &'a mut String, size: (u32, u32)) -> Self {
        let (width, height) = size;
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans,Verdana,sans-serif\">"
        );
        Self { out, size, path: Default::default(), done: false }
    }

    fn steps(&mut self, style: String, steps: &str) {
        if self.path.0 != style {
            self.flush();
            self.path.0 = style;
        }
        self.path.1 += steps;
    }

    fn flush(&mut self) {
        let (style, steps) = std::mem::take(&mut self.path);
        if !steps.is_empty() {
            let _ = writeln!(self.out, "<path {style} d=\"{steps}\"/>");
        }
    }
}

fn color(color: BackendColor) -> String {
    let (r, g, b) = color.rgb;
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn stroke(style: &impl BackendStyle) -> String {
    format!("fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"", color(style.color()), style.stroke_width())
}

fn line(points: impl IntoIterator<Item = BackendCoord>) -> String {
    let mut steps = String::new();
    let mut last = None;
    for (x, y) in points {
        match last {
            None => {
                let _ = write!(steps, "M{x},{y}");
            }
            Some((from_x, from_y)) if (from_x, from_y) != (x, y) => {
                let _ = match (x == from_x, y == from_y) {
                    (true, _) => write!(steps, "v{}", y - from_y),
                    (_, true) => write!(steps, "h{}", x - from_x),
                    _ => write!(steps, "l{},{}", x - from_x, y - from_y),
                };
            }
            Some(_) => {}
        }
        last = Some((x, y));
    }
    steps
}

impl DrawingBackend for Svg<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Result {
        Ok(())
    }

    fn present(&mut self) -> Result {
        if !self.done {
            self.flush();
            *self.out += "</svg>\n";
            self.done = true;
        }
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, of: BackendColor) -> Result {
        self.draw_rect((x, y), (x + 1, y + 1), &of, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Result {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Result {
        if style.color().alpha == 0.0 {
            return Ok(());
        }
        let (width, height) = (to.0 - from.0, to.1 - from.1);
        let steps = format!("M{},{}h{width}v{height}h{}z", from.0, from.1, -width);
        // A filled cell touches its neighbours without a seam.
        let style = if fill {
            format!("fill=\"{}\" shape-rendering=\"crispEdges\"", color(style.color()))
        } else {
            stroke(style)
        };
        self.steps(style, &steps);
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Result {
        if style.color().alpha > 0.0 {
            self.steps(stroke(style), &line(path));
        }
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, (x, y): BackendCoord, radius: u32, style: &S, fill: bool) -> Result {
        let steps = format!(
            "M{},{y}a{radius},{radius} 0 1,0 {},0a{radius},{radius} 0 1,0 -{},0z",
            x - radius as i32,
            2 * radius,
            2 * radius
        );
        let style = if fill { format!("fill=\"{}\"", color(style.color())) } else { stroke(style) };
        self.steps(style, &steps);
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, vert: I, style: &S) -> Result {
        self.steps(format!("fill=\"{}\"", color(style.color())), &(line(vert) + "z"));
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Result {
        self.flush();
        let anchor = match style.anchor().h_pos {
            HPos::Left => "",
            HPos::Center => " text-anchor=\"middle\"",
            HPos::Right => " text-anchor=\"end\"",
        };
        let down = match style.anchor().v_pos {
            VPos::Top => "0.8em",
            VPos::Center => "0.35em",
            VPos::Bottom => "-0.2em",
        };
        let angle = match style.transform() {
            FontTransform::None => 0,
            FontTransform::Rotate90 => 90,
            FontTransform::Rotate180 => 180,
            FontTransform::Rotate270 => 270,
        };
        let turn = if angle == 0 { String::new() } else { format!(" transform=\"rotate({angle},{x},{y})\"") };
        let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(
            self.out,
            "<text x=\"{x}\" y=\"{y}\" dy=\"{down}\" font-size=\"{}\" fill=\"{}\"{anchor}{turn}>{escaped}</text>",
            style.size(),
            color(style.color())
        );
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, style: &S) -> Result<(u32, u32)> {
        Ok(super::text_size(text, style))
    }
}

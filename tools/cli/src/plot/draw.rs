//! Draws a [`Picture`]: black, greys and dashes, so that it can be read without colours.

use std::ops::Range;

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::canvas::{Png, Svg};
use super::picture::{Axis, Content, Heat, Panel, Picture, Scale, Series};

const WIDTH: u32 = 860;
/// Height of a panel, and of the picture's title.
const PANEL: u32 = 380;
const TITLE: u32 = 34;
/// Beside the chart: the names of lines, or the scale of greys.
const LEGEND: u32 = 230;
const SMALL: u32 = 12;
const GRID: RGBColor = RGBColor(222, 222, 222);
/// Shades of a heat map: more would be told apart by nobody.
const SHADES: usize = 24;

/// Dash and gap in pixels (0: solid), grey, and width of the lines, in the order of their names.
const STYLES: [(u32, u32, u8, u32); 10] = [
    (0, 0, 0, 2),
    (9, 4, 0, 2),
    (0, 0, 150, 3),
    (2, 3, 0, 2),
    (14, 4, 110, 2),
    (0, 0, 80, 1),
    (4, 4, 150, 3),
    (18, 3, 0, 1),
    (2, 5, 90, 3),
    (7, 7, 60, 1),
];

/// The picture as SVG.
pub fn svg(picture: &Picture) -> Result<String> {
    let mut text = String::new();
    all(Svg::new(&mut text, size(picture)).into_drawing_area(), picture)?;
    Ok(text)
}

/// The picture as PNG.
pub fn png(picture: &Picture) -> Result<Vec<u8>> {
    let size = size(picture);
    let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
    all(Png::new(&mut pixels, size).into_drawing_area(), picture)?;
    Png::encode(&pixels, size)
}

fn size(picture: &Picture) -> (u32, u32) {
    (WIDTH, TITLE + PANEL * picture.panels.len() as u32)
}

fn all<B: DrawingBackend>(area: DrawingArea<B, Shift>, picture: &Picture) -> Result<()> {
    for panel in &picture.panels {
        if let Content::Lines { series, .. } = &panel.content {
            let (lines, most) = (series.len(), STYLES.len());
            ensure!(lines <= most, "{lines} lines, a picture has dashes and greys for {most}: choose fewer");
        }
    }
    draw(&area, picture).map_err(|error| anyhow!("the picture cannot be drawn: {error}"))
}

type Drawn<B, T = ()> = std::result::Result<T, DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, picture: &Picture) -> Drawn<B> {
    area.fill(&WHITE)?;
    area.draw_text(&picture.title, &font(15), (14, 12))?;
    let (_, below) = area.split_vertically(TITLE);
    for (panel, area) in picture.panels.iter().zip(below.split_evenly((picture.panels.len(), 1))) {
        draw_panel(&area, panel)?;
    }
    area.present()
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panel: &Panel) -> Drawn<B> {
    let (chart_area, legend) = area.split_horizontally(WIDTH - LEGEND);
    let (x, y) = match &panel.content {
        Content::Lines { series, marks, .. } => {
            let xs = series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
            let ys = series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
            let xs = xs.chain(marks.iter().map(|mark| mark.0));
            (Ends::of(&panel.x, xs, 0.0), Ends::of(&panel.y, ys, 0.04))
        }
        Content::Heat(heat) => (Ends::of_cells(&heat.columns), Ends::of_cells(&heat.rows).reversed()),
    };
    let mut chart = ChartBuilder::on(&chart_area);
    chart.margin(10).x_label_area_size(44).y_label_area_size(78);
    if !panel.title.is_empty() {
        chart.caption(&panel.title, font(13));
    }
    let mut chart = chart.build_cartesian_2d(x, y)?;
    let mut mesh = chart.configure_mesh();
    mesh.max_light_lines(0).bold_line_style(GRID).axis_style(BLACK);
    mesh.label_style(font(SMALL)).axis_desc_style(font(13));
    mesh.x_desc(&panel.x.label).y_desc(&panel.y.label).x_labels(9).y_labels(8);
    if matches!(panel.content, Content::Heat(_)) {
        mesh.disable_mesh();
    }
    mesh.draw()?;
    match &panel.content {
        Content::Lines { series, marks, stepped } => {
            for (place, _) in marks {
                let ends = [(*place, y.low), (*place, y.high)];
                chart.draw_series(DashedLineSeries::new(ends, 1, 3, BLACK.stroke_width(1)))?;
            }
            for (index, series) in series.iter().enumerate() {
                let (dash, gap, grey, width) = STYLES[index % STYLES.len()];
                let style = RGBColor(grey, grey, grey).stroke_width(width);
                for part in parts(series, x, y, *stepped) {
                    match dash {
                        0 => chart.draw_series(LineSeries::new(part, style))?,
                        _ => chart.draw_series(DashedLineSeries::new(part, dash, gap, style))?,
                    };
                }
            }
            names(&legend, series, marks)
        }
        Content::Heat(heat) => {
            let (low, high) = heat_ends(heat);
            let width = heat.columns.len();
            // Shade by shade, so that cells of one shade are one path.
            for shade in 0..SHADES {
                for row in 0..heat.rows.len() {
                    let mut column = 0;
                    while column < width {
                        let is_of =
                            |column: usize| shade_of(heat.values[row * width + column], low, high) == Some(shade);
                        let run = (column..width).take_while(|&column| is_of(column)).count();
                        if run > 0 {
                            let at = |column: usize, row: usize| (x.edge(column, width), y.edge(row, heat.rows.len()));
                            let cell =
                                Rectangle::new([at(column, row), at(column + run, row + 1)], grey(shade).filled());
                            chart.draw_series(std::iter::once(cell))?;
                        }
                        column += run.max(1);
                    }
                }
            }
            scale(&legend, heat, low, high)
        }
    }
}

/// Points of a line that are to be joined: it breaks where a value has no place.
fn parts(series: &Series, x: Ends, y: Ends, stepped: bool) -> Vec<Vec<(f64, f64)>> {
    let seen = |&(px, py): &(f64, f64)| x.has(px) && y.has(py);
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    for part in series.points.split(|point| !seen(point)).filter(|part| !part.is_empty()) {
        let mut points = Vec::new();
        for (index, &(px, py)) in part.iter().enumerate() {
            if stepped && index > 0 {
                points.push((px, part[index - 1].1));
            }
            points.push((px, py));
        }
        // A point alone is a short line.
        if points.len() == 1 {
            points.push(points[0]);
        }
        parts.push(points);
    }
    parts
}

/// The names of lines, beside a piece of each.
fn names<B: DrawingBackend>(area: &DrawingArea<B, Shift>, series: &[Series], marks: &[(f64, String)]) -> Drawn<B> {
    let mut top = 16;
    for (index, series) in series.iter().enumerate() {
        let (dash, gap, grey, width) = STYLES[index % STYLES.len()];
        let style = RGBColor(grey, grey, grey).stroke_width(width);
        let ends = [(6, top), (36, top)];
        match dash {
            0 => area.draw(&PathElement::new(ends, style))?,
            _ => area.draw(&DashedPathElement::new(ends, dash, gap, style))?,
        }
        top = write(area, &series.name, top)?;
    }
    for (place, name) in marks {
        area.draw(&DashedPathElement::new([(21, top - 8), (21, top + 8)], 1, 3, BLACK.stroke_width(1)))?;
        top = write(area, &format!("{name}: {}", number(*place)), top)?;
    }
    Ok(())
}

/// A text of the legend, in lines that fit; where the next one begins.
fn write<B: DrawingBackend>(area: &DrawingArea<B, Shift>, text: &str, mut top: i32) -> Drawn<B, i32> {
    const MOST: usize = 26;
    let mut line = String::new();
    let mut lines = Vec::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.len() + word.len() >= MOST {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines.push(line);
    for line in lines {
        area.draw_text(&line, &font(SMALL), (44, top - 7))?;
        top += 15;
    }
    Ok(top + 7)
}

/// The scale of greys.
fn scale<B: DrawingBackend>(area: &DrawingArea<B, Shift>, heat: &Heat, low: f64, high: f64) -> Drawn<B> {
    let (top, height) = (30, 220);
    for shade in 0..SHADES {
        let edge = |shade: usize| top + height - (shade * height as usize / SHADES) as i32;
        let rectangle = Rectangle::new([(10, edge(shade + 1)), (34, edge(shade))], grey(shade).filled());
        area.draw(&rectangle)?;
    }
    area.draw(&Rectangle::new([(10, top), (34, top + height)], BLACK.stroke_width(1)))?;
    for (share, value) in [(0.0, low), (0.5, (low + high) / 2.0), (1.0, high)] {
        let at = top + height - (share * f64::from(height)) as i32;
        area.draw_text(&number(value), &font(SMALL), (42, at - 7))?;
    }
    area.draw_text(&heat.unit, &font(SMALL), (10, 8))
}

/// From black to white.
fn grey(shade: usize) -> RGBColor {
    let grey = (shade * 255 / (SHADES - 1)) as u8;
    RGBColor(grey, grey, grey)
}

fn shade_of(value: f64, low: f64, high: f64) -> Option<usize> {
    let share = if high > low { (value - low) / (high - low) } else { 0.5 };
    value.is_finite().then(|| ((share * SHADES as f64) as usize).min(SHADES - 1))
}

fn heat_ends(heat: &Heat) -> (f64, f64) {
    let finite = heat.values.iter().copied().filter(|value| value.is_finite());
    finite
        .fold(None, |ends, value| {
            Some(ends.map_or((value, value), |(low, high): (f64, f64)| (low.min(value), high.max(value))))
        })
        .unwrap_or((0.0, 1.0))
}

/// The two ends of an axis.
#[derive(Clone, Copy, Debug)]
struct Ends {
    low: f64,
    high: f64,
    scale: Scale,
    /// the low end is on the other side
    is_reversed: bool,
}

impl Ends {
    /// Around values that have a place, with this share of free room at both sides.
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, room: f64) -> Self {
        let scale = axis.scale;
        let all = Self { low: f64::NEG_INFINITY, high: f64::INFINITY, scale, is_reversed: false };
        let (low, high) = values
            .filter(|&value| all.has(value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = match (low <= high, scale) {
            (false, _) => (1.0, 10.0),
            (true, Scale::Linear) if low == high => (low - 1.0, high + 1.0),
            (true, Scale::Log) if low == high => (low / 2.0, high * 2.0),
            _ => (low, high),
        };
        let ends = Self { low, high, scale, is_reversed: false };
        let wide = (ends.place(high) - ends.place(low)) * room;
        let back = |place: f64| if scale == Scale::Log { 10f64.powf(place) } else { place };
        Self { low: back(ends.place(low) - wide), high: back(ends.place(high) + wide), ..ends }
    }

    /// Around the cells whose centres these are.
    fn of_cells(centres: &[f64]) -> Self {
        let (first, last) = (centres[0], centres[centres.len() - 1]);
        let half = if centres.len() > 1 { (last - first) / (centres.len() - 1) as f64 / 2.0 } else { 0.5 };
        Self { low: first - half, high: last + half, scale: Scale::Linear, is_reversed: false }
    }

    /// The first row is on top.
    fn reversed(self) -> Self {
        Self { is_reversed: true, ..self }
    }

    /// The edge before the `index`-th of `count` cells.
    fn edge(&self, index: usize, count: usize) -> f64 {
        self.low + (self.high - self.low) * index as f64 / count as f64
    }

    fn has(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    fn place(&self, value: f64) -> f64 {
        if self.scale == Scale::Log { value.log10() } else { value }
    }

    /// Values that labels stand at.
    fn ticks(&self, most: usize) -> Vec<f64> {
        let (low, high) = (self.place(self.low), self.place(self.high));
        let inside = |tick: &f64| (self.low..=self.high).contains(tick);
        if self.scale == Scale::Log {
            let decades = high.floor() - low.ceil();
            let steps: &[f64] = if decades < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let stride = ((decades + 1.0) / most as f64).ceil().max(1.0) as i32;
            let exponents = (low.floor() as i32..=high.ceil() as i32).filter(|exponent| exponent % stride == 0);
            return exponents
                .flat_map(|exponent| steps.iter().map(move |step| step * 10f64.powi(exponent)))
                .filter(inside)
                .collect();
        }
        let rough = (high - low) / most.max(2) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough);
        (0..).map(|index| ((low / step).ceil() + f64::from(index)) * step).take_while(inside).collect()
    }
}

impl Ranged for Ends {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let (low, high) = (self.place(self.low), self.place(self.high));
        let (from, to) = if self.is_reversed { (to, from) } else { (from, to) };
        let share = ((self.place(*value) - low) / (high - low)).clamp(-0.01, 1.01);
        f64::from(from) as i32 + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks(hint.max_num_points()) }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Ends {
    fn format_ext(&self, value: &f64) -> String {
        number(*value)
    }
}

/// A number as a label says it.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(scale: Scale, low: f64, high: f64) -> Ends {
        Ends { low, high, scale, is_reversed: false }
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ends(Scale::Linear, -0.3, 9.0).ticks(8), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ends(Scale::Log, 0.5, 3e4).ticks(9), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert_eq!(ends(Scale::Log, 3.0, 60.0).ticks(9), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!(ends(Scale::Linear, 2.0, 2.5).ticks(5).len(), 6);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (131072.0, "131072"), (0.25, "0.25"), (-2.5, "-2.5"), (1e-7, "1e-7"), (2.5e9, "2.5e9")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_line_breaks_where_a_value_has_no_place() {
        let ends = ends(Scale::Log, 1.0, 10.0);
        let series = Series::new("s", [(1.0, 1.0), (2.0, 0.0), (3.0, 1.0), (4.0, f64::NAN), (5.0, 1.0), (6.0, 2.0)]);
        assert_eq!(
            parts(&series, ends, ends, false),
            [vec![(1.0, 1.0); 2], vec![(3.0, 1.0); 2], vec![(5.0, 1.0), (6.0, 2.0)]]
        );
        assert_eq!(
            parts(&Series::new("s", [(1.0, 1.0), (2.0, 2.0)]), ends, ends, true),
            [vec![(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)]]
        );
    }

    #[test]
    fn shades_cover_the_range_and_leave_out_what_is_no_number() {
        assert_eq!(
            [0.0, 1.0, 0.5].map(|value| shade_of(value, 0.0, 1.0)),
            [Some(0), Some(SHADES - 1), Some(SHADES / 2)]
        );
        assert_eq!(shade_of(f64::NAN, 0.0, 1.0), None);
        assert_eq!(shade_of(3.0, 3.0, 3.0), Some(SHADES / 2));
    }
}

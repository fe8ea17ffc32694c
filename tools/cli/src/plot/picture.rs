//! A picture as data: axes, and lines or a heat map. What is drawn is what the CSV says.

use std::fmt::Write as _;

/// One or several charts below one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub title: String,
    pub panels: Vec<Panel>,
}

/// One chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// above the chart; empty where the picture's title says enough
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub content: Content,
}

/// An axis: what it measures, with the unit, and its scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

/// How values become places on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// logarithmic: values of zero and less have no place and are left out of the picture
    Log,
}

impl Axis {
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear }
    }

    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Log }
    }
}

/// What a chart shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Lines {
        series: Vec<Series>,
        /// vertical lines: a place on the x axis, and its name
        marks: Vec<(f64, String)>,
        /// steps instead of straight lines between points: a histogram, each point the left edge of its bar
        stepped: bool,
    },
    /// cells of grey
    Heat(Heat),
}

/// A line and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Series {
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect() }
    }

    /// A horizontal line.
    pub fn level(name: impl Into<String>, from: f64, to: f64, y: f64) -> Self {
        Self::new(name, [(from, y), (to, y)])
    }
}

/// A matrix of values, the first row on top.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    /// place of each column on the x axis, equally far from one another
    pub columns: Vec<f64>,
    /// place of each row on the y axis, equally far from one another
    pub rows: Vec<f64>,
    /// `[rows, columns]`
    pub values: Vec<f64>,
    /// what a value is, with its unit
    pub unit: String,
}

impl Picture {
    /// One chart under the picture's title.
    pub fn one(title: impl Into<String>, x: Axis, y: Axis, content: Content) -> Self {
        Self { title: title.into(), panels: vec![Panel { title: String::new(), x, y, content }] }
    }

    /// Every number of the picture: `panel,row,x,value`, where a row is a line's name, or a row of a heat map.
    pub fn csv(&self) -> String {
        let mut text = String::from("panel,row,x,value\n");
        for (index, panel) in self.panels.iter().enumerate() {
            let name = if panel.title.is_empty() { format!("{}", index + 1) } else { quoted(&panel.title) };
            let mut line = |row: &str, x: f64, value: f64| {
                let _ = writeln!(text, "{name},{row},{x},{value}");
            };
            match &panel.content {
                Content::Lines { series, .. } => {
                    for series in series {
                        let row = quoted(&series.name);
                        series.points.iter().for_each(|&(x, y)| line(&row, x, y));
                    }
                }
                Content::Heat(heat) => {
                    for (row, values) in heat.rows.iter().zip(heat.values.chunks_exact(heat.columns.len())) {
                        let row = row.to_string();
                        heat.columns.iter().zip(values).for_each(|(&x, &value)| line(&row, x, value));
                    }
                }
            }
        }
        text
    }

    /// Values that have no place in the picture: NaN and infinities, and zero and less on a logarithmic axis.
    pub fn unseen(&self) -> usize {
        let hidden = |axis: &Axis, value: f64| !value.is_finite() || (axis.scale == Scale::Log && value <= 0.0);
        self.panels
            .iter()
            .map(|panel| match &panel.content {
                Content::Lines { series, .. } => {
                    let points = series.iter().flat_map(|series| &series.points);
                    points.filter(|(x, y)| hidden(&panel.x, *x) || hidden(&panel.y, *y)).count()
                }
                Content::Heat(heat) => heat.values.iter().filter(|value| !value.is_finite()).count(),
            })
            .sum()
    }
}

/// A cell of a CSV line.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_csv_has_every_number_and_quotes_names() {
        let lines =
            Content::Lines { series: vec![Series::new("a, b", [(1.0, 0.5)])], marks: Vec::new(), stepped: false };
        let mut picture = Picture::one("t", Axis::linear("x"), Axis::log("y"), lines);
        let heat = Heat { columns: vec![0.0, 1.0], rows: vec![7.0], values: vec![2.0, f64::NAN], unit: "u".into() };
        let panel =
            Panel { title: "map".into(), x: Axis::linear("x"), y: Axis::linear("y"), content: Content::Heat(heat) };
        picture.panels.push(panel);
        assert_eq!(picture.csv(), "panel,row,x,value\n1,\"a, b\",1,0.5\nmap,7,0,2\nmap,7,1,NaN\n");
        assert_eq!(picture.unseen(), 1);
    }

    #[test]
    fn zero_is_unseen_on_a_logarithmic_axis_alone() {
        let content = |points: [(f64, f64); 2]| Content::Lines {
            series: vec![Series::new("s", points)],
            marks: Vec::new(),
            stepped: false,
        };
        let points = [(0.0, 1.0), (1.0, 0.0)];
        assert_eq!(Picture::one("t", Axis::log("x"), Axis::log("y"), content(points)).unseen(), 2);
        assert_eq!(Picture::one("t", Axis::linear("x"), Axis::linear("y"), content(points)).unseen(), 0);
    }
}

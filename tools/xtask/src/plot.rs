//! Cost against size, from a record of the benches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;

/// Draws `<record>.svg`: a line for each family of cases that differ in their last number alone, both axes logarithmic.
///
/// A record of a GPU gives nanoseconds, one of the emulator the bytes of touched sectors.
pub fn draw(record: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(record).with_context(|| record.display().to_string())?;
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().context("the record is empty")?.split(',').collect();
    let wanted = |name: &str| columns.iter().position(|column| *column == name);
    let (cost, unit) = match (wanted("median_ns"), wanted("sector_bytes")) {
        (Some(at), _) => (at, "nanoseconds"),
        (None, Some(at)) => (at, "bytes of touched sectors (emulator)"),
        _ => anyhow::bail!("{} has neither median_ns nor sector_bytes", record.display()),
    };
    let regime = wanted("cache");
    let mut families = BTreeMap::<String, Vec<(f64, f64)>>::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let (Some(name), Some(value)) = (cells.first(), cells.get(cost)) else { continue };
        let Some((family, size)) = name.rsplit_once('/') else { continue };
        let (Ok(size), Ok(value)) = (size.parse::<f64>(), value.parse::<f64>()) else { continue };
        let cache = regime.and_then(|at| cells.get(at)).map_or(String::new(), |cache| format!(" {cache}"));
        families.entry(format!("{family}{cache}")).or_default().push((size, value));
    }
    families.retain(|_, points| points.len() >= 4);
    ensure!(!families.is_empty(), "{} has no family of four sizes", record.display());
    let all: Vec<(f64, f64)> = families.values().flatten().copied().collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = all.iter().map(of);
        let (low, high) = values.fold((f64::INFINITY, 0f64), |(low, high), x| (low.min(x), high.max(x)));
        (low * 0.7)..(high * 1.4)
    };
    let path = record.with_extension("svg");
    {
        let area = SVGBackend::new(&path, (1100, 700)).into_drawing_area();
        area.fill(&WHITE)?;
        let title = record.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(45)
            .y_label_area_size(90)
            .build_cartesian_2d(range(|p| p.0).log_scale(), range(|p| p.1).log_scale())?;
        chart.configure_mesh().x_desc("tokens, heads or keys").y_desc(unit).draw()?;
        for (i, (family, points)) in families.iter_mut().enumerate() {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let color = Palette99::pick(i).stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color).point_size(3))?
                .label(family.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
    }
    Ok(path)
}

//! Cost against size, from a record of the benches: a picture, and how each family grows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Sizes and costs of cases that differ in their last number alone.
type Families = BTreeMap<String, Vec<(f64, f64)>>;
type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a family grows in, by a part of its cases' names; a panel each.
const GROWS_IN: [(&str, &str); 3] = [("/keys/", "keys"), ("/heads/", "heads"), ("", "tokens, queries or rows")];

/// The youngest record of all.
pub fn youngest(folder: &Path) -> Result<PathBuf> {
    let records = std::fs::read_dir(folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let youngest = records.filter(|path| path.extension().is_some_and(|extension| extension == "csv")).max();
    youngest.with_context(|| format!("{} holds no record: cargo xtask bench --record", folder.display()))
}

/// Draws `<record>.svg`: a line for each family, both axes logarithmic, and prints each family's growth.
///
/// A record of a GPU gives nanoseconds, one of the emulator the bytes of touched sectors, one of peers on the emulator predicted times.
pub fn draw(record: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(record).with_context(|| record.display().to_string())?;
    let (families, unit) = read(&text).with_context(|| record.display().to_string())?;
    println!("{:58} {:>22} {:>24} {:>9}", "family", "sizes", unit, "exponent");
    for (family, points) in &families {
        let ((first, low), (last, high)) = (points[0], points[points.len() - 1]);
        println!(
            "{family:58} {:>22} {:>24} {:9.2}",
            format!("{first} to {last}"),
            format!("{low:.0} to {high:.0}"),
            exponent(points)
        );
    }
    let path = record.with_extension("svg");
    let panels: Vec<(&str, Families)> = GROWS_IN
        .iter()
        .map(|(part, what)| {
            let of = |family: &str| GROWS_IN.iter().position(|(part, _)| format!("{family}/").contains(part));
            let index = GROWS_IN.iter().position(|(other, _)| other == part);
            (*what, families.clone().into_iter().filter(|(family, _)| of(family) == index).collect::<Families>())
        })
        .filter(|(_, families)| !families.is_empty())
        .collect();
    let height = 620 * u32::try_from(panels.len())?;
    let area = SVGBackend::new(&path, (1200, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let title = record.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for ((what, families), panel) in panels.iter().zip(area.split_evenly((panels.len(), 1))) {
        draw_panel(&panel, &format!("{title}: cost against {what}"), what, unit, families)?;
    }
    area.present()?;
    drop(area);
    Ok(path)
}

/// Families of at least four sizes, and the unit of their costs.
fn read(text: &str) -> Result<(Families, &'static str)> {
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().context("the record is empty")?.split(',').collect();
    let wanted = |name: &str| columns.iter().position(|column| *column == name);
    let all = |names: &[&str]| names.iter().map(|name| wanted(name)).collect::<Option<Vec<_>>>();
    let (costs, unit) = if let Some(at) = all(&["median_ns"]) {
        (at, "nanoseconds")
    } else if let Some(at) = all(&["predicted_us"]).filter(|_| wanted("times_ours").is_some()) {
        (at, "predicted microseconds")
    } else if let Some(at) = all(&["sector_bytes_read", "sector_bytes_written"]).or_else(|| all(&["sector_bytes"])) {
        (at, "bytes of sectors")
    } else {
        anyhow::bail!("it has neither times nor bytes of sectors")
    };
    // Who it is, and where data came from.
    let regime = wanted("cache").or(wanted("peer"));
    let mut families = Families::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let Some(name) = cells.first() else { continue };
        let value = costs.iter().map(|at| cells.get(*at)?.parse::<f64>().ok()).sum::<Option<f64>>();
        let Some((family, size)) = name.rsplit_once('/') else { continue };
        let (Ok(size), Some(value)) = (size.parse::<f64>(), value) else { continue };
        let cache = regime.and_then(|at| cells.get(at)).map_or(String::new(), |cache| format!(" {cache}"));
        families.entry(format!("{family}{cache}")).or_default().push((size, value));
    }
    families.retain(|_, points| points.len() >= 4);
    families.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    ensure!(!families.is_empty(), "there is no family of four sizes");
    Ok((families, unit))
}

/// The power of size that cost grows with, over the upper half of the sizes: 1 is linear.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let ((size, cost), (last, most)) = (points[points.len() / 2 - 1], points[points.len() - 1]);
    (most / cost).ln() / (last / size).ln()
}

fn draw_panel(panel: &Panel<'_>, title: &str, what: &str, unit: &str, families: &Families) -> Result<()> {
    let all: Vec<(f64, f64)> = families.values().flatten().copied().collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = all.iter().map(of);
        values.fold((f64::INFINITY, 0f64), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ((x_low, x_high), (y_low, y_high)) = (range(|p| p.0), range(|p| p.1));
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(90)
        // the names stand beside the lines
        .right_y_label_area_size(330)
        .build_cartesian_2d((x_low * 0.7..x_high * 1.4).log_scale(), (y_low * 0.7..y_high * 1.4).log_scale())?;
    chart.configure_mesh().x_desc(what).y_desc(unit).draw()?;
    for (i, (family, points)) in families.iter().enumerate() {
        let color = Palette99::pick(i).stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), color).point_size(3))?;
        let y = 34 + 13 * i32::try_from(i)?;
        let style = ("sans-serif", 11).into_font().color(&Palette99::pick(i));
        panel.draw_text(&format!("{family}  ^{:.2}", exponent(points)), &style, (880, y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_grow_by_their_last_number_and_the_regime_is_a_part_of_the_name() {
        let mut text = String::from("case,cache,median_ns\n");
        for (size, cost) in [(4, 40), (1, 10), (16, 160), (64, 640)] {
            text += &format!("rope/a/{size},hot,{cost}\nrope/b/{size},cold,{}\n", cost * cost);
        }
        text += "rope/c/1x2,hot,3\n";
        let (families, unit) = read(&text).expect("a record");
        assert_eq!(unit, "nanoseconds");
        assert_eq!(families.keys().collect::<Vec<_>>(), ["rope/a hot", "rope/b cold"]);
        assert_eq!(families["rope/a hot"][0], (1.0, 10.0));
        assert!((exponent(&families["rope/a hot"]) - 1.0).abs() < 1e-12);
        assert!((exponent(&families["rope/b cold"]) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_record_without_costs_is_refused() {
        let error = read("case,time\nrope/a/1,3\n").expect_err("a refusal");
        assert_eq!(error.to_string(), "it has neither times nor bytes of sectors");
        let error = read("case,sector_bytes_read,sector_bytes_written\nrope/a/1,3,4\n").expect_err("a refusal");
        assert_eq!(error.to_string(), "there is no family of four sizes");
    }

    #[test]
    fn a_picture_is_drawn_beside_the_record() {
        let folder = std::env::temp_dir().join(format!("posenc-plot-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let record = folder.join("2000-01-01-x.csv");
        let mut text = String::from("case,sector_bytes_read,sector_bytes_written\n");
        for size in [1, 2, 4, 8] {
            text += &format!("bias/keys/{size},{},{size}\nrope/heads/{size},{},{size}\n", 31 * size, 63 * size);
        }
        std::fs::write(&record, text).expect("a record");
        let picture = draw(&youngest(&folder).expect("the record")).expect("a picture");
        let svg = std::fs::read_to_string(&picture).expect("the picture");
        assert!(svg.contains("cost against keys") && svg.contains("cost against heads"), "{svg}");
        std::fs::remove_dir_all(folder).expect("the folder goes");
    }
}

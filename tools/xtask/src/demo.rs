//! The demo, and its picture: errors of cosines against position.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use plotters::prelude::*;

use crate::{cargo, cuda, device, run, test};

#[derive(Args)]
pub struct Options {
    /// A model's config.json; without it, the values of Llama-3.1-8B
    pub config: Option<PathBuf>,
    /// Tokens to rotate, at positions spread from 0 to 131071
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Draws the error of cos against position, and writes its numbers beside it as CSV
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// Packages that the development profile optimises and the demo does not: it computes for a second.
const UNOPTIMISED: [&str; 2] = ["posenc", "cudarc"];
/// The demo's emulator, not optimised either, in a folder of its own: tests have theirs.
const EMULATOR: &str = "target/demo";

/// Builds the demo with the kernels of its room alone, and runs it.
pub fn run_all(Options { config, tokens, plot }: &Options) -> Result<()> {
    let mut build = cargo();
    // Not quiet: the first build takes a minute, and cargo shows how far it is.
    build.args(["build", "--package", "demo"]);
    build.args(UNOPTIMISED.iter().flat_map(|package| ["--config".into(), unoptimised(package)]));
    let mut device = None;
    match cuda::nvrtc() {
        Ok(_) => {
            device = device::Device::real();
            let capability = device.as_ref().and_then(device::Device::capability);
            let architecture = capability.map_or(Ok(90), |capability| test::architecture(&capability))?;
            build.env("POSENC_KERNELS", "rotate").env("POSENC_ARCHS", architecture.to_string());
            if device.is_none() {
                // Beside the demo.
                let emulator = std::thread::spawn(emulator);
                run(&mut build)?;
                device = Some(emulator.join().map_err(|_| anyhow!("the emulator's build panicked"))??);
            } else {
                run(&mut build)?;
            }
        }
        Err(error) => {
            eprintln!("no NVRTC, so no kernels: {error:#}\ngoing on with the CPU alone");
            run(build.env("POSENC_KERNELS", "none"))?;
        }
    }
    let mut demo = Command::new(device::target().join("debug/demo"));
    if let Some(device) = device {
        device.prepare(&mut demo)?;
    }
    let errors = plot.as_ref().map(|picture| picture.with_extension("csv"));
    demo.arg(tokens.to_string());
    if let Some(errors) = &errors {
        demo.arg("--errors").arg(errors);
    }
    run(demo.args(config))?;
    if let (Some(picture), Some(errors)) = (plot, errors) {
        draw(&errors, picture)?;
        println!("\nerror of cos against position: {}, its numbers: {}", picture.display(), errors.display());
    }
    Ok(())
}

fn unoptimised(package: &str) -> String {
    format!("profile.dev.package.{package}.opt-level=0")
}

/// Builds the demo's emulator.
fn emulator() -> Result<device::Device> {
    let mut build = cargo();
    build.args(["build", "--package", "warpcheck", "--lib", "--no-default-features", "--target-dir", EMULATOR]);
    run(build.args(["--config", &unoptimised("warpcheck"), "--quiet"]))?;
    let folder = Path::new(EMULATOR);
    let built = folder.join("debug/libwarpcheck.so");
    Ok(device::Device::Emulator(device::named_as_the_driver(&built, &folder.join("emulator"))?))
}

/// A line of the picture: its label, its color on a light and on a dark page, and where its label stands.
struct Line {
    label: &'static str,
    light: RGBColor,
    dark: &'static str,
    label_at: (f64, f64),
}

/// In the order of the file's columns.
const LINES: [Line; 3] = [
    Line { label: "posenc", light: RGBColor(0, 107, 61), dark: "#3fb950", label_at: (3e5, 1.2e-8) },
    Line { label: "angles in f32", light: RGBColor(178, 34, 34), dark: "#ff7b72", label_at: (6e1, 7e-5) },
    Line { label: "a table in bf16", light: RGBColor(0, 90, 181), dark: "#79c0ff", label_at: (6e1, 9e-3) },
];
const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 35, 40);
const GRID: RGBColor = RGBColor(216, 222, 228);
/// Colors on a dark page, for those above.
const DARK: [(RGBColor, &str); 3] = [(PAPER, "#0d1117"), (INK, "#e6edf3"), (GRID, "#30363d")];

/// Draws the errors of a file: both axes logarithmic, with colors for light and for dark pages.
pub fn draw(errors: &Path, picture: &Path) -> Result<()> {
    let text = fs::read_to_string(errors).with_context(|| format!("cannot read {}", errors.display()))?;
    let svg = svg(&text).with_context(|| format!("cannot draw {}", errors.display()))?;
    fs::write(picture, svg).with_context(|| format!("cannot write {}", picture.display()))
}

fn svg(csv: &str) -> Result<String> {
    let number = |cell: &str| cell.parse::<f64>().with_context(|| format!("{cell:?} is no number"));
    let rows = csv.lines().skip(1).map(|line| line.split(',').map(number).collect::<Result<Vec<f64>>>());
    let rows = rows.collect::<Result<Vec<_>>>()?;
    ensure!(rows.len() > 1 && rows.iter().all(|row| row.len() == 1 + LINES.len()), "a row has four numbers");

    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (860, 400)).into_drawing_area();
    area.fill(&PAPER)?;
    let font = |size: u32| ("sans-serif", size).into_font();
    let mut chart = ChartBuilder::on(&area)
        .caption("largest error of cos(position x frequency), by position", font(17).color(&INK))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d((1f64..2.2e9).log_scale(), (3e-9..4f64).log_scale())?;
    let power = |x: &f64| match x.log10().round() as i32 {
        0 => "1".to_string(),
        exponent => format!("1e{exponent}"),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(PAPER)
        .axis_style(INK)
        .x_labels(10)
        .y_labels(10)
        .x_desc("position")
        .x_label_formatter(&power)
        .y_label_formatter(&power)
        .label_style(font(13).color(&INK))
        .axis_desc_style(font(14).color(&INK))
        .draw()?;
    for (i, line) in LINES.iter().enumerate() {
        let points = rows.iter().map(|row| (row[0], row[1 + i].max(3e-9)));
        chart.draw_series(LineSeries::new(points, line.light.stroke_width(3)))?;
        let label = Text::new(line.label, line.label_at, font(15).color(&line.light));
        chart.draw_series(std::iter::once(label))?;
    }
    area.present()?;
    drop(chart);
    drop(area);
    Ok(with_dark_colors(&svg))
}

/// The picture with a second set of colors, which a browser takes where its user prefers dark pages.
fn with_dark_colors(svg: &str) -> String {
    let lines = LINES.iter().map(|line| (line.light, line.dark));
    let rules = DARK.into_iter().chain(lines).map(|(RGBColor(r, g, b), dark)| {
        let light = format!("#{r:02X}{g:02X}{b:02X}");
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    });
    let style = format!("<style>@media (prefers-color-scheme:dark){{{}}}</style>", rules.collect::<String>());
    match svg.find('>') {
        Some(end) => format!("{}\n{style}{}", &svg[..=end], &svg[end + 1..]),
        None => svg.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        fs::read_to_string(root.join("docs").join(name)).expect("a committed file")
    }

    #[test]
    fn the_committed_picture_is_drawn_from_the_committed_errors() {
        let drawn = svg(&committed("accuracy.csv")).expect("a picture");
        assert!(drawn == committed("accuracy.svg"), "cargo xtask demo --plot docs/accuracy.svg");
    }

    /// Every color of the picture has one for dark pages, so that nothing is dark on dark.
    #[test]
    fn every_color_has_its_dark_one() {
        let drawn = svg(&committed("accuracy.csv")).expect("a picture");
        let (style, body) = drawn.split_once("</style>").expect("a style");
        let mut colors = 0;
        for attribute in ["fill=\"#", "stroke=\"#"] {
            for color in body.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(style.contains(&format!("[{attribute}{color}\"]{{")), "{attribute}{color}");
                colors += 1;
            }
        }
        assert!(colors > 20, "{colors} colors");
    }

    #[test]
    fn a_file_without_rows_is_refused() {
        assert_eq!(svg("position,a,b,c\n").unwrap_err().to_string(), "a row has four numbers");
        assert_eq!(svg("position,a,b,c\n1,2,3\n2,3,4\n").unwrap_err().to_string(), "a row has four numbers");
        assert_eq!(svg("position,a,b,c\n1,2,3,x\n").unwrap_err().to_string(), "\"x\" is no number");
    }
}

//! `posenc plot`: pictures of encodings and of measurements, each with its data.

mod biases;
mod canvas;
mod draw;
mod files;
mod picture;
mod rotations;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::Outcome;
use crate::tensors::replace;

/// Draw encodings, or what was measured of a model, as SVG or PNG
///
/// Axes have units, and lines are told apart by dashes and greys. The picture's numbers go to a CSV file with --data.
///
/// Examples:
///   posenc plot wavelengths Llama-3.1-8B/config.json --seq-len 131072 -o waves.svg
///   posenc plot decay 128,10000 --trained 4096 --scaling linear=4 --scaling yarn=4 -o decay.svg --data decay.csv
///   posenc plot bias alibi=8 t5-causal=32,128 -o bias.png
///   posenc plot attention probabilities.safetensors --trained 4096 -o distance.svg
///   posenc plot sweep runs.csv --trained 4096 -o sweep.svg
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Options {
    #[command(subcommand)]
    what: What,
    /// the picture: FILE.svg or FILE.png
    #[arg(short, long, global = true, value_name = "FILE")]
    out: Option<PathBuf>,
    /// the picture's numbers: panel, row, x, value
    #[arg(long, global = true, value_name = "FILE.csv")]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    Sinusoid(rotations::SinusoidOptions),
    Rope(rotations::RopeOptions),
    /// Wavelength of every pair, beside the trained length
    Wavelengths(rotations::Rotations),
    /// Score of equal vectors against distance: the mean of the pairs' cosines, times the squared attention factor
    Decay(rotations::Rotations),
    /// Turns of every pair in training and in the call, and how many reach angles that training did not have
    Coverage(rotations::Rotations),
    /// Largest error of a cosine against position: of this crate, of angles in f32, of a table in bf16
    Accuracy(rotations::Rotations),
    Bias(biases::BiasOptions),
    Matrix(biases::MatrixOptions),
    Table(biases::TableOptions),
    Attention(files::AttentionOptions),
    Loss(files::LossOptions),
    Sweep(files::SweepOptions),
}

impl What {
    /// Files that are read and may be CSV.
    fn inputs(&self) -> &[String] {
        match self {
            Self::Loss(options) => &options.files,
            Self::Sweep(options) => &options.files,
            _ => &[],
        }
    }
}

/// The picture's format, by the file's ending.
#[derive(Clone, Copy)]
enum Format {
    Svg,
    Png,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => bail!("{} ends in neither .svg nor .png", path.display()),
        }
    }
}

pub fn run(options: Options, out: &mut dyn Write) -> Result<Outcome> {
    if options.out.is_none() && options.data.is_none() {
        bail!("nothing to write: say -o FILE.svg, -o FILE.png or --data FILE.csv");
    }
    let format = options.out.as_deref().map(Format::of).transpose()?;
    if let Some(data) = options.data.as_deref().and_then(|data| data.canonicalize().ok())
        && options.what.inputs().iter().any(|input| Path::new(input).canonicalize().is_ok_and(|input| input == data))
    {
        bail!("{} is an input: write --data to another file", data.display());
    }
    let (picture, text) = match &options.what {
        What::Sinusoid(options) => rotations::sinusoid(options),
        What::Rope(options) => rotations::rope(options),
        What::Wavelengths(options) => rotations::wavelengths(options),
        What::Decay(options) => rotations::decay(options),
        What::Coverage(options) => rotations::coverage(options),
        What::Accuracy(options) => rotations::accuracy(options),
        What::Bias(options) => biases::bias(options),
        What::Matrix(options) => biases::matrix(options),
        What::Table(options) => biases::table(options),
        What::Attention(options) => files::attention(options),
        What::Loss(options) => files::loss(options),
        What::Sweep(options) => files::sweep(options),
    }?;
    for line in text {
        writeln!(out, "{line}")?;
    }
    let unseen = picture.unseen();
    if unseen > 0 {
        writeln!(
            out,
            "{unseen} values have no place in the picture: not finite, or not above 0 on a logarithmic axis"
        )?;
    }
    if let (Some(path), Some(format)) = (&options.out, format) {
        let bytes = match format {
            Format::Svg => draw::svg(&picture)?.into_bytes(),
            Format::Png => draw::png(&picture)?,
        };
        replace(path, |file| Ok(file.write_all(&bytes)?))?;
    }
    if let Some(path) = &options.data {
        let csv = picture.csv();
        replace(path, |file| Ok(file.write_all(csv.as_bytes())?))?;
    }
    Ok(Outcome::Same)
}

/// The heads asked for, or at most so many at equal steps.
fn chosen(asked: &[usize], heads: usize, most: usize) -> Result<Vec<usize>> {
    if let Some(head) = asked.iter().find(|head| **head >= heads) {
        anyhow::bail!("head {head} is asked for, there are {heads}");
    }
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let count = heads.min(most);
    Ok((0..count).map(|index| if count == 1 { 0 } else { index * (heads - 1) / (count - 1) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_chosen_at_equal_steps() {
        assert_eq!(chosen(&[], 12, 5).expect("heads"), [0, 2, 5, 8, 11]);
        assert_eq!(chosen(&[], 3, 5).expect("heads"), [0, 1, 2]);
        assert_eq!(chosen(&[2], 3, 5).expect("heads"), [2]);
        assert_eq!(chosen(&[3], 3, 5).expect_err("a head").to_string(), "head 3 is asked for, there are 3");
    }
}

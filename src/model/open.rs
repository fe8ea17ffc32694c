//! A model's files, by their names.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::keys::wrong;
use super::{Gguf, ModelPositions, ModelRope};
use crate::{Error, Result};

impl ModelRope {
    /// The RoPE of every layer, from a model's file or its folder.
    ///
    /// | path | read by |
    /// |---|---|
    /// | a folder | its `config.json`, else its `params.json`, else its only `.gguf` |
    /// | `*.gguf` | [`ModelRope::from_gguf`]; metadata alone is read |
    /// | `params.json` | [`ModelRope::from_mistral`] |
    /// | any other file | [`ModelRope::from_hf`] |
    ///
    /// # Errors
    /// [`Error::Config`] if the file cannot be read or the folder has none of them; then those of the function that reads it.
    ///
    /// # Example
    /// ```no_run
    /// let model = posenc::ModelRope::open("Llama-3.1-8B/")?;
    /// println!("{}", model.describe());
    /// # Ok::<(), posenc::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        match Text::open(path.as_ref())? {
            Text::Hf(json) => Self::from_hf(&json),
            Text::Mistral(json) => Self::from_mistral(&json),
            Text::Gguf(gguf) => Self::from_gguf(&gguf),
        }
    }
}

impl ModelPositions {
    /// What takes position in, layer by layer, from a model's file or its folder: as [`ModelRope::open`].
    ///
    /// # Errors
    /// As [`ModelRope::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        match Text::open(path.as_ref())? {
            Text::Hf(json) => Self::from_hf(&json),
            Text::Mistral(json) => Self::from_mistral(&json),
            Text::Gguf(gguf) => Self::from_gguf(&gguf),
        }
    }
}

/// What a model's file holds.
pub(super) enum Text {
    Hf(String),
    Mistral(String),
    Gguf(Gguf),
}

impl Text {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unreadable = |error: std::io::Error| Error::Config(format!("cannot read {}: {error}", path.display()));
        if fs::metadata(path).map_err(unreadable)?.is_dir() {
            return Self::open(&file_of(path)?);
        }
        if has_ending(path, "gguf") {
            return Ok(Self::Gguf(Gguf::read(BufReader::new(File::open(path).map_err(unreadable)?))?));
        }
        let json = fs::read_to_string(path).map_err(unreadable)?;
        Ok(match path.file_name() {
            Some(name) if name == "params.json" => Self::Mistral(json),
            _ => Self::Hf(json),
        })
    }
}

/// The file of a model's folder that says how it rotates.
fn file_of(folder: &Path) -> Result<PathBuf> {
    let unreadable = |error| Error::Config(format!("cannot list {}: {error}", folder.display()));
    if let Some(json) = ["config.json", "params.json"].map(|name| folder.join(name)).into_iter().find(|it| it.is_file())
    {
        return Ok(json);
    }
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(unreadable)?;
    let mut files: Vec<_> = entries.iter().map(fs::DirEntry::path).filter(|path| has_ending(path, "gguf")).collect();
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => wrong(format!("{} has no config.json, params.json or .gguf file", folder.display())),
        (Some(_), others) => wrong(format!("{} has {} .gguf files, name one of them", folder.display(), others + 1)),
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|it| it.eq_ignore_ascii_case(ending))
}

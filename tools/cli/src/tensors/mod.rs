//! Tensors in files: safetensors and NumPy's `.npy`.
//!
//! A tensor is named `FILE` or `FILE.safetensors:NAME`. Headers are read first; elements are read when asked for, so that a
//! large file costs what is taken from it.

mod npy;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bytemuck::Pod;
use posenc::half::{bf16, f16};

use crate::progress::Progress;

/// Element types that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
}

impl Dtype {
    /// The types by their names in safetensors.
    const NAMES: [(Self, &'static str); 6] = [
        (Self::F64, "F64"),
        (Self::F32, "F32"),
        (Self::F16, "F16"),
        (Self::Bf16, "BF16"),
        (Self::I64, "I64"),
        (Self::I32, "I32"),
    ];

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    pub const fn is_float(self) -> bool {
        !matches!(self, Self::I64 | Self::I32)
    }

    /// As Rust and PyTorch name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
        }
    }
}

/// An element type.
pub trait Element: Pod {
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {
        $(impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        })*
    };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => Bf16, i64 => I64, i32 => I32);

/// A tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// little-endian
    bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of `shape`, which holds as many elements as there are in `data`.
    pub fn new<T: Element>(shape: &[usize], data: &[T]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "elements of {shape:?}");
        Self { dtype: T::DTYPE, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements, if they are of this type.
    pub fn elements<T: Element>(&self) -> Option<Vec<T>> {
        (self.dtype == T::DTYPE).then(|| bytemuck::pod_collect_to_vec(&self.bytes))
    }

    /// The elements as `f64`: exact but for integers beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        fn all<T: Element>(bytes: &[u8], to: impl Fn(T) -> f64) -> Vec<f64> {
            bytes.chunks_exact(size_of::<T>()).map(|it| to(bytemuck::pod_read_unaligned(it))).collect()
        }
        match self.dtype {
            Dtype::F64 => all::<f64>(&self.bytes, |it| it),
            Dtype::F32 => all::<f32>(&self.bytes, f64::from),
            Dtype::F16 => all::<f16>(&self.bytes, f64::from),
            Dtype::Bf16 => all::<bf16>(&self.bytes, f64::from),
            Dtype::I64 => all::<i64>(&self.bytes, |it| it as f64),
            Dtype::I32 => all::<i32>(&self.bytes, f64::from),
        }
    }

    /// The elements as integers, if they are.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match self.dtype {
            Dtype::I64 => self.elements(),
            Dtype::I32 => self.elements::<i32>().map(|list| list.into_iter().map(i64::from).collect()),
            _ => None,
        }
    }
}

/// Where a tensor's elements are in its file.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dtype: std::result::Result<Dtype, String>,
    shape: Vec<usize>,
    begin: u64,
    bytes: u64,
    /// first index fastest, as in Fortran
    is_fortran: bool,
}

/// A file of tensors whose header was read.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    /// the name after `:`, where the caller gave one
    chosen: Option<String>,
}

/// Headers of safetensors, at most; the format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes between two steps of a progress bar.
const CHUNK: usize = 16 << 20;

impl Tensors {
    /// Opens `FILE` or `FILE.safetensors:NAME`, and reads the header.
    pub fn open(what: &str) -> Result<Self> {
        let (path, chosen) = match what.rsplit_once(".safetensors:") {
            Some((stem, name)) => (PathBuf::from(format!("{stem}.safetensors")), Some(name.to_string())),
            None => (PathBuf::from(what), None),
        };
        let is_npy = is_npy(&path)?;
        let mut file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(!metadata.is_dir(), "{} is a folder, name a file in it", path.display());
        let length = metadata.len();
        let header = if is_npy { npy::header(&path, &mut file, length) } else { header(&mut file, length) };
        let entries = header.with_context(|| path.display().to_string())?;
        let tensors = Self { path, file, entries, chosen };
        if let Some(name) = &tensors.chosen {
            tensors.entry(name)?;
        }
        Ok(tensors)
    }

    /// Names of the tensors, in the file's order; of one chosen by name, that one.
    pub fn names(&self) -> Vec<&str> {
        match &self.chosen {
            Some(name) => vec![name],
            None => self.entries.iter().map(|entry| entry.name.as_str()).collect(),
        }
    }

    /// The only tensor, or the one chosen by name.
    pub fn only(&mut self) -> Result<Tensor> {
        let name = match self.names()[..] {
            [name] => name.to_string(),
            [] => bail!("{} holds no tensor", self.path.display()),
            _ => bail!(
                "{} holds {} tensors, name one: {}:NAME with one of {}",
                self.path.display(),
                self.entries.len(),
                self.path.display(),
                self.listed()
            ),
        };
        self.read(&name)
    }

    /// Reads one tensor.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        let Entry { dtype, shape, begin, bytes, is_fortran, .. } = self.entry(name)?.clone();
        let of = || format!("{}: tensor {name:?}", self.path.display());
        let dtype = match dtype {
            Ok(dtype) => dtype,
            Err(other) => {
                let known = Dtype::NAMES.map(|(_, name)| name).join(", ");
                bail!("{} is of type {other}, read are {known}", of());
            }
        };
        self.file.seek(SeekFrom::Start(begin)).with_context(of)?;
        let length = usize::try_from(bytes).with_context(of)?;
        let mut data = Vec::new();
        data.try_reserve_exact(length).with_context(|| format!("{} takes {length} bytes", of()))?;
        data.resize(length, 0);
        let mut progress = Progress::new(bytes, format!("reading {}", self.path.display()));
        for chunk in data.chunks_mut(CHUNK) {
            self.file.read_exact(chunk).with_context(of)?;
            progress.step(chunk.len() as u64);
        }
        let tensor = Tensor { dtype, shape, bytes: data };
        Ok(if is_fortran { npy::row_major(&tensor) } else { tensor })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.entries.iter().find(|entry| entry.name == name);
        entry.with_context(|| format!("{} has no tensor {name:?}, only {}", self.path.display(), self.listed()))
    }

    /// The first names, for an error.
    fn listed(&self) -> String {
        let mut names: Vec<_> = self.entries.iter().take(8).map(|entry| entry.name.as_str()).collect();
        if self.entries.len() > names.len() {
            names.push("...");
        }
        names.join(", ")
    }
}

/// Reads the header of safetensors and compares it with the file's length.
fn header(file: &mut File, length: u64) -> Result<Vec<Entry>> {
    let mut prefix = [0; 8];
    ensure!(length >= 8, "the file has {length} bytes, safetensors begin with 8 that say how long the header is");
    file.read_exact(&mut prefix)?;
    let size = u64::from_le_bytes(prefix);
    ensure!(size <= LONGEST_HEADER, "the header claims {size} bytes, safetensors have at most {LONGEST_HEADER}");
    ensure!(size <= length - 8, "the header claims {size} bytes, the file has {} behind the first 8", length - 8);
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text)?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(&text).context("the header is not that of safetensors")?;
    let (needed, there) = (metadata.data_len() as u64, length - 8 - size);
    ensure!(
        needed == there,
        "tensors need {needed} bytes by the header, the file has {there}: it is damaged or cut off"
    );
    let entries = metadata.offset_keys().into_iter().filter_map(|name| {
        let info = metadata.info(&name)?;
        let text = info.dtype.to_string();
        let dtype = Dtype::NAMES.iter().find(|(_, name)| *name == text).map(|(dtype, _)| *dtype).ok_or(text);
        let (begin, end) = info.data_offsets;
        Some(Entry {
            name,
            dtype,
            shape: info.shape.clone(),
            begin: 8 + size + begin as u64,
            bytes: (end - begin) as u64,
            is_fortran: false,
        })
    });
    Ok(entries.collect())
}

/// Whether the path ends in `.npy`; an error if it ends in neither that nor `.safetensors`.
fn is_npy(path: &Path) -> Result<bool> {
    match path.extension().and_then(|it| it.to_str()) {
        Some("npy") => Ok(true),
        Some("safetensors") => Ok(false),
        _ => bail!("{} ends in neither .safetensors nor .npy", path.display()),
    }
}

/// Writes tensors to `path`, of the kind that its ending says: whole, or not at all; never onto one of `inputs`.
pub fn write(path: &Path, tensors: &[(&str, &Tensor)], inputs: &[&Tensors]) -> Result<()> {
    let is_npy = is_npy(path)?;
    for input in inputs {
        let same = path.canonicalize().ok().is_some_and(|path| input.path.canonicalize().is_ok_and(|it| it == path));
        ensure!(!same, "{} is the input: write to another file", path.display());
    }
    if is_npy {
        let [(_, tensor)] = tensors else {
            bail!("a .npy file holds one tensor, {} are to be written: use .safetensors", tensors.len());
        };
        return replace(path, |file| npy::write(file, tensor));
    }
    let views = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype {
            Dtype::F64 => safetensors::Dtype::F64,
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::I64 => safetensors::Dtype::I64,
            Dtype::I32 => safetensors::Dtype::I32,
        };
        Ok((*name, safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes)?))
    });
    let data = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    replace(path, |file| Ok(file.write_all(&data)?))
}

/// Writes a file beside `path` and renames it, so that a failure leaves what was there.
pub fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let of = || format!("cannot write {}", path.display());
    let mut builder = tempfile::Builder::new();
    // As a file that is simply created: a temporary one is its owner's alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(of)?;
    write(&mut file).with_context(of)?;
    file.flush().with_context(of)?;
    file.persist(path).with_context(of)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Tensors> {
        Tensors::open(path.to_str().expect("a path in UTF-8"))
    }

    #[test]
    fn every_type_survives_both_formats() {
        let folder = tempfile::tempdir().expect("a folder");
        let half = [1.5, -2.0, 0.25, f32::INFINITY, 3.0, 0.0];
        let tensors = [
            Tensor::new(&[2, 3], &[1.0f64, 2.0, 3.0, 4.0, 5.0, f64::NEG_INFINITY]),
            Tensor::new(&[6], &half),
            Tensor::new(&[3, 2], &half.map(f16::from_f32)),
            Tensor::new(&[1, 6], &half.map(bf16::from_f32)),
            Tensor::new(&[2, 1, 3], &[i64::MIN, -1, 0, 1, 2, i64::MAX]),
            Tensor::new(&[0, 4], &[0i32; 0]),
            Tensor::new(&[], &[7i32]),
        ];
        for tensor in &tensors {
            for ending in ["safetensors", "npy"] {
                let path = folder.path().join(format!("x.{ending}"));
                write(&path, &[("x", tensor)], &[]).expect(ending);
                assert_eq!(open(&path).expect(ending).only().expect(ending), *tensor, "{ending}");
            }
        }
        let path = folder.path().join("all.safetensors");
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("t{i}")).collect();
        let named: Vec<_> = names.iter().map(String::as_str).zip(&tensors).collect();
        write(&path, &named, &[]).expect("all");
        let mut all = open(&path).expect("all");
        for (name, tensor) in named {
            assert_eq!(all.read(name).expect(name), *tensor);
        }
        let chosen = format!("{}:t1", path.display());
        assert_eq!(Tensors::open(&chosen).expect("chosen").only().expect("chosen"), tensors[1]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.safetensors");
        let tensor = Tensor::new(&[2], &[1.0f32, 2.0]);
        write(&path, &[("x", &tensor), ("y", &tensor)], &[]).expect("written");
        let whole = std::fs::read(&path).expect("there");
        let error = |what: &str| format!("{:#}", Tensors::open(what).expect_err("an error"));
        let text = path.to_str().expect("a path in UTF-8");
        assert!(error("nowhere.npy").starts_with("cannot read nowhere.npy: "), "{}", error("nowhere.npy"));
        assert!(error("x.bin").ends_with("ends in neither .safetensors nor .npy"));
        assert!(
            error(&format!("{text}:z")).ends_with("has no tensor \"z\", only x, y"),
            "{}",
            error(&format!("{text}:z"))
        );
        let many = format!("{:#}", open(&path).expect("whole").only().expect_err("two"));
        assert!(many.contains("holds 2 tensors, name one"), "{many}");
        for (length, want) in [
            (3, "the file has 3 bytes, safetensors begin with 8"),
            (20, "the header claims"),
            (whole.len() - 1, "the file has 15: it is damaged or cut off"),
        ] {
            std::fs::write(&path, &whole[..length]).expect("cut");
            assert!(error(text).contains(want), "{}", error(text));
        }
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, &huge).expect("huge");
        assert!(error(text).contains("safetensors have at most 100000000"), "{}", error(text));
        let mut wrong = whole;
        wrong[9] = b'\n';
        std::fs::write(&path, &wrong).expect("wrong");
        assert!(error(text).contains("line 2 column"), "{}", error(text));
    }

    #[test]
    fn types_that_are_not_read_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.safetensors");
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![3], &[1, 2, 3]).expect("a view");
        std::fs::write(&path, safetensors::serialize([("ids", view)], None).expect("bytes")).expect("written");
        let error = format!("{:#}", open(&path).expect("a header").only().expect_err("u8"));
        assert!(error.contains("tensor \"ids\" is of type U8, read are F64, F32, F16, BF16, I64, I32"), "{error}");
    }

    #[test]
    fn an_input_is_not_written_onto_and_a_failure_leaves_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.npy");
        let tensor = Tensor::new(&[2], &[1.0f32, 2.0]);
        write(&path, &[("x", &tensor)], &[]).expect("written");
        let input = open(&path).expect("there");
        let error = write(&folder.path().join("./x.npy"), &[("x", &tensor)], &[&input]).expect_err("the input");
        assert!(error.to_string().ends_with("is the input: write to another file"), "{error}");
        replace(&path, |file| {
            file.write_all(b"half")?;
            bail!("it broke")
        })
        .expect_err("broken");
        assert_eq!(open(&path).expect("there").only().expect("whole"), tensor);
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 1, "a temporary file stays");
    }
}

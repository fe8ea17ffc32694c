//! NumPy's `.npy`, versions 1 to 3: magic, version, the header's length, a dictionary in Python's syntax, elements.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Dtype, Entry, Tensor};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The header is padded so that elements begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// NumPy's names of the types. bfloat16 is no type of NumPy's own: `ml_dtypes` writes it as two raw bytes.
const NAMES: [(Dtype, &str); 6] = [
    (Dtype::F64, "<f8"),
    (Dtype::F32, "<f4"),
    (Dtype::F16, "<f2"),
    (Dtype::Bf16, "<V2"),
    (Dtype::I64, "<i8"),
    (Dtype::I32, "<i4"),
];

pub fn header(path: &Path, file: &mut File, length: u64) -> Result<Vec<Entry>> {
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).context("it is too short for the header of .npy")?;
    ensure!(prefix.starts_with(MAGIC), "it does not begin as .npy does");
    let width = match prefix[6] {
        1 => 2,
        2 | 3 => 4,
        other => bail!("version {other} of .npy, read are 1 to 3"),
    };
    let mut size = [0; 4];
    file.read_exact(&mut size[..width]).context("it is too short for the header of .npy")?;
    let size = u64::from(u32::from_le_bytes(size));
    let begin = 8 + width as u64 + size;
    ensure!(begin <= length, "the header claims {size} bytes, the file has {}", length - 8 - width as u64);
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text)?;
    let text = String::from_utf8(text).context("the header is not text")?;

    let descr = value(&text, "descr")?.trim_matches(['\'', '"']);
    let dtype = NAMES.iter().find(|(_, name)| *name == descr || *name == descr.replace(['|', '='], "<"));
    let dtype = dtype.map(|(dtype, _)| *dtype).ok_or_else(|| format!("{descr} in NumPy"));
    let is_fortran = match value(&text, "fortran_order")? {
        "True" => true,
        "False" => false,
        other => bail!("fortran_order is {other}, it must be True or False"),
    };
    let shape = value(&text, "shape")?;
    let inner = shape.strip_prefix('(').and_then(|it| it.strip_suffix(')'));
    let inner = inner.with_context(|| format!("shape is {shape}, it must be in parentheses"))?;
    let sizes = inner.split(',').map(str::trim).filter(|it| !it.is_empty());
    let shape = sizes.map(|it| it.parse::<usize>().with_context(|| format!("shape holds {it:?}")));
    let shape = shape.collect::<Result<Vec<_>>>()?;
    let size = match &dtype {
        Ok(dtype) => shape.iter().try_fold(dtype.size() as u64, |size, &it| size.checked_mul(it as u64)),
        // It is refused when it is read.
        Err(_) => Some(length - begin),
    };
    let size = size.with_context(|| format!("the shape {shape:?} has more elements than a file can hold"))?;
    let there = length - begin;
    ensure!(size == there, "elements need {size} bytes by the header, the file has {there}: it is damaged or cut off");
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(vec![Entry { name, dtype, shape, begin, bytes: size, is_fortran }])
}

/// The value of a key in the header's dictionary: up to the comma outside parentheses, or the closing brace.
fn value<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    let quoted = [format!("'{key}':"), format!("\"{key}\":")];
    let rest = quoted.iter().find_map(|key| text.split_once(key.as_str())).map(|(_, rest)| rest.trim_start());
    let rest = rest.with_context(|| format!("the header has no {key}"))?;
    let mut depth = 0;
    let end = rest.find(|c: char| {
        depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
        depth == 0 && matches!(c, ',' | '}')
    });
    Ok(rest[..end.with_context(|| format!("the value of {key} in the header does not end"))?].trim())
}

pub fn write(file: &mut dyn Write, tensor: &Tensor) -> Result<()> {
    let (_, descr) = NAMES.iter().find(|(dtype, _)| *dtype == tensor.dtype).context("every type has a name")?;
    let sizes: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    let used = 10 + text.len() + 1;
    text.push_str(&" ".repeat(used.next_multiple_of(ALIGNMENT) - used));
    text.push('\n');
    file.write_all(MAGIC)?;
    file.write_all(&[1, 0])?;
    file.write_all(&u16::try_from(text.len()).context("the shape has too many sizes")?.to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    Ok(file.write_all(&tensor.bytes)?)
}

/// The same tensor, whose first index ran fastest.
pub fn row_major(tensor: &Tensor) -> Tensor {
    let (shape, size) = (&tensor.shape, tensor.dtype.size());
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    let mut index = vec![0; shape.len()];
    for _ in 0..tensor.len() {
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, n)| at * n + i);
        bytes.extend_from_slice(&tensor.bytes[at * size..(at + 1) * size]);
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    Tensor { bytes, ..tensor.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::Tensors;
    use super::*;

    fn read(header: &str, data: &[u8]) -> Result<Tensor> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.npy");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([2, 0]);
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes)?;
        Tensors::open(path.to_str().context("UTF-8")?)?.only()
    }

    #[test]
    fn fortran_order_becomes_row_major() {
        let data: Vec<u8> = [1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = read("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", &data).expect("read");
        assert_eq!(tensor, Tensor::new(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]));
    }

    #[test]
    fn the_order_of_keys_and_the_kind_of_quotes_are_free() {
        let tensor =
            read("{\"shape\": (3,), \"fortran_order\": False, \"descr\": \"|V2\"}", &[0x80, 0x3f, 0, 0, 0, 0x40]);
        assert_eq!(tensor.expect("read").to_f64(), [1.0, 0.0, 2.0]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (header, want) in [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "is of type >f4 in NumPy"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
                "elements need 8 bytes by the header, the file has 4",
            ),
            ("{'descr': '<f4', 'fortran_order': False}", "the header has no shape"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "fortran_order is 0"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, -3)}", "shape holds \"-3\""),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8)}", "more elements than"),
        ] {
            let error = format!("{:#}", read(header, &[0; 4]).expect_err(header));
            assert!(error.contains(want), "{error}");
        }
    }
}

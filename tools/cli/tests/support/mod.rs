//! The program as a user runs it.
#![allow(dead_code, reason = "each program of tests uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run printed, and its status.
pub struct Run {
    pub out: String,
    pub err: String,
    pub status: i32,
}

impl Run {
    /// The standard output of a run that ends with `status`.
    #[track_caller]
    pub fn ends(self, status: i32) -> String {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        self.out
    }

    /// The one line of an error, with status 2 and nothing on standard output.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_eq!(self.status, 2, "{}{}", self.out, self.err);
        assert_eq!(self.out, "", "an error comes before any output");
        self.err
    }
}

/// Runs `posenc` in a folder.
pub fn posenc(folder: &Path, arguments: &[&str]) -> Run {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_posenc")).current_dir(folder).args(arguments).output().expect("posenc runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { out: text(stdout), err: text(stderr), status: status.code().expect("no signal") }
}

/// Writes f32 as `.npy`.
pub fn npy(folder: &Path, name: &str, shape: &[usize], data: &[f32]) -> PathBuf {
    let sizes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes})}}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data.iter().flat_map(|x| x.to_le_bytes()));
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// The first example of an operation's schema, as JSON.
pub fn example(folder: &Path, op: &str) -> serde_json::Value {
    let text = posenc(folder, &["apply", "--schema", op]).ends(0);
    let json = &text[text.find("\n{").expect("an example")..];
    serde_json::Deserializer::from_str(json).into_iter().next().expect("an example").expect("JSON")
}

/// Writes an operation as JSON.
pub fn write_op(folder: &Path, name: &str, op: &serde_json::Value) {
    std::fs::write(folder.join(name), op.to_string()).expect("a file");
}

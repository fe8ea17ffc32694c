//! NVIDIA's compiler library and disassembler, as Python packages in `target/cuda`. No toolkit, no GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// The last NVRTC whose cubins load on every driver from R525 on.
const NVRTC: (&str, &str) = ("nvidia-cuda-nvrtc-cu12==12.9.86", "nvidia/cuda_nvrtc/lib");
const PTXAS: (&str, &str) = ("nvidia-cuda-nvcc-cu12==12.9.86", "nvidia/cuda_nvcc/bin/ptxas");
const NVDISASM: (&str, &str) = ("nvidia-cuda-nvdisasm==13.5.37", "nvidia/cu13/bin/nvdisasm");

/// What was found or fetched.
#[derive(Default)]
pub struct Tools {
    nvrtc: Option<PathBuf>,
    ptxas: Option<PathBuf>,
    nvdisasm: Option<PathBuf>,
}

impl Tools {
    /// All of them, fetched once.
    pub fn fetch() -> Result<Self> {
        Ok(Self { nvrtc: Some(nvrtc()?), ptxas: Some(package(PTXAS)?), nvdisasm: Some(package(NVDISASM)?) })
    }

    /// NVRTC alone, or a word about going on without it.
    pub fn fetch_or_explain() -> Self {
        match nvrtc() {
            Ok(path) => Self { nvrtc: Some(path), ..Self::default() },
            Err(error) => {
                eprintln!("no NVRTC, so no kernels: {error:#}\ngoing on with the CPU alone");
                Self::default()
            }
        }
    }

    pub fn has_nvrtc(&self) -> bool {
        self.nvrtc.is_some()
    }

    /// What builds and tests look for.
    pub fn environment(&self) -> Vec<(&'static str, &Path)> {
        let mut environment = Vec::new();
        for (name, path) in
            [("POSENC_NVRTC", &self.nvrtc), ("POSENC_PTXAS", &self.ptxas), ("POSENC_NVDISASM", &self.nvdisasm)]
        {
            if let Some(path) = path {
                environment.push((name, path.as_path()));
            }
        }
        if self.ptxas.is_some() {
            environment.push(("POSENC_PTX", Path::new("all")));
        }
        environment
    }
}

fn nvrtc() -> Result<PathBuf> {
    match std::env::var_os("POSENC_NVRTC") {
        Some(path) => Ok(path.into()),
        None => package(NVRTC),
    }
}

/// The file or folder of a package, fetched by pip if it is not there.
fn package((name, inside): (&str, &str)) -> Result<PathBuf> {
    let folder = std::env::current_dir()?.join("target/cuda").join(name.replace("==", "-"));
    let wanted = folder.join(inside);
    if wanted.exists() {
        return Ok(wanted);
    }
    let bar = ProgressBar::new_spinner().with_message(format!("fetching {name} through pip"));
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    bar.enable_steady_tick(Duration::from_millis(120));
    // A half-fetched package must not be taken for a whole one: it gets its name when it is complete.
    let partial = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"])
        .arg(&partial)
        .arg(name)
        .stdin(Stdio::null())
        .output()
        .context("cannot start python3")?;
    bar.finish_and_clear();
    if !output.status.success() {
        bail!("pip does not fetch {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&partial, &folder)?;
    if !wanted.exists() {
        bail!("{name} does not hold {inside}");
    }
    Ok(wanted)
}

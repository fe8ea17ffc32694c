//! NVIDIA's compiler library, assembler and disassembler, as Python packages in `target/cuda`. No toolkit, no GPU.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::pip;

const FOLDER: &str = "target/cuda";
const NVRTC: (&str, &str) = ("nvidia-cuda-nvrtc-cu12", "nvidia/cuda_nvrtc/lib");
const PTXAS: (&str, &str) = ("nvidia-cuda-nvcc-cu12", "nvidia/cuda_nvcc/bin/ptxas");
const NVDISASM: (&str, &str) = ("nvidia-cuda-nvdisasm", "nvidia/cu13/bin/nvdisasm");

/// What was found or fetched.
#[derive(Default)]
pub struct Tools {
    nvrtc: Option<PathBuf>,
    ptxas: Option<PathBuf>,
    nvdisasm: Option<PathBuf>,
    /// every architecture's PTX is wanted, so that the emulator can run each
    all_ptx: bool,
}

impl Tools {
    /// All of them, fetched once.
    pub fn fetch() -> Result<Self> {
        Ok(Self { ptxas: Some(package(PTXAS)?), nvdisasm: Some(package(NVDISASM)?), ..Self::fetch_nvrtc()? })
    }

    /// NVRTC alone: what a build needs.
    pub fn fetch_nvrtc() -> Result<Self> {
        Ok(Self { nvrtc: Some(nvrtc()?), all_ptx: true, ..Self::default() })
    }

    /// NVRTC and the assembler: what tests need.
    pub fn fetch_for_tests() -> Result<Self> {
        Ok(Self { ptxas: Some(package(PTXAS)?), ..Self::fetch_nvrtc()? })
    }

    /// NVRTC for a build as a user has it, or a word about going on without it.
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
        if self.all_ptx {
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

fn package((name, inside): (&str, &str)) -> Result<PathBuf> {
    pip::package(FOLDER, name, inside)
}

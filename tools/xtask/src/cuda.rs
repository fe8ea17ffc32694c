//! NVIDIA's compiler library, assembler and disassembler, as Python packages in `target/cuda`, where the build script and
//! `tools/run-on-device` find them. No toolkit, no GPU.

use std::path::PathBuf;

use anyhow::Result;

use crate::pip;

const FOLDER: &str = "target/cuda";
const NVRTC: (&str, &str) = ("nvidia-cuda-nvrtc-cu12", "nvidia/cuda_nvrtc/lib");
const PTXAS: (&str, &str) = ("nvidia-cuda-nvcc-cu12", "nvidia/cuda_nvcc/bin/ptxas");
const SANITIZER: (&str, &str) = ("nvidia-cuda-sanitizer-api-cu12", "nvidia/cuda_sanitizer_api");
const NVDISASM: (&str, &str) = ("nvidia-cuda-nvdisasm", "nvidia/cu13/bin/nvdisasm");

/// Fetches all of them that are not there, and gives their paths by the variables that name them.
pub fn fetch() -> Result<[(&'static str, PathBuf); 3]> {
    Ok([("POSENC_NVRTC", nvrtc()?), ("POSENC_PTXAS", package(PTXAS)?), ("POSENC_NVDISASM", package(NVDISASM)?)])
}

/// What tests and benches need, which find it by themselves.
pub fn fetch_for_tests() -> Result<()> {
    fetch()?;
    Ok(())
}

/// NVRTC, which a build needs: POSENC_NVRTC's, or the pinned one.
pub fn nvrtc() -> Result<PathBuf> {
    match std::env::var_os("POSENC_NVRTC") {
        Some(path) => Ok(path.into()),
        None => pinned_nvrtc(),
    }
}

/// The one that packages and committed tables are made with.
pub fn pinned_nvrtc() -> Result<PathBuf> {
    package(NVRTC)
}

/// compute-sanitizer's folder of programs and libraries.
pub fn sanitizer() -> Result<PathBuf> {
    package(SANITIZER)
}

fn package((name, inside): (&str, &str)) -> Result<PathBuf> {
    pip::package(FOLDER, name, inside)
}

#[cfg(test)]
mod tests {
    /// The build script looks for the fetched NVRTC by its version.
    #[test]
    fn the_build_script_and_the_error_name_the_pinned_version() {
        let requirements = include_str!("../requirements.txt");
        let pinned =
            requirements.split_whitespace().find(|word| word.starts_with(super::NVRTC.0)).expect("it is pinned");
        let script = include_str!("../../../build/find.rs");
        assert!(script.contains(&format!("PINNED: &str = {pinned:?}")), "{pinned}");
        let folder = format!("{}/{}", super::FOLDER, pinned.replace("==", "-"));
        assert!(script.contains(&format!("FETCHED: &str = {folder:?}")), "{folder}");
        assert!(include_str!("../../../src/error.rs").contains(pinned));
    }
}

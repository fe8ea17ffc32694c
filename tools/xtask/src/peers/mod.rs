//! posenc beside other implementations: their times on a GPU, or, without one, whether every comparison holds.

pub mod count;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{bundle, cargo, cuda, device, run};

const ROWS: &str = "target/peers.csv";

/// Builds the C library and runs `benches/peers/run.py` with it; a check runs it on the emulator.
pub fn run_all(check: bool, room: Option<&str>) -> Result<()> {
    let python = std::env::var_os("POSENC_PYTHON").unwrap_or_else(|| "python3".into());
    let mut torch = Command::new(&python);
    torch.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !torch.status().is_ok_and(|status| status.success()) {
        bail!(
            "{} has no PyTorch, beside which posenc is run; POSENC_PYTHON names another interpreter",
            Path::new(&python).display()
        );
    }
    let nvrtc = cuda::nvrtc()?;
    let device = device::Device::find(check)?;
    if !check && !device.is_real() {
        bail!("there is no GPU to measure on; --check compares results on the emulator");
    }
    let mut build = cargo();
    build.args(["build", "--package", "posenc-c"]).args((!check).then_some("--release"));
    let library: PathBuf = bundle::built(&mut build)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "so"))
        .context("cargo built no libposenc_c.so")?;
    let mut peers = Command::new(&python);
    peers.env("POSENC_NVRTC", nvrtc);
    // PyTorch warns of the libraries that a machine without a GPU lacks.
    peers.args(["-B", "-W", "ignore", "benches/peers/run.py", "--library"]).arg(library);
    if check {
        peers.arg("--check").env("EMULATOR_STRICT", "all");
    } else {
        peers.args(["--out", ROWS]);
    }
    peers.args(room.iter().flat_map(|room| ["--room", room]));
    device.prepare(&mut peers)?;
    run(&mut peers)
}

//! Other implementations' kernels, fetched in pinned versions, compiled without a GPU and counted on the emulator beside ours.
//!
//! Nothing of theirs is in the repository. A peer that cannot be fetched or compiled is missing, and says why; it fails nobody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{bench, cargo, cuda, device, pip, run};

const REQUIREMENTS: &str = include_str!("../../../../benches/peers/requirements.txt");
/// Sources, and what is compiled of them.
const FOLDER: &str = "target/peers";
/// Our files that name their kernels.
const KERNELS: &str = "benches/peers/kernels";
/// The packages of nvcc, which lie in one folder.
const NVCC: [&str; 5] =
    ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl"];

/// Where a peer's source comes from.
enum Source {
    /// a package of `requirements.txt`
    Package(&'static str),
    /// files or folders of a commit, which is a hash of all of them
    Git { address: &'static str, commit: &'static str, paths: &'static [&'static str] },
    /// a crate, with the checksum of its package
    Crate { name: &'static str, version: &'static str, checksum: &'static str },
}

/// How its kernels are compiled.
enum Compiler {
    /// by nvcc, from our file of the peer's name
    Nvcc {
        flags: &'static [&'static str],
        /// folders of its source
        include: &'static [&'static str],
        cut: Option<Cut>,
    },
    /// by Triton, from this file of its source
    Triton { file: &'static str },
}

/// The part of a file that needs no more than a compiler: from one text on, and up to another.
struct Cut {
    file: &'static str,
    from: &'static str,
    until: &'static str,
}

struct Peer {
    /// as `benches/count` names it
    name: &'static str,
    source: Source,
    compiler: Compiler,
}

const PEERS: [Peer; 8] = [
    Peer {
        name: "flashinfer",
        source: Source::Package("flashinfer-python"),
        compiler: Compiler::Nvcc {
            flags: &[
                "-std=c++17",
                "-use_fast_math",
                "-DNDEBUG",
                "-DFLASHINFER_ENABLE_F16",
                "-DFLASHINFER_ENABLE_BF16",
                "-DFLASHINFER_ENABLE_FP8_E4M3",
                "-DFLASHINFER_ENABLE_FP8_E5M2",
            ],
            include: &[
                "flashinfer/data/include",
                "flashinfer/data/cccl/libcudacxx/include",
                "flashinfer/data/cccl/cub",
                "flashinfer/data/cccl/thrust",
            ],
            cut: None,
        },
    },
    Peer {
        name: "sglang",
        source: Source::Package("sglang"),
        compiler: Compiler::Nvcc {
            flags: &["-std=c++20", "--expt-relaxed-constexpr", "-DSGL_CUDA_ARCH=900"],
            include: &["sglang/kernels/jit/include", "sglang/kernels/jit/csrc"],
            cut: None,
        },
    },
    Peer {
        name: "vllm",
        source: Source::Git {
            address: "https://github.com/vllm-project/vllm",
            commit: "0f5257e245116449bfbe78a87c22aeef632eba8f",
            paths: &["csrc/pos_encoding_kernels.cu"],
        },
        compiler: Compiler::Nvcc {
            flags: &["-std=c++17"],
            include: &[],
            cut: Some(Cut {
                file: "csrc/pos_encoding_kernels.cu",
                from: "namespace vllm {",
                until: "void rotary_embedding(",
            }),
        },
    },
    Peer {
        name: "transformer_engine",
        source: Source::Git {
            address: "https://github.com/NVIDIA/TransformerEngine",
            commit: "d0067d0da6cb01811b8072a7d304f0e00344ce2b",
            paths: &["transformer_engine/common/fused_rope/fused_rope.cu"],
        },
        compiler: Compiler::Nvcc {
            flags: &["-std=c++17"],
            include: &[],
            cut: Some(Cut {
                file: "transformer_engine/common/fused_rope/fused_rope.cu",
                from: "template <typename scalar_t>\n__device__ void fused_rope_block_forward",
                until: "template <typename scalar_t>\n__global__ void fused_rope_backward_kernel",
            }),
        },
    },
    Peer {
        name: "candle",
        source: Source::Crate {
            name: "candle-kernels",
            version: "0.11.1",
            checksum: "8dc057aec95c3b1a0e595227cd039c1436da596f79ccc9e025ba17d070315851",
        },
        compiler: Compiler::Nvcc { flags: &["-std=c++17"], include: &["src"], cut: None },
    },
    Peer {
        name: "ggml",
        source: Source::Git {
            address: "https://github.com/ggml-org/ggml",
            commit: "d99724f2b141fed9e1a9f402213506c081433465",
            paths: &["include", "src"],
        },
        compiler: Compiler::Nvcc {
            flags: &["-std=c++17", "-use_fast_math", "-extended-lambda"],
            include: &["", "include", "src", "src/ggml-cuda"],
            cut: None,
        },
    },
    Peer {
        name: "liger",
        source: Source::Package("liger-kernel"),
        compiler: Compiler::Triton { file: "liger_kernel/ops/rope.py" },
    },
    Peer {
        name: "flash_attn",
        source: Source::Git {
            address: "https://github.com/Dao-AILab/flash-attention",
            commit: "0251105a2fb19d2957484b7f023cd8c115286ced",
            paths: &["flash_attn/ops/triton/rotary.py"],
        },
        compiler: Compiler::Triton { file: "flash_attn/ops/triton/rotary.py" },
    },
];

/// Fetches, compiles and counts; with `record`, the rows become the day's record, and its plot.
pub fn run_all(record: bool, filter: Option<&str>) -> Result<()> {
    ensure!(!record || filter.is_none(), "a record holds every case, so --record goes with no filter");
    cuda::fetch_for_tests()?;
    let folder = std::path::absolute(FOLDER)?;
    let made = folder.join("made");
    fs::create_dir_all(&made)?;
    for peer in &PEERS {
        if let Err(error) = peer.make(&folder, &made) {
            let why = format!("{error:#}").lines().collect::<Vec<_>>().join(" ");
            println!("missing: {}: {why}", peer.name);
            peer.remove(&made)?;
            fs::write(made.join(format!("{}.missing", peer.name)), why)?;
        }
    }
    let device = device::Device::find(true)?;
    let mut command = cargo();
    // With what tests are built of: nothing is timed.
    command.args(["test", "--quiet", "--package", "posenc-benches", "--bench", "count"]);
    device.prepare(&mut command)?;
    // Peers are not ours to check: what they read must lie in an allocation.
    command.env("POSENC_PEERS", &made).env("EMULATOR_CC", "9.0").env("EMULATOR_STRICT", "bounds");
    if record {
        bench::prepare_record(&mut command)?;
    }
    command.arg("--").args(filter);
    run(&mut command)?;
    if record { bench::keep_record() } else { Ok(()) }
}

impl Peer {
    /// Its version as the record has it.
    fn version(&self) -> Result<String> {
        Ok(match &self.source {
            Source::Package(name) => requirement(name)?.1.split("==").nth(1).unwrap_or_default().into(),
            Source::Git { commit, .. } => commit[..12].into(),
            Source::Crate { version, .. } => (*version).into(),
        })
    }

    /// Its files of the folder.
    fn remove(&self, made: &Path) -> Result<()> {
        for entry in fs::read_dir(made)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name
                .split('.')
                .next()
                .is_some_and(|stem| stem == self.name || stem.starts_with(&format!("{}_", self.name)))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Its PTX, version and assembler, unless they are there from the same inputs.
    fn make(&self, folder: &Path, made: &Path) -> Result<()> {
        let version = self.version()?;
        let stamp = made.join(format!("{}.inputs", self.name));
        let inputs = self.inputs(&version)?;
        if fs::read_to_string(&stamp).is_ok_and(|then| then == inputs) {
            return Ok(());
        }
        self.remove(made)?;
        println!("{} {version}", self.name);
        let source = self.fetch(&folder.join("src"))?;
        match &self.compiler {
            Compiler::Nvcc { flags, include, cut } => self.nvcc(folder, &source, made, flags, include, cut.as_ref())?,
            Compiler::Triton { file } => self.triton(folder, &source.join(file), made)?,
        }
        fs::write(made.join(format!("{}.version", self.name)), version)?;
        fs::write(stamp, inputs)?;
        Ok(())
    }

    /// All that its PTX is made of, as text.
    fn inputs(&self, version: &str) -> Result<String> {
        Ok(match &self.compiler {
            Compiler::Nvcc { flags, include, .. } => {
                let text = fs::read_to_string(Path::new(KERNELS).join(format!("{}.cu", self.name)))?;
                format!("{version}\n{flags:?}\n{include:?}\n{}\n{text}", requirement(NVCC[0])?.1)
            }
            Compiler::Triton { .. } => {
                let script = fs::read_to_string("benches/peers/triton_kernels.py")?;
                format!("{version}\n{}\n{script}", requirement("triton")?.1)
            }
        })
    }

    /// The folder of its source.
    fn fetch(&self, sources: &Path) -> Result<PathBuf> {
        fs::create_dir_all(sources)?;
        match &self.source {
            Source::Package(name) => package(sources, name),
            Source::Git { address, commit, paths } => {
                let folder = sources.join(format!("{}-{commit}", self.name));
                if !folder.exists() {
                    from_git(&folder, address, commit, paths)?;
                }
                Ok(folder)
            }
            Source::Crate { name, version, checksum } => {
                from_registry(&sources.join(self.name), name, version, checksum)
            }
        }
    }

    fn nvcc(
        &self,
        folder: &Path,
        source: &Path,
        made: &Path,
        flags: &[&str],
        include: &[&str],
        cut: Option<&Cut>,
    ) -> Result<()> {
        let cuda = packages(&folder.join("src"), "nvcc", &NVCC)?.join("nvidia/cu13");
        let tools = ["bin", "nvvm/bin"].map(|below| cuda.join(below));
        tools.iter().try_for_each(|tools| make_executable(tools))?;
        let mut nvcc = Command::new(cuda.join("bin/nvcc"));
        nvcc.args(["-ptx", "-O3", "-arch=compute_90"]).args(flags);
        let stubs = [Path::new(KERNELS).join("stubs"), made.to_path_buf()];
        let headers = match self.name {
            "sglang" => Some(package(&folder.join("src"), "apache-tvm-ffi")?.join("tvm_ffi/include")),
            _ => None,
        };
        for include in include.iter().map(|below| source.join(below)).chain(headers).chain(stubs) {
            nvcc.arg("-I").arg(include);
        }
        if let Some(cut) = cut {
            let text = fs::read_to_string(source.join(cut.file))?;
            let from = text.find(cut.from).with_context(|| format!("{} has no {:?}", cut.file, cut.from))?;
            let part = &text[from..];
            let until = part.find(cut.until).with_context(|| format!("{} has no {:?}", cut.file, cut.until))?;
            fs::create_dir_all(made.join("cut"))?;
            fs::write(made.join("cut").join(format!("{}.cuh", self.name)), &part[..until])?;
        }
        let ptx = made.join(format!("{}.ptx", self.name));
        nvcc.arg(Path::new(KERNELS).join(format!("{}.cu", self.name))).arg("-o").arg(&ptx);
        silent(&mut nvcc)?;
        fs::write(ptx.with_extension("ptxas"), path_text(&cuda.join("bin/ptxas"))?)?;
        Ok(())
    }

    fn triton(&self, folder: &Path, file: &Path, made: &Path) -> Result<()> {
        let triton = package(&folder.join("src"), "triton")?;
        let tools = triton.join("triton/backends/nvidia/bin");
        make_executable(&tools)?;
        let mut python = Command::new("python3");
        python.args(["-B", "-W", "ignore", "benches/peers/triton_kernels.py", self.name]).arg(file).arg(made);
        python.env("PYTHONPATH", &triton).env("TRITON_CACHE_DIR", folder.join("triton"));
        silent(&mut python)?;
        for entry in fs::read_dir(made)? {
            let path = entry?.path();
            let ours =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{}_", self.name)));
            if ours && path.extension().is_some_and(|extension| extension == "ptx") {
                // Its PTX is newer than the assembler that it has for this architecture.
                fs::write(path.with_extension("ptxas"), path_text(&tools.join("ptxas-blackwell"))?)?;
            }
        }
        Ok(())
    }
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A package's requirement with its hashes, and its name and version alone.
fn requirement(name: &str) -> Result<(String, String)> {
    let whole = pip::requirement(REQUIREMENTS, name).with_context(|| format!("no requirement of {name}"))?;
    let pinned = whole.split_whitespace().next().unwrap_or_default().to_string();
    Ok((whole, pinned))
}

fn package(sources: &Path, name: &str) -> Result<PathBuf> {
    packages(sources, name, &[name])
}

/// Packages of one folder, fetched if it is not there.
fn packages(sources: &Path, what: &str, names: &[&str]) -> Result<PathBuf> {
    let found = names.iter().map(|name| requirement(name)).collect::<Result<Vec<_>>>()?;
    let version = found[0].1.split("==").nth(1).unwrap_or_default();
    let folder = sources.join(format!("{what}-{version}"));
    if !folder.exists() {
        let text: Vec<&str> = found.iter().map(|(whole, _)| whole.as_str()).collect();
        pip::fetch(&folder, &text.join("\n"), &format!("{what} {version}"))?;
    }
    Ok(folder)
}

/// Paths of a commit, without the rest of the repository.
fn from_git(folder: &Path, address: &str, commit: &str, paths: &[&str]) -> Result<()> {
    let partial = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    let git = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("git");
        command.arg("-C").arg(&partial).args(arguments).env("GIT_TERMINAL_PROMPT", "0");
        silent(&mut command)
    };
    fs::create_dir_all(&partial)?;
    git(&["init", "--quiet"])?;
    git(&["remote", "add", "origin", address])?;
    git(&["fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", commit])?;
    git(&[&["checkout", "--quiet", commit, "--"], paths].concat())?;
    fs::rename(&partial, folder)?;
    Ok(())
}

/// The source of a crate, which cargo fetches and compares with its checksum.
fn from_registry(project: &Path, name: &str, version: &str, checksum: &str) -> Result<PathBuf> {
    fs::create_dir_all(project.join("src"))?;
    fs::write(project.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"fetched\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n{name} = \"={version}\"\n"
    );
    fs::write(project.join("Cargo.toml"), manifest)?;
    let vendored = project.join("vendor");
    let mut vendor = cargo();
    vendor
        .args(["vendor", "--quiet", "--versioned-dirs", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        .arg(&vendored);
    silent(&mut vendor)?;
    let lock = fs::read_to_string(project.join("Cargo.lock"))?;
    ensure!(lock.contains(checksum), "{name} {version} has another checksum than {checksum}");
    Ok(vendored.join(format!("{name}-{version}")))
}

/// Runs a command whose output is shown only if it fails: its last line that names an error, or its last line.
fn silent(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.clone().find(|line| line.contains("rror") || line.contains("fatal")).or(lines.next_back());
    anyhow::bail!("{} fails: {}", command.get_program().display(), line.unwrap_or("without a word"))
}

/// Programs of a package need not come as such.
fn make_executable(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    for entry in fs::read_dir(folder)? {
        use std::os::unix::fs::PermissionsExt;
        let path = entry?.path();
        if path.is_file() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_pinned_by_a_hash_and_has_a_file_that_names_its_kernels() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for peer in &PEERS {
            match &peer.source {
                Source::Package(name) => assert!(requirement(name).expect(name).0.contains("--hash=sha256:")),
                Source::Git { commit, .. } => assert_eq!(commit.len(), 40, "{}", peer.name),
                Source::Crate { checksum, .. } => assert_eq!(checksum.len(), 64, "{}", peer.name),
            }
            if let Compiler::Nvcc { .. } = peer.compiler {
                assert!(root.join(KERNELS).join(format!("{}.cu", peer.name)).exists(), "{}", peer.name);
            }
            assert!(!peer.version().expect("a version").is_empty());
        }
        for name in NVCC.iter().chain(&["triton", "apache-tvm-ffi"]) {
            assert!(requirement(name).expect(name).0.contains("--hash=sha256:"), "{name}");
        }
    }

    #[test]
    fn a_command_that_fails_says_why_in_one_line() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo 'a.cu(3): error: no such thing' >&2; echo last; exit 3"]);
        let error = silent(&mut command).expect_err("it fails");
        assert_eq!(error.to_string(), "sh fails: a.cu(3): error: no such thing");
        assert!(
            silent(&mut Command::new("no-such-program-at-all"))
                .expect_err("none")
                .to_string()
                .starts_with("cannot start")
        );
    }
}

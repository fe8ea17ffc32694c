//! Where libnvrtc may be: CUDA toolkits, Python environments and system folders. No program is started to find out.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The version that tests are made for, and the folder that `cargo xtask fetch` puts it in, in a clone.
pub const PINNED: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";
const FETCHED: &str = "target/cuda/nvidia-cuda-nvrtc-cu12-12.9.86";

const TOOLKITS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
const ENVIRONMENTS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// Variables that name a place. PATH and HOME are looked at too, but a change of theirs alone builds nothing again.
pub fn variables() -> impl Iterator<Item = &'static str> {
    TOOLKITS.into_iter().chain(ENVIRONMENTS)
}

/// A place that was looked at, and the folders in it that would hold the library.
pub struct Place {
    pub path: PathBuf,
    folders: Vec<PathBuf>,
}

impl Place {
    /// A CUDA toolkit.
    fn toolkit(path: PathBuf) -> Self {
        let mut folders: Vec<_> = ["lib64", "lib", "bin/x64", "bin"].map(|below| path.join(below)).into();
        folders.extend(children(&path.join("targets")).into_iter().map(|target| target.join("lib")));
        Self { path, folders }
    }

    /// A `site-packages` of Python: wheels put NVRTC into `nvidia/cuda_nvrtc` (CUDA 12) or `nvidia/cu13`.
    fn packages(path: PathBuf) -> Self {
        let wheels = children(&path.join("nvidia")).into_iter().filter(|wheel| name(wheel).starts_with("cu"));
        let folders = wheels.flat_map(|wheel| ["lib", "bin", "bin/x86_64"].map(|below| wheel.join(below))).collect();
        Self { path, folders }
    }

    fn folder(path: PathBuf) -> Self {
        Self { folders: vec![path.clone()], path }
    }

    /// Libraries called `nvrtc`, best first.
    pub fn libraries(&self) -> Vec<PathBuf> {
        self.folders.iter().flat_map(|folder| libraries(folder, "nvrtc")).collect()
    }
}

/// Every place, best first: what is named or active, then what is installed. `out` lies in the project that is built.
pub fn places(out: &Path) -> Vec<Place> {
    let named = |names: &[&str]| names.iter().filter_map(env::var_os).map(PathBuf::from).collect::<Vec<_>>();
    let home = env::home_dir().unwrap_or_default();
    let mut found = Vec::new();
    if is_clone() {
        found.push(Place::packages(PathBuf::from(FETCHED)));
    }
    found.extend(named(&TOOLKITS).into_iter().map(Place::toolkit));

    // What is active, the project's own environment, and what the shell would start.
    let mut prefixes = named(&ENVIRONMENTS);
    prefixes.extend(out.ancestors().map(|folder| folder.join(".venv")).filter(|folder| folder.is_dir()));
    prefixes.extend(pythons_on_path());
    // `pip install --user`
    prefixes.extend(named(&["PYTHONUSERBASE"]));
    prefixes.push(home.join(".local"));
    prefixes.extend(children(&named(&["APPDATA"]).pop().unwrap_or_default().join("Python")));
    // Pythons that pyenv, uv and conda keep.
    let kept = |variable: &str, usual: PathBuf| named(&[variable]).pop().unwrap_or(usual);
    let data = kept("XDG_DATA_HOME", home.join(".local/share"));
    prefixes.extend(children(&kept("PYENV_ROOT", home.join(".pyenv")).join("versions")));
    prefixes.extend(children(&kept("UV_PYTHON_INSTALL_DIR", data.join("uv/python"))));
    let mut condas = named(&["MAMBA_ROOT_PREFIX"]);
    condas.extend(["miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba"].map(|name| home.join(name)));
    condas.extend(["/opt/conda", "/opt/miniconda3"].map(PathBuf::from));
    for conda in condas.into_iter().filter(|conda| conda.is_dir()) {
        prefixes.extend(children(&conda.join("envs")));
        prefixes.push(conda);
    }
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    for prefix in prefixes {
        found.extend(site_packages(&prefix).into_iter().map(Place::packages));
        // conda's own packages put it beside Python's
        found.push(Place::toolkit(prefix));
    }

    for (folder, start) in [("/usr/local", "cuda"), ("/opt", "cuda"), ("/usr/lib", "cuda")] {
        let versions = children(Path::new(folder)).into_iter().filter(|path| name(path).starts_with(start));
        found.extend(versions.map(Place::toolkit));
    }
    let windows = Path::new("C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA");
    found.extend(children(windows).into_iter().map(Place::toolkit));
    let loaders = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let system = ["/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib"];
    let loaders = env::split_paths(&loaders).filter(|folder| !folder.as_os_str().is_empty());
    found.extend(loaders.chain(system.map(PathBuf::from)).map(Place::folder));
    let mut seen = BTreeSet::new();
    found.retain(|place| seen.insert(place.path.canonicalize().unwrap_or_else(|_| place.path.clone())));
    found
}

/// Whether this is a clone of the repository, which has more than a package.
pub fn is_clone() -> bool {
    Path::new("tools/xtask").is_dir()
}

/// Folders of packages of the Python that is installed at `prefix`.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    // Windows: of an installation, and of `pip install --user`
    let mut found = vec![prefix.join("Lib/site-packages"), prefix.join("site-packages")];
    for lib in ["lib", "lib64", "local/lib"] {
        let pythons = children(&prefix.join(lib)).into_iter().filter(|path| name(path).starts_with("python"));
        found.extend(pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|below| python.join(below))));
    }
    found.retain(|path| path.is_dir());
    found
}

/// Where the Pythons on PATH are installed: the folder above each one's `bin`, of every link on the way to it, and the Python
/// that a virtual environment was made with, by its `pyvenv.cfg`.
fn pythons_on_path() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let path = env::var_os("PATH").unwrap_or_default();
    for folder in env::split_paths(&path) {
        let pythons = children(&folder).into_iter().filter(|path| {
            let version = name(path).strip_prefix("python").map(|rest| rest.trim_end_matches(".exe"));
            version.is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
        });
        for mut python in pythons {
            if cfg!(windows) {
                found.push(folder.clone());
            }
            // A chain of links is no longer than the system follows.
            for _ in 0..40 {
                let Some(prefix) = python.parent().and_then(Path::parent) else { break };
                let config = fs::read_to_string(prefix.join("pyvenv.cfg")).unwrap_or_default();
                let home = config.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| key.trim() == "home");
                found.push(prefix.to_path_buf());
                found.extend(home.and_then(|(_, bin)| Path::new(bin.trim()).parent().map(Path::to_path_buf)));
                let Ok(next) = fs::read_link(&python) else { break };
                python = python.with_file_name("").join(next);
            }
            // The links may lie in a folder that is one itself.
            found.extend(python.canonicalize().ok().and_then(|python| Some(python.parent()?.parent()?.to_path_buf())));
        }
    }
    found
}

/// What is in a folder, newest version first.
fn children(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let numbers = |path: &PathBuf| {
        let numbers = name(path).split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok());
        numbers.collect::<Vec<_>>()
    };
    found.sort_by_cached_key(|path| std::cmp::Reverse((numbers(path), path.clone())));
    found
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Shared libraries called `stem` in `folder`, whatever their version; development copies (`.alt`) last.
pub fn libraries(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let mut found = children(folder);
    found.retain(|path| {
        let name = name(path);
        name.starts_with(&format!("lib{stem}.so"))
            || name.starts_with(&format!("lib{stem}.alt"))
            || (name.starts_with(&format!("{stem}64_")) && name.ends_with(".dll"))
    });
    found.sort_by_key(|path| name(path).contains(".alt"));
    found
}

//! The package as it is published: the sources, and the images of the kernels that the pinned NVRTC makes of them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{cargo, cuda, run};

/// A folder of its own: packages build under the workspace's own names, and cargo would take one's artifacts for the other's.
const TARGET: &str = "target/package-check";
/// What the package holds beside the sources; git ignores it, and a build of the clone would take it.
const IMAGES: &str = "images";
const MANIFEST: &str = "manifest.txt";
/// Registries take no larger package.
const LARGEST: u64 = 10_000_000;
/// Variables that choose kernels.
const CHOICES: [&str; 3] = ["POSENC_KERNELS", "POSENC_NVRTC", "POSENC_ARCHS"];

/// Packs the crate, builds the package without NVRTC, and gives its path.
pub fn pack(keep_images: bool) -> Result<PathBuf> {
    cuda::pinned_nvrtc()?;
    // Those of an earlier `--keep-images` would be taken for this build's.
    let _ = fs::remove_dir_all(IMAGES);
    // Images are taken from a build of the workspace, so that none is compiled twice.
    let made = images_of(without_choices(cargo().args(["build", "--package", "posenc"])))?;
    let removed = RemovedAtEnd(!keep_images);
    fs::create_dir_all(IMAGES)?;
    let manifest = fs::read_to_string(made.join(MANIFEST))?;
    for name in manifest.lines().filter_map(image).chain([MANIFEST]) {
        fs::copy(made.join(name), Path::new(IMAGES).join(name)).with_context(|| name.to_string())?;
    }
    let mut package = cargo();
    package.args(["package", "--package", "posenc", "--allow-dirty", "--target-dir", TARGET]);
    run(without_choices(&mut package))?;
    drop(removed);
    let path = Path::new(TARGET).join("package").join(format!("posenc-{}.crate", env!("CARGO_PKG_VERSION")));
    let size = fs::metadata(&path)?.len();
    println!("{}: {size} bytes, {} images", path.display(), manifest.lines().filter_map(image).count());
    ensure!(size < LARGEST, "the package has {size} bytes, it must stay below {LARGEST}");
    Ok(path)
}

/// Removes the images, which a later build of other sources would refuse.
struct RemovedAtEnd(bool);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::remove_dir_all(IMAGES);
        }
    }
}

fn without_choices(command: &mut Command) -> &mut Command {
    CHOICES.iter().fold(command, |command, name| command.env_remove(name))
}

/// The name in a line of a manifest, if it is an image's.
fn image(line: &str) -> Option<&str> {
    line.split_once(' ').map(|(_, name)| name).filter(|name| name.ends_with(".ptx") || name.ends_with(".cubin"))
}

/// The folder of images that posenc's build script writes to.
fn images_of(build: &mut Command) -> Result<PathBuf> {
    let output = build.arg("--message-format=json").stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{build:?} failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let scripts = text.lines().filter(|line| line.contains("\"reason\":\"build-script-executed\""));
    let outs = scripts.filter_map(|line| line.split("\"out_dir\":\"").nth(1)?.split('"').next()).map(Path::new);
    let found = outs.map(|out| out.join("images")).find(|images| images.join(MANIFEST).exists());
    found.context("posenc's build script made no images")
}

/// Packs, and shows that the package is whole: a program that depends on it builds without NVRTC, Python and network, beside a
/// toolkit that cudarc does not know; images of other sources are refused; without its images, as from git, the kernels are
/// compiled as soon as NVRTC is installed, to the same images.
pub fn check() -> Result<()> {
    let package = std::path::absolute(pack(false)?)?;
    let container = Container::new()?;
    run(Command::new("tar").arg("-xzf").arg(&package).arg("-C").arg(&container.folder))?;
    for example in fs::read_dir(container.source().join("examples"))? {
        let path = example?.path();
        // cargo leaves it out of a package, because no registry has it
        ensure!(
            !fs::read_to_string(&path)?.contains("emulator"),
            "{} is packed and needs the emulator",
            path.display()
        );
    }
    dependent(&container)?;
    refusals(&container)?;
    compiled_when_installed(&container)
}

/// A folder with a home, programs and nothing else of this machine.
struct Container {
    folder: PathBuf,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Container {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("posenc-package-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let container = Self { folder };
        let bin = container.folder.join("bin");
        fs::create_dir_all(&bin)?;
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let sysroot = Path::new(sysroot.trim()).join("bin");
        for program in ["cargo", "rustc"] {
            link(&sysroot.join(program), &bin.join(program))?;
        }
        // Rust's linker is the C compiler.
        for program in ["cc", "ld"] {
            let path = output(Command::new("sh").args(["-c", &format!("command -v {program}")]))?;
            link(Path::new(path.trim()), &bin.join(program))?;
        }
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("no CARGO_HOME")?;
        fs::create_dir_all(container.folder.join("cargo"))?;
        link(&home.join("registry"), &container.folder.join("cargo/registry"))?;
        // A toolkit of the future: what its nvcc says, in the words of today's.
        let nvcc = bin.join("nvcc");
        let says = "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2027 NVIDIA Corporation\nBuilt on a day\n\
                    Cuda compilation tools, release 99.1, V99.1.1";
        fs::write(&nvcc, format!("#!/bin/sh\necho '{says}'\n"))?;
        #[cfg(unix)]
        fs::set_permissions(&nvcc, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(container)
    }

    /// The package, unpacked.
    fn source(&self) -> PathBuf {
        self.folder.join(format!("posenc-{}", env!("CARGO_PKG_VERSION")))
    }

    /// Cargo on the program that depends on it.
    fn cargo(&self, task: &str) -> Command {
        let mut cargo = self.command("cargo");
        cargo.arg(task).current_dir(self.folder.join("dependent"));
        cargo
    }

    /// `program`, with an environment of its own.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", self.folder.join("bin")).env("HOME", self.folder.join("home"));
        command.env("CARGO_HOME", self.folder.join("cargo")).env("CARGO_NET_OFFLINE", "true");
        command
    }
}

#[cfg(unix)]
fn link(to: &Path, from: &Path) -> Result<()> {
    std::os::unix::fs::symlink(to, from).with_context(|| format!("cannot link {}", from.display()))
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    anyhow::bail!("the package is checked on Unix alone")
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A program with one line in its manifest.
fn dependent(container: &Container) -> Result<()> {
    let folder = container.folder.join("dependent");
    fs::create_dir_all(folder.join("src"))?;
    let version = env!("CARGO_PKG_VERSION");
    fs::write(
        folder.join("Cargo.toml"),
        format!(
            "[package]\nname = \"dependent\"\nedition = \"2024\"\n\n[dependencies]\n\
             posenc = {{ version = \"{version}\", path = \"../posenc-{version}\" }}\n"
        ),
    )?;
    fs::copy("Cargo.lock", folder.join("Cargo.lock"))?;
    fs::write(
        folder.join("src/main.rs"),
        r#"use std::collections::BTreeSet;

        fn main() {
            let images = posenc::gpu::images();
            let files: BTreeSet<_> = posenc::gpu::kernels().iter().map(|kernel| kernel.file).collect();
            assert_eq!(images.len(), 3 * files.len());
            for images in images {
                let architectures = images.cubins.iter().map(|image| image.sm).collect::<Vec<_>>();
                println!("{} {}: {architectures:?}", images.file, images.dtype);
                assert_eq!(architectures, [75, 80, 90, 100, 120]);
                assert!(images.cubins.iter().all(|cubin| cubin.bytes().starts_with(b"\x7fELF")));
                assert!(images.ptx.iter().all(|ptx| ptx.bytes().starts_with(b".version ")));
            }
        }
        "#,
    )?;
    // cudarc's build script panics. When it does so no longer, README's sentence on it may go.
    let refused = container.cargo("build").output()?;
    ensure!(
        !refused.status.success() && text(&refused).contains("Unsupported cuda toolkit version: `99.1`"),
        "cudarc does not refuse an unknown nvcc: {}",
        text(&refused)
    );
    let built = container.cargo("run").env("CUDARC_CUDA_VERSION", cudarc_version()?).output()?;
    ensure!(built.status.success(), "a program that depends on the package does not run: {}", text(&built));
    let modules = String::from_utf8_lossy(&built.stdout).lines().count();
    println!("a program holds {modules} modules of the package, built without NVRTC");
    Ok(())
}

/// What README says to do about a toolkit that cudarc does not know.
fn cudarc_version() -> Result<String> {
    let readme = fs::read_to_string("README.md")?;
    let version = readme.split("`CUDARC_CUDA_VERSION=").nth(1).and_then(|rest| rest.split('`').next());
    version.map(str::to_owned).context("README.md does not name CUDARC_CUDA_VERSION")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A package without images is refused. A folder that cargo has not packed needs NVRTC: a build fails; NVRTC is installed as pip
/// does it for a user; the next build compiles, and makes the package's images.
fn compiled_when_installed(container: &Container) -> Result<()> {
    let packaged = container.folder.join(IMAGES);
    fs::rename(container.source().join(IMAGES), &packaged)?;
    let bare = container.cargo("build").env("CUDARC_CUDA_VERSION", cudarc_version()?).output()?;
    ensure!(text(&bare).contains("packed without the images of its kernels"), "{}", text(&bare));
    fs::remove_file(container.source().join(".cargo_vcs_info.json"))?;
    let build = || -> Result<Command> {
        let mut build = container.cargo("build");
        // One architecture stands for all.
        build.env("CUDARC_CUDA_VERSION", cudarc_version()?).env("POSENC_ARCHS", "90");
        Ok(build)
    };
    let refused = build()?.output()?;
    if refused.status.success() {
        println!("not checked: this machine has an NVRTC of its own, which posenc finds");
        return Ok(());
    }
    ensure!(text(&refused).contains("posenc finds no NVRTC"), "{}", text(&refused));
    let user = container.folder.join("home/.local/lib/python3.12");
    fs::create_dir_all(&user)?;
    let wheel = cuda::pinned_nvrtc()?;
    let packages = wheel.ancestors().nth(3).context("NVRTC lies in a folder of packages")?;
    link(packages, &user.join("site-packages"))?;
    let made = images_of(&mut build()?)?;
    let again = build()?.output()?;
    ensure!(!text(&again).contains("Compiling"), "what is built is built again: {}", text(&again));
    let compiled = fs::read_to_string(made.join(MANIFEST))?;
    let packaged = fs::read_to_string(packaged.join(MANIFEST))?;
    let packaged: HashSet<_> = packaged.lines().collect();
    for line in compiled.lines() {
        ensure!(packaged.contains(line), "the package's images are not what the pinned NVRTC makes: {line}");
    }
    let count = compiled.lines().filter_map(image).count();
    println!("{count} images are what the pinned NVRTC makes of the package's sources");
    Ok(())
}

/// Images that are not those of the sources.
fn refusals(container: &Container) -> Result<()> {
    let source = container.source();
    let script = build_script(&container.folder.join("dependent/target/debug/build"))?;
    let out = container.folder.join("out");
    fs::create_dir_all(&out)?;
    let build = || {
        let mut build = container.command(&script);
        build.current_dir(&source).env("OUT_DIR", &out).env("CARGO_FEATURE_CUDA", "1");
        build
    };
    let refused = |what: &str| -> Result<()> {
        let output = build().output()?;
        ensure!(!output.status.success() && text(&output).contains(what), "{what}: not refused, {}", text(&output));
        Ok(())
    };
    // Fewer images are taken as they are.
    let list = out.join("images.rs");
    ensure!(build().env("POSENC_ARCHS", "80,120").output()?.status.success(), "two architectures are refused");
    let text_of_list = fs::read_to_string(&list)?;
    ensure!(text_of_list.contains(".sm_80.") && !text_of_list.contains(".sm_90."), "POSENC_ARCHS chooses nothing");
    ensure!(build().env("POSENC_KERNELS", "rotate").output()?.status.success(), "one room is refused");
    let text_of_list = fs::read_to_string(&list)?;
    ensure!(
        text_of_list.contains("rotate/rope") && !text_of_list.contains("attend/"),
        "POSENC_KERNELS chooses no room"
    );
    let folder = source.join(IMAGES);
    let packaged = |start: &str| -> Result<PathBuf> {
        let mut entries = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
        let found = entries.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)));
        found.with_context(|| format!("no image {start}"))
    };
    // A kernel that was edited, an image that was cut short, one that is gone.
    let kernel = source.join("kernels/rotate/rope.cu");
    let before = fs::read(&kernel)?;
    fs::write(&kernel, [&before[..], b"// edited\n"].concat())?;
    refused("images holds no image of kernels/rotate/rope.cu as it is now (rotate_rope.")?;
    fs::write(&kernel, before)?;
    let cut = packaged("rotate_rope.f16.sm_80.")?;
    let before = fs::read(&cut)?;
    fs::write(&cut, &before[..before.len() / 2])?;
    refused(" is damaged: POSENC_KERNELS=source compiles the kernels by NVRTC")?;
    fs::remove_file(&cut)?;
    refused("cannot read images/rotate_rope.f16.sm_80.")?;
    fs::write(&cut, before)?;
    let manifest = folder.join(MANIFEST);
    let before = fs::read_to_string(&manifest)?;
    fs::write(&manifest, before.lines().take(100).map(|line| format!("{line}\n")).collect::<String>())?;
    refused("images holds no image of kernels/")?;
    fs::write(&manifest, before.split_once('\n').context("a line")?.1)?;
    refused("images/manifest.txt is damaged")?;
    fs::remove_file(&manifest)?;
    refused("cannot read images/manifest.txt")?;
    ensure!(
        build().env("POSENC_KERNELS", "none").output()?.status.success(),
        "a build without kernels asks for images"
    );
    fs::write(&manifest, before)?;
    // What is named is used, even where there are images.
    let named = build().env("POSENC_NVRTC", "/nowhere").output()?;
    ensure!(text(&named).contains("POSENC_NVRTC is \"/nowhere\""), "POSENC_NVRTC is not looked at: {}", text(&named));
    Ok(())
}

/// The build script of posenc in a folder with one.
fn build_script(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten();
    let scripts = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix("posenc-").is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let mut scripts = scripts.map(|entry| entry.path().join("build-script-build")).filter(|script| script.exists());
    scripts.next().context("posenc has no build script")
}

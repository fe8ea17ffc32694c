//! The C library where other builds find it: headers, libraries, and files for pkg-config and CMake.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{cargo, cuda, run};

#[derive(clap::Args)]
pub struct Options {
    /// The folder that gets include/, lib/, lib/pkgconfig/ and lib/cmake/
    #[arg(long, value_parser = |path: &str| std::path::absolute(path))]
    prefix: PathBuf,
    /// A folder with libposenc_c.so and libposenc_c.a; without it, a release build is made
    #[arg(long, value_parser = |path: &str| std::path::absolute(path))]
    from: Option<PathBuf>,
}

/// What a static library of Rust needs of the system.
const SYSTEM: [&str; 3] = ["dl", "m", "pthread"];

/// Builds and installs. What is there of an older install is replaced.
pub fn install(options: &Options) -> Result<()> {
    let header = fs::read_to_string("adapters/c/posenc.h")?;
    let abi = header.lines().find_map(|line| line.strip_prefix("#define POSENC_ABI ")).context("no POSENC_ABI")?;
    let abi = abi.split(' ').next().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let libraries = match &options.from {
        Some(folder) => folder.clone(),
        None => release()?,
    };

    let lib = options.prefix.join("lib");
    let [include, pkgconfig, cmake] = [options.prefix.join("include"), lib.join("pkgconfig"), lib.join("cmake/posenc")];
    for folder in [&include, &pkgconfig, &cmake] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(include.join("posenc.h"), &header)?;
    fs::copy("adapters/c/posenc.hpp", include.join("posenc.hpp")).context("adapters/c/posenc.hpp")?;
    let shared = format!("libposenc_c.so.{version}");
    copy(&libraries.join("libposenc_c.a"), &lib.join("libposenc_c.a"))?;
    copy(&libraries.join("libposenc_c.so"), &lib.join(&shared))?;
    for name in [format!("libposenc_c.so.{abi}"), "libposenc_c.so".into()] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&shared, &link).with_context(|| link.display().to_string())?;
    }
    fs::write(pkgconfig.join("posenc.pc"), pkg_config(version))?;
    fs::write(cmake.join("posencConfig.cmake"), cmake_config(version, abi))?;
    fs::write(cmake.join("posencConfigVersion.cmake"), cmake_version(version))?;
    println!("posenc {version} is in {}", options.prefix.display());
    Ok(())
}

/// Builds both libraries; the build script of the shared one names it for the dynamic linker.
fn release() -> Result<PathBuf> {
    cuda::nvrtc()?;
    run(cargo().args(["build", "--release", "--package", "posenc-c"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// A copy under a new name that takes the old one's place, so that a program that runs on the old library keeps it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    ensure!(from.is_file(), "{} is not there", from.display());
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).with_context(|| format!("cannot copy {} to {}", from.display(), partial.display()))?;
    Ok(fs::rename(&partial, to)?)
}

fn pkg_config(version: &str) -> String {
    let system = SYSTEM.map(|name| format!("-l{name}")).join(" ");
    format!(
        "prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: posenc
Description: Positional encodings of transformers as CUDA kernels
Version: {version}
Libs: -L${{libdir}} -lposenc_c
Libs.private: {system}
Cflags: -I${{includedir}}
"
    )
}

fn cmake_config(version: &str, abi: &str) -> String {
    let system = SYSTEM.join(";");
    format!(
        r#"# posenc::shared and posenc::static
get_filename_component(_posenc_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
if(NOT TARGET posenc::shared)
  add_library(posenc::shared SHARED IMPORTED)
  set_target_properties(posenc::shared PROPERTIES
    IMPORTED_LOCATION "${{_posenc_prefix}}/lib/libposenc_c.so.{version}"
    IMPORTED_SONAME "libposenc_c.so.{abi}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_posenc_prefix}}/include")
  add_library(posenc::static STATIC IMPORTED)
  set_target_properties(posenc::static PROPERTIES
    IMPORTED_LOCATION "${{_posenc_prefix}}/lib/libposenc_c.a"
    INTERFACE_LINK_LIBRARIES "{system}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_posenc_prefix}}/include")
endif()
unset(_posenc_prefix)
"#
    )
}

/// Before 1.0, another minor version is another library.
fn cmake_version(version: &str) -> String {
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    format!(
        r#"set(PACKAGE_VERSION "{version}")
if("${{PACKAGE_FIND_VERSION_MAJOR}}.${{PACKAGE_FIND_VERSION_MINOR}}" VERSION_EQUAL "{minor}"
   AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
else()
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
endif()
"#
    )
}

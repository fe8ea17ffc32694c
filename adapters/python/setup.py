"""The wheel: the C library, which cargo builds here, beside pure Python that loads it with ctypes.

No line is compiled against Python, so one wheel serves every version of it (py3-none); the platform's tag names the
oldest glibc that the library loads on.

POSENC_KERNELS, POSENC_ARCHS and POSENC_NVRTC act as in any build of posenc; POSENC_LIBRARY packs a libposenc_c.so
that is built already; CARGO_BUILD_TARGET builds for another machine, such as aarch64-unknown-linux-gnu; POSENC_GLIBC,
such as 2.17, builds by cargo-zigbuild for that glibc and later ones.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NAME = "libposenc_c.so"


def version():
    """The workspace's; a library for the CPU alone says so."""
    manifest = ROOT / "Cargo.toml"
    if not manifest.is_file():
        raise SystemExit(f"{manifest} is not there: the package is built in a clone of posenc, out of adapters/python")
    text = manifest.read_text(encoding="utf-8").split("[workspace.package]")[1]
    number = re.search(r'^version = "([^"]+)"', text, flags=re.M)[1]
    return f"{number}+cpu" if os.environ.get("POSENC_KERNELS") == "none" else number


def library():
    """The C library, built unless one is named."""
    if named := os.environ.get("POSENC_LIBRARY"):
        return Path(named)
    cargo = shutil.which("cargo")
    if cargo is None:
        raise SystemExit("cargo is not on PATH: posenc is built by Rust 1.88 or later")
    # Only a cdylib, and a release: a static library would be compiled for nothing.
    command = [cargo, "rustc", "--release", "--locked", "--package", "posenc-c", "--crate-type", "cdylib"]
    if glibc := os.environ.get("POSENC_GLIBC"):
        zigbuild = shutil.which("cargo-zigbuild")
        if zigbuild is None or not re.fullmatch(r"2\.\d+", glibc):
            raise SystemExit(f"POSENC_GLIBC is {glibc}: it must be like 2.17, and cargo-zigbuild on PATH")
        command[0] = zigbuild
        command += ["--target", f"{target()}.{glibc}"]
    command.append("--message-format=json-render-diagnostics")
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode:
        raise SystemExit(f"cargo fails with {built.returncode}: what it says is above")
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    artifacts = [Path(name) for message in messages for name in message.get("filenames") or []]
    found = [path for path in artifacts if path.name == NAME]
    if not found:
        raise SystemExit(f"cargo built no {NAME}")
    return found[-1]


def oldest_glibc(path):
    """The newest version of glibc that the library asks for: it loads on this one and later ones."""
    versions = re.findall(rb"GLIBC_2\.(\d+)", path.read_bytes())
    return max(map(int, versions), default=None)


def target():
    """What is built for, by Rust's name."""
    return os.environ.get("CARGO_BUILD_TARGET") or f"{platform.machine()}-unknown-linux-gnu"


class BuildPy(build_py):
    """Copies the library into the package; into its source for an editable install."""

    def run(self):
        super().run()
        folder = HERE / "posenc" if self.editable_mode else Path(self.build_lib) / "posenc"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library(), folder / NAME)
        unless = "unknown" if "POSENC_LIBRARY" in os.environ else "all"
        settings = {"kernels": "POSENC_KERNELS", "architectures": "POSENC_ARCHS"}
        built = {what: os.environ.get(name) or unless for what, name in settings.items()}
        if built["kernels"] == "none":
            built["architectures"] = "none"
        (folder / "build.json").write_text(json.dumps(built), encoding="utf-8")

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), *(f"{self.build_lib}/posenc/{n}" for n in (NAME, "build.json"))]


class Wheel(bdist_wheel):
    def get_tag(self):
        _, _, plain = super().get_tag()
        built = Path(self.bdist_dir or "") / "posenc" / NAME
        glibc = oldest_glibc(built) if built.is_file() else None
        return "py3", "none", plain if glibc is None else f"manylinux_2_{glibc}_{target().split('-')[0]}"


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(version=version(), distclass=Binary, cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel})

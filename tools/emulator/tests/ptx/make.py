#!/usr/bin/env python3
"""Makes texts.z, the PTX of the tests. Arguments: folders with libnvrtc.so.12 or .13, or --unpack (see README.md)."""

import ctypes
import glob
import os
import re
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
# the texts that one NVRTC makes for one target each
SINGLE = {
    "bench": [("bench", 80)],
    "first": [("first.sm_75", 75), ("first.sm_80", 80), ("first.sm_90", 90)],
    "mutants": [("mutants", 80)],
    "features": [("features", 90)],
}
SINGLE_VERSION = (12, 9)


class Nvrtc:
    def __init__(self, folder):
        for builtins in glob.glob(os.path.join(folder, "libnvrtc-builtins.so*")):
            ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
        names = [n for n in glob.glob(os.path.join(folder, "libnvrtc.so*")) if "alt" not in n]
        self.lib = ctypes.CDLL(sorted(names)[0])
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def call(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: {code}")

    def targets(self):
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", archs)
        return [arch for arch in archs if arch >= 75]

    def compile(self, stem, arch):
        with open(os.path.join(HERE, stem + ".cu"), "rb") as file:
            source = file.read()
        program = ctypes.c_void_p()
        name = os.path.basename(stem) + ".cu"
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, name.encode(), 0, None, None)
        options = [f"--gpu-architecture=sm_{arch}".encode(), b"--fmad=false"]
        code = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        if code:
            self.call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            self.call("nvrtcGetProgramLog", program, log)
            raise RuntimeError(log.value.decode())
        self.call("nvrtcGetPTXSize", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetPTX", program, text)
        return text.value.decode().strip() + "\n"


# the kernel that the README shows, whose PTX is a file for people to read
EXAMPLE = os.path.join(HERE, "..", "..", "examples", "race")
ARCHIVE = os.path.join(HERE, "texts.z")
MARK = "==== "


def read():
    """Texts by name, as the tests read them."""
    if not os.path.exists(ARCHIVE):
        return {}
    with open(ARCHIVE, "rb") as file:
        parts = zlib.decompress(file.read()).decode().split(MARK)
    return dict(part.split("\n", 1) for part in parts[1:])


def write(texts):
    # like stands beside like, for the sake of the size
    whole = "".join(f"{MARK}{name}\n{text}" for name, text in sorted(texts.items()))
    with open(ARCHIVE, "wb") as file:
        file.write(zlib.compress(whole.encode(), 9))


def main():
    texts = read()
    if sys.argv[1:] == ["--unpack"]:
        for name, text in texts.items():
            with open(name + ".ptx", "w", encoding="utf-8") as file:
                file.write(text)
        return
    for folder in sys.argv[1:]:
        nvrtc = Nvrtc(folder)
        if nvrtc.version == SINGLE_VERSION:
            for stem, files in SINGLE.items():
                for name, arch in files:
                    texts[name] = nvrtc.compile(stem, arch)
            with open(EXAMPLE + ".ptx", "w", encoding="utf-8") as file:
                file.write(nvrtc.compile(EXAMPLE, 75))
            continue
        # targets whose texts differ in nothing but their names share a file
        groups = {}
        for arch in nvrtc.targets():
            text = nvrtc.compile("features", arch)
            # 12.0 numbers what it makes from the process's start
            numbers = {}

            def name(found, numbers=numbers):
                return numbers.setdefault(found[0], f"prototype_{len(numbers)}")

            text = re.sub(r"prototype_\d+", name, text)
            lines = [re.sub(r"//.*", "", line).strip() for line in text.splitlines()]
            bare = "\n".join(line for line in lines if line) + "\n"
            groups.setdefault(bare.replace(f".target sm_{arch}\n", ".target sm_00\n"), []).append(arch)
        version = ".".join(map(str, nvrtc.version))
        for text, archs in groups.items():
            others = "".join(f" sm_{arch}" for arch in archs[1:])
            head = f"// NVRTC {version}; the same text but for the target:{others or ' none'}\n"
            texts[f"features.{version}.sm_{archs[0]}"] = head + text.replace("sm_00", f"sm_{archs[0]}")
        print(version, "targets", " ".join(map(str, nvrtc.targets())), "texts", len(groups))
    write(texts)


main()

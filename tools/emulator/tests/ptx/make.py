#!/usr/bin/env python3
"""Makes the PTX of this folder. Arguments: folders that hold libnvrtc.so.12 or .13 (see README.md)."""

import ctypes
import glob
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# the files that one NVRTC makes for one target each
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
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, (stem + ".cu").encode(), 0, None, None)
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


def write(name, text):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        file.write(text)


def main():
    for folder in sys.argv[1:]:
        nvrtc = Nvrtc(folder)
        if nvrtc.version == SINGLE_VERSION:
            for stem, files in SINGLE.items():
                for name, arch in files:
                    write(name + ".ptx", nvrtc.compile(stem, arch))
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
            write(f"versions/{version}.sm_{archs[0]}.ptx", head + text.replace("sm_00", f"sm_{archs[0]}"))
        print(version, "targets", " ".join(map(str, nvrtc.targets())), "files", len(groups))


main()

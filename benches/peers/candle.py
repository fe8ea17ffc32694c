"""candle's CUDA kernels, launched as candle launches them, into PyTorch's stream and on its tensors.

The crate candle-kernels carries their source and compiles it with nvcc when it is built. Here NVRTC does, which comes
with PyTorch: no toolkit is needed. `cargo fetch --manifest-path benches/peers/cpu/Cargo.toml` brings the source;
POSENC_CANDLE_KERNELS names its folder where it lies elsewhere.
"""

import ctypes
import os
from pathlib import Path

from machine import Missing

# The standard's headers, which NVRTC lacks, as far as the kernels use them. Their eight-bit floats are declared and not
# made: no kernel of reduce.cu has them.
HEADERS = {
    "cmath": "",
    "stdint.h": "",
    "cuda_fp8.h": """
        #define __NV_E4M3 0
        struct __nv_fp8_e4m3 {
            unsigned char __x;
            __nv_fp8_e4m3() = default;
            __device__ explicit __nv_fp8_e4m3(float) : __x(0) {}
        };
        __device__ inline __half_raw __nv_cvt_fp8_to_halfraw(unsigned char, int) { return __half_raw{}; }
    """,
    "cuda/std/limits": """
        typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t;
        typedef unsigned short uint16_t; typedef int int32_t; typedef unsigned int uint32_t;
        typedef long long int64_t; typedef unsigned long long uint64_t; typedef unsigned long long uintptr_t;
        #define INFINITY __int_as_float(0x7f800000)
        namespace cuda { namespace std {
        template <typename T> struct numeric_limits {
            static __device__ constexpr T ones() { return (T)~(T)0; }
            static __device__ constexpr bool has_sign() { return (T)-1 < (T)0; }
            static __device__ constexpr T max() {
                return has_sign() ? (T)(((unsigned long long)1 << (8 * sizeof(T) - 1)) - 1) : ones();
            }
            static __device__ constexpr T lowest() { return has_sign() ? (T)(-max() - 1) : (T)0; }
        };
        } }
    """,
}


def source():
    own = os.environ.get("POSENC_CANDLE_KERNELS")
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    folders = [Path(own)] if own else sorted(home.glob("registry/src/*/candle-kernels-*/src"))
    if not folders or not (folders[-1] / "reduce.cu").exists():
        raise Missing("missing: the source of candle-kernels: cargo fetch --manifest-path benches/peers/cpu/Cargo.toml")
    return folders[-1]


def nvrtc(torch):
    """NVRTC with its built-in functions beside it, POSENC_NVRTC's or PyTorch's, and the folder of CUDA's headers."""
    packages = Path(torch.__file__).parent.parent
    own = os.environ.get("POSENC_NVRTC")
    folders = [Path(own)] if own else [*packages.glob("nvidia/*/lib"), packages / "torch/lib"]
    folders = [folder for folder in folders if [*folder.glob("libnvrtc-builtins*.so*")]]
    libraries = [library for folder in folders for library in sorted(folder.glob("libnvrtc.so.*"))]
    headers = [header.parent for header in packages.glob("nvidia/*/include/cuda_fp16.h")]
    if not libraries or not headers:
        raise Missing("missing: NVRTC with its builtins, or cuda_fp16.h, among PyTorch's packages")
    return ctypes.CDLL(str(libraries[0])), headers[0]


_PTX = {}


def ptx(machine):
    """reduce.cu for this device, compiled once."""
    if machine.capability in _PTX:
        return _PTX[machine.capability]
    folder = source()
    c, include = nvrtc(machine.torch)
    # Types come first: the kernels' own headers use them before they include their own.
    text = '#include "cuda/std/limits"\n' + (folder / "reduce.cu").read_text()
    program, n = ctypes.c_void_p(), len(HEADERS)
    names = (ctypes.c_char_p * n)(*(name.encode() for name in HEADERS))
    texts = (ctypes.c_char_p * n)(*(("#pragma once\n" + text).encode() for text in HEADERS.values()))
    options = [f"-I{folder}", f"-I{include}", f"--gpu-architecture=compute_{machine.capability}", "--std=c++17"]
    options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if c.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"reduce.cu", n, texts, names):
        raise RuntimeError("nvrtcCreateProgram fails")
    failed, size = c.nvrtcCompileProgram(program, len(options), options), ctypes.c_size_t()
    if failed:
        c.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        c.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"NVRTC refuses candle's reduce.cu: {log.value.decode()[:300]}")
    c.nvrtcGetPTXSize(program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    c.nvrtcGetPTX(program, image)
    # Its inline assembly has a register's type in one word with the directive, which ptxas takes and the emulator does
    # not.
    _PTX[machine.capability] = image.value.replace(b".reg.b", b".reg .b") + b"\0"
    return _PTX[machine.capability]


class Kernels:
    def __init__(self, machine):
        self.machine = machine
        image = ptx(machine)
        machine.torch.zeros(1, device=machine.device)  # a context, before a module is loaded into it
        self.module = machine.driver.module(image)
        self.release = source().parent.name.removeprefix("candle-kernels-")
        self.functions = {}

    def launch(self, name, grid, block, *arguments):
        if name not in self.functions:
            self.functions[name] = self.machine.driver.function(self.module, name)
        self.machine.driver.launch(self.functions[name], grid, block, self.machine.stream(), arguments)

    def rope_thd(self, x, cos, sin, out):
        """[tokens, heads, dim] with tables [tokens, dim / 2], all in bf16."""
        tokens, heads, dim = x.shape
        blocks = -(-x.numel() // 2 // 1024)
        with self.machine.lend() as lend:
            pointers = [ctypes.c_uint64(lend(tensor).data) for tensor in (x, cos, sin, out)]
            sizes = [ctypes.c_uint32(n) for n in (1, tokens, heads, dim, 0)]
            self.launch("rope_thd_bf16", (blocks, 1, 1), (1024, 1, 1), *pointers, *sizes)
        return out

    def softmax(self, x, out):
        """Rows of the last dimension, in bf16."""
        keys = x.shape[-1]
        with self.machine.lend() as lend:
            pointers = [ctypes.c_uint64(lend(tensor).data) for tensor in (x, out)]
            self.launch("softmax_bf16", (x.numel() // keys, 1, 1), (1, 32, 1), *pointers, ctypes.c_int32(keys))
        return out

"""Compiles Triton kernels of Liger and flash-attn for compute capability 9.0, without a GPU and without PyTorch.

usage: triton_kernels.py liger FILE FOLDER
       triton_kernels.py flash_attn FILE FOLDER

FILE is their source. For each shape, FOLDER gets the PTX, and a line of what a launch takes: warps and bytes of shared
memory.
"""

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Heads of queries and keys, and channels of a head.
LIGER = [(32, 8, 128), (8, 1, 128), (4, 1, 128)]
# Channels of a head, those that are rotated, and whether pairs are interleaved.
FLASH = [(128, 128, False), (128, 64, True), (64, 64, True)]


class Torch(types.ModuleType):
    """What the host's half of a file names while it is read. None of it is called."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls), "Function": object})


def load(path):
    sys.modules.setdefault("torch", Torch("torch"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_to(folder, name, kernel, types_of, constants, aligned):
    """Arguments in `aligned` are multiples of 16, as a launcher sees of pointers and strides."""
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {n: "constexpr" if n in constants else types_of[n] for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    (folder / f"{name}.ptx").write_text(made.asm["ptx"])
    (folder / f"{name}.launch").write_text(f"{made.metadata.num_warps} {made.metadata.shared}\n")


def liger(path, folder):
    kernel = load(path)._triton_rope
    power = triton.next_power_of_2
    for element, short in (("bf16", "bf16"), ("fp32", "f32")):
        pointers = {"q_ptr": "*bf16", "k_ptr": "*bf16", "cos": f"*{element}", "sin": f"*{element}"}
        strides = ["q_row_stride", "k_row_stride", "cos_row_stride", "sin_row_stride"]
        kinds = pointers | dict.fromkeys([*strides, "sl"], "i32")
        for q_heads, k_heads, dim in LIGER:
            constants = {
                "bs": 1, "cos_bs": 1, "n_qh": q_heads, "n_kh": k_heads, "hd": dim, "rd": dim,
                "pad_n_qh": power(q_heads), "pad_n_kh": power(k_heads), "pad_hd": power(dim), "pad_rd": power(dim),
                "BLOCK_SIZE": max(power(q_heads), power(k_heads)), "BACKWARD_PASS": False,
            }  # fmt: skip
            aligned = [*pointers, *strides]
            compile_to(folder, f"liger_{short}_{q_heads}_{k_heads}_{dim}", kernel, kinds, constants, aligned)


def flash_attn(path, folder):
    kernel = load(path).rotary_kernel
    pointers = {"OUT": "*bf16", "X": "*bf16", "COS": "*fp32", "SIN": "*fp32"}
    strides = [f"stride_{x}_{of}" for x in ("out", "x") for of in ("batch", "seqlen", "nheads")]
    kinds = pointers | dict.fromkeys([*strides, "SEQLEN_OFFSETS", "seqlen", "nheads", "seqlen_ro"], "i32")
    for dim, rotary, interleaved in FLASH:
        constants = {
            "CU_SEQLENS": None, "ROTARY_DIM": rotary, "IS_SEQLEN_OFFSETS_TENSOR": False, "IS_VARLEN": False,
            "INTERLEAVED": interleaved, "CONJUGATE": False, "BLOCK_H": 2, "BLOCK_M": 8 if rotary <= 128 else 4,
            "stride_out_headdim": 1, "stride_x_headdim": 1,
        }  # fmt: skip
        name = f"flash_attn_{dim}_{rotary}_{int(interleaved)}"
        compile_to(folder, name, kernel, kinds, constants, [*pointers, *strides])


if __name__ == "__main__":
    which, source, out = sys.argv[1:]
    {"liger": liger, "flash_attn": flash_attn}[which](source, Path(out))

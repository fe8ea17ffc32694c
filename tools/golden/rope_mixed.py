"""Cosines and sines of RoPE with frequencies for each head and positions between whole numbers: RoPE-Mixed of timm,
Mochi and LTX-2 of diffusers.

Writes tests/golden/rope_mixed.json.
"""

import ast
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import pathlib
import struct
import sys
import types

import torch

torch.set_num_threads(1)
torch.manual_seed(0)


# timm and diffusers as a whole need more than these files do.
def folder(package):
    return pathlib.Path(importlib.util.find_spec(package).origin).parent


for package, path in [("timm", folder("timm")), ("timm.layers", folder("timm") / "layers")]:
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [str(path)]
timm_pos_embed = importlib.import_module("timm.layers.pos_embed_sincos")


def source(path, name):
    """One class of a file of diffusers, without what the file imports."""
    text = (folder("diffusers") / path).read_text()
    (node,) = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name]
    scope = {"torch": torch, "nn": torch.nn}
    exec(ast.get_source_segment(text, node), scope)
    return scope[name]


def bits(values):
    return [struct.unpack("<I", struct.pack("<f", x))[0] for x in values.flatten().tolist()]


def timm_mixed(heads, dim, shape):
    module = timm_pos_embed.RotaryEmbeddingMixed(
        heads * dim, 1, heads, temperature=10.0, feat_shape=shape, grid_indexing="xy"
    )
    x, y = timm_pos_embed.get_mixed_grid(shape, grid_indexing="xy")
    # [heads, tokens, 2 * dim]: sines and then cosines, each twice.
    embed = module.get_embed(shape)[0]
    sin, cos = embed.chunk(2, dim=-1)
    return {
        "name": "timm RoPE-Mixed",
        "frequencies_f32_bits": bits(module.freqs[:, 0]),
        "positions": [x.tolist(), y.tolist()],
        "heads": heads,
        "cos_f32_bits": bits(cos[..., 0::2]),
        "sin_f32_bits": bits(sin[..., 0::2]),
    }


def mochi(heads, dim, frames, height, width):
    module = source("models/transformers/transformer_mochi.py", "MochiRoPE")()
    frequencies = torch.randn(3, heads, dim // 2) * 0.3
    cos, sin = module(frequencies, frames, height, width, dtype=torch.float32)
    positions = module._get_positions(frames, height, width, dtype=torch.float32)
    return {
        "name": "Mochi",
        "frequencies_f32_bits": bits(frequencies),
        "positions": positions.T.tolist(),
        "heads": heads,
        "cos_f32_bits": bits(cos.transpose(0, 1)),
        "sin_f32_bits": bits(sin.transpose(0, 1)),
    }


def ltx2(heads, dim, frames, height, width):
    module = source("models/transformers/transformer_ltx2.py", "LTX2AudioVideoRotaryPosEmbed")(
        heads * dim, rope_type="split", num_attention_heads=heads
    )
    coords = module.prepare_video_coords(1, frames, height, width, "cpu")
    cos, sin = module(coords)
    middle = coords.double().mean(-1)[0]
    return {
        "name": "LTX-2, split",
        "base": [module.base_num_frames, module.base_height, module.base_width],
        "theta": module.theta,
        "positions": middle.tolist(),
        "heads": heads,
        "cos_f32_bits": bits(cos[0]),
        "sin_f32_bits": bits(sin[0]),
    }


with torch.no_grad():
    cases = [timm_mixed(3, 8, [2, 3]), mochi(2, 12, 2, 2, 3), ltx2(2, 16, 2, 1, 2)]
meta = {
    "script": "tools/golden/rope_mixed.py",
    "versions": {name: importlib.metadata.version(name) for name in ["torch", "timm", "diffusers"]},
    "date": datetime.date.today().isoformat(),
}
path = pathlib.Path(__file__).parents[2] / "tests/golden/rope_mixed.json"
path.write_text(json.dumps({"meta": meta, "cases": cases}, separators=(",", ":")) + "\n")

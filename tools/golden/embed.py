"""Golden values for the `embed` room: prints tests/golden/embed.json.

Public implementations are run as they are; what only prose or a deleted file defines is not in here.
"""

import datetime
import importlib.metadata
import json
import sys
import types

import numpy as np
import torch

np.random.seed(0)
torch.manual_seed(0)


def flat(x):
    if isinstance(x, torch.Tensor):
        x = x.detach().double().numpy()
    return [float(v) for v in np.asarray(x, dtype=np.float64).reshape(-1)]


def sinusoids():
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding as Diffusers
    from transformers import XLNetConfig
    from transformers.models.ctrl.modeling_ctrl import positional_encoding as ctrl
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings as distilbert
    from transformers.models.fsmt.modeling_fsmt import SinusoidalPositionalEmbedding as Fsmt
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding as M2m100
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding as Marian
    from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding as Musicgen
    from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderRelPositionalEncoding as Parakeet
    from transformers.models.speech_to_text.modeling_speech_to_text import (
        Speech2TextSinusoidalPositionalEmbedding as S2t,
    )
    from transformers.models.whisper.modeling_whisper import sinusoids as whisper
    from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding as Xglm
    from transformers.models.xlm.modeling_xlm import create_sinusoidal_embeddings as xlm
    from transformers.models.xlnet.modeling_xlnet import XLNetModel

    def case(name, dim, positions, values, **knobs):
        return {"name": name, "dim": dim, "positions": positions, "values": flat(values), **knobs}

    n = 6
    rows = list(range(n))
    for dim in (8, 16):
        out = torch.empty(n, dim)
        distilbert(n_pos=n, dim=dim, out=out)
        yield case("distilbert", dim, rows, out)
        out = torch.empty(n, dim)
        xlm(n, dim, out)
        yield case("xlm", dim, rows, out)
        yield case("diffusers", dim, rows, Diffusers(dim, n).pe[0])
        yield case("whisper", dim, rows, whisper(n, dim))
        yield case("ctrl", dim, rows, ctrl(n, dim, torch.float32))
    for dim in (7, 8):
        yield case("marian", dim, rows, Marian(n, dim).create_weight())
        for name, kind in (("m2m100", M2m100), ("xglm", Xglm), ("speech2text", S2t)):
            yield case(name, dim, rows, kind.get_embedding(n, dim, 1), padding=1)
        yield case("fsmt", dim, rows, Fsmt.get_embedding(n, dim, 1), padding=1)
        yield case("musicgen", dim, rows, Musicgen.get_embedding(n, dim))
    # A table of many rows at a real size: a few of them.
    far = [0, 1, 17, 511, 1499]
    yield case("whisper", 384, far, whisper(1500, 384)[far])
    frequencies = 1 / torch.pow(10000, torch.arange(0, 16, 2.0) / 16)
    distances = [3, 2, 1, 0, -1, -2]
    yield case(
        "xlnet",
        16,
        distances,
        XLNetModel.positional_embedding(torch.tensor(distances, dtype=torch.float32), frequencies),
    )
    # NeMo's order: from the first key's distance down to the last one's.
    for dim in (8, 16):
        parakeet = Parakeet(types.SimpleNamespace(hidden_size=dim, max_position_embeddings=5000))
        tokens = 5
        yield case("parakeet", dim, list(range(tokens - 1, -tokens, -1)), parakeet(torch.zeros(1, tokens, dim)))
    tokens = 750
    distances = list(range(tokens - 1, -tokens, -1))
    some = [0, 1, 700, 748, 749, 750, 1000, 1498]
    yield case("parakeet", 16, [distances[i] for i in some], parakeet(torch.zeros(1, tokens, 16))[0, some])
    # Transformer-XL's order, as XLNet keeps it: with memory, both ways, clamped, and both directions of a batch.
    queries, keys = 3, 5
    for kind, bi_data, clamp in (("uni", False, -1), ("bi", False, -1), ("bi", False, 2), ("bi", True, 4)):
        xlnet = XLNetModel(
            XLNetConfig(
                vocab_size=4,
                d_model=16,
                n_layer=1,
                n_head=2,
                d_inner=8,
                attn_type=kind,
                bi_data=bi_data,
                clamp_len=clamp,
            )
        )
        table = xlnet.relative_positional_encoding(queries, keys, bsz=2)
        distances = list(range(keys, -queries if kind == "bi" else -1, -1))
        if clamp > 0:
            distances = [max(-clamp, min(clamp, distance)) for distance in distances]
        for column, sign in ((0, 1), (1, -1 if bi_data else 1)):
            yield case("xlnet", 16, [sign * distance for distance in distances], table[:, column])
    # Which positions the padding-aware models read.
    ids = torch.tensor([[5, 6, 1, 7, 1], [1, 1, 8, 9, 4]])
    yield {
        "name": "positions m2m100",
        "ids": ids.reshape(-1).tolist(),
        "positions": M2m100.create_position_ids_from_input_ids(ids, 1, 0).reshape(-1).tolist(),
        "past": M2m100.create_position_ids_from_input_ids(ids, 1, 3).reshape(-1).tolist(),
    }


def timesteps():
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.models.transformers.transformer_qwenimage import get_timestep_embedding as qwen
    from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Timesteps
    from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

    t = [0.0, 1.0, 0.5, 17.25, 499.0, 999.0]
    for dim in (9, 10):
        for flip in (False, True):
            for shift in (0.0, 1.0, 0.5):
                for scale in (1.0, 1000.0, 0.25):
                    for period in (10000, 100):
                        if dim == 9 and (scale != 1.0 or shift == 0.5):
                            continue
                        values = get_timestep_embedding(torch.tensor(t), dim, flip, shift, scale, period)
                        yield {
                            "name": "diffusers",
                            "dim": dim,
                            "flip": flip,
                            "shift": shift,
                            "scale": scale,
                            "max_period": period,
                            "t": t,
                            "values": flat(values),
                        }
    # GLIDE's function, as every model after it copied it.
    for dim in (9, 10, 64):
        for period in (10000, 1000):
            values = TimestepEmbedder.timestep_embedding(torch.tensor(t), dim, period)
            yield {"name": "glide", "dim": dim, "max_period": period, "t": t, "values": flat(values)}
    for flip in (False, True):
        values = SkyReelsV2Timesteps(10, flip)(torch.tensor(t, dtype=torch.float64))
        yield {"name": "skyreels", "dim": 10, "flip": flip, "t": t, "values": flat(values)}
    t = [0.0, 0.25, 0.5, 1.0, 937.0]
    for dim in (16, 256):
        values = qwen(torch.tensor(t, dtype=torch.bfloat16), dim, True, 0.0)
        yield {"name": "qwen", "dim": dim, "t": flat(torch.tensor(t, dtype=torch.bfloat16)), "values": flat(values)}
    # the frequencies themselves, as bits
    for dim in (32, 256, 320):
        half = dim // 2
        exponent = -np.log(10000.0) * torch.arange(0, half, dtype=torch.float32) / half
        bits = torch.exp(exponent).to(torch.bfloat16).view(torch.int16).tolist()
        yield {"name": "qwen frequencies", "dim": dim, "bits": bits}


def grids():
    from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed, get_3d_sincos_pos_embed
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrSinePositionEmbedding
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding
    from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import build_2d_sinusoidal_position_embedding
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding as vit_mae

    rows, columns, dim = 3, 4, 16
    grid = {"rows": rows, "columns": columns, "dim": dim}
    yield {
        "name": "mae",
        **grid,
        "values": flat(get_2d_sincos_pos_embed(dim, (rows, columns), base_size=1)),
        "scales": [1 / rows, 1 / columns],
    }
    yield {
        "name": "mae",
        **grid,
        "values": flat(get_2d_sincos_pos_embed(dim, (rows, columns), base_size=6, interpolation_scale=2.0)),
        "scales": [6 / rows / 2, 6 / columns / 2],
    }
    yield {
        "name": "hf",
        **grid,
        "values": flat(build_2d_sinusoidal_position_embedding(rows, columns, dim, dtype=torch.float64)),
    }
    yield {
        "name": "hf class",
        **grid,
        "values": flat(build_2d_sinusoidal_position_embedding(rows, columns, dim, cls_token=True, dtype=torch.float64)),
    }
    yield {"name": "hf class", **grid, "values": flat(vit_mae(rows, columns, dim, cls_token=True, dtype=torch.float64))}
    yield {"name": "timm", **grid, "values": flat(build_sincos2d_pos_embed([rows, columns], dim))}
    yield {
        "name": "timm interleaved",
        **grid,
        "values": flat(build_sincos2d_pos_embed([rows, columns], dim, interleave_sin_cos=True)),
    }
    patch = PatchEmbed(height=8, width=8, patch_size=2, embed_dim=dim, pos_embed_max_size=7)
    yield {
        "name": "sd3",
        **grid,
        "values": flat(patch.cropped_pos_embed(rows * 2, columns * 2)),
        "crop": [(7 - rows) // 2, (7 - columns) // 2],
        "scale": 4 / 7,
    }
    yield {
        "name": "cogvideox",
        "frames": 2,
        "rows": 2,
        "columns": 3,
        "dim": 32,
        "spatial": 1.875,
        "temporal": 1.25,
        "values": flat(get_3d_sincos_pos_embed(32, (3, 2), 2, 1.875, 1.25)),
    }
    # Two images, padded at the right and below by different amounts.
    mask = torch.ones(2, rows, columns, dtype=torch.bool)
    mask[0, 2:, :] = False
    mask[0, :, 3:] = False
    mask[1, :, 2:] = False
    for normalize in (True, False):
        for temperature in (10000, 20):
            detr = DetrSinePositionEmbedding(dim // 2, temperature, normalize)
            values = detr(torch.Size([2, 1, rows, columns]), "cpu", torch.float64, mask)
            yield {
                "name": "detr",
                **grid,
                "normalize": normalize,
                "temperature": temperature,
                "batch": 2,
                "mask": mask.int().reshape(-1).tolist(),
                "values": flat(values.permute(0, 2, 3, 1)),
            }
    deformable = DeformableDetrSinePositionEmbedding(dim // 2, 10000, True)
    values = deformable(torch.Size([2, 1, rows, columns]), "cpu", torch.float64, mask)
    yield {
        "name": "detr",
        **grid,
        "normalize": True,
        "centre": 0.5,
        "temperature": 10000,
        "batch": 2,
        "mask": mask.int().reshape(-1).tolist(),
        "values": flat(values.permute(0, 2, 3, 1)),
    }


def learned():
    from transformers import BertConfig, GPT2Config, GPT2LMHeadModel
    from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
    from transformers.models.bert.modeling_bert import BertEmbeddings
    from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    rows = torch.arange(20).double()[:, None]
    opt = OPTLearnedPositionalEmbedding(18, 1)
    opt.weight.data = rows.clone()
    yield {"name": "opt", "mask": mask.reshape(-1).tolist(), "positions": opt(mask).reshape(-1).long().tolist()}
    bart = BartLearnedPositionalEmbedding(18, 1)
    bart.weight.data = rows.clone()
    yield {"name": "bart", "past": 4, "positions": bart(mask, 4).reshape(-1).long().tolist()}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    ids = torch.ones_like(mask)
    positions = gpt2._prepare_position_ids_for_generation(ids, {"attention_mask": mask})
    yield {"name": "gpt2 left", "mask": mask.reshape(-1).tolist(), "positions": positions.reshape(-1).tolist()}
    ids = torch.tensor([[5, 6, 1, 7, 1], [1, 1, 8, 9, 4]])
    positions = RobertaEmbeddings.create_position_ids_from_input_ids(ids, 1)
    yield {"name": "roberta", "ids": ids.reshape(-1).tolist(), "positions": positions.reshape(-1).tolist()}

    # BERT's embeddings with every gradient, in f64.
    dim = 12
    config = BertConfig(
        vocab_size=7,
        hidden_size=dim,
        max_position_embeddings=6,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        pad_token_id=None,
        num_attention_heads=2,
    )
    bert = BertEmbeddings(config).double().eval()
    for parameter in bert.parameters():
        parameter.data = torch.randn_like(parameter)
    ids = torch.tensor([[3, 1, 3, 6, 0], [2, 3, 5, 1, 1]])
    kinds = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 1, 1]])
    grad = torch.randn(2, 5, dim, dtype=torch.float64)
    out = bert(input_ids=ids, token_type_ids=kinds)
    out.backward(grad)
    yield {
        "name": "bert",
        "dim": dim,
        "batch": 2,
        "tokens": 5,
        "ids": ids.reshape(-1).tolist(),
        "types": kinds.reshape(-1).tolist(),
        "eps": config.layer_norm_eps,
        "token_table": flat(bert.word_embeddings.weight),
        "position_table": flat(bert.position_embeddings.weight),
        "type_table": flat(bert.token_type_embeddings.weight),
        "gain": flat(bert.LayerNorm.weight),
        "bias": flat(bert.LayerNorm.bias),
        "values": flat(out),
        "grad": flat(grad),
        "token_grad": flat(bert.word_embeddings.weight.grad),
        "position_grad": flat(bert.position_embeddings.weight.grad),
        "type_grad": flat(bert.token_type_embeddings.weight.grad),
        "gain_grad": flat(bert.LayerNorm.weight.grad),
        "bias_grad": flat(bert.LayerNorm.bias.grad),
    }
    x = torch.randn(3, dim, dtype=torch.float64, requires_grad=True)
    norm = torch.nn.RMSNorm(dim, eps=1e-5, dtype=torch.float64)
    norm.weight.data = torch.randn(dim, dtype=torch.float64)
    grad = torch.randn(3, dim, dtype=torch.float64)
    out = norm(x)
    out.backward(grad)
    yield {
        "name": "rms",
        "dim": dim,
        "eps": 1e-5,
        "x": flat(x),
        "gain": flat(norm.weight),
        "values": flat(out),
        "grad": flat(grad),
        "x_grad": flat(x.grad),
        "gain_grad": flat(norm.weight.grad),
    }


def resized(name, table, to, mode, **more):
    """A table at another size, in f64 with its gradient and in f32; `more` is torch's."""
    how = {"size": to, "mode": mode, **more}
    x = table.clone().requires_grad_()
    out = torch.nn.functional.interpolate(x, **how)
    grad = torch.randn_like(out)
    out.backward(grad)
    return {
        "name": name,
        "from": list(table.shape[-2:]),
        "to": list(to),
        "mode": mode,
        **more,
        "table": flat(table.permute(0, 2, 3, 1)),
        "values": flat(out.permute(0, 2, 3, 1)),
        "f32": flat(torch.nn.functional.interpolate(table.float(), **how).permute(0, 2, 3, 1)),
        "grad": flat(grad.permute(0, 2, 3, 1)),
        "table_grad": flat(x.grad.permute(0, 2, 3, 1)),
    }


def aligned(channels):
    """Corners on corners."""
    torch.manual_seed(1)
    for rows, columns, to_rows, to_columns in ((7, 5, 11, 6), (14, 14, 7, 5), (3, 4, 1, 2), (5, 1, 8, 3)):
        table = torch.randn(1, channels, rows, columns, dtype=torch.float64)
        for mode in ("bilinear", "bicubic"):
            yield resized("aligned", table, (to_rows, to_columns), mode, align_corners=True)
    for columns, to_columns in ((5, 3), (14, 24), (24, 14), (16, 37), (37, 16)):
        impulses = torch.eye(columns).reshape(columns, 1, 1, columns)
        for mode in ("bilinear", "bicubic"):
            how = {"size": (1, to_columns), "mode": mode, "align_corners": True}
            bits = torch.nn.functional.interpolate(impulses, **how).reshape(columns, to_columns).T.contiguous()
            yield {
                "name": "weights",
                "from": [1, columns],
                "to": [1, to_columns],
                "mode": mode,
                "align_corners": True,
                "bits": bits.view(torch.int32).reshape(-1).tolist(),
            }


def resampling():
    from timm.layers.pos_embed import resample_abs_pos_embed

    channels = 2
    for rows, columns, to_rows, to_columns in ((7, 7, 7, 7), (7, 5, 11, 6), (14, 14, 7, 5), (3, 4, 1, 2), (5, 1, 8, 3)):
        table = torch.randn(1, channels, rows, columns, dtype=torch.float64)
        for mode in ("bilinear", "bicubic"):
            for antialias in (False, True):
                yield resized("size", table, (to_rows, to_columns), mode, antialias=antialias)
    # DINOv2: a factor whose inverse, not the quotient of sizes, steps through the table.
    table = torch.randn(1, channels, 6, 6, dtype=torch.float64)
    for antialias in (False, True):
        for rows, columns in ((9, 4), (13, 7)):
            factors = ((rows + 0.1) / 6, (columns + 0.1) / 6)
            out = torch.nn.functional.interpolate(table, scale_factor=factors, mode="bicubic", antialias=antialias)
            assert out.shape[-2:] == (rows, columns)
            single = torch.nn.functional.interpolate(
                table.float(), scale_factor=factors, mode="bicubic", antialias=antialias
            )
            yield {
                "name": "factor",
                "from": [6, 6],
                "to": [rows, columns],
                "factors": factors,
                "mode": "bicubic",
                "antialias": antialias,
                "table": flat(table.permute(0, 2, 3, 1)),
                "values": flat(out.permute(0, 2, 3, 1)),
                "f32": flat(single.permute(0, 2, 3, 1)),
            }
    # The weights of one axis in f32, to the bit: what impulses become.
    for columns, to_columns, factor in (
        (5, 3, None),
        (14, 24, None),
        (24, 14, None),
        (16, 37, None),
        (37, 16, None),
        (6, 9, 9.1 / 6),
    ):
        impulses = torch.eye(columns).reshape(columns, 1, 1, columns)
        for mode in ("bilinear", "bicubic"):
            for antialias in (False, True):
                how = {"size": (1, to_columns)} if factor is None else {"scale_factor": (1.0, factor)}
                out = torch.nn.functional.interpolate(impulses, mode=mode, antialias=antialias, **how)
                assert out.shape[-1] == to_columns
                bits = out.reshape(columns, to_columns).T.contiguous().view(torch.int32)
                yield {
                    "name": "weights",
                    "from": [1, columns],
                    "to": [1, to_columns],
                    "mode": mode,
                    "antialias": antialias,
                    **({} if factor is None else {"factors": [1.0, factor]}),
                    "bits": bits.reshape(-1).tolist(),
                }
    table = torch.randn(1, 1 + 16, channels)
    # What torch draws for what comes later stays what it was.
    with torch.random.fork_rng():
        yield from aligned(channels)
    yield {
        "name": "timm",
        "from": [4, 4],
        "to": [3, 6],
        "mode": "bicubic",
        "antialias": True,
        "prefix": 1,
        "table": flat(table),
        "values": flat(resample_abs_pos_embed(table, [3, 6], [4, 4], 1)),
    }


packages = ["torch", "transformers", "diffusers", "timm", "numpy"]
# Libraries greet on standard output now and then.
out, sys.stdout = sys.stdout, sys.stderr
golden = {
    "meta": {
        "script": "tools/golden/embed.py",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    },
    "sinusoid": list(sinusoids()),
    "timestep": list(timesteps()),
    "grid": list(grids()),
    "learned": list(learned()),
    "resample": list(resampling()),
}
sys.stdout = out
lines = []
for room, cases in golden.items():
    if room == "meta":
        lines.append(f'"meta": {json.dumps(cases)}')
    else:
        lines.append(f'"{room}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]")
print("{\n" + ",\n".join(lines) + "\n}")

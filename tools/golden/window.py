"""Biases of two dimensions as public implementations compute them: tables of windows and their resizing, shifted
windows, Swin v2's network, decomposed positions, and sums of buckets.

Prints tests/golden/window.json. Tokens are row-major; i is a query at (yi, xi), j a key at (yj, xj).
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import timm
import torch
import transformers
from cases import Given, case, draw, fill, near, numpy, softmax, softmax_inputs, write
from timm.layers.pos_embed_rel import (
    RelPosBias,
    RelPosBiasTf,
    RelPosMlp,
    gen_relative_position_index,
    resize_rel_pos_bias_table,
    resize_rel_pos_bias_table_levit,
    resize_rel_pos_bias_table_simple,
)
from timm.models import beit as timm_beit
from timm.models import levit as timm_levit
from timm.models import mvitv2, swin_transformer, swin_transformer_v2, tiny_vit
from timm.models import vision_transformer_sam as timm_sam
from transformers import BeitConfig, Data2VecVisionConfig, LayoutLMv2Config, SamVisionConfig, SwinConfig, Swinv2Config
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias
from transformers.models.layoutlmv2.modeling_layoutlmv2 import LayoutLMv2Encoder
from transformers.models.levit.modeling_levit import LevitAttention, LevitAttentionSubsample
from transformers.models.pp_doclayout_v2.configuration_pp_doclayout_v2 import PPDocLayoutV2ReadingOrderConfig
from transformers.models.pp_doclayout_v2.modeling_pp_doclayout_v2 import PPDocLayoutV2PositionRelationEmbedding
from transformers.models.sam.modeling_sam import SamVisionAttention
from transformers.models.swin.modeling_swin import SwinAttention, SwinLayer, SwinRelativePositionBias
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer, Swinv2SelfAttention
from transformers.models.vitdet.modeling_vitdet import add_decomposed_relative_positions


def grid(window):
    """Rows and columns of the tokens, and their differences, query minus key."""
    y, x = np.divmod(np.arange(window[0] * window[1]), window[1])
    return y[:, None] - y[None], x[:, None] - x[None]


def swin_index(window):
    dy, dx = grid(window)
    return (dy + window[0] - 1) * (2 * window[1] - 1) + dx + window[1] - 1


SWIN = "index[i,j] = (yi-yj+Wh-1)*(2*Ww-1) + (xi-xj+Ww-1); bias[h,i,j] = table[index[i,j], h]"


def gradient_of(upstream, bias, *parameters):
    return torch.autograd.grad((upstream * bias).sum(), parameters)


def swin_tables():
    for window in ((2, 2), (3, 4), (4, 2), (1, 3)):
        heads, tokens = 3, window[0] * window[1]
        index = swin_index(window)
        assert (numpy(gen_relative_position_index(window)) == index).all()
        module = fill(SwinRelativePositionBias(heads, window))
        assert (numpy(module.relative_position_index) == index.reshape(-1)).all()
        table = module.relative_position_bias_table
        bias = module()[0]
        precision = near(bias, numpy(table)[index].transpose(2, 0, 1), 0)
        upstream = draw(heads, tokens, tokens)
        (gradient,) = gradient_of(upstream, bias, table)
        law = np.zeros(table.shape)
        np.add.at(law, index.reshape(-1), numpy(upstream).reshape(heads, -1).T)
        near(gradient, law)
        yield case(
            f"swin_table_{window[0]}x{window[1]}",
            "swin",
            "transformers SwinRelativePositionBias; timm gen_relative_position_index",
            SWIN + "; table_gradient[index[i,j], h] += upstream[h,i,j]",
            precision,
            {"heads": heads, "window": window},
            index=index,
            table=table,
            bias=bias,
            upstream=upstream,
            table_gradient=gradient,
        )


def regions(size, window, shift):
    """Regions [windows, tokens] of an image; an axis that is not shifted is one region."""

    def axis(size, window, shift):
        p = np.arange(size)
        return (p >= size - window).astype(int) + (p >= size - shift) if shift else np.zeros(size, int)

    image = 3 * axis(size[0], window[0], shift[0])[:, None] + axis(size[1], window[1], shift[1])
    rows, columns = size[0] // window[0], size[1] // window[1]
    image = image.reshape(rows, window[0], columns, window[1]).transpose(0, 2, 1, 3)
    return image.reshape(rows * columns, -1)


def split(size, window, shift):
    """The same mask by local coordinates: only the last row and column of windows is split, at window - shift."""
    rows, columns = size[0] // window[0], size[1] // window[1]
    y, x = np.divmod(np.arange(window[0] * window[1]), window[1])
    far_y, far_x = (y >= window[0] - shift[0]) & (shift[0] > 0), (x >= window[1] - shift[1]) & (shift[1] > 0)
    mask = np.zeros((rows * columns, y.size, y.size))
    for row, column in itertools.product(range(rows), range(columns)):
        apart = np.zeros((y.size, y.size), bool)
        if row == rows - 1:
            apart |= far_y[:, None] != far_y[None]
        if column == columns - 1:
            apart |= far_x[:, None] != far_x[None]
        mask[row * columns + column][apart] = -100
    return mask


MASK = (
    "windows row-major over the rolled image, whose pixel p is the original's (p + shift) mod size; only windows of "
    "the last row (column) are split, by local y >= Wh - shift_y (local x >= Ww - shift_x); mask = -100 between the "
    "parts, else 0; an axis with shift 0 is not split; added to the scores after bias and scale"
)


def shifted_masks():
    for source, size, window, shift in (
        ("transformers SwinLayer.get_attn_mask", (4, 4), (2, 2), (1, 1)),
        ("transformers SwinLayer.get_attn_mask", (6, 9), (3, 3), (1, 1)),
        ("transformers Swinv2Layer.get_attn_mask", (4, 8), (4, 4), (2, 2)),
        ("timm swin_transformer SwinTransformerBlock.get_attn_mask", (4, 6), (2, 3), (1, 1)),
        ("timm swin_transformer SwinTransformerBlock.get_attn_mask", (6, 4), (3, 4), (1, 0)),
        ("timm swin_transformer_v2 SwinTransformerV2Block.get_attn_mask", (8, 4), (4, 2), (2, 1)),
    ):
        if "SwinLayer" in source:
            config = SwinConfig(window_size=window[0])
            layer = SwinLayer(config, 8, size, 2, shift_size=shift[0])
            mask = layer.get_attn_mask(*size, torch.float64, "cpu")
        elif "Swinv2Layer" in source:
            layer = Swinv2Layer(Swinv2Config(window_size=window[0]), 8, (8, 8), 2, shift_size=shift[0])
            mask = layer.get_attn_mask(*size, torch.float64)
        else:
            kind = swin_transformer.SwinTransformerBlock
            if "v2" in source:
                kind = swin_transformer_v2.SwinTransformerV2Block
            block = kind(8, size, num_heads=2, window_size=window, shift_size=shift)
            if block.shift_size != shift:
                # timm drops the shift of an axis with a single window.
                assert (block.shift_size[1], shift[1]) == (0, 0), block.shift_size
            mask = block.get_attn_mask(dtype=torch.float64)
        parts = regions(size, window, shift)
        precision = near(mask, np.where(parts[:, :, None] == parts[:, None], 0, -100), 0)
        near(mask, split(size, window, shift), 0)
        yield case(
            f"mask_{source.split()[0]}_{'v2_' if 'v2' in source.lower() else ''}{size[0]}x{size[1]}",
            "swin v2" if "v2" in source.lower() else "swin",
            source,
            MASK,
            precision,
            {"size": size, "window": window, "shift": shift},
            mask=mask,
        )


def swin_attention():
    """Two images of four windows, shifted: everything that goes into the softmax."""
    heads, dim, window, size, images = 2, 4, (2, 2), (4, 4), 2
    tokens = 4
    config = SwinConfig(window_size=2, attn_implementation="eager")
    module = fill(SwinAttention(config, heads * dim, heads, 2))
    mask = SwinLayer(config, 8, size, 2, shift_size=1).get_attn_mask(*size, torch.float64, "cpu")
    states = draw(images * len(mask), tokens, heads * dim)
    heads_of = lambda x: x.view(len(states), tokens, heads, dim).transpose(1, 2)
    q, k, v = (draw(*states.shape) for _ in range(3))
    module.q_proj, module.k_proj, module.v_proj, module.o_proj = Given(q), Given(k), Given(v), torch.nn.Identity()
    with softmax_inputs() as inputs:
        output, _ = module(states, mask)
    q, k, v = heads_of(q), heads_of(k), heads_of(v)
    table = module.relative_position_bias.relative_position_bias_table
    bias = numpy(table)[swin_index(window)].transpose(2, 0, 1)
    law = numpy(q @ k.transpose(-1, -2)) / math.sqrt(dim) + bias + np.tile(numpy(mask), (images, 1, 1))[:, None]
    precision = near(inputs[0], law)
    near(output, (softmax(law) @ numpy(v)).transpose(0, 2, 1, 3).reshape(output.shape), 1e-6)
    return case(
        "swin_attention_shifted",
        "swin",
        "transformers SwinAttention with SwinLayer.get_attn_mask",
        "scores[b,h] = q k^T / sqrt(D) + bias[h] + mask[b % windows]; b = image * windows + window; output before its "
        "projection, softmax in f32",
        precision,
        {"heads": heads, "dim": dim, "window": window, "size": size, "shift": [1, 1], "images": images},
        q=q,
        k=k,
        v=v,
        table=table,
        mask=mask,
        scores=inputs[0],
        output=heads_of(output),
    )


def log_coordinates(window, pretrained, mode="swin"):
    y, x = (np.arange(-(w - 1), w, dtype=np.float64) for w in window)
    if mode == "swin":
        reach = [max((p or w) - 1, 1) for w, p in zip(window, pretrained, strict=True)]
        y, x = y / reach[0] * 8, x / reach[1] * 8
        log = lambda c: np.sign(c) * np.log2(1 + np.abs(c)) / 3
    else:
        log = lambda c: np.sign(c) * np.log1p(np.abs(c))
    return np.stack(np.meshgrid(log(y), log(x), indexing="ij"), -1)


COORDINATES = (
    "c(d) = sign(d)*log2(1 + 8*|d|/R)/3 with R = max((pretrained if pretrained > 0 else W) - 1, 1) of the axis, d = "
    "-(W-1)..W-1; coordinates[dy+Wh-1, dx+Ww-1] = (c(dy), c(dx)); table = 16*sigmoid(w2 relu(w1 c + b1)); "
)


def network(coordinates, w1, b1, w2, b2=0.0):
    hidden = np.maximum(numpy(coordinates).reshape(-1, 2) @ numpy(w1).T + numpy(b1), 0)
    return hidden @ numpy(w2).T + numpy(b2)


def swin_v2():
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    unit = lambda x: numpy(x) / np.maximum(np.linalg.norm(numpy(x), axis=-1, keepdims=True), 1e-12)

    def given(source, window, pretrained, hidden, masked, gradients=False):
        heads, dim, images = 2, 4, 1
        tokens = window[0] * window[1]
        size, shift = (2 * window[0], window[1]), (1, 0)
        mask = torch.tensor(split(size, window, shift)) if masked else None
        batch = images * (2 if masked else 1)
        w1, b1, w2 = draw(hidden, 2), draw(hidden), draw(heads, hidden, scale=0.25)
        mlp = torch.nn.Sequential(
            torch.nn.Linear(2, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, heads, bias=False)
        )
        q, k, v = (draw(batch, tokens, heads * dim) for _ in range(3))
        if source == "transformers":
            config = Swinv2Config()
            module = Swinv2SelfAttention(config, heads * dim, heads, window, pretrained).double().eval()
            module.continuous_position_bias_mlp = mlp
            module.query, module.key, module.value = Given(q), Given(k), Given(v)
            coordinates = module.relative_coords_table
        else:
            kind = swin_transformer_v2.WindowAttention
            module = kind(heads * dim, window, heads, False, pretrained_window_size=pretrained).double().eval()
            module.cpb_mlp = mlp
            module.qkv = Given(torch.cat((q, k, v), -1))
            module.proj = torch.nn.Identity()
            coordinates = module.relative_coords_table
        with torch.no_grad():
            # The second is above the clamp ln 100.
            module.logit_scale.copy_(torch.tensor([1.25, 5.0]).view(heads, 1, 1))
            for parameter, value in zip((mlp[0].weight, mlp[0].bias, mlp[2].weight), (w1, b1, w2), strict=True):
                parameter.copy_(value)
        with softmax_inputs() as inputs:
            output = module(torch.zeros_like(q), mask)
        scores = inputs[0]
        output = output[0] if source == "transformers" else output
        heads_of = lambda x: x.view(batch, tokens, heads, dim).transpose(1, 2)
        q, k, v = heads_of(q), heads_of(k), heads_of(v)
        near(coordinates[0], log_coordinates(window, pretrained), 3e-7)
        table = 16 * sigmoid(network(coordinates, w1, b1, w2))
        bias = table[swin_index(window)].transpose(2, 0, 1)
        scale = np.exp(np.minimum(numpy(module.logit_scale), math.log(100)))
        law = unit(q) @ unit(k).transpose(0, 1, 3, 2) * scale + bias
        times = 2 if source == "transformers" else 1
        if masked:
            law = law + times * np.tile(numpy(mask), (images, 1, 1))[:, None]
        precision = near(scores, law)
        near(output, (softmax(law) @ numpy(v)).transpose(0, 2, 1, 3).reshape(output.shape))
        arrays = dict(
            coordinates=coordinates[0],
            w1=w1,
            b1=b1,
            w2=w2,
            table=table,
            bias=bias,
            logit_scale=module.logit_scale.reshape(-1),
            q=q,
            k=k,
            v=v,
            scores=scores,
            output=heads_of(output),
        )
        if masked:
            arrays["mask"] = mask
        law = COORDINATES + SWIN + "; scores = q.k/(|q||k|)*exp(min(logit_scale, ln 100)) + bias"
        if masked:
            law += f" + {times}*mask[b % windows]"
            if times == 2:
                law += " (known bad: transformers adds the mask twice, -200)"
        if gradients:
            upstream = draw(*scores.shape)
            parameters = mlp[0].weight, mlp[0].bias, mlp[2].weight, module.logit_scale
            g1, gb, g2, gs = gradient_of(upstream, scores, *parameters)
            # Of the table before the sigmoid: what the network gets.
            raw = np.zeros((len(table), heads))
            np.add.at(raw, swin_index(window).reshape(-1), numpy(upstream).sum(0).reshape(heads, -1).T)
            s = table / 16
            raw_gradient = raw * 16 * s * (1 - s)
            pre = numpy(coordinates).reshape(-1, 2) @ numpy(w1).T + numpy(b1)
            back = (raw_gradient @ numpy(w2)) * (pre > 0)
            near(g2, raw_gradient.T @ np.maximum(pre, 0))
            near(g1, back.T @ numpy(coordinates).reshape(-1, 2))
            near(gb, back.sum(0))
            cosine = (numpy(upstream) * (unit(q) @ unit(k).transpose(0, 1, 3, 2))).sum((0, 2, 3))
            near(gs.reshape(-1), cosine * scale.reshape(-1) * (numpy(module.logit_scale).reshape(-1) <= math.log(100)))
            arrays |= dict(
                upstream=upstream,
                table_gradient=raw,
                w1_gradient=g1,
                b1_gradient=gb,
                w2_gradient=g2,
                logit_scale_gradient=gs.reshape(-1),
            )
            law += (
                "; gradients of sum(upstream*scores): table_gradient (of the table after sigmoid) sums batch and "
                "pairs, the network gets table_gradient*table*(1 - table/16), a clamped logit_scale gets 0"
            )
        name = f"swin_v2_{source}_{window[0]}x{window[1]}" + ("_masked" if masked else "")
        name += "_pretrained" if pretrained[0] else ""
        return case(
            name,
            "swin v2",
            "transformers Swinv2SelfAttention"
            if source == "transformers"
            else "timm swin_transformer_v2 WindowAttention",
            law,
            precision,
            {"heads": heads, "dim": dim, "window": window, "pretrained": pretrained, "hidden": hidden, "batch": batch},
            **arrays,
        )

    yield given("transformers", (3, 3), (0, 0), 12, False)
    yield given("transformers", (2, 2), (4, 4), 512, True)
    yield given("timm", (3, 4), (6, 8), 12, False, gradients=True)
    yield given("timm", (2, 3), (0, 0), 12, True)
    for mode, window, pretrained in (("cr", (3, 4), (0, 0)), ("swin", (3, 2), (4, 6))):
        heads, hidden = 3, 6
        module = RelPosMlp(window, heads, hidden, mode=mode, pretrained_window_size=pretrained)
        coordinates = module.rel_coords_log.clone()
        module = fill(module)
        layers = module.mlp.fc1, module.mlp.fc2
        bias = module.get_bias()[0]
        second = 0.0 if layers[1].bias is None else layers[1].bias
        table = network(coordinates, layers[0].weight, layers[0].bias, layers[1].weight, second)
        if mode == "swin":
            table = 16 * sigmoid(table)
        near(coordinates, log_coordinates(window, pretrained, mode), 3e-7)
        precision = near(bias, table[swin_index(window)].transpose(2, 0, 1))
        yield case(
            f"log_mlp_{mode}",
            "swin v2 cr, maxvit rw" if mode == "cr" else "swin v2",
            f"timm RelPosMlp, mode {mode}",
            (
                "c(d) = sign(d)*ln(1 + |d|), not divided; table = w2 relu(w1 c + b1) + b2, no sigmoid; " + SWIN
                if mode == "cr"
                else COORDINATES + SWIN
            ),
            precision,
            {"heads": heads, "window": window, "pretrained": pretrained, "hidden": hidden},
            coordinates=coordinates,
            w1=layers[0].weight,
            b1=layers[0].bias,
            w2=layers[1].weight,
            **({} if layers[1].bias is None else {"b2": layers[1].bias}),
            table=table,
            bias=bias,
        )


def beit_index(window):
    tokens = window[0] * window[1]
    n = (2 * window[0] - 1) * (2 * window[1] - 1)
    index = np.empty((tokens + 1, tokens + 1), int)
    index[1:, 1:] = swin_index(window)
    index[0], index[:, 0], index[0, 0] = n, n + 1, n + 2
    return index


BEIT = (
    "n = (2*Wh-1)*(2*Ww-1); token 0 is the class token: index[0,j] = n, index[i,0] = n+1, index[0,0] = n+2, else "
    "Swin's of tokens i-1, j-1; bias[h,i,j] = table[index[i,j], h]"
)


def beit():
    heads, window = 3, (3, 3)
    for kind, config in (
        (BeitRelativePositionBias, BeitConfig),
        (Data2VecVisionRelativePositionBias, Data2VecVisionConfig),
    ):
        settings = config(image_size=6, patch_size=2, num_attention_heads=heads, hidden_size=12)
        module = fill(kind(settings) if config is BeitConfig else kind(settings, window))
        table = module.relative_position_bias_table
        bias = module(window)[0]
        precision = near(bias, numpy(table)[beit_index(window)].transpose(2, 0, 1))
        yield case(
            f"{'beit' if kind is BeitRelativePositionBias else 'data2vec'}_3x3",
            "beit" if kind is BeitRelativePositionBias else "data2vec-vision",
            f"transformers {kind.__name__}",
            BEIT,
            precision,
            {"heads": heads, "window": window},
            index=beit_index(window),
            table=table,
            bias=bias,
        )
    # Square here: transformers reads the table of a window that is not square as [width, height].
    module = fill(
        BeitRelativePositionBias(BeitConfig(image_size=6, patch_size=2, num_attention_heads=heads, hidden_size=12))
    )
    table, to = module.relative_position_bias_table, (4, 5)
    bias = module(to)[0]
    resized = np.concatenate((resize(numpy(table)[:-3], (5, 5), (7, 9), linear), numpy(table)[-3:]))
    precision = near(bias, resized[beit_index(to)].transpose(2, 0, 1))
    yield case(
        "beit_resized_3x3_to_4x5",
        "beit",
        "transformers BeitRelativePositionBias of another window",
        "the table without its last three rows is resized from (2*Wh-1, 2*Ww-1) to (2*Wh'-1, 2*Ww'-1), bilinear, half "
        "pixels, no antialias; the last three rows stay; then as beit (from a square window: for others transformers "
        "reads [2*Ww-1, 2*Wh-1], known bad)",
        precision,
        {"heads": heads, "window": window, "to": to},
        table=table,
        resized=resized,
        bias=bias,
    )
    for window in ((2, 3), (3, 2)):
        index = beit_index(window)
        assert (numpy(timm_beit.gen_relative_position_index(window)) == index).all()
        assert (numpy(gen_relative_position_index(window, class_token=True)) == index).all()
        module = fill(RelPosBias(window, heads, prefix_tokens=1))
        bias = module.get_bias()[0]
        table = module.relative_position_bias_table
        precision = near(bias, numpy(table)[index].transpose(2, 0, 1), 0)
        yield case(
            f"beit_timm_{window[0]}x{window[1]}",
            "beit",
            "timm RelPosBias with prefix_tokens=1; timm beit gen_relative_position_index",
            BEIT,
            precision,
            {"heads": heads, "window": window},
            index=index,
            table=table,
            bias=bias,
        )


def maxvit():
    heads = 3
    for window in ((2, 2), (3, 4)):
        tokens = window[0] * window[1]
        module = fill(RelPosBiasTf(window, heads))
        module._init_buffers()
        table = module.relative_position_bias_table
        bias = module.get_bias()
        dy, dx = grid(window)
        precision = near(bias, numpy(table)[:, -dy + window[0] - 1, -dx + window[1] - 1], 0)
        upstream = draw(heads, tokens, tokens)
        (gradient,) = gradient_of(upstream, bias, table)
        yield case(
            f"maxvit_tf_{window[0]}x{window[1]}",
            "maxvit tf",
            "timm RelPosBiasTf",
            "bias[h,i,j] = table[h, yj-yi+Wh-1, xj-xi+Ww-1]: key minus query, table [heads, 2*Wh-1, 2*Ww-1]",
            precision,
            {"heads": heads, "window": window},
            height_lookup=numpy(module.height_lookup).argmax(-1),
            width_lookup=numpy(module.width_lookup).argmax(-1),
            table=table,
            bias=bias,
            upstream=upstream,
            table_gradient=gradient,
        )
    window = (3, 2)
    module = fill(RelPosBias(window, heads))
    table = module.relative_position_bias_table
    bias = module.get_bias()[0]
    precision = near(bias, numpy(table)[swin_index(window)].transpose(2, 0, 1), 0)
    yield case(
        "maxvit_3x2",
        "maxvit",
        "timm RelPosBias",
        SWIN,
        precision,
        {"heads": heads, "window": window},
        table=table,
        bias=bias,
    )


def levit():
    heads = 2
    for source, window in (("levit", (3, 3)), ("tiny_vit", (3, 4)), ("tiny_vit", (4, 2)), ("timm_levit", (2, 3))):
        if source == "levit":
            module = LevitAttention(8, 4, heads, 2, window[0])
        elif source == "tiny_vit":
            module = tiny_vit.Attention(8, 4, heads, 2, window)
        else:
            module = timm_levit.Attention(8, 4, heads, 2, resolution=window)
        module = fill(module)
        dy, dx = grid(window)
        index = np.abs(dy) * window[1] + np.abs(dx)
        assert (numpy(module.attention_bias_idxs) == index).all()
        assert module.attention_biases.shape == (heads, window[0] * window[1])
        bias = module.get_attention_biases(torch.device("cpu"))
        precision = near(bias, numpy(module.attention_biases)[:, index], 0)
        yield case(
            f"{source}_{window[0]}x{window[1]}",
            {"levit": "levit", "tiny_vit": "tinyvit", "timm_levit": "levit"}[source],
            {
                "levit": "transformers LevitAttention",
                "tiny_vit": "timm tiny_vit Attention",
                "timm_levit": "timm levit Attention",
            }[source],
            "index[i,j] = |yi-yj|*Ww + |xi-xj| (the order of first appearance is this); bias[h,i,j] = table[h, "
            "index]; table [heads, Wh*Ww]",
            precision,
            {"heads": heads, "window": window},
            index=index,
            table=module.attention_biases,
            bias=bias,
        )
    for source, size, stride in (
        ("levit", (4, 4), 2),
        ("levit", (5, 5), 2),
        ("levit", (5, 5), 3),
        ("timm_levit", (3, 4), 2),
    ):
        queries = tuple((s - 1) // stride + 1 for s in size)
        if source == "levit":
            module = LevitAttentionSubsample(8, 8, 4, heads, 2, stride, size[0], queries[0])
        else:
            module = timm_levit.AttentionDownsample(8, 8, 4, heads, 2, stride=stride, resolution=size)
        module = fill(module)
        (yi, xi), (yj, xj) = (np.divmod(np.arange(s[0] * s[1]), s[1]) for s in (queries, size))
        index = np.abs(yi[:, None] * stride - yj) * size[1] + np.abs(xi[:, None] * stride - xj)
        assert (numpy(module.attention_bias_idxs) == index).all()
        assert module.attention_biases.shape == (heads, size[0] * size[1])
        bias = module.get_attention_biases(torch.device("cpu"))
        precision = near(bias, numpy(module.attention_biases)[:, index], 0)
        upstream = draw(*bias.shape)
        module.train()
        (gradient,) = gradient_of(upstream, module.get_attention_biases(torch.device("cpu")), module.attention_biases)
        yield case(
            f"{source}_subsample_{size[0]}x{size[1]}_stride_{stride}",
            "levit",
            "transformers LevitAttentionSubsample" if source == "levit" else "timm levit AttentionDownsample",
            "queries = (size-1)//stride + 1 per axis; index[i,j] = |yi*stride-yj|*W + |xi*stride-xj|, W the keys' "
            "width; bias[h,i,j] = table[h, index]; table [heads, H*W] of the keys' grid",
            precision,
            {"heads": heads, "keys": size, "queries": queries, "stride": stride},
            index=index,
            table=module.attention_biases,
            bias=bias,
            upstream=upstream,
            table_gradient=gradient,
        )


def relative_rows(queries, keys):
    """Rows of a table of 2*max(queries, keys) - 1 by exact arithmetic."""
    of = lambda i, j: math.floor(
        i * max(Fraction(keys, queries), 1) + (keys - 1 - j) * max(Fraction(queries, keys), Fraction(1))
    )
    return np.array([[of(i, j) for j in range(keys)] for i in range(queries)])


def linear(table, to):
    """Half-pixel linear resampling along the first axis."""
    table = numpy(table)
    at = np.maximum((np.arange(to) + 0.5) * len(table) / to - 0.5, 0)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    part = (at - low).reshape(-1, *[1] * (table.ndim - 1))
    return table[low] * (1 - part) + table[high] * part


DECOMPOSED = (
    "row(i,j) = floor(i*max(K/Q,1) + (K-1-j)*max(Q/K,1)) per axis, Q queries, K keys, into a table of 2*max(Q,K)-1 "
    "rows; added to the scores: q_i.Rh[row(yi,yj)] + q_i.Rw[row(xi,xj)] with q as projected, not scaled"
)


def decomposed():
    heads, dim = 2, 4
    sam = SamVisionConfig(
        hidden_size=heads * dim, num_attention_heads=heads, image_size=48, patch_size=16, window_size=0
    )
    attention = fill(SamVisionAttention(sam, 0))

    def law(q, rh, rw, queries, keys):
        rows = relative_rows(queries[0], keys[0]), relative_rows(queries[1], keys[1])
        q = numpy(q).reshape(-1, *queries, dim)
        high = np.einsum("byxc,ykc->byxk", q, rh[rows[0]])
        wide = np.einsum("byxc,xkc->byxk", q, rw[rows[1]])
        return (high[..., :, None] + wide[..., None, :]).reshape(len(q), queries[0] * queries[1], -1)

    for queries, keys, lengths in (
        ((3, 3), (3, 3), (5, 5)),
        ((2, 4), (2, 4), (3, 7)),
        ((4, 4), (2, 2), (7, 7)),
        ((2, 3), (4, 6), (7, 11)),
        ((3, 4), (3, 4), (9, 3)),
        ((5, 2), (3, 2), (7, 3)),
    ):
        q = draw(heads, queries[0] * queries[1], dim)
        rh, rw = draw(lengths[0], dim), draw(lengths[1], dim)
        bias = attention.get_decomposed_rel_pos(q, rh, rw, queries, keys).reshape(heads, q.shape[1], -1)
        wanted = [2 * max(a, b) - 1 for a, b in zip(queries, keys, strict=True)]
        resized = [linear(x, n) for x, n in zip((rh, rw), wanted, strict=True)]
        expected = law(q, *resized, queries, keys)
        precision = near(bias, expected)
        zeros = torch.zeros(heads, q.shape[1], keys[0] * keys[1])
        near(add_decomposed_relative_positions(zeros, q, rh, rw, queries, keys), expected)
        near(timm_sam.get_decomposed_rel_pos_bias(q, rh, rw, queries, keys), expected, 1e-6)
        if list(lengths) == wanted:
            near(mvitv2.cal_rel_pos_type(zeros[None].clone(), q[None], False, queries, keys, rh, rw)[0], expected)
        yield case(
            f"decomposed_{queries[0]}x{queries[1]}_to_{keys[0]}x{keys[1]}_tables_{lengths[0]}_{lengths[1]}",
            "sam, vitdet, mvitv2",
            "transformers SamVisionAttention.get_decomposed_rel_pos; vitdet add_decomposed_relative_positions; timm "
            "vision_transformer_sam get_decomposed_rel_pos_bias; timm mvitv2 cal_rel_pos_type",
            DECOMPOSED + "; a table of another length is first resized, linear, half pixels: row r reads "
            "max((r+0.5)*L/n-0.5, 0) of L rows, the upper neighbour clamped",
            precision,
            {"heads": heads, "dim": dim, "queries": queries, "keys": keys},
            q=q,
            table_height=rh,
            table_width=rw,
            resized_height=resized[0],
            resized_width=resized[1],
            rows_height=relative_rows(queries[0], keys[0]),
            rows_width=relative_rows(queries[1], keys[1]),
            bias=bias,
        )

    # Whole attention with gradients, and MViTv2's class token.
    size, tokens = (3, 3), 9
    attention.qkv = torch.nn.Identity()
    attention.proj = torch.nn.Identity()
    qkv = draw(1, *size, 3 * heads * dim)
    with softmax_inputs() as inputs:
        attention(qkv)
    scores = inputs[0]
    q, k, _ = qkv.reshape(tokens, 3, heads, dim).permute(1, 2, 0, 3)
    expected = numpy(q @ k.transpose(-1, -2)) / math.sqrt(dim)
    expected = expected + law(q, numpy(attention.rel_pos_h), numpy(attention.rel_pos_w), size, size)
    precision = near(scores, expected)
    upstream = draw(*scores.shape)
    gradients = gradient_of(upstream, scores, attention.rel_pos_h, attention.rel_pos_w)
    rows = relative_rows(3, 3)
    by_axes = numpy(upstream).reshape(heads, 3, 3, 3, 3)
    height = np.zeros((5, dim))
    np.add.at(height, rows, np.einsum("hyxuv,hyxc->yuc", by_axes, numpy(q).reshape(heads, 3, 3, dim)))
    near(gradients[0], height)
    yield case(
        "sam_attention",
        "sam",
        "transformers SamVisionAttention",
        "scores = q.k/sqrt(D) + q_i.Rh[yi-yj+H-1] + q_i.Rw[xi-xj+W-1], q not scaled in the last two; gradient of "
        "sum(upstream*scores): Rh'[yi-yj+H-1] += q_i * sum over xj of upstream, over heads too",
        precision,
        {"heads": heads, "dim": dim, "window": size},
        q=q,
        k=k,
        table_height=attention.rel_pos_h,
        table_width=attention.rel_pos_w,
        scores=scores,
        upstream=upstream,
        table_height_gradient=gradients[0],
        table_width_gradient=gradients[1],
    )
    queries, keys = (4, 2), (2, 2)
    q = draw(1, heads, 9, dim)
    rh, rw = draw(7, dim), draw(3, dim)
    base = draw(1, heads, 9, 5)
    scores = mvitv2.cal_rel_pos_type(base.clone(), q, True, queries, keys, rh, rw)
    expected = numpy(base).copy()
    expected[0, :, 1:, 1:] += law(q[0, :, 1:], numpy(rh), numpy(rw), queries, keys)
    precision = near(scores, expected)
    yield case(
        "mvitv2_class_token",
        "mvitv2",
        "timm mvitv2 cal_rel_pos_type",
        DECOMPOSED + "; token 0 of queries and keys is the class token and gets no bias",
        precision,
        {"heads": heads, "dim": dim, "queries": queries, "keys": keys},
        q=q[0],
        table_height=rh,
        table_width=rw,
        base=base[0],
        scores=scores[0],
    )


def decomposed_rounding():
    """Sizes for which the libraries' f32 row differs from exact arithmetic."""
    get = lambda a, b: timm_sam.get_rel_pos(a, b, torch.arange(2.0 * max(a, b) - 1)[:, None])[..., 0].long()
    bad = []
    for queries, keys in itertools.product(range(1, 33), repeat=2):
        rows = relative_rows(queries, keys)
        wrong = numpy(get(queries, keys)) != rows
        bad += [[queries, keys, wrong.sum()]] if wrong.any() else []
        assert not wrong.any() or (queries % keys and keys % queries)
        assert (numpy(get(queries, keys))[wrong] == rows[wrong] - 1).all()
    return case(
        "decomposed_rounding",
        "sam, vitdet, mvitv2",
        "timm vision_transformer_sam get_rel_pos",
        "differs[n] = [Q, K, pairs (i,j) whose row, made in f32, is one less than the exact floor], Q and K up to 32; "
        "never where one divides the other; rows_8_6 [8, 6] are the library's for Q = 8, K = 6",
        0,
        {},
        differs=np.array(bad, dtype=int).reshape(-1, 3),
        rows_8_6=get(8, 6),
    )


def resize(table, old, new, along):
    """Resamples [rows*columns, heads] along both axes."""
    image = numpy(table).reshape(*old, -1)
    image = along(image, new[0])
    image = along(image.swapaxes(0, 1), new[1]).swapaxes(0, 1)
    return image.reshape(new[0] * new[1], -1)


def cubic(table, to, a=-0.75):
    """Half-pixel cubic convolution, taps clamped to the border."""
    table = numpy(table)
    at = (np.arange(to) + 0.5) * len(table) / to - 0.5
    low = np.floor(at).astype(int)
    near_one = lambda t: ((a + 2) * t - (a + 3)) * t * t + 1
    far = lambda t: ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    result = 0
    for tap in range(-1, 3):
        t = np.abs(at - low - tap)
        weight = np.where(t <= 1, near_one(t), far(t)).reshape(-1, *[1] * (table.ndim - 1))
        result = result + weight * table[np.clip(low + tap, 0, len(table) - 1)]
    return result


def cubic_antialias(table, to, a=-0.5):
    table = numpy(table)
    ratio = len(table) / to
    stretch = max(ratio, 1.0)
    result = []
    for centre in (np.arange(to) + 0.5) * ratio:
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), len(table))
        t = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near_one = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weight = np.where(t < 1, near_one, np.where(t < 2, far, 0))
        result.append(np.tensordot(weight / weight.sum(), table[first:last], 1))
    return np.stack(result)


def geometric(length, to):
    """Places of the old rows when the new ones are at -(to//2)..to//2."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q ** (length // 2)) / (1 - q) > to // 2:
            right = q
        else:
            left = q
    steps = np.cumsum([q**n for n in range(length // 2)])
    return np.concatenate((-steps[::-1], [0], steps))


def geometric_linear(table, to):
    table = numpy(table)
    old, new = geometric(len(table), to), np.arange(to) - to // 2
    flat = table.reshape(len(table), -1)
    columns = [np.interp(new, old, flat[:, c]) for c in range(flat.shape[1])]
    return np.stack(columns, -1).reshape(to, *table.shape[1:])


def resized_tables():
    heads = 2
    span = lambda window: (2 * window[0] - 1, 2 * window[1] - 1)
    geometry = (
        "per axis: old row r sits at +-(1 + q + .. + q^(n-1)), n = |r - L//2|, new row at r' - L'//2; q by bisection "
        "of [1.01, 1.5] to 1e-6 so that (1 - q^(L//2))/(1 - q) reaches L'//2, q the last midpoint tried; linear "
        "between, ends held; "
    )
    for old, new, extra in (((2, 2), (3, 3), 3), ((3, 3), (4, 5), 0), ((3, 4), (5, 4), 0), ((4, 4), (2, 3), 0)):
        table = draw(span(old)[0] * span(old)[1] + extra, heads)
        shape = (span(new)[0] * span(new)[1] + extra, heads)
        result = resize_rel_pos_bias_table(table, new, shape, old)
        body = table[: len(table) - extra]
        law = np.concatenate((resize(body, span(old), span(new), geometric_linear), numpy(table)[len(body) :]))
        precision = near(result, law, 3e-6)
        yield case(
            f"resize_geometric_{old[0]}x{old[1]}_to_{new[0]}x{new[1]}",
            "beit, swin, maxvit",
            "timm resize_rel_pos_bias_table",
            geometry + "the last `extra` rows stay; an axis is skipped only if both keep their length",
            precision,
            {"heads": heads, "window": old, "to": new, "extra": extra},
            table=table,
            resized=result,
            places_height=geometric(span(old)[0], span(new)[0]),
            places_width=geometric(span(old)[1], span(new)[1]),
        )
    for old, new, extra in (((2, 2), (3, 4), 3), ((4, 4), (2, 3), 0)):
        table = draw(span(old)[0] * span(old)[1] + extra, heads)
        shape = (span(new)[0] * span(new)[1] + extra, heads)
        result = resize_rel_pos_bias_table_simple(table, new, shape)
        body = table[: len(table) - extra]
        law = np.concatenate((resize(body, span(old), span(new), cubic), numpy(table)[len(body) :]))
        yield case(
            f"resize_simple_{old[0]}x{old[1]}_to_{new[0]}x{new[1]}",
            "beit, swin, maxvit",
            "timm resize_rel_pos_bias_table_simple",
            "bicubic, half pixels, A = -0.75, taps clamped to the border, no antialias; the last `extra` rows stay",
            near(result, law),
            {"heads": heads, "window": old, "to": new, "extra": extra},
            table=table,
            resized=result,
        )
    table = draw(heads, *span((2, 3)))
    new = (3, 4)
    result = resize_rel_pos_bias_table(table, new, (heads, *span(new)))
    law = resize(table.permute(1, 2, 0).reshape(-1, heads), span((2, 3)), span(new), geometric_linear)
    yield case(
        "resize_geometric_maxvit_tf",
        "maxvit tf",
        "timm resize_rel_pos_bias_table, table [heads, 2*Wh-1, 2*Ww-1]",
        geometry,
        near(result, law.T.reshape(result.shape), 3e-6),
        {"heads": heads, "window": (2, 3), "to": new},
        table=table,
        resized=result,
    )
    for old, new in ((3, 5), (5, 3)):
        table = draw(old * old, heads)
        result = resize_rel_pos_bias_table_levit(table, (new * new, heads))
        law = resize(table, (old, old), (new, new), cubic_antialias)
        yield case(
            f"resize_levit_{old}_to_{new}",
            "levit, tinyvit",
            "timm resize_rel_pos_bias_table_levit",
            "bicubic with antialias: A = -0.5, support 2*max(L/L', 1), taps cut at the border, weights normalised; "
            "square windows; here the table is [Wh*Ww, heads], the models hold [heads, Wh*Ww]",
            near(result, law, 1e-6),
            {"heads": heads, "window": (old, old), "to": (new, new)},
            table=table,
            resized=result,
        )


def t5_bucket(distance, buckets, reach):
    """Bidirectional, of key minus query."""
    half = buckets // 2
    exact = half // 2
    n = np.abs(distance)
    logarithm = np.log(np.maximum(n, 1) / exact) / math.log(reach / exact) * (half - exact)
    bucket = np.where(n < exact, n, np.minimum(exact + np.floor(logarithm + 1e-9).astype(int), half - 1))
    return bucket + half * (distance > 0)


def layoutlmv2():
    heads, tokens = 3, 11
    config = LayoutLMv2Config(
        hidden_size=12, num_attention_heads=heads, num_hidden_layers=0, rel_pos_bins=32, rel_2d_pos_bins=64
    )
    encoder = fill(LayoutLMv2Encoder(config))
    boxes = torch.randint(0, 1001, (1, tokens, 4), generator=torch.Generator().manual_seed(2))
    # Near each other too: exact buckets, and equal places.
    boxes[0, 5] = boxes[0, 4] + torch.tensor([3, 3, 3, -7])
    boxes[0, 6] = boxes[0, 4]
    positions = torch.tensor([[*range(7), 130, 40, 41, 9]])
    one = encoder._calculate_1d_position_embeddings(positions)[0]
    two = encoder._calculate_2d_position_embeddings(boxes)[0]
    minus = lambda x: numpy(x)[None] - numpy(x)[:, None]
    x, y, p = minus(boxes[0, :, 0]), minus(boxes[0, :, 3]), minus(positions[0])
    tables = [m.weight.t() for m in (encoder.rel_pos_bias, encoder.rel_pos_x_bias, encoder.rel_pos_y_bias)]
    of = lambda table, d, buckets, reach: numpy(table)[t5_bucket(d, buckets, reach)].transpose(2, 0, 1)
    near(one, of(tables[0], p, 32, 128), 0)
    precision = near(two, of(tables[1], x, 64, 256) + of(tables[2], y, 64, 256))
    return case(
        "layoutlmv2",
        "layoutlmv2",
        "transformers LayoutLMv2Encoder",
        "T5's bidirectional bucket of key minus query, n buckets, reach D: b = |d| below n/4, else min(n/4 + "
        "floor(ln(4|d|/n)/ln(4D/n)*n/4), n/2-1); + n/2 if d > 0; 1-D of position ids (32, 128), 2-D of the left edge "
        "x0 and the lower edge y1 (64, 256); bias_2d = table_x[bucket(xj-xi)] + table_y[bucket(yj-yi)]; both biases "
        "are added to q.k/sqrt(D)",
        precision,
        {"heads": heads, "tokens": tokens},
        positions=positions[0],
        x=boxes[0, :, 0],
        y=boxes[0, :, 3],
        table=tables[0],
        table_x=tables[1],
        table_y=tables[2],
        bias_1d=one,
        bias_2d=two,
    )


def doclayout():
    heads, tokens, dim = 2, 5, 8
    config = PPDocLayoutV2ReadingOrderConfig(
        hidden_size=8, num_attention_heads=heads, relation_bias_embed_dim=dim, relation_bias_scale=100
    )
    module = PPDocLayoutV2PositionRelationEmbedding(config)
    module = fill(module)
    # Centres, widths and heights.
    boxes = (draw(1, tokens, 4).abs() + 0.25) / 4
    result = module(boxes)[0]
    b = numpy(boxes[0])
    epsilon = 1e-5
    shift = np.log(np.abs(b[:, None, :2] - b[None, :, :2]) / (b[:, None, 2:] + epsilon) + 1)
    size = np.log((b[:, None, 2:] + epsilon) / (b[None, :, 2:] + epsilon))
    features = np.concatenate((shift, size), -1) * config.relation_bias_scale
    frequencies = config.relation_bias_theta ** -(np.arange(0, dim, 2) / (dim // 2))
    angles = features[..., None] * frequencies
    embedding = np.concatenate((np.sin(angles), np.cos(angles)), -1).reshape(tokens, tokens, 4 * dim)
    weight = numpy(module.pos_proj.weight)[:, :, 0, 0]
    law = np.einsum("ijc,hc->hij", embedding, weight) + numpy(module.pos_proj.bias)[:, None, None]
    return case(
        "pp_doclayout_v2",
        "pp-doclayout v2",
        "transformers PPDocLayoutV2PositionRelationEmbedding",
        "boxes (cx, cy, w, h), e = 1e-5; f = [ln(|cxi-cxj|/(wi+e)+1), ln(|cyi-cyj|/(hi+e)+1), ln((wi+e)/(wj+e)), "
        "ln((hi+e)/(hj+e))]; w_m = theta^(-2m/(dim/2)) (not 2m/dim), m < dim/2; each f gives [sin(scale*f*w), "
        "cos(scale*f*w)]; bias[h] = weight[h] . embedding + b[h]",
        near(result, law, 1e-4),
        {
            "heads": heads,
            "tokens": tokens,
            "embed_dim": dim,
            "scale": config.relation_bias_scale,
            "theta": config.relation_bias_theta,
        },
        boxes=boxes[0],
        weight=weight,
        constant=module.pos_proj.bias,
        bias=result,
    )


write(
    "window.py",
    (torch, transformers, timm),
    [
        *swin_tables(),
        *shifted_masks(),
        swin_attention(),
        *swin_v2(),
        *beit(),
        *maxvit(),
        *levit(),
        *decomposed(),
        decomposed_rounding(),
        *resized_tables(),
        layoutlmv2(),
        doclayout(),
    ],
)

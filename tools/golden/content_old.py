"""As content.py, of classes that version 5 of transformers dropped: BERT's relative keys, Transformer-XL, Graphormer.

Prints tests/golden/content_old.json; runs with the packages of requirements-old.txt in front.
"""

import math

import numpy as np
import torch
import transformers
from cases import Given, case, draw, fill, near, numpy, softmax, softmax_inputs, write
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.deprecated.graphormer.configuration_graphormer import GraphormerConfig
from transformers.models.deprecated.graphormer.modeling_graphormer import GraphormerGraphAttnBias
from transformers.models.deprecated.transfo_xl.modeling_transfo_xl import (
    PositionalEmbedding,
    RelPartialLearnableMultiHeadAttn,
)

HEADS, DIM = 2, 4


def bert():
    batch, length = 1, 12
    for kind, decode in (("relative_key", False), ("relative_key_query", False), ("relative_key", True)):
        config = BertConfig(
            hidden_size=HEADS * DIM,
            num_attention_heads=HEADS,
            max_position_embeddings=length,
            position_embedding_type=kind,
            is_decoder=decode,
        )
        module = fill(BertSelfAttention(config))
        keys = 7
        queries = 1 if decode else keys
        flat = [draw(batch, keys, HEADS * DIM).requires_grad_() for _ in range(3)]
        heads_of = lambda x: x.view(batch, -1, HEADS, DIM).transpose(1, 2)
        q, k, v = map(heads_of, (flat[0][:, -queries:], *flat[1:]))
        module.query = Given(flat[0][:, -queries:])
        module.key, module.value = (Given(x[:, -queries:]) for x in flat[1:])
        past = (k[:, :, :-1], v[:, :, :-1]) if decode else None
        with softmax_inputs() as inputs:
            module(torch.zeros(batch, queries, HEADS * DIM), past_key_value=past)
        scores = inputs[0]
        index = np.arange(keys - queries, keys)[:, None] - np.arange(keys)[None] + length - 1
        table = module.distance_embedding.weight
        rows = numpy(table)[index]
        law = numpy(q @ k.transpose(-1, -2)) + np.einsum("bhid,ijd->bhij", numpy(q), rows)
        if kind == "relative_key_query":
            law += np.einsum("bhjd,ijd->bhij", numpy(k), rows)
        law /= math.sqrt(DIM)
        precision = near(scores, law)
        upstream = draw(*scores.shape)
        (gradient,) = torch.autograd.grad((upstream * scores).sum(), table)
        each = np.einsum("bhij,bhid->ijd", numpy(upstream), numpy(q))
        if kind == "relative_key_query":
            each += np.einsum("bhij,bhjd->ijd", numpy(upstream), numpy(k))
        expected = np.zeros(table.shape)
        np.add.at(expected, index, each / math.sqrt(DIM))
        near(gradient, expected)
        yield case(
            f"bert_{kind}{'_decode' if decode else ''}",
            "bert relative_key" if kind == "relative_key" else "bert relative_key_query",
            f"transformers BertSelfAttention, {kind}",
            "scores = (q_i.k_j + q_i.E[i-j+M-1]"
            + (" + k_j.E[i-j+M-1]" if kind == "relative_key_query" else "")
            + ") / sqrt(D), E [2M-1, D] shared by heads, no clamp; i counted from Lk-Lq"
            + ("; a single query behind a cache" if decode else "")
            + "; gradient of sum(upstream*scores)",
            precision,
            {"heads": HEADS, "dim": DIM, "queries": queries, "keys": keys, "batch": batch, "reach": length},
            q=q,
            k=k,
            table=table,
            index=index,
            scores=scores,
            upstream=upstream,
            table_gradient=gradient,
        )


def transfo_xl():
    queries, batch = 4, 2
    for name, memory, clamp in (("no_memory", 0, -1), ("memory", 3, -1), ("memory_clamp", 3, 4)):
        keys = queries + memory
        # In f32: it masks by f32's least number.
        u, v = torch.nn.Parameter(draw(HEADS, DIM)), torch.nn.Parameter(draw(HEADS, DIM))
        kind = RelPartialLearnableMultiHeadAttn(HEADS, HEADS * DIM, DIM, 0.0, r_w_bias=u, r_r_bias=v)
        module = fill(kind).float()
        positions = torch.arange(keys - 1, -1, -1.0)
        if clamp > 0:
            positions.clamp_(max=clamp)
        embedding = PositionalEmbedding(HEADS * DIM)(positions).float()
        r = module.r_net(embedding).view(keys, HEADS, DIM)
        qkv = [draw(keys, batch, HEADS * DIM).float() for _ in range(3)]
        module.qkv_net = Given(torch.cat(qkv, -1))
        future = np.arange(queries)[:, None] + memory < np.arange(keys)[None]
        states = torch.zeros(queries, batch, HEADS * DIM)
        torch.set_default_dtype(torch.float32)
        with softmax_inputs() as inputs:
            _, p = module(
                states.float(),
                embedding,
                torch.tensor(future)[:, :, None].int(),
                mems=torch.zeros(memory, batch, HEADS * DIM) if memory else None,
                output_attentions=True,
            )
        torch.set_default_dtype(torch.float64)
        heads_of = lambda x: numpy(x).reshape(-1, batch, HEADS, DIM).transpose(1, 2, 0, 3).astype(np.float64)
        q, k, _ = map(heads_of, qkv)
        q = q[:, :, -queries:]
        row = np.where(future, 0, np.arange(keys)[None] + queries - 1 - np.arange(queries)[:, None])
        u, v = (numpy(x).astype(np.float64)[:, None] for x in (module.r_w_bias, module.r_r_bias))
        law = np.einsum("bhid,bhjd->bhij", q + u, k)
        law += np.einsum("bhid,ijhd->bhij", q + v, numpy(r).astype(np.float64)[row])
        law /= math.sqrt(DIM)
        scores = numpy(inputs[0]).transpose(2, 3, 0, 1)
        precision = near(scores, law, 1e-6, where=~future)
        near(numpy(p).transpose(2, 3, 0, 1), softmax(np.where(future, -np.inf, law)), 1e-6)
        angles = numpy(positions)[:, None] * 10000 ** -(np.arange(0, HEADS * DIM, 2) / (HEADS * DIM))
        near(embedding[:, 0], np.concatenate((np.sin(angles), np.cos(angles)), -1), 1e-6)
        yield case(
            f"transfo_xl_{name}",
            "transformer-xl",
            "transformers RelPartialLearnableMultiHeadAttn, PositionalEmbedding",
            "R [Lk, heads, D], row t stands for Lk-1-t, clamped above by clamp if clamp > 0, embedding (sin, cos) "
            "halves; row for (i, j): j + Lq-1-i (i from 0), that is distance i+Lk-Lq-j; scores = ((q_i+u).k_j + "
            "(q_i+v).R[row]) / sqrt(D); keys after the query have no row (the library holds garbage there): masked, 0 "
            "here",
            precision,
            {"heads": HEADS, "dim": DIM, "queries": queries, "keys": keys, "batch": batch, "clamp": clamp},
            q=q,
            k=k,
            u_bias=module.r_w_bias,
            v_bias=module.r_r_bias,
            embedding=embedding[:, 0],
            weight_r=module.r_net.weight,
            r=r,
            valid=~future,
            scores=np.where(future, 0, scores),
            probabilities=numpy(p).transpose(2, 3, 0, 1),
        )


def graphormer():
    heads, nodes, graphs, hops = 3, 4, 2, 3
    config = GraphormerConfig(
        num_attention_heads=heads,
        num_spatial=8,
        num_edges=6,
        num_edge_dis=4,
        edge_type="multi_hop",
        multi_hop_max_dist=2,
    )
    module = fill(GraphormerGraphAttnBias(config))
    generator = torch.Generator().manual_seed(3)
    spatial = torch.randint(0, 8, (graphs, nodes, nodes), generator=generator)
    edges = torch.randint(0, 7, (graphs, nodes, nodes, hops, 2), generator=generator)
    base = draw(graphs, nodes + 1, nodes + 1)
    bias = module(torch.zeros(graphs, nodes, 1), base, spatial, edges, None)
    law = 2 * numpy(base)[:, None] + np.zeros((1, heads, 1, 1))
    virtual = numpy(module.graph_token_virtual_distance.weight).reshape(heads)[:, None]
    law[:, :, 1:, 0] += virtual
    law[:, :, 0, :] += virtual
    law[:, :, 1:, 1:] += numpy(module.spatial_pos_encoder.weight)[numpy(spatial)].transpose(0, 3, 1, 2)
    each = numpy(module.edge_encoder.weight)[numpy(edges)[:, :, :, :2]].mean(-2)
    weights = numpy(module.edge_dis_encoder.weight).reshape(-1, heads, heads)[:2]
    length = np.clip(np.maximum(numpy(spatial) - 1, 1), 0, 2)
    law[:, :, 1:, 1:] += (np.einsum("gijnh,nhk->gijk", each, weights) / length[..., None]).transpose(0, 3, 1, 2)
    return case(
        "graphormer",
        "graphormer",
        "transformers GraphormerGraphAttnBias, multi_hop",
        "token 0 is the graph's: bias = 2*base (added twice) + (i = 0 or j = 0: virtual[h], else "
        "spatial_table[spatial[i-1,j-1], h] + edge), edge = sum over hops n < N of (mean over features of "
        "edge_table[edges[i-1,j-1,n,f]]) weights[n] / clamp(max(spatial-1, 1), 0, N), N = multi_hop_max_dist = 2",
        near(bias, law, 1e-7),
        {"heads": heads, "nodes": nodes, "graphs": graphs},
        base=base,
        spatial=spatial,
        edges=edges,
        spatial_table=module.spatial_pos_encoder.weight,
        virtual=module.graph_token_virtual_distance.weight.reshape(heads),
        edge_table=module.edge_encoder.weight,
        edge_weights=weights,
        bias=bias,
    )


write("content_old.py", (torch, transformers), [*bert(), *transfo_xl(), graphormer()])

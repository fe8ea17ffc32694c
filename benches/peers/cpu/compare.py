"""posenc on the CPU beside candle, PyTorch, onnxruntime, ggml and numpy, in one table.

usage: compare.py --beside PROGRAM [--ggml PROGRAM] [--compile] [--threads N] [--rounds N] [part of a case's name]

PROGRAM is what `cargo build --release --manifest-path benches/peers/cpu/Cargo.toml` built, ggml's is `ggml.c` beside
this file. Python needs torch and numpy; onnxruntime with onnx is used if it is there. --compile adds torch.compile,
which needs a C++ compiler and minutes. One thread each is the fair comparison where other programs take the rest.

All are timed for a moment in turn, in several rounds; the figure is the fastest call, in microseconds. Tables of
cosines, sines and biases are given to the peers. Two kinds of rows have sinusoids: in `sinusoid add` everybody computes
them in the call, in `table add` everybody has them. PyTorch, ggml and numpy add in place.

POSENC_VECTORS=avx2 at the build of PROGRAM leaves AVX-512 out, ATEN_CPU_CAPABILITY=avx2 does at PyTorch.
"""

import argparse
import functools
import math
import os
import subprocess
import time

import numpy as np
import torch
from torch.nn import functional

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = None

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SECONDS = 0.06


def frequencies(dim, base=10000.0):
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rope(tokens, heads, dim, dtype, layout, pairing):
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies(dim)
    shape = (tokens, heads, dim) if layout == "thd" else (1, heads, tokens, dim)
    x = torch.randn(shape).to(dtype)
    if pairing == "Half":
        cos, sin = (torch.cat((f, f), dim=-1).to(dtype) for f in (angles.cos(), angles.sin()))
        if layout == "thd":
            cos, sin = cos[:, None], sin[:, None]

        def call(x, cos, sin):
            a, b = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-b, a), dim=-1) * sin
    else:
        cos, sin = (f.repeat_interleave(2, dim=-1).to(dtype) for f in (angles.cos(), angles.sin()))

        def call(x, cos, sin):
            return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) * sin

    return call, (x, cos, sin)


def waves(tokens, dim):
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies(dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def table_add(batch, tokens, dim, dtype):
    return (lambda x, table: x.add_(table)), (torch.randn(batch, tokens, dim).to(dtype), waves(tokens, dim).to(dtype))


def made(positions, frequency, dtype):
    angles = positions[:, None].float() * frequency
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(dtype)


def sinusoid_add(batch, tokens, dim, dtype):
    tensors = torch.randn(batch, tokens, dim).to(dtype), torch.arange(tokens), frequencies(dim).float()
    return (lambda x, positions, frequency: x.add_(made(positions, frequency, dtype))), tensors


def sinusoid_write(tokens, dim, dtype):
    return functools.partial(made, dtype=dtype), (torch.arange(tokens), frequencies(dim).float())


def timestep(times, dim, dtype):
    """As diffusers has it, which makes its frequencies in the call."""

    def call(t):
        exponent = -math.log(10000) * torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
        angles = t[:, None].float() * torch.exp(exponent)[None, :]
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)

    return call, (torch.arange(times) % 1000 + 0.25,)


def learned(tokens, dim, dtype, bert):
    make = lambda *shape: torch.randn(shape).to(dtype)
    ids = torch.arange(tokens) * 7919 % 30522
    types = (torch.arange(tokens) > tokens // 2).long()
    if not bert:
        return (lambda token, ids, rows: functional.embedding(ids, token) + rows), (
            make(30522, dim),
            ids,
            make(tokens, dim),
        )

    def call(token, ids, rows, kinds, types, gain, bias):
        v = functional.embedding(ids, token) + rows + functional.embedding(types, kinds)
        return functional.layer_norm(v, (dim,), gain, bias, 1e-5)

    return call, (make(30522, dim), ids, make(tokens, dim), make(2, dim), types, make(dim), make(dim))


def resample(dim, dtype):
    def call(table):
        grid = table.view(1, 14, 14, dim).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1).reshape(576, dim)

    return call, (torch.randn(196, dim).to(dtype),)


def alibi(heads, queries, keys, dtype, causal):
    slope = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    distance = torch.arange(keys)[None, :] - (torch.arange(queries)[:, None] + keys - queries)
    bias = -slope[:, None, None] * distance.abs()
    x = torch.randn(1, heads, queries, keys).to(dtype)
    if not causal:
        return (lambda x, bias: x.add_(bias)), (x, bias.to(dtype))
    bias = bias.masked_fill(distance > 0, -torch.inf)
    return (lambda x, bias: torch.softmax(x * 0.125 + bias, dim=-1)), (x, bias.to(dtype))


def cases():
    """Names as the Rust program has them."""
    for name, dtype in TYPES.items():
        for tokens in (1, 16, 512, 4096):
            for layout, pairing in (("thd", "Half"), ("bhtd", "Half"), ("bhtd", "Interleaved")):
                yield f"rope {layout} {pairing} 32x128 {tokens} {name}", rope, (tokens, 32, 128, dtype, layout, pairing)
            for batch in (1, 8):
                yield f"sinusoid add {batch}x{tokens}x768 {name}", sinusoid_add, (batch, tokens, 768, dtype)
                yield f"table add {batch}x{tokens}x768 {name}", table_add, (batch, tokens, 768, dtype)
            yield f"sinusoid write {tokens}x768 {name}", sinusoid_write, (tokens, 768, dtype)
            yield f"token + position {tokens}x768 {name}", learned, (tokens, 768, dtype, False)
            yield f"token + position + type + layer norm {tokens}x768 {name}", learned, (tokens, 768, dtype, True)
        for times in (1, 16, 1024):
            yield f"timestep {times}x320 {name}", timestep, (times, 320, dtype)
        yield f"resample bicubic 14x14 to 24x24x768 {name}", resample, (768, dtype)
        for queries, keys in ((1, 128), (1, 4096), (128, 128), (512, 512)):
            yield f"alibi add 16x{queries}x{keys} {name}", alibi, (16, queries, keys, dtype, False)
            yield f"alibi causal softmax 16x{queries}x{keys} {name}", alibi, (16, queries, keys, dtype, True)


def numpy_call(make, tensors, parameters):
    """The same by numpy, of types that it has."""
    if any(x.dtype == torch.bfloat16 for x in tensors):
        return None
    arrays = [x.numpy().copy() for x in tensors]
    if make is table_add or make is alibi and not parameters[-1]:
        return lambda: np.add(arrays[0], arrays[1], out=arrays[0])
    if make is alibi:
        x, bias = arrays
        out = np.empty_like(x)

        def call():
            np.multiply(x, x.dtype.type(0.125), out=out)
            np.add(out, bias, out=out)
            np.subtract(out, out.max(axis=-1, keepdims=True), out=out)
            np.exp(out, out=out)
            np.divide(out, out.sum(axis=-1, keepdims=True), out=out)

        return call
    return None


def onnx_call(make, tensors, parameters, threads):
    """The same by onnxruntime's operations, its tables as constants of the model."""
    if onnx is None or any(x.dtype == torch.bfloat16 for x in tensors):
        return None
    node, arrays = onnx.helper.make_node, [x.numpy() for x in tensors]
    kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    if make is rope:
        tokens, heads, dim, _, layout, pairing = parameters
        x = arrays[0].reshape(1, tokens, heads * dim) if layout == "thd" else arrays[0]
        angles = np.arange(tokens)[:, None] * frequencies(dim).numpy()
        fed = {"x": x, "p": np.arange(tokens)[None]}
        tables = {"c": np.cos(angles).astype(x.dtype), "s": np.sin(angles).astype(x.dtype)}
        attributes = {"interleaved": int(pairing == "Interleaved"), "domain": "com.microsoft"}
        attributes |= {"num_heads": heads, "rotary_embedding_dim": dim} if layout == "thd" else {}
        nodes = [node("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], **attributes)]
    elif make is table_add or make is alibi and not parameters[-1]:
        fed, tables = {"x": arrays[0]}, {"t": arrays[1]}
        nodes = [node("Add", ["x", "t"], ["y"])]
    elif make is alibi:
        fed, tables = {"x": arrays[0]}, {"t": arrays[1], "scale": np.array(0.125, arrays[0].dtype)}
        nodes = [node("Mul", ["x", "scale"], ["a"]), node("Add", ["a", "t"], ["b"])]
        nodes.append(node("Softmax", ["b"], ["y"], axis=-1))
    elif make is learned:
        token, ids, rows, *more = arrays
        fed, tables = {"ids": ids}, {"token": token, "rows": rows}
        nodes = [node("Gather", ["token", "ids"], ["a"]), node("Add", ["a", "rows"], ["b" if more else "y"])]
        if more:
            fed["types"] = more[1]
            tables |= {"kinds": more[0], "gain": more[2], "bias": more[3]}
            nodes += [node("Gather", ["kinds", "types"], ["c"]), node("Add", ["b", "c"], ["d"])]
            nodes.append(node("LayerNormalization", ["d", "gain", "bias"], ["y"], axis=-1, epsilon=1e-5))
    else:
        return None
    value, of = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
    inputs = [value(name, of(x.dtype), x.shape) for name, x in fed.items()]
    constants = [onnx.numpy_helper.from_array(x, name) for name, x in tables.items()]
    graph = onnx.helper.make_graph(nodes, "case", inputs, [value("y", kind, None)], constants)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        shape = session.run(None, fed)[0].shape
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    binding = session.io_binding()
    for name, x in fed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(np.empty(shape, arrays[0].dtype)))
    return lambda: session.run_with_iobinding(binding)


def fastest(call):
    best, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def printed(*command, threads):
    """What a program says, cell by cell."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return [[cell.strip() for cell in line.split("|")] for line in output.splitlines()]


def compared(case, make, parameters, arguments):
    """The fastest call of everybody who has the case."""
    call, tensors = make(*parameters)
    calls = {"torch": lambda: call(*tensors)}
    if arguments.compile:
        compiled = torch.compile(call, dynamic=False)
        calls["compiled"] = lambda: compiled(*tensors)
    calls["onnxruntime"] = onnx_call(make, tensors, parameters, arguments.threads)
    calls["numpy"] = numpy_call(make, tensors, parameters)
    calls = {name: call_once for name, call_once in calls.items() if call_once is not None}
    for call_once in calls.values():
        call_once()
    best = {}

    def keep(name, figure):
        best[name] = min(best.get(name, math.inf), float(figure))

    for _ in range(arguments.rounds):
        for name, *figures in printed(arguments.beside, case, str(2 * SECONDS), threads=arguments.threads)[1:]:
            if name == case:
                for who, figure in zip(("posenc", "candle"), figures, strict=True):
                    if figure != "-":
                        keep(who, figure)
        if arguments.ggml:
            for row in printed(arguments.ggml, case, str(arguments.threads), str(SECONDS), threads=1):
                keep("ggml", row[0])
        for name, call_once in calls.items():
            keep(name, fastest(call_once))
    return best


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", metavar="PROGRAM", required=True)
    parser.add_argument("--ggml", metavar="PROGRAM")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ["posenc", "candle", "torch", "compiled", "onnxruntime", "ggml", "numpy"]
    print("case," + ",".join(f"{name}_us" for name in names) + ",fastest_peer_over_posenc")
    for case, make, parameters in cases():
        if arguments.filter in case:
            best = compared(case, make, parameters, arguments)
            figures = ",".join(f"{best[name]:.4g}" if name in best else "" for name in names)
            gain = min(best[name] for name in names[1:] if name in best) / best["posenc"]
            print(f"{case},{figures},{gain:.2f}", flush=True)


if __name__ == "__main__":
    main()

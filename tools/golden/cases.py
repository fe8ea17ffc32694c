"""What window.py, content.py and content_old.py share: inputs, the scores of a module, and how a case is written.

Modules run in float64 as far as they let themselves; a case's `precision` says how close its law came. Parameters and
inputs are multiples of 1/256 below 2, so that projections of them are exact in float32, and every array is rounded to
float32 once, when it is written: a number reads back to that float32. A case is an object: `name`, `model`, `source`,
`law` (a closed form that the script has checked), sizes, arrays (flat, row-major) and their `shapes`.
"""

import contextlib
import datetime
import importlib.metadata
import json
import sys

import numpy as np
import torch

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
DRAWS = torch.Generator().manual_seed(1)


def draw(*shape, scale=1.0):
    return torch.randint(-512, 513, shape, generator=DRAWS).double() / 256 * scale


def fill(module, scale=1.0):
    """Draws every parameter of a module, which is returned in float64 and without dropout."""
    module = module.double()
    # LeViT's eval returns nothing.
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(draw(*parameter.shape, scale=scale))
    return module


class Given(torch.nn.Module):
    """Stands for a projection whose result is given."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, *_, **__):
        return self.result


@contextlib.contextmanager
def softmax_inputs():
    """A list of what went into each softmax."""
    kept = []
    function, method = torch.nn.functional.softmax, torch.softmax

    def of(original):
        def softmax(x, *arguments, **named):
            kept.append(x)
            return original(x, *arguments, **named)

        return softmax

    torch.nn.functional.softmax, torch.softmax = of(function), of(method)
    tensor = torch.Tensor.softmax
    torch.Tensor.softmax = of(tensor)
    try:
        yield kept
    finally:
        torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax = function, method, tensor


def numpy(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def softmax(x):
    x = numpy(x)
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def near(actual, law, tolerance=1e-12, where=None):
    """The largest difference between a result and its law, relative to the law's largest value; it must be small."""
    actual, law = np.float64(numpy(actual)), np.float64(numpy(law))
    assert actual.shape == law.shape, (actual.shape, law.shape)
    if where is not None:
        where = np.broadcast_to(where, actual.shape)
        actual, law = actual[where], law[where]
    difference = np.abs(actual - law).max() / max(1.0, np.abs(law).max())
    assert difference <= tolerance, difference
    return difference


def shortest(x):
    result = float(str(np.float32(x)))
    assert np.float32(result) == np.float32(x)
    return result


def case(name, model, source, law, precision, sizes, **arrays):
    result = {"name": name, "model": model, "source": source, "law": law, "precision": f"{precision:.0e}"} | sizes
    shapes = {}
    for key, array in arrays.items():
        array = numpy(array)
        shapes[key] = list(array.shape)
        flat = array.reshape(-1)
        assert key not in result
        exact = array.dtype.kind in "iub"
        result[key] = [int(x) for x in flat] if exact else [shortest(x) for x in flat]
    print(f"{name}: {precision:.1e}", file=sys.stderr)
    return result | {"shapes": shapes}


def write(script, packages, cases):
    meta = {
        "script": f"tools/golden/{script}",
        "versions": {package.__name__: importlib.metadata.version(package.__name__) for package in packages},
        "date": datetime.date.today().isoformat(),
    }
    assert len({x["name"] for x in cases}) == len(cases)
    print('{\n"meta": ' + json.dumps(meta) + ',\n"cases": [')
    lines = (",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in x.items()) for x in cases)
    print(",\n".join("{\n" + x + "\n}" for x in lines))
    print("]\n}")

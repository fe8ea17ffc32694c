"""Positional encodings of transformers, exact at every position: CUDA kernels, and the same on the CPU.

    import numpy, posenc
    rope = posenc.Rope(128, base=500_000.0)
    q = rope.rotate(numpy.ones((2, 32, 128), numpy.float32), positions=[0, 1_000_000])

Tensors of torch, numpy, CuPy, JAX and of everything with DLPack, `__cuda_array_interface__` or the buffer protocol
are taken where they lie; those on a device are computed there, on the caller's stream. `posenc.torch` has the
operations with autograd.
"""

from typing import Any

from . import errors
from ._library import build, version
from ._library import path as library_path
from ._plan import CAPACITY, Places, clear, overlap, plans
from ._spec import Spec, spec_of
from .attend import (
    Inputs,
    RelativeTableGrad,
    RelativeValues,
    Softmax,
    State,
    merge_grad,
    merge_states,
)
from .bias import (
    T5,
    Alibi,
    Bias,
    BiasPlan,
    DistanceGrad,
    Fire,
    GateSums,
    Kerple,
    KeyOnlyAlibi,
    RelativeProducts,
    Row,
    Sandwich,
    Slopes,
    Swin2,
    Term,
    TermGrad,
    TermInputs,
    Terms,
    decomposed_axis,
    resize_window,
    swin2_logit_scale,
)
from .embed import ErrorFlag, Grid, Learned, LearnedGrad, Lookup, Resample, Sinusoid, Tables
from .errors import Error
from .model import Added, Layer, Model, QueryScale, Span, span_positions, timed_windows
from .prologue import Branch, Cache, Codes, LayerPrologue, Projected, Prologue
from .rotate import (
    Axes,
    CosSin,
    Divisors,
    LearnedRope,
    Linear,
    Llama3,
    LongRope,
    ModelRope,
    Ntk,
    NtkDynamic,
    NtkMixed,
    NtkStepped,
    Proportional,
    Rope,
    RopeGrad,
    Scaling,
    XPos,
    Yarn,
    fixed,
    longrope_attention_factor,
    mla_logit_scale,
    yarn_mscale,
)

__version__ = version()


def patch(model: Any, *, length: int = 0) -> Any:
    """Gives a model of Hugging Face's transformers exact angles: `posenc.transformers.patch`."""
    from .transformers import patch as of_transformers

    return of_transformers(model, length=length)


__all__ = [
    "Added",
    "Alibi",
    "Axes",
    "Bias",
    "BiasPlan",
    "Branch",
    "CAPACITY",
    "Cache",
    "Codes",
    "CosSin",
    "DistanceGrad",
    "Divisors",
    "Error",
    "ErrorFlag",
    "Fire",
    "GateSums",
    "Grid",
    "Inputs",
    "Kerple",
    "KeyOnlyAlibi",
    "Layer",
    "Learned",
    "LearnedGrad",
    "LearnedRope",
    "Linear",
    "Llama3",
    "LongRope",
    "Lookup",
    "Model",
    "ModelRope",
    "Ntk",
    "NtkDynamic",
    "NtkMixed",
    "NtkStepped",
    "Places",
    "Projected",
    "LayerPrologue",
    "Prologue",
    "Proportional",
    "QueryScale",
    "RelativeProducts",
    "RelativeTableGrad",
    "RelativeValues",
    "Resample",
    "Rope",
    "RopeGrad",
    "Row",
    "Sandwich",
    "Scaling",
    "Sinusoid",
    "Slopes",
    "Softmax",
    "Span",
    "Spec",
    "State",
    "Swin2",
    "T5",
    "Tables",
    "Term",
    "TermGrad",
    "TermInputs",
    "Terms",
    "XPos",
    "Yarn",
    "__version__",
    "build",
    "clear",
    "decomposed_axis",
    "errors",
    "fixed",
    "library_path",
    "longrope_attention_factor",
    "merge_grad",
    "merge_states",
    "mla_logit_scale",
    "overlap",
    "patch",
    "plans",
    "resize_window",
    "span_positions",
    "timed_windows",
    "spec_of",
    "swin2_logit_scale",
    "version",
    "yarn_mscale",
]

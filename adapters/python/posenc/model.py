"""What a model's own config says about positions."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _c, _library
from ._library import Handle
from ._spec import Spec
from .errors import Error


def config_text(config: Any) -> str:
    """JSON of a `transformers` config, a dict, a path or JSON itself."""
    if hasattr(config, "to_json_string"):
        # All of it: what equals a default counts too.
        return str(config.to_json_string(use_diff=False))
    if isinstance(config, dict):
        return json.dumps(config)
    if isinstance(config, os.PathLike):
        with open(config, encoding="utf-8") as file:
            return file.read()
    if isinstance(config, str):
        return config
    raise Error(f"config is {type(config).__name__}, it must be a transformers config, a dict, JSON or a path")


@dataclass(frozen=True)
class Layer:
    """What position does in one layer."""

    has_rope: bool
    #: channels of a query's head, rotated ones, and the first of these
    head: int
    rotary: int
    offset: int
    #: multiplies every logit, beside `1 / sqrt(head)`
    logit_scale: float
    query_scale: QueryScale
    #: of Dual Chunk Attention: the longest distance, and how far distances to the chunk before are exact
    dual_chunk: tuple[int, int] | None


@dataclass(frozen=True)
class QueryScale(Spec):
    """A factor on the query that depends on its position: attention temperature."""

    kind: Literal["one", "llama4", "mistral", "log_n", "inkling"]
    factor: float
    context: float

    def struct(self) -> _c.QueryScale:
        """The struct of posenc.h."""
        if self.kind not in _SCALES:
            raise Error(f"kind is {self.kind!r}, it may be {', '.join(map(repr, _SCALES))}")
        return _c.QueryScale(kind=_SCALES.index(self.kind), factor=self.factor, context=self.context)

    def at(self, position: int) -> float:
        """The factor at a position."""
        own = self.struct()
        return float(_library.gives("posenc_query_scale_at", ctypes.c_double(), ctypes.byref(own), position).value)


_SCALES = ["one", "llama4", "mistral", "log_n", "inkling"]


@dataclass(frozen=True)
class Added:
    """What a layer adds to its logits beside the rotation, and what the model adds to its tokens, as numbers of its
    config."""

    #: `none`, `learned` or `sinusoid`
    embedding: str
    #: rows of the learned table; 0 if the config does not say
    table_rows: int
    #: of a learned table: the row of the first token and what multiplies token rows
    first_row: int
    #: channels of learned rows or sinusoids
    dim: int
    #: `none`, `alibi`, `t5` or `relative`
    bias: str
    heads: int
    max_bias: float
    buckets: int
    max_distance: int
    has_encoder: bool
    has_decoder: bool
    #: queries and keys meet a table of relative positions, of so many entries each
    query_entries: int
    key_entries: int


class Model:
    """A model's positions, read from `config.json`, `params.json` or GGUF."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    @classmethod
    def from_config(cls, config: Any, model_type: str | None = None) -> Model:
        """Reads a `transformers` config, a dict, JSON or a path to them. A model whose own type is not known but
        which rotates as `model_type` does is read as that one."""
        text = config_text(config).encode()
        if model_type is None:
            return cls(Handle("model", "posenc_model_from_hf", text))
        return cls(Handle("model", "posenc_model_from_hf_as", text, model_type.encode()))

    @classmethod
    def from_mistral(cls, params: str) -> Model:
        """Reads Mistral's `params.json`, as text."""
        return cls(Handle("model", "posenc_model_from_mistral", params.encode()))

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Model:
        """Reads the head of a `.gguf` file."""
        return cls(Handle("model", "posenc_model_from_gguf", os.fsencode(path)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Model:
        """Reads the model at a path: a folder, its `config.json`, `params.json` or `.gguf`."""
        return cls(Handle("model", "posenc_model_open", os.fsencode(path)))

    @property
    def name(self) -> str:
        """The model's type."""
        return _library.text("posenc_model_name", self.handle)

    def describe(self) -> str:
        """What was understood, for a person to read."""
        return _library.text("posenc_model_describe", self.handle)

    @property
    def context(self) -> int:
        """Positions that the config promises; 0 if it promises none."""
        return int(_library.gives("posenc_model_context", ctypes.c_uint64(), self.handle.address).value)

    @property
    def layers(self) -> int:
        """Layers; 0 if the config does not count them, and all are alike."""
        return int(_library.gives("posenc_model_layers", ctypes.c_uint64(), self.handle.address).value)

    def layer(self, index: int) -> Layer:
        """What position does in a layer."""
        own = _library.gives("posenc_model_layer", _c.Layer(), self.handle.address, index)
        scale = own.query_scale
        return Layer(
            has_rope=bool(own.has_rope),
            head=own.head,
            rotary=own.rotary,
            offset=own.offset,
            logit_scale=own.logit_scale,
            query_scale=QueryScale(_SCALES[scale.kind], scale.factor, scale.context),
            dual_chunk=(own.chunk, own.local) if own.has_dual_chunk else None,
        )

    def added(self, index: int = 0) -> Added:
        """What a layer adds beside its rotation, and what the model adds to its tokens."""
        own = _library.gives("posenc_model_added", _c.Added(), self.handle.address, index)
        learned = own.embedding == _c.EMBEDDING_LEARNED
        return Added(
            embedding=["none", "learned", "sinusoid"][own.embedding],
            table_rows=own.table_rows,
            first_row=own.learned.first if learned else 0,
            dim=own.learned.dim if learned else own.sinusoid.dim,
            bias=["none", "alibi", "t5", "relative"][own.bias],
            heads=own.heads,
            max_bias=own.max_bias,
            buckets=own.buckets,
            max_distance=own.max_distance,
            has_encoder=bool(own.has_encoder),
            has_decoder=bool(own.has_decoder),
            query_entries=own.queries.entries if own.has_queries else 0,
            key_entries=own.keys.entries if own.has_keys else 0,
        )

    def patch_positions(self, grids: Sequence[tuple[int, int, int]]) -> Any:
        """Positions of the patches of images and videos as a vision tower counts them, int64 `[axes, tokens]` as numpy.
        A grid is its steps of time, rows and columns of patches; class and register tokens are among the tokens."""
        import numpy

        grid = _library.gives("posenc_model_grid", _c.PatchGrid(), self.handle.address)
        if grid.axis_count == 0:
            raise Error(f"{self.name} has no rule for the positions of patches: describe() says what it has")
        own = (ctypes.c_uint64 * (3 * len(grids)))(*(size for sizes in grids for size in sizes))
        of = ctypes.byref(grid), own, len(grids)
        tokens = _library.gives("posenc_patch_tokens", ctypes.c_uint64(), *of).value
        ids = numpy.zeros((grid.axis_count, tokens), numpy.int64)
        _library.gives("posenc_patch_positions", ctypes.c_uint64(), *of, tokens, ids.ctypes.data)
        return ids


@dataclass(frozen=True)
class Span:
    """A stretch of a sequence with text, images or video: `text` and `together` have `tokens`, `patches` a `grid` of
    time, height and width, `sounding` both."""

    kind: Literal["text", "together", "patches", "sounding"]
    tokens: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)
    merge: int = 2
    temporal_merge: int = 1
    interval: float = 1.0
    mix: Literal["chunks", "time"] = "chunks"
    chunk: int = 0


_SPANS = {
    "text": _c.SPAN_TEXT,
    "together": _c.SPAN_TOGETHER,
    "patches": _c.SPAN_PATCHES,
    "sounding": _c.SPAN_SOUNDING,
}
_MIXES = {"chunks": _c.MIX_CHUNKS, "time": _c.MIX_TIME}


def span_positions(spans: Sequence[Span], after: Literal["largest", "space"] = "largest") -> tuple[Any, int]:
    """Positions of a sequence of text, images and video on time, height and width, int64 `[3, tokens]` as numpy, and
    the position of the token that follows."""
    import numpy

    own = (_c.Span * len(spans))()
    for at, span in enumerate(spans):
        if span.kind not in _SPANS or span.mix not in _MIXES:
            raise Error(f"a span is {span.kind!r} mixed by {span.mix!r}, it may be {', '.join(map(repr, _SPANS))}")
        own[at] = _c.Span(
            kind=_SPANS[span.kind],
            mix=_MIXES[span.mix],
            tokens=span.tokens,
            grid=span.grid,
            merge=span.merge,
            temporal_merge=span.temporal_merge,
            interval=span.interval,
            chunk=span.chunk,
        )
    tokens = _library.gives("posenc_span_tokens", ctypes.c_uint64(), own, len(spans)).value
    ids = numpy.zeros((3, tokens), numpy.int64)
    rule = {"largest": _c.AFTER_LARGEST, "space": _c.AFTER_SPACE}.get(after)
    if rule is None:
        raise Error(f"after is {after!r}, it may be 'largest' or 'space'")
    following = _library.gives(
        "posenc_span_positions", ctypes.c_int64(), own, len(spans), rule, tokens, ids.ctypes.data
    )
    return ids, int(following.value)


def timed_windows(windows: int, frames: int) -> Any:
    """Positions of sound in windows of frames on two axes, as MusicFlamingo counts them, int64
    `[2, windows * frames]` as numpy."""
    import numpy

    ids = numpy.zeros((2, windows * frames), numpy.int64)
    _library.gives("posenc_timed_windows", ctypes.c_uint64(), windows, frames, windows * frames, ids.ctypes.data)
    return ids

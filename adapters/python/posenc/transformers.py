"""Models of Hugging Face's transformers with exact angles: `posenc.patch(model)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .errors import Error
from .rotate import ModelRope, Rope
from .torch import cos_sin

__all__ = ["Patch", "patch"]

#: positions at which a model's own cosines are still right to f32, and its layout is read
_PROBE = 8


class Patch:
    """The rotary embeddings of a model that `patch` replaced. `undo`, or leaving a `with`, puts the model's own
    back."""

    def __init__(
        self, replaced: dict[str, torch.nn.Module], skipped: dict[str, str], ropes: dict[str, ModelRope]
    ) -> None:
        #: by their names in the model
        self.replaced = replaced
        #: rotary embeddings that were left as they are, and why
        self.skipped = skipped
        #: the rope of each, by its name and, where there are several, the type of layers
        self.ropes = ropes

    def undo(self) -> None:
        """Puts the model's own rotary embeddings back."""
        for module in self.replaced.values():
            module.__dict__.pop("forward", None)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        skipped = "".join(f"; {name} is as it was: {why}" for name, why in self.skipped.items())
        return f"Patch({', '.join(self.replaced)}{skipped})"


def patch(model: torch.nn.Module, *, length: int = 0) -> Patch:
    """Replaces the rotary embeddings of a model of transformers: cosine and sine are computed from `position_ids`,
    exact at every position, in place of products of f32; they are rounded once, to the model's type.

    Each rope is read from its module's config (`posenc.Rope.from_config`) and compared with the module's own values
    at the first positions, where these are right; a module whose values are others is refused. `length`, the tokens
    of the longest sequence, is for scalings that depend on it (dynamic NTK, LongRoPE), which are then fixed.
    """
    replaced: dict[str, torch.nn.Module] = {}
    skipped, ropes, forwards = {}, {}, {}
    for name, module in model.named_modules():
        if not type(module).__name__.endswith("RotaryEmbedding") or "forward" in module.__dict__:
            continue
        try:
            own = _ropes(module, length)
            layouts = {kind: _layout(module, rope, kind, length) for kind, rope in own.items()}
        except Error as error:
            skipped[name] = str(error)
            continue
        replaced[name] = module
        forwards[name] = _forward(own, layouts)
        ropes.update({f"{name}.{kind}" if kind else name: rope for kind, rope in own.items()})
    if not replaced:
        why = "".join(f"; {name}: {text}" for name, text in skipped.items())
        raise Error(f"{type(model).__name__} has no rotary embedding that posenc can replace{why}")
    # all or, where one is refused, none
    for name, module in replaced.items():
        module.forward = forwards[name]
    return Patch(replaced, skipped, ropes)


def _ropes(module: torch.nn.Module, length: int) -> dict[str, ModelRope]:
    """The rope of each type of layers; of all under an empty name."""
    config = getattr(module, "config", None)
    if config is None:
        raise Error(f"{type(module).__name__} has no config to read a rope from")
    of_type = getattr(module, "rope_type", "default")
    kinds = set(of_type.values()) if isinstance(of_type, dict) else {of_type}
    if length == 0 and (by_length := sorted(kinds & {"dynamic", "longrope"})):
        raise Error(f"the scaling {by_length[0]!r} depends on the length of the sequence: give `length`")
    if "layer_type" not in inspect.signature(type(module).forward).parameters:
        return {"": Rope.from_config(config, _rotating(config), length)}
    first = {kind: at for at, kind in reversed(list(enumerate(config.layer_types)))}
    return {kind: Rope.from_config(config, at, length) for kind, at in first.items()}


def _rotating(config: Any) -> int:
    """The first layer that rotates: some models leave it out in some layers."""
    from .model import Model

    model = Model.from_config(config)
    return next((at for at in range(max(model.layers, 1)) if model.layer(at).has_rope), 0)


def _doubled(cos: torch.Tensor, sin: torch.Tensor) -> Any:
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def _repeated(cos: torch.Tensor, sin: torch.Tensor) -> Any:
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


def _plain(cos: torch.Tensor, sin: torch.Tensor) -> Any:
    return cos, sin


def _turned(cos: torch.Tensor, sin: torch.Tensor) -> Any:
    return torch.complex(cos, sin)


_LAYOUTS = (_doubled, _repeated, _plain, _turned)
Layout = Callable[[torch.Tensor, torch.Tensor], Any]


def _device(module: torch.nn.Module) -> torch.device:
    return next((buffer.device for buffer in module.buffers()), torch.device("cpu"))


@torch.no_grad()
def _layout(module: torch.nn.Module, rope: ModelRope, kind: str, length: int) -> Layout:
    """How the module lays its cosines and sines out, by its own values at the first positions."""
    device = _device(module)
    ids = torch.arange(_PROBE, device=device)[None]
    if length > _PROBE:  # scalings by length look at the last position
        ids = torch.cat((ids, torch.tensor([[length - 1]], device=device)), 1)
    x = torch.zeros(1, ids.shape[1], 1, dtype=torch.float32, device=device)
    arguments = (kind,) if kind else ()
    try:
        own = type(module).forward(module, x, ids, *arguments)
    except Exception as error:
        raise Error(f"{type(module).__name__} does not take positions as text models do: {error}") from error
    cos, sin = (each[:, :_PROBE] for each in _exact(ids, rope))
    # A model that was cast as a whole has frequencies of few bits.
    rounding = max((torch.finfo(x.dtype).eps for x in module.buffers() if x.is_floating_point()), default=0.0)
    bound = max(1e-4, _PROBE * rounding) * max(1.0, float(cos.abs().max()))
    for layout in _LAYOUTS:
        if _alike(own, layout(cos, sin), bound):
            return layout
    raise Error(
        f"{type(module).__name__} gives other cosines and sines at the first positions than {rope.describe().strip()}"
    )


def _alike(own: Any, ours: Any, bound: float) -> bool:
    own, ours = (each if isinstance(each, tuple) else (each,) for each in (own, ours))
    if len(own) != len(ours):
        return False
    for a, b in zip(own, ours, strict=True):
        a = a[..., :_PROBE, :].reshape(-1, *a.shape[-1:]) if a.dim() >= 2 else a
        b = b.reshape(-1, *b.shape[-1:])
        if a.shape != b.shape or a.is_complex() != b.is_complex() or (a - b).abs().max() > bound:
            return False
    return True


def _exact(ids: torch.Tensor, rope: ModelRope) -> tuple[torch.Tensor, torch.Tensor]:
    axes = rope.axes_of_positions
    if axes > 1 and ids.dim() == 2:
        ids = ids.expand(axes, *ids.shape)
    # models with several axes lead with another row of text positions in places
    return cos_sin(ids[-axes:] if ids.dim() == 3 else ids, spec=rope)


def _forward(ropes: dict[str, ModelRope], layouts: dict[str, Layout]) -> Callable[..., Any]:
    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str = "") -> Any:
        rope, layout = ropes[layer_type], layouts[layer_type]
        cos, sin = _exact(position_ids.to(x.device), rope)
        out = layout(cos, sin)
        # complex turns stay f32, as models keep them
        return tuple(each.to(x.dtype) for each in out) if isinstance(out, tuple) else out

    return forward

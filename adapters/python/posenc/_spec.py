"""Specs as text, for whoever carries them through a graph or a file."""

from __future__ import annotations

import dataclasses
import inspect
import json
from functools import lru_cache
from typing import Any, ClassVar

from .errors import Error


class Spec:
    """What an operation computes, without shape, type or device. `text` holds all of it: `posenc.spec_of(text)` is
    the same spec."""

    _KINDS: ClassVar[dict[str, type[Spec]]] = {}

    text: str

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        Spec._KINDS[cls.__name__] = cls

    def _freeze(self) -> None:
        """Sets `text`, once all arguments of the constructor are attributes of their names."""
        object.__setattr__(self, "text", json.dumps(_plain(self), sort_keys=True))

    def __post_init__(self) -> None:
        self._freeze()

    @classmethod
    def _made(cls, arguments: dict[str, Any]) -> Spec:
        return cls(**arguments)


def _arguments(spec: Spec) -> dict[str, Any]:
    if dataclasses.is_dataclass(spec):
        return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return {name: getattr(spec, name) for name in inspect.signature(type(spec)).parameters}


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return {"spec": type(value).__name__, **{name: _plain(own) for name, own in _arguments(value).items()}}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(own) for own in value] if isinstance(value, (list, tuple)) else value


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        arguments = {name: _whole(own) for name, own in value.items()}
        return Spec._KINDS[arguments.pop("spec")]._made(arguments)
    return tuple(map(_whole, value)) if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def spec_of(text: str) -> Any:
    """The spec whose `text` this is."""
    try:
        return _whole(json.loads(text))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise Error(f"spec is {text!r}, which is no text of a spec: {error!r}") from error

"""Heads: features and memory -> patch and image probabilities. Found by name as plugins.

A head is registered under the entry-point group `mrad.heads`; `tf`, `ft` and `clip` are registered
in the same way as anyone's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from mrad.errors import HeadError

if TYPE_CHECKING:
    from torch import Tensor

    from mrad.encoder.encoder import Encoder, Features
    from mrad.memory.bank import MemoryBank

GROUP = "mrad.heads"


@dataclass(frozen=True)
class HeadOutput:
    """Anomaly probabilities of B images, float32, in [0, 1]."""

    patch: Tensor
    """[B, N], row by row on the grid: what becomes the map."""
    image: Tensor
    """[B]."""


class NoSettings(BaseModel):
    """Of a head that has nothing to set."""

    model_config = ConfigDict(extra="forbid")


class Head(Protocol):
    """What a plugin provides. One object serves one encoder; `attach` gives it the memory."""

    name: str
    Config: type[BaseModel]

    def __init__(
        self, encoder: Encoder, config: Any, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """`state`: the checkpoint's tensors, None for a train-free head."""
        ...

    def attach(self, bank: MemoryBank, mode: str = "exact") -> None:
        """Take a memory: project its keys, build retrievers. Called again when it changes."""
        ...

    def __call__(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """Judge a batch. `exclude` int64 [B]: entry row that an image must not retrieve, or -1."""
        ...


def available_heads() -> dict[str, str]:
    """Name -> where it comes from, of every head installed."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def head_class(name: str) -> type[Head]:
    """The class behind a name. Raises `HeadError` listing what is installed."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                loaded: type[Head] = point.load()
            except Exception as error:  # a plugin may fail in any way
                raise HeadError(
                    f"head {name!r} ({point.value}) cannot be loaded: {error}"
                ) from error
            return loaded
    installed = ", ".join(sorted(available_heads())) or "none: is mrad itself installed?"
    raise HeadError(f"there is no head {name!r}; installed: {installed}")


def load_head(
    name: str,
    encoder: Encoder,
    *,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Head:
    """Build a head by name; a checkpoint brings its own config, `config` overrides it.

    Raises `HeadError`, `CheckpointError` (wrong head, wrong encoder, missing entry).
    """
    cls = head_class(name)
    values, state = dict(config or {}), None
    if checkpoint is not None:
        from mrad.heads.checkpoint import load_checkpoint

        loaded = load_checkpoint(Path(checkpoint))
        inner = getattr(cls, "takes", ())
        loaded.check(loaded.head if loaded.head in inner else name, encoder)
        mine = {"base": loaded.head, "base_config": loaded.config} if inner else loaded.config
        values, state = {**mine, **values}, loaded.tensors
    try:
        parsed = cls.Config.model_validate(values)
    except ValidationError as error:
        raise HeadError(f"head {name!r}: {error}") from error
    return cls(encoder, parsed, state)

"""The paper's memory caches -> a memory bank.

Two torch files, each `{"keys", "values"}`, with one-hot values (normal, anomalous). Nothing is ever
unpickled beyond tensors and containers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrad.errors import BankError, DimensionError, NonFiniteError
from mrad.files import read_tensors, sha256_file
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit
from mrad.types import ANOMALOUS, Level

if TYPE_CHECKING:
    from mrad.encoder.encoder import Encoder


@dataclass(frozen=True)
class _Cache:
    """One of the two memory files."""

    level: Level
    keys: Tensor
    """[n, d] float32."""
    labels: Tensor
    """int64 [n]."""


def convert_memory(image: Path, patch: Path, encoder: Encoder) -> MemoryBank:
    """The released memory caches (`cache_model_*.pt`, `cache_patch_model_*.pt`) as a bank.

    Nothing in them says which keys belong to one image, so each key becomes an entry of its own
    and no provenance is invented. Raises `BankError`, `DimensionError`, `NonFiniteError` naming the
    file and the entry.
    """
    entries: list[Entry] = []
    keys: list[Key] = []
    for level, path, width in (
        ("image", image, encoder.embed_dim),
        ("patch", patch, encoder.width),
    ):
        cache = _read_cache(path, "image" if level == "image" else "patch", width)
        for row in range(len(cache.keys)):
            entry, key = _one(cache, row, path.name)
            entries.append(entry)
            keys.append(key)
    files = {path.name: sha256_file(path) for path in (image, patch)}
    return MemoryBank.from_keys(
        encoder.identity,
        entries,
        keys,
        dims=(encoder.embed_dim, encoder.width),
        metadata={"imported": files},
    )


def _one(cache: _Cache, row: int, name: str) -> tuple[Entry, Key]:
    label = int(cache.labels[row])
    entry = Entry(new_entry_id(), label, source=f"{name}#{row}", added_by="import")
    part = "anomalous" if label == ANOMALOUS else "normal"
    region = "image" if cache.level == "image" else part
    vector = unit(cache.keys[row].numpy())
    return entry, Key(cache.level, label, entry.entry_id, region, 0, vector)


def _read_cache(path: Path, level: Level, width: int) -> _Cache:
    content = read_tensors(path, BankError)
    for name in ("keys", "values"):
        if not isinstance(content.get(name), Tensor):
            raise BankError(f"{path} has no tensor {name!r}; is it a memory cache of the paper?")
    keys, values = content["keys"].float(), content["values"].float()
    if keys.ndim != 2 or keys.shape[1] != width:
        raise DimensionError(
            f"{path}: keys is {list(keys.shape)}; the encoder's {level} level needs [n, {width}]"
        )
    if values.shape != (len(keys), 2):
        raise DimensionError(f"{path}: values is {list(values.shape)}, not [{len(keys)}, 2]")
    if not torch.isfinite(keys).all():
        raise NonFiniteError(f"{path}: keys holds NaN or infinity")
    one_hot = ((values == 0) | (values == 1)).all() and (values.sum(dim=1) == 1).all()
    if not one_hot:
        raise BankError(f"{path}: values is not one-hot (normal, anomalous)")
    return _Cache(level, keys, values.argmax(dim=1))

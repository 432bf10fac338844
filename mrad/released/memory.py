"""The paper's memory caches -> a memory bank.

Two torch files, each `{"keys", "values"}`, with one-hot values (normal, anomalous). Nothing is ever
unpickled beyond tensors and containers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mrad.encoder.encoder import Encoder
from mrad.errors import BankError, DimensionError, NonFiniteError
from mrad.files import read_tensors, sha256_file
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import Entry, Key, new_entry_id
from mrad.memory.level import unit
from mrad.types import Level


def convert_memory(image: Path, patch: Path, encoder: Encoder) -> MemoryBank:
    """The released memory caches (`cache_model_*.pt`, `cache_patch_model_*.pt`) as a bank.

    Nothing in them says which keys belong to one image, so each key becomes an entry of its own
    and no provenance is invented. Raises `BankError`, `DimensionError`, `NonFiniteError` naming the
    file and the entry.
    """
    entries: list[Entry] = []
    keys: list[Key] = []
    caches: tuple[tuple[Level, Path, int], ...] = (
        ("image", image, encoder.embed_dim),
        ("patch", patch, encoder.width),
    )
    for level, path, width in caches:
        vectors, labels = _read_cache(path, level, width)
        for row, (vector, label) in enumerate(zip(vectors.numpy(), labels.tolist())):
            entry = Entry(new_entry_id(), label, source=f"{path.name}#{row}", added_by="import")
            region = "image" if level == "image" else "anomalous" if label else "normal"
            entries.append(entry)
            keys.append(Key(level, label, entry.entry_id, region, 0, unit(vector)))
    files = {path.name: sha256_file(path) for path in (image, patch)}
    return MemoryBank.from_keys(
        encoder.identity,
        entries,
        keys,
        dims=(encoder.embed_dim, encoder.width),
        metadata={"imported": files},
    )


def _read_cache(path: Path, level: Level, width: int) -> tuple[Tensor, Tensor]:
    """Keys float32 [n, width] and labels int64 [n]."""
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
    return keys, values.argmax(dim=1)

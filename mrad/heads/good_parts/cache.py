"""What was measured of a memory's own images, kept beside the bank: files in `derived/`.

They hold nothing that cannot be measured again, so one that is damaged or cannot be written costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mrad.files import atomic_write_bytes
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory

logger = logging.getLogger(__name__)
ROWS = 1_024
"""Keys of a level that tell it from others; labels and entries are looked at whole."""


def place(bank: MemoryBank, kind: str, version: int, levels: Sequence[LevelMemory]) -> Path | None:
    """Where what is measured of a bank's own images lies; None for one in memory, or that learned.

    Args:
        bank: it lies in this one's folder.
        kind: names it, and its file.
        version: of what is written; another one is not found.
        levels: it is measured of their keys; of others it is not found.
    """
    folder = bank.local.folder
    if folder is None or bank.changes is not None or not len(bank.local):
        return None
    shapes = " ".join(str(level.keys.shape) for level in levels)
    digest = hashlib.sha256(f"{version} {shapes}".encode())
    for level in levels:
        rows = np.unique(np.linspace(0, len(level) - 1, ROWS).astype(np.int64))
        for part in (level.labels, level.entry, level.keys[rows]):
            digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(repr([entry.entry_id for entry in bank.entries]).encode())
    return folder / "derived" / f"{kind}-{digest.hexdigest()[:16]}.safetensors"


def write(path: Path, version: int, fields: Mapping[str, Any]) -> None:
    """Keep the fields of what was measured, with a checksum; where that fails it is logged.

    `fields`: tensors, dataclasses of tensors and numbers, and what JSON knows; tuples stay tuples.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"version": version}
    for name, value in fields.items():
        parts = (
            {f"{name}.{part}": v for part, v in vars(value).items()} if is_dataclass(value) else {}
        )
        for place, part in (parts or {name: value}).items():
            (tensors if isinstance(part, Tensor) else facts)[place] = part
    data = save(
        {name: tensor.cpu() for name, tensor in tensors.items()}, {"mrad": json.dumps(facts)}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, hashlib.sha256(data).digest() + data)
    except OSError as error:  # a folder that may not be written: measured at each start
        logger.info("%s is not kept: %s", path, error)


def read(path: Path, version: int, **inner: Callable[..., Any]) -> dict[str, Any] | None:
    """The fields that `write` kept; None where the file is absent, damaged or of another version.

    `inner`: what makes each field that was a dataclass.
    """
    try:
        content = path.read_bytes()
        digest, data = content[:32], content[32:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("it fails its checksum")
        header = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + header])["__metadata__"]["mrad"])
        if facts.pop("version") != version:
            return None
        fields = {name: _tupled(fact) for name, fact in facts.items()} | load(data)
        for name, make in inner.items():
            own = [place for place in fields if place.startswith(f"{name}.")]
            fields[name] = make(**{p.removeprefix(f"{name}."): fields.pop(p) for p in own})
        return fields
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s is not used and made again: %s", path, error)
        return None


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value

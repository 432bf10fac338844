"""The approximate index of a level: found, extended or built, and kept in the bank's folder.

Derived data, never the source: it lies in `<bank>/derived/<fingerprint>/`, belongs to the keys it was
made from, and may be deleted at any time. A level that only grew takes the index of what it was and
adds the rest; nothing is trained again unless the drift asks for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from mrad.errors import EmptyLevelError, MRADError
from mrad.files import atomic_folder
from mrad.memory.level import LevelMemory
from mrad.retrieval.approximate import store as approximate_io
from mrad.retrieval.approximate.index import ApproximateRetriever
from mrad.retrieval.base import probability_of, streamed_log_sums

logger = logging.getLogger(__name__)

FOLDER = "derived"
PROBE_KEYS = 1_024
SAMPLE = 256
"""Queries on which a new index is compared with exact retrieval."""

_living: WeakSet[ApproximateRetriever] = WeakSet()
"""Those in use, so that a memory that learns extends what it has. Matched by fingerprint."""
_lock = Lock()


def fingerprint(level: LevelMemory, count: int) -> str:
    """Names the first `count` keys: digest of all labels and entries, and of 1,024 keys of them."""
    rows = np.unique(np.linspace(0, count - 1, PROBE_KEYS).astype(np.int64))
    digest = hashlib.sha256(f"{count} x {level.dim}".encode())
    for array in (level.labels[:count], level.entry[:count], level.keys[rows]):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def approximate(
    level: LevelMemory, *, device: torch.device | str = "cpu", queries: Tensor | None = None
) -> ApproximateRetriever:
    """The index of `level`, from whatever of it there is already.

    `queries` [M, d]: on which the error of a new index is measured; None: on a sample of the keys,
    none of which retrieves its own entry. Raises `EmptyLevelError`, `NonFiniteError`.
    """
    if len(level) == 0:
        raise EmptyLevelError("there is no key to index")
    for found in _candidates(level, torch.device(device)):
        count = len(found)
        if count < len(level):
            new = slice(count, len(level))
            found = found.add(level.keys[new], level.labels[new], level.entry[new])
            found.cells = replace(found.cells, source=fingerprint(level, len(level)))
            if found.drift().rebuild:
                logger.warning(
                    "the %d keys added to an index of %d no longer fit its cells (%s): built again",
                    len(level) - count,
                    count,
                    found.drift(),
                )
                break
        return _in_use(found)
    return _in_use(_build(level, device, queries))


def stored(bank: Path) -> list[dict[str, Any]]:
    """What indexes lie in a bank's folder: keys, cells, storage, measured accuracy, for people."""
    found = []
    for path in sorted((bank / FOLDER).glob(f"*/{approximate_io.MANIFEST}")):
        try:
            manifest = approximate_io.read_manifest(path.parent)
        except MRADError as error:
            logger.warning("%s", error)
            continue
        size = sum(facts["bytes"] for facts in manifest["files"].values())
        found.append({**manifest, "path": path.parent, "bytes": size})
    return found


def _in_use(retriever: ApproximateRetriever) -> ApproximateRetriever:
    with _lock:
        _living.add(retriever)
    return retriever


def _candidates(level: LevelMemory, device: torch.device) -> Iterator[ApproximateRetriever]:
    """Indexes of the first keys of `level`, those that hold the most of them first."""
    with _lock:
        living = [r for r in _living if r.device == device and r.dim == level.dim]
    options: list[tuple[int, str, ApproximateRetriever | Path]] = [
        (len(r), r.cells.source, r) for r in living
    ]
    if level.folder is not None:
        options += [(int(m["keys"]), m["source"], m["path"]) for m in stored(level.folder)]
    for count, source, option in sorted(options, key=lambda o: o[0], reverse=True):
        if 0 < count <= len(level) and fingerprint(level, count) == source:
            if isinstance(option, ApproximateRetriever):
                yield option
                continue
            try:
                yield approximate_io.load(option, device=device)
            except MRADError as error:
                logger.warning("%s; it is derived data and is built again", error)


def _build(
    level: LevelMemory, device: torch.device | str, queries: Tensor | None
) -> ApproximateRetriever:
    source = fingerprint(level, len(level))
    if level.folder is None:
        return _made(level, device, queries, source, None)
    path = level.folder / FOLDER / source[:16]
    try:
        with atomic_folder(path, replace=True) as folder:
            made = _made(level, device, queries, source, folder / "codes-0.npy")
            approximate_io.write(made.cells, folder)
    except OSError as error:
        logger.warning(
            "the index cannot be kept at %s (%s): it is in memory alone, and the next start builds "
            "it again; make the bank's folder writable once",
            path,
            error,
        )
        return _made(level, device, queries, source, None)
    loaded: ApproximateRetriever = approximate_io.load(path, device=device, verify=False)
    return loaded


def _made(
    level: LevelMemory,
    device: torch.device | str,
    queries: Tensor | None,
    source: str,
    codes_file: Path | None,
) -> ApproximateRetriever:
    made = ApproximateRetriever.build(
        level.keys, level.labels, level.entry, codes_file=codes_file, device=device
    )
    exclude = None
    if queries is None:
        rows = np.unique(np.linspace(0, len(level) - 1, SAMPLE).astype(np.int64))
        queries = torch.from_numpy(level.keys[rows])
        exclude = torch.from_numpy(level.entry[rows])
    exact = streamed_log_sums(level.keys, level.labels, queries.cpu(), level.entry, exclude)
    made.measure(queries, probability_of(exact), exclude)
    made.cells = replace(made.cells, source=source)
    return made

"""The approximate index on disk: derived data, rebuilt from the bank whenever it does not fit.

A folder: `index.json` (format, settings, digests, measured accuracy), `cells.safetensors` (the small
table), and per segment `codes-N.npy`, `row-N.npy`, `entry-N.npy`, which are mapped, not read, and
`start-N.npy`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mrad.errors import BankCorruptError, BankNotFoundError, BankVersionError
from mrad.files import sha256_file
from mrad.retrieval.approximate.cells import Frame, Stats
from mrad.retrieval.approximate.codec import STORAGES, Segment
from mrad.retrieval.approximate.index import Accuracy, ApproximateRetriever, Cells

FORMAT_VERSION = 2
MANIFEST, TABLE = "index.json", "cells.safetensors"


def write(cells: Cells, folder: Path) -> None:
    """Write into a folder of the caller's; codes that already lie there are not copied."""
    stats = cells.stats
    table = {name: value for part in (stats.frame, stats) for name, value in vars(part).items()}
    del table["frame"]
    save_file({name: np.ascontiguousarray(value) for name, value in table.items()}, folder / TABLE)
    for number, segment in enumerate(cells.segments):
        codes = folder / f"codes-{number}.npy"
        if codes.exists() and isinstance(segment.codes, np.memmap):
            segment.codes.flush()
        else:
            np.save(codes, segment.codes, allow_pickle=False)
        for name in ("row", "entry", "start"):
            np.save(folder / f"{name}-{number}.npy", getattr(segment, name), allow_pickle=False)
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": cells.source,
        "keys": int(stats.count.sum()),
        "dim": int(stats.mean.shape[1]),
        "cells": len(stats.count),
        "storage": next(n for n, t in STORAGES.items() if t == cells.segments[0].codes.dtype),
        "segments": len(cells.segments),
        "tolerance": cells.tolerance,
        "built": list(cells.built),
        "accuracy": None if cells.accuracy is None else asdict(cells.accuracy),
        "files": {f.name: {"sha256": sha256_file(f), "bytes": f.stat().st_size} for f in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def load(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    verify: bool = True,
) -> ApproximateRetriever:
    """Open an index; no key is read before a query needs it.

    `verify` compares the digests of all files, which reads them; else only the small table's, and
    of the others the sizes. Raises `BankNotFoundError`, `BankVersionError`, `BankCorruptError`.
    """
    manifest = read_manifest(path)
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise BankCorruptError(f"{name} of the index at {path} is missing or cut short")
        if (verify or name == TABLE) and sha256_file(file) != facts["sha256"]:
            raise BankCorruptError(
                f"{name} of the index at {path} fails its digest; build it again"
            )
    try:
        table = load_file(path / TABLE)
        segments = [_segment(path, n) for n in range(manifest["segments"])]
        cells = _assemble(manifest, table, segments)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BankCorruptError(f"the index at {path} cannot be read ({error})") from error
    return ApproximateRetriever(cells, device=device)


def read_manifest(path: Path) -> dict[str, Any]:
    """What `index.json` says. Raises `BankNotFoundError`, `BankVersionError`, `BankCorruptError`."""
    if not (path / MANIFEST).is_file():
        raise BankNotFoundError(f"no approximate index at {path}")
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
        _ = manifest["source"], manifest["keys"], manifest["segments"], manifest["files"][TABLE]
    except (ValueError, KeyError, TypeError) as error:
        raise BankCorruptError(f"{MANIFEST} of the index at {path} cannot be read") from error
    if version != FORMAT_VERSION:
        raise BankVersionError(
            f"the index at {path} has format {version}, this version reads {FORMAT_VERSION}; it is "
            "derived from the bank and is built again"
        )
    return manifest


def _segment(path: Path, number: int) -> Segment:
    def read(name: str) -> Any:
        # Copy-on-write, for torch wants writable arrays; the file itself is never written to.
        file = path / f"{name}-{number}.npy"
        return np.load(file, mmap_mode="c", allow_pickle=False)

    start = np.load(path / f"start-{number}.npy", allow_pickle=False)
    segment = Segment(read("codes"), read("row"), read("entry"), start)
    if not len(segment.codes) == len(segment.row) == len(segment.entry) == start[-1]:
        raise ValueError(f"segment {number} does not fit its cells")
    return segment


def _assemble(manifest: dict[str, Any], table: dict[str, Any], segments: list[Segment]) -> Cells:
    frame = Frame(*(table.pop(field.name) for field in fields(Frame)))
    stats = Stats(frame, **table)
    if manifest["storage"] not in STORAGES:
        raise ValueError(f"unknown storage {manifest['storage']!r}")
    if int(stats.count.sum()) != sum(len(segment) for segment in segments):
        raise ValueError("the cells' counts do not fit the keys")
    accuracy = manifest["accuracy"]
    return Cells(
        stats,
        tuple(segments),
        (int(manifest["built"][0]), float(manifest["built"][1])),
        float(manifest["tolerance"]),
        None if accuracy is None else Accuracy(**accuracy),
        str(manifest["source"]),
    )

"""A bank as a folder on disk (docs/memory.md): written whole, verified before it is parsed.

bank.json         format version, encoder, dims, counts, calibration, digests of every other file
image.faiss       flat inner-product index of the image keys
patch.faiss       flat inner-product index of the patch keys
local.faiss       from version 2: every patch of labelled images, flat
entries.parquet   a row per key: level, label, entry, region, size, tile (from version 2), source, added
                  when and by whom
thumbnails.parquet   optional: entry_id, JPEG
pictures.parquet     optional: entry_id, what was encoded of a lesson: uint8 [S, S, C]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from mrad.encoder.identity import EncoderIdentity
from mrad.errors import (
    BankCorruptError,
    BankError,
    BankNotFoundError,
    BankVersionError,
    BankWriteError,
)
from mrad.files import atomic_folder, atomic_write_bytes, sha256_file
from mrad.memory.contents import Contents
from mrad.memory.level import LEVELS, LevelMemory
from mrad.memory.tables import (
    Rows,
    read_images,
    read_rows,
    write_entries,
    write_images,
)
from mrad.types import FloatArray

C = TypeVar("C", bound=Contents)
FORMAT_VERSION = 2
MANIFEST = "bank.json"
CHECKSUMS = "checksums"
"""Of every other fact in `bank.json`, from version 2."""
MAPPED_FROM = 1 << 30
"""Bytes of keys beyond which they are mapped instead of read."""
ALWAYS = LEVELS[:2]
"""Those that banks of every format have."""
ENTRIES = "entries.parquet"
IMAGES = {"thumbnails": "jpeg", "pictures": "levels"}
"""Of entries, each in a file of its own, `thumbnails.parquet`: name of the column."""
FLAT = Struct("<4siqqq?iQ")
"""What stands before the vectors of a flat FAISS index: kind, width, vectors, two numbers that are not
used, whether it is trained, metric, numbers that follow."""
KINDS = (b"IxFI", b"IxF2")
"""Of flat indexes: by inner product, by L2."""


def save_bank(bank: C, path: Path, *, replace: bool = False) -> C:
    """Write `bank` to the folder `path`; see `MemoryBank.save`."""
    try:
        with atomic_folder(path, replace=replace) as folder:
            levels: dict[str, LevelMemory] = {name: getattr(bank, name) for name in LEVELS}
            files: dict[str, Callable[[Path], None]] = {
                f"{name}.faiss": partial(_write_index, level) for name, level in levels.items()
            }
            files[ENTRIES] = partial(write_entries, bank.entries, levels)
            for name, column in IMAGES.items():
                if images := getattr(bank, name):
                    files[f"{name}.parquet"] = partial(write_images, images, column)
            with ThreadPoolExecutor() as pool:  # writing and hashing release the GIL
                names = sorted(files)
                facts = pool.map(lambda name: _written(folder / name, files[name]), names)
                manifest = sealed(_manifest(bank, dict(zip(names, facts))))
            (folder / MANIFEST).write_bytes(manifest)
    except FileExistsError as error:
        raise BankError(
            f"{path} exists and is not empty; choose another place or replace it"
        ) from error
    except OSError as error:
        raise BankWriteError(
            f"{path} cannot be written, and nothing is left of it: {error}"
        ) from error
    return _with_digest(bank, manifest)


def save_calibration(bank: C, path: Path) -> C:
    """Rewrite only `bank.json` of the bank at `path` with this bank's calibration and metadata.

    Raises `BankError` when the folder holds other keys than `bank`, `BankWriteError`.
    """
    manifest = read_manifest(path)
    if bank.digest is None and len(bank.entries) != manifest["counts"]["entries"]:
        raise BankError(f"{path} holds another memory than the one calibrated")
    manifest |= {"calibration": bank.calibration, "metadata": bank.metadata}
    data = sealed(manifest)
    _write_manifest(path, data)
    return _with_digest(bank, data)


def _write_manifest(path: Path, data: bytes) -> None:
    try:
        atomic_write_bytes(path / MANIFEST, data)
    except OSError as error:
        raise BankWriteError(f"{path / MANIFEST} cannot be written: {error}") from error


def reseal(path: Path, *, dry_run: bool = False) -> str:
    """Drop the calibration of a `bank.json` in which that alone is damaged; returns what is lost.

    Raises `BankCorruptError` where more is: nobody knows then what the keys mean.
    """
    manifest = _parse_manifest(path)
    if (damaged := _damaged(manifest)) in ([], ["calibration"]):
        if damaged and not dry_run:
            _write_manifest(path, sealed(manifest | {"calibration": None}))
        return f"the calibrations in {path / MANIFEST}: run mrad calibrate" if damaged else ""
    raise BankCorruptError(
        f"{path / MANIFEST} is damaged ({', '.join(damaged)}) and cannot be repaired: restore it from "
        "a copy, or build the bank again"
    )


def sealed(manifest: dict[str, Any]) -> bytes:
    """`bank.json` of these facts, with a checksum of each."""
    facts = {name: value for name, value in manifest.items() if name != CHECKSUMS}
    facts[CHECKSUMS] = {name: _checksum(value) for name, value in facts.items()}
    return json.dumps(facts, indent=1).encode()


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _damaged(manifest: dict[str, Any]) -> list[str]:
    """Names of the facts that fail their checksum, or have none."""
    kept = manifest.get(CHECKSUMS)
    if kept is None and manifest["format_version"] < 2:
        return []  # 0.1 wrote none
    kept = kept if isinstance(kept, dict) else {}
    names = {*manifest, *kept} - {CHECKSUMS}
    return sorted(n for n in names if n not in manifest or kept.get(n) != _checksum(manifest[n]))


def _with_digest(bank: C, manifest: bytes) -> C:
    return replace(bank, digest=hashlib.sha256(manifest).hexdigest())


def _written(file: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    """What the manifest says of a file, written now."""
    write(file)
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}


def _manifest(bank: Contents, files: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "encoder": asdict(bank.identity),
        "dims": {name: getattr(bank, name).dim for name in LEVELS},
        "counts": {"entries": len(bank.entries), **{n: _counts(getattr(bank, n)) for n in LEVELS}},
        "calibration": bank.calibration,
        "metadata": bank.metadata,
        "files": files,
    }


def _counts(level: LevelMemory) -> dict[str, Any]:
    normal, anomalous = level.counts
    counts: dict[str, Any] = {"keys": len(level), "normal": normal, "anomalous": anomalous}
    if level.refers_to != level.counts:  # it learned or forgot: scores keep to the shares before
        counts["reference"] = list(level.refers_to)
    return counts


def _write_index(level: LevelMemory, path: Path) -> None:
    """A flat index by inner product, as FAISS writes it, without a copy of the vectors in between."""
    vectors = np.ascontiguousarray(level.keys, dtype="<f4")
    with path.open("wb") as file:
        file.write(
            FLAT.pack(KINDS[0], level.dim, len(level), 1 << 20, 1 << 20, True, 0, vectors.size)
        )
        file.write(vectors.data)


def load_contents(path: Path, *, verify: bool = True) -> Contents:
    """Read the folder `path`; see `MemoryBank.load`."""
    manifest = read_manifest(path)
    files = manifest["files"]
    for name in (*(f"{level}.faiss" for level in ALWAYS), ENTRIES):
        if name not in files:
            raise BankCorruptError(f"{path / MANIFEST} does not list {name}; restore the bank")
    stamps = _stamps(path, files)
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        list(pool.map(lambda item: _verify(path, *item, digest=verify), files.items()))
    try:
        contents = _parse(path, manifest)
        if _stamps(path, files) != stamps:
            raise ValueError("its files changed while they were read")
        return contents
    except (KeyError, TypeError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise BankCorruptError(f"{path} cannot be parsed: {error!r}; restore the bank") from error


def _stamps(path: Path, files: dict[str, Any]) -> list[tuple[int, int, int]]:
    """How the files look: they must be the same ones after they were parsed as when verified."""
    found = []
    for name in files:
        with suppress(OSError):  # a file that is missing is named by `_verify`
            facts = (path / name).stat()
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """`bank.json`. Raises `BankNotFoundError`, `BankCorruptError`, `BankVersionError`."""
    manifest = _parse_manifest(path)
    if damaged := _damaged(manifest):
        raise BankCorruptError(
            f"{path / MANIFEST} is damaged: {', '.join(damaged)} fails its checksum. "
            f"`mrad memory repair {path}` says whether more than thresholds is lost"
        )
    return manifest


def _parse_manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        hint = "half-written or not a bank" if path.is_dir() else "no such folder"
        raise BankNotFoundError(f"no bank at {path} ({hint}: {MANIFEST} is missing)")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        version = int(manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise BankCorruptError(
            f"{path / MANIFEST} is not what a build writes; restore the bank from a copy"
        ) from error
    if version > FORMAT_VERSION:
        raise BankVersionError(
            f"{path} has format {version}, this release reads up to {FORMAT_VERSION}; upgrade mrad"
        )
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("encoder"), dict):
        raise BankCorruptError(f"{path / MANIFEST} lacks its files or its encoder")
    return dict(manifest)


def _verify(path: Path, name: str, facts: Any, *, digest: bool) -> None:
    file = path / name
    if Path(name).name != name or not file.is_file():
        raise BankCorruptError(f"{file} is missing; restore the bank from a copy")
    if not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
        raise BankCorruptError(f"{path / MANIFEST} lacks the digest of {name}; restore the bank")
    if file.stat().st_size != facts["bytes"]:
        raise BankCorruptError(
            f"{file} has {file.stat().st_size} bytes, {facts['bytes']} were written"
        )
    if digest and sha256_file(file) != facts["sha256"]:
        raise BankCorruptError(f"{file} fails its SHA-256; restore the bank from a copy")


def _parse(path: Path, manifest: dict[str, Any]) -> Contents:
    rows = read_rows(path / ENTRIES)
    images: dict[str, Any] = {
        name: read_images(path / f"{name}.parquet", column)
        for name, column in IMAGES.items()
        if f"{name}.parquet" in manifest["files"]
    }
    held = [name for name in LEVELS if f"{name}.faiss" in manifest["files"]]
    levels: dict[str, Any] = {name: _read_level(path, name, rows, manifest) for name in held}
    return Contents(
        identity=EncoderIdentity(**manifest["encoder"]),
        entries=rows.entries(),
        **levels,
        metadata=manifest.get("metadata") or {},
        calibration=manifest.get("calibration"),
        **images,
        digest=hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest(),
    )


def _read_level(path: Path, name: str, rows: Rows, manifest: dict[str, Any]) -> LevelMemory:
    dim, reference = manifest["dims"][name], manifest["counts"][name].get("reference")
    found = rows.of(name)
    return LevelMemory(
        map_keys(path / f"{name}.faiss", len(found["row"]), dim),
        found["label"],
        found["row"],
        found["region"],
        found["size"],
        path,
        None if reference is None else (int(reference[0]), int(reference[1])),
        tile=found["tile"],
    )


def map_keys(file: Path, count: int, dim: int) -> FloatArray:
    """The vectors float32 [count, dim] of a flat FAISS index; many are mapped: read when they are used.

    A copy of few is safe from whoever overwrites the file meanwhile. Writing to them changes this process's copy, never the file. Raises `ValueError` for an index that
    is not flat, or holds anything else than count * dim numbers. Read without FAISS, whose import takes
    longer than that.
    """
    with file.open("rb") as opened:
        start = opened.read(FLAT.size)
    if len(start) < FLAT.size or start[:4] not in KINDS:
        raise ValueError(f"{file.name} is no flat index, listed {count} x {dim}")
    _, width, total, _, _, _, _, numbers = FLAT.unpack(start)
    if width != dim or total != count:
        raise ValueError(f"{file.name} holds {total} x {width}, listed {count} x {dim}")
    if numbers != count * dim or file.stat().st_size != FLAT.size + 4 * numbers:
        raise ValueError(f"{file.name} is laid out otherwise than this version reads it")
    if not count:
        return np.empty((0, dim), np.float32)
    keys: FloatArray = np.memmap(file, "<f4", mode="c", offset=FLAT.size, shape=(count, dim))
    return np.array(keys) if keys.nbytes <= MAPPED_FROM else keys

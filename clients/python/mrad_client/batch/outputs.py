"""The journal as tables: Parquet, CSV, JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mrad_client.batch.journal import Row
from mrad_client.errors import InputError

COLUMNS = {
    "name": pa.string(),
    "status": pa.string(),
    "score": pa.float32(),
    "class_score": pa.float32(),
    "verdict": pa.string(),
    "threshold": pa.float32(),
    "probability": pa.float32(),
    "map": pa.string(),
    "overlay": pa.string(),
    "code": pa.string(),
    "error": pa.string(),
}
ROW_GROUP = 50_000


def write_parquet(rows: Iterable[Row], file: IO[bytes]) -> None:
    """One typed column for each of `COLUMNS`."""
    schema = pa.schema(list(COLUMNS.items()))
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def write_csv(rows: Iterable[Row], file: IO[bytes]) -> None:
    """UTF-8 with a header; empty where there is nothing."""

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, list(COLUMNS), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    text.detach()


def write_jsonl(rows: Iterable[Row], file: IO[bytes]) -> None:
    """An object a line, without what is not there."""
    for row in rows:
        kept = {name: row[name] for name in COLUMNS if row.get(name) is not None}
        file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")


WRITERS: dict[str, Callable[[Iterable[Row], IO[bytes]], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".jsonl": write_jsonl,
}


def check_suffix(path: Path) -> None:
    """Raises `InputError` for a table of an unknown kind, before hours of work."""
    if path.suffix.lower() not in WRITERS:
        raise InputError(f"{path}: the suffix says the format, one of {', '.join(WRITERS)}")


def write_table(rows: Iterable[Row], path: Path) -> None:
    """The table in the format that the suffix names; appears whole or not at all."""
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        WRITERS[path.suffix.lower()](rows, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)  # noqa: PTH105


def _groups(rows: Iterable[Row]) -> Iterable[list[Row]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, ROW_GROUP)), [])

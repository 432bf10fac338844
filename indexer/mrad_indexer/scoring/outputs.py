"""The journal as tables: Parquet, CSV, JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mrad_indexer.journal import Row

COLUMNS = {
    "name": pa.string(),
    "status": pa.string(),
    "score": pa.float64(),
    "class_score": pa.float64(),
    "verdict": pa.string(),
    "threshold": pa.float64(),
    "probability": pa.float64(),
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
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def write_table(rows: Iterable[Row], path: Path) -> None:
    """The table in the format that the suffix names; appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        WRITERS[path.suffix[1:]](rows, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, ROW_GROUP)), [])

"""Rows as tables: Parquet, CSV, JSON lines.

The column `name` is always UTF-8. Where a file's name is not, its bytes that are none read `\\xNN`,
and `name_base64` holds the name exactly.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mrad_client.batch.journal import Row
from mrad_client.batch.names import exact, readable
from mrad_client.batch.pictures import atomic_file
from mrad_client.errors import InputError

COLUMNS = (
    "name",
    "status",
    "calibrated_score",
    "score",
    "class_score",
    "verdict",
    "threshold",
    "probability",
    "p_value",
    "peak_box",
    "recognised",
    "parts",
    "map",
    "overlay",
    "warnings",
    "code",
    "error",
    "name_base64",
)
NUMBERS = ("calibrated_score", "score", "class_score", "threshold", "probability", "p_value")
LISTS = ("warnings",)
"""Columns of `COLUMNS` that hold no text, but a float64, or texts."""
ROW_GROUP = 50_000
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""A spreadsheet takes a cell that begins so for a formula, or hides its first character."""


def write_parquet(rows: Iterable[Row], file: IO[bytes]) -> None:
    """One typed column for each of `COLUMNS`."""
    import pyarrow as pa  # with it comes pandas, where that is installed
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COLUMNS, pa.string())
    kinds |= dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(LISTS, pa.list_(pa.string()))
    schema = pa.schema(list(kinds.items()))
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def write_csv(rows: Iterable[Row], file: IO[bytes]) -> None:
    """UTF-8 with a header; empty where there is nothing; several warnings with ` | ` between them.

    A text that begins as one of `FORMULA` gets a `'` before it, so that no spreadsheet runs a file
    name; a reader takes one leading `'` away.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    text.detach()


def _harmless(value: Any) -> Any:
    if isinstance(value, list):
        value = " | ".join(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


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
    with atomic_file(path) as file:
        WRITERS[path.suffix.lower()](map(_as_text, rows), file)


def _as_text(row: Row) -> Row:
    texts = {key: readable(value) for key, value in row.items() if isinstance(value, str)}
    return row | texts | {"name_base64": exact(row["name"])}


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, ROW_GROUP)), [])

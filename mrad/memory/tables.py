"""Entries, keys and thumbnails of a bank as Parquet tables.

Columns are made of buffers and read through DLPack: pyarrow's own conversions to and from lists and
NumPy import pandas wherever it is installed, which takes a second and is used for nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mrad.errors import BankWriteError
from mrad.memory.entry import Entry
from mrad.memory.level import LevelMemory

Column = Any
"""A chunked column of pyarrow, which has no types."""
SCHEMA = pa.schema(
    [
        ("level", pa.string()),
        ("label", pa.uint8()),
        ("region", pa.string()),
        ("size", pa.int32()),
        ("tile", pa.int32()),
        ("row", pa.int64()),
        ("entry_id", pa.string()),
        ("entry_label", pa.uint8()),
        ("source", pa.string()),
        ("object_name", pa.string()),
        ("defect", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("added_at", pa.string()),
        ("added_by", pa.string()),
    ]
)
CHUNK = 10_000
"""Thumbnails in one piece of their column, whose offsets end at 2 GiB."""
_OF_ENTRY = ("entry_id", "source", "object_name", "defect", "added_at", "added_by")
_SIZES = ("width", "height")


def write_entries(entries: Sequence[Entry], levels: Mapping[str, LevelMemory], file: Path) -> None:
    """A row per key; an entry without a key gets a row of level '', so that it is not forgotten."""
    parts = list(levels.values())
    keyed = np.concatenate([level.entry for level in parts])
    bare = np.setdiff1d(np.arange(len(entries)), keyed)
    labels = np.array([entry.label for entry in entries], np.uint8)
    rows = np.concatenate([keyed, bare]).astype(np.int64)
    of_entry: dict[str, pa.Array] = {
        name: texts([getattr(entry, name) for entry in entries]) for name in _OF_ENTRY
    }
    of_entry |= {
        name: numeric(np.array([getattr(entry, name) for entry in entries], np.int32))
        for name in _SIZES
    }
    of_entry["tags"] = _lists([entry.tags for entry in entries])
    of_entry["entry_label"] = numeric(labels)
    repeated = pa.table(of_entry).take(numeric(rows))
    names = [*levels, ""]
    sizes = [*map(len, parts), len(bare)]
    columns: dict[str, Any] = {name: repeated[name] for name in of_entry}
    columns |= {
        "row": numeric(rows),
        "level": texts(names).take(numeric(np.repeat(np.arange(len(names)), sizes))),
        "label": numeric(np.concatenate([*(level.labels for level in parts), labels[bare]])),
        "region": texts(
            [*(r for level in parts for r in level.region.tolist()), *[""] * len(bare)]
        ),
        "size": _counts([level.size for level in parts], len(bare)),
        "tile": _counts([level.tile for level in parts], len(bare)),
    }
    table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
    pq.write_table(table, file, compression="zstd")


def _counts(parts: Sequence[npt.NDArray[np.int32]], bare: int) -> pa.Array:
    return numeric(np.concatenate([*parts, np.zeros(bare, np.int32)]).astype(np.int32))


def write_thumbnails(thumbnails: Mapping[str, bytes], file: Path) -> None:
    """Entry's id and JPEG, a row each."""
    jpegs = list(thumbnails.values())
    chunks = [_pieces(jpegs[i : i + CHUNK], pa.binary()) for i in range(0, len(jpegs), CHUNK)]
    columns = {"entry_id": texts(list(thumbnails)), "jpeg": pa.chunked_array(chunks, pa.binary())}
    pq.write_table(pa.table(columns), file)


def read_table(file: Path) -> pa.Table:
    """The rows of `write_entries`. Raises what pyarrow raises, `ValueError`."""
    # Not pyarrow's `read_table`, whose first call imports what takes longer than to read half a million rows.
    with pq.ParquetFile(file) as opened:
        table = opened.read(columns=SCHEMA.names)
    if "tile" not in table.column_names:  # version 1: no image was cut
        table = table.append_column("tile", numeric(np.zeros(len(table), np.int32)))
    return table.select(SCHEMA.names).cast(SCHEMA)


def read_thumbnails(file: Path) -> dict[str, bytes]:
    """JPEGs by entry's id."""
    with pq.ParquetFile(file) as opened:
        table = opened.read()
    return dict(zip(table["entry_id"].to_pylist(), table["jpeg"].to_pylist()))


def read_entries(table: pa.Table) -> tuple[Entry, ...]:
    """One entry of the rows of its keys. Raises `ValueError` where rows have gaps."""
    rows, first = np.unique(numbers(table["row"]), return_index=True)
    if not np.array_equal(rows, np.arange(len(rows))):
        raise ValueError("the table of entries has gaps in its rows")
    names = ["entry_label" if f.name == "label" else f.name for f in fields(Entry)]
    picked = table.select(names).take(numeric(first))
    # Column by column: a memory may have half a million entries, and a dict for each takes seconds.
    values = [_values(picked[name]) for name in names]
    with _uncollected():
        return tuple(map(Entry, *values))


def rows_of(table: pa.Table, level: str) -> pa.Table:
    """The rows of one level's keys."""
    names, which = _codes(table["level"])
    return table.take(numeric(np.flatnonzero(np.isin(which, np.flatnonzero(names == level)))))


def words(column: Column) -> npt.NDArray[np.str_]:
    """A column of few different short texts [n]."""
    names, which = _codes(column)
    return names[which] if len(which) else names


def numbers(column: Column) -> npt.NDArray[Any]:
    """A column of numbers [n]; not writable. Raises `ValueError` where some are missing."""
    whole = column.combine_chunks()
    if whole.null_count:
        raise ValueError("a number is missing")
    return np.from_dlpack(whole)


def _codes(column: Column) -> tuple[npt.NDArray[np.str_], npt.NDArray[Any]]:
    whole = column.combine_chunks().dictionary_encode()
    if whole.null_count:
        raise ValueError("a text is missing")
    return np.array(whole.dictionary.to_pylist(), dtype="U9"), np.from_dlpack(whole.indices)


def _values(column: Column) -> list[Any]:
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    lists = column.combine_chunks()
    cuts, flat = lists.offsets.to_pylist(), lists.values.to_pylist()
    return [tuple(flat[start:end]) for start, end in pairwise(cuts)]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector, which walks all objects again and again while very many are made."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def numeric(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers [n] as a column of their type."""
    kind = getattr(pa, values.dtype.name)()
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def texts(values: Sequence[str]) -> pa.Array:
    """Texts as a column."""
    return _pieces([value.encode() for value in values], pa.string())


def _pieces(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *map(len, values)])
    if ends[-1] > np.iinfo(np.int32).max:
        raise BankWriteError("a column of the bank would exceed 2 GiB")
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _lists(values: Sequence[Sequence[str]]) -> pa.Array:
    ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
    flat = texts([text for value in values for text in value])
    return pa.ListArray.from_arrays(numeric(ends), flat)

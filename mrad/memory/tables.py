"""Entries, keys and thumbnails of a bank as Parquet tables.

Columns are made of buffers and read through DLPack: pyarrow's own conversions to and from lists and
NumPy import pandas wherever it is installed, which takes a second and is used for nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
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


def write_images(images: Mapping[str, bytes], name: str, file: Path) -> None:
    """Entry's id and image, a row each; `name`: of its column."""
    values = list(images.values())
    chunks = [_pieces(values[i : i + CHUNK], pa.binary()) for i in range(0, len(values), CHUNK)]
    columns = {"entry_id": texts(list(images)), name: pa.chunked_array(chunks, pa.binary())}
    pq.write_table(pa.table(columns), file)


class Rows:
    """The rows of `write_entries`, a row a key, as arrays; texts as numbers of few different ones.

    Not as pyarrow's tables: their first `take` or `cast` imports what takes longer than to read half a
    million rows.
    """

    def __init__(self, table: pa.Table) -> None:
        """Raises `ValueError` for columns of another kind, or where something is missing."""
        self.row = numbers(table["row"]).astype(np.int64)
        self._table = table
        self._level = texts_of(table["level"])

    def of(self, level: str) -> dict[str, npt.NDArray[Any]]:
        """Columns of one level's keys: `label`, `row`, `size`, `tile`, and `region` as texts."""
        names, which = self._level
        mine = np.isin(which, [number for number, name in enumerate(names) if name == level])
        regions, codes = texts_of(self._table["region"])
        found = {"row": self.row[mine], "region": np.array(regions, dtype="U9")[codes[mine]]}
        for name, kind in (("label", np.uint8), ("size", np.int32), ("tile", np.int32)):
            if name in self._table.column_names:
                found[name] = numbers(self._table[name])[mine].astype(kind)
            else:  # version 1: no image was cut
                found[name] = np.zeros(int(mine.sum()), kind)
        return found

    def entries(self) -> tuple[Entry, ...]:
        """One entry of the rows of its keys. Raises `ValueError` where rows have gaps."""
        rows, first = np.unique(self.row, return_index=True)
        if not np.array_equal(rows, np.arange(len(rows))):
            raise ValueError("the table of entries has gaps in its rows")
        # Column by column: a memory may have half a million entries, and a dict for each takes seconds.
        values: dict[str, Sequence[Any]] = {"tags": _picked(self._table["tags"], first)}
        for name in _OF_ENTRY:
            known, codes = texts_of(self._table[name])
            values[name] = [known[code] for code in codes[first].tolist()]
        for name, field in (("label", "entry_label"), *zip(_SIZES, _SIZES)):
            values[name] = numbers(self._table[field])[first].tolist()
        with _uncollected():
            return tuple(map(Entry, *(values[field.name] for field in fields(Entry))))


def read_rows(file: Path) -> Rows:
    """The rows of `write_entries`. Raises what pyarrow raises, `ValueError`."""
    with pq.ParquetFile(file, read_dictionary=[*_OF_ENTRY, "level", "region"]) as opened:
        return Rows(opened.read(columns=SCHEMA.names))


def read_images(file: Path, name: str) -> dict[str, bytes]:
    """Inverse of `write_images`."""
    with pq.ParquetFile(file) as opened:
        table = opened.read()
    return dict(zip(table["entry_id"].to_pylist(), table[name].to_pylist()))


def numbers(column: Column) -> npt.NDArray[Any]:
    """A column of numbers [n]; not writable. Raises `ValueError` where some are missing."""
    whole = column.combine_chunks()
    if whole.null_count:
        raise ValueError("a number is missing")
    return np.from_dlpack(whole)


def texts_of(column: Column) -> tuple[list[str], npt.NDArray[Any]]:
    """The different texts of a column, and which of them stands in each row [n]."""
    whole = column.combine_chunks()
    if whole.null_count or not pa.types.is_dictionary(whole.type):
        raise ValueError("a text is missing, or is none")
    return whole.dictionary.to_pylist(), np.from_dlpack(whole.indices)


def _picked(column: Column, rows: npt.NDArray[np.int64]) -> list[tuple[str, ...]]:
    """Some rows of a column of lists."""
    lists = column.combine_chunks()
    if not pa.types.is_list(lists.type):
        raise ValueError("tags are no lists")
    ends, flat = np.from_dlpack(lists.offsets), lists.values
    cuts = zip(ends[rows].tolist(), ends[rows + 1].tolist())
    return [tuple(flat[start:end].to_pylist()) if end > start else () for start, end in cuts]


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

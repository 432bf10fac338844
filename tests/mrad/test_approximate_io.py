"""The approximate index on disk: round trip, damage, and its place in the bank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `clusters`, under any import mode

from clusters import COUNT, clustered, mixed_labels

from mrad.errors import BankCorruptError, BankNotFoundError, BankVersionError
from mrad.retrieval.approximate import store as approximate_io
from mrad.retrieval.approximate.index import ApproximateRetriever
from mrad.retrieval.exact import ExactRetriever


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return mixed_labels()


@pytest.fixture(scope="module")
def entry() -> np.ndarray:
    return np.repeat(np.arange(COUNT // 2), 2)


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_disk_round_trip(tmp_path: Path, labels: np.ndarray, storage: str) -> None:
    keys, queries = clustered(COUNT, 0, 4.0), torch.from_numpy(clustered(30, 1, 4.0))
    retriever = ApproximateRetriever.build(keys[:5_000], labels[:5_000], storage=storage)
    retriever = retriever.add(keys[5_000:], labels[5_000:], np.arange(5_000, COUNT))
    retriever.measure(queries, ExactRetriever(keys, labels).probability(queries))
    approximate_io.write(retriever.cells, tmp_path)
    loaded = approximate_io.load(tmp_path)
    torch.testing.assert_close(loaded.log_sums(queries), retriever.log_sums(queries))
    assert loaded.cells.accuracy == retriever.cells.accuracy
    assert loaded.drift() == retriever.drift()
    assert isinstance(loaded.cells.segments[0].codes, np.memmap)


def test_codes_written_straight_to_disk(tmp_path: Path, labels: np.ndarray) -> None:
    keys, queries = clustered(COUNT, 0), torch.from_numpy(clustered(30, 1))
    retriever = ApproximateRetriever.build(keys, labels, codes_file=tmp_path / "codes-0.npy")
    approximate_io.write(retriever.cells, tmp_path)
    loaded = approximate_io.load(tmp_path)
    in_memory = ApproximateRetriever.build(keys, labels)
    torch.testing.assert_close(loaded.log_sums(queries), in_memory.log_sums(queries))


def test_damaged_indexes_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    path = tmp_path / "index"
    with pytest.raises(BankNotFoundError):
        approximate_io.load(path)
    path.mkdir()
    approximate_io.write(ApproximateRetriever.build(clustered(COUNT, 0), labels).cells, path)
    for name in ("cells.safetensors", "codes-0.npy", "entry-0.npy"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BankCorruptError, match=name):
            approximate_io.load(path)
        (path / name).write_bytes(whole)
    (path / "row-0.npy").rename(path / "gone")
    with pytest.raises(BankCorruptError, match="missing"):
        approximate_io.load(path, verify=False)
    (path / "gone").rename(path / "row-0.npy")
    manifest = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(BankVersionError):
        approximate_io.load(path)
    (path / "index.json").write_text("{")
    with pytest.raises(BankCorruptError):
        approximate_io.load(path)

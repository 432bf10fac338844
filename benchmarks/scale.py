"""One size of the retrieval benchmark, run in a process of its own (benchmarks/retrieval.py)."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.features import Repeated
from benchmarks.tables import seconds
from mrad import approximate_io
from mrad.approximate import ApproximateRetriever
from mrad.retrieval import ExactRetriever, probability_of, streamed_log_sums

SAMPLE = 256
RUNS = 5


@dataclass(frozen=True)
class Built:
    """What a build took."""

    seconds: float
    bytes: int
    peak: int
    """Bytes, of the whole process."""
    largest_error: float
    spearman: float


@dataclass(frozen=True)
class Asked:
    """What a start and its queries took; bytes beyond what the process had before."""

    start: float
    query: list[float]
    exact: list[float] | None
    anonymous: int
    mapped: int


def build(real: Path, count: int, path: Path) -> Built:
    """Index `count` keys straight into files, and measure the error on some of them."""
    keys, labels = _keys(real, count)
    path.mkdir()
    start = time.perf_counter()
    made = ApproximateRetriever.build(keys, labels, codes_file=path / "codes-0.npy")
    approximate_io.write(made.cells, path)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = np.unique(np.linspace(0, count - 1, SAMPLE).astype(np.int64))
    queries, own = torch.from_numpy(keys[rows]), torch.from_numpy(rows)
    exact = streamed_log_sums(keys, labels, queries, np.arange(count), own)
    found = made.measure(queries, probability_of(exact), own)
    size = sum(file.stat().st_size for file in path.iterdir())
    return Built(took, size, peak, found.largest_error, found.spearman)


def ask(real: Path, count: int, path: Path, queries: int, exact: bool) -> Asked:
    """Open the index and ask it for one image's patches; the same of exact attention."""
    keys, labels = _keys(real, count)
    asked = torch.from_numpy(keys[slice(0, queries)])
    before = _resident()
    start = time.perf_counter()
    opened = approximate_io.load(path, verify=False)
    opened_after = time.perf_counter() - start
    opened.probability(asked)
    times = [seconds(lambda: opened.probability(asked)) for _ in range(RUNS)]
    opened.nearest(asked[:1], 5)  # evidence reads keys, in some cells
    after = _resident()
    baseline = None
    if exact:
        whole = ExactRetriever(keys[slice(0, count)], labels)
        runs = RUNS if count <= 100_000 else 1
        whole.probability(asked[:1])
        baseline = [seconds(lambda: whole.probability(asked)) for _ in range(runs)]
        times = times[:runs] if runs == 1 else times
    return Asked(opened_after, times, baseline, after[0] - before[0], after[1] - before[1])


def _keys(real: Path, count: int) -> tuple[Repeated, np.ndarray]:
    with np.load(real) as file:
        keys, labels = file["keys"], file["labels"]
    order = np.random.default_rng(0).permutation(len(keys))
    return Repeated(keys[order], count), np.resize(labels[order], count)


def _resident() -> tuple[int, int]:
    """Bytes of the process's own memory, and of mapped files."""
    facts = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    own, files = (int(facts[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, files

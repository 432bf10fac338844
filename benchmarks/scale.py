"""The steps of `benchmarks/sizes.py` for one number of keys, each run in a process of its own."""

from __future__ import annotations

import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.features import Repeated
from benchmarks.geometry import Geometry
from benchmarks.tables import seconds
from mrad import Detector, Entry, MemoryBank
from mrad.files import sha256_file
from mrad.memory.level import LevelMemory
from mrad.retrieval.approximate import store as approximate_io
from mrad.retrieval.approximate.cells import blocks
from mrad.retrieval.approximate.index import ApproximateRetriever
from mrad.retrieval.base import log_sum_exp, probability_of
from mrad.retrieval.exact import BLOCK, ExactRetriever

RUNS = 5


@dataclass(frozen=True)
class Built:
    """What a build took; the peak, in bytes, is the whole process's."""

    seconds: float
    bytes: int
    peak: int


@dataclass(frozen=True)
class Asked:
    """What a start and its queries took; bytes beyond what the process had before."""

    start: float
    query: list[float]
    exact: list[float] | None
    anonymous: int
    mapped: int


@dataclass(frozen=True)
class Error:
    """Against exact attention, at one sharpness of q.k."""

    largest: float
    spearman: float
    probed: float


@dataclass(frozen=True)
class Started:
    """A bank's start, digests and all, and its size."""

    seconds: float
    bytes: int


def build(real: Path, count: int, path: Path) -> Built:
    """Index `count` keys straight into files."""
    keys, labels, _ = memory(real, count)
    path.mkdir()
    start = time.perf_counter()
    made = ApproximateRetriever.build(keys, labels, codes_file=path / "codes-0.npy")
    approximate_io.write(made.cells, path)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Built(took, sum(file.stat().st_size for file in path.iterdir()), peak)


def ask(real: Path, count: int, path: Path, queries: int, exact: bool) -> Asked:
    """Open the index and ask it for one image's patches; the same of exact attention."""
    keys, labels, held = memory(real, count)
    asked = torch.from_numpy(np.resize(held, (queries, held.shape[1])))
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
        whole = ExactRetriever(keys.held(), labels)
        runs = RUNS if count <= 100_000 else 1
        whole.probability(asked[:1])
        baseline = [seconds(lambda: whole.probability(asked)) for _ in range(runs)]
        times = times[:runs] if runs == 1 else times
    return Asked(opened_after, times, baseline, after[0] - before[0], after[1] - before[1])


def errors(
    real: Path, count: int, path: Path, sample: int, sharpnesses: tuple[int, ...]
) -> list[Error]:
    """The index against one exact pass over all keys, on patches of images that give no key.

    A sharper head is queries that are longer: what counts is q.k, so one index serves them all.
    """
    keys, labels, held = memory(real, count)
    rows = np.unique(np.linspace(0, len(held) - 1, sample).astype(np.int64))
    queries = torch.from_numpy(held[rows])
    sums = torch.full((len(sharpnesses), len(rows), 2), -torch.inf, dtype=torch.float64)
    for part in blocks(count, BLOCK):
        scores = queries @ torch.from_numpy(keys[part]).T
        for label in (0, 1):
            own = scores[:, torch.from_numpy(labels[part] == label)]
            for place, sharpness in enumerate(sharpnesses):
                if own.shape[1]:
                    found = log_sum_exp(own * sharpness)
                    sums[place, :, label] = torch.logaddexp(sums[place, :, label], found)
    opened, errors = approximate_io.load(path, verify=False), []
    for sharpness, exact in zip(sharpnesses, sums):
        got, want = opened.probability(queries * sharpness).double(), probability_of(exact).double()
        rank = float(spearmanr(got.numpy(), want.numpy()).statistic)
        errors.append(Error(float((got - want).abs().max()), rank, opened.probed))
    return errors


def make_bank(real: Path, count: int, path: Path, geometry: Geometry) -> None:
    """A bank of `count` patch keys, two to an image as in the paper, and its indexes.

    Image keys are seeded: what a start costs does not depend on them.
    """
    keys, labels, _ = memory(real, count)
    encoder, images = geometry.encoder(), -(-count // 2)
    entries = tuple(
        Entry(f"{row:08}", row % 2, f"images/{row:08}.png", "part", added_at="2026-01-01T00:00:00Z")
        for row in range(images)
    )
    rng = np.random.default_rng(2)
    whole = rng.standard_normal((images, encoder.embed_dim), dtype=np.float32)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    image = _level(whole, np.arange(images) % 2, np.arange(images))
    patch = _level(keys.held(), labels, np.arange(count) // 2)
    MemoryBank(encoder.identity, entries, image, patch).save(path)
    del image, patch, whole
    Detector(encoder, MemoryBank.load(path, verify=False), retrieval="auto")


def start_bank(path: Path, geometry: Geometry) -> Started:
    """Load the bank as a server does, then give its disk back."""
    encoder = geometry.encoder()
    for file in path.rglob("*"):  # once through, so that what is timed is not the disk
        if file.is_file():
            sha256_file(file)
    begin = time.perf_counter()
    bank = MemoryBank.load(path, encoder=encoder)
    Detector(encoder, bank, retrieval="auto")
    took = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    shutil.rmtree(path)
    return Started(took, size)


def _level(keys: np.ndarray, labels: np.ndarray, entry: np.ndarray) -> LevelMemory:
    region = np.where(labels == 1, "anomalous", "normal").astype("U9")
    return LevelMemory(
        keys, labels.astype(np.uint8), entry, region, np.ones(len(keys), dtype=np.int32)
    )


def memory(real: Path, count: int) -> tuple[Repeated, np.ndarray, np.ndarray]:
    """`count` keys, their labels, and patches of images that give no key."""
    with np.load(real) as file:
        keys, labels, held = file["keys"], file["labels"], file["held"]
    order = np.random.default_rng(0).permutation(len(keys))
    return Repeated(keys[order], count), np.resize(labels[order], count), held


def _resident() -> tuple[int, int]:
    """Bytes of the process's own memory, and of mapped files."""
    facts = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    own, files = (int(facts[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, files

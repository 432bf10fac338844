"""A batch of mrad-mini's training: in float32 and in bf16, denormal numbers kept or flushed.

`python -m benchmarks pretraining`. At the first steps, pictures ready; each way in a process of its own,
for whether denormals are flushed is settled before a process's first product.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.tables import Cell, Table, hardware, main, middle, ratio, seconds
from pretraining.train import Batches, Recipe, Training

NAME = "pretraining"
WAYS = ((False, True), (False, False), (True, True), (True, False))
"""(denormals flushed, products in bf16); the others are compared with the last."""


class _Way:
    """One process's training; `start` makes it, `step` times one batch."""

    training: Training
    raw: dict[str, object]

    @classmethod
    def start(cls, flush: bool, bf16: bool, quick: bool) -> None:
        torch.set_flush_denormal(flush)
        recipe = Recipe(sample_pairs=4, pairs=2 if quick else Recipe.pairs)
        with tempfile.TemporaryDirectory() as folder:
            cls.training = Training(recipe, Path(folder), torch.device("cpu"))
        cls.training.bf16 = bf16
        cls.raw = Batches(recipe)[0]

    @classmethod
    def step(cls) -> float:
        return seconds(lambda: cls.training.advance(cls.raw))


def run(quick: bool) -> list[Table]:
    """Seconds a batch of each way, in turn, and how much longer than flushed float32."""
    spawn = multiprocessing.get_context("spawn")
    pools = [
        ProcessPoolExecutor(1, spawn, initializer=_Way.start, initargs=(*way, quick))
        for way in WAYS
    ]
    turns = [[pool.submit(_Way.step).result() for pool in pools] for _ in range(3 if quick else 12)]
    for pool in pools:
        pool.shutdown()
    times = list(zip(*turns[2:], strict=True))  # two turns warm up
    rows: list[list[Cell]] = [
        [
            "flushed" if flush else "kept",
            "bf16" if bf16 else "float32",
            middle(took),
            str(ratio(took, times[-1])),
        ]
        for (flush, bf16), took in zip(WAYS, times, strict=True)
    ]
    header = ["denormals", "products", "a batch", "longer than the last, paired"]
    return [Table("A batch of training mrad-mini, pictures ready", header, rows, [hardware()])]


if __name__ == "__main__":
    main(run)

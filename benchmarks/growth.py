"""How the rate grows or falls with the batch and with the size of the input."""

from __future__ import annotations

import torch

from benchmarks.geometry import Geometry
from benchmarks.tables import Cell, Table, hardware, middle, ratio, timed
from mrad import Encoder

BATCHES = (1, 2, 4, 8, 16)
SIDES = (132, 264, 396, 528)
"""Pixels, multiples of mrad-mini's patch of 12."""
RUNS = 5


def _rate(encoder: Encoder, batch: int, runs: int) -> list[float]:
    """Seconds an image, run by run."""
    pixels = torch.rand(batch, 3, encoder.image_size, encoder.image_size)
    return [taken / batch for taken in timed(lambda: encoder.encode_pixels(pixels), runs)]


def batches(encoder: Encoder, sizes: tuple[int, ...], runs: int) -> Table:
    """Images a second by batch."""
    times = {batch: _rate(encoder, batch, runs) for batch in sizes}
    rows: list[list[Cell]] = [
        [batch, 1 / sorted(found)[len(found) // 2], middle(found)] for batch, found in times.items()
    ]
    gain = ratio(times[sizes[0]], times[sizes[-1]])
    return Table(
        f"Rate by batch, {encoder.name} at {encoder.image_size} px",
        ["batch", "images/s", "time an image"],
        rows,
        [hardware(), f"Encoding alone, pixels ready. Batch {sizes[-1]} against 1: {gain}."],
        {f"batch {sizes[-1]} against 1": gain},
    )


def sides(image_sizes: tuple[int, ...], runs: int) -> Table:
    """Images a second by side of the input."""
    rows: list[list[Cell]] = []
    for side in image_sizes:
        encoder = Encoder.load("mrad-mini", image_size=side, device="cpu")
        found = _rate(encoder, 1, runs)
        rows.append([side, encoder.grid**2, 1 / sorted(found)[len(found) // 2], middle(found)])
    return Table(
        "Rate by input size, mrad-mini, batch 1",
        ["input px", "patches", "images/s", "time an image"],
        rows,
        [hardware(), "Twice the side is four times the patches, and attention grows by sixteen."],
    )


def run(quick: bool) -> list[Table]:
    """mrad-mini by batch and by size; the paper's geometry by batch."""
    mini = Encoder.load("mrad-mini", device="cpu")
    if quick:
        return [batches(mini, (1, 2), 1), sides(SIDES[:2], 1)]
    paper = Geometry.paper().encoder("bf16")
    return [batches(mini, BATCHES, RUNS), batches(paper, (1, 2, 4), 3), sides(SIDES, RUNS)]

"""Index building: `mrad build`'s pipeline against bare encoding of the same images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.build.build import BuildOptions, build
from mrad_indexer.build.plan import Plan
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.records import Dataset
from PIL import Image

from benchmarks.features import ROOT, records
from benchmarks.geometry import Geometry
from benchmarks.tables import Cell, Table, paired, ratio
from mrad import Encoder
from mrad.images.reader import load_image
from mrad.memory.entry import PatchKeys

BATCH = 8


def row(encoder: Encoder, images: int, runs: int, patch_keys: PatchKeys) -> list[Cell]:
    """Images a second of both, and the build's rate as a share of the bare one's."""
    dataset = Dataset("sample", ROOT, tuple(records(images)))
    options = BuildOptions(min(BATCH, images), patch_keys=patch_keys)
    pixels = torch.stack([encoder.preprocess(load_image(r.image)) for r in dataset.records])

    def bare() -> None:
        for batch in pixels.split(options.batch_size):
            encoder.encode_pixels(batch)

    encoder.encode_pixels(pixels[: options.batch_size])
    with tempfile.TemporaryDirectory(prefix="mrad-building-") as folder:
        fresh: Iterator[int] = count()

        def whole() -> None:
            build(encoder, dataset, Path(folder) / str(next(fresh)), options)

        alone, built = paired(bare, whole, runs, warm=False)
    share = ratio(alone, built)
    text = f"{share.median:.1%} ({share.low:.1%} to {share.high:.1%}, {share.runs} runs)"
    rates = [len(dataset) / sorted(times)[len(times) // 2] for times in (alone, built)]
    return [encoder.name, encoder.image_size, str(patch_keys), len(dataset), *rates, text]


def many(counts: Sequence[int]) -> Table:
    """What a small file costs, stage by stage, with a tower so small that it hardly counts."""
    encoder = Geometry.tiny().encoder()
    levels = np.random.default_rng(0).integers(0, 256, (64, 48, 48, 3), np.uint8)
    rows: list[list[Cell]] = []
    for images in counts:
        with tempfile.TemporaryDirectory(prefix="mrad-building-") as scratch:
            root = Path(scratch) / "parts"
            for kind in ("good", "defect"):
                (root / kind).mkdir(parents=True)
            for i in range(images):
                file = root / ("defect" if i % 2 else "good") / f"{i:06}.png"
                Image.fromarray(levels[i % len(levels)]).save(file)
            marks = [time.perf_counter()]
            dataset = read_dataset(root)
            marks.append(time.perf_counter())
            Plan.of(encoder, dataset, BuildOptions(BATCH))
            marks.append(time.perf_counter())
            build(encoder, dataset, Path(scratch) / "bank", BuildOptions(BATCH))
            marks.append(time.perf_counter())
        steps = [1000 * (end - start) / images for start, end in pairwise(marks)]
        rows.append([images, *steps])
    columns = ["files", "list, ms a file", "look at each, ms a file", "build, ms a file"]
    note = "PNG of 48 x 48; the build looks at each file too. A seeded tower of two blocks."
    return Table("Many small files", columns, rows, [note])


def run(quick: bool) -> list[Table]:
    """mrad-mini, and the paper's geometry with seeded weights."""
    mini = Encoder.load("mrad-mini", device="cpu")
    if quick:
        rows = [row(mini, 4, 1, "regions")]
    else:
        paper = Geometry.paper().encoder("bf16")
        rows = [
            row(mini, 256, 5, "regions"),
            row(mini, 256, 3, "all"),
            row(paper, 16, 2, "regions"),
        ]
    columns = ["encoder", "input px", "patch keys", "images", "bare encode, images/s"]
    columns += ["build, images/s", "share of the bare rate, paired"]
    notes = [
        "Bare: batches of pixels that are ready, encoded one after the other. Build: files read, "
        "decoded and resized in threads ahead of the encoder, thumbnails made, shards journalled "
        "and synced, the bank written and its digests taken.",
        "On a CPU the threads that decode take their time from the same cores as the encoder.",
    ]
    return [
        Table("Index building against bare encoding", columns, rows, notes),
        many([50] if quick else [1_000, 10_000]),
    ]

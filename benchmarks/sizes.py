"""What 10 k to 1 M keys cost, and what `approximate` is off by at each size.

At the paper's key width, each size in processes of its own. 10 M keys: `benchmarks/large.py`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks import scale
from benchmarks.features import KEY_WIDTH, Patches, wide_patches
from benchmarks.geometry import Geometry
from benchmarks.retrieval import SHARPNESS
from benchmarks.tables import Cell, Table, middle, ratio, shown

SIZES = (10_000, 100_000, 1_000_000)
UP_TO = 1_000_000
"""Beyond it exact attention over one image's patches takes minutes, and a bank does not fit."""
FEW = (1, 4)
"""Sharpnesses beyond it: sharper queries read most of a file of 20 GB."""


def size_tables(
    real: Patches, grid: int, sizes: tuple[int, ...], geometry: Geometry
) -> list[Table]:
    """Each size in processes of its own, so that memory is that size's."""
    rows: list[list[Cell]] = []
    wrong: list[list[Cell]] = []
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="mrad-sizes-") as folder:
        kept = Path(folder) / "real.npz"
        keys, held = real.split()
        np.savez(kept, keys=keys.keys, labels=keys.labels, held=held.keys)
        for size in sizes:
            path = Path(folder) / str(size)
            built = _alone(scale.build, kept, size, path)
            asked = _alone(scale.ask, kept, size, path, grid**2, size <= UP_TO)
            asks = (256, SHARPNESS) if size <= UP_TO else (64, FEW)
            found = _alone(scale.errors, kept, size, path, *asks)
            shutil.rmtree(path)
            started = None
            if size <= UP_TO:
                _alone(scale.make_bank, kept, size, path, geometry)
                started = _alone(scale.start_bank, path, geometry)
            exact = asked.exact
            if exact is not None:
                ratios[f"exact over approximate, {size} keys"] = ratio(exact, asked.query)
            rows.append(
                [
                    size,
                    f"{shown(built.seconds)} s",
                    f"{built.bytes / 2**20:,.0f} MiB",
                    f"{built.peak / 2**20:,.0f} MiB",
                    f"{asked.start * 1e3:,.0f} ms",
                    None if started is None else f"{shown(started.seconds)} s",
                    None if started is None else f"{started.bytes / 2**20:,.0f} MiB",
                    f"{asked.anonymous / 2**20:,.0f} MiB",
                    f"{asked.mapped / 2**20:,.0f} MiB",
                    middle(asked.query),
                    None if exact is None else middle(exact),
                ]
            )
            cells = [f"{shown(e.largest)}, {e.spearman:.5f} ({e.probed:.0f} read)" for e in found]
            wrong.append([size, *cells, *[None] * (len(SHARPNESS) - len(cells))])
    columns = ["keys", "index built in", "index", "peak of that", "index opened in"]
    columns += ["bank started in", "bank", "resident, own", "resident, mapped"]
    columns += ["one image's patches", "exact"]
    what = (
        f"{len(keys.keys):,} keys are patches of {len(np.unique(keys.image))} real images by a seeded, "
        "untrained tower of the paper's width; larger sizes repeat them with noise of L2 size 0.05."
    )
    notes = [
        f"Keys of width {real.keys.shape[1]}, fp16 inside cells, sharpness 1, {grid**2:,} queries. "
        + what,
        "A bank's start: every digest verified, every key seen to be finite, its index opened; "
        "two keys an image, so half as many entries as keys, and an image key each. Its files are "
        "in the page cache. Neither start counts Python or the encoder.",
        "Resident: after the queries, less what Python and torch take before; mapped pages can be "
        "dropped at any time. Exact: beyond 1 M keys it is not timed.",
    ]
    about = (
        "Largest |delta probability|, Spearman's rho, and cells read key by key of at most 1,024; "
        "256 queries, 64 beyond 1 M keys, are patches of images that give no key. " + what
    )
    by_size = ["keys", *(f"sharpness {s}" for s in SHARPNESS)]
    return [
        Table(f"Sizes: {sizes[0]:,} to {sizes[-1]:,} keys", columns, rows, notes, ratios),
        Table("Error by number of keys", by_size, wrong, [about]),
    ]


def _alone(work, *arguments):  # type: ignore[no-untyped-def]
    """The work in a process of its own, forked from one that has the libraries and nothing else."""
    begin, context = time.perf_counter(), get_context("forkserver")
    context.set_forkserver_preload([scale.__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(work, *arguments).result()
    size = next(a for a in (*arguments, "") if isinstance(a, int | str))
    took = time.perf_counter() - begin
    print(f"  {work.__name__} {size}: {took:.1f} s", file=sys.stderr, flush=True)
    return found


def run(quick: bool) -> list[Table]:
    """See the module."""
    real = wide_patches(700 if quick else 70_000, quick)
    if quick:
        return size_tables(real, 9, (1_000, 3_000), Geometry.tiny())
    return size_tables(real, 37, SIZES, KEY_WIDTH)

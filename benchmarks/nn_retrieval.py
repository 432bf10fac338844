"""The nearest of many good patches: by every method its time, and what it changes.

`python -m benchmarks nn_retrieval [--data FOLDER]`: 50 good parts of a set with masks, every patch of
them a key, other parts asked (mrad-mini); and keys of ViT-L/14's width at 518 px, where there are 1,369
patches an image and a seeded tower stands in for the trained one. Times are paired with the encoder's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mrad_indexer.evaluation.metrics import image_metrics
from torch import Tensor

from benchmarks.features import KEY_WIDTH, Repeated, wide_patches
from benchmarks.geometry import Geometry
from benchmarks.good_sets import Pictures
from benchmarks.tables import DATA, Cell, Table, middle, paired, ratio, timed
from mrad.encoder.encoder import Encoder
from mrad.maps import anomaly_map, top_mean
from mrad.memory.coreset import greedy_coreset
from mrad.retrieval.patch_index import DECISIVE, PatchIndex

SET = "magnetic_tile"
GOOD, JUDGED, RUNS = 50, 30, 7
WIDE_KEYS, WIDE_BLOCKS, BLOCKS = 68_000, 4, 24
Search = Callable[[Tensor], Tensor]
"""Patches of one image [N, W] -> cosine to the nearest key [N]."""


@dataclass(frozen=True)
class Asked:
    """Keys with their parts, and images that ask them."""

    keys: Tensor
    group: Tensor
    queries: Tensor
    """[B, N, W], L2-normalised."""
    labels: list[bool] | None
    side: int


def by_blocks(keys: Tensor, block: int) -> Search:
    """All keys, so many at a time."""

    def search(queries: Tensor) -> Tensor:
        parts = [(queries @ part.T).amax(dim=1) for part in keys.split(block)]
        return torch.stack(parts).amax(dim=0)

    return search


def by_halves(keys: Tensor) -> Search:
    """All keys in bfloat16; the patches that decide again in float32."""
    halves, exact = keys.bfloat16(), by_blocks(keys, 8_192)

    def search(queries: Tensor) -> Tensor:
        asked = queries.bfloat16()
        parts = [(asked @ part.T).amax(dim=1) for part in halves.split(8_192)]
        cosine = torch.stack(parts).amax(dim=0).float()
        rows = cosine.topk(max(1, round(DECISIVE * len(cosine))), largest=False).indices
        cosine[rows] = exact(queries[rows])
        return cosine

    return search


def methods(asked: Asked) -> dict[str, tuple[Search, float]]:
    """By name, with the seconds that it takes to build."""
    found: dict[str, tuple[Search, float]] = {
        "every key, blocks of 8,192": (by_blocks(asked.keys, 8_192), 0.0),
        "every key, blocks of 1,024": (by_blocks(asked.keys, 1_024), 0.0),
        f"bfloat16, {DECISIVE:.0%} again in float32": (by_halves(asked.keys), 0.0),
    }
    made: list[PatchIndex | None] = []
    took = timed(lambda: made.append(PatchIndex.build(asked.keys, asked.group)), 1, warm=False)[0]
    cells = made[0]
    if cells is not None:
        name = f"cells, {cells.probes} of {cells.faiss.nlist}, {DECISIVE:.0%} again (as shipped)"
        found[name] = (lambda q: cells.nearest(q, len(q))[0]), took
    rows: list[np.ndarray] = []
    size = len(asked.keys) // 10
    took = timed(lambda: rows.append(greedy_coreset(asked.keys, size)), 1, warm=False)[0]
    fewer = asked.keys[torch.from_numpy(np.sort(rows[0]))].contiguous()
    found["coreset of a tenth"] = by_blocks(fewer, 8_192), took
    return found


def rows_of(
    what: str, asked: Asked, encode: Callable[[], object], scale: float
) -> list[list[Cell]]:
    """One line for each method. `scale`: encoder's time over that of `encode`."""
    every = methods(asked)
    exact_name = next(iter(every))
    exact = torch.stack([every[exact_name][0](image) for image in asked.queries])
    maps = anomaly_map(1 - exact, asked.side)
    rows: list[list[Cell]] = []
    for name, (search, built) in every.items():
        encoder, ours = paired(encode, partial(search, asked.queries[0]), RUNS)
        share = 1 / (ratio(encoder, ours).median * scale)
        found = torch.stack([search(image) for image in asked.queries])
        other = anomaly_map(1 - found, asked.side)
        moved = (top_mean(other) - top_mean(maps)).abs().max()
        rows.append(
            [
                what,
                name,
                middle(ours),
                f"{100 * share:.1f} %",
                f"{float((found >= exact - 1e-5).double().mean()):.3f}",
                f"{float((other - maps).abs().max()):.4f}",
                f"{float(moved):.4f}",
                _auroc(other, asked.labels),
                f"{built:.1f} s",
            ]
        )
    return rows


def _auroc(maps: Tensor, labels: list[bool] | None) -> Cell:
    if labels is None:
        return None
    found = image_metrics(top_mean(maps).tolist(), labels).auroc
    return None if found is None else f"{found:.4f}"


def mini(data: Path, quick: bool) -> list[list[Cell]]:
    """Keys and images of a real set."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    good, judged = (20, 2) if quick else (GOOD, JUDGED)
    pictures = Pictures.read(encoder, data / SET, good + judged, judged)
    fine, _, others = pictures.drawn(0, good, 0)
    keys = pictures.take(fine).local_query().flatten(0, 1).contiguous()
    group = torch.arange(good).repeat_interleave(encoder.grid**2)
    labels = pictures.labels[others].tolist()
    asked = Asked(keys, group, pictures.take(others).local_query(), labels, encoder.image_size)
    pixels = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    what = f"{len(keys):,} x {encoder.width}, {encoder.grid**2} asked (mrad-mini)"
    return rows_of(what, asked, lambda: encoder.encode_pixels(pixels), 1.0)


def wide(quick: bool) -> list[list[Cell]]:
    """Keys of ViT-L/14's width."""
    geometry = Geometry.tiny() if quick else KEY_WIDTH
    encoder = geometry.encoder()
    cells = encoder.grid**2
    real = wide_patches((2 if quick else 8) * cells, quick).keys
    count = 4_000 if quick else WIDE_KEYS
    keys = F.normalize(torch.from_numpy(Repeated(real[cells:], count).held()), dim=1)
    group = torch.arange(count) // cells
    queries = torch.from_numpy(real[:cells])[None].contiguous()
    asked = Asked(keys, group, queries, None, encoder.image_size)
    pixels = torch.rand(1, 3, encoder.image_size, encoder.image_size)
    what = f"{count:,} x {encoder.width}, {cells} asked (ViT-L/14's width)"
    return rows_of(what, asked, lambda: encoder.encode_pixels(pixels), BLOCKS / WIDE_BLOCKS)


def run(quick: bool, data: Path = DATA) -> list[Table]:
    """One table."""
    if not data.is_dir():
        raise FileNotFoundError(f"{data} holds the sets, and is not there")
    rows = mini(data, quick) + wide(quick)
    columns = [
        "keys", "method", "an image", "of the encoder's time", "recall@1",
        "largest change of the map", "of its top", "AUROC of the top", "built in",
    ]  # fmt: skip
    notes = [
        f"{SET}, {GOOD} good parts as keys, {JUDGED} good and {JUDGED} defective ones asked: recall and "
        "changes are over all of them, against every key. The map is 1 - cosine, before scales.",
        f"The wide tower has {WIDE_BLOCKS} of ViT-L/14's {BLOCKS} blocks and seeded weights; its time is "
        f"taken {BLOCKS // WIDE_BLOCKS}-fold, and one image asks. Its keys are those of some images, "
        "repeated with noise.",
    ]
    return [Table("The nearest good patch among many", columns, rows, notes)]

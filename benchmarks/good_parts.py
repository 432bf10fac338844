"""Memories as people have them: few or many good parts, no, two or ten defects, with and without masks.

`python -m benchmarks good_parts [--data FOLDER]`: every set of the folder (../shared/data), five seeds.
A seed draws the good parts and the defects of the memory; other parts of the set are judged, which
nothing knew. `combined` is the product's head for such memories, the others are each alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from mrad_indexer.training.cache import CachedFeatures
from mrad_indexer.training.data import TrainingSet
from mrad_indexer.training.ft import train_ft
from mrad_indexer.training.loop import History
from mrad_indexer.training.recipe import FEW_IMAGES

from benchmarks.good_sets import SETS, Pictures, present
from benchmarks.tables import DATA, Cell, Table
from mrad.encoder.encoder import Encoder
from mrad.heads import Head, HeadOutput, NoSettings, load_head
from mrad.heads.choose import problem
from mrad.heads.ft import FTHead
from mrad.heads.nn import NNHead
from mrad.maps import anomaly_map, fuse, top_mean
from mrad.memory.bank import MemoryBank

GOOD, BAD, SEEDS = (1, 5, 20, 40), (0, 2, 10), 5
JUDGED = 30
"""Good and defective parts of a set that are judged, of each."""
STEP = 2
"""Every so many of a map's pixels, each way, is counted: maps are smooth."""
FUSION = 0.7
HEADS = ("nn", "tf", "ft", "combined")
Figures = tuple[float, float, float]
"""Image AUROC, pixel AUROC, AUPRO; NaN where a set has no masks."""
Case = tuple[str, int, int, bool]
"""Set, good parts, defects, whether these have masks."""


@dataclass(frozen=True)
class Judged:
    """What a memory is asked about, and how far each of its patches is from the good parts'."""

    pictures: Pictures
    rows: np.ndarray

    def figures(self, output: HeadOutput) -> Figures:
        """Of one head."""
        side = self.pictures.encoder.image_size
        square = anomaly_map(output.patch, side)
        scores = fuse(top_mean(square), output.image, FUSION)
        labels = self.pictures.labels[self.rows]
        auroc = image_metrics(scores.tolist(), labels.tolist()).auroc or float("nan")
        if not self.pictures.masked:
            return auroc, float("nan"), float("nan")
        pixels = PixelScores()
        for values, row in zip(square.numpy(), self.rows):
            pixels.add(values[::STEP, ::STEP], self.pictures.masks[row][::STEP, ::STEP])
        found = pixels.metrics()
        return auroc, found.auroc or float("nan"), found.aupro or float("nan")


class Known:
    """Distances to good parts, found once for all memories that hold the same ones."""

    def __init__(self, head: NNHead, judged: Judged) -> None:
        features = judged.pictures.take(judged.rows)
        self.distance = head.patch_distances(features, None)
        self.left_out, self.spread = head._left_out, head._left_out_spread

    def share(self, head: NNHead) -> NNHead:
        """A head, before `attach`, that does not look for them again."""
        head._left_out, head._left_out_spread = self.left_out, self.spread
        head.patch_distances = lambda features, exclude: self.distance  # type: ignore[method-assign]
        return head


def training_set(pictures: Pictures, rows: np.ndarray, bank: MemoryBank) -> TrainingSet:
    """The memory's own pictures as training reads them."""
    features, count = pictures.take(rows), len(rows)
    place = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    side = pictures.encoder.image_size
    patches = (features.patch.numpy().astype(np.float16),)
    whole = features.class_query()
    return TrainingSet(
        CachedFeatures(whole, patches, place, ((side, side),) * count, 0.0, 0),
        torch.from_numpy(pictures.labels[rows]).long(),
        np.packbits(pictures.masks[rows].reshape(count, -1), axis=1),
        torch.ones(count, dtype=torch.bool),
        side,
        bank,
    )


def trained(pictures: Pictures, rows: np.ndarray, bank: MemoryBank, seed: int) -> Head:
    """FT by the few-images recipe."""
    recipe = FEW_IMAGES.model_copy(update={"seed": seed})
    data = training_set(pictures, rows, bank)
    weights = train_ft(pictures.encoder, data, recipe, History())
    return FTHead(pictures.encoder, NoSettings(), weights.state_dict())


def outcomes(
    name: str, pictures: Pictures, seed: int, quick: bool
) -> Iterator[tuple[Case, str, Figures]]:
    """Every memory of one set that one seed draws."""
    counts, kinds = (GOOD, BAD) if not quick else ((2,), (0, 2))
    fine, broken, others = pictures.drawn(seed, max(counts), max(kinds))
    bad = pictures.labels[others]
    judged = Judged(pictures, np.concatenate([others[~bad][:JUDGED], others[bad][:JUDGED]]))
    asked = pictures.take(judged.rows)
    encoder = pictures.encoder
    for good in counts:
        known: Known | None = None
        for defects in kinds:
            rows = np.concatenate([fine[:good], broken[:defects]])
            by_nn: Figures | None = None  # masks are nothing to it
            for masks in (False, True)[: 1 + (defects > 0 and pictures.masked)]:
                case = name, good, defects, masks
                bank = pictures.bank(rows, masks)
                heads: dict[str, Head] = {}
                if known is None:
                    nn = NNHead(encoder, NNHead.Config())
                    nn.attach(bank)
                    known = Known(nn, judged)
                for head in ("nn", "combined")[by_nn is not None :]:
                    heads[head] = known.share(load_head(head, encoder))  # type: ignore[arg-type]
                if by_nn is not None:
                    yield case, "nn", by_nn
                if masks and problem(bank, "tf") is None:  # small defects may fill no cell
                    heads["tf"] = load_head("tf", encoder)
                    if defects == max(kinds) and good == max(counts):
                        heads["ft"] = trained(pictures, rows, bank, seed)
                for head, one in heads.items():
                    one.attach(bank)
                    figures = judged.figures(one(asked))
                    by_nn = figures if head == "nn" else by_nn
                    yield case, head, figures


def of_set(name: str, data: Path, quick: bool) -> dict[tuple[Case, str], list[Figures]]:
    """Figures of every memory and head, one for each seed."""
    torch.set_num_threads(1)
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    good, bad = (4, 6) if quick else (max(GOOD) + JUDGED, max(BAD) + JUDGED)
    pictures = Pictures.read(encoder, data / name, 2 * good, 2 * bad)
    found: dict[tuple[Case, str], list[Figures]] = {}
    for seed in range(1 if quick else SEEDS):
        for case, head, figures in outcomes(name, pictures, seed, quick):
            found.setdefault((case, head), []).append(figures)
            shown = " ".join(f"{figure:.3f}" for figure in figures)
            print(f"{name}, {_what(case)}, seed {seed}: {head} {shown}", flush=True)
    return found


def run(quick: bool, data: Path = DATA) -> list[Table]:
    """A table of all memories, and one of how `combined` compares with the better single head."""
    names = present(data)
    names += sorted(p.name for p in data.iterdir() if p.is_dir() and p.name not in SETS)
    names = names[: 1 if quick else None]
    found: dict[tuple[Case, str], list[Figures]] = {}
    # A process for each set: nothing is timed here.
    with ProcessPoolExecutor(len(names), get_context("spawn")) as pool:
        for one in pool.map(of_set, names, [data] * len(names), [quick] * len(names)):
            found |= one
    return [_all(found), _compared(found), _means(found)]


def _of(values: list[Figures], which: int) -> str | None:
    column = np.array(values)[:, which]
    if np.isnan(column).all():
        return None
    return f"{column.mean():.3f} ({column.max() - column.min():.3f})"


def _cases(found: dict[tuple[Case, str], list[Figures]]) -> list[Case]:
    return sorted(dict.fromkeys(case for case, _ in found))


def _what(case: Case) -> str:
    _, good, defects, masks = case
    return f"{good} good" + (f", {defects} {'masked' if masks else 'unmasked'}" if defects else "")


def _all(found: dict[tuple[Case, str], list[Figures]]) -> Table:
    rows: list[list[Cell]] = []
    for case in _cases(found):
        for head in HEADS:
            if (case, head) in found:
                values = found[case, head]
                rows.append([case[0], _what(case), head, *(_of(values, i) for i in range(3))])
    notes = [
        f"Means of {SEEDS} seeds and their spread (largest - smallest); up to {JUDGED} good and "
        f"{JUDGED} defective parts judged, none of them in memory. ft: trained on the memory's "
        f"images by the recipe few-images, where {max(GOOD)} good parts and {max(BAD)} masked defects are known. Every second pixel is counted, each way. A head is left out where "
        "the memory cannot serve it.",
    ]
    columns = ["set", "memory", "head", "image AUROC", "pixel AUROC", "AUPRO"]
    return Table("Every memory", columns, rows, notes)


def _compared(found: dict[tuple[Case, str], list[Figures]]) -> Table:
    """Of each kind of memory: how far `combined` lies above the better of `nn` and `tf`."""
    rows: list[list[Cell]] = []
    kinds = list(dict.fromkeys(case[1:] for case in _cases(found)))
    for kind in kinds:
        gaps: list[Figures] = []
        for case in _cases(found):
            if case[1:] != kind:
                continue
            means = {
                head: np.mean(found[case, head], axis=0)
                for head in ("nn", "tf", "combined")
                if (case, head) in found
            }
            single = np.max([means[head] for head in ("nn", "tf") if head in means], axis=0)
            gaps.append(tuple(means["combined"] - single))
        columns_of = [column[~np.isnan(column)] for column in np.array(gaps).T]
        cells = [f"{c.mean():+.3f} ({c.min():+.3f})" if len(c) else None for c in columns_of]
        rows.append([_what(("", *kind)), len(gaps), *cells])
    columns = ["memory", "sets", "image AUROC", "pixel AUROC", "AUPRO"]
    note = "Mean over sets, and the lowest set's, of combined's mean over seeds minus the better's."
    return Table("combined against the better of nn and tf", columns, rows, [note])


def _means(found: dict[tuple[Case, str], list[Figures]]) -> Table:
    """Mean image AUROC over sets."""
    rows: list[list[Cell]] = []
    for kind in dict.fromkeys(case[1:] for case in _cases(found)):
        cells: list[Cell] = []
        for head in HEADS:
            own = [
                np.mean(values, axis=0)[0]
                for (case, name), values in found.items()
                if case[1:] == kind and name == head
            ]
            cells.append(f"{np.mean(own):.3f} ({len(own)})" if own else None)
        rows.append([_what(("", *kind)), *cells])
    note = "In brackets: of how many sets; tf and ft need masks, which two of the sets lack."
    return Table("Mean image AUROC over sets", ["memory", *HEADS], rows, [note])

"""The shipped small CLIP on real images: MRAD-TF, a linear probe, and a hand-made baseline.

`python -m benchmarks mini` prints them for magnetic_tile and deep_pcb (../shared/data), each set
split in half by a seed: the memory (or the probe's training set) is one half, the test the other;
and across: memory of one set, test on the other. Pictures are judged at the encoder's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.tables import DATA, Table
from mrad.encoder.encoder import Encoder
from mrad.images.reader import load_image
from mrad.maps import anomaly_map, fuse, top_mean
from mrad.memory.keys import region_grid
from mrad.retrieval.exact import ExactRetriever

SETS = ("magnetic_tile", "deep_pcb")
FUSION = 0.7
SEEDS = 5
NORMAL_CELLS = 60
"""Of each picture, for the probes: neighbours say the same again."""
COVERED = 0.2
"""Share of a cell from which the probes take it for anomalous: thin defects count too."""
SCALES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Encoded:
    """n pictures of one set: features, hand-made statistics, and what is true of them."""

    image: torch.Tensor  # [n, E], normalised
    patch: torch.Tensor  # [n, N, W], averaged
    statistics: np.ndarray  # [n, N, D]
    normal: torch.Tensor  # [n, N] bool
    anomalous: torch.Tensor  # [n, N] bool
    cover: np.ndarray  # [n, N] share of each cell that is anomalous, 0..1
    masks: np.ndarray  # [n, S, S] bool
    labels: np.ndarray  # [n] bool
    kinds: np.ndarray  # [n] str: of defect; empty for the flawless

    def of(self, chosen: np.ndarray) -> Encoded:
        """Some of the pictures."""
        rows = torch.from_numpy(chosen)
        return Encoded(
            self.image[rows], self.patch[rows], self.statistics[chosen], self.normal[rows],
            self.anomalous[rows], self.cover[chosen], self.masks[chosen], self.labels[chosen],
            self.kinds[chosen],
        )  # fmt: skip


Judge = Callable[[Encoded, Encoded, int], tuple[torch.Tensor, torch.Tensor | None]]
"""memory, test, grid -> patch probabilities [n, N] and image probabilities [n] (None: no such)."""


def encode_set(encoder: Encoder, root: Path, limit: int | None) -> tuple[Encoded, float]:
    """Every picture of a set, and the median seconds of one through decode and encode."""
    records = read_dataset(root).records
    records = records if limit is None else records[:: max(1, len(records) // limit)]
    images, patches, statistics, regions, cover, masks, times = [], [], [], [], [], [], []
    for record in records:
        picture = load_image(record.image)
        start = time.perf_counter()
        pixels = encoder.preprocess(picture)
        features = encoder.encode_pixels(pixels[None])
        times.append(time.perf_counter() - start)
        mask = record.read_mask(picture.size)
        mask = np.zeros(picture.size[::-1], bool) if mask is None else mask
        images.append(features.class_query()[0])
        patches.append(features.patch[0])
        statistics.append(local_statistics(pixels.mean(dim=0).numpy(), encoder.grid))
        regions.append(region_grid(mask, record.anomalous, encoder.image_size, encoder.grid))
        masks.append(resized(mask, encoder.image_size))
        cover.append(_area(mask, encoder.grid).flatten())
    encoded = Encoded(
        torch.stack(images), torch.stack(patches), np.stack(statistics),
        torch.stack([normal for normal, _ in regions]), torch.stack([bad for _, bad in regions]),
        np.stack(cover),
        np.stack(masks), np.array([record.anomalous for record in records]),
        np.array([record.defect if record.anomalous else "" for record in records]),
    )  # fmt: skip
    return encoded, float(np.median(times))


def _area(mask: np.ndarray, side: int) -> np.ndarray:
    cover = torch.from_numpy(mask.astype(np.float32))[None, None]
    return F.interpolate(cover, size=(side, side), mode="area")[0, 0].numpy()


def resized(mask: np.ndarray, side: int) -> np.ndarray:
    """Half covered is anomalous; a defect too thin for that keeps the pixels it covers most."""
    cover = _area(mask, side)
    return np.asarray(cover >= min(0.5, float(cover.max()) / 2) if mask.any() else cover > 1)


def local_statistics(grey: np.ndarray, grid: int) -> np.ndarray:
    """The hand-made baseline's features [N, D]: level, spread, gradients and blobs at three scales,
    of a cell and of its neighbourhood, and against the picture's own mean."""
    planes = [grey]
    for scale in SCALES:
        smooth = ndimage.gaussian_filter(grey, scale)
        gy, gx = np.gradient(smooth)
        planes += [
            np.abs(gx),
            np.abs(gy),
            np.abs(smooth - ndimage.gaussian_filter(grey, 2 * scale)),
        ]
        planes.append(np.sqrt(np.maximum(ndimage.gaussian_filter(grey**2, scale) - smooth**2, 0)))
    stack = torch.from_numpy(np.stack(planes)).float()[None]
    cells = F.adaptive_avg_pool2d(stack, grid)
    peaks = F.adaptive_max_pool2d(stack, grid)
    around = F.avg_pool2d(cells, 5, 1, 2, count_include_pad=False)
    own = torch.cat([cells, peaks, cells - around, cells - cells.mean(dim=(2, 3), keepdim=True)], 1)
    return own[0].flatten(1).T.numpy()


def tf(memory: Encoded, test: Encoded, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MRAD-TF, exactly as the product computes it."""
    keys, labels = [], []
    for label, region in enumerate((memory.normal, memory.anomalous)):
        for patch, cells in zip(memory.patch, region):
            if cells.any():
                keys.append(F.normalize(patch[cells].mean(dim=0), dim=-1))
                labels.append(label)
    local = ExactRetriever(torch.stack(keys), np.array(labels, np.uint8))
    whole = ExactRetriever(memory.image, memory.labels.astype(np.uint8))
    queries = F.normalize(test.patch, dim=-1)
    patch = local.probability(queries.flatten(0, 1)).view(len(queries), -1)
    return patch, whole.probability(test.image)


def probe_on(features: Callable[[Encoded], np.ndarray], model: str) -> Judge:
    """A classifier of single cells, trained on the memory's: what a head can hope for."""

    def judge(
        memory: Encoded, test: Encoded, grid: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, y = _cells(features(memory), memory)
        classifier = _classifier(model).fit(x, y)
        values = features(test)
        flat = classifier.predict_proba(values.reshape(-1, values.shape[-1]))[:, 1]
        return torch.from_numpy(flat.reshape(values.shape[:2])).float(), None

    return judge


def _cells(values: np.ndarray, memory: Encoded) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    chosen, labels = [], []
    for row in range(len(values)):
        good = rng.permutation(np.flatnonzero(memory.cover[row] == 0))[:NORMAL_CELLS]
        bad = np.flatnonzero(memory.cover[row] >= COVERED)
        chosen += [values[row, good], values[row, bad]]
        labels += [np.zeros(len(good)), np.ones(len(bad))]
    return np.concatenate(chosen), np.concatenate(labels)


def _classifier(model: str) -> object:
    if model == "trees":
        return HistGradientBoostingClassifier(class_weight="balanced", random_state=0)
    regression = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300)
    return make_pipeline(StandardScaler(), regression)


METHODS: dict[str, Judge] = {
    "TF": tf,
    "linear probe": probe_on(lambda e: F.normalize(e.patch, dim=-1).numpy(), "linear"),
    "hand-made, trees": probe_on(lambda e: e.statistics, "trees"),
}


def measure(
    judge: Judge, memory: Encoded, test: Encoded, encoder: Encoder
) -> tuple[float, float, float]:
    """Image AUROC, pixel AUROC and AUPRO."""
    return figures(*judge(memory, test, encoder.grid), test, encoder)


def figures(
    patch: torch.Tensor, image: torch.Tensor | None, test: Encoded, encoder: Encoder
) -> tuple[float, float, float]:
    """The same, of what a judge said already."""
    pixels, scores = PixelScores(), []
    for row in range(len(patch)):
        values = anomaly_map(patch[row : row + 1], encoder.image_size)
        top = top_mean(values)
        scores.append(float(top if image is None else fuse(top, image[row : row + 1], FUSION)))
        pixels.add(values[0].clamp(0, 1).numpy(), test.masks[row])
    found, images = pixels.metrics(), image_metrics(scores, list(test.labels))
    return images.auroc or 0.0, found.auroc or 0.0, found.aupro or 0.0


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the defective and half of the flawless pictures, by a seed; and the rest."""
    rng = np.random.default_rng(seed)
    first = []
    for label in (False, True):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first.append(rows[: len(rows) // 2])
    memory = np.sort(np.concatenate(first))
    return memory, np.setdiff1d(np.arange(len(labels)), memory)


def run(quick: bool) -> list[Table]:
    """Every table of the model card."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    found = {
        name: encode_set(encoder, DATA / name, 24 if quick else None)
        for name in SETS
        if (DATA / name).is_dir()
    }
    sets = {name: encoded for name, (encoded, _) in found.items()}
    rows = []
    for method, judge in METHODS.items():
        for memory in sets:
            for test in sets:
                rows.append(
                    [method, memory, test, *_row(judge, sets, memory, test, encoder, quick)]
                )
    notes = [f"an image through preprocessing and encoder, {n}: {1e3 * t:.0f} ms (median)"
             for n, (_, t) in found.items()]  # fmt: skip
    columns = ["method", "memory of", "tested on", "image AUROC", "pixel AUROC", "AUPRO"]
    title = "mrad-mini: five seeds, mean and spread (largest - smallest)"
    return [Table(title, columns, rows, notes)] + [
        _by_kind(name, encoded, encoder, quick)
        for name, encoded in sets.items()
        if len(set(encoded.kinds) - {""}) > 1
    ]


def _row(
    judge: Judge, sets: dict[str, Encoded], memory: str, test: str, encoder: Encoder, quick: bool
) -> list[str]:
    splits = _splits(sets[memory], sets[test], quick)
    return _spread([measure(judge, kept, held, encoder) for kept, held in splits])


def _splits(memory: Encoded, test: Encoded, quick: bool) -> Iterator[tuple[Encoded, Encoded]]:
    """By seed: half of one set as memory, the other half of the test's to be judged."""
    for seed in range(1 if quick else SEEDS):
        yield memory.of(halves(memory.labels, seed)[0]), test.of(halves(test.labels, seed)[1])


def _spread(found: list[tuple[float, ...]]) -> list[str]:
    return [f"{v.mean():.3f} ({v.max() - v.min():.3f})" for v in np.array(found).T]


def _by_kind(name: str, encoded: Encoded, encoder: Encoder, quick: bool) -> Table:
    """One's own memory of every kind; the test's flawless pictures with one kind at a time."""
    kinds = sorted(set(encoded.kinds) - {""})
    rows = []
    for method in ("TF", "linear probe"):
        found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
        for kept, test in _splits(encoded, encoded, quick):
            patch, image = METHODS[method](kept, test, encoder.grid)
            for kind in kinds:
                some = np.flatnonzero((test.kinds == kind) | ~test.labels)
                if test.labels[some].any():
                    whole = None if image is None else image[some]
                    found[kind].append(figures(patch[some], whole, test.of(some), encoder))
        rows += [
            [method, kind, int((encoded.kinds == kind).sum()), *_spread(found[kind])]
            for kind in kinds
            if found[kind]
        ]
    columns = ["method", "defect", "pictures", "image AUROC", "pixel AUROC", "AUPRO"]
    return Table(f"mrad-mini on {name}, its own memory, by kind of defect", columns, rows)

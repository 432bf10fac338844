"""AUPRO by one histogram pass against thresholding 200 times over every region.

    python -m benchmarks aupro [--quick]

Real maps of ../shared/data/magnetic_tile, or of the bundled images where that is not there: half of
the images fill a memory, the others are judged by MRAD-TF. Both times, both values, and the value by
definition (every distinct normal value a threshold).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.metrics import FPR_LIMIT, PixelScores, area
from skimage import measure

from benchmarks.tables import DATA, Table, hardware, middle, paired, ratio, timed
from mrad import Detector, Encoder, MemoryBank

ROOT = Path(__file__).parent.parent
PLACES = (DATA / "magnetic_tile", ROOT / "mrad" / "demo" / "deep_pcb")
Pairs = list[tuple[np.ndarray, np.ndarray]]


def by_histogram(pairs: Pairs) -> float:
    """What `mrad eval` does."""
    scores = PixelScores()
    for values, mask in pairs:
        scores.add(values, mask)
    return scores.metrics().aupro or 0.0


def by_steps(pairs: Pairs) -> float:
    """What evaluation code in the field does: equal steps, every region at each of them."""
    maps, masks = np.stack([v for v, _ in pairs]), np.stack([m for _, m in pairs])
    regions = [measure.regionprops(measure.label(mask)) for mask in masks]
    fpr, pro = [], []
    for threshold in np.linspace(maps.max(), maps.min(), 200):
        binary = maps >= threshold
        overlaps = [
            binary[i][tuple(region.coords.T)].mean()
            for i, parts in enumerate(regions)
            for region in parts
        ]
        pro.append(np.mean(overlaps))
        fpr.append((binary & ~masks).sum() / (~masks).sum())
    return area(np.array([0.0, *fpr]), np.array([0.0, *pro]), FPR_LIMIT)


def by_definition(pairs: Pairs) -> float:
    """Exact: sorted values of each region against sorted normal values, up to the limit."""
    normal = np.sort(np.concatenate([values[~mask] for values, mask in pairs]))
    tail = np.unique(normal[int(len(normal) * (1 - FPR_LIMIT)) - 1 :])[::-1]
    total, count = np.zeros(len(tail)), 0
    for values, mask in pairs:
        for region in measure.regionprops(measure.label(mask)):
            inside = np.sort(values[tuple(region.coords.T)])
            total += 1 - np.searchsorted(inside, tail, side="left") / len(inside)
            count += 1
    fpr = 1 - np.searchsorted(normal, tail, side="left") / len(normal)
    return area(np.append(0, fpr), np.append(0, total / count), FPR_LIMIT)


def real_maps(path: Path, images: int, side: int, encoder: Encoder) -> Pairs:
    """Maps at side x side with their masks, of images that the memory does not hold."""
    records = [r for r in read_dataset(path).records if not r.anomalous or r.mask]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(records))[: 2 * images]
    half = len(order) // 2
    bank = MemoryBank.from_samples(encoder, [records[i].sample() for i in order[:half]])
    detector = Detector(encoder, bank)
    pairs = []
    for i in order[half:]:
        decoded = detector.decode(records[i].image)
        prediction = detector.finish(detector.encode([decoded]), [(side, side)])[0]
        mask = records[i].read_mask(decoded.size)
        assert mask is not None
        rows = np.arange(side) * mask.shape[0] // side
        columns = np.arange(side) * mask.shape[1] // side
        pairs.append((prediction.anomaly_map, mask[np.ix_(rows, columns)]))
    return pairs


def run(quick: bool) -> list[Table]:
    """One table: three ways to the same number."""
    place = next(path for path in PLACES if path.is_dir())
    images, side = (4, 64) if quick else (200, 518)
    pairs = real_maps(place, images, side, Encoder.load("mrad-mini", device="cpu"))
    regions = sum(int(measure.label(mask).max()) for _, mask in pairs)
    values = [function(pairs) for function in (by_histogram, by_steps, by_definition)]
    slow, fast = paired(lambda: by_steps(pairs), lambda: by_histogram(pairs), 1, warm=False)
    exact = timed(lambda: by_definition(pairs), 1, warm=False)
    speed = ratio(slow, fast)
    return [
        Table(
            f"AUPRO of {len(pairs)} maps of {side} x {side}, {regions} regions ({place.name})",
            ["", "AUPRO", "time"],
            [
                ["one histogram pass", f"{values[0]:.5f}", middle(fast)],
                ["200 thresholds over every region", f"{values[1]:.5f}", middle(slow)],
                ["definition, every threshold", f"{values[2]:.5f}", middle(exact)],
            ],
            [
                hardware(),
                f"{speed} faster; off the definition by {abs(values[0] - values[2]):.1e}.",
            ],
            {"AUPRO by histogram against 200 thresholds": speed},
        )
    ]

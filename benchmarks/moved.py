"""Parts that lie elsewhere than the memory's: shifted and turned pictures, against the same unmoved.

`python -m benchmarks moved`: of each set in ../shared/data 40 good parts (`combined`: and ten defects,
with their masks where there are any) fill the memory, and thresholds come from these good parts by 5 %
false alarms. Other parts are judged as they are, then moved; what moves into the picture is its own
mirror image, and masks move with it. A last memory holds its good parts in positions like those.

Standardising all places alike, or each only as far as good parts show that places differ, was tried in the
head on two sets and mends little: what is far is the patches themselves, at borders and in other phases.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.datasets import read_dataset
from mrad_indexer.datasets.records import Record
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from PIL import Image

from benchmarks.good_sets import Move, Pictures, present
from benchmarks.tables import DATA, Cell, Table
from mrad.detector import Detector
from mrad.encoder.encoder import Encoder, Features
from mrad.maps import anomaly_map, fuse, top_mean
from mrad.thresholds.calibrate import thresholds_of
from mrad.thresholds.own import score_own

GOOD, BAD = 40, 10
ASIDE, DEFECTS = 30, 20
"""Good and defective parts of a set that are judged, of each."""
SEEDS = 2
TARGET, FUSION, STEP = 0.05, 0.7, 4
SIDE = 448
"""Shorter side that pictures are brought to before they are moved, twice the encoder's input."""
ALL_POSITIONS = "nn, memory in all positions"
SHIFTS, TURNS = (0.02, 0.05, 0.10), (3, 10, 90, 180)


def moves() -> dict[str, Move]:
    """Name -> what is done to a picture or a mask, once it is `smaller`."""
    found: dict[str, Move] = {"unmoved": smaller}
    for share in SHIFTS:
        found[f"shifted {100 * share:.0f} %"] = lambda image, how, by=share: shifted(
            smaller(image, how), by
        )
    for angle in TURNS:
        found[f"turned {angle}°"] = lambda image, how, by=angle: turned(
            smaller(image, how), by, how
        )
    return found


def shifted(image: Image.Image, share: float) -> Image.Image:
    """To the right and down by a share of the sides."""
    pixels = np.asarray(image)
    down, right = (round(share * side) for side in pixels.shape[:2])
    room = [(down, 0), (right, 0)] + [(0, 0)] * (pixels.ndim - 2)
    padded = np.pad(pixels, room, "reflect")
    return Image.fromarray(padded[: pixels.shape[0], : pixels.shape[1]])


def turned(image: Image.Image, angle: float, how: Image.Resampling) -> Image.Image:
    """About its middle, within the same frame."""
    pixels = np.asarray(image)
    far = max(pixels.shape[:2])  # what any turn may bring in
    room = [(far, far), (far, far)] + [(0, 0)] * (pixels.ndim - 2)
    around = Image.fromarray(np.pad(pixels, room, "reflect")).rotate(angle, how)
    return around.crop((far, far, far + image.width, far + image.height))


def smaller(image: Image.Image, how: Image.Resampling) -> Image.Image:
    """Its shorter side `SIDE`, or as it is."""
    share = SIDE / min(image.size)
    width, height = (round(share * side) for side in image.size)
    return image if share >= 1 else image.resize((width, height), how)


def figures(pictures: Pictures, detector: Detector, threshold: float) -> tuple[float, float, float]:
    """Image AUROC, pixel AUROC (NaN without masks), share of good parts that are flagged."""
    output = detector.head(pictures.features)
    square = anomaly_map(output.patch, detector.encoder.image_size)
    scores = fuse(top_mean(square), output.image, FUSION).numpy()
    auroc = image_metrics(scores.tolist(), pictures.labels.tolist()).auroc or float("nan")
    pixel = float("nan")
    if pictures.masked:
        pixels = PixelScores()
        for values, mask in zip(square.numpy(), pictures.masks):
            pixels.add(values[::STEP, ::STEP], mask[::STEP, ::STEP])
        pixel = pixels.metrics().auroc or pixel
    return auroc, pixel, float((scores[~pictures.labels] >= threshold).mean())


def memories(
    pictures: Pictures, elsewhere: Pictures, seeds: int, good: int, bad: int
) -> Iterator[tuple[str, Detector]]:
    """`nn` and `combined` on the parts that each seed draws; `nn` on the same `elsewhere`."""
    for seed in range(seeds):
        fine, broken, _ = pictures.drawn(seed, good, bad)
        yield "nn", Detector(pictures.encoder, pictures.bank(fine, False), "nn")
        yield ALL_POSITIONS, Detector(pictures.encoder, elsewhere.bank(fine, False), "nn")
        rows = np.concatenate([fine, broken])
        yield (
            "combined",
            Detector(pictures.encoder, pictures.bank(rows, pictures.masked), "combined"),
        )


def apart(folder: Path, good: int, bad: int, aside: int, defects: int) -> tuple[list[Record], ...]:
    """Records to judge, and records for memories, the same at each call."""
    records, rng = read_dataset(folder).records, np.random.default_rng(0)
    judged, kept = list[Record](), list[Record]()
    for anomalous, most, room in ((False, aside, good), (True, defects, bad)):
        own = [record for record in records if record.anomalous == anomalous]
        order = [own[i] for i in rng.permutation(len(own))]
        count = min(most, max(0, len(own) - room))
        judged += order[:count]
        kept += order[count : count + 2 * room]
    return judged, kept


def run(quick: bool) -> list[Table]:
    """A table for each head: rows are moves, columns sets."""
    encoder = Encoder.load("mrad-mini", device="cpu", precision="fp32")
    names = present(DATA)[: 1 if quick else None]
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    heads = ("nn", ALL_POSITIONS, "combined")
    chosen = dict(list(moves().items())[: 2 if quick else None])
    sizes = (6, 3, 4, 4) if quick else (GOOD, BAD, ASIDE, DEFECTS)
    for name in names:
        judged, kept = apart(DATA / name, *sizes)
        pictures, elsewhere = Pictures.of(encoder, kept), somewhere(encoder, kept, chosen)
        asked = {move: Pictures.of(encoder, judged, what) for move, what in chosen.items()}
        for head, detector in memories(pictures, elsewhere, 1 if quick else SEEDS, *sizes[:2]):
            scored = score_own(detector)
            cut = thresholds_of(detector, scored, "fpr", TARGET).image.value
            for move, one in asked.items():
                with torch.inference_mode():
                    measured = figures(one, detector, cut)
                found.setdefault((head, move, name), []).append(measured)
                print(name, head, move, *measured, file=sys.stderr, flush=True)
    return [table(head, names, list(chosen), found) for head in heads]


def somewhere(encoder: Encoder, records: list[Record], chosen: dict[str, Move]) -> Pictures:
    """Each picture moved in one of the ways, in turn."""
    ways = list(chosen.values())
    parts = [Pictures.of(encoder, [r], ways[i % len(ways)]) for i, r in enumerate(records)]
    labels = np.array([record.anomalous for record in records])
    features = Features.cat([part.features for part in parts])
    masks = np.concatenate([part.masks for part in parts])
    return Pictures(encoder, features, labels, masks, all(part.masked for part in parts))


def table(
    head: str,
    names: list[str],
    chosen: list[str],
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]],
) -> Table:
    """One head's figures, and their means over sets."""
    rows: list[list[Cell]] = []
    for move in chosen:
        cells = np.array([np.mean(found[head, move, name], axis=0) for name in names])
        with np.errstate(invalid="ignore"):
            mean = np.nanmean(cells, axis=0)
        rows.append([move, *(_cell(values) for values in (*cells, mean))])
    notes = [
        f"Each cell: image AUROC / pixel AUROC / good parts flagged, means of {SEEDS} memories of {GOOD} "
        f"good parts{f' and {BAD} defects' if head == 'combined' else ''}; thresholds asked for "
        f"{100 * TARGET:.0f} % from the memory's good parts. At most {ASIDE} good and {DEFECTS} defective parts "
        "of a set are judged.",
        "Shifts go right and down; turns about the middle. What comes into the picture is its mirror image.",
    ]
    return Table(head, ["parts", *names, "mean"], rows, notes)


def _cell(values: np.ndarray) -> str:
    image, pixel, alarms = values
    shown = "-" if np.isnan(pixel) else f"{pixel:.3f}"
    return f"{image:.3f} / {shown} / {100 * alarms:.0f} %"

"""Large pictures in tiles against resizing alone: what is found, where, and what it costs.

    python -m benchmarks.tiles [--quick]

Mosaics of DeepPCB boards (one board many times, as on a panel; one of them defective, or none), BSData
and magnetic tiles, from ../shared/data; memories of other boards and parts of the same sets, heads `tf`
and `nn` on mrad-mini. No figure says anything about another product.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mrad_indexer.datasets import Record, read_dataset
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from PIL import Image
from skimage import measure

from benchmarks.tables import Table, hardware, main
from mrad import Detector, Encoder, MemoryBank, Prediction
from mrad.encoder.stream import prepare_tile
from mrad.images.layout import PLAIN, Layout
from mrad.images.tiles import Tiling
from mrad.maps import at_shape
from mrad.types import BoolArray

NAME = "tiles"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
BOARD = 640
PRODUCT = 5
"""Characters of a board's name that say which product it is."""
PANELS = ((3, 2), (4, 3), (6, 5), (7, 7))
"""Boards across and down: 2.5, 4.9, 12.3 and 20.1 megapixels."""
HEADS = ("tf", "nn")
MOST_NN = 30
"""Boards of a panel, at most, that `nn` judges: it compares every patch with all that it remembers."""
CLASSES = ("below 1 patch", "1 to 4 patches", "above 4 patches")


@dataclass
class Tally:
    """Figures of pictures as they go by."""

    scores: list[float] = field(default_factory=list)
    truth: list[bool] = field(default_factory=list)
    hits: int = 0
    seconds: float = 0.0
    pixels: PixelScores = field(default_factory=PixelScores)
    by_size: dict[str, PixelScores] = field(
        default_factory=lambda: {name: PixelScores() for name in CLASSES}
    )

    def add(self, found: Prediction, mask: BoolArray, patch: float) -> None:
        """One picture; `patch`: pixels of it that a patch covers when it is looked at whole."""
        if found.anomaly_map is None or found.peak_box is None:
            raise AssertionError("predict gives maps and peaks unless told otherwise")
        self.scores.append(found.score)
        self.truth.append(bool(mask.any()))
        left, top, right, bottom = found.peak_box
        self.hits += bool(mask[top:bottom, left:right].any())
        values = found.anomaly_map
        small = at_shape(mask, values.shape)
        self.pixels.add(values, small)
        labelled = measure.label(small, connectivity=2)
        scale = mask.size / small.size
        kinds = {r.label: kind_of(r.area * scale / patch**2) for r in measure.regionprops(labelled)}
        for name, scores in self.by_size.items():
            own = np.isin(labelled, [label for label, kind in kinds.items() if kind == name])
            scores.add(values, own, own | ~small)

    def cells(self) -> list[str]:
        """Image AUROC, pixel AUROC, AUPRO."""
        pixel = self.pixels.metrics()
        image = image_metrics(self.scores, self.truth).auroc
        return [share(image), share(pixel.auroc), share(pixel.aupro)]


def kind_of(patches: float) -> str:
    """By the area of a defect, in patches of the encoder's input."""
    return CLASSES[0] if patches < 1 else CLASSES[1] if patches <= 4 else CLASSES[2]


def share(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def panel(boards: Sequence[Image.Image], across: int) -> np.ndarray:
    """Boards side by side, uint8 [H, W]."""
    rows = [
        np.hstack([np.asarray(b) for b in boards[i : i + across]])
        for i in range(0, len(boards), across)
    ]
    return np.vstack(rows)


def opened(record: Record) -> Image.Image:
    """A board in grey."""
    return Image.open(record.image).convert("L")


def mosaics(encoder: Encoder, pictures: int, panels: Sequence[tuple[int, int]]) -> Table:
    """Panels of one board, as good as it is or with one defective copy, by tiles and by resizing."""
    records = read_dataset(DATA / "deep_pcb").records
    rng = np.random.default_rng(0)
    bad = [r for r in records if r.anomalous and r.mask]
    order = [bad[i] for i in rng.permutation(len(bad))]
    memory, asked = order[: len(bad) // 2], order[len(bad) // 2 :]
    good = [r for r in records if not r.anomalous and r.split == "test"]
    same = {r.image.stem[:PRODUCT]: r for r in good}  # a good board of the same product
    pairs = [(r, same[r.image.stem[:PRODUCT]]) for r in asked if r.image.stem[:PRODUCT] in same]
    samples = [r.sample() for r in records if not r.anomalous and r.split == "train"]
    samples += [r.sample() for r in memory]
    layout = Layout(Tiling(BOARD))
    bank = MemoryBank.from_samples(encoder, samples, layout=layout)  # a board is one tile
    detectors = {head: Detector(encoder, bank, head) for head in HEADS}
    rows: list[list[str]] = []
    for head, detector in detectors.items():
        single = Tally()
        for record in [*good, *asked]:
            mask = record.read_mask((BOARD, BOARD))
            found = detector.with_layout(PLAIN).predict([record.image])[0]
            single.add(found, mask, BOARD / encoder.grid)
        rows.append(["single boards", head, "–", *single.cells(), "–", "–", "–", "–"])
    for across, down in panels:
        looks = {
            ("tf", "tiles"): detectors["tf"],
            ("tf", "resized"): detectors["tf"].with_layout(PLAIN),
        }
        if across * down <= MOST_NN:
            looks["nn", "tiles"] = detectors["nn"]
        tallies = {look: Tally() for look in looks}
        for number in range(2 * pictures):
            record, base = pairs[number % len(pairs)]
            place = int(rng.integers(across * down))
            boards = [opened(base)] * (across * down)
            mask = np.zeros((down * BOARD, across * BOARD), dtype=bool)
            if number >= pictures:
                boards[place] = opened(record)
                x, y = place % across * BOARD, place // across * BOARD
                mask[y : y + BOARD, x : x + BOARD] = record.read_mask((BOARD, BOARD))
            picture = panel(boards, across)
            patch = max(mask.shape) / encoder.grid
            for look, detector in looks.items():
                start = time.perf_counter()
                (found,) = detector.predict([picture], map_pixels=4_000_000)
                tallies[look].seconds += time.perf_counter() - start
                tallies[look].add(found, mask, patch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        share_of_bare = rate(encoder, detectors["tf"], picture, 1 if pictures == 1 else 5)
        for look, tally in tallies.items():
            seconds = tally.seconds / (2 * pictures)
            rows.append([
                f"{across * down} boards, {mask.size / 1e6:.1f} MP", *look, *tally.cells(),
                f"{tally.hits} of {pictures}", f"{seconds:.2f} s",
                f"{100 * share_of_bare:.0f} %" if look == ("tf", "tiles") else "–", f"{peak:.0f} MB",
            ])  # fmt: skip
    return Table(
        f"Panels of DeepPCB boards: {pictures} without and {pictures} with one defective board",
        ["picture", "head", "looked at", "image AUROC", "pixel AUROC", "AUPRO", "peak on the defect",
         "a picture", "of the encoder's bare rate", "most memory so far"],
        rows,
        [
            hardware(),
            "Tiles of 640 px, 25 % overlap, not aligned with the boards. The memory holds single boards. "
            "The bare rate is that of the encoder on the same tiles, prepared before: the median of five "
            "runs of both in turn. Maps of 4 MP.",
        ],
    )  # fmt: skip


def rate(encoder: Encoder, detector: Detector, picture: np.ndarray, times: int) -> float:
    """Share of the encoder's bare rate at which a picture is judged: both in turn, for others may be
    at work on the machine; the median."""
    found = []
    for _ in range(times):
        bare = bare_seconds(encoder, detector, picture)
        start = time.perf_counter()
        detector.predict([picture], map_pixels=4_000_000)
        found.append(bare / (time.perf_counter() - start))
    return float(np.median(found))


def bare_seconds(encoder: Encoder, detector: Detector, picture: np.ndarray) -> float:
    """Seconds of the encoder alone for all tiles of a picture, in batches of 8."""
    decoded = detector.decode(picture)
    pixels = [prepare_tile(encoder, decoded.image, t) for t in decoded.places.tiles[:24]]
    start = time.perf_counter()
    for first in range(0, len(pixels), 8):
        encoder.encode_prepared(pixels[first : first + 8])
    return (time.perf_counter() - start) * len(decoded.places.tiles) / len(pixels)


def real(encoder: Encoder, name: str, side: int, pictures: int) -> tuple[list[list[str]], str]:
    """A set with and without tiles: half of its defects are remembered, the others judged."""
    records = read_dataset(DATA / name).records
    rng = np.random.default_rng(0)
    bad = [r for r in records if r.anomalous and r.mask]
    bad = [bad[i] for i in rng.permutation(len(bad))][: 2 * pictures]
    half = len(bad) // 2
    known = [r for r in records if not r.anomalous and r.split == "train"][:pictures] + bad[:half]
    asked = [r for r in records if not r.anomalous and r.split == "test"][:pictures] + bad[half:]
    rows = []
    for looked, layout in (("whole", PLAIN), (f"tiles of {side} px", Layout(Tiling(side)))):
        bank = MemoryBank.from_samples(encoder, [r.sample() for r in known], layout=layout)
        for head in HEADS:
            detector, tally = Detector(encoder, bank, head), Tally()
            for record in asked:
                (found,) = detector.predict([record.image])
                mask = record.read_mask(found.size)
                tally.add(found, mask, max(found.size) / encoder.grid)
            by_size = [share(scores.metrics().aupro) for scores in tally.by_size.values()]
            rows.append([name, head, looked, *tally.cells(), *by_size])
    return rows, f"{name}: {len(known)} remembered, {len(asked)} judged"


def run(quick: bool) -> list[Table]:
    """Mosaics; real sets by the size of defects."""
    if not DATA.is_dir():
        raise SystemExit("the larger image sets (../shared/data) are not beside this checkout")
    encoder = Encoder.load("mrad-mini", device="cpu")
    pictures = 1 if quick else 12
    panels = PANELS[:1] if quick else PANELS
    rows, notes = [], []
    for name, side in (("bsdata", 460), ("magnetic_tile", 200)):
        found, note = real(encoder, name, side, 2 if quick else 40)
        rows += found
        notes.append(note)
    return [
        mosaics(encoder, pictures, panels),
        Table(
            "Real sets, and AUPRO by the defects' area in patches of the picture seen whole",
            ["set", "head", "looked at", "image AUROC", "pixel AUROC", "AUPRO", *CLASSES],
            rows,
            [hardware(), "; ".join(notes)],
        ),
    ]


if __name__ == "__main__":
    main(run)

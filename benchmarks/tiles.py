"""Large pictures in tiles against resizing alone: what is found, where, and what it costs.

    python -m benchmarks tiles [--quick]

Panels of DeepPCB boards (`benchmarks.panels`), BSData and magnetic tiles, from ../shared/data; memories of other
boards and parts of the same sets, heads `tf`, `nn` and `combined` on mrad-mini. No figure says anything about another
product.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mrad_indexer.datasets import read_dataset
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from skimage import measure

from benchmarks.panels import BOARD, Boards, Known, remembering, together
from benchmarks.tables import DATA, Table, hardware
from mrad import Detector, Encoder, MemoryBank, Prediction
from mrad.encoder.stream import prepare_tile
from mrad.images.layout import PLAIN, Layout
from mrad.images.tiles import Tiling
from mrad.maps import at_shape
from mrad.types import BoolArray

HEADS = ("tf", "nn", "combined")
PANEL = (6, 5)
"""Boards across and down of the panels that are judged: 12.3 megapixels."""
TIMED = ((4, 3), (6, 5), (7, 7))
"""The same of those whose seconds are taken: 4.9, 12.3 and 20.1 megapixels."""
TIMED_TILE = 512
"""Side of the tiles whose seconds are taken, pixels."""
KNOWN = 10
"""Good panels that a memory of panels holds, and as many with a defective board."""
CLOSELY = 0.25
MAP = 500_000
"""Pixels of the maps that figures are taken from."""
CLASSES = ("below 1 patch", "1 to 4 patches", "above 4 patches")


@dataclass
class Tally:
    """Figures of pictures as they go by."""

    scores: list[float] = field(default_factory=list)
    truth: list[bool] = field(default_factory=list)
    hits: int = 0
    pixels: PixelScores = field(default_factory=PixelScores)
    by_size: dict[str, PixelScores] = field(
        default_factory=lambda: {name: PixelScores() for name in CLASSES}
    )

    def add(self, found: Prediction, mask: BoolArray, patch: float | None = None) -> None:
        """One picture; `patch`: pixels of it that a patch covers when it is looked at whole, for AUPRO by
        the size of defects."""
        if found.anomaly_map is None or found.peak_box is None:
            raise AssertionError("predict gives maps and peaks unless told otherwise")
        self.scores.append(found.score)
        self.truth.append(bool(mask.any()))
        left, top, right, bottom = found.peak_box
        self.hits += bool(mask[top:bottom, left:right].any())
        values = found.anomaly_map
        small = at_shape(mask, values.shape)
        self.pixels.add(values, small)
        if patch is None:
            return
        labelled = measure.label(small, connectivity=2)
        scale = mask.size / small.size
        kinds = {r.label: kind_of(r.area * scale / patch**2) for r in measure.regionprops(labelled)}
        for name, scores in self.by_size.items():
            own = np.isin(labelled, [label for label, kind in kinds.items() if kind == name])
            scores.add(values, own, own | ~small)

    def cells(self) -> list[float]:
        """Image AUROC, pixel AUROC, AUPRO."""
        pixel = self.pixels.metrics()
        image = image_metrics(self.scores, self.truth).auroc
        return [float("nan") if v is None else v for v in (image, pixel.auroc, pixel.aupro)]


def kind_of(patches: float) -> str:
    """By the area of a defect, in patches of the encoder's input."""
    return CLASSES[0] if patches < 1 else CLASSES[1] if patches <= 4 else CLASSES[2]


def share(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None or value != value else f"{value:.3f}"


def mosaics(encoder: Encoder, boards: Boards, pictures: int) -> Table:
    """Panels of one board, as good as it is or with one defective copy, by several memories and layouts."""
    across, down = PANEL
    singles = {head: Detector(encoder, boards.bank, head) for head in HEADS}
    tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    plain = {head: d.with_layout(PLAIN) for head, d in singles.items()}
    for pair in boards.pairs[:pictures]:
        for record in pair:
            for head, detector in plain.items():
                mask = record.read_mask((BOARD, BOARD))
                (found,) = detector.predict([record.image])
                tallies["single boards, whole", head].add(found, mask)
    bank = boards.panel_bank(encoder, across, down, KNOWN, Tiling(BOARD))
    panels = {head: Detector(encoder, bank, head) for head in HEADS}
    for own in (singles, panels):
        remembering(list(own.values()))
    boardwise = {n: d.with_layout(Layout(Tiling(BOARD, 0.0))) for n, d in singles.items()}
    closely = panels["tf"].with_layout(Layout(Tiling(BOARD, closely=CLOSELY)))
    in_tiles = {("tiles, memory of single boards", head): d for head, d in singles.items()}
    in_tiles |= {("tiles, memory of panels", head): d for head, d in panels.items()}
    by_board = {
        ("tiles that are boards, memory of single boards", head): d for head, d in boardwise.items()
    }
    others = {
        (f"{100 * CLOSELY:.0f} % of tiles closely, memory of panels", "tf"): closely,
        ("resized, memory of single boards", "tf"): plain["tf"],
    }
    known = Known()
    for picture, mask in boards.panels(across, down, pictures):
        for detectors in (in_tiles, by_board):
            for look, one in together(detectors, picture, known, MAP).items():
                tallies[look].add(one, mask)
        for look, detector in others.items():
            tallies[look].add(detector.predict([picture], map_pixels=MAP)[0], mask)
    rows = [[*look, *map(share, own.cells()), str(own.hits)] for look, own in tallies.items()]
    count = len(boards.pairs[:pictures])
    return Table(
        f"Panels of {across * down} DeepPCB boards, {across * down * BOARD**2 / 1e6:.1f} MP",
        ["looked at", "head", "image AUROC", "pixel AUROC", "AUPRO", f"peak on the defect, of {count}"],
        rows,
        [
            hardware(),
            f"{count} panels without a defect and {count} with one defective board, of the same boards: each is one board "
            f"{across * down} times. No memory holds these boards. That of single boards holds {len(boards.known)} good and "
            f"{len(boards.defects)} defective ones; that of panels {KNOWN} good panels and {KNOWN} with one masked defective "
            f"board, each of {len(boards.known) // KNOWN} good boards in an order by chance. Tiles of {BOARD} px, 25 % overlap, not aligned with the boards, but for those "
            f"that are boards (no overlap). Maps of {MAP / 1e6:.1f} MP.",
        ],
    )  # fmt: skip


def times(encoder: Encoder, boards: Boards, sizes: Sequence[tuple[int, int]], runs: int) -> Table:
    """Seconds of a core by the picture's size, and of the encoder alone on the same tiles, in turn."""
    rows = []
    for across, down, colour in [*((*size, False) for size in sizes), (*sizes[-1], True)]:
        ((picture, _), *_) = boards.panels(across, down, 1)
        size = picture.size / 1e6
        picture = np.dstack([picture, 255 - picture, picture]) if colour else picture
        for head in HEADS:
            detector = Detector(encoder, boards.bank, head).with_layout(Layout(Tiling(TIMED_TILE)))
            taken, rates = [], []
            for _ in range(runs):
                bare, start = bare_seconds(encoder, detector, picture), now()
                detector.predict([picture], map_pixels=MAP)
                taken.append(now() - start)
                rates.append(bare / taken[-1])
            seconds = np.median(taken, axis=0)[0]
            share_of_core, by_clock = np.median(rates, axis=0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append([
                f"{size:.1f} MP{', colour' if colour else ''}", head, f"{seconds:.2f} s", f"{1000 * seconds / size:.0f} ms",
                f"{100 * share_of_core:.0f} %", f"{100 * by_clock:.0f} %", f"{peak:.0f} MB",
            ])  # fmt: skip
    return Table(
        "Time by size: panels in tiles, memory of single boards",
        [
            "picture", "head", "a picture, of a core", "a megapixel", "of the encoder's bare rate", "by the clock",
            "most memory so far",
        ],
        rows,
        [
            hardware(),
            f"Tiles of {TIMED_TILE} px, 25 % overlap; panels are grey but for the last. Processor time, all cores together: "
            f"median of {runs}. The bare rate is that of the encoder on the same tiles, prepared before, in turn. Cutting and "
            "judging run in threads of their own: `by the clock`, where another core has nothing else to do.",
        ],
    )  # fmt: skip


def now() -> np.ndarray:
    """Seconds of processor time, and by the clock."""
    return np.array([time.process_time(), time.perf_counter()])


def bare_seconds(encoder: Encoder, detector: Detector, picture: np.ndarray) -> np.ndarray:
    """Seconds of the encoder alone for all tiles of a picture, in batches of 8, as `now`."""
    decoded = detector.decode(picture)
    pixels = [prepare_tile(encoder, decoded.image, t) for t in decoded.places.tiles[:24]]
    start = now()
    for first in range(0, len(pixels), 8):
        encoder.encode_prepared(pixels[first : first + 8])
    return (now() - start) * len(decoded.places.tiles) / len(pixels)


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
            rows.append([name, head, looked, *map(share, tally.cells()), *by_size])
    return rows, f"{name}: {len(known)} remembered, {len(asked)} judged"


def run(quick: bool) -> list[Table]:
    """Panels; time by size; real sets by the size of defects."""
    if not DATA.is_dir():
        raise SystemExit("the larger image sets (../shared/data) are not beside this checkout")
    encoder = Encoder.load("mrad-mini", device="cpu")
    boards = Boards.of(encoder)
    pictures = 2 if quick else len(boards.pairs)
    # First: what else is measured here needs more memory.
    timed = times(encoder, boards, TIMED[: 1 if quick else None], 1 if quick else 5)
    panels = mosaics(encoder, boards, pictures)
    rows, notes = [], []
    for name, side in (("bsdata", 460), ("magnetic_tile", 200)):
        found, note = real(encoder, name, side, 2 if quick else 40)
        rows += found
        notes.append(note)
    return [
        panels,
        timed,
        Table(
            "Real sets, and AUPRO by the defects' area in patches of the picture seen whole",
            ["set", "head", "looked at", "image AUROC", "pixel AUROC", "AUPRO", *CLASSES],
            rows,
            [hardware(), "; ".join(notes)],
        ),
    ]

"""Large pictures in tiles against resizing alone: what is found, where, and what it costs.

    python -m benchmarks.tiles [--quick]

Mosaics of DeepPCB boards (one board many times, as on a panel; one of them defective, or none), BSData
and magnetic tiles, from ../shared/data; memories of other boards and parts of the same sets, heads `tf`,
`nn` and `combined` on mrad-mini. No figure says anything about another product.
"""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import median

import numpy as np
import torch
from mrad_indexer.datasets import Record, read_dataset
from mrad_indexer.evaluation.metrics import PixelScores, image_metrics
from PIL import Image
from skimage import measure

from benchmarks.tables import Cell, Table, hardware, main
from mrad import Detector, Encoder, MemoryBank, Prediction
from mrad.encoder.encoder import Features
from mrad.encoder.stream import prepare_tile
from mrad.images.layout import PLAIN, Layout, Tile
from mrad.images.tiles import Tiling
from mrad.maps import at_shape
from mrad.opening import Decoded
from mrad.types import BoolArray

NAME = "tiles"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
BOARD = 640
PRODUCT = 5
"""Characters of a board's name that say which product it is."""
PANELS = ((3, 2), (4, 3), (6, 5), (7, 7))
"""Boards across and down: 2.5, 4.9, 12.3 and 20.1 megapixels."""
HEADS = ("tf", "nn", "combined")
ALIGNED = 30
"""Boards of the panel that is also looked at in tiles that are boards."""
FEW, MOST_KNOWN = 12, 200
"""Boards that panels of the largest size are made of; tiles whose features are kept."""
CLOSELY = 0.25
MAP = 2_000_000
"""Pixels of the maps that figures are taken from."""
TIMED = 3  # pictures of each size whose seconds are taken
CLASSES = ("below 1 patch", "1 to 4 patches", "above 4 patches")


@dataclass
class Tally:
    """Figures of pictures as they go by."""

    scores: list[float] = field(default_factory=list)
    truth: list[bool] = field(default_factory=list)
    hits: int = 0
    seconds: list[float] = field(default_factory=list)
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


@dataclass(frozen=True)
class Boards:
    """DeepPCB: what is remembered, what is asked, and a good board of each product asked."""

    bank: MemoryBank
    good: list[Record]
    asked: list[Record]
    pairs: list[tuple[Record, Record]]

    @classmethod
    def of(cls, encoder: Encoder) -> Boards:
        """Half of the defective boards are remembered; a board is one tile."""
        records = read_dataset(DATA / "deep_pcb").records
        bad = [r for r in records if r.anomalous and r.mask]
        order = [bad[i] for i in np.random.default_rng(0).permutation(len(bad))]
        memory, asked = order[: len(bad) // 2], order[len(bad) // 2 :]
        good = [r for r in records if not r.anomalous and r.split == "test"]
        same = {r.image.stem[:PRODUCT]: r for r in good}
        pairs = [(r, same[r.image.stem[:PRODUCT]]) for r in asked if r.image.stem[:PRODUCT] in same]
        samples = [r.sample() for r in records if not r.anomalous and r.split == "train"]
        samples += [r.sample() for r in memory]
        bank = MemoryBank.from_samples(encoder, samples, layout=Layout(Tiling(BOARD)))
        return cls(bank, good, asked, pairs)

    def panels(
        self, across: int, down: int, pictures: int
    ) -> Iterator[tuple[np.ndarray, BoolArray]]:
        """Panels and their masks: of each board one as good as it is, then one with a defective copy."""
        rng = np.random.default_rng(across)
        for record, base in self.pairs[:pictures]:
            place = int(rng.integers(across * down))
            boards = [opened(base)] * (across * down)
            mask = np.zeros((down * BOARD, across * BOARD), dtype=bool)
            yield panel(boards, across), mask
            boards[place] = opened(record)
            x, y = place % across * BOARD, place // across * BOARD
            mask = mask.copy()
            mask[y : y + BOARD, x : x + BOARD] = record.read_mask((BOARD, BOARD))
            yield panel(boards, across), mask


def features_of(
    encoder: Encoder, decoded: Decoded, tiles: Sequence[Tile], known: dict[bytes, Features]
) -> Features:
    """Features of tiles, `known` by their pixels: most tiles of a panel of one board are the same."""
    cut = [decoded.image.crop(tile.box) for tile in tiles]
    names = [sha256(image.tobytes()).digest() for image in cut]
    if len(known) > MOST_KNOWN:
        known.clear()
    if fresh := {name: n for n, name in enumerate(names) if name not in known}:
        features = encoder.encode_prepared([encoder.prepare(cut[n]) for n in fresh.values()])
        known |= {name: features[row : row + 1] for row, name in enumerate(fresh)}
    own = [known[name] for name in names]
    return Features(
        torch.cat([one.class_feature for one in own]),
        torch.cat([one.patch for one in own]),
        torch.cat([one.local_raw() for one in own]),
    )


def together(
    detectors: dict[str, Detector], picture: np.ndarray, known: dict[bytes, Features]
) -> dict[str, Prediction]:
    """What each head says of a picture whose tiles are encoded once for all."""
    first = next(iter(detectors.values()))
    decoded = first.decode(picture)
    canvases = {name: d.canvas(decoded.places) for name, d in detectors.items()}
    tiles = decoded.places.tiles
    for start in range(0, len(tiles), 8):
        batch = tiles[start : start + 8]
        features = features_of(first.encoder, decoded, batch, known)
        for name, detector in detectors.items():
            detector.draw([(canvases[name], tile) for tile in batch], features)
    return {name: d.conclude(canvases[name], map_pixels=MAP) for name, d in detectors.items()}


def mosaics(
    encoder: Encoder, boards: Boards, pictures: int, panels: Sequence[tuple[int, int]]
) -> Table:
    """Panels of one board, as good as it is or with one defective copy, by tiles and by resizing."""
    detectors = {head: Detector(encoder, boards.bank, head) for head in HEADS}
    rows: list[list[str]] = []
    for head, detector in detectors.items():
        single, plain = Tally(), detector.with_layout(PLAIN)
        for record in [*boards.good, *boards.asked]:
            single.add(plain.predict([record.image])[0], record.read_mask((BOARD, BOARD)))
        rows.append(["single boards", head, "–", *single.cells(), "–", "–", "–", "–"])
    tf, known = detectors["tf"], dict[bytes, Features]()
    for across, down in panels:
        count = min(pictures, FEW) if (across, down) == PANELS[-1] else pictures
        exact = {n: d.with_layout(Layout(Tiling(BOARD, 0.0))) for n, d in detectors.items()}
        coarse = boards.bank.layout.looked_at_closely(CLOSELY)
        looks: dict[str, dict[str, Detector]] = {
            "tiles": detectors,
            f"{100 * CLOSELY:.0f} % of tiles closely": {"tf": tf.with_layout(coarse)},
            "resized": {"tf": tf.with_layout(PLAIN)},
        }
        if across * down == ALIGNED:
            looks["tiles that are boards"] = exact
        tallies = {(look, head): Tally() for look, own in looks.items() for head in own}
        for number, (picture, mask) in enumerate(boards.panels(across, down, count)):
            for look, own in looks.items():
                if look == "tiles" or own is exact:
                    found = together(own, picture, known)
                else:
                    found = {n: d.predict([picture], map_pixels=MAP)[0] for n, d in own.items()}
                for head, detector in own.items():
                    tallies[look, head].add(found[head], mask)
                    if number < TIMED:
                        start = time.process_time()
                        detector.predict([picture], map_pixels=MAP)
                        tallies[look, head].seconds.append(time.process_time() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        times = 1 if pictures == 1 else 5
        bare = {n: rate(encoder, d, picture, times) for n, d in detectors.items()}
        for (look, head), tally in tallies.items():
            rows.append([
                f"{across * down} boards, {mask.size / 1e6:.1f} MP", head, look, *tally.cells(),
                f"{tally.hits} of {count}", f"{median(tally.seconds):.2f} s",
                f"{100 * bare[head]:.0f} %" if look == "tiles" else "–", f"{peak:.0f} MB",
            ])  # fmt: skip
    return Table(
        "Panels of DeepPCB boards: as many without as with one defective board",
        ["picture", "head", "looked at", "image AUROC", "pixel AUROC", "AUPRO", "peak on the defect",
         "a picture, of a core", "of the encoder's bare rate", "most memory so far"],
        rows,
        [
            hardware(),
            "Tiles of 640 px, 25 % overlap, not aligned with the boards, but for the rows that say so. The "
            "memory holds single boards: a tile that shows the border of two is like none of it, which "
            f"`nn` and `combined` hold against it. Maps of {MAP / 1e6:.0f} MP. Seconds of processor time, all cores "
            f"together: median of {TIMED} pictures. The bare rate is that of the encoder on the same tiles, prepared "
            "before, by processor time: the median of five runs of both in turn. With and without a defect, panels are "
            "of the same boards.",
        ],
    )  # fmt: skip


def rate(encoder: Encoder, detector: Detector, picture: np.ndarray, times: int) -> float:
    """Share of the encoder's bare rate at which a picture is judged, by processor time: both in turn, for
    others may be at work on the machine; the median."""
    found = []
    for _ in range(times):
        bare = bare_seconds(encoder, detector, picture)
        start = time.process_time()
        detector.predict([picture], map_pixels=MAP)
        found.append(bare / (time.process_time() - start))
    return float(np.median(found))


def bare_seconds(encoder: Encoder, detector: Detector, picture: np.ndarray) -> float:
    """Seconds of the encoder alone for all tiles of a picture, in batches of 8."""
    decoded = detector.decode(picture)
    pixels = [prepare_tile(encoder, decoded.image, t) for t in decoded.places.tiles[:24]]
    start = time.process_time()
    for first in range(0, len(pixels), 8):
        encoder.encode_prepared(pixels[first : first + 8])
    return (time.process_time() - start) * len(decoded.places.tiles) / len(pixels)


def stages(encoder: Encoder, boards: Boards, across: int, side: int, runs: int) -> Table:
    """Where the time of a large JPEG goes, by seconds of a core: what else runs counts for nothing."""
    ((picture, _), *_) = boards.panels(across, across, 1)
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=92)
    rows: list[list[Cell]] = []
    for head in HEADS:
        detector = Detector(encoder, boards.bank, head).with_layout(Layout(Tiling(side)))
        taken: dict[str, list[float]] = {}

        def spent(
            name: str, work: Callable[[], object], taken: dict[str, list[float]] = taken
        ) -> None:
            start = time.thread_time()
            work()
            taken.setdefault(name, []).append(time.thread_time() - start)

        for _ in range(runs):
            decoded = detector.decode(buffer.getvalue())
            tiles = decoded.places.tiles
            canvas = detector.canvas(decoded.places)
            spent("decode", lambda d=detector: d.decode(buffer.getvalue()))
            pixels = [prepare_tile(encoder, decoded.image, tile) for tile in tiles]
            spent(
                "cut", lambda d=decoded: [prepare_tile(encoder, d.image, t) for t in d.places.tiles]
            )
            groups = [range(n, min(n + 8, len(tiles))) for n in range(0, len(tiles), 8)]
            batches = [encoder.encode_prepared([pixels[i] for i in own]) for own in groups]
            spent(
                "encode",
                lambda p=pixels, g=groups: [
                    encoder.encode_prepared([p[i] for i in own]) for own in g
                ],
            )
            placed = [
                replace(f, places=tuple(decoded.places.place_of(tiles[i].number) for i in own))
                for f, own in zip(batches, groups)
            ]
            spent("retrieve", lambda d=detector, p=placed: [d.head(features) for features in p])
            spent(
                "draw",
                lambda d=detector, c=canvas, t=tiles, g=groups, b=batches: [
                    d.draw([(c, t[i]) for i in own], f) for own, f in zip(g, b)
                ],
            )
            spent("map", lambda d=detector, c=canvas: d.conclude(c, map_pixels=MAP))
        t = {name: median(values) for name, values in taken.items()}
        scores = max(0.0, t["draw"] - t["retrieve"])
        beside = t["cut"] + t["draw"]
        own = t["decode"] + t["encode"] + t["map"]
        rows.append([
            head, t["decode"], t["cut"], t["encode"], t["retrieve"], scores, t["map"],
            f"{100 * t['encode'] / max(own, beside):.0f} %",
            f"{100 * t['encode'] / (own + beside):.0f} %",
        ])  # fmt: skip
    return Table(
        f"Where the time of a JPEG of {picture.size / 1e6:.0f} MP in tiles of {side} px goes: seconds of a core",
        ["head", "decode", "cut and scale", "encode", "retrieve", "score tiles", "map",
         "of the encoder's rate, another core beside", "of the encoder's rate, one core"],
        rows,
        [
            hardware(),
            f"{len(tiles)} tiles; {len(boards.bank.local):,} patches remembered; median of {runs}. Cutting and judging run in "
            "threads of their own, beside the encoder: with a core for them they cost nothing.",
        ],
    )  # fmt: skip


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
    """Mosaics; where time goes; real sets by the size of defects."""
    if not DATA.is_dir():
        raise SystemExit("the larger image sets (../shared/data) are not beside this checkout")
    encoder = Encoder.load("mrad-mini", device="cpu")
    boards = Boards.of(encoder)
    pictures = 1 if quick else len(boards.pairs)
    panels = mosaics(encoder, boards, pictures, PANELS[:1] if quick else PANELS)
    times = stages(encoder, boards, 2 if quick else 7, 512, 1 if quick else 3)
    rows, notes = [], []
    for name, side in (("bsdata", 460), ("magnetic_tile", 200)):
        found, note = real(encoder, name, side, 2 if quick else 40)
        rows += found
        notes.append(note)
    return [
        panels,
        times,
        Table(
            "Real sets, and AUPRO by the defects' area in patches of the picture seen whole",
            ["set", "head", "looked at", "image AUROC", "pixel AUROC", "AUPRO", *CLASSES],
            rows,
            [hardware(), "; ".join(notes)],
        ),
    ]


if __name__ == "__main__":
    main(run)

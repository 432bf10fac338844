"""docs/images/concept-*.png: pictures of docs/method.md, from the bundled boards.

python docs/pictures.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mrad_indexer.datasets import Dataset, read_dataset
from mrad_indexer.demo import Shown
from mrad_indexer.demo import run as run_demo
from mrad_indexer.scoring.judge import Judge
from mrad_indexer.scoring.pictures import draw
from PIL import Image, ImageDraw, ImageFont

from mrad import Encoder, MemoryBank, demo
from mrad.images.reader import load_image
from mrad.maps import anomaly_map, overlay
from mrad.memory.keys import region_grid
from mrad.types import Evidence, FloatArray

OUT = Path(__file__).parent / "images"
SIDE, GAP, LINE, SIZE = 264, 10, 20, 14
COLOURS = {"normal": (38, 166, 91), "anomalous": (229, 57, 53)}
Panel = tuple[str, str, Image.Image]
"""Two lines of caption, and what stands above them."""


def strip(name: str, rows: Sequence[Sequence[Panel]]) -> None:
    """Rows of panels, in few colours, so that the file stays small."""
    width = GAP + max(map(len, rows)) * (SIDE + GAP)
    step = SIDE + 2 * LINE + GAP
    sheet = Image.new("RGB", (width, GAP + step * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for row, panels in enumerate(rows):
        for column, (title, note, picture) in enumerate(panels):
            x, y = GAP + column * (SIDE + GAP), GAP + row * step
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (x, y))
            pen.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), None, (176, 190, 197))
            pen.text((x, y + SIDE + 2), title, "black", font)
            pen.text((x, y + SIDE + 2 + LINE - 3), note, (84, 110, 122), font)
    path = OUT / f"concept-{name}.png"
    sheet.quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def cells(values: FloatArray, size: tuple[int, int]) -> FloatArray:
    """A grid at an image's size (width, height), its cells still to be seen."""
    large = Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
    return np.asarray(large, np.float32)


def tinted(image: Image.Image, grids: dict[str, np.ndarray]) -> Image.Image:
    """The image, with the cells of each bool [g, g] in its class's colour."""
    pixels = np.asarray(image, np.float32).copy()
    for name, grid in grids.items():
        inside = cells(grid.astype(np.float32), image.size) > 0
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(COLOURS[name])
    return Image.fromarray(pixels.astype(np.uint8))


def boxed(image: Image.Image, cell: tuple[int, int], grid: int) -> Image.Image:
    """The image with a square around one cell (row, column)."""
    marked, (width, height) = image.copy(), image.size
    top, left = cell[0] * height / grid, cell[1] * width / grid
    box = (left - 3, top - 3, left + width / grid + 3, top + height / grid + 3)
    ImageDraw.Draw(marked).rectangle(box, outline=COLOURS["anomalous"], width=3)
    return marked


def shown_best(found: Sequence[Shown]) -> Shown:
    """The defective query of the highest score whose map peaks on the defect."""
    for item in sorted(found, key=lambda item: -item.prediction.score):
        mask, values = item.record.read_mask(item.prediction.size), item.prediction.anomaly_map
        if mask is not None and values is not None and mask.flat[int(values.argmax())]:
            return item
    raise SystemExit("no map peaks on a defect: look at make demo before you draw pictures")


def map_picture(item: Shown, judge: Judge) -> None:
    """Image -> grid of patch probabilities -> map -> what lies above the threshold."""
    detector, image = judge.detector, load_image(item.record.image)
    features = detector.encode([detector.decode(image)])
    with torch.inference_mode():
        patch = detector.head(features).patch
    side = detector.encoder.grid
    grid = cells(patch.view(side, side).numpy(), image.size)
    low, high = float(patch.min()), float(patch.max())
    smooth = anomaly_map(patch, detector.encoder.image_size)[0].numpy()
    plain = Image.fromarray(smooth).resize(image.size)
    values, threshold = item.prediction.anomaly_map, judge.pixel_threshold
    if values is None:
        raise AssertionError("predict gives maps unless told otherwise")
    verdict = f"score {item.prediction.score:.4f}, {item.verdict or 'no threshold'}"
    above = "no threshold" if threshold is None else f"outlined: above {threshold:.4f}"
    strip("map", [[
        ("1. the image", f"{image.width} x {image.height} pixels", image),
        ("2. patch probabilities", f"{side} x {side} cells, {low:.3f} to {high:.3f}",
         overlay(image, grid, low=low, high=high, alpha=0.6)),
        ("3. the map", "spread to pixels, smoothed",
         overlay(image, np.asarray(plain), low=low, high=high, alpha=0.6)),
        (f"4. {above}", verdict, draw(image, values, judge)),
    ]])  # fmt: skip


def region_picture(memory: Dataset, encoder: Encoder) -> None:
    """What of a labelled image becomes a key."""
    side, best = encoder.grid, -1
    for candidate in (record for record in memory.records if record.mask is not None):
        picture = load_image(candidate.image)
        truth = candidate.read_mask(picture.size)
        found = region_grid(truth, True, encoder.image_size, side)
        count = int((~(found[0] | found[1])).sum())
        if truth is not None and found[1].any() and count > best:  # the one with the longest border
            record, image, mask, best = candidate, picture, truth, count
            cut = [part.view(side, side).numpy() for part in found]
    regions = dict(zip(COLOURS, cut))
    strip("regions", [[
        ("1. a defect of the memory", record.source[-34:], image),
        ("2. its mask", "need not be exact", Image.fromarray(mask)),
        ("3. cells that count", f"{best} cells on the border do not", tinted(image, regions)),
        ("4. two keys", "mean of the green, mean of the red cells",
         tinted(Image.new("RGB", image.size, "white"), regions)),
    ]])  # fmt: skip


def evidence_picture(item: Shown, judge: Judge, memory: Dataset) -> None:
    """The nearest keys of the whole image, and of its most anomalous patch."""
    encoder, image = judge.detector.encoder, load_image(item.record.image)
    found = judge.detector.predict([image], evidence=3)[0].evidence
    whole, local = ([e for e in found if e.level == level] for level in ("image", "patch"))
    records = {record.source: record for record in memory.records}

    def panel(evidence: Evidence) -> Panel:
        record = records[evidence.source]
        picture = load_image(record.image)
        label = "anomalous" if evidence.label else "normal"
        if evidence.level == "patch":
            mask = record.read_mask(picture.size)
            regions = region_grid(mask, record.anomalous, encoder.image_size, encoder.grid)
            chosen = regions[evidence.label].view(encoder.grid, encoder.grid).numpy()
            picture = tinted(picture, {label: chosen})
        frame = ImageDraw.Draw(picture := picture.copy())
        frame.rectangle((0, 0, picture.width - 1, picture.height - 1), None, COLOURS[label], 5)
        return f"{label}, cosine {evidence.similarity:.3f}", record.source[-34:], picture

    cell = local[0].query_cell
    if cell is None:
        raise AssertionError("evidence at patch level names the cell that asked")
    asked = boxed(image, cell, encoder.grid)
    strip("evidence", [
        [("the whole image asks", item.record.source[-34:], image), *map(panel, whole)],
        [("its hottest cell asks", f"row {cell[0]}, column {cell[1]}", asked), *map(panel, local)],
    ])  # fmt: skip


def main() -> None:
    """The demo's memory and queries, then the pictures."""
    encoder = Encoder.load(device="cpu")
    memory = read_dataset(demo.FOLDER / "memory")
    with tempfile.TemporaryDirectory() as folder:
        found = [pair.both for pair in run_demo(encoder, Path(folder), say=print)]
        bank = MemoryBank.load(Path(folder) / "bank")
    judge = Judge.of(encoder, bank)
    item = shown_best(found)
    map_picture(item, judge)
    region_picture(memory, encoder)
    evidence_picture(item, judge, memory)


if __name__ == "__main__":
    main()

"""JPEG decoded smaller, by the decoder's own scaling, before it is squeezed to the encoder's input.

    python -m benchmarks scaled [--quick]

Boards of DeepPCB and panels of them, judged whole, from full pixels and from those that the decoder gives at
1/2, 1/4 and 1/8 while no side falls below the encoder's: what that saves, and how far it moves scores.
"""

from __future__ import annotations

import io
import time
from statistics import median

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.panels import Boards
from benchmarks.tables import Cell, Table, hardware
from benchmarks.tiles import HEADS
from mrad import Detector, Encoder
from mrad.images.layout import PLAIN

ACROSS = (1, 3, 7)
"""Boards across and down: 0.4, 3.7 and 20.1 megapixels."""


def jpeg(pixels: np.ndarray) -> bytes:
    """As a camera would give it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def run(quick: bool) -> list[Table]:
    """A row for each size of picture, scale and head."""
    encoder = Encoder.load("mrad-mini", device="cpu")
    boards = Boards.of(encoder)
    detectors = {h: Detector(encoder, boards.bank, h).with_layout(PLAIN) for h in HEADS}
    rows: list[list[Cell]] = []
    for across in ACROSS[: 1 if quick else None]:
        pictures = [p for p, _ in boards.panels(across, across, 1 if quick else 8)]
        files = [jpeg(picture) for picture in pictures]
        full = {h: [d.predict([f])[0].score for f in files] for h, d in detectors.items()}
        _, whole = decoded(files, across * 640)
        for factor in (2, 4, 8):
            side = across * 640 // factor
            if side < encoder.image_size:
                continue
            images, taken = decoded(files, side)
            for head, detector in detectors.items():
                found = [detector.predict([image])[0].score for image in images]
                moved = np.abs(np.array(found) - full[head])
                rows.append([
                    f"{(across * 640) ** 2 / 1e6:.1f} MP", f"1/{factor}", head,
                    f"{1000 * whole:.1f} ms", f"{1000 * taken:.1f} ms",
                    f"{moved.mean():.4f}", f"{moved.max():.4f}", f"{np.std(full[head]):.4f}",
                ])  # fmt: skip
    return [
        Table(
            "Scores of JPEG pictures judged whole, decoded smaller",
            ["picture", "scale", "head", "decoded in full", "decoded so", "score moved by, mean",
             "at most", "spread of scores"],
            rows,
            [hardware(), f"Median processor time; {len(files)} pictures of each size, half with a defect."],
        )
    ]  # fmt: skip


def decoded(files: list[bytes], side: int) -> tuple[list[np.ndarray], float]:
    """Pictures with sides of at least `side`, and the median processor time of one."""
    images, seconds = [], []
    for data in files:
        start = time.process_time()
        images.append(simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side))
        seconds.append(time.process_time() - start)
    return images, median(seconds)

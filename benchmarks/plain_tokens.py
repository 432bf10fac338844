"""`nn` on the paper's features and on the plain tokens of the same encoder.

`python -m benchmarks plain_tokens`: of each set in ../shared/data 40 good parts fill the memory, and other
parts are judged. The image level is each encoder's own class feature.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.good_parts import Judged
from benchmarks.good_sets import Pictures, present
from benchmarks.tables import DATA, Cell, Table
from mrad.encoder.encoder import Encoder
from mrad.heads.nn import NNHead

ENCODERS = ("mrad-mini", "mrad-mini:plain")
GOOD, JUDGED, SEEDS = 40, 30, 3


def run(quick: bool) -> list[Table]:
    """A row for each set, and the mean."""
    names = present(DATA)[: 1 if quick else None]
    good, judged = (4, 4) if quick else (GOOD, JUDGED)
    found = {name: [of_set(kind, name, good, judged) for kind in ENCODERS] for name in names}
    found["mean"] = [np.nanmean([found[n][i] for n in names], axis=0) for i in range(len(ENCODERS))]
    rows: list[list[Cell]] = [
        [name, *(" / ".join("-" if np.isnan(v) else f"{v:.3f}" for v in one) for one in figures)]
        for name, figures in found.items()
    ]
    note = (
        f"Image AUROC / pixel AUROC / AUPRO, means of {SEEDS} memories of {GOOD} good parts; at most {JUDGED} "
        "good and as many defective parts judged."
    )
    return [Table("nn", ["set", *ENCODERS], rows, [note])]


def of_set(kind: str, name: str, good: int, judged: int) -> np.ndarray:
    """Means over seeds."""
    encoder = Encoder.load(kind, device="cpu", precision="fp32")
    pictures = Pictures.read(encoder, DATA / name, good + judged, judged)
    figures = []
    for seed in range(SEEDS):
        fine, _, others = pictures.drawn(seed, good, 0)
        one = Judged(pictures, others)
        head = NNHead(encoder, NNHead.Config())
        with torch.inference_mode():
            head.attach(pictures.bank(fine, False))
            figures.append(one.figures(head(pictures.take(one.rows))))
        print(kind, name, seed, figures[-1], file=sys.stderr, flush=True)
    return np.array(np.mean(figures, axis=0))

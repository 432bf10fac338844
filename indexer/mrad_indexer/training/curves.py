"""Loss curves: a table for machines, a picture for people."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from mrad.files import atomic_write_bytes
from mrad_indexer.training.loop import History

MEAN_OF = 15
"""Steps of the running mean."""


def write_csv(history: History, path: Path) -> None:
    """A row per step: stage, epoch, step, learning rate, every term."""
    terms = sorted({name for step in history.steps for name in step.losses} - {"total"})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["stage", "epoch", "step", "learning_rate", *terms, "total"])
    for step in history.steps:
        values = [step.losses.get(name, "") for name in (*terms, "total")]
        writer.writerow([step.stage, step.epoch, step.step, step.learning_rate, *values])
    atomic_write_bytes(path, buffer.getvalue().encode())


def write_png(history: History, path: Path) -> None:
    """A panel per stage: every term, faint by step, and its running mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(step.stage for step in history.steps))
    figure = Figure(figsize=(6 * len(stages), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages):
        steps = [step for step in history.steps if step.stage == stage]
        for colour, name in enumerate(steps[0].losses):
            points = [(step.step, step.losses[name]) for step in steps if name in step.losses]
            places, values = [p for p, _ in points], [v for _, v in points]
            panel.plot(places, values, color=f"C{colour}", alpha=0.25, linewidth=0.8)
            means = [
                fmean(values[max(0, end - MEAN_OF) : end]) for end in range(1, len(values) + 1)
            ]
            panel.plot(places, means, color=f"C{colour}", label=name)
        for step, following in pairwise(steps):
            if following.epoch != step.epoch:
                panel.axvline(following.step, color="0.85", linewidth=0.8, zorder=0)
        panel.set(title=f"{stage.upper()}: loss", xlabel="step", ylim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    atomic_write_bytes(path, buffer.getvalue())

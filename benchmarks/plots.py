"""Plots of what grows, beside the tables of benchmarks/results/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import Table

PLOTS = (
    ("sizes", "Sizes", "keys", "one image's patches", "rate-by-keys.png"),
    ("growth", "Rate by batch, mrad-mini", "batch", "images/s", "rate-by-batch.png"),
    ("growth", "Rate by input size", "input px", "images/s", "rate-by-size.png"),
)
"""Benchmark, start of the table's title, columns of x and y, file."""
WIDE = 4
"""Between the largest and the smallest rate, from which equal steps would hide the small ones."""


def number(cell: Any) -> float:
    """Images a second from a cell: a rate as it is, a time (`12.3 ms (11-14)`) inverted."""
    if isinstance(cell, int | float):
        return float(cell)
    found = re.match(r"([\d.e+-]+) (ms|s)\b", cell)
    if found is None:
        raise ValueError(f"no time in {cell!r}")
    return 1 / (float(found[1]) * (1e-3 if found[2] == "ms" else 1))


def draw(table: Table, x: str, y: str, path: Path) -> None:
    """One line, small enough to commit; rates that differ much stand on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = table.columns
    points = [(row[columns.index(x)], number(row[columns.index(y)])) for row in table.rows]
    figure, axes = plt.subplots(figsize=(5, 3), dpi=90, layout="constrained")
    axes.plot(*zip(*points), marker="o")
    axes.set(xscale="log", xlabel=x, ylabel="images/s", title=table.title)
    rates = [p[1] for p in points]
    if max(rates) > WIDE * min(rates):
        axes.set_yscale("log")
        axes.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
    else:
        axes.set_ylim(0, 1.15 * max(rates))
    axes.set_xticks([p[0] for p in points], [f"{p[0]:,}" for p in points])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw_all(name: str, tables: Sequence[Table], folder: Path) -> list[str]:
    """Draw what is to be drawn of a benchmark; the files' names."""
    drawn = []
    for benchmark, title, x, y, file in PLOTS:
        for table in tables:
            if benchmark == name and table.title.startswith(title):
                draw(table, x, y, folder / file)
                drawn.append(file)
    return drawn

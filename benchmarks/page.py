"""docs/performance.md from results: every table between its marks, and the pictures of growth.

    python -m benchmarks.page [benchmark-results]

A table of benchmark NAME goes between `<!-- NAME -->` and `<!-- /NAME -->`; what has no result keeps
what stands there. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import OUT
from benchmarks.tables import Table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
PLOTS = (
    ("sizes", "Sizes", "keys", "one image's patches", "rate-by-keys.png"),
    ("growth", "Rate by batch, mrad-mini", "batch", "images/s", "rate-by-batch.png"),
    ("growth", "Rate by input size", "input px", "images/s", "rate-by-size.png"),
)
"""Benchmark, start of the table's title, columns of x and y, file."""
WIDE = 4
"""Between the largest and the smallest rate, from which equal steps would hide the small ones."""


def fill(page: str, name: str, facts: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """`page` with the tables and pictures of one benchmark between its marks.

    Raises ValueError where the page has no such marks: figures would be lost without a word.
    """
    tables = [
        Table(t["title"], t["columns"], t["rows"], t["notes"]).markdown() for t in facts["tables"]
    ]
    tables += [f"![{Path(file).stem.replace('-', ' ')}](images/{file})\n" for file in pictures]
    body = f"Taken on: {facts['hardware']}.\n\n" + "\n".join(tables).strip()
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    filled, places = marked.subn(lambda found: f"{found[1]}\n{body}\n\n{found[2]}", page)
    if not places:
        raise ValueError(
            f"the page has no place for {name}: put <!-- {name} --> and <!-- /{name} --> there"
        )
    return filled


def number(cell: Any) -> float:
    """Images a second from a cell: a rate as it is, a time (`12.3 ms (11-14)`) inverted."""
    if isinstance(cell, int | float):
        return float(cell)
    found = re.match(r"([\d.e+-]+) (ms|s)\b", cell)
    if found is None:
        raise ValueError(f"no time in {cell!r}")
    return 1 / (float(found[1]) * (1e-3 if found[2] == "ms" else 1))


def draw(table: dict[str, Any], x: str, y: str, path: Path) -> None:
    """One line, small enough to commit; rates that differ much stand on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = table["columns"]
    points = [(row[columns.index(x)], number(row[columns.index(y)])) for row in table["rows"]]
    figure, axes = plt.subplots(figsize=(5, 3), dpi=90, layout="constrained")
    axes.plot(*zip(*points), marker="o")
    axes.set(xscale="log", xlabel=x, ylabel="images/s", title=table["title"])
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


def pictures(name: str, tables: Sequence[dict[str, Any]]) -> list[str]:
    """Draw what is to be drawn of a benchmark; the files' names."""
    drawn = []
    for benchmark, title, x, y, file in PLOTS:
        for table in tables:
            if benchmark == name and table["title"].startswith(title):
                draw(table, x, y, IMAGES / file)
                drawn.append(file)
    return drawn


def main() -> None:
    """Fill the page with whatever the folder holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=OUT)
    options = parser.parse_args()
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(options.results.glob("*.json"))
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, facts in results.items():
        if facts["quick"]:
            raise SystemExit(f"{name} is a quick run: its figures mean nothing")
        page = fill(page, name, facts, pictures(name, facts["tables"]))
    PAGE.write_text(page, encoding="utf-8")
    print(f"{', '.join(results) or 'nothing'} written into {PAGE}")


if __name__ == "__main__":
    main()

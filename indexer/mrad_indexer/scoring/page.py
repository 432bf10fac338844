"""One page about a run: counts, the spread of scores, the worst images, the errors. No network."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from mrad_indexer.evaluation.sheets import data_uri, shrink
from mrad_indexer.journal import Row

BINS = 40
SHOWN = 60
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}table{border-collapse:collapse}td,th{text-align:left;padding:.3rem .6rem;
border-bottom:1px solid #8884}svg{width:100%;height:9rem}rect{fill:#2b6cb0}line{stroke:#d33;
stroke-width:2}.number{text-align:right;font-variant-numeric:tabular-nums}.cards{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(11rem,1fr))}figure{margin:0}img{width:100%}
figcaption{font-size:.85rem;overflow-wrap:anywhere}.anomalous{color:#d33;font-weight:600}"""


@dataclass
class Summary:
    """What the page and the closing lines need, gathered in one pass over any number of rows."""

    total: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[Row] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    threshold: float | None = None
    worst: list[tuple[float, int, Row]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Summary:
        """Read all rows once."""
        summary = cls()
        for row in rows:
            summary.total += 1
            summary._add(row)
        summary.worst.sort(reverse=True)
        return summary

    def _add(self, row: Row) -> None:
        if row["status"] != "ok":
            self.errors[row["code"]] += 1
            if len(self.failed) < SHOWN:
                self.failed.append(row)
            return
        self.verdicts[row["verdict"] or "no verdict"] += 1
        self.scores.append(row["score"])
        self.threshold = row["threshold"]
        push = heapq.heappush if len(self.worst) < SHOWN else heapq.heappushpop
        push(self.worst, (row["score"], -self.total, row))

    def html(self, folder: Path, about: dict[str, object]) -> str:
        """The page; overlays below `folder` are put into it, small. `about`: facts of the run."""
        counts = {"images": self.total, **self.verdicts, "errors": self.errors.total()}
        facts = "".join(
            f"<tr><th>{escape(str(name))}<td>{escape(str(value))}"
            for name, value in {**counts, **about}.items()
        )
        cards = "".join(_card(row, folder) for _, _, row in self.worst)
        parts = [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width'>",
            f"<title>Scores of {self.total:,} images</title><style>{STYLE}</style>",
            f"<h1>Scores of {self.total:,} images</h1><table>{facts}</table>",
        ]
        if self.scores:
            heading = "Highest scores" if len(self.scores) > SHOWN else "By score"
            parts += [f"<h2>How the scores spread</h2>{self._histogram()}"]
            parts += [f"<h2>{heading}</h2><div class=cards>{cards}</div>"]
        if self.failed:
            failed = "".join(
                f"<tr><td>{escape(row['name'])}<td>{escape(row['code'])}<td>{escape(row['error'])}"
                for row in self.failed
            )
            parts.append(f"<h2>Errors</h2><table><tr><th>image<th>code<th>what{failed}</table>")
            if self.errors.total() > SHOWN:
                parts.append(f"<p>The first {SHOWN} are shown; the table of results has all.")
        return "\n".join(parts)

    def _histogram(self) -> str:
        """Between the lowest and the highest score: raw ones of a train-free head lie close."""
        ends = [*self.scores, *([] if self.threshold is None else [self.threshold])]
        low, high = min(ends), max(ends)
        span = (high - low) or 1.0
        bins = [0] * BINS
        for score in self.scores:
            bins[min(BINS - 1, math.floor((score - low) / span * BINS))] += 1
        top = max(bins)
        bars = "".join(
            f"<rect x={i * 10} y={100 - 100 * n / top:.2f} width=9 height={100 * n / top:.2f}>"
            f"<title>{low + i * span / BINS:.5f} and above: {n:,}</title></rect>"
            for i, n in enumerate(bins)
        )
        cut = ""
        if self.threshold is not None:
            at = (self.threshold - low) / span * BINS * 10
            cut = f"<line x1={at:.1f} x2={at:.1f} y1=0 y2=100><title>threshold</title></line>"
        return (
            f"<svg viewBox='0 0 {BINS * 10} 100' preserveAspectRatio=none role=img "
            f"aria-label='Histogram of scores'>{bars}{cut}</svg>"
            f"<p>{low:.5f} on the left, {high:.5f} on the right; the highest bar holds {top:,}."
        )


def _card(row: Row, folder: Path) -> str:
    picture = ""
    overlay = folder / row["overlay"] if row.get("overlay") else None
    if overlay is not None and overlay.is_file():
        with Image.open(overlay) as opened:
            source = data_uri(shrink(opened))
        alt = escape(f"Heat map of {row['name']}", quote=True)
        picture = f"<img loading=lazy src='{source}' alt='{alt}'>"
    verdict = row["verdict"] or ""
    probability = row.get("probability")
    chance = "" if probability is None else f", {100 * probability:.0f} %"
    return (
        f"<figure>{picture}<figcaption><span class=number>{row['score']:.5f}</span> "
        f"<span class={verdict or 'none'}>{verdict}</span>{chance}<br>{escape(row['name'])}"
        "</figcaption></figure>"
    )

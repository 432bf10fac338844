"""One page about a run: counts, the spread of scores, the worst images, the errors. No network."""

from __future__ import annotations

import heapq
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from mrad_client.batch.journal import Row

BINS = 40
SHOWN = 50

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;
border-bottom:1px solid #ddd}img{max-width:10rem;max-height:7rem}svg{width:100%;height:9rem}
rect{fill:#2b6cb0}.number{text-align:right;font-variant-numeric:tabular-nums}"""


@dataclass
class Summary:
    """What the page needs, gathered in one pass over any number of rows."""

    total: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[Row] = field(default_factory=list)
    scores: array[float] = field(default_factory=lambda: array("d"))
    worst: list[tuple[float, int, Row]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Summary:
        """Read all rows once."""
        summary = cls()
        for row in rows:
            summary.total += 1
            summary._add(row)
        return summary

    def _add(self, row: Row) -> None:
        score = row.get("score")
        if row["status"] != "ok" or score is None:
            self.errors[row.get("code", "no_score")] += 1
            self.failed = [*self.failed, row][:SHOWN]
            return
        self.verdicts[row.get("verdict") or "no verdict"] += 1
        self.scores.append(score)
        item = (score, -self.total, row)
        push = heapq.heappush if len(self.worst) < SHOWN else heapq.heappushpop
        push(self.worst, item)

    def html(self, folder: Path) -> str:
        """The page; links are relative to `folder`, where it will stand."""
        counts = {"images": self.total, **self.verdicts, "errors": self.errors.total()}
        facts = "".join(f"<tr><th>{escape(k)}<td class=number>{v:,}" for k, v in counts.items())
        worst = "".join(_worst_row(row, folder) for _, _, row in sorted(self.worst, reverse=True))
        failed = "".join(
            f"<tr><td>{escape(row['name'])}<td>{escape(row.get('code', ''))}"
            f"<td>{escape(row.get('error', ''))}"
            for row in self.failed
        )
        parts = [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width'>",
            f"<title>Scores of {self.total:,} images</title><style>{STYLE}</style>",
            f"<h1>Scores of {self.total:,} images</h1><table>{facts}</table>",
            f"<h2>How the scores spread</h2>{self._histogram()}",
            f"<h2>Highest scores</h2><table><tr><th>image<th>score<th>verdict<th>{worst}</table>",
        ]
        if failed:
            parts.append(f"<h2>Errors</h2><table><tr><th>image<th>code<th>what{failed}</table>")
            if self.errors.total() > SHOWN:
                parts.append(f"<p>The first {SHOWN} are shown; the table of results has all.")
        return "\n".join(parts)

    def bins(self) -> tuple[list[int], float, float]:
        """Counts of `BINS` equal steps from the lowest score to the highest, and these two.

        Not from 0 to 1: a train-free head's scores differ in the third decimal.
        """
        low, high = min(self.scores, default=0.0), max(self.scores, default=1.0)
        counts = [0] * BINS
        for score in self.scores:
            counts[min(BINS - 1, int((score - low) / ((high - low) or 1) * BINS))] += 1
        return counts, low, high

    def _histogram(self) -> str:
        counts, low, high = self.bins()
        top, step = max(counts) or 1, (high - low) / BINS
        bars = "".join(
            f"<rect x={i * 10} y={100 - 100 * n / top:.2f} width=9 height={100 * n / top:.2f}>"
            f"<title>{low + i * step:.5f} to {low + (i + 1) * step:.5f}: {n:,}</title></rect>"
            for i, n in enumerate(counts)
        )
        ends = f"{low:.5f} on the left, {high:.5f} on the right"
        return (
            f"<svg viewBox='0 0 {BINS * 10} 100' preserveAspectRatio=none role=img "
            f"aria-label='Histogram of scores, {ends}'>{bars}</svg><p>{ends}; the highest bar "
            f"holds {top:,}."
        )


def _worst_row(row: Row, folder: Path) -> str:
    picture = ""
    if row.get("overlay"):
        link = quote(Path(os.path.relpath(row["overlay"], folder)).as_posix())
        alt = escape(f"Heat map of {row['name']}", quote=True)
        picture = f"<a href='{link}'><img loading=lazy src='{link}' alt='{alt}'></a>"
    verdict = escape(row.get("verdict") or "")
    return (
        f"<tr><td>{escape(row['name'])}<td class=number>{row['score']:.5f}<td>{verdict}"
        f"<td>{picture}"
    )

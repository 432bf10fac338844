"""One page about a run: counts, the spread of scores, the highest ones, the errors. No network."""

from __future__ import annotations

import heapq
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from mrad_client._pictures import open_picture
from mrad_client.batch.journal import Row
from mrad_client.batch.names import counted, on_one_line
from mrad_client.batch.pictures import data_uri, shrink

BINS = 40
SHOWN = 60
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}table{border-collapse:collapse}td,th{text-align:left;padding:.3rem .6rem;
border-bottom:1px solid #8884;white-space:nowrap}td:first-child{min-width:12rem}
td:first-child,td:last-child{white-space:normal;overflow-wrap:anywhere}svg{width:100%;height:9rem}rect{fill:#2b6cb0}
line{stroke:#d33;stroke-width:2}.number{text-align:right;font-variant-numeric:tabular-nums}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr))}
figure{margin:0;min-width:0}img{width:100%}figcaption{font-size:.85rem;overflow-wrap:anywhere}
.anomalous{color:#d33;font-weight:600}
@media(max-width:40rem){td,th{font-size:.8rem;padding:.3rem;vertical-align:top}td:first-child{min-width:5.5rem}}"""


@dataclass
class Summary:
    """What the page and the closing lines need, gathered in one pass over any number of rows."""

    total: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[Row] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    """Code -> images; a verdict of theirs may be worth nothing."""
    doubtful: list[Row] = field(default_factory=list)
    scores: array[float] = field(default_factory=lambda: array("d"))
    calibrated: array[float] = field(default_factory=lambda: array("d"))
    """As many as `scores`, or the run has scores of two kinds and the raw ones are shown."""
    threshold: float | None = None
    thresholds: set[float] = field(default_factory=set)
    """More than one where a server's memory changed under the run."""
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
        score = row.get("score")
        if row.get("code"):
            self.errors[row["code"]] += 1
            if len(self.failed) < SHOWN:
                self.failed.append(row)
        if row.get("warnings"):
            self.warnings.update({text.partition(":")[0] for text in row["warnings"]})
            if len(self.doubtful) < SHOWN:
                self.doubtful.append(row)
        if row["status"] != "ok" or score is None:
            return
        self.verdicts[row.get("verdict") or "without a verdict"] += 1
        self.scores.append(score)
        if row.get("calibrated_score") is not None:
            self.calibrated.append(row["calibrated_score"])
        self.threshold = row.get("threshold")
        if self.threshold is not None:
            self.thresholds.add(self.threshold)
        push = heapq.heappush if len(self.worst) < SHOWN else heapq.heappushpop
        push(self.worst, (score, -self.total, row))

    def html(self, page: Path, base: Path, about: Mapping[str, object] | None = None) -> str:
        """The page.

        Args:
            page: where it will stand; overlays are linked from there.
            base: the folder from which rows name their overlays, which are put into it, small.
            about: facts of the run.
        """
        counts: dict[str, object] = {
            "images": self.total,
            **self.verdicts,
            "errors": self.errors.total(),
        }
        if self.mixed:
            counts["warning"] = self.mixed
        counts |= {f"warned: {code}": count for code, count in self.warnings.most_common()}
        facts = "".join(
            f"<tr><th>{escape(str(name))}<td>{escape(on_one_line(str(value)))}"
            for name, value in {**counts, **(about or {})}.items()
        )
        images = counted(self.total, "image")
        parts = [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width'>",
            f"<title>Scores of {images}</title><style>{STYLE}</style>",
            f"<h1>Scores of {images}</h1><table>{facts}</table>",
        ]
        if self.scores:
            heading = "Highest scores" if len(self.scores) > SHOWN else "By score"
            cards = "".join(_card(row, page, base) for _, _, row in self.worst)
            parts += [f"<h2>How the scores spread</h2>{self._histogram()}"]
            parts += [f"<h2>{heading}</h2><div class=cards>{cards}</div>"]
        if self.doubtful:
            rows = "".join(map(_doubtful, self.doubtful))
            parts.append(
                "<h2>Warnings</h2><p>These pictures were judged, but may not have been read as "
                f"they are meant.<table><tr><th>image<th>verdict<th>what{rows}</table>"
            )
        if self.failed:
            failed = "".join(map(_failed, self.failed))
            parts.append(f"<h2>Errors</h2><table><tr><th>image<th>code<th>what{failed}</table>")
            if self.errors.total() > SHOWN:
                parts.append(f"<p>The first {SHOWN} are shown; the table of results has all.")
        return "\n".join(parts)

    @property
    def mixed(self) -> str:
        """What to say of images that were not judged alike; empty where all were."""
        if len(self.thresholds) < 2:
            return ""
        return (
            f"judged by {len(self.thresholds)} thresholds, {min(self.thresholds):.5f} to "
            f"{max(self.thresholds):.5f}: the memory changed meanwhile; --restart judges all alike"
        )

    def bins(self) -> tuple[list[int], float, float]:
        """Counts of `BINS` equal steps, and where the first begins and the last ends.

        From 0 to 100 where all scores are calibrated. Raw ones of a train-free head differ in the
        third decimal: then from the lowest to the highest, the threshold among them.
        """
        scores, low, high = self.calibrated, 0.0, 100.0
        if not self._scaled:
            scores = self.scores
            ends = [*scores, *([] if self.threshold is None else [self.threshold])]
            low, high = min(ends, default=0.0), max(ends, default=1.0)
        counts = [0] * BINS
        for score in scores:
            counts[min(BINS - 1, math.floor((score - low) / ((high - low) or 1) * BINS))] += 1
        return counts, low, high

    @property
    def _scaled(self) -> bool:
        return bool(self.calibrated) and len(self.calibrated) == len(self.scores)

    def _histogram(self) -> str:
        counts, low, high = self.bins()
        top, span = max(counts), (high - low) or 1.0
        form, threshold = (".1f", 50.0) if self._scaled else (".5f", self.threshold)
        bars = "".join(
            f"<rect x={i * 10} y={100 - 100 * n / top:.2f} width=9 height={100 * n / top:.2f}>"
            f"<title>{low + i * span / BINS:{form}} and above: {n:,}</title></rect>"
            for i, n in enumerate(counts)
        )
        cut = ""
        if threshold is not None:
            at = (threshold - low) / span * BINS * 10
            cut = f"<line x1={at:.1f} x2={at:.1f} y1=0 y2=100><title>threshold</title></line>"
        ends = f"{low:{form}} on the left, {high:{form}} on the right"
        return (
            f"<svg viewBox='0 0 {BINS * 10} 100' preserveAspectRatio=none role=img "
            f"aria-label='Histogram of scores, {ends}'>{bars}{cut}</svg><p>{ends}; the highest bar "
            f"holds {top:,}."
        )


def as_shown(row: Row) -> str:
    """A score for people: 0 to 100 with the threshold at 50 where it is calibrated, raw elsewhere."""
    scaled = row.get("calibrated_score")
    return f"{row['score']:.5f}" if scaled is None else f"{scaled:.1f}"


def judged(row: Row) -> str:
    """The verdict for people, and whether the picture itself was taught; empty for none."""
    return (row.get("verdict") or "") + (" as taught" if row.get("recognised") else "")


def strongest(row: Row) -> str:
    """The middle of an anomalous image's strongest place, `x,y` in its pixels; empty for others."""
    if row.get("verdict") != "anomalous" or not row.get("peak_box"):
        return ""
    left, top, right, bottom = json.loads(row["peak_box"])
    return f"{(left + right) // 2},{(top + bottom) // 2}"


def _doubtful(row: Row) -> str:
    texts = (row["name"], row.get("verdict") or "", " | ".join(row["warnings"]))
    return "<tr>" + "".join(f"<td>{escape(on_one_line(text))}" for text in texts)


def _failed(row: Row) -> str:
    texts = (row["name"], row["code"], row.get("error", ""))
    return "<tr>" + "".join(f"<td>{escape(on_one_line(text))}" for text in texts)


def _card(row: Row, page: Path, base: Path) -> str:
    name, picture = escape(on_one_line(row["name"]), quote=True), ""
    overlay = base / row["overlay"] if row.get("overlay") else None
    if overlay is not None and overlay.is_file():
        with open_picture(overlay) as opened:
            source = data_uri(shrink(opened))
        link = quote(Path(os.path.relpath(overlay, page.parent)).as_posix())
        picture = f"<a href='{link}'><img loading=lazy src='{source}' alt='Heat map of {name}'></a>"
    verdict = escape(row.get("verdict") or "")
    probability = row.get("probability")
    chance = "" if probability is None else f", {100 * probability:.0f} %"
    place = strongest(row)
    place = place and f", strongest at {place}"
    return (
        f"<figure>{picture}<figcaption><span class=number title='raw {row['score']:.5f}'>"
        f"{as_shown(row)}</span> "
        f"<span class={verdict or 'none'}>{judged(row)}</span>{chance}{place}<br>{name}</figcaption></figure>"
    )

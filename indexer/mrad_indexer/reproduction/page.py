"""The one table, on screen, as JSON and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from mrad.words import counted
from mrad_indexer.evaluation.report import template, versions
from mrad_indexer.reproduction.paper import METRICS, SECOND_HAND, Figures
from mrad_indexer.reproduction.run import Outcome, Row
from mrad_indexer.reproduction.sets import BY_KEY, INDUSTRIAL, MEDICAL
from mrad_indexer.reproduction.steps import Step

HEADINGS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "pixel AUPRO",
}
NONE = "–"


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    head: str
    images: str
    cells: tuple[tuple[str, str], ...]
    """For each of `METRICS`: ours, the paper's."""
    mean: bool = False


def lines_of(outcome: Outcome, figures: Figures) -> list[Line]:
    """Each set under each head, then the means of the industrial, the medical and all sets.

    A mean is over the sets that allow its metric and were evaluated here; how many stands in its
    line. The paper's means are not repeated, for they may be over other sets.
    """
    lines = [_line(row, figures) for row in outcome.rows]
    heads = list(dict.fromkeys(row.head for row in outcome.rows))
    for title, domains in (
        ("industrial sets", (INDUSTRIAL,)),
        ("medical sets", (MEDICAL,)),
        ("all sets", (INDUSTRIAL, MEDICAL)),
    ):
        for head in heads:
            rows = [r for r in outcome.rows if r.head == head and r.set.domain in domains]
            if rows:
                lines.append(_mean(f"mean, {title}", head, rows))
    return lines


def _line(row: Row, figures: Figures) -> Line:
    cells = tuple(
        (_percent(row.values.get(name)), _percent(figures.get((row.set.key, row.head, name))))
        for name in METRICS
    )
    return Line(row.set.name, row.head, f"{row.normal} + {row.anomalous}", cells)


def _mean(title: str, head: str, rows: Sequence[Row]) -> Line:
    cells = []
    for name in METRICS:
        values = [v for row in rows if (v := row.values.get(name)) is not None]
        cells.append((f"{fmean(values):.1f} ({len(values)})" if values else NONE, ""))
    return Line(title, head, f"{len(rows)} sets", tuple(cells), mean=True)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def notes_of(outcome: Outcome, figures: Figures, from_file: bool) -> list[str]:
    """What a reader has to know of the table."""
    notes = [f"{BY_KEY[key].name}: not evaluated: {why}" for key, why in outcome.missing.items()]
    notes += [f"{step.name} failed: {step.error}" for step in outcome.failed]
    notes += [
        f"{step.name}: could not use {counted(len(step.result['skipped']), 'image')}, the first: "
        f"{step.result['skipped'][0]}"
        for step in outcome.steps
        if step.result.get("skipped")
    ]
    notes += [
        f"{step.name}: in the memory: {counted(step.result['in_memory'], 'image')}: the figures flatter"
        for step in outcome.steps
        if step.result.get("in_memory")
    ]
    notes += [f"{row.set.name}: {row.set.note}" for row in outcome.rows if row.set.note]
    known = sum((row.set.key, row.head, m) in figures for row in outcome.rows for m in METRICS)
    of = len(outcome.rows) * len(METRICS)
    source = "the file given" if from_file else SECOND_HAND
    notes.append(
        f"The paper's figures (arXiv 2602.00522): {known} of {of} are known here, from {source}; "
        f"the others are left open ({NONE}). A CSV of them is read by --paper."
    )
    return list(dict.fromkeys(notes))


def to_json(
    outcome: Outcome, figures: Figures, about: dict[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "about": about,
        "rows": [
            {
                "set": row.set.key,
                "head": row.head,
                "normal": row.normal,
                "anomalous": row.anomalous,
                "percent": row.values,
                "paper": {m: figures.get((row.set.key, row.head, m)) for m in METRICS},
            }
            for row in outcome.rows
        ],
        "missing": outcome.missing,
        "notes": list(notes),
        "steps": [asdict(step) for step in outcome.steps],
        "versions": versions(),
    }


def render(outcome: Outcome, figures: Figures, about: dict[str, Any], notes: Sequence[str]) -> str:
    """One self-contained HTML page."""
    return template("reproduction.html.j2").render(
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        about=about,
        headings=[HEADINGS[name] for name in METRICS],
        lines=lines_of(outcome, figures),
        notes=notes,
        steps=[(step, *cost_of(step)) for step in outcome.steps],
        seconds=sum(step.seconds for step in outcome.steps),
        sets=len({row.set.key for row in outcome.rows}),
        versions=versions(),
    )


def cost_of(step: Step) -> tuple[str, str, str]:
    """Time, most GPU memory of PyTorch, most memory of the process until then."""
    minutes, seconds = divmod(step.seconds, 60)
    spent = f"{minutes:.0f} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"
    gpu = f"{step.cuda_bytes / 2**30:.2f} GiB" if step.cuda_bytes else NONE
    return spent, gpu, f"{step.host_bytes / 2**30:.2f} GiB"

"""One self-contained HTML page that a person would send to a colleague."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mrad.detector import Detector
from mrad.words import counted
from mrad_indexer.datasets import Dataset
from mrad_indexer.evaluation.figures import curves_figure, histograms_figure
from mrad_indexer.evaluation.runner import (
    METRICS,
    CandidateResult,
    Evaluation,
    ObjectResult,
    PartResult,
)
from mrad_indexer.evaluation.sheets import Sheet, sheets_of

HEADINGS = {"auroc": "AUROC", "ap": "AP", "f1_max": "F1-max", "aupro": "AUPRO"}
MIXED = 2
"""Pixels of an object's largest image over those of its smallest: from here on it is worth a note."""
FUSION_GAIN = 0.05
"""Of image AUROC by another weight of the image level: from here on it is worth a note."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    candidate: str
    images: str
    cells: tuple[Cell, ...]
    mean: bool = False


@dataclass(frozen=True)
class Section:
    """What is shown of one object."""

    name: str
    curves: Markup
    histograms: Markup
    sheets: Mapping[str, Sequence[Sheet]]


def render(
    evaluation: Evaluation,
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    *,
    title: str = "",
    cards: int = 4,
) -> str:
    """The page. `cards`: images in each row of a contact sheet; 0 leaves the sheets out."""
    sections = [_section(evaluation, detectors, dataset, name, cards) for name in dataset.objects]
    return template("report.html.j2").render(
        title=title or f"Anomaly detection on {dataset.root.name}",
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evaluation=evaluation,
        headings=[HEADINGS[metric] for _, metric in METRICS],
        rows=table(evaluation),
        sections=sections,
        notes=notes(evaluation),
        configs={
            item.name: json.dumps(dict(item.config), indent=1, default=str)
            for item in evaluation.candidates
        },
        versions=versions(),
    )


def table(evaluation: Evaluation) -> list[Row]:
    """The means first, then each object; the best of each block is marked."""
    blocks: list[list[tuple[str, str, str, list[float | None], bool]]] = []
    several = len(evaluation.dataset["objects"]) > 1
    if several:
        counts = evaluation.dataset["counts"]
        blocks.append(
            [
                (
                    f"mean of {len(item.objects)}",
                    item.name,
                    f"{counts['normal']} + {counts['anomalous']}",
                    [item.mean(*metric) for metric in METRICS],
                    True,
                )
                for item in evaluation.candidates
            ]
        )
    for place, name in enumerate(evaluation.dataset["objects"]):
        results = [(item.name, item.objects[place]) for item in evaluation.candidates]
        blocks.append([_figures(name, candidate, result) for candidate, result in results])
        parts = dict.fromkeys(part.name for _, result in results for part in result.parts)
        for part in parts:
            called = f"{name or 'images'}: part {part}"
            blocks.append([
                _figures(called, candidate, own)
                for candidate, result in results
                for own in result.parts
                if own.name == part
            ])  # fmt: skip
    return [row for block in blocks for row in _rows(block)]


def _figures(
    name: str, candidate: str, result: ObjectResult | PartResult
) -> tuple[str, str, str, list[float | None], bool]:
    values = [getattr(getattr(result, level), metric) for level, metric in METRICS]
    images = f"{result.images - result.anomalous} + {result.anomalous}"
    return name, candidate, images, values, False


def _rows(block: Sequence[tuple[str, str, str, list[float | None], bool]]) -> list[Row]:
    columns = list(zip(*(values for *_, values, _ in block)))
    best = [max((v for v in column if v is not None), default=None) for column in columns]
    rows = []
    for name, candidate, images, values, mean in block:
        cells = tuple(
            Cell(percent(value), value is not None and value == top and len(set(column)) > 1)
            for value, top, column in zip(values, best, columns)
        )
        rows.append(Row(name, candidate, images, cells, mean))
    return rows


def percent(value: float | None) -> str:
    """A metric in percent, one digit; a dash where it is not defined."""
    return "–" if value is None else f"{100 * value:.1f}"


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = []
    if left_out := evaluation.dataset.get("skipped", ()):
        found.append(
            f"left out, because they cannot be read or aligned: {counted(len(left_out), 'image')}: "
            f"{'; '.join(left_out[:3])}{' and others' if len(left_out) > 3 else ''}"
        )
    for item in evaluation.candidates:
        if item.in_memory:
            found.append(
                f"In the memory of {item.name}, or equal to one there: {counted(item.in_memory, 'image')} of "
                "those evaluated, so they retrieve themselves: these figures flatter."
            )
        found += _verdict_note(item)
        found += _fusion_note(item)
    first = evaluation.candidates[0]
    mixed, own = evaluation.dataset.get("mixed", 1.0), evaluation.settings.get("resolution")
    if mixed >= MIXED and not isinstance(own, int) and any(r.masked for r in first.objects):
        found.append(
            f"Images of one object have up to {mixed:.1f} times the pixels of others and count for so much "
            "more in pixel AUROC and AUPRO; with --resolution 518 all count alike."
        )
    for result in first.objects:
        if result.image.auroc is None:
            found.append(f"{result.name} has images of one class only: no image metrics.")
        if result.anomalous and result.masked < result.anomalous:
            missing = result.anomalous - result.masked
            found.append(
                f"{result.name}: without a mask, so left out of the pixel metrics: {missing} of "
                f"{counted(result.anomalous, 'defective image')}."
            )
    for item in evaluation.candidates:
        worst = max(item.objects, key=lambda result: result.pixel.binning_error)
        if worst.pixel.binning_error > 1e-3:
            found.append(
                f"{item.name} on {worst.name}: pixel values lie so close together that counting them "
                f"in bins may move an AUROC by {worst.pixel.binning_error:.1e}."
            )
    return found


def _verdict_note(item: CandidateResult) -> list[str]:
    """What the bank's own threshold makes of these images: no AUROC tells that."""
    cut = item.config.get("threshold")
    if cut is None:
        return []
    scores = [score for result in item.objects for score in result.scores]
    found = []
    for anomalous, what, done in ((True, "defective", "found"), (False, "good", "flagged")):
        mine = [score.score >= cut for score in scores if score.anomalous == anomalous]
        if mine:
            found.append(f"{sum(mine)} of {counted(len(mine), f'{what} image')} {done}")
    return [f"At the bank's own threshold, {cut:.5f}, {item.name}: {', '.join(found)}."]


def _fusion_note(item: CandidateResult) -> list[str]:
    """How images would be ordered with another weight of the image level, where one does it better."""
    now = item.mean("image", "auroc")
    found = {w: auroc for w, auroc in item.mean_by_fusion().items() if auroc is not None}
    if now is None or max(found.values()) < now + FUSION_GAIN:
        return []
    listed = ", ".join(f"{100 * auroc:.1f} at {w:g}" for w, auroc in found.items())
    return [
        f"Another --fusion orders these images better than {item.name}'s {100 * now:.1f}: image AUROC "
        f"{listed} (0: maps alone, 1: image level alone). Choose on other images than you report."
    ]


def _section(
    evaluation: Evaluation,
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    name: str,
    cards: int,
) -> Section:
    results = {
        item.name: next(result for result in item.objects if result.name == name)
        for item in evaluation.candidates
    }
    sheets = {
        candidate: sheets_of(detectors[candidate], dataset, result, count=cards)
        for candidate, result in results.items()
        if cards > 0
    }
    # The figures come from matplotlib, which escapes its own text.
    return Section(name, Markup(curves_figure(results)), Markup(histograms_figure(results)), sheets)


def template(name: str) -> Template:
    """A page of `templates/`; what is not given to it is an error."""
    environment = Environment(
        loader=PackageLoader("mrad_indexer"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(name)


def versions() -> dict[str, str]:
    """What produced the figures."""
    found = {"python": platform.python_version(), "platform": platform.machine()}
    for name in ("mrad", "torch", "open_clip_torch", "numpy", "scikit-learn", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

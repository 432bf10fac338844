"""Curves, histograms and reliability plots, as SVG for the report or PNG for a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from mrad.calibration import Calibration
from mrad.errors import CalibrationError
from mrad_indexer.evaluation.metrics import FPR_LIMIT
from mrad_indexer.evaluation.runner import ObjectResult

COLOURS = ("#1f5fa8", "#d1662b", "#2f8f5b", "#8a4fa3", "#b02a4c", "#6b6b6b")
DASHES = ("-", "--", "-.", ":")
GOOD, BAD = "#6d8fb5", "#d1662b"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mrad",
}


def curves_figure(results: Mapping[str, ObjectResult]) -> str:
    """SVG: image ROC and PR, then pixel ROC, PR and PRO, every candidate in each.

    `results`: candidate -> its result for one object.
    """
    panels = _panels(results)
    if not panels:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(panels), 2.6), layout="constrained")
        for axes, (title, labels, limit, lines) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels
        ):
            for place, (name, (x, y)) in enumerate(lines.items()):
                colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
                axes.plot(x, y, color=colour, linestyle=dash, label=name, linewidth=1.6)
            axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
            axes.set(xlim=(0, limit), ylim=(0, 1.02))
        if len(results) > 1:
            handles, names = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        return to_svg(figure)


def _panels(results: Mapping[str, ObjectResult]) -> list[tuple[str, tuple[str, str], float, Any]]:
    image: dict[str, dict[str, Any]] = {"roc": {}, "pr": {}}
    for name, result in results.items():
        truth = [score.anomalous for score in result.scores]
        if result.image.auroc is None:
            continue
        values = [score.score for score in result.scores]
        fpr, tpr, _ = roc_curve(truth, values)
        precision, recall, _ = precision_recall_curve(truth, values)
        image["roc"][name] = (fpr, tpr)
        image["pr"][name] = (recall, precision)
    pixel = {
        kind: {n: (r.curves[kind].x, r.curves[kind].y) for n, r in results.items() if r.curves}
        for kind in ("roc", "pr", "pro")
    }
    rates, recalls = ("false-positive rate", "true-positive rate"), ("recall", "precision")
    every = [
        ("Images: ROC", rates, 1.0, image["roc"]),
        ("Images: precision-recall", recalls, 1.0, image["pr"]),
        ("Pixels: ROC", rates, 1.0, pixel["roc"]),
        ("Pixels: precision-recall", recalls, 1.0, pixel["pr"]),
        ("Regions: PRO", (rates[0], "overlap per region"), FPR_LIMIT, pixel["pro"]),
    ]
    return [panel for panel in every if panel[3]]


def histograms_figure(results: Mapping[str, ObjectResult]) -> str:
    """SVG: image scores of good and defective images, a panel for each candidate."""
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(results))
        rows = -(-len(results) // columns)
        figure = Figure(figsize=(4.0 * columns, 2.4 * rows + 0.3), layout="constrained")
        for place, (name, result) in enumerate(results.items(), start=1):
            axes = figure.add_subplot(rows, columns, place)
            _histogram(axes, result)
            axes.set_title(name)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names))
        return to_svg(figure)


def _histogram(axes: Any, result: ObjectResult) -> None:
    values = np.array([score.score for score in result.scores])
    truth = np.array([score.anomalous for score in result.scores])
    edges = np.histogram_bin_edges(values, bins=min(40, max(10, len(values) // 6)))
    for chosen, colour, name in ((~truth, GOOD, "good"), (truth, BAD, "defective")):
        axes.hist(values[chosen], edges, color=colour, alpha=0.65, label=name)
    if result.image.f1_threshold is not None:
        axes.axvline(result.image.f1_threshold, color="#222", linewidth=1, linestyle="--")
        axes.annotate(
            " best F1",
            (result.image.f1_threshold, 0.98),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=8,
        )
    axes.set(xlabel="score", ylabel="images")
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", useOffset=False)


def reliability_figure(calibration: Calibration) -> bytes:
    """PNG: predicted against observed, and how many images stand behind each point.

    Raises `CalibrationError` where no defects were there.
    """
    part, model = calibration.reliability, calibration.model
    if part is None or model is None:
        raise CalibrationError("a calibration by good images alone has no probabilities to plot")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4), dpi=140, layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        upper.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle="--", label="ideal")
        upper.plot(part.predicted, part.observed, marker="o", color=COLOURS[0], label="measured")
        upper.set(ylabel="share that is defective", xlim=(0, 1), ylim=(-0.02, 1.02))
        upper.set_title(
            f"{calibration.head}, {model.method}: Brier {part.brier:.3f}, "
            f"mean error {part.expected_error:.3f}"
        )
        upper.legend(loc="upper left")
        lower.bar(part.predicted, part.count, width=0.02, color=GOOD)
        lower.set(xlabel="predicted probability (images not fitted on)", ylabel="images")
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, without date and XML header."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

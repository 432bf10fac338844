"""`mrad calibrate`: thresholds and probabilities of a bank, from labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich import box
from rich.table import Table

from mrad_indexer.cli import options
from mrad_indexer.cli.console import console, note, progress, say

if TYPE_CHECKING:
    from mrad.calibration import Calibration, Rule, Threshold


def register(app: typer.Typer) -> None:
    """Add the command to the `mrad` app."""
    app.command("calibrate")(calibrate_command)


def calibrate_command(
    bank: Annotated[Path, typer.Argument(help="the bank's folder")],
    data: Annotated[
        Path | None, typer.Argument(help="labelled images  [those that the bank was built of]")
    ] = None,
    head: options.Head = "auto",
    rule: Annotated[str, typer.Option(help="f1, or fpr for a wanted false-alarm rate")] = "f1",
    fpr: Annotated[float, typer.Option(help="the wanted rate on good images", min=0, max=1)] = 0.01,
    method: Annotated[str, typer.Option(help="of probabilities: platt, isotonic")] = "platt",
    layout: options.Layout = "auto",
    split: Annotated[str, typer.Option(help="train, test, all")] = "all",
    only: options.Only = None,
    plot: Annotated[
        Path | None, typer.Option(help="where to write the reliability plot, PNG")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print, do not write into the bank")] = False,
    fusion: options.Fusion = 0.7,
    sigma: options.Sigma = 4.0,
    retrieval: options.Retrieval = "exact",
    draws: Annotated[int, typer.Option(help="of the bootstrap", min=1)] = 500,
    seed: Annotated[int, typer.Option()] = 0,
    bit_depth: options.BitDepth = None,
    strict_input: options.StrictInput = False,
    allow_truncated: options.Truncated = False,
    max_pixels: options.MaxPixels = None,
    mask_orientation: options.MaskOrientation = "auto",
    pretrained: options.Pretrained = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Choose thresholds and fit probabilities. An image of the bank never retrieves itself.

    Raw scores stay as they are; the calibration is stored in the bank for this head, or, where a
    server taught the bank since, with what it learned (stop the server first).
    """
    from mrad.memory.bank import MemoryBank
    from mrad.memory.living import save_calibration
    from mrad_indexer.calibration.calibrate import calibrate, score_without_self
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.loading import HeadChoice, choose, detector_of, encoder_of, own_images

    if rule not in ("f1", "fpr"):
        raise typer.BadParameter("choose f1 or fpr", param_hint="--rule")
    memory = MemoryBank.load(bank)
    say(f"memory {bank.name}: {memory.composition}")
    if data is None:
        dataset = choose(own_images(memory), split, only)
    else:
        dataset = choose(
            read_dataset(
                data, layout=layout, mask_orientation=options.orientation(mask_orientation)
            ),
            split,
            only,
        )
    choice = HeadChoice.parse(head)
    detector = detector_of(
        encoder_of(memory, pretrained=pretrained, device=device, precision=precision),
        memory,
        choice,
        fusion=fusion,
        sigma=sigma,
        retrieval=retrieval,
        reading=options.reading(bit_depth, strict_input, allow_truncated, max_pixels),
    )
    with progress() as bar:
        task = bar.add_task("images", total=len(dataset), note="")
        scored = score_without_self(
            detector,
            dataset,
            batch_size=batch_size,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    calibration = calibrate(
        detector,
        scored,
        rule=cast("Rule", rule),
        target_fpr=fpr,
        method=method,
        draws=draws,
        seed=seed,
        source=dataset.root.name,
        checkpoint=choice.checkpoint.name if choice.checkpoint else "",
    )
    for reason in scored.skipped:
        say(("skipped", "yellow"), f" {reason}")
    show(calibration)
    if plot is not None:
        _write_plot(calibration, plot)
    if not dry_run:
        save_calibration(calibration.into(memory), bank)
        changes = memory.changes
        say(f"written into {bank / 'bank.json' if changes is None else changes.folder}")


def show(calibration: Calibration) -> None:
    """Thresholds with their intervals, and what they do."""
    say(
        (calibration.head, "bold"),
        f": {calibration.normal} good and {calibration.anomalous} "
        f"defective images, scores {calibration.scored}",
    )
    shown = Table(box=box.SIMPLE_HEAD)
    for name in (
        "threshold",
        "value",
        "95 % interval",
        "precision",
        "recall",
        "F1",
        "false alarms",
    ):
        shown.add_column(name, justify="left" if name == "threshold" else "right")
    shown.add_row("image", *_cells(calibration.image))
    if calibration.pixel is not None:
        shown.add_row("pixel", *_cells(calibration.pixel))
    console.print(shown)
    part = calibration.reliability
    say(
        f"probabilities ({calibration.model.method}), on images not fitted on: Brier "
        f"{part.brier:.3f}, mean error {part.expected_error:.3f}"
    )
    if calibration.pixel is None:
        note("no masks, so no pixel threshold")
    if calibration.image.fpr > 0.5:
        note(
            "most good images lie at or above the image threshold: these scores "
            "hardly tell good from defective. More images, masks, a stronger encoder or a trained head "
            "may (docs/your-product.md)"
        )
    target = calibration.image.target_fpr
    if target is not None and target * calibration.normal < 1:
        note(
            f"{calibration.normal} good images cannot vouch for a rate of "
            f"{target:g}: the threshold lies just above the highest of them"
        )


def _cells(cut: Threshold) -> list[str]:
    interval = f"{cut.low:.5f} to {cut.high:.5f}"
    figures = [f"{100 * value:.1f} %" for value in (cut.precision, cut.recall, cut.f1, cut.fpr)]
    return [f"{cut.value:.5f}", interval, *figures]


def _write_plot(calibration: Calibration, path: Path) -> None:
    from mrad.files import atomic_write_bytes
    from mrad_indexer.evaluation.figures import reliability_figure

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, reliability_figure(calibration))
    say(f"reliability plot: {path}")

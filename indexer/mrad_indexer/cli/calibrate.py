"""`mrad calibrate`: thresholds of a bank from good images, with defects probabilities too."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mrad.words import counted
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import console, measuring, note, progress, say, table

if TYPE_CHECKING:
    from mrad.calibration import Calibration, Rule, Threshold
    from mrad.detector import Detector
    from mrad.memory.bank import MemoryBank
    from mrad.thresholds.calibrate import Scored
    from mrad_indexer.datasets import Dataset

SMALL = 90
"""Good images from which leaving one out made no difference on ELPV."""


def calibrate_command(
    bank: Annotated[Path, typer.Argument(help="the bank's folder")],
    data: Annotated[
        Path | None,
        typer.Argument(help="images, good ones are enough  [those that the bank was built of]"),
    ] = None,
    head: options.Head = "auto",
    rule: Annotated[
        str,
        typer.Option(
            help="f1, or fpr for a wanted false-alarm rate; auto: fpr where it is given, or where "
            "defects are missing"
        ),
    ] = "auto",
    fpr: Annotated[
        float | None,
        typer.Option(
            "--fpr",
            "--false-alarm-rate",
            help="the share of good images to come that may be flagged  [0.05]",
            min=0,
            max=1,
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="of probabilities: platt, isotonic")] = "platt",
    layout: options.Layout = "auto",
    split: Annotated[str, typer.Option(help="train, test, all")] = "all",
    only: options.Only = None,
    product: Annotated[
        str | None,
        typer.Option(
            "--object",
            help="product: its own thresholds, by what the memory holds of it alone; those of all stay",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="where to write the reliability plot, PNG")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print, do not write into the bank")
    ] = False,
    fusion: options.Fusion = 0.7,
    sigma: options.Sigma = 4.0,
    retrieval: options.Retrieval = "exact",
    draws: Annotated[int, typer.Option(help="of the bootstrap", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="of the bootstrap's draws")] = 0,
    bit_depth: options.BitDepth = None,
    strict_input: options.StrictInput = False,
    allow_truncated: options.Truncated = False,
    max_pixels: options.MaxPixels = None,
    mask_orientation: options.MaskOrientation = "auto",
    pretrained: options.Pretrained = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Choose thresholds and fit probabilities. An image of the bank never retrieves itself.

    Good images alone give thresholds by the share of good parts that may be flagged.

    A product without thresholds of its own is judged by the rule of all, from its own images.

    Raw scores stay as they are; the calibration is stored in the bank for this head, or, where a
    server taught the bank since, with what it learned (stop the server first).
    """
    from mrad.calibration import Calibration
    from mrad.errors import CalibrationError
    from mrad.lock import WriterLock
    from mrad.memory.bank import MemoryBank
    from mrad.memory.living import LivingFolder, save_calibration
    from mrad.thresholds.calibrate import TARGET, calibrate
    from mrad.thresholds.objects import keeping_objects, with_object
    from mrad.thresholds.own import anchored, score_own
    from mrad_indexer.calibration.calibrate import score_without_self, without_a_file
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.loading import HeadChoice, choose, detector_of, encoder_of, of_product

    if rule not in ("auto", "f1", "fpr"):
        raise typer.BadParameter("choose auto, f1 or fpr", param_hint="--rule")
    if rule == "f1" and fpr is not None:
        raise typer.BadParameter(
            "--rule f1 knows no rate: leave one of the two out", param_hint="--fpr"
        )
    if rule == "auto" and fpr is not None:
        rule = "fpr"
    memory = MemoryBank.load(bank)
    say(f"memory {bank.name}: {memory.composition}")
    if memory.changes is not None and not dry_run:
        WriterLock(
            LivingFolder(bank).lock
        ).release()  # a server has it: said before the work, not after
    files = None
    if data is None:
        dataset = files = own_files(memory, some=split != "all" or bool(only))
    else:
        dataset = read_dataset(data, layout=layout, mask_orientation=mask_orientation)
    if files is None or files.records:
        dataset = choose(dataset, split, only)
    choice = HeadChoice.parse(head)
    whole: Calibration | None = None
    part = memory
    if product is not None:
        part = memory.of_object(product)
        say(f"of {product!r} alone: {part.composition}")
        dataset = of_product(dataset, product) if dataset.records else dataset
        whole = whole_of(memory, choice.of(memory).name, (fusion, sigma, retrieval))
        choice = choice.of(memory, part)
    with measuring():
        detector = detector_of(
            encoder_of(memory, pretrained=pretrained, device=device, precision=precision),
            part,
            choice,
            fusion=fusion,
            sigma=sigma,
            retrieval=retrieval,
            reading=options.reading(bit_depth, strict_input, allow_truncated, max_pixels),
        )
    rows = [] if files is None else without_a_file(part, files)
    with progress() as bar:
        task = bar.add_task("images", total=len(dataset), note="")
        scored = score_without_self(
            detector,
            dataset,
            batch_size=batch_size,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    if rows:
        _join_held(detector, scored, rows, seed)
    calibration = calibrate(
        detector,
        scored,
        rule=None if rule == "auto" else cast("Rule", rule),
        target_fpr=TARGET if fpr is None else fpr,
        method=method,
        draws=draws,
        seed=seed,
        source=dataset.root.name if dataset.records else "the memory itself",
        checkpoint=choice.checkpoint.name if choice.checkpoint else "",
    )
    with contextlib.suppress(CalibrationError):  # a memory without patches has nothing to follow by
        calibration = anchored(calibration, part, score_own(detector))
    for reason in scored.skipped:
        say(("skipped", "yellow"), f" {reason}")
    for code, count in scored.warnings.most_common():
        note(f"{counted(count, 'image')} warned of: {code}; mrad data check names them")
    show(calibration)
    say_apart(calibration, scored)
    if plot is not None:
        _write_plot(calibration, plot)
    before = whole
    if whole is None:
        with contextlib.suppress(CalibrationError):  # the first of this head
            before = Calibration.of(memory, calibration.head)
    replaced = before if product is None or before is None else before.objects.get(product)
    if replaced is not None:
        _say_replaced(replaced, calibration, dry_run)
    if not dry_run:
        if whole is not None and product is not None:
            calibration = with_object(whole, product, calibration, detector)
        elif before is not None:
            calibration = keeping_objects(calibration, before)
        save_calibration(calibration.into(memory), bank)
        changes = memory.changes
        say(f"written into {bank / 'bank.json' if changes is None else changes.folder}")


def own_files(memory: MemoryBank, some: bool) -> Dataset:
    """The images that it was built of; none where they are gone. Raises `DataError` where it needs them, or `some` are wanted."""
    from mrad.errors import DataError
    from mrad_indexer.datasets import Dataset
    from mrad_indexer.loading import own_images

    try:
        return own_images(memory)
    except DataError as error:
        if some or not len(memory.local):
            raise
        note(f"{error}; until then its images are judged by what it holds of them")
        return Dataset("memory", Path(), ())


def _join_held(detector: Detector, scored: Scored, rows: list[int], seed: int) -> None:
    """What the memory holds and no file brings, as what it was taught, is judged too; what is not is said."""
    from mrad.errors import CalibrationError
    from mrad_indexer.calibration.calibrate import judge_held

    those = f"{counted(len(rows), 'image')} taught since the build, or without a file,"
    try:
        judged = judge_held(detector, scored, rows, seed)
    except CalibrationError as error:
        note(f"{those} not judged: {error}")
        return
    if judged:
        say(
            f"{counted(judged, 'image')} taught since the build, or without a file, judged by what the memory holds"
        )
    if judged < len(rows):
        note(f"{counted(len(rows) - judged, 'image')} of these not held whole, so not judged")


def whole_of(bank: MemoryBank, head: str, asked: tuple[float, float, str]) -> Calibration:
    """The calibration of all products, beside which that of one is kept. Raises `CalibrationError`.

    `asked`: fusion, sigma and retrieval, which are one for the whole memory.
    """
    from mrad.calibration import Calibration
    from mrad.errors import CalibrationError

    if head not in (bank.calibration or {}):
        raise CalibrationError(
            "thresholds of one product are kept beside those of all: run mrad calibrate without "
            "--object first"
        )
    found = Calibration.of(bank, head)
    for name, value in zip(("fusion", "sigma", "retrieval"), asked):
        held = found.settings.get(name, value)
        if held != value:
            raise CalibrationError(
                f"the memory is calibrated with {name} {held}, not {value}, and a product is judged with "
                f"the same: give --{name} {held}, or calibrate all products again"
            )
    return found


def show(calibration: Calibration) -> None:
    """Thresholds with their intervals, and what they do."""
    say(
        (calibration.head, "bold"),
        f": {calibration.normal} good and {counted(calibration.anomalous, 'defective image')}, "
        f"scores {calibration.scored}",
    )
    figures = ("value", "95 % interval", "precision", "recall", "F1", "false alarms")
    shown = table("threshold", *figures)
    shown.add_row("image", *_cells(calibration.image))
    if calibration.pixel is not None:
        shown.add_row("pixel", *_cells(calibration.pixel))
    console.print(shown)
    part = calibration.reliability
    if part is not None and calibration.model is not None:
        say(
            f"probabilities ({calibration.model.method}), on images not fitted on: Brier "
            f"{part.brier:.3f}, mean error {part.expected_error:.3f}; they suppose that "
            f"{_percent(calibration.prevalence or 0)} of images are defective, as here, and the threshold "
            "does not: the two may disagree"
        )
    else:
        say(
            "no probabilities: they need two defective images at least. Results carry a p-value: the "
            "share of good parts that look as unusual, or more"
        )
    if calibration.pixel is None:
        note("no maps of good images, so no pixel threshold")
    elif (calibration.image.rule, calibration.pixel.rule) == ("f1", "fpr"):
        note(
            "the pixel threshold is by false alarms: no mask is known, or maps do not tell what masks mark"
        )
    if calibration.weakness:
        note(
            f"{calibration.weakness}. More images, masks, a stronger encoder or a trained head may help "
            "(docs/your-product.md)"
        )
    _say_caught(calibration)
    _say_promise(calibration)


def _say_replaced(before: Calibration, now: Calibration, dry_run: bool) -> None:
    """What the threshold was, and what it is: a stricter one must not go without a word."""
    old, new = before.image, now.image
    flags = "as many"
    if new.value != old.value:
        flags = "more" if new.value < old.value else "fewer"
    would = "would replace" if dry_run else "replaces"
    text = f"{new.value:.5f} ({_rule(new)}) {would} {old.value:.5f} ({_rule(old)}), made {before.made_at}"
    for name in ("fusion", "sigma", "retrieval", "checkpoint"):
        if before.settings.get(name) != now.settings.get(name):
            note(f"{text}; with other settings of {name}, so the two do not compare")
            return
    note(f"{text}: {flags} pictures are flagged")


def _rule(cut: Threshold) -> str:
    """How a threshold was chosen, as one asks for it again."""
    if cut.target_fpr is None:
        return f"--rule {cut.rule}"
    return f"--fpr {cut.target_fpr:g}"


def _say_caught(calibration: Calibration) -> None:
    """A threshold that no known defect reaches is said."""
    for cut, what, cure in (
        (calibration.image, "defective images", "a larger --fpr, or --rule f1, catches more"),
        (calibration.pixel, "defective pixels", "maps will outline nothing; --rule f1 may help"),
    ):
        if cut is not None and cut.recall == 0:
            level = "image" if cut is calibration.image else "pixel"
            note(f"the {level} threshold catches none of the known {what} (recall 0 %): {cure}")


def say_apart(calibration: Calibration, scored: Scored) -> None:
    """A threshold that rests on a few odd good images is said, with their names."""
    from mrad_indexer.calibration.apart import apart

    cut = calibration.image
    found = None if cut.target_fpr is None else apart(scored, cut.target_fpr)
    if found is None or cut.value <= found.next_score:
        return
    named = ", ".join(
        f"{source} ({score:.3f})" if source else f"{score:.3f}"
        for source, score in zip(found.sources, found.scores)
    )
    one = len(found.sources) == 1
    note(
        f"the threshold rests on {counted(len(found.sources), 'good image')} that "
        f"{'scores' if one else 'score'} far above the other {found.others} (the next {found.next_score:.3f}): "
        f"{named}. If {'it is' if one else 'they are'} defective or photographed otherwise, build without "
        f"{'it' if one else 'them'}: the threshold would be about {found.threshold:.3f}, and more defects reach "
        f"it. If {'it is a good part' if one else 'they are good parts'} of another kind, add more like "
        f"{'it' if one else 'them'}"
    )


def _say_promise(calibration: Calibration) -> None:
    """Which rate the good images can promise, and how sure that is."""
    cut = calibration.image
    alone = calibration.normal_scores.total
    if alone < calibration.normal:
        note(
            f"{counted(calibration.normal, 'good image')} with {counted(alone, 'different thing')}: near-duplicates, as of a "
            "burst, count once"
        )
    promise = cut.promise
    if promise is None or cut.target_fpr is None:
        return
    say(
        f"false alarms to expect: {_percent(promise.rate)} of good images to come; with {alone} of them "
        f"seen, between {_percent(promise.low)} and {_percent(promise.high)} (95 %)"
    )
    if not promise.keeps(cut.target_fpr):
        needed = math.ceil(1 / cut.target_fpr - 1 - 1e-9) if cut.target_fpr else None
        more = "no number of them can" if needed is None else f"{needed} can"
        note(
            f"{counted(alone, 'good image')} cannot promise {_percent(cut.target_fpr)}: the threshold lies just "
            f"above the highest of them, which promises {_percent(promise.rate)}; {more}"
        )
    if calibration.scored == "leave-one-out" and alone < SMALL:
        note(
            "each image was judged by the others alone: in a small memory it looks a little less "
            "usual than a new part will, so false alarms may be rarer, and defects nearer the threshold"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cells(cut: Threshold) -> list[str]:
    interval = f"{cut.low:.5f} to {cut.high:.5f}"
    shares = (cut.precision, cut.recall, cut.f1, cut.fpr)
    figures = ["–" if share is None else _percent(share) for share in shares]
    return [f"{cut.value:.5f}", interval, *figures]


def _write_plot(calibration: Calibration, path: Path) -> None:
    from mrad.files import atomic_write_bytes
    from mrad_indexer.evaluation.figures import reliability_figure

    if calibration.reliability is None:
        note(f"{path} is not written: a reliability plot needs defects")
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, reliability_figure(calibration))
    say(f"reliability plot: {path}")

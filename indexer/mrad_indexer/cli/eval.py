"""`mrad eval`: metrics, JSON and a report, of one or several banks and heads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrad.words import counted
from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import console, measuring, note, progress, say

FIGURE = 7
"""Characters of a column of figures."""

if TYPE_CHECKING:
    from mrad.detector import Detector
    from mrad.memory.bank import MemoryBank
    from mrad_indexer.datasets import Dataset
    from mrad_indexer.evaluation.runner import Evaluation


def eval_command(
    data: Annotated[Path, typer.Argument(help="dataset: a folder or a list of images")],
    bank: Annotated[list[Path], typer.Option(help="a bank's folder; repeat to compare")],
    head: Annotated[
        list[str] | None,
        typer.Option(help="auto, nn, combined, tf, or NAME:CHECKPOINT; repeat to compare  [auto]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for report.html and report.json")] = Path(
        "report"
    ),
    layout: options.Layout = "auto",
    split: Annotated[
        str, typer.Option(help="train, test, all; auto: test where there is one")
    ] = "auto",
    only: options.Only = None,
    product: options.Product = None,
    resolution: Annotated[
        int | None, typer.Option(help="side for pixel metrics  [each image's own size]")
    ] = None,
    fusion: options.Fusion = 0.7,
    sigma: options.Sigma = 4.0,
    retrieval: options.Retrieval = "exact",
    cards: Annotated[int, typer.Option(help="images in each row of the contact sheets")] = 4,
    title: Annotated[str, typer.Option(help="of the report")] = "",
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
    """Evaluate on labelled images: image and pixel AUROC, AP, F1-max, AUPRO.

    With --object, on that product's images, judged by what the memory holds of it alone.
    """
    from mrad.memory.bank import MemoryBank
    from mrad_indexer.datasets import read_dataset
    from mrad_indexer.evaluation.names import candidate_names, shortest
    from mrad_indexer.evaluation.runner import evaluate
    from mrad_indexer.loading import HeadChoice, choose, detector_of, encoder_of, of_product

    dataset = read_dataset(data, layout=layout, mask_orientation=mask_orientation)
    dataset = choose(dataset, split, only)
    banks = {path: MemoryBank.load(path) for path in bank}
    parts = {
        path: memory
        if product is None
        else replace(memory.of_object(product), digest=memory.digest)
        for path, memory in banks.items()
    }
    if product is not None:
        dataset = of_product(dataset, product)
    for path, memory in parts.items():
        of = "" if product is None else f", of {product!r} alone"
        say(f"memory {path.name}{of}: {memory.composition}", style="dim")
    encoder = encoder_of(
        next(iter(banks.values())), pretrained=pretrained, device=device, precision=precision
    )
    detectors: dict[str, Detector] = {}
    configs: dict[str, dict[str, object]] = {}
    folders = shortest(banks)
    asked = [HeadChoice.parse(text) for text in head or ["auto"]]
    names = candidate_names(
        [(choice.of(banks[path], parts[path]), path) for choice in asked for path in banks]
    )
    for (choice, path), name in names.items():
        with measuring():
            detectors[name] = detector_of(
                encoder,
                parts[path],
                choice,
                fusion=fusion,
                sigma=sigma,
                retrieval=retrieval,
                reading=options.reading(bit_depth, strict_input, allow_truncated, max_pixels),
            )
        configs[name] = describe(detectors[name], folders[path], choice.checkpoint, product)
        configs[name]["threshold"] = own_threshold(
            detectors[name], banks[path], choice.checkpoint, product
        )
    with progress() as bar:
        task = bar.add_task("images", total=len(dataset), note="")
        evaluation = evaluate(
            detectors,
            dataset,
            batch_size=batch_size,
            resolution=resolution,
            configs=configs,
            progress=lambda done: bar.update(task, completed=done),
        )
    show(evaluation)
    say_doubtful(evaluation.dataset["warnings"])
    write(evaluation, detectors, dataset, out, title=title, cards=cards)


def say_doubtful(warnings: dict[str, int]) -> None:
    """How many images and masks were read with a warning."""
    for code, count in warnings.items():
        note(
            f"{counted(count, 'image or mask', 'images or masks')} warned of: {code}; mrad data check names them"
        )


def describe(
    detector: Detector, bank: str, checkpoint: Path | None, product: str | None = None
) -> dict[str, object]:
    """What a reader of the report must know to repeat a candidate."""
    memory = detector.bank
    return {
        "head": detector.head.name,
        "checkpoint": str(checkpoint or ""),
        "bank": bank,
        "bank_digest": memory.digest,
        **({} if product is None else {"object": product}),
        "entries": len(memory.entries),
        "memory": memory.composition,
        "image_keys": len(memory.image),
        "patch_keys": len(memory.patch),
        "encoder": str(memory.identity),
        "precision": str(detector.encoder.dtype).removeprefix("torch."),
        "device": str(detector.encoder.device),
        "fusion": detector.fusion,
        "sigma": detector.sigma,
        "top": detector.top,
        "retrieval": detector.retrieval,
    }


def own_threshold(
    detector: Detector, memory: MemoryBank, checkpoint: Path | None, product: str | None
) -> float | None:
    """The image threshold that the bank keeps for a candidate; None without one for its settings.

    Args:
        detector: the candidate.
        memory: its bank, with all products.
        checkpoint: of its head.
        product: the only one that it judges by, if so: then a threshold made for that one alone counts.
    """
    from mrad.calibration import Calibration

    if detector.head.name not in (memory.calibration or {}):
        return None
    found: Calibration | None = Calibration.of(memory, detector.head.name)
    if found is not None and product is not None:
        found = found.objects.get(product)
    if found is None or found.head != detector.head.name:
        return None
    held = {**found.settings, "checkpoint": found.settings.get("checkpoint") or ""}
    used = {
        "fusion": detector.fusion,
        "sigma": detector.sigma,
        "retrieval": detector.retrieval,
        "checkpoint": checkpoint.name if checkpoint else "",
    }
    same = all(held.get(name, value) == value for name, value in used.items())
    return found.image_threshold if same else None


def show(evaluation: Evaluation) -> None:
    """The figures: a line for each detector, below its object's name; no word is ever broken."""
    from mrad_indexer.evaluation.report import HEADINGS, notes, table
    from mrad_indexer.evaluation.runner import METRICS

    names = {item.name: item.name for item in evaluation.candidates}
    room = console.width - FIGURE * len(METRICS)
    if max(map(len, names)) > room:  # numbers stand for them, and are explained first
        names = {name: f"#{number}" for number, name in enumerate(names, start=1)}
        for name, short in names.items():
            say(f"{short}  {name}")
    wide = max(len("detector"), *map(len, names.values()))
    levels, headings = zip(*((level, HEADINGS[name]) for level, name in METRICS))
    for words in (
        ("", *levels),
        ("detector", *(text.replace("F1-max", "F1") for text in headings)),
    ):
        say(f"{words[0]:{wide}}", *(f"{word:>{FIGURE}}" for word in words[1:]), style="dim")
    last = None
    for row in table(evaluation):
        if row.name != last:
            say((row.name, "bold"), f", {row.images} images (good + defective)")
        last = row.name
        cells = [(f"{cell.text:>{FIGURE}}", "bold" if cell.best else "") for cell in row.cells]
        say(f"{names[row.candidate]:{wide}}", *cells)
    say("percent; F1: the best over all thresholds", style="dim")
    for text in notes(evaluation):
        note(text)


def write(
    evaluation: Evaluation,
    detectors: dict[str, Detector],
    dataset: Dataset,
    out: Path,
    *,
    title: str,
    cards: int,
) -> None:
    """report.json, then report.html."""
    from mrad.files import atomic_write_bytes
    from mrad_indexer.evaluation.report import render, versions

    out.mkdir(parents=True, exist_ok=True)
    content = {**evaluation.to_json(), "versions": versions()}
    atomic_write_bytes(out / "report.json", json.dumps(content, indent=1).encode())
    page = render(evaluation, detectors, dataset, title=title, cards=cards)
    atomic_write_bytes(out / "report.html", page.encode("utf-8", "backslashreplace"))
    say(f"{out / 'report.html'} ({len(page) / 1e6:.1f} MB), {out / 'report.json'}")

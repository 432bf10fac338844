"""`mrad score`: images, folders, patterns, manifests -> scores, verdicts, heat maps."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.advice import without_memory
from mrad_indexer.cli.common.console import Part, console, errors, listing, measuring, say
from mrad_indexer.cli.common.tiles import describe

if TYPE_CHECKING:
    from mrad_client.batch.summary import Summary

    from mrad_indexer.scoring.judge import Judge

ROWS = 20


class Format(StrEnum):
    """Of the results."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


class Maps(StrEnum):
    """Raw maps as files."""

    none = "none"
    png16 = "png16"
    npy = "npy"


def score_command(
    sources: Annotated[
        list[str], typer.Argument(help="images, folders, quoted patterns, manifests")
    ],
    bank: Annotated[
        Path | None, typer.Option(help="the memory's folder; without one, what there is to do")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for results, overlays, maps, the page")] = Path(
        "scores"
    ),
    head: options.Head = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="the head's .safetensors, instead of :CHECKPOINT")
    ] = None,
    product: options.Product = None,
    threshold: options.Threshold = None,
    target_fpr: options.TargetFPR = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="of the results' file; table: on screen only; repeat  [csv]"),
    ] = None,
    maps: Annotated[Maps, typer.Option(help="raw maps as files")] = Maps.none,
    overlays: options.Overlays = True,
    roi: options.ROI = None,
    parts: options.Parts = None,
    tile_closely: options.Closely = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="score all again, whatever was done before")
    ] = False,
    bit_depth: options.BitDepth = None,
    strict_input: options.StrictInput = False,
    allow_truncated: options.Truncated = False,
    max_pixels: options.MaxPixels = None,
    pretrained: options.Pretrained = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Score images without a server; stop it at any time and run it again: it goes on.

    Writes OUT/results.csv (or .jsonl, .parquet), OUT/overlays/, OUT/summary.html. Files that cannot
    be scored get a row with their error. Colours mean the same in every overlay; a green line marks
    the calibrated pixel threshold, a blue frame the strongest place where nothing reaches it.

    Exit status: 0 when every file was scored, 1 when some have an error, 2 when the run did not finish.
    """
    if bank is None:
        for line in without_memory(sources):
            say(line, to=errors)
        raise typer.Exit(2)
    from mrad_client.batch.job import Job
    from mrad_client.batch.pictures import Places
    from mrad_client.batch.screen import closing, say_not_taken
    from mrad_client.batch.sources import WRITTEN, find_items

    from mrad.images.regions import read_alignment, read_parts, read_roi
    from mrad_indexer.cutting import size_of
    from mrad_indexer.loading import HeadChoice
    from mrad_indexer.scoring.judge import Judge
    from mrad_indexer.scoring.local import LocalTransport

    places = Places(
        maps=None if maps is Maps.none else out / "maps",
        overlays=out / "overlays" if overlays else None,
        base=out,
    )
    own = [out / name for name in WRITTEN]
    items = find_items(sources, own)
    choice = HeadChoice.parse(head)
    with measuring():
        judge = Judge.load(
            bank,
            head=choice.name,
            checkpoint=checkpoint or choice.checkpoint,
            product=product,
            threshold=threshold,
            target_fpr=target_fpr,
            pretrained=pretrained,
            device=device,
            precision=precision,
            reading=options.reading(bit_depth, strict_input, allow_truncated, max_pixels),
            roi=None if roi is None else read_roi(roi, size_of(items[0].path)),
            parts=() if parts is None else read_parts(parts, size_of(items[0].path)),
            align=False if parts is None else read_alignment(parts),
            closely=tile_closely,
        )
    say(f"memory {bank.name}: {judge.detector.bank.composition}", style="dim", to=errors)
    if judge.calibration is not None and judge.calibration.weakness:
        say(f"do not trust the verdicts: {judge.calibration.weakness}", style="yellow", to=errors)
    wanted = [Format.csv] if formats is None else formats
    with LocalTransport(judge, maps.value, batch_size) as transport:
        job = Job(
            items=items,
            journal=out / "results.journal",
            asked=judge.asked() | {"overlays": overlays, "maps": maps.value},
            size=transport.size,
            places=places,
            tables=[out / f"results.{kind.value}" for kind in wanted if kind is not Format.table],
            page=out / "summary.html",
        )
        about = _about(judge, bank)
        summary = job.do(nullcontext(transport), errors, restart=restart, about=about)
    show(summary, judge)
    closing(summary, [*job.tables, out / "summary.html"], console, errors)
    say_not_taken(sources, errors, own)
    if summary.errors:
        raise typer.Exit(1)


def _about(judge: Judge, bank: Path) -> dict[str, object]:
    """Facts of the run, for the page."""
    shown = {
        "memory": f"{bank.name}: {judge.detector.bank.composition}",
        "encoder": judge.detector.encoder.identity,
        "head": judge.detector.head.name,
        "threshold": "none" if judge.threshold is None else f"{judge.threshold:.5f}",
        "colours": f"{judge.low:.5f} (cold) to {judge.high:.5f} (hot), the same for all",
    }
    layout = judge.detector.layout
    if not layout.plain:
        shown["looked at"] = describe(layout)
    if judge.pixel_threshold is not None:
        shown["green line"] = f"{judge.pixel_threshold:.5f}, the pixel threshold"
    return shown


def show(summary: Summary, judge: Judge) -> None:
    """The highest scores: 0 to 100 where the memory is calibrated, beside the raw ones."""
    from mrad_client.batch.names import on_one_line
    from mrad_client.batch.summary import as_shown, judged, strongest

    scaled = judge.calibration is not None
    known = judge.calibration is not None and judge.calibration.model is not None
    chances = "probability" if known else "p_value"
    places = any(strongest(row) for _, _, row in summary.worst[:ROWS])
    rows: list[list[Part]] = []
    for _, _, row in summary.worst[:ROWS]:
        colour = {"anomalous": "red", "normal": "green"}.get(row["verdict"], "")
        cells: list[Part] = [as_shown(row), (judged(row) or "–", colour)]
        if scaled:
            chance = row[chances]
            cells += ["–" if chance is None else f"{100 * chance:.1f} %", f"{row['score']:.5f}"]
        rows.append([*cells, *([strongest(row)] if places else []), on_one_line(row["name"])])
    if rows:
        more = (chances.replace("_", "-"), "raw") if scaled else ()
        listing(("score", "verdict", *more, *(["strongest at"] if places else []), "image"), rows)
    if len(summary.scores) > ROWS:
        say(f"the {ROWS} highest of {len(summary.scores):,}", style="dim")
    if judge.threshold is None:
        say(
            "no verdicts: calibrate the memory (mrad calibrate), or give a --threshold", style="dim"
        )

"""`mrad score`: images, folders, patterns, manifests -> scores, verdicts, heat maps."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from mrad_indexer.cli import options
from mrad_indexer.cli.console import console, errors, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrad_indexer.journal import Journal, Row
    from mrad_indexer.scoring.judge import Judge
    from mrad_indexer.scoring.page import Summary

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


def register(main: typer.Typer) -> None:
    """Add the command to the `mrad` app."""
    main.command("score")(score_command)


def score_command(
    sources: Annotated[
        list[str], typer.Argument(help="images, folders, quoted patterns, manifests")
    ],
    bank: options.Bank,
    out: Annotated[Path, typer.Option(help="folder for results, overlays, maps, the page")] = Path(
        "scores"
    ),
    head: options.Head = "tf",
    checkpoint: Annotated[
        Path | None, typer.Option(help="the head's .safetensors, instead of :CHECKPOINT")
    ] = None,
    threshold: options.Threshold = None,
    target_fpr: options.TargetFPR = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="of the results' file; table: on screen only; repeat  [csv]"),
    ] = None,
    maps: Annotated[Maps, typer.Option(help="raw maps as files")] = Maps.none,
    overlays: options.Overlays = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="score all again, whatever was done before")
    ] = False,
    pretrained: options.Pretrained = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Score images without a server; stop it at any time and run it again: it goes on.

    Writes OUT/results.csv (or .jsonl, .parquet), OUT/overlays/, OUT/summary.html. Files that cannot
    be scored get a row with their error. Colours mean the same in every overlay; a green line marks
    the calibrated pixel threshold. Exit status 1 when no file could be scored.
    """
    from mrad_indexer.journal import Journal
    from mrad_indexer.loading import HeadChoice
    from mrad_indexer.scoring.judge import Judge
    from mrad_indexer.scoring.page import Summary
    from mrad_indexer.scoring.run import Outputs, score
    from mrad_indexer.scoring.sources import find_items

    items = find_items(sources)
    choice = HeadChoice.parse(head)
    judge = Judge.load(
        bank,
        head=choice.name,
        checkpoint=checkpoint or choice.checkpoint,
        threshold=threshold,
        target_fpr=target_fpr,
        pretrained=pretrained,
        device=device,
        precision=precision,
    )
    outputs = Outputs(out, overlays, maps.value)
    journal_path = out / "results.journal"
    if restart:
        journal_path.unlink(missing_ok=True)
    hint = "Use --restart to score all again, or another --out"
    with (
        Journal(journal_path, judge.asked() | outputs.asked(), hint=hint) as journal,
        progress() as bar,
    ):
        done = sum(journal.has(item.name, item.stamp()) for item in items)
        task = bar.add_task("images", total=len(items), completed=done, note="")
        failed = 0

        def report(rows: Sequence[Row]) -> None:
            nonlocal failed
            failed += sum(row["status"] != "ok" for row in rows)
            bar.update(task, advance=len(rows), note=f"{failed} errors" if failed else "")

        score(judge, items, journal, outputs, batch_size=batch_size, report=report)
        bar.stop()
        wanted = {item.name for item in items}
        written = _write(journal, wanted, out, formats or [Format.csv])
        summary = Summary.of(row for row in journal.rows() if row["name"] in wanted)
    page = out / "summary.html"
    page.write_text(summary.html(out, _about(judge, bank)), encoding="utf-8")
    show(summary, judge, [*written, page])
    if not summary.scores:
        raise typer.Exit(1)


def _write(journal: Journal, wanted: set[str], out: Path, formats: list[Format]) -> list[Path]:
    """The tables of this run's items."""
    from mrad_indexer.scoring.outputs import write_table

    paths = [out / f"results.{kind.value}" for kind in formats if kind is not Format.table]
    for path in paths:
        write_table((row for row in journal.rows() if row["name"] in wanted), path)
    return paths


def _about(judge: Judge, bank: Path) -> dict[str, object]:
    """Facts of the run, for the page."""
    shown = {
        "memory": f"{bank.name} ({len(judge.detector.bank.entries)} images)",
        "encoder": judge.detector.encoder.identity,
        "head": judge.detector.head.name,
        "threshold": "none" if judge.threshold is None else f"{judge.threshold:.5f}",
        "colours": f"{judge.low:.5f} (cold) to {judge.high:.5f} (hot), the same for all",
    }
    if judge.pixel_threshold is not None:
        shown["green line"] = f"{judge.pixel_threshold:.5f}, the pixel threshold"
    return shown


def show(summary: Summary, judge: Judge, written: list[Path]) -> None:
    """The highest scores, the counts, the errors, where everything lies."""
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("image", overflow="fold")
    for name in ("score", "image level", "verdict", "probability"):
        shown.add_column(name, justify="left" if name == "verdict" else "right")
    for _, _, row in summary.worst[:ROWS]:
        verdict = row["verdict"] or "–"
        colour = {"anomalous": "red", "normal": "green"}.get(verdict, "default")
        chance = "–" if row["probability"] is None else f"{100 * row['probability']:.1f} %"
        figures = f"{row['score']:.5f}", f"{row['class_score']:.5f}"
        shown.add_row(escape(row["name"]), *figures, f"[{colour}]{verdict}[/{colour}]", chance)
    if summary.scores:
        console.print(shown)
    if len(summary.scores) > ROWS:
        console.print(f"the {ROWS} highest of {len(summary.scores):,}", style="dim")
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.verdicts.items()))
    console.print(f"{summary.total:,} images: {counts or 'none scored'}", highlight=False)
    if judge.threshold is None:
        console.print(
            "no verdicts: calibrate the memory (mrad calibrate), or give a --threshold", style="dim"
        )
    for code, count in summary.errors.most_common():
        noun = "error" if count == 1 else "errors"
        console.print(f"[yellow]{count:,} {noun}[/yellow] {code}", highlight=False)
    for row in summary.failed[:5]:
        errors.print(f"  {escape(row['error'])}", highlight=False, soft_wrap=True)
    where = ", ".join(str(path) for path in written)
    console.print(f"written: {escape(where)}", highlight=False, soft_wrap=True)

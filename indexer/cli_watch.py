"""`mrad watch`: a folder that images arrive in -> verdicts, without a server."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from indexer.console import console, errors

if TYPE_CHECKING:
    from indexer.journal import Row


def register(main: typer.Typer) -> None:
    """Add the command to the `mrad` app."""
    main.command("watch")(watch_command)


def watch_command(
    folder: Annotated[Path, typer.Argument(help="where images arrive; searched through")],
    bank: Annotated[Path, typer.Option(help="the memory's folder")],
    out: Annotated[Path, typer.Option(help="folder for verdicts.jsonl and overlays/")],
    head: Annotated[str, typer.Option(help="tf, or NAME:CHECKPOINT")] = "tf",
    threshold: Annotated[
        float | None, typer.Option(help="score from which an image is anomalous  [calibrated]")
    ] = None,
    target_fpr: Annotated[
        float | None, typer.Option(help="instead: share of good images that may be flagged")
    ] = None,
    move_to: Annotated[
        Path | None, typer.Option(help="move judged images to MOVE_TO/ok, ng, error")
    ] = None,
    poll: Annotated[
        float | None, typer.Option(help="seconds between looks, for network folders", min=0.05)
    ] = None,
    settle: Annotated[
        float, typer.Option(help="seconds without change after which a file is whole", min=0)
    ] = 0.5,
    overlays: Annotated[bool, typer.Option(help="heat maps as files")] = True,
    pretrained: Annotated[
        str | None, typer.Option(help="tag or file of the encoder's weights")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16")] = "auto",
) -> None:
    """Judge images as they arrive, until Ctrl-C or SIGTERM; what lies there already comes first.

    A line for each image is added to OUT/verdicts.jsonl and synced to disk. Stop it, kill it, start
    it again: no image is judged twice, none is left out.
    """
    from indexer.loading import HeadChoice
    from indexer.score.judge import Judge
    from indexer.watch import WatchOptions, watch_folder

    choice = HeadChoice.parse(head)
    judge = Judge.load(
        bank,
        head=choice.name,
        checkpoint=choice.checkpoint,
        threshold=threshold,
        target_fpr=target_fpr,
        pretrained=pretrained,
        device=device,
        precision=precision,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    limit = "no threshold, no verdicts" if judge.threshold is None else f"{judge.threshold:.5f}"
    errors.print(f"watching {escape(str(folder))}, threshold {limit}; Ctrl-C stops", style="dim")
    options = WatchOptions(out, overlays, settle, move_to, poll, batch_size)
    watch_folder(folder, judge, options, stop=stop, report=show)


def show(row: Row) -> None:
    """One line for an image."""
    name = escape(row["name"])
    if row["status"] != "ok":
        line = f"[yellow]error[/yellow]  {'':9} {name}: {escape(row['error'])}"
    else:
        mark = {"normal": "[green]ok[/green]   ", "anomalous": "[red]NG[/red]   "}
        line = f"{mark.get(row['verdict'], '–    ')}  {row['score']:.5f}   {name}"
    console.print(line, highlight=False, soft_wrap=True)

"""`mrad watch`: a folder that images arrive in -> verdicts, without a server."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import errors, measuring, say

if TYPE_CHECKING:
    from mrad_client.batch.journal import Row


def watch_command(
    folder: Annotated[Path, typer.Argument(help="where images arrive; searched through")],
    bank: options.Bank,
    out: Annotated[Path, typer.Option(help="folder for verdicts.jsonl and overlays/")],
    head: options.Head = "auto",
    product: options.Product = None,
    threshold: options.Threshold = None,
    target_fpr: options.TargetFPR = None,
    move_to: Annotated[
        Path | None, typer.Option(help="move judged images to MOVE_TO/ok, ng, error")
    ] = None,
    poll: Annotated[
        float | None, typer.Option(help="seconds between looks, for network folders", min=0.05)
    ] = None,
    settle: Annotated[
        float, typer.Option(help="seconds without change after which a file is whole", min=0)
    ] = 0.5,
    overlays: options.Overlays = True,
    roi: options.ROI = None,
    parts: options.Parts = None,
    tile_closely: options.Closely = None,
    bit_depth: options.BitDepth = None,
    strict_input: options.StrictInput = False,
    allow_truncated: options.Truncated = False,
    max_pixels: options.MaxPixels = None,
    pretrained: options.Pretrained = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Judge images as they arrive, until Ctrl-C or SIGTERM; what lies there already comes first.

    A line for each image is added to OUT/verdicts.jsonl and synced to disk. Stop it, kill it, start
    it again: no image is judged twice, none is left out. Exit status 0 when it was stopped.
    """
    from mrad.images.regions import read_alignment, read_parts, read_roi
    from mrad_indexer.loading import HeadChoice
    from mrad_indexer.scoring.judge import Judge
    from mrad_indexer.watch import WatchOptions, watch_folder

    choice = HeadChoice.parse(head)
    with measuring():
        judge = Judge.load(
            bank,
            head=choice.name,
            checkpoint=choice.checkpoint,
            product=product,
            threshold=threshold,
            target_fpr=target_fpr,
            pretrained=pretrained,
            device=device,
            precision=precision,
            reading=options.reading(bit_depth, strict_input, allow_truncated, max_pixels),
            roi=None if roi is None else read_roi(roi),
            parts=() if parts is None else read_parts(parts),
            align=False if parts is None else read_alignment(parts),
            closely=tile_closely,
        )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    limit = "no threshold, no verdicts" if judge.threshold is None else f"{judge.threshold:.5f}"
    say(f"memory {bank.name}: {judge.detector.bank.composition}", style="dim", to=errors)
    say(f"watching {folder}, threshold {limit}; Ctrl-C stops", style="dim", to=errors)
    how = WatchOptions(out, overlays, settle, move_to, poll, batch_size)
    watch_folder(folder, judge, how, stop=stop, report=show)


def show(row: Row) -> None:
    """One line for an image."""
    from mrad_client.batch.names import on_one_line
    from mrad_client.batch.summary import as_shown, strongest

    name = on_one_line(row["name"])
    if row["status"] != "ok":
        say(("error", "yellow"), f"  {'':9} {name}: {on_one_line(row['error'])}")
        return
    marks = {"normal": ("ok   ", "green"), "anomalous": ("NG   ", "red")}
    place = strongest(row) and f"   strongest at {strongest(row)}"
    say(marks.get(row["verdict"], "–    "), f"  {as_shown(row):>7}   {name}{place}")
    for text in row.get("warnings") or ():
        say(("warned", "yellow"), f" {'':9} {on_one_line(text)}")

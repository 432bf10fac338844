"""`mrad demo`: the whole line in a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mrad_indexer.cli.console import console, errors, progress, say


def register(main: typer.Typer) -> None:
    """Add the command to the `mrad` app."""
    main.command("demo")(demo_command)


def demo_command(
    out: Annotated[Path, typer.Option(help="folder for the bank and the pictures")] = Path(
        "demo-output"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """See it work, offline: bundled circuit boards, the small encoder that is shipped inside.

    Builds a memory of labelled boards, chooses thresholds, judges boards that it has not seen, and
    writes heat maps.
    """
    from mrad.encoder.encoder import Encoder
    from mrad_indexer.demo import run

    encoder = Encoder.load(device=device)
    with progress() as bar:
        task = bar.add_task("images", total=None, note="")
        shown = run(
            encoder,
            out,
            say=lambda text: say(text, to=errors),
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    table = Table("board", "is", "score", "verdict", box=box.SIMPLE_HEAD)
    for item in sorted(shown, key=lambda item: -item.prediction.score):
        truth = "defective" if item.record.anomalous else "good"
        verdict = Text("–")
        if item.verdict is not None:
            right = (item.verdict == "anomalous") == item.record.anomalous
            verdict = Text(item.verdict, "green" if right else "red")
        table.add_row(item.record.image.name, truth, f"{item.prediction.score:.4f}", verdict)
    console.print(table)
    say(f"image, mask and heat map of each: {out / 'contact-sheet.png'}")
    say(f"the memory: mrad serve --bank {out / 'bank'}")

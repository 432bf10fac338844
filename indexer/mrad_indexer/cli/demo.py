"""`mrad demo`: the whole line in a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mrad_indexer.cli.common import options
from mrad_indexer.cli.common.console import console, errors, progress, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrad_indexer.demo import Pair, Shown


def demo_command(
    out: Annotated[Path, typer.Option(help="folder for the bank and the pictures")] = Path(
        "demo-output"
    ),
    device: options.Device = "auto",
) -> None:
    """See it work, offline: bundled circuit boards, the small encoder that is shipped inside.

    Builds a memory of good boards alone, and one of good and defective ones, chooses thresholds, judges
    boards that neither has seen, and writes heat maps.
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
    table = Table("board", "is", "by good boards alone", "by both kinds", box=box.SIMPLE_HEAD)
    for pair in sorted(shown, key=lambda pair: -pair.both.prediction.score):
        truth = "defective" if pair.record.anomalous else "good"
        cells = [verdict_of(pair.good_only), verdict_of(pair.both)]
        table.add_row(pair.record.image.name, truth, *cells)
    console.print(table)
    if told := of_good_alone(shown):
        say(told)
    say(f"image, mask and both heat maps of each: {out / 'contact-sheet.png'}")
    say(f"the memories: mrad serve --no-auth --bank {out / 'bank'}, or {out / 'good-bank'}")


def of_good_alone(pairs: Sequence[Pair]) -> str:
    """Why good boards alone let defects pass, and what would help; empty where they let none pass."""
    from mrad import demo

    bad = [pair.good_only for pair in pairs if pair.record.anomalous]
    missed = sum(shown.verdict == "normal" for shown in bad)
    if not missed:
        return ""
    good = len(list((demo.FOLDER / "memory" / "good").iterdir()))
    return (
        f"By good boards alone {missed} of {len(bad)} defects pass: {good} boards of many designs are few, "
        "and a design that is not among them looks as unusual as a small defect. What helps: forty good "
        "boards of one design, some marked defects (the column to the right), a stronger encoder."
    )


def verdict_of(shown: Shown) -> Text:
    """Score, of 100, and verdict, green where it is right."""
    if shown.verdict is None:
        return Text(shown.score)
    right = (shown.verdict == "anomalous") == shown.record.anomalous
    return Text.assemble(f"{shown.score} ", (shown.verdict, "green" if right else "red"))

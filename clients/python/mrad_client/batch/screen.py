"""A run on screen: a bar with rate and time left, and what is said at its end."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mrad_client.batch.names import counted, on_one_line
from mrad_client.batch.sources import not_taken
from mrad_client.batch.summary import Summary

NAMED = 5
"""Files with an error that are named at the end; the table has all."""


class Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """As text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def progress(console: Console) -> Progress:
    """A bar with rate and time left; its tasks have a field `note`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


def closing(summary: Summary, written: Iterable[Path], console: Console, errors: Console) -> None:
    """The counts, the errors by code, the first files that failed, where everything lies.

    Neither console may read markup: names hold brackets.
    """
    verdicts = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.verdicts.items()))
    say(console, f"{counted(summary.total, 'image')}: {verdicts or 'none scored'}")
    if summary.mixed:
        say(console, summary.mixed, "yellow")
    for code, count in summary.errors.most_common():
        say(console, f"{counted(count, 'error')}: {code}", "yellow")
    for code, count in summary.warnings.most_common():
        say(console, f"{counted(count, 'image')} warned of: {code}", "yellow")
    for row in summary.doubtful[:NAMED]:
        say(errors, f"  {row['name']}: {' | '.join(row['warnings'])}")
    for row in summary.failed[:NAMED]:
        say(errors, f"  {row['name']}: {row.get('error', '')}")
    say(console, f"written: {', '.join(str(path) for path in written)}")


def say_not_taken(sources: Iterable[str], console: Console, own: Collection[Path] = ()) -> None:
    """Files of the folders among the sources that get no verdict: none goes unnoticed."""
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    left = [item for folder in folders for item in not_taken(folder, own)]
    if not left:
        return
    say(console, f"not taken: {counted(len(left), 'file')}", "yellow")
    for path, why in left[:NAMED]:
        say(console, f"  {path}: {why}")
    if len(left) > NAMED:
        say(console, f"  and {counted(len(left) - NAMED, 'other')}")


def say(console: Console, text: str, style: str = "") -> None:
    """One line, whatever stands in it."""
    console.print(Text(on_one_line(text), style), highlight=False, soft_wrap=True)

"""What every command shares on screen: two consoles, progress with rate and time left, errors."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
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
from typer.core import TyperGroup

from mrad.errors import MRADError

console = Console()
errors = Console(stderr=True)


class MRADGroup(TyperGroup):
    """Commands whose `MRADError` becomes one red line and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MRADError as error:
            show_error(error)
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            if error.name != "faiss":  # two builds of it exist, so neither is a fixed dependency
                raise
            show_error(MRADError("FAISS is missing: pip install 'mrad[cpu]', or 'mrad[gpu]'"))
            raise typer.Exit(2) from error


def show_error(error: MRADError) -> None:
    """The message, and the stable code for whoever looks it up."""
    text = f"[red]error[/red] {escape(str(error))} [dim]({error.code})[/dim]"
    errors.print(text, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """One yellow line on stderr."""
    errors.print(f"[yellow]warning[/yellow] {escape(text)}", highlight=False, soft_wrap=True)


class Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """As text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def progress() -> Progress:
    """A bar on stderr with rate and time left; `skipped` is a field of its tasks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=errors,
    )

"""What every command shares on screen: two consoles, progress with rate and time left, errors."""

from __future__ import annotations

import errno
import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from mrad.errors import MissingPackageError, MRADError
from mrad.words import counted

if TYPE_CHECKING:
    from mrad_client.errors import MRADClientError
    from rich.progress import Progress
    from rich.table import Table

# No console reads markup: paths and the names of people's objects and defects hold brackets.
console = Console(markup=False, highlight=False)
errors = Console(stderr=True, markup=False, highlight=False)
QUIET = 1.0
"""Seconds that a memory's own images are measured for without a word."""
MEASURING = "measuring the memory's own images"
FOLLOWS = "own images measured, scales follow"
Part = str | tuple[str, str]
"""A text, or a text and its style."""


def say(*parts: Part, style: str = "", to: Console = console) -> None:
    """One line, whatever stands in it; never broken at the window's width."""
    to.print(Text.assemble(*parts, style=style), soft_wrap=True)


def listing(headings: Sequence[str], rows: Sequence[Sequence[Part]]) -> None:
    """Lines with aligned columns, numbers to the right, the last column as long as it is.

    For what ends in a path: a table would break it, or cut it off.
    """
    lines = [
        [(heading, "dim") for heading in headings],
        *([_part(cell) for cell in row] for row in rows),
    ]
    wide = [max(cell_len(line[column][0]) for line in lines) for column in range(len(headings) - 1)]
    for line in lines:
        parts: list[Part] = []
        for (text, style), width, below in zip(line, wide, lines[-1]):
            gap = " " * (width - cell_len(text))
            right = below[0][:1].isdigit()
            parts += [gap, (text, style), "  "] if right else [(text, style), gap, "  "]
        say(*parts, line[-1])


def table(first: str, *figures: str) -> Table:
    """A table with a column of names, and others of figures, which stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(first, box=SIMPLE_HEAD)
    for heading in figures:
        made.add_column(heading, justify="right")
    return made


def say_some(texts: Sequence[str], shown: int, more: str = "", to: Console = console) -> None:
    """The first of some lines, and that there are others: `more`, or how many."""
    for text in texts[:shown]:
        say(f"  {text}", to=to)
    if len(texts) > shown:
        say(f"  and {more or counted(len(texts) - shown, 'other')}", to=to)


def _part(cell: Part) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell


class MRADGroup(TyperGroup):
    """Commands whose `MRADError` or `MRADClientError` becomes one red line and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name's bytes that are no UTF-8 are shown escaped; stderr does so by itself.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except Exception as error:
            found = expected(error)
            if found is None:
                raise
            show_error(found)
            raise typer.Exit(2) from error


def expected(error: Exception) -> MRADError | MRADClientError | None:
    """What to say of an error that people can do something about; None for any other."""
    if isinstance(error, ModuleNotFoundError):
        return MissingPackageError.of(error, "this command cannot run")
    if isinstance(error, MemoryError):
        return MRADError("the machine has no memory left for this: free some, or give less at once")
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # a full disk, say
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free room where results are written, then run the same command again"
        return MRADError(f"{place}{error.strerror or error}{hint if full else ''}")
    client = sys.modules.get("mrad_client.errors")  # not loaded: it is none of its errors
    known = (MRADError, client.MRADClientError) if client else MRADError
    return error if isinstance(error, known) else None


def show_error(error: MRADError | MRADClientError) -> None:
    """The message, and the stable code for whoever looks it up."""
    say(("error", "red"), f" {error} ", (f"({error.code})", "dim"), to=errors)


def note(text: str) -> None:
    """One line with a yellow mark, among a command's results."""
    say(("note", "yellow"), f" {text}")


def warn(text: str) -> None:
    """One yellow line on stderr."""
    say(("warning", "yellow"), f" {text}", to=errors)


def progress() -> Progress:
    """A bar on stderr with rate and time left; `note` is a field of its tasks."""
    from mrad_client.batch.screen import progress

    return progress(errors)


@contextmanager
def measuring() -> Iterator[None]:
    """A bar while a memory's own images, or tiles, are measured against each other, where that takes long."""
    from mrad.heads.good_parts.left_out import watched

    began: float | None = None
    bar = progress()
    task = bar.add_task(MEASURING, total=None, note="")

    def show(done: int, total: int) -> None:
        nonlocal began
        if began is None:  # before it the encoder was loaded
            began = time.monotonic()
        if time.monotonic() - began >= QUIET:
            bar.start()
            text = FOLLOWS if done == total else MEASURING
            bar.update(task, completed=done, total=total, description=text)

    try:
        with watched(show):
            yield
    finally:
        if bar.live.is_started:
            bar.stop()

"""`mrad heads`: what turns features and memory into scores, installed here."""

from __future__ import annotations

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mrad_indexer.cli.common.console import MRADGroup, console

app = typer.Typer(
    cls=MRADGroup, help="Heads: which are installed, and where from.", no_args_is_help=True
)


@app.callback()
def about() -> None:
    """Heads turn features and a memory into scores; others can be installed as plugins."""


@app.command("list")
def list_command() -> None:
    """Every head found by its entry point. Heads of others are loaded, to see that they can be."""
    from importlib.metadata import entry_points

    shown = Table("head", "from", "", box=box.SIMPLE_HEAD)
    for point in sorted(entry_points(group="mrad.heads")):
        problem = Text()
        if not point.value.startswith("mrad."):
            try:
                point.load()
            except Exception as error:  # a plugin may fail in any way
                problem = Text(str(error), "red")
        shown.add_row(point.name, point.value, problem)
    console.print(shown)

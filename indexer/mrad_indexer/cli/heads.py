"""`mrad heads`: what turns features and memory into scores, installed here."""

from __future__ import annotations

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from mrad_indexer.cli.console import MRADGroup, console

app = typer.Typer(
    cls=MRADGroup, help="Heads: which are installed, and where from.", no_args_is_help=True
)


@app.callback()
def about() -> None:
    """Heads turn features and a memory into scores; others can be installed as plugins."""


@app.command("list")
def list_command() -> None:
    """Every head found by its entry point, with its options."""
    from mrad.errors import HeadError
    from mrad.heads import available_heads, head_class

    shown = Table("head", "from", "options", box=box.SIMPLE_HEAD)
    for name, origin in sorted(available_heads().items()):
        try:
            options = Text(", ".join(head_class(name).Config.model_fields))
        except HeadError as error:
            options = Text(str(error), "red")
        shown.add_row(name, origin, options)
    console.print(shown)

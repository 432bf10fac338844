"""`mrad bank`: memories on disk, looked at, joined and parted."""

from __future__ import annotations

import typer

from mrad_indexer.cli.bank import change, inspect
from mrad_indexer.cli.common.console import MRADGroup

app = typer.Typer(cls=MRADGroup, no_args_is_help=True)


@app.callback()
def about() -> None:
    """Memories on disk."""


app.command("inspect")(inspect.inspect_command)
app.command("merge")(change.merge_command)
app.command("split")(change.split_command)
app.command("remove")(change.remove_command)

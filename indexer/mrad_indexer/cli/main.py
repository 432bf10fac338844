"""The `mrad` command: builds memories, scores images, trains and judges heads, serves."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from mrad.errors import MRADError
from mrad_indexer.cli import bank as cli_bank
from mrad_indexer.cli import build as cli_build
from mrad_indexer.cli import calibrate as cli_calibrate
from mrad_indexer.cli import data as cli_data
from mrad_indexer.cli import demo as cli_demo
from mrad_indexer.cli import eval as cli_eval
from mrad_indexer.cli import heads as cli_heads
from mrad_indexer.cli import imports as cli_import
from mrad_indexer.cli import reproduce as cli_reproduce
from mrad_indexer.cli import score as cli_score
from mrad_indexer.cli import train as cli_train
from mrad_indexer.cli import watch as cli_watch
from mrad_indexer.cli import weights as cli_weights
from mrad_indexer.cli.console import MRADGroup

GROUP = "mrad.commands"

app = typer.Typer(
    cls=MRADGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mrad {version('mrad')}")
        raise typer.Exit


@app.callback()
def about(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    """Visual anomaly detection by a memory of labelled images (MRAD).

    First steps: `mrad demo` shows it on bundled images; `mrad build` makes a memory of yours;
    `mrad calibrate` chooses a threshold; `mrad score` judges new images.
    """


for module in (
    cli_demo,
    cli_build,
    cli_calibrate,
    cli_score,
    cli_watch,
    cli_bank,
    cli_data,
    cli_eval,
    cli_reproduce,
):
    module.register(app)
app.add_typer(cli_train.app, name="train")
app.add_typer(cli_import.app, name="import")
app.add_typer(cli_weights.app, name="weights")
app.add_typer(cli_heads.app, name="heads")


def plug(main: typer.Typer, point: EntryPoint) -> None:
    """Add what an entry point of `mrad.commands` names: a Typer app, or a function as one command.

    A command whose packages are not installed stays visible and says what it lacks.
    """
    try:
        found = point.load()
    except ImportError as error:
        found = _missing(point, error)
    if not isinstance(found, typer.Typer):
        main.command(point.name)(found)
    elif len(found.registered_commands) == 1 and not found.registered_callback:
        main.command(point.name)(_function(found))
    else:
        main.add_typer(found, name=point.name)


def _function(single: typer.Typer) -> Callable[..., Any]:
    function = single.registered_commands[0].callback
    if function is None:
        raise AssertionError("a registered command has a function")
    return function


def _missing(point: EntryPoint, error: ImportError) -> Callable[[], None]:
    def command() -> None:
        raise MRADError(
            f"mrad {point.name} needs what is not installed ({error}); try "
            f"pip install 'mrad[{point.value.split('.')[0]}]'"
        )

    command.__doc__ = f"Not usable: {error}."
    return command


for entry_point in sorted(entry_points(group=GROUP)):
    plug(app, entry_point)


if __name__ == "__main__":
    app()

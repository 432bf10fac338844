"""The `mrad` command: builds memories, scores images, trains and judges heads, serves.

A command is imported when it runs, so that none pays for what another needs.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, Final

import typer
import typer.main
from typer.core import TyperCommand

from mrad.errors import MRADError
from mrad_indexer.cli.common.console import MRADGroup, warn

# Read when torch is loaded. Threads that wait for each other by spinning take the cores from whatever
# else runs: beside another process, images took twice as long. Without any spinning, an image alone
# takes a fifth longer; so many turns, some 10 microseconds, reach from one operation to the next.
# GNU's OpenMP, PyTorch's on Linux, lets threads turn by that number at `ACTIVE` alone, once several
# pools together have more threads than there are cores; others spin for ever there.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE" if sys.platform == "linux" else "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Likewise of NumPy's and FAISS's BLAS, whose idle threads spin for 2**28 ticks of the clock, a tenth of a
# second: a fifth of what `mrad bank inspect` takes.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

ADDRESSES = 8 << 30
"""Bytes. With 6 GB a score came through, with 5 not; more cores ask for more."""
GROUP = "mrad.commands"
MARKUP: Final = "markdown"
"""Of help texts: in rich's own, a default in brackets would vanish as an unknown tag."""
COMMANDS = {
    "demo": "See it work, offline: bundled circuit boards, the small encoder that is shipped inside.",
    "build": "Build a memory from labelled images, with masks of the defects where there are any.",
    "calibrate": "Choose thresholds and fit probabilities.",
    "score": "Score images without a server; stop it at any time and run it again: it goes on.",
    "watch": "Judge images as they arrive, until Ctrl-C or SIGTERM; what lies there already comes first.",
    "eval": "Evaluate on labelled images: image and pixel AUROC, AP, F1-max, AUPRO.",
    "reproduce": "The paper's experiment: VisA's memory judges all sets, MVTec's judges VisA.",
    "bank": "Memories on disk.",
    "data": "Datasets: recognise, count, check.",
    "train": "Train a head on labelled images.",
    "heads": "Heads: which are installed, and where from.",
    "weights": "Encoders' weights: list, fetch, verify.",
    "import": "Bring the paper's checkpoints and memories.",
    "serve": "Serve a memory over HTTP, with a page at /.",
    "memory": "A memory that learned while it served: repair, compact, export.",
    "keys": "API keys of the server: hashed at rest, refused at once when revoked.",
}
"""Our own commands in the order of `--help`, each with its first line there."""


class Commands(MRADGroup):
    """Commands by name; listing them imports none of ours."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Ours, then those of others."""
        return [*COMMANDS, *sorted(plugged().keys() - COMMANDS.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; None for an unknown one."""
        if cmd_name not in self.commands:
            if self._listing and cmd_name in COMMANDS:
                return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
            if cmd_name in plugged():
                self.commands[cmd_name] = command_of(cmd_name, load(plugged()[cmd_name]))
            elif cmd_name in COMMANDS:
                self.commands[cmd_name] = command_of(cmd_name, own(cmd_name))
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of `mrad --help`."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
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
    if short := short_of_addresses():
        warn(short)


def short_of_addresses() -> str:
    """What a low limit of addresses does; empty without one. PyTorch would end the process, or packages
    would seem to be missing, and nothing would say why."""
    if sys.platform == "win32":
        return ""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= ADDRESSES:
        return ""
    return (
        f"this process may use {limit / 2**30:.1f} GiB of addresses (ulimit -v), and PyTorch asks for more than it "
        f"fills: below {ADDRESSES >> 30} GiB it may fail or end without a word. To bound memory limit what is filled: "
        "docker run --memory, or systemd's MemoryMax"
    )


@cache
def plugged() -> dict[str, EntryPoint]:
    """Commands of installed distributions, the service's among them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def own(name: str) -> Any:
    """One of our commands: its module has an `app` of several, or the function `NAME_command`."""
    module = import_module(f"mrad_indexer.cli.{'imports' if name == 'import' else name}")
    return getattr(module, "app", None) or getattr(module, f"{name}_command")


def load(point: EntryPoint) -> Any:
    """What an entry point names: a Typer app, or a function as one command.

    A command whose packages are not installed stays visible and says what it lacks.
    """
    try:
        return point.load()
    except ImportError as error:
        return _missing(point, error)


def command_of(name: str, found: Any) -> Any:
    """A Typer app or a function as the command `name`; an app of one command is that command."""
    holder = typer.Typer(rich_markup_mode=MARKUP)
    if not isinstance(found, typer.Typer):
        holder.command(name)(found)
    elif len(found.registered_commands) == 1 and not found.registered_callback:
        only = found.registered_commands[0]
        holder.command(name, help=only.help)(only.callback)  # type: ignore[type-var]
    else:
        holder.add_typer(found, name=name)
    return typer.main.get_group(holder).commands[name]


def _missing(point: EntryPoint, error: ImportError) -> Any:
    extra = point.value.split(".")[0].removeprefix("mrad_")

    def command() -> None:
        raise MRADError(
            f"mrad {point.name} needs what is not installed ({error}); try pip install 'mrad[{extra}]'"
        )

    command.__doc__ = f"Not usable: {error}."
    return command


if __name__ == "__main__":
    app()

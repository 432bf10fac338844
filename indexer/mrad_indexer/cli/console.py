"""What every command shares on screen: two consoles, progress with rate and time left, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from mrad.errors import MRADError

if TYPE_CHECKING:
    from mrad_client.errors import MRADClientError
    from rich.progress import Progress

console = Console()
errors = Console(stderr=True)


class MRADGroup(TyperGroup):
    """Commands whose `MRADError` or `MRADClientError` becomes one red line and exit status 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if error.name != "faiss":  # two builds of it exist, so neither is a fixed dependency
                raise
            show_error(MRADError("FAISS is missing: pip install 'mrad[cpu]', or 'mrad[gpu]'"))
            raise typer.Exit(2) from error
        except Exception as error:
            from mrad_client.errors import MRADClientError  # loads httpx: only when it is needed

            if not isinstance(error, MRADError | MRADClientError):
                raise
            show_error(error)
            raise typer.Exit(2) from error


def show_error(error: MRADError | MRADClientError) -> None:
    """The message, and the stable code for whoever looks it up."""
    text = f"[red]error[/red] {escape(str(error))} [dim]({error.code})[/dim]"
    errors.print(text, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """One yellow line on stderr."""
    errors.print(f"[yellow]warning[/yellow] {escape(text)}", highlight=False, soft_wrap=True)


def progress() -> Progress:
    """A bar on stderr with rate and time left; `note` is a field of its tasks."""
    from mrad_client.batch.screen import progress

    return progress(errors)

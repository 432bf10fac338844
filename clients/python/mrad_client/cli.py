"""`mrad-client`: scoring folders through a server, from the command line."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from mrad_client.errors import MRADClientError

try:
    import anyio
    import typer
    from rich.console import Console

    from mrad_client import AsyncClient, Retry
    from mrad_client.batch import Pace, Places, find_items
    from mrad_client.batch.http import HTTPTransport
    from mrad_client.batch.job import Job
    from mrad_client.batch.screen import closing, say, say_not_taken
    from mrad_client.batch.tables import check_suffix
    from mrad_client.types import Bank
except ImportError as error:  # pragma: no cover - seen in the test of the bare wheel
    sys.exit(
        f"mrad-client's commands need {error.name}, which is not installed. From a checkout of the "
        "project: pip install './clients/python[batch]'"
    )

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True, markup=False)


@app.callback()
def about() -> None:
    """Talk to an MRAD server."""


@app.command()
def score(
    source: Annotated[
        list[str], typer.Argument(help="Images, folders, quoted patterns, manifests.")
    ],
    out: Annotated[
        list[Path], typer.Option(help="Table: .parquet, .csv or .jsonl. May be repeated.")
    ],
    maps: Annotated[Path | None, typer.Option(help="Folder for 16-bit PNG maps.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for heat maps.")] = None,
    summary: Annotated[Path | None, typer.Option(help="HTML page about the run.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Score that is anomalous.")] = None,
    target_fpr: Annotated[
        float | None, typer.Option(help="Instead: share of good parts that may be stopped.")
    ] = None,
    product: Annotated[
        str | None,
        typer.Option("--object", help="Product: judged by what the memory holds of it alone."),
    ] = None,
    server: Annotated[str | None, typer.Option(help="Address; default MRAD_URL.")] = None,
    per_request: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 4,
    most_requests: Annotated[int, typer.Option(min=1, help="Requests at once, at most.")] = 64,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier progress.")] = False,
) -> None:
    """Score many images; stop it at any time and run it again: it goes on where it was.

    Progress stands beside the first --out, in a .journal file. Files that cannot be scored get a
    row with their error. The API key is read from MRAD_API_KEY.

    Exit status: 0 when every file was scored, 1 when some have an error, 2 when the run did not finish.
    """
    for path in out:
        check_suffix(path)
    places = Places(maps, overlays)

    async def memory() -> Bank:
        async with AsyncClient(server, retry=Retry(attempts=1)) as client:
            return await client.bank(product)

    items = find_items(source, places.folders)
    bank = anyio.run(memory)  # wrong address, key or version: before the first image
    job = Job(
        items=items,
        journal=out[0].with_name(out[0].name + ".journal"),
        asked={
            "memory": bank.name,
            "threshold": threshold,
            "target_fpr": target_fpr,
            **({} if product is None else {"object": product}),
            "maps": maps is not None,
            "overlays": overlays is not None,
        },
        size=per_request,
        places=places,
        tables=out,
        page=summary,
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[HTTPTransport]:
        async with AsyncClient(server, retry=Retry(attempts=1)) as client:
            yield HTTPTransport(
                client,
                threshold,
                target_fpr,
                product,
                pictures=places.wanted,
                colours=bank.map_range,
                limit=Pace(most=most_requests),
            )

    found = job.do(opened(), console, restart=restart)
    written = (*out, *(path for path in (maps, overlays, summary) if path is not None))
    closing(found, written, console, console)
    say_not_taken(source, console, places.folders)
    if found.errors:
        raise typer.Exit(1)


def main() -> None:
    """The command; errors are one line, not a trace."""
    try:
        app()
    except MRADClientError as error:
        say(console, f"error: {error}", "red")
        say(console, "What was scored is kept: the same command goes on from there.")
        sys.exit(2)


if __name__ == "__main__":
    main()

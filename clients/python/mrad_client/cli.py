"""`mrad-client`: scoring folders through a server, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from mrad_client.errors import MRADClientError

try:
    import anyio
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from mrad_client import AsyncClient, Retry
    from mrad_client.batch import Item, Journal, Options, Pace, find_items, run
    from mrad_client.batch.journal import Row
    from mrad_client.batch.outputs import check_suffix, write_table
    from mrad_client.batch.pictures import write_atomic
    from mrad_client.batch.summary import Summary
except ImportError as error:  # pragma: no cover - seen in the test of the bare wheel
    sys.exit(f"mrad-client needs `pip install 'mrad-client[batch]'` ({error.name} is missing)")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)
NAMED = 5
"""Files with an error that are named at the end; the table has all."""


@app.callback()
def about() -> None:
    """Talk to an MRAD server."""


@app.command()
def score(
    source: Annotated[str, typer.Argument(help="A folder, a quoted pattern, or a manifest.")],
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
    server: Annotated[str | None, typer.Option(help="Address; default MRAD_URL.")] = None,
    per_request: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 4,
    most_requests: Annotated[int, typer.Option(min=1, help="Requests at once, at most.")] = 64,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier progress.")] = False,
) -> None:
    """Score many images; stop it at any time and run it again: it goes on where it was.

    Progress stands beside the first --out, in a .journal file. Files that cannot be scored get a
    row with their error. The API key is read from MRAD_API_KEY.
    """
    for path in out:
        check_suffix(path)
    options = Options(threshold, target_fpr, maps, overlays, per_request, most_requests)
    journal_path = out[0].with_name(out[0].name + ".journal")
    if restart:
        journal_path.unlink(missing_ok=True)
    items = find_items(source)
    with Journal(journal_path, options.asked()) as journal:
        anyio.run(_score, items, journal, options, server)
        wanted = {item.name for item in items}
        for path in out:
            write_table((row for row in journal.rows() if row["name"] in wanted), path)
        found = Summary.of(row for row in journal.rows() if row["name"] in wanted)
    if summary is not None:
        write_atomic(summary, found.html(summary.parent).encode())
    _close(found, [*out, *(path for path in (maps, overlays, summary) if path is not None)])


async def _score(items: list[Item], journal: Journal, options: Options, server: str | None) -> None:
    """The run behind a progress bar."""
    with ExitStack() as stack:
        progress = stack.enter_context(_progress())
        task = progress.add_task("", total=len(items), errors=0, requests=1)
        progress.update(task, completed=sum(journal.has(i.name, i.stamp()) for i in items))
        async with AsyncClient(server, retry=Retry(attempts=1)) as client:
            await client.bank()  # wrong address, key or version: say so before the first image
            await run(client, items, journal, options, _reporter(progress, task))


def _reporter(progress: Progress, task: TaskID) -> Callable[[list[Row], Pace], None]:
    errors = 0

    def report(rows: list[Row], pace: Pace) -> None:
        nonlocal errors
        errors += sum(row["status"] != "ok" for row in rows)
        progress.update(task, advance=len(rows), errors=errors, requests=pace.slots)

    return report


class Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """As text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def _progress() -> Progress:
    errors = TextColumn("{task.fields[errors]} errors · {task.fields[requests]} at once")
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), errors)
    return Progress(*columns, console=console)


def _close(found: Summary, written: list[Path]) -> None:
    verdicts = ", ".join(f"{count:,} {name}" for name, count in sorted(found.verdicts.items()))
    console.print(f"{found.total:,} images: {verdicts or 'none scored'}")
    for code, count in found.errors.most_common():
        console.print(f"{count:,} {'error' if count == 1 else 'errors'}: {code}")
    for row in found.failed[:NAMED]:
        console.print(f"  {escape(row['name'])}: {escape(row.get('error', ''))}", highlight=False)
    where = ", ".join(str(path) for path in written)
    console.print(f"Written: {escape(where)}", highlight=False, soft_wrap=True)


def main() -> None:
    """The command; errors are one line, not a trace."""
    try:
        app()
    except MRADClientError as error:
        console.print(f"[red]Error:[/red] {error}", highlight=False)
        console.print("What was scored is kept: the same command goes on from there.")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped: the same command goes on from here.")
        sys.exit(130)


if __name__ == "__main__":
    main()

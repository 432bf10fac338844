"""A whole run as a command makes it: journal, progress, tables, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from mrad_client.batch.journal import Journal, Row
from mrad_client.batch.names import counted
from mrad_client.batch.pictures import Places, write_atomic
from mrad_client.batch.runner import Transport, run
from mrad_client.batch.screen import progress, say
from mrad_client.batch.sources import Item
from mrad_client.batch.summary import Summary
from mrad_client.batch.tables import write_table

HINT = "Its rows would not compare: use --restart to score all again, or another --out"
STOPPED = 130
"""Exit status after Ctrl-C."""


@dataclass(frozen=True)
class Job:
    """What to score, and where its record and its results go."""

    items: Sequence[Item]
    journal: Path
    asked: Mapping[str, Any]
    """What decides the rows' content; see `Journal`."""
    size: int
    """Files in one call of the transport, at most."""
    places: Places
    tables: Sequence[Path]
    page: Path | None = None

    def do(
        self,
        transport: AbstractAsyncContextManager[Transport],
        console: Console,
        *,
        restart: bool = False,
        about: Mapping[str, object] | None = None,
    ) -> Summary:
        """Score what the journal lacks, then write tables and page again.

        Args:
            transport: opened and closed here, around the run.
            console: where the progress bar stands.
            restart: score all again.
            about: facts of the run, for the page.

        Raises `JournalError`, and whatever ended the run; what was scored stays in the journal.
        Ctrl-C says so and ends the process.
        """
        names = [item.name for item in self.items]
        with (
            Journal(self.journal, self.asked, hint=HINT, restart=restart) as journal,
            progress(console) as bar,
        ):
            done = sum(journal.has(item.name, item.stamp()) for item in self.items)
            task = bar.add_task("images", total=len(names), completed=done, note="")
            failed = 0

            def report(rows: Sequence[Row], slots: int) -> None:
                nonlocal failed
                failed += sum(row["status"] != "ok" for row in rows)
                errors = f"{counted(failed, 'error')} · " if failed else ""
                bar.update(task, advance=len(rows), note=f"{errors}{slots} at once")

            async def main() -> None:
                async with transport as opened:
                    await run(
                        opened, self.items, journal, self.places, size=self.size, report=report
                    )

            try:
                anyio.run(main)
            except KeyboardInterrupt:
                bar.stop()
                say(console, "Stopped: the same command goes on from here.")
                raise SystemExit(STOPPED) from None
            bar.stop()
            for path in self.tables:
                write_table(journal.rows(names), path)
            found = Summary.of(journal.rows(names))
        if self.page is not None:
            write_atomic(self.page, found.html(self.page, self.places.base, about).encode())
        return found

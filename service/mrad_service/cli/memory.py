"""`mrad memory`: what an operator does to a memory that is not being served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrad.words import counted

app = typer.Typer(help="A memory that learned while it served: repair, compact, export.")
Bank = Annotated[Path, typer.Argument(help="the bank's folder; what it learned lies in BANK.live")]


@app.command("repair")
def repair_command(
    bank: Bank,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="look, change nothing")] = False,
) -> None:
    """Keep everything of a damaged memory that is whole; set the damaged files aside."""
    from mrad_service.memory.repair import repair

    result = repair(bank, dry_run=dry_run)
    for lost in result.lost:
        typer.echo(f"lost: {lost}")
    typer.echo(f"{counted(result.entries, 'entry', 'entries')} in the memory")
    if result.set_aside is not None:
        typer.echo(f"the replaced files lie in {result.set_aside}")
    elif dry_run or not result.lost:
        typer.echo("nothing was changed")


@app.command("compact")
def compact_command(bank: Bank) -> None:
    """Give the room of entries that were removed back to the disk."""
    from mrad_service.memory.store import DurableMemory

    with DurableMemory.open(bank) as memory:
        before = memory.folder.database.stat().st_size
        memory.compact()
        after = memory.folder.database.stat().st_size
        typer.echo(f"{before:,} bytes, now {after:,}; {counted(len(memory), 'entry', 'entries')}")


@app.command("export")
def export_command(
    bank: Bank, target: Annotated[Path, typer.Argument(help="a new folder")]
) -> None:
    """Write the memory, with all that it learned, as an ordinary bank; a server may have it meanwhile."""
    from mrad.memory.bank import MemoryBank

    memory = MemoryBank.load(bank)
    memory.save(target)
    typer.echo(f"{memory.composition}, in {target}")

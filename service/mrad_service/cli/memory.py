"""`mrad memory`: what an operator does to a memory that is not being served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrad.errors import MRADError
from mrad_service.memory.store import DurableMemory

app = typer.Typer(help="A memory that learnt while it served: repair, compact, export.")
Bank = Annotated[Path, typer.Argument(help="the bank's folder; what it learnt lies in BANK.live")]


@app.command("repair")
def repair_command(
    bank: Bank,
    dry_run: Annotated[bool, typer.Option(help="look, change nothing")] = False,
) -> None:
    """Keep every whole record of a damaged log; set the old log aside."""
    from mrad_service.memory.repair import repair

    try:
        result = repair(bank, dry_run=dry_run)
    except MRADError as error:
        raise _failed(error) from error
    typer.echo(f"{result.kept} operations kept, {result.entries} entries in the memory")
    for first, last in result.missing:
        typer.echo(f"lost: operations {first} to {last}, {last - first + 1} in all")
    if result.unreadable:
        typer.echo(f"{result.unreadable} whole operations could not be applied")
    typer.echo(f"{result.damaged_bytes} bytes belong to no whole record")
    typer.echo("nothing was changed" if dry_run else f"the old log lies in {result.set_aside}")


@app.command("compact")
def compact_command(bank: Bank) -> None:
    """Turn the log into a new snapshot now."""
    try:
        with DurableMemory.open(bank) as memory:
            memory.compact()
            typer.echo(f"generation {memory.status()['generation']}, {len(memory)} entries")
    except MRADError as error:
        raise _failed(error) from error


@app.command("export")
def export_command(
    bank: Bank, target: Annotated[Path, typer.Argument(help="a new folder")]
) -> None:
    """Write the memory, with all that it learnt, as an ordinary bank."""
    try:
        with DurableMemory.open(bank) as memory:
            memory.export(target)
            typer.echo(f"{len(memory)} entries in {target}")
    except MRADError as error:
        raise _failed(error) from error


def _failed(error: MRADError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(1)

"""`mrad keys`: API keys and their scopes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="API keys of the server: hashed at rest, refused at once when revoked.")
File = Annotated[
    Path,
    typer.Option("--file", envvar="MRAD_API_KEYS_FILE", help="where the hashed keys lie"),
]


@app.command("add")
def add_command(
    name: Annotated[str, typer.Argument(help="whose key: shown in logs and in the memory")],
    file: File,
    scope: Annotated[
        list[str] | None, typer.Option(help="score, write (teach) or admin; repeat  [score]")
    ] = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from mrad_service.middleware.auth import KeyFile

    typer.echo(KeyFile(file).add(name, tuple(dict.fromkeys(scope or ["score"]))))
    typer.echo("this is the only copy; the server knows it from now on", err=True)


@app.command("list")
def list_command(file: File) -> None:
    """Names, scopes and dates."""
    from mrad_service.middleware.auth import KeyFile

    for key in KeyFile(file).keys().values():
        state = f"revoked {key.revoked_at}" if key.revoked_at else "valid"
        typer.echo(
            f"{key.key_id}  {key.name:20}  {','.join(key.scopes):18}  {key.created_at}  {state}"
        )


@app.command("revoke")
def revoke_command(which: Annotated[str, typer.Argument(help="name or id")], file: File) -> None:
    """Refuse a key from now on."""
    from mrad_service.middleware.auth import KeyFile

    key = KeyFile(file).revoke(which)
    typer.echo(f"{key.name} ({key.key_id}) is revoked")

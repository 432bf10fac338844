"""`mrad serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from mrad.errors import MRADError
from mrad_service.settings import Settings, mistyped
from mrad_service.telemetry.logs import configure

app = typer.Typer(help="Serve a memory over HTTP, with a page at /.")
MIB = 1 << 20


def listed() -> str:
    """Every setting as an environment variable, with its default: one place says what there is."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name.endswith("_bytes") and default % MIB == 0:
            default = f"{default // MIB} MiB"
        known = "" if default in (None, (), {}, "") else f" [{default}]"
        lines.append(f"- `MRAD_{name.upper()}`{known}: {field.description}")
    return "\n".join(lines)


HELP = f"""Serve a memory over HTTP, with a page at /.

Settings are options, or environment variables; lists and objects are JSON:

{listed()}
"""


@app.command(help=HELP)
def serve(
    bank: Annotated[
        Path | None, typer.Option(help="the folder of the bank that is active at the start")
    ] = None,
    bank_root: Annotated[
        Path | None, typer.Option(help="a folder of banks that can be activated by name")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="auto: what suits the memory; nn, combined, tf, ft, clip, a plugin's  [auto]"
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="the head's checkpoint")] = None,
    retrieval: Annotated[str | None, typer.Option(help="exact, approximate, auto  [exact]")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="tag or file of the encoder's weights")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, or several: cuda:0,cuda:1  [auto]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto: what each memory was built in; fp32, bf16  [auto]"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on  [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[8000]; 0 takes a free one")] = None,
    max_batch: Annotated[int | None, typer.Option(help="images in a device batch  [8]")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="accept no new entries")] = False,
    api_keys_file: Annotated[Path | None, typer.Option(help="made by `mrad keys add`")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="serve everyone; on a loopback address only")
    ] = False,
    log_format: Annotated[str | None, typer.Option(help="json, console  [json]")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error  [info]")
    ] = None,
) -> None:
    given: dict[str, Any] = {
        name: value
        for name, value in locals().items()
        if value is not None and name not in ("read_only", "no_auth")
    }
    if read_only:
        given["writable"] = False
    if no_auth:
        given["auth"] = "off"
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for found in error.errors():
            where = ".".join(map(str, found["loc"]))
            what = found["msg"].removeprefix("Value error, ")
            typer.echo(f"error: {where + ': ' if where else ''}{what}", err=True)
        raise typer.Exit(2) from error
    except SettingsError as error:
        name = str(error).split('"')[1].upper()
        typer.echo(f'error: MRAD_{name} is JSON, as a list: \'["first", "second"]\'', err=True)
        raise typer.Exit(2) from error
    if wrong := {name: meant for name, meant in mistyped(os.environ).items() if meant}:
        for name, meant in wrong.items():
            typer.echo(f"error: {name} is no setting; do you mean {meant}?", err=True)
        raise typer.Exit(2)
    configure(settings.log_format, settings.log_level)
    from mrad_service.serving import run

    try:
        run(settings)
    except MRADError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error

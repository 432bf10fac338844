"""`mrad weights`: which encoders can be used now, and how to get others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mrad_indexer.cli.common.console import MRADGroup, errors, listing, say

app = typer.Typer(cls=MRADGroup, help="Encoders' weights: list, fetch, verify.")
Name = Annotated[str, typer.Argument(help="an open_clip model, as ViT-L-14-336, or timm:NAME")]


@app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Weights on this machine: shipped inside, or in one of the folders that are looked through."""
    from mrad.encoder.weights import list_weights, search_paths

    found = list_weights()
    if as_json:
        rows = [
            {
                "name": item.name,
                "pretrained": None if item.shipped else item.pretrained,
                "path": str(item.path),
                "bytes": item.size,
            }
            for item in found
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    rows = [
        (
            item.name,
            "(shipped)" if item.shipped else item.pretrained,
            f"{item.size / 1e6:.1f} MB",
            str(item.path),
        )
        for item in found
    ]
    if rows:
        listing(("encoder", "pretrained", "size", "file"), rows)
    else:
        say("no weights on this machine")
    places = ", ".join(str(path) for path in search_paths())
    say(f"looked through: {places} (MRAD_WEIGHTS adds folders)", style="dim")


@app.command("fetch")
def fetch_command(
    name: Name,
    pretrained: Annotated[
        str | None,
        typer.Argument(help="a tag of open_clip, or of timm  [openai; timm's own choice]"),
    ] = None,
) -> None:
    """Download weights once; afterwards they are found without a network."""
    from mrad.encoder.weights import fetch, locate, published

    name, tag = published(name, pretrained)
    path = locate(name, tag)
    if path is None:
        with errors.status(f"{name} {tag}"):
            path = fetch(name, tag)
    say(str(path))


@app.command("verify")
def verify_command(
    source: Annotated[str, typer.Argument(help="a file, or an encoder's name")],
    pretrained: Annotated[
        str | None, typer.Argument(help="its tag; none for a shipped encoder")
    ] = None,
) -> None:
    """Read weights without unpickling: digest, tensors; by name also whether the encoder loads."""
    from mrad.encoder.encoder import Encoder
    from mrad.encoder.identity import TIMM
    from mrad.encoder.weights import locate, published, verify
    from mrad.errors import WeightsNotFoundError
    from mrad.models import shipped

    by_name = not Path(source).is_file()
    if by_name and source.startswith(TIMM):
        source, tag = published(source, pretrained)
        named = locate(source, tag)
        source, pretrained = f"{source}.{tag}", None
    else:
        named = shipped().get(source) if pretrained is None else locate(source, pretrained)
    path = named if by_name else Path(source)
    if path is None:
        what = f"{source} {pretrained or ''}".strip()
        raise WeightsNotFoundError(
            f"{what} is neither a file nor weights on this machine; see mrad weights list, or "
            f"mrad weights fetch {what}"
        )
    for name, value in verify(path).items():
        say(f"{name:12} {value}")
    if by_name:
        encoder = Encoder.load(source, pretrained, device="cpu", precision="fp32")
        say(f"encoder      {encoder.identity}")
        say(f"image tower  {encoder.identity.digest}")
